"""The columns of an annotated dataset become arrays: margins, lengths and prompts, one `Margins` for each direction.

In: a split with margin columns, in memory or streaming, and texts. Out: arrays over the rows that count. Texts are read
for their lengths and prompts alone. This file measures nothing.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from legend_hf.margins.columns import MARGIN_STATUS, OK
from legend_hf.margins.origin import beside, marks_in
from legend_hf.reading.formats import (
    Columns,
    Conversation,
    Pair,
    pairs_from_batch,
    prompt_key,
    read_pairs,
    response_length,
)
from legend_hf.reports.findings import Margins
from legend_hf.reports.measure import NO_CATEGORY, renumbered

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

ROWS_AT_ONCE = 1000
MOST_CATEGORIES = 200
EXCERPT = 80
# What follows `margin_` in columns that are not the margins of a direction of that name.
_KINDS = ("raw", "bin", "prob", "negative", "status", "direction")


@dataclass(frozen=True, eq=False)
class _Direction:
    """What was read of one direction's columns so far.

    Attributes:
        suffix: What follows `margin` in its margin column's name, see `_directions`.
        numbers: Each of its columns of numbers to the numbers of the rows read; the margins first.
        marks: What its column of marks says.
        worst: See `_keep_worst`.
    """

    suffix: str
    numbers: dict[str, list[float]]
    marks: set[object] = field(default_factory=set)
    worst: list[tuple[float, int, tuple[str, str, str]]] = field(default_factory=list)

    def column(self, kind: str) -> str:
        """The name of its column of a kind, `"margin_raw"`."""
        return f"{kind}{self.suffix}"


@dataclass(frozen=True, eq=False)
class _Rows:
    """What the rows read have `[n]`, whatever the direction: as in `Margins`."""

    split: str
    total: int
    row: np.ndarray
    longer: np.ndarray
    groups: np.ndarray
    category: np.ndarray | None


def read_margins(
    split: Dataset | IterableDataset,
    *,
    name: str = "train",
    columns: Columns | None = None,
    category_column: str | None = None,
    excerpts: int = 0,
) -> list[Margins]:
    """Reads one split's margins, lengths and prompts: one `Margins` for each margin column.

    Args:
        split: A dataset with margin columns.
        name: What to call it.
        columns: Names of the text columns.
        category_column: A column with one value a row.
        excerpts: Of how many rows to keep the beginnings of the texts, those with the lowest raw margins below 0.

    Raises:
        ValueError: It has no margins or no texts, a value is not one number, or there are too many categories.
    """
    batches = split.with_format(None).iter(batch_size=ROWS_AT_ONCE)
    first: dict[str, list[Any]] = next(batches, {})
    names: list[str] = list(split.column_names or first)  # streaming, where the first rows may have to tell
    features, where = split.features or {}, f"split `{name}`"
    directions = _directions(names, features, first)
    if not directions:
        raise ValueError(
            f"{where} has no column `margin`; annotate it first: `annotate(dataset, direction)`. It has "
            + (", ".join(f"`{c}`" for c in names[:20]) or "no columns")
        )
    if category_column is not None and category_column not in names:
        raise ValueError(
            f"`category_column` is {category_column!r}; the dataset has " + ", ".join(f"`{c}`" for c in names[:30])
        )
    row: list[int] = []
    longer: list[int] = []
    keys: list[str] = []
    categories: list[Any] = []
    total = 0
    for batch in chain([first] if first else [], batches):
        pairs = _pairs(batch, columns or Columns(), total)
        row += [total + i for i in pairs]
        longer += [response_length(pair.chosen) - response_length(pair.rejected) for pair in pairs.values()]
        keys += [prompt_key(pair.chosen) for pair in pairs.values()]
        for direction in directions:
            read = _numbers(batch, direction, pairs, total, where)
            direction.marks.update(_marks(batch, direction, pairs))
            raws = read.get(direction.column("margin_raw"), read[direction.column("margin")])
            _keep_worst(direction.worst, excerpts, pairs, raws, read.values(), total)
        if category_column is not None:
            categories += [batch[category_column][i] for i in pairs]
        total += len(next(iter(batch.values())))
    labels = None if category_column is None else _labels(categories, category_column, features.get(category_column))
    rows = _Rows(name, total, np.array(row, np.int64), np.array(longer, float), renumbered(np.array(keys)), labels)
    return [_margins(direction, rows) for direction in directions]


def categories_of(
    rows: Sequence[Mapping[str, Any]], columns: Columns, category_column: str, feature: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Category names, and the numbers of the prompts, of the pairs that can be read `[n]`.

    Args:
        rows: Pairs in any accepted shape.
        columns: Names of the text columns.
        category_column: Of the categories; a row without it has none.
        feature: Its type, where that is known.
    """
    entries = read_pairs(rows, columns)
    kept = [(row.get(category_column), pair) for row, pair in zip(rows, entries, strict=True) if isinstance(pair, Pair)]
    labels = _labels([value for value, _ in kept], category_column, feature)
    return labels, renumbered(np.array([prompt_key(pair.chosen) for _, pair in kept]))


def expected_names(categories: Sequence[str], category_column: str | None) -> tuple[str, ...]:
    """The names that a category column should have, as `_labels` would write them."""
    if category_column is None:
        raise ValueError("`categories` are names that a column should have; name the column with `category_column=`")
    if isinstance(categories, str) or not len(categories):
        raise ValueError(f"`categories` is {categories!r}; give a list of the names to expect, or leave it out")
    return tuple(dict.fromkeys(str(name)[:EXCERPT] for name in categories))


def _directions(names: Sequence[str], features: Mapping[str, Any], batch: Mapping[str, Any]) -> list[_Direction]:
    """The directions that columns are of, each with the names of its columns of numbers.

    The suffix `""` is that of the only direction, `"_safety"` that of a named one. A column `margin_note` is nobody's:
    a direction's margin has its other columns beside it. Where there are none such, and no `margin`, columns of
    fractions are taken as they are.

    Args:
        names: Of all columns.
        features: Types of the columns, where they are known.
        batch: Of the first rows, by which a column is known otherwise.
    """
    named = [name.removeprefix("margin") for name in names if name.startswith("margin_")]
    # `margin_raw_safety` belongs to `margin_safety`; a direction that is itself called "raw" has a `margin_raw_raw`.
    free = [s for s in named if not any(s == f"_{kind}" or s.startswith(f"_{kind}_") for kind in _KINDS)]
    beside_it = ("chosen_score", "rejected_score", *(f"margin_{kind}" for kind in _KINDS))
    own = [s for s in named if any(f"{kind}{s}" in names for kind in beside_it)]
    found = ([""] if "margin" in names else []) + own
    found = found or [s for s in free if _holds(f"margin{s}", float, features, batch)]

    def has(kind: str, column: str) -> bool:
        if kind in ("margin", "margin_raw"):
            return column in names
        return _holds(column, (int, float), features, batch)

    kinds = ("margin", "margin_raw", "margin_prob", "margin_bin")
    return [_Direction(s, {f"{kind}{s}": [] for kind in kinds if has(kind, f"{kind}{s}")}) for s in found]


def _holds(column: str, kind: Any, features: Mapping[str, Any], batch: Mapping[str, Any]) -> bool:
    """Whether a column holds numbers of a kind, by its type, or by its first value where that is not known."""
    if column in features:
        dtype = str(getattr(features[column], "dtype", ""))
        return dtype.startswith("float") or (kind is not float and dtype.startswith(("int", "uint")))
    first = next((value for value in batch.get(column, ()) if value is not None), None)
    return isinstance(first, kind) and not isinstance(first, bool)


def _pairs(batch: Mapping[str, Any], columns: Columns, first: int) -> dict[int, Pair]:
    """The pairs of a batch that count, by their numbers in it: those that can be read and were annotated."""
    status = batch.get(MARGIN_STATUS)
    return {
        i: pair
        for i, pair in enumerate(pairs_from_batch(batch, columns, first_row=first))
        if isinstance(pair, Pair) and (status is None or status[i] == OK)
    }


def _numbers(
    batch: Mapping[str, Any], direction: _Direction, rows: Collection[int], first: int, where: str
) -> dict[str, list[float]]:
    """Reads a direction's numbers of some rows of a batch, by column."""
    read = {c: [_number(batch[c][i], c, first + i, where) for i in rows] for c in direction.numbers}
    for column, values in read.items():
        direction.numbers[column].extend(values)
    return read


def _number(value: Any, column: str, row: int, where: str) -> float:
    """One number, NaN where there is none."""
    if value is None:
        return math.nan
    if isinstance(value, int | float | np.number):
        return float(value)
    raise ValueError(
        f"row {row} of {where} has `{column}` = {value!r:.60}, a {type(value).__name__}; a margin is one number a row: "
        "annotate the dataset again with `overwrite=True`, or rename the column"
    )


def _marks(batch: Mapping[str, Any], direction: _Direction, rows: Collection[int]) -> set[object]:
    """What some rows of a batch say of who made a direction's margins; None is a row that does not say."""
    values = batch.get(beside(direction.column("margin")) or "")
    return {None if values is None else values[i] for i in rows}


def _labels(values: Sequence[Any], column: str, feature: Any) -> np.ndarray:
    """Category names `[n]`, from strings, whole numbers, truth values or class labels."""
    names = getattr(feature, "names", None)
    labels = []
    for value in values:
        if isinstance(value, float | list | dict):
            raise ValueError(
                f"`category_column` {column!r} holds {value!r:.60}, a {type(value).__name__}; name a column with one "
                "string, whole number or truth value a row"
            )
        known = names is not None and isinstance(value, int) and 0 <= value < len(names)
        labels.append(NO_CATEGORY if value is None else str(names[value] if known and names else value)[:EXCERPT])
    distinct = len(set(labels))
    if distinct > MOST_CATEGORIES:
        raise ValueError(
            f"`category_column` {column!r} has {distinct} values; allowed are up to {MOST_CATEGORIES}: name a column "
            "of categories, not of texts or identifiers"
        )
    return np.array(labels, dtype=np.str_)


def _keep_worst(
    heap: list[tuple[float, int, tuple[str, str, str]]],
    most: int,
    pairs: Mapping[int, Pair],
    raws: Sequence[float],
    numbers: Iterable[Sequence[float]],
    first: int,
) -> None:
    """Keeps the texts of the lowest raw margins below 0, and of equal ones those of the first rows.

    Args:
        heap: Of (-margin, -row, texts); its first one is the next to go.
        most: How many to keep.
        pairs: The rows of a batch that can be read, by their numbers in it.
        raws: Their raw margins `[n]`.
        numbers: All their numbers; a row with one that is not finite is left out of the report.
        first: Number of the batch's first row.
    """
    finite = np.isfinite(np.array(list(numbers))).all(axis=0)
    for (i, pair), raw, good in zip(pairs.items(), raws, finite, strict=True):
        rank = (-raw, -(first + i))
        if raw < 0 and good and most and (len(heap) < most or rank > heap[0][:2]):
            entry = (*rank, _excerpt(pair))
            heapq.heappush(heap, entry) if len(heap) < most else heapq.heapreplace(heap, entry)


def _excerpt(pair: Pair) -> tuple[str, str, str]:
    prompt = str(pair.chosen.prompt[-1].get("content") or "") if pair.chosen.prompt else ""
    return (_short(prompt), _short(_said(pair.chosen)), _short(_said(pair.rejected)))


def _said(conversation: Conversation) -> str:
    return " ".join(str(m.get("content") or "") for m in conversation.response)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= EXCERPT else line[:EXCERPT] + "…"


def _margins(direction: _Direction, rows: _Rows) -> Margins:
    """The rows whose numbers are all finite."""
    read = {column: np.array(values, dtype=np.float64) for column, values in direction.numbers.items()}
    good = np.isfinite(np.stack(list(read.values()))).all(axis=0)
    own = {column: values[good] for column, values in read.items()}
    margin, raw, prob = (direction.column(kind) for kind in ("margin", "margin_raw", "margin_prob"))
    if prob in own and ((own[prob] < 0) | (own[prob] > 1)).any():
        raise ValueError(f"`{prob}` of split `{rows.split}` has values outside [0, 1]; it must hold probabilities")
    return Margins(
        split=rows.split,
        column=margin,
        total=rows.total,
        invalid=int((~good).sum()),
        row=rows.row[good],
        margin=own[margin],
        raw=own.get(raw, own[margin]),
        has_raw=raw in own,
        probability=own.get(prob),
        bin=own.get(direction.column("margin_bin")),
        longer=rows.longer[good],
        groups=rows.groups[good],
        category=None if rows.category is None else rows.category[good],
        excerpts={-minus_row: texts for _, minus_row, texts in direction.worst},
        made_by=marks_in(direction.marks),
    )
