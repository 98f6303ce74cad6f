"""The `datasets.map` transform: preference rows become margin columns.

In: batches of preference rows, in any accepted shape. Out: the same batches' margin columns, float32, finite, never
null. What it shares with the others is in `transform`. This file knows neither training nor publishing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from legend_hf.directions.calibrate import KINDS
from legend_hf.directions.direction import Direction
from legend_hf.margins.columns import (
    MARGIN_ADDED,
    MARGIN_COLUMNS,
    MARGIN_MARKS,
    MARGIN_NEGATIVE,
    MARGIN_STATUS,
    MARGIN_TRACES,
    numbers_of,
    ok_rows,
    one_size,
    suffixed,
)
from legend_hf.margins.origin import mark
from legend_hf.margins.scoring import GivenDirection, scorer_of, unpacked
from legend_hf.margins.transform import Transform
from legend_hf.reading.formats import Columns, RowError, pairs_from_batch
from legend_hf.reading.forward import Way
from legend_hf.reading.plain import check_choice
from legend_hf.reading.pretrained import DeviceMap
from legend_hf.reading.rows import Row, of_pairs
from legend_hf.tracing.memory import settled_after, turn_of
from legend_hf.tracing.values import running, running_margin

if TYPE_CHECKING:
    from datasets import Dataset


class LegendMarginFn(Transform):
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
        add: Columns to write beside `margin`: `"margin_bin"`, `"margin_prob"`; `"trace"` for `chosen_trace` and
            `rejected_trace`, the projection of each token of a response (float32, in hidden-state units, aligned with
            what the tokenizer makes of the response); `"turn"` for what is made of those, `chosen_turn` (index of the
            token at which a response turns, -1 where it does not), `chosen_turn_sign` (1 towards the direction), the
            same of `rejected`, and `pair_settled` (tokens of each response after which the sign of the margin stays).
            A store keeps scores and no traces: with either of the last two every text is read.
        negative: What becomes of pairs whose raw margin is below 0, where model and label disagree: `"keep"` their
            margins, set `margin` and `margin_bin` to 0 (`"zero"`; `margin_raw` and `margin_prob` stay), or keep them
            and `"flag"` the pairs in `margin_negative`. A pair's two sides are never swapped.
        on_error: `"raise"` at the first row that cannot be read, before its batch is read, or `"skip"` it.
        device: Where to run; None takes a GPU when there is one.
        device_map: In place of `device`, for a model larger than one (extra `accelerate`): `"auto"`, or a mapping of
            parts of the model to devices, `"cpu"` and `"disk"`, as transformers has it. It changes no number.
        batch_tokens: Most tokens in one forward pass; None takes the device's default.
        route: `"tree"`, `"padded"` or `"grouped"` forces how texts are put together; None takes the quickest that gives
            the model's own numbers.
        store: File, ending in `.sqlite`, that keeps every score as soon as it is read: a run that was killed goes on
            where it was, and texts that repeat are read once. Any number of processes may share it. Or the URL of a
            folder, `s3://bucket/run`, `hf://buckets/user/name/run`, `file:///mnt/run`, that outlives the machine: see
            `RemoteStore`.
        overwrite: Replace columns of these names. The new ones are fractions: where an old `margin` holds whole
            numbers, pass `features=fn.features(ds.features)` to `map`, as `annotate` does.
        prompt_column: Name of the prompts' column, where it is not `prompt`.
        chosen_column: Name of the chosen responses' column.
        rejected_column: Name of the rejected responses' column.
        model: Folder or Hub id to load the model from; it must be the direction's model.
        trust_remote_code: Run code that comes with the model.

    Raises:
        ValueError: An argument is not one of those allowed.
    """

    may_write: ClassVar = {
        **dict.fromkeys((*MARGIN_COLUMNS, *MARGIN_ADDED), "float32"),
        **MARGIN_TRACES["trace"],
        **MARGIN_TRACES["turn"],
        MARGIN_NEGATIVE: "bool",
        MARGIN_MARKS: "string",
    }
    status = MARGIN_STATUS

    def __init__(
        self,
        direction: GivenDirection | Mapping[str, GivenDirection],
        *,
        revision: str | None = None,
        scale: str | None = None,
        add: Sequence[str] = (),
        negative: str = "keep",
        on_error: str = "raise",
        device: str | None = None,
        device_map: DeviceMap | None = None,
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
        addable = (*MARGIN_ADDED, *MARGIN_TRACES)
        if isinstance(add, str) or not set(add) <= set(addable):
            raise ValueError(
                f"`add` is {add!r}; give a list of {' and '.join(map(repr, addable))}, or one of them in a list"
            )
        check_choice("negative", negative, ("keep", "zero", "flag"))
        super().__init__(
            Columns(prompt=prompt_column, chosen=chosen_column, rejected=rejected_column),
            on_error=on_error,
            overwrite=overwrite,
            own={"scale": scale, "add": [column for column in addable if column in add], "negative": negative},
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
            _check_held(d, name, scale, add)
        self._read_with(replace(scorer, traces=not set(MARGIN_TRACES).isdisjoint(add)))

    @property
    def directions(self) -> Mapping[str, Direction]:
        """The directions by their names; an only one is called `""`."""
        return dict(self._reading.directions)

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments besides the directions that decide its columns, as JSON has them."""
        names = {f"{side}_column": getattr(self._columns, side) for side in ("prompt", "chosen", "rejected")}
        return {**self._own, "on_error": self._on_error, **names}

    def _writes(self) -> list[str]:
        flags = [MARGIN_NEGATIVE] if self._own["negative"] == "flag" else []
        added = [column for word in self._own["add"] for column in MARGIN_TRACES.get(word, [word])]
        return [*MARGIN_COLUMNS, *added, *flags, MARGIN_MARKS]

    def _rows(self, batch: Any, first_row: int) -> list[Row | RowError]:
        return of_pairs(pairs_from_batch(batch, self._columns, first_row=first_row))

    def doubts(self, done: Dataset) -> Iterator[str]:
        """Margins that are mostly of one size, which `save_annotated` and `report` would say only later."""
        rows = ok_rows(done, self.status)
        for name in self._reading.names:
            column = suffixed("margin", name)
            numbers = numbers_of(done, column)
            same = None if numbers is None else one_size(numbers[rows])
            if same is not None:
                yield (
                    f"of `{column}` {same}, so it tells few pairs from others: take another `scale`, or a direction "
                    "that was fitted on pairs like these"
                )

    def _make(self, name: str, numbers: Sequence[np.ndarray | None], batch: Any) -> dict[str, Any]:
        """See `Transform`; the numbers are the chosen and the rejected response's score, 0.0 for a row without."""
        direction: Direction = self._reading[name]
        scored, traces = unpacked(numbers)
        sides = np.array([(0.0, 0.0) if pair is None else pair for pair in scored]).reshape(-1, 2).T
        written = np.array([sides[0] - sides[1], *sides], dtype=np.float32)  # [3, rows]
        # All that is made of the raw margin is made of the float32 that is written, so that it can be made of it again.
        raw, calibration = written[0].astype(np.float64), direction.calibration
        values: dict[str, Any] = dict(zip(MARGIN_COLUMNS[1:], written, strict=True))
        values["margin"] = calibration.apply(raw, self._own["scale"])
        if "margin_bin" in self._own["add"]:
            values["margin_bin"] = calibration.apply(raw, "bins")
        if "margin_prob" in self._own["add"]:
            values["margin_prob"] = calibration.prob(raw)
        if self._own["negative"] == "zero":
            values |= {column: np.maximum(values[column], 0) for column in ("margin", "margin_bin") if column in values}
        if self._own["negative"] == "flag":
            values[MARGIN_NEGATIVE] = raw < 0
        if "trace" in self._own["add"]:
            for side, column in enumerate(MARGIN_TRACES["trace"]):
                values[column] = [pair[side].astype(np.float32) for pair in traces]
        if "turn" in self._own["add"]:
            turns = [_turns(pair[0], pair[1], direction.reader.pooling) for pair in traces]
            values |= dict(zip(MARGIN_TRACES["turn"], np.array(turns, np.int32).reshape(-1, 5).T, strict=True))
        values[MARGIN_MARKS] = [mark(direction)] * len(raw)
        return values


def _turns(chosen: np.ndarray, rejected: np.ndarray, pooling: str) -> tuple[int, ...]:
    """The columns of `"turn"`, of the traces of a pair; of a row without any, what says nothing."""
    a, b = turn_of(chosen), turn_of(rejected)
    settled = settled_after(running_margin(running(chosen, pooling), running(rejected, pooling))) if len(chosen) else 0
    return a.token, a.sign, b.token, b.sign, settled


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
    pooling, eos = direction.reader.pooling, direction.reader.eos
    if "turn" in add and (pooling == "mean_all" or (pooling == "last" and eos != "none")):
        raise ValueError(
            f'`add=["turn"]` follows the score through a response, and {which} pools what is no part of it '
            f'(`pooling={pooling!r}`, `eos={eos!r}`); leave it out, take `add=["trace"]`, or fit a direction with '
            '`pooling="mean"`'
        )
    needs = {"margin_bin": ("bins",), "margin_prob": ("link", "logit")}
    for column in [column for column in add if column in needs]:
        if not set(needs[column]) & set(calibration.kinds):
            kinds = " or ".join(f"`{kind}`" for kind in needs[column])
            raise ValueError(
                f"`{column}` needs a direction with a {kinds} calibration, {which} has {held}; {anew}, or leave the "
                "column out of `add`"
            )
