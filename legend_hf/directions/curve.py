"""Would more pairs help? How right a direction is on held-out pairs when it is fitted on fewer prompts.

In: the differences of the layer that was chosen, `[n, d_model]`, the pairs' prompts, the choice. Out: held-out accuracy
for a quarter, half and all of the prompts outside each fold. Nothing is chosen anew: that would cost the whole search
six times more. So all three are a little too good, having the layer and estimator that all pairs chose, and they can be
compared with each other. This file reads no model.

The prompts are dealt to four parts; each part, and each pair of parts, is fitted on in its turn, so no prompt counts
more than another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from legend_hf.directions import resample
from legend_hf.directions.choose import FEWEST_PROMPTS, FOLDS, Choice, directions_without, right

PARTS = 4
_SUBSETS: Mapping[float, tuple[tuple[int, ...], ...]] = {0.25: ((0,), (1,), (2,), (3,)), 0.5: ((0, 1), (2, 3))}


def learning_curve(
    differences: np.ndarray, groups: np.ndarray, chosen: Choice, *, seed: int, lengths: np.ndarray | None = None
) -> tuple[Mapping[str, Any], ...] | None:
    """Cross-validated accuracy by how much is fitted on.

    Args:
        differences: Of the chosen layer, `[n, d_model]`.
        groups: The pairs' prompts, numbered, `[n]`.
        chosen: What was chosen, on the folds of this seed.
        seed: Of the folds, and of the parts.
        lengths: See `choose.without_length`.

    Returns:
        One mapping each: `share` of the prompts outside a fold, `accuracy`, and `behind`, the 95 % interval of how much
        more all of them reach on the same pairs; None for the last. None for fewer than 20 prompts: a quarter of them
        is nothing.
    """
    if len(np.unique(groups)) < FEWEST_PROMPTS:
        return None
    folds = resample.folds_of(groups, FOLDS, seed)
    # Dealt within each fold, so that each fold leaves out as much of every part.
    part = np.empty_like(folds)
    for k in np.unique(folds):
        inside = folds == k
        part[inside] = resample.folds_of(resample.groups_of(groups[inside].tolist()), PARTS, seed + 1)
    whole = right(chosen.raw)
    curve = []
    for share, subsets in _SUBSETS.items():
        tried = [_margins(differences, folds, np.isin(part, kept), chosen.estimator, lengths) for kept in subsets]
        reached = np.mean([right(raw) for raw in tried], axis=0)
        behind = resample.difference_interval(whole - reached, groups)
        curve.append({"share": share, "accuracy": float(reached.mean()), "behind": behind and list(behind)})
    return (*curve, {"share": 1.0, "accuracy": float(whole.mean()), "behind": None})


def _margins(
    differences: np.ndarray, folds: np.ndarray, kept: np.ndarray, estimator: str, lengths: np.ndarray | None
) -> np.ndarray:
    """Raw margins `[n]`, each of a direction fitted on the pairs of `kept [n]` outside the pair's own fold."""
    count = int(folds.max()) + 1
    # What is not kept is a fold more, left out of every fit.
    dealt = np.where(kept, folds, count)
    vectors = directions_without(differences, dealt, [(k, count) for k in range(count)], estimator, lengths)
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(np.einsum("nd,nd->n", differences.astype(np.float64), vectors[folds]), nan=0.0)
