"""Differences of pairs become a unit vector.

In: differences `[n, d_model]`, chosen minus rejected, in hidden-state units. Out: a unit vector `[d_model]`, float64,
along which the chosen side lies higher. Everything is closed form or converges to one answer, is computed in float64,
draws no random numbers, and writes to none of its inputs. This file knows no folds, no
layers and no texts.

All four see each pair from zero, without an intercept: swapping every pair's sides turns the vector round and changes
nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

# Weight of the prior in `whitened` and `logistic`: that of so many pairs for each dimension. Weak shrinkage fits a
# thousand pairs well and the next thousand badly. On a small encoder (384 dimensions) 8 to 32 were best out of sample
# from 40 pairs to 1400, and differ by less than their error; none at all costs six points at 1400 pairs.
PRIOR_PAIRS = 10.0
LANCZOS_STEPS = 128
NEWTON_STEPS = 50
TOLERANCE = 1e-10


class NoDirectionError(ValueError):
    """The differences have no direction: they are all zero, cancel exactly, or are not finite."""


@dataclass(frozen=True, eq=False)
class Sums:
    """What `mean_difference` and `whitened` need to know of pairs. Sums of folds add up, so every pair is read once.

    Attributes:
        count: Number of pairs.
        total: Sum of their differences, `[d_model]`.
        outer: Sum of their outer products, `[d_model, d_model]`, or None where only the mean is wanted.
    """

    count: int
    total: np.ndarray
    outer: np.ndarray | None

    @classmethod
    def of(cls, differences: np.ndarray, *, outer: bool) -> Sums:
        """Sums over differences `[n, d_model]`."""
        x = differences.astype(np.float64)
        return cls(len(x), x.sum(axis=0), x.T @ x if outer else None)

    def __add__(self, other: Sums) -> Sums:
        outer = None if self.outer is None or other.outer is None else self.outer + other.outer
        return Sums(self.count + other.count, self.total + other.total, outer)

    def across(self, axis: np.ndarray) -> Sums:
        """The sums of the same differences without their part along a unit vector `axis [d_model]`."""
        total = self.total - (self.total @ axis) * axis
        if self.outer is None:
            return Sums(self.count, total, None)
        along = self.outer @ axis  # [d_model]
        cross = np.outer(along - (axis @ along) * axis, axis)
        return Sums(self.count, total, self.outer - cross - np.outer(axis, along))


def mean_difference(differences: np.ndarray) -> np.ndarray:
    """The mean of the differences, which is the paper's estimator ("standard margin vector").

    Args:
        differences: `[n, d_model]`.

    Returns:
        A unit vector `[d_model]`.

    Raises:
        NoDirectionError: The mean is zero or not finite (a ValueError).
    """
    return unit(differences.mean(axis=0, dtype=np.float64))


def pca(differences: np.ndarray) -> np.ndarray:
    """The axis along which the differences are largest, pointing the way that most pairs do.

    The first principal direction of the differences about zero, not about their mean, as in representation reading
    (Zou et al., arXiv 2310.01405, section 3). It needs the labels for its sign alone, so it stands many wrong ones,
    and it follows whatever pairs differ in most, be it what their labels mean or not.

    Args:
        differences: `[n, d_model]`.

    Returns:
        A unit vector `[d_model]`.

    Raises:
        NoDirectionError: The differences are all zero or not finite (a ValueError).
    """
    x = _finite(differences)
    axis = unit(_first_axis(x))
    side = np.sign(x @ axis).sum()
    # As many pairs on either side: their mean decides.
    return axis if side > 0 or (side == 0 and x.mean(axis=0) @ axis >= 0) else -axis


def whitened(differences: np.ndarray) -> np.ndarray:
    """The mean difference divided by how much the differences vary: Fisher's direction, shrunk hard.

    Solves `((1 - a) M + a t I) v = mean` where `M` is the second moment of the differences about zero, `t` its mean
    eigenvalue and `a = 10 d_model / (n + 10 d_model)`. (About zero or about the mean is the same direction, by Sherman
    and Morrison.) With few pairs it is the mean difference, with many the best linear classifier of two normal clouds.
    Ledoit and Wolf's `a` wants the covariance right, not the direction; it shrinks a tenth of this and overfits.

    Args:
        differences: `[n, d_model]`.

    Returns:
        A unit vector `[d_model]`.

    Raises:
        NoDirectionError: The differences cancel, are all zero or not finite (a ValueError).
    """
    n, width = differences.shape
    if n >= width:
        return whitened_from(Sums.of(_finite(differences), outer=True))
    # The same equations for the pairs' weights, `v = x' weights`: n unknowns instead of d_model.
    x = _finite(differences)
    gram = x @ x.T  # [n, n]
    spread = np.trace(gram) / width  # n t
    if spread == 0:
        raise _none(0.0)
    gram[np.diag_indices(n)] += PRIOR_PAIRS * width / n * spread
    return unit(x.T @ np.linalg.solve(gram, np.ones(n)))


def whitened_from(sums: Sums) -> np.ndarray:
    """As `whitened`, from sums instead of differences."""
    assert sums.outer is not None
    width = len(sums.total)
    spread = np.trace(sums.outer) / width  # n t
    if not np.isfinite(spread) or spread == 0:
        raise _none(float(spread))
    # Both sides of the equation times n / (1 - a).
    shrunk = sums.outer + PRIOR_PAIRS * width / sums.count * spread * np.eye(width)
    return unit(np.linalg.solve(shrunk, sums.total))


def logistic(differences: np.ndarray) -> np.ndarray:
    """Logistic regression on the pairs, without intercept, with a strong L2 penalty: a Bradley-Terry model.

    Newton's method on `mean(log(1 + exp(-x v))) + b |v|^2 / 2`, in units of a typical difference, `b` being such that
    the first step is `whitened`. The two differ where some pairs lie far out: a pair on the right side stops to matter
    here, and pulls at a mean with all its length. The penalty keeps the answer finite for separable pairs.

    Args:
        differences: `[n, d_model]`.

    Returns:
        A unit vector `[d_model]`.

    Raises:
        NoDirectionError: The differences cancel, are all zero or not finite (a ValueError).
    """
    x = _finite(differences)
    n, width = x.shape
    lengths = np.linalg.norm(x, axis=1)
    # The median, not the mean: a few huge pairs must not decide what a usual one weighs.
    size = float(np.median(lengths)) or float(lengths.mean())
    if size == 0:
        raise _none(0.0)
    x = x * (np.sqrt(width) / size)
    penalty = PRIOR_PAIRS * width / (4 * n)

    def loss(vector: np.ndarray) -> float:
        return float(np.logaddexp(0, -(x @ vector)).mean() + penalty / 2 * vector @ vector)

    vector = np.zeros(width)
    start = float(np.linalg.norm(x.mean(axis=0))) / 2
    for _ in range(NEWTON_STEPS):
        wrong = (1 - np.tanh(x @ vector / 2)) / 2  # [n], the model's chance of the swapped label; never overflows
        slope = penalty * vector - x.T @ wrong / n
        if np.linalg.norm(slope) <= TOLERANCE * start:
            break
        step = _solve(x, wrong * (1 - wrong) / n, penalty, -slope)
        # Newton's step is too long only where the pairs are nearly separated; halving it always helps, for the loss is
        # convex.
        here, length = loss(vector), 1.0
        while loss(vector + length * step) > here and length > TOLERANCE:
            length /= 2
        vector = vector + length * step
    return unit(vector)


ESTIMATORS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean_difference": mean_difference,
    "pca": pca,
    "whitened": whitened,
    "logistic": logistic,
}


def unit(vector: np.ndarray) -> np.ndarray:
    """The vector divided by its length, float64.

    Raises:
        NoDirectionError: It has none.
    """
    norm = float(np.linalg.norm(vector))
    if not np.isfinite(norm) or norm == 0.0:
        raise _none(norm)
    scaled: np.ndarray = vector / norm
    return scaled


def _none(norm: float) -> NoDirectionError:
    return NoDirectionError(
        f"the mean difference of the pairs has length {norm}: their two sides read alike, or not as finite "
        'numbers; give pairs whose sides differ, another layer, or `dtype="float32"`'
    )


def _finite(differences: np.ndarray) -> np.ndarray:
    x = differences.astype(np.float64)
    if not np.isfinite(x).all():
        raise _none(float("nan"))
    return x


def _first_axis(x: np.ndarray) -> np.ndarray:
    """First right singular vector of `x [n, d_model]`, by Lanczos' method: the width may be thousands.

    128 steps find it to rounding, unless the largest two axes are as good as equal, and then either will do.
    """
    n, width = x.shape
    # A start that is neither symmetric nor random: every axis has a part in it.
    vector = x.T @ np.cos(np.arange(n))
    if not vector.any():
        raise _none(0.0)
    basis = np.empty((min(LANCZOS_STEPS, n, width), width))
    steps = len(basis)
    for step in range(steps):
        basis[step] = vector / np.linalg.norm(vector)
        vector = x.T @ (x @ basis[step])
        size = np.linalg.norm(vector)
        # Twice is enough, once is not: rounding lets the old directions in again.
        for _ in range(2):
            vector = vector - basis[: step + 1].T @ (basis[: step + 1] @ vector)
        if np.linalg.norm(vector) <= 1e-12 * size:
            steps = step + 1
            break
    inside = x @ basis[:steps].T  # [n, steps]
    _, vectors = np.linalg.eigh(inside.T @ inside)
    first: np.ndarray = vectors[:, -1] @ basis[:steps]
    return first


def _solve(x: np.ndarray, weights: np.ndarray, ridge: float, right: np.ndarray) -> np.ndarray:
    """Solves `(x' diag(weights) x + ridge I) v = right` by conjugate gradients, without making the matrix."""
    answer = np.zeros_like(right)
    rest, ahead = right.copy(), right.copy()
    size = rest @ rest
    goal = TOLERANCE**2 * size
    for _ in range(10 * len(right)):
        if size <= goal:
            break
        image = x.T @ (weights * (x @ ahead)) + ridge * ahead
        length = size / (ahead @ image)
        answer += length * ahead
        rest -= length * image
        size, before = rest @ rest, size
        ahead = rest + size / before * ahead
    return answer
