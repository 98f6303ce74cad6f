"""What the measurements on the real chat model share on the command line.

In: a script's options and the function that measures. Out: its text in the log and, where asked for, its numbers and
its section of a Markdown file. This file measures nothing.
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
from evaluate_direction import DEMO, replace_section

log = logging.getLogger("real_runs")


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
    parser.add_argument("--json", type=Path, help="file for all numbers")
    parser.add_argument("--results", type=Path, help="Markdown file whose marked section is replaced")
    return parser


def measure(
    given: argparse.Namespace,
    section: Callable[[Path, argparse.Namespace], tuple[str, dict[str, Any]]],
    begin: str,
    end: str,
) -> None:
    """Finds the model, measures, and tells.

    Args:
        given: What `options` parsed.
        section: Of the model's folder and the options, the text and its numbers.
        begin: The mark before the section in the Markdown file.
        end: The mark behind it.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in ("legend_hf", "httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.ERROR)  # a few prompts are few on purpose
    sys.path.append(str(DEMO))
    from real_llm import default_folder

    model: Path = given.real or default_folder()
    if not (model / "config.json").is_file():
        raise SystemExit(f"there is no real chat model in {model}; `scripts/real_llm` makes it")
    start = time.perf_counter()
    text, numbers = section(model, given)
    log.info("\n%s\n\n%.1f minutes", text, (time.perf_counter() - start) / 60)
    if given.json:
        given.json.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    if given.results:
        replace_section(given.results, text, begin, end)
