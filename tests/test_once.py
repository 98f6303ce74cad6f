"""No text is rendered or tokenised twice by functions that check all rows before they read any.

`annotate` and `make_pairs` check a whole dataset in a pass of its own: the token ids of all its rows might not fit.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from datasets import Dataset
from tiny_causal import save_tiny_causal

from legend_hf import LegendMarginFn, LegendScoreFn, Writer, annotate, fit_direction, preferences, reports
from legend_hf.reading import templates
from legend_hf.reading.formats import Columns, conversation
from legend_hf.reports import ladder

PAIRS = [
    {"prompt": f"Eat {thing}?", "chosen": f"No {thing}.", "rejected": f"All {thing}."} for thing in ("soap", "tea")
]
LADDERS = [
    {"prompt": f"Eat {thing}?", "responses": [f"No {thing}.", f"{thing}?", f"All {thing}."]}
    for thing in ("soap", "tea", "jam")
]
HARM = [
    {"prompt": f"Eat {thing}?", "response": f"Yes, all of the {thing}, now, at once, with a large spoon."}
    for thing in ("soap", "tea")
]


@pytest.fixture
def rendered(monkeypatch):
    """How often each text was written; the real functions do it."""
    seen: Counter[str] = Counter()
    whole, opened = templates.render, templates.render_open

    def render(talk, *args, **kwargs):
        seen[repr((talk.prompt, talk.response))] += 1
        return whole(talk, *args, **kwargs)

    def render_open(talk, *args, **kwargs):
        seen[repr(talk.prompt)] += 1
        return opened(talk, *args, **kwargs)

    monkeypatch.setattr(templates, "render", render)
    monkeypatch.setattr(templates, "render_open", render_open)
    return seen


@pytest.fixture(scope="module")
def direction(tiny_llama):
    return fit_direction(PAIRS, model=str(tiny_llama), layer=1)


@pytest.fixture(scope="module")
def causal(tiny_llama, tmp_path_factory):
    return save_tiny_causal(tiny_llama, tmp_path_factory.mktemp("causal") / "m")


CALLS = {
    "fit_direction": lambda d, model: fit_direction(PAIRS, model=str(d.model_path), layer=1),
    "ladder_check": lambda d, model: reports.ladder_check(d, Dataset.from_list(LADDERS)),
    "ladder_check, skip": lambda d, model: reports.ladder_check(d, Dataset.from_list(LADDERS), on_error="skip"),
    "correction_ladders": lambda d, model: preferences.correction_ladders(
        Dataset.from_list(HARM), model=Writer(model, template="dialogue", max_new_tokens=3)
    ),
    "compute_corr_at_k": lambda d, model: preferences.compute_corr_at_k(
        Dataset.from_list(HARM), model=Writer(model, template="dialogue", max_new_tokens=3), judge=lambda q, p, c: [True] * len(q), ks=(2, 5), samples=2
    ),
}  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
def test_every_text_is_written_once(direction, causal, rendered, call):
    CALLS[call](direction, causal)
    assert rendered
    assert set(rendered.values()) == {1}


def test_annotate_writes_every_text_twice(direction, rendered):  # control of the test above
    annotate(Dataset.from_list(PAIRS), LegendMarginFn(direction))
    assert set(rendered.values()) == {2}


def test_what_is_kept_of_a_ladder_is_what_was_encoded(direction):
    opened = LegendScoreFn(direction)._reading.open().readings[0].opened
    ((first, *_),) = ladder._encoded(Dataset.from_list(LADDERS), Columns(), opened)
    talks = [conversation(LADDERS[0]["prompt"], r) for r in LADDERS[0]["responses"]]
    assert list(first.texts()) == opened.encode(talks)
    assert first.lengths == [len(r) for r in LADDERS[0]["responses"]]
    assert all(part.dtype == np.int32 for ids, content, _ in first.packed for part in (ids, content))
