"""Which rows go to which worker, and how many workers: so that all end together, and no more run than help.

In: tokens of each row; how long a sample took. Out: parts of the rows, the longest first; a number of processes and
their threads. This file starts nothing and reads nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

LEAST_ROWS = 8
"""In one part: fewer fill no batch of a model."""
GAIN = 1.05
"""How much faster more processes must be to be worth their memory."""


def parts_of(tokens: np.ndarray | Sequence[int], workers: int, *, most_rows: int) -> list[tuple[int, int]]:
    """Parts of rows that stand together, so that what they share is read once, for workers that take one at a time.

    Each part has half of a worker's fair share of the tokens that are left, so parts get small towards the end; the
    longest is handed out first. Workers then end within a small part of each other, however long the rows are.

    Args:
        tokens: Of each row `[n]`.
        workers: How many take parts.
        most_rows: In one part.

    Returns:
        First row and end of each part, in the order in which they are handed out.
    """
    sums = np.concatenate([[0], np.cumsum(np.asarray(tokens, dtype=np.int64) + 1)])  # a row without tokens costs, too
    rows, first, parts = len(sums) - 1, 0, []
    while first < rows:
        share = (sums[-1] - sums[first]) / (2 * workers)
        end = int(np.searchsorted(sums, sums[first] + share, side="right")) - 1
        end = min(max(end, first + min(LEAST_ROWS, most_rows)), first + most_rows, rows)
        parts.append((first, end))
        first = end
    return sorted(parts, key=lambda part: sums[part[0]] - sums[part[1]])


def processes_for(cores: int, seconds: Callable[[int, int], float], *, most: int | None = None) -> int:
    """How many processes read a sample fastest, each with its share of the cores.

    Tried in doubling numbers, for as long as it helps: one process with all cores first.

    Args:
        cores: To be shared.
        seconds: How long a sample takes some processes with so many threads each.
        most: Processes that the memory holds.
    """
    best, known, tried = 1, seconds(1, cores), 2
    while tried <= min(cores, most or cores):
        now = seconds(tried, cores // tried)
        if now * GAIN >= known:
            break
        best, known, tried = tried, now, 2 * tried
    return best
