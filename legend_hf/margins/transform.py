"""The trunk of all transforms: a batch of rows goes in, its new columns come out, and no row is lost on the way.

In: batches as `datasets.map` passes them, in any format. Out: columns, finite and never null, or the row that cannot be
read. A transform says three things: the types of its columns, how a batch becomes rows of texts, and how the numbers of
those texts become columns. What gives the numbers is a `Reading`. This file does not know what a number means.

A transform is plain data and pickles to the same bytes before and after it was used: `datasets` hashes it, and workers
receive nothing else.
"""

from __future__ import annotations

import inspect
import json
import zlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, Self

import numpy as np

from legend_hf.margins import columns
from legend_hf.reading import progress
from legend_hf.reading.estimate import Looked, kind_of
from legend_hf.reading.formats import Columns, Conversation, RowError, names_of
from legend_hf.reading.plain import check_on_error, digest_of, plain
from legend_hf.reading.reader import OpenReader
from legend_hf.reading.rows import Row, encode_rows
from legend_hf.reading.templates import TextError, Tokens

if TYPE_CHECKING:
    from datasets import Dataset, Features


class OpenReading(Protocol):
    """Tokenizers in memory, and models as soon as they read."""

    def encode(self, conversations: Sequence[Conversation], /) -> Sequence[Any | TextError]:
        """What `read` takes of each conversation, or why it cannot be read.

        A method `check`, where there is one, says for less only why some cannot be read.
        """

    def unread(self, texts: Sequence[Any], /) -> Sequence[tuple[OpenReader, Sequence[int], Sequence[Tokens]]]:
        """What `read` would read of encoded texts: each reader, its layers, and its texts that are not known."""

    def read(self, texts: Sequence[Any], /) -> Mapping[str, np.ndarray]:
        """The numbers `[texts, ...]` of encoded texts, under each of the reading's names."""


class Prepared(NamedTuple):
    """A batch before it is read: what reads it, and the encoded texts of each row, or why it cannot be read."""

    opened: OpenReading
    rows: list[tuple[Any, ...] | RowError]


class Reading(Protocol):
    """What reads the texts of a transform. Plain data; models are loaded where they are used, once per process."""

    @property
    def names(self) -> Sequence[str]:
        """What follows `_` in the columns of each of several; an only one is called `""`."""

    @property
    def how_to_go_on(self) -> str:
        """What to do after a run was stopped."""

    def open(self, rank: int | None = None, /, *, look: bool = False) -> OpenReading:
        """Opens what reads, on the device of a worker; only to ask what is `unread`, where nothing may be made.

        To encode loads no model.
        """

    def not_finite(self, name: str, /) -> str:
        """What is wrong with a text whose numbers are NaN or infinite."""

    def deciding(self) -> list[Any]:
        """All that decides a number, and nothing that only says where to compute it."""

    def state(self) -> tuple[dict[str, Any], tuple[bytes, ...]]:
        """Plain values and vectors, equal for equal readings."""

    @classmethod
    def from_state(cls, values: Mapping[str, Any], vectors: Sequence[bytes], /) -> Self:
        """The reading that `state` describes; refuses that of a version with other numbers."""


class Transform(ABC):
    """The base of `LegendMarginFn`, `LegendScoreFn` and `PairSimilarityFn`; a new one derives from it.

    Class attributes:
        may_write: The columns of one direction in order, and their types as `Value` takes them; a list of them in `[]`.
        status: The column that says, with `on_error="skip"`, how reading a row went.

    Args:
        names: Of the columns that are read.
        on_error: `"raise"` or `"skip"`.
        overwrite: Replace columns of these names.
        own: The transform's own options, plain values. All of them decide its columns.
    """

    may_write: ClassVar[Mapping[str, str | list[str]]]
    status: ClassVar[str]
    _reading: Any  # a Reading; which one, the transform knows

    def __init__(self, names: Columns, *, on_error: str, overwrite: bool, own: Mapping[str, Any] | None = None) -> None:
        check_on_error(on_error)
        self._columns, self._on_error, self._overwrite = names, plain(on_error), bool(overwrite)
        self._own: dict[str, Any] = plain(dict(own or {}))
        self._skipped = 0  # of the rows that this process was given, for the progress bar

    def _read_with(self, reading: Reading) -> None:
        """Takes what reads; the last thing that `__init__` does, since to load it costs something."""
        columns.check_distinct(list(self.may_write), self.status, reading.names)
        self._reading = reading

    # -- What a transform says -----------------------------------------------------------------------------------

    @abstractmethod
    def _rows(self, batch: Any, first_row: int) -> list[Row | RowError]:
        """The texts of each row of a batch, or why it cannot be read `[n]`."""

    @abstractmethod
    def _make(self, name: str, numbers: Sequence[np.ndarray | None], batch: Any) -> dict[str, Any]:
        """The columns of one direction.

        Args:
            name: Of the direction.
            numbers: Of each row's texts, `[texts, ...]` each, all finite in float32; None of a row that is skipped.
            batch: The batch.

        Returns:
            Values `[n]` of each column that is written; a row with one that is not finite is refused in its turn.
        """

    def _writes(self) -> Collection[str]:
        """Those of `may_write` that were asked for."""
        return self.may_write

    def doubts(self, done: Dataset) -> Iterator[str]:
        """What is implausible about the columns of an annotated split, as far as that is cheaply known."""
        return iter(())

    # -- What all of them do -------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        """What it reads with and the options that are not the usual ones, in a line."""
        usual = {name: one.default for name, one in inspect.signature(type(self)).parameters.items()}
        given = {**self._own, "on_error": self._on_error}
        said = [f"{name}={value!r}" for name, value in given.items() if (value or None) != (usual.get(name) or None)]
        return f"{type(self).__name__}({', '.join([repr(self._reading), *said])})"

    @property
    def how_to_go_on(self) -> str:
        """What to do after a run was stopped."""
        return str(self._reading.how_to_go_on)

    @property
    def device(self) -> str | None:
        """Where it reads, if it says so itself; `"several devices"` for a model that is spread over devices."""
        spread = getattr(self._reading, "spread", False)
        return "several devices" if spread else getattr(self._reading, "device", None)

    @property
    def keeps(self) -> bool:
        """Whether what is read is kept, and not read again when it comes again."""
        return getattr(self._reading, "store", None) is not None

    def readers(self) -> list[OpenReader]:
        """What reads, opened."""
        return [reader for reader, _, _ in self._reading.open(None, look=True).unread([])]

    @property
    def skips(self) -> bool:
        """Whether rows that cannot be read are skipped."""
        return self._on_error == "skip"

    @property
    def columns(self) -> list[str]:
        """Names of the columns this writes, in order."""
        asked = self._writes()
        each = [column for column in self.may_write if column in asked]
        names = [columns.suffixed(column, name) for name in self._reading.names for column in each]
        return names + ([self.status] if self.skips else [])

    def features(self, features: Features | None) -> Features | None:
        """The features of a dataset after this transform, which streaming needs and a replaced column may need.

        Args:
            features: Of the dataset before; None for a stream that does not know its own.

        Returns:
            None for such a stream: `map` takes it too, and goes by what the rows hold.
        """
        return columns.after(features, self.types)

    @property
    def types(self) -> Features:
        """The features of the new columns alone, in order."""
        from datasets import Features, List, Value

        types: dict[str, str | list[str]] = {self.status: "string"}
        for name in self._reading.names:
            types |= {columns.suffixed(column, name): kind for column, kind in self.may_write.items()}
        kinds = {name: types[name] for name in self.columns}
        return Features({n: List(Value(k[0])) if isinstance(k, list) else Value(k) for n, k in kinds.items()})

    def __call__(self, batch: Any, rank: int | None = None) -> Any:
        """Reads one batch; this is what `map` calls.

        Args:
            batch: Columns of one batch, in any format.
            rank: Of the worker, with `with_rank=True`.

        Returns:
            The new columns, `[n]` each; an entry of a list column is an array. For a table or a frame, a copy of it
            with them.

        Raises:
            ValueError: Not called with `batched=True`, or a column would be overwritten.
            RowError: A row cannot be read (with `on_error="raise"`); no text of the batch has been read then, unless
                what is wrong is that its numbers are not finite.
        """
        columns.check_rank(rank)
        return self.finish(batch, self.prepare(batch, rank), rank)

    def prepare(self, batch: Any, rank: int | None = None) -> Prepared:
        """The part of a call that needs no model. It may run in another thread, while the batch before is read.

        Raises:
            ValueError: As a call; of a row that cannot be read `finish` says so.
        """
        self.check_free(names_of(batch))
        opened: OpenReading = self._reading.open(rank)
        return Prepared(opened, encode_rows(opened.encode, self._rows(batch, 0)))

    def finish(self, batch: Any, prepared: Prepared, rank: int | None = None) -> Any:
        """The rest of a call: reads what was prepared of the same batch."""
        opened, rows = prepared
        refusals = {place: row for place, row in enumerate(rows) if isinstance(row, RowError)}
        self._raise_first(refusals)
        good = [place for place in range(len(rows)) if place not in refusals]
        counts = [len(rows[place]) for place in good]  # type: ignore[arg-type]
        self._skipped += len(refusals)
        with progress.reading(len(good), desc="Reading texts", skipped=self._skipped, rank=rank):
            found = opened.read([text for row in rows if not isinstance(row, RowError) for text in row])
        owners = np.repeat(np.array(good, dtype=np.int64), counts)
        for name, numbers in found.items():
            self._refuse(name, owners[_not_finite(numbers)], refusals)
        parts = {name: np.split(numbers, np.cumsum(counts)[:-1]) for name, numbers in found.items() if good}
        made: dict[str, Any] = {}
        refused = -1
        while refused != len(refusals):  # once more where a column, made of finite numbers, is not finite itself
            self._raise_first(refusals)
            refused = len(refusals)
            for name in found:
                own = dict(zip(good, parts.get(name, ()), strict=True))
                with np.errstate(over="ignore", invalid="ignore"):  # looked for in the next lines
                    new = self._make(name, [None if i in refusals else own[i] for i in range(len(rows))], batch)
                for values in new.values():
                    if isinstance(values, np.ndarray) and values.dtype.kind == "f":
                        self._refuse(name, np.flatnonzero(_not_finite(values)), refusals)
                made |= {columns.suffixed(column, name): values for column, values in new.items()}
        made = {name: made[name] for name in self.columns if name != self.status}
        if self.skips:
            made[self.status] = [refusals[i].status if i in refusals else columns.OK for i in range(len(rows))]
        return columns.written(batch, made, self.types)

    def _refuse(self, name: str, rows: np.ndarray, refusals: dict[int, RowError]) -> None:
        for row in rows.tolist():
            refusals.setdefault(row, RowError(row, None, self._reading.not_finite(name)))

    def _raise_first(self, refusals: Mapping[int, RowError]) -> None:
        if refusals and not self.skips:
            raise refusals[min(refusals)]

    def would_read(self, batch: Any, *, first_row: int = 0, where: str = "", seen: set[int] | None = None) -> Looked:
        """What reading a batch would read, of which nothing is read and nothing written.

        Args:
            batch: Columns of one batch.
            first_row: Number of its first row in the dataset.
            where: What stands before that number in messages.
            seen: Texts that batches before would have put into a store; those of this one are added. None: no store.
        """
        opened: OpenReading = self._reading.open(None, look=True)
        given = self._rows(batch, first_row)
        rows = encode_rows(opened.encode, given, first_row=first_row)
        names = names_of(batch)
        cells = {name: batch[name] for name in names if name in asdict(self._columns).values()}
        kinds = [
            kind_of(row, {name: cell[place] for name, cell in cells.items()}, self._columns.prompt)
            for place, row in enumerate(given)
            if not isinstance(rows[place], RowError) and not isinstance(row, RowError)
        ]
        texts = [text for row in rows if not isinstance(row, RowError) for text in row]
        new = texts if seen is None else [text for text in texts if hash(text) not in seen]
        if seen is not None:
            seen.update(map(hash, new))
        return Looked(
            kinds, [(where, row) for row in rows if isinstance(row, RowError)], len(texts), opened.unread(new)
        )

    def check(self, batch: Any, *, first_row: int = 0) -> RowError | None:
        """Finds the first row of a batch that cannot be read, without reading any.

        Args:
            batch: Columns of one batch.
            first_row: Number of its first row in the dataset, for the message.
        """
        opened: OpenReading = self._reading.open(None)
        rows = encode_rows(getattr(opened, "check", opened.encode), self._rows(batch, first_row), first_row=first_row)
        return next((row for row in rows if isinstance(row, RowError)), None)

    def look(self, batch: Any, *, first_row: int = 0, rank: int | None = None) -> tuple[RowError | None, np.ndarray]:
        """The same, and how many tokens each row has `[n]`: what it costs to read it; 0 where it cannot be read."""
        rows = encode_rows(self._reading.open(rank).encode, self._rows(batch, first_row), first_row=first_row)
        refusal = next((row for row in rows if isinstance(row, RowError)), None)
        return refusal, np.array([0 if isinstance(row, RowError) else _size(row) for row in rows], dtype=np.int64)

    def check_free(self, there: Collection[str]) -> None:
        """Refuses to overwrite columns unless asked to, and to leave some of an earlier run standing beside new ones.

        Raises:
            ValueError: A column exists and `overwrite` is False; or an earlier run wrote one that this one does not.
        """
        left = self.left_over(there)
        columns.check_free([*self.columns, *left], there, overwrite=self._overwrite)
        if left:
            raise ValueError(
                f"the dataset has {', '.join(f'`{name}`' for name in left)} of an earlier run, which this one does not "
                f"write and would leave beside its own columns; `dataset.remove_columns({left})` first, or use "
                "`annotate`, which does"
            )

    def left_over(self, there: Collection[str]) -> list[str]:
        """Columns of an earlier run that would survive this one, which does not write them.

        Args:
            there: The dataset's columns.
        """
        each = [columns.suffixed(column, name) for name in self._reading.names for column in self.may_write]
        return [name for name in (*each, self.status) if name in there and name not in self.columns]

    def cleared(self, split: Any) -> Any:
        """A dataset or stream without such columns, where they may be overwritten."""
        left = self.to_clear(split.column_names or ())
        return split.remove_columns(left) if left else split

    def to_clear(self, there: Collection[str]) -> list[str]:
        """Columns of an earlier run that are removed before this one; none, where none may be overwritten."""
        return self.left_over(there) if self._overwrite else []

    def fingerprint(self) -> str:
        """Hash of all that decides the columns, and of nothing that only says where to compute them."""
        kind = f"{type(self).__module__}.{type(self).__qualname__}"
        decides = [kind, self.columns, self._own, self._on_error, asdict(self._columns), *self._reading.deciding()]
        return digest_of(plain(decides))[:32]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles as packed JSON and the vectors' bytes, so that equal transforms give equal bytes, and few.

        The default would follow object identities, and what `datasets` hashes would differ between a transform and its
        own copy. No model is in it: workers load theirs.
        """
        reading, vectors = self._reading.state()
        usual = asdict(Columns())
        state = {
            "reading": reading,
            "columns": {field: name for field, name in asdict(self._columns).items() if name != usual[field]},
            "on_error": self._on_error,
            "overwrite": self._overwrite,
            "own": self._own,
        }
        packed = zlib.compress(json.dumps(plain(state), sort_keys=True, separators=(",", ":")).encode(), 9)
        return _rebuild, (type(self), type(self._reading), packed, vectors)


def _rebuild(kind: type[Transform], reading: type[Reading], packed: bytes, vectors: tuple[bytes, ...]) -> Transform:
    """Unpickles a transform, refusing one whose numbers this version would not reproduce."""
    state = json.loads(zlib.decompress(packed))
    fn = kind.__new__(kind)
    Transform.__init__(
        fn, Columns(**state["columns"]), on_error=state["on_error"], overwrite=state["overwrite"], own=state["own"]
    )
    fn._read_with(reading.from_state(state["reading"], vectors))
    return fn


def _size(text: Any) -> int:
    """Tokens of an encoded text; of several, and of one that several models read, in all."""
    if isinstance(text, tuple | list):
        return sum(map(_size, text))
    return len(text.ids) if hasattr(text, "ids") else 1


def _not_finite(numbers: np.ndarray) -> np.ndarray:
    """Which entries `[n]` of numbers `[n, ...]` have one that is NaN, or infinite in the float32 that is written."""
    with np.errstate(over="ignore"):
        finite = np.isfinite(numbers.astype(np.float32))
    return np.logical_not(finite.all(axis=tuple(range(1, finite.ndim))))
