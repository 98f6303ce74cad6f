"""Parts of a dataset: together they are the dataset, whatever its kind."""

from __future__ import annotations

from itertools import chain

import pytest
from datasets import Dataset, DatasetDict, IterableDatasetDict, load_dataset
from hypothesis import given
from hypothesis import strategies as st

from legend_hf.scale.shards import Shard, parse_shard, shard_of


def numbers(rows) -> list[int]:
    return [row["n"] for row in rows]


@given(st.integers(0, 60), st.integers(1, 12))
def test_parts_in_their_order_are_the_dataset(rows, of):
    dataset = Dataset.from_dict({"n": list(range(rows))})
    parts = [numbers(shard_of(dataset, f"{i}/{of}")) for i in range(1, of + 1)]
    assert [*chain(*parts)] == list(range(rows))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    # The control: counted from 0, rows would be missing.
    if rows >= of > 1:
        assert [*chain(*parts[:-1])] != list(range(rows))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[str]:
    """Three files; the second has two groups of rows."""
    folder = tmp_path_factory.mktemp("files")
    made = []
    for i, (first, size) in enumerate(((0, 7), (7, 12), (19, 4))):
        made.append(str(folder / f"{i}.parquet"))
        Dataset.from_dict({"n": list(range(first, first + size))}).to_parquet(made[-1], batch_size=6)
    return made


@pytest.mark.parametrize("of", [1, 2, 3, 4, 5, 9, 40])
def test_a_stream_is_parted_by_files_by_groups_of_rows_or_by_rows(files, of):
    stream = load_dataset("parquet", data_files=files, split="train", streaming=True)
    parts = [numbers(shard_of(stream, f"{i}/{of}")) for i in range(1, of + 1)]
    assert sorted(chain(*parts)) == list(range(23))
    if of <= 3:  # whole files: each job opens its own alone
        assert [*chain(*parts)] == list(range(23))
    assert all(shard_of(stream, f"{i}/{of}").features == stream.features for i in (1, of))


def test_every_split_is_parted(files):
    rows = Dataset.from_dict({"n": list(range(5))})
    both = shard_of(DatasetDict(train=rows, test=rows.select(range(2))), "2/2")
    assert {name: numbers(split) for name, split in both.items()} == {"train": [2, 3, 4], "test": [1]}
    streams = shard_of(IterableDatasetDict(train=rows.to_iterable_dataset(num_shards=5)), "2/2")
    assert isinstance(streams, IterableDatasetDict)
    assert numbers(streams["train"]) == [3, 4]


def test_names_sort_as_the_rows():
    assert parse_shard(" 2 / 8 ") == Shard(2, 8)
    assert str(Shard(2, 8)) == "2/8"
    assert parse_shard(None) == Shard(1, 1)
    assert sorted([Shard(10, 12).name, Shard(9, 12).name]) == ["00009-of-00012", "00010-of-00012"]


@pytest.mark.parametrize("shard", ["0/8", "9/8", "8", "1/0", "-1/2", "a/b", "1/8/2", "", "1/100000", 3, (1, 2), "١/٢"])
def test_what_is_no_part_is_refused(shard):
    with pytest.raises(ValueError, match="allowed are '1/8' to '8/8' for a job of eight"):
        shard_of(Dataset.from_dict({"n": [1]}), shard)


def test_what_is_no_dataset_is_refused():
    with pytest.raises(ValueError, match="`dataset` is a list; allowed are `Dataset`, .*load_dataset"):
        shard_of([{"n": 1}], "1/2")
