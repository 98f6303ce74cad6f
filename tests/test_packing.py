"""Packs of token trees: every text is there once and whole, nothing is read twice, nobody sees a stranger."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from legend_hf.reading.packing import Branch, Pack, plan_padded, plan_trees

# Few different tokens, so that texts share beginnings, are beginnings of others, and repeat.
TEXTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=14), min_size=1, max_size=14)


@st.composite
def tasks(draw):
    """Texts with the positions that are needed of each."""
    texts = draw(TEXTS)
    needed = [sorted(draw(st.sets(st.integers(0, len(text) - 1), min_size=1))) for text in texts]
    return texts, needed


def spread(spans):
    return [row for start, end in spans for row in range(start, end)]


def check(pack, texts, needed):
    """All that a pack promises, for the texts that it holds."""
    t = len(pack)
    assert len(pack.position_ids) == t
    assert [row for b in pack.branches for row in range(b.start, b.end)] == list(range(t))
    at = 0
    for text, path, count in zip(pack.texts, pack.paths, pack.counts, strict=True):
        rows = spread(path)
        length = needed[text][-1] + 1
        assert pack.input_ids[rows[:length]].tolist() == texts[text][:length]
        assert len(rows) == length
        assert pack.position_ids[rows].tolist() == list(range(length))
        assert pack.rows[at : at + count].tolist() == [rows[place] for place in needed[text]]
        at += count
        for i, row in enumerate(rows):
            # What the attention lets this row see is its own text up to itself, in order, and nothing else.
            branch = next(b for b in pack.branches if b.start <= row < b.end)
            assert spread(branch.before) + list(range(branch.start, row + 1)) == rows[: i + 1]
            assert branch.position + row - branch.start == i
    assert at == len(pack.rows)


@settings(deadline=None, max_examples=300)
@given(tasks(), st.integers(1, 60), st.integers(1, 6))
def test_every_text_is_read_once_whole_and_alone(task, max_tokens, min_shared):
    texts, needed = task
    packs = plan_trees(texts, needed, max_tokens=max_tokens, min_shared=min_shared)
    assert sorted(text for pack in packs for text in pack.texts) == list(range(len(texts)))
    for pack in packs:
        check(pack, texts, needed)
        assert len(pack) <= max_tokens or len({tuple(texts[i][: needed[i][-1] + 1]) for i in pack.texts}) == 1


@settings(deadline=None, max_examples=200)
@given(tasks())
def test_no_token_is_read_twice_where_all_fits(task):
    texts, needed = task
    (pack,) = plan_trees(texts, needed, max_tokens=1000, min_shared=1)
    beginnings = {tuple(text[:n]) for text, places in zip(texts, needed, strict=True) for n in range(1, places[-1] + 2)}
    assert len(pack) == len(beginnings)


@settings(deadline=None, max_examples=200)
@given(tasks(), st.integers(1, 60), st.integers(1, 6))
def test_sharing_never_costs_tokens(task, max_tokens, min_shared):
    texts, needed = task
    packs = plan_trees(texts, needed, max_tokens=max_tokens, min_shared=min_shared)
    different = {tuple(text[: places[-1] + 1]) for text, places in zip(texts, needed, strict=True)}
    assert sum(map(len, packs)) <= sum(map(len, different))


@settings(deadline=None, max_examples=100)
@given(tasks(), st.randoms(use_true_random=False), st.integers(1, 60))
def test_the_order_of_the_texts_does_not_change_what_is_read(task, random, max_tokens):
    texts, needed = task
    order = list(range(len(texts)))
    random.shuffle(order)
    one = plan_trees(texts, needed, max_tokens=max_tokens, min_shared=2)
    other = plan_trees([texts[i] for i in order], [needed[i] for i in order], max_tokens=max_tokens, min_shared=2)
    assert [p.input_ids.tolist() for p in one] == [p.input_ids.tolist() for p in other]
    assert [p.branches for p in one] == [p.branches for p in other]


def _blind(pack: Pack) -> Pack:
    return replace(pack, branches=tuple(replace(b, before=()) for b in pack.branches))


def _nosy(pack: Pack) -> Pack:
    return replace(pack, branches=(Branch(0, len(pack)),))


def _shifted(pack: Pack) -> Pack:
    return replace(pack, position_ids=np.arange(len(pack)))


def _astray(pack: Pack) -> Pack:
    return replace(pack, rows=pack.rows + 1)


@pytest.mark.parametrize("spoil", [_blind, _nosy, _shifted, _astray])
def test_control_a_spoilt_pack_fails_the_check(spoil):
    texts, needed = [[1, 2, 3, 4, 5], [1, 2, 3, 6]], [[3, 4], [3]]
    (pack,) = plan_trees(texts, needed, max_tokens=100, min_shared=2)
    check(pack, texts, needed)
    with pytest.raises((AssertionError, IndexError)):
        check(spoil(pack), texts, needed)


def test_a_pair_is_its_prompt_once_and_two_branches_the_longer_first():
    prompt, short, long = list(range(20)), [50, 51], [60, 61, 62]
    (pack,) = plan_trees([prompt + short, prompt + long], [[21], [22]], max_tokens=100)
    assert pack.input_ids.tolist() == prompt + long + short
    assert pack.branches == (Branch(0, 23), Branch(23, 25, ((0, 20),)))
    assert pack.texts == (0, 1)
    assert pack.rows.tolist() == [24, 22]


def test_a_few_common_tokens_do_not_tie_texts_together():
    texts = [[1, 2, 3, 10 * i, *range(5)] for i in range(1, 5)]
    (pack,) = plan_trees(texts, [[8]] * 4, max_tokens=100, min_shared=4)
    assert all(not b.before for b in pack.branches)
    (pack,) = plan_trees(texts, [[8]] * 4, max_tokens=100, min_shared=3)
    assert sum(bool(b.before) for b in pack.branches) == 3


def test_nothing_after_the_last_needed_position_is_read():
    (pack,) = plan_trees([[5, 6, 7, 8, 9]], [[0, 2]], max_tokens=10)
    assert pack.input_ids.tolist() == [5, 6, 7]


def test_a_tree_over_the_budget_is_cut_where_it_repeats_least():
    # Two rows under one system prompt: the cut goes between the rows, not between the responses of one.
    system = list(range(100, 110))
    rows = [[*system, *[row] * 20, end] for row in (1, 2) for end in (3, 4)]
    packs = plan_trees(rows, [[30]] * 4, max_tokens=40)
    assert sorted(sorted(p.texts) for p in packs) == [[0, 1], [2, 3]]
    assert [len(p) for p in packs] == [32, 32]


def test_packs_are_full_and_the_fullest_comes_first():
    random = np.random.default_rng(0)
    texts = [random.integers(0, 1000, n).tolist() for n in random.integers(5, 60, 300)]
    packs = plan_trees(texts, [[len(text) - 1] for text in texts], max_tokens=256)
    sizes = [len(p) for p in packs]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) / (256 * len(packs)) > 0.97


def test_a_thousand_rows_are_planned_in_a_blink():
    import time

    random = np.random.default_rng(0)
    system = list(range(40))
    texts = []
    for _ in range(1000):
        prompt = random.integers(0, 9000, 120).tolist()
        texts += [[*system, *prompt, *random.integers(0, 9000, 50).tolist()] for _ in range(2)]
    start = time.perf_counter()
    plan_trees(texts, [[len(text) - 1] for text in texts], max_tokens=2048)
    # Reading them takes a model of 135M parameters a minute on two cores.
    assert time.perf_counter() - start < 3


def test_beginnings_of_one_another_need_no_recursion():
    texts = [[7] * n for n in range(1, 1501)]
    (pack,) = plan_trees(texts, [[len(text) - 1] for text in texts], max_tokens=2000, min_shared=1)
    assert len(pack) == 1500
    assert pack.branches == (Branch(0, 1500),)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(1, 30), max_size=40), st.integers(1, 100), st.booleans())
def test_padded_batches_hold_every_text_once_within_the_budget(lengths, max_tokens, group_equal):
    batches = plan_padded(lengths, max_tokens=max_tokens, group_equal=group_equal)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[i] for i in batch)
        assert len(batch) == 1 or len(batch) * longest <= max_tokens
        if group_equal:
            assert {lengths[i] for i in batch} == {longest}
    assert [max(lengths[i] for i in batch) for batch in batches] == sorted(
        (max(lengths[i] for i in batch) for batch in batches), reverse=True
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plan_trees([[1]], [[0]], max_tokens=0), "`max_tokens` is 0; it must be at least 1"),
        (lambda: plan_trees([[1]], [[0]], max_tokens=9, min_shared=0), "`min_shared` is 0"),
        (lambda: plan_trees([[1]], [], max_tokens=9), "`needed` has 0 entries for 1 `texts`"),
        (lambda: plan_trees([[1]], [[]], max_tokens=9), r"text 0 has 1 tokens and needs positions \[\]"),
        (lambda: plan_trees([[1], []], [[0], [0]], max_tokens=9), "text 1 has 0 tokens and needs"),
        (lambda: plan_trees([[1, 2]], [[2]], max_tokens=9), r"text 0 has 2 tokens and needs positions \[2\]"),
        (lambda: plan_padded([3, 0], max_tokens=9), "`lengths` is 0; it must be at least 1"),
        (lambda: plan_padded([3], max_tokens=-1), "`max_tokens` is -1"),
    ],
)
def test_errors_say_what_to_give(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_no_texts_no_packs():
    assert plan_trees([], [], max_tokens=10) == []
    assert plan_padded([], max_tokens=10) == []
