"""The next batch is made ready while the present one is read: in less time than both, and with the same result."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from builders import pair_rows
from datasets import Dataset, load_from_disk

from legend_hf import RowError, annotate
from legend_hf.margins import ahead
from legend_hf.margins.tables import made_of
from legend_hf.margins.transform import Transform
from legend_hf.reading.formats import Columns, Conversation, pairs_from_batch, response_length
from legend_hf.reading.rows import Row, of_pairs
from legend_hf.reading.templates import TextError
from legend_hf.scale import annotate_stream

annotating = import_module("legend_hf.margins.annotate")
EACH = 0.2  # seconds that a batch takes to be encoded, and again to be read
BATCHES = 8


@dataclass(frozen=True)
class Slow:
    """Reads without a model: the length of a response, slowly. What it is doing is noted."""

    each: float
    names: ClassVar = ("",)
    how_to_go_on: ClassVar = "it costs nothing to begin anew"
    doing: ClassVar[list[str]] = []

    def open(self, rank: int | None = None) -> Slow:
        return self

    def check(self, conversations: Sequence[Conversation]) -> list[None]:
        return [None] * len(conversations)

    def encode(self, conversations: Sequence[Conversation]) -> list[int | TextError]:
        self.doing.append(f"encode {threading.current_thread().name.partition('_')[0]}")
        time.sleep(self.each)
        lengths = [response_length(conversation) for conversation in conversations]
        return [length if length < 500 else TextError("too long") for length in lengths]

    def read(self, texts: Sequence[int]) -> dict[str, np.ndarray]:
        self.doing.append("read")
        time.sleep(self.each)
        return {"": np.array(texts, dtype=np.float64)}

    def not_finite(self, name: str) -> str:
        return "its length is no number"

    def deciding(self) -> list[Any]:
        return ["slow"]

    def state(self) -> tuple[dict[str, Any], tuple[bytes, ...]]:
        return {"each": self.each}, ()

    @classmethod
    def from_state(cls, values: Mapping[str, Any], vectors: Sequence[bytes]) -> Slow:
        return cls(**values)


class SlowFn(Transform):
    may_write: ClassVar = {"longer": "float32"}
    status = "longer_status"

    def __init__(self, each: float = EACH, *, on_error: str = "raise") -> None:
        super().__init__(Columns(), on_error=on_error, overwrite=False)
        self._read_with(Slow(each))

    def _rows(self, batch: Any, first_row: int) -> list[Row | RowError]:
        return of_pairs(pairs_from_batch(batch, self._columns, first_row=first_row))

    def _make(self, name: str, numbers: Sequence[np.ndarray | None], batch: Any) -> dict[str, Any]:
        pairs = np.array([(0.0, 0.0) if pair is None else pair for pair in numbers])
        return {"longer": (pairs[:, 0] - pairs[:, 1]).astype(np.float32)}


def rows(number: int = 2 * BATCHES) -> Dataset:
    """Each with a difference of lengths of its own."""
    return Dataset.from_list(
        [{**row, "chosen": row["chosen"] + "!" * i} for i, row in enumerate(pair_rows("x" * number))]
    )


EXPECTED = [len(row["chosen"]) - len(row["rejected"]) for row in rows()]


def none_ahead(batches, prepare):
    """The control: one after the other."""
    for batch in batches:
        yield batch, prepare(batch)


def streamed(given: Dataset, fn: Transform, folder: Any) -> list[float]:
    annotate_stream(given, fn, folder / "out", batch_size=2)
    return Dataset.from_parquet([str(path) for path in sorted((folder / "out").rglob("*.parquet"))])["longer"][:]


WAYS = {
    "annotate": lambda given, fn, folder: annotate(given, fn, batch_size=2)["longer"][:],
    "annotate_stream": streamed,
    # What workers and actors of a cluster are given.
    "made_of": lambda given, fn, folder: made_of(fn, given.data.table, batch_size=2)["longer"].to_pylist(),
}


def without_overlap(monkeypatch):
    for module in (annotating, import_module("legend_hf.margins.tables")):
        monkeypatch.setattr(module, "one_ahead", none_ahead)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "ahead" in thread.name]


@pytest.mark.parametrize("way", WAYS)
def test_encoding_and_reading_take_less_than_one_after_the_other(way, tmp_path, monkeypatch):
    WAYS[way](rows(2), SlowFn(0.0), tmp_path / "first")  # what is imported, is

    def took(where: str) -> float:
        Slow.doing.clear()
        begun = time.perf_counter()
        assert WAYS[way](rows(), SlowFn(), tmp_path / where) == EXPECTED
        return time.perf_counter() - begun

    beside = took("beside")
    assert (
        Slow.doing.count("read") == Slow.doing.count("encode legend") + Slow.doing.count("encode MainThread") == BATCHES
    )
    counts = [Slow.doing[:i].count("read") for i, what in enumerate(Slow.doing) if what != "read"]
    assert all(begun - read <= 2 for begun, read in enumerate(counts, start=1)), "one batch waits, and no more"
    assert not threads()
    without_overlap(monkeypatch)
    after = took("after")
    assert after >= 2 * BATCHES * EACH
    assert beside < 0.85 * after


@pytest.mark.parametrize("how", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("way", WAYS)
def test_what_stops_a_run_leaves_no_thread(way, how, tmp_path, monkeypatch):
    def read(self, texts):
        assert threads(), "the control"
        raise how("enough")

    monkeypatch.setattr(Slow, "read", read)
    with pytest.raises(how, match="enough"):
        WAYS[way](rows(), SlowFn(0.0), tmp_path)
    assert not threads()


def test_processes_are_forked_by_one_without_threads(monkeypatch):
    monkeypatch.setattr(annotating, "one_ahead", lambda *given: 1 / 0)
    assert annotate(rows(), SlowFn(0.0), batch_size=2, num_proc=2)["longer"][:] == EXPECTED
    with pytest.raises(ZeroDivisionError):  # the control
        annotate(rows(), SlowFn(0.0), batch_size=2)


def test_a_row_of_a_later_batch_is_named_and_what_is_before_it_was_read(tmp_path):
    bad = rows().add_item({**pair_rows("y")[0], "chosen": "z" * 501})
    Slow.doing.clear()
    with pytest.raises(RowError, match="row 16, column `chosen`: too long"):
        annotate_stream(bad, SlowFn(0.0), tmp_path, batch_size=2)
    assert Slow.doing.count("read") == BATCHES
    with pytest.raises(RowError, match="row 16, column `chosen`: too long"):
        made_of(SlowFn(0.0), bad.data.table.combine_chunks(), batch_size=2)
    assert made_of(SlowFn(0.0), bad.data.table.slice(0, 0)).to_pydict() == {"longer": []}


def test_rows_that_several_processes_left_out_are_read_from_where_they_begin(tmp_path):
    rows().save_to_disk(tmp_path)
    first = annotate(load_from_disk(tmp_path), SlowFn(0.0), batch_size=5, num_proc=2)
    files = sorted(entry["filename"] for entry in first.cache_files)
    assert len(files) == 2
    for file in files:  # the first half, whose last batch is a short one; then the second, which begins within one
        Path(file).unlink()
        Slow.doing.clear()
        assert annotate(load_from_disk(tmp_path), SlowFn(0.0), batch_size=5)["longer"][:] == EXPECTED
        assert Slow.doing.count("read") == 2, "and no others"


def test_an_error_comes_where_its_batch_would_have():
    def prepare(number):
        if number == 2:
            raise ValueError("not this one")
        return -number

    failing = ahead.one_ahead(range(5), prepare)
    assert [next(failing), next(failing)] == [(0, 0), (1, -1)]
    with pytest.raises(ValueError, match="not this one"):
        next(failing)
    assert list(ahead.one_ahead(range(3), str)) == [(0, "0"), (1, "1"), (2, "2")]
    assert list(ahead.one_ahead([], prepare)) == []
