"""`annotate(devices=...)`: several processes of one machine give the numbers and the order of one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from builders import SIX, close_stores, pair_rows
from datasets import Dataset, DatasetDict, concatenate_datasets

from legend_hf import Direction, LegendMarginFn, RowError, annotate, fit_direction
from legend_hf.margins import devices, tables
from legend_hf.margins.store import open_store
from legend_hf.margins.workers import handed_out, workers
from legend_hf.reading import reader as readers
from legend_hf.reading.reader import close_readers

annotating = import_module("legend_hf.margins.annotate")
TWO = ["cpu", "cpu"]


@pytest.fixture(scope="module")
def direction(tiny_llama: Path) -> Direction:
    fitted = fit_direction(pair_rows(), model=str(tiny_llama))
    close_readers()
    return fitted


@pytest.fixture(scope="module")
def rows() -> Dataset:
    """Rows of very different lengths, the longest in the middle."""
    made = []
    for i in range(60):
        made += pair_rows([f"{thing} {i}" + " and more" * (40 - abs(30 - i)) for thing in SIX[:2]])
    return Dataset.from_list(made)


def same(one: Dataset, other: Dataset) -> bool:
    """Whether two annotated datasets are equal, within the numerical contract."""
    if one.column_names != other.column_names or one.features != other.features or len(one) != len(other):
        return False
    close = [np.allclose(one[c], other[c], rtol=0, atol=1e-4 * np.std(one[c])) for c in ("margin", "chosen_score")]
    return one["prompt"][:] == other["prompt"][:] and all(close)


@pytest.fixture(scope="module")
def alone(direction, rows) -> Dataset:
    return annotate(rows, LegendMarginFn(direction))


def test_two_processes_give_the_numbers_of_one_and_their_order(direction, rows, alone, tmp_path, monkeypatch):
    rows.save_to_disk(tmp_path)
    stored = DatasetDict(train=Dataset.load_from_disk(tmp_path), test=rows.select(range(7)), empty=rows.select([]))
    fn = LegendMarginFn(direction)
    close_readers()
    done = annotate(stored, fn, devices=TWO)
    assert not readers._LOADED, "workers load models, this process none"
    assert same(done["train"], alone)
    assert same(done["test"], alone.select(range(7)))
    assert len(done["empty"]) == 0
    assert done["empty"].features == alone.features
    # The controls: a row that is lost or out of its place is seen.
    assert not same(done["train"].select(range(1, len(rows))), alone)
    assert not same(done["train"].select([1, 0, *range(2, len(rows))]), alone)
    # What is cached asks for no process, whoever read it: a run with devices or one without.
    monkeypatch.setattr(annotating, "read_on", lambda spread, new, fn, most_rows: {} if not new else 1 / 0)
    again = annotate(DatasetDict(train=stored["train"]), LegendMarginFn(direction, batch_tokens=99), devices=TWO)
    assert same(again["train"], done["train"])
    with pytest.raises(ZeroDivisionError):  # the control
        annotate(stored, fn, devices=TWO)


class Here:
    """A worker in this process, whose time is what it is told to be."""

    fn: LegendMarginFn
    clock = 0.0
    made = 0
    lock = threading.Lock()  # each is asked by a thread of its own

    def __init__(self, fn, device, threads=None):
        self.fn, self.number, self.running = fn, threads, True
        Here.made += 1

    def look(self, table, first_row):
        return self.fn.look(tables.rows_of(table), first_row=first_row)

    def read(self, table):
        assert self.running
        with Here.lock:
            Here.clock += self.fn.look(tables.rows_of(table))[1].sum() * self.seconds(self.number)
        return tables.made_of(self.fn, table)

    def threads(self, number):
        self.number = number

    def memory(self):
        return 1

    def stop(self):
        self.running = False

    def close(self):
        assert not self.running


@pytest.mark.parametrize(("two", "best"), [(0.4, 2), (1.0, 1), (3.0, 1)])
def test_auto_takes_what_a_sample_shows_to_be_quicker_and_changes_no_number(
    direction, rows, alone, monkeypatch, caplog, two, best
):
    """Two processes take `two` times as long as one with both cores; the clock knows only what is read."""
    monkeypatch.setattr(Here, "seconds", lambda self, threads: {2: 100.0, 1: 100.0 * two}[threads], raising=False)
    monkeypatch.setattr(devices, "usable_cores", lambda: 2)
    monkeypatch.setattr(devices.time, "perf_counter", lambda: Here.clock)
    monkeypatch.setattr(devices, "Worker", Here)
    monkeypatch.setattr("legend_hf.margins.workers.Worker", Here)
    Here.made = 0
    with caplog.at_level("INFO", logger=devices.__name__):
        assert same(annotate(rows, LegendMarginFn(direction), devices="auto"), alone)
    assert f"reading in {best} processes of {2 // best} threads each" in caplog.text
    assert Here.made == 2  # it was tried


def test_a_short_run_tries_nothing(direction, rows, alone, monkeypatch):
    monkeypatch.setattr(Here, "seconds", lambda self, threads: 1e-9, raising=False)
    monkeypatch.setattr(devices.time, "perf_counter", lambda: Here.clock)
    monkeypatch.setattr("legend_hf.margins.workers.Worker", Here)
    monkeypatch.setattr(devices, "usable_cores", lambda: 2)
    Here.made = 0
    assert same(annotate(rows, LegendMarginFn(direction), devices="auto"), alone)
    assert Here.made == 1


def test_the_first_row_that_cannot_be_read_is_named(direction, rows, monkeypatch):
    monkeypatch.setattr("legend_hf.margins.workers.Worker", Here)
    monkeypatch.setattr(Here, "seconds", lambda self, threads: 0.0, raising=False)
    bad = concatenate_datasets([rows, Dataset.from_list([{"prompt": "p", "chosen": "", "rejected": "r"}] * 2)])
    with pytest.raises(RowError, match=f"row {len(rows)}, column `chosen`") as refused:
        annotate(DatasetDict(train=rows, test=bad), LegendMarginFn(direction), devices=TWO, batch_size=9)
    assert refused.value.__notes__ == ["in split 'test'"]
    skipped = annotate(bad, LegendMarginFn(direction, on_error="skip"), devices=TWO)
    assert [s == "ok" for s in skipped["margin_status"]] == [True] * len(rows) + [False] * 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"devices": "cpu"}, r"`devices` is 'cpu'; allowed are 'auto' and a list .* here: 'cpu'"),
        ({"devices": []}, r"`devices` is \[\]; allowed are 'auto'"),
        ({"devices": ["cuda:99"]}, r"`devices` is \['cuda:99'\]; allowed are 'auto'"),
        ({"devices": ["nonsense"]}, "names no device"),
        ({"devices": TWO, "num_proc": 2}, "`devices` and `num_proc=2` both say how many processes"),
    ],
)
def test_devices_that_are_not_here_are_refused_before_the_work(direction, rows, options, said):
    with pytest.raises(ValueError, match=said):
        annotate(rows, LegendMarginFn(direction), **options)


def test_devices_beside_a_stream_or_a_device_of_the_transform_are_refused(direction, rows):
    with pytest.raises(ValueError, match="the transform reads on 'cpu' alone; leave out `device=`"):
        annotate(rows, LegendMarginFn(direction, device="cpu"), devices=TWO)
    with pytest.raises(ValueError, match="a stream is read as it is consumed"):
        annotate(rows.to_iterable_dataset(), LegendMarginFn(direction), devices=TWO)


def test_a_worker_that_was_killed_is_named_and_one_that_fails_says_why(direction):
    with workers(LegendMarginFn(direction), TWO, 1) as running:
        table = Dataset.from_list([{"prompt": "p", "chosen": "", "rejected": "r"}]).with_format("arrow")[:]
        with pytest.raises(RowError, match="row 0, column `chosen`"):
            running[0].read(table)
        os.kill(running[1]._process.pid, signal.SIGKILL)
        with pytest.raises(RuntimeError, match=r"the worker on cpu ended by itself \(exit code -9\).*fewer `devices`"):
            running[1].read(table)
        begun = time.monotonic()
        with pytest.raises(RuntimeError, match="ended by itself"):
            list(
                handed_out(
                    running, [0, 1, 2], lambda worker, part: worker.read(table) if part else running[1].read(table)
                )
            )
        assert time.monotonic() - begun < 30
    assert all(worker._process.poll() is not None for worker in running)


def test_a_worker_runs_nothing_of_the_folder_that_it_starts_in(direction, tmp_path, monkeypatch):
    (tmp_path / "queue.py").write_text("raise RuntimeError('not the one of Python')\n")
    monkeypatch.chdir(tmp_path)
    with workers(LegendMarginFn(direction), ["cpu"]) as (worker,):
        assert worker.memory() > 0


def test_workers_end_with_a_process_that_is_killed(direction, tmp_path):
    """In a program of its own, without `if __name__ == "__main__":` and with a transform that it defines itself."""
    direction.save_pretrained(tmp_path / "direction")
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys, time\n"
        "from legend_hf import LegendMarginFn\n"
        "from legend_hf.margins.workers import workers\n"
        "class Own(LegendMarginFn): pass\n"
        f"with workers(Own({str(tmp_path / 'direction')!r}, model={direction.model_path!r}), ['cpu']) as (one,):\n"
        "    one.memory()\n"
        "    print(one._process.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True) as parent:
        worker = int(parent.stdout.readline())
        assert Path(f"/proc/{worker}").exists()
        parent.kill()
    end = time.monotonic() + 10
    while Path(f"/proc/{worker}").exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not Path(f"/proc/{worker}").exists()


@pytest.mark.slow
def test_a_run_that_is_told_to_stop_keeps_what_was_read_and_goes_on(direction, rows, alone, tmp_path):
    store = tmp_path / "scores.sqlite"
    direction.save_pretrained(tmp_path / "direction")
    rows.save_to_disk(tmp_path / "rows")
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        "from datasets import Dataset\n"
        "from legend_hf import LegendMarginFn, annotate\n"
        f"fn = LegendMarginFn({str(tmp_path / 'direction')!r}, model={direction.model_path!r}, store={str(store)!r}, "
        "batch_tokens=60)\n"
        f"annotate(Dataset.load_from_disk({str(tmp_path / 'rows')!r}), fn, devices=['cpu', 'cpu'], batch_size=4)\n"
    )
    with subprocess.Popen([sys.executable, str(program)], stderr=subprocess.PIPE, text=True) as run:
        while run.poll() is None and not (store.exists() and sum(k.scores for k in open_store(store).contents()) > 9):
            time.sleep(0.02)
        run.send_signal(signal.SIGTERM)
        said = run.stderr.read()
    assert run.returncode == -signal.SIGTERM, said
    assert "stopped by SIGTERM; what was read is kept in" in said
    kept = sum(k.scores for k in open_store(store).contents())
    close_stores()
    assert 9 < kept < 2 * len(rows)
    assert same(annotate(rows, LegendMarginFn(direction, store=store)), alone)
