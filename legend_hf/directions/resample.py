"""Folds and intervals by prompt.

In: one key a row and one number a row. Out: fold numbers, means with intervals, errors of means. Rows of one prompt
always stay together: they repeat each other, and an interval that draws them apart promises too much. This file knows
no models and no texts.
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
    means, intervals = mean_intervals(values[:, None], groups, seed)
    return float(means[0]), (float(intervals[0, 0]), float(intervals[0, 1]))


def mean_intervals(values: np.ndarray, groups: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """As `mean_interval` for each column of `values [n, k]`, by the same draws: means `[k]`, intervals `[k, 2]`."""
    totals, sizes = _by_group(values, groups)  # [groups, k], [groups]
    count = len(sizes)
    rng = np.random.default_rng(seed)
    means = np.empty((DRAWS, values.shape[1]))
    for draw in range(DRAWS):
        times = np.bincount(rng.integers(count, size=count), minlength=count)
        means[draw] = times @ totals / (times @ sizes)
    return values.mean(axis=0), np.quantile(means, [0.025, 0.975], axis=0).T


def standard_errors(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Standard error `[k]` of the mean of each column of `values [n, k]`, rows of one group counted as repeats.

    The cluster-robust formula: where every group has one row it is the usual deviation / sqrt(n).
    """
    totals, _ = _by_group(values - values.mean(axis=0), groups)  # [groups, k]
    count = len(totals)
    if count < 2:
        return np.full(values.shape[1], np.inf)
    errors: np.ndarray = np.sqrt((totals**2).sum(axis=0) * count / (count - 1)) / len(values)
    return errors


def _by_group(values: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums of `values [n, k]` over each group, `[groups, k]`, and the groups' sizes `[groups]`."""
    count = int(groups.max()) + 1
    columns = [np.bincount(groups, weights=column, minlength=count) for column in values.T]
    return np.stack(columns, axis=1), np.bincount(groups, minlength=count)
