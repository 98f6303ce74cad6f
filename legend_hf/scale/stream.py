"""A dataset of any size, annotated as it streams by: Parquet in pieces, in constant memory, gone on with after a stop.

In: rows that are read as they come, and a transform. Out: pieces at any fsspec URL, which `load_dataset` gives back.
What is in a complete piece is neither read nor computed again. This file does not know what a margin is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from legend_hf.hub.transfer import without_secrets
from legend_hf.margins.annotate import saying_how_to_skip, transform_of
from legend_hf.margins.columns import kind_of
from legend_hf.margins.scoring import GivenDirection
from legend_hf.margins.store import sending_on
from legend_hf.margins.tables import joined, made_of
from legend_hf.margins.transform import Transform
from legend_hf.reading.formats import RowError
from legend_hf.reading.stopping import stopping_in_order
from legend_hf.scale.pieces import ROWS_A_FILE, Pieces, Reached, check_apart
from legend_hf.scale.shards import Shard, parse_shard, shard_of

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Features, IterableDataset

BUILDERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".arrow": "arrow"}
"""What reads the files of a URL or a pattern, by their ending."""
_SPLIT = re.compile(r"\w+(\.\w+)*")  # as `datasets` has it


def annotate_stream(
    source: Any,
    fn: Transform | GivenDirection | Mapping[str, GivenDirection],
    output: str | os.PathLike[str],
    *,
    shard: str | Shard | None = None,
    config: str | None = None,
    split: str | None = None,
    rows_per_file: int = ROWS_A_FILE,
    batch_size: int = 200,
) -> dict[str, int]:
    """Annotates rows as they stream by, and writes them in pieces; the same call again goes on after the last one.

    What stands in a complete piece is not computed again, and files that were done before it are not opened for rows.
    Memory does not grow with the rows: at most two pieces of them are held. A row is checked when it comes; one that
    cannot be read stops the run, with all before it kept, unless the transform has `on_error="skip"`. For a job array
    give each job its `shard` and all of them one output: each may be run again at any time.

    Args:
        source: A Hub id, a folder, or files by path, pattern or fsspec URL (Parquet, JSON lines, Arrow); or an
            `IterableDataset`, `Dataset`, or a dict of such. One that `shuffle`s in a buffer is refused.
        fn: A transform, such as `LegendMarginFn(direction, on_error="skip")`, or what that one takes as direction.
        output: Folder or fsspec URL: `s3://bucket/run`, `hf://datasets/you/name`, `hf://buckets/you/name/run`.
        shard: Which part of the rows, such as `"2/8"`; see `shard_of`.
        config: Configuration of a Hub dataset.
        split: One split; all of them, where None.
        rows_per_file: Rows of a piece, which is what is lost and held at most.
        batch_size: Rows in one call of the transform.

    Returns:
        Rows of this part that stand in the output, by split.

    Raises:
        RowError: A row cannot be read; its number counts the rows of this part.
        ValueError: An argument is not allowed; the output holds something else, or lies in a folder that is read.
        OSError: The source cannot be read, or the output not be written.
    """
    transform = transform_of(fn)
    for name, number in (("rows_per_file", rows_per_file), ("batch_size", batch_size)):
        if not isinstance(number, int) or number < 1:
            raise ValueError(f"`{name}` is {number!r}; it must be at least 1")
    part, place = parse_shard(shard), os.fspath(output)
    if isinstance(source, str | os.PathLike):
        check_apart(place, [os.fspath(source)])
    # It stands in every piece.
    known = without_secrets(os.fspath(source)) if isinstance(source, str | os.PathLike) else None
    parts = {name: shard_of(one, part) for name, one in _splits(source, config, split).items()}
    streams = {name: transform.cleared(_streamed(one)) for name, one in parts.items()}
    for name, stream in streams.items():
        _check_can_go_on(stream, name)
        transform.check_free(stream.column_names or ())
    how = f"what is complete is in {without_secrets(place)!r}: run the same again to go on from there"
    with stopping_in_order(how, workers=False), sending_on(), saying_how_to_skip(transform, fn):
        return {
            name: _annotate(stream, transform, Pieces(place, name, part), known, rows_per_file, batch_size)
            for name, stream in streams.items()
        }


def _annotate(
    stream: IterableDataset, fn: Transform, pieces: Pieces, source: str | None, rows_per_file: int, batch_size: int
) -> int:
    from datasets.utils import tqdm

    made_by = fn.fingerprint()
    piece, reached = pieces.reached(made_by, source)
    rows, features = 0, stream.features
    stored = stream.with_format("arrow")
    if reached is not None:
        rows = reached.rows
        if reached.last:
            return rows
        stored.load_state_dict(reached.state)
    with tqdm(desc=f"Annotating {pieces.split} {pieces.shard}", unit="row", initial=rows) as bar:
        for table, state, last in _tables(stored, rows_per_file):
            features = features or _features_of(table)
            done = _annotated(table, fn, features, batch_size, rows, f"split {pieces.split!r}, part {pieces.shard}")
            rows += len(table)
            pieces.write(piece, done, Reached(made_by, source, rows, state, last))
            piece += 1
            bar.update(len(table))
    return rows


def _tables(stream: IterableDataset, rows: int) -> Iterator[tuple[pa.Table, Any, bool]]:
    """Rows of each piece, where the stream stands after them, and whether they are the last.

    One piece is read ahead, for nobody says of a stream that it is at its end. A stream without rows has no piece:
    `load_dataset` fails at a file without rows.
    """
    held: tuple[pa.Table, Any] | None = None
    for table in stream.iter(batch_size=rows):
        if held is not None:
            yield *held, False
        held = table, stream.state_dict()
    if held is not None:
        yield *held, True


def _annotated(
    table: pa.Table, fn: Transform, features: Features, batch_size: int, first_row: int, where: str
) -> pa.Table:
    """A table with the transform's columns, of the types that it is to have."""
    stored = _cast(table, features, first_row)
    try:
        made = made_of(fn, stored, features=features, batch_size=batch_size)
    except RowError as refusal:
        absolute = RowError(first_row + refusal.row, refusal.column, refusal.reason)
        absolute.add_note(f"in {where}; the pieces before it are kept")
        raise absolute from None
    return joined(fn, stored, made, features)


def _cast(table: pa.Table, features: Features, first_row: int) -> pa.Table:
    import pyarrow as pa
    from datasets.table import CastError, table_cast

    try:
        return table_cast(table.select(list(features)), features.arrow_schema)
    except (CastError, KeyError, pa.ArrowInvalid, TypeError) as error:
        raise ValueError(
            f"from row {first_row} on, rows have other columns or types than those before: {error}; give a stream that "
            "says what they are: `load_dataset(..., streaming=True, features=Features(...))`"
        ) from error


def _features_of(table: pa.Table) -> Features:
    from datasets import Features

    return Features.from_arrow_schema(table.schema)


def _splits(source: Any, config: str | None, split: str | None) -> dict[str, Any]:
    """The splits of a source."""
    from datasets import Dataset, IterableDataset, load_dataset

    if isinstance(source, str | os.PathLike):
        name = os.fspath(source)
        builder = BUILDERS.get(PurePosixPath(name).suffix.lower())
        if builder is None and "://" in name:
            raise ValueError(
                f"`source` is {without_secrets(name)!r}; a URL must name files, by a pattern, that end in "
                f"{', '.join(BUILDERS)}: 's3://bucket/rows/*.parquet'"
            )
        given = {"path": builder, "data_files": name} if builder else {"path": name, "name": config}
        source = load_dataset(**given, streaming=True)
    if not isinstance(source, Mapping):
        name = str(getattr(source, "split", None) or "train").partition("[")[0]
        source = {name if _SPLIT.fullmatch(name) else "train": source}  # it may be of several: `train+test`
    for name in source:
        if not _SPLIT.fullmatch(str(name)):
            raise ValueError(
                f"a split is called {name!r}, which names no files that `load_dataset` finds; allowed are letters, "
                "digits, `_` and single dots between them: rename it in the dict"
            )
    if split is not None and split not in source:
        raise ValueError(f"`split` is {split!r}, and the source has {', '.join(map(repr, source))}")
    for one in source.values():
        if not isinstance(one, IterableDataset | Dataset):
            raise ValueError(
                f"`source` is {kind_of(one)}; allowed are a name, a URL, an `IterableDataset` or `Dataset`, or a dict "
                "of them; make one by `load_dataset(id, streaming=True)`"
            )
    return {str(name): one for name, one in source.items() if split in (None, name)}


def _streamed(rows: Any) -> IterableDataset:
    from datasets import Dataset, IterableDataset

    if isinstance(rows, Dataset) and not len(rows):  # of which `to_iterable_dataset` makes nothing
        return IterableDataset.from_generator(_nothing, features=rows.features)
    return rows.with_format(None).to_iterable_dataset() if isinstance(rows, Dataset) else rows


def _nothing() -> Iterator[dict[str, Any]]:
    return iter(())


def _check_can_go_on(stream: IterableDataset, name: str) -> None:
    """Refuses a stream that forgets, when it is gone on with, the rows that wait in its buffer."""
    layers = [stream._ex_iterable]
    while layers:
        layer = layers.pop()
        if type(layer).__name__ == "BufferShuffledExamplesIterable":
            raise ValueError(
                f"split {name!r} is shuffled in a buffer, whose rows would be lost where a stopped run goes on; leave "
                "`shuffle` out, and shuffle what is written"
            )
        layers += [inner for inner in (getattr(layer, "ex_iterable", None),) if inner is not None]
        layers += list(getattr(layer, "ex_iterables", ()))
