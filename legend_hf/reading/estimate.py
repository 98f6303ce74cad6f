"""What a run would read and what that would cost, from a look at its rows and a few forward passes.

In: batches of rows as they would be read, looked at and not yet read. Out: an Estimate. Nothing is written. This file
does not know what is made of what is read, nor where it would be kept.
"""

from __future__ import annotations

import random
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from legend_hf.reading.formats import RowError
from legend_hf.reading.forward import device_of
from legend_hf.reading.reader import OpenReader
from legend_hf.reading.rows import Row
from legend_hf.reading.templates import Tokens

SAMPLED = 12
"""Most forward passes that are timed."""


@dataclass(frozen=True)
class Refused:
    """Rows that cannot be read for like reasons.

    Attributes:
        rows: How many.
        example: The first of them: where it stands, and why it cannot be read.
    """

    rows: int
    example: str


@dataclass(frozen=True)
class Looked:
    """A batch of rows as it would be read.

    Attributes:
        kinds: Of the rows that can be read, as `kind_of` says.
        refused: The others, each with what stands before its number, such as its split.
        texts: How many texts the first have.
        unread: What each reader would read of them, in which layers, distinct texts only.
    """

    kinds: Sequence[str]
    refused: Sequence[tuple[str, RowError]]
    texts: int
    unread: Sequence[tuple[OpenReader, Sequence[int], Sequence[Tokens]]]


@dataclass(frozen=True)
class Estimate:
    """What a run would read, and what that would cost on this machine, in one process.

    Attributes:
        kinds: How many rows of each kind can be read: their columns, text or messages, where the prompt stands.
        refused: Rows that cannot be read, by reason, the most frequent first.
        texts: Texts of the rows that can be read.
        unread: Texts that the models would read; others repeat or are in the store.
        tokens: What the forward passes hold: shared beginnings once, padding included.
        passes: Forward passes.
        seconds: They take, by a sample; None where there is nothing to read.
        seconds_between: The same by the quickest and by the slowest pass of the sample.
        sampled: Forward passes in the sample.
        device: Where they ran.
        model_bytes: The models' weights in memory.
        peak_bytes: Most memory in use during the sample: this process's, or the GPU's; None where it cannot be told.
        kept_bytes: What the run holds of its readings until it ends, in memory or in a temporary file.
    """

    kinds: Mapping[str, int]
    refused: tuple[Refused, ...]
    texts: int
    unread: int
    tokens: int
    passes: int
    seconds: float | None
    seconds_between: tuple[float, float] | None
    sampled: int
    device: str
    model_bytes: int
    peak_bytes: int | None
    kept_bytes: int = 0

    @property
    def rows(self) -> int:
        """All of them."""
        return sum(self.kinds.values()) + sum(one.rows for one in self.refused)

    def to_text(self) -> str:
        """A line for each figure, and one for each kind and each reason."""
        bad = sum(one.rows for one in self.refused)
        lines = [f"{'rows':>10}  {self.rows:,}, of which {bad:,} cannot be read"]
        lines += [f"{count:>10,}  {kind}" for kind, count in self.kinds.items()]
        lines += [f"{one.rows:>10,}  cannot be read, such as {one.example}" for one in self.refused]
        lines.append(
            f"{'texts':>10}  {self.texts:,}, of which {self.unread:,} are to be read (others repeat or are known)"
        )
        lines.append(f"{'tokens':>10}  {self.tokens:,} in {_passes(self.passes)}, shared beginnings once")
        if self.seconds is not None and self.seconds_between is not None:
            low, high = map(_duration, self.seconds_between)
            lines.append(
                f"{'time':>10}  {_duration(self.seconds)} ({low} to {high}) of reading, by {_passes(self.sampled)} "
                f"on {self.device}"
            )
        peak = "" if self.peak_bytes is None else f", {_size(self.peak_bytes)} in use at most while sampling"
        kept = f", {_size(self.kept_bytes)} held until the end" if self.kept_bytes else ""
        lines.append(f"{'memory':>10}  {_size(self.model_bytes)} of weights{peak}{kept}")
        return "\n".join(lines)


def kind_of(row: Row, cells: Mapping[str, Any], prompt_column: str) -> str:
    """What a row is like: its columns, whether they hold text or messages, and where its prompt stands.

    Args:
        row: As it is read.
        cells: Columns of the row as it is stored.
        prompt_column: Name of the prompts' column.
    """
    columns = list(dict.fromkeys(name.partition("[")[0] for name, _ in row))
    conversation = row[0][1]
    beside = cells.get(prompt_column) not in (None, "", [])
    prompt = f"`{prompt_column}` beside" if beside else "prompt inside" if conversation.prompt else "no prompt"
    tools = ", with tools" if conversation.tools else ""
    what = "messages" if _has_messages(cells.get(columns[0])) else "text"
    return f"{' and '.join(f'`{name}`' for name in columns)}: {what}, {prompt}{tools}"


def estimate_reading(
    batches: Iterable[Looked], openeds: Sequence[OpenReader], *, sample_seconds: float, kept_bytes: int = 0
) -> Estimate:
    """Counts what batches would read, and times a sample of it.

    Args:
        batches: In the order of the run.
        openeds: The readers.
        sample_seconds: How long to read for the sample; one forward pass is always timed.
        kept_bytes: See `Estimate`.
    """
    kinds: Counter[str] = Counter()
    refused: dict[str, tuple[int, str]] = {}
    texts = unread = tokens = passes = 0
    drawn: list[_Drawn] = []
    rng = random.Random(0)
    for batch in batches:
        kinds.update(batch.kinds)
        texts += batch.texts
        for where, refusal in batch.refused:
            like = f"{refusal.column} {_PARTICULAR.sub('', refusal.reason)}"
            rows, example = refused.get(like, (0, f"{where}{refusal.unskippable}"))
            refused[like] = (rows + 1, example)
        for opened, layers, several in batch.unread:
            unread += len(several)
            for size, index in opened.plan(several):
                tokens, passes = tokens + size, passes + 1
                place = len(drawn) if len(drawn) < SAMPLED else rng.randrange(passes)  # each as likely as any other
                if place < SAMPLED:
                    drawn[place : place + 1] = [(size, opened, layers, [several[i] for i in index])]
    rng.shuffle(drawn)  # those that are timed before the time is up shall be any
    rates, device, peak = _timed(drawn, sample_seconds) if drawn else ([], _device(openeds), None)
    sizes, seconds = [size for size, _ in rates], [taken for _, taken in rates]
    each = sorted(taken / size for size, taken in rates)
    return Estimate(
        kinds=dict(kinds.most_common()),
        refused=tuple(Refused(rows, said) for rows, said in sorted(refused.values(), key=lambda one: -one[0])),
        texts=texts,
        unread=unread,
        tokens=tokens,
        passes=passes,
        seconds=tokens * sum(seconds) / sum(sizes) if rates else None,
        seconds_between=(tokens * each[0], tokens * each[-1]) if rates else None,
        sampled=len(rates),
        device=device,
        model_bytes=sum(_weights(model) for model in {id(o.model): o.model for o in openeds}.values()),
        peak_bytes=peak,
        kept_bytes=kept_bytes,
    )


_PARTICULAR = re.compile(r"'[^']*'|\"[^\"]*\"|\d+")
"""What differs between like reasons: quotations and numbers."""
_Drawn = tuple[int, OpenReader, Sequence[int], list[Tokens]]


def _timed(drawn: Sequence[_Drawn], most: float) -> tuple[list[tuple[int, float]], str, int | None]:
    """Tokens and seconds of some forward passes, where they ran, and the most memory that was in use."""
    device = _device([opened for _, opened, _, _ in drawn])
    rates: list[tuple[int, float]] = []
    begun = time.monotonic()
    for number, (size, opened, layers, texts) in enumerate([min(drawn, key=lambda one: one[0]), *drawn]):
        at = time.perf_counter()
        for _, vectors in opened.read(texts, layers):
            vectors.cpu()  # waits for it
        if number:  # the first one warms up
            rates.append((size, time.perf_counter() - at))
        if rates and time.monotonic() - begun > most:
            break
    return rates, device, _peak(device)


def _device(openeds: Sequence[OpenReader]) -> str:
    return ", ".join(dict.fromkeys(str(device_of(opened.model)) for opened in openeds))


def _peak(device: str) -> int | None:
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _weights(model: Any) -> int:
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())


def _has_messages(cell: Any) -> bool:
    if isinstance(cell, Mapping):
        return "role" in cell or any(map(_has_messages, cell.values()))
    return isinstance(cell, Sequence) and not isinstance(cell, str) and bool(cell) and _has_messages(cell[0])


def _passes(count: int) -> str:
    return f"{count:,} forward pass{'' if count == 1 else 'es'}"


def _duration(seconds: float) -> str:
    for size, unit in ((3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.1f} MiB"
