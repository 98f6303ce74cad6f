"""What the measurements on the real chat model share on the command line.

In: a script's options and the function that measures. Out: its text in the log and, where asked for, its numbers and
its section of a Markdown file, and how long it took. This file measures nothing else.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kept_states
from train_demo_annotator import DEMO

from legend_hf.reading.reader import DTYPES

log = logging.getLogger("real_runs")
USUAL_DTYPE = "float32"
TOOK = "%(minutes).1f minutes, %(processor_minutes).1f of processor time"


def options(doc: str | None, *, kept: str, data: str = "folder with the .jsonl files") -> argparse.ArgumentParser:
    """The options of every such script.

    Args:
        doc: The script's docstring, whose first line is told.
        kept: What stands in the folder of `--kept`.
        data: What stands in the folder of `--data`.
    """
    parser = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help=data)
    parser.add_argument(
        "--real", type=Path, help="folder of the real chat model; else where `scripts/real_llm` made it"
    )
    parser.add_argument("--kept", type=Path, default=kept_states.default_folder(), help=kept)
    parser.add_argument("--device", help="cpu, cuda ...; a GPU when there is one")
    parser.add_argument(
        "--dtype", default=USUAL_DTYPE, choices=DTYPES,
        help="of the chat model; bfloat16 is several times faster where the processor multiplies matrices in it",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, help="file for all numbers")
    parser.add_argument("--results", type=Path, help="Markdown file whose marked section is replaced")
    return parser


def measure(
    given: argparse.Namespace,
    section: Callable[[Path, argparse.Namespace], tuple[str, dict[str, Any]]],
    name: str,
) -> None:
    """Finds the model, measures, and tells.

    Args:
        given: What `options` parsed.
        section: Of the model's folder and the options, the text and its numbers.
        name: Of the section in the Markdown file.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for loud in ("legend_hf", "httpx", "httpx2"):
        logging.getLogger(loud).setLevel(logging.ERROR)  # a few prompts are few on purpose
    sys.path.append(str(DEMO))
    from real_llm import default_folder

    model: Path = given.real or default_folder()
    if not (model / "config.json").is_file():
        raise SystemExit(f"there is no real chat model in {model}; `scripts/real_llm` makes it")
    start = clocks()
    text, numbers = section(model, given)
    took = minutes_since(start)
    log.info("\n%s\n", text)
    log.info(TOOK, took)
    if given.json:
        given.json.write_text(json.dumps(numbers | took, indent=2) + "\n", encoding="utf-8")
    if given.results:
        replace_section(given.results, text, name)


def made_by(script: str, given: argparse.Namespace, options: str = "") -> str:
    """The command that makes a section, for the section to say.

    Args:
        script: Its name without ending.
        given: What `options` parsed, of which the dtype is told where it is not the usual one.
        options: Others, each with a space before it.
    """
    dtype = "" if given.dtype == USUAL_DTYPE else f" --dtype {given.dtype}"
    return f"python scripts/{script}.py{options}{dtype} --results scripts/RESULTS.md"


def answers_of(given: argparse.Namespace, name: str) -> Path:
    """Where the model's answers to harmful questions are kept; in another dtype it gives others."""
    return Path(given.kept) / f"induced_{name}{'' if given.dtype == USUAL_DTYPE else f'_{given.dtype}'}.jsonl"


def clocks() -> tuple[float, float]:
    """What the clock and the processor, in all threads of this process, show now."""
    return time.perf_counter(), time.process_time()


def minutes_since(start: tuple[float, float]) -> dict[str, float]:
    """Minutes of both since then, as `TOOK` tells them."""
    now = clocks()
    return {"minutes": (now[0] - start[0]) / 60, "processor_minutes": (now[1] - start[1]) / 60}


def replace_section(file: Path, text: str, name: str) -> None:
    """Writes the text between the marks of that name, at the end of the file if they are not there yet."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    old = file.read_text(encoding="utf-8") if file.exists() else "# Results\n"
    section = f"{begin}\n{text}\n{end}"
    if begin in old and end in old:
        before, after = old.split(begin)[0], old.split(end)[1]
        new = before + section + after
    else:
        new = old.rstrip("\n") + "\n\n" + section + "\n"
    file.write_text(new, encoding="utf-8")
