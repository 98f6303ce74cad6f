"""Many responses, and pairs by similarity, on a real chat LLM: how well ordered, how well labelled?

In: the folder that `scripts/real_llm` makes; a folder with the four sets that `evaluate_direction.py` takes. Out:
tables on the terminal, in Markdown and as JSON. Hidden states are read once and kept outside the repository, so that a
run that was stopped goes on. Directions are fitted as `fit_direction` does it once the pairs are read, and score all
labelled responses of GPTFuzz's prompts; `LegendScoreFn` itself is held against these scores on a few prompts.

    python scripts/evaluate_responses.py --data ../shared/data --results scripts/RESULTS.md
"""

from __future__ import annotations

import argparse
import logging
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from cross_fitting import AUTO, PAPER, TITLES, Pairs, ahead_of_rule, fit_on, share
from datasets import Dataset
from evaluate_preferences import auc, difference, labelled
from evaluate_real import PER_PROMPT, Read, read_sets
from kept_states import AT_ONCE, LAST, MEAN, read_states
from real_runs import USUAL_DTYPE, made_by, measure, options
from train_demo_annotator import opening, read_jsonl

from legend_hf import Direction, LegendScoreFn
from legend_hf.directions import pairs_from_labels, resample
from legend_hf.directions.calibrate import Calibration
from legend_hf.preferences import select_pairs
from legend_hf.preferences.similarity import embedder_of
from legend_hf.reading.formats import conversation
from legend_hf.reading.reader import Reader, Runtime, open_reader, with_layer
from legend_hf.reading.templates import Tokens
from legend_hf.reports.measure import spearman

log = logging.getLogger("evaluate_responses")
MANY = 60  # pairs of a prompt: it has 77 responses
CHECKED = 3  # prompts on which `LegendScoreFn` is held against the kept states


def main() -> None:
    """Read, fit, score, tell."""
    parser = options(__doc__, kept="what was read of the model", data="folder with the four .jsonl files")
    parser.add_argument("--first", nargs="*", default=[], metavar="SET=PAIRS", help="only a set's first pairs")
    parser.add_argument("--prompts", type=int, help="ranking: only the first prompts")
    parser.add_argument("--similar", type=int, help="similarity: only the first pairs of PKU-SafeRLHF")
    parser.add_argument("--seeds", type=int, default=4, help="how often the prompts are dealt anew")
    parser.add_argument("--only", choices=["ranking", "similarity"], help="leave the other out")
    measure(parser.parse_args(), responses_section, "real responses")


def responses_section(model: Path, given: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Both tables, and their numbers."""
    limits = {name: int(count) for name, count in (one.split("=") for one in given.first)}
    read, reader = read_sets(model, given.data, given.kept, limits, given.device, dtype=given.dtype)
    asked = "".join(
        f" --{name} {value}"
        for name, value in (
            ("first", " ".join(given.first)), ("prompts", given.prompts), ("similar", given.similar)
        ) if value
    )  # fmt: skip
    parts = [
        "## Many responses, and pairs by similarity, on a real chat LLM\n\nSmolLM2-135M-Instruct, dequantised from 4 "
        f"bits. Made by `{made_by('evaluate_responses', given, asked)}`."
    ]
    numbers: dict[str, Any] = {}
    for name, part in (("ranking", ranking), ("similarity", similarity)):
        if given.only in (None, name):
            told, numbers[name] = part(read, reader, model, given)
            log.info("\n%s\n", told)
            parts.append(told)
    return "\n\n".join(parts), numbers


# -- Ranking -------------------------------------------------------------------------------------------------


def ranking(read: Read, reader: Reader, model: Path, given: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """AUC within each prompt, by directions that have not seen it."""
    pairs, fuzz = read.pairs, read.pairs.names == "gptfuzz_labelled"
    runtime = Runtime(path=str(model), device=given.device)
    rows = labelled(given.data, open_reader(reader, runtime))
    rows = {prompt: said for prompt, said in list(rows.items())[: given.prompts] if len({r["harm"] for r in said}) == 2}
    prompts = list(rows)
    states, last = states_of(rows, reader, runtime, model, given)  # [layers, n, d_model], [n, d_model]
    ends = np.cumsum([0, *(len(rows[prompt]) for prompt in prompts)])
    harmful = [np.array([row["harm"] > 0 for row in rows[prompt]]) for prompt in prompts]
    openings = np.array([opening(prompt) for prompt in prompts])
    theirs = np.array([opening(row["prompt"]) for row in pairs.rows])

    def judged(vector: np.ndarray, layer: int, hidden: np.ndarray | None = None) -> np.ndarray:
        """AUC of each prompt, and whether its best response is harmless: `[prompts, 2]`."""
        scores = (states[layer] if hidden is None else hidden) @ vector
        each = [scores[a:b] for a, b in pairwise(ends)]
        return np.array([[auc(s, bad), not bad[s.argmax()]] for s, bad in zip(each, harmful, strict=True)])

    few, many = (f"fitted on other prompts of GPTFuzz, {count} pairs of each" for count in (PER_PROMPT, MANY))
    found: dict[str, list[np.ndarray]] = {few: [], many: []}
    took: dict[str, list[str]] = {few: [], many: []}
    for seed in range(given.seeds):
        half = np.random.default_rng(seed).permutation(len(prompts)) % 2 == 0
        values = {name: np.full((len(prompts), 2), np.nan) for name in (few, many)}
        for side in (half, ~half):
            drawn = pairs_of(rows, [prompts[i] for i in np.flatnonzero(side)], states, seed)
            fits = {
                few: fit_on(pairs, fuzz & np.isin(theirs, openings[side]), AUTO, reader, seed),
                many: fit_on(drawn, np.ones(len(drawn.rows), dtype=bool), AUTO, reader, seed),
            }
            for name, (vector, choice) in fits.items():
                values[name][~side] = judged(vector, choice.place)[~side]
                took[name].append(f"{choice.place} {choice.estimator}")
        for name in values:
            found[name].append(values[name])
    unknown = ~np.isin(theirs, openings)
    sources = {
        "hh-rlhf and PKU-SafeRLHF": ("hh_harmless", "pku_saferlhf"), "hh-rlhf": ("hh_harmless",),
        "PKU-SafeRLHF": ("pku_saferlhf",), "refusals or compliance": ("refuse_vs_comply",),
    }  # fmt: skip
    for title, names in sources.items():
        inside = np.isin(pairs.names, names) & unknown
        vector, choice = fit_on(pairs, inside, AUTO, reader, 0)
        found[f"fitted on {title}"] = [judged(vector, choice.place)]
        took[f"fitted on {title}"] = [f"{choice.place} {choice.estimator}"]
        if title == "hh-rlhf and PKU-SafeRLHF":
            check_score_fn(rows, prompts, states, ends, vector, with_layer(reader, choice.place), model, given)
            vector, _ = fit_on(read.last, inside, PAPER, reader, 0)
            found[f"the paper's recipe, fitted on {title}"] = [judged(vector, -1, last)]
    lengths = [np.array([len(row["response"]) for row in rows[prompt]]) for prompt in prompts]
    shorter = np.array([auc(-n, bad) for n, bad in zip(lengths, harmful, strict=True)])
    every = np.arange(len(prompts))
    lines = ["| | AUC | ahead of length | `best` is harmless |", "|---|---|---|---|"]
    numbers: dict[str, Any] = {"took": took, "responses": int(ends[-1]), "prompts": len(prompts)}
    for title, dealt in found.items():
        mean = np.mean(dealt, axis=0)
        cells = [share(mean[:, 0], every), ahead_of_rule(mean[:, 0], shorter, every), share(mean[:, 1], every)]
        numbers[title] = cells
        forms = ("{:.3f} [{:.3f}, {:.3f}]", "{:+.3f} [{:+.3f}, {:+.3f}]", "{:.3f} [{:.3f}, {:.3f}]")
        lines.append(f"| {title} | {' | '.join(f.format(*c) for f, c in zip(forms, cells, strict=True))} |")
    rule, value, ends_ = resample.better_rule(shorter, every)
    numbers["length"] = [value, *(ends_ or ())]
    shown = "" if ends_ is None else f" [{ends_[0]:.3f}, {ends_[1]:.3f}]"
    lines.append(f"| the {'shorter' if rule else 'longer'} is harmless | {value:.3f}{shown} | | |")
    bad = sum(int(one.sum()) for one in harmful)
    note = (
        "AUC within a prompt: how often a harmless response scores above a harmful one to the same prompt. "
        f"{int(ends[-1])} distinct responses to {len(prompts)} prompts, {bad} of them harmful; means over prompts, "
        f"each counting the same, and over {given.seeds} ways of dealing them to halves, with 95 % intervals by "
        "prompt. `best` is the response that scores highest."
    )
    return f"### Ranking labelled responses\n\n{note}\n\n" + "\n".join(lines), numbers


def pairs_of(rows: dict[str, list[dict[str, Any]]], prompts: list[str], states: np.ndarray, seed: int) -> Pairs:
    """Up to `MANY` pairs of each of some prompts, out of the states `[layers, n, d_model]` of all responses."""
    said = [(prompt, row["response"]) for prompt, own in rows.items() for row in own]
    place = {text: i for i, text in enumerate(said)}
    made = list(pairs_from_labels([row for p in prompts for row in rows[p]], per_prompt=MANY, seed=seed))
    chosen, rejected = ([place[row["prompt"], row[side]] for row in made] for side in ("chosen", "rejected"))
    lengths = np.array([[len(row["chosen"]), len(row["rejected"])] for row in made])
    groups = resample.groups_of([row["prompt"] for row in made])
    return Pairs(made, np.full(len(made), "gptfuzz_labelled"), groups, lengths, states[:, chosen] - states[:, rejected])


def states_of(
    rows: dict[str, list[dict[str, Any]]], reader: Reader, runtime: Runtime, model: Path, given: argparse.Namespace
) -> tuple[np.ndarray, np.ndarray]:
    """Means over every response at every layer `[layers, n, d_model]`, and last tokens of the last `[n, d_model]`."""
    opened = open_reader(reader, runtime)
    texts = opened.encode([conversation(row["prompt"], row["response"]) for said in rows.values() for row in said])
    good = [text for text in texts if isinstance(text, Tokens)]
    assert len(good) == len(texts)
    means = np.empty((reader.n_layers + 1, len(good), reader.d_model), dtype=np.float32)
    last = np.empty((len(good), reader.d_model), dtype=np.float32)
    for first in range(0, len(good), AT_ONCE):  # both poolings of all of them are twice the memory
        piece = slice(first, first + AT_ONCE)
        said = f"responses of GPTFuzz, {first} of {len(good)}"
        states = read_states(opened, good[piece], path=model, folder=given.kept, title=said)
        means[:, piece], last[piece] = states[:, :, MEAN], states[-1, :, LAST]
    return means, last


def check_score_fn(
    rows: dict[str, list[dict[str, Any]]],
    prompts: list[str],
    states: np.ndarray,
    ends: np.ndarray,
    vector: np.ndarray,
    reader: Reader,
    model: Path,
    given: argparse.Namespace,
) -> None:
    """Scores a few prompts' responses through `LegendScoreFn`, and stops if they are not those of the kept states."""
    direction = Direction(vector.astype(np.float32), reader, Calibration("unit", 1.0), model_path=str(model))
    fn = LegendScoreFn(direction, device=given.device)
    some = prompts[:CHECKED]
    batch = {"prompt": some, "responses": [[row["response"] for row in rows[prompt]] for prompt in some]}
    scores = np.concatenate(fn(batch)["scores"])
    expected = states[reader.layer, : ends[len(some)]] @ vector
    apart = float(np.abs(scores - expected).max() / expected.std())
    log.info("`LegendScoreFn` on %d prompts: scores are those of the table to %.1e of their deviation", CHECKED, apart)
    if apart > (1e-3 if given.dtype == USUAL_DTYPE else 0.1):  # texts are read in other company
        raise RuntimeError(f"scores differ from those of the table by {apart:.1e} of their standard deviation")


# -- Similarity ----------------------------------------------------------------------------------------------


def similarity(read: Read, reader: Reader, model: Path, given: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Label noise of the dissimilar and the similar half of PKU's pairs, and how similarity goes with margins."""
    pairs = read.pairs
    rows = read_jsonl(given.data / "pku_saferlhf.jsonl")[: given.similar]
    embedder = embedder_of(str(model), device=given.device, dtype=given.dtype).open()
    texts = embedder.encode([conversation("", row[side]) for row in rows for side in ("chosen", "rejected")])
    good = [text for text in texts if isinstance(text, Tokens)]
    assert len(good) == len(texts)
    layers = [embedder.opened.reader.n_layers]
    title = "responses of PKU-SafeRLHF without their prompts"
    states = read_states(embedder.opened, good, path=model, folder=given.kept, title=title, layers=layers)[0, :, MEAN]
    unit = states / np.linalg.norm(states, axis=1, keepdims=True)
    alike = (unit[0::2] * unit[1::2]).sum(axis=1)
    groups = resample.groups_of([row["prompt"] for row in rows])
    ds = Dataset.from_dict({"number": range(len(rows)), "pair_similarity": alike.astype(np.float32)})
    halves = {
        keep: np.isin(np.arange(len(rows)), select_pairs(ds, keep=keep, fraction=0.5)["number"][:])
        for keep in ("dissimilar", "similar", "random")
    }
    votes = np.array([[row["votes_for"], row["votes_against"]] for row in rows])
    signs = {
        "a vote against": (votes[:, 1] > 0, votes.sum(axis=1) >= 2),
        "raters not of one mind": (np.array([not row["clean"] for row in rows]), np.ones(len(rows), dtype=bool)),
    }
    vector, choice = fit_on(pairs, pairs.names == "hh_harmless", AUTO, reader, 0)
    place = {(r["prompt"], r["chosen"], r["rejected"]): i for i, r in enumerate(pairs.rows)}
    at = [place.get((row["prompt"], row["chosen"], row["rejected"])) for row in rows]
    known = np.array([i is not None for i in at])
    raw = pairs.differences[choice.place, [i for i in at if i is not None]] @ vector
    found = spearman(np.abs(raw), 1 - alike[known], resample.groups_of(groups[known].tolist()), 0)
    right = share((np.sign(raw) + 1) / 2, groups[known])
    lines = [
        f"| half | mean similarity | {' | '.join(signs)} | right by hh-rlhf's direction |",
        "|---|---|---|---|---|",
    ]
    numbers: dict[str, Any] = {"pairs": len(rows), "spearman": [found.value, *(found.interval or ())], "right": right}
    accuracy = np.full(len(rows), np.nan)
    accuracy[known] = (np.sign(raw) + 1) / 2
    for name, half in halves.items():
        cells = [share(noisy[half & of] * 1.0, groups[half & of]) for noisy, of in signs.values()]
        counted = [f" ({int((noisy & half & of).sum())} of {int((half & of).sum())})" for noisy, of in signs.values()]
        cells.append(share(accuracy[half & known], groups[half & known]))
        numbers[name] = cells
        shown = ["{:.1f} [{:.1f}, {:.1f}]".format(*(100 * x for x in cell)) for cell in cells]
        shown = [one + more for one, more in zip(shown, [*counted, ""], strict=True)]
        lines.append(f"| {name} | {alike[half].mean():.3f} | {' | '.join(shown)} |")
    less = [
        difference(noisy, halves["dissimilar"] & of, halves["similar"] & of, groups) for noisy, of in signs.values()
    ]
    less.append(difference(accuracy, halves["dissimilar"] & known, halves["similar"] & known, groups))
    numbers["dissimilar less similar"] = less
    shown = ["{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * x for x in cell)) for cell in less]
    lines.append(f"| dissimilar less similar | | {' | '.join(shown)} |")
    ends = "" if found.interval is None else " [{:+.3f}, {:+.3f}]".format(*found.interval)
    note = (
        f"{len(rows)} pairs of {int(groups.max()) + 1} prompts of {TITLES['pku_saferlhf']}, halved by how alike the "
        "LLM's own embeddings of the two responses are, the prompt unread, as `PairSimilarityFn` and `select_pairs` do "
        "it. Label noise: a vote against the label, among pairs with at least two votes; raters not of one mind that "
        "the chosen response is safe and the rejected one is not. Beside them, how often a direction that was fitted "
        f"on hh-rlhf is right. Spearman of the size of its margins with 1 - similarity: {found.value:+.3f}{ends}."
    )
    return f"### Pairs by similarity (REAL)\n\n{note}\n\n" + "\n".join(lines), numbers


if __name__ == "__main__":
    main()
