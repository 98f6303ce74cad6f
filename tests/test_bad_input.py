"""Bad input loses nothing: an error that says where and what to do, or finite columns and a status that says why.

Every case goes the ways that rows really take: `map`, `annotate`, and a direct call where Arrow cannot hold it.

pytest tests/test_bad_input.py
"""

from __future__ import annotations

import contextlib
import copy
import datetime
import json
import math
import reprlib
import resource
import time
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from builders import pair_rows
from datasets import Dataset, DatasetDict, Image, Value
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from legend_hf import LegendMarginFn, LegendScoreFn, RowError, annotate, fit_direction, save_annotated
from legend_hf.preferences import PairSimilarityFn
from legend_hf.reading import reader, templates
from legend_hf.reading.formats import conversation, pairs_from_batch, responses_from_batch
from legend_hf.reading.reader import Runtime, open_reader
from legend_hf.reading.templates import TextError, Tokens, render, tokenize
from legend_hf.reports.report import report

NUMBERS = ["margin", "margin_raw", "chosen_score", "rejected_score"]
LONGEST_STATUS = 1000  # characters
TOPICS = ["bread", "bikes", "paint", "tents", "maps", "soup", "songs", "rain", "chess", "tea", "ropes", "lamps"]
PAIRS = pair_rows(TOPICS, how="is best done with care")
# A template that shows all that a row may bring: tools, keyword arguments, tool calls.
CHAT = (
    "{{ bos_token }}{% if tools %}{{ tools | tojson }}{% endif %}{% if mood %}{{ mood | upper }}{% endif %}"
    "{% if share is defined %}{{ 1 // share }}{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.tool_calls %}{% for c in m.tool_calls %}"
    "{{ c.function.name }}({{ c.function.arguments | tojson }}){% endfor %}{% endif %}</s>{% endfor %}"
)


@pytest.fixture(scope="module")
def direction(tiny_llama):
    return fit_direction(PAIRS, model=str(tiny_llama))


@pytest.fixture(scope="module")
def chat_direction(tiny_llama, tmp_path_factory):
    """The same model, whose tokenizer has a chat template."""
    from transformers import AutoModel, AutoTokenizer

    folder = tmp_path_factory.mktemp("tiny_chat")
    AutoModel.from_pretrained(tiny_llama).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    return fit_direction(PAIRS, model=str(folder))


@pytest.fixture
def reads(monkeypatch):
    """How many texts each forward pass was given."""
    counts: list[int] = []
    real = reader.OpenReader.read

    def counted(self, texts, *args, **kwargs):
        counts.append(len(texts))
        return real(self, texts, *args, **kwargs)

    monkeypatch.setattr(reader.OpenReader, "read", counted)
    return counts


def batch(*rows: dict[str, Any]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def check_columns(columns: Any, rows: int) -> None:
    """What is promised of the columns of any batch: as many values as rows, finite, and a status for each."""
    for name in NUMBERS:
        values = np.asarray(columns[name])
        assert values.shape == (rows,)
        assert values.dtype.kind == "f"
        assert np.isfinite(values).all()
    status = columns["margin_status"]
    assert len(status) == rows
    for said, *numbers in zip(status, *(columns[name] for name in NUMBERS), strict=True):
        assert isinstance(said, str)
        assert 0 < len(said) < LONGEST_STATUS
        pa.array([said])  # Arrow can hold it
        assert said == "ok" or not any(numbers)


def test_the_check_of_columns_can_fail():  # control of all below
    sound = {**dict.fromkeys(NUMBERS, np.zeros(2, dtype=np.float32)), "margin_status": ["ok", "why"]}
    check_columns(sound, 2)
    for broken in (
        {"margin": np.array([0, np.nan])},
        {"margin": np.zeros(3)},
        {"margin": np.array([0.0, 1.0])},
        {"margin_status": ["ok", ""]},
        {"margin_status": ["ok", None]},
        {"margin_status": ["ok", "x" * LONGEST_STATUS]},
        {"margin_status": ["ok"]},
    ):
        with pytest.raises((AssertionError, ValueError)):
            check_columns({**sound, **broken}, 2)
    with pytest.raises(UnicodeEncodeError):
        check_columns({**sound, "margin_status": ["ok", "\ud800"]}, 2)


# -- Each case ------------------------------------------------------------------------------------------------------

ASK = {"role": "user", "content": "Where is the key?"}
GOOD = {"role": "assistant", "content": "On the hook, to the left."}
BAD = {"role": "assistant", "content": "Break the door."}
TOOL = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"function": {"name": "find", "arguments": {"what": "key"}}}],
}
TEXT = {"prompt": "Where is the key?", "chosen": "On the hook.", "rejected": "Break the door."}
TALK = {"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]}
WHOLE = {"chosen": [ASK, GOOD], "rejected": [ASK, BAD]}
HH = {
    side: "".join(f"\n\n{'Human' if m is ASK else 'Assistant'}: {m['content']}" for m in WHOLE[side]) for side in WHOLE
}
PKU = {"prompt": "Where?", "response_0": "There.", "response_1": "Break it.", "safer_response_id": 0}
BIG = "word and more " * 750_000  # 10 MB
IMAGE = {"role": "user", "content": [{"type": "image", "url": "door.png"}, {"type": "text", "text": "What is it?"}]}
PARTS = {"role": "user", "content": [{"type": "text", "text": "What is it?", "url": None}]}

# name: (a sound row, what is bad about another, the column, what the error says: the fault and the remedy)
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], str | None, str]] = {
    "empty": (TEXT, {"chosen": ""}, "chosen", r"'' is empty or only whitespace; .* fill it in, or skip"),
    "whitespace": (TEXT, {"rejected": " \n\t "}, "rejected", "is empty or only whitespace; .* fill it in"),
    "empty message": (TALK, {"chosen": [{**GOOD, "content": ""}]}, "chosen", "is empty or only whitespace; .* fill it"),
    "empty dialogue turn": (HH, {"chosen": HH["chosen"].rpartition(" On")[0]}, "chosen", "is empty or only whitespace"),
    "empty PKU response": (PKU, {"response_1": ""}, "response_1", "is empty or only whitespace; .* fill it in"),
    "None": (TEXT, {"chosen": None}, "chosen", "given None; allowed is a string or a list of messages; fill it in"),
    "None as prompt": (TEXT, {"prompt": None}, "prompt", "given None; allowed is a string .*; fill it in"),
    "None as messages": (TALK, {"rejected": None}, "rejected", "given None; allowed is a string .*; fill it in"),
    "None as content": (TALK, {"prompt": [{**ASK, "content": None}]}, "prompt", "has no `content`, or None; .* fill it"),
    "number": (TEXT, {"chosen": 5}, "chosen", r"given 5 \(int\); allowed is a string .*; convert it"),
    "truth value": (TEXT, {"prompt": True}, "prompt", r"given True \(bool\); allowed is a string .*; convert it"),
    "list of strings": (TALK, {"chosen": ["yes"]}, "chosen", "message 0 is 'yes' .str.; allowed is a dict .*; convert it"),
    "strings and messages": (TEXT, {"chosen": {"text": "yes"}}, "chosen", "given {'text': 'yes'} .* convert it"),
    "response longer than the window": (TEXT, {"rejected": "word " * 600}, "rejected", "needs .* tokens .* is 512; shorten it"),
    "messages longer than the window": (TALK, {"chosen": [{**GOOD, "content": "key " * 900}]}, "chosen", "is 512; shorten it"),
    "PKU response longer than the window": (PKU, {"response_0": "key " * 900}, "response_0", "is 512; shorten it"),
    "10 MB response": (TEXT, {"chosen": BIG}, "chosen", "needs at least .* tokens .* is 512; shorten it"),
    "10 MB of whitespace": (TEXT, {"chosen": " " * 10_000_000}, "chosen", "is empty or only whitespace; .* fill it in"),
    "10 MB without a turn": (HH, {"chosen": f"\n\nHuman: {BIG}"}, "chosen", "ends with a turn of `user`; .* cut off"),
    "unknown role": (TALK, {"prompt": [{**ASK, "role": "human"}]}, "prompt", "has the role 'human'; .*`system`.*; rename it"),
    "no role": (TALK, {"prompt": [{"from": "human", "value": "Where?"}]}, "prompt", "and no `role`; allowed .*; rename it"),
    "image": (TALK, {"prompt": [IMAGE]}, "prompt", "has the part {'type': 'image'.*; allowed is text only.*; drop the row"),
    "image among parts": ({**TALK, "prompt": [PARTS]}, {"prompt": [IMAGE]}, "prompt", "has the part .*image.*; drop the row"),
    "ends with the user": (WHOLE, {"chosen": [ASK, GOOD, ASK]}, "chosen", "ends with a turn of `user`; .* cut off"),
    "broken tools": ({**TALK, "tools": "[]"}, {"tools": '[{"name": '}, "tools", "given '.* the same list as valid JSON; write"),
    "tools of numbers": ({**TALK, "tools": "[]"}, {"tools": "[1]"}, "tools", "given '.1.'; allowed is a list of tool schemas"),
    "broken arguments": (
        {**TALK, "chat_template_kwargs": None},
        {"chat_template_kwargs": '{"mood": '},
        "chat_template_kwargs",
        "allowed is a dict of keyword arguments for the chat template; make it a dict",
    ),
    "choice of a third": (PKU, {"safer_response_id": 2}, "safer_response_id", "given 2; allowed is 0 or 1.*; fill it in"),
    "choice of none": (PKU, {"safer_response_id": None}, "safer_response_id", "given None; allowed is 0 or 1.*; fill it in"),
}  # fmt: skip
# What Arrow cannot hold.
ONLY_DIRECT: dict[str, tuple[dict[str, Any], dict[str, Any], str | None, str]] = {
    "lone surrogate": (TEXT, {"chosen": "a\ud800b"}, "chosen", r"lone surrogate '\\ud800' at character 1; .*; replace it"),
    "lone surrogate as prompt": (TEXT, {"prompt": "\udfff"}, "prompt", "lone surrogate .*; replace it"),
    "lone surrogate in a message": (TALK, {"prompt": [{**ASK, "content": "\udfff"}]}, "prompt", "lone surrogate .*; replace"),
    "lone surrogate as role": (TALK, {"prompt": [{**ASK, "role": "\udfff"}]}, "prompt", "has the role '.udfff'; .*; rename"),
    "lone surrogate as key": (TALK, {"prompt": [{**ASK, "\ud800": 1}]}, "prompt", "a key has the lone surrogate .*; replace"),
    "lone surrogates as only keys": (TALK, {"prompt": [{"\ud800": 1}]}, "prompt", "has the keys .* and no `role`; .* rename"),
    "lone surrogate in tools": ({**TALK, "tools": None}, {"tools": [{"name": "\udfff"}]}, "tools", "lone surrogate .*; repl"),
    "a key that does not print": (TALK, {"prompt": [{10**5000: 1}]}, "prompt", "has the keys .* and no `role`; .* rename"),
    "bytes": (TEXT, {"chosen": b"yes"}, "chosen", r"given b'yes' \(bytes\); allowed is a string .*; convert it"),
    "NaN": (TEXT, {"chosen": math.nan}, "chosen", "given nan; allowed is a string .*; fill it in"),
    "object": (TEXT, {"chosen": object()}, "chosen", r"given <object .*\(object\); allowed is a string .*; convert it"),
    "tool calls that are no JSON": (
        TALK,
        {"prompt": [ASK, {**CALL, "tool_calls": [{"function": object()}]}]},
        "chosen",
        "`tool_calls` cannot be written as JSON: .*; make it plain JSON, or drop it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [*CASES, *ONLY_DIRECT])
def test_a_bad_row_is_named_before_its_batch_is_read_and_can_be_skipped(direction, reads, name):
    sound, change, column, message = {**CASES, **ONLY_DIRECT}[name]
    rows = [sound, sound, sound, {**sound, **change}, sound]
    fn, skipping = LegendMarginFn(direction), LegendMarginFn(direction, on_error="skip")
    ways = {"call": (fn, lambda f: f(batch(*rows)))}
    if name in CASES:
        ds = Dataset.from_list(rows, on_mixed_types="use_json")
        ways["map"] = fn, lambda f: ds.map(f, batched=True)
        ways["annotate"] = fn, lambda f: annotate(ds, f, batch_size=2)
    for raising, way in ways.values():
        with pytest.raises(RowError, match=message) as caught:
            way(raising)
        assert (caught.value.row, caught.value.column) == (3, column)
        assert str(caught.value).startswith("row 3, column `")
        assert len(str(caught.value)) < LONGEST_STATUS
    assert reads == [], "no text was read, not even of the batch before"
    for _, way in ways.values():
        out = way(skipping)
        out = {key: out[key][:] for key in (*NUMBERS, "margin_status")}
        check_columns(out, 5)
        status = out["margin_status"]
        assert [said == "ok" for said in status] == [True, True, True, False, True]
        assert f"column `{column}`: {caught.value.reason}".startswith(status[3])
        assert not status[3].endswith('`on_error="skip"`'), "that is what was done"
        alone = skipping(batch(sound))
        for key in NUMBERS:
            np.testing.assert_allclose(np.delete(np.asarray(out[key]), 3), alone[key][0], atol=1e-5)
    assert reads, "the control: what is sound was read"


def test_every_bad_row_of_a_batch_is_skipped_and_the_first_is_named(direction, reads):
    rows = [{**TEXT, **change} for sound, change, *_ in {**CASES, **ONLY_DIRECT}.values() if sound is TEXT]
    out = LegendMarginFn(direction, on_error="skip")(batch(TEXT, *rows, TEXT))
    check_columns(out, len(rows) + 2)
    assert [said == "ok" for said in out["margin_status"]] == [True, *[False] * len(rows), True]
    assert reads == [2]
    out = LegendMarginFn(direction, on_error="skip")(batch(*rows))
    check_columns(out, len(rows))
    assert "ok" not in out["margin_status"]
    with pytest.raises(RowError, match="row 1, column `chosen`"):
        LegendMarginFn(direction)(batch(TEXT, *rows, TEXT))


def test_annotate_names_the_row_of_the_dataset_and_its_split(direction, reads):
    rows = [*[TEXT] * 7, {**TEXT, "rejected": ""}, TEXT]
    with pytest.raises(RowError, match="^row 7, column `rejected`") as caught:
        annotate(DatasetDict(a=Dataset.from_list([TEXT]), b=Dataset.from_list(rows)), direction, batch_size=2)
    whose = '`on_error="skip"` is an option of `LegendMarginFn`: give one of those'
    assert caught.value.__notes__ == ["in split 'b'", whose]
    assert reads == [], "not even of the split before"


def test_named_columns_are_the_ones_that_are_named(direction):
    names = {"prompt": "question", "chosen": "better", "rejected": "worse"}
    fn = LegendMarginFn(direction, **{f"{ours}_column": theirs for ours, theirs in names.items()})
    for change, column in (("", "worse"), ("word " * 600, "worse")):
        row = {names[key]: value for key, value in {**TEXT, "rejected": change}.items()}
        with pytest.raises(RowError, match=f"row 0, column `{column}`"):
            fn(batch(row))
    first_is_better = {**PKU, "response_1": "word " * 600}
    for safer in (0, 1):
        with pytest.raises(RowError, match="row 0, column `response_1`: the response needs"):
            LegendMarginFn(direction)(batch({**first_is_better, "safer_response_id": safer}))


def test_a_stream_skips_too(direction):
    rows = [TEXT, {**TEXT, "chosen": None}, TEXT]
    fn = LegendMarginFn(direction, on_error="skip")
    out = list(annotate(Dataset.from_list(rows).to_iterable_dataset(), fn, batch_size=2))
    check_columns(batch(*out), 3)
    assert [row["margin_status"] == "ok" for row in out] == [True, False, True]
    with pytest.raises(RowError, match="column `chosen`: given None"):
        list(annotate(Dataset.from_list(rows).to_iterable_dataset(), direction))


# -- Shapes of datasets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize("sound", [TEXT, TALK, HH, PKU], ids=["text", "talk", "hh", "pku"])
def test_no_row_and_one_row(direction, reads, sound, on_error):
    fn = LegendMarginFn(direction, on_error=on_error)
    one = Dataset.from_list([sound])
    for out in (annotate(one, fn), one.map(fn, batched=True), one.map(fn, batched=True, batch_size=1)):
        assert len(out) == 1
        assert out["margin_raw"][0] != 0
    none = one.select([])
    read = len(reads)
    out = annotate(none, fn)
    assert (len(out), out.features) == (0, annotate(one, fn).features)
    assert fn({name: [] for name in sound}).keys() == set(fn.columns)
    assert fn(none[:]).keys() == set(fn.columns)
    assert len(none.map(fn, batched=True)) == 0  # without columns: `map` does not call a function for no rows
    assert sum(reads[read:]) == 2, "the control, which is the one row that was annotated again"


def test_rows_one_by_one(direction):
    rows = [TEXT, {**TEXT, "chosen": ""}, {**TEXT, "prompt": "Why?"}, {**TEXT, "rejected": None}]
    fn = LegendMarginFn(direction, on_error="skip")
    ds = Dataset.from_list(rows)
    out, together = ds.map(fn, batched=True, batch_size=1), ds.map(fn, batched=True)
    check_columns(out, 4)
    assert out["margin_status"][:] == together["margin_status"][:]
    for name in NUMBERS:
        np.testing.assert_allclose(out[name][:], together[name][:], atol=1e-5)
    with pytest.raises(RowError, match="row 1, column `chosen`"):
        annotate(ds, direction, batch_size=1)


def test_identical_sides_have_no_margin(direction, chat_direction):
    rows = [
        TEXT,
        {**TEXT, "rejected": TEXT["chosen"]},
        {**TEXT, "prompt": "", "rejected": TEXT["chosen"]},
        {"prompt": BIG, "chosen": "yes", "rejected": "yes"},
        {"prompt": "x" * 3000, "chosen": "word " * 90, "rejected": "word " * 90},
    ]
    talks = [TALK, {**TALK, "rejected": TALK["chosen"]}]
    whole = [HH, {"chosen": HH["chosen"], "rejected": HH["chosen"]}]
    for annotator in (direction, chat_direction):
        for each in (rows, talks, whole):
            out = LegendMarginFn(annotator)(batch(*each))
            assert out["margin"][0] != 0
            assert (out["margin"][1:] == 0).all()
            assert (out["margin_raw"][1:] == 0).all()
            assert (out["chosen_score"] != 0).all()


def test_thousands_of_columns(direction):
    many = {f"column {i}": list(range(200)) for i in range(3000)}
    texts = {"prompt": [f"Why {i}?" for i in range(200)], "chosen": ["Because."] * 200, "rejected": ["No."] * 200}
    ds = Dataset.from_dict({**many, **texts})
    start = time.process_time()
    out = annotate(ds, direction)
    mapped = ds.map(LegendMarginFn(direction), batched=True)
    assert time.process_time() - start < 20  # 2 s; what grows with their square would take minutes
    assert out.column_names == [*many, *texts, *NUMBERS, "margin_direction"] == mapped.column_names
    assert out.features == mapped.features
    features = out.features
    assert all(features[name] == Value("int64") for name in many)
    assert out[199]["column 2999"] == 199
    np.testing.assert_allclose(
        out["margin_raw"][:], annotate(ds.select_columns(list(texts)), direction)["margin_raw"][:]
    )
    with pytest.raises(ValueError, match=r"which is no shape of preference pairs") as caught:
        annotate(ds.remove_columns("rejected"), direction)
    assert len(str(caught.value)) < 2000


def test_columns_that_are_not_read_may_hold_anything(direction):
    broken = Dataset.from_dict({"picture": [{"bytes": b"no picture", "path": None}] * 3}).cast_column(
        "picture", Image()
    )
    texts = Dataset.from_list([TEXT] * 3)
    ds = broken.add_column("prompt", texts["prompt"][:])
    ds = ds.add_column("chosen", texts["chosen"][:]).add_column("rejected", texts["rejected"][:])
    with pytest.raises(OSError, match="cannot identify image"):
        ds[0]  # the control
    for on_error in ("raise", "skip"):
        fn = LegendMarginFn(direction, on_error=on_error)
        for out in (annotate(ds, fn), ds.map(fn, batched=True)):
            assert out.features["picture"] == Image()
            assert out["margin_raw"][:] == pytest.approx(annotate(texts, direction)["margin_raw"][:], abs=1e-6)


def test_one_column_for_two_things_is_refused(direction, reads):
    ds = Dataset.from_list([TEXT] * 2)
    both = {
        "`prompt_column` and `chosen_column` name the same column, `chosen`": {"prompt_column": "chosen"},
        "`chosen_column` and `rejected_column` name the same column, `chosen`": {"rejected_column": "chosen"},
        "`prompt_column` and `chosen_column` name the same column, `prompt`": {"chosen_column": "prompt"},
    }
    for message, names in both.items():
        for on_error in ("raise", "skip"):
            fn = LegendMarginFn(direction, on_error=on_error, **names)
            for way in (lambda f: f(ds[:]), lambda f: ds.map(f, batched=True), lambda f: annotate(ds, f)):
                with pytest.raises(ValueError, match=f"{message}; allowed is a column of its own .*; name another one"):
                    way(fn)
    assert reads == []
    named = LegendMarginFn(direction, chosen_column="response_0", rejected_column="response_1")
    named(batch(PKU))  # the control: names of another shape are free


def test_columns_of_one_name_are_refused():
    frame = pd.DataFrame([[*TEXT.values(), "again"]] * 2, columns=[*TEXT, "chosen"])
    table = pa.table([pa.array(["a", "b"])] * 4, names=[*TEXT, "chosen"])
    for given_batch in (frame, table):
        with pytest.raises(ValueError, match="has 2 columns named `chosen`; allowed is one; rename or drop"):
            pairs_from_batch(given_batch)
    other = pd.DataFrame([[*TEXT.values(), 1, 2]] * 2, columns=[*TEXT, "note", "note"])
    assert len(pairs_from_batch(other)) == 2, "the control: what is not read may be there twice"


# -- The window -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, 300, 505, 506, 507, 508, 600, 5000, 100_000])
def test_a_prompt_that_fills_the_window_leaves_the_response_whole(direction, length):
    opened = open_reader(direction.reader, Runtime(path=direction.model_path))
    (tokens,) = opened.encode([conversation("é" * (length // 2) + " why" * (length - length // 2), "On the hook.")])
    assert len(tokens.ids) <= 512
    assert opened.tokenizer.decode([tokens.ids[i] for i in tokens.content]).strip() == "On the hook."
    assert tokens.ids[0] == opened.tokenizer.bos_token_id
    row = {"prompt": "why " * length, "chosen": "On the hook.", "rejected": "Break the door."}
    out = LegendMarginFn(direction, on_error="skip")(batch(row))
    assert out["margin_status"] == ["ok"]
    assert out["margin_raw"][0] != 0


def test_a_response_that_fills_the_window_is_read_and_one_token_more_is_refused(direction):
    opened = open_reader(direction.reader, Runtime(path=direction.model_path))
    prompt = "Where is the key?"
    marker = len(opened.tokenizer("\n\nAssistant:", add_special_tokens=False)["input_ids"])
    refused = []
    for count in range(500, 515):
        (tokens,) = opened.encode([conversation(prompt, "é" * (count // 2))])
        refused.append(isinstance(tokens, TextError))
        if not refused[-1]:
            assert len(tokens.content) + marker >= count - 1
    assert sorted(refused) == refused
    assert {*refused} == {False, True}


LONG_TEXTS = st.lists(
    st.sampled_from(["why ", "bread\n\n", "é", "日本語", "  ", "\n", "x", "1234 ", "\t\t", "🙂 ", "<s>", "Human "]), min_size=1, max_size=6
).map("".join)  # fmt: skip


@settings(max_examples=60)
@given(
    LONG_TEXTS, st.integers(300, 3000), LONG_TEXTS, st.integers(1, 60), st.sampled_from(["dialogue", "alpaca", "chat"])
)
def test_a_part_of_a_long_text_gives_the_tokens_of_the_whole(chat_tokenizer, before, times, said, count, template):
    talk = conversation(before * times, f"Well: {said * count}")
    rendered = render(talk, chat_tokenizer, template=template, joiner=" ", date="2025-01-01")
    options = {"eos": "template" if template == "chat" else "none", "pooling": "mean", "max_length": 32}
    with pytest.MonkeyPatch.context() as patch:
        (part,) = tokenize([rendered], chat_tokenizer, **options)
        patch.setattr(templates, "REACH", 10**9)
        (whole,) = tokenize([rendered], chat_tokenizer, **options)
    assert type(part) is type(whole)
    assert part == whole or isinstance(whole, TextError)


@pytest.fixture(scope="module")
def chat_tokenizer(chat_direction):
    return open_reader(chat_direction.reader, Runtime(path=chat_direction.model_path)).tokenizer


def test_too_short_a_part_would_not_give_them(chat_tokenizer, monkeypatch):  # control of the test above
    monkeypatch.setattr(templates, "SLACK", -40)
    monkeypatch.setattr(templates, "REACH", 1)
    differing = 0
    for start in range(40):
        rendered = render(conversation("Mix flour, water. " * 90, "On the hook. " + "a" * start), chat_tokenizer, template="dialogue", joiner=" ", date="2025-01-01")  # fmt: skip
        (part,) = tokenize([rendered], chat_tokenizer, eos="none", pooling="mean", max_length=60 + start)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(templates, "REACH", 10**9)
            (whole,) = tokenize([rendered], chat_tokenizer, eos="none", pooling="mean", max_length=60 + start)
        differing += part != whole
    assert differing


def test_portions_give_the_tokens_of_all_at_once(chat_tokenizer, monkeypatch):
    talks = [conversation("why " * i, "word " * (1 + i * 7 % 40)) for i in range(60)]
    rendered = [render(talk, chat_tokenizer, template="dialogue", joiner=" ", date="2025-01-01") for talk in talks]
    options = {"eos": "none", "pooling": "mean", "max_length": 30}
    expected = tokenize(rendered, chat_tokenizer, **options)
    assert {type(tokens) for tokens in expected} == {Tokens, TextError}
    monkeypatch.setattr(templates, "PORTION", 100)
    for one, other in zip(tokenize(rendered, chat_tokenizer, **options), expected, strict=True):
        assert one == other or str(one) == str(other)


@pytest.mark.parametrize("text", [BIG, "x" * 10_000_000, "\n" * 10_000_000, "\n\nHuman: hm\n\nAssistant: so" * 350_000])
def test_texts_of_10_mb_take_neither_minutes_nor_gigabytes(direction, chat_direction, text):
    rows = [
        {"prompt": text, "chosen": "On the hook.", "rejected": "Break it."},
        {"prompt": "Why?", "chosen": text, "rejected": "No."},
        {"prompt": "Why?", "chosen": "Yes.", "rejected": text},
    ]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    for annotator in (direction, chat_direction)[: 1 if "Human" in text else 2]:
        out = LegendMarginFn(annotator, on_error="skip")(batch(*rows))
        check_columns(out, 3)
        assert [said == "ok" for said in out["margin_status"]] == [True, False, False]
    # 1 s, and 5 s for 700,000 turns; to tokenise all of it takes a minute and 5 GB, a quadratic loop takes minutes.
    assert time.process_time() - start < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 1_000_000  # KiB


# -- Chat templates -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chat_template_kwargs": {"share": 0}}, "integer division or modulo by zero"),
        ({"chat_template_kwargs": {"share": "x"}}, "unsupported operand"),
        ({"chat_template_kwargs": {"tokenize": True}}, "multiple values for .*'tokenize'"),
        ({"chat_template_kwargs": {"messages": []}}, "multiple values for .*'messages'"),
        ({"prompt": [ASK, {**CALL, "tool_calls": [3]}]}, "'int object' has no attribute 'function'"),
        ({"prompt": [ASK, {**CALL, "tool_calls": [{"function": {"name": "find"}}]}]}, "not JSON serializable"),
    ],
)  # fmt: skip
def test_what_a_chat_template_cannot_write_is_refused(chat_direction, reads, change, message):
    rows = [{**TALK, "tools": None, "chat_template_kwargs": None, **c} for c in ({}, change, {})]
    with pytest.raises(
        RowError, match=f"row 1, column `chosen`: the chat template refuses .*{message}.*; mend the row"
    ):
        LegendMarginFn(chat_direction)(batch(*rows))
    assert reads == []
    out = LegendMarginFn(chat_direction, on_error="skip")(batch(*rows))
    check_columns(out, 3)
    assert [said == "ok" for said in out["margin_status"]] == [True, False, True]


def test_what_a_chat_template_says_is_cut(chat_tokenizer):
    loud = copy.deepcopy(chat_tokenizer)
    loud.chat_template = "{{ raise_exception(messages[0].content) }}"
    with pytest.raises(TextError, match="refuses these messages: word and more") as caught:
        render(conversation(BIG, "yes"), loud, template="chat", joiner="", date="2025-01-01")
    assert len(str(caught.value)) < 500
    loud.chat_template = "{{ raise_exception('') }}"
    with pytest.raises(TextError, match="refuses these messages: TemplateError; mend"):
        render(conversation("why", "yes"), loud, template="chat", joiner="", date="2025-01-01")


@pytest.mark.parametrize("error", [ImportError, MemoryError])
def test_what_is_not_the_rows_fault_is_not_skipped(chat_direction, monkeypatch, error):
    from transformers import PreTrainedTokenizerBase

    def fails(*args, **kwargs):
        raise error("no template without a library, no text without memory")

    monkeypatch.setattr(PreTrainedTokenizerBase, "apply_chat_template", fails)
    with pytest.raises(error, match="no template"):
        LegendMarginFn(chat_direction, on_error="skip")(batch(TALK))


def test_tools_and_arguments_that_are_sound_are_used(chat_direction):  # control of the tests above
    plain = {**TALK, "tools": None, "chat_template_kwargs": None}
    rows = [
        plain,
        {**plain, "tools": [TOOL]},
        {**plain, "chat_template_kwargs": {"mood": "calm"}},
        {**plain, "tools": "[]"},
    ]
    raw = LegendMarginFn(chat_direction)(batch(*rows))["margin_raw"]
    assert len(set(raw[:3])) == 3
    assert raw[3] == pytest.approx(raw[0], abs=1e-6)


def test_a_token_that_only_the_tokenizer_knows_is_refused(tiny_llama, tmp_path, reads):
    from transformers import AutoModel, AutoTokenizer

    AutoModel.from_pretrained(tiny_llama).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.add_tokens(["[PAD]"], special_tokens=True)  # and nobody resized the embeddings
    tokenizer.save_pretrained(tmp_path)
    fitted = fit_direction(PAIRS, model=str(tmp_path))
    rows = [TEXT, {**TEXT, "chosen": "On the [PAD] hook."}, {**TEXT, "prompt": "Where is the [PAD] key?"}, TEXT]
    reads.clear()
    with pytest.raises(
        RowError, match=r"row 1, column `chosen`: the text has '\[PAD\]', .* no embedding of; take it out"
    ):
        LegendMarginFn(fitted)(batch(*rows))
    assert reads == []
    out = LegendMarginFn(fitted, on_error="skip")(batch(*rows))
    check_columns(out, 4)
    assert [said == "ok" for said in out["margin_status"]] == [True, False, False, True]


# -- Counts ---------------------------------------------------------------------------------------------------------


def test_skipped_rows_are_counted_in_the_report_and_on_the_card(direction, tmp_path):
    rows = [{**TEXT, "prompt": f"{i}?"} for i in range(9)]
    for i, change in ((2, {"chosen": ""}), (5, {"rejected": None}), (6, {"prompt": None}), (7, {"chosen": "a " * 600})):
        rows[i] |= change
    fn = LegendMarginFn(direction, on_error="skip")
    splits = annotate(DatasetDict(train=Dataset.from_list(rows), test=Dataset.from_list(rows[:2])), fn)
    found = report(splits, direction=direction)
    assert [(s.split, s.rows, s.read, s.skipped, s.invalid) for s in found.splits] == [
        ("train", 9, 5, 4, 0),
        ("test", 2, 2, 0, 0),
    ]
    assert [split["skipped"] for split in json.loads(found.to_json())["splits"]] == [4, 0]
    assert "5 of 9 (4 skipped)" in found.to_markdown()
    save_annotated(splits, tmp_path, direction=direction)
    card = (tmp_path / "README.md").read_text()
    assert "| Split | Column | Rows | Skipped |" in card
    assert "| `train` | `margin` | 9 | 4 |" in card
    assert "| `test` | `margin` | 2 | 0 |" in card


# -- Any row --------------------------------------------------------------------------------------------------------


class Unprintable:
    def __repr__(self):
        raise RuntimeError("no")


TOOLED = {"prompt": [ASK, CALL, {"role": "tool", "name": "find", "content": "hook"}], "chosen": [GOOD], "rejected": [BAD], "tools": [TOOL]}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "explicit strings": TEXT,
    "implicit strings": {"chosen": "The sky is blue.", "rejected": "The sky is a lid."},
    "explicit messages": TALK,
    "implicit messages": WHOLE,
    "dialogues": HH,
    "dialogue prompt": {
        "prompt": HH["chosen"].rpartition(" On")[0],
        "chosen": " On the hook.",
        "rejected": " Break it.",
    },
    "PKU": PKU,
    "parts": {**TALK, "prompt": [PARTS]},
    "dict of lists": {name: {key: [m[key] for m in side] for key in ASK} for name, side in TALK.items()},
    "tools": {**TOOLED, "chat_template_kwargs": {"mood": "calm"}},
    "tools as JSON": {**TALK, "tools": json.dumps([TOOL]), "chat_template_kwargs": {"share": 1}},
}
RESPONSES: dict[str, dict[str, Any]] = {
    "strings": {"prompt": "Where?", "responses": ["There.", "Here.", "Break it."]},
    "messages": {"prompt": [ASK], "responses": [[GOOD], [BAD], [GOOD]]},
    "whole conversations": {"responses": [WHOLE["chosen"], WHOLE["rejected"]]},
    "dialogues": {"responses": [HH["chosen"], HH["rejected"]]},
    "UltraFeedback": {"prompt": "Where?", "responses": [{"response": "There.", "model": "a", "overall_score": 4.5}] * 2},
    "dict of lists": {"prompt": "Where?", "responses": {"response": ["There.", "Here."], "model": ["a", "b"]}},
}  # fmt: skip

plain_garbage = st.one_of(
    # Beside larger numbers and a null before them, `datasets` 5.2 stores sound rows as strings of JSON.
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=20),
    st.sampled_from(["", " ", "\n\nHuman:", "\n\nAssistant:", "\x00", "\x1b[2J\x07", "\u202e", "\ufeff", "<s></s>"]),
    st.sampled_from(["[", "{}", '[{"a": NaN}]', "null", "key " * 600, "é" * 700]),
)
# What only a direct call can bring, by names, because some of it does not print.
ODD = [
    "\ud800", "a\udfff", 10**400, 10**5000, -(10**5000), Decimal(1), 1j, {1}, frozenset(), range(3), ..., b"x", bytearray(2),
    np.float32("nan"), np.zeros((2, 0)), np.array("x"), np.datetime64("NaT"), np.array([{"role": 1}]), np.array(["a", "b"]),
    torch.tensor(1.0), torch.zeros(2, 2), pd.NA, pd.NaT, pd.Series(["a"]), pa.scalar("a"), pa.array([1]),
    object(), Unprintable(), datetime.date(2025, 1, 1), ASK, [ASK], [GOOD], {"a": {"b": Unprintable()}}, {10**5000: 1},
]  # fmt: skip
ODD_KEYS = ["\ud800", 1, None, 10**5000, (1,), b"role"]
odd_garbage = st.integers(0, len(ODD) - 1).map(lambda number: ODD[number])
odd_keys = st.integers(0, len(ODD_KEYS) - 1).map(lambda number: ODD_KEYS[number])
some_keys = st.sampled_from(["role", "content", "type", "text", "tool_calls", "name", "response", "extra", ""])


def nested(leaves, keys):
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=5
    )


ANY_GARBAGE = nested(plain_garbage | odd_garbage, some_keys | odd_keys)
JSON_GARBAGE = nested(plain_garbage, some_keys)


def places(value, path=()):
    """Where a nested value can be changed."""
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


def changed(value, path, change):
    """A copy of a nested value with one place changed; `change` gives a list of what stands there then."""
    if not path:
        return change(value)
    key, *rest = path
    new = changed(value[key], rest, change)
    if isinstance(value, dict):
        return [{name: new[0] if name == key else inner for name, inner in value.items() if name != key or new}]
    return [[*value[:key], *new, *value[key + 1 :]]]


class Malformed:
    """A row that hypothesis shows, whatever it holds, by what was done to it."""

    def __init__(self, row, changes):
        self.row, self.changes = row, changes

    def __repr__(self):
        with contextlib.suppress(RuntimeError, ValueError):
            return f"Malformed({self.row!r}, {self.changes})"
        return f"Malformed(<does not print>, {self.changes})"


@st.composite
def malformed(draw, row, garbage):
    """A sound row with up to three changes, anywhere in it."""
    done = []
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from([place for place in places(row) if place]))
        junk = draw(garbage)
        changes = {
            "replace": lambda old, new=junk: [new],
            "drop": lambda old: [],
            "wrap": lambda old: [[old]],
            "repeat": lambda old: [old, old],
            "insert": lambda old, new=junk: [old, new],
            "as key": lambda old, new=junk: [{**old, "extra": new}] if isinstance(old, dict) else [{"content": old}],
            "as text": lambda old: [str(old)],
            "as JSON": lambda old: [json.dumps(old, default=repr)],
            "control": lambda old: [f"\x00\x1b{old}\x7f\r"] if isinstance(old, str) else [old],
        }
        kind = draw(st.sampled_from(["replace", *changes]))
        keys = list(row)
        with contextlib.suppress(RuntimeError, TypeError, ValueError):  # some garbage is neither text nor JSON
            (row,) = changed(row, path, changes[kind])
            done.append((kind, reprlib.repr(path)))
        row = {key: row.get(key) for key in keys}  # a batch has a value for each of its columns
    return Malformed(row, tuple(done))


# 2,988 examples in all: 11 shapes of pairs, 6 of responses, read with and without a chat template, and as datasets.
EXAMPLES = 84
QUIET = {"suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]}


@pytest.fixture(params=["dialogue", "chat"])
def annotator(request, direction, chat_direction):
    return {"dialogue": direction, "chat": chat_direction}[request.param]


@pytest.mark.parametrize("shape", SHAPES)
def test_any_malformed_row_is_an_error_or_finite_columns(annotator, shape):
    skipping, raising = LegendMarginFn(annotator, on_error="skip"), LegendMarginFn(annotator)
    sound = SHAPES[shape]
    alone = skipping(batch(sound))
    assert alone["margin_status"] == ["ok"]
    skipped = []

    @settings(max_examples=EXAMPLES, **QUIET)
    @given(malformed(sound, ANY_GARBAGE))
    def check(bad):
        rows = batch(bad.row, sound)
        out = skipping(rows)
        check_columns(out, 2)
        assert out["margin_status"][1] == "ok", "a bad row takes nothing from its neighbour"
        for name in NUMBERS:
            assert out[name][1] == pytest.approx(alone[name][0], abs=1e-5)
        skipped.append(out["margin_status"][0] != "ok")
        if not skipped[-1]:
            assert raising(rows)["margin_raw"][0] == out["margin_raw"][0]
            return
        with pytest.raises(RowError) as caught:
            raising(rows)
        assert caught.value.row == 0
        assert len(str(caught.value)) < LONGEST_STATUS
        assert caught.value.status == out["margin_status"][0]

    check()
    assert len(skipped) >= EXAMPLES
    assert 0.1 < np.mean(skipped) < 1, "the control: some of it is bad and some is not"


@pytest.mark.parametrize("shape", SHAPES)
def test_any_malformed_rows_that_arrow_holds_are_an_error_or_finite_columns(direction, shape):
    skipping, raising = LegendMarginFn(direction, on_error="skip"), LegendMarginFn(direction)
    sound = SHAPES[shape]
    held = []

    @settings(max_examples=EXAMPLES // 7, **QUIET)
    @given(st.lists(malformed(sound, JSON_GARBAGE), min_size=1, max_size=3))
    def check(bad):
        rows = [*(one.row for one in bad), sound]
        held.append(False)
        try:
            ds = Dataset.from_list(rows, on_mixed_types="use_json")
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            return  # Arrow cannot hold it
        held[-1] = True
        out = ds.map(skipping, batched=True, batch_size=2)
        check_columns(out, len(rows))
        assert out["margin_status"][-1] == "ok"
        features = out.features
        assert {name: features[name] for name in ds.features} == ds.features
        good = [said == "ok" for said in out["margin_status"]]
        if all(good):
            assert annotate(ds, raising)["margin_raw"][:] == pytest.approx(out["margin_raw"][:], abs=1e-5)
            return
        with pytest.raises(RowError) as caught:
            annotate(ds, raising, batch_size=2)
        assert caught.value.row == good.index(False)
        with pytest.raises(RowError):
            ds.map(raising, batched=True)

    check()
    assert np.mean(held) > 0.5


@pytest.mark.parametrize("shape", RESPONSES)
def test_any_malformed_row_of_responses_is_an_error_or_finite_scores(annotator, shape):
    opened = open_reader(annotator.reader, Runtime(path=annotator.model_path))
    sound = RESPONSES[shape]
    refused = []

    def scores(rows):
        """Per row the scores of its responses, or why there are none."""
        found = []
        for row in responses_from_batch(rows):
            texts = [row] if isinstance(row, RowError) else opened.encode(row)
            good = [text for text in texts if isinstance(text, Tokens)]
            values = np.zeros(len(good))
            for index, hidden in opened.read(good, [annotator.reader.layer]):
                values[index] = annotator.project(hidden[:, 0])
            found.append(
                values if len(good) == len(texts) else next(str(t) for t in texts if not isinstance(t, Tokens))
            )
        return found

    (alone,) = scores(batch(sound))

    @settings(max_examples=EXAMPLES, **QUIET)
    @given(malformed(sound, ANY_GARBAGE))
    def check(bad):
        one, other = scores(batch(bad.row, sound))
        assert other == pytest.approx(alone, abs=1e-5)
        refused.append(isinstance(one, str))
        if refused[-1]:
            assert 0 < len(one) < LONGEST_STATUS
            one.encode()
        else:
            assert len(one) > 0
            assert np.isfinite(one).all()

    check()
    assert len(refused) >= EXAMPLES
    assert 0.1 < np.mean(refused) < 1


@pytest.mark.parametrize("shape", SHAPES)
def test_a_batch_that_lacks_a_column_is_refused_or_read_without(direction, reads, shape):
    rows = batch(*[SHAPES[shape]] * 2)
    fn = LegendMarginFn(direction, on_error="skip")
    for gone in rows:
        fewer = {name: values for name, values in rows.items() if name != gone}
        if gone in ("prompt", "tools", "chat_template_kwargs") and "safer_response_id" not in rows:
            check_columns(fn(fewer), 2)
            continue
        read = len(reads)
        with pytest.raises(
            ValueError, match="is no shape of preference pairs; allowed are .* `rename_columns`"
        ) as caught:
            fn(fewer)
        assert not isinstance(caught.value, RowError)
        assert len(reads) == read


# Numbers that a model cannot hold: one text's own fault, and no other's.


@pytest.fixture(scope="module")
def overflowing(tiny_llama, tmp_path_factory):
    """The same model with weights for which any text with a tilde is beyond float32, and no other text is."""
    from transformers import AutoModel, AutoTokenizer

    folder = tmp_path_factory.mktemp("overflowing")
    model, tokenizer = AutoModel.from_pretrained(tiny_llama), AutoTokenizer.from_pretrained(tiny_llama)
    with torch.no_grad():
        model.embed_tokens.weight[tokenizer.convert_tokens_to_ids("~")] = torch.inf
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def _transforms(direction, model):
    rows = [{**row, "responses": [row["chosen"], row["rejected"]]} for row in PAIRS]
    rows[3] = {"prompt": "Why?", "chosen": "A ~ b.", "rejected": "No.", "responses": ["So.", "A ~ b."]}
    return Dataset.from_list(rows), {
        "margin": lambda on_error: LegendMarginFn(direction, on_error=on_error),
        "scores": lambda on_error: LegendScoreFn(direction, on_error=on_error),
        "pair_similarity": lambda on_error: PairSimilarityFn(model, on_error=on_error),
    }


@pytest.mark.parametrize("column", ["margin", "scores", "pair_similarity"])
def test_a_row_that_is_not_finite_is_skipped_alone(direction, overflowing, column):
    good = fit_direction(PAIRS, model=overflowing)
    ds, transforms = _transforms(good, overflowing)
    made = ds.map(transforms[column]("skip"), batched=True, batch_size=5, load_from_cache_file=False)
    status = made[f"{column}_status"]
    assert [said == "ok" for said in status] == [i != 3 for i in range(len(ds))]
    assert "not finite in float32 for this text; take a lower `layer`" in status[3]
    assert "skip" not in status[3]
    assert "float32`" not in status[3], "what is read in float32 already is not advised to be"
    assert np.isfinite(np.concatenate([np.ravel(value) for value in made[column]])).all()
    assert not np.any(made[column][3])
    assert np.any(made[column][2]), "its neighbours in the batch have their numbers"
    with pytest.raises(RowError, match=r"row 3: the model's hidden states are not finite in float32"):
        ds.map(transforms[column]("raise"), batched=True, batch_size=len(ds), load_from_cache_file=False)


def test_a_pair_that_is_not_finite_is_left_out_of_a_fit(overflowing):
    bad = [*PAIRS[:4], {"prompt": "Why?", "chosen": "A ~ b.", "rejected": "No."}, *PAIRS[4:]]
    expected = fit_direction(PAIRS, model=overflowing, layer=2)
    got = fit_direction(bad, model=overflowing, layer=2, on_error="skip")
    np.testing.assert_array_equal(got.vector, expected.vector)
    assert (got.facts.pairs, got.facts.skipped) == (len(PAIRS), 1)


@pytest.mark.parametrize(("dtype", "advice"), [("float16", '`dtype="bfloat16"`'), ("bfloat16", "a lower `layer`")])
def test_the_advice_for_numbers_that_are_not_finite_fits_the_dtype(tiny_llama, dtype, advice):
    assert advice in reader.describe_model(str(tiny_llama), dtype=dtype).not_finite
