"""Numbers and names become the cells of a table, as a person reads them.

In: numbers with their intervals, and the figures of splits. Out: text. This file does not know what a figure means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeAlias, TypeVar

from legend_hf.hub import cards
from legend_hf.reports.blocks import Table
from legend_hf.reports.findings import Estimate


class OfSplit(Protocol):
    """What was found in one split."""

    @property
    def split(self) -> str:
        """Its name."""


Split = TypeVar("Split", bound=OfSplit)
Figure: TypeAlias = tuple[str, Callable[[Split], str], str]
"""A figure's name, how a split shows it, and what it says."""


def by_split(title: str, figures: Iterable[Figure[Split]], splits: Sequence[Split]) -> Table:
    """A figure a row, a split a column, and what the figure says."""
    rows = [(name, *(shown(split) for split in splits), meaning) for name, shown, meaning in figures]
    return Table((title, *(cards.as_code(split.split) for split in splits), "What it says"), rows, says=True)


def listed(names: Sequence[str], most: int) -> str:
    """The first names, and how many more there are: `a, b and 3 more`."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def bracketed(estimate: Estimate, *, signs: bool = False, percent: bool = False) -> str:
    """A number with its interval: `0.63 [0.58, 0.68]`."""
    if percent:
        shown = estimate.shown(lambda value: f"{100 * value:.1f}")
        return shown if estimate.value is None else f"{shown} %"
    return estimate.shown(signed if signs else "{:.3f}".format)


def signed(value: float | None) -> str:
    """Three digits, with the sign that a reader looks for; `+0.120`, `-12.3`."""
    if value is None:
        return "–"
    digits = 3 if abs(value) < 10 else 1
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")
