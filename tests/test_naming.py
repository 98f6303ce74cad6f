"""Names of texts: what was scored once is found again before it is tokenised, and nothing else is."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from itertools import combinations

import pytest
from builders import close_stores, pair_rows
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from legend_hf import LegendMarginFn, LegendScoreFn, annotate, fit_direction
from legend_hf.margins import naming, scoring
from legend_hf.margins.naming import name_of
from legend_hf.margins.store import Store, open_store
from legend_hf.reading.formats import Conversation, conversation
from legend_hf.reading.reader import OpenReader

THINGS = [f"thing {i}" for i in range(40)]
BY = b"b" * 32


@pytest.fixture(scope="module")
def direction(tiny_llama):
    return fit_direction(pair_rows(), model=str(tiny_llama))


@pytest.fixture
def path(tmp_path):
    yield tmp_path / "s.sqlite"
    close_stores()


@pytest.fixture
def tokenised(monkeypatch):
    """How many texts were tokenised, and how many read."""
    counts = {"tokenised": 0, "read": 0}
    encode, read = OpenReader.encode, OpenReader.read

    def encoded(self, conversations, **options):
        counts["tokenised"] += len(conversations)
        return encode(self, conversations, **options)

    def reads(self, texts, *args, **options):
        counts["read"] += len(texts)
        return read(self, texts, *args, **options)

    monkeypatch.setattr(OpenReader, "encode", encoded)
    monkeypatch.setattr(OpenReader, "read", reads)
    return counts


def margins(fn, rows=None):
    done = annotate(Dataset.from_list(pair_rows(THINGS) if rows is None else rows), fn, batch_size=16)
    close_stores()
    return done["margin_raw"][:]


def again(fn, counts, rows=None):
    """The margins of another run, and what it tokenised and read."""
    counts.update(tokenised=0, read=0)
    return margins(fn, rows), counts["tokenised"], counts["read"]


def test_a_text_with_a_score_is_not_tokenised_again(direction, path, tokenised, monkeypatch):
    fn = LegendMarginFn(direction, store=path)
    first = margins(fn)
    assert tokenised == {"tokenised": 80, "read": 80}
    assert again(fn, tokenised) == (first, 0, 0)
    more = [*pair_rows(THINGS), *pair_rows(["another"])]
    assert again(fn, tokenised, more)[1:] == (2, 2), "only what is new"
    assert again(LegendMarginFn(direction), tokenised) == (first, 80, 80), "without a store"
    monkeypatch.setattr(naming, "writers", lambda: ["transformers 99"])
    monkeypatch.setattr(scoring, "writers", naming.writers)
    assert again(fn, tokenised) == (first, 80, 0), "after an update tokens lead to the scores, as they always did"
    assert again(fn, tokenised) == (first, 0, 0)


def test_other_directions_along_the_same_texts(direction, path, tokenised):
    fn = LegendMarginFn(direction, store=path)
    first = margins(fn)
    turned = replace(direction, vector=-direction.vector)
    assert again(LegendMarginFn(turned, store=path), tokenised) == ([-m for m in first], 80, 80)
    both = LegendMarginFn({"a": direction, "b": turned}, store=path)
    tokenised.update(tokenised=0, read=0)
    done = annotate(Dataset.from_list(pair_rows(THINGS)), both)
    assert done["margin_raw_a"][:] == first == [-m for m in done["margin_raw_b"][:]]
    assert tokenised == {"tokenised": 0, "read": 0}


def test_names_are_of_one_way_to_read(direction):
    """A name says all that decides tokens; not the layer, which decides none."""
    reader = direction.reader
    other = {
        "template": "alpaca", "joiner": "\n", "fit_joiner": "\n", "eos": "append", "pooling": "last", "max_length": 99,
        "date": "2025-01-02", "tokenizer_sha256": "0", "chat_template_sha256": "0", "dtype": "bfloat16",
    }  # fmt: skip
    digests = {scoring._naming(reader, direction.model_path)}
    digests |= {scoring._naming(replace(reader, **{k: v}), direction.model_path) for k, v in other.items()}
    assert len(digests) == 1 + len(other)
    assert scoring._naming(replace(reader, layer=0), direction.model_path) in digests


texts = st.sampled_from(["", "a", "b", "ab", "user", "\n"])
messages = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": texts})
conversations = st.builds(
    Conversation,
    prompt=st.lists(messages, max_size=2).map(tuple),
    response=st.lists(messages, min_size=1, max_size=2).map(tuple),
    text=st.none() | st.tuples(texts, texts),
)


@given(st.lists(conversations, min_size=2, max_size=6))
def test_two_texts_have_one_name_only_if_they_are_one(talks):
    for one, other in combinations(talks, 2):
        assert (name_of(one, BY) == name_of(other, BY)) == (one == other)
        assert name_of(one, BY) != name_of(one, b"c" * 32)


@pytest.mark.parametrize(
    "more",
    [
        {"tools": ({"type": "function"},)},
        {"chat_template_kwargs": {"mood": 1}},
        {"prompt": ({"role": "user", "content": "a", "name": "me"},)},
        {"prompt": ({"role": "user", "content": None},)},
        {"prompt": ({"role": "user", "content": [{"type": "text", "text": "a"}]},)},
        {"response": ({"role": "assistant", "content": "a", "tool_calls": []},)},
    ],
)
def test_what_has_more_to_it_than_words_has_no_name(more):
    plain = conversation("a", "b")
    assert name_of(plain, BY) is not None, "the control"
    assert name_of(replace(plain, text=None, **more), BY) is None


def test_texts_without_a_name_are_tokenised_and_found_by_their_tokens(direction, path, tokenised):
    rows = [{**row, "chat_template_kwargs": {"mood": 1}} for row in pair_rows(THINGS)]
    fn = LegendMarginFn(direction, store=path)
    first = margins(fn, rows)
    assert again(fn, tokenised, rows) == (first, 80, 0)


@pytest.mark.parametrize(
    "harm",
    [
        "DROP TABLE names",
        "DROP TABLE names; CREATE TABLE names (whose INTEGER)",
        "UPDATE names SET text = x'00'",
        "UPDATE names SET text = 'words'",
        "UPDATE names SET text = 7",
        "DELETE FROM names",
    ],
)
def test_a_harmed_table_of_names_costs_tokenising_alone(direction, path, tokenised, harm):
    fn = LegendMarginFn(direction, store=path)
    first = margins(fn)
    with sqlite3.connect(path) as connection:
        connection.executescript(harm)
    connection.close()
    assert again(fn, tokenised) == (first, 80, 0)
    assert again(fn, tokenised)[0] == first
    assert [one.name for one in path.parent.iterdir() if "damaged" in one.name] == []


def test_pruned_scores_take_their_names_along(direction, path):
    margins(LegendMarginFn(direction, store=path))
    store = Store(path)

    def count():
        with sqlite3.connect(path) as connection:
            return connection.execute("SELECT COUNT(*) FROM names").fetchone()[0]

    assert count() == 80
    assert store.prune(unused_days=1) == 0
    assert count() == 80
    assert store.prune() == 80
    assert count() == 0
    store.close()


def test_to_look_writes_nothing(direction, path):
    fn = LegendMarginFn(direction, store=path)
    batch = Dataset.from_list(pair_rows(THINGS))[:]
    assert fn.would_read(batch).texts == 80
    assert not path.exists()
    margins(fn)
    before = path.read_bytes()
    looked = fn.would_read(batch)
    assert [len(texts) for _, _, texts in looked.unread] == [0]
    assert path.read_bytes() == before


def test_scores_of_many_responses_have_names_too(direction, path, tokenised):
    fn = LegendScoreFn(direction, store=path)
    batch = {"prompt": ["Eat soap?"], "responses": [["No.", "Yes.", "No."]]}
    first = fn(batch)["scores"]
    tokenised.update(tokenised=0)
    found = fn(batch)["scores"]
    assert [list(one) for one in found] == [list(one) for one in first]
    assert tokenised["tokenised"] == 0
    assert len(open_store(path).contents()) == 1
