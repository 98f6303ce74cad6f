"""What raises the accuracy of a direction on a real chat LLM, and what does not: each way beside what `fit` does.

In: the folder that `scripts/real_llm` makes; a folder with the sets that `evaluate_direction.py` takes; where
`evaluate_induced.py` ran before, its pairs too. Out: tables on the terminal, in Markdown and as JSON. Hidden states are
those of `evaluate_direction.py`, kept outside the repository.

* Ways to fit, on half of the prompts of hh-rlhf and PKU-SafeRLHF, judged on the other half: the last token, pairs
  cleaned by raters or by a first fit, several fits averaged. Judged pairs are never cleaned.
* Pooling on either set and on both: mean, last token or end of turn, and the one that held-out accuracy picks.
* The chat template beside plain dialogue, on the first pairs of both.
* Choosing by sources left out, on pairs of a source that is not among them, and on more of the same.

    python scripts/evaluate_variants.py --data ../shared/data --results scripts/RESULTS.md
"""

from __future__ import annotations

import argparse
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cross_fitting import AUTO, TITLES, Outcome, Pairs, Recipe, ahead, average, fit_on, share, splits_of
from evaluate_real import FITTED, Read, percent, read_sets
from real_runs import answers_of, made_by, measure, options
from train_demo_annotator import read_jsonl

from legend_hf.directions import resample
from legend_hf.directions.choose import Choice, right
from legend_hf.directions.estimators import ESTIMATORS, unit
from legend_hf.reading.reader import Reader

log = logging.getLogger("evaluate_variants")
BOOTSTRAPS = 10
SHARES = (0.1, 0.2)  # of the pairs, the most suspicious of a first fit
USUAL = "what `fit` does"
BY_SOURCE = Recipe("by sources left out", by_source=True)

MEAN, LAST, END = USUAL, "last token of the response", "end-of-turn token"
PICKED = "picked by held-out accuracy"

Fitted = tuple[Pairs, int, np.ndarray]  # the view that is scored, the layer, the vector


def main() -> None:
    """Read, fit, tell."""
    parser = options(__doc__, kept="what was read of the model")
    parser.add_argument("--first", nargs="*", default=[], metavar="SET=PAIRS", help="only a set's first pairs")
    parser.add_argument(
        "--template-pairs", type=int, default=128, help="pairs of either set read as plain dialogue; 0: none"
    )
    parser.add_argument("--ends", type=int, metavar="PAIRS", help="pooling: only the first pairs of either set")
    parser.add_argument("--seeds", type=int, default=4, help="how often the prompts are dealt anew")
    measure(parser.parse_args(), variants_section, "variants")


def variants_section(model: Path, given: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """All tables, and their numbers."""
    limits = {name: int(count) for name, count in (one.split("=") for one in given.first)}
    made = answers_of(given, "chat")
    more = {"induced": read_jsonl(made)} if made.is_file() else {}
    read, reader = read_sets(model, given.data, given.kept, limits, given.device, more, dtype=given.dtype)
    first = f" --first {' '.join(given.first)}" if given.first else ""
    first += f" --ends {given.ends}" if given.ends is not None else ""
    intro = (
        "## What raises it\n\nOn SmolLM2-135M-Instruct, dequantised from 4 bits: share of pairs, in %, whose safer "
        "response scores higher, on prompts that were not fitted on, with 95 % intervals by prompt; means over "
        f"{given.seeds} ways of dealing the prompts. Made by "
        f"`{made_by('evaluate_variants', given, first)}`."
    )
    parts, numbers = [intro], {}
    for name, part in (("ways", ways), ("pooling", pooling), ("templates", templates), ("sources", by_sources)):
        told = part(read, reader, model, given)
        if told is not None:
            parts.append(told[0])
            numbers[name] = told[1]
            log.info("\n%s\n", told[0])
    return "\n\n".join(parts), numbers


# -- Ways to fit ---------------------------------------------------------------------------------------------


def ways(read: Read, reader: Reader, model: Path, given: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Each way's accuracy on the other half, and how far it is ahead of what `fit` does."""
    pairs = read.pairs
    fitted = np.isin(pairs.names, FITTED)
    outcomes: dict[str, Outcome] = {}
    for inside, outside, seed in splits_of(pairs, fitted, given.seeds):
        for name, fit in ways_of(read, inside, reader, seed).items():
            judge(outcomes, name, outside, fit)
        log.info("seed %d", seed)
    note = (
        "Fitted on half of the prompts of hh-rlhf and PKU-SafeRLHF. Raters: pairs of PKU-SafeRLHF left out of the fit "
        "whose raters are not of one mind, or one of whom voted against. A first fit: the pairs with the lowest "
        f"held-out margins left out of the second. Averaged: {BOOTSTRAPS} fits on prompts drawn anew, at the layer "
        "that was chosen."
    )
    return compared("Ways to fit", note, pairs, outcomes)


def ways_of(read: Read, inside: np.ndarray, reader: Reader, seed: int) -> dict[str, Fitted]:
    """Every way's direction of some pairs."""
    pairs = read.pairs
    vector, choice = fit_on(pairs, inside, AUTO, reader, seed)
    found = {USUAL: (pairs, choice.place, vector), LAST: refit(read.last, inside, reader, seed)}
    doubted = np.array([not row.get("clean", True) or row.get("votes_against", 0) > 0 for row in pairs.rows])
    found["without what raters doubt"] = refit(pairs, inside & ~doubted, reader, seed)
    for lost in SHARES:
        keep = inside.copy()
        keep[np.flatnonzero(inside)[np.argsort(choice.comparable)[: int(lost * inside.sum())]]] = False
        found[f"without the {100 * lost:.0f} % that a first fit doubts"] = refit(pairs, keep, reader, seed)
    found[f"{BOOTSTRAPS} fits averaged"] = (pairs, choice.place, bagged(pairs, inside, choice, seed))
    return found


def judge(outcomes: dict[str, Outcome], name: str, outside: np.ndarray, fit: Fitted) -> None:
    """Adds to a way's outcome what it does with the pairs `[n]` that it was not fitted on."""
    view, layer, vector = fit
    outcome = outcomes.setdefault(name, Outcome(np.zeros(len(view.rows)), np.zeros(len(view.rows))))
    outcome.right[outside] += right(view.differences[layer, outside] @ vector)
    outcome.times[outside] += 1


def refit(pairs: Pairs, inside: np.ndarray, reader: Reader, seed: int) -> Fitted:
    """What `fit` chooses on other pairs."""
    vector, choice = fit_on(pairs, inside, AUTO, reader, seed)
    return pairs, choice.place, vector


def bagged(pairs: Pairs, inside: np.ndarray, choice: Choice, seed: int) -> np.ndarray:
    """The mean of unit vectors, each of prompts drawn with replacement."""
    places = np.flatnonzero(inside)
    groups = resample.groups_of(pairs.groups[places].tolist())
    members = [places[groups == group] for group in range(int(groups.max()) + 1)]
    chance = np.random.default_rng(seed)
    vectors = []
    for _ in range(BOOTSTRAPS):
        drawn = np.concatenate([members[i] for i in chance.integers(len(members), size=len(members))])
        vectors.append(ESTIMATORS[choice.estimator](pairs.differences[choice.place, drawn]))
    return unit(np.mean(vectors, axis=0))


def compared(title: str, note: str, pairs: Pairs, outcomes: Mapping[str, Outcome]) -> tuple[str, dict[str, Any]]:
    """A table of ways: accuracy on each set, and the average's lead over the first way."""
    base = next(iter(outcomes.values())).share
    sets = {n: (pairs.names == n) & np.isfinite(base) for n in TITLES if ((pairs.names == n) & np.isfinite(base)).any()}
    heads = [f"{TITLES[n]} ({int(where.sum())})" for n, where in sets.items()]
    lines = [f"| | {' | '.join(heads)} | mean of the first two | ahead |", "|---" * (len(sets) + 3) + "|"]
    numbers: dict[str, Any] = {}
    for name, outcome in outcomes.items():
        values = outcome.share
        cells = [share(values[where], pairs.groups[where]) for where in sets.values()]
        both = average([(values[sets[n]], pairs.groups[sets[n]]) for n in FITTED])
        lead = average([((values - base)[sets[n]], pairs.groups[sets[n]]) for n in FITTED])
        numbers[name] = {**dict(zip(sets, cells, strict=True)), "mean": both, "ahead": lead}
        gain = "" if outcome is next(iter(outcomes.values())) else signed(lead)
        lines.append(f"| {name} | {' | '.join(map(percent, cells))} | {percent(both)} | {gain} |")
    return f"### {title}\n\n{note}\n\n" + "\n".join(lines), numbers


def signed(cell: Sequence[float]) -> str:
    """A difference and its interval, in points."""
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * x for x in cell))


# -- Pooling -------------------------------------------------------------------------------------------------


def pooling(read: Read, reader: Reader, model: Path, given: argparse.Namespace) -> tuple[str, dict[str, Any]] | None:
    """Every pooling's accuracy on the other half of one set or both, and how often each was picked."""
    limits = {name: int((read.pairs.names == name).sum()) if name in FITTED else 0 for name in TITLES}
    if given.ends is not None:
        limits = {name: min(count, given.ends) for name, count in limits.items()}
    seen, _ = read_sets(model, given.data, given.kept, limits, given.device, ends=FITTED, dtype=given.dtype)
    views = {MEAN: seen.pairs, LAST: seen.last, END: seen.ends}
    if seen.ends is None:  # the template of another model may end no turn
        del views[END]
    return by_pooling({name: view for name, view in views.items() if view is not None}, reader, given.seeds)


def by_pooling(views: Mapping[str, Pairs], reader: Reader, seeds: int) -> tuple[str, dict[str, Any]]:
    """The table of some views of the same pairs."""
    pairs = views[MEAN]
    numbers: dict[str, Any] = {}
    heads = [name.replace(MEAN, "mean over the response") for name in (*views, PICKED)]
    lines = [f"| fitted and judged on | {' | '.join(heads)} | ahead of the mean | took |"]
    lines += ["|---" * (len(heads) + 3) + "|"]
    for sets in (*((name,) for name in FITTED), FITTED):
        outcomes: dict[str, Outcome] = {}
        took: Counter[str] = Counter()
        fitted = np.isin(pairs.names, sets)
        for inside, outside, seed in splits_of(pairs, fitted, seeds):
            fits = {name: fit_on(view, inside, AUTO, reader, seed) for name, view in views.items()}
            best = max(fits, key=lambda name: float(right(fits[name][1].unbiased).mean()))
            for name, taken in (*zip(views, views, strict=True), (PICKED, best)):
                vector, choice = fits[taken]
                judge(outcomes, name, outside & fitted, (views[taken], choice.place, vector))
            took[best.replace(MEAN, "mean")] += 1
        judged = [(pairs.names == name) & (outcomes[MEAN].times > 0) for name in sets]
        title = " and ".join(TITLES[name] for name in sets)
        cells = {name: over(outcome.share, pairs, judged) for name, outcome in outcomes.items()}
        lead = over(outcomes[PICKED].share - outcomes[MEAN].share, pairs, judged)
        numbers[title] = {**cells, "ahead": lead, "took": dict(took)}
        picked = ", ".join(f"{name} ({times}x)" for name, times in took.most_common())
        told = [*map(percent, cells.values()), signed(lead), picked]
        lines.append(f"| {title} ({int(sum(where.sum() for where in judged))}) | {' | '.join(told)} |")
        log.info("%s", lines[-1])
    note = (
        "Fitted on half of the prompts of one set alone, or of both, and judged on the other half of the same; both "
        "sets count the same."
    )
    return f"### Pooling\n\n{note}\n\n" + "\n".join(lines), numbers


def over(values: np.ndarray, pairs: Pairs, sets: Sequence[np.ndarray]) -> list[float]:
    """Mean of values `[n]` over some sets, each counting the same, and its interval."""
    return average([(values[where], pairs.groups[where]) for where in sets])


# -- Templates -----------------------------------------------------------------------------------------------


def templates(read: Read, reader: Reader, model: Path, given: argparse.Namespace) -> tuple[str, dict[str, Any]] | None:
    """The first pairs of both sets, read with the chat template and as plain dialogue."""
    if not given.template_pairs:
        return None
    limits = {**dict.fromkeys(TITLES, 0), **dict.fromkeys(FITTED, given.template_pairs)}
    views = {
        "chat template": read_sets(model, given.data, given.kept, limits, given.device, dtype=given.dtype)[0].pairs,
        "plain dialogue": read_sets(
            model, given.data, given.kept, limits, given.device, template="dialogue", dtype=given.dtype
        )[0].pairs,
    }
    pairs = next(iter(views.values()))
    outcomes: dict[str, Outcome] = {}
    for inside, outside, seed in splits_of(pairs, np.ones(len(pairs.rows), dtype=bool), given.seeds):
        for name, view in views.items():
            vector, choice = fit_on(view, inside, AUTO, reader, seed)
            outcome = outcomes.setdefault(name, Outcome(np.zeros(len(pairs.rows)), np.zeros(len(pairs.rows))))
            outcome.right[outside] += right(view.differences[choice.place, outside] @ vector)
            outcome.times[outside] += 1
    note = f"The first {given.template_pairs} pairs of either set, read both ways; half fitted on, half judged."
    return compared("Chat template or plain dialogue", note, pairs, outcomes)


# -- Sources -------------------------------------------------------------------------------------------------


def by_sources(read: Read, reader: Reader, model: Path, given: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Each set in turn is the unseen source: chosen by prompts, or by sources, of half of all others."""
    pairs = read.pairs
    sets = [n for n in TITLES if (pairs.names == n).any()]
    numbers: dict[str, Any] = {}
    lines = [
        "| unseen | by prompts | by sources | ahead | more of the same, by prompts | by sources | ahead |",
        "|---" * 7 + "|",
    ]
    ways: dict[str, Callable[[np.ndarray, int], tuple[np.ndarray, Choice]]] = {
        recipe.title: (lambda inside, seed, recipe=recipe: fit_on(pairs, inside, recipe, reader, seed))  # type: ignore[misc]
        for recipe in (AUTO, BY_SOURCE)
    }
    for target in sets:
        unseen, others = pairs.names == target, pairs.names != target
        outcomes = {name: Outcome(np.zeros(len(pairs.rows)), np.zeros(len(pairs.rows))) for name in ways}
        for seed in range(given.seeds):
            half = np.random.default_rng(seed).permutation(int(pairs.groups.max()) + 1)[pairs.groups] % 2 == 0
            inside = others & half & ~np.isin(pairs.groups, pairs.groups[unseen])
            judged = ~np.isin(pairs.groups, pairs.groups[inside])
            for name, fit in ways.items():
                vector, choice = fit(inside, seed)
                outcomes[name].right[judged] += right(pairs.differences[choice.place, judged] @ vector)
                outcomes[name].times[judged] += 1
                outcomes[name].chosen[f"layer {choice.place}, {choice.estimator}"] += 1
        a, b = (outcome.share for outcome in outcomes.values())
        scored = np.isfinite(a)
        where = unseen & scored
        groups = pairs.groups[where]
        there = [share(a[where], groups), share(b[where], groups), ahead(b[where], a[where], groups)]
        same = [n for n in sets if n != target]
        at_home = [
            average([(values[(pairs.names == n) & scored], pairs.groups[(pairs.names == n) & scored]) for n in same])
            for values in (a, b, b - a)
        ]
        numbers[target] = {
            "unseen": there, "same": at_home, "took": {name: dict(o.chosen) for name, o in outcomes.items()}
        }  # fmt: skip
        cells = [percent(there[0]), percent(there[1]), signed(there[2])]
        cells += [percent(at_home[0]), percent(at_home[1]), signed(at_home[2])]
        lines.append(f"| {TITLES[target]} | {' | '.join(cells)} |")
        log.info("%s", lines[-1])
    note = (
        "`fit_direction(source_column=)`. Each set in turn is left out; layer and estimator are chosen, and the "
        "direction fitted, on half of the prompts of all others, by held-out prompts or by sources left out. Judged on "
        "the set left out, and on the other half of the prompts of the others, each set counting the same."
    )
    return f"### Choosing by sources\n\n{note}\n\n" + "\n".join(lines), numbers


if __name__ == "__main__":
    main()
