"""Training with a column and without: what helps is seen to help, what is nothing is seen to be nothing."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_causal import save_tiny_causal

from legend_hf.reports import compare
from legend_hf.reports.compare import Comparison, Way, flipped_signs
from legend_hf.reports.findings import Estimate
from legend_hf.reports.trl_rows import token_ids
from legend_hf.training.rewards import Training, reward_ahead, reward_tokenizer

THINGS = ("bread", "bikes", "paint", "tents", "maps", "soup", "rain", "tea", "salt", "ink", "glue", "wool")
HOW = {"seeds": 1, "batch_size": 8, "learning_rate": 1e-2, "epochs": 2}


def row(i, flipped=False):
    sides = [f"Gladly, {THINGS[i % 12]} it is.", f"No {THINGS[i % 12]}"]
    return {
        "prompt": f"Tell me about {THINGS[i % 12]} number {i}. ",
        **dict(zip(("chosen", "rejected"), sides[:: -1 if flipped else 1], strict=True)),
    }


def rows(count=48, flipped=(), **columns):
    from datasets import Dataset

    made = Dataset.from_list([row(i, i in flipped) for i in range(count)])
    for name, values in columns.items():
        made = made.add_column(name, list(values))
    return made


@pytest.fixture(scope="module")
def half_wrong():
    """Rows to train on of which every second label is wrong, and rows to judge."""
    from datasets import DatasetDict

    wrong = set(range(0, 48, 2))
    sure = [0.0 if i in wrong else 1.0 for i in range(48)]
    train = rows(flipped=wrong, margin_prob=sure, margin=[2 * p - 1 for p in sure])
    return DatasetDict(train=train, test=rows(120).select(range(48, 120)))


def test_what_knows_the_wrong_labels_helps_and_is_seen_to(half_wrong, tiny_llama, capsys):
    found = compare(half_wrong, tiny_llama, use=["margin_prob", "weight"], **HOW)
    assert capsys.readouterr().out == "", "a library does not print"
    none, soft, weight = found.ways
    assert (none.use, none.gain, none.p, found.trained, found.held_out, found.prompts) == (
        "none",
        None,
        None,
        48,
        72,
        72,
    )
    for way in (soft, weight):
        assert way.accuracy.value > 0.95
        assert way.gain.interval[0] > 0.05
        assert way.p < 0.01
        assert way.accuracy.value - none.accuracy.value == pytest.approx(way.gain.value)
    assert "`margin_prob` helps here: +" in found.to_markdown()


def test_the_control_the_same_numbers_the_other_way_round_harm(half_wrong, tiny_llama):
    from datasets import DatasetDict

    train = half_wrong["train"].remove_columns(["margin_prob", "margin"])
    other = train.add_column("margin_prob", [1 - p for p in half_wrong["train"]["margin_prob"]])
    found = compare(DatasetDict(train=other, test=half_wrong["test"]), tiny_llama, use=["margin_prob"], **HOW)
    assert found.ways[1].gain.interval[1] < 0
    assert "`margin_prob` harms here: −" in found.to_markdown()


def test_a_margin_of_zeros_is_none_to_the_last_bit(tiny_llama):
    tokenizer = reward_tokenizer(tiny_llama)
    ids = [token_ids(row(i), tokenizer) for i in range(16)]
    how = Training(str(tiny_llama), steps=3, batch_size=4, learning_rate=1e-2)

    def ahead(**given):
        return reward_ahead(ids[:12], ids[12:], how, seed=3, **given)

    none = ahead()
    assert (none == ahead(use="margin", numbers=np.zeros(12))).all()
    assert (none == ahead(use="weight", numbers=np.ones(12))).all()
    assert (none == ahead(use="margin_prob", numbers=np.ones(12))).all()
    # The control: a margin is something.
    assert (none != ahead(use="margin", numbers=np.ones(12))).any()


def test_shapes_statuses_and_long_rows(tiny_llama, tmp_path):
    given = rows(margin=np.zeros(48), margin_status=["ok"] * 46 + ["too long", "empty"])
    messages = given.map(
        lambda one: {
            "prompt": [{"role": "user", "content": one["prompt"]}],
            **{side: [{"role": "assistant", "content": one[side]}] for side in ("chosen", "rejected")},
        }
    )
    with_template = save_tiny_causal(tiny_llama, tmp_path / "m", "{% for m in messages %}{{ m.content }} {% endfor %}")
    safer = given.rename_columns({"chosen": "response_0", "rejected": "response_1"}).add_column(
        "safer_response_id", [0] * 48
    )
    for shape in (given, safer):
        found = compare(shape, tiny_llama, **HOW)
        assert (found.trained + found.held_out, found.left_out) == (46, 2)
        assert found.held_out == 12  # a quarter of the prompts that can be read
        assert found.ways[1].gain == Estimate(0.0, found.ways[1].gain.interval)
        assert found.ways[1].p == 1.0
    assert compare(messages, with_template, **HOW).held_out == 12
    tokenizer = reward_tokenizer(tiny_llama)
    longest = max(len(side) for one in given for side in token_ids(one, tokenizer))
    assert compare(given, tiny_llama, max_length=longest - 1, **HOW).left_out > 2


def test_cleaned_leaves_out_the_most_negative_tenth_and_takes_as_many_steps(tiny_llama):
    raw = np.arange(48.0) - 40
    found = compare(rows(margin=np.sign(raw), margin_raw=raw), tiny_llama, use=["cleaned"], held_out=0.1, **HOW)
    none, cleaned = found.ways
    assert none.pairs - cleaned.pairs == round(0.1 * none.pairs) > 0
    assert found.steps == round(2 * none.pairs / 8)


@pytest.mark.parametrize(
    ("given", "arguments", "message"),
    [
        ({}, {}, r"the rows have no `margin`, which `margin` needs; annotate them with `LegendMarginFn\(direction\)`"),
        ({}, {"use": ["weight"]}, r'no `margin_prob`, which `weight` needs; .*add=\["margin_prob"\]'),
        ({}, {"use": "margin"}, r'`use` is \'margin\'; give a list: `use=\["margin"\]`'),
        ({}, {"use": ["margins"]}, "`use` is 'margins'; allowed are 'margin', 'margin_prob', 'weight', 'cleaned'"),
        ({}, {"use": []}, "give each of .* once at most, and at least one"),
        ({}, {"held_out": 1.0}, "`held_out` is 1.0; allowed is a share between 0 and 1"),
        ({}, {"seeds": 0}, "`seeds` is 0; allowed is 1 or more"),
        ({}, {"epochs": 0.0}, "`epochs` is 0.0; allowed is a number above 0"),
        ({"margin": [float("nan")] * 48}, {}, "`margin` is not a finite number .* in 48 rows .first: row 0"),
        ({"margin_prob": [1.5] * 48}, {"use": ["margin_prob"]}, "`margin_prob` is not a finite number from 0 to 1 in 48 rows"),
        ({"margin": [[1.0]] * 48}, {}, "`margin` is List.*allowed is one number a row"),
        ({"margin": [0.0] * 48}, {"batch_size": 64}, "there are 36 pairs to train on and 12 of other prompts to judge; give at least 64"),
    ],
)  # fmt: skip
def test_what_is_refused_before_anything_is_trained(given, arguments, message, tiny_llama):
    with pytest.raises(ValueError, match=message):
        compare(rows(**given), tiny_llama, **{"batch_size": 8, **arguments})


def test_splits_that_are_not_train_and_test_are_named(tiny_llama):
    from datasets import DatasetDict

    with pytest.raises(ValueError, match="has the splits a, b; allowed are one, or `train` and `test`"):
        compare(DatasetDict(a=rows(margin=np.zeros(48)), b=rows(margin=np.zeros(48))), tiny_llama)


def test_drawn_signs_give_small_p_where_prompts_agree_and_any_p_where_they_do_not():
    rng = np.random.default_rng(0)
    groups = np.arange(200) // 2
    by_chance = [flipped_signs(np.repeat(rng.normal(size=100), 2), groups) for _ in range(200)]
    assert 0.02 <= np.mean(np.array(by_chance) < 0.05) <= 0.1
    assert flipped_signs(np.repeat(rng.normal(0.5, 1, size=100), 2), groups) < 0.01
    assert flipped_signs(np.zeros(200), groups) == 1.0
    # The control: rows of a prompt that repeat each other count once, not as often as they stand there.
    few = np.repeat([1.0, 1.0, 1.0], 60)
    assert flipped_signs(few, np.repeat([0, 1, 2], 60)) > 0.2
    assert flipped_signs(few, np.arange(180)) < 0.001


@pytest.mark.parametrize(
    ("gain", "says"),
    [
        (Estimate(0.05, (0.01, 0.09)), "helps here: +5.0 [+1.0, +9.0] points"),
        (Estimate(-0.05, (-0.09, -0.01)), "harms here: −5.0 [−9.0, −1.0] points"),
        (Estimate(0.01, (-0.01, 0.03)), "undecided, +1.0 [−1.0, +3.0] points; a difference of 1.0 points would take some 400 held-out pairs"),
        (Estimate(0.01, None), "undecided, 7 prompts give no interval"),
    ],
)  # fmt: skip
def test_what_it_says(gain, says):
    ways = (Way("none", 50, Estimate(0.6)), Way("margin", 50, Estimate(0.65), gain, 0.03))
    found = Comparison(ways, "m", 50, 100, 7, 3, 2, 12)
    assert f"`margin`: {says}" in found.to_markdown() or f"`margin` {says}" in found.to_markdown()
    assert (
        "12 steps on 50 pairs, 2 times each; judged on 100 pairs of 7 other prompts; 3 left out." in found.to_markdown()
    )
