"""Folds and intervals by prompt.

In: one key a row and one number a row. Out: fold numbers, means with intervals. Rows of one prompt always stay
together: they repeat each other, and an interval that draws them apart promises too much. This file knows no models
and no texts.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

DRAWS = 2000


def groups_of(keys: Sequence[Hashable]) -> np.ndarray:
    """Numbers the keys by first appearance: `[n]` integers from 0."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def folds_of(groups: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Deals groups `[n]` to folds as evenly as their number allows: `[n]` fold numbers; a group is never split."""
    count = int(groups.max()) + 1
    order = np.random.default_rng(seed).permutation(count)
    fold_of_group = np.empty(count, dtype=np.int64)
    fold_of_group[order] = np.arange(count) % min(folds, count)
    return fold_of_group[groups]


def mean_interval(values: np.ndarray, groups: np.ndarray, seed: int) -> tuple[float, tuple[float, float]]:
    """Mean of `values [n]` and its 95 % percentile interval, from a bootstrap that draws whole groups."""
    count = int(groups.max()) + 1
    total = np.bincount(groups, weights=values, minlength=count)  # [groups]
    size = np.bincount(groups, minlength=count)  # [groups]
    rng = np.random.default_rng(seed)
    means = np.empty(DRAWS)
    for draw in range(DRAWS):
        times = np.bincount(rng.integers(count, size=count), minlength=count)
        means[draw] = times @ total / (times @ size)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(values.mean()), (float(low), float(high))
