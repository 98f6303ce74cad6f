"""The `datasets.map` transform for N responses per prompt: rows like UltraFeedback's become columns of scores.

In: batches of rows, each with a prompt and a list of responses. Out: the same batches' scores, one list per row, finite
and never null, and what follows from them: an order, the best response, shares of choice. What it shares with the
other transforms is in `transform`. This file does not know which two responses become a pair, nor training, nor
publishing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence, Sized
from typing import Any, ClassVar

import numpy as np

from legend_hf.directions.direction import Direction
from legend_hf.margins.columns import SCORES_MARKS, SCORES_STATUS
from legend_hf.margins.origin import mark
from legend_hf.margins.scoring import GivenDirection, scorer_of
from legend_hf.margins.transform import Transform
from legend_hf.reading.formats import Columns, RowError, responses_from_batch
from legend_hf.reading.forward import Way
from legend_hf.reading.pretrained import DeviceMap
from legend_hf.reading.rows import Row, of_responses

SCORES = "scores"
RANKING = "ranking"
BEST = "best_response"
SCORE_BEST = "score_best"
GAP = "score_gap"
PROBS = "choice_probs"
COLUMNS = (SCORES, RANKING, BEST, SCORE_BEST, GAP)
ADDED = (PROBS,)
NO_RESPONSE = -1
"""`best_response` of a row that was skipped."""


class LegendScoreFn(Transform):
    """Adds the scores of all responses: `ds.map(LegendScoreFn("you/direction"), batched=True)`.

    For rows with a `prompt` and a list of `responses` (strings, message lists, or dicts with one of them as
    `response`). All responses of a row, and rows of the same prompt in one batch, share one reading of the prompt.

    Columns: `scores` (list of float32, one for each response: the paper's projection, in hidden-state units; only
    differences within a row mean something, and that of two responses is their `margin_raw`), `ranking` (list of int32:
    places of the responses, counted from 0, the best one first; equal scores in the order of the responses) and
    `best_response` (int32: the first of those); and two numbers that a viewer can draw: `score_best` (float32: the
    score of that one) and `score_gap` (float32: its lead over the second best, 0.0 where there is none). Where asked
    for: `choice_probs` (list of float32, summing to 1). With `on_error="skip"`: `scores_status`, `"ok"` or why the row
    could not be read. Such a row has a score of 0.0 for each response (none where they cannot be counted), what follows
    from that (ranking, equal shares, two zeros), and
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
        device_map: In place of `device`, for a model larger than one (extra `accelerate`): `"auto"`, or a mapping of
            parts of the model to devices, `"cpu"` and `"disk"`, as transformers has it. It changes no number.
        batch_tokens: Most tokens in one forward pass; None takes the device's default.
        route: `"tree"`, `"padded"` or `"grouped"` forces how texts are put together; None takes the quickest that gives
            the model's own numbers.
        store: File, `.sqlite`, or URL that keeps every score as soon as it is read, as for `LegendMarginFn`; the two
            may share one, and a response that either has read is not read again.
        overwrite: Replace columns of these names.
        prompt_column: Name of the prompts' column, where it is not `prompt`.
        responses_column: Name of the column with the lists of responses.
        model: Folder or Hub id to load the model from; it must be the direction's model.
        trust_remote_code: Run code that comes with the model.

    Raises:
        ValueError: An argument is not one of those allowed.
    """

    may_write: ClassVar = {
        SCORES: ["float32"],
        RANKING: ["int32"],
        BEST: "int32",
        SCORE_BEST: "float32",
        GAP: "float32",
        PROBS: ["float32"],
        SCORES_MARKS: "string",
    }
    status = SCORES_STATUS

    def __init__(
        self,
        direction: GivenDirection | Mapping[str, GivenDirection],
        *,
        revision: str | None = None,
        add: Sequence[str] = (),
        on_error: str = "raise",
        device: str | None = None,
        device_map: DeviceMap | None = None,
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
        super().__init__(
            Columns(prompt=prompt_column, responses=responses_column),
            on_error=on_error,
            overwrite=overwrite,
            own={"add": [column for column in ADDED if column in add]},
        )
        scorer = scorer_of(
            direction,
            revision=revision,
            model=model,
            device=device,
            device_map=device_map,
            batch_tokens=batch_tokens,
            route=route,
            trust_remote_code=trust_remote_code,
            store=store,
        )
        for name, d in scorer.directions:
            _check_held(d, name, add)
        self._read_with(scorer)

    def _writes(self) -> list[str]:
        return [*COLUMNS, *self._own["add"], SCORES_MARKS]

    def _rows(self, batch: Any, first_row: int) -> list[Row | RowError]:
        return of_responses(responses_from_batch(batch, self._columns, first_row=first_row), self._columns.responses)

    def _make(self, name: str, numbers: Sequence[np.ndarray | None], batch: Any) -> dict[str, Any]:
        """See `Transform`; the numbers are the responses' scores, 0.0 for each one of a row without."""
        direction: Direction = self._reading[name]
        cells = _cells(batch[self._columns.responses]) if any(scores is None for scores in numbers) else ()
        written = [
            np.zeros(_how_many(cells[row]), np.float32) if scores is None else scores.astype(np.float32)
            for row, scores in enumerate(numbers)
        ]
        # All that is made of the scores is made of the float32 that is written, so that it can be made of it again.
        orders = [np.argsort(-row, kind="stable").astype(np.int32) for row in written]
        picked = [NO_RESPONSE if s is None else order[0] for s, order in zip(numbers, orders, strict=True)]
        made: dict[str, Any] = {SCORES: written, RANKING: orders, BEST: np.array(picked, dtype=np.int32)}
        first, second = (
            np.array(
                [row[order[k]] if len(row) > k else 0 for row, order in zip(written, orders, strict=True)],
                dtype=np.float32,
            )
            for k in (0, 1)
        )
        several = np.array([len(row) > 1 for row in written], dtype=bool)
        made |= {SCORE_BEST: first, GAP: np.where(several, first - second, np.float32(0))}
        made[SCORES_MARKS] = [mark(direction)] * len(written)
        if PROBS in self._own["add"]:
            logit = direction.calibration.logit
            assert logit is not None  # `_check_held`
            made[PROBS] = [_shares(logit * row.astype(np.float64)) for row in written]
        return made


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


def _check_held(direction: Direction, name: str, add: Sequence[str]) -> None:
    """Refuses what the artifact cannot give; better now than in a worker."""
    if PROBS in add and direction.calibration.logit is None:
        held = ", ".join(map(repr, direction.calibration.kinds))
        raise ValueError(
            f"`{PROBS}` needs a direction with a `logit` calibration, {name or 'this one'} has {held}; fit the "
            "direction anew, on pairs that it can tell apart, or leave the column out of `add`"
        )
