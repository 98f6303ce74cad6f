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
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from legend_hf.directions.calibrate import KINDS
from legend_hf.directions.direction import Direction
from legend_hf.margins import columns
from legend_hf.margins.origin import MARGINS, mark
from legend_hf.margins.scoring import Scorer, load_directions, not_finite, scorer_from_state
from legend_hf.reading.formats import Columns, Pair, RowError, names_of, pairs_from_batch
from legend_hf.reading.forward import Way
from legend_hf.reading.plain import check_choice, check_on_error, plain
from legend_hf.reading.reader import OpenReader
from legend_hf.reading.templates import Tokens

if TYPE_CHECKING:
    from datasets import Features

COLUMNS = ("margin", "margin_raw", "chosen_score", "rejected_score")
ADDED = ("margin_bin", "margin_prob")
NEGATIVE = "margin_negative"
STATUS = "margin_status"


class LegendMarginFn:
    """Adds margin columns to a preference dataset: `ds.map(LegendMarginFn("you/direction"), batched=True)`.

    Columns, float32 and finite: `margin` (on the training scale), `margin_raw` (the paper's projection, in hidden-state
    units), `chosen_score` and `rejected_score` (its two sides). `margin > 0` where the chosen response reads as further
    along the direction than the rejected one. Where asked for: `margin_bin` (a few sizes, with the sign), `margin_prob`
    (the probability that the pair's label is right), `margin_negative` (bool) and, with `on_error="skip"`,
    `margin_status`: `"ok"`, or why the row could not be read; its scores and margins are then 0.0 and its probability
    0.5. All but the scores are functions of `margin_raw` as it is written. `margin_direction` says which direction made
    them, so that another one is refused later.

    Works with `Dataset`, `DatasetDict` and `IterableDataset` (pass `features=fn.features(ds.features)`), any
    `batch_size`, `num_proc` and `with_rank=True`, which spreads workers over GPUs.

    Args:
        direction: A `Direction`, or what `Direction.from_pretrained` takes. A mapping of names to those writes
            `margin_<name>` and so on for each, reading each text once per model.
        revision: Of a direction on the Hub that is given by its id.
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
        store: File, ending in `.sqlite`, that keeps every score as soon as it is read: a run that was killed goes on
            where it was, and texts that repeat are read once. Any number of processes may share it.
        overwrite: Replace columns of these names. The new ones are fractions: where an old `margin` holds whole
            numbers, pass `features=fn.features(ds.features)` to `map`, as `annotate` does.
        prompt_column: Name of the prompts' column, where it is not `prompt`.
        chosen_column: Name of the chosen responses' column.
        rejected_column: Name of the rejected responses' column.
        model: Folder to load the model from, instead of the Hub; it must hold the direction's model.
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
        store: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
        prompt_column: str = "prompt",
        chosen_column: str = "chosen",
        rejected_column: str = "rejected",
        model: str | os.PathLike[str] | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        check_choice("scale", scale, (*KINDS, None), otherwise=" for the artifact's own")
        if isinstance(add, str) or not set(add) <= set(ADDED):
            raise ValueError(
                f"`add` is {add!r}; give a list of {' and '.join(map(repr, ADDED))}, or one of them in a list"
            )
        check_choice("negative", negative, ("keep", "zero", "flag"))
        check_on_error(on_error)
        where = Scorer((), device, batch_tokens, route, trust_remote_code, None if store is None else os.fspath(store))
        self._scorer = replace(where, directions=load_directions(direction, revision=revision, model=model))
        for name, d in self._scorer.directions:
            _check_held(d, name, scale, add)
        columns.check_distinct(
            [*COLUMNS, *ADDED, NEGATIVE, MARGINS], STATUS, [name for name, _ in self._scorer.directions]
        )
        self._scale = scale
        self._add = tuple(column for column in ADDED if column in add)
        self._negative = negative
        self._on_error = on_error
        self._overwrite = overwrite
        self._columns = Columns(prompt=prompt_column, chosen=chosen_column, rejected=rejected_column)

    @property
    def how_to_go_on(self) -> str:
        """What to do after a run was stopped."""
        return self._scorer.how_to_go_on

    @property
    def skips(self) -> bool:
        """Whether rows that cannot be read are skipped."""
        return self._on_error == "skip"

    @property
    def columns(self) -> list[str]:
        """Names of the columns this writes, in order."""
        each = [*COLUMNS, *self._add, *([NEGATIVE] if self._negative == "flag" else []), MARGINS]
        names = [columns.suffixed(column, name) for name, _ in self._scorer.directions for column in each]
        return names + ([STATUS] if self.skips else [])

    @property
    def directions(self) -> Mapping[str, Direction]:
        """The directions by their names; an only one is called `""`."""
        return dict(self._scorer.directions)

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments besides the directions that decide its columns, as JSON has them."""
        return {
            "scale": self._scale,
            "add": list(self._add),
            "negative": self._negative,
            "on_error": self._on_error,
            "prompt_column": self._columns.prompt,
            "chosen_column": self._columns.chosen,
            "rejected_column": self._columns.rejected,
        }

    def features(self, features: Features | None) -> Features | None:
        """The features of a dataset after this transform, which streaming needs and an old `margin` may need.

        Args:
            features: Of the dataset before; None for a stream that does not know its own.

        Returns:
            None for such a stream: `map` takes it too, and goes by what the rows hold.
        """
        return columns.after(features, self._types())

    def _types(self) -> Features:
        """The features of the new columns alone, in order."""
        from datasets import Features, Value

        types = {STATUS: "string"}
        for name, _ in self._scorer.directions:
            types |= {columns.suffixed(NEGATIVE, name): "bool", columns.suffixed(MARGINS, name): "string"}
        return Features({name: Value(types.get(name, "float32")) for name in self.columns})

    def __call__(self, batch: Any, rank: int | None = None) -> Any:
        """Annotates one batch; this is what `map` calls.

        Args:
            batch: Columns of one batch, in any format.
            rank: Of the worker, with `with_rank=True`.

        Returns:
            The new columns, `[n]` each; for a table or a frame, a copy of it with them.

        Raises:
            ValueError: Not called with `batched=True`, or a column would be overwritten.
            RowError: A row cannot be read (with `on_error="raise"`); no text of the batch has been read then, unless
                what is wrong is that its numbers are not finite.
        """
        columns.check_rank(rank)
        self.check_free(names_of(batch))
        pairs = pairs_from_batch(batch, self._columns)
        readings = [(scoring, encode_pairs(scoring.opened, pairs)) for scoring in self._scorer.open(rank)]
        refusals = [columns.first_refusal(row) for row in zip(*(texts for _, texts in readings), strict=True)]
        columns.raise_first(() if self.skips else refusals)
        good = [row for row, refusal in enumerate(refusals) if refusal is None]
        written: dict[str, np.ndarray] = {}  # margin, chosen and rejected score  [3, rows]
        for scoring, texts in readings:
            sides = [side for row in good for side in _sides(texts[row])]
            for name, scores in scoring.score(sides).items():
                written[name] = np.zeros((3, len(pairs)), dtype=np.float32)
                with np.errstate(over="ignore", invalid="ignore"):  # checked in the next line
                    written[name][:, good] = scores[0::2] - scores[1::2], scores[0::2], scores[1::2]
                for row, refusal in not_finite(
                    written[name], range(len(pairs)), dict(scoring.directions)[name]
                ).items():
                    refusals[row] = refusals[row] or refusal
        columns.raise_first(() if self.skips else refusals)
        bad = [row for row, refusal in enumerate(refusals) if refusal is not None]
        made: dict[str, Any] = {}
        for name, numbers in written.items():
            numbers[:, bad] = 0.0
            made.update(self._columns_of(name, numbers))
        made = {name: made[name] for name in self.columns if name != STATUS}
        if self.skips:
            made[STATUS] = [columns.OK if refusal is None else refusal.status for refusal in refusals]
        return columns.written(batch, made, self._types())

    def check(self, batch: Mapping[str, Any], *, first_row: int = 0) -> RowError | None:
        """Finds the first row of a batch that cannot be read, without reading any.

        Args:
            batch: Columns of one batch.
            first_row: Number of its first row in the dataset, for the message.
        """
        pairs = pairs_from_batch(batch, self._columns, first_row=first_row)
        encoded = [encode_pairs(scoring.opened, pairs, first_row=first_row) for scoring in self._scorer.open()]
        return next((r for row in zip(*encoded, strict=True) if (r := columns.first_refusal(row)) is not None), None)

    def check_free(self, there: Collection[str]) -> None:
        """Refuses to overwrite columns unless asked to.

        Raises:
            ValueError: A column exists and `overwrite` is False.
        """
        columns.check_free(self.columns, there, overwrite=self._overwrite)

    def fingerprint(self) -> str:
        """Hash of all that decides the columns, and of nothing that only says where to compute them."""
        decides = [
            self.columns,
            self._scale,
            self._negative,
            self._on_error,
            asdict(self._columns),
            *self._scorer.deciding(),
        ]
        return hashlib.sha256(json.dumps(plain(decides)).encode()).hexdigest()[:32]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles as one string and the vectors' bytes, so that equal transforms give equal bytes.

        The default would follow object identities, and what `datasets` hashes would differ between a transform and its
        own copy. No model is in it: workers load theirs.
        """
        scorer, vectors = self._scorer.state()
        arguments = {**self.arguments, "overwrite": self._overwrite}
        return _rebuild, (json.dumps(plain({"scorer": scorer, "arguments": arguments}), sort_keys=True), vectors)

    def _columns_of(self, name: str, written: np.ndarray) -> dict[str, Any]:
        """Makes one direction's columns `[rows]` from its raw margins, chosen and rejected scores `[3, rows]`."""
        direction = dict(self._scorer.directions)[name]
        # All that is made of the raw margin is made of the float32 that is written, so that it can be made of it again.
        raw, calibration = written[0].astype(np.float64), direction.calibration
        values: dict[str, Any] = dict(zip(COLUMNS[1:], written, strict=True))
        values["margin"] = calibration.apply(raw, self._scale)
        if "margin_bin" in self._add:
            values["margin_bin"] = calibration.apply(raw, "bins")
        if "margin_prob" in self._add:
            values["margin_prob"] = calibration.prob(raw)
        if self._negative == "zero":
            values |= {column: np.maximum(values[column], 0) for column in ("margin", "margin_bin") if column in values}
        if self._negative == "flag":
            values[NEGATIVE] = raw < 0
        values[MARGINS] = [mark(direction)] * len(raw)
        return {columns.suffixed(column, name): numbers for column, numbers in values.items()}


def encode_pairs(
    opened: OpenReader, pairs: Sequence[Pair | RowError], *, first_row: int = 0
) -> list[tuple[Tokens, Tokens] | RowError]:
    """Tokenises both sides of every pair; a row that cannot be read is a `RowError` that says which side and why."""
    good = [(row, pair) for row, pair in enumerate(pairs) if isinstance(pair, Pair)]
    texts = opened.encode([side for _, pair in good for side in (pair.chosen, pair.rejected)])
    result: list[Any] = list(pairs)
    for (row, pair), chosen, rejected in zip(good, texts[0::2], texts[1::2], strict=True):
        if not isinstance(chosen, Tokens):
            result[row] = RowError(first_row + row, pair.columns[0], str(chosen))
        elif not isinstance(rejected, Tokens):
            result[row] = RowError(first_row + row, pair.columns[1], str(rejected))
        else:
            result[row] = (chosen, rejected)
    return result


def _rebuild(state: str, vectors: tuple[bytes, ...]) -> LegendMarginFn:
    """Unpickles a transform, refusing one whose numbers this version would not reproduce."""
    read = json.loads(state)
    scorer = scorer_from_state(read["scorer"], vectors)
    fn = LegendMarginFn(dict(scorer.directions), **read["arguments"])
    fn._scorer = scorer
    return fn


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
