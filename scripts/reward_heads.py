"""A reward head on frozen states: the trainers' own loss, for one linear layer, to its minimum.

In: differences of hidden states `[n, d]`, and what each arm does to each pair's loss. Out: the heads, and how good they
are. The loss is that of TRL's `RewardTrainer` and of `legend_hf.training`, with a penalty on the head's length; every
arm takes the same number of steps. This file knows no directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from legend_hf.directions import resample

RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0)
"""Penalties that are tried for each arm on prompts of its own training pairs: a margin changes which one is best."""
STEPS = 40
TUNING_FOLDS = 2


@dataclass(frozen=True, eq=False)
class Treatment:
    """What an arm does to pairs: w · [-p log σ(h - m) - (1 - p) log σ(m - h)], h being the difference of rewards.

    Attributes:
        margin: m `[n]`; None subtracts nothing, not even zero.
        target: p `[n]`, 1 for a label that is taken as it is.
        weight: w `[n]`, from 0 to 1.
    """

    margin: np.ndarray | None
    target: np.ndarray
    weight: np.ndarray


def plain(count: int) -> Treatment:
    """No margin, labels as they are, all pairs alike."""
    return Treatment(None, np.ones(count), np.ones(count))


def fit_heads(differences: np.ndarray, arms: Sequence[Treatment], ridge: float) -> np.ndarray:
    """Minimises each arm's mean loss + ridge/2 |w|², where each dimension is scaled to a mean square of 1.

    Args:
        differences: `[n, d]`.
        arms: What each does to the pairs.
        ridge: Of the penalty.

    Returns:
        Heads `[d, arms]`, for differences as they were given.
    """
    return Rotated.of(differences).fit(arms, ridge)


@dataclass(frozen=True, eq=False)
class Rotated:
    """Pairs in the axes of their own spread, in which a step needs no matrix: what all arms and penalties share.

    The curvature of the loss is a quarter at most, so a step that takes it for a quarter never overshoots (Böhning's
    bound).

    Attributes:
        x: `[n, d]`, float32.
        spread: Mean square along each axis `[d]`.
        back: From the axes to the dimensions as they were given `[d, d]`.
    """

    x: np.ndarray
    spread: np.ndarray
    back: np.ndarray

    @classmethod
    def of(cls, differences: np.ndarray) -> Rotated:
        """Differences `[n, d]` in those axes."""
        scale = np.sqrt((differences.astype(np.float64) ** 2).mean(axis=0)) + 1e-12
        x = differences / scale
        spread, axes = np.linalg.eigh(x.T @ x / len(x))
        return cls((x @ axes).astype(np.float32), spread.clip(0).astype(np.float32), axes / scale[:, None])

    def fit(self, arms: Sequence[Treatment], ridge: float) -> np.ndarray:
        """Heads `[d, arms]`, for differences as they were given."""
        n = len(self.x)
        targets = np.stack([arm.target for arm in arms], axis=1).astype(np.float32)
        weights = (np.stack([arm.weight for arm in arms], axis=1) / n).astype(np.float32)
        margins = None
        if any(arm.margin is not None for arm in arms):
            margins = np.stack([np.zeros(n) if arm.margin is None else arm.margin for arm in arms], axis=1)
            margins = margins.astype(np.float32)
        step = 1 / (self.spread / 4 + np.float32(ridge))[:, None]
        heads = np.zeros((self.x.shape[1], len(arms)), dtype=np.float32)
        for _ in range(STEPS):
            ahead = self.x @ heads
            if margins is not None:
                ahead = ahead - margins
            pull = weights * (0.5 * (1 + np.tanh(0.5 * ahead)) - targets)
            heads = heads - (self.x.T @ pull + np.float32(ridge) * heads) * step
        found: np.ndarray = self.back @ heads
        return found


def tuned_heads(
    differences: np.ndarray, groups: np.ndarray, arms: Sequence[Treatment], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Heads `[d, arms]` with the penalty that does best on held-out prompts of the same pairs, and the penalties."""
    folds = resample.folds_of(resample.groups_of(groups.tolist()), TUNING_FOLDS, seed)
    right = np.zeros((len(RIDGES), len(arms)))
    for fold in range(int(folds.max()) + 1):
        inside = folds != fold
        rotated, some = Rotated.of(differences[inside]), [_part(arm, inside) for arm in arms]
        for i, ridge in enumerate(RIDGES):
            right[i] += ((np.sign(differences[~inside] @ rotated.fit(some, ridge)) + 1) / 2).sum(axis=0)
    # Of equals the strongest penalty.
    best = len(RIDGES) - 1 - right[::-1].argmax(axis=0)
    rotated, heads = Rotated.of(differences), np.empty((differences.shape[1], len(arms)))
    for i in np.unique(best):
        heads[:, best == i] = rotated.fit([arm for arm, b in zip(arms, best, strict=True) if b == i], RIDGES[i])
    return heads, np.array(RIDGES)[best]


def errors(ahead: np.ndarray) -> tuple[float, float]:
    """Negative log likelihood of the labels, and expected calibration error over ten bins of equal content.

    Args:
        ahead: Difference of the rewards `[n]`.
    """
    size = np.abs(ahead)
    confidence, correct = 1 / (1 + np.exp(-size)), (np.sign(ahead) + 1) / 2
    order = np.argsort(size)
    gaps = [abs((confidence - correct)[part].mean()) * len(part) for part in np.array_split(order, 10) if len(part)]
    return float(np.logaddexp(0, -ahead).mean()), float(sum(gaps) / max(len(ahead), 1))


def _part(arm: Treatment, where: np.ndarray) -> Treatment:
    margin = None if arm.margin is None else arm.margin[where]
    return Treatment(margin, arm.target[where], arm.weight[where])
