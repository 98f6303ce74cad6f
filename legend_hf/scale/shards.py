"""One job of many takes its part of a dataset: `2/8` is the second of eight.

In: a dataset of any kind, and which part of it. Out: that part, of the same kind. All parts together are the dataset,
each row once, whatever machine takes which. This file knows neither what is done with a part nor where it goes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from legend_hf.margins.columns import kind_of

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

    AnyDataset = TypeVar("AnyDataset", Dataset, DatasetDict, IterableDataset, IterableDatasetDict)

MOST = 99_999
"""What five digits of a file's name can count."""


@dataclass(frozen=True)
class Shard:
    """One part of several, counted from 1.

    Attributes:
        number: Which one, from 1 to `of`.
        of: How many there are.
    """

    number: int = 1
    of: int = 1

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @property
    def name(self) -> str:
        """As it stands in names of files, which then sort in the order of the rows: `00002-of-00008`."""
        return f"{self.number:05d}-of-{self.of:05d}"


def parse_shard(shard: str | Shard | None) -> Shard:
    """Reads `"2/8"`; None is the only one of one.

    Raises:
        ValueError: It is no such part.
    """
    if isinstance(shard, Shard):
        return shard
    found = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", shard, re.ASCII) if isinstance(shard, str) else None
    if shard is not None and (found is None or not 1 <= int(found[1]) <= int(found[2]) <= MOST):
        raise ValueError(
            f"`shard` is {shard!r}; allowed are '1/8' to '8/8' for a job of eight, and so on up to {MOST} of them; "
            "a job array that counts from 0 adds 1: `$((SLURM_ARRAY_TASK_ID + 1))/8`"
        )
    return Shard() if found is None else Shard(int(found[1]), int(found[2]))


def shard_of(dataset: AnyDataset, shard: str | Shard | None) -> AnyDataset:
    """Takes one part of a dataset, of each split where it has several.

    Rows that stand together stay together, so parts in their order are the dataset in its order. A stream is parted by
    its files, or their groups of rows, where it has enough of them; else its rows go round, and each job passes over
    those of the others.

    Args:
        dataset: A `Dataset`, `DatasetDict`, `IterableDataset` or `IterableDatasetDict`.
        shard: Such as `"2/8"`, the second of eight; None is all.

    Returns:
        The same kind. A part may be empty, where there are more parts than rows.

    Raises:
        ValueError: `shard` is no such part, or `dataset` something else.
    """
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

    part = parse_shard(shard)
    if isinstance(dataset, DatasetDict | IterableDatasetDict):
        return type(dataset)({name: shard_of(split, part) for name, split in dataset.items()})
    if not isinstance(dataset, Dataset | IterableDataset):
        raise ValueError(
            f"`dataset` is {kind_of(dataset)}; allowed are `Dataset`, `DatasetDict`, `IterableDataset` and "
            "`IterableDatasetDict`; make one by `load_dataset(id)` or `Dataset.from_list(rows)`"
        )
    if part.of == 1:
        return dataset
    if isinstance(dataset, Dataset):
        first, end = (len(dataset) * at // part.of for at in (part.number - 1, part.number))
        return dataset.select(range(first, end))
    return _part_of_stream(dataset, part)


def _part_of_stream(stream: IterableDataset, part: Shard) -> IterableDataset:
    if stream.num_shards < part.of:
        stream = stream.reshard()
    if stream.num_shards >= part.of:
        return stream.shard(part.of, part.number - 1)
    return stream.filter(_taken, with_indices=True, fn_kwargs={"number": part.number, "of": part.of})


def _taken(row: Any, index: int, number: int, of: int) -> bool:
    return index % of == number - 1
