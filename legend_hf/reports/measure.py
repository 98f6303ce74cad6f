"""Measures of margins, with intervals by prompt.

In: arrays of margins, probabilities, lengths, categories or graded scores, and the number of each row's prompt. Out:
numbers.
Nothing here depends on the order of the rows. A number that the rows cannot give (none are there, all are equal) is
None, never NaN. This file knows no datasets, no texts and no models.

A preference dataset always names its preferred side "chosen", so a label that could be guessed is missing. The measures
that need one look at every pair both ways round: swapping a pair flips its label, the sign of its margin, and turns its
probability p into 1 - p. That is what random orientation flips do on average, without their luck.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from legend_hf.directions import resample
from legend_hf.reports.findings import UNKNOWN, Baseline, Coverage, Estimate, ProbabilityBin, ProbabilityErrors

# Draws of whole prompts behind the intervals of what is no plain mean.
CURVE_DRAWS = 500
# Below this, an interval would say more about the few prompts than about the margins.
FEWEST_PROMPTS = 10
PROBABILITY_BINS = 10
FEWEST_IN_BIN = 10
# A probability that was rounded to 0 in float32 costs this much likelihood, not infinitely much.
SMALLEST_PROBABILITY = 1e-7
# The label of rows that have no category.
NO_CATEGORY = "(none)"

# A number of the rows, given how often each is counted `[n]`: a bootstrap draw only changes these counts.
Statistic = Callable[[np.ndarray], float]


def renumbered(groups: np.ndarray) -> np.ndarray:
    """Numbers the groups of rows `[n]` from 0 in the order of their values, so that no row's place matters."""
    return np.unique(groups, return_inverse=True)[1]


def share_of(values: np.ndarray, groups: np.ndarray) -> Estimate:
    """Mean of `values [n]` in [0, 1] with its interval by group."""
    return shares_of({"": values}, groups)[""]


def shares_of(columns: Mapping[str, np.ndarray], groups: np.ndarray) -> dict[str, Estimate]:
    """As `share_of` for several columns `[n]` of the same rows."""
    return _estimates(resample.share_intervals, columns, groups)


def means_of(columns: Mapping[str, np.ndarray], groups: np.ndarray) -> dict[str, Estimate]:
    """Means of several columns `[n]` without bounds, with their intervals by group."""
    return _estimates(resample.mean_intervals, columns, groups)


def beside_length(right: np.ndarray, shorter: np.ndarray, groups: np.ndarray) -> Baseline:
    """Compares what something gets right with what the length of the responses gets right, on the same rows.

    Args:
        right: How right it is, `[n]`, in [0, 1].
        shorter: How right the rule "the shorter, the better" is, `[n]`, in [0, 1]; its opposite has the rest.
        groups: Prompt of each row `[n]`.
    """
    if len(groups) == 0:
        return Baseline(None, UNKNOWN, UNKNOWN)
    numbers = renumbered(groups)
    own, share, interval = resample.better_rule(shorter, numbers)
    gain, gain_interval = resample.gain_over_rule(right, shorter, numbers)
    few = numbers.max() + 1 < FEWEST_PROMPTS
    return Baseline(
        rule="shorter" if own else "longer",
        share=Estimate(share, None if few else interval),
        gain=Estimate(gain, None if few else gain_interval),
    )


def agreement(margins: np.ndarray) -> np.ndarray:
    """1.0 where a margin `[n]` says what the label says, 0.0 where it contradicts it, 0.5 where it says nothing."""
    return (np.sign(margins) + 1) / 2


def at_the_start(margins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """TRL's loss of each margin `[n]` while both rewards are equal, and the size of its gradient.

    L = log(1 + e^m), |dL/d(r_chosen - r_rejected)| = sigmoid(m).
    """
    return np.logaddexp(0.0, margins), np.exp(-np.logaddexp(0.0, -margins))


def kendall_tau(scores: np.ndarray) -> np.ndarray:
    """Kendall's tau-a between an order, which is that of the columns, and the scores of each row.

    Of all pairs of columns, the share in which the earlier one scores higher minus the share in which the later one
    does. Equal scores count 0 and stay in the denominator: who cannot tell two apart has earned nothing by them, and a
    row of equal scores has 0, where tau-b has no value. Columns have no ties, so without equal scores the two are the
    same. Of two columns it is twice `agreement` minus 1.

    Args:
        scores: `[n, k]`, the best column first; NaN behind the last score of a shorter row.

    Returns:
        `[n]`, from -1 to 1: 1 where scores fall strictly. NaN for a row of fewer than two scores.
    """
    above = np.zeros(len(scores))
    for column in range(scores.shape[1] - 1):  # by columns, to hold no more than the scores themselves
        above += np.nansum(np.sign(scores[:, [column]] - scores[:, column + 1 :]), axis=1)
    count = (~np.isnan(scores)).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        tau: np.ndarray = above / (count * (count - 1) / 2)
    return tau


def coverage(labels: np.ndarray, groups: np.ndarray, *, expected: Sequence[str] | None = None) -> Coverage:
    """Counts how rows spread over categories, and which are lacking. Keeping such books is SAGE-RT's idea (2408.11851).

    Args:
        labels: Category of each row `[n]`, strings; `NO_CATEGORY` where a row has none.
        groups: Prompt of each row `[n]`.
        expected: Categories that should be there.
    """
    inside = labels != NO_CATEGORY
    names, codes, sizes = np.unique(labels[inside], return_inverse=True, return_counts=True)
    prompts = np.bincount(np.unique(np.stack([codes, groups[inside]]), axis=1)[0], minlength=len(names))
    shares = sizes / max(sizes.sum(), 1)
    found = [str(name) for name in names]
    wanted = [] if expected is None else list(dict.fromkeys(expected))
    most = int(sizes.argmax()) if found else 0
    return Coverage(
        rows=int(inside.sum()),
        without=int((~inside).sum()),
        categories=len(found),
        effective=float(np.exp(-(shares * np.log(shares)).sum())) if found else None,
        largest=(found[most], float(shares[most])) if found else None,
        thin=tuple(name for name, count in zip(found, prompts, strict=True) if count < FEWEST_PROMPTS),
        expected=None if expected is None else len(wanted),
        missing=tuple(name for name in wanted if name not in found),
        unexpected=() if expected is None else tuple(name for name in found if name not in wanted),
    )


def auc(margins: np.ndarray, groups: np.ndarray, seed: int) -> Estimate:
    """How often a pair the right way round has a larger margin than a pair the wrong way round; ties count half.

    Every pair is looked at both ways: the positives are `margins [n]`, the negatives `-margins`. Above the agreement
    with the labels, large margins are right more often than small ones.
    """
    both = np.concatenate([margins, -margins])
    codes = np.unique(both, return_inverse=True)[1]
    right, wrong, size = codes[: len(margins)], codes[len(margins) :], int(codes.max(initial=-1)) + 1

    def statistic(times: np.ndarray) -> float:
        above = np.bincount(right, times, size)
        below = np.bincount(wrong, times, size)
        wins = above @ (np.cumsum(below) - below / 2)
        return float(wins / times.sum() ** 2)

    return _estimate(statistic, groups, seed)


def pearson(x: np.ndarray, y: np.ndarray, groups: np.ndarray, seed: int) -> Estimate:
    """Linear correlation of `x [n]` and `y [n]`."""
    return _estimate(lambda times: _correlation(x, y, times), groups, seed, least=-1.0)


def spearman(x: np.ndarray, y: np.ndarray, groups: np.ndarray, seed: int) -> Estimate:
    """Correlation of the ranks of `x [n]` and `y [n]`; equal values share their mean rank."""
    x_codes, y_codes = renumbered(x), renumbered(y)

    def statistic(times: np.ndarray) -> float:
        return _correlation(_ranks(x_codes, times), _ranks(y_codes, times), times)

    return _estimate(statistic, groups, seed, least=-1.0)


def probability_errors(probabilities: np.ndarray, groups: np.ndarray, seed: int) -> ProbabilityErrors | None:
    """Compares probabilities that the chosen side is the better with the labels, every pair both ways round.

    Swapping a pair changes neither its squared error nor its likelihood. For the calibration error, both ways round of
    all pairs fall into mirrored bins of equal content, so one half of them is looked at: the way round that the
    probability prefers.

    Args:
        probabilities: `[n]`, in [0, 1].
        groups: Prompt of each row `[n]`.
        seed: Of the intervals.

    Returns:
        None without rows.
    """
    if len(probabilities) == 0:
        return None
    p = probabilities.astype(np.float64)
    confidence = np.maximum(p, 1 - p)
    right = agreement(p - 0.5)
    bins = _bins_of_equal_mass(confidence)
    count = int(bins.max()) + 1
    ece, by_chance = _calibration_error(confidence - right, bins, renumbered(groups), seed)
    likelihood = np.log(np.clip(p, SMALLEST_PROBABILITY, 1.0))
    return ProbabilityErrors(
        rows=len(p),
        ece=ece,
        ece_by_chance=by_chance,
        brier=share_of((1 - p) ** 2, groups),
        nll=means_of({"": -likelihood}, groups)[""],
        bins=tuple(
            ProbabilityBin(
                rows=int((bins == b).sum()),
                confidence=float(confidence[bins == b].mean()),
                right=share_of(right[bins == b], groups[bins == b]),
            )
            for b in range(count)
        ),
    )


def _estimates(
    intervals_of: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
    columns: Mapping[str, np.ndarray],
    groups: np.ndarray,
) -> dict[str, Estimate]:
    if len(groups) == 0:
        return dict.fromkeys(columns, UNKNOWN)
    numbers = renumbered(groups)
    means, intervals = intervals_of(np.stack([v.astype(np.float64) for v in columns.values()], axis=1), numbers)
    if numbers.max() + 1 < FEWEST_PROMPTS:
        intervals = np.full_like(intervals, np.nan)
    return {
        name: Estimate(float(mean), resample.interval_of(ends))
        for name, mean, ends in zip(columns, means, intervals, strict=True)
    }


def _estimate(statistic: Statistic, groups: np.ndarray, seed: int, *, least: float = 0.0) -> Estimate:
    """Value of a statistic on the rows as they are, and its interval.

    The error comes from draws of whole groups, the interval from the error as that of a share of the way from the
    statistic's least value to 1, its largest: draws of rows that are all in order never show any that is not.

    Args:
        statistic: Number of the rows given how often each counts.
        groups: Group of each row `[n]`.
        seed: Of the draws.
        least: The smallest value that it can have.
    """
    if len(groups) == 0:
        return UNKNOWN
    with np.errstate(divide="ignore", invalid="ignore"):
        value = finite_or_none(statistic(np.ones(len(groups))))
        numbers = renumbered(groups)
        count = int(numbers.max()) + 1
        if value is None or count < FEWEST_PROMPTS:
            return Estimate(value)
        rng = np.random.default_rng(seed)
        drawn = np.empty(CURVE_DRAWS)
        for draw in range(CURVE_DRAWS):
            times = np.bincount(rng.integers(count, size=count), minlength=count)
            drawn[draw] = statistic(times[numbers].astype(np.float64))
    drawn = drawn[np.isfinite(drawn)]
    if 2 * len(drawn) <= CURVE_DRAWS:
        return Estimate(value)
    way = 1.0 - least
    (ends,) = resample.wilson(np.array([(value - least) / way]), np.array([drawn.std() / way]), np.bincount(numbers))
    return Estimate(value, resample.interval_of(least + way * ends))


def _calibration_error(missing: np.ndarray, bins: np.ndarray, groups: np.ndarray, seed: int) -> tuple[Estimate, float]:
    """Mean distance between confidence and share right over bins, with its interval, and what chance makes of it.

    Chance: each prompt's rows keep what they miss, with a sign drawn for the prompt. So rows that repeat each other err
    together, as they do in the data. No gap of a bin is further from its truth than chance makes it, all bins taken
    together, so the mean distance is not either: the interval is the value plus and minus what chance stays below.

    Args:
        missing: Confidence minus what came true of each row `[n]`.
        bins: Bin of each row `[n]`.
        groups: Group of each row `[n]`, numbered from 0.
        seed: Of the signs.
    """
    count, prompts = int(bins.max()) + 1, int(groups.max()) + 1
    by_prompt = np.bincount(groups * count + bins, missing, prompts * count).reshape(prompts, count)
    value = float(np.abs(by_prompt.sum(axis=0)).sum()) / len(missing)
    rng = np.random.default_rng(seed)
    chance = np.array([np.abs(rng.choice((-1.0, 1.0), prompts) @ by_prompt).sum() for _ in range(CURVE_DRAWS)])
    chance = chance / len(missing)
    if prompts < FEWEST_PROMPTS or value == 0.0 == chance.max():
        return Estimate(value), float(chance.mean())
    far = float(np.quantile(chance, 0.975)) * resample.student(np.bincount(groups)) / resample.Z
    return Estimate(value, (max(value - far, 0.0), min(value + far, 1.0))), float(chance.mean())


def finite_or_none(value: float) -> float | None:
    """The value, or None where it is not finite."""
    return float(value) if np.isfinite(value) else None


def _ranks(codes: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Mean rank of each row `[n]`, given the dense codes of its value and how often each row counts."""
    size = np.bincount(codes, times)
    ranks: np.ndarray = (np.cumsum(size) - size / 2)[codes]
    return ranks


def _correlation(x: np.ndarray, y: np.ndarray, times: np.ndarray) -> float:
    total = times.sum()
    dx, dy = x - times @ x / total, y - times @ y / total
    spread_x, spread_y = times @ dx**2, times @ dy**2
    # Equal values leave rounding errors behind, whose correlation would be a number that means nothing.
    if spread_x <= 1e-20 * (times @ x**2) or spread_y <= 1e-20 * (times @ y**2):
        return float("nan")
    return float(np.clip((times * dx) @ dy / np.sqrt(spread_x * spread_y), -1.0, 1.0))


def _bins_of_equal_mass(values: np.ndarray) -> np.ndarray:
    """Bin of each row `[n]`, numbered from 0 without gaps; equal values share a bin."""
    count = max(1, min(PROBABILITY_BINS, len(values) // FEWEST_IN_BIN))
    edges = np.quantile(values, np.arange(1, count) / count)
    return renumbered(np.searchsorted(edges, values, side="right"))
