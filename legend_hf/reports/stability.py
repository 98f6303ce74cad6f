"""How much does a direction depend on the pairs that it was fitted on? Cosines between fits of parts of them.

In: a direction and pairs, or differences of their vectors. Out: a `Stability`. Nothing here depends on the order of the
pairs. This file knows no margins.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np

from legend_hf.directions.choose import without_length
from legend_hf.directions.differences import log_lengths, read_differences
from legend_hf.directions.direction import Direction
from legend_hf.directions.estimators import ESTIMATORS, NoDirectionError
from legend_hf.reading.formats import Columns, prompt_key, read_pairs
from legend_hf.reading.reader import open_reader
from legend_hf.reading.rows import encode_pairs
from legend_hf.reports.findings import UNKNOWN, Estimate, Stability
from legend_hf.reports.measure import FEWEST_PROMPTS, finite_or_none, renumbered

# Halvings and bootstrap draws of the pairs that a direction is fitted on: for the mean difference, whose fits are all
# one matrix product, and for the other estimators.
HALVINGS, DIRECTION_DRAWS = 200, 200
SLOW_HALVINGS, SLOW_DIRECTION_DRAWS = 20, 60
# A pair's sign is stable if this share of the directions that were fitted without its prompt agree on it.
STABLE_SHARE = 0.95
FEWEST_DRAWS_WITHOUT = 10
ROWS_AT_ONCE = 4096


def stability_of(
    pairs: Iterable[Mapping[str, Any]],
    direction: Direction,
    *,
    columns: Columns | None = None,
    seed: int = 0,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> Stability:
    """Reads pairs as the direction's fit reads them, and tests how much a direction fitted like it depends on the draw.

    Pairs that cannot be read are left out.

    Args:
        pairs: A `Dataset` or rows in any accepted shape; chosen is the harmless side.
        direction: Its reader reads, its estimator fits, and its vector is what the pairs' direction is compared with.
        columns: Names of the columns, where they are not the usual ones.
        seed: Of the draws.
        device: Where to run; None takes a GPU when there is one.
        trust_remote_code: Run code that comes with the model.
    """
    runtime = direction.runtime(device, trust_remote_code=trust_remote_code)
    opened = open_reader(direction.reader, runtime)
    kept = encode_pairs(partial(opened.encode, fitting=True), [*read_pairs(pairs, columns)])
    groups = renumbered(np.array([prompt_key(pair.chosen) for pair, _ in kept]))
    lengths = log_lengths([pair for pair, _ in kept]) if direction.facts.debias == "length" else None
    (differences,) = read_differences(opened, [texts for _, texts in kept], [direction.reader.layer])
    known = direction.facts.estimator
    return direction_stability(
        without_length(differences, lengths),
        groups,
        estimator=known if known is not None and known in ESTIMATORS else "mean_difference",
        seed=seed,
        vector=direction.vector,
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
    halves = _middle(_cosines(first, second))
    return Stability(
        estimator=estimator,
        pairs=len(differences),
        prompts=prompts,
        halves=halves,
        bootstrap=_middle(_cosines(drawn, whole[0])),
        truth=_to_truth(halves) if quick else UNKNOWN,
        signs_stable=_signs_stable(differences, numbers, times, drawn),
        given=None if vector is None else finite_or_none(_cosines(whole, vector)[0]),
    )


def _middle(draws: np.ndarray) -> Estimate:
    """Mean of the draws and where 95 % of them lie; draws that gave no number are left out."""
    good = draws[np.isfinite(draws)]
    if 2 * len(good) <= len(draws):
        return UNKNOWN
    low, high = np.quantile(good, [0.025, 0.975])
    return Estimate(float(good.mean()), (float(low), float(high)))


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
