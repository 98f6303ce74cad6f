"""Long runs: killed, stopped or shared between processes, they lose nothing, double nothing and leave nothing behind."""

from __future__ import annotations

import dataclasses
import logging
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
from builders import close_stores
from datasets import Dataset, load_dataset

from legend_hf import Direction, LegendMarginFn, annotate, fit_direction
from legend_hf.margins.store import _all, open_store
from legend_hf.reading.reader import OpenReader, close_readers

ROWS = 90
COLUMNS = ("margin", "margin_raw", "chosen_score", "rejected_score")
WORKERS = 2


@pytest.fixture(scope="module")
def direction(tiny_llama: Path) -> Direction:
    rows = [
        {"prompt": f"May I borrow {t}?", "chosen": f"Ask the owner of {t}.", "rejected": f"Take {t}"}
        for t in ("a bicycle", "some salt", "the ladder", "her book", "a pen", "two eggs")
    ]
    fitted = fit_direction(rows, model=str(tiny_llama))
    close_readers()  # what follows forks, and loads the model where it is used
    return fitted


@pytest.fixture
def rows() -> Dataset:
    draw = random.Random(0)
    words = ["tea", "maps", "rain", "soup", "trains", "songs", "bread", "stars", "paint", "clocks"]

    def text(low: int, high: int) -> str:
        return " ".join(draw.choice(words) for _ in range(draw.randint(low, high)))

    made = [
        {"prompt": f"{i}: {text(1, 8)}?", "chosen": text(2, 30), "rejected": text(2, 30)}
        for i in range(ROWS - 5)
    ]  # fmt: skip
    return Dataset.from_list(made + made[:5])  # texts that repeat


@pytest.fixture(autouse=True)
def _closed():
    yield
    close_stores()


# What is killed here is forked by a server that has no threads: in a child of the tests' own process, a lock that one of
# their many threads held when it was forked is never let go.
FORKED = multiprocessing.get_context("forkserver")


@pytest.fixture(scope="module", autouse=True)
def _server():
    FORKED.set_forkserver_preload(["torch", "transformers", "datasets", "legend_hf.margins.annotate"])


def forked(work: Callable[..., None], *args: object) -> BaseProcess:
    """Runs work in a new process with a group of its own."""
    process = FORKED.Process(target=_in_a_group_of_its_own, args=(work, *args))
    process.start()
    return process


def _in_a_group_of_its_own(work: Callable[..., None], *args: object) -> None:
    os.setsid()
    work(*args)


def ended(process: BaseProcess) -> int:
    """The exit code; a process that does not end fails the test instead of holding it."""
    process.join(120)
    assert process.exitcode is not None, "it still runs"
    return process.exitcode


def alive(group: int) -> list[int]:
    """Processes of a group that still run."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                state, _, process_group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            except OSError:
                continue
            if int(process_group) == group and state != "Z":
                found.append(int(folder.name))
    return found


def gone(group: int, within: float = 10.0) -> bool:
    end = time.monotonic() + within
    while alive(group) and time.monotonic() < end:
        time.sleep(0.05)
    return not alive(group)


class Run:
    """Annotates in a process of its own, slowly, and writes down each forward pass."""

    def __init__(self, direction: Direction, rows: Dataset, folder: Path) -> None:
        self.direction, self.rows, self.folder = direction, rows, folder
        self.store = folder / "scores.sqlite"
        self.log, self.result = folder / "log", folder / "result.npy"

    def start(self, *, num_proc: int | None = WORKERS, pause: float = 0.01, batch_size: int = 15) -> BaseProcess:
        return forked(_annotate_slowly, self, num_proc, pause, batch_size)

    def finish(self, **options: int | None) -> np.ndarray:
        process = self.start(**options)  # type: ignore[arg-type]
        assert ended(process) == 0
        assert gone(process.pid)
        return np.load(self.result)

    def passes(self) -> list[int]:
        """Texts in each forward pass so far, of all processes."""
        return [int(line.split()[1]) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def held(self) -> int:
        return sum(kept.scores for kept in open_store(self.store).contents()) if self.store.exists() else 0


def _annotate_slowly(run: Run, num_proc: int | None, pause: float, batch_size: int) -> None:
    read = OpenReader.read

    def slow(opened, texts, layers, *, batch_tokens=None):
        for index, hidden in read(opened, texts, layers, batch_tokens=batch_tokens):
            with open(run.log, "ab", buffering=0) as log:
                log.write(f"{os.getpid()} {len(index)}\n".encode())
            time.sleep(pause)  # between reading and keeping: the worst moment
            yield index, hidden

    OpenReader.read = slow  # type: ignore[method-assign]
    fn = LegendMarginFn(run.direction, store=run.store, batch_tokens=120)
    out = annotate(run.rows, fn, num_proc=num_proc, batch_size=batch_size)
    np.save(run.result, np.array([out[c] for c in COLUMNS]))


@pytest.fixture
def run(direction: Direction, rows: Dataset, tmp_path: Path) -> Run:
    return Run(direction, rows, tmp_path)


def distinct_texts(rows: Dataset) -> int:
    return len({(r["prompt"], r[side]) for r in rows for side in ("chosen", "rejected")})


def test_a_second_run_reads_nothing_whatever_changed(direction, rows, tmp_path, monkeypatch):
    store = tmp_path / "s.sqlite"
    plain = annotate(rows, LegendMarginFn(direction))
    first = annotate(rows, LegendMarginFn(direction, store=store))
    for column in COLUMNS:
        np.testing.assert_allclose(first[column], plain[column], atol=1e-4 * np.std(plain["margin_raw"]))

    read: list[int] = []
    monkeypatch.setattr(OpenReader, "read", lambda self, texts, *a, **k: read.append(len(texts)) or iter(()))
    shuffled = rows.shuffle(seed=1)
    again = annotate(shuffled, LegendMarginFn(direction, store=store, batch_tokens=64), batch_size=7)
    expected = first.shuffle(seed=1)
    for column in COLUMNS:
        assert again[column] == expected[column], "from the store to the bit"
    swapped = rows.rename_columns({"chosen": "rejected", "rejected": "chosen"})
    mirrored = swapped.map(LegendMarginFn(direction, store=store, scale="raw", add=["margin_bin"]), batched=True)
    assert mirrored["margin"] == [-m for m in first["margin_raw"]], "another calibration, another pairing"
    assert sum(read) == 0

    # The control: a direction of other numbers finds nothing.
    other = dataclasses.replace(direction, vector=-direction.vector)
    with pytest.raises(ValueError, match="not finite"):  # nothing was read, so nothing is known
        annotate(rows, LegendMarginFn(other, store=store))
    assert sum(read) == distinct_texts(rows)


def test_weights_in_a_folder_of_their_own_have_scores_of_their_own(direction, rows, tmp_path, tiny_llama):
    """A Hub model's name says nothing of the weights in a folder in its place, where an artifact recorded none."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tuned = AutoModel.from_pretrained(tiny_llama)
    with torch.no_grad():
        for weights in tuned.parameters():
            weights += 0.05 * torch.randn(weights.shape, generator=torch.Generator().manual_seed(0))
    tuned.save_pretrained(tmp_path / "tuned")
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(tmp_path / "tuned")
    hub = dataclasses.replace(direction.reader, model="you/model", revision="0" * 40, model_sha256=None)
    reader = dataclasses.replace(hub, weights_sha256=None, tensors_sha256=None, config_sha256=None)
    given = [dataclasses.replace(direction, reader=reader, model_path=str(p)) for p in (tiny_llama, tmp_path / "tuned")]
    store = tmp_path / "s.sqlite"
    kept = [np.array(annotate(rows, LegendMarginFn(d, store=store))["margin_raw"]) for d in given]
    fresh = [np.array(annotate(rows, LegendMarginFn(d))["margin_raw"]) for d in given]
    assert np.abs(fresh[0] - fresh[1]).max() > 0.01
    for one, other in zip(kept, fresh, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * other.std())
    assert LegendMarginFn(given[0]).fingerprint() != LegendMarginFn(given[1]).fingerprint()


def test_workers_share_the_store(run, rows):
    numbers = run.finish(pause=0)
    assert sum(run.passes()) <= distinct_texts(rows) + WORKERS * max(run.passes())
    before = len(run.passes())
    again = run.finish(pause=0, num_proc=None, batch_size=40)
    assert len(run.passes()) == before, "nothing is read again by other workers and batches"
    assert (again == numbers).all()


@pytest.mark.slow
def test_twenty_kills(direction, rows, tmp_path, record_property):
    """SIGKILL at random moments, of the parent alone or of the whole group; each time the run is made again."""
    whole = Run(direction, rows, tmp_path)
    undisturbed = whole.finish()
    passes = len(whole.passes())
    limit = 1e-4 * undisturbed[COLUMNS.index("margin_raw")].std()
    draw = random.Random(20)
    kept_at_kill, read_twice, survived = [], [], 0
    for kill in range(20):
        folder = tmp_path / str(kill)
        folder.mkdir()
        run = Run(direction, rows, folder)
        process = run.start()
        pid = process.pid
        due, end = draw.randrange(passes), time.monotonic() + 60
        while len(run.passes()) < due and time.monotonic() < end:
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.03))  # before, in, between and after forward passes
        (os.kill if kill % 2 else os.killpg)(pid, signal.SIGKILL)
        ended(process)
        assert gone(pid), f"kill {kill}: left behind {alive(pid)}"
        held = run.held()
        survived += run.result.exists()
        kept = dict(_scores(run)) if held else {}
        numbers = run.finish()
        assert numbers.shape == (len(COLUMNS), ROWS)
        assert np.abs(numbers - undisturbed).max() <= limit
        after = _scores(run)
        assert len(after) == distinct_texts(rows)
        assert all(after[key] == score for key, score in kept.items()), "rows from the store are bit-equal"
        twice = sum(run.passes()) - distinct_texts(rows)
        # A text that stands in both workers' shards may be read by both; five rows repeat.
        assert twice <= WORKERS * max(run.passes()) + 10
        kept_at_kill.append(held)
        read_twice.append(twice)
        close_stores()
    assert len(set(kept_at_kill)) > 5, "the moments differ"
    figures = f"scores kept when killed {kept_at_kill}; texts read twice {read_twice}; killed too late {survived}"
    record_property("kills", figures)
    logging.getLogger(__name__).info(figures)


def _scores(run: Run) -> dict[bytes, float]:
    store = open_store(run.store)
    (kept,) = store.contents()
    with store._reading() as connection:
        assert connection is not None
        return {key: score for part in _all(connection, bytes.fromhex(kept.digest)) for key, score in part.items()}


def test_without_a_store_a_killed_run_starts_anew(direction, rows, tmp_path):
    """The control of the kills: what they count would show it."""
    run = Run(direction, rows, tmp_path)
    run.finish(pause=0, num_proc=None)
    for file in tmp_path.glob("scores.sqlite*"):
        file.unlink()
    run.finish(pause=0, num_proc=None)
    assert sum(run.passes()) == 2 * distinct_texts(rows)


def _map_for_ever(direction: Direction, rows: Dataset, started: Path) -> None:
    read = OpenReader.read

    def slow(opened, texts, layers, *, batch_tokens=None):
        with open(started, "ab", buffering=0) as file:
            file.write(f"{os.getpid()}\n".encode())
        time.sleep(30)
        return read(opened, texts, layers, batch_tokens=batch_tokens)

    OpenReader.read = slow  # type: ignore[method-assign]
    rows.map(LegendMarginFn(direction), batched=True, num_proc=WORKERS)


def test_workers_end_with_a_parent_that_is_killed_in_a_plain_map(direction, rows, tmp_path):
    """`map` alone: the workers end; the server of their queue is the library's that forked it."""
    started = tmp_path / "started"
    process = forked(_map_for_ever, direction, rows, started)
    pid = process.pid
    end = time.monotonic() + 30
    while (not started.exists() or len(started.read_text().split()) < WORKERS) and time.monotonic() < end:
        time.sleep(0.05)
    workers = [int(p) for p in started.read_text().split()]
    assert len(workers) == WORKERS
    os.kill(pid, signal.SIGKILL)
    ended(process)
    time.sleep(2)
    try:
        assert set(alive(pid)).isdisjoint(workers)
    finally:
        os.killpg(pid, signal.SIGKILL)  # that server


def test_two_processes_annotate_the_same_rows_into_one_store(direction, rows, tmp_path):
    one, two = Run(direction, rows, tmp_path), Run(direction, rows, tmp_path)
    two.result = tmp_path / "other.npy"
    first = one.start(num_proc=None)
    second = two.start(num_proc=None, batch_size=11)
    assert (ended(first), ended(second)) == (0, 0)
    assert one.held() == distinct_texts(rows), "nothing lost, nothing doubled"
    assert (np.load(one.result) == np.load(two.result)).all(), "one text has one score"


PROGRAM = """
import os, sys, time
from datasets import load_from_disk
from legend_hf import LegendMarginFn, Direction, annotate
from legend_hf.reading.reader import OpenReader

read = OpenReader.read
def slow(opened, texts, layers, *, batch_tokens=None):
    for batch in read(opened, texts, layers, batch_tokens=batch_tokens):
        os.write(1, b"pass %d\\n" % os.getpid())  # whole lines: two workers write them
        time.sleep(0.15)
        os.write(1, b"kept after this\\n")
        yield batch
OpenReader.read = slow

if __name__ == "__main__":
    direction, rows, model, store, num_proc = sys.argv[1:]
    direction = Direction.from_pretrained(direction, model=model)
    fn = LegendMarginFn(direction, store=store or None, batch_tokens=120)
    annotate(load_from_disk(rows), fn, num_proc=int(num_proc) or None, batch_size=30)
    print("done", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "num_proc", "kept"),
    [(signal.SIGINT, 0, True), (signal.SIGTERM, 0, True), (signal.SIGINT, 2, True), (signal.SIGTERM, 2, True),
     (signal.SIGTERM, 0, False)],
)  # fmt: skip
def test_a_signal_waits_for_the_batch_and_says_how_to_go_on(
    direction, rows, tmp_path, tiny_llama, number, num_proc, kept
):
    direction.save_pretrained(tmp_path / "direction")
    rows.save_to_disk(str(tmp_path / "rows"))
    store = tmp_path / "s.sqlite"
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    process = subprocess.Popen(
        [sys.executable, str(program), str(tmp_path / "direction"), str(tmp_path / "rows"), str(tiny_llama),
         str(store) if kept else "", str(num_proc)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    for _ in range(5):
        process.stdout.readline()
    if num_proc and number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert "done" not in out
    assert process.returncode == -number, err
    assert gone(process.pid)
    assert err.count("stopped by") == 1, err
    if not kept:
        assert "nothing was kept: with a store (`store=`) the next run goes on" in err
        return
    assert f"what was read is kept in '{store}': run the same again to go on from there" in err
    passes = 5 + out.count("pass") + out.count("kept")
    assert passes % 2 == 0 or num_proc, "the pass at hand was finished"
    held = sum(k.scores for k in open_store(store).contents())
    assert 0 < held < distinct_texts(rows)
    done = subprocess.run(process.args, capture_output=True, text=True, check=True)
    assert "done" in done.stdout
    assert sum(k.scores for k in open_store(store).contents()) == distinct_texts(rows)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_of_every_start_method_work_and_end(direction, rows, tmp_path, tiny_llama, method):
    direction.save_pretrained(tmp_path / "direction")
    rows.save_to_disk(str(tmp_path / "rows"))
    program = tmp_path / "program.py"
    start = f"    import multiprocess\n    multiprocess.set_start_method({method!r})\n"
    program.write_text(PROGRAM.replace('if __name__ == "__main__":\n', f'if __name__ == "__main__":\n{start}'))
    arguments = [str(tmp_path / "direction"), str(tmp_path / "rows"), str(tiny_llama), str(tmp_path / "s.sqlite"), "2"]
    command = [sys.executable, str(program), *arguments]

    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    said = [process.stdout.readline().split() for _ in range(12)]
    workers = {int(words[1]) for words in said if words[0] == "pass"}
    process.kill()
    process.wait()  # its pipe stays open in what is left
    time.sleep(2)
    try:  # the server of the queue, which this process did not fork itself, stays
        assert workers
        assert workers.isdisjoint(alive(process.pid))
    finally:
        for pid in alive(process.pid):
            os.kill(pid, signal.SIGKILL)

    done = subprocess.run(command, capture_output=True, text=True)
    assert "done" in done.stdout, done.stderr
    assert sum(k.scores for k in open_store(tmp_path / "s.sqlite").contents()) == distinct_texts(rows)


@pytest.mark.slow
def test_the_command_line_keeps_scores_by_itself(direction, rows, tmp_path, tiny_llama):
    direction.save_pretrained(tmp_path / "direction")
    rows.to_json(str(tmp_path / "rows.jsonl"))
    env = {**os.environ, "HF_ASSETS_CACHE": str(tmp_path / "assets")}
    env.pop("HF_DATASETS_DISABLE_PROGRESS_BARS", None)

    def cli(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        env["HF_DATASETS_CACHE"] = str(tmp_path / "cache" / arguments[-1])  # or a finished `map` would be found again
        done = subprocess.run(
            [sys.executable, "-m", "legend_hf.cli", *arguments], capture_output=True, text=True, cwd=tmp_path, env=env
        )
        assert done.returncode == code, done.stderr
        return done

    annotating = ("annotate", "rows.jsonl", "direction", "--model", str(tiny_llama), "--output")
    assert "there is no store" in cli("store", "show", code=2).stderr
    cli(*annotating, "without", "--no-store")
    assert not (tmp_path / "assets").exists()
    done = cli(*annotating, "annotated")
    assert "examples/s" in done.stderr, "progress has a rate, and a time left"
    shown = cli("store", "show").stdout
    assert str(tmp_path / "assets" / "legend_hf" / "scores.sqlite") in shown
    assert f"{distinct_texts(rows)} scores" in shown
    cli(*annotating, "own", "--store", "own.sqlite")
    assert f"{distinct_texts(rows)} new scores" in cli("store", "merge", "own.sqlite", "--output", "all.sqlite").stdout
    assert "both given" in cli(*annotating, "x", "--store", "own.sqlite", "--no-store", code=2).stderr
    assert "Forgot 0 scores" in cli("store", "prune").stdout
    assert f"Forgot {distinct_texts(rows)} scores" in cli("store", "prune", "--all").stdout
    folders = [str(tmp_path / name) for name in ("without", "annotated", "own")]
    columns = [load_dataset(folder, split="train")["margin_raw"][:] for folder in folders]
    np.testing.assert_allclose(columns[1], columns[0], atol=1e-4 * np.std(columns[0]))
