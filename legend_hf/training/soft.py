"""What a number for each pair does to a loss of pairs: a soft label, or a weight.

In: how much the chosen side is ahead of the rejected one, and a column of numbers. Out: the loss of each pair, and a
collator that lets the column through to it. This file knows no trainer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import logsigmoid

from legend_hf.margins.columns import kind_of, numbers_of, remedy_for
from legend_hf.reading.plain import check_choice

USES = ("margin_prob", "weight")
NEEDS_TRL = "this trainer is one of TRL's; install it with `pip install 'legend-hf[trl]'`"
_ALLOWED = {"margin_prob": "a probability from 0 to 1", "weight": "a finite number from 0"}


def pair_losses(ahead: torch.Tensor, numbers: torch.Tensor, use: str) -> torch.Tensor:
    """The loss of each pair `[n]`.

    * `margin_prob`, a soft label p: -p log σ(h) - (1 - p) log σ(-h), least where σ(h) = p. With p = 1 for all it is
      TRL's own loss to the bit. Conservative DPO (Mitchell, 2023) with each pair's own label noise.
    * `weight` w: -w log σ(h), the scaled Bradley-Terry loss of HelpSteer2-Preference (arXiv 2410.01257). With w = 1 for
      all it is TRL's own loss to the bit; the mean is over the pairs, not over their weights.

    Args:
        ahead: How much the chosen side is ahead, h `[n]`: a difference of rewards, or DPO's β times that of log ratios.
        numbers: Of each pair `[n]`.
        use: `"margin_prob"` or `"weight"`.
    """
    # In the rewards' own type: a float32 column must not make bf16 losses something else than TRL's.
    numbers = numbers.to(ahead.dtype)
    if use == "weight":
        return numbers * -logsigmoid(ahead)
    return numbers * -logsigmoid(ahead) + (1 - numbers) * -logsigmoid(-ahead)


def check_use(use: str) -> None:
    """Refuses what is neither a soft label nor a weight."""
    check_choice("use", use, USES)


def check_rows(rows: Any, use: str, which: str) -> None:
    """Refuses rows without the numbers, or with some that no training survives; a stream is seen as it is read.

    Raises:
        ValueError: The column is missing, holds no numbers, or some that are not allowed.
    """
    if isinstance(rows, dict):
        for name, split in rows.items():
            check_rows(split, use, f"{which}[{name!r}]")
    names = getattr(rows, "column_names", None)
    if not isinstance(names, list):
        return
    if use not in names:
        raise ValueError(
            f"`{which}` has no `{use}`, it has {', '.join(names)}; `export_for(dataset, weights=True)` writes it, and "
            f'`rename_column(name, "{use}")` names a column of yours'
        )
    from datasets import Dataset

    if isinstance(rows, Dataset):
        values = numbers_of(rows, use)
        if values is None:
            raise ValueError(
                f"`{which}`: `{use}` is {rows.features[use]}; allowed is one number a row; {remedy_for(rows, use)}"
            )
        _check(values, use, which)


@dataclass
class WithNumbers:
    """A collator whose batches have the numbers beside what they had.

    Attributes:
        collate: The trainer's own collator.
        use: The column.
    """

    collate: Callable[[list[dict[str, Any]]], dict[str, Any]]
    use: str

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """One batch out of rows."""
        numbers = [row[self.use] for row in rows]
        if not all(isinstance(number, int | float) for number in numbers):
            odd = next(number for number in numbers if not isinstance(number, int | float))
            raise ValueError(f"`{self.use}` is {kind_of(odd)} in a row; allowed is {_ALLOWED[self.use]}")
        _check(np.array(numbers, dtype=np.float64), self.use, "a batch")
        return {**self.collate(rows), self.use: torch.tensor(numbers, dtype=torch.float)}


def signature(columns: Sequence[str], use: str) -> list[str]:
    """The columns that reach the collator: a trainer's own but for `margin`, and the numbers."""
    return [*(column for column in columns if column not in ("margin", use)), use]


def _check(values: np.ndarray, use: str, which: str) -> None:
    wrong = ~((values >= 0) & (values <= 1)) if use == "margin_prob" else ~(np.isfinite(values) & (values >= 0))
    if wrong.any():
        raise ValueError(
            f"`{which}`: `{use}` is not {_ALLOWED[use]} in {int(wrong.sum())} rows (first: row {int(wrong.argmax())}); "
            "annotate anew, or drop them with `Dataset.filter`"
        )
