"""What the columns of every transform have in common: their names, and when they may be written.

In: names of columns and directions. Out: names, or a refusal that says what to do. This file knows neither rows nor
numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from legend_hf.reading.formats import RowError

OK = "ok"
"""The status of a row that was read."""


def suffixed(column: str, name: str) -> str:
    """The column of one direction out of several: `margin_safety`; of an only one, `margin`."""
    return f"{column}_{name}" if name else column


def check_on_error(on_error: str) -> None:
    """Refuses anything but `"raise"` and `"skip"`."""
    if on_error not in ("raise", "skip"):
        raise ValueError(f"`on_error` is {on_error!r}; allowed are 'raise', 'skip'")


def check_rank(rank: Any) -> None:
    """Refuses what `map(..., with_indices=True)` would pass in the place of a rank."""
    if rank is not None and not isinstance(rank, int):
        raise ValueError(
            f"`rank` is a {type(rank).__name__}: this looks like `map(..., with_indices=True)`, whose second "
            "argument is a list of row numbers; leave `with_indices` out, or use `with_rank=True`"
        )


def check_free(new: Sequence[str], there: Collection[str], *, overwrite: bool) -> None:
    """Refuses to write columns that exist, unless asked to.

    Raises:
        ValueError: A column exists and `overwrite` is False.
    """
    taken = [name for name in new if name in there]
    if taken and not overwrite:
        raise ValueError(
            f"the dataset already has {', '.join(f'`{name}`' for name in taken)}; rename or remove what is there, "
            "or pass `overwrite=True`"
        )


def check_distinct(each: Sequence[str], status: str, names: Collection[str]) -> None:
    """Refuses names of directions with which one column would mean two things.

    Args:
        each: The columns of one direction.
        status: The column of the whole row.
        names: Of the directions.
    """
    columns = [*each, status, *(suffixed(column, name) for name in names if name for column in each)]
    twice = sorted({column for column in columns if columns.count(column) > 1})
    if twice:
        raise ValueError(f"`direction` maps {list(names)}: `{twice[0]}` would mean two things; give other names")


def raise_first(refusals: Iterable[RowError | None]) -> None:
    """Raises the first refusal that there is."""
    for refusal in refusals:
        if refusal is not None:
            raise refusal


def first_refusal(row: Sequence[Any]) -> RowError | None:
    """Of what each reader made of one row: the first refusal."""
    return next((entry for entry in row if isinstance(entry, RowError)), None)
