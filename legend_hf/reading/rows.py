"""Rows of texts become rows of token ids: the one encoder of all that read rows, whatever holds them.

In: rows out of a dataset of any format, what `formats` made of them, and whatever tokenises conversations. Out: the
token ids of each row's texts, or a `RowError` that blames the column that the row really has. This file knows neither
models nor what the texts are for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar, cast

from legend_hf.reading.formats import Conversation, Pair, RowError
from legend_hf.reading.templates import TextError

Row = Sequence[tuple[str, Conversation]]
"""Texts of one row, each with the name of the column, or of the place in it, that it was read from."""

ROWS_AT_ONCE = 1000

_T = TypeVar("_T")


def plain_rows(rows: Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    """The rows as they are stored, whatever format their dataset shows them in (a row of arrow's is a table)."""
    as_stored = getattr(rows, "with_format", None)
    return rows if as_stored is None else cast(Iterable[Mapping[str, Any]], as_stored(None))


def batches_of(
    rows: Iterable[Mapping[str, Any]], size: int = ROWS_AT_ONCE
) -> Iterator[tuple[int, Mapping[str, list[Any]]]]:
    """Columns of some rows at a time, each with the number of its first row; what a row lacks is None.

    Raises:
        RowError: A row is no mapping.
    """
    names: list[str] = []
    stored, first = iter(plain_rows(rows)), 0
    while chunk := list(islice(stored, size)):
        for number, row in enumerate(chunk, start=first):
            if not isinstance(row, Mapping):
                raise RowError(number, None, f"given {row!r:.60}; allowed is a dict with `chosen` and `rejected`")
            names += [name for name in row if name not in names]
        yield first, {name: [row.get(name) for row in chunk] for name in names}
        first += len(chunk)


def of_pairs(pairs: Sequence[Pair | RowError]) -> list[Row | RowError]:
    """Rows of two texts, the chosen one first."""
    return [
        pair if isinstance(pair, RowError) else tuple(zip(pair.columns, (pair.chosen, pair.rejected), strict=True))
        for pair in pairs
    ]


def of_responses(rows: Sequence[Sequence[Conversation] | RowError], column: str) -> list[Row | RowError]:
    """Rows of as many texts as they have responses.

    Args:
        rows: What `responses_from_batch` gave.
        column: The responses' column.
    """
    return [
        row if isinstance(row, RowError) else tuple((f"{column}[{i}]", one) for i, one in enumerate(row))
        for row in rows
    ]


def encode_rows(
    encode: Callable[[Sequence[Conversation]], Sequence[_T | TextError]],
    rows: Sequence[Row | RowError],
    *,
    first_row: int = 0,
) -> list[tuple[_T, ...] | RowError]:
    """Encodes the texts of all rows in one call; the first text of a row that cannot be read refuses the row.

    Args:
        encode: What encodes texts, such as `OpenReader.encode`; what it refuses it gives back as a `TextError`.
        rows: `[n]`; what was refused before stays refused.
        first_row: Number of the first row, for errors.

    Returns:
        What became of each row's texts, in their order, or why it cannot be read `[n]`.
    """
    encoded = iter(encode([text for row in rows if not isinstance(row, RowError) for _, text in row]))
    result: list[tuple[_T, ...] | RowError] = []
    for number, row in enumerate(rows, start=first_row):
        if isinstance(row, RowError):
            result.append(row)
            continue
        read = [next(encoded) for _ in row]
        bad = next((place for place, text in enumerate(read) if isinstance(text, TextError)), None)
        if bad is None:
            result.append(cast(tuple[_T, ...], tuple(read)))
        else:
            result.append(RowError(number, row[bad][0], str(read[bad])))
    return result
