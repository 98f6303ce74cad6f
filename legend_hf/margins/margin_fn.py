"""The `datasets.map` transform: preference rows become margin columns.

In: batches of preference rows, in any accepted shape. Out: the same batches' margin columns, float32, finite, never
null. `LegendMarginFn` is plain data and pickles to the same bytes before and after it was used: `datasets` hashes it,
and workers receive nothing else. This file knows neither training nor publishing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from legend_hf.directions.calibrate import KINDS
from legend_hf.directions.direction import Direction
from legend_hf.reading.formats import Columns, Pair, RowError, pairs_from_batch
from legend_hf.reading.forward import Way
from legend_hf.reading.reader import OpenReader, Reader, Runtime, open_reader, resolve_device, with_layer
from legend_hf.reading.templates import Tokens

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, Features, IterableDataset, IterableDatasetDict

    AnyDataset = TypeVar("AnyDataset", Dataset, DatasetDict, IterableDataset, IterableDatasetDict)

# A change that alters numbers raises this: it is part of the pickled state, and an imported class is hashed by its name
# alone, so a `map` cache would otherwise survive the upgrade.
SCORING_VERSION = 1
COLUMNS = ("margin", "margin_raw", "chosen_score", "rejected_score")
ADDED = ("margin_bin", "margin_prob")
NEGATIVE = "margin_negative"
STATUS = "margin_status"
OK = "ok"


class LegendMarginFn:
    """Adds margin columns to a preference dataset: `ds.map(LegendMarginFn("you/direction"), batched=True)`.

    Columns, float32 and finite: `margin` (on the training scale), `margin_raw` (the paper's projection, in hidden-state
    units), `chosen_score` and `rejected_score` (its two sides). `margin > 0` where the chosen response reads as further
    along the direction than the rejected one. Where asked for: `margin_bin` (a few sizes, with the sign), `margin_prob`
    (the probability that the pair's label is right), `margin_negative` (bool) and, with `on_error="skip"`,
    `margin_status`: `"ok"`, or why the row could not be read; its scores and margins are then 0.0 and its probability
    0.5. All but the scores are functions of `margin_raw` as it is written.

    Works with `Dataset`, `DatasetDict` and `IterableDataset` (pass `features=fn.features(ds.features)`), any
    `batch_size`, `num_proc` and `with_rank=True`, which spreads workers over GPUs.

    Args:
        direction: A `Direction`, or what `Direction.from_pretrained` takes. A mapping of names to those writes
            `margin_<name>` and so on for each, reading each text once per model.
        revision: Of a direction on the Hub.
        scale: What `margin` is: `"raw"`, `"unit"`, `"bins"`, `"logit"` or `"link"`, of those that the artifact's
            calibration holds; None takes the one it names.
        add: Columns to write beside `margin`, of `"margin_bin"` and `"margin_prob"`.
        negative: What becomes of pairs whose raw margin is below 0, where model and label disagree: `"keep"` their
            margins, set `margin` and `margin_bin` to 0 (`"zero"`; `margin_raw` and `margin_prob` stay), or keep them
            and `"flag"` the pairs in `margin_negative`. A pair's two sides are never swapped.
        on_error: `"raise"` at the first row that cannot be read, before its batch is read, or `"skip"` it.
        device: Where to run; None takes a GPU when there is one.
        batch_tokens: Most tokens in one forward pass; None takes the device's default.
        route: `"tree"`, `"padded"` or `"grouped"` forces how texts are put together; None takes the quickest that gives
            the model's own numbers.
        overwrite: Replace columns of these names. The new ones are fractions: where an old `margin` holds whole
            numbers, pass `features=fn.features(ds.features)` to `map`, as `annotate` does.
        prompt_column: Name of the prompts' column, where it is not `prompt`.
        chosen_column: Name of the chosen responses' column.
        rejected_column: Name of the rejected responses' column.
        model: Folder to load the model from, for a direction that is not a `Direction` object.
        trust_remote_code: Run code that comes with the model.

    Raises:
        ValueError: An argument is not one of those allowed.
    """

    def __init__(
        self,
        direction: Direction | str | os.PathLike[str] | Mapping[str, Direction | str | os.PathLike[str]],
        *,
        revision: str | None = None,
        scale: str | None = None,
        add: Sequence[str] = (),
        negative: str = "keep",
        on_error: str = "raise",
        device: str | None = None,
        batch_tokens: int | None = None,
        route: Way | None = None,
        overwrite: bool = False,
        prompt_column: str = "prompt",
        chosen_column: str = "chosen",
        rejected_column: str = "rejected",
        model: str | os.PathLike[str] | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        if scale is not None and scale not in KINDS:
            allowed = ", ".join(map(repr, KINDS))
            raise ValueError(f"`scale` is {scale!r}; allowed are {allowed}, or None for the artifact's own")
        if isinstance(add, str) or not set(add) <= set(ADDED):
            raise ValueError(
                f"`add` is {add!r}; give a list of {' and '.join(map(repr, ADDED))}, or one of them in a list"
            )
        if negative not in ("keep", "zero", "flag"):
            raise ValueError(f"`negative` is {negative!r}; allowed are 'keep', 'zero', 'flag'")
        if on_error not in ("raise", "skip"):
            raise ValueError(f"`on_error` is {on_error!r}; allowed are 'raise', 'skip'")
        named = direction if isinstance(direction, Mapping) else {"": direction}
        if not named or any(not isinstance(n, str) or (not n and len(named) > 1) for n in named):
            raise ValueError(f"`direction` maps {list(named)}; give each direction a name, such as 'safety'")
        loaded = {
            name: d if isinstance(d, Direction) else Direction.from_pretrained(d, revision=revision, model=model)
            for name, d in named.items()
        }
        for name, d in loaded.items():
            _check_held(d, name, scale, add)
        Runtime(device=device, batch_tokens=batch_tokens, route=route)  # checks them now, not in a worker
        self._directions: tuple[tuple[str, Direction], ...] = tuple(loaded.items())
        self._scale = scale
        self._add = tuple(column for column in ADDED if column in add)
        self._negative = negative
        self._on_error = on_error
        self._overwrite = overwrite
        self._columns = Columns(prompt=prompt_column, chosen=chosen_column, rejected=rejected_column)
        self._device = device
        self._batch_tokens = batch_tokens
        self._route = route
        self._trust_remote_code = trust_remote_code
        _check_distinct(loaded)

    @property
    def skips(self) -> bool:
        """Whether rows that cannot be read are skipped."""
        return self._on_error == "skip"

    @property
    def columns(self) -> list[str]:
        """Names of the columns this writes, in order."""
        each = [*COLUMNS, *self._add, *([NEGATIVE] if self._negative == "flag" else [])]
        names = [_suffixed(column, name) for name, _ in self._directions for column in each]
        return names + ([STATUS] if self._on_error == "skip" else [])

    def features(self, features: Features) -> Features:
        """The features of a dataset after this transform, which streaming needs and an old `margin` may need."""
        from datasets import Features, Value

        types = {STATUS: "string"} | {_suffixed(NEGATIVE, name): "bool" for name, _ in self._directions}
        new = {name: Value(types.get(name, "float32")) for name in self.columns}
        return Features({**features, **new})

    def __call__(self, batch: Mapping[str, Any], rank: int | None = None) -> dict[str, Any]:
        """Annotates one batch; this is what `map` calls.

        Args:
            batch: Columns of one batch.
            rank: Of the worker, with `with_rank=True`.

        Returns:
            The new columns, `[n]` each.

        Raises:
            ValueError: Not called with `batched=True`, or a column would be overwritten.
            RowError: A row cannot be read (with `on_error="raise"`); no text of the batch has been read then.
        """
        if rank is not None and not isinstance(rank, int):
            raise ValueError(
                f"`rank` is a {type(rank).__name__}: this looks like `map(..., with_indices=True)`, whose second "
                "argument is a list of row numbers; leave `with_indices` out, or use `with_rank=True`"
            )
        self.check_free(batch)
        pairs = pairs_from_batch(batch, self._columns)
        readings = [(opened, directions, encode_pairs(opened, pairs)) for opened, directions in self._open(rank)]
        refusals = [_first_refusal(row) for row in zip(*(texts for _, _, texts in readings), strict=True)]
        if self._on_error == "raise":
            for refusal in refusals:
                if refusal is not None:
                    raise refusal
        good = [row for row, refusal in enumerate(refusals) if refusal is None]
        columns: dict[str, Any] = {}
        for opened, directions, texts in readings:
            sides = [side for row in good for side in _sides(texts[row])]
            for name, scores in self._score(opened, directions, sides).items():
                columns.update(self._columns_of(name, scores, good, len(pairs)))
        columns = {name: columns[name] for name in self.columns if name != STATUS}
        if self._on_error == "skip":
            columns[STATUS] = [OK if refusal is None else refusal.reason for refusal in refusals]
        return columns

    def check(self, batch: Mapping[str, Any], *, first_row: int = 0) -> RowError | None:
        """Finds the first row of a batch that cannot be read, without reading any.

        Args:
            batch: Columns of one batch.
            first_row: Number of its first row in the dataset, for the message.
        """
        pairs = pairs_from_batch(batch, self._columns, first_row=first_row)
        encoded = [encode_pairs(opened, pairs, first_row=first_row) for opened, _ in self._open(None)]
        return next((r for row in zip(*encoded, strict=True) if (r := _first_refusal(row)) is not None), None)

    def check_free(self, columns: Collection[str]) -> None:
        """Refuses to overwrite columns unless asked to.

        Raises:
            ValueError: A column exists and `overwrite` is False.
        """
        taken = [name for name in self.columns if name in columns]
        if taken and not self._overwrite:
            raise ValueError(
                f"the dataset already has {', '.join(f'`{name}`' for name in taken)}; rename or remove what is there, "
                "or pass `overwrite=True`"
            )

    def fingerprint(self) -> str:
        """Hash of all that decides the columns, and of nothing that only says where to compute them."""
        decides = [
            SCORING_VERSION,
            self.columns,
            self._scale,
            self._negative,
            self._on_error,
            asdict(self._columns),
        ]
        for _, direction in self._directions:
            decides += [
                direction.reader.to_dict(),
                asdict(direction.calibration),
                direction.vector.tobytes().hex(),
            ]
        return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:32]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles as one string and the vectors' bytes, so that equal transforms give equal bytes.

        The default would follow object identities, and what `datasets` hashes would differ between a transform and its
        own copy. No model is in it: workers load theirs.
        """
        state = {
            "scoring_version": SCORING_VERSION,
            "directions": [
                {
                    "name": name,
                    "config": direction.to_config(),
                    "repo_id": direction.repo_id,
                    "revision": direction.revision,
                    "model_path": direction.model_path,
                }
                for name, direction in self._directions
            ],
            "arguments": {
                "scale": self._scale,
                "add": self._add,
                "negative": self._negative,
                "on_error": self._on_error,
                "device": self._device,
                "batch_tokens": self._batch_tokens,
                "route": self._route,
                "overwrite": self._overwrite,
                "prompt_column": self._columns.prompt,
                "chosen_column": self._columns.chosen,
                "rejected_column": self._columns.rejected,
                "trust_remote_code": self._trust_remote_code,
            },
        }
        vectors = tuple(direction.vector.tobytes() for _, direction in self._directions)
        return _rebuild, (json.dumps(state, sort_keys=True), vectors)

    def _open(self, rank: int | None) -> list[tuple[OpenReader, list[tuple[str, Direction]]]]:
        """Opens each reader once, with the directions that it serves: those that read alike but for the layer."""
        served: dict[tuple[Reader, str | None], list[tuple[str, Direction]]] = {}
        for name, direction in self._directions:
            served.setdefault((with_layer(direction.reader, -1), direction.model_path), []).append((name, direction))
        device = resolve_device(self._device, rank)
        opened = []
        for (reader, path), directions in served.items():
            runtime = Runtime(path, device, self._batch_tokens, self._trust_remote_code, self._route)
            deepest = max(direction.reader.layer for _, direction in directions)
            opened.append((open_reader(reader, runtime, depth=deepest), directions))
        return opened

    def _score(
        self, opened: OpenReader, directions: Sequence[tuple[str, Direction]], texts: Sequence[Tokens]
    ) -> dict[str, np.ndarray]:
        """Scores texts: `[n]` float64 for each direction. A text that stands twice is read once."""
        distinct = list(dict.fromkeys(texts))
        place = {text: i for i, text in enumerate(distinct)}
        layers = sorted({direction.reader.layer for _, direction in directions})
        scores = {name: np.empty(len(distinct)) for name, _ in directions}
        for index, hidden in opened.read(distinct, layers, batch_tokens=self._batch_tokens):
            for name, direction in directions:
                scores[name][index] = direction.project(hidden[:, layers.index(direction.reader.layer)])
        order = [place[text] for text in texts]
        return {name: values[order] for name, values in scores.items()}

    def _columns_of(self, name: str, scores: np.ndarray, good: Sequence[int], rows: int) -> dict[str, np.ndarray]:
        """Makes one direction's columns `[rows]` from the scores of the good rows' sides; the other rows score 0.0."""
        direction = dict(self._directions)[name]
        chosen, rejected = scores[0::2], scores[1::2]
        written = np.zeros((3, rows), dtype=np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # checked in the next line
            written[:, good] = chosen - rejected, chosen, rejected
        _check_finite(written, direction)
        # All that is made of the raw margin is made of the float32 that is written, so that it can be made of it again.
        raw, calibration = written[0].astype(np.float64), direction.calibration
        values = dict(zip(COLUMNS[1:], written, strict=True))
        values["margin"] = calibration.apply(raw, self._scale)
        if "margin_bin" in self._add:
            values["margin_bin"] = calibration.apply(raw, "bins")
        if "margin_prob" in self._add:
            values["margin_prob"] = calibration.prob(raw)
        if self._negative == "zero":
            values |= {column: np.maximum(values[column], 0) for column in ("margin", "margin_bin") if column in values}
        if self._negative == "flag":
            values[NEGATIVE] = raw < 0
        return {_suffixed(column, name): numbers for column, numbers in values.items()}


def annotate(
    dataset: AnyDataset,
    direction: LegendMarginFn | Direction | str | os.PathLike[str],
    *,
    batch_size: int = 1000,
    num_proc: int | None = None,
) -> AnyDataset:
    """Adds margin columns to every split in one call.

    Beyond `map` with a `LegendMarginFn`: checks every row of every split before the first one is read and names the row
    that cannot be, gives empty splits their columns, sets the columns' types, and finds its cached result again when
    only device or token budget changed. A streaming dataset is annotated, and checked, as it is consumed.

    Args:
        dataset: A `Dataset`, `DatasetDict`, `IterableDataset` or `IterableDatasetDict`.
        direction: A `LegendMarginFn`, for its options, or what it takes as direction.
        batch_size: Rows in one call of the transform.
        num_proc: Processes.

    Returns:
        The same kind, with the columns.

    Raises:
        RowError: A row cannot be read, unless the `LegendMarginFn` has `on_error="skip"`.
        ValueError: A column exists already.
    """
    from datasets import DatasetDict, IterableDatasetDict

    fn = direction if isinstance(direction, LegendMarginFn) else LegendMarginFn(direction)
    splits = dataset if isinstance(dataset, DatasetDict | IterableDatasetDict) else {None: dataset}
    for name, split in splits.items():
        _check_split(split, fn, name, batch_size)
    done = {name: _annotate_split(split, fn, batch_size, num_proc) for name, split in splits.items()}
    return type(dataset)(done) if None not in done else done[None]


def encode_pairs(
    opened: OpenReader, pairs: Sequence[Pair | RowError], *, first_row: int = 0
) -> list[tuple[Tokens, Tokens] | RowError]:
    """Tokenises both sides of every pair; a row that cannot be read is a `RowError` that says which side and why."""
    good = [(row, pair) for row, pair in enumerate(pairs) if isinstance(pair, Pair)]
    texts = opened.encode([side for _, pair in good for side in (pair.chosen, pair.rejected)])
    result: list[Any] = list(pairs)
    for (row, _), chosen, rejected in zip(good, texts[0::2], texts[1::2], strict=True):
        if not isinstance(chosen, Tokens):
            result[row] = RowError(first_row + row, "chosen", str(chosen))
        elif not isinstance(rejected, Tokens):
            result[row] = RowError(first_row + row, "rejected", str(rejected))
        else:
            result[row] = (chosen, rejected)
    return result


def _check_split(split: Any, fn: LegendMarginFn, name: str | None, batch_size: int) -> None:
    """Checks a split before any split is read; a streaming one cannot be looked through twice."""
    from datasets import Dataset
    from datasets.utils import tqdm

    fn.check_free(split.column_names or ())
    if not isinstance(split, Dataset) or fn.skips:
        return
    plain = split.with_format(None)
    with tqdm(total=len(plain), desc="Checking rows", unit="row") as bar:
        for first in range(0, len(plain), batch_size):
            batch = plain[first : first + batch_size]
            refusal = fn.check(batch, first_row=first)
            if refusal is not None:
                if name is not None:
                    refusal.add_note(f"in split {name!r}")
                raise refusal
            bar.update(min(batch_size, len(plain) - first))


def _annotate_split(split: Any, fn: LegendMarginFn, batch_size: int, num_proc: int | None) -> Any:
    from datasets import Dataset
    from datasets.fingerprint import Hasher

    features = fn.features(split.features) if split.features is not None else None
    if not isinstance(split, Dataset):
        return split.map(fn, batched=True, batch_size=batch_size, features=features)
    if len(split) == 0:  # `map` returns an empty split without the columns, which no `push_to_hub` then takes
        empty: dict[str, list[Any]] = {name: [] for name in features or ()}
        return Dataset.from_dict(empty, features=features, split=split.split)
    mapped = split.with_format(None).map(
        fn,
        batched=True,
        batch_size=batch_size,
        num_proc=num_proc,
        with_rank=num_proc is not None and num_proc > 1,
        features=features,
        new_fingerprint=Hasher.hash([split._fingerprint, fn.fingerprint()]),
        desc="Annotating margins",
    )
    return mapped.with_format(**split.format) if split.format["type"] is not None else mapped


def _rebuild(state: str, vectors: tuple[bytes, ...]) -> LegendMarginFn:
    """Unpickles a transform, refusing one whose numbers this version would not reproduce."""
    read = json.loads(state)
    if read["scoring_version"] != SCORING_VERSION:
        raise ValueError(
            f"this transform was pickled by a version of legend_hf that scores differently (scoring version "
            f"{read['scoring_version']}, this one has {SCORING_VERSION}); make it anew"
        )
    directions = {
        entry["name"]: Direction.from_config(
            entry["config"],
            np.frombuffer(vector, dtype=np.float32).copy(),
            repo_id=entry["repo_id"],
            revision=entry["revision"],
            model_path=entry["model_path"],
        )
        for entry, vector in zip(read["directions"], vectors, strict=True)
    }
    return LegendMarginFn(directions.get("", directions), **read["arguments"])


def _first_refusal(row: Sequence[tuple[Tokens, Tokens] | RowError]) -> RowError | None:
    return next((entry for entry in row if isinstance(entry, RowError)), None)


def _sides(entry: tuple[Tokens, Tokens] | RowError) -> tuple[Tokens, Tokens]:
    assert not isinstance(entry, RowError)
    return entry


def _check_held(direction: Direction, name: str, scale: str | None, add: Sequence[str]) -> None:
    """Refuses what the artifact cannot give; better now than in a worker."""
    calibration = direction.calibration
    which, held = name or "this one", ", ".join(map(repr, calibration.kinds))
    anew = "fit the direction anew, on pairs that it can tell apart"
    if scale is not None and scale not in calibration.kinds:
        raise ValueError(
            f'`scale="{scale}"` needs a direction with a `{scale}` calibration, {which} has {held}; {anew}, or leave '
            "`scale` out"
        )
    needs = {"margin_bin": ("bins",), "margin_prob": ("link", "logit")}
    for column in add:
        if not set(needs[column]) & set(calibration.kinds):
            kinds = " or ".join(f"`{kind}`" for kind in needs[column])
            raise ValueError(
                f"`{column}` needs a direction with a {kinds} calibration, {which} has {held}; {anew}, or leave the "
                "column out of `add`"
            )


def _check_distinct(names: Collection[str]) -> None:
    """Refuses names of directions with which one column would mean two things."""
    each = [*COLUMNS, *ADDED, NEGATIVE]
    columns = [*each, STATUS, *(_suffixed(column, name) for name in names if name for column in each)]
    twice = sorted({column for column in columns if columns.count(column) > 1})
    if twice:
        raise ValueError(f"`direction` maps {list(names)}: `{twice[0]}` would mean two things; give other names")


def _check_finite(written: np.ndarray, direction: Direction) -> None:
    if not np.isfinite(written).all():
        bad = int((~np.isfinite(written)).any(axis=0).sum())
        raise ValueError(
            f"the model's hidden states are not finite in {direction.reader.dtype}: {bad} of "
            f'{written.shape[1]} margins would be NaN or infinite; fit with `dtype="float32"` or `"bfloat16"`'
        )


def _suffixed(column: str, name: str) -> str:
    return f"{column}_{name}" if name else column
