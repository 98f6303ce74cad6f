"""The columns `trace` and `turn`: what `Direction.trace` gives, whatever is asked besides, and the margins as before."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from builders import pair_rows
from datasets import Dataset, DatasetDict, List, Value, load_dataset
from test_trace import direction_of

from legend_hf import LegendMarginFn, annotate, save_annotated
from legend_hf.tracing import settled_after, turn_of

TRACES = ["chosen_trace", "rejected_trace"]
TURNS = ["chosen_turn", "chosen_turn_sign", "rejected_turn", "rejected_turn_sign", "pair_settled"]


@pytest.fixture(scope="module")
def direction(tiny_llama):
    return direction_of(tiny_llama, template="dialogue")


@pytest.fixture(scope="module")
def rows():
    some = pair_rows()
    some[1]["chosen"] = "Gladly — naïve 🙂 and long: " + "bikes need air, oil and some care. " * 4
    return Dataset.from_list([*some, some[0]])


def equal(a, b):
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture(scope="module")
def made(direction, rows):
    return rows.map(LegendMarginFn(direction, add=["trace", "turn"]), batched=True)


def test_a_trace_is_that_of_the_direction_and_the_margins_are_as_without(direction, rows, made):
    plain = rows.map(LegendMarginFn(direction), batched=True)
    for column in plain.column_names:
        assert made[column][:] == plain[column][:], column
    assert [made.features[column] for column in TRACES] == [List(Value("float32"))] * 2
    for row in made:
        pair = direction.trace_pair(row)
        for side, trace in (("chosen", pair.chosen), ("rejected", pair.rejected)):
            spread = trace.values.std()
            assert len(row[f"{side}_trace"]) == len(trace.ids)
            assert np.abs(np.array(row[f"{side}_trace"]) - trace.values).max() <= 1e-4 * spread
            assert np.mean(row[f"{side}_trace"]) == pytest.approx(row[f"{side}_score"], abs=1e-4 * spread)
            turn = turn_of(np.array(row[f"{side}_trace"]))
            assert (row[f"{side}_turn"], row[f"{side}_turn_sign"]) == (turn.token, turn.sign)
        assert row["pair_settled"] == settled_after(pair.running) == pair.settled


@pytest.mark.parametrize(
    "choices", [{"pooling": "last"}, {"pooling": "last", "eos": "append"}, {"pooling": "mean_all"}]
)
def test_other_poolings_write_the_responses_own_tokens(tiny_llama, rows, choices):
    direction = direction_of(tiny_llama, template="alpaca", **choices)
    plain = rows.map(LegendMarginFn(direction), batched=True)
    made = rows.map(LegendMarginFn(direction, add=["trace"]), batched=True)
    assert made["margin_raw"][:] == plain["margin_raw"][:]
    for row in made.select(range(2)):
        trace = direction.trace(row["prompt"], row["chosen"])
        assert np.abs(np.array(row["chosen_trace"]) - trace.values).max() <= 1e-4 * trace.values.std()
    if "eos" in choices or choices["pooling"] == "mean_all":
        with pytest.raises(ValueError, match=r"pools what is no part of it .* leave it out"):
            LegendMarginFn(direction, add=["turn"])


def test_batches_workers_streams_and_pickles_change_nothing(direction, rows, made):
    fn = LegendMarginFn(direction, add=["trace", "turn"])
    before = pickle.dumps(fn)
    for how in ({"batch_size": 1}, {"batch_size": 3, "num_proc": 2}):
        again = rows.map(fn, batched=True, **how)
        for column in TRACES:
            for a, b in zip(again[column], made[column], strict=True):
                assert np.abs(np.array(a) - b).max() <= 1e-4 * np.std(b)
    assert pickle.dumps(fn) == before
    assert rows.map(pickle.loads(before), batched=True)["chosen_trace"][:] == made["chosen_trace"][:]
    stream = rows.to_iterable_dataset().map(fn, batched=True, features=fn.features(rows.features))
    assert equal([row["chosen_trace"] for row in stream], made["chosen_trace"])
    assert LegendMarginFn(direction, add=["trace"]).fingerprint() != LegendMarginFn(direction).fingerprint()
    assert (
        rows.with_format("arrow").map(fn, batched=True).with_format(None)["chosen_trace"][:] == made["chosen_trace"][:]
    )


def test_a_row_that_is_skipped_has_empty_ones(direction, rows):
    bad = Dataset.from_list([*rows.to_list()[:2], {"prompt": "Soup?", "chosen": "", "rejected": "No."}])
    made = bad.map(LegendMarginFn(direction, add=["trace", "turn"], on_error="skip"), batched=True)
    assert [made[2][column] for column in (*TRACES, *TURNS)] == [[], [], -1, 0, -1, 0, 0]
    assert made[0]["chosen_trace"]
    only = bad.select([2]).map(LegendMarginFn(direction, add=["trace"], on_error="skip"), batched=True)
    assert only[0]["chosen_trace"] == []


def test_several_directions_each_write_theirs(direction, tiny_llama, rows, made):
    deep = direction_of(tiny_llama, template="dialogue", layer=3)
    both = rows.map(LegendMarginFn({"a": direction, "b": deep}, add=["trace"]), batched=True)
    for row, alone in zip(both, made, strict=True):
        spread = np.std(alone["chosen_trace"])
        assert np.abs(np.array(row["chosen_trace_a"]) - alone["chosen_trace"]).max() <= 1e-4 * spread
        assert np.abs(np.array(row["chosen_trace_b"]) - alone["chosen_trace"]).max() > 0.1 * spread


def test_with_a_store_scores_are_those_of_the_store(direction, rows, made, tmp_path):
    store = tmp_path / "scores.sqlite"
    first = rows.map(LegendMarginFn(direction, store=store), batched=True)
    again = rows.map(LegendMarginFn(direction, store=store, add=["trace"]), batched=True, batch_size=1)
    assert again["chosen_score"][:] == first["chosen_score"][:]
    assert all(len(a) == len(b) for a, b in zip(again["chosen_trace"], made["chosen_trace"], strict=True))


def test_annotated_saved_and_found_again_with_the_word_that_made_it(direction, rows, made, tmp_path):
    done = annotate(DatasetDict(train=rows, test=rows.select([])), LegendMarginFn(direction, add=["trace", "turn"]))
    assert equal(done["train"]["chosen_trace"], made["chosen_trace"])
    assert done["test"].features == done["train"].features
    save_annotated(done, tmp_path / "saved", direction=direction, source="some/rows")
    back = load_dataset(str(tmp_path / "saved"), split="train")
    assert equal(back["chosen_trace"], done["train"]["chosen_trace"])
    assert "add=['trace', 'turn']" in (tmp_path / "saved" / "README.md").read_text().replace('"', "'")
    with pytest.raises(ValueError, match="of an earlier run"):
        back.map(LegendMarginFn(direction, overwrite=True), batched=True)
    assert not set(TRACES) & set(annotate(back, LegendMarginFn(direction, overwrite=True)).column_names)


def test_what_cannot_be_added_is_refused(direction):
    with pytest.raises(ValueError, match="'margin_bin' and 'margin_prob' and 'trace' and 'turn'"):
        LegendMarginFn(direction, add=["traces"])
    with pytest.raises(ValueError, match="in a list"):
        LegendMarginFn(direction, add="trace")
