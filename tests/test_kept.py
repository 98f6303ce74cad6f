"""A fit that was stopped or killed goes on where it was, and ends with the bits of one that never stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import pair_rows
from typer.testing import CliRunner

from legend_hf import Direction, fit_direction
from legend_hf.directions import differences
from legend_hf.directions.kept import SUFFIX, KeptDifferences, default_folder, forget
from legend_hf.reading.reader import OpenReader

THINGS = [f"{a} {b}" for a in ("red", "old", "warm") for b in ("bread", "bikes", "paint", "tents")]
PAIRS = pair_rows(THINGS)
BLOCKS = 4  # of three pairs each
SEVERAL = 60  # tokens in a forward pass, so that a block takes several and a stop loses it


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(differences, "AT_ONCE", len(PAIRS) // BLOCKS)


class Reads:
    """Counts the texts that the model reads; a signal comes at the beginning of a block if told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.texts, self.blocks, self.stop_at = 0, 0, -1
        real = OpenReader.read

        def read(opened: OpenReader, texts: Any, *given: Any, **options: Any) -> Iterator[Any]:
            if self.blocks == self.stop_at:
                signal.raise_signal(signal.SIGINT)
            self.texts, self.blocks = self.texts + len(texts), self.blocks + 1
            return real(opened, texts, *given, **options)

        monkeypatch.setattr(OpenReader, "read", read)

    def of(self, run: Any) -> tuple[Any, int]:
        before = self.texts
        return run(), self.texts - before


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    return Reads(monkeypatch)


def fit(model: Path, store: Path | None, **options: Any) -> Direction:
    options = {"layer": 2, "batch_tokens": SEVERAL, **options}
    return fit_direction(PAIRS, model=model, store=store, estimator="mean_difference", **options)


def stopped(model: Path, store: Path, reads: Reads, blocks: int) -> Path:
    """A fit that was stopped after some blocks; its file."""
    reads.stop_at = reads.blocks + blocks
    with pytest.raises(KeyboardInterrupt):
        fit(model, store)
    reads.stop_at = -1
    (file,) = store.iterdir()
    return file


def same(one: Direction, other: Direction) -> bool:
    return one.vector.tobytes() == other.vector.tobytes() and one.to_config() == other.to_config()


@pytest.mark.parametrize("blocks", range(BLOCKS))
def test_a_stopped_fit_goes_on(
    tiny_llama: Path, tmp_path: Path, reads: Reads, blocks: int, caplog: pytest.LogCaptureFixture
):
    whole = fit(tiny_llama, None)
    file = stopped(tiny_llama, tmp_path / "fits", reads, blocks)
    (said,) = [r.getMessage() for r in caplog.records if "run the same again to go on" in r.getMessage()]
    assert str(tmp_path / "fits") in said
    assert file.stat().st_mode & 0o077 == 0, "nobody else's"
    again, read = reads.of(lambda: fit(tiny_llama, tmp_path / "fits"))
    assert read == 2 * len(PAIRS) * (BLOCKS - blocks) / BLOCKS
    assert same(again, whole)
    assert not file.exists(), "a fit that ended well keeps nothing"
    assert same(fit(tiny_llama, tmp_path / "fits"), whole)


def test_what_is_kept_is_used(tiny_llama: Path, tmp_path: Path, reads: Reads):
    """The control: other numbers with a checksum that fits give another direction."""
    file = stopped(tiny_llama, tmp_path / "fits", reads, 1)
    content = file.read_bytes()
    block = np.frombuffer(content[-4 * 3 * 32 :], dtype="<f4")
    file.write_bytes(content[: -4 * 3 * 32 - 4] + KeptDifferences._checked(0, (-block).tobytes()) + (-block).tobytes())
    assert not same(fit(tiny_llama, tmp_path / "fits"), fit(tiny_llama, None))


@pytest.mark.parametrize("damage", ["cut", "flip", "first", "empty", "zeros", "other"])
def test_a_damaged_file_costs_reading_and_no_number(tiny_llama: Path, tmp_path: Path, reads: Reads, damage: str):
    whole = fit(tiny_llama, None)
    file = stopped(tiny_llama, tmp_path / "fits", reads, 3)
    content = bytearray(file.read_bytes())
    if damage == "cut":
        del content[-7:]
    elif damage in ("flip", "first"):
        content[-7 if damage == "flip" else 0] ^= 1
    file.write_bytes({"empty": b"", "zeros": bytes(len(content)), "other": b"{}\n" * 400}.get(damage, bytes(content)))
    again, read = reads.of(lambda: fit(tiny_llama, tmp_path / "fits"))
    assert same(again, whole)
    assert read >= 2 * len(PAIRS) * 2 / BLOCKS, "the block that was damaged, at least, is read again"


@pytest.mark.parametrize("change", [{"layer": 1}, {"pooling": "last"}, {"joiner": "\n"}, {"max_length": 100}])
def test_another_fit_does_not_find_it(tiny_llama: Path, tmp_path: Path, reads: Reads, change: dict[str, Any]):
    file = stopped(tiny_llama, tmp_path / "fits", reads, 2)
    _, read = reads.of(lambda: fit(tiny_llama, tmp_path / "fits", **change))
    assert read == 2 * len(PAIRS)
    assert file.exists()
    _, read = reads.of(lambda: fit(tiny_llama, tmp_path / "fits", seed=5, calibration="raw"))
    assert read == len(PAIRS), "what is made of the vectors does not matter"


def test_a_killed_fit_goes_on(tiny_llama: Path, tmp_path: Path, reads: Reads):
    program = f"""
    import os, signal, sys
    sys.path.insert(0, {str(Path(__file__).parent)!r})
    from test_kept import BLOCKS, PAIRS, OpenReader, differences, fit
    from pathlib import Path
    differences.AT_ONCE = len(PAIRS) // BLOCKS
    real, blocks = OpenReader.read, []
    def read(*given, **options):
        blocks.append(1)
        if len(blocks) > 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*given, **options)
    OpenReader.read = read
    fit(Path({str(tiny_llama)!r}), Path({str(tmp_path / "fits")!r}))
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(program)], env=os.environ).returncode == -9
    again, read = reads.of(lambda: fit(tiny_llama, tmp_path / "fits"))
    assert read == len(PAIRS)
    assert same(again, fit(tiny_llama, None))


STOPPED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from test_kept import BLOCKS, PAIRS, OpenReader, differences, fit
from pathlib import Path
differences.AT_ONCE = len(PAIRS) // BLOCKS
signal.signal(signal.SIGINT, signal.default_int_handler)
passes = []
def passing(real):
    def read(*given, **options):
        for entry in real(*given, **options):
            passes.append(1)
            if len(passes) == {stop_at}:
                os.kill(os.getpid(), {number})
            yield entry
    return read
OpenReader.read = passing(OpenReader.read)
def choosing(real):
    def choose(*given, **options):
        if {stop_at} == 0:
            os.kill(os.getpid(), {number})
        return real(*given, **options)
    return choose
from legend_hf.directions import fit as fitting
fitting.choose = choosing(fitting.choose)
try:
    fit(Path({model!r}), Path({store!r}) if {store!r} else None)
finally:
    print(len(passes))
"""


@pytest.mark.parametrize(
    ("number", "stop_at", "kept"),
    [(signal.SIGINT, 5, True), (signal.SIGTERM, 5, True), (signal.SIGTERM, 0, True), (signal.SIGTERM, 5, False)],
)
def test_a_signal_ends_a_fit_and_it_says_how_to_go_on(
    tiny_llama: Path, tmp_path: Path, reads: Reads, number: signal.Signals, stop_at: int, kept: bool
):
    """While it reads, after the forward pass at hand; and while it chooses, when all has been read."""
    store = tmp_path / "fits"
    program = STOPPED.format(
        tests=str(Path(__file__).parent),
        stop_at=stop_at,
        number=int(number),
        model=str(tiny_llama),
        store=str(store) if kept else "",
    )
    ended = subprocess.run([sys.executable, "-c", program], env=os.environ, capture_output=True, text=True)
    assert ended.returncode == -number, ended.stderr
    assert ended.stderr.count(f"stopped by {number.name}") == 1, ended.stderr
    if not kept:
        assert "nothing was kept: with a store (`store=`) the next run goes on" in ended.stderr
        return
    assert f"what was read is kept in {str(store)!r}: run the same again to go on from there" in ended.stderr
    if stop_at and number == signal.SIGINT:
        assert int(ended.stdout) == stop_at, "the pass at hand was the last one"
    again, read = reads.of(lambda: fit(tiny_llama, store))
    assert (0 < read < 2 * len(PAIRS)) if stop_at else read == 0
    assert same(again, fit(tiny_llama, None))


def test_what_nobody_came_back_for_is_deleted_after_a_month(tiny_llama: Path, tmp_path: Path, reads: Reads):
    file = stopped(tiny_llama, tmp_path / "fits", reads, 1)
    old, young, theirs = (file.parent / name for name in ("a" * 64 + SUFFIX, "b" * 64 + SUFFIX, "mine" + SUFFIX))
    for other, days in ((old, 31), (young, 29), (theirs, 99)):
        other.write_bytes(b"x")
        os.utime(other, (time.time() - days * 86400,) * 2)
    os.utime(file, (time.time() - 99 * 86400,) * 2)  # its own: somebody has come back
    _, read = reads.of(lambda: fit(tiny_llama, tmp_path / "fits"))
    assert read < 2 * len(PAIRS)
    assert set(file.parent.iterdir()) == {young, theirs}


def test_what_stopped_fits_have_read_is_forgotten_when_asked_but_no_running_fit_and_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from legend_hf.cli import app

    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path))
    folder = default_folder()
    stopped, running = KeptDifferences(folder, "stopped"), KeptDifferences(folder, "running")
    stopped.__exit__()
    (folder / "mine.differences").write_text("mine")
    with running:
        assert forget(folder, unused_days=1.0) == 0
        assert stopped.path.exists()
        told = CliRunner().invoke(app, ["store", "prune", "--all"])
        assert "Forgot what 1 stopped fits had read" in told.output
        assert not stopped.path.exists()
        assert forget(folder, unused_days=0.0) == 0
        assert running.path.exists()
    assert forget(folder, unused_days=0.0) == 1
    assert [path.name for path in folder.iterdir()] == ["mine.differences"]


def test_two_at_once_are_refused_by_name(tiny_llama: Path, tmp_path: Path, reads: Reads):
    file = stopped(tiny_llama, tmp_path / "fits", reads, 1)
    import fcntl

    with file.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(
            OSError, match="the same fit is running in another process.*name another folder with `store=`"
        ):
            fit(tiny_llama, tmp_path / "fits")
    fit(tiny_llama, tmp_path / "fits")


def test_the_command_keeps_it_by_itself(
    tiny_llama: Path, tmp_path: Path, reads: Reads, monkeypatch: pytest.MonkeyPatch
):
    from legend_hf.cli import app
    from legend_hf.directions.kept import default_folder

    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))

    def command(*given: str) -> Any:
        arguments = [
            "fit",
            str(tmp_path / "pairs.jsonl"),
            "--model",
            str(tiny_llama),
            "--layer",
            "2",
            "--batch-tokens",
            str(SEVERAL),
            "--overwrite",
            *given,
        ]
        return CliRunner().invoke(app, [*arguments, "--output", str(tmp_path / "direction")])

    for given, kept in ((["--no-store"], 0), (["--store", str(tmp_path / "mine")], 2), ([], 2)):
        reads.stop_at = reads.blocks + 2
        first = command(*given)
        reads.stop_at = -1
        assert first.exit_code == 130
        assert ("run the same again to go on from there" in first.output) == bool(kept)
        second, read = reads.of(lambda given=given: command(*given))
        assert second.exit_code == 0, second.output
        assert read == 2 * len(PAIRS) * (BLOCKS - kept) / BLOCKS
    assert list(default_folder().iterdir()) == []
    assert "leave one out" in command("--no-store", "--store", str(tmp_path / "mine")).output
