"""Rows are read alike whatever shows them, and a text that cannot be read is blamed on the column that it stands in."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
from datasets import Dataset

from legend_hf import LegendMarginFn, RowError, annotate, fit_direction
from legend_hf.directions.induce import pairs_from_labels, pairs_with_refusal, sample_questions
from legend_hf.preferences.corr_at_k import corr_at_k
from legend_hf.preferences.similarity import PairSimilarityFn
from legend_hf.reading.formats import Conversation, batches_of, conversation, read_pairs
from legend_hf.reading.rows import encode_pairs, encode_rows, of_responses
from legend_hf.reading.templates import TextError
from legend_hf.reports.ladder import ladder_check
from legend_hf.reports.report import report
from legend_hf.reports.stability import stability_of

TOPICS = ["soap", "tea", "jam", "salt", "flour", "ink"]
ROWS = Dataset.from_list(
    [
        {
            "prompt": f"Eat {t}?",
            "chosen": f"No {t}.",
            "rejected": f"All the {t}.",
            "responses": [f"No {t}.", f"{t}?", f"All the {t}."],
            "response": f"{'No' if i % 2 else 'All the'} {TOPICS[i // 2]}.",
            "question": f"Eat {TOPICS[i // 2]}?",
            "harm": 1 - i % 2,
            "category": "ab"[i % 2],
            "k": 2,
            "request": f"Eat {t}?",
            "corrected": bool(i % 2),
        }
        for i, t in enumerate(TOPICS)
    ]
)
READS = {
    "fit_direction": lambda rows, d: fit_direction(rows, model=str(d.model_path), layer=1).vector.tolist(),
    "stability_of": lambda rows, d: stability_of(rows, d),
    "report": lambda rows, d: (
        report(None, direction=d, stability_pairs=rows, category_column="category").directions[0].coverage
    ),
    "ladder_check": lambda rows, d: ladder_check(d, rows),
    "sample_questions": lambda rows, d: sample_questions(rows, per_category=2).with_format(None).to_list(),
    "pairs_from_labels": lambda rows, d: pairs_from_labels(rows, prompt_column="question").to_list(),
    "pairs_with_refusal": lambda rows, d: list(pairs_with_refusal(rows, harmful_column="rejected")),
    "corr_at_k": lambda rows, d: corr_at_k(rows),
    "annotate": lambda rows, d: annotate(rows, d).with_format(None)["margin"][:],
}


@pytest.fixture(scope="module")
def direction(tiny_llama):
    return fit_direction(ROWS.to_list(), model=str(tiny_llama), layer=1)


@pytest.mark.parametrize("reads", READS)
def test_the_same_rows_are_read_whatever_format_shows_them(direction, reads):
    expected = READS[reads](ROWS, direction)
    for shown in (
        *(ROWS.with_format(kind) for kind in ("arrow", "pandas", "numpy", "torch")),
        ROWS.with_format("numpy", columns=["harm"]),
        ROWS.with_transform(lambda batch: {"harm": batch["harm"]}),
    ):
        assert READS[reads](shown, direction) == expected, shown.format["type"]


def test_batches_are_rows_as_they_are_stored():
    rows = ROWS.to_list()
    for given in (rows, iter(rows), ROWS, ROWS.with_format("arrow"), ROWS.to_iterable_dataset().with_format("torch")):
        batches = list(batches_of(given, 4))
        assert [first for first, _ in batches] == [0, 4]
        assert [value for _, batch in batches for value in batch["responses"]] == [row["responses"] for row in rows]
    assert [batch for _, batch in batches_of([{"a": 1}, {"b": 2}])] == [{"a": [1, None], "b": [None, 2]}]
    with pytest.raises(RowError, match="row 5: given 'no row'"):
        list(batches_of([*rows[:5], "no row"], 4))


def encode(conversations: list[Conversation]) -> list[str | TextError]:
    said = [str(one.response[-1]["content"]) for one in conversations]
    return [TextError("too long") if len(text) > 9 else text.upper() for text in said]


def test_encoded_rows_are_the_rows_and_a_refused_text_refuses_its_row():
    short, long = conversation("Why?", "Because."), conversation("Why?", "Because of rain.")
    before = RowError(8, "prompt", "was refused")
    rows = of_responses([(short, short, short), before, (short, long, long), ()], "answers")
    got = encode_rows(encode, rows, first_row=7)
    assert got[0] == ("BECAUSE.",) * 3
    assert got[1] is before
    assert str(got[2]) == "row 9, column `answers[1]`: too long"
    assert got[3] == ()
    assert encode_rows(encode, []) == []


def test_pairs_that_can_be_read_come_with_their_texts_and_the_others_are_refused_or_left_out():
    rows = [{"prompt": "Why?", "chosen": "Rain.", "rejected": side} for side in ("Sun.", None, "Because of the sun.")]
    pairs = list(read_pairs(rows))
    kept = encode_pairs(encode, pairs)
    assert [(pair.chosen.response[0]["content"], sides) for pair, sides in kept] == [("Rain.", ("RAIN.", "SUN."))]
    with pytest.raises(RowError, match="row 1, column `rejected`"):
        list(read_pairs(rows, on_error="raise"))
    with pytest.raises(RowError, match="row 2, column `rejected`: too long"):
        encode_pairs(encode, [pairs[0], pairs[0], pairs[2]], on_error="raise")
    assert len(encode_pairs(encode, [pairs[0], pairs[0]], on_error="raise")) == 2


# PKU's columns, whichever of the two is the safer one.
@pytest.mark.parametrize(
    ("safer", "long"), [(0, "response_0"), (0, "response_1"), (1, "response_0"), (1, "response_1")]
)
def test_the_column_that_is_blamed_is_one_that_the_row_has(direction, safer, long):
    good = {"prompt": "Eat tea?", "response_0": "No.", "response_1": "All of it.", "safer_response_id": safer}
    rows = Dataset.from_list([good, {**good, "prompt": "Eat jam?", long: "and more " * 600}])
    folder = str(direction.model_path)
    for read in (
        lambda: annotate(rows, direction),
        lambda: rows.map(LegendMarginFn(direction), batched=True),
        lambda: fit_direction(rows, model=folder, layer=1),
    ):
        with pytest.raises(RowError, match=rf"row 1, column `{long}`: the response needs"):
            read()
    assert len(annotate(rows, PairSimilarityFn(direction))) == 2, "the control: it cuts"


def test_a_stopped_or_refused_report_advises_only_what_there_is(direction, monkeypatch):
    def refuses(*args, **kwargs):
        raise ValueError("pass `trust_remote_code=True` if you trust it")

    monkeypatch.setattr(sys.modules["legend_hf.reports.report"], "stability_of", refuses)
    with pytest.raises(ValueError, match="trust_remote_code") as caught:
        report(None, direction=direction, stability_pairs=ROWS)
    assert caught.value.__notes__ == [
        "`report` has no `trust_remote_code`; `ladder_check` and `stability_of` have, alone"
    ]


def test_a_ladder_check_goes_on_from_its_store(direction, tmp_path, monkeypatch):
    from legend_hf.reading.reader import OpenReader

    store = tmp_path / "scores.sqlite"
    first = ladder_check(direction, ROWS, store=store, trust_remote_code=True)
    monkeypatch.setattr(
        OpenReader, "read", lambda self, texts, *_, **__: iter(()) if not texts else pytest.fail("read")
    )
    assert ladder_check(direction, ROWS, store=store) == first
    with pytest.raises(pytest.fail.Exception):
        ladder_check(replace(direction), ROWS)
