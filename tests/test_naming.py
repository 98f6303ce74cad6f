"""Names of texts: what was scored once is found again before it is tokenised, and nothing else is."""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from builders import close_stores, pair_rows
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from legend_hf import LegendMarginFn, LegendScoreFn, annotate, fit_direction
from legend_hf.margins import naming
from legend_hf.margins.naming import Text, name_of, naming_of
from legend_hf.margins.store import Store, open_store
from legend_hf.reading.formats import Conversation, conversation
from legend_hf.reading.reader import KnownModel, OpenReader, close_readers

THINGS = [f"thing {i}" for i in range(40)]
BY = b"b" * 32
ROOT_PAGE = "SELECT rootpage FROM sqlite_master WHERE name = 'names_of_texts'"


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
    monkeypatch.setattr(naming, "_of_code", lambda: ["transformers 99"])
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

    def named(changed):
        return naming_of(OpenReader(changed, opened, None), direction.model_path)

    opened = KnownModel(AutoTokenizer.from_pretrained(direction.model_path), None, None)
    digests = {named(reader), *(named(replace(reader, **{k: v})) for k, v in other.items())}
    assert len(digests) == 1 + len(other)
    assert named(replace(reader, layer=0)) in digests


TOKENIZERS = {
    "special tokens are split": lambda rules, config: config.update(split_special_tokens=True),
    "added tokens are single words": lambda rules, config: [t.update(single_word=True) for t in rules["added_tokens"]],
    "a word is replaced before": lambda rules, config: rules.update(
        normalizer={"type": "Replace", "pattern": {"String": "thing"}, "content": "soap"}
    ),
    "another token pads": lambda rules, config: config.update(pad_token="</s>"),
    "another chat template": lambda rules, config: config.update(chat_template="{{ messages[0].content }}!"),
}


@pytest.mark.parametrize("change", TOKENIZERS)
def test_another_tokenizer_of_the_same_model_finds_no_name(direction, path, tokenised, tmp_path, change):
    """Also where the direction takes it for the same: it is known by its vocabulary and what it makes of a probe."""
    copy = tmp_path / "model"
    shutil.copytree(direction.model_path, copy)
    fn = LegendMarginFn(direction.with_model(copy), store=path)
    rows = [{**row, "chosen": f"{row['chosen']} <s>said</s>"} for row in pair_rows(THINGS)]
    margins(fn, rows)
    assert again(fn, tokenised, rows)[1] == 0, "the control"
    rules = json.loads((copy / "tokenizer.json").read_text(encoding="utf-8"))
    config = json.loads((copy / "tokenizer_config.json").read_text(encoding="utf-8"))
    TOKENIZERS[change](rules, config)
    (copy / "tokenizer.json").write_text(json.dumps(rules), encoding="utf-8")
    (copy / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    close_readers()
    changed = LegendMarginFn(direction.with_model(copy), store=path)
    without, _, _ = again(LegendMarginFn(direction.with_model(copy)), tokenised, rows)
    found, tokens, _ = again(changed, tokenised, rows)
    assert tokens == 80
    assert found == pytest.approx(without, abs=1e-5)


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
        "DROP TABLE names_of_texts",
        *(
            f"DROP TABLE names_of_texts; CREATE TABLE names_of_texts {columns}"
            for columns in (
                "(whose INTEGER)",
                "(name INTEGER PRIMARY KEY, text TEXT)",
                "(name BLOB PRIMARY KEY, text BLOB NOT NULL, version INTEGER NOT NULL) WITHOUT ROWID",
                "(id INTEGER PRIMARY KEY, name TEXT, text TEXT, who TEXT NOT NULL)",
            )
        ),
        "UPDATE names_of_texts SET text = x'00'",
        "UPDATE names_of_texts SET text = 'words'",
        "UPDATE names_of_texts SET text = 7",
        "DELETE FROM names_of_texts",
        "TEAR",
    ],
)
def test_a_harmed_table_of_names_costs_tokenising_alone(direction, path, tokenised, harm):
    fn = LegendMarginFn(direction, store=path)
    first = margins(fn)
    with sqlite3.connect(path) as connection:
        if harm == "TEAR":
            size, page = (connection.execute(asked).fetchone()[0] for asked in ("PRAGMA page_size", ROOT_PAGE))
        else:
            connection.executescript(harm)
    connection.close()
    if harm == "TEAR":  # the first page of that table alone
        with path.open("r+b") as file:
            file.seek((page - 1) * size)
            file.write(b"\xff" * 64)
    assert again(fn, tokenised) == (first, 80, 0)
    assert again(fn, tokenised)[0] == first
    assert [one.name for one in path.parent.iterdir() if "damaged" in one.name] == []


def test_names_that_cannot_be_written_stop_nothing(direction, path, tokenised, caplog):
    fn = LegendMarginFn(direction, store=path)
    first = margins(fn)
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM names_of_texts")
    connection.close()
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    begun = time.monotonic()
    assert again(fn, tokenised) == (first, 80, 0)
    assert time.monotonic() - begun < 30, "not the minute that a score would wait"
    holder.execute("ROLLBACK")
    holder.close()
    assert again(fn, tokenised)[:2] == (first, 80)
    assert again(fn, tokenised)[:2] == (first, 0)


def test_a_zero_keeps_its_sign(direction, path):
    store = open_store(path)
    scoring = LegendScoreFn(direction, store=path)._reading.open().readings[0]
    digest = scoring.digests[""]
    store.keep(digest, {b"a" * 32: 0.0, b"b" * 32: -0.0}, label="")
    store.name({b"A" * 32: b"a" * 32, b"B" * 32: b"b" * 32})
    known = scoring._scores_of([b"A" * 32, b"B" * 32])
    found = scoring.score([Text(None, known[name], name) for name in known])[""]
    assert sorted(np.signbit(found).tolist()) == [False, True]


def test_pruning_gives_the_space_of_names_back(direction, path, tokenised):
    fn = LegendMarginFn(direction, store=path)
    margins(fn)
    store = Store(path)

    def count():
        with sqlite3.connect(path) as connection:
            there = connection.execute("SELECT COUNT(*) FROM sqlite_master WHERE name = 'names_of_texts'").fetchone()[0]
            return connection.execute("SELECT COUNT(*) FROM names_of_texts").fetchone()[0] if there else 0

    assert count() == 80
    assert store.prune(unused_days=1) == 0
    assert count() == 0, "they come back for what is still read"
    assert again(fn, tokenised)[1:] == (80, 0)
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
