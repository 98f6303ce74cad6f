"""The store: what is kept is found to the bit, by anyone, whatever happens to the process or the file."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import close_stores
from hypothesis import given, settings
from hypothesis import strategies as st

from legend_hf.margins import store as store_module
from legend_hf.margins.store import Store, StoreError, check_path, default_store, open_store

A, B = b"a" * 32, b"b" * 32


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "scores.sqlite"


@pytest.fixture(autouse=True)
def _closed():
    yield
    close_stores()


@given(st.dictionaries(st.binary(min_size=32, max_size=32), st.floats(allow_nan=False, allow_infinity=False)))
@settings(max_examples=30)
def test_scores_come_back_to_the_bit(tmp_path_factory, scores):
    path = tmp_path_factory.mktemp("store") / "s.sqlite"
    first = Store(path)
    assert first.keep(A, scores, label="a") == scores
    first.close()
    again = Store(path)
    found = again.find(A, [*scores, key(0)])
    assert {k: np.float64(v).tobytes() for k, v in found.items() if k in scores} == {
        k: np.float64(v).tobytes() for k, v in scores.items()
    }
    assert again.find(B, list(scores)) == {}
    again.close()


def test_thousands_of_keys_at_once(path):
    scores = {key(i): float(i) for i in range(3000)}
    Store(path).keep(A, scores, label="a")
    assert open_store(path).find(A, [key(i) for i in range(6000)]) == scores


def test_the_first_score_of_a_text_stays(path):
    one, two = Store(path), Store(path)
    one.keep(A, {key(1): 1.0}, label="a")
    assert two.keep(A, {key(1): 1.5, key(2): 2.0}, label="a") == {key(1): 1.0, key(2): 2.0}
    assert one.find(A, [key(1), key(2)]) == {key(1): 1.0, key(2): 2.0}


def _write(path: str, first: int) -> None:
    store = Store(path)
    for i in range(first, first + 200, 5):
        store.keep(A, {key(j): float(j) for j in range(i, i + 5)}, label="a")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_write_at_once_and_nothing_is_lost(path, method):
    context = multiprocessing.get_context(method)
    starts = (0, 0, 100, 300)  # the same scores, overlapping ones and others
    workers = [context.Process(target=_write, args=(str(path), first)) for first in starts]
    open_store(path).check()  # the parent holds a connection while it forks
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    expected = {key(i): float(i) for first in starts for i in range(first, first + 200)}
    assert open_store(path).find(A, [key(i) for i in range(600)]) == expected
    (kept,) = open_store(path).contents()
    assert kept.scores == len(expected) == 500


def _write_and_close(path: str, number: int, together: Any) -> None:
    together.wait()
    for first in (0, 20):
        store = Store(path)
        store.keep(A, {key(number * 1000 + i): float(i) for i in range(first, first + 20)}, label="a")
        store.close()


@pytest.mark.parametrize("state", ["absent", "no database", "noise"])
def test_many_processes_open_one_store_at_the_same_time(path, state):
    """Nobody is refused, a damaged file is set aside once, and no committed score is in the file that was."""
    for _ in range(4):
        if state != "absent":
            store = Store(path)
            store.keep(A, {key(10**9 + i): 1.0 for i in range(500)}, label="a")
            store.close()  # with its log written back, or that would mend the file
            content = path.read_bytes()
            path.write_bytes(b"not a database" * 999 if state == "no database" else content[:4096] + b"x" * 20000)
        context = multiprocessing.get_context("fork")
        together = context.Barrier(12)
        workers = [context.Process(target=_write_and_close, args=(str(path), n, together)) for n in range(12)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert [worker.exitcode for worker in workers] == [0] * 12
        store = Store(path)
        assert len(store.find(A, [key(n * 1000 + i) for n in range(12) for i in range(40)])) == 480
        store.close()
        aside = [p for p in path.parent.iterdir() if ".damaged-" in p.name and not p.name.endswith(("-wal", "-shm"))]
        assert len(aside) == (state != "absent")
        for file in path.parent.iterdir():
            file.unlink()


def test_a_fork_beside_threads_that_write_hangs_nobody(path):
    store = open_store(path)
    stop = threading.Event()

    def write(first: int) -> None:
        while not stop.is_set():
            store.keep(A, {key(first): 1.0}, label="a")
            first += 1

    threads = [threading.Thread(target=write, args=(n * 10**6,)) for n in range(2)]
    for thread in threads:
        thread.start()
    codes = []
    for _ in range(15):
        pid = os.fork()
        if pid == 0:
            signal.alarm(10)  # a child that waits for ever is killed
            os._exit(0 if store._connection is None and open_store(path).find(A, [key(1)]) is not None else 1)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    stop.set()
    for thread in threads:
        thread.join()
    assert codes == [0] * 15


def test_an_exception_out_of_a_signal_harms_no_healthy_store(path, monkeypatch):
    """It may come in the middle of a transaction; the store is neither locked for others nor taken for damaged."""
    store = Store(path)
    store.keep(A, {key(1): 1.0}, label="a")

    class Late(Exception):
        pass

    def late(*_: object) -> None:
        raise Late

    before = signal.signal(signal.SIGALRM, late)
    try:
        for moment in ("while it waits to begin", "in the transaction"):
            holder = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            if moment == "in the transaction":
                monkeypatch.setattr(store_module, "_find", lambda *_: time.sleep(1))
            else:
                holder.execute("BEGIN IMMEDIATE")
                threading.Timer(0.5, holder.execute, ["ROLLBACK"]).start()
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with pytest.raises(Late):
                store.keep(A, {key(2): 2.0}, label="a")
            monkeypatch.undo()
            holder.close()
    finally:
        signal.signal(signal.SIGALRM, before)
    other = Store(path)
    other.keep(A, {key(3): 3.0}, label="a")
    assert store.find(A, [key(1), key(2), key(3)]) == {key(1): 1.0, key(3): 3.0}
    other.close()
    assert not [p for p in path.parent.iterdir() if ".damaged-" in p.name]


def test_two_spellings_of_one_file_are_one_store(path, tmp_path):
    Store(path).check()
    (tmp_path / "link").symlink_to(path.parent)
    other = tmp_path / "link" / path.name
    assert open_store(other) is open_store(path)


def test_a_second_connection_of_a_process_leaves_the_first_its_locks(path):
    """To open and close the file itself would drop them, and another process would then delete the log in use."""
    one = Store(path)
    one.keep(A, {key(1): 1.0}, label="a")
    two = Store(path)
    two.check()
    two.close()
    program = f"from legend_hf.margins.store import Store; s = Store({str(path)!r}); s.check(); s.close()"
    subprocess.run([sys.executable, "-c", program], check=True)
    one.keep(A, {key(2): 2.0}, label="a")
    program = f"from legend_hf.margins.store import Store; print(Store({str(path)!r}).contents()[0].scores)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout == b"2\n"


@given(st.data())
@settings(max_examples=100)
def test_no_damage_stops_the_work(tmp_path_factory, data):
    """Whatever is broken, and wherever it shows: the work is done, or the file is refused as another's."""
    path = tmp_path_factory.mktemp("store") / "s.sqlite"
    store = Store(path)
    store.keep(A, {key(i): 1.0 for i in range(40)}, label="model a")
    store.close()
    content = bytearray(path.read_bytes())
    start = data.draw(st.integers(100, len(content) - 1))
    noise = data.draw(st.binary(min_size=1, max_size=64))
    content[start : start + len(noise)] = noise
    path.write_bytes(content)
    store = Store(path)
    try:
        store.contents()
    except StoreError:  # which looks, and leaves what it sees
        assert path.read_bytes() == bytes(content)
    assert store.keep(A, {key(i): 2.0 for i in range(80)}, label="model a").keys() == {key(i) for i in range(80)}
    assert store.merge(Store(path.with_name("other.sqlite"))) == 0
    store.prune()
    assert store.contents() == []


def test_a_database_that_cannot_be_understood_is_left_alone(tmp_path):
    """Such as one that a later SQLite made: its tables cannot be read, and it is somebody's."""
    path = tmp_path / "orders.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE orders (id INTEGER)")
        connection.execute("PRAGMA application_id = 7")
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_master SET sql = 'CREATE TABLE orders (id INTEGER) IN SOME LATER WAY'")
    connection.close()
    with pytest.raises(StoreError, match="is a SQLite file of something else"):
        Store(path).check()
    assert [p.name for p in tmp_path.iterdir()] == ["orders.sqlite"]


def test_an_automounted_network_disk_is_one(path, monkeypatch):
    mounts = "/dev/sda / ext4 rw 0 0\nsystemd-1 /net autofs rw 0 0\nserver:/x /net nfs4 rw 0 0\n"
    monkeypatch.setattr(Path, "read_text", lambda self, **_: mounts)
    assert store_module._is_network(Path("/net/scores.sqlite"))
    assert not store_module._is_network(Path("/home/scores.sqlite"))


def test_a_fork_closes_the_connection_first(path):
    store = open_store(path)
    store.check()
    assert store._connection is not None
    if os.fork() == 0:
        os._exit(0 if store._connection is None else 1)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 0


def test_contents_prune_and_merge(path, tmp_path):
    store = Store(path)
    store.keep(A, {key(i): 1.0 for i in range(10)}, label="model a, layer 3")
    store.keep(B, {key(i): 2.0 for i in range(4)}, label="model b, layer 5")
    assert [(k.label, k.scores) for k in store.contents()] == [("model b, layer 5", 4), ("model a, layer 3", 10)]

    other = Store(tmp_path / "other.sqlite")
    other.keep(A, {key(5): 1.0, key(100): 3.0}, label="model a, layer 3")
    other.keep(A, {key(i): 3.0 for i in range(1000, 2300)}, label="model a, layer 3")
    assert store.merge(other) == 1301
    assert store.merge(other) == 0
    assert store.find(A, [key(5), key(100), key(2299)]) == {key(5): 1.0, key(100): 3.0, key(2299): 3.0}

    assert store.prune(unused_days=1.0) == 0
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE directions SET used = used - 3 * 86400 WHERE label LIKE 'model b%'")
    assert store.prune(unused_days=2.0) == 4
    assert [k.label for k in store.contents()] == ["model a, layer 3"]
    before = path.stat().st_size
    assert store.prune() == 1311
    assert store.contents() == []
    assert path.stat().st_size < before


def test_it_is_private(path):
    Store(path).check()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("given", ["scores", "rows.jsonl", "s3://bucket/s.sqlite", "a\0.sqlite"])
def test_a_path_that_cannot_be_a_store_is_refused(given):
    with pytest.raises(ValueError, match=r"`store` is .*; give the path of a file on a local disk that ends in"):
        check_path(given)


def test_a_folder_is_refused(tmp_path):
    (tmp_path / "x.sqlite").mkdir()
    with pytest.raises(ValueError, match="a folder; give the path of a file"):
        check_path(tmp_path / "x.sqlite")


def test_a_database_of_something_else_is_left_alone(tmp_path):
    path = tmp_path / "orders.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE orders (id INTEGER)")
    content = path.read_bytes()
    with pytest.raises(StoreError, match="a SQLite file of something else, with the tables orders; give another path"):
        Store(path).check()
    assert path.read_bytes() == content
    assert [p.name for p in tmp_path.iterdir()] == ["orders.sqlite"]


@pytest.mark.parametrize(("later", "remedy"), [(1, "update legend_hf"), (-1, "name another file .* or remove this")])
def test_another_format_is_refused_and_left_alone(path, later, remedy):
    made = Store(path)
    made.check()
    made.close()
    other = store_module.FORMAT + later
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {other}")
    connection.close()
    before = path.read_bytes()
    for attempt in (Store(path).check, Store(path).contents, lambda: Store(path).find(A, [key(1)])):
        with pytest.raises(StoreError, match=f"has format {other}, this version of legend_hf writes .*{remedy}"):
            attempt()
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_bad_row_is_an_unknown_row(path, caplog):
    """One wrong byte costs one text, in whichever score it is; the file stays, and the row is mended."""
    scores = {key(i): i / 7 for i in range(1200)}
    store = Store(path)
    store.keep(A, scores, label="a")
    store.keep(B, {key(1): 5.0}, label="b")
    store.close()
    bad = key(801)
    sealed = store_module.seal(A, bad, scores[bad])
    content = path.read_bytes()
    assert content.count(sealed) == 1
    for place in (0, 7, 8, 11):  # of the score, of its checksum
        flipped = bytearray(sealed)
        flipped[place] ^= 4
        path.write_bytes(content.replace(sealed, bytes(flipped)))
        store = Store(path)
        assert store.find(A, list(scores)) == {k: v for k, v in scores.items() if k != bad}
        assert store.find(B, [key(1)]) == {key(1): 5.0}
        fresh = Store(path.with_name(f"fresh-{place}.sqlite"))
        assert fresh.merge(store) == 1200, "the others are taken over, the bad one is not"
        assert fresh.find(A, [bad]) == {}
        assert store.keep(A, {bad: 3.0, key(0): 9.0}, label="a") == {bad: 3.0, key(0): 0.0}
        assert store.find(A, [bad]) == {bad: 3.0}
        store.close()
    assert not [p.name for p in path.parent.iterdir() if "damaged" in p.name]
    assert "damaged" not in caplog.text


def test_a_score_that_is_no_number_is_unknown(path):
    store = Store(path)
    for nothing in (math.nan, math.inf):
        store.keep(A, {key(1): nothing}, label="a")
        assert store.find(A, [key(1)]) == {}
    assert store.keep(A, {key(1): 1.0}, label="a") == {key(1): 1.0}


def test_a_bad_note_of_a_direction_hides_only_itself(path):
    store = Store(path)
    for digest, label in ((A, "a"), (B, "b")):
        store.keep(digest, {key(1): 1.0}, label=label)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE directions SET used = 'long ago' WHERE label = 'a'")
    connection.close()
    assert [k.label for k in store.contents()] == ["b"]
    assert store.find(A, [key(1)]) == {key(1): 1.0}
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE directions SET used = 1e300 WHERE label = 'a'")
    connection.close()
    assert store.prune(unused_days=1.0) == 1
    assert [k.label for k in store.contents()] == ["b"]


def state_of(folder):
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns, p.stat().st_mode) for p in sorted(folder.iterdir())}


def closed_store(path):
    store = Store(path)
    store.keep(A, {key(i): float(i) for i in range(1000)}, label="a")
    store.close()


def killed_store(path):
    """Its log was not put into the file."""
    program = (
        "import os, sys; from legend_hf.margins.store import Store; store = Store(sys.argv[1]);"
        "store.keep(b'a' * 32, {bytes([i]) * 32: float(i) for i in range(100)}, label='a'); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(path)], check=False).returncode == 9
    assert Path(f"{path}-wal").stat().st_size


def torn_store(path):
    closed_store(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def text(path):
    path.write_text("not a database " * 500, encoding="utf-8")


def of_another(path):
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE orders (id INTEGER)")
    connection.close()


def with_a_table_of_somebodys(path):
    closed_store(path)
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE notes (note TEXT)")
    connection.close()


def with_other_tables(path):
    closed_store(path)
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE scores")
    connection.close()


def read_only(path):
    closed_store(path)
    path.chmod(0o400)


def nothing(path):
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("make", "scores"),
    [
        (closed_store, 1000), (killed_store, 100), (read_only, 1000), (with_a_table_of_somebodys, 1000), (nothing, 0),
        (torn_store, "is damaged"), (text, "is damaged"), (with_other_tables, "is damaged"),
        (of_another, "SQLite file of something else"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("locked", [False, True])
def test_showing_and_merging_never_move_or_write_what_they_read(tmp_path, make, scores, locked):
    folder, path = tmp_path / "read", tmp_path / "read" / "s.sqlite"
    folder.mkdir()
    make(path)
    before = state_of(folder)
    folder.chmod(0o500 if locked else 0o700)
    try:
        for number, attempt in enumerate((
            lambda store, into: sum(kept.scores for kept in store.contents()),
            lambda store, into: into.merge(store),
        )):  # fmt: skip
            into = Store(tmp_path / f"into-{number}.sqlite")
            if isinstance(scores, int):
                assert attempt(Store(path), into) == scores
            else:
                with pytest.raises(StoreError, match=scores):
                    attempt(Store(path), into)
        after = state_of(folder)
    finally:
        folder.chmod(0o700)
    shared = f"{path.name}-shm"  # SQLite's notes on who reads a log; a copy of nothing
    assert {k: v for k, v in after.items() if k != shared} == {k: v for k, v in before.items() if k != shared}
    if make is with_a_table_of_somebodys:
        assert len(Store(path).find(A, [key(1)])) == 1, "and it is a store still"


def test_showing_makes_no_store(tmp_path):
    assert Store(tmp_path / "none" / "s.sqlite").contents() == []
    assert Store(tmp_path / "into.sqlite").merge(Store(tmp_path / "none" / "s.sqlite")) == 0
    assert not (tmp_path / "none").exists()


def test_scores_that_are_found_are_in_use(path):
    store = Store(path)
    for digest, label in ((A, "found"), (B, "not found")):
        store.keep(digest, {key(1): 1.0}, label=label)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE directions SET used = used - 3 * 86400")
    connection.close()
    store.find(A, [key(1)])
    store.find(B, [key(2)])
    assert store.prune(unused_days=2.0) == 1
    assert [kept.label for kept in store.contents()] == ["found"], "the control: the other is gone"
    used = store.contents()[0].used
    store.find(A, [key(1)])
    assert store.contents()[0].used == used, "once an hour is enough"


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be used: .*; name a file in a folder that may be written to"):
        Store(tmp_path / "file" / "s.sqlite").check()


@pytest.mark.parametrize("damage", ["header", "cut", "noise", "zeros", "text"])
def test_a_damaged_store_is_named_and_set_aside_and_work_goes_on(path, caplog, damage):
    store = Store(path)
    store.keep(A, {key(i): float(i) for i in range(2000)}, label="a")
    store.close()
    content = bytearray(path.read_bytes())
    if damage == "header":
        content[:16] = b"x" * 16
    elif damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "noise":
        content[4096:] = os.urandom(len(content) - 4096)
    elif damage == "zeros":
        content[4096:] = bytes(len(content) - 4096)
    else:
        content = bytearray(b"not a database, but a page of text" * 400)
    path.write_bytes(content)

    store = Store(path)
    found = store.find(A, [key(i) for i in range(2000)])
    assert store.keep(A, {key(7): 7.0}, label="a") == {key(7): 7.0}
    assert store.find(A, [key(7)]) == {key(7): 7.0}
    assert all(found[k] == float(int.from_bytes(k, "big")) for k in found)
    (aside,) = [p for p in path.parent.iterdir() if ".damaged-" in p.name and p.suffix[-4:] not in ("-wal", "-shm")]
    assert aside.read_bytes()[:4096] == bytes(content[:4096])
    assert f"the store {path} is damaged" in caplog.text
    assert aside.name in caplog.text


@given(st.data())
@settings(max_examples=150)
def test_no_flipped_bit_ever_changes_a_score(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("store") / "s.sqlite"
    scores = {key(i * 7919): i / 7 for i in range(150)}
    store = Store(path)
    store.keep(A, scores, label="a")
    store.close()
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    try:
        found = Store(path).find(A, list(scores))
    except StoreError:  # the header now names another format or application, which is refused
        return
    assert all(scores[k] == score for k, score in found.items())


def test_without_the_checksum_a_flipped_bit_would_change_a_score(path, monkeypatch):
    store = Store(path)
    store.keep(A, {key(1): 1.0}, label="a")
    store.close()
    content = path.read_bytes()
    sealed = store_module.seal(A, key(1), 1.0)
    flipped = bytes([sealed[0] ^ 1]) + sealed[1:]
    assert content.count(sealed) == 1
    path.write_bytes(content.replace(sealed, flipped))
    monkeypatch.setattr(store_module, "unseal", lambda d, t, sealed: store_module._SCORE.unpack(sealed)[0])
    assert Store(path).find(A, [key(1)])[key(1)] != 1.0
    monkeypatch.undo()
    assert Store(path).find(A, [key(1)]) == {}


def test_a_full_disk_is_said_and_loses_nothing(path):
    store = Store(path)
    store.keep(A, {key(1): 1.0}, label="a")
    assert store._connection is not None
    pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
    store._connection.execute(f"PRAGMA max_page_count = {pages + 1}")
    with pytest.raises(StoreError, match="the disk is full: the store .* Its? .*|the disk is full.*make room and run"):
        store.keep(A, {key(i): 1.0 for i in range(2, 5000)}, label="a")
    store._connection.execute("PRAGMA max_page_count = 100000")
    assert store.find(A, [key(1), key(2)]) == {key(1): 1.0}
    assert len(store.keep(A, {key(i): 1.0 for i in range(2, 5000)}, label="a")) == 4998


def test_a_file_that_may_not_grow_is_said_and_loses_nothing(path):
    """A limit on the file's size stands for a real full disk: the write itself fails."""
    program = f"""
import resource, signal
from legend_hf.margins.store import Store, StoreError
key = lambda i: i.to_bytes(32, "big")
store = Store({str(path)!r})
store.keep(b"a" * 32, {{key(i): 1.0 for i in range(100)}}, label="a")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    for first in range(100, 20_000, 100):
        store.keep(b"a" * 32, {{key(i): 1.0 for i in range(first, first + 100)}}, label="a")
except StoreError as error:
    print(first, error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    count, _, message = done.stdout.partition(" ")
    assert "the store" in message, done.stdout + done.stderr
    assert "full" in message or "cannot be used" in message
    assert len(open_store(path).find(A, [key(i) for i in range(20_000)])) == int(count)


def test_a_store_removed_under_a_connection_is_begun_anew(path):
    store = Store(path)
    store.keep(A, {key(1): 1.0}, label="a")
    for file in path.parent.iterdir():
        file.unlink()
    store.keep(A, {key(2): 2.0}, label="a")
    other = Store(path)
    assert other.find(A, [key(1), key(2)]) == {key(2): 2.0}


def test_a_locked_store_says_who_holds_it(path, monkeypatch):
    Store(path).check()
    monkeypatch.setattr(store_module, "WAIT_SECONDS", 0.2)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreError, match="another process has kept the store .* locked"):
        Store(path).keep(A, {key(1): 1.0}, label="a")
    holder.execute("ROLLBACK")
    holder.close()
    assert Store(path).keep(A, {key(1): 1.0}, label="a") == {key(1): 1.0}


def test_network_disks_get_no_shared_memory_log(path, monkeypatch, caplog):
    monkeypatch.setattr(store_module, "_is_network", lambda path: True)
    store = Store(path)
    store.keep(A, {key(1): 1.0}, label="a")
    assert store._connection is not None
    assert store._connection.execute("PRAGMA journal_mode").fetchone()[0] == "delete"
    assert "lies on a network disk" in caplog.text
    monkeypatch.undo()
    local = Store(path.with_name("local.sqlite"))
    local.check()
    assert local._connection is not None
    assert local._connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"


def test_the_default_lies_in_the_assets_cache(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_ASSETS_CACHE", "/somewhere/assets")
    assert default_store() == Path("/somewhere/assets/legend_hf/scores.sqlite")
