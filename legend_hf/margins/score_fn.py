"""The `datasets.map` transform for N responses per prompt: rows like UltraFeedback's become columns of scores.

In: batches of rows, each with a prompt and a list of responses. Out: the same batches' scores, one list per row, finite
and never null, and what follows from them: an order, the best response, shares of choice. `LegendScoreFn` is plain data
and pickles to the same bytes before and after it was used. This file does not know which two responses become a pair,
nor training, nor publishing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence, Sized
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from legend_hf.directions.direction import Direction
from legend_hf.margins import columns
from legend_hf.margins.origin import SCORES as MARKS
from legend_hf.margins.origin import mark
from legend_hf.margins.scoring import GivenDirection, Scorer, load_directions, not_finite, scorer_from_state
from legend_hf.reading.formats import Columns, Conversation, RowError, names_of, responses_from_batch
from legend_hf.reading.forward import Way
from legend_hf.reading.plain import check_on_error, plain
from legend_hf.reading.reader import OpenReader
from legend_hf.reading.templates import Tokens

if TYPE_CHECKING:
    from datasets import Features

SCORES = "scores"
RANKING = "ranking"
BEST = "best_response"
PROBS = "choice_probs"
COLUMNS = (SCORES, RANKING, BEST)
ADDED = (PROBS,)
STATUS = "scores_status"
NO_RESPONSE = -1
"""`best_response` of a row that was skipped."""


class LegendScoreFn:
    """Adds the scores of all responses: `ds.map(LegendScoreFn("you/direction"), batched=True)`.

    For rows with a `prompt` and a list of `responses` (strings, message lists, or dicts with one of them as
    `response`). All responses of a row, and rows of the same prompt in one batch, share one reading of the prompt.

    Columns: `scores` (list of float32, one for each response: the paper's projection, in hidden-state units; only
    differences within a row mean something, and that of two responses is their `margin_raw`), `ranking` (list of int32:
    places of the responses, counted from 0, the best one first; equal scores in the order of the responses) and
    `best_response` (int32: the first of those). Where asked for: `choice_probs` (list of float32, summing to 1). With
    `on_error="skip"`: `scores_status`, `"ok"` or why the row could not be read. Such a row has a score of 0.0 for each
    response (none where they cannot be counted), the ranking and the equal shares that follow from it, and
    `best_response` -1, so that nothing is picked. All but the scores are functions of `scores` as they are written.
    `scores_direction` says which direction made them, so that another one is refused later.

    `choice_probs` are Luce's choice model with the calibration's `logit` as log-odds per unit: softmax(logit · scores).
    Of two responses it is the probability that goes with the `logit` margin. It is ours, not the paper's, and it
    supposes that what the calibration learnt of pairs holds among many responses.

    Works with `Dataset`, `DatasetDict` and `IterableDataset` (pass `features=fn.features(ds.features)`), any
    `batch_size`, `num_proc` and `with_rank=True`, which spreads workers over GPUs; and with `annotate`.

    Args:
        direction: A `Direction`, or what `Direction.from_pretrained` takes. A mapping of names to those writes
            `scores_<name>` and so on for each, reading each text once per model.
        revision: Of a direction on the Hub that is given by its id.
        add: Columns to write besides: `["choice_probs"]`.
        on_error: `"raise"` at the first row that cannot be read, before its batch is read, or `"skip"` it. One response
            that cannot be read makes its whole row such a row.
        device: Where to run; None takes a GPU when there is one.
        batch_tokens: Most tokens in one forward pass; None takes the device's default.
        route: `"tree"`, `"padded"` or `"grouped"` forces how texts are put together; None takes the quickest that gives
            the model's own numbers.
        store: File, ending in `.sqlite`, that keeps every score as soon as it is read, as for `LegendMarginFn`; the two
            may share one, and a response that either has read is not read again.
        overwrite: Replace columns of these names.
        prompt_column: Name of the prompts' column, where it is not `prompt`.
        responses_column: Name of the column with the lists of responses.
        model: Folder to load the model from, instead of the Hub; it must hold the direction's model.
        trust_remote_code: Run code that comes with the model.

    Raises:
        ValueError: An argument is not one of those allowed.
    """

    def __init__(
        self,
        direction: GivenDirection | Mapping[str, GivenDirection],
        *,
        revision: str | None = None,
        add: Sequence[str] = (),
        on_error: str = "raise",
        device: str | None = None,
        batch_tokens: int | None = None,
        route: Way | None = None,
        store: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
        prompt_column: str = "prompt",
        responses_column: str = "responses",
        model: str | os.PathLike[str] | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        if isinstance(add, str) or not set(add) <= set(ADDED):
            raise ValueError(f"`add` is {add!r}; allowed is {list(ADDED)}, or nothing")
        check_on_error(on_error)
        where = Scorer((), device, batch_tokens, route, trust_remote_code, None if store is None else os.fspath(store))
        self._scorer = replace(where, directions=load_directions(direction, revision=revision, model=model))
        for name, d in self._scorer.directions:
            _check_held(d, name, add)
        columns.check_distinct([*COLUMNS, *ADDED, MARKS], STATUS, [name for name, _ in self._scorer.directions])
        self._add = tuple(column for column in ADDED if column in add)
        self._on_error = on_error
        self._overwrite = overwrite
        self._columns = Columns(prompt=prompt_column, responses=responses_column)

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
        names = [
            columns.suffixed(c, name) for name, _ in self._scorer.directions for c in (*COLUMNS, *self._add, MARKS)
        ]
        return names + ([STATUS] if self.skips else [])

    def features(self, features: Features | None) -> Features | None:
        """The features of a dataset after this transform, which streaming needs; None for None, as `LegendMarginFn`."""
        return columns.after(features, self._types())

    def _types(self) -> Features:
        """The features of the new columns alone, in order."""
        from datasets import Features, List, Value

        types = {SCORES: List(Value("float32")), RANKING: List(Value("int32")), BEST: Value("int32")}
        types |= {PROBS: List(Value("float32")), MARKS: Value("string")}
        each = {
            columns.suffixed(column, name): kind
            for name, _ in self._scorer.directions
            for column, kind in types.items()
        }
        each[STATUS] = Value("string")
        return Features({name: each[name] for name in self.columns})

    def __call__(self, batch: Any, rank: int | None = None) -> Any:
        """Scores the responses of one batch; this is what `map` calls.

        Args:
            batch: Columns of one batch, in any format.
            rank: Of the worker, with `with_rank=True`.

        Returns:
            The new columns, `[n]` each; an entry of a list column is an array, one number for each response. For a
            table or a frame, a copy of it with them.

        Raises:
            ValueError: Not called with `batched=True`, or a column would be overwritten.
            RowError: A row cannot be read (with `on_error="raise"`); no text of the batch has been read then, unless
                what is wrong is that its numbers are not finite.
        """
        columns.check_rank(rank)
        self.check_free(names_of(batch))
        rows = responses_from_batch(batch, self._columns)
        readings = [
            (scoring, encode_responses(scoring.opened, rows, self._columns.responses))
            for scoring in self._scorer.open(rank)
        ]
        refusals = [columns.first_refusal(row) for row in zip(*(texts for _, texts in readings), strict=True)]
        columns.raise_first(() if self.skips else refusals)
        good = [row for row, refusal in enumerate(refusals) if refusal is None]
        counts = [
            _how_many(cell) if isinstance(row, RowError) else len(row)
            for row, cell in zip(rows, _cells(batch[self._columns.responses]), strict=True)
        ]
        written: dict[str, list[np.ndarray]] = {}  # one array for each row
        for scoring, texts in readings:
            rows_of = [row for row in good for _ in _texts(texts[row])]
            for name, scores in scoring.score([text for row in good for text in _texts(texts[row])]).items():
                with np.errstate(over="ignore"):  # checked in the next line
                    narrow = scores.astype(np.float32)
                refused = not_finite(narrow[None], rows_of, dict(scoring.directions)[name])
                refusals = [refusal or refused.get(row) for row, refusal in enumerate(refusals)]
                own = dict(zip(good, np.split(narrow, np.cumsum([counts[row] for row in good])), strict=False))
                written[name] = [own.get(row, np.zeros(count, np.float32)) for row, count in enumerate(counts)]
        columns.raise_first(() if self.skips else refusals)
        good = [row for row, refusal in enumerate(refusals) if refusal is None]
        made: dict[str, Any] = {}
        for name, numbers in written.items():
            made.update(self._columns_of(name, numbers, good))
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
        rows = responses_from_batch(batch, self._columns, first_row=first_row)
        encoded = [
            encode_responses(scoring.opened, rows, self._columns.responses, first_row=first_row)
            for scoring in self._scorer.open()
        ]
        return next((r for row in zip(*encoded, strict=True) if (r := columns.first_refusal(row)) is not None), None)

    def check_free(self, there: Collection[str]) -> None:
        """Refuses to overwrite columns unless asked to.

        Raises:
            ValueError: A column exists and `overwrite` is False.
        """
        columns.check_free(self.columns, there, overwrite=self._overwrite)

    def fingerprint(self) -> str:
        """Hash of all that decides the columns, and of nothing that only says where to compute them."""
        decides = [self.columns, self._on_error, asdict(self._columns), *self._scorer.deciding()]
        return hashlib.sha256(json.dumps(plain(decides)).encode()).hexdigest()[:32]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles as one string and the vectors' bytes, so that equal transforms give equal bytes.

        The default would follow object identities, and what `datasets` hashes would differ between a transform and its
        own copy. No model is in it: workers load theirs.
        """
        scorer, vectors = self._scorer.state()
        arguments = {
            "add": self._add,
            "on_error": self._on_error,
            "overwrite": self._overwrite,
            "prompt_column": self._columns.prompt,
            "responses_column": self._columns.responses,
        }
        return _rebuild, (json.dumps(plain({"scorer": scorer, "arguments": arguments}), sort_keys=True), vectors)

    def _columns_of(self, name: str, scores: Sequence[np.ndarray], good: Sequence[int]) -> dict[str, Any]:
        """Makes one direction's columns from the scores of every row's responses; rows that are not good score 0.0.

        Args:
            name: Of the direction.
            scores: An array for each row, float32.
            good: The rows that could be read.
        """
        direction = dict(self._scorer.directions)[name]
        written = [np.zeros_like(row) for row in scores]
        for row in good:
            written[row] = scores[row]
        best = np.full(len(scores), NO_RESPONSE, dtype=np.int32)
        # All that is made of the scores is made of the float32 that is written, so that it can be made of it again.
        orders = [np.argsort(-row, kind="stable").astype(np.int32) for row in written]
        for row in good:
            best[row] = orders[row][0]
        made: dict[str, Any] = {SCORES: written, RANKING: orders, BEST: best, MARKS: [mark(direction)] * len(scores)}
        if PROBS in self._add:
            logit = direction.calibration.logit
            assert logit is not None  # `_check_held`
            made[PROBS] = [_shares(logit * row.astype(np.float64)) for row in written]
        return {columns.suffixed(column, name): values for column, values in made.items()}


def encode_responses(
    opened: OpenReader,
    rows: Sequence[tuple[Conversation, ...] | RowError],
    column: str = "responses",
    *,
    first_row: int = 0,
) -> list[tuple[Tokens, ...] | RowError]:
    """Tokenises every response of every row; a row that cannot be read is a `RowError` that says which one and why.

    Args:
        opened: The reader.
        rows: What `responses_from_batch` gave, `[n]`.
        column: Name of the responses' column, for errors.
        first_row: Number of the first row, for errors.
    """
    flat = [response for row in rows if not isinstance(row, RowError) for response in row]
    texts = iter(opened.encode(flat))
    result: list[tuple[Tokens, ...] | RowError] = []
    for number, row in enumerate(rows, start=first_row):
        if isinstance(row, RowError):
            result.append(row)
            continue
        read = [next(texts) for _ in row]
        bad = [(i, text) for i, text in enumerate(read) if not isinstance(text, Tokens)]
        good = tuple(text for text in read if isinstance(text, Tokens))
        result.append(RowError(number, f"{column}[{bad[0][0]}]", str(bad[0][1])) if bad else good)
    return result


def _rebuild(state: str, vectors: tuple[bytes, ...]) -> LegendScoreFn:
    """Unpickles a transform, refusing one whose numbers this version would not reproduce."""
    read = json.loads(state)
    scorer = scorer_from_state(read["scorer"], vectors)
    fn = LegendScoreFn(dict(scorer.directions), **read["arguments"])
    fn._scorer = scorer
    return fn


def _shares(log_odds: np.ndarray) -> np.ndarray:
    """Softmax `[n]` of log-odds `[n]`, float32; nothing of nothing."""
    if not len(log_odds):
        return np.zeros(0, dtype=np.float32)
    odds = np.exp(log_odds - log_odds.max())
    shares: np.ndarray = (odds / odds.sum()).astype(np.float32)
    return shares


def _cells(column: Any) -> list[Any]:
    """The cells of a column in any format that `map` passes; those of arrow do not say their length."""
    return list(column.to_pylist() if hasattr(column, "to_pylist") else column)


def _how_many(cell: Any) -> int:
    """Responses in a cell that could not be read, 0 where they cannot be counted."""
    held = cell.get("response") if isinstance(cell, Mapping) else cell  # `Sequence({...})` comes as a dict of lists
    return len(held) if isinstance(held, Sized) and not isinstance(held, str | bytes | Mapping) else 0


def _texts(entry: tuple[Tokens, ...] | RowError) -> tuple[Tokens, ...]:
    assert not isinstance(entry, RowError)
    return entry


def _check_held(direction: Direction, name: str, add: Sequence[str]) -> None:
    """Refuses what the artifact cannot give; better now than in a worker."""
    if PROBS in add and direction.calibration.logit is None:
        held = ", ".join(map(repr, direction.calibration.kinds))
        raise ValueError(
            f"`{PROBS}` needs a direction with a `logit` calibration, {name or 'this one'} has {held}; fit the "
            "direction anew, on pairs that it can tell apart, or leave the column out of `add`"
        )
