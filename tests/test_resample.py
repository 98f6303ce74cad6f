"""Intervals by prompt, against simulations of which the truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from legend_hf.directions import resample

SIZES = {
    "one each": lambda prompts: np.ones(prompts, dtype=int),
    "five each": lambda prompts: np.full(prompts, 5),
    "one to eight": lambda prompts: 1 + np.arange(prompts) % 8,
}
SHARES = (0.02, 0.05, 0.1, 0.3, 0.5, 0.8, 0.95, 0.98)


def drawn(share, sizes, alike, samples, rng):
    """Rows that are right with a probability, `[n, samples]`; of `alike` of the prompts all rows are the same."""
    groups = np.repeat(np.arange(len(sizes)), sizes)
    together = (rng.random((len(sizes), samples)) < alike)[groups]
    one = (rng.random((len(sizes), samples)) < share)[groups]
    return np.where(together, one, rng.random((len(groups), samples)) < share).astype(float), groups


def percentiles(values, groups, rng, draws=200):
    """What the intervals were: percentiles of draws of whole prompts `[samples, 2]`."""
    totals, sizes = resample._by_group(values, groups)
    times = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=draws)
    return np.quantile((times @ totals) / (times @ sizes)[:, None], [0.025, 0.975], axis=0).T


def covered(intervals, truth):
    return float(((intervals[:, 0] <= truth) & (truth <= intervals[:, 1])).mean())


def test_intervals_of_shares_hold_the_truth_near_the_ends_too():
    rng = np.random.default_rng(0)
    ours, before, narrowest = {}, {}, 1.0
    for prompts in (10, 20, 50):
        for name, sizes_of in SIZES.items():
            for alike in (0.0, 0.5, 1.0):
                for share in SHARES:
                    values, groups = drawn(share, sizes_of(prompts), alike, 400, rng)
                    means, intervals = resample.share_intervals(values, groups)
                    assert ((intervals[:, 0] <= means) & (means <= intervals[:, 1])).all()
                    narrowest = min(narrowest, np.ptp(intervals, axis=1).min())
                    cell = (prompts, name, alike, share)
                    ours[cell] = covered(intervals, share)
                    before[cell] = covered(percentiles(values[:, :100], groups, rng), share)
    assert min(ours.values()) > 0.87, min(ours.items(), key=lambda cell: cell[1])
    assert 0.94 < np.mean(list(ours.values())) < 0.985
    assert narrowest > 0.01
    # The control: draws of prompts, which never see what did not happen.
    assert min(before.values()) < 0.3
    assert np.mean([share < 0.87 for share in before.values()]) > 0.3


def test_a_few_large_prompts_are_what_an_interval_goes_by():
    """A tenth of the prompts has half of the rows or more."""
    rng = np.random.default_rng(0)
    found, usual = [], []
    for prompts in (20, 50):
        sizes = np.where(np.arange(prompts) < prompts // 10, 20, 1 + np.arange(prompts) % 3)
        for share in SHARES:
            values, groups = drawn(share, sizes, 1.0, 400, rng)
            found.append(covered(resample.share_intervals(values, groups)[1], share))
            rows = len(groups)
            deviations = resample._by_group(values - values.mean(axis=0), groups)[0]
            error = np.sqrt((deviations**2).sum(axis=0) * prompts / (prompts - 1)) / rows
            usual.append(covered(values.mean(axis=0)[:, None] + error[:, None] * [-1.96, 1.96], share))
    assert min(found) > 0.8
    assert np.mean(found) > np.mean(usual) + 0.15, "the control: the usual error by cluster, and no bounds"


def test_one_prompt_has_no_interval_and_no_interval_is_a_point():
    one = np.zeros(5, dtype=int)
    assert resample.share_interval(np.ones(5), one) == (1.0, None)
    assert resample.difference_interval(np.ones(5), one) is None
    assert resample.better_rule(np.ones(5), one) == (True, 1.0, None)
    assert resample.gain_over_rule(np.ones(5), np.zeros(5), one) == (0.0, None)
    assert np.isnan(resample.mean_intervals(np.arange(5.0)[:, None], one)[1]).all()
    for groups in (np.arange(3), np.arange(300), np.repeat(np.arange(2), 50)):
        for value in (0.0, 0.5, 1.0):
            same = np.full(len(groups), value)
            mean, (low, high) = resample.share_interval(same, groups)
            assert low <= mean == value <= high
            assert high - low > 2 / (len(groups) + 5)
            low, high = resample.difference_interval(same - value, groups)
            assert low < 0 < high
    assert np.isnan(resample.mean_intervals(np.ones((9, 1)), np.arange(9))[1]).all(), "an unbounded number may be any"
    # Three right pairs of three prompts once were 1.000 [1.000, 1.000].
    assert resample.share_interval(np.ones(3), np.arange(3))[1][0] < 0.4


RULES = {
    # P(right and the shorter is right), P(right alone), P(the shorter is right alone), P(neither).
    "shorter": (0.5, 0.2, 0.2, 0.1),
    "longer": (0.1, 0.5, 0.1, 0.3),
    "either": (0.3, 0.3, 0.2, 0.2),
    "the same": (0.6, 0.0, 0.0, 0.4),
    "its opposite": (0.0, 0.7, 0.3, 0.0),
    "nearly right": (0.88, 0.1, 0.01, 0.01),
    "wrong at the end": (0.02, 0.93, 0.0, 0.05),
}


@pytest.mark.parametrize("cells", RULES.values(), ids=RULES.keys())
def test_a_gain_is_over_the_better_rule_whichever_that_is(cells):
    rng = np.random.default_rng(0)
    share = cells[0] + cells[2]
    truth = cells[0] + cells[1] - max(share, 1 - share)
    inside = {"gain": 0, "rule": 0, "one way": 0}
    for _ in range(200):
        groups = np.repeat(np.arange(25), 1 + np.arange(25) % 3)
        kind = rng.choice(4, size=25, p=cells)[groups]
        right, shorter = np.isin(kind, (0, 1)) * 1.0, np.isin(kind, (0, 2)) * 1.0
        gain, (low, high) = resample.gain_over_rule(right, shorter, groups)
        assert low <= gain <= high
        assert high - low > 0.05
        inside["gain"] += low <= truth <= high
        own, found, (low, high) = resample.better_rule(shorter, groups)
        assert low <= found <= high
        assert own == (shorter.mean() >= 0.5)
        inside["rule"] += low <= max(share, 1 - share) <= high
        low, high = resample.difference_interval(right - shorter, groups)
        inside["one way"] += low <= truth <= high
    assert inside["gain"] >= 184, inside
    assert inside["rule"] >= 180, inside
    if cells in (RULES["longer"], RULES["its opposite"]):
        assert inside["one way"] < 0.65 * inside["gain"], "the control: a gain over the shorter one alone"


def test_a_rule_and_its_opposite_are_one_baseline():
    rng = np.random.default_rng(1)
    groups = rng.integers(0, 20, 60)
    groups = np.unique(groups, return_inverse=True)[1]
    right, shorter = rng.integers(0, 2, 60) * 1.0, rng.choice([0.0, 0.5, 1.0], 60)
    (gain, interval), (other, same) = (resample.gain_over_rule(right, r, groups) for r in (shorter, 1 - shorter))
    assert (gain, interval) == (pytest.approx(other), pytest.approx(same))
    own, share, interval = resample.better_rule(shorter, groups)
    turned, other, same = resample.better_rule(1 - shorter, groups)
    assert (own, share) == (not turned, pytest.approx(other))
    assert interval == pytest.approx(same)
    # A length meter gains nothing over length, whichever way it looks.
    for meter in (shorter, 1 - shorter):
        if meter.mean() >= 0.5:
            gain, (low, _) = resample.gain_over_rule(meter, shorter, groups)
            assert gain == pytest.approx(0.0)
            assert low < 0


def test_means_without_bounds_hold_the_truth():
    rng = np.random.default_rng(0)
    for prompts in (5, 10, 50):
        groups = np.repeat(np.arange(prompts), 1 + np.arange(prompts) % 4)
        values = rng.normal(3, 1, (prompts, 1000))[groups] + rng.normal(0, 0.5, (len(groups), 1000))
        assert 0.92 < covered(resample.mean_intervals(values, groups)[1], 3.0) < 0.98
