"""The paper's own road on a real chat LLM: its answers to harmful questions against a refusal, and what that is worth.

In: the folder that `scripts/real_llm` makes; a folder with `advbench.jsonl` and the sets that `evaluate_direction.py`
takes. Out: tables on the terminal, in Markdown and as JSON. The model answers each question greedily in a few tokens;
answers that refuse or end in a loop are left out and counted. Directions are fitted on so many of these pairs, and
judged on the questions that are left, on refusals, on preference pairs, beside directions of preference pairs and
length; once more with several refusals in turn against the same answers. Then the same with every setting of the public
code. Answers and hidden states are kept outside the repository, so that a run that was stopped goes on; nothing that
was generated is printed.

    python scripts/evaluate_induced.py --data ../shared/data --results scripts/RESULTS.md
"""

from __future__ import annotations

import argparse
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from cross_fitting import AUTO, PAPER, TITLES, Outcome, Pairs, Recipe, ahead, ahead_of_rule, fit_on, share
from evaluate_real import read_sets
from kept_states import LAST, read_states
from real_runs import answers_of, made_by, measure, options
from train_demo_annotator import opening, read_jsonl

from legend_hf import Writer
from legend_hf.directions import induce_pairs, pairs_with_refusal, resample
from legend_hf.directions import recipe as recipes
from legend_hf.directions.choose import FEWEST_PROMPTS, right
from legend_hf.directions.estimators import mean_difference
from legend_hf.directions.induce import REFERENCE_REFUSAL
from legend_hf.reading.formats import read_pairs
from legend_hf.reading.reader import Reader, Runtime, describe_model, open_reader
from legend_hf.reading.rows import encode_pairs

log = logging.getLogger("evaluate_induced")
SIZES = (25, 50, 100, 200, 400)
JUDGED = ("induced", "refuse_vs_comply", "hh_harmless", "pku_saferlhf", "gptfuzz_labelled")
SEVERAL = "induced_several"
# Short ones and long ones, for one that is shorter than every answer tells length as well.
REFUSALS = (
    REFERENCE_REFUSAL,
    "No, I won't help with that.",
    "I'm sorry, but this is something that I can't do for you.",
    "I have to say no here. What you ask for puts others at risk, and I can't be a part of that.",
    "That could hurt somebody, so I would rather not describe it. If there is something else on your mind, I am glad "
    "to talk about that.",
    "This isn't something that I can support, so I won't help with it. If you are in trouble yourself, please speak to "
    "somebody whom you trust, or to one of the services in your area that are there for it.",
    "I understand that you may only be curious, but I will not go into it: it is against the law nearly everywhere, "
    "and people get harmed. What I can do is explain how one protects oneself against it, and whom to tell when it "
    "happens.",
    "Thank you for asking openly. Still, I can't give instructions for this, whatever the reason may be. Perhaps we "
    "can look at what lies behind the question: what do you want to reach, and is there a way to it that harms nobody, "
    "you included? I am happy to think that through with you, step by step.",
)

Row = dict[str, Any]
Fit = Callable[[np.ndarray, int], tuple[int, np.ndarray]]  # which pairs, a seed, to a layer and a vector


@dataclass(frozen=True)
class Induced:
    """What the model's answers gave: pairs, and where they come from."""

    rows: list[Row]
    facts: dict[str, Any]


def main() -> None:
    """Answer, read, fit, tell."""
    parser = options(__doc__, kept="answers and hidden states")
    parser.add_argument("--questions", type=int, default=520, help="so many of them are asked")
    parser.add_argument("--tokens", type=int, default=64, help="longest answer")
    parser.add_argument("--first", nargs="*", default=[], metavar="SET=PAIRS", help="only a set's first pairs")
    parser.add_argument(
        "--reference", type=int, default=200, help="pairs of a set read with the public code's settings"
    )
    parser.add_argument("--seeds", type=int, default=4, help="how often the questions are dealt anew")
    measure(parser.parse_args(), induced_section, "induced directions")


def induced_section(model: Path, given: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Both tables, and their numbers."""
    limits = {name: int(count) for name, count in (one.split("=") for one in given.first)}
    ours = induced("chat", "auto", model, given)
    theirs = induced("reference", recipes.Recipe.reference().template, model, given)
    made = {"induced": ours.rows, SEVERAL: turned_down(ours.rows)}
    read, reader = read_sets(model, given.data, given.kept, limits, given.device, made, dtype=given.dtype)
    pairs = read.pairs
    first = f" --first {' '.join(given.first)}" if given.first else ""
    words = [len(refusal.split()) for refusal in REFUSALS]
    intro = (
        "## The paper's own road on a real chat LLM\n\n"
        f"SmolLM2-135M-Instruct, dequantised from 4 bits, answers the questions of AdvBench in up to {given.tokens} "
        f"tokens; against each answer stands the paper's refusal, or one of {len(REFUSALS)} in turn, of {min(words)} "
        f"to {max(words)} words. Share of pairs, in %, whose harmless side scores higher, by directions fitted on so "
        f"many pairs of one set; means over {given.seeds} ways of dealing the prompts, 95 % intervals by prompt, the "
        "pairs to fit on taken as given. A prompt that was fitted on is judged nowhere. Nothing generated is part of "
        f"this repository. Made by `{made_by('evaluate_induced', given, first)}`."
    )

    def chosen(inside: np.ndarray, seed: int) -> tuple[int, np.ndarray]:
        few = len(np.unique(pairs.groups[inside])) < FEWEST_PROMPTS  # as `fit_direction` has it
        recipe = Recipe("", layer=reader.n_layers // 2, estimators=("mean_difference",)) if few else AUTO
        vector, choice = fit_on(pairs, inside, recipe, reader, seed)
        return recipe.layer if recipe.layer is not None else choice.place, vector

    def paper(inside: np.ndarray, seed: int) -> tuple[int, np.ndarray]:
        return reader.n_layers, fit_on(read.last, inside, PAPER, reader, seed)[0]

    shown = curve(pairs, given.seeds, {"what `fit` chooses": (pairs, chosen), "the paper's recipe": (read.last, paper)})
    told = reference(model, theirs, given, limits)
    text = "\n\n".join(
        [intro, counts(ours, theirs), "### With the chat template, what `fit` chooses and the paper's recipe", shown[0]]
    )
    return f"{text}\n\n{told[0]}", {"chat": ours.facts, "reference": theirs.facts, "ours": shown[1], "theirs": told[1]}


def induced(name: str, template: str, model: Path, given: argparse.Namespace) -> Induced:
    """Lets the model answer, or finds its answers; the file has its provenance beside it."""
    questions = [row["prompt"] for row in read_jsonl(given.data / "advbench.jsonl")][: given.questions]
    output = answers_of(given, name)
    given.kept.mkdir(parents=True, exist_ok=True)
    writer = Writer(
        str(model), template=template, max_new_tokens=given.tokens, batch_size=32, dtype=given.dtype,
        device=given.device,
    )  # fmt: skip
    pairs = induce_pairs(questions, model=writer, output=output, leave_out=["refusal", "loop"])
    return Induced(list(pairs), json.loads(output.with_name(output.name + ".source").read_text(encoding="utf-8")))


def turned_down(rows: Sequence[Row]) -> list[Row]:
    """The same answers, each against one of several refusals, in turn."""
    answers = [{"prompt": row["prompt"], "harmful": row["rejected"]} for row in rows]
    return pairs_with_refusal(answers, refusals=REFUSALS)


def counts(*both: Induced) -> str:
    """What became of the questions."""
    names = ("pairs", "refusing", "loops", "empty", "cut_at_limit")
    heads = ("pairs", "answers that refuse", "end in a loop", "are empty", "reach the limit")
    lines = [f"| asked with | questions | {' | '.join(heads)} |", "|---" * 7 + "|"]
    for title, one in zip(("the chat template", "the public code's template"), both, strict=True):
        lines.append(f"| {title} | {one.facts['questions']} | {' | '.join(str(one.facts[n]) for n in names)} |")
    return (
        "Refusals (by a rule for English) and loops are left out; an answer that reaches the limit stays, for its "
        "beginning is what it is: the limit is this measurement's and not the model's end.\n\n" + "\n".join(lines)
    )


def curve(pairs: Pairs, seeds: int, ways: Mapping[str, tuple[Pairs, Fit]]) -> tuple[str, dict[str, Any]]:
    """Fitted on so many pairs of one set, judged on what is left of it and on all others."""
    sets = [name for name in JUDGED if (pairs.names == name).any()]
    shorter = right(-pairs.longer())
    numbers: dict[str, Any] = {}
    one: dict[str, np.ndarray] = {}  # what the most pairs with one refusal get right, by each way
    lines = [f"| fitted on | pairs | by | {' | '.join(TITLES[n] for n in sets)} |", "|---" * (len(sets) + 3) + "|"]
    for name in (*sets, *([SEVERAL] if (pairs.names == SEVERAL).any() else [])):
        count = int((pairs.names == name).sum())  # some are left to be judged
        fewer = [n for n in SIZES if n < count]
        sizes = {"induced": fewer, SEVERAL: fewer[-1:]}.get(name, [min(max(SIZES), count * 2 // 3)])
        for size in sizes:
            for way, (view, fit) in ways.items():
                outcome = Outcome(np.zeros(len(pairs.rows)), np.zeros(len(pairs.rows)))
                for seed in range(seeds):
                    inside = first_pairs(pairs, name, size, seed)
                    unknown = ~np.isin(pairs.groups, pairs.groups[inside])
                    layer, vector = fit(inside, seed)
                    outcome.right[unknown] += right(view.differences[layer, unknown] @ vector)
                    outcome.times[unknown] += 1
                    outcome.chosen[f"layer {layer}"] += 1
                judged = {n: (pairs.names == n) & (outcome.times > 0) for n in sets}
                cells = {n: share(outcome.share[w], pairs.groups[w]) for n, w in judged.items()}
                numbers[f"{name}, {size}, {way}"] = cells | {"took": dict(outcome.chosen)}
                lines.append(row(TITLES[name], size, way, cells))
                if size == sizes[-1] and name in ("induced", SEVERAL):
                    gains = {n: ahead_of_rule(outcome.share[w], shorter[w], pairs.groups[w]) for n, w in judged.items()}
                    numbers[f"{name}, {size}, {way}, ahead of length"] = gains
                    lines.append(row(TITLES[name], size, f"{way}, ahead of length", gains))
                    base = one.setdefault(way, outcome.share)
                    if name == SEVERAL:
                        gains = {n: ahead(outcome.share[w], base[w], pairs.groups[w]) for n, w in judged.items()}
                        numbers[f"{name}, {size}, {way}, ahead of one refusal"] = gains
                        lines.append(row(TITLES[name], size, f"{way}, ahead of one refusal", gains))
        log.info("%s", "\n".join(lines))
    cells = {}
    for n in sets:
        where = pairs.names == n
        _, value, ends = resample.better_rule(shorter[where], resample.groups_of(pairs.groups[where].tolist()))
        cells[n] = [value, *(ends or (math.nan, math.nan))]
    numbers["length"] = cells
    lines.append(row("", "", "the better rule of length", cells))
    return "\n".join(lines), numbers


def first_pairs(pairs: Pairs, name: str, size: int, seed: int) -> np.ndarray:
    """So many pairs of a set, prompt after prompt in an order of the seed's: which they are, `[n]`."""
    rng = np.random.default_rng(seed)
    place = rng.permutation(int(pairs.groups.max()) + 1)[pairs.groups]
    own = np.flatnonzero(pairs.names == name)
    return np.isin(np.arange(len(pairs.rows)), own[np.argsort(place[own], kind="stable")][:size])


def row(title: str, size: int | str, way: str, cells: Mapping[str, Sequence[float]]) -> str:
    """A line of the table; gains have a sign."""
    form = "{:+.1f} [{:+.1f}, {:+.1f}]" if "ahead" in way else "{:.1f} [{:.1f}, {:.1f}]"
    shown = [form.format(*(100 * x for x in cell)) for cell in cells.values()]
    return f"| {title} | {size} | {way} | {' | '.join(shown)} |"


def reference(
    model: Path, theirs: Induced, given: argparse.Namespace, limits: Mapping[str, int]
) -> tuple[str, dict[str, Any]]:
    """The same with the public code's settings: its template, its joiners, its token, its layer, its estimator."""
    recipe = recipes.Recipe.reference()
    reader = describe_model(str(model), **recipe.for_reader | {"dtype": given.dtype}, device=given.device)
    reader = replace(reader, fit_joiner=recipe.fit_joiner)
    runtime = Runtime(path=str(model), device=given.device)
    if open_reader(reader, runtime).ends_texts and recipe.eos_of_tokenizer:
        reader = replace(reader, eos="append")
    pairs, scored = read_as_reference(reader, runtime, model, theirs, given, limits)

    def fit(inside: np.ndarray, seed: int) -> tuple[int, np.ndarray]:
        # Fitted with one joiner and scored with another: the differences to fit on are others.
        return 0, mean_difference(pairs.differences[0, inside])

    told = curve(
        replace(pairs, differences=scored), given.seeds, {"public code": (replace(pairs, differences=scored), fit)}
    )
    note = (
        f"Asked and read with its template, fitted with a line break before the answer and scored without, last token "
        f"of the last layer, mean difference. The first {given.reference} pairs of each set that fit the window."
    )
    return f"### With the public code's settings\n\n{note}\n\n{told[0]}", told[1]


def read_as_reference(
    reader: Reader, runtime: Runtime, model: Path, theirs: Induced, given: argparse.Namespace, limits: Mapping[str, int]
) -> tuple[Pairs, np.ndarray]:
    """Pairs with differences as the public code fits on them, and the same as it scores them `[1, n, d_model]`."""
    opened = open_reader(reader, runtime)
    rows: list[Row] = []
    names: list[str] = []
    texts: dict[bool, list[Any]] = {True: [], False: []}
    for name in ("induced", "refuse_vs_comply", "hh_harmless", "pku_saferlhf"):
        read = theirs.rows if name == "induced" else read_jsonl(given.data / f"{name}.jsonl")
        most = len(read) if name == "induced" else min(given.reference, limits.get(name, given.reference))
        kept = encode_pairs(opened.encode, [*read_pairs(read)])[:most]
        fitted = encode_pairs(partial(opened.encode, fitting=True), [pair for pair, _ in kept])
        for (pair, scoring), (_, fit) in zip(kept, fitted, strict=True):
            said = [one.response[-1]["content"] for one in (pair.chosen, pair.rejected)]
            rows.append({"prompt": pair.chosen.prompt[0]["content"], "chosen": said[0], "rejected": said[1]})
            names.append(name)
            texts[False] += scoring
            # Preference pairs are read once, as they are scored: what is fitted on them stands beside, no more.
            texts[True] += fit if name == "induced" else scoring
    found = {}
    for fitting, some in texts.items():
        states = read_states(
            opened, some, path=model, folder=given.kept, title="the public code's settings", layers=[reader.n_layers]
        )[:, :, LAST]
        found[fitting] = states[:, 0::2] - states[:, 1::2]
    groups = resample.groups_of([opening(row["prompt"]) for row in rows])
    lengths = np.array([[len(row["chosen"].strip()), len(row["rejected"].strip())] for row in rows])
    return Pairs(rows, np.array(names), groups, lengths, found[True]), found[False]


if __name__ == "__main__":
    main()
