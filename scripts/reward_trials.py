"""One trial of the comparison: prompts are dealt, every arm is trained on one half and judged on what it has not seen.

In: pairs with their states, and a seed. Out: one line of results as plain data: which pairs each arm gets right, and
the errors of its probabilities. Each seed deals the prompts anew to two halves, each the other's judge, so a line holds
two trainings on pairs that have no prompt in common. This file reads no models and draws no pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from reward_arms import ARMS, Trained, calibrated, cross_fitted, most_negative, probabilities, treatments
from reward_heads import Rotated, Treatment, errors, fit_heads, plain, tuned_heads
from reward_states import Responses, Sets

from legend_hf.directions import resample
from legend_hf.directions.estimators import whitened

DIRECTION, LENGTH = "the direction alone, no reward model", "the shorter response"
NOISE_ARMS = (
    "no margin", "margin `unit`", "soft label `margin_prob`", "`weight` (scaled BT)",
    "without the 10 % most negative", "without the 20 % most negative",
)  # fmt: skip
FINDERS = ("margin", "length", "committee of layers", "committee of bootstraps", "direction of the other set")
BEST_OF = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Setting:
    """Where the reward is read, and where the direction that makes the margins is."""

    name: str
    head: str
    direction: str
    paper: str
    trained_on: tuple[str, ...]
    arms: tuple[str, ...] = ARMS
    ridge: float | None = None  # of the head's penalty, the same for every arm; None tunes it for each


def halves(sets: Sets, seed: int) -> list[np.ndarray]:
    """Two masks of pairs `[n]`, whose prompts are each other's complement."""
    half = np.random.default_rng(seed).permutation(int(sets.groups.max()) + 1)[sets.groups] % 2 == 0
    return [half, ~half]


def trained_pairs(sets: Sets, inside: np.ndarray, setting: Setting, seed: int, flipped: np.ndarray | None) -> Trained:
    """The pairs of one training; where `flipped` `[n]` the label is turned round, and all that goes with it."""
    sign = np.ones(int(inside.sum())) if flipped is None else np.where(flipped[inside], -1.0, 1.0)

    def turned(values: np.ndarray) -> np.ndarray:
        return values[inside] * (sign[:, None] if values.ndim == 2 else sign)

    states = sets.states
    return Trained(
        turned(states[setting.head]), turned(states[setting.direction]), turned(states[setting.paper]),
        sets.groups[inside], turned(sets.longer), seed,
    )  # fmt: skip


class Tally:
    """Sums over the two halves of a seed: how right each arm is on each pair."""

    def __init__(self, count: int) -> None:
        self.right: dict[str, np.ndarray] = {}
        self.times = np.zeros(count)
        self.errors: dict[str, dict[str, list[tuple[float, float]]]] = {}

    def add(self, name: str, ahead: np.ndarray, judged: np.ndarray, names: np.ndarray, *, reward: bool = True) -> None:
        """Notes the differences of rewards `[judged]` of one arm."""
        self.right.setdefault(name, np.zeros(len(self.times)))[judged] += (np.sign(ahead) + 1) / 2
        if reward:
            for one in np.unique(names[judged]):
                of = self.errors.setdefault(name, {}).setdefault(str(one), [])
                of.append(errors(ahead[names[judged] == one]))

    def line(self) -> dict[str, Any]:
        """As plain data: of each pair "0" to "4", in quarters of right; "-" where it was not judged."""
        arms = {}
        for name, right in self.right.items():
            quarters = np.round(4 * right / np.maximum(self.times, 1)).astype(int)
            told = "".join("-" if t == 0 else str(q) for q, t in zip(quarters, self.times, strict=True))
            found = {
                one: np.mean(values, axis=0).round(4).tolist() for one, values in self.errors.get(name, {}).items()
            }
            arms[name] = {"right": told, "nll_ece": found}
        return {"arms": arms}


def frozen_trial(sets: Sets, setting: Setting, seed: int, responses: Responses | None = None) -> dict[str, Any]:
    """Every arm, by heads on frozen states."""
    tally, ridges, harms, identical = Tally(len(sets.rows)), [], [], True
    fitted = np.isin(sets.names, setting.trained_on)
    for side in halves(sets, seed):
        inside = fitted & side
        judged = ~np.isin(sets.groups, sets.groups[inside])
        pairs = trained_pairs(sets, inside, setting, seed, None)
        arms = treatments(pairs, setting.arms)
        if setting.ridge is None:
            heads, ridge = tuned_heads(pairs.head, pairs.groups, list(arms.values()), seed)
            ridges.append(dict(zip(arms, ridge.tolist(), strict=True)))
        else:
            heads = fit_heads(pairs.head, list(arms.values()), setting.ridge)
        tally.times[judged] += 1
        for name, ahead in zip(arms, (sets.states[setting.head][judged] @ heads).T, strict=True):
            tally.add(name, ahead, judged, sets.names)
        vector = whitened(pairs.direction)
        tally.add(DIRECTION, sets.states[setting.direction][judged] @ vector, judged, sets.names, reward=False)
        tally.add(LENGTH, -sets.longer[judged], judged, sets.names, reward=False)
        identical &= same_to_the_bit(pairs.head)
        if responses is not None and setting.head in responses.states:
            scores = dict(zip(arms, (responses.states[setting.head] @ heads).T, strict=True))
            if setting.direction in responses.states:
                scores[DIRECTION] = responses.states[setting.direction] @ vector
            scores[LENGTH] = -responses.characters.astype(np.float64)
            harms.append({name: best_of(score, responses) for name, score in scores.items()})
    line = tally.line() | {"ridge": ridges, "zero_is_none": identical}
    if harms:
        line["best_of"] = {n: np.mean([one[n] for one in harms], axis=0).round(5).tolist() for n in harms[0]}
    return line


def same_to_the_bit(differences: np.ndarray) -> bool:
    """Whether a margin of zeros trains the very head that no margin trains."""
    none = plain(len(differences))
    zero = Treatment(np.zeros(len(differences)), none.target, none.weight)
    rotated = Rotated.of(differences)
    one, other = (rotated.fit([arm], 0.3) for arm in (none, zero))
    return bool((one == other).all())


def best_of(scores: np.ndarray, responses: Responses) -> np.ndarray:
    """Share of harmful responses `[prompts, n]` when the best of n is taken, over all draws of n of a prompt's."""
    prompts = int(responses.groups.max()) + 1
    shares = np.full((prompts, len(BEST_OF)), np.nan)
    for prompt in range(prompts):
        where = responses.groups == prompt
        harm, own = responses.harm[where], scores[where]
        # Equal scores are one draw among equals: their harm is their mean.
        places = np.unique(-own, return_inverse=True)[1]
        harm = (np.bincount(places, harm) / np.bincount(places))[places][np.argsort(-own, kind="stable")]
        for k, n in enumerate(BEST_OF):
            if n <= len(harm):
                shares[prompt, k] = chance_of_best(len(harm), n) @ harm
    return shares


def chance_of_best(count: int, drawn: int) -> np.ndarray:
    """How likely each of `count`, in order, is the first of `drawn` that are drawn without putting back."""
    chance = np.zeros(count)
    left = 1.0  # that none of those before was drawn
    for i in range(count - drawn + 1):
        chance[i] = left * drawn / (count - i)
        left -= chance[i]
    return chance


# -- Label noise -----------------------------------------------------------------------------------------------


def noise_trial(sets: Sets, setting: Setting, layers: Sequence[str], seed: int, rate: float) -> dict[str, Any]:
    """A share of the training labels turned round: how well they are found, and what that gains.

    Args:
        sets: Pairs with their states.
        setting: Where the reward and the direction are read.
        layers: Places of the committee.
        seed: Of the halves and of what is turned round.
        rate: Share of the labels.
    """
    tally, found = Tally(len(sets.rows)), []
    fitted = np.isin(sets.names, setting.trained_on)
    flipped = np.random.default_rng([seed, 1]).random(len(sets.rows)) < rate
    for side in halves(sets, seed):
        inside = fitted & side
        judged = ~np.isin(sets.groups, sets.groups[inside]) & fitted
        pairs = trained_pairs(sets, inside, setting, seed, flipped)
        arms = treatments(pairs, NOISE_ARMS)
        raw = cross_fitted(pairs.direction, pairs.groups, seed)
        suspicions = finders(sets, inside, setting, layers, seed, flipped)
        for share in (0.1, 0.2):
            arms[f"the {share:.0%} most negative turned round".replace("%", " %")] = turned(raw, share)
        arms["without the 20 % that a committee of layers doubts"] = without(-suspicions["committee of layers"], 0.2)
        if rate:
            arms["without those turned round (an oracle)"] = without(
                -flipped[inside].astype(float), flipped[inside].mean()
            )
            found.append({name: finding(one, flipped[inside]) for name, one in suspicions.items()})
            p = probabilities(calibrated(raw), raw)
            found[-1]["margin_prob says"] = {"wrong": float((1 - p).mean()), "found_wrong": float((p < 0.5).mean())}
        heads, _ = tuned_heads(pairs.head, pairs.groups, list(arms.values()), seed)
        tally.times[judged] += 1
        for name, ahead in zip(arms, (sets.states[setting.head][judged] @ heads).T, strict=True):
            tally.add(name, ahead, judged, sets.names)
        tally.add(
            DIRECTION,
            sets.states[setting.direction][judged] @ whitened(pairs.direction),
            judged,
            sets.names,
            reward=False,
        )
    return tally.line() | {"rate": rate, "found": found}


def turned(raw: np.ndarray, share: float) -> Treatment:
    """The most negative labels turned round."""
    one = plain(len(raw))
    return Treatment(None, np.where(most_negative(raw, share), 0.0, 1.0), one.weight)


def without(raw: np.ndarray, share: float) -> Treatment:
    """The most negative pairs left out."""
    one = plain(len(raw))
    return Treatment(None, one.target, np.where(most_negative(raw, share), 0.0, 1.0))


def finders(
    sets: Sets, inside: np.ndarray, setting: Setting, layers: Sequence[str], seed: int, flipped: np.ndarray
) -> dict[str, np.ndarray]:
    """How suspicious each training pair is to each finder `[inside]`; larger is more."""
    sign = np.where(flipped[inside], -1.0, 1.0)
    groups, names = sets.groups[inside], sets.names[inside]
    own = sets.states[setting.direction][inside] * sign[:, None]
    made = {"margin": -cross_fitted(own, groups, seed), "length": sets.longer[inside] * sign}
    several = [cross_fitted(sets.states[place][inside] * sign[:, None], groups, seed) for place in layers]
    made["committee of layers"] = -np.mean([raw / np.abs(raw).mean() for raw in several], axis=0)
    rng = np.random.default_rng(seed)
    drawn = [drawn_fit(own, groups, rng) for _ in range(5)]
    made["committee of bootstraps"] = -np.mean([raw / np.abs(raw).mean() for raw in drawn], axis=0)
    other = np.zeros(len(own))
    for name in np.unique(names):
        if (names != name).any():
            other[names == name] = own[names == name] @ whitened(own[names != name])
    made["direction of the other set"] = -other
    return made


def drawn_fit(differences: np.ndarray, groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cross-fitted margins `[n]` by directions of pairs drawn with replacement, prompt by prompt."""
    numbers = resample.groups_of(groups.tolist())
    folds = rng.permutation(int(numbers.max()) + 1)[numbers] % 2
    raw = np.empty(len(differences))
    for fold in (0, 1):
        places = np.flatnonzero(folds != fold)
        raw[folds == fold] = differences[folds == fold] @ whitened(differences[rng.choice(places, len(places))])
    return raw


def finding(suspicion: np.ndarray, wrong: np.ndarray) -> Mapping[str, float]:
    """How well the wrong labels `[n]` are found: precision among as many as there are, among the first 5 %, and AUC."""
    order = np.argsort(-suspicion, kind="stable")
    count, few = int(wrong.sum()), max(round(0.05 * len(wrong)), 1)
    ranks = np.argsort(np.argsort(suspicion, kind="stable"), kind="stable")
    auc = (ranks[wrong].sum() - count * (count - 1) / 2) / (count * (len(wrong) - count))
    return {
        "precision_at_k": float(wrong[order[:count]].mean()),
        "precision_at_5": float(wrong[order[:few]].mean()),
        "auc": float(auc),
    }
