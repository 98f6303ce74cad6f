"""A stream: what it answers while a text is written is what reading the text so far anew gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_trace import PROMPT, SAID, alone, direction_of, others  # noqa: F401
from tiny_causal import CHAT, save_tiny_causal

from legend_hf.reading.formats import conversation
from legend_hf.reading.reader import Runtime, open_reader

SPREAD = 1e-5


def tokens_of(direction, prompt, said):
    """What a model would write behind the prompt: the text's tokens, a space before the first word among them."""
    opened = open_reader(direction.reader, Runtime(path=direction.model_path))
    (text,) = opened.encode([conversation(prompt, said)])
    begun = direction.stream(prompt).ids
    assert text.ids[: len(begun)] == begun
    return list(text.ids[len(begun) : text.said[-1] + 1])


@pytest.mark.parametrize("pooling", ["mean", "last", "mean_all"])
def test_fed_with_tokens_it_answers_the_scores_of_the_trace(tiny_llama, pooling):
    direction = direction_of(tiny_llama, pooling=pooling, template="dialogue")
    trace = direction.trace(PROMPT, SAID)
    stream = direction.stream(PROMPT)
    assert np.isnan(stream.score)
    ids = tokens_of(direction, PROMPT, SAID)
    answers = [stream.feed(token) for token in ids][-len(trace.ids) :]
    assert np.abs(np.array(answers) - trace.scores).max() <= SPREAD * trace.scores.std()
    # In pieces of any size, an empty one among them, and with what ends a turn behind.
    other = direction.stream(PROMPT)
    for a, b in ((0, 3), (3, 3), (3, 10), (10, None)):
        other.feed(ids[a:b])
    assert other.feed([1]) == pytest.approx(trace.score, abs=SPREAD * trace.scores.std())
    assert len(direction.stream(PROMPT).ids) > 3


@pytest.mark.parametrize("choices", [{}, {"pooling": "last"}, {"pooling": "last", "eos": "append"}, {"pooling": "mean_all", "eos": "append"}])  # fmt: skip
def test_fed_with_text_it_answers_the_score_of_the_text_so_far(tiny_llama, choices):
    direction = direction_of(tiny_llama, template="dialogue", **choices)
    stream = direction.stream(PROMPT)
    scores, answers = [], []
    for end in (1, 2, 5, 9, 10, 30, 33, len(SAID)):
        answers.append(stream.feed(SAID[len(stream._text) : end]))
        scores.append(direction.score(PROMPT, SAID[:end]))
    assert np.abs(np.array(answers) - scores).max() <= SPREAD * np.std(scores)
    # The control: the text so far is read, not the last piece alone.
    assert abs(answers[-1] - direction.score(PROMPT, SAID[33:])) > 0.01 * np.std(scores)


def test_what_ends_a_text_is_read_behind_tokens_too(tiny_llama):
    direction = direction_of(tiny_llama, template="dialogue", pooling="last", eos="append")
    stream = direction.stream(PROMPT)
    text = "Gladly: bread needs flour."
    for token in tokens_of(direction, PROMPT, text):
        stream.feed(token)
    assert stream.score == pytest.approx(direction.score(PROMPT, text), abs=1e-5)


@pytest.mark.parametrize("name", ["sliding", "stretched"])
def test_windows_and_lengths(others, name):  # noqa: F811
    direction = direction_of(others[name], template="{prompt}", joiner=" ", max_length=512)
    said = "Gladly: bread." if name == "stretched" else SAID
    stream = direction.stream("a")
    ids = tokens_of(direction, "a", said)
    each = alone(direction, "a", said)
    answers = np.array([stream.feed(token) for token in ids])[-len(each) :]
    assert np.abs(answers - each).max() <= 1e-5 * max(answers.std(), 0.1)
    if name == "stretched":
        with pytest.raises(ValueError, match="depend on how long the text is"):
            stream.feed(ids * 4)


@pytest.mark.parametrize("name", ["encoder", "recurrent"])
def test_a_model_that_cannot_be_read_on_is_refused(others, name):  # noqa: F811
    direction = direction_of(others[name], template="dialogue")
    with pytest.raises(ValueError, match="cannot be read on from where it was .*; use `trace`"):
        direction.stream(PROMPT)


def test_what_a_stream_does_not_take(tiny_llama):
    direction = direction_of(tiny_llama, template="dialogue", max_length=40)
    words, tokens = direction.stream("Bread."), direction.stream("Bread.")
    words.feed("Gladly")
    tokens.feed([300])
    with pytest.raises(ValueError, match="fed with text before"):
        words.feed(300)
    with pytest.raises(ValueError, match="fed with tokens before"):
        tokens.feed("Gladly")
    before = tokens.score
    with pytest.raises(ValueError, match="longer than `max_length`"):
        tokens.feed([300] * 60)
    assert tokens.score == before
    with pytest.raises(ValueError, match="the response needs"):
        words.feed(" bread" * 60)
    assert words.feed(", bread") == pytest.approx(direction.score("Bread.", "Gladly, bread"), abs=1e-5)
    assert np.isnan(direction.stream("Bread.").feed("  "))


@pytest.mark.parametrize("chat", [None, CHAT])
def test_it_stops_a_model_that_writes(tiny_llama, tmp_path, chat):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = save_tiny_causal(tiny_llama, tmp_path / "causal", chat)
    direction = direction_of(folder, template="auto")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    free = direction.stream(PROMPT)
    given = torch.tensor([free.ids])
    options = {"max_new_tokens": 30, "do_sample": False, "pad_token_id": tokenizer.eos_token_id}
    said = model.generate(given, stopping_criteria=[free.stop_below(-1e9)], **options)[0, len(free.ids) :].tolist()
    scores = []
    again = direction.stream(PROMPT)
    for token in said:
        scores.append(again.feed(token))
    assert free.score == pytest.approx(scores[-1], abs=1e-5)
    # Stopped at the first token whose score so far is the lowest of all.
    threshold = min(scores) + 1e-4
    stopped = direction.stream(PROMPT)
    short = model.generate(given, stopping_criteria=[stopped.stop_below(threshold)], **options)[0, len(free.ids) :]
    first = next(i for i, score in enumerate(scores) if score < threshold)
    assert short.tolist() == said[: first + 1]
    later = direction.stream(PROMPT)
    longer = model.generate(given, stopping_criteria=[later.stop_below(1e9, after=5)], **options)[0, len(free.ids) :]
    assert len([t for t in longer.tolist() if t not in tokenizer.all_special_ids]) in (5, len(said))
    with pytest.raises(ValueError, match="begins with its own prompt"):
        direction.stream(PROMPT).stop_below(0.0)(given[:, 1:])
    with pytest.raises(ValueError, match="follows one text"):
        direction.stream(PROMPT).stop_below(0.0)(given.repeat(2, 1))


def test_reading_otherwise_in_between_changes_nothing(tiny_llama):
    direction = direction_of(tiny_llama, template="dialogue")
    trace, stream = direction.trace(PROMPT, SAID), direction.stream(PROMPT)
    answers = []
    for token in tokens_of(direction, PROMPT, SAID):
        answers.append(stream.feed(token))
        direction.score(PROMPT, "Bread.")
    answers = np.array(answers)[-len(trace.scores) :]
    assert np.abs(answers - trace.scores).max() <= SPREAD * trace.scores.std()
    assert direction.trace(PROMPT, SAID).scores.tolist() == trace.scores.tolist()
