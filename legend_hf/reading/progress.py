"""A bar that moves with every forward pass, wherever in a run it happens.

In: how much there is to read, said by whoever knows it, and the batches as they are read. Out: a bar of `datasets`,
which obeys the switches of `datasets`: texts, rows a second, skipped rows. In a terminal it moves within a batch of
`map`, in a line below that of `map`; in a log a line comes every few seconds. This file does not know what is read.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

from legend_hf.reading.stopping import worker_name

EVERY_SECONDS = 10.0
"""How often a bar is shown where each time is a new line, as in a log."""
DELAY_SECONDS = 1.0
"""What is done sooner needs no bar of its own inside of another."""


@dataclass(frozen=True)
class _Open:
    """A bar, how many rows its texts are of, and how many rows were skipped."""

    bar: Any
    rows: int
    skipped: int
    fixed: bool


_innermost: ContextVar[_Open | None] = ContextVar("_innermost", default=None)  # each thread has its own
_INTERVAL = 0.1  # seconds, of a terminal
_T = TypeVar("_T")


@contextmanager
def reading(
    rows: int, *, desc: str, texts: int | None = None, skipped: int = 0, rank: int | None = None
) -> Iterator[None]:
    """Shows what is read meanwhile.

    Args:
        rows: How many rows the texts are of.
        desc: What is read.
        texts: How many; None takes what is asked for while it is open, in a bar that is gone when it is done.
        skipped: Rows that were skipped so far.
        rank: Of the worker, which has a line of its own.
    """
    from datasets.utils import tqdm

    # In a notebook a bar is drawn in place, too, and nothing is a terminal.
    terminal = sys.stderr.isatty() or any(kind.__module__ == "tqdm.notebook" for kind in tqdm.__mro__)
    fixed = texts is not None
    every = _INTERVAL if terminal else EVERY_SECONDS
    worker = worker_name()
    if worker:  # another thread of the parent may have held the lock when it forked
        tqdm.set_lock(threading.RLock())
    settings: dict[str, Any] = {"mininterval": every, "unit": "text"}
    if not fixed:
        settings |= {"leave": False, "delay": DELAY_SECONDS if terminal else every}
        settings["position"] = (rank or 0) + 1 if terminal else 0  # a log has no lines to go back to
    if worker and (not terminal or not worker.startswith("Fork")):  # a log has the main process; a new one, no switches
        settings |= {"disable": True}
    bar = tqdm(total=texts or 0, desc=desc, **settings)
    before = _innermost.set(_Open(bar, rows, skipped, fixed))
    try:
        yield
    finally:
        _innermost.reset(before)
        bar.close()


def counted(batches: Iterable[tuple[list[int], _T]], texts: int) -> Iterator[tuple[list[int], _T]]:
    """Passes batches on, and moves the bar that is open by each that was dealt with.

    Args:
        batches: Places of the texts that were read, and what was read of them.
        texts: How many there are in all.
    """
    shown = _innermost.get()
    if shown is not None and not shown.fixed:
        shown.bar.total += texts
    for index, found in batches:
        yield index, found
        read(len(index))


def read(texts: int, *, known: bool = False) -> None:
    """Says that texts were read; or that they are `known`, which says nothing of how long the others take."""
    shown = _innermost.get()
    if shown is None or shown.bar.disable:
        return
    bar = shown.bar
    if known:
        bar.initial += texts
    new, seconds = bar.n + texts - bar.initial, bar.format_dict["elapsed"]
    said = [f"{shown.rows * new / bar.total / seconds:.1f} rows/s"] if new and bar.total and seconds else []
    bar.set_postfix_str(", ".join([*said, f"{shown.skipped} rows skipped"]), refresh=False)
    bar.update(texts)
