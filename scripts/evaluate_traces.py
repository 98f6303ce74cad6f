"""What traces show, on a real chat model: when a margin settles, whether a turn is found, which pooling judges best.

    python scripts/evaluate_traces.py --data ../shared/data --results scripts/RESULTS.md

In: the folder of the real chat model that `scripts/real_llm` makes, and public pairs. Out: a section of Markdown. Each
text is read once, at one layer; all directions are fitted without the prompts that they are judged on. The default is
bounded: 150 pairs a set, under ten minutes on one thread. Ladders that the model writes are kept outside the
repository.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from real_runs import made_by, measure, options
from train_demo_annotator import read_jsonl

from legend_hf import Direction
from legend_hf.directions import pairs_from_labels, resample
from legend_hf.directions.calibrate import Calibration
from legend_hf.directions.estimators import unit, whitened
from legend_hf.reading.formats import Pair, conversation, opening, pairs_from_batch
from legend_hf.reading.forward import read_vectors
from legend_hf.reading.reader import OpenReader, Runtime, describe_model, open_reader
from legend_hf.reading.templates import Tokens
from legend_hf.tracing import Stream, remember, settled_after, turn_of
from legend_hf.tracing.values import running

log = logging.getLogger("evaluate_traces")
SETS = {"hh_harmless": "hh-rlhf harmless", "pku_saferlhf": "PKU-SafeRLHF", "gptfuzz_labelled": "GPTFuzz"}
FITTED = ("hh_harmless", "pku_saferlhf")
PER_PROMPT = 4  # pairs of a GPTFuzz prompt
FOLDS = 5
WINDOW = 16
SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)
CUTS = (0.25, 0.5, 0.75)
RANDOM = 5
# How the values of a text's tokens become its score; the running ones take a window of 16 tokens.
POOLINGS: Mapping[str, Callable[[np.ndarray], float]] = {
    "mean (what the score is)": lambda v: float(v.mean()),
    "lowest token": lambda v: float(v.min()),
    "highest token": lambda v: float(v.max()),
    "lowest running mean": lambda v: float(rolling(v).min()),
    "highest running mean": lambda v: float(rolling(v).max()),
    "lowest level of the memory": lambda v: float(remember(v - v.mean(), 2, WINDOW)[:, 0].min() + v.mean()),
    "last 16 tokens": lambda v: float(v[-WINDOW:].mean()),
    "fewer tokens (reads nothing)": lambda v: -float(len(v)),
}


@dataclass(frozen=True, eq=False)
class Texts:
    """Pairs and the states of their tokens.

    Attributes:
        names: Set of each pair `[n]`.
        groups: Number of each pair's prompt `[n]`.
        states: Of each response's tokens, chosen first: `[n][2]` arrays `[t, d_model]`.
        rows: `prompt`, `chosen` and `rejected` of each pair.
    """

    names: np.ndarray
    groups: np.ndarray
    states: list[tuple[np.ndarray, np.ndarray]]
    rows: list[dict[str, Any]]


def main() -> None:
    """Read, trace, tell."""
    parser = options(__doc__, kept="ladders that the model wrote")
    parser.add_argument("--rows", type=int, default=150, help="pairs of each set")
    parser.add_argument("--layer", type=int, default=20, help="layer to read, of 30")
    parser.add_argument("--ladders", type=int, default=6, help="requests that the model itself makes ladders of")
    parser.add_argument("--only", choices=["costs"], help="leave the rest out, and the results as they are")
    given = parser.parse_args()
    if given.only:
        given.results = None
    measure(given, traces_section, "traces")


def traces_section(model: Path, given: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """All tables, or that of the costs, and their numbers."""
    reader = describe_model(str(model), layer=given.layer, dtype=given.dtype, device=given.device)
    opened = open_reader(reader, Runtime(path=str(model), device=given.device))
    if given.only == "costs":
        text, told = costs(opened, given.data)
        return text, {"costs": told}
    texts = read_texts(opened, given.data, given.rows)
    log.info("read %d pairs", len(texts.rows))
    folds = resample.folds_of(texts.groups, FOLDS, 0)
    vectors = fitted(texts, folds)
    values = [tuple(s @ vectors[f] for s in sides) for sides, f in zip(texts.states, folds, strict=True)]
    tables: Sequence[tuple[str, Callable[[], tuple[str, Any]]]] = (
        ("settled", lambda: settled(texts, values, folds)),
        ("turns", lambda: turns(opened, texts, folds, vectors, model, given)),
        ("poolings", lambda: poolings(texts, values)),
        ("costs", lambda: costs(opened, given.data)),
    )
    parts = [
        "## What traces show\n\n"
        f"SmolLM2-135M-Instruct dequantised from 4 bits, layer {given.layer} of {reader.n_layers}, mean over the "
        f"response; whitened directions, fitted on hh-rlhf and PKU-SafeRLHF without the prompts that they are judged "
        f"on ({FOLDS} folds); the first {given.rows} pairs of each set. 95 % intervals by prompt. Made by "
        f"`{made_by('evaluate_traces', given)}`."
    ]
    numbers: dict[str, Any] = {}
    for name, table in tables:
        text, numbers[name] = table()
        parts.append(text)
        log.info("\n%s\n", text)
    return "\n\n".join(parts), numbers


def read_texts(opened: OpenReader, data: Path, most: int) -> Texts:
    """Reads the first pairs of each set; those that do not fit are left out."""
    names: list[str] = []
    rows: list[dict[str, Any]] = []
    encoded: list[Any] = []
    for name in SETS:
        read = read_jsonl(data / f"{name}.jsonl")
        if name == "gptfuzz_labelled":
            read = list(pairs_from_labels(read, per_prompt=PER_PROMPT))
        read = read[: most + 10]
        parsed = pairs_from_batch({key: [row[key] for row in read] for key in ("prompt", "chosen", "rejected")})
        good = [(row, pair) for row, pair in zip(read, parsed, strict=True) if isinstance(pair, Pair)]
        sides = zip(
            opened.encode([p.chosen for _, p in good]), opened.encode([p.rejected for _, p in good]), strict=True
        )
        both = [
            (row, pair) for (row, _), pair in zip(good, sides, strict=True) if all(isinstance(t, Tokens) for t in pair)
        ]
        for row, pair in both[:most]:
            names.append(name)
            rows.append(row)
            encoded += pair
    states = read_states(opened, encoded)
    groups = resample.groups_of([opening(parsed_of(row)) for row in rows])
    return Texts(np.array(names), groups, list(zip(states[0::2], states[1::2], strict=True)), rows)


def parsed_of(row: Mapping[str, Any]) -> Any:
    return conversation(row["prompt"], row["chosen"])


def read_states(opened: OpenReader, texts: Sequence[Any]) -> list[np.ndarray]:
    """States of each text's response `[t, d_model]`, at the reader's layer."""
    found: list[np.ndarray] = [np.empty(0)] * len(texts)
    seen: list[tuple[Any, Any]] = []
    batches = read_vectors(
        opened.model,
        [text.ids for text in texts],
        [text.said for text in texts],
        [opened.reader.layer],
        route=opened.route,
        watch=lambda _, states, counts: seen.append((states, counts)),
    )
    for index, _ in batches:
        states, counts = seen[-1]
        for i, one in zip(index, states.split(list(counts)), strict=True):
            found[i] = one.cpu().numpy()
        seen.clear()
    return found


def fitted(texts: Texts, folds: np.ndarray, signs: np.ndarray | None = None) -> np.ndarray:
    """A direction for each fold `[folds, d_model]`, fitted without it; with `signs`, on labels that are drawn."""
    differences = np.stack([c.mean(0) - r.mean(0) for c, r in texts.states])
    if signs is not None:
        differences = differences * signs[:, None]
    use = np.isin(texts.names, FITTED)
    return np.stack([unit(whitened(differences[use & (folds != f)])) for f in range(FOLDS)])


# -- Tables ----------------------------------------------------------------------------------------------------


def settled(texts: Texts, values: Sequence[tuple[np.ndarray, ...]], folds: np.ndarray) -> tuple[str, Any]:
    """After what share of both responses the sign of the margin is the one that it ends with."""
    drawn = [random_signs(texts, folds, seed) for seed in range(RANDOM)]
    lines = [
        "### When is the sign of a margin settled?",
        "",
        "Both responses are cut to the same share of their tokens, 1 % to 100 %. Settled: the share after which the "
        "sign of the margin stays. Drawn: directions fitted on the same pairs with labels drawn at random "
        f"({RANDOM} times). The other columns: agreement with the labels, in %, of the beginnings alone.",
        "",
        "| set | settled: median (quartiles) | drawn | " + " | ".join(f"first {s:.0%}" for s in SHARES) + " |",
        "|---|---|---|" + "---|" * len(SHARES),
    ]
    numbers: dict[str, Any] = {}
    for name, title in SETS.items():
        own = np.flatnonzero(texts.names == name).tolist()
        paths = np.stack([margins_by_share(*values[i]) for i in own])
        after = np.array([settled_after(path) for path in paths])
        control = [settled_after(margins_by_share(*d[i])) for d in drawn for i in own]
        at = [max(round(100 * s) - 1, 0) for s in SHARES]
        right = (paths[:, at] > 0) + 0.5 * (paths[:, at] == 0)
        means, intervals = resample.share_intervals(right, resample.groups_of(texts.groups[own].tolist()))
        shares = " | ".join(cell(m, i) for m, i in zip(means, intervals, strict=True))
        lines.append(f"| {title} | {quartiles(after)} | {quartiles(np.array(control))} | {shares} |")
        numbers[name] = {"settled": np.percentile(after, [25, 50, 75]).tolist(), "right": means.tolist()}
    return "\n".join(lines), numbers


def margins_by_share(chosen: np.ndarray, rejected: np.ndarray) -> np.ndarray:
    """Margin of the first 1 % to 100 % of both responses `[100]`, at least a token of each."""
    a, b = running(chosen, "mean"), running(rejected, "mean")
    shares = np.arange(1, 101) / 100
    return a[np.ceil(shares * len(a)).astype(int) - 1] - b[np.ceil(shares * len(b)).astype(int) - 1]


def random_signs(texts: Texts, folds: np.ndarray, seed: int) -> list[tuple[np.ndarray, ...]]:
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], len(texts.rows))
    vectors = fitted(texts, folds, signs)
    return [tuple(s @ vectors[f] for s in sides) for sides, f in zip(texts.states, folds, strict=True)]


def turns(
    opened: OpenReader, texts: Texts, folds: np.ndarray, vectors: np.ndarray, model: Path, given: argparse.Namespace
) -> tuple[str, Any]:
    """Whether a text that was made to turn is seen to turn there."""
    own = np.flatnonzero(np.isin(texts.names, FITTED))
    made = [(i, *composed(texts.rows[i], cut)) for i in own[:: max(1, len(own) // 80)] for cut in CUTS]
    lines = [
        "### Does a text turn where it was made to turn?",
        "",
        "Composed: the first quarter, half or three quarters of the words of a rejected response, then the chosen "
        "response to the same prompt. Written: ladders that `correction_ladders` makes, in which the model itself goes "
        f"on behind a phrase that turns back. Found is the turn of the memory (window {WINDOW}); the error is its "
        "distance from the seam in tokens. Hit: within 16 tokens of it, and towards the direction.",
        "",
        "| texts | direction | error: median (quartiles) | hit, % | turns towards, % |",
        "|---|---|---|---|---|",
    ]
    numbers: dict[str, Any] = {}
    kinds = [("composed", made)]
    if given.ladders:
        kinds.append(("written", written(texts, own, model, given)))
    signs = np.random.default_rng(0).choice([-1.0, 1.0], len(texts.rows))
    noise = np.random.default_rng(1).normal(size=vectors.shape)
    directions = {
        "fitted": vectors,
        "fitted on drawn labels": fitted(texts, folds, signs),
        "random": noise / np.linalg.norm(noise, axis=1, keepdims=True),
    }
    for kind, several in kinds:
        traced = trace_of(opened, texts, several)
        groups = resample.groups_of([int(texts.groups[i]) for i, _, _ in traced])
        seams = np.array([seam for _, _, seam in traced])
        found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for name, each in directions.items():
            seen = [turn_of(states @ each[folds[i]], WINDOW) for i, states, _ in traced]
            found[name] = np.array([t.token for t in seen]), np.array([t.sign for t in seen])
        middle = np.array([len(states) // 2 for _, states, _ in traced])
        found["the middle of the text, its sign taken as given"] = middle, np.ones(len(traced))
        for name, (token, sign) in found.items():
            error = np.abs(token - seams)
            both = np.stack([(error <= WINDOW) & (sign > 0), sign > 0], axis=1).astype(float)
            means, intervals = resample.share_intervals(both, groups)
            hit, towards = (cell(m, i) for m, i in zip(means, intervals, strict=True))
            towards = "" if name.startswith("the middle") else towards
            lines.append(f"| {kind} ({len(traced)}) | {name} | {quartiles(error)} | {hit} | {towards} |")
            numbers[f"{kind}, {name}"] = {"error": np.percentile(error, [25, 50, 75]).tolist(), "hit": means.tolist()}
    return "\n".join(lines), numbers


def composed(row: Mapping[str, Any], share: float) -> tuple[str, int]:
    """A beginning of the rejected response and then the chosen one, and at which character it turns."""
    words = row["rejected"].split()
    begun = " ".join(words[: max(1, round(share * len(words)))])
    return f"{begun} {row['chosen'].strip()}", len(begun) + 1


def written(texts: Texts, own: np.ndarray, model: Path, given: argparse.Namespace) -> list[tuple[int, str, int]]:
    """Rungs of ladders that the model makes out of rejected responses, and where each turns back."""
    from datasets import Dataset

    from legend_hf import Writer
    from legend_hf.preferences import correction_ladders

    pku = [int(i) for i in own if texts.names[i] == "pku_saferlhf" and len(texts.rows[i]["rejected"].split()) >= 40]
    few = pku[:: max(1, len(pku) // given.ladders)][: given.ladders]
    rows = Dataset.from_list(
        [{"prompt": texts.rows[i]["prompt"], "response": texts.rows[i]["rejected"], "row": i} for i in few]
    )
    given.kept.mkdir(parents=True, exist_ok=True)
    made = correction_ladders(
        rows, model=Writer(str(model), max_new_tokens=48, dtype=given.dtype, device=given.device), on_error="skip",
        output=given.kept / "traces_ladders.jsonl", overwrite=True,
    )  # fmt: skip
    found = []
    for row in made:
        for response, trigger in zip(row["responses"][1:-1], row["triggers"] * len(row["responses"]), strict=False):
            at = next((response.rfind(t) for t in (trigger, *row["triggers"]) if t in response), -1)
            if at > 0:
                found.append((row["row"], response, at))
    return found


def trace_of(
    opened: OpenReader, texts: Texts, several: Sequence[tuple[int, str, int]]
) -> list[tuple[int, np.ndarray, int]]:
    """States of texts, and the first token behind each seam."""
    prompts = [conversation(texts.rows[i]["prompt"], said) for i, said, _ in several]
    encoded = opened.encode(prompts)
    good = [k for k, text in enumerate(encoded) if isinstance(text, Tokens)]
    states = read_states(opened, [encoded[k] for k in good])
    found = []
    for k, one in zip(good, states, strict=True):
        i, said, at = several[k]
        text, places = opened.places(prompts[k])
        begin = text.rfind(said.strip()[:40])
        offset = text.rfind(said.strip()) if said.strip() in text else begin
        first = next((n for n, (start, _) in enumerate(places) if start >= offset + at - 1), len(places))
        found.append((i, one, first))
    return found


def poolings(texts: Texts, values: Sequence[tuple[np.ndarray, ...]]) -> tuple[str, Any]:
    """Which number of a response's tokens judges pairs best, of all responses and of the longer half."""
    lengths = np.array([max(len(c), len(r)) for c, r in values])
    kinds = {"all": np.full(len(values), True), "long": lengths >= np.median(lengths)}
    lines = [
        "### Which pooling of a trace judges best?",
        "",
        f"Agreement with the labels, in %, and the gain over the mean in points. Long: the half of the pairs whose "
        f"longer response has {int(np.median(lengths))} tokens or more. No pooling is picked: each has one number, "
        "on prompts that its direction was not fitted on.",
        "",
        "| pooling | all pairs | gain | long pairs | gain |",
        "|---|---|---|---|---|",
    ]
    numbers: dict[str, Any] = {}
    right = {
        name: np.array([side(pool(c) - pool(r)) for c, r in values], dtype=float) for name, pool in POOLINGS.items()
    }
    first = right[next(iter(POOLINGS))]
    for name, own in right.items():
        cells = []
        for where in kinds.values():
            groups = resample.groups_of(texts.groups[where].tolist())
            mean, interval = resample.share_interval(own[where], groups)
            gain = resample.difference_interval(own[where] - first[where], groups)
            points = 100 * float((own[where] - first[where]).mean())
            cells += [
                cell(mean, interval),
                "" if own is first or gain is None else f"{points:+.1f} [{100 * gain[0]:+.1f}, {100 * gain[1]:+.1f}]",
            ]
            numbers.setdefault(name, []).append([mean, points])
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines), numbers


def costs(opened: OpenReader, data: Path, repeats: int = 3) -> tuple[str, Any]:
    """What a stream costs a token, and what the column of traces costs beyond the score, in processor seconds."""
    from legend_hf.margins.naming import Text
    from legend_hf.margins.scoring import Scoring

    line = np.random.default_rng(0).normal(size=opened.reader.d_model)
    vector = (line / np.linalg.norm(line)).astype(np.float32)
    direction = Direction(vector, opened.reader, Calibration("raw"))
    rows = read_jsonl(data / "pku_saferlhf.jsonl")[:8]
    pairs = [(row["prompt"], row[side]) for row in rows for side in ("chosen", "rejected")]
    texts = [t for t in opened.encode([conversation(*one) for one in pairs]) if isinstance(t, Tokens)]
    taken: dict[bool, list[float]] = {False: [], True: []}
    for again in range(repeats + 1):
        for traces in (False, True):
            scoring = Scoring(opened, (("", direction),), "", None, traces)
            start = time.process_time()
            scoring.score([Text(text) for text in texts])
            if again:  # the first time warms up
                taken[traces].append(time.process_time() - start)
    column = min(taken[True]) / min(taken[False]) - 1
    said = " ".join(row["chosen"] for row in rows)
    (whole,) = opened.encode([conversation(rows[0]["prompt"], said)])
    assert isinstance(whole, Tokens)
    lines = [
        "### What it costs",
        "",
        f"Seconds of the processor, one thread, the least of {repeats} tries. The column `trace` on {len(texts)} "
        f"texts: {100 * column:+.1f} % beyond the scores. A stream, for each token behind so many:",
        "",
        "| tokens before | stream, ms a token | reading all anew, ms | ratio |",
        "|---|---|---|---|",
    ]
    numbers: dict[str, Any] = {"column": column}
    for n in (64, 256, 512):
        stream = Stream(opened, rows[0]["prompt"], vector)
        own = [whole.ids[i] for i in whole.said]
        stream.feed(own[: n - len(stream.ids)])
        start = time.process_time()
        for token in own[n : n + 10]:
            stream.feed(token)
        each = (time.process_time() - start) / 10
        anew = []
        for _ in range(3):
            start = time.process_time()
            read_states(opened, [Tokens(whole.ids[:n], (n - 1,), n - 1)])
            anew.append(time.process_time() - start)
        lines.append(f"| {n} | {1000 * each:.1f} | {1000 * min(anew):.0f} | {min(anew) / each:.0f} |")
        numbers[str(n)] = [each, min(anew)]
    return "\n".join(lines), numbers


def rolling(values: np.ndarray) -> np.ndarray:
    """Means of every window of 16 tokens that lies in the text; of a shorter one its mean."""
    n = min(WINDOW, len(values))
    sums = np.cumsum(np.r_[0.0, values])
    return (sums[n:] - sums[:-n]) / n


def side(difference: float) -> float:
    return 0.5 if difference == 0 else float(difference > 0)


def cell(mean: float, interval: Any) -> str:
    low, high = interval if interval is not None else (np.nan, np.nan)
    return f"{100 * mean:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def quartiles(numbers: np.ndarray) -> str:
    low, middle, high = np.percentile(numbers, [25, 50, 75])
    return f"{middle:.0f} ({low:.0f}, {high:.0f})"


if __name__ == "__main__":
    main()
