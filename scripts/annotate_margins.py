# /// script
# requires-python = ">=3.11"
# dependencies = ["legend-hf"]
# ///
r"""Adds safety margins to the preference pairs of a dataset on the Hub, and pushes the result as another one.

A margin says by how much the chosen response reads as safer than the rejected one: see https://arxiv.org/abs/2406.08124.
In: a dataset with `chosen` and `rejected`, or another shape that `legend_hf` knows, and a direction. Out: the same rows
with margins, and a card that says where they come from. Try it on a few rows first:

    hf jobs uv run --flavor l4x1 --secrets HF_TOKEN \
        https://huggingface.co/datasets/you/scripts/resolve/main/annotate_margins.py \
        Anthropic/hh-rlhf you/hh-rlhf-margins --direction you/legend-direction --max-samples 10

A job's disk ends with it. With `--checkpoint hf://buckets/you/scores/run` (or `s3://bucket/run`, which needs `--with
s3fs` before the script's address) what was read is kept there: start a job that was killed or timed out again, with the
same words, and it goes on from there. Several jobs take a part each, `--shard 1/8` to `--shard 8/8`, with one
checkpoint; each pushes its rows as a configuration of its own. The same without `--shard` then pushes all of them as
one, and reads nothing again. Nothing was tried on the Hub's machines or its buckets.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from legend_hf.scale.shards import Shard

out = logging.getLogger("annotate_margins")


def main() -> None:
    """Checks what would be in vain, annotates, and pushes in one commit."""
    asked = arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    import torch

    if (asked.device or "").startswith("cuda") and not torch.cuda.is_available():
        sys.exit(
            f"--device {asked.device}: this machine has no GPU that torch can use; take a flavor with one "
            "(`hf jobs uv run --flavor l4x1 ...`), or leave `--device` out to run on the CPU"
        )
    from legend_hf import LegendMarginFn, annotate, save_annotated
    from legend_hf.hub.rows import load_rows
    from legend_hf.hub.transfer import Repository
    from legend_hf.publish import push_folder
    from legend_hf.scale.shards import parse_shard, shard_of

    began = time.monotonic()
    try:
        part = parse_shard(asked.shard)
        Repository(asked.output, "dataset").check_writable(create_pr=asked.create_pr)  # before the hours, not after
        fn = LegendMarginFn(
            asked.direction,
            model=asked.model,
            device=asked.device,
            device_map=asked.device_map,
            on_error=asked.on_error,
            overwrite=asked.overwrite,
            store=asked.checkpoint,
        )
        rows = load_rows(asked.input, asked.config, asked.split)
        if asked.split is not None:
            from datasets import DatasetDict

            rows = DatasetDict({asked.split.partition("[")[0]: rows})
        rows = shard_of(type(rows)({name: some(one, asked) for name, one in rows.items()}), part)
        done = annotate(rows, fn, batch_size=asked.batch_size)
        name = asked.config or "default"
        with tempfile.TemporaryDirectory() as folder:
            save_annotated(
                done, folder, direction=fn, config_name=name if part.of == 1 else f"{name}-{part.name}", overwrite=True
            )
            card = Path(folder) / "README.md"
            said = how_it_went(sum(map(len, done.values())), time.monotonic() - began, part)
            card.write_text(f"{card.read_text(encoding='utf-8').rstrip()}\n\n{said}", encoding="utf-8")
            commit = push_folder(folder, asked.output, direction=fn, private=asked.private, create_pr=asked.create_pr)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"Error: {error}")
    out.info("Pushed: %s", commit.pr_url or commit.commit_url)


def some(rows: Any, asked: argparse.Namespace) -> Any:
    """The rows of a split that were asked for; the same ones whenever it is run again."""
    rows = rows.shuffle(seed=asked.seed) if asked.shuffle else rows
    return rows if asked.max_samples is None else rows.select(range(min(asked.max_samples, len(rows))))


def how_it_went(rows: int, seconds: float, part: Shard) -> str:
    """What the card says of this run: that much a run of all rows will take, too."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    which = "" if part.of == 1 else f" (part {part})"
    return (
        f"## Run{which}\n\nMade by `annotate_margins.py` on {datetime.now(UTC):%Y-%m-%d}: {rows:,} rows in "
        f"{seconds:.0f} s of wall clock, {rows / seconds:.1f} rows/s, loading included, on {gpu}.\n"
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", help="dataset on the Hub, or a file or folder")
    parser.add_argument("output", help="dataset on the Hub to push to; made if missing")
    parser.add_argument("--direction", required=True, help="Hub id, folder or URL of a direction")
    parser.add_argument("--model", help="folder with the direction's model, instead of its place on the Hub")
    parser.add_argument("--split", help="one split; all when left out")
    parser.add_argument("--config", help="configuration of the dataset")
    parser.add_argument("--max-samples", type=int, help="rows of each split, to try it out")
    parser.add_argument(
        "--shuffle", action="store_true", help="in an order that the seed decides, before rows are taken"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard", help="one part of several, counted from 1: 2/8")
    parser.add_argument("--batch-size", type=int, default=200, help="rows that are handed to the model together")
    parser.add_argument("--device", help="cuda to insist on a GPU; the best there is when left out")
    parser.add_argument(
        "--device-map", help='"auto" for a model larger than one GPU, which `--with accelerate` then spreads'
    )
    parser.add_argument("--checkpoint", help="URL of a folder that outlives the job, or a .sqlite file")
    parser.add_argument("--on-error", choices=["raise", "skip"], default="raise", help="at a row that cannot be read")
    parser.add_argument("--overwrite", action="store_true", help="replace margins that the rows have")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead of pushing")
    parser.add_argument(
        "--private", action=argparse.BooleanOptionalAction, default=True, help="whether a dataset made now is private"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
