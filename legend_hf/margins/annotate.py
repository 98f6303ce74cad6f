"""A whole dataset in one call: every split checked, then annotated, and stopped in good order.

In: a dataset of any kind, and a transform of this package. Out: the same kind, with the transform's columns. This file
knows neither models nor what the columns mean.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from legend_hf.directions.direction import Direction
from legend_hf.margins.ahead import one_ahead
from legend_hf.margins.columns import kind_of, shown_as
from legend_hf.margins.devices import check_devices, read_on
from legend_hf.margins.margin_fn import LegendMarginFn
from legend_hf.margins.scoring import GivenDirection
from legend_hf.margins.store import sending_on
from legend_hf.margins.transform import Prepared, Transform
from legend_hf.reading.formats import RowError
from legend_hf.reading.stopping import stopping_in_order

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

    AnyDataset = TypeVar("AnyDataset", Dataset, DatasetDict, IterableDataset, IterableDatasetDict)

logger = logging.getLogger(__name__)


def annotate(
    dataset: AnyDataset,
    fn: Transform | GivenDirection | Mapping[str, GivenDirection],
    *,
    batch_size: int = 200,
    num_proc: int | None = None,
    devices: str | Sequence[str] | None = None,
) -> AnyDataset:
    """Adds a transform's columns, such as margins, to every split in one call.

    Beyond `map` with the transform: checks every row of every split before the first one is read and names the row
    that cannot be, gives empty splits their columns, sets the columns' types, and finds its cached result again when
    only device, token budget or store changed. Where columns may be overwritten it removes those that an earlier run
    wrote and this one does not; it says when most margins are of one size. SIGINT (Ctrl-C) and SIGTERM wait for the
    forward pass at hand, then stop the run and its workers; if this process is killed, its workers end by themselves. A
    streaming dataset is annotated, and checked, as it is consumed.

    Args:
        dataset: A `Dataset`, `DatasetDict`, `IterableDataset` or `IterableDatasetDict`.
        fn: A `LegendMarginFn`, `LegendScoreFn` or `PairSimilarityFn`; or what the first takes as direction, where its
            options are not needed.
        batch_size: Rows in one call of the transform, after each of which the progress bar moves.
        num_proc: Processes.
        devices: `"auto"`, for one process on each GPU, or, without one, as many on the CPUs as are timed to be
            quickest; or the device of each process, such as `["cuda:0", "cuda:1"]`. Rows are handed out by their
            tokens, so that all end together. Neither the program nor what it did with CUDA before matters.

    Returns:
        The same kind, with the columns.

    Raises:
        RowError: A row cannot be read, unless the transform has `on_error="skip"`.
        ValueError: `dataset` is something else, or a column exists already; `devices` are not here, or make no sense
            beside `num_proc`, a stream, or a device of the transform's own.
    """
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

    if not isinstance(dataset, Dataset | DatasetDict | IterableDataset | IterableDatasetDict):
        raise ValueError(
            f"`dataset` is {kind_of(dataset)}; allowed are `Dataset`, `DatasetDict`, `IterableDataset` and "
            "`IterableDatasetDict`; make one: `Dataset.from_list(rows)`, `Dataset.from_pandas(frame)`, "
            "`DatasetDict(splits)` or `load_dataset(id)`"
        )
    transform = transform_of(fn)
    splits = dataset if isinstance(dataset, DatasetDict | IterableDatasetDict) else {None: dataset}
    splits = {name: transform.cleared(split) for name, split in splits.items()}
    if devices is not None:
        _check_spread(dataset, num_proc)
        spread = check_devices(devices, transform)
    made: Mapping[str | None, Any] = {}
    with (
        stopping_in_order(transform.how_to_go_on, workers=num_proc is not None),
        sending_on(),
        saying_how_to_skip(transform, fn),
    ):
        for split in splits.values():
            transform.check_free(split.column_names or ())
        cached = {name: found for name, split in splits.items() if (found := _cached(split, transform)) is not None}
        new = {name: split for name, split in splits.items() if name not in cached}
        if devices is None:
            for name, split in new.items():
                _check_split(split, transform, name, batch_size)
        else:
            made = read_on(spread, new, transform, most_rows=batch_size)
        done = {
            name: cached[name]
            if name in cached
            else _annotate_split(split, transform, batch_size, num_proc, made.get(name))
            for name, split in splits.items()
        }
    in_memory = [split for split in done.values() if isinstance(split, Dataset)]
    for doubt in dict.fromkeys(said for split in in_memory for said in transform.doubts(split)):
        logger.warning(doubt)
    return type(dataset)(done) if None not in done else done[None]


def transform_of(fn: Any) -> Transform:
    """A transform as it is, or that of what `LegendMarginFn` takes as direction.

    Raises:
        ValueError: It is neither.
    """
    named = isinstance(fn, Direction | str | os.PathLike | Mapping)
    transform = LegendMarginFn(fn) if named else fn
    if not isinstance(transform, Transform):
        raise ValueError(
            f"`fn` is {kind_of(fn)}; allowed are a transform of this library, such as `LegendMarginFn(direction)`, and "
            "what that one takes as direction"
        )
    return transform


@contextmanager
def saying_how_to_skip(transform: Transform, fn: Any) -> Iterator[None]:
    """Where a row is refused and `fn` was no transform, says what would skip it."""
    try:
        yield
    except RowError as refusal:
        if transform is not fn:
            refusal.add_note('`on_error="skip"` is an option of `LegendMarginFn`: give one of those')
        raise


def _check_split(split: Any, fn: Transform, name: str | None, batch_size: int) -> None:
    """Checks a split before any split is read; a streaming one cannot be looked through twice."""
    from datasets import Dataset
    from datasets.utils import tqdm

    if not isinstance(split, Dataset) or fn.skips:
        return
    plain = split.with_format(None)
    with tqdm(total=len(plain), desc="Checking rows", unit="row") as bar:
        for first in range(0, len(plain), batch_size):
            refusal = fn.check(_rows_in(plain, range(len(plain))[first : first + batch_size]), first_row=first)
            if refusal is not None:
                if name is not None:
                    refusal.add_note(f"in split {name!r}")
                raise refusal
            bar.update(min(batch_size, len(plain) - first))


def _check_spread(dataset: Any, num_proc: int | None) -> None:
    from datasets import IterableDataset, IterableDatasetDict

    if num_proc is not None:
        raise ValueError(f"`devices` and `num_proc={num_proc}` both say how many processes there are; leave one out")
    if isinstance(dataset, IterableDataset | IterableDatasetDict):
        raise ValueError(
            "`devices` need all rows at once, and a stream is read as it is consumed; leave `devices` out, or give "
            "each device a job of its own: `legend_hf.scale.annotate_stream(..., shard='1/4')`"
        )


def _fingerprint(split: Dataset, fn: Transform) -> str:
    from datasets.fingerprint import Hasher

    return str(Hasher.hash([split._fingerprint, fn.fingerprint()]))


class _NotCached(Exception):
    pass


def _not_cached(batch: Any) -> Any:
    raise _NotCached


def _cached(split: Any, fn: Transform) -> Dataset | None:
    """What an earlier run left in the cache, whoever read it: `map` knows, and calls a function where there is none."""
    if not getattr(split, "cache_files", None) or not len(split):  # of a stream, and in memory, nothing is kept
        return None
    try:
        with _one_bar(True):
            return _mapped(split, _not_cached, fn)
    except _NotCached:
        return None


def _mapped(split: Dataset, made_by: Any, fn: Transform, **options: Any) -> Dataset:
    mapped = split.with_format(None).map(
        made_by,
        batched=True,
        features=fn.features(split.features),
        new_fingerprint=_fingerprint(split, fn),
        desc="Annotating",
        **options,
    )
    return shown_as(mapped, split)


def _annotate_split(split: Any, fn: Transform, batch_size: int, num_proc: int | None, made: Any = None) -> Any:
    """Annotates a split, by the transform or out of the table `made` of its columns."""
    from datasets import Dataset

    features = fn.features(split.features)
    if not isinstance(split, Dataset):
        return split.map(fn, batched=True, batch_size=batch_size, features=features)
    if len(split) == 0:  # `map` returns an empty split without the columns, which no `push_to_hub` then takes
        empty: dict[str, list[Any]] = {name: [] for name in features or ()}
        return shown_as(Dataset.from_dict(empty, features=features, split=split.split), split)
    if made is not None:
        with _one_bar(True):
            return _mapped(split, _Read(made), fn, batch_size=batch_size, with_indices=True)
    if num_proc is not None:  # processes keep all cores busy, and are forked while this one has no other thread
        return _mapped(split, fn, fn, batch_size=batch_size, num_proc=num_proc, with_rank=num_proc > 1)
    with closing(_Ahead(fn, split.with_format(None), batch_size)) as ahead:
        return _mapped(split, ahead, fn, batch_size=batch_size, with_indices=True)


class _Ahead:
    """A transform for `map` that prepares the next batch of a split while it reads the one that it is given."""

    def __init__(self, fn: Transform, split: Dataset, batch_size: int) -> None:
        self.fn, self.split, self.batch_size = fn, split, batch_size
        self._coming: Generator[tuple[range, Prepared]] | None = None

    def __call__(self, batch: Any, indices: Sequence[int]) -> Any:
        if self._coming is None:
            self._coming = one_ahead(
                self._batches(indices[0]), lambda rows: self.fn.prepare(_rows_in(self.split, rows))
            )
        rows, prepared = next(self._coming, (range(0), None))
        if prepared is None or rows != range(indices[0], indices[0] + len(indices)):  # a part of a run of several
            self.close()
            prepared = self.fn.prepare(batch)
        return self.fn.finish(batch, prepared)

    def _batches(self, start: int) -> Iterator[range]:
        every = range(len(self.split))
        return (every[first : first + self.batch_size] for first in every[start :: self.batch_size])

    def close(self) -> None:
        """Ends what is under way."""
        if self._coming is not None:
            self._coming.close()
        self._coming = None


def _rows_in(split: Dataset, rows: range) -> Dataset:
    """Some rows; not a slice, which would decode the pictures of columns that no transform reads."""
    return split.select(rows)


class _Read:
    """Gives `map` what was read already."""

    def __init__(self, made: Any) -> None:
        self.made = made

    def __call__(self, batch: Any, indices: Sequence[int]) -> dict[str, Any]:
        part = self.made.slice(indices[0], len(indices))
        return {name: part.column(name).to_pylist() for name in part.column_names}


@contextmanager
def _one_bar(shown: bool) -> Iterator[None]:
    """Keeps `map` from showing a bar where another one told of the same rows."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if not shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
