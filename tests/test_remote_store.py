"""A store at a URL: what one machine read another finds, whatever became of the first."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from builders import close_stores
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from legend_hf import Direction, LegendMarginFn, annotate, fit_direction
from legend_hf.margins import remote_store
from legend_hf.margins.remote_store import RemoteStore, check_url
from legend_hf.margins.store import Store, StoreError, seal
from legend_hf.margins.stores import check_where, shown, store_at
from legend_hf.reading.reader import OpenReader, close_readers

A, B = b"a" * 32, b"b" * 32
WORKERS = 2
COLUMNS = ("margin", "margin_raw", "chosen_score", "rejected_score")


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A bucket on a server of this machine, spoken to by the real client."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    set_for = {
        "AWS_ENDPOINT_URL": f"http://localhost:{port}", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_CONFIG_FILE": "/dev/null", "AWS_MAX_ATTEMPTS": "1",
    }  # fmt: skip
    before = {name: os.environ.get(name) for name in set_for}
    os.environ |= set_for
    client = fsspec.get_filesystem_class("s3")
    client.clear_instance_cache()  # another test's knows no credentials, and would be given out again
    program = "import sys; from moto.server import main; main(sys.argv[1:])"
    server = subprocess.Popen(
        [sys.executable, "-c", program, "-H", "127.0.0.1", "-p", str(port)], stderr=subprocess.DEVNULL
    )
    try:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        fsspec.filesystem("s3").mkdir("bucket")
        yield "s3://bucket"
    finally:
        server.kill()
        server.wait()
        client.clear_instance_cache()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture(params=["memory", "file", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return f"{request.getfixturevalue('s3')}/{tmp_path.name}/run"
    (tmp_path / "mounted").mkdir()
    return f"memory://{tmp_path.name}/run" if request.param == "memory" else f"file://{tmp_path}/mounted/run"


@pytest.fixture
def mounted(tmp_path: Path) -> str:
    return f"file://{tmp_path}/run"


@pytest.fixture(autouse=True)
def _own_machine(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Mirrors of a test are its own, here and in the processes that it starts."""
    folder = str(tmp_path_factory.mktemp("machine"))
    monkeypatch.setattr(tempfile, "tempdir", folder)
    monkeypatch.setenv("TMPDIR", folder)
    yield
    close_stores()


def machine(url: str) -> RemoteStore:
    """The store as a machine sees it that was never there."""
    return RemoteStore(url, mirror=Path(tempfile.mkdtemp()) / "m.sqlite")


def chunks(url: str) -> dict[str, bytes]:
    fs, root = fsspec.core.url_to_fs(url)
    fs.invalidate_cache()
    return {path.rpartition("/")[2]: fs.cat_file(path) for path in fs.ls(root, detail=False) if "scores-" in path}


def count(store: Store) -> int:
    return sum(kept.scores for kept in store.contents())


def test_what_one_machine_kept_another_finds(url):
    one = machine(url)
    scores = {key(i): i / 7 for i in range(300)}
    assert one.keep(A, scores, label="model, layer 3") == scores
    assert machine(url).find(A, list(scores)) == {}, "the control: not sent yet"
    one.flush()
    other = machine(url)
    assert other.find(A, [*scores, key(999)]) == scores
    assert other.find(B, list(scores)) == {}
    (kept,) = other.contents()
    assert (kept.digest, kept.label, kept.scores) == (A.hex(), "model, layer 3", 300)
    assert other.keep(A, {key(1): 5.0, key(500): 6.0}, label="x") == {key(1): 1 / 7, key(500): 6.0}, "the first stays"
    before = chunks(url)
    other.flush()
    after = chunks(url)
    assert before.items() < after.items(), "what is there is never written again"
    assert len(after) == len(before) + 1
    one.flush()
    assert chunks(url) == after, "nothing is sent twice"


@given(
    st.dictionaries(
        st.tuples(st.sampled_from([A, B]), st.binary(min_size=32, max_size=32)),
        st.floats(allow_nan=False, allow_infinity=False),
    )
)
@settings(max_examples=20)
def test_scores_come_back_to_the_bit(scores):
    url = f"memory://bits-{time.monotonic_ns()}/run"
    one = machine(url)
    for (direction, text), score in scores.items():
        one.keep(direction, {text: score}, label="x")
    one.flush()
    other = machine(url)
    for (direction, text), score in scores.items():
        assert np.float64(other.find(direction, [text])[text]).tobytes() == np.float64(score).tobytes()
    assert count(other) == len(scores)


def test_a_chunk_is_sent_when_it_is_full_or_old(mounted, monkeypatch):
    monkeypatch.setattr(remote_store, "CHUNK_ROWS", 10)
    one = machine(mounted)
    one.keep(A, {key(i): 1.0 for i in range(9)}, label="x")
    assert chunks(mounted) == {}
    one.keep(A, {key(9): 1.0}, label="x")
    assert len(chunks(mounted)) == 1
    one.keep(A, {key(10): 1.0}, label="x")
    assert len(chunks(mounted)) == 1
    monkeypatch.setattr(remote_store, "CHUNK_SECONDS", 0.01)
    time.sleep(0.02)
    one.keep(A, {}, label="x")
    assert len(chunks(mounted)) == 2
    one.keep(A, {key(i): 1.0 for i in range(100, 125)}, label="x")
    assert sorted(len(remote_store._unpacked(c, n)) for n, c in chunks(mounted).items()) == [1, 5, 10, 10, 10]


def test_who_reads_on_while_another_sends_waits_before_too_much_is_at_stake(mounted, monkeypatch):
    monkeypatch.setattr(remote_store, "CHUNK_ROWS", 10)
    one = machine(mounted)
    one.check()
    late = threading.Thread(target=lambda: one.keep(A, {key(19): 1.0}, label="x"))
    with remote_store._turn(one.path):  # another process sends
        one.keep(A, {key(i): 1.0 for i in range(19)}, label="x")
        late.start()
        late.join(0.5)
        assert late.is_alive()
        assert chunks(mounted) == {}
    late.join(30)
    assert not late.is_alive()
    assert count(machine(mounted)) == 20


def flipped(content: bytes) -> bytes:
    middle = len(content) // 3
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    [flipped, lambda c: c[: len(c) // 2], lambda c: b"", lambda c: c + b"x", lambda c: b"PAR1" * 99],
    ids=["flipped bit", "half", "empty", "longer", "noise"],
)
def test_a_damaged_chunk_costs_its_own_scores_only(url, damage, caplog):
    for first in (0, 100):
        one = machine(url)
        one.keep(A, {key(i): float(i) for i in range(first, first + 100)}, label="x")
        one.flush()
    fs, root = fsspec.core.url_to_fs(url)
    name = next(n for n, c in chunks(url).items() if key(150) in c)
    content = damage(chunks(url)[name])
    fs.pipe_file(f"{root}/{name}", content)
    with caplog.at_level(logging.WARNING):
        other = machine(url)
        found = other.find(A, [key(i) for i in range(200)])
    assert found == {key(i): float(i) for i in range(100)}
    assert caplog.text.count("damaged or half written") == 1
    assert name in caplog.text
    other.keep(A, {key(i): float(i) for i in range(100, 200)}, label="x")
    other.flush()
    assert len(machine(url).find(A, [key(i) for i in range(200)])) == 200, "read again, it is whole"
    assert chunks(url)[name] == content, "left where it was"


def test_a_chunk_with_a_forged_score_or_of_a_later_version_is_not_used(mounted, monkeypatch, caplog):
    """Its name fits its content, and still nothing wrong comes out of it."""
    one = machine(mounted)
    good = remote_store._packed([(A, "x", key(1), seal(A, key(1), 1.0))])
    forged = remote_store._packed([(A, "x", key(2), seal(A, key(1), 1.0)), (A, "x", key(3), seal(A, key(3), 3.0))])
    with monkeypatch.context() as patched:
        patched.setattr(remote_store, "FORMAT", 2)
        later = remote_store._packed([(A, "x", key(4), seal(A, key(4), 1.0))])
    one.check()
    fs, root = fsspec.core.url_to_fs(mounted)
    for content in (good, forged, later):
        fs.pipe_file(f"{root}/scores-20260101T000000000000-{remote_store._hash(content)}.parquet", content)
    with caplog.at_level(logging.WARNING):
        assert machine(mounted).find(A, [key(i) for i in range(9)]) == {key(1): 1.0, key(3): 3.0}
    assert caplog.text.count("later version") == 1


def _write(url: str, tempdir: str, first: int) -> None:
    tempfile.tempdir = tempdir
    remote_store.CHUNK_ROWS = 30
    store = store_at(url)
    for i in range(first, first + 100, 5):
        store.keep(A, {key(j): float(j) for j in range(i, i + 5)}, label="a")
    store.flush()


@pytest.mark.parametrize("kind", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_many_writers_lose_nothing(s3, tmp_path, kind):
    """Four processes on two machines, whose texts overlap; the parent has used the same store and client before."""
    url = f"{s3}/{tmp_path.name}"
    store_at(url).check()
    context = multiprocessing.get_context(kind)
    machines = [tempfile.gettempdir(), str(tmp_path)]
    workers = [
        context.Process(target=_write, args=(url, machines[n % 2], first)) for n, first in enumerate((0, 50, 300, 300))
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    expected = {key(i): float(i) for i in (*range(150), *range(300, 400))}
    other = machine(url)
    assert other.find(A, [key(i) for i in range(500)]) == expected
    assert count(other) == len(expected)


def test_compacted_while_others_read_and_write(url, monkeypatch):
    monkeypatch.setattr(remote_store, "CHUNK_ROWS", 10)
    one, two = machine(url), machine(url)
    one.keep(A, {key(i): float(i) for i in range(100)}, label="x")
    two.keep(B, {key(i): float(i) for i in range(50)}, label="y")
    assert len(chunks(url)) == 15
    assert one.compact() == (15, 1)
    assert len(chunks(url)) == 1
    two.keep(B, {key(i): float(i) for i in range(50, 75)}, label="y")
    two.flush()
    other = machine(url)
    assert other.find(A, [key(i) for i in range(200)]) == {key(i): float(i) for i in range(100)}
    assert other.find(B, [key(i) for i in range(200)]) == {key(i): float(i) for i in range(75)}
    assert {k.label for k in other.contents()} == {"x", "y"}
    assert one.compact()[1] == 1
    assert one.compact() == (1, 1), "nothing to do"
    assert count(machine(url)) == 175


def test_what_is_compacted_between_a_look_and_the_reading_is_found(mounted, monkeypatch):
    monkeypatch.setattr(remote_store, "CHUNK_ROWS", 10)
    one = machine(mounted)
    one.keep(A, {key(i): float(i) for i in range(40)}, label="x")
    other, look = machine(mounted), RemoteStore._list

    def late(store: RemoteStore) -> set[str]:
        there = look(store)
        if store is other and len(there) > 1:
            one.compact()
        return there

    monkeypatch.setattr(RemoteStore, "_list", late)
    assert len(other.find(A, [key(i) for i in range(40)])) == 40


def test_a_compaction_that_cannot_write_deletes_nothing(mounted, monkeypatch):
    monkeypatch.setattr(remote_store, "CHUNK_ROWS", 10)
    one = machine(mounted)
    one.keep(A, {key(i): float(i) for i in range(40)}, label="x")
    before = chunks(mounted)

    def full(*_: Any) -> str:
        raise ConnectionError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(RemoteStore, "_put", full)
        with pytest.raises(StoreError, match="the disk is full"):
            one.compact()
    assert chunks(mounted) == before
    # A mirror that came to harm is no reason to delete what it no longer holds.
    one.close()
    one.path.write_bytes(b"no database" * 999)
    assert one.compact() == (4, 1)
    assert count(machine(mounted)) == 40


def test_a_local_file_is_filled_from_a_url_and_sent_to_it(url, tmp_path):
    local = Store(tmp_path / "s.sqlite")
    local.keep(A, {key(i): float(i) for i in range(20)}, label="a")
    assert machine(url).merge(local) == 20
    assert machine(url).merge(local) == 0, "it is there already"
    other = Store(tmp_path / "other.sqlite")
    assert other.merge(machine(url)) == 20
    assert other.find(A, [key(i) for i in range(30)]) == {key(i): float(i) for i in range(20)}
    with pytest.raises(StoreError, match="only ever added to"):
        machine(url).prune()


def test_who_only_looks_writes_nothing(tmp_path):
    nowhere = machine(f"file://{tmp_path}/nothing")
    assert nowhere.contents() == []
    assert list(tmp_path.glob("nothing*")) == []


def test_what_was_taken_from_the_url_is_forgotten_here(mounted, tmp_path):
    """The mirror follows the URL; what was never sent stays."""
    one = machine(mounted)
    one.keep(A, {key(1): 1.0}, label="x")
    one.flush()
    one.keep(A, {key(2): 2.0}, label="x")
    same = RemoteStore(mounted, mirror=one.path)
    assert same.find(A, [key(1), key(2)]) == {key(1): 1.0, key(2): 2.0}, "the control: nothing was taken"
    for name in chunks(mounted):
        (tmp_path / "run" / name).unlink()
    assert RemoteStore(mounted, mirror=one.path).find(A, [key(1), key(2)]) == {key(2): 2.0}
    one.flush()
    assert machine(mounted).find(A, [key(1), key(2)]) == {key(2): 2.0}


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ("gs://bucket/run", ImportError, "install gcsfs"),
        ("nosuch://bucket/run", ValueError, "Protocol not known: nosuch"),
        ("memory://", ValueError, "give a folder in it"),
        ("hf://datasets/you/pairs/run", ValueError, "give a folder in a bucket"),
        ("hf://you/model", ValueError, "give a folder in a bucket"),
        ("s3://bucket/scores.sqlite", ValueError, "names a folder of chunks"),
        ("simplecache::s3://bucket/run", ValueError, "chained URL"),
        ("scores.parquet", ValueError, "ends in `.sqlite`"),
    ],
)
def test_a_wrong_url_is_refused_before_anything_is_loaded(given, error, said):
    with pytest.raises(error, match=said):
        LegendMarginFn("nobody/nothing", store=given)


def test_a_bucket_of_the_hub_is_taken():
    """Its client is the Hub's own; nothing here could be sent there."""
    assert check_url("hf://buckets/you/scores/run/") == "hf://buckets/you/scores/run"


def test_a_url_that_cannot_be_used_is_refused_before_a_model_is_loaded(direction, rows, s3, tmp_path, monkeypatch):
    loaded: list[Any] = []
    monkeypatch.setattr("legend_hf.margins.scoring.open_reader", lambda *a, **k: loaded.append(a))
    for url in ("s3://buckt/run", f"file://{tmp_path}/not/mounted"):
        with pytest.raises(StoreError, match="check the URL, that its bucket or parent folder exists"):
            annotate(rows, LegendMarginFn(direction, store=url))
    assert fsspec.filesystem("s3").ls("") == ["bucket"], "a typing error makes no bucket"
    claim = tmp_path / "later" / "legend_hf_store.json"
    claim.parent.mkdir()
    claim.write_text(json.dumps({"format": 99}))
    with pytest.raises(StoreError, match="has format 99"):
        annotate(rows, LegendMarginFn(direction, store=f"file://{claim.parent}"))
    assert loaded == []


def test_a_connection_that_breaks_stops_nothing_and_a_refusal_does(mounted, monkeypatch, caplog):
    monkeypatch.setattr(remote_store, "CHUNK_ROWS", 5)
    from fsspec.implementations.local import LocalFileSystem

    one = machine(mounted)
    one.check()

    def broken(error: Exception) -> Any:
        def pipe_file(*_: Any, **__: Any) -> None:
            raise error

        return pipe_file

    with monkeypatch.context() as patched:
        patched.setattr(LocalFileSystem, "pipe_file", broken(TimeoutError("too slow, key=hunter22")))
        with caplog.at_level(logging.WARNING):
            for i in range(0, 20, 5):
                one.keep(A, {key(j): 1.0 for j in range(i, i + 5)}, label="x")
        assert caplog.text.count("work goes on") == 1, "it is not tried at every batch"
        with pytest.raises(StoreError, match="goes with the next scores"):
            one.flush()
        patched.setattr(LocalFileSystem, "pipe_file", broken(PermissionError("read only")))
        again = RemoteStore(mounted, mirror=one.path)
        with pytest.raises(StoreError, match="read only.*credentials may list, read and write"):
            again.keep(A, {key(99): 1.0}, label="x")
    one.flush()
    assert len(machine(mounted).find(A, [key(i) for i in range(20)])) == 20


def test_no_message_shows_a_secret(rows, direction):
    where = check_where("memory://user:hunter22@run/x")
    assert "hunter22" not in shown(where)
    fn = LegendMarginFn(direction, store=where)
    assert "hunter22" not in fn.how_to_go_on
    with pytest.raises(StoreError) as refused:
        store_at(where).prune()
    assert "hunter22" not in str(refused.value)


def test_a_folder_for_mirrors_that_others_may_write_to_is_refused(mounted):
    folder = Path(tempfile.gettempdir()) / f"legend_hf-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(StoreError, match="not this user's alone"):
        store_at(mounted).check()
    store_at(mounted).path.touch()  # what somebody left there is not sent on, either
    with pytest.raises(StoreError, match="not this user's alone"):
        store_at(mounted).flush()
    store_at(mounted).path.unlink()
    folder.chmod(0o700)
    store_at(mounted).check()
    assert store_at(mounted).path.parent == folder
    assert store_at(mounted).path.stat().st_mode & 0o077 == 0


def test_a_link_in_the_place_of_the_folder_for_mirrors_is_refused(mounted, tmp_path):
    folder = Path(tempfile.gettempdir()) / f"legend_hf-{os.getuid()}"
    (tmp_path / "theirs").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "theirs")
    for look in (lambda store: store.check(), lambda store: store.contents(), lambda store: store.find(A, [key(0)])):
        with pytest.raises(StoreError, match="not this user's alone"):
            look(RemoteStore(mounted))
    assert not list((tmp_path / "theirs").iterdir())
    folder.unlink()
    RemoteStore(mounted).check()


def test_the_command_line_takes_urls(mounted, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from legend_hf.cli import app

    def run(*arguments: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, ["store", *arguments])
        assert done.exit_code == code, done.output
        return done.output + str(done.exception or "")

    for command in ("show", "compact"):
        with pytest.raises(AssertionError, match="there is no store at"):
            run(command, mounted)
    assert not (tmp_path / "run").exists(), "who looks for it does not make it"
    monkeypatch.setattr(remote_store, "CHUNK_ROWS", 10)
    Store(tmp_path / "s.sqlite").keep(A, {key(i): float(i) for i in range(35)}, label="model, layer 3")
    assert "35 new scores" in run("merge", str(tmp_path / "s.sqlite"), "--output", mounted)
    assert "35 scores" in run("show", mounted)
    assert "from 4 to 1 files" in run("compact", mounted)
    assert "35 new scores" in run("merge", mounted, "--output", str(tmp_path / "t.sqlite"))
    assert len(Store(tmp_path / "t.sqlite").find(A, [key(i) for i in range(35)])) == 35


# -- With a model --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def direction(tiny_llama: Path) -> Direction:
    rows = [
        {"prompt": f"May I borrow {t}?", "chosen": f"Ask the owner of {t}.", "rejected": f"Take {t}"}
        for t in ("a bicycle", "some salt", "the ladder", "her book", "a pen", "two eggs")
    ]
    fitted = fit_direction(rows, model=str(tiny_llama))
    close_readers()
    return fitted


@pytest.fixture(scope="module")
def rows() -> Dataset:
    draw = random.Random(0)
    words = ["tea", "maps", "rain", "soup", "trains", "songs", "bread", "stars", "paint", "clocks"]

    def text(low: int, high: int) -> str:
        return " ".join(draw.choice(words) for _ in range(draw.randint(low, high)))

    return Dataset.from_list(
        [{"prompt": f"{i}: {text(1, 8)}?", "chosen": text(2, 30), "rejected": text(2, 30)} for i in range(90)]
    )


def distinct_texts(rows: Dataset) -> int:
    return len({(r["prompt"], r[side]) for r in rows for side in ("chosen", "rejected")})


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Texts in each forward pass of this process."""
    passes: list[int] = []
    plain = OpenReader.read

    def counted(opened, texts, layers, *, batch_tokens=None):
        for index, hidden in plain(opened, texts, layers, batch_tokens=batch_tokens):
            passes.append(len(index))
            yield index, hidden

    monkeypatch.setattr(OpenReader, "read", counted)
    return passes


def another_machine() -> None:
    close_stores()
    tempfile.tempdir = os.environ["TMPDIR"] = tempfile.mkdtemp()


def test_a_run_on_another_machine_reads_nothing_again(direction, rows, url, read):
    first = annotate(rows, LegendMarginFn(direction, store=url, batch_tokens=120))
    assert sum(read) == distinct_texts(rows)
    another_machine()
    again = annotate(rows.shuffle(seed=1), LegendMarginFn(direction, store=url), batch_size=7)
    assert sum(read) == distinct_texts(rows)
    expected = first.shuffle(seed=1)
    assert all(again[column] == expected[column] for column in COLUMNS), "to the bit"
    another_machine()
    annotate(rows, LegendMarginFn(direction, store=f"{url}-other"))
    assert sum(read) == 2 * distinct_texts(rows), "the control: a store of another place"


@pytest.mark.parametrize("url", ["memory", "file"], indirect=True)
@pytest.mark.parametrize("how", [{"num_proc": WORKERS}, pytest.param({"devices": ["cpu"]}, marks=pytest.mark.slow)])
def test_what_workers_read_is_sent_whoever_sends_it(direction, rows, url, how, read):
    annotate(rows, LegendMarginFn(direction, store=url), batch_size=15, **how)
    assert count(machine(url)) == distinct_texts(rows)
    another_machine()
    annotate(rows, LegendMarginFn(direction, store=url))
    assert read == []


PROGRAM = """
import os, sys, tempfile, time
from datasets import load_from_disk
from legend_hf import LegendMarginFn, Direction
from legend_hf.margins import remote_store
from legend_hf.reading.reader import OpenReader

read = OpenReader.read
def slow(opened, texts, layers, *, batch_tokens=None):
    for index, hidden in read(opened, texts, layers, batch_tokens=batch_tokens):
        os.write(1, b"pass %d\\n" % len(index))  # whole lines: two workers write them
        time.sleep(float(sys.argv[6]))
        yield index, hidden
OpenReader.read = slow

if __name__ == "__main__":
    direction, rows, model, store, num_proc = sys.argv[1:6]
    fn = LegendMarginFn(Direction.from_pretrained(direction, model=model), store=store, batch_tokens=120)
    load_from_disk(rows).map(fn, batched=True, batch_size=30, num_proc=int(num_proc) or None)
    print("done", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("num_proc", "stopped"), [(0, True), (0, False), (2, False)])
def test_a_plain_map_sends_at_its_end_and_at_a_signal(direction, rows, tmp_path, tiny_llama, s3, num_proc, stopped):
    """Nobody is around a plain `map`, and no chunk is due: the process itself sends, by a client that needs threads."""
    direction.save_pretrained(tmp_path / "direction")
    rows.save_to_disk(str(tmp_path / "rows"))
    (tmp_path / "program.py").write_text(PROGRAM)
    url = f"{s3}/{tmp_path.name}"
    process = subprocess.Popen(
        [sys.executable, "program.py", "direction", "rows", str(tiny_llama), url, str(num_proc), "0.1" if stopped else "0"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert process.stdout is not None
    seen = [int(process.stdout.readline().split()[1]) for _ in range(3)]
    assert count(machine(url)) == 0, "the control: nothing was due"
    if stopped:
        process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGTERM if stopped else 0), err
    seen += [int(line.split()[1]) for line in out.splitlines() if line.startswith("pass")]
    assert count(machine(url)) == (sum(seen) if stopped else distinct_texts(rows)), err
    assert ("done" in out) != stopped


# -- Machines that are lost ----------------------------------------------------------------------------------------

CHUNK = 24


def _annotate(direction: Direction, rows: Dataset, url: str, folder: Path, name: str, workers: int | None) -> None:
    """A run on a machine of its own, in a process group of its own, slow and with small chunks."""
    os.setsid()
    tempfile.tempdir = str(folder / name)
    os.mkdir(tempfile.tempdir)
    read = OpenReader.read

    def slow(opened, texts, layers, *, batch_tokens=None):
        remote_store.CHUNK_ROWS, remote_store.CHUNK_SECONDS = CHUNK, 0.5
        for index, hidden in read(opened, texts, layers, batch_tokens=batch_tokens):
            with open(folder / "passes", "ab", buffering=0) as log:
                log.write(f"{len(index)}\n".encode())
            time.sleep(0.01 if workers else 0)
            yield index, hidden

    OpenReader.read = slow  # type: ignore[method-assign]
    out = annotate(rows, LegendMarginFn(direction, store=url, batch_tokens=120), num_proc=workers, batch_size=15)
    np.save(folder / "result.npy", np.array([out[c] for c in COLUMNS]))


def _passes(folder: Path) -> list[int]:
    log = folder / "passes"
    return [int(line) for line in log.read_text().split()] if log.exists() else []


@pytest.mark.slow
def test_ten_machines_are_lost(direction, rows, s3, tmp_path, record_property):
    """SIGKILL of all processes at random moments; another machine, whose disk is empty, goes on from the bucket."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["datasets", "s3fs", "legend_hf.margins.annotate", "transformers.models.llama.modeling_llama"]
    )

    def start(folder: Path, name: str, workers: int | None) -> Any:
        folder.mkdir(exist_ok=True)
        process = context.Process(
            target=_annotate, args=(direction, rows, f"{s3}/{tmp_path.name}/{folder.name}", folder, name, workers)
        )
        process.start()
        return process

    def finish(folder: Path, name: str) -> np.ndarray:
        process = start(folder, name, None)
        process.join(120)
        assert process.exitcode == 0
        return np.load(folder / "result.npy")

    undisturbed = finish(tmp_path / "whole", "a")
    passes, limit = len(_passes(tmp_path / "whole")), 1e-4 * undisturbed[1].std()
    draw, kept_at_kill, read_again = random.Random(10), [], []
    for kill in range(10):
        folder = tmp_path / str(kill)
        process = start(folder, "a", WORKERS)
        due, end = draw.randrange(passes), time.monotonic() + 60
        while len(_passes(folder)) < due and time.monotonic() < end:
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.03))
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
        url = f"{s3}/{tmp_path.name}/{kill}"
        kept = count(machine(url))
        read = sum(_passes(folder))
        numbers = finish(folder, "b")
        assert np.isfinite(numbers).all()
        assert numbers.shape == undisturbed.shape
        assert np.abs(numbers - undisturbed).max() <= limit
        assert count(machine(url)) == distinct_texts(rows), "complete"
        again = sum(_passes(folder)) - distinct_texts(rows)
        assert again <= WORKERS * (CHUNK + max(_passes(folder)))
        assert read - kept >= again >= 0
        kept_at_kill.append(kept)
        read_again.append(again)
    assert len(set(kept_at_kill)) > 3, "the moments differ"
    assert max(kept_at_kill) > CHUNK
    figures = f"scores in the bucket when killed {kept_at_kill}; texts read again {read_again}, chunks of {CHUNK}"
    record_property("kills", figures)
    logging.getLogger(__name__).info(figures)
