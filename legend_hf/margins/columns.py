"""What the columns of every transform have in common: their names, when they may be written, and in what format.

In: names of columns and directions, and columns that were made. Out: names, what `map` is given back, or a refusal that
says what to do. This file does not know what a number means.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from legend_hf.reading.formats import RowError

if TYPE_CHECKING:
    from datasets import Dataset, Features

# What the transforms of this library write, where other files read it.
MARGIN_COLUMNS = ("margin", "margin_raw", "chosen_score", "rejected_score")
MARGIN_ADDED = ("margin_bin", "margin_prob")
MARGIN_TRACES: Mapping[str, Mapping[str, str | list[str]]] = {
    "trace": {"chosen_trace": ["float32"], "rejected_trace": ["float32"]},
    "turn": {
        **dict.fromkeys(("chosen_turn", "chosen_turn_sign", "rejected_turn", "rejected_turn_sign"), "int32"),
        "pair_settled": "int32",
    },
}
"""What is written of each token, and what is made of that, by the word that asks for it; types as in `Transform`."""
MARGIN_NEGATIVE = "margin_negative"
MARGIN_MARKS = "margin_direction"
MARGIN_STATUS = "margin_status"
SCORES_MARKS = "scores_direction"
SCORES_STATUS = "scores_status"
SIMILARITY = "pair_similarity"
SIMILARITY_STATUS = "pair_similarity_status"

OK = "ok"
"""The status of a row that was read."""


def like_margin(names: Iterable[str]) -> list[str]:
    """Columns that may be meant as `margin`, which trainers find by its exact name only."""
    ours = {*MARGIN_COLUMNS, *MARGIN_ADDED, MARGIN_NEGATIVE, MARGIN_MARKS, MARGIN_STATUS}
    return [name for name in names if "margin" in name.lower() and name not in ours]


def suffixed(column: str, name: str) -> str:
    """The column of one direction out of several: `margin_safety`; of an only one, `margin`."""
    return f"{column}_{name}" if name else column


def check_rank(rank: Any) -> None:
    """Refuses what `map(..., with_indices=True)` would pass in the place of a rank."""
    if rank is not None and not isinstance(rank, int):
        raise ValueError(
            f"`rank` is a {type(rank).__name__}: this looks like `map(..., with_indices=True)`, whose second "
            "argument is a list of row numbers; leave `with_indices` out, or use `with_rank=True`"
        )


def check_free(new: Sequence[str], there: Collection[str], *, overwrite: bool) -> None:
    """Refuses to write columns that exist, unless asked to.

    Raises:
        ValueError: A column exists and `overwrite` is False.
    """
    taken = [name for name in new if name in there]
    if taken and not overwrite:
        raise ValueError(
            f"the dataset already has {', '.join(f'`{name}`' for name in taken)}; rename or remove what is there, "
            "or pass `overwrite=True`"
        )


def check_distinct(each: Sequence[str], status: str, names: Collection[str]) -> None:
    """Refuses names of directions with which one column would mean two things.

    Args:
        each: The columns of one direction.
        status: The column of the whole row.
        names: Of the directions.
    """
    columns = [*each, status, *(suffixed(column, name) for name in names if name for column in each)]
    twice = sorted({column for column in columns if columns.count(column) > 1})
    if twice:
        raise ValueError(f"`direction` maps {list(names)}: `{twice[0]}` would mean two things; give other names")


def one_size(numbers: np.ndarray) -> str | None:
    """How many of some margins `[n]` are of one size, where more than half are: they tell few pairs from others.

    A constant, a scale that clips most of them, or zeros in the place of negative ones.
    """
    sizes, counts = np.unique(np.abs(numbers), return_counts=True)
    if len(numbers) < 2 or counts.max() <= len(numbers) / 2:
        return None
    of = "all" if len(sizes) == 1 else f"{counts.max()} of"
    return f"{of} {len(numbers)} are of the size {sizes[counts.argmax()]:g}"


def after(features: Features | None, new: Features) -> Features | None:
    """The features of a dataset with new columns; None where it does not know its own, as a stream may not."""
    from datasets import Features

    return None if features is None else Features({**features, **new})


def written(batch: Any, made: Mapping[str, Any], features: Features) -> Any:
    """New columns as `map` wants them back: alone, or, where the batch is a table or a frame, in a copy of it.

    To what a function makes of a mapping `map` adds the batch's own columns; a table or a frame it takes for the whole.

    Args:
        batch: What `map` gave, in any format.
        made: The new columns `[n]` by name, in order.
        features: Their types.
    """
    if isinstance(batch, Mapping):
        return dict(made)
    import pyarrow as pa

    if isinstance(batch, pa.Table):
        for field in features.arrow_schema:
            column = pa.array(made[field.name], type=field.type)
            place = batch.schema.get_field_index(field.name)
            add = batch.append_column if place < 0 else partial(batch.set_column, place)
            batch = add(field, column)
        return batch
    import pandas as pd

    if isinstance(batch, pd.DataFrame):
        # One object a cell: pandas would take lists of equal length for one array of two dimensions.
        return batch.assign(
            **{n: v if isinstance(v, np.ndarray) else pd.Series(v, dtype=object) for n, v in made.items()}
        )
    import polars as pl  # type: ignore[import-not-found, unused-ignore]

    arrow = {field.name: pa.array(made[field.name], type=field.type) for field in features.arrow_schema}
    return batch.with_columns(**{name: pl.from_arrow(column) for name, column in arrow.items()})


def shown_as(done: Dataset, before: Dataset) -> Dataset:
    """A dataset in the format of the one that it was made of, in which its new columns are shown too.

    As `map` does it: columns that the format left out stay left out.
    """
    shown = before.format
    hidden = set(before.column_names) - set(shown["columns"])
    columns = [name for name in done.column_names if name not in hidden] if hidden else None
    return done.with_format(
        shown["type"], columns=columns, output_all_columns=shown["output_all_columns"], **shown["format_kwargs"]
    )


def kind_of(given: Any) -> str:
    """What somebody gave, for a message: "an IterableDataset", "a list", "None"."""
    if given is None:
        return "None"
    name = type(given).__name__
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


def splits_of(dataset: Any) -> dict[str, Any]:
    """The splits of a `DatasetDict`, or the one of a `Dataset`, by name.

    Raises:
        ValueError: Something else, or no split at all.
    """
    from datasets import Dataset, DatasetDict

    if isinstance(dataset, Dataset):
        return {str(dataset.split or "dataset"): dataset}
    if not isinstance(dataset, DatasetDict):
        raise ValueError(
            f"`dataset` is {kind_of(dataset)}; allowed are `Dataset` and `DatasetDict`, for all rows are needed at "
            "once; load a streaming one without `streaming=True`, make one of rows with `Dataset.from_list(rows)`"
        )
    if not dataset:
        raise ValueError("`dataset` has no splits; allowed is a `DatasetDict` with at least one; check how it was made")
    return dict(dataset)


def column_of(split: Dataset, column: str) -> Any:
    """One column as a `pyarrow.ChunkedArray`, without a look at the others."""
    return split.select_columns([column]).with_format("arrow")[:].column(column)


def numbers_of(split: Dataset, column: str) -> np.ndarray | None:
    """A column of numbers `[n]` float64, NaN where there is none; None if the column holds something else."""
    import pyarrow as pa
    import pyarrow.compute as pc

    values = column_of(split, column)
    kind = values.type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
        return None
    return pc.fill_null(pc.cast(values, pa.float64(), safe=False), float("nan")).to_numpy()


def finite_numbers(split: Dataset, column: str, rows: np.ndarray) -> np.ndarray:
    """The numbers of some rows `[n]`, for their order: whole ones stay whole, however large.

    Raises:
        RowError: One of them is missing, not finite, or no number.
    """
    import pyarrow as pa

    stored = column_of(split, column)
    known = stored.to_numpy() if pa.types.is_integer(stored.type) else numbers_of(split, column)  # a null becomes NaN
    if known is None or pa.types.is_boolean(stored.type):
        known = np.full(len(split), np.nan)
    values: np.ndarray = known[rows]
    bad = rows[~np.isfinite(values)]
    if len(bad):
        raise RowError(
            int(bad[0]),
            column,
            f"given {stored[int(bad[0])].as_py()!r:.60} in a column of {stored.type}; allowed is a finite number; fill "
            "it in, drop such rows with `Dataset.filter`, or convert the column with `Dataset.cast_column`",
        )
    return values


def ok_rows(split: Dataset, *statuses: str) -> np.ndarray:
    """Numbers of the rows `[n]` that were read, rising, by those of these columns that there are."""
    good = np.ones(len(split), dtype=bool)
    for status in statuses:
        if status in split.column_names:
            good &= np.array([said == OK for said in column_of(split, status).to_pylist()], dtype=bool)
    return np.flatnonzero(good)


def remedy_for(split: Dataset, column: str) -> str:
    """What to do about a column that `numbers_of` finds to hold something else than numbers."""
    kind = getattr(split.features[column], "dtype", None)
    if kind == "null":
        return "it is empty, so annotate anew"
    if kind in ("string", "large_string"):
        return f'where they say numbers `cast_column("{column}", Value("float32"))`, else annotate anew'
    return "take the number out of it, or annotate anew"
