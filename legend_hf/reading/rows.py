"""Rows of texts become rows of token ids: the one encoder of all that read rows, whatever holds them.

In: what `formats` made of rows, and whatever tokenises conversations. Out: the token ids of each row's texts, or a
`RowError` that blames the column that the row really has. This file knows neither models nor what the texts are for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar, cast

from legend_hf.reading.formats import Conversation, Pair, RowError
from legend_hf.reading.templates import TextError

Row = Sequence[tuple[str, Conversation]]
"""Texts of one row, each with the name of the column, or of the place in it, that it was read from."""

_T = TypeVar("_T")


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


def encode_pairs(
    encode: Callable[[Sequence[Conversation]], Sequence[_T | TextError]],
    pairs: Sequence[Pair | RowError],
    *,
    on_error: str = "skip",
) -> list[tuple[Pair, tuple[_T, _T]]]:
    """The pairs that can be read, each with its encoded sides, the chosen one first.

    Args:
        encode: As for `encode_rows`.
        pairs: What `formats.read_pairs` gave of all rows, from the first one on.
        on_error: `"raise"` at the first pair that cannot be read, or `"skip"` it.

    Raises:
        RowError: As said.
    """
    kept: list[tuple[Pair, tuple[_T, _T]]] = []
    for pair, row in zip(pairs, encode_rows(encode, of_pairs(pairs)), strict=True):
        if isinstance(pair, Pair) and not isinstance(row, RowError):
            kept.append((pair, (row[0], row[1])))
        elif on_error == "raise" and isinstance(row, RowError):
            raise row
    return kept
