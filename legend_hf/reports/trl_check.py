"""Would TRL's `RewardTrainer` train on this dataset, and on all of it? Told before a run, by split.

In: a preference dataset and the tokenizer of the model that will be trained. Out: a `TrlCheck`: figures, what would
break the training (or make its loss a wrong one), and what is lost silently. It says what TRL 1.16 does with the
dataset as it is; `export_for` repairs most of it. This file runs no model and needs no TRL: losses and gradients are
those of a reward model that tells no two responses apart yet (r_chosen = r_rejected), which a random head nearly does.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from legend_hf.hub import cards
from legend_hf.margins.columns import (
    MARGIN_STATUS,
    kind_of,
    like_margin,
    numbers_of,
    ok_rows,
    one_size,
    remedy_for,
    splits_of,
)
from legend_hf.reading.formats import UnnamedPrompt, pairs_from_batch
from legend_hf.reading.pretrained import loading_of
from legend_hf.reports.blocks import as_markdown
from legend_hf.reports.measure import at_the_start
from legend_hf.reports.tables import Figure, by_split
from legend_hf.reports.trl_rows import ROWS_AT_ONCE, prepared

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from transformers import PreTrainedTokenizerBase

MAX_LENGTH = 1024  # the default of `RewardConfig`
SATURATED, SILENT = 0.99, 0.01  # sizes of a gradient, of at most 1
# Ours: from this share of rows on, what is lost or saturated is worth a warning.
WARN_SHARE = 0.05

_SHOWN_ROWS = 5


@dataclass(frozen=True)
class SplitCheck:
    """One split's figures. Shares and means are over the rows that are trained on, and None where there are none.

    Attributes:
        split: Its name.
        rows: Rows that it has.
        trained: Rows that are left when TRL has removed those over `max_length`.
        too_long: Rows that TRL removes, without a word, because one side is longer than `max_length` tokens.
        longest: Tokens of the longest side.
        refused: Rows at which TRL's preparation fails.
        same: Trained rows whose two sides are the same tokens: they teach nothing.
        same_if_cut: Removed rows whose two sides would be the same if cut to `max_length`, as `DPOTrainer` cuts.
        margin_type: The type of the column `margin`; None without one.
        not_finite: Rows whose margin is missing, NaN or infinite.
        negative: Share of margins below 0.
        gradient: Mean size of the gradient |dL/d(r_chosen - r_rejected)| at the start, sigmoid(margin); 0.5 without
            margins.
        saturated: Share of rows whose gradient is above 0.99: to them a larger margin is the same constant push.
        silent: Share of rows whose gradient is below 0.01: they contribute nothing until the model errs on them.
        loss: The loss at the start, the mean of log(1 + exp(margin)).
        loss_without: The same without margins, log 2.
    """

    split: str
    rows: int
    trained: int
    too_long: int
    longest: int
    refused: int
    same: int
    same_if_cut: int
    margin_type: str | None
    not_finite: int
    negative: float | None
    gradient: float | None
    saturated: float | None
    silent: float | None
    loss: float | None
    loss_without: float = math.log(2)


@dataclass(frozen=True)
class TrlCheck:
    """What `RewardTrainer` would do with a dataset.

    Attributes:
        max_length: The longest side that is trained on, in tokens; None for no limit.
        splits: The figures.
        errors: What stops the training, or makes its loss NaN or a wrong one; each with its remedy.
        warnings: What is lost or misleads without a word.
    """

    max_length: int | None
    splits: tuple[SplitCheck, ...]
    errors: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing would break the training."""
        return not self.errors

    def to_markdown(self) -> str:
        """The verdict, the errors and warnings, and a table: a figure a row, a split a column."""
        parts = ["**TRL's `RewardTrainer` would " + ("train on this.**" if self.ok else "not train on this.**")]
        for title, said in (("Errors", self.errors), ("Warnings", self.warnings)):
            if said:
                parts.append(f"{title}:\n\n" + "\n".join(f"- {line}" for line in said))
        figures = [(name, shown, says.format(max_length=self.max_length)) for name, shown, says in _FIGURES]
        return "\n\n".join([*parts, as_markdown([by_split("Figure", figures, self.splits)])])

    def __str__(self) -> str:
        return self.to_markdown()


def check_for_trl(
    dataset: Dataset | DatasetDict,
    tokenizer: PreTrainedTokenizerBase | str | os.PathLike[str],
    *,
    max_length: int | None = MAX_LENGTH,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> TrlCheck:
    """Says what TRL's `RewardTrainer` would do with a dataset, before it does it.

    Every row is tokenised as the trainer does it: a string prompt joined to the response with nothing between and the
    EOS appended where it is missing; messages by the chat template, with the row's `tools` and `chat_template_kwargs`.
    Datasets that hold token ids already are taken as they are, as TRL takes them.

    Args:
        dataset: Rows as they would be given to the trainer.
        tokenizer: Of the model to train: the object, or the model's folder or Hub id.
        max_length: Longest side in tokens, as in `RewardConfig`. None: no limit.
        revision: Branch, tag or commit of a model on the Hub.
        trust_remote_code: Run code that comes with the tokenizer.

    Returns:
        The figures of each split, in the dataset's order, the errors and the warnings.

    Raises:
        ValueError: `dataset` is neither a `Dataset` nor a `DatasetDict`, `tokenizer` no tokenizer, or `max_length` is
            below 1.
        OSError: The tokenizer cannot be loaded.
    """
    if max_length is not None and max_length < 1:
        raise ValueError(f"`max_length` is {max_length}; allowed is at least 1, or None for no limit")
    if not isinstance(tokenizer, str | os.PathLike) and not hasattr(tokenizer, "eos_token"):
        raise ValueError(
            f"`tokenizer` is {kind_of(tokenizer)}; allowed are a tokenizer, or the folder or Hub id of the model that "
            "will be trained"
        )
    splits = splits_of(dataset)
    if isinstance(tokenizer, str | os.PathLike):
        from transformers import AutoTokenizer

        with loading_of("tokenizer", os.fspath(tokenizer)):
            tokenizer = AutoTokenizer.from_pretrained(tokenizer, revision=revision, trust_remote_code=trust_remote_code)
    errors: list[str] = []
    warnings: list[str] = []
    if tokenizer.pad_token is None and tokenizer.eos_token is None:
        errors.append(
            "the tokenizer has neither a padding nor an EOS token, and TRL needs one of them; set `pad_token`"
        )
    checked = []
    glued: dict[str, np.ndarray] = {}
    for name, split in splits.items():
        figures, glued[name], wrong, doubtful = _split(name, split.with_format(None), tokenizer, max_length)
        checked.append(figures)
        errors += [f"{cards.as_code(name)}: {line}" for line in wrong]
        warnings += [f"{cards.as_code(name)}: {line}" for line in doubtful]
    return TrlCheck(max_length, tuple(checked), tuple(errors), (*_across(splits), *_glued(glued), *warnings))


# -- All splits together -------------------------------------------------------------------------------------


def _across(splits: Mapping[str, Dataset]) -> list[str]:
    """Warnings about what no split shows alone."""
    first, *others = splits
    with_margin = [name for name, split in splits.items() if "margin" in split.column_names]
    if 0 < len(with_margin) < len(splits):
        without = ", ".join(cards.as_code(name) for name in splits if name not in with_margin)
        return [
            f"`margin` is missing in {without} only: the loss there has no margins in it and compares with no other, "
            "and `DatasetDict.push_to_hub` refuses splits of different columns; annotate all splits"
        ]
    if any(splits[name].features != splits[first].features for name in others):
        return [
            "the splits' columns differ in name or type: `DatasetDict.push_to_hub` refuses them; `Dataset.cast` one "
            "like the other, or remove the columns that differ"
        ]
    return []


def _glued(glued: Mapping[str, np.ndarray]) -> list[str]:
    """One warning for all splits: it is how the dataset is written, and has one remedy."""
    found = {name: rows for name, rows in glued.items() if rows.any()}
    if not found:
        return []
    return [
        f"{', '.join(map(cards.as_code, found))}: {_some(np.concatenate(list(found.values())))} join prompt and "
        "response without a space between, since TRL adds none; add one, or make messages of them with "
        "`export_for(dataset, messages=True)`"
    ]


# -- One split -----------------------------------------------------------------------------------------------


def _split(
    name: str, split: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> tuple[SplitCheck, np.ndarray, list[str], list[str]]:
    """A split's figures, which rows are glued `[n]`, errors and warnings."""
    errors: list[str] = []
    warnings: list[str] = []
    if not len(split):
        errors.append("it has no rows, and TRL fails at an empty split; leave it out of the training")
    rows = prepared(split, tokenizer, max_length)
    errors += rows.errors
    warnings += rows.warnings
    removed = np.zeros(len(split), dtype=bool) if max_length is None else rows.lengths > max_length
    trained = ~removed & ~rows.refused
    if removed.any():
        warnings.append(
            f"{_some(removed)} have a side of more than {max_length} tokens and are removed silently, margins and all; "
            "raise `max_length` in `RewardConfig`, or shorten them"
        )
        if removed.all():
            errors.append(f"no row is left: all have a side of more than {max_length} tokens; raise `max_length`")
    if (rows.same & trained).any():
        warnings.append(f"{_some(rows.same & trained)} have the same tokens on both sides and teach nothing; drop them")
    if (rows.same_if_cut & removed).any():
        warnings.append(
            f"{_some(rows.same_if_cut & removed)} would have the same tokens on both sides if cut to {max_length}, as "
            "`DPOTrainer` does, and teach it nothing; raise `max_length`, or drop them"
        )
    unnamed = _unnamed_prompt(split)
    if unnamed is not None:
        warnings.append(
            f"its column {cards.as_code(unnamed)} seems to hold the prompts, which TRL reads as `prompt` only; name it "
            "to `export_for(dataset, prompt_column=...)`, or use `rename_column`"
        )
    margins = _margins(split, errors, warnings)
    of_margins = _at_the_start(None if margins is None else margins[trained], warnings)
    return (
        SplitCheck(
            split=name,
            rows=len(split),
            trained=int(trained.sum()),
            too_long=int(removed.sum()),
            longest=int(rows.lengths.max(initial=0)),
            refused=int(rows.refused.sum()),
            same=int((rows.same & trained).sum()),
            same_if_cut=int((rows.same_if_cut & removed).sum()),
            margin_type=_type(split, "margin") if "margin" in split.column_names else None,
            not_finite=0 if margins is None else int((~np.isfinite(margins)).sum()),
            **of_margins,
        ),
        rows.glued,
        errors,
        warnings,
    )


def _unnamed_prompt(split: Dataset) -> str | None:
    """The column that holds the prompts of responses without one, by the first rows."""
    try:
        pairs_from_batch(split.with_format(None).select(range(min(len(split), ROWS_AT_ONCE))))
    except UnnamedPrompt as error:
        return error.column
    except ValueError:  # which is said elsewhere
        return None
    return None


# -- Margins -------------------------------------------------------------------------------------------------


def _margins(split: Dataset, errors: list[str], warnings: list[str]) -> np.ndarray | None:
    """The margins `[n]`, NaN where one is missing, 0 without the column; None where they are no numbers."""
    if "margin" not in split.column_names:
        similar = ", ".join(cards.as_code(column) for column in like_margin(split.column_names))
        warnings.append(
            "it has no `margin`, so TRL trains without margins"
            + (f"; it finds them by that exact name only, and ignores {similar}: rename it" if similar else "")
        )
        return np.zeros(len(split))  # what TRL's loss then is
    kind, values = _type(split, "margin"), numbers_of(split, "margin")
    if values is None:
        errors.append(
            f"`margin` is {kind}, allowed is one number a row, float32: lists of one number mix every pair of a batch "
            "with every margin of it, a wrong loss without an error, and other types stop the training; "
            f"{remedy_for(split, 'margin')}"
        )
        return None
    bad = ~np.isfinite(values)
    if bad.any():
        rows = ", ".join(map(str, np.flatnonzero(bad)[:_SHOWN_ROWS]))
        remedy = "annotate anew" + ("" if bad.all() else ", or drop them with `Dataset.filter`")
        errors.append(
            f"`margin` is missing, NaN or infinite in {int(bad.sum())} of {len(split)} rows (first: {rows}): None "
            f"stops the training, NaN makes the loss of its batch NaN; {remedy}"
        )
    same = one_size(values[~bad])
    if len(values) > 1 and (values == values[0]).all():
        warnings.append(f"every `margin` is {values[0]:g}, so it tells no pair from another; annotate anew")
    elif same is not None:
        warnings.append(
            f"of the margins {same}, so they tell few pairs from others; annotate anew, with a direction that fits, "
            'or a scale that clips less, such as `LegendMarginFn(direction, scale="logit")`'
        )
    if kind != "float32":
        warnings.append(
            f"`margin` is {kind}; TRL makes float32 of it, and splits must agree: `cast_column` it to float32, and if "
            "whole numbers were not meant, annotate anew"
        )
    skipped = ~np.isin(np.arange(len(split)), ok_rows(split, MARGIN_STATUS))
    if skipped.any():
        warnings.append(
            f"{_some(skipped)} have a `margin_status` that is not ok: their margin of 0.0 was not measured; "
            "`export_for(dataset)` leaves them out"
        )
    return values


def _at_the_start(margins: np.ndarray | None, warnings: list[str]) -> dict[str, Any]:
    """What the margins do to loss and gradient while the rewards are equal."""
    margins = None if margins is None else margins[np.isfinite(margins)]
    if margins is None or not len(margins):
        return dict.fromkeys(("negative", "gradient", "saturated", "silent", "loss"))
    loss, gradient = at_the_start(margins)
    saturated, silent, negative = gradient > SATURATED, gradient < SILENT, margins < 0
    scale = 'take a calibrated scale, such as `LegendMarginFn(direction, scale="unit")`'
    if saturated.mean() >= WARN_SHARE:
        warnings.append(
            f"{_some(saturated)} have a margin so large that its size no longer matters (gradient above {SATURATED} at "
            f"the start); {scale}"
        )
    if silent.mean() >= WARN_SHARE:
        warnings.append(
            f"{_some(silent)} have a margin so far below 0 that they teach nothing (gradient below {SILENT} at the "
            f"start); {scale}"
        )
    if negative.mean() > 0.5:
        warnings.append(
            f"{_some(negative)} have a negative margin, more than half: look at the direction's held-out accuracy, and "
            "whether `chosen` is the side that is preferred"
        )
    return {
        "negative": float(negative.mean()),
        "gradient": float(gradient.mean()),
        "saturated": float(saturated.mean()),
        "silent": float(silent.mean()),
        "loss": float(loss.mean()),
    }


def _type(split: Dataset, column: str) -> str:
    kind = split.features[column]
    return str(getattr(kind, "dtype", None) or type(kind).__name__)


# -- Words ---------------------------------------------------------------------------------------------------


def _some(which: np.ndarray) -> str:
    return f"{int(which.sum())} of {len(which)} rows ({which.mean():.1%})"


def _shown(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


_FIGURES: Sequence[Figure[SplitCheck]] = (
    ("rows", lambda s: str(s.rows), "Rows in the split."),
    ("trained on", lambda s: str(s.trained), "Rows that are left when TRL has prepared it."),
    ("too long", lambda s: str(s.too_long), "Removed silently: a side is over `max_length` ({max_length})."),
    ("longest", lambda s: str(s.longest), "Tokens of the longest side."),
    ("refused", lambda s: str(s.refused), "Rows at which TRL fails."),
    ("same sides", lambda s: str(s.same), "Trained rows with equal tokens on both sides."),
    ("same if cut", lambda s: str(s.same_if_cut), "Removed rows, equal within `max_length` ({max_length})."),
    ("type of `margin`", lambda s: cards.as_code(s.margin_type) if s.margin_type else "none", "Should be `float32`."),
    ("not finite", lambda s: str(s.not_finite), "Margins that are missing, NaN or infinite."),
    ("negative", lambda s: _shown(s.negative, ".1%"), "Margins below 0: these pairs weigh less."),
    ("gradient", lambda s: _shown(s.gradient, ".3f"), "Its mean size at the start; 0.5 without margins, at most 1."),
    ("saturated", lambda s: _shown(s.saturated, ".1%"), f"Rows whose gradient is above {SATURATED}."),
    ("silent", lambda s: _shown(s.silent, ".1%"), f"Rows whose gradient is below {SILENT}."),
    ("loss", lambda s: _shown(s.loss, ".3f"), "At the start, with the margins; `eval_loss` holds them too."),
    ("loss without", lambda s: _shown(s.loss_without, ".3f"), "At the start, without margins."),
)
