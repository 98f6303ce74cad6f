"""A trace: one reading holds what reading each beginning of a text alone gives, or it says that it does not."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from legend_hf import Direction
from legend_hf.directions.calibrate import Calibration
from legend_hf.reading.formats import conversation
from legend_hf.reading.reader import Runtime, describe_model, open_reader
from legend_hf.reading.templates import Tokens
from legend_hf.tracing import Trace, remember
from legend_hf.tracing.values import Neutral

PROMPT = "Tell me about bread."
SAID = "Gladly: bread needs flour — naïve 🙂\n\nand time, which שלום costs nothing."
UNIT = Calibration("unit", scale=0.5)


def direction_of(folder, **choices) -> Direction:
    reader = describe_model(folder, **{"layer": 2, **choices})
    vector = np.random.default_rng(0).normal(size=reader.d_model).astype(np.float32)
    return Direction(vector / np.linalg.norm(vector), reader, UNIT, model_path=str(folder))


@pytest.fixture(scope="module")
def others(tiny_llama, tmp_path_factory):
    """Models that are no plain decoder, on the tokenizer of `tiny_llama`."""
    from transformers import (  # fmt: skip
        BertConfig,
        BertModel,
        LlamaConfig,
        LlamaModel,
        MambaConfig,
        MambaModel,
        MistralConfig,
        MistralModel,
    )

    size = {"vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 3}
    heads = {**size, "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 512}
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    longer = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 32, **factors}
    models = {
        "encoder": (BertModel, BertConfig(**heads)),
        "sliding": (MistralModel, MistralConfig(**heads, num_key_value_heads=2, sliding_window=8)),
        "stretched": (LlamaModel, LlamaConfig(**heads, rope_parameters=longer)),
        "recurrent": (MambaModel, MambaConfig(**size, state_size=4)),
    }
    folders = {}
    for name, (kind, config) in models.items():
        folders[name] = tmp_path_factory.mktemp(name)
        with torch.random.fork_rng():
            torch.manual_seed(3)
            kind(config).eval().save_pretrained(folders[name])
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tiny_llama / file, folders[name] / file)
    return folders


def alone(direction: Direction, prompt, said) -> np.ndarray:
    """The score of every beginning, each read alone by a reading of its own."""
    opened = open_reader(direction.reader, Runtime(path=direction.model_path))
    (text,) = opened.encode([conversation(prompt, said)])
    scores = []
    for i, place in enumerate(text.said):
        content = text.said[: i + 1] if direction.reader.pooling != "mean_all" else tuple(range(place + 1))
        ((_, hidden),) = opened.read([Tokens(text.ids[: place + 1], content, place)], [direction.reader.layer])
        scores.append(direction.project(hidden[:, 0])[0])
    return np.array(scores)


@pytest.mark.parametrize("pooling", ["mean", "last", "mean_all"])
@pytest.mark.parametrize("template", ["dialogue", "alpaca"])
def test_one_reading_gives_the_score_of_every_beginning(tiny_llama, pooling, template):
    direction = direction_of(tiny_llama, pooling=pooling, template=template)
    trace = direction.trace(PROMPT, SAID)
    each = alone(direction, PROMPT, SAID)
    assert np.abs(trace.scores - each).max() <= 1e-5 * each.std()
    assert trace.scores[-1] == pytest.approx(trace.score, abs=1e-5 * each.std())
    assert trace.score == direction.score(PROMPT, SAID)
    # The control: the scores of another pooling are others.
    other = direction_of(tiny_llama, pooling="last" if pooling != "last" else "mean", template=template)
    assert np.abs(other.trace(PROMPT, SAID).scores - each).max() > 0.01 * each.std()


@pytest.mark.parametrize("name", ["sliding", "recurrent"])
def test_windows_and_recurrent_models_look_only_back_and_are_exact(others, name):
    direction = direction_of(others[name], template="dialogue")
    each = alone(direction, PROMPT, SAID)
    assert np.abs(direction.trace(PROMPT, SAID).scores - each).max() <= 1e-5 * each.std()


@pytest.mark.parametrize("name", ["encoder", "stretched"])
def test_what_looks_ahead_or_depends_on_the_length_says_so_and_gives_the_tokens_alone(others, name):
    direction = direction_of(others[name], template="dialogue", max_length=512)
    trace = direction.trace(PROMPT, SAID)
    assert trace.scores is None
    assert trace.settled is None
    assert "gives a beginning other states when it is read alone" in trace.why_no_scores
    assert np.mean(trace.values) == pytest.approx(trace.score, abs=1e-5)
    # And they would have been wrong.
    each = alone(direction, PROMPT, SAID)
    running = np.cumsum(trace.values) / np.arange(1, len(each) + 1)
    assert np.abs(running - each).max() > 1e-3 * each.std()


def test_a_model_whose_positions_depend_on_the_length_is_exact_as_long_as_they_do_not(others):
    direction = direction_of(others["stretched"], template="{prompt}", max_length=512)
    assert direction.trace("a", "bread").scores is not None
    assert direction.trace("a", "bread " * 60).scores is None
    assert direction.trace("a", "bread").scores is not None


@pytest.mark.parametrize("pooling", ["last", "mean_all"])
def test_where_the_end_of_the_text_is_pooled_its_beginnings_have_no_scores(tiny_llama, pooling):
    direction = direction_of(tiny_llama, pooling=pooling, eos="append", template="dialogue")
    trace = direction.trace(PROMPT, SAID)
    assert trace.scores is None
    assert "pools the token that ends a text" in trace.why_no_scores
    assert trace.score == direction.score(PROMPT, SAID)
    plain = direction_of(tiny_llama, pooling="mean", eos="append", template="dialogue").trace(PROMPT, SAID)
    assert plain.scores is not None
    assert len(plain.values) == len(trace.values), "the end is no token of the response"


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).filter(lambda s: s.strip())


@settings(max_examples=25)
@given(words, words)
def test_tokens_stand_where_they_stand_in_the_text(tiny_llama, prompt, said):
    trace = direction_of(tiny_llama, template="{prompt}", joiner="").trace(prompt, said)
    assert len(trace.tokens) == len(trace.places) == len(trace.ids) == len(trace.values) == len(trace.scores)
    assert all(0 <= a <= b <= len(trace.text) for a, b in trace.places)
    assert [a for a, _ in trace.places] == sorted(a for a, _ in trace.places)
    assert said in trace.text  # a token may begin in the prompt
    covered = {i for a, b in trace.places for i in range(a, b)}
    assert covered == set(range(len(trace.text)))
    for token, (a, b) in zip(trace.tokens, trace.places, strict=True):
        assert "\ufffd" in token or token == trace.text[a:b]


def test_a_long_prompt_is_cut_and_the_response_keeps_its_tokens(tiny_llama):
    short = direction_of(tiny_llama, template="dialogue", max_length=60)
    trace = short.trace("Tell me about bread. " * 500, SAID)
    assert trace.text == SAID
    assert (trace.places[0][0], trace.places[-1][1]) == (0, len(SAID))
    assert trace.score == short.score("Tell me about bread. " * 500, SAID)
    with pytest.raises(ValueError, match="the response needs"):
        short.trace(PROMPT, SAID * 20)


def test_a_pair_is_on_one_scale_and_knows_where_it_parts_and_settles(tiny_llama):
    direction = direction_of(tiny_llama, template="dialogue")
    row = {
        "prompt": PROMPT,
        "chosen": "Gladly: bread with care.",
        "rejected": "Gladly: who needs bread, and why not soup",
    }
    pair = direction.trace_pair(row)
    a, b = pair.chosen, pair.rejected
    assert (a.neutral, a.min_value, a.max_value) == (b.neutral, b.min_value, b.max_value)
    assert a.neutral.zero == pytest.approx((a.score + b.score) / 2)
    assert a.max_value - a.neutral.zero == pytest.approx(UNIT.scale)
    assert (
        pair.margin_raw
        == a.score - b.score
        == -direction.trace_pair({**row, "chosen": row["rejected"], "rejected": row["chosen"]}).margin_raw
    )
    assert a.tokens[: pair.parts_at] == b.tokens[: pair.parts_at] != ()
    assert a.tokens[pair.parts_at] != b.tokens[pair.parts_at]
    assert np.all(pair.running[: pair.parts_at] == 0)
    assert pair.running[-1] == pytest.approx(pair.margin_raw)
    k = pair.settled
    assert np.all(np.sign(pair.running[k - 1 :]) == np.sign(pair.margin_raw))
    assert k == 1 or np.sign(pair.running[k - 2]) != np.sign(pair.margin_raw)
    begun = direction.trace_pair({**row, "rejected": row["chosen"] + " And more."})
    assert begun.parts_at == min(len(begun.chosen.ids), len(begun.rejected.ids))
    assert direction.trace_pair(row, zero=3.0).chosen.neutral.zero == 3.0


def test_rows_of_other_shapes_and_names(tiny_llama):
    direction = direction_of(tiny_llama, template="dialogue")
    plain = direction.trace_pair({"prompt": PROMPT, "chosen": "Gladly.", "rejected": "No."})
    dialogue = {
        side: f"\n\nHuman: {PROMPT}\n\nAssistant: {said}" for side, said in (("chosen", "Gladly."), ("rejected", "No."))
    }
    assert direction.trace_pair(dialogue).margin_raw == pytest.approx(plain.margin_raw, abs=1e-6)
    renamed = direction.trace_pair(
        {"q": PROMPT, "a": "Gladly.", "b": "No."}, prompt_column="q", chosen_column="a", rejected_column="b"
    )
    assert renamed.margin_raw == plain.margin_raw
    with pytest.raises(ValueError, match="give one row of a dataset"):
        direction.trace_pair([dialogue])
    with pytest.raises(ValueError, match="`chosen`"):
        direction.trace_pair({"prompt": PROMPT, "chosen": "", "rejected": "No."})


def test_the_memory_of_a_trace_starts_at_neutral(tiny_llama):
    trace = direction_of(tiny_llama, template="dialogue").trace(PROMPT, SAID, zero=0.25)
    assert isinstance(trace, Trace)
    assert np.array_equal(trace.memory(3, 5), remember(trace.values - 0.25, 3, 5))
    assert trace.settled == replace(trace, neutral=Neutral(0.25, None)).settled
    with pytest.raises(ValueError, match="give finite numbers"):
        Neutral(float("nan"))


@pytest.mark.real
def test_on_the_real_model_every_beginning_has_its_score(real_llm):
    from conftest import ROOT

    direction = Direction.from_pretrained(ROOT / "scripts" / "demo" / "real_direction", model=real_llm)
    said = "I understand that you are angry. Talk to them first, and if that does not help, write to the landlord."
    trace = direction.trace("My neighbour plays loud music. What can I do?", said)
    each = alone(direction, "My neighbour plays loud music. What can I do?", said)
    assert np.abs(trace.scores - each).max() <= 1e-5 * each.std()
    assert "".join(trace.tokens) == said
