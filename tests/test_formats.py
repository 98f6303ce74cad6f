"""Every shape of row gives the same conversations; what cannot be read is refused by row and column.

pytest tests/test_formats.py
"""

from __future__ import annotations

import copy
import json
import pickle
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import datasets
import dill
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from legend_hf.reading.formats import (
    ROLES,
    Columns,
    Conversation,
    Pair,
    RowError,
    conversation,
    pairs_from_batch,
    responses_from_batch,
)

ASK = {"role": "user", "content": "Where is the key?"}
ASK_BACK = {"role": "assistant", "content": "Which key?"}
TELL = {"role": "user", "content": "The one to the cellar."}
GOOD = {"role": "assistant", "content": "On the hook, to the left."}
BAD = {"role": "assistant", "content": "Break the door."}
PROMPT = [ASK, ASK_BACK, TELL]
MARKERS = {"user": "\n\nHuman:", "assistant": "\n\nAssistant:"}


def dialogue(messages: list[dict[str, Any]]) -> str:
    """Messages as a person would write them in the manner of hh-rlhf."""
    return "".join(f"{MARKERS[m['role']]} {m['content']}" for m in messages)


def legacy(messages: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {key: [m.get(key) for m in messages] for key in ("role", "content", "tool_calls")}


def columnwise(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {key: [row.get(key) for row in rows] for key in rows[0]}


def held(response: Any) -> dict[str, Any]:
    """A response as UltraFeedback keeps it, beside what is not read."""
    return {"model": "m", "response": response, "overall_score": 4.5, "annotations": {"helpfulness": {"Rating": "5"}}}


def batch(*rows: dict[str, Any]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def one(row: dict[str, Any], columns: Columns | None = None) -> Any:
    (read,) = pairs_from_batch(batch(row), columns or Columns())
    return read


def pair(row: dict[str, Any]) -> Pair:
    read = one(row)
    assert isinstance(read, Pair), str(read)
    return read


def messages(side: Conversation) -> tuple[list[Any], list[Any]]:
    return list(side.prompt), list(side.response)


def said(read: Pair) -> list[tuple[list[Any], list[Any]]]:
    return [messages(read.chosen), messages(read.rejected)]


OPEN = dialogue(PROMPT) + "\n\nAssistant:"
SHAPES: dict[str, dict[str, Any]] = {
    "conversational explicit": {"prompt": PROMPT, "chosen": [GOOD], "rejected": [BAD]},
    "conversational implicit": {"chosen": [*PROMPT, GOOD], "rejected": [*PROMPT, BAD]},
    "conversational, prompt also repeated": {
        "prompt": PROMPT,
        "chosen": [*PROMPT, GOOD],
        "rejected": [*PROMPT, BAD],
    },
    "conversational, first question also as a string": {
        "prompt": ASK["content"],
        "chosen": [*PROMPT, GOOD],
        "rejected": [*PROMPT, BAD],
    },
    "conversational, first question as a string with other whitespace": {
        "prompt": f"{ASK['content']}\n",
        "chosen": [*PROMPT, GOOD],
        "rejected": [*PROMPT, BAD],
    },
    "conversational, empty prompt": {"prompt": [], "chosen": [*PROMPT, GOOD], "rejected": [*PROMPT, BAD]},
    "dict of lists": {"prompt": legacy(PROMPT), "chosen": legacy([GOOD]), "rejected": legacy([BAD])},
    "keys filled with None": {
        "prompt": [{**m, "name": None, "tool_calls": None} for m in PROMPT],
        "chosen": [{**GOOD, "name": None, "tool_calls": []}],
        "rejected": [{**BAD, "name": None, "tool_calls": None}],
    },
    "text parts": {
        "prompt": [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in PROMPT],
        "chosen": [
            {
                **GOOD,
                "content": [{"type": "text", "text": part} for part in ("On the hook,", " to the left.")],
            }
        ],
        "rejected": [{**BAD, "content": {"type": ["text"], "text": [BAD["content"]]}}],
    },
    "messages with a string response": {
        "prompt": PROMPT,
        "chosen": GOOD["content"],
        "rejected": BAD["content"],
    },
    "hh-rlhf": {"chosen": dialogue([*PROMPT, GOOD]), "rejected": dialogue([*PROMPT, BAD])},
    "hh-rlhf without leading newlines": {
        "chosen": dialogue([*PROMPT, GOOD]).lstrip(),
        "rejected": dialogue([*PROMPT, BAD]).lstrip(),
    },
    "hh-rlhf, one side of each kind": {
        "chosen": dialogue([*PROMPT, GOOD]).lstrip(),
        "rejected": dialogue([*PROMPT, BAD]),
    },
    "hh-rlhf with an empty prompt": {
        "prompt": "",
        "chosen": dialogue([*PROMPT, GOOD]),
        "rejected": dialogue([*PROMPT, BAD]),
    },
    "dialogue prompt": {"prompt": OPEN, "chosen": f" {GOOD['content']}", "rejected": f" {BAD['content']}"},
    "dialogue prompt, responses without a space": {
        "prompt": OPEN,
        "chosen": GOOD["content"],
        "rejected": BAD["content"],
    },
    "dialogue prompt with the space": {
        "prompt": f"{OPEN} ",
        "chosen": GOOD["content"],
        "rejected": BAD["content"],
    },
    "dialogue prompt and whole dialogues": {
        "prompt": OPEN,
        "chosen": dialogue([*PROMPT, GOOD]),
        "rejected": dialogue([*PROMPT, BAD]),
    },
    "dialogue prompt that ends with the human": {
        "prompt": dialogue(PROMPT),
        "chosen": GOOD["content"],
        "rejected": BAD["content"],
    },
    "dialogue prompt, marker in the response": {
        "prompt": dialogue(PROMPT),
        "chosen": dialogue([GOOD]),
        "rejected": dialogue([BAD]),
    },
    "dialogue prompt, marker twice": {
        "prompt": OPEN,
        "chosen": dialogue([GOOD]),
        "rejected": dialogue([BAD]),
    },
    "dialogue prompt with messages": {"prompt": OPEN, "chosen": [GOOD], "rejected": [BAD]},
    "PKU, first is safer": {
        "prompt": PROMPT,
        "response_0": GOOD["content"],
        "response_1": BAD["content"],
        "safer_response_id": 0,
    },
    "PKU, second is safer": {
        "prompt": OPEN,
        "response_0": BAD["content"],
        "response_1": GOOD["content"],
        "safer_response_id": np.int64(1),
    },
    "PKU, tensors": {
        "prompt": OPEN,
        "response_0": [BAD],
        "response_1": [GOOD],
        "safer_response_id": torch.tensor(1),
    },
    "numpy": {
        "prompt": np.array(PROMPT, dtype=object),
        "chosen": np.array([GOOD], dtype=object),
        "rejected": {key: np.array(items, dtype=object) for key, items in legacy([BAD]).items()},
    },
    "numpy strings": {
        "prompt": np.array(OPEN),
        "chosen": np.str_(GOOD["content"]),
        "rejected": BAD["content"],
    },
    "numpy strings in messages": {
        "prompt": [{key: np.str_(text) for key, text in m.items()} for m in PROMPT],
        "chosen": np.str_(GOOD["content"]),
        "rejected": np.str_(BAD["content"]),
    },
    "tuples": {"prompt": tuple(PROMPT), "chosen": (GOOD,), "rejected": (BAD,)},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_gives_the_same_messages(shape):
    assert said(pair(SHAPES[shape])) == [(PROMPT, [GOOD]), (PROMPT, [BAD])]


@pytest.mark.parametrize("shape", SHAPES)
def test_contents_are_plain_strings(shape):  # a subclass, such as numpy's, would print as `np.str_(...)`
    read = pair(SHAPES[shape])
    every = [*read.chosen.prompt, *read.chosen.response, *read.rejected.response]
    assert {type(text) for message in every for text in message.values()} == {str}
    named = pair({"prompt": [{**ASK, "name": np.str_("n")}], "chosen": [GOOD], "rejected": [BAD]})
    assert type(named.chosen.prompt[0]["name"]) is str


def test_another_dialogue_gives_other_messages():  # control of the test above
    row = {"chosen": dialogue([ASK, GOOD]), "rejected": dialogue([ASK, BAD])}
    assert said(pair(row)) != [(PROMPT, [GOOD]), (PROMPT, [BAD])]


@pytest.mark.parametrize("shape", SHAPES)
def test_reading_leaves_the_rows_as_they_are(shape):
    row = SHAPES[shape]
    before = copy.deepcopy(row)
    read = pair(row)
    assert repr(row) == repr(before)
    for message in (*read.chosen.prompt, *read.chosen.response):
        message["content"] = "changed"
    assert repr(row) == repr(before)


@pytest.mark.parametrize("shape", [name for name, row in SHAPES.items() if isinstance(row.get("chosen"), str)])
def test_text_is_the_row_verbatim(shape):
    row = SHAPES[shape]
    if isinstance(row.get("prompt"), list):
        assert pair(row).chosen.text is None
        return
    whole = row["chosen"] if "whole" in shape or "prompt" not in row else str(row["prompt"]) + row["chosen"]
    text = pair(row).chosen.text
    assert "".join(text) == whole
    assert text[1].strip() == GOOD["content"]


def test_hh_text_is_cut_after_the_last_marker():
    read = pair(SHAPES["hh-rlhf"])
    assert read.chosen.text == (OPEN, f" {GOOD['content']}")
    assert read.rejected.text == (OPEN, f" {BAD['content']}")


def test_plain_strings_are_taken_verbatim():
    read = pair({"prompt": " What now?\n", "chosen": " Stay. \n", "rejected": "Go"})
    assert said(read) == [
        ([{"role": "user", "content": " What now?\n"}], [{"role": "assistant", "content": " Stay. \n"}]),
        ([{"role": "user", "content": " What now?\n"}], [{"role": "assistant", "content": "Go"}]),
    ]
    assert read.chosen.text == (" What now?\n", " Stay. \n")


def test_plain_response_may_repeat_words_of_the_prompt_or_speak_of_markers():
    read = pair({"prompt": "Say it.", "chosen": "Say it. Done", "rejected": "no\n\nHuman: yes"})
    assert read.chosen.response[0]["content"] == "Say it. Done"
    assert read.rejected.response[0]["content"] == "no\n\nHuman: yes"


def test_implicit_plain_strings_keep_the_whole_string():
    read = pair({"chosen": "The sky is blue", "rejected": "The sky is black"})  # TRL would cut at "bl"
    assert said(read) == [
        ([], [{"role": "assistant", "content": "The sky is blue"}]),
        ([], [{"role": "assistant", "content": "The sky is black"}]),
    ]
    assert read.chosen.text == ("", "The sky is blue")


@pytest.mark.parametrize("sides", [([ASK, GOOD], [ASK, BAD]), ([*PROMPT, GOOD], [*PROMPT, BAD])])
def test_agrees_with_trls_split_of_conversations(sides):
    from trl.data_utils import extract_prompt

    row = dict(zip(("chosen", "rejected"), sides, strict=True))
    theirs = extract_prompt(row)
    assert said(pair(row)) == [(theirs["prompt"], theirs["chosen"]), (theirs["prompt"], theirs["rejected"])]


def test_implicit_messages_with_different_assistant_turns_have_different_prompts():
    # TRL gives them responses of several turns behind what they share: then one text would have two scores.
    for sides in (
        {"chosen": [ASK, ASK_BACK, TELL, GOOD], "rejected": [ASK, BAD]},
        {"chosen": dialogue([ASK, ASK_BACK, TELL, GOOD]), "rejected": dialogue([ASK, BAD])},
    ):
        assert said(pair(sides)) == [([ASK, ASK_BACK, TELL], [GOOD]), ([ASK], [BAD])]


def test_implicit_messages_with_different_questions_have_different_prompts():
    other = {"role": "user", "content": "Where is the door?"}
    read = pair({"chosen": [ASK, GOOD], "rejected": [other, BAD]})
    assert said(read) == [([ASK], [GOOD]), ([other], [BAD])]
    text = pair({"chosen": dialogue([ASK, GOOD]), "rejected": dialogue([other, BAD])})
    assert said(text) == said(read)


def test_a_response_that_begins_with_another_question_gives_it_to_its_prompt():
    # What TRL's `extract_prompt` leaves of a pair whose sides ask different things.
    other = {"role": "user", "content": "The one to the attic."}
    read = pair({"prompt": [ASK, ASK_BACK], "chosen": [TELL, GOOD], "rejected": [other, BAD]})
    assert said(read) == [([ASK, ASK_BACK, TELL], [GOOD]), ([ASK, ASK_BACK, other], [BAD])]
    text = pair(
        {
            "prompt": dialogue([ASK, ASK_BACK]),
            "chosen": dialogue([TELL, GOOD]),
            "rejected": dialogue([other, BAD]),
        }
    )
    assert said(text) == said(read)
    assert text.chosen.text == (OPEN, f" {GOOD['content']}")


@pytest.mark.parametrize("side", [[*PROMPT, GOOD], [ASK, GOOD], [GOOD], [ASK, GOOD, GOOD]])
def test_equal_sides_have_the_last_turn_as_response(side):
    for row in (
        {"chosen": side, "rejected": side},
        {"chosen": dialogue(side), "rejected": dialogue(side)},
    ):
        assert said(pair(row)) == [(side[:-1], side[-1:])] * 2


def test_one_side_that_goes_on_leaves_the_other_a_response():
    read = pair({"chosen": [ASK, ASK_BACK], "rejected": [ASK, ASK_BACK, TELL, BAD]})
    assert said(read) == [([ASK], [ASK_BACK]), (PROMPT, [BAD])]


def test_ids_of_messages_do_not_decide_the_split():
    chosen = [{**m, "id": f"c{i}"} for i, m in enumerate([*PROMPT, GOOD])]
    rejected = [{**m, "id": f"r{i}"} for i, m in enumerate([*PROMPT, BAD])]
    read = pair({"chosen": chosen, "rejected": rejected})
    assert said(read) == [(chosen[:-1], chosen[-1:]), (rejected[:-1], rejected[-1:])]


def test_hh_sides_with_different_earlier_turns_have_different_prompts():
    read = pair({"chosen": dialogue([ASK, BAD]), "rejected": dialogue([*PROMPT, GOOD])})
    assert said(read) == [([ASK], [BAD]), (PROMPT, [GOOD])]


def test_a_response_of_a_dialogue_may_have_several_turns():
    read = pair(
        {
            "prompt": f"{dialogue([ASK])}\n\nAssistant:",
            "chosen": GOOD["content"],
            "rejected": dialogue([ASK_BACK, TELL, BAD])[12:],
        }
    )
    assert said(read)[1] == ([ASK], [ASK_BACK, TELL, BAD])


def test_words_that_only_look_like_a_marker_are_words():
    answer = "Human: so she said.\nAssistant: and he"  # real rows have such turns
    expected = [([ASK], [{"role": "assistant", "content": answer}]), ([ASK], [BAD])]
    whole = {"chosen": dialogue([ASK, expected[0][1][0]]), "rejected": dialogue([ASK, BAD])}
    assert said(pair(whole)) == expected
    open_prompt = dialogue([ASK]) + "\n\nAssistant:"
    for space in ("", " "):
        row = {"prompt": open_prompt, "chosen": f"{space}{answer}", "rejected": BAD["content"]}
        assert said(pair(row)) == expected


def test_text_before_the_first_marker():
    row = {"chosen": f"Be kind.{dialogue([ASK, GOOD])}", "rejected": f"Be kind.{dialogue([ASK, BAD])}"}
    system = {"role": "system", "content": "Be kind."}
    assert said(pair(row)) == [([system, ASK], [GOOD]), ([system, ASK], [BAD])]
    row = {"prompt": f"Be kind.{dialogue([ASK])}\n\nAssistant:", "chosen": " yes", "rejected": " no"}
    assert list(pair(row).chosen.prompt) == [system, ASK]
    # Without a human turn, the text is what the human said.
    assert list(pair({**row, "prompt": f"{ASK['content']}\n\nAssistant:"}).chosen.prompt) == [ASK]
    # A plain prompt that only mentions a marker stays as it is.
    plain = "Translate:\n\nHuman: hallo"
    assert list(pair({**row, "prompt": plain}).chosen.prompt) == [{"role": "user", "content": plain}]


def test_system_message_beside_a_string_prompt():
    system = {"role": "system", "content": "Be kind."}
    row = {"prompt": ASK["content"], "chosen": [system, ASK, GOOD], "rejected": [system, ASK, BAD]}
    assert said(pair(row)) == [([system, ASK], [GOOD]), ([system, ASK], [BAD])]


def test_prompt_may_be_empty():
    read = pair({"chosen": "\n\nAssistant: yes", "rejected": "Assistant: no"})
    assert said(read) == [([], [{"role": "assistant", "content": w}]) for w in ("yes", "no")]
    assert read.rejected.text == ("Assistant:", " no")
    read = pair({"prompt": "\n\nAssistant:", "chosen": [ASK, GOOD], "rejected": [BAD]})
    assert said(read) == [([ASK], [GOOD]), ([], [BAD])]
    read = pair({"prompt": "\n\nAssistant:", "chosen": " yes", "rejected": " no"})
    assert said(read) == [([], [{"role": "assistant", "content": w}]) for w in ("yes", "no")]


def test_a_response_equal_to_the_prompt_is_a_response():
    assert said(pair({"prompt": [GOOD], "chosen": [GOOD], "rejected": [BAD]})) == [([GOOD], [GOOD]), ([GOOD], [BAD])]


def test_prefill_stays_in_the_prompt():
    row = {"prompt": f"{dialogue([ASK])}\n\nAssistant: Well,", "chosen": " here.", "rejected": " there."}
    read = pair(row)
    assert messages(read.chosen) == (
        [ASK, {"role": "assistant", "content": "Well,"}],
        [{"role": "assistant", "content": " here."}],
    )
    assert read.chosen.text == (row["prompt"], " here.")


# -- Tools ---------------------------------------------------------------------------------------------------

TOOL = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}
CALL = {
    "role": "assistant",
    "tool_calls": [{"type": "function", "function": {"name": "find", "arguments": {"what": "key"}}}],
}
RESULT = {"role": "tool", "name": "find", "content": "hook"}


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ([TOOL], (TOOL,)),
        (json.dumps([TOOL]), (TOOL,)),
        (np.array([TOOL], dtype=object), (TOOL,)),
        ([{**TOOL, "strict": None, "function": {**TOOL["function"], "more": None}}], (TOOL,)),
        ('[{"default": null}]', ({"default": None},)),  # JSON has no filled keys: this null is meant
        (None, None),
        ([], None),
        ("[]", None),
        ("null", None),
        (" ", None),
        (float("nan"), None),
        (pd.NA, None),
    ],
)
def test_tools(given, kept):
    read = pair({"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD], "tools": given})
    assert read.chosen.tools == read.rejected.tools == kept


def test_chat_template_kwargs():
    rows = batch(
        *({"chosen": [ASK, GOOD], "rejected": [ASK, BAD], "chat_template_kwargs": kwargs}
          for kwargs in ({"enable_thinking": False, "other": None}, {"enable_thinking": None}, {}, None))
    )  # fmt: skip
    assert [read.chosen.chat_template_kwargs for read in pairs_from_batch(rows)] == [
        {"enable_thinking": False}, None, None, None,
    ]  # fmt: skip


def test_tool_calls_are_kept_without_their_empty_keys():
    filled = {**CALL, "content": None, "tool_calls": [{**CALL["tool_calls"][0], "id": None}]}
    read = pair({"chosen": [ASK, filled, RESULT, GOOD], "rejected": [ASK, filled, RESULT, BAD]})
    assert said(read) == [([ASK, CALL, RESULT], [GOOD]), ([ASK, CALL, RESULT], [BAD])]
    array = {**CALL, "tool_calls": np.array(CALL["tool_calls"], dtype=object)}
    assert messages(pair({"prompt": [ASK], "chosen": [array, RESULT, GOOD], "rejected": [BAD]}).chosen) == (
        [ASK],
        [CALL, RESULT, GOOD],
    )


def test_different_tool_calls_stand_in_their_own_prompts():
    other = {**CALL, "tool_calls": [{"type": "function", "function": {"name": "open", "arguments": {}}}]}
    read = pair({"chosen": [ASK, CALL, RESULT, GOOD], "rejected": [ASK, other, RESULT, BAD]})
    assert said(read) == [([ASK, CALL, RESULT], [GOOD]), ([ASK, other, RESULT], [BAD])]


@pytest.mark.parametrize("role", ROLES)
def test_every_role_may_stand_in_a_prompt(role):
    prompt = [{"role": role, "content": "x"}, ASK]
    assert list(pair({"prompt": prompt, "chosen": [GOOD], "rejected": [BAD]}).chosen.prompt) == prompt


# -- N responses and single texts ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": PROMPT, "responses": [GOOD["content"], BAD["content"], GOOD["content"]]},
        {"prompt": OPEN, "responses": np.array([GOOD["content"], BAD["content"], GOOD["content"]])},
        {"prompt": OPEN, "responses": [[GOOD], [BAD], legacy([GOOD])]},
        {"responses": [[*PROMPT, GOOD], [*PROMPT, BAD], [*PROMPT, GOOD]]},
        {"responses": [dialogue([*PROMPT, GOOD]), dialogue([*PROMPT, BAD]), dialogue([*PROMPT, GOOD])]},
        {"prompt": OPEN, "responses": [held(GOOD["content"]), held(BAD["content"]), held(GOOD["content"])]},
        {"prompt": OPEN, "responses": [held([GOOD]), {"response": [BAD]}, held(legacy([GOOD]))]},
        {"prompt": OPEN, "responses": [held(GOOD["content"]), BAD["content"], held([GOOD])]},
        {"prompt": OPEN, "responses": np.array([held(m["content"]) for m in (GOOD, BAD, GOOD)], dtype=object)},
        {"prompt": OPEN, "responses": columnwise([held(m["content"]) for m in (GOOD, BAD, GOOD)])},
        {"prompt": OPEN, "responses": columnwise([held([m]) for m in (GOOD, BAD, GOOD)])},
        {"prompt": OPEN, "responses": {"response": np.array([m["content"] for m in (GOOD, BAD, GOOD)]), "model": None}},
        {"responses": [held([*PROMPT, GOOD]), held([*PROMPT, BAD]), held([*PROMPT, GOOD])]},
        {"responses": columnwise([held(dialogue([*PROMPT, m])) for m in (GOOD, BAD, GOOD)])},
    ],
)
def test_n_responses(row):
    (read,) = responses_from_batch(batch(row))
    assert [messages(side) for side in read] == [(PROMPT, [GOOD]), (PROMPT, [BAD]), (PROMPT, [GOOD])]


@pytest.mark.parametrize(
    ("given", "column", "message"),
    [
        ([held("a"), {"model": "b", "overall_score": 1}], "responses[1]", "the keys `model`, `overall_score` and no `response`; allowed is a string, .*; rename the key"),
        ([{}], "responses[0]", "the keys none and no `response`"),
        ([held("a"), held(None)], "responses[1]", "given None; allowed is a string or a list of messages"),
        ([held(3)], "responses[0]", r"given 3 \(int\); allowed is a string or a list of messages; convert it"),
        ([held(" ")], "responses[0]", "is empty or only whitespace"),
        ([held(GOOD)], "responses[0]", r"given {.* \(dict\); .*; write `\[...\]` around it"),
        (columnwise([held("a"), held(None)]), "responses[1]", "given None; allowed is a string"),
        ({"model": ["a"]}, "responses", "given {'model': .'a'.}; allowed is a list with at least one response, .* `response`"),
        ({"response": []}, "responses", "given {'response': ..}; allowed is a list with at least one response"),
        ({"response": ["a", "b"], "model": ["c"]}, "responses", "given {.*}; allowed is a list with at least one response"),
        ([GOOD, GOOD], "responses[0]", r"given {'content'.* \(dict\); .*; write `\[...\]` around it"),
        ([ASK, GOOD], "responses[0]", r"given {'content'.* \(dict\); .*; write `\[...\]` around it"),
        ([{**GOOD, "response": "a"}], "responses[0]", r"\(dict\); .*; write `\[...\]` around it"),
        (legacy([GOOD]), "responses", "given {'content'.*; allowed is a list with at least one response"),
        ({"response": [ASK, GOOD]}, "responses[0]", r"\(dict\); .*; write `\[...\]` around it"),
    ],
)  # fmt: skip
def test_what_holds_no_responses_is_refused(given, column, message):
    rows = batch({"prompt": "q", "responses": given}, {"prompt": "q", "responses": ["a"]})
    refused, neighbour = responses_from_batch(rows)
    assert isinstance(refused, RowError)
    assert (refused.row, refused.column) == (0, column)
    assert re.search(message, refused.reason), refused.reason
    assert len(neighbour) == 1


def test_n_may_differ_and_a_bad_response_refuses_its_row_only():
    rows = batch(
        {"prompt": "q", "responses": ["a"]},
        {"prompt": "q", "responses": ["a", " "]},
        {"prompt": "q", "responses": []},
        {"prompt": "q", "responses": "a"},
        {"prompt": "q", "responses": ["a", "b"]},
    )
    read = responses_from_batch(rows, first_row=10)
    assert [len(row) if isinstance(row, tuple) else (row.row, row.column) for row in read] == [
        1,
        (11, "responses[1]"),
        (12, "responses"),
        (13, "responses"),
        2,
    ]
    assert "at least one response" in str(read[2])


@pytest.mark.parametrize(
    ("prompt", "response"),
    [
        (PROMPT, [GOOD]),
        (PROMPT, GOOD["content"]),
        (OPEN, f" {GOOD['content']}"),
        (None, dialogue([*PROMPT, GOOD])),
        (None, [*PROMPT, GOOD]),
    ],
)
def test_one_conversation(prompt, response):
    assert messages(conversation(prompt, response)) == (PROMPT, [GOOD])


def test_one_plain_text():
    assert conversation(None, "words").text == ("", "words")
    assert conversation("q", "words").text == ("q", "words")


def test_one_conversation_that_cannot_be_read():
    with pytest.raises(ValueError, match=r"`response`: the response '' is empty") as caught:
        conversation("q", "")
    assert not isinstance(caught.value, RowError)
    with pytest.raises(ValueError, match=r"`prompt`: given 3 \(int\)"):
        conversation(3, "a")  # type: ignore[arg-type]


# -- Refusals ------------------------------------------------------------------------------------------------

Q = {"prompt": "q", "chosen": "yes", "rejected": "no"}
PKU = {"prompt": "q", "response_0": "a", "response_1": "b", "safer_response_id": 0}
IMAGE = {"role": "user", "content": [{"type": "image", "url": "x"}, {"type": "text", "text": "what?"}]}
REFUSALS: dict[str, tuple[dict[str, Any], str | None, str]] = {
    "empty": (
        {**Q, "chosen": ""},
        "chosen",
        r"response '' is empty or only whitespace; allowed is one with text; fill",
    ),
    "whitespace": ({**Q, "rejected": " \n "}, "rejected", r"response ' \\n ' is empty or only whitespace"),
    "empty hh turn": (
        {"chosen": dialogue([ASK]) + "\n\nAssistant: ", "rejected": dialogue([ASK, BAD])},
        "chosen",
        "is empty or only whitespace",
    ),
    "empty message": ({**Q, "chosen": [{"role": "assistant", "content": ""}]}, "chosen", "'' is empty"),
    "no messages": (
        {**Q, "chosen": []},
        "chosen",
        r"\[\] has no turn of `assistant`; allowed is a response whose",
    ),
    "None": (
        {**Q, "rejected": None},
        "rejected",
        r"given None; allowed is a string or a list of messages; fill",
    ),
    "NaN": ({**Q, "rejected": float("nan")}, "rejected", "given nan; allowed is a string"),
    "None prompt": ({**Q, "prompt": None}, "prompt", "given None; allowed is a string"),
    "number": (
        {**Q, "chosen": 5},
        "chosen",
        r"given 5 \(int\); allowed is a string or a list of messages; convert",
    ),
    "bytes": ({**Q, "chosen": b"yes"}, "chosen", r"given b'yes' \(bytes\)"),
    "tensor": ({**Q, "chosen": torch.zeros(2)}, "chosen", r"message 0 is 0.0 \(float\); allowed is a dict"),
    "list of strings": (
        {**Q, "chosen": ["yes"]},
        "chosen",
        r"message 0 is 'yes' \(str\); allowed is a dict with `role`",
    ),
    "one message": ({**Q, "chosen": GOOD}, "chosen", r"given {.*\(dict\); .*; write `\[...\]` around it"),
    "other dict": ({**Q, "chosen": {"text": "yes"}}, "chosen", r"given {'text': 'yes'} \(dict\)"),
    "uneven dict of lists": (
        {**Q, "chosen": {"role": ["assistant"], "content": ["a", "b"]}},
        "chosen",
        r"given {.*} \(dict\); allowed is a string or a list",
    ),
    "unknown role": (
        {**Q, "prompt": [{"role": "human", "content": "q"}]},
        "prompt",
        r"message 0 has the role 'human'; allowed are .* the roles `system`, `developer`, `user`, .*; rename",
    ),
    "ShareGPT": (
        {**Q, "prompt": [{"from": "human", "value": "q"}]},
        "prompt",
        r"message 0 has the keys `from`, `value` and no `role`; allowed are the keys `role`, `content`",
    ),
    "no content": (
        {**Q, "prompt": [{"role": "user", "content": None}]},
        "prompt",
        "has no `content`, or None",
    ),
    "image": (
        {**Q, "prompt": [IMAGE]},
        "prompt",
        r"message 0 has the part {.*image.*}; allowed is text only",
    ),
    "part without text": (
        {**Q, "prompt": [{"role": "user", "content": [{"type": "text", "text": None}]}]},
        "prompt",
        "has the part",
    ),
    "part of another type": (
        {**Q, "prompt": [{"role": "user", "content": [{"type": "image", "text": "a door"}]}]},
        "prompt",
        "has the part",
    ),
    "odd content": (
        {**Q, "prompt": [{"role": "user", "content": {"a": 1}}]},
        "prompt",
        r"content {'a': 1} \(dict\)",
    ),
    "surrogate": (
        {**Q, "chosen": "a\ud800b"},
        "chosen",
        r"lone surrogate '\\ud800' at character 1; allowed is text that UTF-8",
    ),
    "surrogate in a message": (
        {**Q, "prompt": [{"role": "user", "content": "\udfff"}]},
        "prompt",
        r"message 0 has the lone surrogate '\\udfff'",
    ),
    "surrogate in tools": ({**Q, "tools": '[{"name": "\\ud800"}]'}, "tools", "lone surrogate"),
    "only tool calls": (
        {**Q, "chosen": [CALL]},
        "chosen",
        r"has only `tool_calls`; allowed is one with text",
    ),
    "ends with the user": (
        {**Q, "chosen": [GOOD, ASK]},
        "chosen",
        r"ends with a turn of `user`; .*; cut off",
    ),
    "ends with a tool": ({**Q, "chosen": [CALL, RESULT]}, "chosen", "ends with a turn of `tool`"),
    "only the user": (
        {"chosen": [ASK, TELL], "rejected": [ASK, BAD]},
        "chosen",
        "has no turn of `assistant`",
    ),
    "dialogue ends with the human": (
        {"chosen": dialogue([ASK, GOOD, TELL]), "rejected": dialogue([ASK, BAD])},
        "chosen",
        "ends with a turn of `user`",
    ),
    "response ends with the human": (
        {"prompt": OPEN, "chosen": f"yes{dialogue([TELL])}", "rejected": "no"},
        "chosen",
        "'yes.* ends with a turn of `user`",
    ),
    "response of the human only": (
        {"prompt": dialogue([ASK, GOOD]), "chosen": dialogue([TELL]), "rejected": dialogue([TELL, BAD])},
        "chosen",
        "has no turn of `assistant`",
    ),
    "whole conversation of another prompt": (
        {"prompt": "another question", "chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
        "chosen",
        "begins with a turn of `user`, where the prompt ends with one of `user`; .*; if it holds",
    ),
    "instructions after the prompt": (
        {"prompt": PROMPT, "chosen": [{"role": "system", "content": "s"}, GOOD], "rejected": [BAD]},
        "chosen",
        "begins with a turn of `system`",
    ),
    "one side whole": (
        {"prompt": PROMPT, "chosen": [GOOD], "rejected": [*PROMPT, BAD]},
        None,
        "`rejected` repeats `prompt` at its head, `chosen` does not; .*; cut the prompt out of `rejected`",
    ),
    "mixed kinds": (
        {"chosen": dialogue([ASK, GOOD]), "rejected": [ASK, BAD]},
        None,
        "without a prompt, `chosen`, `rejected` mix strings and message lists; allowed is one kind; convert",
    ),
    "markers on one side": (
        {"chosen": dialogue([ASK, GOOD]), "rejected": "no"},
        None,
        "`chosen` carries the markers of a dialogue and `rejected` does not; allowed are .*; add the markers",
    ),
    "tools are no JSON": (
        {**Q, "tools": "[{"},
        "tools",
        r"given '\[{'; allowed is a list of tool schemas .*valid JSON; write",
    ),
    "tools in one dict": (
        {**Q, "tools": {"a": 1}},
        "tools",
        "given {'a': 1}; allowed is a list of tool schemas",
    ),
    "tools in one JSON dict": ({**Q, "tools": '{"a": 1}'}, "tools", "allowed is a list of tool schemas"),
    "tools of strings": ({**Q, "tools": ["find"]}, "tools", "allowed is a list of tool schemas"),
    "tools nested": ({**Q, "tools": "[" * 100_000}, "tools", "allowed is a list of tool schemas"),
    "kwargs": (
        {**Q, "chat_template_kwargs": "x"},
        "chat_template_kwargs",
        "given 'x'; allowed is a dict of keyword",
    ),
    "safer is 2": (
        {**PKU, "safer_response_id": 2},
        "safer_response_id",
        "given 2; allowed is 0 or 1, the number",
    ),
    "safer is -1": ({**PKU, "safer_response_id": -1}, "safer_response_id", "given -1; allowed is 0 or 1"),
    "safer is a bool": (
        {**PKU, "safer_response_id": True},
        "safer_response_id",
        "given True; allowed is 0 or 1",
    ),
    "safer is text": ({**PKU, "safer_response_id": "1"}, "safer_response_id", "given '1'; allowed is 0 or 1"),
    "safer is None": (
        {**PKU, "safer_response_id": None},
        "safer_response_id",
        "given None; allowed is 0 or 1",
    ),
    "PKU response": ({**PKU, "response_1": ""}, "response_1", "is empty"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusal_names_row_column_and_remedy_and_hides_no_row(name):
    row, column, message = REFUSALS[name]
    sound = PKU if "safer_response_id" in row else Q
    good = {key: sound.get(key, None if key == "tools" or "kwargs" in key else "plain") for key in row}
    if "prompt" not in row:
        good = {"chosen": "yes", "rejected": "no"}
    first, refused, last = pairs_from_batch(batch(good, row, good), first_row=40)
    assert isinstance(first, Pair)
    assert isinstance(last, Pair)
    assert isinstance(refused, RowError)
    assert (refused.row, refused.column) == (41, column)
    where = "row 41: " if column is None else f"row 41, column `{column}`: "
    assert str(refused).startswith(where)
    assert re.search(message, str(refused)), str(refused)
    assert re.fullmatch(r".+; allowed (is|are) .+; .+", refused.reason)


def test_excerpts_are_short():
    long = "\n\nHuman: " + "x" * 1_000_000
    assert len(one({"chosen": long, "rejected": long}).reason) < 400
    many = [{"role": "user", "content": "y" * 1000, "number": 10**6000}] * 1000
    assert len(one({"prompt": "q", "chosen": [GOOD, *many], "rejected": "no"}).reason) < 400
    keys = {"k" * 1000 + str(i): "v" * 1000 for i in range(1000)}
    assert len(one({**Q, "chosen": keys}).reason) < 400
    assert f"is '{'y' * 59}... (str)" in one({**Q, "chosen": ["y" * 60]}).reason
    assert f"is '{'y' * 58}' (str)" in one({**Q, "chosen": ["y" * 58]}).reason


@pytest.mark.parametrize("pickler", [pickle, dill])
def test_row_error_survives_pickling(pickler):
    error = one({**Q, "chosen": ""})
    again = pickler.loads(pickler.dumps(error))
    assert type(again) is RowError
    assert (again.row, again.column, again.reason, str(again)) == (
        error.row,
        error.column,
        error.reason,
        str(error),
    )


def test_pickling_can_fail():  # control of the test above
    class Broken(ValueError):
        def __init__(self, row: int, column: str) -> None:
            super().__init__(f"{row} {column}")

    with pytest.raises(TypeError):
        copy.copy(Broken(1, "chosen"))
    assert str(copy.copy(RowError(1, None, "why"))) == "row 1: why"


def test_the_status_is_the_error_without_the_row():
    error = one({**Q, "chosen": ""})
    assert f'row 0, {error.status}, or skip such rows with `on_error="skip"`' == str(error)
    assert error.status.startswith("column `chosen`: the response '' is empty")
    assert RowError(3, None, "why").status == "why"


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        (Q, ("chosen", "rejected")),
        (PKU, ("response_0", "response_1")),
        ({**PKU, "safer_response_id": 1}, ("response_1", "response_0")),
    ],
)
def test_a_pair_knows_the_columns_of_its_sides_and_is_equal_without_them(row, columns):
    read = pair(row)
    assert read.columns == columns
    assert read == Pair(read.chosen, read.rejected)
    assert one({"q": "q", "good": "a", "bad": "b"}, Columns("q", "good", "bad")).columns == ("good", "bad")


# -- Batches -------------------------------------------------------------------------------------------------

SINGLE = [
    SHAPES["hh-rlhf"],
    SHAPES["conversational implicit"],
    SHAPES["conversational explicit"],
    SHAPES["dialogue prompt with messages"],
    SHAPES["dict of lists"],
    SHAPES["PKU, first is safer"],
    SHAPES["numpy"],
    {**Q, "chosen": None},
]


@pytest.mark.parametrize("row", SINGLE)
def test_a_single_row_is_no_batch(row):
    with pytest.raises(ValueError, match=r"the value of a single row; .*; pass `batched=True` to `map`") as caught:
        pairs_from_batch(row)
    assert not isinstance(caught.value, RowError)
    assert pairs_from_batch(batch(row))  # control: the same row in a batch


@pytest.mark.parametrize("prompt", ["q", [ASK]])
@pytest.mark.parametrize("responses", [["a", "b"], [held("a"), held("b")], [held([GOOD]), held([BAD])]])
def test_a_single_row_of_responses_is_no_batch(prompt, responses):
    row = {"prompt": prompt, "responses": responses}
    with pytest.raises(ValueError, match="pass `batched=True`"):
        responses_from_batch(row)
    assert len(responses_from_batch(batch(row))[0]) == 2  # control: the same row in a batch


def test_map_without_batched_raises():
    ds = datasets.Dataset.from_list([SHAPES["conversational explicit"]] * 2)
    with pytest.raises(ValueError, match="pass `batched=True`"):
        ds.map(lambda row: {"n": len(pairs_from_batch(row))})
    assert ds.map(lambda rows: {"n": [len(pairs_from_batch(rows))] * 2}, batched=True)["n"][:] == [2, 2]


def test_missing_columns():
    with pytest.raises(ValueError, match=r"columns `question`, `good`, which is no shape .* `prompt_column`"):
        pairs_from_batch({"question": ["q"], "good": ["a"]})
    with pytest.raises(ValueError, match=r"columns none, which is no shape"):
        pairs_from_batch({})
    with pytest.raises(ValueError, match=r"allowed is `responses`, .* `responses_column`"):
        responses_from_batch({"prompt": ["q"], "chosen": ["a"]})
    with pytest.raises(ValueError, match=r"`, \.\.\., which"):
        pairs_from_batch({f"c{i}": [1] for i in range(50)})


def test_named_columns():
    row = {"q": "q", "good": "yes", "bad": "no"}
    names = Columns(prompt="q", chosen="good", rejected="bad")
    assert one(row, names) == one(Q)
    with pytest.raises(ValueError, match=r"`prompt_column='question'` names no column; .* `q`, `good`, `bad`"):
        one(row, Columns(prompt="question", chosen="good", rejected="bad"))
    assert one({**row, "bad": ""}, names).column == "bad"


def test_one_column_for_two_things():
    rows = {**batch(Q), **batch(PKU), "responses": [["a"]]}
    for names in (
        Columns(prompt="chosen"),
        Columns(chosen="prompt"),
        Columns(rejected="chosen"),
        Columns(tools="chosen"),
    ):
        with pytest.raises(
            ValueError, match="_column` and `.*_column` name the same column, `.*`; allowed .*; name another"
        ):
            pairs_from_batch(rows, names)
    with pytest.raises(ValueError, match="`prompt_column` and `responses_column` name the same column, `responses`"):
        responses_from_batch(rows, Columns(prompt="responses"))
    # What another shape calls so is free.
    assert isinstance(pairs_from_batch(rows, Columns(chosen="response_0", rejected="response_1"))[0], Pair)
    assert len(responses_from_batch(rows, Columns(prompt="chosen"))[0]) == 1


@pytest.mark.parametrize("given", [None, 3, "text", [Q, Q], {"prompt"}])
def test_what_is_no_batch_at_all(given):
    with pytest.raises(ValueError, match=r"as a batch; allowed is a mapping of column names"):
        pairs_from_batch(given)


def test_columns_of_different_lengths():
    with pytest.raises(ValueError, match=r"different lengths: `chosen` has 2, `rejected` has 1"):
        pairs_from_batch({"chosen": ["a", "b"], "rejected": ["a"]})


def test_an_empty_batch_has_no_pairs():
    assert pairs_from_batch({"chosen": [], "rejected": []}) == []
    assert responses_from_batch({"responses": []}) == []


def test_other_columns_are_never_touched():
    class Untouchable(dict):
        def __getitem__(self, name):
            assert name in Q, name
            return super().__getitem__(name)

    assert isinstance(pairs_from_batch(Untouchable({**batch(Q), "image": [object()]}))[0], Pair)


# -- A prompt under another name ------------------------------------------------------------------------------

SIDES = {"chosen": "On the hook.", "rejected": "Break the door."}
ASKED = "Where is the key?"


@pytest.mark.parametrize(
    "name",
    [
        *(
            "question",
            "questions",
            "instruction",
            "query",
            "input",
            "problem",
            "request",
            "Question",
            "prompts",
            "PROMPT",
        ),
        *("user", "human", "context", "history", "prompt_text", "userPrompt", "user_message", "input text", "goal"),
    ],
)
@pytest.mark.parametrize("cell", [ASKED, [ASK], legacy([ASK])], ids=["text", "messages", "dict of lists"])
def test_a_prompt_under_another_name_is_not_passed_over(name, cell):
    message = f"row 5 has responses without a prompt, and its column `{name}` holds .*; say `prompt_column='{name}'`"
    for row, read in (
        (SIDES, pairs_from_batch),
        ({"chosen": [GOOD], "rejected": [BAD]}, pairs_from_batch),
        ({**SIDES, "prompt": ""}, pairs_from_batch),
        ({"responses": list(SIDES.values())}, responses_from_batch),
    ):
        with pytest.raises(ValueError, match=message):
            read(batch({**row, name: cell}), first_row=5)
    named = pairs_from_batch(batch({**SIDES, name: cell}), Columns(prompt=name))
    assert messages(named[0].chosen)[0] == [ASK]


@pytest.mark.parametrize(
    "row",
    [
        {**SIDES, "prompt": "Which key?", "question": ASKED},  # the prompt is named
        {"chosen": dialogue([ASK, GOOD]), "rejected": dialogue([ASK, BAD]), "question": ASKED},
        {"chosen": [ASK, GOOD], "rejected": [ASK, BAD], "instruction": ASKED},
        {"chosen": f"Q: {ASKED} A: here", "rejected": f"Q: {ASKED} A: there", "question": f"{ASKED} \n"},
        {**SIDES, "question": ""},
        {**SIDES, "question": None},
        {**SIDES, "input": 3},
        {**SIDES, "question_id": "a b", "prompt_source": "the web", "user": "kim", "context_length": "9 9", "note": ASKED},
    ],
)  # fmt: skip
def test_what_is_no_prompt_is_left_alone(row):
    assert isinstance(one(row), Pair)


@pytest.mark.parametrize("form", [None, "numpy", "torch", "pandas", "arrow"])
def test_a_stored_prompt_under_another_name_is_not_passed_over(form):
    ds = datasets.Dataset.from_list([{**SIDES, "question": ASKED, "place": "cellar"}] * 3).with_format(form)
    with pytest.raises(
        ValueError, match="row 0 has responses without a prompt, and its column `question` holds 'Where"
    ):
        ds.map(lambda rows: pairs_from_batch(rows) and {}, batched=True)
    assert len(pairs_from_batch(ds.remove_columns("question")[:])) == 3


# -- Datasets ------------------------------------------------------------------------------------------------

FORMATS = [None, "numpy", "torch", "pandas", "arrow"]
TEXT = datasets.Value("string")
LEGACY = {"role": TEXT, "content": TEXT, "name": TEXT}
ENTRY = {"response": TEXT, "model": TEXT, "overall_score": datasets.Value("float64")}
STORED = {
    "strings": datasets.Dataset.from_list([SHAPES["dialogue prompt"]] * 3),
    "hh-rlhf": datasets.Dataset.from_list([SHAPES["hh-rlhf"]] * 3),
    "PKU": datasets.Dataset.from_list([SHAPES["PKU, first is safer"]] * 3),
    "messages": datasets.Dataset.from_list([SHAPES["conversational implicit"]] * 3),
    "old sequences": datasets.Dataset.from_list(
        [SHAPES["dict of lists"]] * 3,
        features=datasets.Features(dict.fromkeys(SHAPES["dict of lists"], datasets.Sequence(LEGACY))),
    ),
    "text parts": datasets.Dataset.from_list(
        [{**SHAPES["conversational explicit"], "chosen": SHAPES["text parts"]["chosen"]}] * 3
    ),
    # A column whose other rows have tool calls: Arrow fills the key in all of them.
    "filled keys": datasets.Dataset.from_list(
        [SHAPES["conversational explicit"]] * 3
        + [{"prompt": [ASK, CALL, RESULT], "chosen": [GOOD], "rejected": [BAD]}]
    ).select(range(3)),
}  # fmt: skip


@pytest.mark.parametrize("name", STORED)
@pytest.mark.parametrize("form", FORMATS)
def test_stored_and_formatted_rows_give_the_same_messages(name, form):
    ds = STORED[name].with_format(form)
    expected = [[(PROMPT, [GOOD]), (PROMPT, [BAD])]] * 3
    assert [said(read) for read in pairs_from_batch(ds[:3])] == expected
    mapped: list[Any] = []
    ds.map(lambda rows: mapped.extend(pairs_from_batch(rows)), batched=True, batch_size=2)
    assert [said(read) for read in mapped] == expected
    for read in mapped:  # nothing of numpy is left for a template or JSON to trip over
        json.dumps([read.chosen.prompt, read.chosen.response, read.chosen.text])


def test_a_dataset_is_a_batch_and_so_is_a_stream():
    assert len(pairs_from_batch(STORED["hh-rlhf"])) == 3
    mapped: list[Any] = []

    def keep(rows):
        mapped.extend(pairs_from_batch(rows))
        return rows

    list(STORED["messages"].to_iterable_dataset().map(keep, batched=True))
    assert [said(read) for read in mapped] == [[(PROMPT, [GOOD]), (PROMPT, [BAD])]] * 3


@pytest.mark.parametrize("form", FORMATS)
def test_stored_tools(form):
    sides = {"chosen": [GOOD], "rejected": [BAD]}
    rows = [
        {"prompt": [ASK, CALL, RESULT], **sides, "tools": [TOOL], "chat_template_kwargs": {"a": True}},
        {"prompt": [ASK], **sides, "tools": None, "chat_template_kwargs": None},
    ]
    first, second = pairs_from_batch(datasets.Dataset.from_list(rows).with_format(form)[:2])
    assert (list(first.chosen.prompt), first.chosen.tools) == ([ASK, CALL, RESULT], (TOOL,))
    assert first.chosen.chat_template_kwargs == {"a": True}
    assert (second.chosen.tools, second.chosen.chat_template_kwargs) == (None, None)


@pytest.mark.parametrize("form", FORMATS)
def test_stored_nulls_are_refused_row_by_row(form):
    ds = datasets.Dataset.from_list([Q, {**Q, "chosen": None}, Q]).with_format(form)
    first, refused, last = pairs_from_batch(ds[:3])
    assert isinstance(first, Pair)
    assert isinstance(last, Pair)
    assert isinstance(refused, RowError)
    assert (refused.row, refused.column) == (1, "chosen")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("column", [[ENTRY], datasets.List(ENTRY), datasets.Sequence(ENTRY)])
def test_stored_responses_beside_their_models(form, column):
    features = datasets.Features({"instruction": TEXT, "completions": column})
    both = [{"response": m["content"], "model": "m", "overall_score": 1.0} for m in (GOOD, BAD)]
    rows = [{"instruction": OPEN, "completions": both}, {"instruction": OPEN, "completions": both[:1]}]
    if isinstance(column, dict):  # an old `Sequence`
        rows = [{**row, "completions": columnwise(row["completions"])} for row in rows]
    ds = datasets.Dataset.from_list(rows, features=features).with_format(form)
    names = Columns(prompt="instruction", responses="completions")
    read = responses_from_batch(ds[:2], names)
    assert [[messages(side) for side in row] for row in read] == [
        [(PROMPT, [GOOD]), (PROMPT, [BAD])],
        [(PROMPT, [GOOD])],
    ]


@pytest.mark.parametrize("form", FORMATS)
def test_stored_responses(form):
    ds = datasets.Dataset.from_list(
        [
            {"prompt": OPEN, "responses": [GOOD["content"], BAD["content"]]},
            {"prompt": OPEN, "responses": [GOOD["content"]]},
        ]
    )
    read = responses_from_batch(ds.with_format(form)[:2])
    assert [[messages(side) for side in row] for row in read] == [
        [(PROMPT, [GOOD]), (PROMPT, [BAD])],
        [(PROMPT, [GOOD])],
    ]


# -- Properties ----------------------------------------------------------------------------------------------

words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30).filter(
    lambda s: s.strip() and not any(marker in s for marker in MARKERS.values())
)
turns = st.lists(st.tuples(words, words), min_size=1, max_size=3).map(
    lambda asked: [
        {"role": role, "content": content}
        for exchange in asked
        for role, content in zip(("user", "assistant"), exchange, strict=True)
    ]
)


@settings(deadline=None)
@given(turns, words)
def test_messages_survive_being_written_as_a_dialogue(whole, other):
    bad = [*whole[:-1], {"role": "assistant", "content": other}]
    expected = [(whole[:-1], whole[-1:]), (bad[:-1], bad[-1:])]
    read = pair({"chosen": dialogue(whole), "rejected": dialogue(bad)})
    assert said(read) == expected
    assert "".join(read.rejected.text) == dialogue(bad)
    prompt = dialogue(whole[:-1]) + "\n\nAssistant:"
    row = {"prompt": prompt, "chosen": f" {whole[-1]['content']}", "rejected": f" {other}"}
    assert said(pair(row)) == expected
    assert said(pair({"chosen": whole, "rejected": bad})) == expected
    assert said(pair({"prompt": whole[:-1], "chosen": whole[-1:], "rejected": bad[-1:]})) == expected


# Few words, so that conversations often begin alike.
few = st.sampled_from(["Hi", "No", " Hi", "Hi\n", "Assistant: no"])
asked = st.lists(st.tuples(few, few, st.booleans()), max_size=3).map(
    lambda exchanges: [
        message
        for question, answer, calls in exchanges
        for message in (
            {"role": "user", "content": question},
            *([CALL, RESULT] if calls else []),
            {"role": "assistant", "content": answer},
        )
    ]
)
talks = st.builds(
    lambda system, before, question, answer: [
        *([{"role": "system", "content": "Be kind."}] if system else []),
        *before,
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ],
    st.booleans(), asked, few, few,
)  # fmt: skip


def sides_of(row: dict[str, Any]) -> dict[str, Conversation]:
    """Each response of a row by its column."""
    if "responses" in row:
        (read,) = responses_from_batch(batch(row))
        return {f"responses[{i}]": side for i, side in enumerate(read)}
    read = pair(row)
    return dict(zip(read.columns, (read.chosen, read.rejected), strict=True))


def reads_alike(whole: list[dict[str, Any]], partners: list[list[dict[str, Any]]], read: Any) -> bool:
    """Whether a conversation is read the same beside every partner, first or second, in every shape of row."""
    explicit = [{"prompt": whole[:-1], "chosen": whole[-1:], "rejected": other[-1:]} for other in partners]
    pku = {"response_0": whole[-1]["content"], "response_1": "x", "safer_response_id": 1}
    found = [
        *(read({"chosen": whole, "rejected": other})["chosen"] for other in partners),
        *(read({"chosen": other, "rejected": whole})["rejected"] for other in partners),
        *(read({"prompt": whole[:-1], "chosen": whole, "rejected": whole[:-1] + other[-1:]})["chosen"] for other in partners),
        *(read(row)["chosen"] for row in explicit),
        read({"prompt": whole[:-1], **pku})["response_0"],
        read({"responses": [*partners, whole]})[f"responses[{len(partners)}]"],
    ]  # fmt: skip
    return all(messages(one) == (whole[:-1], whole[-1:]) for one in found)


@settings(deadline=None, max_examples=200)
@given(talks, st.lists(talks, min_size=1, max_size=3))
def test_what_is_read_of_a_text_never_depends_on_its_partner(whole, partners):
    assert reads_alike(whole, partners, sides_of)
    assert messages(conversation(None, whole)) == (whole[:-1], whole[-1:])
    if not any(m["role"] not in MARKERS for side in (whole, *partners) for m in side):  # as dialogues in strings, too
        for other in partners:
            assert sides_of({"chosen": dialogue(whole), "rejected": dialogue(other)})["chosen"] == conversation(
                None, dialogue(whole)
            )


def test_a_prompt_that_both_share_would_depend_on_the_partner():  # control of the test above
    def shared(row: dict[str, Any]) -> dict[str, Conversation]:
        read = sides_of(row)
        if "responses" in row or "prompt" in row:
            return read
        from trl.data_utils import extract_prompt

        theirs = extract_prompt(row)
        return {name: Conversation(tuple(theirs["prompt"]), tuple(theirs[name])) for name in read}

    whole = [ASK, ASK_BACK, TELL, GOOD]
    assert reads_alike(whole, [[*PROMPT, BAD]], shared)
    assert not reads_alike(whole, [[ASK, BAD]], shared)


def test_a_score_belongs_to_one_text(tiny_llama):
    """Through a model: implicit conversations, beside partners that share more or less of them, and alone."""
    from legend_hf import LegendMarginFn, fit_direction

    fitted = [{"prompt": q, "chosen": f"No {q}", "rejected": f"Yes {q}"} for q in ("tea", "jam", "pie", "soup")]
    direction = fit_direction(fitted, model=str(tiny_llama), template="dialogue")
    whole = [*PROMPT, GOOD]
    partners = [[*PROMPT, BAD], [ASK, BAD], [ASK, ASK_BACK, ASK, BAD], [TELL, BAD], whole]
    rows = datasets.Dataset.from_list([{"chosen": whole, "rejected": other} for other in partners])
    scores = np.array(rows.map(LegendMarginFn(direction), batched=True)["chosen_score"][:])
    spread = np.std([direction.score(None, other) for other in partners])
    assert np.abs(scores - direction.score(None, whole)).max() <= 1e-4 * spread
    assert abs(direction.score(None, dialogue(whole)) - scores[0]) <= 1e-4 * spread
    # The control: a longer response of the same words has another score.
    assert abs(direction.score([ASK], whole[1:]) - scores[0]) > 1e-2 * spread


def test_stripping_would_not_survive():  # control of the test above
    whole = [{"role": "user", "content": " a\n"}, {"role": "assistant", "content": "  b \n\n"}]
    (read,) = pairs_from_batch(batch({"chosen": dialogue(whole), "rejected": dialogue(whole)}))
    assert said(read)[0] == (whole[:-1], whole[-1:])
    assert [m["content"].strip() for m in whole] != [m["content"] for m in whole]


markers = st.sampled_from(["\n\nHuman:", "\n\nAssistant:", "Human:", "Assistant:"])
pieces = markers | st.sampled_from(["\n", " ", "a", "é", "b c"])
broken = st.sampled_from(["\ud800", "", " \n", "x\udfff"])
strings = st.lists(pieces, max_size=8).map("".join) | st.text("a: \n", max_size=10) | broken
numbers = st.sampled_from([0, 1, -1, 2.5, float("nan"), True, None, b"x", np.float32(1), np.array("x"), np.array(3)])
scalars = (
    strings | numbers | st.sampled_from([torch.tensor(1), torch.zeros(2, 2), np.zeros((2, 0)), object(), range(3)])
)
keys = st.sampled_from(["role", "content", "type", "text", "tool_calls", "name", "from", 1])
roles = st.sampled_from([*ROLES, "User", "", None])
odd = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(keys, inner, max_size=4)
        | st.fixed_dictionaries({"role": roles, "content": inner}, optional={"tool_calls": inner})
    ),
    max_leaves=8,
)
sound = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(ROLES), "content": strings}, optional={"tool_calls": odd}),
    max_size=4,
)
value = strings | strings | sound | sound | odd
settled = st.none() | st.none() | st.none() | odd  # mostly none, so that the sides are looked at


def check_row(read: Any, whole: type) -> None:
    """A row is read or refused, and what is read keeps the promises of `Conversation`."""
    if isinstance(read, RowError):
        assert str(read).startswith("row 0")
        assert len(str(read)) < 1000
        return
    assert isinstance(read, whole)
    for side in read if isinstance(read, tuple) else (read.chosen, read.rejected):
        assert side.response[0]["role"] == side.response[-1]["role"] == "assistant"
        assert side.response[-1]["content"].strip()
        for message in (*side.prompt, *side.response):
            assert message["role"] in ROLES
            assert None not in message.values()
            message.get("content", "").encode()
        if side.text is not None:
            assert "".join(side.text).strip()
            assert side.text[1].endswith(side.response[-1]["content"])


ROW = {"prompt": "q", "chosen": "a", "rejected": "b"}


@settings(max_examples=600, deadline=None)
@given(
    st.fixed_dictionaries(
        {"chosen": value, "rejected": value},
        optional={"prompt": value, "tools": settled, "chat_template_kwargs": settled},
    )
)
def test_any_row_is_a_pair_or_a_refusal(row):
    # A sound row beside it shows a batch, whatever the first row is.
    other = {**ROW, "prompt": "q", "tools": None, "chat_template_kwargs": None}
    read, neighbour = pairs_from_batch(batch(row, {name: other[name] for name in row}))
    check_row(read, Pair)
    assert isinstance(neighbour, Pair)


@settings(max_examples=200, deadline=None)
@given(st.fixed_dictionaries({"prompt": value, "response_0": value, "response_1": value, "safer_response_id": value}))
def test_any_pku_row_is_a_pair_or_a_refusal(row):
    read, neighbour = pairs_from_batch(batch(row, PKU))
    check_row(read, Pair)
    assert isinstance(neighbour, Pair)


@settings(max_examples=200, deadline=None)
@given(st.fixed_dictionaries({"responses": st.lists(value, max_size=3) | value}, optional={"prompt": value}))
def test_any_row_of_responses_is_read_or_refused(row):
    other = {"prompt": "q", "responses": ["a"]}
    read, neighbour = responses_from_batch(batch(row, {name: other[name] for name in row}))
    check_row(read, tuple)
    assert len(neighbour) == 1


def test_the_check_itself_can_fail():  # control of the three above
    bad = Conversation((), ({"role": "assistant", "content": " "},))
    with pytest.raises(AssertionError):
        check_row(Pair(bad, bad), Pair)


def test_deep_nesting_is_refused():
    deep: Any = "x"
    for _ in range(100_000):
        deep = [deep]
    try:
        read, neighbour = pairs_from_batch(batch({**Q, "tools": deep}, {**Q, "tools": None}))
        assert isinstance(neighbour, Pair)
        assert "nested too deeply" in read.reason
    finally:  # taken apart by hand: freeing such a list recurses too
        while isinstance(deep, list):
            deep = deep.pop()


@pytest.mark.parametrize(
    "text", ["\n" * 10_000_000, " " * 10_000_000 + "x", "\n\nHuman" * 1_000_000, "\n\nHuman: x" * 50_000]
)
def test_long_strings_take_linear_time(text):
    start = time.perf_counter()
    pairs_from_batch({"prompt": [text], "chosen": [text], "rejected": [text]})
    pairs_from_batch({"chosen": [text], "rejected": [text]})
    assert time.perf_counter() - start < 30  # quadratic would be hours


# -- Real rows -----------------------------------------------------------------------------------------------


def read_lines(path: Path) -> dict[str, list[Any]]:
    return batch(*(json.loads(line) for line in path.read_text().splitlines()))


def test_real_rows_agree_across_shapes(shared_data):
    raw, split = (
        read_lines(shared_data / "hh_harmless_raw.jsonl"),
        read_lines(shared_data / "hh_harmless.jsonl"),
    )
    whole, explicit = pairs_from_batch(raw), pairs_from_batch(split)
    differing = 0
    for i, (one_way, other_way) in enumerate(zip(whole, explicit, strict=True)):
        assert isinstance(one_way, RowError) == isinstance(other_way, RowError)
        if isinstance(one_way, RowError):
            assert "is empty or only whitespace" in one_way.reason
            assert not raw[one_way.column][i].rpartition("Assistant:")[2].strip()
            continue
        assert "".join(one_way.chosen.text) == raw["chosen"][i]
        assert "".join(one_way.rejected.text) == raw["rejected"][i]
        differing += said(one_way) != said(other_way)
    # The one row whose sides have different earlier turns.
    assert differing <= 1
    assert sum(isinstance(read, Pair) for read in whole) > 1000


def test_real_pku_rows(shared_data):
    rows = read_lines(shared_data / "pku_saferlhf.jsonl")
    pku = {
        "prompt": rows["prompt"],
        "response_0": rows["rejected"],
        "response_1": rows["chosen"],
        "safer_response_id": [1] * len(rows["prompt"]),
    }
    assert [
        read == other
        for read, other in zip(pairs_from_batch(rows), pairs_from_batch(pku), strict=True)
        if isinstance(read, Pair)
    ].count(False) == 0


# -- Import --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("module", "heavy"), [("legend_hf.reading.formats", False), ("torch", True)])
def test_importing_this_needs_no_torch(module, heavy):
    code = f"import sys, {module}; print(not {{'torch', 'transformers', 'numpy'}}.isdisjoint(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == str(heavy)
