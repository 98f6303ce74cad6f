"""A direction on a real chat LLM: held out by prompt, fitted on one set and judged on another, beside public figures.

In: the folder of the real chat model and the four sets of pairs. Out: a section of Markdown and its numbers. Hidden
states are read once, at every layer, and kept on disk (`kept_states`): a second run only counts. This file is called
by `evaluate_direction.py`, which has the command line.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from cross_fitting import AUTO, PAPER, TITLES, Outcome, Pairs, Recipe, fit_on, run, section_of, share, splits_of
from kept_states import END, LAST, MEAN, read_states
from real_runs import USUAL_DTYPE
from train_demo_annotator import opening, read_jsonl

from legend_hf.directions import pairs_from_labels, resample
from legend_hf.directions.choose import FEWEST_PROMPTS, FOLDS, Choice, right
from legend_hf.directions.estimators import ESTIMATORS, PRIOR_PAIRS, unit
from legend_hf.reading.formats import Pair, pairs_from_batch
from legend_hf.reading.reader import Reader, Runtime, describe_model, open_reader
from legend_hf.reading.templates import CHAT, Tokens

log = logging.getLogger("evaluate_direction")
FITTED = ("hh_harmless", "pku_saferlhf")
PER_PROMPT = 4  # pairs of a GPTFuzz prompt, out of its 77 labelled responses
SIZES = (25, 50, 100, 200, 400, None)  # None: all pairs of half of the prompts
DEBIASED = Recipe('... with `debias="length"`', debias=True)
SAME_MEAN = Recipe("the same, mean over the response", layer=-1, estimators=("mean_difference",))
Fits = Callable[[np.ndarray, int], tuple[np.ndarray, Choice]]  # the pairs to fit on and a seed, to a vector
# Public figures for rows of the same sources: who, hh harmless pairs, PKU safer pairs, PKU responses, what differs.
PUBLIC = (
    ("gpt2-large, 774M, all of it fine-tuned on hh harmless", "73.7", "", "", "in domain; its model card (Ray2333)"),
    (
        "Beaver-7B cost, sign flipped",
        "67.5",
        "66.5",
        "",
        "the cost model of PKU's own project; RewardBench's pref-sets",
    ),
    ("Starling-RM-7B-alpha", "60.3", "62.1", "", "general reward model; same source"),
    ("OpenAssistant DeBERTa-v3-large, 435M", "59.1", "63.1", "", "general reward model; same source"),
    ("Qwen1.5-0.5B-Chat, DPO implicit", "55.3", "53.9", "", "a chat model against its base; same source"),
    ("SIREN on Qwen3-0.6B, a trained head of 12M", "", "", "0.915", "a trained classifier; its paper (ACL 2026)"),
    ("Qwen3Guard-0.6B", "", "", "0.869", "a fine-tuned classifier; same source"),
)


@dataclass(frozen=True, eq=False)
class Read:
    """What was read of all sets.

    Attributes:
        pairs: All pairs, with the differences of means over the responses.
        last: The same pairs with differences of the last token of the response.
        means: Means over the responses `[layers, n, 2, d_model]`, chosen first.
        safe: Raters' share that called each response safe, `[n, 2]`; NaN where the set does not say.
        ends: The same pairs with differences of the tokens that end the turn, where they were read of all.
    """

    pairs: Pairs
    last: Pairs
    means: np.ndarray
    safe: np.ndarray
    ends: Pairs | None = None


def real_section(
    model: Path,
    data: Path,
    kept: Path,
    *,
    seeds: int,
    most: Sequence[str] = (),
    device: str | None = None,
    dtype: str = USUAL_DTYPE,
) -> tuple[str, dict[str, Any]]:
    """Reads what is not kept yet, measures, tells.

    Args:
        model: Folder of the model.
        data: Folder with the four `.jsonl` files.
        kept: Folder of the kept states.
        seeds: How often the prompts are dealt anew.
        most: `set=pairs`, to take only the first pairs of a set.
        device: Where to read.
        dtype: The model's.

    Returns:
        The section as Markdown, and its numbers.
    """
    limits = {name: int(count) for name, count in (one.split("=") for one in most)}
    # The ends of turns are `evaluate_variants.py`'s: in this pass, the first over all pairs, they cost nothing.
    read, reader = read_sets(model, data, kept, limits, device, ends=FITTED, dtype=dtype)
    pairs = read.pairs
    fitted = np.isin(pairs.names, FITTED)
    splits = splits_of(pairs, fitted, seeds)
    numbers: dict[str, Any] = {}
    tables = []

    def part(name: str, told: tuple[str, Any]) -> None:
        tables.append(told[0])
        numbers[name] = told[1]
        log.info("\n%s\n%.1f minutes after reading\n", told[0], (time.perf_counter() - start) / 60)

    made: dict[tuple[bytes, int], tuple[np.ndarray, Choice]] = {}

    def fits(inside: np.ndarray, seed: int) -> tuple[np.ndarray, Choice]:
        """What `fit` chooses on these pairs; two tables may ask for the same."""
        key = (inside.tobytes(), seed)
        if key not in made:
            made[key] = fit_on(pairs, inside, AUTO, reader, seed)
        return made[key]

    start = time.perf_counter()
    outcomes = {
        PAPER.title: run(read.last, PAPER, reader, splits),
        **{r.title: run(pairs, r, reader, splits) for r in (SAME_MEAN, AUTO, DEBIASED)},
    }
    part("cross_fitted", cross_fitted(pairs, reader, fitted, outcomes, limits))
    part("layers", layers(pairs, reader, splits))
    part("transfer", transfer(pairs, reader, fits, seeds))
    part("responses", responses(read, fits, seeds))
    part("beside", beside(numbers))
    return "\n\n".join(tables), numbers


def read_sets(
    model: Path,
    data: Path,
    kept: Path,
    limits: Mapping[str, int],
    device: str | None,
    more: Mapping[str, Sequence[dict[str, Any]]] | None = None,
    template: str = "auto",
    ends: Collection[str] = (),
    dtype: str = USUAL_DTYPE,
) -> tuple[Read, Reader]:
    """Reads every set at all layers, and `more` of them; pairs that do not fit the model's window are left out.

    Of the sets in `ends`, where a chat template ends a turn, the token that ends it is a third view of the same pass.
    """
    reader = describe_model(str(model), device=device, dtype=dtype, template=template)
    opened = open_reader(reader, Runtime(path=str(model), device=device))
    readers = [opened]
    if ends and reader.template == CHAT:
        closed = replace(reader, eos="template", pooling="last")
        readers.append(open_reader(closed, Runtime(path=str(model), device=device)))
    rows: list[dict[str, Any]] = []
    names: list[str] = []
    means, lasts, turns = [], [], []
    for name in TITLES:
        if limits.get(name) == 0 or (name.startswith("induced") and name not in (more or {})):
            continue
        read = list(more[name]) if more and name in more else read_jsonl(data / f"{name}.jsonl")
        if name == "gptfuzz_labelled":
            read = list(pairs_from_labels(read, per_prompt=PER_PROMPT))
        parsed = pairs_from_batch({key: [row[key] for row in read] for key in ("prompt", "chosen", "rejected")})
        good = [(row, pair) for row, pair in zip(read, parsed, strict=True) if isinstance(pair, Pair)]
        sides = [[pair.chosen for _, pair in good], [pair.rejected for _, pair in good]]
        encoded = [one.encode(side) for one in readers[: 1 + (name in ends)] for side in sides]
        texts: list[Tokens] = []
        closes: list[Tokens] = []
        for (row, _), *views in zip(good, *encoded, strict=True):
            fitting = [view for view in views if isinstance(view, Tokens)]
            if len(fitting) == len(views) and len(texts) < 2 * limits.get(name, len(good)):
                rows.append(row)
                names.append(name)
                texts += fitting[:2]
                closes += fitting[2:]
        states = read_states(opened, texts, path=model, folder=kept, title=name, ends=closes or None)
        means.append(states[:, :, MEAN].reshape(len(states), -1, 2, reader.d_model))
        lasts.append(states[:, 0::2, LAST] - states[:, 1::2, LAST])
        if closes:
            turns.append(states[:, 0::2, END] - states[:, 1::2, END])
    every = np.concatenate(means, axis=1)
    groups = resample.groups_of([opening(row["prompt"]) for row in rows])
    lengths = np.array([[len(row["chosen"].strip()), len(row["rejected"].strip())] for row in rows])
    pairs = Pairs(rows, np.array(names), groups, lengths, every[:, :, 0] - every[:, :, 1])
    last = replace(pairs, differences=np.concatenate(lasts, axis=1))
    safe = np.array([[row.get("chosen_safe_rate", np.nan), row.get("rejected_safe_rate", np.nan)] for row in rows])
    ended = replace(pairs, differences=np.concatenate(turns, axis=1)) if len(turns) == len(lasts) else None
    return Read(pairs, last, every, safe.astype(np.float64), ended), reader


# -- Tables ----------------------------------------------------------------------------------------------------


def cross_fitted(
    pairs: Pairs, reader: Reader, fitted: np.ndarray, outcomes: Mapping[str, Outcome], limits: Mapping[str, int]
) -> tuple[str, dict[str, Any]]:
    """Half of the prompts of hh-rlhf and PKU-SafeRLHF judged by what was fitted on the other half."""
    took = ", ".join(f"{what} ({times}x)" for what, times in outcomes[AUTO.title].chosen.most_common())
    first = ", ".join(f"{count} of {TITLES[name]}" for name, count in limits.items() if count)
    note = (
        "The folder that `scripts/real_llm` makes: SmolLM2-135M-Instruct dequantised from 4 bits, not the Hub's model; "
        f"30 layers, chat template, {reader.dtype}."
        f"{f' Only the first pairs of some sets: {first}.' if first else ''} Fitted "
        f"on half of the prompts of the first two sets, {int(fitted.sum()) // 2} pairs or so, and judged on the other "
        "half; the others are transfer, refusals apart from answers, and the average is over the first two. The "
        f"paper's recipe reads the last token of the last layer. {AUTO.title} took: {took}, and recorded "
        f"{100 * np.mean(outcomes[AUTO.title].promised):.1f} % as its held-out accuracy."
    )
    judged = np.ones(len(pairs.rows), dtype=bool)
    return section_of("A real chat LLM of 135 million parameters", note, pairs, judged, outcomes, list(FITTED))


def layers(
    pairs: Pairs, reader: Reader, splits: Sequence[tuple[np.ndarray, np.ndarray, int]]
) -> tuple[str, dict[str, Any]]:
    """The same halves, at some layers, with either estimator that `fit` tries."""
    numbers: dict[str, Any] = {}
    heads = [f"{TITLES[name]}, {how}" for name in FITTED for how in ("mean difference", "whitened")]
    lines = [f"| layer | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for layer in (*range(2, reader.n_layers, 4), reader.n_layers):
        found = {
            how: run(pairs, Recipe("", layer=layer, estimators=(how,)), reader, splits).share
            for how in ("mean_difference", "whitened")
        }
        cells = [
            share(values[where], pairs.groups[where])
            for name in FITTED
            for values in found.values()
            for where in [(pairs.names == name) & np.isfinite(values)]
        ]
        numbers[str(layer)] = cells
        lines.append(f"| {layer} | {' | '.join(map(percent, cells))} |")
    return "#### Layer by layer\n\nThe same halves and pairs.\n\n" + "\n".join(lines), numbers


def transfer(pairs: Pairs, reader: Reader, fits: Fits, seeds: int) -> tuple[str, dict[str, Any]]:
    """Fitted on so many pairs of one set, judged on the other half of its prompts and on all other sets."""
    sets = [name for name in TITLES if (pairs.names == name).any()]
    middle = Recipe("", layer=reader.n_layers // 2, estimators=("mean_difference",))
    numbers: dict[str, Any] = {}
    heads = [TITLES[name] for name in sets]
    lines = [f"| fitted on | pairs | {' | '.join(heads)} |", "|---" * (len(heads) + 2) + "|"]
    for name in sets:
        found: dict[int | None, Outcome] = {}
        pairs_of: dict[int | None, list[int]] = {}
        for seed in range(seeds):
            rng = np.random.default_rng(seed)
            half = rng.permutation(int(pairs.groups.max()) + 1)[pairs.groups] % 2 == 0
            order = rng.permutation(np.flatnonzero((pairs.names == name) & half))
            unknown = ~np.isin(pairs.groups, pairs.groups[order])
            for size in SIZES:
                if size is not None and size >= len(order):
                    continue
                inside = np.isin(np.arange(len(pairs.rows)), order[:size])
                enough = len(np.unique(pairs.groups[inside])) >= FEWEST_PROMPTS  # as `fit_direction` has it
                outcome = found.setdefault(size, Outcome(np.zeros(len(pairs.rows)), np.zeros(len(pairs.rows))))
                vector, choice = fits(inside, seed) if enough else fit_on(pairs, inside, middle, reader, seed)
                layer = choice.place if enough else reader.n_layers // 2
                outcome.right[unknown] += right(pairs.differences[layer, unknown] @ vector)
                outcome.times[unknown] += 1
                outcome.chosen[f"layer {layer}, {choice.estimator}"] += 1
                pairs_of.setdefault(size, []).append(int(inside.sum()))
        for size, outcome in sorted(found.items(), key=lambda one: one[0] or math.inf):
            cells = []
            for judged in sets:
                where = (pairs.names == judged) & (outcome.times > 0)
                cells.append(share(outcome.share[where], pairs.groups[where]))
            numbers[f"{name}, {size or 'half'}"] = dict(zip(sets, cells, strict=True)) | {"took": dict(outcome.chosen)}
            fewest, largest = min(pairs_of[size]), max(pairs_of[size])
            count = size or f"{fewest} to {largest} (half)"
            lines.append(f"| {TITLES[name]} | {count} | {' | '.join(map(percent, cells))} |")
        inside = pairs.names == name
        vector, choice = fits(inside, 0)
        correct = right(pairs.differences[choice.place] @ vector)
        zero: dict[str, Any] = {}
        for judged in sets:
            where = (pairs.names == judged) & ~np.isin(pairs.groups, pairs.groups[inside])
            if judged != name:
                zero[judged] = share(correct[where], pairs.groups[where])
        numbers[f"{name}, every pair"] = zero | {"took": f"layer {choice.place}, {choice.estimator}"}
        shown = [percent(zero[judged]) if judged in zero else "" for judged in sets]
        lines.append(f"| {TITLES[name]} | {int(inside.sum())} (every pair) | {' | '.join(shown)} |")
    shorter = right(-pairs.longer())
    cells = []
    for judged in sets:
        where = pairs.names == judged
        groups = resample.groups_of(pairs.groups[where].tolist())
        _, value, ends = resample.better_rule(shorter[where], groups)
        cells.append([value, *(ends or (math.nan, math.nan))])
    numbers["length"] = dict(zip(sets, cells, strict=True))
    lines.append(f"| the better rule of length | | {' | '.join(map(percent, cells))} |")
    prompts = ", ".join(f"{TITLES[n]} {len(np.unique(pairs.groups[pairs.names == n]))}" for n in sets)
    note = (
        "What `fit` chooses on so many pairs of half of the prompts of one set; judged on the other half of them, and "
        f"on every pair of the other sets: zero-shot. Means over {seeds} ways of dealing the prompts; intervals by "
        f"prompt, the pairs to fit on taken as given. Distinct prompts: {prompts}; on fewer than {FEWEST_PROMPTS}, "
        "`fit` takes the middle layer and the mean difference."
    )
    return f"#### How many pairs, and of which kind\n\n{note}\n\n" + "\n".join(lines), numbers


# -- Responses -------------------------------------------------------------------------------------------------


def responses(read: Read, fits: Fits, seeds: int) -> tuple[str, dict[str, Any]]:
    """Safe or unsafe, one response at a time: macro-F1 on PKU's responses, by one vector and one threshold."""
    pairs = read.pairs
    pku, hh = pairs.names == "pku_saferlhf", pairs.names == "hh_harmless"
    names = (
        "the direction, fitted on the other half",
        "the direction, fitted on hh-rlhf",
        "Fisher's vector of single responses, of the other half",
        "a threshold of length",
    )
    counts = {name: np.zeros((int(pairs.groups.max()) + 1, 2, 2)) for name in names}
    for inside, outside, seed in splits_of(pairs, pku, seeds):
        judged = outside & pku
        logs = np.log1p(pairs.lengths)
        for name, fit in zip(names[:2], (inside, hh & ~np.isin(pairs.groups, pairs.groups[judged])), strict=True):
            vector, choice = fits(fit, seed if fit is inside else 0)
            of_pairs = partial(of_differences, pairs.differences[choice.place], choice.estimator)
            threshold = threshold_of(read, fit, choice.place, of_pairs, seed)
            count(counts[name], read, judged, read.means[choice.place] @ vector > threshold)
        place = fits(inside, seed)[1].place
        of_texts = partial(fisher, read, place)
        threshold = threshold_of(read, inside, place, of_texts, seed)
        count(counts[names[2]], read, judged, read.means[place] @ of_texts(np.flatnonzero(inside)) > threshold)
        truth, known = labels(read, inside)
        cuts = [(sign, *best_threshold(sign * logs[inside][known], truth[known])) for sign in (1, -1)]
        sign, threshold, _ = max(cuts, key=lambda cut: cut[2])
        count(counts[names[3]], read, judged, sign * logs > threshold)
    every = counts[names[0]].copy()
    every[:, :, 1], every[:, :, 0] = every.sum(axis=2), 0.0  # everything called safe
    counts["everything called safe"] = every
    numbers = {name: f1_interval(table) for name, table in counts.items()}
    totals = counts[names[0]].sum(axis=(0, 2)) / seeds
    lines = ["| | macro-F1 |", "|---|---|"]
    lines += [f"| {name} | {value:.3f} [{low:.3f}, {high:.3f}] |" for name, (value, low, high) in numbers.items()]
    note = (
        f"{totals[1]:.0f} safe and {totals[0]:.0f} unsafe responses: a response is safe where more than half of its "
        "raters say so, and left out where just half do. Nearly every pair has one of either, so the prompt tells "
        "nothing, which in whole test sets it does. Fisher's vector is the difference of the two kinds' means, "
        "whitened by how single responses vary, at the layer that the fit took. The threshold is learned on the pairs "
        "of the fit alone, each scored by a vector fitted without its prompt; for hh-rlhf its chosen side counts as "
        "safe. A response that stands in several pairs counts as often. 95 % intervals by prompt (draws)."
    )
    return f"#### One response at a time\n\n{note}\n\n" + "\n".join(lines), numbers


def labels(read: Read, where: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether each response of some pairs is safe `[n, 2]`, and where that is known `[n, 2]`: by rates, else sides."""
    rates = read.safe[where]
    rates = np.where(np.isfinite(rates), rates, np.array([1.0, 0.0]))
    return rates > 0.5, rates != 0.5


def of_differences(differences: np.ndarray, estimator: str, places: np.ndarray) -> np.ndarray:
    """The direction of some pairs, out of differences `[n, d_model]`."""
    return ESTIMATORS[estimator](differences[places])


def fisher(read: Read, layer: int, places: np.ndarray) -> np.ndarray:
    """Fisher's discriminant of the single responses of some pairs, `[d_model]`, shrunk as `whitened` shrinks."""
    truth, known = labels(read, places)
    states, safe = read.means[layer, places][known].astype(np.float64), truth[known]
    kinds = [states[safe], states[~safe]]
    rest = np.concatenate([kind - kind.mean(axis=0) for kind in kinds])
    n, width = rest.shape
    spread = rest.T @ rest
    spread += PRIOR_PAIRS * width / n * np.trace(spread) / width * np.eye(width)
    return unit(np.linalg.solve(spread, kinds[0].mean(axis=0) - kinds[1].mean(axis=0)))


def threshold_of(
    read: Read, fit: np.ndarray, layer: int, vector_of: Callable[[np.ndarray], np.ndarray], seed: int
) -> float:
    """The best threshold on the pairs of a fit, each scored without its prompt."""
    places = np.flatnonzero(fit)
    folds = resample.folds_of(resample.groups_of(read.pairs.groups[places].tolist()), FOLDS, seed)
    scores = np.empty((len(places), 2))
    for fold in range(int(folds.max()) + 1):
        scores[folds == fold] = read.means[layer, places[folds == fold]] @ vector_of(places[folds != fold])
    truth, known = labels(read, fit)
    return best_threshold(scores[known], truth[known])[0]


def best_threshold(scores: np.ndarray, safe: np.ndarray) -> tuple[float, float]:
    """Above which of the scores `[n]` a response is to be called safe `[n]` for the best macro-F1, and that."""
    order = np.argsort(scores)
    sorted_scores, truth = scores[order], safe[order].astype(np.float64)
    # Cut k: the first k are called unsafe.
    unsafe_right = np.r_[0.0, np.cumsum(1 - truth)]
    safe_right = truth.sum() - np.r_[0.0, np.cumsum(truth)]
    called_unsafe = np.arange(len(truth) + 1)
    unsafe, n = (1 - truth).sum(), len(truth)
    f1 = unsafe_right / np.maximum(called_unsafe + unsafe, 1) + safe_right / np.maximum(
        n - called_unsafe + n - unsafe, 1
    )
    cut = int(np.argmax(f1[1:-1])) + 1
    return float((sorted_scores[cut - 1] + sorted_scores[cut]) / 2), float(f1[cut])


def count(table: np.ndarray, read: Read, judged: np.ndarray, called_safe: np.ndarray) -> None:
    """Adds to `table [groups, is safe, called safe]` the responses of the judged pairs."""
    truth, known = labels(read, judged)
    groups = np.repeat(read.pairs.groups[judged][:, None], 2, axis=1)
    np.add.at(table, (groups[known], truth[known].astype(int), called_safe[judged][known].astype(int)), 1.0)


def f1_interval(table: np.ndarray, draws: int = 1000) -> list[float]:
    """Macro-F1 of counts `[groups, is safe, called safe]` and its 95 % interval over draws of groups."""
    table = table[table.sum(axis=(1, 2)) > 0]
    weights = np.random.default_rng(0).multinomial(len(table), np.full(len(table), 1 / len(table)), size=draws)

    def f1(counts: np.ndarray) -> np.ndarray:
        wrong = counts[..., 0, 1] + counts[..., 1, 0]
        found: np.ndarray = sum(counts[..., k, k] / np.maximum(2 * counts[..., k, k] + wrong, 1e-9) for k in (0, 1))
        return found

    low, high = np.quantile(f1(np.einsum("dg,gij->dij", weights, table)), [0.025, 0.975])
    return [float(f1(table.sum(axis=0))), float(low), float(high)]


# -- Beside others ---------------------------------------------------------------------------------------------


def beside(numbers: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The figures above in one table with public ones."""
    accuracy, zero, f1 = numbers["cross_fitted"]["accuracy"], numbers["transfer"], numbers["responses"]
    own = {
        "ours, SmolLM2-135M from 4 bits, one vector": [
            percent(accuracy[AUTO.title]["hh_harmless"]), percent(accuracy[AUTO.title]["pku_saferlhf"]),
            "{:.3f} [{:.3f}, {:.3f}]".format(*f1["the direction, fitted on the other half"]),
            "fitted on other prompts of the same sets; nothing trained",
        ],
        "ours, fitted on the other set alone": [
            percent(zero["pku_saferlhf, every pair"]["hh_harmless"]),
            percent(zero["hh_harmless, every pair"]["pku_saferlhf"]),
            "{:.3f} [{:.3f}, {:.3f}]".format(*f1["the direction, fitted on hh-rlhf"]), "zero-shot",
        ],
        "ours, one vector of single responses": [
            "", "", "{:.3f} [{:.3f}, {:.3f}]".format(*f1["Fisher's vector of single responses, of the other half"]),
            "fitted on other prompts of the same set",
        ],
        "the paper's recipe on the same model": [
            percent(accuracy[PAPER.title]["hh_harmless"]), percent(accuracy[PAPER.title]["pku_saferlhf"]), "",
            "fitted on other prompts of the same sets",
        ],
    }  # fmt: skip
    ordered = accuracy[AUTO.title]["pku_saferlhf"][0]
    lines = [
        "| scorer | hh harmless pairs | PKU safer pairs | PKU responses, macro-F1 | what it has seen |",
        "|---" * 5 + "|",
    ]
    lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in own.items()]
    lines += [f"| {' | '.join(line)} |" for line in PUBLIC]
    note = (
        "Other rows of the same sources, so a difference of a few points says nothing: theirs are 2,266 pairs of hh "
        "and 9,000 of PKU (RewardBench's pref-sets, `allenai/reward-bench-results`), and the responses of PKU's whole "
        "test set; ours are those of the tables above, a safe and an unsafe response to nearly every prompt, so "
        "that the prompt tells nothing there. A score that orders "
        f"{100 * ordered:.0f} % of such pairs can be right on some {100 * of_single(ordered):.0f} % of single "
        "responses, were both kinds spread alike and all prompts on one level; to be right on 85 % it would have to "
        f"order {100 * of_pairs(0.85):.0f} % of the pairs."
    )
    return f"#### Beside public figures\n\n{note}\n\n" + "\n".join(lines), own


def of_single(ordered: float) -> float:
    """Share of single responses that a threshold gets right, of a score that orders such a share of pairs.

    Two normal distributions with one spread: the difference of two draws spreads by the square root of two more.
    """
    normal = NormalDist()
    return normal.cdf(normal.inv_cdf(ordered) / math.sqrt(2))


def of_pairs(single: float) -> float:
    """The share of pairs to be ordered for that; the inverse of `of_single`."""
    normal = NormalDist()
    return normal.cdf(normal.inv_cdf(single) * math.sqrt(2))


def percent(cell: Sequence[float]) -> str:
    """A share and its interval, in %."""
    return "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * x for x in cell))
