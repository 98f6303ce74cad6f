"""Scores on disk: what has been read once is never read again.

In: the digest of a direction, digests of texts, scores. Out: the scores that are known. A store is one SQLite file that
many processes may use at once and that outlives the kill of any of them. Its keys say all that decides a score (the
token ids, what is pooled, the reader, the vector), so a rerun finds it whatever changed in batch size, order, split,
workers or calibration. This file knows neither texts nor models; `scoring` makes the keys.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import sqlite3
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

logger = logging.getLogger(__name__)

T = TypeVar("T")
AnyStore = TypeVar("AnyStore", bound="Store")

SUFFIX = ".sqlite"
FORMAT = 2
WAIT_SECONDS = 60.0
"""How long a write waits for those of other processes."""
NOTED_SECONDS = 3600.0
"""How old the note of a direction's last use may be before reading writes it anew."""

_APPLICATION = 0x4C474E44  # "LGND" in the file's header: a SQLite file of something else is never written to.
_SCHEMA = """
CREATE TABLE directions (id INTEGER PRIMARY KEY, digest BLOB UNIQUE NOT NULL, label TEXT NOT NULL, used REAL NOT NULL);
CREATE TABLE scores (
    direction INTEGER NOT NULL, text BLOB NOT NULL, score BLOB NOT NULL, PRIMARY KEY (direction, text)
) WITHOUT ROWID;
"""
# Beside the scores, and none of what makes a file a store: what texts were called that became these tokens.
_NAMES = "CREATE TABLE names_of_texts (name BLOB PRIMARY KEY, text BLOB NOT NULL) WITHOUT ROWID"
_NAMING_MS = 1000
"""How long the writing of names waits for other processes; without them a text is tokenised once more."""
_SCORE = struct.Struct("<dI")  # A float64, and the checksum that ties it to its key.
_AT_ONCE = 500  # Keys in one query; SQLite takes 999 everywhere.
# A write-ahead log needs memory that all processes share, which file systems over a network do not have.
_NETWORK = {
    *("9p", "afs", "beegfs", "ceph", "cifs", "gpfs", "lustre", "ncpfs"),
    *("nfs", "nfs4", "orangefs", "panfs", "smb3", "smbfs", "wekafs"),
}


class StoreError(OSError):
    """A store that cannot be used: the disk is full, the file is another's or may not be written."""


@dataclass(frozen=True)
class Kept:
    """What a store holds for one direction.

    Attributes:
        digest: Of the direction, hexadecimal.
        label: Its model and layer, for people.
        scores: How many texts have a score.
        used: When scores were last written or found, to an hour.
    """

    digest: str
    label: str
    scores: int
    used: datetime


class Store:
    """A file of scores. Get one from `open_store`, which keeps one connection for each process.

    Raises:
        ValueError: The path is a URL, or does not end in `.sqlite`.
        StoreError: The file cannot be used.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = check_path(path)
        self._lock = threading.RLock()  # a signal's handler may fork in the middle of `_safely`
        self._depth = 0
        self._connection: sqlite3.Connection | None = None
        self._inode = 0
        self._nameless = False

    def check(self) -> None:
        """Opens the file, so that one that cannot be used is refused before anything is read."""
        self._safely(lambda connection: None)

    def find(self, direction: bytes, texts: Sequence[bytes]) -> dict[bytes, float]:
        """The scores that are known. What does not fit its checksum is not: it is read and written again.

        Args:
            direction: Digest of the direction.
            texts: Digests of the texts.

        Returns:
            Score of each known text, to the bit as it was kept.
        """

        def read(connection: sqlite3.Connection) -> dict[bytes, float]:
            found = _find(connection, direction, texts)
            if found:
                _note_use(connection, direction)
            return found

        return self._safely(read)

    def look(self, direction: bytes, texts: Sequence[bytes]) -> dict[bytes, float]:
        """As `find`, of a file that is neither made nor written nor moved.

        Raises:
            StoreError: It cannot be read.
        """
        with self._reading() as connection:
            return {} if connection is None else _find(connection, direction, texts)

    def keep(self, direction: bytes, scores: Mapping[bytes, float], *, label: str) -> dict[bytes, float]:
        """Writes scores in one transaction; on return they outlive a kill of this process.

        Args:
            direction: Digest of the direction.
            scores: Score of each text, finite.
            label: The direction's model and layer, for people.

        Returns:
            The scores that now stand in the store: another process may have been first, and one text has one score.
        """

        def write(connection: sqlite3.Connection) -> dict[bytes, float]:
            with transaction(connection):
                there = insert(connection, direction, scores, label=label)
            return {**scores, **there}

        return self._safely(write)

    def named(self, names: Sequence[bytes], *, look: bool = False) -> dict[bytes, bytes]:
        """The digests of texts that were called so; none, where the file does not say.

        Args:
            names: What texts are called.
            look: Of a file that is neither made nor written nor moved.
        """
        found: dict[bytes, bytes] = {}
        if not look:
            self._naming(lambda connection: found.update(_named(connection, names)))
        elif not self._nameless:
            with self._reading() as connection, suppress(sqlite3.Error):
                found |= {} if connection is None else _named(connection, names)
        return found

    def name(self, names: Mapping[bytes, bytes]) -> None:
        """Writes down what texts are called, where that can be done.

        Args:
            names: Digest of a text, by its name.
        """

        def write(connection: sqlite3.Connection) -> None:
            connection.execute(f"PRAGMA busy_timeout = {_NAMING_MS}")
            try:
                with transaction(connection):
                    if not _has_names(connection):
                        connection.execute(_NAMES)
                    connection.executemany(
                        "INSERT OR REPLACE INTO names_of_texts (name, text) VALUES (?, ?)", names.items()
                    )
            finally:
                connection.execute(f"PRAGMA busy_timeout = {1000 * WAIT_SECONDS:.0f}")

        if names:
            self._naming(write)

    def _naming(self, work: Callable[[sqlite3.Connection], None]) -> None:
        """Works with the table of names; where that fails this process goes without, and scores are as they are."""

        def careful(connection: sqlite3.Connection) -> None:
            try:
                work(connection)
            except sqlite3.Error as error:
                self._nameless = _code(error) != sqlite3.SQLITE_BUSY  # the next batch may find it free
                logger.info("the store %s has no names of texts that can be used: %s", self.path, error)

        if not self._nameless:
            self._safely(careful)

    def contents(self) -> list[Kept]:
        """What is held for each direction, the last used first. The file is neither made nor written nor moved.

        Raises:
            StoreError: It cannot be read.
        """
        with self._reading() as connection:
            return [] if connection is None else _contents(connection)

    def prune(self, *, unused_days: float = 0.0) -> int:
        """Forgets directions whose scores were neither written nor found for some days, and gives their space back.

        Returns:
            How many scores are gone.
        """

        def remove(connection: sqlite3.Connection) -> int:
            with transaction(connection):
                now = time.time()
                # A note that is none, or of tomorrow, keeps nothing alive.
                connection.execute(
                    "DELETE FROM directions WHERE NOT COALESCE(used > ? AND used < ?, 0)",
                    (now - unused_days * 86400, now + 86400),
                )
                gone = connection.execute(
                    "DELETE FROM scores WHERE direction NOT IN (SELECT id FROM directions)"
                ).rowcount
                with suppress(sqlite3.Error):  # the next run names again what it finds
                    if _has_names(connection):
                        connection.execute("DROP TABLE names_of_texts")
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            return gone

        return self._safely(remove)

    def merge(self, other: Store) -> int:
        """Takes over what another store holds and this one does not. The other is neither written nor moved.

        Returns:
            How many scores are new.

        Raises:
            StoreError: One of them cannot be used; what was taken over until then stays.
        """
        new = 0
        with other._reading() as source:
            if source is None:
                return 0
            for kept in _contents(source):
                digest = bytes.fromhex(kept.digest)
                for scores in _all(source, digest):
                    new += len(scores.keys() - self.find(digest, list(scores)).keys())
                    self.keep(digest, scores, label=kept.label)
        return new

    def flush(self) -> None:
        """Sends on what is kept; a file of this machine has it already.

        Raises:
            StoreError: It cannot be sent. It stays here, and is sent by the next flush.
        """

    def close(self) -> None:
        """Closes this process's connection; the next use opens a new one."""
        with self._lock:
            self._drop()

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection | None]:
        """A connection that cannot write; None where there is nothing. Damage is an error, not a file set aside."""
        if not self.path.exists():
            yield None
            return
        try:
            connection = _opened_to_read(self.path)
            try:
                yield connection if _recognise(connection, self.path) else None
            finally:
                connection.close()
        except (sqlite3.Error, *_DAMAGE) as error:
            if isinstance(error, _DAMAGE) or _code(error) in _DAMAGE_CODES:
                raise StoreError(
                    f"the store {str(self.path)!r} is damaged ({error}) and was left as it is; the next run that keeps "
                    "scores in it sets it aside and begins a new one"
                ) from error
            raise self._refusal(error) from error

    def _safely(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Works with the connection; a damaged file is set aside, once, and the work done on a new one."""
        with self._lock:
            self._depth += 1
            try:
                try:
                    return work(self._connect())
                except _DAMAGE as damage:
                    self._set_aside(damage)
                except sqlite3.Error as error:
                    if _code(error) not in _DAMAGE_CODES:
                        raise self._refusal(error) from error
                    self._set_aside(error)
                try:
                    return work(self._connect())
                except (sqlite3.Error, *_DAMAGE) as error:
                    raise self._refusal(error) from error
            finally:
                self._depth -= 1

    def _connect(self) -> sqlite3.Connection:
        if self._connection is not None:
            if _inode(self.path) == self._inode:
                if self._connection.in_transaction:  # left by an exception out of a signal's handler
                    self._connection.execute("ROLLBACK")
                return self._connection
            self._abandon()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._refusal(error) from error
        with _alone(self.path):
            try:
                # Private: whose texts these are can be guessed. A file that is there must not be opened: closing it
                # again would drop the locks of every other connection of this process.
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            except FileExistsError:
                if not os.access(self.path, os.R_OK | os.W_OK):  # SQLite would refuse the first score, not the file
                    raise self._refusal(PermissionError(errno.EACCES, os.strerror(errno.EACCES))) from None
            except OSError as error:
                raise self._refusal(error) from error
            self._inode = _inode(self.path)
            connection = sqlite3.connect(self.path, timeout=WAIT_SECONDS, isolation_level=None, check_same_thread=False)
            connection.text_factory = partial(str, encoding="utf-8", errors="replace")  # of a damaged file
            try:
                _patiently(lambda: _prepare(connection, self.path))
            except BaseException:
                connection.close()
                raise
        self._connection = connection
        return connection

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _abandon(self) -> None:
        """Forgets a connection whose file is another's or gone. Closing it could take the new file's log along."""
        if self._connection is not None:
            _ABANDONED.append(self._connection)
            self._connection = None

    def _before_fork(self) -> None:
        self._lock.acquire()  # until after the fork: a child must find no lock held, and no connection
        if self._depth == 0:
            self._drop()

    def _after_fork(self) -> None:
        self._lock = threading.RLock()
        self._abandon()  # only where the fork came out of the middle of `_safely`

    def _set_aside(self, damage: Exception) -> None:
        """Renames a damaged file, with its log, so that work can go on and nothing is deleted."""
        aside = self.path.with_name(f"{self.path.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.getpid()}")
        with _alone(self.path):
            if _inode(self.path) != self._inode:  # another process was quicker
                self._abandon()
                return
            self._drop()
            for ending in ("", "-wal", "-shm"):
                try:
                    os.rename(f"{self.path}{ending}", f"{aside}{ending}")
                except FileNotFoundError:
                    continue
                except OSError as error:
                    raise self._refusal(error) from error
        logger.warning(
            "the store %s is damaged (%s); it was set aside as %s and a new one begun: what it held is read again",
            self.path, damage, aside.name,
        )  # fmt: skip

    def _refusal(self, error: Exception) -> StoreError:
        if _code(error) == sqlite3.SQLITE_FULL or getattr(error, "errno", None) == errno.ENOSPC:
            return StoreError(
                f"the disk is full: the store {str(self.path)!r} cannot grow. The scores it holds are safe; make room "
                "and run the same again to go on, or name a store on another disk with `store=`"
            )
        if _code(error) == sqlite3.SQLITE_BUSY:
            return StoreError(
                f"another process has kept the store {str(self.path)!r} locked for {WAIT_SECONDS:.0f} s; if none is "
                "running, the file lies on a disk whose locks do not work: name a store on a local disk with `store=`"
            )
        return StoreError(
            f"the store {str(self.path)!r} cannot be used: {error}; name a file in a folder that may be written to "
            "with `store=`, or go without one (`store=None`)"
        )


class _Damaged(Exception):
    """What SQLite takes for sound, and no store can be."""


# A decode error is how sqlite3 fails to say that a schema is malformed where it is not even text.
_DAMAGE = (_Damaged, UnicodeDecodeError)
# The last three: no statement of this file can break a constraint of a sound store.
_DAMAGE_CODES = (
    *(sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB),
    *(sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_TOOBIG),
)


_OPEN: dict[Path, Store] = {}
_FORKING: list[Store] = []
_ABANDONED: list[sqlite3.Connection] = []


def open_store(path: str | os.PathLike[str]) -> Store:
    """This process's connection to a store."""
    return once_a_process(Store(path))


def once_a_process(store: AnyStore) -> AnyStore:
    """The store of that file which this process has already, else this one; forks and ends of processes know it."""
    return cast(AnyStore, _OPEN.setdefault(store.path, store))


def flush_stores() -> None:
    """Sends on what stores of this process have not sent yet; one that cannot is a warning, for its file has it all."""
    for store in list(_OPEN.values()):
        try:
            store.flush()
        except OSError as error:
            logger.warning("%s", error)


@contextmanager
def sending_on() -> Iterator[None]:
    """Around a run: however it ends, what was read is sent on."""
    try:
        yield
    finally:
        flush_stores()


def _before_fork() -> None:
    for store in list(_OPEN.values()):
        store._before_fork()
        _FORKING.append(store)


def _after_fork_in_parent() -> None:
    while _FORKING:
        _FORKING.pop()._lock.release()


def _after_fork_in_child() -> None:
    while _FORKING:
        _FORKING.pop()._after_fork()


# SQLite's locks belong to a process: a connection must not be carried into a forked worker. Nor a lock of a thread that
# does not exist there.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


def default_store() -> Path:
    """Where the command line keeps its scores: under the Hugging Face assets cache (`HF_ASSETS_CACHE`)."""
    from huggingface_hub.constants import HF_ASSETS_CACHE

    return Path(HF_ASSETS_CACHE) / "legend_hf" / f"scores{SUFFIX}"


def check_path(path: str | os.PathLike[str]) -> Path:
    """Refuses what cannot be a store, so that no file of another kind is ever taken for a damaged one.

    Raises:
        ValueError: A URL, a folder, or another ending.
    """
    given = os.fspath(path)
    if not isinstance(given, str) or "://" in given or "\0" in given or not given.endswith(SUFFIX):
        raise ValueError(f"`store` is {path!r}; give the path of a file on a local disk that ends in `{SUFFIX}`")
    absolute = Path(os.path.realpath(os.path.expanduser(given)))  # one file, one connection
    if absolute.is_dir():
        raise ValueError(f"`store` is {path!r}, a folder; give the path of a file that ends in `{SUFFIX}`")
    return absolute


def _recognise(connection: sqlite3.Connection, path: Path) -> bool:
    """Refuses a file of another kind or another format; says whether it has its tables already."""
    try:
        schema = {sql for (sql,) in connection.execute("SELECT sql FROM sqlite_master WHERE type = 'table'")}
        # After the tables: whoever made them in between had written this with them.
        application = connection.execute("PRAGMA application_id").fetchone()[0]
    except (sqlite3.Error, UnicodeDecodeError) as error:
        if _is_another(connection):
            given = f"the store {str(path)!r} is a SQLite file of something else"
            raise StoreError(f"{given}; give another path") from error
        if isinstance(error, sqlite3.Error) and _code(error) == sqlite3.SQLITE_ERROR:
            raise _Damaged(str(error)) from error
        raise
    if not schema:
        return False
    if application != _APPLICATION:
        tables = sorted(name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'"))
        raise StoreError(
            f"the store {str(path)!r} is a SQLite file of something else, with the tables {', '.join(tables[:5])}; "
            "give another path"
        )
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version != FORMAT:
        remedy = (
            "update legend_hf, or name another file with `store=`"
            if version > FORMAT
            else "its scores are not those of this version: name another file with `store=`, or remove this one"
        )
        raise StoreError(
            f"the store {str(path)!r} has format {version}, this version of legend_hf writes {FORMAT}; {remedy}"
        )
    # Tables that somebody put beside them harm nobody.
    if not schema >= {statement.strip() for statement in _SCHEMA.split(";") if statement.strip()}:
        raise _Damaged("its tables are not those of a store")
    return True


def _opened_to_read(path: Path) -> sqlite3.Connection:
    """A connection that changes nothing, not even what lies beside the file."""
    beside = [Path(f"{path}{ending}") for ending in ("-wal", "-journal")]
    # Without a log nothing is on its way into the file; SQLite would begin one to read it, also in a folder that may
    # not be written to.
    idle = not any(log.exists() and log.stat().st_size for log in beside)
    given = f"{path.as_uri()}?mode=ro{'&immutable=1' if idle else ''}"
    connection = sqlite3.connect(given, uri=True, timeout=WAIT_SECONDS, isolation_level=None)
    connection.text_factory = partial(str, encoding="utf-8", errors="replace")
    return connection


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Makes an empty file a store, and refuses one of another kind or another format."""
    made = _recognise(connection, path)
    if _is_network(path):
        logger.warning(
            "the store %s lies on a network disk, where SQLite is slow and its locks may not hold; better are local "
            "ones, one on each machine, and `legend-hf store merge` at the end", path
        )  # fmt: skip
        connection.execute("PRAGMA journal_mode = DELETE")  # it may have been made on a local disk
    elif connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    if not made:
        with transaction(connection):
            # Another process may have been first while this one waited.
            if not connection.execute("SELECT 1 FROM sqlite_master").fetchone():
                for statement in _SCHEMA.split(";"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {_APPLICATION}")
                connection.execute(f"PRAGMA user_version = {FORMAT}")
        _recognise(connection, path)


def _is_another(connection: sqlite3.Connection) -> bool:
    """Whether a file whose tables cannot be read is sound SQLite of another program, or of a later version of this."""
    try:
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
    except sqlite3.Error:
        return False
    return application != _APPLICATION or version != FORMAT


def _patiently(work: Callable[[], None]) -> None:
    """Some of SQLite's locks, such as that of a change of journal, are refused at once and not waited for."""
    end = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            return work()
        except sqlite3.OperationalError as error:
            if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
        time.sleep(0.01)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keeps other processes from opening or setting aside a store of this folder meanwhile, where the system can."""
    try:
        import fcntl

        folder = os.open(path.parent, os.O_RDONLY)
    except (ImportError, OSError):  # Windows, which does not rename a file that is open
        yield
        return
    try:
        with suppress(OSError):  # a disk without such locks
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All of what is written within, or nothing."""
    try:
        connection.execute("BEGIN IMMEDIATE")  # a later upgrade from reading to writing could not wait for others
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _contents(connection: sqlite3.Connection) -> list[Kept]:
    rows = connection.execute(
        "SELECT digest, label, (SELECT COUNT(*) FROM scores WHERE direction = directions.id), used "
        "FROM directions ORDER BY used DESC"
    ).fetchall()
    found = []
    for digest, label, count, used in rows:
        with suppress(AttributeError, TypeError, ValueError, OverflowError, OSError):  # a bad row is an unknown one
            found.append(Kept(digest.hex(), str(label), count, datetime.fromtimestamp(used, UTC)))
    return found


def _note_use(connection: sqlite3.Connection, direction: bytes) -> None:
    """Writes down that a direction's scores were used, at most once an hour; where it cannot, work goes on."""
    now = time.time()
    noted = connection.execute("SELECT used FROM directions WHERE digest = ?", (direction,)).fetchone()
    if noted is not None and isinstance(noted[0], float) and abs(now - noted[0]) < NOTED_SECONDS:
        return
    try:
        with transaction(connection):
            connection.execute("UPDATE directions SET used = ? WHERE digest = ?", (now, direction))
    except sqlite3.OperationalError as error:
        if _code(error) in _DAMAGE_CODES:
            raise
        logger.debug("the use of a direction could not be noted: %s", error)


def insert(
    connection: sqlite3.Connection, direction: bytes, scores: Mapping[bytes, float], *, label: str
) -> dict[bytes, float]:
    """Writes scores, inside a transaction, and gives those of them that stood there before, which stay."""
    connection.execute(
        "INSERT INTO directions (digest, label, used) VALUES (?, ?, ?) "
        "ON CONFLICT (digest) DO UPDATE SET used = excluded.used",
        (direction, label, time.time()),
    )
    row = connection.execute("SELECT id FROM directions WHERE digest = ?", (direction,)).fetchone()
    if row is None or row[0] is None:
        raise _Damaged("a direction that was just written is not there")
    (number,) = row
    there = _find(connection, direction, list(scores))
    connection.executemany(
        "INSERT INTO scores (direction, text, score) VALUES (?, ?, ?) "
        "ON CONFLICT (direction, text) DO UPDATE SET score = excluded.score",
        [(number, t, seal(direction, t, score)) for t, score in scores.items() if t not in there],
    )
    return there


def _has_names(connection: sqlite3.Connection) -> bool:
    """Whether there is a table of names, which must be one of this version's.

    Raises:
        sqlite3.OperationalError: It is another's.
    """
    found = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'names_of_texts'").fetchall()
    if found not in ([], [(_NAMES,)]):
        raise sqlite3.OperationalError("the table names_of_texts is another's")
    return bool(found)


def _named(connection: sqlite3.Connection, names: Sequence[bytes]) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for first in range(0, len(names) if _has_names(connection) else 0, _AT_ONCE):
        part = names[first : first + _AT_ONCE]
        rows = connection.execute(
            f"SELECT name, text FROM names_of_texts WHERE name IN ({', '.join('?' * len(part))})", part
        )
        # What does not lead to tokens that have a score leads nowhere.
        found |= {name: text for name, text in rows if isinstance(text, bytes)}
    return found


def _find(connection: sqlite3.Connection, direction: bytes, texts: Sequence[bytes]) -> dict[bytes, float]:
    found: dict[bytes, float] = {}
    for first in range(0, len(texts), _AT_ONCE):
        part = texts[first : first + _AT_ONCE]
        rows = connection.execute(
            "SELECT text, score FROM scores WHERE direction = (SELECT id FROM directions WHERE digest = ?) "
            f"AND text IN ({', '.join('?' * len(part))})",
            (direction, *part),
        )
        found |= _sound(direction, rows)
    return found


def _all(connection: sqlite3.Connection, direction: bytes) -> Iterator[dict[bytes, float]]:
    """All scores of a direction, some at a time."""
    after = b""
    while rows := connection.execute(
        "SELECT text, score FROM scores WHERE direction = (SELECT id FROM directions WHERE digest = ?) AND text > ? "
        f"ORDER BY text LIMIT {_AT_ONCE}",
        (direction, after),
    ).fetchall():
        yield _sound(direction, rows)
        after = rows[-1][0]


def _sound(direction: bytes, rows: Iterable[tuple[Any, Any]]) -> dict[bytes, float]:
    """Texts and scores of rows, without those that do not fit their checksum: to lose one costs reading it again."""
    opened = ((text, unseal(direction, text, sealed)) for text, sealed in rows)
    return {text: score for text, score in opened if score is not None}


def seal(direction: bytes, text: bytes, score: float) -> bytes:
    """A score as it is kept: with a checksum over it and its key."""
    return _SCORE.pack(score, zlib.crc32(struct.pack("<d", score), zlib.crc32(direction + text)))


def unseal(direction: bytes, text: bytes, sealed: bytes) -> float | None:
    """The score that was sealed, None if it is not whole.

    SQLite notices a broken tree, not a flipped bit in a value: a wrong margin would go unseen.
    """
    if isinstance(text, bytes) and isinstance(sealed, bytes) and len(sealed) == _SCORE.size:
        score: float = _SCORE.unpack(sealed)[0]
        if sealed == seal(direction, text, score) and math.isfinite(score):
            return score
    return None


def _code(error: Exception) -> int | None:
    """SQLite's primary error code; its extended ones say more than is needed."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def _is_network(path: Path) -> bool:
    """Whether a path lies on a file system over a network, as far as the system says."""
    try:
        lines = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    mounts = [line.split()[1:3] for line in lines if len(line.split()) > 2]
    real = Path(os.path.realpath(path))
    under = [(m.replace("\\040", " "), kind) for m, kind in mounts if real.is_relative_to(m.replace("\\040", " "))]
    # The last of equals: an automounter's own mount comes before the disk that it mounts there.
    kind = max(reversed(under), key=lambda entry: len(entry[0]), default=("", ""))[1]
    return kind in _NETWORK or kind.startswith("fuse.")
