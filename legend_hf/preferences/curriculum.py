"""Preference pairs become a curriculum: stages to train on one after the other, by how clear each pair is.

In: a dataset of pairs with one number each, such as `margin`. Out: a `DatasetDict` of stages with the same rows and
columns. Texts are read batch by batch, for their prompts alone. This file knows no models, no trainer and no rating:
where the numbers come from, and whether they are right, is the caller's.

From the source (Curry-DPO, arXiv 2403.07230): pairs of one prompt are ordered by how far the two responses are apart,
a large gap being easy, and the n-th easiest pairs of all prompts are a stage. Ours: a margin in the place of the gap
between two ratings, fewer stages than a prompt has pairs, `mode="global"` and `order="hard_first"`.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from legend_hf.directions import resample
from legend_hf.margins.columns import MARGIN_STATUS, OK, finite_numbers, kind_of, ok_rows
from legend_hf.margins.origin import check_one, marks_of
from legend_hf.reading.formats import Columns, RowError, pairs_from_batch
from legend_hf.reading.plain import check_choice, digest_of, key_of

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

logger = logging.getLogger(__name__)

GLOBAL_STAGES = 3
ROWS_AT_ONCE = 1000
# Ours: from this share of pairs in the easiest stage on, ordering within prompts has ordered next to nothing.
CROWDED = 0.9


def curriculum(
    dataset: Dataset,
    *,
    by: str = "margin",
    stages: int | None = None,
    mode: str = "per_prompt",
    order: str = "easy_first",
    negative: str = "hardest",
    prompt_column: str = "prompt",
    chosen_column: str = "chosen",
    rejected_column: str = "rejected",
) -> DatasetDict:
    """Divides preference pairs into stages, from those whose chosen response is clearly better to those that are close.

    Train on `stage_1`, `stage_2`, ... in this order; in Curry-DPO (arXiv 2403.07230) the reference model of a stage is
    the model that the stage before produced. Trainers shuffle the rows of a stage, which is as it should be; rows of
    different stages must not be mixed. A loss that subtracts the same margin uses it twice: say so where you report it.

    Curry-DPO orders by the gap between two ratings, with the best response of a prompt as the chosen side of all its
    pairs; any pairs will do here. The margin in the gap's place is our transfer, and so are `mode="global"`,
    `order="hard_first"`, `negative` and a `stages` below what the prompts need: none of them is from the paper.

    Pairs are of one prompt if all that was said before the chosen response is the same: a later turn of a dialogue is a
    prompt of its own here, while folds and intervals keep the turns of a dialogue together.

    Only the order of the numbers decides, and with `negative="drop"` their sign. Pairs with equal numbers stay in the
    order of the rows, so that the earlier row counts as the easier one.

    Args:
        dataset: Pairs in any accepted shape, with the column `by`. Rows whose `margin_status` is not `"ok"` are left
            out and counted in a warning, whatever `by` is: their margin is 0.0 and says nothing.
        by: Column of finite numbers, the larger the easier: a margin, a gap between ratings.
        stages: How many, T. With `mode="per_prompt"` None makes as many as the prompt with the most pairs needs, so
            that every prompt has at most one pair in a stage; with fewer, a prompt with more than T pairs has several
            in some. With `mode="global"` None is 3.
        mode: `"per_prompt"`: of the n pairs of a prompt, the easiest has rank r = 0 and goes to the first stage, and so
            on: rank r goes to stage r + 1 where n <= T, and to stage floor(r T / n) + 1 where n > T. So a prompt with
            few pairs is in the first stages only. `"global"`: all pairs, easiest first, are cut in T stages whose sizes
            differ by at most one, the larger ones first; texts are not read at all.
        order: `"easy_first"` as above. `"hard_first"` makes the same stages and numbers them from the other end: its
            stage t is stage T + 1 - t of `"easy_first"`.
        negative: What becomes of pairs whose number is below 0, which contradict their label: `"hardest"` leaves them
            where they sort, behind all others, the most contradicting last; `"drop"` leaves them out before anything
            else. Zero is a tie between the two sides and stays in either case, between negative and positive numbers.
            `"drop"` says nothing of a column whose tie is elsewhere, such as `margin_prob` with its one half.
        prompt_column: Name of the prompts' column, where it is not `prompt`.
        chosen_column: Name of the chosen responses' column.
        rejected_column: Name of the rejected responses' column.

    Returns:
        `stage_1` to `stage_T`, none of them empty. Each row is in exactly one stage, unless it was left out as said
        above. A stage keeps all columns, their types, the dataset's format and the order of the rows. Where
        `mode="per_prompt"` leaves over 90 % of the pairs in the easiest stage, a warning says so.

    Raises:
        RowError: A value of `by` is missing or not a finite number, or, with `mode="per_prompt"`, a row cannot be read.
        ValueError: `dataset` is not one `Dataset`, a column is missing, an argument is not one of those allowed, no row
            is left, or there are fewer pairs than stages.
    """
    _check_arguments(dataset, by, stages, mode=mode, order=order, negative=negative)
    rows = _annotated_rows(dataset)
    values = finite_numbers(dataset, by, rows)
    dropped = 0
    if negative == "drop":
        kept = values >= 0
        dropped = int((~kept).sum())
        rows, values = rows[kept], values[kept]
    if len(rows) == 0:
        raise ValueError(
            f"no pair is left of {len(dataset)} rows, {dropped} of them with a negative `{by}`; give a dataset with "
            'readable pairs, or `negative="hardest"`'
        )
    # Places in the order of the distinct values, 0 for the largest: unlike the values, they can be sorted downwards
    # without negating what may be unsigned.
    distinct, place = np.unique(values, return_inverse=True)
    place = len(distinct) - 1 - place
    tied = int(np.bincount(place).max())
    if 1 < len(place) < 2 * tied and (mode == "global" or len(distinct) == 1):
        logger.warning(
            "%d of %d pairs have the same `%s`, so that the order of the rows decides which of them is easier: did a "
            "scale clip them?",
            tied, len(place), by,
        )  # fmt: skip
    if mode == "global":
        stage = _cut(place, GLOBAL_STAGES if stages is None else stages)
    else:
        columns = Columns(prompt=prompt_column, chosen=chosen_column, rejected=rejected_column)
        stage = _dealt(place, _prompts(dataset, rows, columns), stages)
        easiest = int((stage == 0).sum())
        if stages != 1 and easiest > CROWDED * len(stage):
            logger.warning(
                "%d of %d pairs are in `stage_%d`, the easiest: most prompts have one pair only, and "
                '`mode="per_prompt"` orders the pairs of a prompt; `mode="global"` orders all pairs',
                easiest, len(stage), 1 if order == "easy_first" else int(stage.max()) + 1,
            )  # fmt: skip
    return _selected(dataset, rows, stage, order, f"by `{by}`, {mode}, {order}, {dropped} negative dropped")


def _cut(place: np.ndarray, stages: int) -> np.ndarray:
    """Stage of each row `[n]`, from 0: all rows by their place `[n]`, cut in parts that are as equal as can be."""
    if stages > len(place):
        raise ValueError(
            f"`stages` is {stages}, and there are {len(place)} pairs; allowed are 1 to {len(place)} stages"
        )
    stage = np.empty(len(place), dtype=np.int64)
    for number, part in enumerate(np.array_split(np.argsort(place, kind="stable"), stages)):
        stage[part] = number
    return stage


def _dealt(place: np.ndarray, prompts: np.ndarray, stages: int | None) -> np.ndarray:
    """Stage of each row `[n]`, from 0: the rows of each prompt `[n]` by their place `[n]`, one after the other."""
    sizes = np.bincount(prompts)  # [prompts]
    most = int(sizes.max())
    if stages is None:
        stages = most
    if stages > most:
        raise ValueError(
            f"`stages` is {stages}, and no prompt has more than {most} pairs; allowed are 1 to {most} stages, or "
            '`mode="global"`, which does not look at prompts'
        )
    # By prompt, then by place; rows with equal places stay in their order.
    by_prompt = np.lexsort((place, prompts))
    rank = np.empty(len(place), dtype=np.int64)
    rank[by_prompt] = np.arange(len(place)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    size = sizes[prompts]
    return np.where(size > stages, rank * stages // size, rank)


def _selected(dataset: Dataset, rows: np.ndarray, stage: np.ndarray, order: str, how: str) -> DatasetDict:
    """The rows `[n]` of each stage `[n]`, in the order of the dataset."""
    from datasets import DatasetDict

    parts = [rows[stage == number] for number in range(int(stage.max()) + 1)]
    if order == "hard_first":
        parts.reverse()
    logger.info("stages of %s pairs out of %d rows (%s)", [len(part) for part in parts], len(dataset), how)
    return DatasetDict({f"stage_{number}": dataset.select(part) for number, part in enumerate(parts, start=1)})


def _check_arguments(dataset: Any, by: str, stages: int | None, **choices: str) -> None:
    from datasets import Dataset, DatasetDict, IterableDatasetDict

    if isinstance(dataset, DatasetDict | IterableDatasetDict):
        splits = ", ".join(map(repr, dataset)) or "none"
        raise ValueError(f"`dataset` has the splits {splits}; give one of them: `curriculum(dataset[split], ...)`")
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"`dataset` is {kind_of(dataset)}; give a `datasets.Dataset`: rows as `Dataset.from_list(rows)`, a "
            "streaming one as `Dataset.from_generator(lambda: iter(ds), features=ds.features)`"
        )
    allowed = {
        "mode": ("per_prompt", "global"),
        "order": ("easy_first", "hard_first"),
        "negative": ("hardest", "drop"),
    }
    for name, choice in choices.items():
        check_choice(name, choice, allowed[name])
    whole = isinstance(stages, int | np.integer) and not isinstance(stages, bool)
    if stages is not None and not (whole and stages >= 1):
        raise ValueError(f"`stages` is {stages!r}; give a whole number of at least 1, or None")
    if by not in dataset.column_names:
        there = ", ".join(f"`{name}`" for name in dataset.column_names) or "no columns"
        remedy = "name one of these, or make margins first: `annotate(dataset, direction)`"
        if by == "margin" and "margin_raw" in dataset.column_names:  # pairs of scores that are not a direction's
            remedy = 'pass `by="margin_raw"`, which orders pairs as well'
        raise ValueError(f"`by={by!r}` names no column; the dataset has {there}; {remedy}")
    check_one(marks_of(dataset, by), by)


def _annotated_rows(dataset: Dataset) -> np.ndarray:
    """Numbers of the rows that were not skipped when margins were made, rising."""
    good = ok_rows(dataset, MARGIN_STATUS)
    if len(good) < len(dataset):
        logger.warning(
            "left out %d of %d rows, whose `%s` is not %r; to keep them, remove that column",
            len(dataset) - len(good), len(dataset), MARGIN_STATUS, OK,
        )  # fmt: skip
    return good


def _prompts(dataset: Dataset, rows: np.ndarray, columns: Columns) -> np.ndarray:
    """Numbers the prompts of these rows: `[n]` integers from 0."""
    # On no rows: refuses wrong columns, naming all that there are.
    pairs_from_batch(dataset.with_format(None)[:0], columns)
    texts = dataset.select_columns([name for name in asdict(columns).values() if name in dataset.column_names])
    keys: list[str] = []
    for batch in texts.with_format(None).select(rows).iter(batch_size=ROWS_AT_ONCE):
        for pair in pairs_from_batch(batch, columns, first_row=len(keys)):
            if isinstance(pair, RowError):
                refusal = RowError(int(rows[pair.row]), pair.column, pair.reason).unskippable
                refusal.add_note(
                    'or make margins by `LegendMarginFn(direction, on_error="skip")`: rows it skips are left out here'
                )
                raise refusal
            keys.append(digest_of(key_of(pair.chosen.prompt))[:32])
    return resample.groups_of(keys)
