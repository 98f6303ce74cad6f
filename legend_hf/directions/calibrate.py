"""Raw projections become margins on a training scale, and probabilities.

In: raw margins, in hidden-state units, of pairs that the direction was not fitted on. Out: a `Calibration`, and what
it makes of any raw margin: a number that a reward model's loss can use, a size out of a few, a probability. A raw
projection can be tens of units, where `-logsigmoid(r_c - r_r - margin)` is a constant push for every pair. Whatever is
made of it never falls where the raw margin rises, and swapping a pair mirrors it exactly. The paper has the raw number,
and a discrete one whose edges and values it does not publish: every rule here is ours. This file knows neither texts
nor models.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np

from legend_hf.reading.plain import check_choice, make_plain

logger = logging.getLogger(__name__)

KINDS = ("raw", "unit", "bins", "logit", "link")
UNIT_QUANTILE = 0.95
BINS = 4
"""Sizes of a binned margin: 0, 1/3, 2/3 and 1, as many as the grades of Llama 2's pairs and at its small scale."""
MOST_PARTS = 64
"""Most sizes of bins, or steps of a link: an artifact comes from strangers."""
MOST_LOG_ODDS = 24 * math.log(2)
"""Log-odds are cut here, 16.6: the largest whose probability float32 still tells from 1."""

_FARTHEST = 10.0  # In fits, |raw| ÷ scale is cut here: one number gone wrong must not decide the slope.
# The steps of a link, |raw| ÷ scale: where they lie, and how steep they are there.
_PLACES = (0.0, 1 / 3, 2 / 3, 1.0)
_STEEPNESS = (12.0, 12.0, 12.0, 12.0)
_HEIGHT_SD = 0.7  # Log-odds that one step may well add; towards 0, the link is the logit.
_LEAST_SLOPE = 0.05  # Of the logit's: what the steps must leave of it, so that the link rises everywhere.


@dataclass(frozen=True)
class Bins:
    """Sorts |raw| into a few sizes; the sign stays.

    Attributes:
        edges: Of |raw|, `[k-1]`, in hidden-state units, never falling. A margin on an edge has the larger size.
        values: The sizes, `[k]`, from 0 or more, never falling.
    """

    edges: tuple[float, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        """Makes numbers plain, and refuses what is no staircase."""
        _make_plain(self)
        if not 1 <= len(self.edges) < MOST_PARTS or len(self.values) != len(self.edges) + 1:
            raise ValueError(
                f"the bins have {len(self.edges)} `edges` and {len(self.values)} `values`; give 1 to {MOST_PARTS - 1} "
                "edges, and one value more"
            )
        for name, numbers in (("edges", self.edges), ("values", self.values)):
            _check_numbers(f"the bins' `{name}`", numbers, least=0.0)
            if any(b < a for a, b in pairwise(numbers)):
                raise ValueError(f"the bins' `{name}` fall: {_excerpt(numbers)}; give them in rising order")

    @classmethod
    def even(cls, edges: Sequence[float]) -> Bins:
        """Bins with these edges of |raw| and evenly spaced sizes from 0 to 1."""
        return cls(tuple(map(float, edges)), tuple(i / max(len(edges), 1) for i in range(len(edges) + 1)))

    def margin(self, raw: np.ndarray) -> np.ndarray:
        """Raw margins `[n]` to the sizes, signed: `[n]`, float64."""
        sizes = np.array(self.values)[np.searchsorted(np.array(self.edges), np.abs(raw), side="right")]
        return np.sign(raw) * sizes + 0.0  # Without the sum, a swapped 0 would be written as -0.


@dataclass(frozen=True)
class Link:
    """Log-odds that the pair's label is right: odd, smooth and strictly rising in the raw margin.

    G(m) = slope · m + Σ heights · [σ(steepness · (m - place)) + σ(steepness · (m + place)) - 1] and p = σ(G(m)), with σ
    the logistic function: in one dimension the learned link of LegendreTron (Lam et al., ICML 2023), the gradient of a
    convex potential, made odd because swapping a pair must give 1 - p. Without steps it is the Bradley-Terry model.

    Attributes:
        slope: Log-odds per hidden-state unit, above 0.
        heights: What each step adds, in log-odds, `[k]`, 0 or more.
        places: Where the steps lie, `[k]`, in hidden-state units.
        steepness: Of each step there, `[k]`, per hidden-state unit, above 0.
    """

    slope: float
    heights: tuple[float, ...] = ()
    places: tuple[float, ...] = ()
    steepness: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Makes numbers plain, and refuses what could fall."""
        _make_plain(self)
        if not len(self.heights) == len(self.places) == len(self.steepness) <= MOST_PARTS:
            raise ValueError(
                f"the link has {len(self.heights)} `heights`, {len(self.places)} `places` and {len(self.steepness)} "
                f"`steepness`; give as many of each, at most {MOST_PARTS}"
            )
        _check_numbers("the link's `slope`", (self.slope,), above=0.0)
        _check_numbers("the link's `heights`", self.heights, least=0.0)
        _check_numbers("the link's `places`", self.places, least=0.0)
        _check_numbers("the link's `steepness`", self.steepness, above=0.0)

    def log_odds(self, raw: np.ndarray) -> np.ndarray:
        """G of raw margins `[n]`: `[n]`, float64. G(-m) = -G(m) to the bit."""
        size = np.abs(raw).astype(np.float64)
        with np.errstate(over="ignore"):  # Far out a step is over, and the slope may end at infinity: both are meant.
            steps = _steps(size, np.array(self.places), np.array(self.steepness))  # [n, k]
            log_odds = self.slope * size + (steps * np.array(self.heights)).sum(axis=-1)
        return np.sign(raw) * log_odds


@dataclass(frozen=True)
class Calibration:
    """How a raw margin becomes a margin. None: the artifact does not hold that one.

    Attributes:
        kind: Which of them `margin` is, unless asked for another: `"raw"` (the paper's number as it is), `"unit"`
            (raw ÷ `scale`, clipped to [-1, 1]), `"bins"` (a few sizes, with the sign), `"logit"` (`logit` · raw) or
            `"link"` (`link` of raw), the last two in log-odds of the label being right, cut at ±16.6.
        scale: 95th percentile of |raw| on held-out pairs, in hidden-state units.
        bins: Edges and values of the sizes.
        logit: Log-odds per hidden-state unit: the Bradley-Terry model of the labels.
        link: Log-odds as a learned function of the raw margin.
    """

    kind: str
    scale: float | None = None
    bins: Bins | None = None
    logit: float | None = None
    link: Link | None = None

    def __post_init__(self) -> None:
        """Makes numbers plain, and refuses what cannot scale."""
        make_plain(self)
        check_choice("calibration", self.kind, KINDS)
        for name, number in (("scale", self.scale), ("logit", self.logit)):
            if number is not None:
                _check_numbers(f"the calibration's `{name}`", (number,), above=0.0)
        if self.kind not in self.kinds:
            raise ValueError(f"`calibration` is {self.kind!r}, but its numbers are missing; {_holds(self)}")

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that this holds; `"raw"` is always one of them."""
        held = {"raw": True, "unit": self.scale, "bins": self.bins, "logit": self.logit, "link": self.link}
        return tuple(kind for kind in KINDS if held[kind] is not None)

    @property
    def gives_prob(self) -> bool:
        """Whether `prob` has an answer."""
        return self.link is not None or self.logit is not None

    def apply(self, raw: np.ndarray, kind: str | None = None) -> np.ndarray:
        """Scales raw margins `[n]` to margins `[n]`, float32; swapping a pair flips the sign exactly.

        All kinds but `"raw"` are finite for any finite input.

        Args:
            raw: Raw margins `[n]`, in hidden-state units.
            kind: One of `kinds`; None takes `kind`.

        Raises:
            ValueError: This does not hold the kind that is asked for.
        """
        kind = self.kind if kind is None else kind
        if kind == "raw":
            return raw.astype(np.float32)
        with np.errstate(over="ignore"):  # What overflows is cut.
            if kind == "unit" and self.scale is not None:
                return np.clip(raw / self.scale, -1.0, 1.0).astype(np.float32)
            if kind == "bins" and self.bins is not None:
                return self.bins.margin(raw).astype(np.float32)
            if kind == "logit" and self.logit is not None:
                return np.clip(self.logit * raw, -MOST_LOG_ODDS, MOST_LOG_ODDS).astype(np.float32)
            if kind == "link" and self.link is not None:
                return np.clip(self.link.log_odds(raw), -MOST_LOG_ODDS, MOST_LOG_ODDS).astype(np.float32)
        raise ValueError(f"a {kind!r} margin was asked for; {_holds(self)}")

    def prob(self, raw: np.ndarray) -> np.ndarray:
        """Probability that a pair's label is right, by its raw margin: `[n]`, float32, above 0 and below 1.

        From the link, or from the logit where there is no link. Swapping a pair gives 1 - p exactly; 0 gives one half.

        Raises:
            ValueError: This holds neither.
        """
        link = self.link
        if link is None:
            if self.logit is None:
                raise ValueError(f"a probability was asked for; {_holds(self)}")
            link = Link(self.logit)
        likely = 1.0 / (1.0 + np.exp(-np.abs(link.log_odds(raw))))  # of the side that is likelier
        # The larger of p and 1 - p is rounded to float32 and the smaller one is what it leaves of 1, or the two would
        # round apart.
        likely = np.minimum(likely.astype(np.float32), np.float32(1 - 2**-24))
        return np.where(raw < 0, np.float32(1) - likely, likely)

    def label(self, kind: str | None = None) -> str:
        """Names a kind with its numbers, in a few words."""
        kind = self.kind if kind is None else kind
        if kind == "unit" and self.scale is not None:
            return f"unit, scale {self.scale:.4g}"
        if kind == "bins" and self.bins is not None:
            return f"bins, {len(self.bins.values)} sizes"
        if kind == "logit" and self.logit is not None:
            return f"logit, slope {self.logit:.4g}"
        return kind

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Calibration:
        """Rebuilds a calibration from what `dataclasses.asdict` or JSON made of it.

        Raises:
            ValueError: It contradicts itself.
        """
        bins, link = config["bins"], config["link"]
        return cls(
            kind=config["kind"],
            scale=config["scale"],
            bins=bins and Bins(tuple(bins["edges"]), tuple(bins["values"])),
            logit=config["logit"],
            link=link and Link(link["slope"], tuple(link["heights"]), tuple(link["places"]), tuple(link["steepness"])),
        )


RAW = Calibration("raw")


def fit_calibration(
    kind: str, raw: np.ndarray, *, unbiased: np.ndarray | None = None, bins: int | Sequence[float] = BINS
) -> Calibration:
    """Fits every kind on the same held-out pairs, for each is cheap; `kind` says which of them `margin` is.

    * unit: the 95th percentile of |raw| becomes 1. There is no offset, or a swap would not flip the sign.
    * bins: quantiles of |raw| cut it into equal shares, whose sizes are spaced evenly from 0 to 1. So a size is a rank:
      the pair at the quantile 2/3 has the size 2/3. Multiplying all raw margins by a number changes no size.
    * logit: the slope of the Bradley-Terry model that makes the held-out labels likeliest.
    * link: the same likelihood with four steps added, each held to less than a unit of log-odds by a Gaussian prior, so
      that a few hundred pairs bend it little. It starts at the logit and only ever improves on it.

    Both likelihoods count one right and one wrong pair more, at the scale: Laplace's rule, which smooths targets too,
    but is not at the mercy of the largest margin. So the slope stays finite where all held-out pairs are right. A pair
    and its swap tell the same, so none has to be flipped for the fit.

    Args:
        kind: `"raw"`, `"unit"`, `"bins"`, `"logit"` or `"link"`.
        raw: Raw margins `[n]`, in hidden-state units, of pairs that the direction was not fitted on; above 0 where the
            label is right.
        unbiased: The same pairs' raw margins `[n]`, on the same scale, of directions that were not picked for these
            pairs either; None where nothing was picked. Logit and link are fitted on them: margins that a layer was
            picked for are right too often.
        bins: How many sizes, or the edges of |raw| in hidden-state units.

    Returns:
        The calibration. It has no logit and no link where the held-out margins are not above 0 on average: the
        direction then says nothing about the labels, and no probability can rise with the margin.

    Raises:
        ValueError: An argument is not one of those allowed, all margins are zero, or the kind that was asked for is a
            logit or a link, and there is none.
    """
    check_choice("calibration", kind, KINDS)
    raw = np.asarray(raw, dtype=np.float64)
    unbiased = raw if unbiased is None else np.asarray(unbiased, dtype=np.float64)
    if raw.ndim != 1 or raw.shape != unbiased.shape or not np.isfinite(raw + unbiased).all():
        raise ValueError(
            f"the held-out raw margins, {list(raw.shape)}, are not a list of finite numbers; give one a pair"
        )
    if kind == "raw" and (len(raw) == 0 or _quantile(raw) == 0.0):
        return RAW
    scale = _scale_of(raw)
    logit, link = _fit_log_odds(unbiased / scale)
    if logit is None:
        what = (
            f"the {len(raw)} held-out raw margins are {unbiased.mean():.3g} on average, not above 0: on pairs that it "
            "was not fitted on, the direction does not point from rejected to chosen"
        )
        if kind in ("logit", "link"):
            raise ValueError(f'{what}; give more pairs, another layer, or `calibration="unit"`')
        logger.warning("%s, so there will be no `margin_prob`", what)
    return Calibration(
        kind=kind,
        scale=scale,
        bins=_fit_bins(raw, bins),
        logit=None if logit is None else logit / scale,
        link=None
        if link is None
        else Link(
            slope=link.slope / scale,
            heights=link.heights,
            places=tuple(place * scale for place in link.places),
            steepness=tuple(steepness / scale for steepness in link.steepness),
        ),
    )


def _scale_of(raw: np.ndarray) -> float:
    scale = _quantile(raw) if len(raw) else 0.0
    if scale == 0.0:
        raise ValueError(
            "the held-out raw margins are all zero, so nothing can be scaled; the pairs' two sides read alike: "
            'give pairs that differ, another layer, or `calibration="raw"`'
        )
    return scale


def _quantile(raw: np.ndarray) -> float:
    return float(np.quantile(np.abs(raw), UNIT_QUANTILE))


def _fit_bins(raw: np.ndarray, bins: int | Sequence[float]) -> Bins:
    if not isinstance(bins, int):
        return Bins.even(bins)
    if not 2 <= bins <= MOST_PARTS:
        raise ValueError(f"`bins` is {bins}; give 2 to {MOST_PARTS} sizes, or the edges of |raw|")
    return Bins.even(np.quantile(np.abs(raw), np.arange(1, bins) / bins).tolist())


def _fit_log_odds(z: np.ndarray) -> tuple[float, Link] | tuple[None, None]:
    """Slope and link, by likelihood, of margins in units of their scale `[n]`."""
    z = np.clip(z, -_FARTHEST, _FARTHEST)
    z = np.concatenate([z, [1.0, -1.0]])  # one more of each outcome
    (slope,) = _descend(z[:, None], np.zeros(1), np.zeros(1), np.zeros(1))
    if slope <= 0:
        return None, None
    places, steepness = np.array(_PLACES), np.array(_STEEPNESS)
    steps = np.sign(z)[:, None] * _steps(np.abs(z), places, steepness)  # [n, k]
    weights = _descend(
        np.hstack([z[:, None], steps]),
        start=np.r_[slope, np.zeros(len(places))],
        floor=np.r_[_LEAST_SLOPE * slope, np.zeros(len(places))],
        ridge=np.r_[0.0, np.full(len(places), _HEIGHT_SD**-2)],
    )
    return float(slope), Link(float(weights[0]), tuple(weights[1:].tolist()), _PLACES, _STEEPNESS)


def _descend(design: np.ndarray, start: np.ndarray, floor: np.ndarray, ridge: np.ndarray) -> np.ndarray:
    """Weights `[k]` >= floor that minimise Σ log(1 + exp(-design · weights)) + ½ Σ ridge · weights².

    Convex in the weights. Each Newton step is taken among the weights that are free to move and projected on the floor;
    none makes the sum larger, so the end is never worse than the start.
    """

    def cost(weights: np.ndarray) -> float:
        return float(np.logaddexp(0.0, -(design @ weights)).sum() + 0.5 * ridge @ weights**2)

    weights = start
    for _ in range(100):
        wrong = 0.5 * (1.0 - np.tanh(0.5 * (design @ weights)))  # [n] probability of the other label
        gradient = ridge * weights - wrong @ design
        hessian = np.diag(ridge) + design.T @ (design * (wrong * (1.0 - wrong))[:, None])
        free = (weights > floor) | (gradient < 0)
        if not free.any():
            break
        direction = np.zeros_like(weights)
        curvature = hessian[np.ix_(free, free)]
        # A flat direction has no Newton step; a little curvature gives it a gradient step.
        curvature = curvature + 1e-10 * max(np.trace(curvature), 1e-10) * np.eye(free.sum())
        direction[free] = -np.linalg.solve(curvature, gradient[free])
        here, step = cost(weights), 1.0
        while step > 1e-10:
            new = np.maximum(floor, weights + step * direction)
            if cost(new) <= here + 1e-4 * gradient @ (new - weights):
                break
            step *= 0.5
        else:
            break
        moved = float(np.abs(new - weights).max())
        weights = new
        if moved <= 1e-10 * float(np.abs(weights).max()):
            break
    return weights


def _steps(size: np.ndarray, places: np.ndarray, steepness: np.ndarray) -> np.ndarray:
    """σ(steepness · (m - place)) + σ(steepness · (m + place)) - 1 for sizes `[n]`: `[n, k]`, from 0 to 1."""
    m = size[..., None]
    return 0.5 * (np.tanh(0.5 * steepness * (m - places)) + np.tanh(0.5 * steepness * (m + places)))


def _holds(calibration: Calibration) -> str:
    held = ", ".join(map(repr, calibration.kinds))
    return f"this calibration holds {held}; fit the direction anew with `fit_direction`, which fits them all"


def _make_plain(instance: Any) -> None:
    """Makes several numbers, in whatever list or array, a tuple of plain ones."""
    for f in fields(instance):
        value = getattr(instance, f.name)
        if isinstance(value, list | np.ndarray):
            object.__setattr__(instance, f.name, tuple(value.tolist() if isinstance(value, np.ndarray) else value))
    make_plain(instance)


def _check_numbers(what: str, numbers: Sequence[float], *, least: float = -math.inf, above: float = -math.inf) -> None:
    # Numbers that float32 has, so that all that is made of them is finite.
    for number in numbers:
        if not (number >= least and number > above and abs(number) <= float(np.finfo(np.float32).max)):
            allowed = "a positive number" if above == 0 else "0 or more"
            raise ValueError(f"{what} is {number}; it must be {allowed}, and finite in float32")


def _excerpt(numbers: Sequence[float]) -> str:
    return f"{list(numbers)!r:.60}"
