"""Calibration: whatever is made of a raw margin rises with it and is mirrored by a swap; fits recover what was planted."""

from __future__ import annotations

import json
import logging
import pickle
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from legend_hf.directions.calibrate import (
    KINDS,
    MOST_LOG_ODDS,
    MOST_PARTS,
    RAW,
    Bins,
    Calibration,
    Link,
    _steps,
    fit_calibration,
)
from legend_hf.hub import cards

CALIBRATED = tuple(kind for kind in KINDS if kind != "raw")


def logistic(x):
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(x)))


def steplike(m):
    """Log-odds that say little below 0.6 and much above it, which no straight line does."""
    return 0.1 * m + 2.5 * (logistic(20 * (m - 0.6)) + logistic(20 * (m + 0.6)) - 1)


def planted(log_odds, pairs, seed=0, scale=1.0):
    """Raw margins of pairs whose labels follow known log-odds: the sign is that of the label."""
    rng = np.random.default_rng(seed)
    size = np.abs(rng.standard_normal(pairs)) / 1.96
    return np.where(rng.random(pairs) < logistic(log_odds(size)), size, -size) * scale


def ece(prob, right, bins=10):
    """Expected calibration error over bins of equal width."""
    place = np.minimum((prob * bins).astype(int), bins - 1)
    return sum(abs(prob[place == b].sum() - right[place == b].sum()) for b in range(bins)) / len(prob)


def flipped(raw, seed=0):
    """The same pairs, each turned round by a coin: raw margins, and whether the label is still the first side."""
    turn = np.random.default_rng(seed).random(len(raw)) < 0.5
    return np.where(turn, -raw, raw), ~turn


def loss(log_odds, raw):
    """What the fits make small: the held-out pairs, and one more of each outcome at the scale."""
    scale = np.quantile(np.abs(raw), 0.95)
    return np.logaddexp(0, -log_odds(np.concatenate([np.clip(raw, -10 * scale, 10 * scale), [scale, -scale]]))).sum()


floats = st.floats(-1e30, 1e30)
sizes = st.floats(0, 1e6)
slopes = st.floats(1e-6, 1e6)
margins = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60).map(np.array).filter(lambda raw: fits(raw))


def fits(raw):
    return np.quantile(np.abs(raw), 0.95) > 1e-6


@st.composite
def links(draw):
    k = draw(st.integers(0, 5))
    return Link(
        draw(slopes),
        *(tuple(draw(st.lists(each, min_size=k, max_size=k))) for each in (sizes, sizes, slopes)),
    )


@st.composite
def staircases(draw):
    k = draw(st.integers(1, 6))
    edges, values = (sorted(draw(st.lists(sizes, min_size=n, max_size=n))) for n in (k, k + 1))
    return Bins(tuple(edges), tuple(values))


@st.composite
def calibrations(draw):
    """Made by hand, or fitted; each holds every kind."""
    if draw(st.booleans()):
        return Calibration("unit", draw(slopes), draw(staircases()), draw(slopes), draw(links()))
    fitted = fit_calibration("unit", np.abs(draw(margins)), bins=draw(st.integers(2, 9)))
    assume(fitted.gives_prob)
    return fitted


# ---------------------------------------------------------------- what is made of a raw margin


@given(calibrations(), st.lists(floats, min_size=1, max_size=40))
def test_every_kind_is_odd_bounded_finite_and_never_falls(calibration, values):
    raw = np.sort(np.array([*values, 0.0]))
    bounds = {"unit": 1, "bins": max(calibration.bins.values), "logit": MOST_LOG_ODDS, "link": MOST_LOG_ODDS}
    for kind in KINDS:
        got = calibration.apply(raw, kind)
        assert got.dtype == np.float32
        assert np.isfinite(got).all()
        assert np.abs(got).max() <= np.float32(bounds.get(kind, 1e30))
        np.testing.assert_array_equal(calibration.apply(-raw, kind), -got)
        assert (np.diff(got) >= 0).all()
        assert (got[raw == 0] == 0).all()
    prob = calibration.prob(raw)
    assert prob.dtype == np.float32
    assert (prob > 0).all()
    assert (prob < 1).all()
    assert (np.diff(prob) >= 0).all()
    np.testing.assert_array_equal(calibration.prob(-raw), 1 - prob)
    assert (prob[raw == 0] == 0.5).all()


def test_the_mirror_is_seen_to_break():
    """The controls: an offset, or probabilities rounded each for itself, would not pass the test above."""
    raw = np.linspace(-3, 3, 101)
    assert (np.clip((raw + 0.1) / 2, -1, 1) != -np.clip((-raw + 0.1) / 2, -1, 1)).any()
    apart = logistic(1.7 * raw).astype(np.float32)
    assert (1 - apart != logistic(-1.7 * raw).astype(np.float32)).any()


@given(links(), floats, st.floats(1e-3, 1e3))
def test_a_link_rises_strictly_and_smoothly(link, start, by):
    assume(start + by > start)
    low, high = link.log_odds(np.array([start, start + by]))
    assume((link.slope * (abs(start) + by) + sum(link.heights)) * 1e-9 < link.slope * by)  # else float64 cannot tell
    rise = (high - low) / ((start + by) - start)
    steepest = link.slope + 0.5 * sum(h * w for h, w in zip(link.heights, link.steepness, strict=True))
    assert high > low
    assert rise >= link.slope * (1 - 1e-6)
    assert rise <= steepest * (1 + 1e-6)


def test_a_link_that_could_fall_or_jump_is_seen():
    falls = 0.1 * np.linspace(0, 2, 50) - _steps(np.linspace(0, 2, 50), np.array([0.5]), np.array([9.0]))[:, 0]
    assert (np.diff(falls) < 0).any()
    with pytest.raises(ValueError, match="the link's `heights` is -1.0; it must be 0 or more"):
        Link(0.1, (-1.0,), (0.5,), (9.0,))
    bins = Bins((1.0,), (0.0, 1.0))
    assert np.diff(bins.margin(np.array([1 - 1e-9, 1.0]))) / 1e-9 > 1e6, "bins jump: no slope bounds them"


@pytest.mark.parametrize("several", [list, np.array, tuple, lambda v: np.array(v, dtype=np.float32)])
@pytest.mark.parametrize("one", [float, np.float64, np.float32])
def test_numbers_of_any_kind_make_the_plain_calibration(several, one):
    """As quantiles and fits give them: equal, hashed and pickled alike, and written into an artifact."""

    def made(one, several):
        bins = Bins(several([0.5, 2.0]), several([0.0, 0.25, 1.0]))
        link = Link(one(1.5), several([0.25]), several([2.0]), several([4.0]))
        return Calibration("unit", one(2.0), bins, one(0.5), link)

    given, plain = made(one, several), made(float, tuple)
    assert given == plain
    assert hash(given) == hash(plain)
    assert pickle.dumps(given) == pickle.dumps(plain)
    assert json.dumps(asdict(given)) == json.dumps(asdict(plain))
    # The control: what is of another kind is told apart from it.
    assert pickle.dumps(np.float64(2.0)) != pickle.dumps(2.0)


@pytest.mark.parametrize("raw", [1e30, -1e30, 1e300, -1.7e308, 5e-324, 0.0, -0.0])
def test_any_finite_number_is_safe(raw):
    calibration = fit_calibration("link", planted(steplike, 500), bins=4)
    with np.errstate(invalid="raise", divide="raise"):
        for kind in CALIBRATED:
            assert np.isfinite(calibration.apply(np.array([raw]), kind)).all()
        assert 0 < calibration.prob(np.array([raw]))[0] < 1


def test_probability_comes_from_the_link_and_else_from_the_logit():
    link, raw = Link(1.0, (2.0,), (0.5,), (9.0,)), np.array([-1.0, 0.3, 2.0])
    both = Calibration("raw", logit=0.5, link=link)
    np.testing.assert_allclose(both.prob(raw), logistic(link.log_odds(raw)), rtol=1e-6)
    np.testing.assert_allclose(replace(both, link=None).prob(raw), logistic(0.5 * raw), rtol=1e-6)
    np.testing.assert_allclose(both.prob(raw), logistic(both.apply(raw, "link")), rtol=1e-6)


def test_what_is_not_held_is_refused():
    assert RAW.kinds == ("raw",)
    assert not RAW.gives_prob
    for kind in (*CALIBRATED, "percent"):
        with pytest.raises(ValueError, match=f"a {kind!r} margin was asked for; this calibration holds 'raw'; fit"):
            RAW.apply(np.ones(2), kind)
    with pytest.raises(ValueError, match="a probability was asked for; this calibration holds 'raw'"):
        RAW.prob(np.ones(2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Calibration("percent"), "`calibration` is 'percent'; allowed are 'raw', 'unit', 'bins', 'logit', 'link'"),
        (lambda: Calibration("link", 1.0), "`calibration` is 'link', but its numbers are missing; .* holds 'raw', 'unit'"),
        (lambda: Calibration("unit", 0.0), "the calibration's `scale` is 0.0; it must be a positive number"),
        (lambda: Calibration("unit", 1e300), "`scale` is 1e.300; .*finite in float32"),
        (lambda: Calibration("unit", 1.0, logit=float("inf")), "`logit` is inf"),
        (lambda: Bins((), (1.0,)), "the bins have 0 `edges` and 1 `values`; give 1 to 63 edges, and one value more"),
        (lambda: Bins((1.0,), (1.0,)), "the bins have 1 `edges` and 1 `values`"),
        (lambda: Bins.even(range(MOST_PARTS)), "the bins have 64 `edges`"),
        (lambda: Bins((2.0, 1.0), (0.0, 0.5, 1.0)), r"the bins' `edges` fall: \[2.0, 1.0\]; give them in rising order"),
        (lambda: Bins((1.0, 2.0), (0.0, 1.0, 0.5)), "the bins' `values` fall"),
        (lambda: Bins((-1.0,), (0.0, 1.0)), "the bins' `edges` is -1.0; it must be 0 or more"),
        (lambda: Bins((float("nan"),), (0.0, 1.0)), "the bins' `edges` is nan"),
        (lambda: Link(0.0), "the link's `slope` is 0.0; it must be a positive number"),
        (lambda: Link(1.0, (1.0,), (), (1.0,)), "the link has 1 `heights`, 0 `places` and 1 `steepness`; give as many"),
        (lambda: Link(1.0, (1.0,), (1.0,), (0.0,)), "the link's `steepness` is 0.0"),
        (lambda: Link(1.0, *[(1.0,) * 65] * 3), "at most 64"),
    ],
)  # fmt: skip
def test_impossible_numbers_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@given(calibrations(), st.lists(floats, min_size=1, max_size=20), st.sampled_from(KINDS))
def test_the_way_through_json_changes_no_bit(calibration, values, kind):
    calibration, raw = replace(calibration, kind=kind), np.array(values)
    again = Calibration.from_dict(json.loads(json.dumps(asdict(calibration))))
    assert again == calibration
    for each in KINDS:
        assert again.apply(raw, each).tobytes() == calibration.apply(raw, each).tobytes()
    assert again.prob(raw).tobytes() == calibration.prob(raw).tobytes()
    empty = Calibration.from_dict(json.loads(json.dumps(asdict(RAW))))
    assert empty == RAW != calibration


def test_one_row_has_the_same_bits_in_any_batch():
    calibration, raw = fit_calibration("link", planted(steplike, 400)), planted(steplike, 257, seed=3)
    alone = np.array([calibration.prob(raw[i : i + 1])[0] for i in range(len(raw))])
    np.testing.assert_array_equal(alone, calibration.prob(raw))


# ---------------------------------------------------------------- bins


@settings(max_examples=60)
@given(st.integers(2, 9), st.integers(50, 400), st.integers(0, 100))
def test_bins_hold_equal_shares_and_are_ranks(count, pairs, seed):
    raw = np.random.default_rng(seed).standard_normal(pairs) + 0.3
    bins = fit_calibration("bins", raw, bins=count).bins
    got = np.abs(bins.margin(raw))
    values, held = np.unique(got, return_counts=True)
    np.testing.assert_allclose(values, np.arange(count) / (count - 1))
    assert np.abs(held - pairs / count).max() <= 1
    # Idempotent on the scale of ranks: what lies at the quantile v has the size v.
    at = np.quantile(np.abs(raw), bins.values)
    np.testing.assert_allclose(bins.margin(at), bins.values)
    np.testing.assert_allclose(bins.margin(np.quantile(np.abs(raw), bins.margin(at))), bins.values)
    # The control: edges at equal distances share the pairs otherwise.
    apart = Bins.even(np.linspace(0, np.abs(raw).max(), count + 1)[1:-1])
    if count > 3:
        assert np.abs(np.unique(np.abs(apart.margin(raw)), return_counts=True)[1] - pairs / count).max() > 1


@given(margins, st.integers(-40, 40))
def test_bins_do_not_know_the_scale_of_hidden_states(raw, power):
    raw = np.abs(raw)
    fitted, scaled = fit_calibration("bins", raw), fit_calibration("bins", raw * 2.0**power)
    np.testing.assert_array_equal(fitted.apply(raw), scaled.apply(raw * 2.0**power))
    np.testing.assert_allclose(scaled.bins.edges, np.array(fitted.bins.edges) * 2.0**power)


def test_bins_with_given_edges():
    calibration = fit_calibration("bins", np.array([0.2, 0.9, 1.0, 4.0]), bins=[1.0, 3.0])
    assert calibration.bins == Bins((1.0, 3.0), (0.0, 0.5, 1.0))
    got = calibration.apply(np.array([-5.0, -3.0, -1.0, -0.5, 0.0, 0.999, 1.0, 2.9, 3.0]))
    np.testing.assert_array_equal(got, [-1, -1, -0.5, 0, 0, 0, 0.5, 0.5, 1])
    assert not np.signbit(got[3:6]).any(), "no -0.0 in a column"
    for wrong in (1, 65):
        with pytest.raises(ValueError, match=f"`bins` is {wrong}; give 2 to 64 sizes, or the edges"):
            fit_calibration("bins", np.ones(3), bins=wrong)


def test_margins_that_are_all_alike_still_have_bins():
    calibration = fit_calibration("bins", np.ones(9))
    np.testing.assert_array_equal(calibration.apply(np.array([-2.0, 0.5, 1.0])), [-1, 0, 1])


# ---------------------------------------------------------------- logit and link


def test_logit_recovers_a_planted_slope_as_pairs_grow():
    errors = [
        abs(fit_calibration("logit", planted(lambda m: 3 * m, n), bins=4).logit - 3) for n in (100, 3000, 100_000)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.05
    assert errors[0] > 0.1, "with a hundred pairs it must not be found yet"


@given(margins)
def test_the_slope_is_where_the_likelihood_is_highest(raw):
    calibration = fit_calibration("unit", raw)
    if calibration.logit is None:
        scale = np.quantile(np.abs(raw), 0.95)
        assert np.clip(raw / scale, -10, 10).mean() <= 1e-6
        return
    best = loss(lambda m: calibration.logit * m, raw)
    for other in (0.0, 0.9 * calibration.logit, 1.1 * calibration.logit, 10 * calibration.logit):
        assert best <= loss(lambda m, other=other: other * m, raw) * (1 + 1e-9)


@pytest.mark.parametrize("pairs", [1, 5, 1000])
def test_where_all_pairs_are_right_probabilities_stay_under_one(pairs):
    calibration = fit_calibration("logit", np.full(pairs, 3.0))
    assert calibration.prob(np.array([3.0]))[0] >= (pairs + 1) / (pairs + 2) - 1e-6
    assert replace(calibration, link=None).prob(np.array([3.0]))[0] == pytest.approx((pairs + 1) / (pairs + 2))
    assert 0 < calibration.logit < np.inf


@pytest.mark.parametrize("raw", [-np.ones(9), np.array([1.0, -1.0]), np.array([1.0, -3.0, 1.0])])
def test_where_the_direction_says_nothing_there_is_no_probability(raw, caplog):
    for kind in ("logit", "link"):
        with pytest.raises(ValueError, match='not above 0: on pairs that it was not fitted on.*`calibration="unit"`'):
            fit_calibration(kind, raw)
    with caplog.at_level(logging.WARNING):
        calibration = fit_calibration("unit", raw)
    assert "so there will be no `margin_prob`" in caplog.text
    assert calibration.kinds == ("raw", "unit", "bins")
    assert fit_calibration("unit", -raw + 0.1).gives_prob, "the control: the other way round there is one"


@settings(max_examples=200, deadline=None)
@given(margins)
def test_the_link_is_never_less_likely_than_the_logit(raw):
    calibration = fit_calibration("unit", raw)
    assume(calibration.gives_prob)
    assert loss(calibration.link.log_odds, raw) <= loss(lambda m: calibration.logit * m, raw) * (1 + 1e-9)
    assert calibration.link.slope >= 0.049 * calibration.logit


def test_a_planted_link_is_recovered_where_a_logit_cannot():
    at = np.linspace(-1.5, 1.5, 301)
    truth = logistic(steplike(at))
    off = []
    for pairs in (300, 3000, 30_000):
        calibration = fit_calibration("link", planted(steplike, pairs, scale=7.0))
        off.append(np.abs(calibration.prob(7 * at) - truth).max())
    assert off == sorted(off, reverse=True)
    assert off[-1] < 0.06
    assert np.abs(replace(calibration, kind="logit", link=None).prob(7 * at) - truth).max() > 0.1, "the control"


@pytest.mark.parametrize(
    "log_odds", [steplike, lambda m: 2 * m, lambda m: np.tanh(3 * m)], ids=["step", "line", "bend"]
)
def test_probabilities_are_calibrated_on_pairs_that_were_not_fitted(log_odds):
    calibration = fit_calibration("link", planted(log_odds, 800, scale=5.0))
    raw, right = flipped(planted(log_odds, 20_000, seed=1, scale=5.0))
    assert ece(calibration.prob(raw), right) < 0.04
    assert ece(logistic(raw), right) > 0.1, "the control: the raw margin is no log-odds"
    assert ece(calibration.prob(raw), np.ones(len(raw))) > 0.1, "the control: flips matter, all labels alike do not do"


def test_few_pairs_bend_the_link_little():
    """Where the truth is a straight line, the link's freedom costs next to nothing."""
    at = np.linspace(0, 1.5, 200)
    worse, free = [], []
    for seed in range(40):
        calibration = fit_calibration("link", planted(lambda m: 2 * m, 200, seed=seed))
        truth = logistic(2 * at)
        cost = [
            (truth * np.logaddexp(0, -g) + (1 - truth) * np.logaddexp(0, g)).mean()
            for g in (calibration.link.log_odds(at), calibration.logit * at, 2 * at)
        ]
        worse.append(cost[0] - cost[1])
        free.append(cost[1] - cost[2])
    assert np.mean(worse) < 0.01
    assert np.mean(worse) < 2 * np.mean(free)


def test_one_number_gone_wrong_does_not_decide_the_slope():
    raw = planted(lambda m: 2 * m, 2000)
    clean = fit_calibration("link", raw)
    for outlier in (1e30, -1e30):
        spoilt = fit_calibration("link", np.append(raw, outlier))
        assert spoilt.logit == pytest.approx(clean.logit, rel=0.15)
        assert np.abs(spoilt.prob(raw) - clean.prob(raw)).mean() < 0.02


@given(st.integers(-30, 30), st.integers(0, 20))
def test_probabilities_do_not_know_the_scale_of_hidden_states(power, seed):
    raw = planted(steplike, 150, seed=seed)
    assume(raw.mean() > 0)
    fitted, scaled = fit_calibration("link", raw), fit_calibration("link", raw * 2.0**power)
    np.testing.assert_allclose(scaled.prob(raw * 2.0**power), fitted.prob(raw), atol=1e-6)


def test_fits_are_the_same_every_time_and_write_to_nothing():
    raw = planted(steplike, 300)
    before = raw.copy()
    first = fit_calibration("link", raw)
    assert fit_calibration("link", raw) == first
    assert fit_calibration("link", raw[::-1]).logit == pytest.approx(first.logit)
    first.apply(raw), first.prob(raw)
    np.testing.assert_array_equal(raw, before)
    assert fit_calibration("unit", raw).scale == np.quantile(np.abs(raw), 0.95)
    assert {fit_calibration(kind, raw).kinds for kind in KINDS} == {KINDS}
    assert [fit_calibration(kind, raw).kind for kind in KINDS] == list(KINDS)


def test_fits_refuse_what_they_cannot_fit():
    with pytest.raises(ValueError, match="`calibration` is 'percent'; allowed are"):
        fit_calibration("percent", np.ones(3))
    for wrong in (np.ones((2, 2)), np.array([1.0, np.nan]), np.array([np.inf])):
        with pytest.raises(ValueError, match="are not a list of finite numbers; give one a pair"):
            fit_calibration("unit", wrong)
    for nothing in (np.zeros(3), np.array([])):
        with pytest.raises(ValueError, match='the held-out raw margins are all zero.*`calibration="raw"`'):
            fit_calibration("unit", nothing)
        assert fit_calibration("raw", nothing) == RAW


# ---------------------------------------------------------------- what a card says of it


def test_a_card_tells_what_the_artifact_holds_and_nothing_else():
    full = fit_calibration("bins", planted(steplike, 300))
    text = cards._calibration(asdict(full))
    assert text.startswith("`margin` is `bins` unless")
    assert [line.split("`")[1] for line in text.splitlines() if line.startswith("- `")] == list(KINDS)
    assert f"0.3333 from {full.bins.edges[0]:.4g}, 0.6667 from" in text
    assert "from the `link`" in text
    assert "from the `logit`" in cards._calibration(asdict(replace(full, link=None)))
    bare = cards._calibration(asdict(RAW))
    for absent in ("`unit`", "margin_bin", "margin_prob", "`logit`", "`link`"):
        assert absent not in bare
        assert absent in text


def test_a_dataset_card_describes_the_columns_that_are_there():
    def shown(*names):
        table = cards._columns({"features": [{"name": name, "dtype": "float32"} for name in names]})
        return [line.split("`")[1] for line in table.splitlines()[2:]]

    basic = ["margin", "margin_raw", "chosen_score", "rejected_score"]
    assert shown("chosen", "rejected", *basic) == ["margin", "margin_raw", "chosen_score"]
    more = ["margin_bin", "margin_prob", "margin_negative", "margin_status"]
    assert shown(*basic, *more) == ["margin", "margin_raw", "chosen_score", *more]
    assert shown("margin_a", "margin_prob_a", "margin_b") == ["margin", "margin_prob"]
    assert shown("margin") == ["margin"]
