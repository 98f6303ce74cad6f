"""Rows by configuration and split become Parquet files, named and cut as `datasets` does it.

In: configurations that have been checked, and a folder. Out: the files, and all that a card says of what is in them.
Which files of a repository these take the place of is told by their names. This file knows no margins and no cards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

SHARD_BYTES = 500_000_000
"""Of Arrow data in one Parquet file, as `datasets` does."""


@dataclass(frozen=True)
class Config:
    """One configuration, ready to be written.

    Attributes:
        splits: Split name to its rows; none is empty.
        whole: Whether these are all its splits. A single `Dataset` leaves the config's other splits alone.
        facts: What `cards.dataset_card` asks of a configuration.
    """

    splits: Mapping[str, Dataset]
    whole: bool
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Shards:
    """The files of one split.

    Attributes:
        files: Their paths in the folder, in order.
        rows: How many there are.
        download: Bytes of the files.
        unpacked: Bytes of what they hold.
        sha256: Of their contents.
    """

    files: tuple[str, ...]
    rows: int
    download: int
    unpacked: int
    sha256: str


@dataclass(frozen=True)
class Written:
    """A configuration that has been written: as `Config`, with files in the place of rows.

    Attributes:
        splits: Split name to its files.
        whole: As for `Config`.
        facts: As for `Config`.
        features: The types of its columns.
        sha256: Of all its contents.
    """

    splits: Mapping[str, Shards]
    whole: bool
    facts: Mapping[str, Any]
    features: Any
    sha256: str


def folder_of(config: str) -> str:
    """Where a configuration's files lie."""
    return "data" if config == "default" else config


def replaced(configs: Mapping[str, Config]) -> list[str]:
    """Patterns of the Parquet files that a push takes the place of: shards of its splits, and of those it ends."""
    shards = "-of-".join(["[0-9]" * 5] * 2)
    return [
        f"{folder_of(name)}/{split}-{shards}.parquet"
        for name, config in configs.items()
        for split in (["*"] if config.whole else config.splits)
    ]


def write(configs: Mapping[str, Config], folder: Path) -> dict[str, Written]:
    """Writes all rows into an empty folder."""
    written = {}
    for name, config in configs.items():
        splits = {split: _shards(rows, split, folder_of(name), folder) for split, rows in config.splits.items()}
        content = "".join(f"{split}:{shards.sha256};" for split, shards in splits.items())
        features = next(iter(config.splits.values())).features
        digest = hashlib.sha256(content.encode()).hexdigest()
        written[name] = Written(splits, config.whole, config.facts, features, digest)
    return written


def _shards(rows: Dataset, split: str, place: str, folder: Path) -> Shards:
    """Writes one split, in as many files as it takes."""
    import pyarrow.parquet as pq

    (folder / place).mkdir(exist_ok=True)
    # The part of the table that these rows are: a slice shares the whole one.
    size = rows.data.nbytes * len(rows) // max(len(rows.data), 1)
    count = min(size // SHARD_BYTES + 1, len(rows))
    names = [f"{place}/{split}-{index:05d}-of-{count:05d}.parquet" for index in range(count)]
    download = unpacked = 0
    content = hashlib.sha256()
    for index, name in enumerate(names):
        path = folder / name
        _embedded(rows.shard(num_shards=count, index=index, contiguous=True)).to_parquet(path)
        download += path.stat().st_size
        with open(path, "rb") as file:
            content.update(hashlib.file_digest(file, "sha256").digest())
        # From the file and not from Arrow, whose size depends on how the rows came about: the same rows must give the
        # same card.
        metadata = pq.read_metadata(path)
        unpacked += sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    return Shards(tuple(names), len(rows), download, unpacked, content.hexdigest())


def _embedded(rows: Dataset) -> Dataset:
    """Puts files that a column only points to (images, audio) into the rows, or they would stay here."""
    from datasets.features.features import require_decoding
    from datasets.table import embed_table_storage

    if not any(require_decoding(feature, ignore_decode_attribute=True) for feature in rows.features.values()):
        return rows
    return rows.with_format("arrow").map(embed_table_storage, batched=True, keep_in_memory=True).with_format(None)
