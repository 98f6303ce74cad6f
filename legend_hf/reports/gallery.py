"""Rows of an annotated dataset with their traces, so that a person can decide which labels are wrong.

In: a dataset with margins, the direction that made them, and which rows. Out: a `Gallery`: one page with both responses
of each row, token by token, all on one scale. This file makes no margins and judges none.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from legend_hf.directions.direction import Direction
from legend_hf.margins.columns import MARGIN_STATUS, kind_of, numbers_of, ok_rows
from legend_hf.margins.origin import check_made_by, marks_of
from legend_hf.reading.formats import RowError
from legend_hf.tracing import page
from legend_hf.tracing.trace import TracePair

if TYPE_CHECKING:
    from datasets import Dataset

NEGATIVE, POSITIVE, RANDOM = "most-negative", "most-positive", "random"
MOST = 20
"""Rows on a page, where nobody says how many."""
_TITLES = {
    NEGATIVE: "Rows whose rejected response reads as {more} by most",
    POSITIVE: "Rows whose chosen response reads as {more} by most",
    RANDOM: "Rows drawn at random",
}


@dataclass(frozen=True, eq=False)
class Gallery:
    """Rows with their traces.

    Attributes:
        pairs: Of each row, in order.
        title: Of the page.
        note: What the page says of the rows.
    """

    pairs: tuple[TracePair, ...]
    title: str
    note: str

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Writes the page: one HTML file that needs no network and no JavaScript.

        Args:
            path: The file; an earlier page there is replaced.
            overwrite: Replace whatever is there.

        Raises:
            ValueError: Something else is there.
            OSError: It cannot be written.
        """
        page.save(self.pairs, path, title=self.title, note=self.note, overwrite=overwrite)

    def _repr_html_(self) -> str:
        return page.shown(self.pairs)


def gallery(
    dataset: Dataset,
    *,
    direction: Direction,
    rows: str = NEGATIVE,
    most: int = MOST,
    margin_column: str = "margin",
    prompt_column: str = "prompt",
    chosen_column: str = "chosen",
    rejected_column: str = "rejected",
    seed: int = 0,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> Gallery:
    """Traces rows of a dataset; those whose margins contradict their labels most, unless others are asked for.

    Args:
        dataset: One split. By its margins rows are chosen; their numbers need none.
        direction: What the margins come from; another one than made them is refused.
        rows: `"most-negative"`, `"most-positive"` or `"random"`, or the rows' numbers: `"1,5,9"`.
        most: How many rows, of the first three.
        margin_column: Which margins, where there are those of several directions: `margin_safety`.
        prompt_column: Name of the prompts' column, where it is not `prompt`.
        chosen_column: Name of the chosen responses' column.
        rejected_column: Name of the rejected responses' column.
        seed: Of the drawing.
        device: Where to read; None takes a GPU when there is one.
        trust_remote_code: Run code that comes with the model.

    Raises:
        ValueError: The rows cannot be chosen, the margins are another direction's, or a text cannot be read.
        RowError: A row is none of the accepted shapes (a ValueError).
    """
    from datasets import Dataset

    if not isinstance(dataset, Dataset):
        raise ValueError(f"`dataset` is {kind_of(dataset)}; give one split: `dataset['train']`")
    if not isinstance(direction, Direction):
        raise ValueError(f"`direction` is {kind_of(direction)}; give one `Direction`, and `margin_column` if need be")
    if margin_column in dataset.column_names:
        check_made_by(direction, marks_of(dataset, margin_column), margin_column)
    raw = _margins(dataset, margin_column)
    chosen = _chosen(dataset, rows, most, raw, margin_column, seed)
    columns = {"prompt_column": prompt_column, "chosen_column": chosen_column, "rejected_column": rejected_column}
    zero = _middle(dataset, margin_column)
    pairs = []
    for number in chosen:
        title = f"Row {number}" if raw is None else f"Row {number}, margin {raw[number]:+.1f}".replace("-", "−")
        try:
            pairs.append(
                direction.trace_pair(
                    dataset.with_format(None)[number],
                    zero=zero,
                    title=title,
                    device=device,
                    trust_remote_code=trust_remote_code,
                    **columns,
                )
            )
        except RowError:
            raise
        except ValueError as error:
            raise ValueError(f"row {number}: {error}") from error
    return Gallery(tuple(pairs), _title(rows, direction), _note(pairs, dataset, zero))


def _margins(dataset: Dataset, column: str) -> np.ndarray | None:
    """The raw margins where they are there, else those on the training scale; None where there are none."""
    names = [column.replace("margin", "margin_raw", 1), column]
    return next((numbers_of(dataset, name) for name in names if name in dataset.column_names), None)


def _chosen(dataset: Dataset, rows: str, most: int, raw: np.ndarray | None, column: str, seed: int) -> Sequence[int]:
    """Numbers of the rows to show."""
    if most < 1:
        raise ValueError(f"`most` is {most}; give how many rows to show, at least 1")
    good = ok_rows(dataset, MARGIN_STATUS)
    if rows == RANDOM:
        drawn = np.random.default_rng(seed).permutation(good)[:most]
        return [int(number) for number in sorted(drawn)]
    if rows in (NEGATIVE, POSITIVE):
        if raw is None:
            raise ValueError(
                f"the dataset has no column `{column}` to choose by; annotate it first: `annotate(dataset, "
                'direction)`, or take `rows="random"`'
            )
        order = good[np.argsort(raw[good] if rows == NEGATIVE else -raw[good], kind="stable")]
        right = [int(i) for i in order if (raw[i] < 0) == (rows == NEGATIVE) and np.isfinite(raw[i])][:most]
        if not right:
            raise ValueError(
                f"no margin of `{column}` is {'below' if rows == NEGATIVE else 'above'} 0; take other rows"
            )
        return right
    try:
        numbers = [int(number) for number in rows.split(",")]
    except (ValueError, AttributeError):
        raise ValueError(
            f'`rows` is {rows!r}; allowed are "{NEGATIVE}", "{POSITIVE}", "{RANDOM}", or numbers such as "1,5,9"'
        ) from None
    wrong = next((number for number in numbers if not 0 <= number < len(dataset)), None)
    if wrong is not None:
        raise ValueError(f"`rows` names row {wrong}; the dataset has rows 0 to {len(dataset) - 1}")
    return numbers


def _middle(dataset: Dataset, column: str) -> float | None:
    """What all rows are measured against: the median of all scores; None where there are none, or no row was read."""
    names = [column.replace("margin", f"{side}_score", 1) for side in ("chosen", "rejected")]
    if not set(names) <= set(dataset.column_names):
        return None
    good = ok_rows(dataset, MARGIN_STATUS)
    numbers = [numbers_of(dataset, name) for name in names]
    scores = np.concatenate([n[good] for n in numbers if n is not None])
    return float(np.median(scores)) if len(scores) and np.isfinite(scores).all() else None


def _title(rows: str, direction: Direction) -> str:
    return _TITLES.get(rows, "Rows of a dataset").format(more=direction.concept.more)


def _note(pairs: Sequence[TracePair], dataset: Dataset, zero: float | None) -> str:
    """What the page says of its rows."""
    where = (
        "the median score of all responses of the dataset" if zero is not None else "the middle of each row's scores"
    )
    return (
        f"{len(pairs)} of {len(dataset)} rows, numbered from 0. Where the rejected response reads as further along "
        f"than the chosen one, the label may be wrong, or the margin: read both. Neutral is {where}."
    )
