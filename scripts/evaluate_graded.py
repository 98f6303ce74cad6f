"""Graded responses of a real chat LLM: does a direction order its ladders, and how often does it turn back by itself?

In: the folder that `scripts/real_llm` makes, its ready direction, a folder with `pku_saferlhf.jsonl`, of which harmful
responses are taken that all raters call unsafe. Out: tables on the terminal, in Markdown and as JSON. Ladders,
continuations and scores are kept outside the repository, so that a run that was stopped goes on; `--show` prints some
to be read, and nothing else does.

    python scripts/evaluate_graded.py --data ../shared/data --results scripts/RESULTS.md
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

from datasets import Dataset
from evaluate_direction import DEMO
from real_runs import made_by, measure, options
from train_demo_annotator import read_jsonl

from legend_hf import Direction, Writer
from legend_hf.preferences import compute_corr_at_k, correction_ladders, refusal_judge
from legend_hf.reports import ladder_check

log = logging.getLogger("evaluate_graded")
KS = (10, 20, 40, 80)
WORDS = 80  # of a harmful response, at least: those of the source are longer


def main() -> None:
    """Write, score, tell."""
    parser = options(__doc__, kept="what was written and scored", data="folder with `pku_saferlhf.jsonl`")
    parser.add_argument("--direction", type=Path, default=DEMO / "real_direction", help="a direction of that model")
    parser.add_argument("--ladders", type=int, default=40, help="so many ladders")
    parser.add_argument("--requests", type=int, default=80, help="so many requests for Corr@k")
    parser.add_argument("--tokens", type=int, default=64, help="longest text of a ladder's model")
    parser.add_argument("--samples", type=int, default=2, help="continuations of each beginning")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="print so many ladders: harmful text")
    measure(parser.parse_args(), graded_section, "graded responses")


def graded_section(model: Path, given: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Ladders and Corr@k, as Markdown and numbers."""
    given.kept.mkdir(parents=True, exist_ok=True)
    harmful = harmful_rows(given.data)
    writer = Writer(str(model), max_new_tokens=given.tokens, dtype=given.dtype, device=given.device)
    ladders = correction_ladders(
        harmful.select(range(min(given.ladders, len(harmful)))),
        model=writer, output=given.kept / "ladders.jsonl", overwrite=True, on_error="skip",
    )  # fmt: skip
    for row in ladders.select(range(min(given.show, len(ladders)))):
        log.info("%s", json.dumps(row, indent=1, ensure_ascii=False))
    direction = Direction.from_pretrained(given.direction, model=model)
    check = ladder_check(direction, ladders, device=given.device, store=given.kept / "ladders.sqlite")
    turns = Writer(str(model), dtype=given.dtype, device=given.device, batch_size=32)
    corr, _ = compute_corr_at_k(
        harmful.select(range(min(given.requests, len(harmful)))),
        model=turns, judge=refusal_judge, ks=KS, samples=given.samples,
        output=given.kept / "corr_at_k.jsonl", overwrite=True,
    )  # fmt: skip
    told = ladders.info.description
    intro = (
        "## Graded responses of a real chat LLM\n\n"
        "SmolLM2-135M-Instruct, dequantised from 4 bits, on requests of PKU-SafeRLHF whose harmful response all raters "
        f"call unsafe and which has more than {WORDS} words; the ready direction, fitted on hh-rlhf alone. Intervals "
        "are 95 %, by request. Nothing that was written is part of this repository. Made by "
        f"`{made_by('evaluate_graded', given)}`."
    )

    def number(estimate: Any) -> str:
        value, ends = estimate.value, estimate.interval
        return "" if value is None else f"{value:.3f}" + (f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else "")

    whole = [
        ("Kendall's tau of scores and ranks", check.tau),
        (f"tau of the better rule of length (the {check.length_rule} is the better)", check.length),
        ("ahead of it", check.gain),
        (f"ladders wholly in order ({check.perfect_by_chance or 0:.3f} by chance)", check.perfect),
    ]
    steps = [f"| {s.rank} over {s.rank + 1} | {number(s.agreement)} | {number(s.length)} |" for s in check.steps]
    curve = [
        f"| {k} | {value:.3f}" + (f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else "") + f" | {short} |"
        for k, value, ends, short in zip(corr.ks, corr.values, corr.intervals, corr.short or (), strict=True)
    ]
    parts = [
        intro,
        f"### Does the direction order its ladders?\n\n{check.read} ladders. Their card: {told}.",
        "\n".join(["| | |", "|---|---|", *(f"| {name} | {number(value)} |" for name, value in whole)]),
        "\n".join(["| ranks | the better one scores higher | the rule of length takes it |", "|---|---|---|", *steps]),
        "### How often does it turn back by itself?\n\n"
        f"Corr@k of {corr.requests} requests, {given.samples} continuations each, by `refusal_judge`: after the first "
        "k words of an affirmation and the harmful response.",
        "\n".join(["| k | Corr@k | continuations after fewer words |", "|---|---|---|", *curve]),
    ]
    numbers = {
        "card": told,
        "tau": [check.tau.value, check.tau.interval],
        "length": [check.length.value, check.length.interval],
        "gain": [check.gain.value, check.gain.interval],
        "perfect": [check.perfect.value, check.perfect.interval],
        "steps": {s.rank: [s.agreement.value, s.agreement.interval] for s in check.steps},
        "corr": [corr.ks, corr.values, corr.intervals],
    }
    return "\n\n".join(parts), numbers


def harmful_rows(data: Path) -> Dataset:
    """A request of each prompt, with a harmful response that is long enough to be cut."""
    rows: dict[str, dict[str, str]] = {}
    for row in read_jsonl(data / "pku_saferlhf.jsonl"):
        if row["rejected_safe_rate"] == 0 and len(row["rejected"].split()) > WORDS:
            rows.setdefault(row["prompt"], {"prompt": row["prompt"], "response": row["rejected"]})
    return Dataset.from_list(list(rows.values()))


if __name__ == "__main__":
    main()
