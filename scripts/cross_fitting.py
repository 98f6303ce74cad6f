"""Directions fitted on some prompts and judged on others: recipes, how prompts are dealt, and the table of it.

In: pairs as one reader sees them, differences of every layer. Out: for each recipe which pairs it gets right when it
was fitted without their prompts, and a Markdown table with intervals by prompt. This file reads no models and no files.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from legend_hf.directions import resample
from legend_hf.directions.choose import TRIED, Choice, choose, right, without_length
from legend_hf.directions.estimators import ESTIMATORS
from legend_hf.reading.reader import Reader

TITLES = {
    "hh_harmless": "hh-rlhf harmless",
    "pku_saferlhf": "PKU-SafeRLHF",
    "refuse_vs_comply": "refusal or compliance",
    "gptfuzz_labelled": "GPTFuzz",
    "induced": "induced",
    "induced_several": "induced, several refusals",
}


@dataclass(frozen=True, eq=False)
class Recipe:
    """One way to fit. None: chosen on held-out prompts."""

    title: str
    layer: int | None = None
    estimators: tuple[str, ...] = TRIED
    debias: bool = False
    shuffled: bool = False
    by_source: bool = False


PAPER = Recipe("the paper's: last layer, mean difference", layer=-1, estimators=("mean_difference",))
AUTO = Recipe("**what `fit` chooses by itself**")
RECIPES = (
    PAPER,
    Recipe("layer chosen, mean difference", estimators=("mean_difference",)),
    Recipe("layer chosen, whitened", estimators=("whitened",)),
    Recipe("layer chosen, logistic", estimators=("logistic",)),
    Recipe("layer chosen, first principal direction", estimators=("pca",)),
    AUTO,
    Recipe('... with `debias="length"`', debias=True),
)
SHUFFLED = Recipe("labels drawn at random", shuffled=True)
LENGTH = "length alone"


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs as one reader sees them.

    Attributes:
        rows: The readable rows.
        names: The set of each pair, `[n]`.
        groups: Their prompts, `[n]`.
        lengths: Characters of chosen and rejected, `[n, 2]`.
        differences: `[layers, n, d_model]`.
    """

    rows: list[dict[str, Any]]
    names: np.ndarray
    groups: np.ndarray
    lengths: np.ndarray
    differences: np.ndarray

    def longer(self) -> np.ndarray:
        """Difference of the log lengths, `[n]`."""
        logs = np.log1p(self.lengths)
        return logs[:, 0] - logs[:, 1]


@dataclass(eq=False)
class Outcome:
    """What one recipe did over all seeds: sums over the pairs, `[n]`, and how often each pair was scored."""

    right: np.ndarray
    times: np.ndarray
    chosen: Counter[str] = field(default_factory=Counter)
    promised: list[float] = field(default_factory=list)

    @property
    def share(self) -> np.ndarray:
        """Share of seeds that got each pair right, NaN for pairs never scored."""
        with np.errstate(invalid="ignore"):
            return self.right / self.times


def fit_on(pairs: Pairs, inside: np.ndarray, recipe: Recipe, reader: Reader, seed: int) -> tuple[np.ndarray, Choice]:
    """What `fit_direction` does once the pairs are read: the vector `[d_model]` and how it was chosen."""
    layers = list(range(reader.n_layers + 1)) if recipe.layer is None else [recipe.layer % (reader.n_layers + 1)]
    # Only the layers that may be chosen: a copy, for the labels may be turned round.
    differences = pairs.differences[np.ix_(np.array(layers), np.flatnonzero(inside))]
    longer = pairs.longer()[inside]
    if recipe.shuffled:
        sides = np.random.default_rng(seed).choice(np.array([-1, 1], dtype=np.float32), size=len(longer))
        differences *= sides[None, :, None]
        longer = longer * sides
    lengths = longer if recipe.debias else None
    groups = resample.groups_of(pairs.groups[inside].tolist())
    choice = choose(
        differences, layers, recipe.estimators, groups, middle=reader.n_layers / 2, seed=seed, lengths=lengths,
        sources=resample.groups_of(pairs.names[inside].tolist()) if recipe.by_source else None,
    )  # fmt: skip
    vector = ESTIMATORS[choice.estimator](without_length(differences[choice.place], lengths))
    return vector, choice


def run(pairs: Pairs, recipe: Recipe, reader: Reader, splits: Sequence[tuple[np.ndarray, np.ndarray, int]]) -> Outcome:
    """Fits and scores one recipe on every split: the pairs to fit on, those to score, the seed."""
    outcome = Outcome(np.zeros(len(pairs.rows)), np.zeros(len(pairs.rows)))
    for inside, outside, seed in splits:
        vector, choice = fit_on(pairs, inside, recipe, reader, seed)
        layer = choice.place if recipe.layer is None else recipe.layer % (reader.n_layers + 1)
        outcome.right[outside] += right(pairs.differences[layer, outside] @ vector)
        outcome.times[outside] += 1
        outcome.chosen[f"layer {layer}, {choice.estimator}"] += 1
        outcome.promised.append(float(right(choice.unbiased).mean()))
    return outcome


def splits_of(pairs: Pairs, fitted: np.ndarray, seeds: int) -> list[tuple[np.ndarray, np.ndarray, int]]:
    """For each seed two halves of the prompts of `fitted`, each the other's judge; all other sets judge both."""
    transfer = ~np.isin(pairs.names, np.unique(pairs.names[fitted]))
    splits = []
    for seed in range(seeds):
        half = np.random.default_rng(seed).permutation(int(pairs.groups.max()) + 1)[pairs.groups] % 2 == 0
        for side in (half, ~half):
            # A prompt that two sets share must not be fitted on in one and judged in the other.
            inside = fitted & side
            known = np.isin(pairs.groups, pairs.groups[inside])
            splits.append((inside, ((fitted & ~side) | transfer) & ~known, seed))
    return splits


def section_of(
    title: str,
    note: str,
    pairs: Pairs,
    judged: np.ndarray,
    outcomes: Mapping[str, Outcome],
    averaged: Sequence[str],
) -> tuple[str, dict[str, Any]]:
    """Markdown and numbers: accuracy of each recipe on each set, and how far ahead what `fit` chooses is."""
    shares = {name: outcome.share for name, outcome in outcomes.items()}
    own, shorter = shares[AUTO.title], right(-pairs.longer())
    sets = {n: judged & (pairs.names == n) & np.isfinite(own) for n in TITLES if (pairs.names == n).any()}
    numbers: dict[str, Any] = {
        "pairs": {name: int(where.sum()) for name, where in sets.items()},
        "prompts": {name: len(np.unique(pairs.groups[where])) for name, where in sets.items()},
        "chosen": {name: dict(outcome.chosen) for name, outcome in outcomes.items()},
        "promised": {name: outcome.promised for name, outcome in outcomes.items()},
        "accuracy": {},
        "ahead": {},
    }
    heads = [f"{TITLES[name]} ({int(where.sum())})" for name, where in sets.items()]
    lines = [f"| | {' | '.join(heads)} | average |", "|---" * (len(sets) + 2) + "|"]

    def row(kind: str, name: str, measure: Callable[[np.ndarray], list[float]], values: Sequence[np.ndarray]) -> None:
        """One line: a cell for each set, and the average of `values`, those of each set that is averaged."""
        cells = {s: measure(where) for s, where in sets.items()}
        cells["average"] = average([(v, pairs.groups[sets[s]]) for s, v in zip(averaged, values, strict=True)])
        numbers[kind][name] = cells
        form = "{:+.1f}" if kind == "ahead" else "{:.1f}"
        written = [f"{form} [{form}, {form}]".format(*(100 * x for x in c)) for c in cells.values()]
        lines.append(f"| {name} | {' | '.join(written)} |")

    inside = [sets[s] for s in averaged]
    numbers["rules"] = {s: "shorter" if shorter[where].mean() >= 0.5 else "longer" for s, where in sets.items()}
    rules = " or ".join(dict.fromkeys(numbers["rules"].values()))
    row(
        "accuracy", f"{LENGTH} (the {rules} response)",
        lambda where: cell(*resample.better_rule(shorter[where], resample.groups_of(pairs.groups[where].tolist()))[1:]),
        [better(shorter[where]) for where in inside],
    )  # fmt: skip

    def right_of(values: np.ndarray) -> Callable[[np.ndarray], list[float]]:
        return lambda where: share(values[where], pairs.groups[where])

    for name, values in shares.items():
        row("accuracy", name, right_of(values), [values[where] for where in inside])
    paper = shares[PAPER.title]
    row(
        "ahead", "ahead of the paper's recipe",
        lambda where: ahead(own[where], paper[where], pairs.groups[where]),
        [own[where] - paper[where] for where in inside],
    )  # fmt: skip
    row(
        "ahead", f"ahead of {LENGTH}",
        lambda where: ahead_of_rule(own[where], shorter[where], pairs.groups[where]),
        [own[where] - better(shorter[where]) for where in inside],
    )  # fmt: skip
    return "\n\n".join([f"### {title}", note, "\n".join(lines)]), numbers


def share(values: np.ndarray, groups: np.ndarray) -> list[float]:
    """Mean of values `[n]` in [0, 1] and its 95 % interval by prompt."""
    return cell(*resample.share_interval(values, resample.groups_of(groups.tolist())))


def ahead(values: np.ndarray, other: np.ndarray, groups: np.ndarray) -> list[float]:
    """How much more often one is right `[n]` than another, and the interval."""
    interval = resample.difference_interval(values - other, resample.groups_of(groups.tolist()))
    return cell(float((values - other).mean()), interval)


def ahead_of_rule(values: np.ndarray, rule: np.ndarray, groups: np.ndarray) -> list[float]:
    """How much more often one is right `[n]` than the better of a rule and its opposite, and the interval."""
    return cell(*resample.gain_over_rule(values, rule, resample.groups_of(groups.tolist())))


def cell(value: float, interval: resample.Interval | None) -> list[float]:
    """A number and the ends of its interval, NaN where there is none."""
    return [value, *(interval or (math.nan, math.nan))]


def better(rule: np.ndarray) -> np.ndarray:
    """A rule that is right or wrong `[n]`, or its opposite if that is right more often."""
    return rule if rule.mean() >= 0.5 else 1 - rule


def average(sets: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[float]:
    """Mean of the sets' means, each set counting the same, and its 95 % interval: sets are drawn independently."""
    means = [float(values.mean()) for values, _ in sets]
    errors = [resample.standard_errors(v[:, None], resample.groups_of(g.tolist()))[0] for v, g in sets]
    mean, error = float(np.mean(means)), float(np.sqrt(np.sum(np.square(errors)))) / len(sets)
    return [mean, mean - 1.96 * error, mean + 1.96 * error]
