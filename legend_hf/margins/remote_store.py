"""Scores at a URL: what was read outlives the machine, and other machines find it.

In: what `Store` takes, and any URL that fsspec can write to. Out: the same, and files at the URL, its chunks: scores of
some thousand texts, never written again, so that any number of machines add to them. On each machine stands a mirror,
an ordinary store that all of its processes share: it is filled from the chunks once, and holds what is not sent yet.
What is sent at a time bounds what is read again after a machine is lost. This file knows neither texts nor models.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import os
import re
import sqlite3
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from legend_hf.hub.transfer import open_url, reason_at, without_secrets
from legend_hf.margins.store import SUFFIX, Store, StoreError, insert, transaction, unseal
from legend_hf.reading.stopping import speaks

logger = logging.getLogger(__name__)

Row = tuple[bytes, str, bytes, bytes]
"""A score as it travels: digest of its direction, which the version of scoring is part of; the direction's model and
layer, for people; digest of its text; the score, sealed with its checksum."""

CHUNK_ROWS = 50_000
"""Scores in one chunk at most, 48 bytes each."""
CHUNK_SECONDS = 30.0
"""How long a score stays on its machine alone, until the next one is kept there."""
COMPACT_ROWS = 500_000
"""Scores in one chunk after `compact`."""
FORMAT = 1

_CLAIM = "legend_hf_store.json"  # says that the folder is a store; written first, so a wrong URL is found out first
# The name holds the hash of the content: half a chunk, or one with a flipped bit, is never parsed.
_CHUNK = re.compile(r"scores-\d{8}T\d{12}-([0-9a-f]{32})\.parquet")
_PATIENCE = 600.0  # Seconds for which a process waits for another one that moves scores.
_SEALED = [("score", "<f8"), ("checksum", "<u4")]  # As `seal` packs them.
_AT_ONCE = 8  # Chunks that are fetched together.
_MIRRORED = """
CREATE TABLE IF NOT EXISTS chunks (name TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS unsent (
    number INTEGER PRIMARY KEY, direction BLOB NOT NULL, text BLOB NOT NULL, since REAL NOT NULL,
    UNIQUE (direction, text)
);
"""
_OLDEST = "SELECT number, since FROM unsent ORDER BY number LIMIT 1"  # With the newest: how many, without counting.
_UNSENT = (
    "FROM unsent JOIN directions ON digest = unsent.direction "
    "LEFT JOIN scores ON scores.direction = id AND scores.text = unsent.text"
)


class RemoteStore(Store):
    """Scores at a URL, and their mirror on this machine. Get one from `store_at`.

    Args:
        url: A folder of any fsspec kind, such as `s3://bucket/run`, `hf://buckets/user/name/run` or
            `file:///mnt/bucket/run`.
        mirror: File of the mirror, ending in `.sqlite`; one in the folder of temporary files (`TMPDIR`) when left out.

    Raises:
        ValueError: It is no URL of a folder that chunks can be added to.
        ImportError: Its kind needs a package which is not installed.
    """

    def __init__(self, url: str, *, mirror: str | os.PathLike[str] | None = None) -> None:
        self.url = check_url(url)
        super().__init__(_mirror_of(self.url) if mirror is None else mirror)
        # Before links are followed: who made such a link chose the folder.
        self._place = _mirror_of(self.url) if mirror is None else self.path
        self._filled = False
        self._not_before = 0.0  # after a failure to send

    @property
    def shown(self) -> str:
        """The URL without what may be secret in it."""
        return without_secrets(self.url)

    def check(self) -> None:
        """Fills the mirror, once a process, so that a URL that cannot be used is refused before anything is read."""
        if self._filled:
            return
        _private_folder(self._place)
        super().check()
        self._claim()
        with self._lasting():
            self._fill()

    def find(self, direction: bytes, texts: Sequence[bytes]) -> dict[bytes, float]:
        """See `Store.find`."""
        self.check()
        return super().find(direction, texts)

    def keep(self, direction: bytes, scores: Mapping[bytes, float], *, label: str) -> dict[bytes, float]:
        """Writes scores to the mirror; on return they outlive a kill of this process. Sends a chunk when one is due.

        See `Store.keep`.
        """
        self.check()

        def write(connection: sqlite3.Connection) -> tuple[dict[bytes, float], int, float]:
            with transaction(connection):
                _add_tables(connection)
                there = insert(connection, direction, scores, label=label)
                connection.executemany(
                    "INSERT OR IGNORE INTO unsent (direction, text, since) VALUES (?, ?, ?)",
                    [(direction, text, time.time()) for text in scores if text not in there],
                )
                first, since = connection.execute(_OLDEST).fetchone() or (1, time.time())
                (last,) = connection.execute("SELECT MAX(number) FROM unsent").fetchone()
            return {**scores, **there}, (last or 0) - first + 1, since

        standing, waiting, since = self._safely(write)
        due = waiting >= CHUNK_ROWS or time.time() - since >= CHUNK_SECONDS
        if due and time.monotonic() >= self._not_before:
            try:
                # While another process sends, this one goes on, but not so far that more than a chunk each is at stake.
                self._send(wait=waiting >= 2 * CHUNK_ROWS)
            except ConnectionError as error:
                self._not_before = time.monotonic() + CHUNK_SECONDS
                logger.warning("%s; it is tried again, and work goes on", error)
        return standing

    def flush(self) -> None:
        """Sends what is not sent yet, of all processes of this machine. See `Store.flush`."""
        if self.path.exists():
            _private_folder(self._place)
            with self._lasting():
                self._send(wait=True)

    def prune(self, *, unused_days: float = 0.0) -> int:
        """Refused: other machines may be using what stands at a URL."""
        raise StoreError(
            f"the store at `{self.shown}` is only ever added to; to be rid of it delete that folder, and to have fewer "
            "files there use `legend-hf store compact`"
        )

    def merge(self, other: Store) -> int:
        """See `Store.merge`; what is new is at the URL on return."""
        new = super().merge(other)
        self.flush()
        return new

    def compact(self) -> tuple[int, int]:
        """Puts all chunks into few. Others may add to the store, and read it, meanwhile.

        The new ones are there, and hold all that the old ones held, before one of those is deleted.

        Returns:
            How many chunks there were, and how many there are.

        Raises:
            StoreError: They cannot be read, written or deleted. No score is lost.
        """
        self._filled = False
        self.check()
        self.flush()

        def written(connection: sqlite3.Connection) -> tuple[list[str], list[str]]:
            connection.execute("BEGIN")  # one state of names and scores: a new, empty file has neither
            try:
                old = [name for (name,) in connection.execute("SELECT name FROM chunks ORDER BY name")]
                (scores,) = connection.execute("SELECT COUNT(*) FROM scores").fetchone()
                if len(old) <= math.ceil(scores / COMPACT_ROWS):
                    return old, old
                rows = connection.execute(
                    "SELECT digest, label, text, score FROM scores JOIN directions ON id = direction ORDER BY id, text"
                )
                new = []
                while part := rows.fetchmany(COMPACT_ROWS):
                    if len(sound := _sound(part)) < len(part):
                        raise StoreError(f"the mirror {str(self.path)!r} is damaged; delete it and compact again")
                    new.append(self._put(sound))
                return old, new
            finally:
                connection.execute("ROLLBACK")

        with self._lasting(), _turn(self.path):
            old, new = self._safely(written)
            fs, root = self._open()
            for name in set(old) - set(new):
                with self._at_url("delete an old chunk of"), suppress(FileNotFoundError):
                    fs.rm_file(f"{root}/{name}")

            def note(connection: sqlite3.Connection) -> None:
                with transaction(connection):
                    connection.execute("DELETE FROM chunks")
                    connection.executemany("INSERT OR IGNORE INTO chunks (name) VALUES (?)", [(n,) for n in new])

            if old != new:
                self._safely(note)
        return len(old), len(new)

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection | None]:
        """See `Store._reading`; nothing is written at the URL."""
        if not self._filled:
            try:
                _private_folder(self._place)
                with self._lasting():
                    self._fill()
            except FileNotFoundError:
                yield None
                return
        with super()._reading() as connection:
            yield connection

    @contextmanager
    def _lasting(self) -> Iterator[None]:
        """A fault of the connection is not waited for."""
        try:
            yield
        except ConnectionError as error:
            raise StoreError(
                f"{error}; what was not sent stays in {str(self.path)!r} and goes with the next scores that this "
                "machine sends there: run the same again"
            ) from None

    # -- At the URL ----------------------------------------------------------------------------------------------

    def _open(self) -> tuple[Any, str]:
        """The file system, made anew in each process, and the folder in it."""
        fs, root = open_url(self.url)
        return fs, root.rstrip("/")

    @contextmanager
    def _at_url(self, doing: str) -> Iterator[None]:
        """Each kind of URL has errors of its own.

        Raises:
            StoreError: It is no use to try again.
            ConnectionError: It may be of use.
        """
        try:
            yield
        except (StoreError, FileNotFoundError, ImportError):
            raise
        except Exception as error:
            tried = f"cannot {doing} the store at `{self.shown}` ({reason_at(self.url, error)})"
            if isinstance(error, PermissionError | NotImplementedError):
                raise StoreError(
                    f"{tried}; check the URL, and that the credentials may list, read and write there"
                ) from None
            raise ConnectionError(tried) from None

    def _claim(self) -> None:
        """Marks the folder as a store, and refuses one that is of a later version or cannot be written to."""
        fs, root = self._open()
        claim = f"{root}/{_CLAIM}"
        try:
            with self._at_url("read"):
                try:
                    said: Any = json.loads(fs.cat_file(claim))
                except ValueError:  # half written
                    said = None
                except FileNotFoundError:
                    said = None
                    if "file" in _protocols(fs):  # its parent must be there: a disk that is not mounted is none
                        with suppress(FileExistsError):
                            os.mkdir(root)
            version = said.get("format") if isinstance(said, dict) else None
            if isinstance(version, int) and version > FORMAT:
                raise StoreError(
                    f"the store at `{self.shown}` has format {version}, this version of legend_hf writes {FORMAT}; "
                    "update legend_hf, or name another folder with `store=`"
                )
            if version is None:
                with self._at_url("write to"):
                    fs.pipe_file(claim, json.dumps({"format": FORMAT}).encode())
        except (FileNotFoundError, ConnectionError) as error:
            why = str(error) if isinstance(error, ConnectionError) else reason_at(self.url, error)
            raise StoreError(
                f"the store at `{self.shown}` cannot be used: {why}; check the URL, that its bucket or parent folder "
                "exists, and that the credentials may list, read and write there"
            ) from None

    def _list(self) -> set[str]:
        fs, root = self._open()
        with self._at_url("list"):
            fs.invalidate_cache()
            names = {str(path).rstrip("/").rpartition("/")[2] for path in fs.ls(root, detail=False)}
        return {name for name in names if _CHUNK.fullmatch(name)}

    def _put(self, rows: Sequence[Row]) -> str:
        """Writes a chunk, and returns its name, which no other writer makes."""
        content = _packed(rows)
        name = f"scores-{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{_hash(content)}.parquet"
        fs, root = self._open()
        with self._at_url("write to"):
            try:
                fs.pipe_file(f"{root}/{name}", content)
            except FileNotFoundError as error:  # of a bucket or folder that was there
                raise ConnectionError(reason_at(self.url, error)) from None
        return name

    def _send(self, *, wait: bool) -> None:
        """Sends chunks until nothing is left to send; without `wait`, leaves it to a process that is at it."""
        if "memory" in _protocols(self._open()[0]) and not speaks():
            return  # what a worker writes there ends with it: its parent sends from the mirror
        with _turn(self.path, wait=wait) as mine:
            while mine:
                rows = self._safely(_take_unsent)
                if rows:
                    sound = _sound(rows)
                    names = [self._put(sound)] if sound else []
                    self._safely(partial(_note_sent, names=names, rows=rows))
                if len(rows) < CHUNK_ROWS:
                    return

    def _fill(self) -> None:
        """Takes into the mirror the chunks that it does not know. What it had of chunks that are gone goes first."""
        with _turn(self.path):
            for _ in range(3):  # a chunk that was compacted between the look and the reading is in another now
                there = self._list()
                known = self._safely(_known_chunks)
                if known - there:
                    self._safely(_forget_sent)
                    known = set()
                if self._take(sorted(there - known)):
                    break
        self._filled = True

    def _take(self, names: Sequence[str]) -> bool:
        """Whether all these chunks are in the mirror now, but for those that are damaged."""
        fs, root = self._open()
        whole = True
        for first in range(0, len(names), _AT_ONCE):
            part = names[first : first + _AT_ONCE]
            with self._at_url("read"):
                found = fs.cat([f"{root}/{name}" for name in part], on_error="return")
            for path, content in found.items():
                name = path.rpartition("/")[2]
                if isinstance(content, FileNotFoundError):
                    whole = False
                    continue
                if isinstance(content, Exception):
                    with self._at_url("read"):
                        raise content
                rows = _unpacked(content, name)
                if rows is None:
                    logger.warning(
                        "the chunk %s of the store at %s is damaged or half written, or of a later version; it was "
                        "left there and not used: what it held is read again", name, self.shown
                    )  # fmt: skip
                else:
                    self._safely(partial(_note_taken, name=name, rows=rows))
        return whole


def check_url(url: str) -> str:
    """Refuses what cannot be the folder of a store, before anything is loaded.

    Raises:
        ValueError: It is no URL, is chained, names a file, or lies in a repository, where each chunk were a commit.
        ImportError: Its kind needs a package which is not installed.
    """
    shown = without_secrets(url)
    given = f"`store` is {shown!r}"
    bare = url.rstrip("/")
    if "::" in url or "\0" in url:
        raise ValueError(f"{given}; chunks cannot be added to a chained URL: give that of a folder, `s3://bucket/run`")
    if bare.endswith(SUFFIX):
        raise ValueError(
            f"{given}; a URL names a folder of chunks and no `{SUFFIX}` file: leave the ending out, or give the "
            "path of a file on a local disk"
        )
    if re.match(r"hf://(?!buckets/[^/]+/[^/]+)", url):
        raise ValueError(
            f"{given}; in a repository each chunk would be a commit: give a folder in a bucket, "
            "`hf://buckets/user/name/run`"
        )
    _, root = open_url(url)
    if not root.strip("/"):
        raise ValueError(f"{given}; give a folder in it, such as `{shown.rstrip('/')}/run`")
    return bare


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def _mirror_of(url: str) -> Path:
    """On a disk of this machine: a home folder may be another machine's too, where SQLite's locks do not hold."""
    user = getattr(os, "getuid", lambda: "user")()
    return (
        Path(tempfile.gettempdir()) / f"legend_hf-{user}" / f"{hashlib.sha256(url.encode()).hexdigest()[:24]}{SUFFIX}"
    )


def _private_folder(path: Path) -> None:
    """Makes the mirror's folder; one that others may write to, in the folder of all, could hold what they forged.

    Raises:
        StoreError: It is such a one.
    """
    folder = path.parent
    with suppress(FileExistsError, FileNotFoundError):
        folder.mkdir(mode=0o700)
    if folder.parent.resolve() == Path(tempfile.gettempdir()).resolve() and hasattr(os, "getuid"):
        found = folder.lstat()
        if found.st_uid != os.getuid() or found.st_mode & 0o077 or folder.is_symlink():
            raise StoreError(
                f"the folder {str(folder)!r} for mirrors of stores is not this user's alone; remove it, or set `TMPDIR`"
            )


@contextmanager
def _turn(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Whether it is this process's and thread's turn to move scores between mirror and URL.

    Two at it at a time send a score twice, which costs space and nothing else: so a wait has an end, and where the
    system has no such locks everybody is let in.
    """
    try:
        import fcntl

        file = os.open(f"{path}.turn", os.O_RDWR | os.O_CREAT, 0o600)
    except (ImportError, OSError):
        yield True
        return
    try:
        end = time.monotonic() + (_PATIENCE if wait else 0.0)
        mine = False
        while not mine:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                mine = True
            except OSError:
                if time.monotonic() >= end:
                    break
                time.sleep(0.05)
        yield mine or wait
    finally:
        os.close(file)


# -- The mirror ----------------------------------------------------------------------------------------------------


def _add_tables(connection: sqlite3.Connection) -> None:
    for statement in _MIRRORED.split(";"):
        connection.execute(statement)


def _known_chunks(connection: sqlite3.Connection) -> set[str]:
    _add_tables(connection)
    return {name for (name,) in connection.execute("SELECT name FROM chunks")}


def _take_unsent(connection: sqlite3.Connection) -> list[tuple[Any, ...]]:
    _add_tables(connection)
    asked = f"SELECT unsent.direction, label, unsent.text, score {_UNSENT} ORDER BY number LIMIT {CHUNK_ROWS}"
    return connection.execute(asked).fetchall()


def _note_sent(connection: sqlite3.Connection, names: Sequence[str], rows: Iterable[tuple[Any, ...]]) -> None:
    with transaction(connection):
        _add_tables(connection)
        connection.executemany("INSERT OR IGNORE INTO chunks (name) VALUES (?)", [(name,) for name in names])
        connection.executemany(
            "DELETE FROM unsent WHERE direction = ? AND text = ?", [(direction, text) for direction, _, text, _ in rows]
        )


def _note_taken(connection: sqlite3.Connection, name: str, rows: Iterable[Row]) -> None:
    """Takes a chunk in, all of it or nothing."""
    of: dict[tuple[bytes, str], dict[bytes, float]] = {}
    for direction, label, text, sealed in rows:
        score = unseal(direction, text, sealed)
        if score is not None:
            of.setdefault((direction, label), {})[text] = score
    with transaction(connection):
        _add_tables(connection)
        for (direction, label), scores in of.items():
            insert(connection, direction, scores, label=label)
        connection.execute("INSERT OR IGNORE INTO chunks (name) VALUES (?)", (name,))


def _forget_sent(connection: sqlite3.Connection) -> None:
    """Leaves only what was never sent: the store is what stands at the URL, and somebody took from it."""
    with transaction(connection):
        connection.execute("DELETE FROM chunks")
        connection.execute(
            "DELETE FROM scores WHERE NOT EXISTS (SELECT 1 FROM unsent JOIN directions ON digest = unsent.direction "
            "WHERE id = scores.direction AND unsent.text = scores.text)"
        )
        connection.execute("DELETE FROM directions WHERE id NOT IN (SELECT direction FROM scores)")


# -- A chunk -------------------------------------------------------------------------------------------------------


def _sound(rows: Iterable[tuple[Any, ...]]) -> list[Row]:
    """Rows of the mirror whose score fits its checksum."""
    return [(d, str(label), t, s) for d, label, t, s in rows if unseal(d, t, s) is not None]


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _packed(rows: Sequence[Row]) -> bytes:
    """A Parquet file: digests of direction and text, score, checksum, and labels and format in its metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sealed = np.frombuffer(b"".join(row[3] for row in rows), dtype=_SEALED)
    labels = {direction.hex(): label for direction, label, _, _ in rows}
    table = pa.table(
        {
            "direction": pa.array([row[0] for row in rows], pa.binary()),
            "text": pa.array([row[2] for row in rows], pa.binary()),
            "score": pa.array(sealed["score"].copy()),
            "checksum": pa.array(sealed["checksum"].copy()),
        }
    ).replace_schema_metadata({"legend_hf": json.dumps({"format": FORMAT, "labels": labels})})
    file = io.BytesIO()
    pq.write_table(table, file, compression="none", use_dictionary=["direction"])
    return file.getvalue()


def _unpacked(content: bytes, name: str) -> list[Row] | None:
    """The rows of a chunk; None if its content is not the one that it was named after, or not of this version."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    named = _CHUNK.fullmatch(name)
    if named is None or named[1] != _hash(content):
        return None
    try:
        table = pq.read_table(io.BytesIO(content))
        said = json.loads(table.schema.metadata[b"legend_hf"])
        if said["format"] != FORMAT:
            return None
        sealed = np.empty(len(table), dtype=_SEALED)
        sealed["score"], sealed["checksum"] = table["score"].to_numpy(), table["checksum"].to_numpy()
        directions, texts = table["direction"].to_pylist(), table["text"].to_pylist()
        labels = {direction: str(said["labels"][direction.hex()]) for direction in set(directions)}
        return [(d, labels[d], t, s.tobytes()) for d, t, s in zip(directions, texts, sealed, strict=True)]
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
