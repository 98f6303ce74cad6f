"""What annotating a dataset would read, and what that would cost: a dry run.

In: a dataset and a transform, as `annotate` takes them. Out: an Estimate. Nothing is written: no store, no columns, no
cached result. This file knows neither models nor what the columns mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from legend_hf.margins.annotate import transform_of
from legend_hf.margins.columns import kind_of
from legend_hf.margins.scoring import GivenDirection
from legend_hf.margins.transform import Transform
from legend_hf.reading.estimate import Estimate, Looked, estimate_reading

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


def estimate(
    dataset: Dataset | DatasetDict,
    fn: Transform | GivenDirection | Mapping[str, GivenDirection],
    *,
    batch_size: int = 200,
    sample_seconds: float = 20.0,
) -> Estimate:
    """Says what `annotate(dataset, fn)` would read, skip and cost, and does none of it.

    Every row is looked at and tokenised, in the batches of the run; a few forward passes, drawn from all, are timed.
    What the transform's store has is not counted; the store is neither made nor written.

    Args:
        dataset: A `Dataset` or `DatasetDict`; of a stream take some rows.
        fn: As for `annotate`. Rows that cannot be read are counted, whatever its `on_error`.
        batch_size: Rows in one call of the transform.
        sample_seconds: How long to read for the sample; one forward pass is always timed.

    Raises:
        ValueError: `dataset` is something else, or a column exists already.
    """
    from datasets import Dataset, DatasetDict
    from datasets.utils import tqdm

    if not isinstance(dataset, Dataset | DatasetDict):
        raise ValueError(
            f"`dataset` is {kind_of(dataset)}; allowed are `Dataset` and `DatasetDict`; of a stream take some rows: "
            "`Dataset.from_list(list(stream.take(1000)))`"
        )
    transform = transform_of(fn)
    splits = dataset if isinstance(dataset, DatasetDict) else {None: dataset}
    for split in splits.values():
        transform.check_free(transform.cleared(split).column_names)
    seen: set[int] | None = set() if transform.keeps else None

    def looked() -> Iterator[Looked]:
        with tqdm(total=sum(map(len, splits.values())), desc="Looking at rows", unit="row") as bar:
            for name, split in splits.items():
                plain: Any = split.with_format(None)
                where = "" if name is None else f"split {name!r}, "
                for first in range(0, len(plain), batch_size):
                    batch = plain.select(range(first, min(first + batch_size, len(plain))))
                    yield transform.would_read(batch, first_row=first, where=where, seen=seen)
                    bar.update(len(batch))

    return estimate_reading(looked(), transform.readers(), sample_seconds=sample_seconds)
