"""Does a column help a reward model? `compare`.

In: arguments. Out: what `reports.compare` found, in words. This file knows no trainer.
"""

from __future__ import annotations

import os

from legend_hf.cli.door import Call, Say, command
from legend_hf.cli.options import Place, Rows
from legend_hf.cli.preferences import TRAINING
from legend_hf.hub.outputs import check_file, write_whole


@command("reports.compare.compare", under=TRAINING, without=["columns"])
def compare(
    compare: Call, dataset: Rows, *, model: str | os.PathLike[str], output: Place | None = None, say: Say
) -> None:
    """Train the same reward model on the same rows with a column and without, and say whether the column helps.

    By TRL's RewardTrainer; judged on held-out prompts, or on the split `test` where there are `train` and `test`.

    Example: compare annotated --model Qwen/Qwen2.5-0.5B --use margin --use cleaned --output compared.md

    Options:
        model: Hub id or folder of the model that the reward grows on.
        output: File for the same text.
    """
    if output is not None:
        check_file(output.output, reads=[dataset.source, model], ours=_is_compared, overwrite=output.overwrite)
    said = compare(dataset.load(), model).to_markdown()
    say(said)
    if output is not None:
        write_whole(output.output, said)
        say(f"Saved in {output.output}")


def _is_compared(file: os.PathLike[str]) -> bool:
    """Whether a file is one that `compare` wrote."""
    with open(file, "rb") as lines:
        return b" times each; judged on " in lines.readline()
