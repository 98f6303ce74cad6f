"""The columns of an annotated dataset become arrays: margins, lengths and prompts, one `Margins` for each direction.

In: a split with margin columns, in memory or streaming, and texts. Out: arrays over the rows that count. Texts are read
for their lengths and prompts alone. This file measures nothing.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from legend_hf.margins.columns import OK
from legend_hf.margins.margin_fn import STATUS
from legend_hf.margins.origin import beside, marks_in
from legend_hf.reading.formats import (
    Columns,
    Conversation,
    Pair,
    RowError,
    opening,
    pairs_from_batch,
    response_length,
)
from legend_hf.reports.findings import Coverage, Margins
from legend_hf.reports.measure import NO_CATEGORY, coverage, renumbered

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

ROWS_AT_ONCE = 1000
MOST_CATEGORIES = 200
DIGEST = 32  # characters of a prompt's hash that are kept
EXCERPT = 80
# What follows `margin_` in columns that are not the margins of a direction of that name.
_KINDS = ("raw", "bin", "prob", "negative", "status", "direction")


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
    names: list[str] = list(split.column_names or ())
    suffixes = _suffixes(names, split.features or {}, {})
    parts: dict[str, list[float]] = {}
    numbers: list[int] = []
    longer: list[int] = []
    keys: list[bytes] = []
    categories: list[Any] = []
    worst: dict[str, list[tuple[float, int, tuple[str, str, str]]]] = {}
    marks: dict[str, set[object]] = {}
    total = 0
    for batch in split.with_format(None).iter(batch_size=ROWS_AT_ONCE):
        if not names:  # streaming, where the columns are known from the first rows
            names = list(batch)
        if not total:
            suffixes = _suffixes(names, split.features or {}, batch)
        if not suffixes:
            break
        if category_column is not None and category_column not in batch:
            raise ValueError(_no_category(category_column, names))
        kept: dict[int, Pair] = {}
        status = batch.get(STATUS)
        for i, pair in enumerate(pairs_from_batch(batch, columns or Columns(), first_row=total)):
            if isinstance(pair, RowError) or (status is not None and status[i] != OK):
                continue
            kept[i] = pair
            numbers.append(total + i)
            longer.append(response_length(pair.chosen) - response_length(pair.rejected))
            keys.append(prompt_key(pair.chosen))
        for suffix, columns_of_it in suffixes.items():
            where = f"split `{name}`"
            read = {c: [_number(batch[c][i], c, total + i, where) for i in kept] for c in columns_of_it}
            for column, values in read.items():
                parts.setdefault(column, []).extend(values)
            said = beside(f"margin{suffix}")
            marks.setdefault(suffix, set()).update(batch[said][i] if said in batch else None for i in kept)
            raws = read.get(f"margin_raw{suffix}", read[f"margin{suffix}"])
            _keep_worst(worst.setdefault(suffix, []), excerpts, kept, raws, read.values(), total)
        if category_column is not None:
            categories += [batch[category_column][i] for i in kept]
        total += len(next(iter(batch.values())))
    if not suffixes:
        raise ValueError(
            f"split `{name}` has no column `margin`; annotate it first: `annotate(dataset, direction)`. It has "
            + (", ".join(f"`{c}`" for c in names[:20]) or "no columns")
        )
    if category_column is not None and category_column not in names:
        raise ValueError(_no_category(category_column, names))
    feature = (split.features or {}).get(category_column)
    labels = None if category_column is None else _labels(categories, category_column, feature)
    arrays = {column: np.array(values, dtype=np.float64) for column, values in parts.items()}
    row, groups = np.array(numbers, dtype=np.int64), renumbered(np.array(keys))
    found = []
    for suffix, own_columns in suffixes.items():
        own = {column: arrays.get(column, np.empty(0)) for column in own_columns}
        margin_column, raw_column, prob_column, bin_column = (
            f"{kind}{suffix}" for kind in ("margin", "margin_raw", "margin_prob", "margin_bin")
        )
        good = np.isfinite(np.stack(list(own.values()))).all(axis=0)
        own = {column: values[good] for column, values in own.items()}
        probability = own.get(prob_column)
        if probability is not None and ((probability < 0) | (probability > 1)).any():
            raise ValueError(f"`{prob_column}` of split `{name}` has values outside [0, 1]; it must hold probabilities")
        raw = own.get(raw_column, own[margin_column])
        found.append(
            Margins(
                split=name,
                column=margin_column,
                total=total,
                invalid=int((~good).sum()),
                row=row[good],
                margin=own[margin_column],
                raw=raw,
                has_raw=raw_column in own,
                probability=probability,
                bin=own.get(bin_column),
                longer=np.array(longer, dtype=np.float64)[good],
                groups=groups[good],
                category=None if labels is None else labels[good],
                excerpts={-minus_row: texts for _, minus_row, texts in worst.get(suffix, [])},
                made_by=marks_in(marks.get(suffix, ())),
            )
        )
    return found


def coverage_of_pairs(
    rows: Sequence[Mapping[str, Any]],
    columns: Columns,
    category_column: str,
    feature: Any,
    expected: Sequence[str] | None,
) -> Coverage:
    """How pairs that can be read spread over categories."""
    entries = [entry for part in read_pairs(rows, columns) for entry in part]
    kept = [(row.get(category_column), pair) for row, pair in zip(rows, entries, strict=True) if isinstance(pair, Pair)]
    labels = _labels([value for value, _ in kept], category_column, feature)
    return coverage(labels, renumbered(np.array([prompt_key(pair.chosen) for _, pair in kept])), expected=expected)


def read_pairs(rows: Sequence[Mapping[str, Any]], columns: Columns) -> Iterator[list[Pair | RowError]]:
    """Reads rows of pairs, some at a time."""
    for first in range(0, len(rows), ROWS_AT_ONCE):
        chunk = rows[first : first + ROWS_AT_ONCE]
        names = list(dict.fromkeys(name for row in chunk for name in row))
        yield pairs_from_batch({name: [row.get(name) for row in chunk] for name in names}, columns, first_row=first)


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


def _suffixes(names: Sequence[str], features: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, list[str]]:
    """What follows `margin` in the names of margin columns, with the columns of each that hold its numbers.

    `""` is the only direction, `"_safety"` a named one. A column `margin_note` is nobody's: a direction's margin has
    its other columns beside it. Where there are none such, and no `margin`, columns of fractions are taken as they are.

    Args:
        names: Of all columns.
        features: Types of the columns, where they are known.
        batch: Of the first rows, by which a column is known otherwise.
    """
    named = [name.removeprefix("margin") for name in names if name.startswith("margin_")]
    # `margin_raw_safety` belongs to `margin_safety`; a direction that is itself called "raw" has a `margin_raw_raw`.
    free = [s for s in named if not any(s == f"_{kind}" or s.startswith(f"_{kind}_") for kind in _KINDS)]
    kinds = ("chosen_score", "rejected_score", *(f"margin_{kind}" for kind in _KINDS))
    own = [s for s in named if any(f"{kind}{s}" in names for kind in kinds)]
    found = ([""] if "margin" in names else []) + own
    found = found or [s for s in free if _holds(f"margin{s}", float, features, batch)]
    return {
        suffix: [f"margin{suffix}", *(c for c in (f"margin_raw{suffix}",) if c in names)]
        + [c for c in (f"margin_prob{suffix}", f"margin_bin{suffix}") if _holds(c, (int, float), features, batch)]
        for suffix in found
    }


def _holds(column: str, kind: Any, features: Mapping[str, Any], batch: Mapping[str, Any]) -> bool:
    """Whether a column holds numbers of a kind, by its type, or by its first value where that is not known."""
    if column in features:
        dtype = str(getattr(features[column], "dtype", ""))
        return dtype.startswith("float") or (kind is not float and dtype.startswith(("int", "uint")))
    first = next((value for value in batch.get(column, ()) if value is not None), None)
    return isinstance(first, kind) and not isinstance(first, bool)


def _number(value: Any, column: str, row: int, where: str) -> float:
    if value is None:
        return math.nan
    if isinstance(value, int | float | np.number):
        return float(value)
    raise ValueError(
        f"row {row} of {where} has `{column}` = {value!r:.60}, a {type(value).__name__}; a margin is one number a row: "
        "annotate the dataset again with `overwrite=True`, or rename the column"
    )


def expected_names(categories: Sequence[str], category_column: str | None) -> tuple[str, ...]:
    """The names that a category column should have, as `_labels` would write them."""
    if category_column is None:
        raise ValueError("`categories` are names that a column should have; name the column with `category_column=`")
    if isinstance(categories, str) or not len(categories):
        raise ValueError(f"`categories` is {categories!r}; give a list of the names to expect, or leave it out")
    return tuple(dict.fromkeys(str(name)[:EXCERPT] for name in categories))


def _no_category(column: str, names: Sequence[str]) -> str:
    return f"`category_column` is {column!r}; the dataset has " + ", ".join(f"`{c}`" for c in names[:30])


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


def prompt_key(conversation: Conversation) -> bytes:
    """Identity of a prompt, short enough to keep one for every row."""
    return hashlib.sha256(opening(conversation).encode("utf-8", "surrogatepass")).hexdigest()[:DIGEST].encode()


def _excerpt(pair: Pair) -> tuple[str, str, str]:
    prompt = str(pair.chosen.prompt[-1].get("content") or "") if pair.chosen.prompt else ""
    return (_short(prompt), _short(_said(pair.chosen)), _short(_said(pair.rejected)))


def _said(conversation: Conversation) -> str:
    return " ".join(str(m.get("content") or "") for m in conversation.response)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= EXCERPT else line[:EXCERPT] + "…"
