"""Measures of margins and of directions, with intervals by prompt.

In: arrays of margins, probabilities, lengths, categories, graded scores or pair differences, and the number of each
row's prompt. Out: numbers.
Nothing here depends on the order of the rows. A number that the rows cannot give (none are there, all are equal) is
None, never NaN. This file knows no datasets, no texts and no models.

A preference dataset always names its preferred side "chosen", so a label that could be guessed is missing. The measures
that need one look at every pair both ways round: swapping a pair flips its label, the sign of its margin, and turns its
probability p into 1 - p. That is what random orientation flips do on average, without their luck.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from legend_hf.directions import resample
from legend_hf.directions.estimators import ESTIMATORS, NoDirectionError

# Draws of whole prompts behind the intervals of what is no plain mean.
CURVE_DRAWS = 500
# Below this, an interval would say more about the few prompts than about the margins.
FEWEST_PROMPTS = 10
PROBABILITY_BINS = 10
FEWEST_IN_BIN = 10
# A probability that was rounded to 0 in float32 costs this much likelihood, not infinitely much.
SMALLEST_PROBABILITY = 1e-7
# Halvings and bootstrap draws of the pairs that a direction is fitted on: for the mean difference, whose fits are all
# one matrix product, and for the other estimators.
HALVINGS, DIRECTION_DRAWS = 200, 200
SLOW_HALVINGS, SLOW_DIRECTION_DRAWS = 20, 60
# A pair's sign is stable if this share of the directions that were fitted without its prompt agree on it.
STABLE_SHARE = 0.95
FEWEST_DRAWS_WITHOUT = 10
ROWS_AT_ONCE = 4096
# The label of rows that have no category.
NO_CATEGORY = "(none)"

# A number of the rows, given how often each is counted `[n]`: a bootstrap draw only changes these counts.
Statistic = Callable[[np.ndarray], float]


@dataclass(frozen=True)
class Estimate:
    """A number and how far it can be trusted.

    Attributes:
        value: None where the rows cannot give it.
        interval: 95 %, by prompt, as `directions.resample` says; None with fewer than `FEWEST_PROMPTS` prompts, and for
            a mean without bounds where all values are equal. Never without width.
    """

    value: float | None
    interval: tuple[float, float] | None = None


UNKNOWN = Estimate(None)


@dataclass(frozen=True)
class Baseline:
    """What the length of the responses gets right by itself.

    Attributes:
        rule: Which response the better rule takes, `"shorter"` or `"longer"`; None without rows.
        share: What it gets right. Its interval knows that it is the better one of two.
        gain: How much more is right than that; its interval holds for whichever rule is the better one.
    """

    rule: str | None
    share: Estimate
    gain: Estimate


@dataclass(frozen=True)
class ProbabilityBin:
    """Rows about equally sure of their preferred side.

    Attributes:
        rows: How many.
        confidence: Their mean probability of the side that they prefer, 0.5 to 1.
        right: Share of them whose preferred side is the label's.
    """

    rows: int
    confidence: float
    right: Estimate


@dataclass(frozen=True)
class ProbabilityErrors:
    """How well probabilities keep what they promise.

    Attributes:
        rows: Rows with a probability.
        ece: Expected calibration error: the mean distance between confidence and share right, over bins of equal mass.
            0 is best. In its interval lies what it would be without the luck of these prompts; from 0 on, if exact
            probabilities may well show as much.
        ece_by_chance: What exactly right probabilities would show on average on as many prompts whose rows repeat each
            other as these do: small bins never are exact.
        brier: Mean squared distance between probability and label. 0.25 is that of a constant one half.
        nll: Mean negative log likelihood in nats. 0.693 is that of a constant one half.
        bins: From the least to the most sure.
    """

    rows: int
    ece: Estimate
    ece_by_chance: float
    brier: Estimate
    nll: Estimate
    bins: tuple[ProbabilityBin, ...]


@dataclass(frozen=True)
class Stability:
    """How much a direction depends on the pairs that it was fitted on.

    Attributes:
        estimator: How directions were fitted for this test.
        pairs: Pairs read.
        prompts: Distinct prompts among them.
        halves: Cosine between directions of two disjoint halves of the prompts: mean, and where 95 % of the random
            halvings lie.
        bootstrap: Cosine between the direction of all pairs and that of a bootstrap draw of the prompts; likewise.
        truth: Cosine to expect between the mean difference of all pairs and that of infinitely many such pairs; unknown
            for other estimators. Rough, and rather too low, where halves have little in common.
        signs_stable: Share of pairs whose margin has the same sign under 95 % of the directions that were fitted on
            draws without their prompt.
        given: Cosine between the direction of all pairs and the direction that was to be tested, if one was.
    """

    estimator: str
    pairs: int
    prompts: int
    halves: Estimate = UNKNOWN
    bootstrap: Estimate = UNKNOWN
    truth: Estimate = UNKNOWN
    signs_stable: float | None = None
    given: float | None = None


@dataclass(frozen=True)
class Coverage:
    """How rows spread over categories.

    Attributes:
        rows: Rows that have a category; all shares are of these.
        without: Rows that have none.
        categories: Distinct categories.
        effective: How many categories of equal size would be as varied: the exponential of the entropy of the shares
            (in nats). It equals `categories` where all are equal, and nears 1 where one has nearly all rows.
        largest: The category with the most rows, and its share. None without rows.
        thin: Categories of fewer than `FEWEST_PROMPTS` distinct prompts: too few for an interval.
        expected: How many categories were expected, None if that was not said.
        missing: Those of them without a row.
        unexpected: Categories that were not among them.
    """

    rows: int
    without: int
    categories: int
    effective: float | None
    largest: tuple[str, float] | None
    thin: tuple[str, ...]
    expected: int | None
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


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


def direction_stability(
    differences: np.ndarray,
    groups: np.ndarray,
    *,
    estimator: str = "mean_difference",
    seed: int = 0,
    vector: np.ndarray | None = None,
) -> Stability:
    """Fits directions on parts of the pairs and compares them.

    Args:
        differences: Vector of the chosen side minus vector of the rejected one, `[n, d_model]`.
        groups: Prompt of each pair `[n]`; pairs of one prompt are drawn and halved together.
        estimator: How to fit, of `estimators.ESTIMATORS`.
        seed: Of halvings and draws.
        vector: A direction `[d_model]` to compare with.

    Returns:
        The comparison; its numbers are None with fewer than `FEWEST_PROMPTS` prompts.
    """
    numbers = renumbered(groups)
    prompts = int(numbers.max(initial=-1)) + 1
    if prompts < FEWEST_PROMPTS:
        return Stability(estimator, len(differences), prompts)
    quick = estimator == "mean_difference"
    halvings, draws = (HALVINGS, DIRECTION_DRAWS) if quick else (SLOW_HALVINGS, SLOW_DIRECTION_DRAWS)
    rng = np.random.default_rng(seed)
    half = np.zeros((halvings, prompts), dtype=np.int64)
    for row in half:
        row[rng.permutation(prompts)[: prompts // 2]] = 1
    times = np.stack([np.bincount(rng.integers(prompts, size=prompts), minlength=prompts) for _ in range(draws)])
    weights = np.concatenate([np.ones((1, prompts), dtype=np.int64), half, 1 - half, times])  # [k, prompts]
    fitted = _weighted_sums(differences, weights, numbers) if quick else _fits(differences, weights, numbers, estimator)
    whole, first, second, drawn = np.split(fitted, [1, 1 + halvings, 1 + 2 * halvings])
    halves = _spread(_cosines(first, second))
    return Stability(
        estimator=estimator,
        pairs=len(differences),
        prompts=prompts,
        halves=halves,
        bootstrap=_spread(_cosines(drawn, whole[0])),
        truth=_to_truth(halves) if quick else UNKNOWN,
        signs_stable=_signs_stable(differences, numbers, times, drawn),
        given=None if vector is None else _finite(_cosines(whole, vector)[0]),
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
        value = _finite(statistic(np.ones(len(groups))))
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


def _spread(draws: np.ndarray) -> Estimate:
    """Mean of the draws and where 95 % of them lie; draws that gave no number are left out."""
    good = draws[np.isfinite(draws)]
    if 2 * len(good) <= len(draws):
        return UNKNOWN
    low, high = np.quantile(good, [0.025, 0.975])
    return Estimate(float(good.mean()), (float(low), float(high)))


def _finite(value: float) -> float | None:
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


def _weighted_sums(differences: np.ndarray, weights: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Sums of the differences under each weighting of the groups `[k, groups]`: `[k, d_model]`, float64.

    By blocks of rows: the differences may be a memory-mapped file.
    """
    sums = np.zeros((len(weights), differences.shape[1]))
    for start in range(0, len(differences), ROWS_AT_ONCE):
        block = slice(start, start + ROWS_AT_ONCE)
        sums += weights[:, numbers[block]].astype(np.float64) @ differences[block].astype(np.float64)
    return sums


def _fits(differences: np.ndarray, weights: np.ndarray, numbers: np.ndarray, estimator: str) -> np.ndarray:
    """Directions of the pairs, each taken as often as its group counts `[k, groups]`: `[k, d_model]`, NaN for none."""
    vectors = np.full((len(weights), differences.shape[1]), np.nan)
    for row, counts in enumerate(weights):
        taken = np.repeat(np.arange(len(differences)), counts[numbers])
        with suppress(NoDirectionError):
            vectors[row] = ESTIMATORS[estimator](differences[taken])
    return vectors


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of each row of `a [k, d]` with that of `b [k, d]`, or with `b [d]`; NaN where one has no length."""
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=-1))
    clipped: np.ndarray = np.clip(cosines, -1.0, 1.0)
    return clipped


def _to_truth(halves: Estimate) -> Estimate:
    """Cosine of the whole direction with the true one, from that of its halves.

    With noise of variance r per unit of signal in the whole, halves (2r each) have the cosine c = 1 / (1 + 2r), and the
    whole has 1 / sqrt(1 + r) with the truth, which is sqrt(2c / (1 + c)): Spearman and Brown's rule for test halves.
    """
    if halves.value is None or halves.interval is None:
        return UNKNOWN

    def rule(c: float) -> float:
        return float(np.sqrt(2 * max(c, 0.0) / (1 + max(c, 0.0))))

    return Estimate(rule(halves.value), (rule(halves.interval[0]), rule(halves.interval[1])))


def _signs_stable(differences: np.ndarray, numbers: np.ndarray, times: np.ndarray, drawn: np.ndarray) -> float | None:
    good = np.isfinite(drawn).all(axis=1)
    times, drawn = times[good], drawn[good]
    stable, judged = 0, 0
    for start in range(0, len(differences), ROWS_AT_ONCE):
        block = slice(start, start + ROWS_AT_ONCE)
        positive = differences[block].astype(np.float64) @ drawn.T > 0  # [b, draws]
        without = times[:, numbers[block]].T == 0  # [b, draws]
        draws = without.sum(axis=1)
        enough = draws >= FEWEST_DRAWS_WITHOUT
        share = (positive & without).sum(axis=1)[enough] / draws[enough]
        stable += int((np.maximum(share, 1 - share) >= STABLE_SHARE).sum())
        judged += int(enough.sum())
    return stable / judged if judged else None
