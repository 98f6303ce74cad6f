"""A reward model trained as a whole by TRL, with what an arm does to the pairs, and judged on the other prompts.

In: pairs, the folder of a model, an arm and a seed. Out: one line of results, as those of `reward_trials`. Margins come
from the chat model's direction, so they are another model's. This file knows no heads and no tables.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from reward_arms import treatments
from reward_heads import Treatment
from reward_states import Sets
from reward_trials import Setting, Tally, halves, trained_pairs

from legend_hf.reports.trl_rows import token_ids
from legend_hf.training.rewards import Ids, Training, reward_ahead, reward_tokenizer

BATCH = 8
EPOCHS = 1
RATE = 1e-4


def trained_trial(sets: Sets, setting: Setting, model: Path, arm: str, seed: int, tokens: int) -> dict[str, Any]:
    """One arm and one seed: both halves of the prompts.

    Args:
        sets: Pairs with the states that the margins are made of.
        setting: Where the direction is read, and which sets are trained on.
        model: Folder of the model to train.
        arm: Its name.
        seed: Of the halves, the head and the order of the pairs.
        tokens: Pairs with a longer side are left out, to be done in hours.
    """
    ids = ids_of(sets, model)
    short = np.array([max(map(len, pair)) <= tokens for pair in ids]) & np.isin(sets.names, setting.trained_on)
    tally = Tally(len(sets.rows))
    for side in halves(sets, seed):
        inside = np.isin(sets.names, setting.trained_on) & side
        arms = treatments(trained_pairs(sets, inside, setting, seed, None), [arm])
        treatment, of_short = arms[arm], short[inside]
        judged = ~np.isin(sets.groups, sets.groups[inside]) & short
        rows = [pair for pair, there in zip(ids, inside & short, strict=True) if there]
        others = [pair for pair, there in zip(ids, judged, strict=True) if there]
        use, numbers, kept = as_column(treatment, of_short)
        how = Training(str(model), steps=EPOCHS * len(rows) // BATCH, batch_size=BATCH, learning_rate=RATE)
        trained = [row for row, there in zip(rows, kept, strict=True) if there]
        ahead = reward_ahead(trained, others, how, use=use, numbers=numbers, seed=seed)
        tally.times[judged] += 1
        tally.add(arm, ahead, judged, sets.names)
    return tally.line() | {"trained": len(rows)}


def ids_of(sets: Sets, model: Path) -> list[Ids]:
    """Both sides of each pair as token ids."""
    tokenizer = reward_tokenizer(str(model))
    return [token_ids({key: row[key] for key in ("prompt", "chosen", "rejected")}, tokenizer) for row in sets.rows]


def as_column(treatment: Treatment, where: np.ndarray) -> tuple[str | None, np.ndarray | None, np.ndarray]:
    """The column that a trainer reads, its numbers, and which of the pairs `where` are trained on."""
    weight = treatment.weight[where]
    if treatment.margin is not None:
        return "margin", treatment.margin[where], np.ones(len(weight), dtype=bool)
    if (treatment.target < 1).any():
        return "margin_prob", treatment.target[where], np.ones(len(weight), dtype=bool)
    if np.isin(treatment.weight, (0, 1)).all():
        return None, None, weight > 0
    return "weight", weight, np.ones(len(weight), dtype=bool)
