"""What a reward model may do with a margin: the arms of the comparison, as what each does to a pair's loss.

In: differences of hidden states of the pairs that are trained on, their prompts and lengths. Out: margins that no pair
has a part in by its own prompt, and for each arm a margin, a soft label and a weight for every pair. This file trains
nothing but the directions (and the ensemble of heads) that the margins are made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from reward_heads import Treatment, fit_heads, plain

from legend_hf.directions import resample
from legend_hf.directions.calibrate import Calibration, fit_calibration
from legend_hf.directions.estimators import Sums, mean_difference, whitened_from

FOLDS = 5
ENSEMBLE = 10  # heads, each trained on half of the prompts, so that about five have not seen a pair's
# Each a margin, in this order in the tables; "none" comes first by itself.
MARGINS = (
    "zero margin", "random margin", "length margin", "distance |h_c - h_r|", "RewardEnsemble@5",
    "Legend as the paper has it", "Legend, bins", "margin `unit`", "margin `logit`", "inverse margin 1 - |m|",
)  # fmt: skip
LABELS = ("soft label `margin_prob`", "`weight` (scaled BT)")
SELECTIONS = (
    "without the 10 % most negative", "without the 20 % most negative", "largest half", "middle half",
    "smallest half", "nearest half",
)  # fmt: skip
ARMS = ("no margin", *MARGINS, *LABELS, *SELECTIONS)


def cross_fitted(differences: np.ndarray, groups: np.ndarray, seed: int, *, paper: bool = False) -> np.ndarray:
    """Raw margins of pairs, each along a direction that was fitted without its prompt.

    Args:
        differences: Chosen minus rejected `[n, d_model]`.
        groups: Prompt of each pair `[n]`.
        seed: Of the folds.
        paper: The plain mean difference, instead of the whitened one.

    Returns:
        `[n]`, in units of hidden states.
    """
    folds = resample.folds_of(resample.groups_of(groups.tolist()), FOLDS, seed)
    count = int(folds.max()) + 1
    raw = np.empty(len(differences))
    parts = [] if paper else [Sums.of(differences[folds == fold], outer=True) for fold in range(count)]
    for fold in range(count):
        others = [part for i, part in enumerate(parts) if i != fold]
        vector = mean_difference(differences[folds != fold]) if paper else whitened_from(sum(others[1:], others[0]))
        raw[folds == fold] = differences[folds == fold] @ vector
    return raw


def calibrated(raw: np.ndarray) -> Calibration:
    """The library's own scales, of margins that are held out anyway."""
    return fit_calibration("unit", raw)


def probabilities(calibration: Calibration, raw: np.ndarray) -> np.ndarray:
    """`margin_prob`; one half where the direction tells nothing about the labels."""
    return calibration.prob(raw).astype(np.float64) if calibration.gives_prob else np.full(len(raw), 0.5)


@dataclass(frozen=True, eq=False)
class Trained:
    """The pairs that one reward model is trained on.

    Attributes:
        head: Differences at the place that the reward reads `[n, d_model]`.
        direction: Differences at the place that the direction reads `[n, d]`.
        paper: Differences of the last token at the last layer `[n, d_model]`.
        groups: Prompt of each `[n]`.
        longer: Log length of the chosen response minus that of the rejected one `[n]`.
        seed: Of all that is drawn.
    """

    head: np.ndarray
    direction: np.ndarray
    paper: np.ndarray
    groups: np.ndarray
    longer: np.ndarray
    seed: int


def treatments(pairs: Trained, arms: Sequence[str] = ARMS) -> dict[str, Treatment]:
    """What each arm does to the pairs."""
    raw = cross_fitted(pairs.direction, pairs.groups, pairs.seed)
    made = {name: one for name, one in {**_labels(raw), **_selections(raw)}.items() if name in arms}
    made |= {name: replace(plain(len(raw)), margin=margin) for name, margin in _margins(pairs, raw, arms).items()}
    return {name: plain(len(raw)) if name == "no margin" else made[name] for name in arms}


def most_negative(raw: np.ndarray, share: float) -> np.ndarray:
    """Which pairs have the most negative margins `[n]`, so many of them."""
    return np.argsort(np.argsort(raw, kind="stable"), kind="stable") < round(share * len(raw))


def _margins(pairs: Trained, raw: np.ndarray, arms: Sequence[str]) -> dict[str, np.ndarray]:
    calibration = calibrated(raw)
    unit = calibration.apply(raw, "unit").astype(np.float64)
    none = np.zeros(len(raw))
    distance = np.linalg.norm(pairs.head, axis=1)
    made = {
        "zero margin": none,
        # The same numbers, dealt to other pairs.
        "random margin": np.random.default_rng(pairs.seed).permutation(unit),
        "length margin": calibrated(-pairs.longer).apply(-pairs.longer).astype(np.float64),
        "distance |h_c - h_r|": np.clip(distance / np.quantile(distance, 0.95), 0, 1),
        "margin `unit`": unit,
        "margin `logit`": calibration.apply(raw, "logit").astype(np.float64) if calibration.logit else none,
        "inverse margin 1 - |m|": 1 - np.abs(unit),
    }
    if "RewardEnsemble@5" in arms:
        made["RewardEnsemble@5"] = _ensemble(pairs)
    if {"Legend as the paper has it", "Legend, bins"} & set(arms):
        paper = cross_fitted(pairs.paper, pairs.groups, pairs.seed, paper=True)
        made["Legend as the paper has it"] = paper
        made["Legend, bins"] = calibrated(paper).apply(paper, "bins").astype(np.float64)
    return {name: margin for name, margin in made.items() if name in arms}


def _ensemble(pairs: Trained) -> np.ndarray:
    """Mean difference of the rewards of heads that have not seen the pair's prompt, on the scale `unit`."""
    rng = np.random.default_rng(pairs.seed)
    seen = np.stack([rng.permutation(int(pairs.groups.max()) + 1)[pairs.groups] % 2 == 0 for _ in range(ENSEMBLE)])
    heads = fit_heads(pairs.head, [replace(plain(seen.shape[1]), weight=one.astype(np.float64)) for one in seen], 0.3)
    ahead = pairs.head @ heads  # [n, heads]
    mean = np.where(seen.T, 0.0, ahead).sum(axis=1) / np.maximum((~seen.T).sum(axis=1), 1)
    return calibrated(mean).apply(mean).astype(np.float64)


def _labels(raw: np.ndarray) -> dict[str, Treatment]:
    p = probabilities(calibrated(raw), raw)
    return {
        "soft label `margin_prob`": replace(plain(len(raw)), target=p),
        "`weight` (scaled BT)": replace(plain(len(raw)), weight=np.maximum(2 * p - 1, 0)),
    }


def _selections(raw: np.ndarray) -> dict[str, Treatment]:
    n = len(raw)
    rank, size = np.argsort(np.argsort(raw, kind="stable")), np.argsort(np.argsort(np.abs(raw), kind="stable"))
    kept = {
        "without the 10 % most negative": ~most_negative(raw, 0.1),
        "without the 20 % most negative": ~most_negative(raw, 0.2),
        "largest half": rank >= n // 2,
        "middle half": (rank >= n // 4) & (rank < n // 4 + n // 2),
        "smallest half": rank < n // 2,
        "nearest half": size < n // 2,
    }
    return {name: replace(plain(n), weight=where.astype(np.float64)) for name, where in kept.items()}
