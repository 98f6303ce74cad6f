"""A dataset annotated by the nodes of a Ray cluster; a node that goes away takes nothing with it.

In: Parquet or JSON at any URL, and a transform. Out: Parquet at any URL. Ray reads, hands out, retries and writes; here
is only what an actor does with a batch, and what Ray must be told so that rows stand once. The transform travels as
plain data, and actors load its models themselves. This file does not know what a margin is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from legend_hf.hub.transfer import without_secrets
from legend_hf.margins.annotate import transform_of
from legend_hf.margins.scoring import GivenDirection
from legend_hf.margins.tables import joined, made_of
from legend_hf.margins.transform import Transform
from legend_hf.reading.formats import RowError
from legend_hf.scale.pieces import ROWS_A_FILE, opened

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Features

ROW_HASH = "row_hash"
"""The column by which Ray itself knows a row of Parquet again: its file and place."""


def annotate_ray(
    source: str | os.PathLike[str] | Sequence[str],
    fn: Transform | GivenDirection | Mapping[str, GivenDirection],
    output: str | os.PathLike[str],
    *,
    concurrency: int | tuple[int, int] | None = None,
    num_gpus: float = 0,
    num_cpus: float = 1,
    batch_size: int = 200,
    rows_per_file: int = ROWS_A_FILE,
    checkpoint: str | os.PathLike[str] | None = None,
    id_column: str | None = None,
    push_to: str | None = None,
) -> int:
    """Annotates Parquet or JSON on a Ray cluster: the one that is connected to, or this machine alone.

    Every node must have this library and reach the source, the output and the model. A pool of actors loads the models
    once each; it grows and shrinks, so it goes on without a node that went away, whose batches others read again. The
    order of the rows is not kept.

    With a `checkpoint`, what was written is not read again when the same call is made after a crash of the whole: Ray
    keeps the ids of written rows there, and takes files that were not finished away. It is deleted at a good end.
    Without one, a run whose driver or cluster died cannot be gone on with: the same call refuses the rows that stand in
    the output, and begins anew once they are removed. A transform's `store` at a URL spares reading them again.

    Args:
        source: Files, folders or URLs, such as `s3://bucket/rows/` or `hf://datasets/you/name/data/*.parquet`.
        fn: A transform, such as `LegendMarginFn(direction, on_error="skip")`, or what that one takes as direction.
        output: Folder or URL that every node can write; its `data/` gets the files.
        concurrency: Actors, at most, or least and most; None has as many as the cluster has room for.
        num_gpus: Of an actor: 1, or a part of one.
        num_cpus: Of an actor. A node needs more than its actors take, to read and write.
        batch_size: Rows in one call of the transform.
        rows_per_file: Rows of a file, about; with a checkpoint, what is read again at most, times the actors.
        checkpoint: Folder or URL that every node can write.
        id_column: A column whose values are those of one row each, by which a checkpoint knows rows; None takes, for
            Parquet, the hash that Ray gives each row, which then stands in the output as `row_hash`.
        push_to: Id of a dataset repository to push the output to, with its card.

    Returns:
        How many rows stand in the output.

    Raises:
        ImportError: Ray is not installed.
        ValueError: An argument is not allowed; the output has rows already; a row cannot be read.
    """
    transform = transform_of(fn)
    ray = _ray()
    least, most = _pool(concurrency)
    place, paths = (
        os.fspath(output),
        [os.fspath(s) for s in ([source] if isinstance(source, str | os.PathLike) else source)],
    )
    for name, number in (("batch_size", batch_size), ("rows_per_file", rows_per_file)):
        if not isinstance(number, int) or number < 1:
            raise ValueError(f"`{name}` is {number!r}; Ray needs a number of rows, at least 1")
    files, root = opened(place)
    kind, listed, reading = _source(paths)
    if id_column is None and checkpoint is not None and kind != "parquet":
        raise ValueError("a checkpoint of JSON needs `id_column`: a column whose values are those of one row each")
    _check_fresh(files, f"{root}/data", place, checkpoint)
    features = _features(kind, listed, reading)
    if features is not None:
        transform.check_free([name for name in features if name not in transform.to_clear([*features])])
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    with _remembering(checkpoint, id_column or ROW_HASH):
        options = {"include_row_hash": True} if checkpoint is not None and id_column is None else {}
        if kind == "parquet":
            rows = ray.data.read_parquet(listed, filesystem=_arrow(reading), **options)
        else:
            rows = ray.data.read_json(listed, filesystem=_arrow(reading), file_extensions=None)
        # A block is what one actor takes: small files would all be one.
        done = rows.repartition(target_num_rows_per_block=batch_size).map_batches(
            Annotator,
            fn_constructor_kwargs={"fn": transform, "features": features},
            batch_size=batch_size,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(min_size=least, max_size=most, initial_size=most or least),
            num_gpus=num_gpus or None,
            num_cpus=num_cpus,
        )
        try:
            done.write_parquet(f"{root}/data", filesystem=_arrow(files), min_rows_per_file=rows_per_file)
        except ray.exceptions.RayTaskError as error:
            raise _said(error) from None
    return _written(files, f"{root}/data", place, transform, push_to)


class Annotator:
    """What an actor does. The transform comes as plain data; models are loaded at the first batch."""

    def __init__(self, fn: Transform, features: Features | None) -> None:
        self.fn, self.features = fn, features

    def __call__(self, table: pa.Table) -> pa.Table:
        """Adds the columns to a batch."""
        from datasets import Features
        from datasets.table import table_cast

        there = Features.from_arrow_schema(table.schema)
        features = Features({n: (self.features or {}).get(n, kind) for n, kind in there.items()})
        stored = table_cast(table, features.arrow_schema)
        left = self.fn.to_clear(table.column_names)
        stored = stored.drop_columns(left) if left else stored
        features = Features({n: kind for n, kind in features.items() if n not in left})
        return joined(self.fn, stored, made_of(self.fn, stored, features=features), features)


def _ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError('`annotate_ray` needs Ray: `pip install "legend-hf[ray]"` on every node') from error
    return ray


def _pool(concurrency: int | tuple[int, int] | None) -> tuple[int, int | None]:
    """Least and most actors. A pool of a fixed size would wait for ever for an actor whose node is gone."""
    least, most = (1, concurrency) if isinstance(concurrency, int | None) else concurrency
    if not (isinstance(least, int) and 1 <= least <= (least if most is None else most)):
        raise ValueError(f"`concurrency` is {concurrency!r}; give the most actors, or (least, most), such as (1, 8)")
    if most is not None and least == most > 1:
        raise ValueError(
            f"`concurrency` is {concurrency!r}, and a pool of fixed size waits for ever for an actor whose node is "
            f"gone; give (1, {most})"
        )
    return least, most


def _arrow(files: Any) -> Any:
    """A filesystem as Ray takes it."""
    from pyarrow.fs import FSSpecHandler, LocalFileSystem, PyFileSystem

    return LocalFileSystem() if "file" in files.protocol else PyFileSystem(FSSpecHandler(files))


def _source(paths: Sequence[str]) -> tuple[str, list[str], Any]:
    """What the files are, their paths, and where they are."""
    found: list[str] = []
    files: Any = None
    shown = [*map(without_secrets, paths)]
    for path in paths:
        here, root = opened(path)
        if files is not None and here.protocol != files.protocol:
            raise ValueError(f"`source` is {shown!r}, in places of several kinds; give those in one")
        files = here
        below = files.find(root) if files.isdir(root) else files.glob(root)
        found += [str(name) for name in below if PurePosixPath(str(name)).suffix in (".parquet", ".jsonl", ".json")]
    kinds = {"parquet" if name.endswith(".parquet") else "json" for name in found}
    if len(kinds) != 1:
        raise ValueError(
            f"`source` is {shown!r}, where there are "
            f"{'files of several kinds' if kinds else 'no files'}; give files or folders of Parquet, or of JSON lines"
        )
    return kinds.pop(), sorted(found), files


def _features(kind: str, listed: Sequence[str], files: Any) -> Features | None:
    """The columns' types, which Ray does not keep: those of labels and of JSON."""
    import pyarrow.parquet as pq
    from datasets import Features

    if kind != "parquet":
        return None
    with files.open(listed[0], "rb") as file:
        return Features.from_arrow_schema(pq.read_schema(file))


def _check_fresh(files: Any, folder: str, place: str, checkpoint: str | os.PathLike[str] | None) -> None:
    files.invalidate_cache()
    if not files.exists(folder) or not files.find(folder):
        return
    if checkpoint is not None:
        known, root = opened(os.fspath(checkpoint))
        if known.exists(root):
            return
    raise ValueError(
        f"{without_secrets(place)!r} has rows already, which would stand twice; give another output, remove them, or, "
        "to go on with a run that was stopped, the `checkpoint` that it had"
    )


@contextmanager
def _remembering(checkpoint: str | os.PathLike[str] | None, id_column: str) -> Iterator[None]:
    """Has Ray keep which rows are written, in this run alone."""
    from ray.data import DataContext
    from ray.data.checkpoint import CheckpointConfig

    context = DataContext.get_current()
    before = context.checkpoint_config
    if checkpoint is not None:
        files, root = opened(os.fspath(checkpoint))
        context.checkpoint_config = CheckpointConfig(
            id_column=id_column, checkpoint_path=root, override_filesystem=_arrow(files)
        )
    try:
        yield
    finally:
        context.checkpoint_config = before


def _said(error: Exception) -> Exception:
    """What an actor's error is to the user. Of what it was, Ray brings back the words alone."""
    found = re.search(r"RowError: row (\d+)(?:, column `([^`]+)`)?: (.*)", str(error))
    if found is None:
        return error
    refusal = RowError(int(found[1]), found[2], found[3])
    refusal.add_note("its number is that in a batch, for Ray does not say which; `on_error='skip'` marks such rows")
    return refusal


def _written(files: Any, folder: str, place: str, fn: Transform, push_to: str | None) -> int:
    import pyarrow.parquet as pq
    from datasets import load_dataset

    files.invalidate_cache()
    rows = 0
    for name in files.find(folder):
        with files.open(name, "rb") as file:
            rows += pq.read_metadata(file).num_rows
    if push_to is not None:
        from legend_hf.publish import push_annotated

        loaded = load_dataset("parquet", data_files=f"{place.rstrip('/')}/data/*.parquet")
        push_annotated(loaded, push_to, direction=fn)  # type: ignore[arg-type]
    return rows
