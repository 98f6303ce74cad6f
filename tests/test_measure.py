"""Measures against brute force, against simulations of which the truth is known, and under what must not matter."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from legend_hf.reports import measure
from legend_hf.reports.findings import UNKNOWN, Estimate
from legend_hf.reports.measure import (
    NO_CATEGORY,
    agreement,
    auc,
    coverage,
    kendall_tau,
    pearson,
    probability_errors,
    share_of,
    spearman,
)

# Few distinct values, so that ties are common.
few_values = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=30).map(np.array)


def alone(values: np.ndarray) -> np.ndarray:
    """Each row is a prompt of its own."""
    return np.arange(len(values))


def brute_auc(margins):
    wins = [1.0 if a > -b else 0.5 if a == -b else 0.0 for a in margins for b in margins]
    return sum(wins) / len(wins)


def brute_ranks(values):
    return np.array([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values])


@given(few_values)
@settings(deadline=None)
def test_auc_is_the_share_of_pairs_of_pairs(margins):
    assert auc(margins, alone(margins), 0).value == pytest.approx(brute_auc(margins))


@given(few_values, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_spearman_is_the_correlation_of_ranks_with_ties(x, random):
    y = np.array([random.choice([-1.0, 0.0, 2.0, 5.0]) for _ in x])
    got = spearman(x, y, alone(x), 0).value
    ranks = brute_ranks(x), brute_ranks(y)
    if min(r.std() for r in ranks) == 0:
        assert got is None
    else:
        assert got == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-9)


def test_pearson_is_numpys_and_unknown_for_a_constant():
    rng = np.random.default_rng(0)
    x = rng.normal(size=50)
    y = x + rng.normal(size=50)
    assert pearson(x, y, alone(x), 0).value == pytest.approx(np.corrcoef(x, y)[0, 1])
    # A mean of equal numbers is off by rounding, and what is left has a correlation of its own.
    assert pearson(x, np.full(50, 0.1), alone(x), 0) == UNKNOWN
    assert spearman(x, np.full(50, 0.1), alone(x), 0) == UNKNOWN


def test_agreement_counts_a_tie_half():
    assert agreement(np.array([2.0, -1.0, 0.0, -0.0])).tolist() == [1.0, 0.0, 0.5, 0.5]


def test_a_larger_auc_than_agreement_means_that_large_margins_are_right():
    rng = np.random.default_rng(0)
    sizes = rng.uniform(0, 1, size=2000)
    knows = np.where(rng.random(2000) < 0.5 + sizes / 2, sizes, -sizes)
    guesses = np.where(rng.random(2000) < 0.75, sizes, -sizes)
    for margins, larger in ((knows, True), (guesses, False)):
        share = agreement(margins).mean()
        assert bool(auc(margins, alone(margins), 0).value > share + 0.03) == larger


def simulated(n, distort=1.0, seed=0):
    """Probabilities of "chosen is better", calibrated if `distort` is 1, after the labels oriented the pairs."""
    rng = np.random.default_rng(seed)
    log_odds = rng.normal(0, 1.5, size=n)
    right = rng.random(n) < 1 / (1 + np.exp(-log_odds))
    return 1 / (1 + np.exp(-distort * np.where(right, log_odds, -log_odds)))


def test_calibrated_probabilities_have_a_small_error_and_distorted_ones_a_large_one():
    good = simulated(10_000)
    errors = probability_errors(good, alone(good), 0)
    assert errors.ece.value < 0.02
    assert errors.ece.value == pytest.approx(errors.ece_by_chance, abs=0.008)
    assert errors.ece.interval[0] <= 0.008
    for distort in (0.2, 4.0):
        bad = simulated(10_000, distort)
        worse = probability_errors(bad, alone(bad), 0)
        assert worse.ece.value > 0.1
        assert worse.ece.value > 5 * worse.ece_by_chance
        assert worse.ece.interval[0] > 0.09
        assert worse.nll.value > errors.nll.value
        assert worse.brier.value > errors.brier.value


def test_few_rows_have_an_error_by_chance_that_the_interval_knows_of():
    inside, values = 0, []
    for seed in range(12):
        p = simulated(200, seed=seed)
        errors = probability_errors(p, alone(p), 0)
        values.append(errors.ece.value)
        inside += errors.ece.interval[0] <= 0.02
        assert errors.ece_by_chance > 0.03
    assert np.mean(values) == pytest.approx(errors.ece_by_chance, rel=0.3)
    assert inside >= 9


def test_orientation_flips_change_no_error():
    """What random flips of pairs do: p becomes 1 - p, and the label, with it, 0. Here for every pattern of flips alike."""
    p = simulated(500)
    errors = probability_errors(p, alone(p), 0)
    flip = np.random.default_rng(1).random(500) < 0.5
    stated, label = np.where(flip, 1 - p, p), np.where(flip, 0.0, 1.0)
    assert errors.brier.value == pytest.approx(((stated - label) ** 2).mean())
    assert errors.nll.value == pytest.approx(-np.log(np.where(label == 1, stated, 1 - stated)).mean())
    sure = np.maximum(stated, 1 - stated)
    assert sum(b.rows * b.confidence for b in errors.bins) == pytest.approx(sure.sum())
    assert sum(b.rows * b.right.value for b in errors.bins) == pytest.approx(((stated > 0.5) == (label == 1)).sum())


def test_a_constant_half_says_nothing():
    errors = probability_errors(np.full(40, 0.5), np.arange(40), 0)
    assert errors.brier.value == pytest.approx(0.25)
    assert errors.nll.value == pytest.approx(np.log(2))
    assert errors.ece.value == pytest.approx(0.0)
    assert len(errors.bins) == 1


def test_certain_and_wrong_costs_much_but_not_infinitely():
    errors = probability_errors(np.zeros(20), np.arange(20), 0)
    assert 10 < errors.nll.value < 20
    assert errors.ece.value == 1.0
    assert probability_errors(np.ones(20), np.arange(20), 0).nll.value == 0.0


def everything(margins, other, groups):
    errors = probability_errors(1 / (1 + np.exp(-margins)), groups, 0)
    return [
        share_of(agreement(margins), groups),
        auc(margins, groups, 0),
        spearman(margins, other, groups, 0),
        pearson(margins, other, groups, 0),
        errors.ece,
        Estimate(errors.ece_by_chance),
        errors.brier,
        errors.nll,
        *(b.right for b in errors.bins),
    ]


def numbers(estimates):
    return np.array([n for e in estimates for n in (e.value, *(e.interval or (0, 0)))], dtype=float)


def test_the_order_of_the_rows_does_not_matter():
    rng = np.random.default_rng(0)
    margins, other, groups = rng.normal(0.3, 1, 300).round(1), rng.integers(-9, 9, 300) * 1.0, rng.integers(0, 80, 300)
    order = rng.permutation(300)
    expected = numbers(everything(margins, other, groups))
    shuffled = numbers(everything(margins[order], other[order], groups[order]))
    np.testing.assert_allclose(shuffled, expected, rtol=0, atol=1e-9)
    # The control: prompts that belong to other rows are another dataset.
    assert np.abs(numbers(everything(margins, other, groups[order])) - expected).max() > 1e-3


def test_intervals_by_prompt_are_wider_where_rows_repeat_each_other():
    rng = np.random.default_rng(0)
    once, length = rng.normal(0.3, 1, 60), rng.normal(size=60)
    margins, other, prompts = np.repeat(once, 8), np.repeat(length, 8), np.repeat(np.arange(60), 8)

    def widths(groups):
        return np.array([e.interval[1] - e.interval[0] for e in everything(margins, other, groups)[:4]])

    assert (widths(prompts) > 2 * widths(np.arange(480))).all()
    # Eight copies of a prompt know no more than one.
    once_only = [e.interval[1] - e.interval[0] for e in everything(once, length, np.arange(60))[:4]]
    np.testing.assert_allclose(widths(prompts), once_only, rtol=1e-6)


def test_too_few_prompts_give_no_interval_and_no_rows_no_number():
    three = np.array([1.0, -1.0, 2.0])
    assert share_of(np.array([1.0, 0.0, 1.0]), np.arange(3)) == Estimate(pytest.approx(2 / 3), None)
    assert auc(three, np.arange(3), 0).interval is None
    # Many rows of few prompts are few.
    assert share_of(np.ones(500), np.arange(500) % 3).interval is None
    nothing = np.empty(0)
    assert share_of(nothing, nothing) == spearman(nothing, nothing, nothing, 0) == auc(nothing, nothing, 0) == UNKNOWN
    assert probability_errors(nothing, nothing, 0) is None


def test_an_interval_holds_the_truth_about_as_often_as_it_says():
    hits = {"auc": 0, "spearman": 0}
    for seed in range(60):
        rng = np.random.default_rng(seed)
        signal = rng.normal(size=200)
        margins, other = signal + rng.normal(1.0, 1, 200), signal + rng.normal(size=200)
        low, high = auc(margins, np.arange(200), 0).interval
        hits["auc"] += low <= 0.8413 <= high  # Φ(1): the sum of two margins, N(2, 4), is above 0
        low, high = spearman(margins, other, np.arange(200), 0).interval
        hits["spearman"] += low <= 6 / np.pi * np.arcsin(0.25) <= high  # two normals that correlate with 1/2
    assert all(count >= 50 for count in hits.values()), hits


@pytest.mark.parametrize("prompts", [10, 30])
def test_intervals_of_what_is_no_mean_hold_the_truth_near_the_end_too(prompts, monkeypatch):
    """An AUC of 0.998 is 1 in nearly every draw of few prompts, and so is a rank correlation of 0.994 in some."""
    monkeypatch.setattr(measure, "CURVE_DRAWS", 60)
    groups = np.arange(prompts)
    hits, widths = {"auc": 0, "spearman": 0}, []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        low, high = auc(rng.normal(2.0, 1, prompts), groups, 0).interval
        hits["auc"] += low <= 0.99766 <= high  # Φ(2 √2)
        x, noise = rng.normal(size=(2, prompts))
        low, high = spearman(x, 0.995 * x + np.sqrt(1 - 0.995**2) * noise, groups, 0).interval
        hits["spearman"] += low <= 0.99428 <= high
        widths.append(high - low)
    assert min(hits.values()) >= 35, hits
    assert min(widths) > 1e-3
    perfect = auc(np.ones(prompts), groups, 0)
    assert perfect.value == perfect.interval[1] == 1.0
    assert 0 < perfect.interval[0] < 1 - 1 / prompts
    # The control: the percentiles of the same draws. Many miss.
    inside = 0
    for seed in range(40):
        margins = np.random.default_rng(seed).normal(2.0, 1, prompts)
        drawn = np.random.default_rng(0).integers(prompts, size=(60, prompts))
        low, high = np.quantile([auc(margins[d], 0 * groups, 0).value for d in drawn], [0.025, 0.975])
        inside += low <= 0.99766 <= high
    assert inside < 30


def repeated(prompts, copies, distort, rng):
    """Probabilities of a calibrated (`distort` 1) or a distorted model; the rows of a prompt say and come true alike."""
    log_odds = rng.normal(0, 1.5, prompts)
    log_odds = np.where(rng.random(prompts) < 1 / (1 + np.exp(-log_odds)), log_odds, -log_odds)
    groups = np.repeat(np.arange(prompts), copies)
    return 1 / (1 + np.exp(-distort * log_odds[groups])), groups


@pytest.mark.parametrize(("prompts", "copies"), [(40, 1), (40, 8), (100, 5), (200, 1)])
def test_calibrated_sets_are_not_told_to_calibrate(prompts, copies, monkeypatch):
    monkeypatch.setattr(measure, "CURVE_DRAWS", 150)
    rng = np.random.default_rng(0)
    told, outside, by_rows, found, chance = 0, 0, 0, [], []
    for seed in range(80):
        p, groups = repeated(prompts, copies, 1.0, rng)
        errors = probability_errors(p, groups, seed)
        told += errors.ece.interval[0] > 0
        outside += not errors.ece.interval[0] <= 0 <= errors.ece.interval[1]
        found.append(errors.ece.value)
        chance.append(errors.ece_by_chance)
        by_rows += probability_errors(p, np.arange(len(p)), seed).ece.interval[0] > 0
    assert told == outside <= 7
    assert np.mean(chance) == pytest.approx(np.mean(found), rel=0.2)
    if copies > 1:
        assert by_rows > 48, "the control: rows that repeat each other taken for rows of their own"
    told = sum(
        probability_errors(*repeated(200 * prompts // 40, copies, 5.0, rng), seed).ece.interval[0] > 0.02
        for seed in range(10)
    )
    assert told >= 8, "the control: a distorted set is told"


# Ladders.

# Few distinct values, so that ties are common.
ladders = st.lists(st.integers(-3, 3).map(float), min_size=2, max_size=9)


def brute_tau(scores):
    """Concordant minus discordant pairs, over all pairs, one pair at a time."""
    pairs = [(i, j) for j in range(len(scores)) for i in range(j)]
    return sum(1 if scores[i] > scores[j] else -1 if scores[i] < scores[j] else 0 for i, j in pairs) / len(pairs)


@given(st.lists(ladders, min_size=1, max_size=6))
def test_kendalls_tau_is_that_of_all_pairs(rows):
    padded = np.full((len(rows), max(map(len, rows))), np.nan)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    before = padded.copy()
    assert kendall_tau(padded) == pytest.approx([brute_tau(row) for row in rows])
    np.testing.assert_array_equal(padded, before)
    # The control: a rule that takes equal scores for the ladder's order is another one.
    tied = [row for row in rows if len(set(row)) < len(row)]
    assert all(brute_tau(row) < brute_tau([s - i / 99 for i, s in enumerate(row)]) for row in tied)


@given(ladders.filter(lambda scores: len(set(scores)) == len(scores)))
def test_without_equal_scores_it_is_tau_b(scores):
    stats = pytest.importorskip("scipy.stats")
    expected = stats.kendalltau(-np.arange(len(scores)), scores, variant="b").statistic
    assert kendall_tau(np.array([scores]))[0] == pytest.approx(expected)


@given(ladders, st.integers(-5, 5))
def test_a_tau_turns_with_the_ladder_and_knows_ranks_only(scores, moved):
    one = np.array([scores])
    assert kendall_tau(one[:, ::-1]) == pytest.approx(-kendall_tau(one))
    assert kendall_tau(-one) == pytest.approx(-kendall_tau(one))
    assert kendall_tau(np.exp(one) + moved) == pytest.approx(kendall_tau(one))
    assert kendall_tau(one[:, :2])[0] == 2 * agreement(one[:, 0] - one[:, 1])[0] - 1


def test_a_perfect_ladder_and_its_reverse_are_exactly_one_and_minus_one():
    for k in (2, 6, 7, 40):
        falling = -np.arange(k, dtype=float)
        assert kendall_tau(np.stack([falling, -falling, 0 * falling])).tolist() == [1.0, -1.0, 0.0]
    assert np.isnan(kendall_tau(np.array([[1.0], [np.nan]]))).all()
    assert kendall_tau(np.empty((0, 0))).shape == kendall_tau(np.empty((0, 3))).shape == (0,)


# Categories.


def labelled(**sizes):
    return np.concatenate([np.full(size, name) for name, size in sizes.items()] or [np.empty(0, dtype="U1")])


def test_coverage_counts_categories_and_says_what_is_missing():
    labels = labelled(fraud=60, theft=30, rumour=9)
    labels = np.concatenate([labels, [NO_CATEGORY] * 5])
    groups = np.concatenate([np.arange(60) // 10, np.arange(100, 130), np.arange(200, 209), np.arange(5)])
    found = coverage(labels, groups, expected=["theft", "arson", "fraud", "arson"])
    assert (found.rows, found.without, found.categories) == (99, 5, 3)
    assert found.largest == ("fraud", pytest.approx(60 / 99))
    # Many rows of few prompts are few.
    assert found.thin == ("fraud", "rumour")
    assert (found.expected, found.missing, found.unexpected) == (3, ("arson",), ("rumour",))
    unasked = coverage(labels, groups)
    assert (unasked.expected, unasked.missing, unasked.unexpected) == (None, (), ())


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_the_effective_number_of_categories_is_that_of_equal_ones(sizes, random):
    labels = labelled(**{f"c{i}": size for i, size in enumerate(sizes)})
    found = coverage(labels, alone(labels))
    shares = [size / sum(sizes) for size in sizes]
    assert found.effective == pytest.approx(np.prod([share**-share for share in shares]))
    assert 1 - 1e-9 <= found.effective <= len(sizes) + 1e-9
    equal = coverage(labelled(**{f"c{i}": 7 for i in range(len(sizes))}), np.arange(7 * len(sizes)))
    assert equal.effective == pytest.approx(len(sizes))
    order = random.sample(range(len(labels)), len(labels))
    assert coverage(labels[order], alone(labels)[order]) == found


def test_one_category_with_nearly_all_rows_is_about_one():
    assert coverage(labelled(a=9990, b=5, c=5), np.arange(10_000)).effective < 1.02
    assert coverage(labelled(a=3334, b=3333, c=3333), np.arange(10_000)).effective > 2.999, "the control"


def test_coverage_of_nothing():
    nothing = coverage(np.empty(0, dtype="U1"), np.empty(0, dtype=int), expected=["a"])
    assert (nothing.rows, nothing.categories, nothing.effective, nothing.largest) == (0, 0, None, None)
    assert nothing.missing == ("a",)
    none = coverage(np.array([NO_CATEGORY] * 3), np.arange(3))
    assert (none.rows, none.without, none.effective) == (0, 3, None)
