"""The trunk of all transforms: what holds for each of them, and for a fourth that is defined here in a few lines."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, List

from legend_hf import LegendMarginFn, LegendScoreFn, RowError, annotate, fit_direction
from legend_hf.directions.calibrate import Calibration, fit_calibration
from legend_hf.directions.direction import Facts
from legend_hf.margins.transform import Transform
from legend_hf.preferences.similarity import PairSimilarityFn
from legend_hf.reading.formats import Columns, Conversation, pairs_from_batch, response_length
from legend_hf.reading.rows import Row, of_pairs
from legend_hf.reading.templates import TextError

# -- A fourth transform --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lengths:
    """Reads without a model: how long is a response, in some unit?"""

    unit: float
    names: ClassVar = ("",)
    how_to_go_on: ClassVar = "it costs nothing to begin anew"

    def open(self, rank: int | None = None) -> Lengths:
        return self

    def encode(self, conversations: Sequence[Conversation]) -> list[int | TextError]:
        lengths = [response_length(conversation) for conversation in conversations]
        return [length if length < 500 else TextError(f"{length} characters are too many") for length in lengths]

    def read(self, texts: Sequence[int]) -> dict[str, np.ndarray]:
        return {"": np.array(texts, dtype=np.float64) / self.unit}

    def not_finite(self, name: str) -> str:
        return "its length is no number"

    def deciding(self) -> list[Any]:
        return ["lengths, first edition", self.unit]

    def state(self) -> tuple[dict[str, Any], tuple[bytes, ...]]:
        return asdict(self), ()

    @classmethod
    def from_state(cls, values: Mapping[str, Any], vectors: Sequence[bytes]) -> Lengths:
        return cls(**values)


class LengthFn(Transform):
    """Adds how much longer the chosen response is, and with `both` the lengths of the two."""

    may_write: ClassVar = {"longer": "float32", "lengths": ["float32"]}
    status = "longer_status"

    def __init__(self, unit: float = 1.0, *, both: bool = False, on_error: str = "raise", overwrite: bool = False):
        super().__init__(Columns(), on_error=on_error, overwrite=overwrite, own={"both": both})
        self._read_with(Lengths(unit))

    def _writes(self) -> list[str]:
        return ["longer", *(["lengths"] if self._own["both"] else [])]

    def _rows(self, batch: Any, first_row: int) -> list[Row | RowError]:
        return of_pairs(pairs_from_batch(batch, self._columns, first_row=first_row))

    def _make(self, name: str, numbers: Sequence[np.ndarray | None], batch: Any) -> dict[str, Any]:
        pairs = np.array([(0.0, 0.0) if pair is None else pair for pair in numbers])
        made: dict[str, Any] = {"longer": (pairs[:, 0] - pairs[:, 1]).astype(np.float32)}
        return made | ({"lengths": list(pairs.astype(np.float32))} if self._own["both"] else {})


# -- What holds for each ------------------------------------------------------------------------------------

TOPICS = ["bread", "bikes", "paint", "tents", "maps", "soup", "songs", "rain", "chess", "tea"]
PAIRS = [
    {"prompt": f"Tell me about {t}.", "chosen": f"Gladly: {t} with care.", "rejected": f"No idea, who needs {t}"}
    for t in TOPICS
]
ROWS = [{**row, "responses": [row["chosen"], row["rejected"]]} for row in PAIRS]
BAD = {**ROWS[0], "chosen": " ", "responses": ["Well.", " "]}
# What is written, beside what every one of them takes.
MAKES: dict[str, Any] = {
    "margin": lambda d, **given: LegendMarginFn(d, **given),
    "all margins": lambda d, **given: LegendMarginFn(
        {"a": d, "b": d}, add=["margin_bin", "margin_prob"], negative="flag", **given
    ),
    "scores": lambda d, **given: LegendScoreFn(d, add=["choice_probs"], **given),
    "similarity": lambda d, **given: PairSimilarityFn(d, **given),
    "fourth": lambda d, **given: LengthFn(10.0, both=True, **given),
}


@pytest.fixture(scope="module")
def direction(tiny_llama):
    fitted = fit_direction(PAIRS, model=str(tiny_llama), layer=2)
    raw = fitted.calibration.scale * (np.random.default_rng(0).standard_normal(200) + 1.0) / 4
    return replace(fitted, calibration=fit_calibration("unit", raw))


@pytest.fixture(params=MAKES)
def make(request, direction):
    return lambda **given: MAKES[request.param](direction, **given)


def values(rows):
    """Plain columns; a stream's rows are put together."""
    if not isinstance(rows, Dataset):
        listed = list(rows)
        return {name: [row[name] for row in listed] for name in listed[0]}
    return rows.with_format(None)[:]


def alike(got, expected):
    assert list(got) == list(expected)
    for name, column in expected.items():
        numbers = isinstance(column[0], float) or (isinstance(column[0], list) and isinstance(column[0][0], float))
        for one, other in zip(got[name], column, strict=True):
            one = one.tolist() if isinstance(one, np.ndarray) else one  # out of a stream
            assert one == (pytest.approx(other, abs=1e-5) if numbers else other), name


def test_every_way_to_call_it_gives_the_same_columns(make):
    ds, fn = Dataset.from_list(ROWS), make()
    expected = values(ds.map(fn, batched=True))
    assert list(expected) == [*ds.column_names, *fn.columns]
    done = ds.map(fn, batched=True)
    assert done.features == fn.features(ds.features)
    alike(values(annotate(ds, fn)), expected)
    alike(values(ds.map(fn, batched=True, batch_size=3)), expected)
    alike(values(ds.to_iterable_dataset().map(fn, batched=True, features=fn.features(ds.features))), expected)
    splits = annotate(DatasetDict(train=ds, test=ds.select([])), fn)
    assert splits["test"].features == splits["train"].features == fn.features(ds.features)
    for kind in ("arrow", "pandas", "numpy", "torch"):
        alike(values(ds.with_format(kind).map(fn, batched=True)), expected)


@pytest.mark.slow
def test_workers_give_the_same_columns(make):
    ds, fn = Dataset.from_list(ROWS), make()
    alike(values(annotate(ds, fn, num_proc=2)), values(ds.map(fn, batched=True)))


def test_a_bad_row_is_refused_or_skipped_and_takes_nothing_from_others(make, monkeypatch):
    ds = Dataset.from_list([*ROWS[:2], BAD, *ROWS[2:4]])
    with pytest.raises(RowError, match=r"row 2, column `(chosen|responses\[1\])`"):
        annotate(ds, make(), batch_size=2)
    fn = make(on_error="skip")
    done = annotate(ds, fn)
    good = ds.select([0, 1, 3, 4])
    alike(values(done.select([0, 1, 3, 4])), values(good.map(fn, batched=True)))
    said = done[fn.columns[-1]][:]
    assert [one == "ok" for one in said] == [True, True, False, True, True]
    for name in fn.columns:
        numbers = done[name][2]
        assert numbers is not None
        assert isinstance(numbers, str) or np.isfinite(numbers).all()


def test_its_pickle_is_small_and_the_same_whenever_it_is_made(make):
    fn = make(on_error="skip")
    before = pickle.dumps(fn)
    Dataset.from_list(ROWS).map(fn, batched=True)
    copy = pickle.loads(before)
    assert pickle.dumps(fn) == before == pickle.dumps(copy) == pickle.dumps(make(on_error="skip"))
    assert copy.fingerprint() == fn.fingerprint() != make().fingerprint()
    assert copy.columns == fn.columns
    each = len(fn._reading.names)
    assert len(before) < 1024 * each + sum(map(len, fn._reading.state()[1])), "what is known of a fit stays at home"
    assert pickle.dumps(make()) != before


def test_what_is_known_of_a_fit_is_not_in_a_pickle(direction):
    searched = replace(direction.facts, search=({"layer": 1, "estimator": "pca", "accuracy": 0.5},) * 500)
    pickles = {len(pickle.dumps(LegendMarginFn(d))) for d in (direction, replace(direction, facts=searched))}
    assert len(pickles) == 1


def test_columns_are_overwritten_only_where_it_is_said(make):
    done = annotate(Dataset.from_list(ROWS), make())
    for again in (lambda: annotate(done, make()), lambda: done.map(make(), batched=True)):
        with pytest.raises(ValueError, match="already has `.*pass `overwrite=True`"):
            again()
    alike(values(annotate(done, make(overwrite=True))), values(done))
    alike(values(done.map(make(overwrite=True), batched=True)), values(done))


# -- What an earlier run left --------------------------------------------------------------------------------

EARLIER = {
    "margin": ({"add": ["margin_bin", "margin_prob"], "negative": "flag", "on_error": "skip"}, LegendMarginFn),
    "scores": ({"add": ["choice_probs"], "on_error": "skip"}, LegendScoreFn),
    "similarity": ({"on_error": "skip"}, PairSimilarityFn),
    "fourth": ({"both": True, "on_error": "skip"}, lambda d, **given: LengthFn(**given)),
}


@pytest.mark.parametrize("kind", EARLIER)
def test_no_column_of_an_earlier_run_is_left_beside_new_ones(direction, kind):
    given, transform = EARLIER[kind]
    before = annotate(Dataset.from_list(ROWS), transform(direction, **given))
    less = transform(direction, overwrite=True)
    left = less.left_over(before.column_names)
    assert set(left) == set(before.column_names) - set(ROWS[0]) - set(less.columns) != set()
    for rows in (before, before.to_iterable_dataset(), before.with_format("arrow")):
        done = annotate(rows, less)
        assert set(done.column_names) == {*ROWS[0], *less.columns}
        assert set(values(done)) == {*ROWS[0], *less.columns}
    with pytest.raises(ValueError, match=rf"has `{left[0]}`.* of an earlier run.*`dataset\.remove_columns\("):
        before.map(less, batched=True)
    assert set(before.remove_columns(left).map(less, batched=True).column_names) == {*ROWS[0], *less.columns}
    same = transform(direction, overwrite=True, **given)
    assert set(before.map(same, batched=True).column_names) == set(before.column_names), "the control"
    only_left = before.remove_columns(less.columns)
    with pytest.raises(ValueError, match="already has"):  # they would be taken for this run's
        annotate(only_left, transform(direction))


def test_columns_of_other_names_are_nobody_elses(direction):
    both = annotate(Dataset.from_list(ROWS), LegendMarginFn({"a": direction, "b": direction}, add=["margin_prob"]))
    again = annotate(both, LegendMarginFn({"a": direction}, overwrite=True))
    assert {"margin_b", "margin_prob_b"} <= set(again.column_names)
    assert "margin_prob_a" not in again.column_names


# -- What is said --------------------------------------------------------------------------------------------


def test_annotate_says_once_that_most_margins_are_of_one_size(direction, caplog):
    ds = Dataset.from_list(ROWS)
    direction = replace(direction, facts=Facts())  # fitted on so few prompts, it is doubtful, which is said too
    annotate(ds, LegendMarginFn(direction, scale="raw"))
    assert not caplog.messages, "the control"
    narrow = replace(direction, calibration=Calibration("unit", 1e-6))
    annotate(DatasetDict(train=ds, test=ds), LegendMarginFn(narrow))
    assert [m for m in caplog.messages if "of `margin` all 10 are of the size 1" in m] == caplog.messages[:1]
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("given", [len, None, LegendMarginFn, 3])
def test_what_is_no_transform_is_refused(given):
    with pytest.raises(ValueError, match="`fn` is .*allowed are a transform"):
        annotate(Dataset.from_list(ROWS), given)


def test_types_are_said_in_one_way(direction):
    fn = LengthFn(both=True)
    assert isinstance(fn.features(Dataset.from_list(ROWS).features)["lengths"], List)
    with pytest.raises(ValueError, match="`on_error` is 'drop'; allowed are 'raise', 'skip'"):
        LengthFn(on_error="drop")
