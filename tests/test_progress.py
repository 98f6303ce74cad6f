"""A bar moves while a batch is read, says how fast and what was skipped, obeys the switches, and is quiet in a log."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import subprocess
import sys
import termios
import textwrap

import datasets
import pytest
from builders import pair_rows
from datasets import Dataset

from legend_hf import LegendMarginFn, annotate, fit_direction
from legend_hf.reading import progress

ROWS = [*pair_rows([f"thing {i}" for i in range(20)]), {"prompt": "And?", "chosen": "", "rejected": "No."}]
SMALL = 40
"""Tokens in a forward pass: a few texts."""


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(scope="module")
def direction(tiny_llama):
    return fit_direction(ROWS, model=str(tiny_llama), on_error="skip", layer=2)


@pytest.fixture(autouse=True)
def _every_move_is_shown(monkeypatch):
    monkeypatch.setattr(progress, "DELAY_SECONDS", 0)
    monkeypatch.setattr(progress, "_INTERVAL", 0)


@contextlib.contextmanager
def screen(shown=None):
    """What a terminal shows, with every move of a bar."""
    with contextlib.redirect_stderr(shown or Terminal()) as told:
        yield told


def counts(shown, desc="Reading texts"):
    """How many texts a bar said were read, as often as it said so."""
    return [int(n) for n in re.findall(rf"{desc}[^\r\n]*?\| (\d+)/\d+ \[", shown)]


def mapped(direction, rows=ROWS, **options):
    fn = LegendMarginFn(direction, on_error="skip", batch_tokens=SMALL)
    return Dataset.from_list(rows).map(fn, batched=True, load_from_cache_file=False, **options)


@pytest.mark.parametrize("way", ["map", "annotate"])
def test_the_bar_moves_within_a_batch(direction, way):
    with screen() as shown:
        if way == "map":
            mapped(direction)
        else:
            annotate(Dataset.from_list(ROWS), LegendMarginFn(direction, on_error="skip", batch_tokens=SMALL))
    seen = counts(shown.getvalue())
    assert len(set(seen)) > 5, shown.getvalue()
    assert seen == sorted(seen)
    assert seen[-1] == 40
    assert re.search(r"[\d.]+ rows/s, 1 rows skipped", shown.getvalue())


def test_the_bar_of_a_fit_moves_and_says_what_was_skipped(tiny_llama):
    with screen() as shown:
        fit_direction(ROWS, model=str(tiny_llama), on_error="skip", layer=2, batch_tokens=SMALL)
    seen = counts(shown.getvalue(), "Reading pairs")
    assert len(set(seen)) > 5
    assert seen[-1] == 40
    assert re.search(r"[\d.]+ rows/s, 1 rows skipped", shown.getvalue())


def test_what_was_kept_says_nothing_of_the_speed():
    with screen() as shown, progress.reading(10, desc="Reading pairs", texts=20):
        progress.read(18, known=True)
        assert "rows/s" not in shown.getvalue()
        progress.read(2)
    assert counts(shown.getvalue(), "Reading pairs")[-1] == 20


def test_the_switch_of_datasets_is_obeyed(direction):
    datasets.disable_progress_bars()
    try:
        with screen() as shown:
            mapped(direction)
    finally:
        datasets.enable_progress_bars()
    assert shown.getvalue() == ""
    with screen() as shown:
        mapped(direction, ROWS[:3])
    assert "Reading texts" in shown.getvalue(), "the control"


def test_a_log_gets_few_lines(direction, tiny_llama, monkeypatch):
    with screen(io.StringIO()) as log:
        mapped(direction)
        fit_direction(ROWS, model=str(tiny_llama), on_error="skip", layer=2, batch_tokens=SMALL)
    assert counts(log.getvalue()) == [], "no batch takes so long that it needs a line of its own"
    assert len(counts(log.getvalue(), "Reading pairs")) <= 3
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0)
    with screen(io.StringIO()) as log:
        mapped(direction, ROWS[1:])
    assert len(counts(log.getvalue())) > 5, "the control: one that does has it"
    assert "\x1b" not in log.getvalue()


def test_workers_have_a_line_each(direction, tmp_path):
    direction.save_pretrained(tmp_path / "d")
    code = f"""
        import sys
        from datasets import Dataset
        from legend_hf import LegendMarginFn
        from legend_hf.reading import progress
        progress.DELAY_SECONDS = progress._INTERVAL = 0
        rows = [{{"prompt": f"Tell me {{i}}.", "chosen": f"Gladly {{i}}.", "rejected": f"No {{i}}"}} for i in range(24)]
        fn = LegendMarginFn({str(tmp_path / "d")!r}, model={direction.model_path!r}, batch_tokens={SMALL})
        Dataset.from_list(rows).map(fn, batched=True, num_proc=2, with_rank=True)
    """
    ours, its = pty.openpty()
    termios.tcsetwinsize(its, (40, 120))
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stderr=its, stdout=its)
    os.close(its)
    shown = b""
    with contextlib.suppress(OSError):
        while part := os.read(ours, 65536):
            shown += part
    assert process.wait() == 0, shown.decode()
    os.close(ours)
    assert len(counts(shown.decode())) > 10
    lines = [len(newlines) for newlines in re.findall(r"(\n+)\r?Reading texts", shown.decode().replace("\r\n", "\n"))]
    # Two processes write as they like: a few times the one's move down stands right before the other's.
    often = {number for number in lines if lines.count(number) > len(lines) / 4}
    assert often == {1, 2}, "below the line of `map`, one below the other"


def test_a_process_of_a_device_leaves_the_bar_to_the_first_one(direction, monkeypatch):
    """It is a new interpreter, which knows no switch that was set in this one."""
    from legend_hf.margins.workers import Worker

    started = []
    whole = subprocess.Popen

    def popen(command, **options):
        started.append(options["env"])
        code = "from datasets.utils import are_progress_bars_disabled as off; print(off())"
        return whole([sys.executable, "-c", code], **options)

    monkeypatch.setattr("legend_hf.margins.workers.subprocess.Popen", popen)
    worker = Worker(LegendMarginFn(direction), "cpu")
    assert worker._process.stdout.read() == b"True\n"
    worker.close()
    (env,) = started
    assert "HF_DATASETS_DISABLE_PROGRESS_BARS" not in os.environ, "the control"
    assert env["HF_DATASETS_DISABLE_PROGRESS_BARS"] == "1"
