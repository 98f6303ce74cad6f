"""Curricula: what stages promise, against a slow and obvious way to make them, and out to the Hub and back."""

from __future__ import annotations

import json
import logging
import math
import random
import sys
import uuid
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from legend_hf import LegendMarginFn, RowError, annotate, fit_direction
from legend_hf.preferences.curriculum import curriculum
from legend_hf.reading.formats import pairs_from_batch

# A pair is the letter of its prompt and its number; small whole numbers, so that ties are common.
PAIRS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(-4, 4)), min_size=1, max_size=14)
MODES = ["per_prompt", "global"]
ORDERS = ["easy_first", "hard_first"]


def dataset(pairs):
    from datasets import Dataset

    return Dataset.from_dict(
        {
            "prompt": [f"Tell me about {prompt}." for prompt, _ in pairs],
            "chosen": [f"Gladly, number {i}." for i in range(len(pairs))],
            "rejected": ["No."] * len(pairs),
            "margin": [float(value) for _, value in pairs],
            "row": list(range(len(pairs))),
        }
    )


def rows_of(stages):
    """Row numbers of each stage."""
    assert list(stages) == [f"stage_{t}" for t in range(1, len(stages) + 1)]
    return [stage["row"][:] for stage in stages.values()]


def staged(pairs, **options):
    return rows_of(curriculum(dataset(pairs), **options))


def obvious(pairs, *, stages=None, mode="per_prompt", order="easy_first", negative="hardest"):
    """The same by lists alone, as the words of the docstring say it."""
    left = [(prompt, value, row) for row, (prompt, value) in enumerate(pairs) if negative != "drop" or value >= 0]
    left.sort(key=lambda pair: (-pair[1], pair[2]))
    found = []
    if mode == "global":
        parts = stages or 3
        small, larger = divmod(len(left), parts)
        for t in range(parts):
            size = small + 1 if t < larger else small
            found.append([row for _, _, row in left[:size]])
            left = left[size:]
    else:
        counts = Counter(prompt for prompt, _, _ in left)
        parts = stages or max(counts.values())
        found = [[] for _ in range(parts)]
        for prompt, n in counts.items():
            for r, row in enumerate(row for p, _, row in left if p == prompt):
                found[r if n <= parts else math.floor(r * parts / n)].append(row)
    return [sorted(part) for part in (found if order == "easy_first" else found[::-1])]


# -- What stages promise. Each check is shown to fail on stages that break the promise. -----------------------


def is_partition(stages, rows):
    return all(stages) and sorted(row for stage in stages for row in stage) == sorted(rows)


def at_most_one_each(stages, pairs):
    return all(max(Counter(pairs[row][0] for row in stage).values()) == 1 for stage in stages)


def falls_within_prompts(stages, pairs):
    latest = {}
    for stage in stages:
        for prompt in {pairs[row][0] for row in stage}:
            values = [pairs[row][1] for row in stage if pairs[row][0] == prompt]
            if max(values) > latest.get(prompt, math.inf):
                return False
            latest[prompt] = min(values)
    return True


def falls(stages, pairs):
    return falls_within_prompts(stages, [("one", value) for _, value in pairs])


def test_the_checks_see_what_they_should():
    pairs = [("a", 2), ("a", 1), ("b", 1), ("b", 0)]
    good = [[0, 2], [1, 3]]
    assert staged(pairs) == good
    assert is_partition(good, range(4))
    assert at_most_one_each(good, pairs)
    assert falls_within_prompts(good, pairs)
    assert falls(good, pairs)
    assert not is_partition([[0, 2], [1]], range(4)), "a row is lost"
    assert not is_partition([[0, 2, 3], [1, 3]], range(4)), "a row is there twice"
    assert not is_partition([[0, 1, 2, 3], []], range(4)), "a stage is empty"
    assert not at_most_one_each([[0, 1], [2, 3]], pairs)
    assert not falls_within_prompts([[1, 2], [0, 3]], pairs)
    assert not falls([[0, 3], [1, 2]], pairs)


@settings(max_examples=60)
@given(PAIRS, st.sampled_from(["hardest", "drop"]), st.sampled_from(ORDERS))
@example([("a", -1)], "hardest", "easy_first")
def test_stages_of_prompts(pairs, negative, order):
    kept = [row for row, (_, value) in enumerate(pairs) if negative == "hardest" or value >= 0]
    if not kept:
        with pytest.raises(ValueError, match=f"no pair is left of {len(pairs)} rows, {len(pairs)} of them"):
            staged(pairs, negative=negative)
        return
    stages = staged(pairs, negative=negative, order=order)
    assert is_partition(stages, kept)
    assert at_most_one_each(stages, pairs)
    assert len(stages) == max(Counter(pairs[row][0] for row in kept).values())
    assert falls_within_prompts(stages if order == "easy_first" else stages[::-1], pairs)
    first = stages[0] if order == "easy_first" else stages[-1]
    assert {pairs[row][0] for row in first} == {pairs[row][0] for row in kept}, "every prompt has an easiest pair"


@settings(max_examples=60)
@given(PAIRS, st.integers(1, 14))
def test_fewer_stages_than_pairs_of_a_prompt(pairs, stages):
    most = max(Counter(prompt for prompt, _ in pairs).values())
    if stages > most:
        with pytest.raises(
            ValueError, match=f"`stages` is {stages}, and no prompt has more than {most} pairs; allowed"
        ):
            staged(pairs, stages=stages)
        return
    found = staged(pairs, stages=stages)
    assert len(found) == stages
    assert is_partition(found, range(len(pairs)))
    assert falls_within_prompts(found, pairs)


@settings(max_examples=60)
@given(PAIRS, st.integers(1, 14))
def test_global_stages(pairs, stages):
    if stages > len(pairs):
        with pytest.raises(
            ValueError, match=f"`stages` is {stages}, and there are {len(pairs)} pairs; allowed are 1 to"
        ):
            staged(pairs, mode="global", stages=stages)
        return
    found = staged(pairs, mode="global", stages=stages)
    assert len(found) == stages
    assert is_partition(found, range(len(pairs)))
    assert falls(found, pairs)
    sizes = [len(stage) for stage in found]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


@settings(max_examples=150)
@given(PAIRS, st.one_of(st.none(), st.integers(1, 5)), st.sampled_from(MODES), st.sampled_from(ORDERS),
       st.sampled_from(["hardest", "drop"]))  # fmt: skip
def test_against_the_obvious_way(pairs, stages, mode, order, negative):
    options = {"stages": stages, "mode": mode, "order": order, "negative": negative}
    left = [prompt for prompt, value in pairs if negative != "drop" or value >= 0]
    most = len(left) if mode == "global" else max(Counter(left).values(), default=0)
    if (stages or (3 if mode == "global" else 1)) > most:
        with pytest.raises(ValueError, match="no pair is left" if not left else f"allowed are 1 to {most} stages"):
            staged(pairs, **options)
        return
    assert staged(pairs, **options) == obvious(pairs, **options)


@given(PAIRS, st.sampled_from(MODES), st.sampled_from([1, None]))
def test_hard_first_is_easy_first_from_the_other_end(pairs, mode, stages):
    if mode == "global" and stages is None and len(pairs) < 3:
        return
    easy, hard = (staged(pairs, mode=mode, stages=stages, order=order) for order in ORDERS)
    assert hard == easy[::-1]


def test_hard_first_differs_from_ranking_upwards():
    """The control: a prompt with one pair stays with the easiest pairs, wherever those are."""
    pairs = [("a", 3), ("a", 1), ("b", 2)]
    assert staged(pairs, order="hard_first") == [[1], [0, 2]]
    upwards = staged([(prompt, -value) for prompt, value in pairs])
    assert upwards == [[1, 2], [0]]


def test_four_rated_responses():
    """R1 > R2 > R3 > R4, rated 5, 4, 3, 2: the best against each other one, the widest gap first."""
    from datasets import Dataset

    ratings = {"R1": 5, "R2": 4, "R3": 3, "R4": 2}
    rows = [
        {"prompt": f"Prompt {p}", "chosen": "R1", "rejected": other, "gap": ratings["R1"] - ratings[other]}
        for p, others in enumerate([("R2", "R3", "R4"), ("R4", "R2", "R3")])
        for other in others
    ]
    stages = curriculum(Dataset.from_list(rows), by="gap")
    assert {name: set(zip(s["chosen"], s["rejected"], strict=True)) for name, s in stages.items()} == {
        "stage_1": {("R1", "R4")},
        "stage_2": {("R1", "R3")},
        "stage_3": {("R1", "R2")},
    }
    assert all(stage["prompt"][:] == ["Prompt 0", "Prompt 1"] for stage in stages.values())


# -- Only the order of the numbers decides --------------------------------------------------------------------

RISING = [lambda x: 3 * x + 1, lambda x: x**3, math.atan, math.exp]
SAME_SIGN = [lambda x: 7 * x, lambda x: x**3, math.atan]  # 0 stays 0


@settings(max_examples=60)
@given(PAIRS, st.sampled_from(MODES), st.sampled_from(ORDERS), st.data())
def test_rising_transforms_change_nothing(pairs, mode, order, data):
    negative = data.draw(st.sampled_from(["hardest", "drop"]))
    transform = data.draw(st.sampled_from(RISING if negative == "hardest" else SAME_SIGN))
    if sum(value >= 0 or negative == "hardest" for _, value in pairs) < 3:
        return
    options = {"mode": mode, "order": order, "negative": negative}
    assert staged(pairs, **options) == staged([(prompt, transform(value)) for prompt, value in pairs], **options)


def test_other_transforms_do_change_stages():
    """The control of the property above."""
    pairs = [("a", 2), ("a", -1), ("a", 0)]
    for mode in MODES:
        assert staged(pairs, mode=mode) == [[0], [2], [1]]
        assert staged([(p, -v) for p, v in pairs], mode=mode) == [[1], [2], [0]]
    # With "drop", a transform must keep the sign: one that only rises brings the negative pair back.
    assert staged(pairs, negative="drop") == [[0], [2]]
    assert staged([(p, v + 1) for p, v in pairs], negative="drop") == [[0], [2], [1]]


@settings(max_examples=40)
@given(st.permutations([("a", 3), ("a", -1), ("a", 0), ("b", 5), ("b", 2), ("c", 4)]), st.sampled_from(MODES))
def test_the_order_of_rows_decides_nothing_but_ties(pairs, mode):
    found = [{pairs[row] for row in stage} for stage in staged(pairs, mode=mode)]
    expected = {
        "per_prompt": [{("a", 3), ("b", 5), ("c", 4)}, {("a", 0), ("b", 2)}, {("a", -1)}],
        "global": [{("b", 5), ("c", 4)}, {("a", 3), ("b", 2)}, {("a", 0), ("a", -1)}],
    }
    assert found == expected[mode]


@given(st.integers(3, 8), st.sampled_from(MODES), st.sampled_from([0.0, -2.5, 1.0]))
def test_of_equal_numbers_the_earlier_row_is_the_easier(n, mode, value):
    assert staged([("a", value)] * n, mode=mode, stages=n) == [[row] for row in range(n)]
    # The control: any difference weighs more than the row's number.
    assert staged([("a", value + row) for row in range(n)], mode=mode, stages=n) == [[n - 1 - row] for row in range(n)]


def test_zero_is_a_tie_between_positive_and_negative():
    pairs = [("a", -0.5), ("a", 0.0), ("a", 0.5), ("a", -0.0), ("a", -2.0)]
    assert staged(pairs) == [[2], [1], [3], [0], [4]], "minus zero is zero; the most contradicting pair is the hardest"
    assert staged(pairs, negative="drop") == [[2], [1], [3]]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([2**63 + 1, 2**63, 2**63 + 2], "uint64"),
        ([-(2**63), 2**53 + 1, 2**53], "int64"),  # a float64 holds neither of the last two apart
        ([1, 3, 2], "uint8"),
        ([0.1, -0.5, 0.25], "float16"),
        ([1e-45, -1e-45, 0.0], "float32"),
    ],
)
def test_numbers_of_any_width(mode, values, kind):
    from datasets import Value

    ds = dataset([("a", 0)] * 3).remove_columns("margin").add_column("margin", values, feature=Value(kind))
    expected = [[row] for row in sorted(range(3), key=lambda row: -values[row])]
    assert rows_of(curriculum(ds, mode=mode)) == expected


@pytest.mark.parametrize("mode", MODES)
def test_the_same_call_gives_the_same_stages(mode, monkeypatch, tmp_path):
    from datasets import load_from_disk

    rng = random.Random(0)
    pairs = [(rng.choice("abcdefg"), rng.gauss(0, 1)) for _ in range(50)]
    ds = dataset(pairs)
    first = curriculum(ds, mode=mode)
    again = curriculum(ds, mode=mode)
    assert {k: v._fingerprint for k, v in again.items()} == {k: v._fingerprint for k, v in first.items()}
    ds.save_to_disk(tmp_path / "ds")
    monkeypatch.setattr(sys.modules[curriculum.__module__], "ROWS_AT_ONCE", 7)
    others = [load_from_disk(tmp_path / "ds"), ds.with_format("numpy"), ds.with_format("pandas")]
    # The same rows behind an indices mapping.
    others.append(ds.select([*range(25, 50), *range(25)]).select([*range(25, 50), *range(25)]))
    for other in others:
        found = curriculum(other, mode=mode)
        assert [stage.with_format(None)[:] for stage in found.values()] == [stage[:] for stage in first.values()]


# -- Prompts of every shape -----------------------------------------------------------------------------------

ASKED = ["tea", "maps", "tea", "tea", "maps", "rain"]
MARGINS = [0.1, 0.2, 0.9, 0.5, 0.3, -0.7]
EXPECTED = [[2, 4, 5], [1, 3], [0]]


def said(role, content):
    return {"role": role, "content": content}


def in_shape(shape):
    """Six pairs about three prompts, and what to call their columns."""
    rows, names = [], {}
    for i, topic in enumerate(ASKED):
        question, good, bad = f"Tell me about {topic}.", f"Gladly, take {i}.", f"No {i}"
        if shape == "strings":
            row = {"prompt": question, "chosen": good, "rejected": bad}
        elif shape == "messages":
            row = {
                "prompt": [said("user", question)],
                "chosen": [said("assistant", good)],
                "rejected": [said("assistant", bad)],
            }
        elif shape == "implicit messages":
            row = {
                "chosen": [said("user", question), said("assistant", good)],
                "rejected": [said("user", question), said("assistant", bad)],
            }
        elif shape == "dialogue strings":
            opened = f"\n\nHuman: {question}\n\nAssistant: "
            row = {"chosen": opened + good, "rejected": opened + bad}
        elif shape == "turns of a dialogue":  # a later turn, with what was said before it
            opened = f"\n\nHuman: {question}\n\nAssistant: It is so.\n\nHuman: And then?\n\nAssistant: "
            row = {"chosen": opened + good, "rejected": opened + bad}
        elif shape == "numbered responses":
            row = {"prompt": question, "response_0": bad, "response_1": good, "safer_response_id": 1}
        else:
            assert shape == "other names"
            row = {"question": question, "better": good, "worse": bad, "prompt": f"not the prompt, {i}"}
            names = {"prompt_column": "question", "chosen_column": "better", "rejected_column": "worse"}
        rows.append(row | {"margin": MARGINS[i], "row": i})
    return rows, names


@pytest.mark.parametrize(
    "shape",
    ["strings", "messages", "implicit messages", "dialogue strings", "turns of a dialogue", "numbered responses",
     "other names"],
)  # fmt: skip
def test_prompts_are_found_in_every_shape(shape):
    from datasets import Dataset

    rows, names = in_shape(shape)
    ds = Dataset.from_list(rows)
    stages = curriculum(ds, **names)
    assert rows_of(stages) == EXPECTED
    assert all(stage.features == ds.features for stage in stages.values())
    assert [stage[:] for stage in stages.values()] == [ds.select(part)[:] for part in EXPECTED]


def test_rows_without_the_right_prompt_would_be_grouped_otherwise():
    """The control of the test above: its columns under other names hold prompts that all differ."""
    from datasets import Dataset

    rows, names = in_shape("other names")
    assert rows_of(curriculum(Dataset.from_list(rows), **(names | {"prompt_column": "prompt"}))) == [[*range(6)]]


# -- What becomes of rows and columns -------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_columns_types_and_format_are_kept(mode):
    from datasets import ClassLabel, Dataset, Features, List, Value

    features = Features(
        {
            "prompt": [{"role": Value("string"), "content": Value("string")}],
            "chosen": [{"role": Value("string"), "content": Value("string")}],
            "rejected": [{"role": Value("string"), "content": Value("string")}],
            "margin": Value("float32"),
            "topic": ClassLabel(names=["warm", "cold"]),
            "votes": List(Value("int8"), length=2),
            "empty": Value("string"),
        }
    )
    rows, _ = in_shape("messages")
    rows = [
        {**{k: v for k, v in row.items() if k != "row"}, "topic": i % 2, "votes": [i, 1], "empty": None}
        for i, row in enumerate(rows)
    ]
    ds = Dataset.from_list(rows, features=features)
    before = ds[:]
    stages = curriculum(ds.with_format("numpy", columns=["margin", "votes"]), mode=mode)
    for stage in stages.values():
        assert stage.features == features
        assert stage.format["type"] == "numpy"
        assert stage.format["columns"] == ["margin", "votes"]
        votes = [row["votes"][0] for row in stage.with_format(None)]
        assert votes == sorted(votes), "the rows of a stage keep their order"
        for row in stage.with_format(None):
            assert row == ds[row["votes"][0]]
    assert ds[:] == before


def test_margins_that_are_mostly_equal_order_little_and_say_so(caplog):
    from datasets import Dataset

    def told(values, **options):
        caplog.clear()
        rows = [{"prompt": f"{i % 2}?", "chosen": "a", "rejected": "b", "margin": v} for i, v in enumerate(values)]
        with caplog.at_level(logging.WARNING):
            curriculum(Dataset.from_list(rows), **options)
        return "pairs have the same `margin`" in caplog.text

    assert told([1.0, 1.0, 1.0, 0.5], mode="global", stages=2)
    assert told([1.0] * 4)
    # The controls: most are different; of opposite sign; ties between prompts, which are ordered apart.
    assert not told([1.0, 1.0, 0.2, 0.5], mode="global", stages=2)
    assert not told([1.0, -1.0, 1.0, -1.0], mode="global", stages=2)
    assert not told([1.0, 1.0, 1.0, 0.5])


def test_skipped_rows_are_left_out_and_counted(caplog):
    pairs = [("a", 0.0), ("a", 0.5), ("b", -0.5), ("a", 0.0)]
    ds = dataset(pairs).add_column("margin_status", ["row 0: no text", "ok", "ok", "ok"])
    with caplog.at_level(logging.INFO, logger="legend_hf"):
        assert rows_of(curriculum(ds)) == [[1, 2], [3]]
        assert rows_of(curriculum(ds, mode="global", stages=2)) == [[1, 3], [2]]
    assert "left out 1 of 4 rows, whose `margin_status` is not 'ok'; to keep them, remove that column" in caplog.text
    assert (
        "stages of [2, 1] pairs out of 4 rows (by `margin`, per_prompt, easy_first, 0 negative dropped)" in caplog.text
    )
    # The control: without the column nothing tells row 0 from row 3, a tie.
    caplog.clear()
    assert rows_of(curriculum(ds.remove_columns("margin_status"))) == [[1, 2], [0], [3]]
    assert "left out" not in caplog.text


def test_skipped_rows_need_neither_texts_nor_numbers():
    ds = dataset([("a", 1), ("a", 2), ("a", math.nan)])
    ds = ds.map(lambda row: {"chosen": "" if row["row"] == 2 else row["chosen"]})
    assert rows_of(curriculum(ds.add_column("margin_status", ["ok", "ok", "empty"]))) == [[1], [0]]
    with pytest.raises(RowError, match="row 2, column `margin`: given nan"):
        curriculum(ds)


def test_dropped_pairs_do_not_count_for_ranks():
    pairs = [("a", 2), ("a", -1), ("a", 1), ("b", -3), ("b", 0)]
    assert staged(pairs, negative="drop") == [[0, 4], [2]]
    assert staged(pairs) == [[0, 4], [2, 3], [1]]


def test_margins_that_were_just_made(tiny_llama, caplog):
    from datasets import Dataset

    rows = [
        {"prompt": f"Tell me about {topic}.", "chosen": f"Gladly: {topic}, take {i}.", "rejected": f"No {topic}"}
        for i, topic in enumerate(["bread", "maps", "soup", "rain"] * 3)
    ]
    direction = fit_direction(rows, model=str(tiny_llama))
    rows[5]["chosen"] = ""
    ds = annotate(Dataset.from_list(rows), LegendMarginFn(direction, on_error="skip"))
    stages = curriculum(ds, by="margin_raw")
    assert [len(stage) for stage in stages.values()] == [4, 4, 3]
    assert "left out 1 of 12 rows" in caplog.text
    raw = {t: dict(zip(stage["prompt"], stage["margin_raw"], strict=True)) for t, stage in stages.items()}
    for prompt, value in raw["stage_3"].items():
        assert raw["stage_1"][prompt] >= raw["stage_2"][prompt] >= value
    assert ds.features == stages["stage_1"].features


# -- Out to the Hub -------------------------------------------------------------------------------------------


def eleven():
    """Eleven stages, so that names sort otherwise than they count."""
    return dataset([("a", i % 11) for i in range(11)] + [("b", 1), ("b", -1), ("c", 0)])


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name in expected:
        assert found[name].features == expected[name].features
        assert found[name][:] == expected[name][:]


def test_to_the_hub_as_splits(hub):
    from datasets import load_dataset

    repo_id = f"user/c{uuid.uuid4().hex[:12]}"
    eleven().push_to_hub(f"{repo_id}-pairs")
    stages = curriculum(load_dataset(f"{repo_id}-pairs", split="train"))
    assert len(stages) == 11
    stages.push_to_hub(repo_id)
    loaded = load_dataset(repo_id)
    assert_same(loaded, stages)
    assert_same(loaded, curriculum(eleven()))
    with pytest.raises(AssertionError):
        assert_same(loaded, curriculum(eleven(), order="hard_first"))
    assert load_dataset(repo_id, split="stage_2")[:] == stages["stage_2"][:]
    (row,) = load_dataset(repo_id, split="stage_11", streaming=True)
    assert row == stages["stage_11"][0]


def test_to_the_hub_as_configs(hub):
    from datasets import get_dataset_config_names, load_dataset

    repo_id = f"user/c{uuid.uuid4().hex[:12]}"
    stages = curriculum(eleven(), stages=3)
    for name, stage in stages.items():
        stage.push_to_hub(repo_id, config_name=name)
    assert get_dataset_config_names(repo_id) == list(stages)
    assert_same({name: load_dataset(repo_id, name, split="train") for name in stages}, stages)


def test_to_a_folder_and_back(tmp_path):
    from datasets import load_from_disk

    stages = curriculum(eleven(), mode="global")
    stages.save_to_disk(tmp_path / "stages")
    assert_same(load_from_disk(tmp_path / "stages"), stages)


# -- What is refused ------------------------------------------------------------------------------------------


def with_margins(values):
    """Four pairs of which the margins are these."""
    from datasets import Dataset

    return Dataset.from_dict({**dataset([("a", 0)] * len(values)).remove_columns("margin")[:], "margin": values})


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.5, None, 0.1, None], r"row 1, column `margin`: given None in a column of double; allowed is a finite number; fill it in, drop such rows with `Dataset.filter`"),
        ([1, 2, None, 4], r"row 2, column `margin`: given None in a column of int64"),
        ([0.5, 0.1, 0.1, math.nan], r"row 3, column `margin`: given nan"),
        ([0.5, -math.inf, 0.1, math.nan], r"row 1, column `margin`: given -inf"),
        (["0.5", "1", "2", "3"], r"row 0, column `margin`: given '0.5' in a column of string; .* convert the column with `Dataset.cast_column`"),
        ([True, False, True, True], r"row 0, column `margin`: given True in a column of bool"),
        ([None] * 4, r"row 0, column `margin`: given None in a column of null"),
        ([[0.5]] * 4, r"row 0, column `margin`: given \[0.5\] in a column of list"),
    ],
)  # fmt: skip
def test_numbers_that_are_none(mode, values, message):
    with pytest.raises(RowError, match=message):
        curriculum(with_margins(values), mode=mode)


def test_the_remedies_help():
    from datasets import Value

    strings = with_margins(["0.5", "-1", "2", "0"]).cast_column("margin", Value("float32"))
    assert rows_of(curriculum(strings)) == [[2], [0], [3], [1]]
    missing = with_margins([0.5, None, 0.1, None]).filter(lambda row: row["margin"] is not None)
    assert rows_of(curriculum(missing)) == [[0], [2]]


def test_a_row_that_cannot_be_read_is_named_by_its_number_in_the_dataset(monkeypatch):
    monkeypatch.setattr(sys.modules[curriculum.__module__], "ROWS_AT_ONCE", 2)
    ds = dataset([("a", value) for value in (1, -1, 2, 3, 4, 5)]).add_column("margin_status", ["skipped", *["ok"] * 5])
    ds = ds.map(lambda row: {"chosen": "  " if row["row"] == 4 else row["chosen"]})
    with pytest.raises(RowError, match="row 4, column `chosen`: the response '  ' is empty") as caught:
        curriculum(ds, negative="drop")
    assert caught.value.row == 4
    assert any("rows it skips are left out here" in note for note in caught.value.__notes__)
    # Without prompts, texts are not looked at.
    assert rows_of(curriculum(ds, mode="global", negative="drop", stages=4)) == [[5], [4], [3], [2]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "gap"}, "`by='gap'` names no column; the dataset has `prompt`, `chosen`, `rejected`, `margin`, `row`; name one of these, or make margins first"),
        ({"mode": "prompt"}, "`mode` is 'prompt'; allowed are 'per_prompt', 'global'"),
        ({"order": "hard"}, "`order` is 'hard'; allowed are 'easy_first', 'hard_first'"),
        ({"negative": "keep"}, "`negative` is 'keep'; allowed are 'hardest', 'drop'"),
        ({"stages": 0}, "`stages` is 0; give a whole number of at least 1, or None"),
        ({"stages": 2.0}, "`stages` is 2.0; give a whole number"),
        ({"stages": True}, "`stages` is True; give a whole number"),
        ({"stages": 3}, '`stages` is 3, and no prompt has more than 2 pairs; allowed are 1 to 2 stages, or `mode="global"`'),
        ({"stages": 4, "mode": "global"}, "`stages` is 4, and there are 3 pairs; allowed are 1 to 3 stages"),
        ({"prompt_column": "question"}, "`prompt_column='question'` names no column; allowed are the batch's columns, `prompt`, `chosen`, `rejected`, `margin`, `row`"),
    ],
)  # fmt: skip
def test_arguments_that_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        curriculum(dataset([("a", 1), ("a", 2), ("b", 3)]), **options)


@pytest.mark.parametrize("mode", MODES)
def test_no_rows(mode):
    from datasets import Dataset

    bare = Dataset.from_dict({"chosen": [], "rejected": [], "margin": []})
    for nothing in (dataset([("a", 1)]).select([]), bare):
        with pytest.raises(ValueError, match="no pair is left of 0 rows, 0 of them with a negative `margin`"):
            curriculum(nothing, mode=mode)
    with pytest.raises(ValueError, match='no pair is left of 2 rows, 2 of them .* or `negative="hardest"`'):
        curriculum(dataset([("a", -1), ("b", -2)]), mode=mode, negative="drop")


def test_what_is_no_dataset():
    from datasets import DatasetDict

    ds = dataset([("a", 1)])
    with pytest.raises(ValueError, match=r"`dataset` has the splits 'train', 'test'; give one of them: `curriculum\("):
        curriculum(DatasetDict({"train": ds, "test": ds}))
    with pytest.raises(
        ValueError, match="`dataset` is an IterableDataset; give a `datasets.Dataset`: .* a streaming one as"
    ):
        curriculum(ds.to_iterable_dataset())
    with pytest.raises(ValueError, match="`dataset` is a list; give a `datasets.Dataset`: rows as `Dataset.from_list"):
        curriculum(list(ds))


def test_pairs_of_own_scores_are_told_their_column():
    raw = dataset([("a", 1), ("b", 2)]).rename_column("margin", "margin_raw")
    with pytest.raises(ValueError, match=r'`by=\'margin\'` names no column; .*; pass `by="margin_raw"`'):
        curriculum(raw)
    assert rows_of(curriculum(raw, by="margin_raw")) == [[0, 1]]
    with pytest.raises(ValueError, match="`by='gap'` names no column; .*make margins first"):
        curriculum(raw, by="gap")


@pytest.mark.parametrize(("order", "stage"), [("easy_first", "stage_1"), ("hard_first", "stage_2")])
def test_a_crowded_first_stage_is_told(order, stage, caplog):
    alone = [(f"p{i}", i) for i in range(19)]
    with caplog.at_level(logging.WARNING):
        curriculum(dataset([*alone, ("p0", -1)]), order=order)
    (record,) = caplog.records
    assert f"19 of 20 pairs are in `{stage}`, the easiest: most prompts have one pair only" in record.getMessage()
    assert '`mode="global"` orders all pairs' in record.getMessage()
    # The controls: where there is an order, and where one stage or another mode was asked for.
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        curriculum(dataset([*alone, *[("p0", -i) for i in range(1, 4)]]), order=order)
        curriculum(dataset(alone), order=order, stages=1)
        curriculum(dataset(alone), order=order, mode="global")
    assert not caplog.records


def test_turns_of_one_dialogue_are_prompts_of_their_own():
    from datasets import Dataset

    first = "\n\nHuman: What is tea?\n\nAssistant: "
    later = first + "A drink.\n\nHuman: And rain?\n\nAssistant: "
    rows = [
        {"chosen": f"{context}Gladly.", "rejected": f"{context}No.", "margin": margin, "row": i}
        for i, (context, margin) in enumerate([(first, 0.1), (later, 0.2), (first, 0.3)])
    ]
    assert rows_of(curriculum(Dataset.from_list(rows))) == [[1, 2], [0]]


# -- Public rows ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["hh_harmless_raw.jsonl", "hh_harmless.jsonl", "pku_saferlhf.jsonl"])
def test_public_rows(shared_data, file):
    from datasets import Dataset

    rows = [json.loads(line) for line in (shared_data / file).read_text(encoding="utf-8").splitlines()]
    rows = [{k: row[k] for k in ("prompt", "chosen", "rejected") if k in row} for row in rows]
    batch = {name: [row[name] for row in rows] for name in rows[0]}
    pairs = pairs_from_batch(batch)
    good = [i for i, pair in enumerate(pairs) if not isinstance(pair, RowError)]
    prompts = [repr(pairs[i].chosen.prompt) for i in good]
    margins = np.random.default_rng(0).normal(size=len(good)).astype(np.float32)
    ds = Dataset.from_list([rows[i] for i in good]).add_column("margin", margins).add_column("row", [*range(len(good))])
    numbered = list(zip(prompts, margins.tolist(), strict=True))
    for options in ({}, {"stages": 2}, {"mode": "global"}, {"negative": "drop", "order": "hard_first"}):
        assert rows_of(curriculum(ds, **options)) == obvious(numbered, **options)
    assert max(Counter(prompts).values()) > 1, "prompts that are all different would test nothing"
