"""A dataset read by several processes of one machine, as many as are quickest.

In: splits, a transform, and which devices to use. Out: the transform's columns of each split as a table, in the order
of the rows; every row was checked before the first was read. On CPUs it is timed how many processes share the cores
best, on rows that are read anyway. This file knows neither caches nor what becomes of the columns.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any

import numpy as np

from legend_hf.margins.sharing import LEAST_ROWS, parts_of, processes_for
from legend_hf.margins.workers import Worker, handed_out, workers
from legend_hf.reading.formats import RowError
from legend_hf.reading.reader import parse_device

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

    from legend_hf.margins.transform import Transform

logger = logging.getLogger(__name__)

AUTO = "auto"
WORTH_SECONDS = 30.0
"""A shorter run is not worth more processes than one: each loads the models."""
_MEMORY = 0.8  # of what is free; the rest is the caller's

Part = tuple[str | None, int, int]
"""A split, the first of some rows of it, and their end."""


def check_devices(devices: str | Sequence[str], fn: Transform) -> list[str] | None:
    """The devices to use; None where processes are to share the CPUs as it turns out best.

    Raises:
        ValueError: They are none, or not on this machine; or the transform says its own.
    """
    import torch

    if fn.device is not None:
        raise ValueError(
            f"`devices` is {devices!r} and the transform reads on {fn.device!r} alone; leave out `device=` of the "
            "transform, or `devices`"
        )
    count = torch.cuda.device_count()  # asks the driver and leaves CUDA unused in this process
    there = [f"cuda:{i}" for i in range(count)]
    if devices == AUTO or list(devices) == [AUTO]:
        return there or None
    named = [] if isinstance(devices, str) else list(devices)
    for device in named:
        kind, index = parse_device(device)
        if not (kind == "cpu" or (kind == "cuda" and (index or 0) < count)):
            named = []
            break
    if not named:
        raise ValueError(
            f"`devices` is {devices!r}; allowed are 'auto' and a list with the device of each process, of those that "
            f"are here: {', '.join(map(repr, ['cpu', *there]))}; such as ['cpu', 'cpu'] for two"
        )
    return named


def read_on(
    devices: list[str] | None, splits: Mapping[str | None, Dataset], fn: Transform, *, most_rows: int
) -> dict[str | None, pa.Table]:
    """Checks every row, then reads all.

    Args:
        devices: One a process; None has processes share the CPUs.
        splits: Those without rows are passed over.
        fn: What reads.
        most_rows: In one call of the transform.

    Raises:
        RowError: A row cannot be read, unless they are skipped.
    """
    plain = {name: split.with_format("arrow") for name, split in splits.items() if len(split)}
    total = sum(map(len, plain.values()))
    if not plain:
        return {}
    cores = usable_cores()
    each = [cores] if devices is None else [max(1, cores // len(devices))]
    with workers(fn, ["cpu"] if devices is None else devices, each[0]) as running:
        tokens = _checked(running, plain, fn, most_rows, total)
        reading = _Reading(running, plain, tokens, most_rows, total)
        with reading.bar:
            if devices is None:
                reading.settle(fn, cores)
            reading.go(reading.rest())
    return reading.tables()


def _checked(
    running: list[Worker], splits: Mapping[str | None, Any], fn: Transform, most_rows: int, total: int
) -> dict[str | None, np.ndarray]:
    """Tokens of each row of each split; refuses the first row that cannot be read."""
    from datasets.utils import tqdm

    parts = [(name, first, min(first + most_rows, len(split)))
             for name, split in splits.items() for first in range(0, len(split), most_rows)]  # fmt: skip
    found: dict[Part, np.ndarray] = {}
    refused: dict[Part, RowError] = {}
    # Once one is refused no further part is begun; those before it are, and come to their end.
    to_come = takewhile(lambda part: fn.skips or not refused, parts)
    with tqdm(total=total, desc="Checking rows", unit="row") as bar:
        for part, looked in handed_out(running, to_come, lambda w, p: w.look(splits[p[0]][p[1] : p[2]], p[1])):
            refusal, found[part] = looked
            if refusal is not None:
                refused[part] = refusal
            bar.update(part[2] - part[1])
    if refused and not fn.skips:
        first = min(refused, key=parts.index)
        if first[0] is not None:
            refused[first].add_note(f"in split {first[0]!r}")
        raise refused[first]
    return {name: np.concatenate([found[p] for p in parts if p[0] == name]) for name in splits}


class _Reading:
    """What is read, what was read, and by whom."""

    def __init__(
        self,
        running: list[Worker],
        splits: Mapping[str | None, Any],
        tokens: Mapping[str | None, np.ndarray],
        most_rows: int,
        total: int,
    ) -> None:
        from datasets.utils import tqdm

        self.running, self.splits, self.tokens, self.most_rows = running, splits, tokens, most_rows
        self.bar = tqdm(total=total, desc="Annotating", unit="row")
        self.done: dict[Part, pa.Table] = {}
        self.begun = dict.fromkeys(splits, 0)  # rows of each split that were handed out, from its start

    def go(self, parts: Sequence[Part]) -> None:
        """Reads parts."""
        for part, made in handed_out(self.running, parts, lambda w, p: w.read(self.splits[p[0]][p[1] : p[2]])):
            self.done[part] = made
            self.bar.update(part[2] - part[1])

    def rest(self) -> list[Part]:
        """All that was not handed out, in parts; the longest first."""
        parts: list[Part] = []
        for name, tokens in self.tokens.items():
            start = self.begun[name]
            some = parts_of(tokens[start:], len(self.running), most_rows=self.most_rows)
            parts += [(name, start + first, start + end) for first, end in some]
            self.begun[name] = len(tokens)
        return sorted(parts, key=lambda part: -self._size([part]))

    def settle(self, fn: Transform, cores: int) -> None:
        """Finds by timing how many processes read fastest, and leaves so many."""
        few = self._few()
        self.go([*islice(few, 1)])  # a first forward pass takes longer
        first = self._seconds(few, 1, cores)
        left = sum(int(tokens[self.begun[name] :].sum()) for name, tokens in self.tokens.items())
        if first is None or first * left < WORTH_SECONDS:
            return
        known = {1: first}

        def seconds(processes: int, threads: int) -> float:
            if processes not in known:
                while len(self.running) < processes:
                    self.running.append(Worker(fn, "cpu", threads))
                for worker in self.running:
                    worker.threads(threads)
                self.go([*islice(few, processes)])
                known[processes] = self._seconds(few, processes, threads) or float("inf")
            return known[processes]

        free = _free_memory()
        most = None if free is None else 1 + int(_MEMORY * free / self.running[0].memory())
        best = processes_for(cores, seconds, most=most)
        for worker in self.running[best:]:
            worker.stop()
            worker.close()
        del self.running[best:]
        for worker in self.running:
            worker.threads(max(1, cores // best))
        logger.info("reading in %d processes of %d threads each", best, max(1, cores // best))

    def tables(self) -> dict[str | None, pa.Table]:
        """The columns of each split, in the order of its rows."""
        import pyarrow as pa

        ordered = sorted(self.done.items(), key=lambda item: item[0][1:])
        return {name: pa.concat_tables([made for part, made in ordered if part[0] == name]) for name in self.splits}

    def _few(self) -> Iterator[Part]:
        """Small parts from the start, as long as there are any."""
        for name, tokens in self.tokens.items():
            while self.begun[name] < len(tokens):
                first = self.begun[name]
                self.begun[name] = min(first + LEAST_ROWS, len(tokens))
                part = name, first, self.begun[name]
                if self._size([part]):
                    yield part
                else:  # known or refused: it says nothing of the time that a token takes
                    self.go([part])

    def _seconds(self, few: Iterator[Part], processes: int, threads: int) -> float | None:
        """How long a token takes all together; None if there are no rows left to find out."""
        parts = [*islice(few, 2 * processes)]
        if len(parts) < 2 * processes:
            self.go(parts)
            return None
        begun = time.perf_counter()
        self.go(parts)
        return (time.perf_counter() - begun) / max(1, self._size(parts))

    def _size(self, parts: Sequence[Part]) -> int:
        return sum(int(self.tokens[name][first:end].sum()) for name, first, end in parts)


def usable_cores() -> int:
    """Those that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def _free_memory() -> int | None:
    """Bytes that new processes can have, where that is known."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            free = next(line for line in file if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    return int(free.split()[1]) * 1024
