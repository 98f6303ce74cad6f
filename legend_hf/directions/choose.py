"""Which layer, which estimator: tried on pairs held out by prompt.

In: differences `[layers, n, d_model]`, the pairs' prompts, maybe their sources. Out: held-out raw margins of every
layer and estimator that was tried, the choice, and what the choice scores on pairs that had no part in it. This file
knows no texts and no models.

Pairs are dealt to five folds by prompt. One direction is fitted without each fold, and one without each two: fifteen
fits, which give a cross-validation and, for each fold, one among the other four that has never seen it. Where the
pairs' sources are told, each of these fits is made once more without each source, and what is judged by is its pairs:
what does best on pairs of a kind that was not fitted on need not be what does best on more of the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from legend_hf.directions import resample
from legend_hf.directions.estimators import ESTIMATORS, NoDirectionError, Sums, unit, whitened_from

Differences = np.ndarray | Sequence[np.ndarray]
"""`[layers, n, d_model]`, or the layers one after the other."""
FOLDS = 5
# With fewer prompts the order of layers is noise. On forty pairs of twenty prompts, where trying begins, the layer
# chosen as below scored half a point less than the middle one, and the best of cross-validation two points.
FEWEST_PROMPTS = 20
# What `estimator="auto"` tries, the preferred first: with few pairs the whitened direction is the mean difference
# anyway. A logistic one scores as the whitened does, within a tenth of a point from 40 to 1400 pairs, and takes longer;
# the first principal direction scores five points less on preference pairs.
TRIED = ("whitened", "mean_difference")
# Estimators that are more than a mean are tried on so many layers, those whose mean difference does best.
RUNNING = 8


@dataclass(frozen=True, eq=False)
class Trial:
    """One layer and estimator, and what it says of pairs held out.

    Attributes:
        place: Of the layer among those given.
        estimator: Its name.
        raw: Raw margins `[n, folds]`. In column k: of a direction fitted without fold k and without the pair's own
            fold. So where k is the pair's own fold, this is plain cross-validation; elsewhere it is one that never
            saw fold k. NaN where that was not asked for.
        apart: The same, of directions that were fitted without the pair's source too; None where sources are not told.
    """

    place: int
    estimator: str
    raw: np.ndarray
    apart: np.ndarray | None = None

    @property
    def judged(self) -> np.ndarray:
        """The margins `[n, folds]` that a choice goes by."""
        return self.raw if self.apart is None else self.apart

    def held_out(self, folds: np.ndarray) -> np.ndarray:
        """Raw margins `[n]` of directions fitted without the pair's fold."""
        own: np.ndarray = self.raw[np.arange(len(folds)), folds]
        return own


@dataclass(frozen=True, eq=False)
class Choice:
    """What was chosen and what was tried.

    Attributes:
        place: Of the chosen layer among those given.
        estimator: The chosen one.
        raw: Cross-validated raw margins `[n]` of the chosen two: one scale, but picked for the best accuracy.
        unbiased: Raw margins `[n]`, each of the layer and estimator chosen, and of the direction fitted, without the
            pair's fold. Their signs measure accuracy honestly; their scales may be those of several layers.
        comparable: The same on one scale `[n]`: where those of a fold are of another layer or estimator than the chosen
            two, multiplied to be as large as theirs. How sure a margin may be is to be learned from these: of margins
            that a layer was picked for, too many are right.
        nested: Whether anything was chosen inside the folds; otherwise all three are the same.
        tried: Everything that was tried.
    """

    place: int
    estimator: str
    raw: np.ndarray
    unbiased: np.ndarray
    comparable: np.ndarray
    nested: bool
    tried: tuple[Trial, ...]


def choose(
    differences: Differences,
    layers: Sequence[int],
    estimators: Sequence[str],
    groups: np.ndarray,
    *,
    middle: float,
    seed: int,
    lengths: np.ndarray | None = None,
    sources: np.ndarray | None = None,
) -> Choice:
    """Tries layers and estimators on held-out prompts and takes one of each.

    Taken is, of all whose accuracy is within one standard error of the best, the layer nearest the middle of the
    model and there the estimator that was named first. An accuracy is averaged with its neighbours' before, and the
    error is that of the difference to the best, by prompt. So a few pairs, which cannot tell layers apart, get the
    middle layer, the best guess without data, and many pairs get the layer that they show to be better.

    Where sources are told, an accuracy is that on each source of directions fitted on the others, every source counting
    the same. The raw margins of the choice are those of directions fitted on all of them, either way.

    Args:
        differences: `[layers, n, d_model]`.
        layers: What each is the index of, rising.
        estimators: Names, the preferred first.
        groups: The pairs' prompts, numbered, `[n]`.
        middle: The layer to prefer.
        seed: Of the folds.
        lengths: Length differences `[n]` whose effect every fit is to leave out, see `without_length`.
        sources: Where each pair is from, numbered, `[n]`, at least two; see `unseen_sources`.

    Returns:
        The choice. With one layer and one estimator nothing is chosen, only cross-validated.
    """
    folds = resample.folds_of(groups, FOLDS, seed)
    nested = len(layers) * len(estimators) > 1
    count = int(folds.max()) + 1
    left_out = [(k,) for k in range(count)] + (list(combinations(range(count), 2)) if nested else [])

    def try_out(place: int, estimator: str) -> Trial:
        layer = differences[place]
        vectors = directions_without(layer, folds, left_out, estimator, lengths)
        raw = _margins(layer, folds, left_out, vectors)
        if sources is None or not nested:
            return Trial(place, estimator, raw)
        apart = np.empty_like(raw)
        for source in np.unique(sources):
            own = sources == source
            rest = None if lengths is None else lengths[~own]
            vectors = directions_without(layer[~own], folds[~own], left_out, estimator, rest)
            apart[own] = _margins(layer[own], folds[own], left_out, vectors)
        return Trial(place, estimator, raw, apart)

    tried: dict[tuple[int, str], Trial] = {}
    running: Sequence[int] = range(len(layers))
    if len(layers) > RUNNING and set(estimators) != {"mean_difference"}:
        # The mean difference needs no covariance, so all layers can be compared by it.
        scout = [try_out(place, "mean_difference") for place in running]
        tried.update({(trial.place, trial.estimator): trial for trial in scout})
        scout = _telling(scout)
        running = sorted({place for k in (None, *range(count)) for place in _best_layers(scout, folds, k, sources)})
    for estimator in estimators:
        for place in running:
            if (place, estimator) not in tried:
                tried[place, estimator] = try_out(place, estimator)
    everything = tuple(tried.values())
    if not nested:
        raw = everything[0].held_out(folds)
        return Choice(0, estimators[0], raw, raw, raw, False, everything)

    telling = _telling(everything)

    def pick(k: int | None) -> Trial:
        """The choice that pairs outside fold k make; of all pairs where k is None."""
        candidates = telling
        if len(running) < len(layers):
            best = _best_layers([t for t in telling if t.estimator == "mean_difference"], folds, k, sources)
            candidates = [t for t in telling if t.place in best and t.estimator in estimators]
        return _pick(candidates, layers, estimators, folds, groups, k, middle, sources)

    final = pick(None)
    raw, unbiased, comparable = final.held_out(folds), np.empty(len(groups)), np.empty(len(groups))
    for k in range(count):
        inside, picked = folds == k, pick(k)
        unbiased[inside] = picked.raw[inside, k]
        comparable[inside] = unbiased[inside] * _times_as_large(raw, picked.held_out(folds))
    return Choice(final.place, final.estimator, raw, unbiased, comparable, True, everything)


def unseen_sources(
    differences: Differences,
    layers: Sequence[int],
    estimators: Sequence[str],
    groups: np.ndarray,
    sources: np.ndarray,
    *,
    middle: float,
    seed: int,
    lengths: np.ndarray | None = None,
) -> np.ndarray:
    """Raw margins `[n]`, each of the layer and estimator chosen, and the direction fitted, without the pair's source.

    Neither choice nor direction has seen the prompts of that source, in any other. Of three sources or more the choice
    among the others is one by sources again, of two it is one by prompts. NaN where too little is left to fit on.

    Args: as `choose` has them.
    """
    raw = np.full(len(groups), np.nan)
    for source in np.unique(sources):
        own = sources == source
        rest = ~np.isin(groups, groups[own])
        prompts, others = resample.groups_of(groups[rest].tolist()), resample.groups_of(sources[rest].tolist())
        if len(np.unique(prompts)) < 2:
            continue
        some = None if lengths is None else lengths[rest]
        choice = choose(
            _Layers(differences, rest), layers, estimators, prompts,
            middle=middle, seed=seed, lengths=some, sources=others if len(np.unique(others)) > 1 else None,
        )  # fmt: skip
        layer = differences[choice.place]
        with suppress(NoDirectionError):
            raw[own] = layer[own] @ ESTIMATORS[choice.estimator](without_length(layer[rest], some))
    return raw


@dataclass(frozen=True, eq=False)
class _Layers(Sequence[np.ndarray]):
    """Some pairs of every layer, copied when a layer is asked for: all layers may be more than the memory holds."""

    differences: Differences
    rows: np.ndarray

    def __getitem__(self, place: Any) -> Any:
        return self.differences[place][self.rows]

    def __len__(self) -> int:
        return len(self.differences)


def directions_without(
    differences: np.ndarray,
    folds: np.ndarray,
    left_out: Sequence[tuple[int, ...]],
    estimator: str,
    lengths: np.ndarray | None = None,
) -> np.ndarray:
    """Fits one direction for each set of folds to leave out: `[sets, d_model]`, zeros where there is no direction.

    Args:
        differences: `[n, d_model]`.
        folds: `[n]`.
        left_out: Sets of folds.
        estimator: Its name.
        lengths: See `without_length`.
    """
    n, width = differences.shape
    outer = estimator == "whitened" and n >= width
    sums = None
    if outer or estimator == "mean_difference":
        count = max(_count(left_out), int(folds.max()) + 1)  # folds that no set leaves out count too
        sums = [Sums.of(differences[folds == k], outer=outer) for k in range(count)]
    vectors = np.zeros((len(left_out), width))
    for row, without in enumerate(left_out):
        keep = ~np.isin(folds, without)
        if not keep.any():
            continue
        axis = None if lengths is None else length_axis(differences[keep], lengths[keep])
        try:
            if sums is None:
                vectors[row] = ESTIMATORS[estimator](_across(differences[keep], axis))
                continue
            kept = [fold for k, fold in enumerate(sums) if k not in without]
            total = sum(kept[1:], start=kept[0])
            total = total if axis is None else total.across(axis)
            vectors[row] = whitened_from(total) if outer else unit(total.total)
        except NoDirectionError:
            # A layer where the sides read alike (the embedding of a shared last token, say) tells nothing: 0.
            continue
    return vectors


def length_axis(differences: np.ndarray, lengths: np.ndarray) -> np.ndarray | None:
    """Along what a longer response differs: the regression of differences on length differences, as a unit vector.

    About their means, so that the labels are held fixed: what shorter responses owe to being the safer ones is no
    effect of length.

    Args:
        differences: `[n, d_model]`.
        lengths: Length differences `[n]`, chosen minus rejected, best of the logarithms: what ten characters more
            change depends on how many there are.

    Returns:
        `[d_model]`, or None where there is no such effect.
    """
    spread = lengths - lengths.mean()
    if np.abs(spread).max() <= 1e-9 * np.abs(lengths).max():
        return None
    try:
        return unit(spread @ differences.astype(np.float64))
    except NoDirectionError:
        return None


def without_length(differences: np.ndarray, lengths: np.ndarray | None) -> np.ndarray:
    """Takes the part along `length_axis` out of differences `[n, d_model]`, so that no fit on them can use it.

    A direction fitted on the rest stands at a right angle to that axis, so the margins of *any* pair, whose length
    effect is left in, do not regress on length. Fitting on the residuals of the regression is not enough: without its
    length effect the axis looks quiet, and `whitened` leans on it all the more. Held-out rank correlations of margin
    and length difference on a small encoder: -0.21 to -0.35 as fitted, -0.43 to -0.70 on residuals, -0.04 to -0.15 so.
    """
    return _across(differences, None if lengths is None else length_axis(differences, lengths))


def _across(differences: np.ndarray, axis: np.ndarray | None) -> np.ndarray:
    if axis is None:
        return differences
    rest: np.ndarray = differences - np.outer(differences @ axis, axis)
    return rest


def _margins(
    differences: np.ndarray, folds: np.ndarray, left_out: Sequence[tuple[int, ...]], vectors: np.ndarray
) -> np.ndarray:
    """Raw margins `[n, folds]` as `Trial` has them."""
    count = _count(left_out)
    with np.errstate(invalid="ignore"):  # Not finite times zero, in a layer that has no direction.
        projections = np.nan_to_num(differences.astype(np.float64) @ vectors.T, nan=0.0)  # [n, sets]
    raw = np.full((len(folds), count), np.nan)
    for column, without in enumerate(left_out):
        for own in without:
            # Of two folds left out, each one's pairs are scored as if the other were the outer one.
            other = without[0] if len(without) == 1 else without[1 - without.index(own)]
            inside = folds == own
            raw[inside, other] = projections[inside, column]
    return raw


def _count(left_out: Sequence[tuple[int, ...]]) -> int:
    """How many folds there are; some of them may have no pair of a source."""
    return max(fold for without in left_out for fold in without) + 1


def _times_as_large(raw: np.ndarray, other: np.ndarray) -> float:
    """What other raw margins `[n]` are to be multiplied with to be as large as these `[n]`."""
    size, other_size = np.linalg.norm(raw), np.linalg.norm(other)
    return float(size / other_size) if size > 0 and other_size > 0 else 1.0


def right(raw: np.ndarray) -> np.ndarray:
    """1 where a raw margin is positive, 0 where it is negative; a tie counts half."""
    return (np.sign(raw) + 1) / 2


def _telling(trials: Sequence[Trial]) -> list[Trial]:
    """Those that say anything of any pair, if one does: a layer whose sides read alike is half right, being silent."""
    return [trial for trial in trials if np.nan_to_num(trial.raw).any()] or list(trials)


def _scores(trials: Sequence[Trial], folds: np.ndarray, k: int | None, sources: np.ndarray | None) -> np.ndarray:
    """Whether each pair `[n]` outside fold k is right, for each trial: `[n, trials]`.

    Weighted, where sources are told, so that the mean is that of the sources' means.
    """
    outside = np.flatnonzero(folds != k)  # all, where k is None
    columns = folds if k is None else np.full(len(outside), k)
    scores = np.stack([right(t.judged[outside, columns]) for t in trials], axis=1)
    if sources is None:
        return scores
    sizes = np.bincount(sources[outside])
    weights: np.ndarray = len(outside) / (np.count_nonzero(sizes) * sizes[sources[outside]])
    return scores * weights[:, None]


def _smoothing(trials: Sequence[Trial]) -> np.ndarray:
    """Weights `[trials, trials]` that average a trial with its estimator's at the neighbouring layers, 1 : 2 : 1."""
    apart = np.abs(np.subtract.outer([t.place for t in trials], [t.place for t in trials]))
    same = np.equal.outer([t.estimator for t in trials], [t.estimator for t in trials])
    weights = np.where(same, np.maximum(2 - apart, 0), 0).astype(np.float64)
    return weights / weights.sum(axis=0)


def _best_layers(scout: Sequence[Trial], folds: np.ndarray, k: int | None, sources: np.ndarray | None) -> list[int]:
    """The layers that pairs outside fold k leave in the running."""
    accuracy = _scores(scout, folds, k, sources).mean(axis=0) @ _smoothing(scout)
    apart = [abs(t.place - (len(scout) - 1) / 2) for t in scout]
    order = np.lexsort((apart, -accuracy))
    return [scout[i].place for i in order[:RUNNING]]


def _pick(
    trials: Sequence[Trial],
    layers: Sequence[int],
    estimators: Sequence[str],
    folds: np.ndarray,
    groups: np.ndarray,
    k: int | None,
    middle: float,
    sources: np.ndarray | None,
) -> Trial:
    scores = _scores(trials, folds, k, sources) @ _smoothing(trials)  # [n, trials]
    accuracy = scores.mean(axis=0)
    best = int(accuracy.argmax())
    within = groups if k is None else groups[folds != k]
    numbers = resample.groups_of(within.tolist())
    # No accuracy is known better than to one prompt: where nearly all pairs are right, the one that is not must not
    # decide.
    error = np.hypot(resample.standard_errors(scores - scores[:, [best]], numbers), 1 / (int(numbers.max()) + 1))
    good = [i for i in range(len(trials)) if accuracy[i] >= accuracy[best] - error[i]]

    def order(i: int) -> tuple[float, int, float]:
        # Of two layers that are as near, the more accurate.
        return abs(layers[trials[i].place] - middle), estimators.index(trials[i].estimator), -accuracy[i]

    return trials[min(good, key=order)]
