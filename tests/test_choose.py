"""The choice of layer and estimator: it finds what is planted, is honest about itself, and keeps calm without data."""

from __future__ import annotations

import numpy as np
import pytest

from legend_hf.directions import resample
from legend_hf.directions.calibrate import fit_calibration
from legend_hf.directions.choose import (
    FOLDS,
    RUNNING,
    TRIED,
    Choice,
    choose,
    directions_without,
    length_axis,
    right,
    unseen_sources,
    without_length,
)
from legend_hf.directions.estimators import ESTIMATORS


def planted(strengths, pairs=300, width=24, seed=0):
    """Differences `[layers, n, width]` whose layers carry one direction each, more or less strongly."""
    rng = np.random.default_rng(seed)
    truth = rng.standard_normal((len(strengths), 1, width))
    truth /= np.linalg.norm(truth, axis=2, keepdims=True)
    noise = rng.standard_normal((len(strengths), pairs, width))
    return (np.array(strengths)[:, None, None] * truth + noise).astype(np.float32)


def chosen_from(differences, estimators=TRIED, groups=None, seed=0, **options) -> Choice:
    layers = range(len(differences))
    groups = np.arange(differences.shape[1]) if groups is None else groups
    return choose(differences, layers, estimators, groups, middle=(len(layers) - 1) / 2, seed=seed, **options)


@pytest.mark.parametrize("best", [0, 1, 3, 6])
def test_a_planted_layer_is_chosen(best):
    strengths = np.maximum(2 - 0.5 * np.abs(np.arange(7) - best), 0.2)
    choice = chosen_from(planted(strengths))
    assert choice.place == best
    assert right(choice.unbiased).mean() > 0.9


@pytest.mark.parametrize("best", [1, 12, 24])
def test_a_planted_layer_of_a_deep_model_is_chosen_and_the_others_get_no_covariance(best):
    strengths = np.maximum(2 - 0.3 * np.abs(np.arange(25) - best), 0)
    choice = chosen_from(planted(strengths))
    assert abs(choice.place - best) <= 1
    tried = {name: {t.place for t in choice.tried if t.estimator == name} for name in TRIED}
    assert tried["mean_difference"] == set(range(25))
    assert best in tried["whitened"]
    assert RUNNING <= len(tried["whitened"]) < 16
    alone = chosen_from(planted(strengths), ("whitened",))
    assert alone.estimator == "whitened"
    assert abs(alone.place - best) <= 1


def test_equal_layers_give_the_middle_and_so_do_layers_that_a_few_pairs_cannot_tell_apart():
    assert chosen_from(planted([3.0] * 7)).place == 3
    same = np.repeat(planted([1.0]), 9, axis=0)
    assert chosen_from(same).place == 4
    few = [chosen_from(planted([1.2] * 7, pairs=25, seed=seed), seed=seed) for seed in range(20)]
    best = [max(c.tried, key=lambda t: right(t.held_out(folds_of(25, s))).mean()).place for s, c in enumerate(few)]
    # Taking the best would go anywhere.
    assert np.mean([abs(c.place - 3) for c in few]) < 0.7 * np.mean([abs(place - 3) for place in best])


def folds_of(pairs, seed):
    return resample.folds_of(np.arange(pairs), FOLDS, seed)


def test_the_estimator_that_generalises_is_chosen():
    rng = np.random.default_rng(0)
    differences = planted([1.0], pairs=1500)
    loud = (
        differences + rng.normal(0, 15, (1, 1500, 1)) * np.eye(24)[0] + rng.normal(0, 15, (1, 1500, 1)) * np.eye(24)[1]
    )
    loud = loud.astype(np.float32)
    assert chosen_from(loud, TRIED[::-1]).estimator == "whitened"
    scores = {t.estimator: right(t.held_out(folds_of(1500, 0))).mean() for t in chosen_from(loud).tried}
    assert scores["whitened"] > scores["mean_difference"] + 0.05, "the control: here it matters"


def test_the_first_named_estimator_is_kept_unless_the_pairs_speak_against_it():
    alike = planted([1.0], pairs=60)
    for first, second in (TRIED, TRIED[::-1]):
        assert chosen_from(alike, (first, second)).estimator == first
    # Where both sides of a pair are drawn apart by a loud axis alone, its principal direction is a coin.
    noise = np.random.default_rng(0).normal(0, 30, (1, 300, 1)) * np.eye(24)[0]
    loud = (planted([3.0]) + noise).astype(np.float32)
    assert chosen_from(loud, ("pca", "whitened")).estimator == "whitened"


def test_random_labels_give_one_half_and_picking_the_best_would_promise_more():
    honest, picked = [], []
    for seed in range(15):
        rng = np.random.default_rng(seed)
        differences = planted([3.0] * 7, pairs=200, seed=seed)
        # The same wrong labels in all layers, as wrong labels are.
        differences *= rng.choice([-1, 1], size=(1, 200, 1)).astype(np.float32)
        choice = chosen_from(differences, seed=seed)
        honest.append(right(choice.unbiased).mean())
        picked.append(max(right(t.held_out(folds_of(200, seed))).mean() for t in choice.tried))
    assert abs(np.mean(honest) - 0.5) < 0.02
    assert np.mean(picked) > np.mean(honest) + 0.02


def test_nothing_is_scored_by_what_saw_its_prompt():
    differences = planted([0.5, 0.5, 0.5], pairs=120, width=8)
    groups = np.repeat(np.arange(40), 3)
    choice = chosen_from(differences, ("mean_difference",), groups, seed=3)
    folds = resample.folds_of(groups, FOLDS, 3)
    assert all(len(set(folds[groups == g])) == 1 for g in range(40))
    for trial in choice.tried:
        for i in (0, 17, 119):
            for k in range(FOLDS):
                rest = differences[trial.place][(folds != folds[i]) & (folds != k)]
                vector = ESTIMATORS["mean_difference"](rest)
                assert trial.raw[i, k] == pytest.approx(differences[trial.place][i] @ vector, rel=1e-4, abs=1e-5)
    # What fold k's pairs do has no part in the choice that scores them: their other layers may become anything.
    wild = differences.copy()
    inside = folds == 2
    wild[:, inside] *= -50
    again = chosen_from(wild, ("mean_difference",), groups, seed=3)
    np.testing.assert_allclose(again.unbiased[inside], -50 * choice.unbiased[inside], rtol=1e-4)
    assert not np.allclose(again.unbiased[~inside], choice.unbiased[~inside], rtol=1e-2)


def of_sources(own, shared, sources=3, pairs=120, width=24, seed=0):
    """Differences `[2, n, width]`: layer 0 has an axis of each source's own, layer 1 one that all share; and sources."""
    rng = np.random.default_rng(seed)
    differences = rng.standard_normal((2, sources * pairs, width))
    named = np.repeat(np.arange(sources), pairs)
    axes = np.linalg.qr(rng.standard_normal((width, width)))[0]
    differences[0] += own * axes[named]
    differences[1] += shared * axes[-1]
    return differences.astype(np.float32), named


def test_a_layer_that_serves_every_source_is_chosen_over_one_that_serves_each_its_own():
    differences, sources = of_sources(own=3.0, shared=1.0)
    alone = chosen_from(differences)
    apart = chosen_from(differences, sources=sources)
    assert (alone.place, apart.place) == (0, 1)
    assert right(alone.unbiased).mean() > right(apart.unbiased).mean() + 0.03, "which costs something at home"
    # Both are held-out margins of directions of all sources, so those of one trial are the same.
    for trial in apart.tried:
        (same,) = [t for t in alone.tried if (t.place, t.estimator) == (trial.place, trial.estimator)]
        np.testing.assert_allclose(trial.raw, same.raw, atol=1e-5)
    # The control: sources that are drawn at random, and say nothing of the pairs, change nothing.
    coins = np.random.default_rng(0).permutation(sources)
    assert chosen_from(differences, sources=coins).place == alone.place


def test_each_source_counts_the_same_however_many_pairs_it_has():
    # Layer 1 serves a large source well, layer 0 two small ones; all along axes that the sources share.
    rng = np.random.default_rng(1)
    sources = np.repeat([0, 1, 2], [400, 60, 60])
    differences = rng.standard_normal((2, 520, 12)).astype(np.float32)
    differences[0, :, 0] += np.where(sources == 0, 0.3, 2.5)
    differences[1, :, 0] += np.where(sources == 0, 2.5, 0.3)
    assert chosen_from(differences, ("mean_difference",)).place == 1
    assert chosen_from(differences, ("mean_difference",), sources=sources).place == 0


def test_of_an_unseen_source_neither_pairs_nor_prompts_were_seen():
    differences, sources = of_sources(own=0.5, shared=1.0, pairs=60)
    groups = np.arange(180)
    groups[60:70] = groups[:10]  # prompts that two sources share
    wild = differences.copy()
    wild[:, sources == 1] *= -50
    wild[:, :10] *= -50  # what source 0 has of the prompts of source 1

    def margins(given):
        return unseen_sources(given, range(2), TRIED, groups, sources, middle=0.5, seed=0)

    before, after = margins(differences), margins(wild)
    np.testing.assert_allclose(after[sources == 1], -50 * before[sources == 1], rtol=1e-4)
    assert not np.allclose(after[70:][sources[70:] == 2], before[70:][sources[70:] == 2], rtol=1e-2), "the control"
    assert right(before).mean() > 0.7
    # Where nothing is left to fit on, nothing is claimed.
    assert np.isnan(unseen_sources(differences, range(2), TRIED, np.zeros(180, int), sources, middle=1, seed=0)).all()


def test_a_source_that_lacks_folds_is_judged_by_the_others():
    differences, sources = of_sources(own=0.5, shared=1.0, pairs=40)
    groups = np.r_[np.zeros(40, int), np.arange(1, 81)]  # the first source is one prompt
    for estimator in ESTIMATORS:
        choice = chosen_from(differences, (estimator,), groups, sources=sources)
        assert all(np.isfinite(trial.apart).all() for trial in choice.tried)


@pytest.mark.parametrize("name", list(ESTIMATORS))
@pytest.mark.parametrize("width", [6, 200], ids=["wide data", "wide space"])
@pytest.mark.parametrize("debiased", [False, True])
def test_directions_without_folds_are_the_estimators_own(name, width, debiased):
    (differences,) = planted([1.0], pairs=100, width=width)
    lengths = np.random.default_rng(1).standard_normal(100) if debiased else None
    folds = folds_of(100, 0)
    vectors = directions_without(differences, folds, [(0,), (1, 3)], name, lengths)
    for vector, without in zip(vectors, [(0,), (1, 3)], strict=True):
        keep = ~np.isin(folds, without)
        rest = without_length(differences[keep], lengths[keep] if debiased else None)
        np.testing.assert_allclose(vector, ESTIMATORS[name](rest), atol=1e-5)
    assert not np.allclose(vectors[0], vectors[1], atol=1e-3)


def test_with_one_layer_and_one_estimator_nothing_is_searched():
    choice = chosen_from(planted([1.0]), ("whitened",))
    assert not choice.nested
    assert len(choice.tried) == 1
    np.testing.assert_array_equal(choice.raw, choice.unbiased)
    assert np.isfinite(choice.raw).all()


def test_a_layer_without_a_direction_counts_as_a_coin():
    differences = planted([0.1, 2.0, 0.1])
    differences[0] = 0
    differences[2] = np.nan
    choice = chosen_from(differences)
    assert choice.place == 1
    flat = [t for t in choice.tried if t.place != 1]
    assert len(flat) == 4
    assert all((t.raw == 0).all() for t in flat)


@pytest.mark.parametrize("layers", [4, RUNNING + 4])
def test_a_layer_without_a_direction_is_chosen_only_where_there_is_no_other(layers):
    below = 0
    for seed in range(20):
        differences = planted([0.0] * layers, pairs=40, seed=seed)
        differences[[0, layers // 2]] = 0.0
        choice = chosen_from(differences, seed=seed)
        assert differences[choice.place].any()
        below += right(choice.raw).mean() < 0.5
    assert below  # the control: some were below a coin, whose half the silent layers have
    assert not chosen_from(np.zeros_like(differences)).raw.any()


def test_a_direction_without_length_does_not_lean_on_it():
    rng = np.random.default_rng(0)
    trait, length = np.linalg.qr(rng.standard_normal((16, 2)))[0].T
    # Safer responses are shorter here, and a longer one reads otherwise whether it is safer or not.
    longer = rng.standard_normal(2000) - 1
    x = np.outer(rng.normal(1, 0.5, 2000), trait) - np.outer(longer, length) + 0.5 * rng.standard_normal((2000, 16))
    assert abs(length_axis(x, longer) @ length) > 0.99
    for name in ("mean_difference", "whitened", "logistic"):
        aware, unaware = ESTIMATORS[name](x[:1000]), ESTIMATORS[name](without_length(x[:1000], longer[:1000]))
        slopes = [abs(np.polyfit(longer[1000:], x[1000:] @ v, 1)[0]) for v in (aware, unaware)]
        assert slopes[1] < 0.1 < 0.4 < slopes[0]
        # What shorter responses owe to being safer stays, and is found better than before.
        assert unaware @ trait > 0.98 > aware @ trait + 0.03
    about_zero = x - np.outer(x @ (longer @ x), longer @ x) / np.sum((longer @ x) ** 2)
    assert ESTIMATORS["mean_difference"](about_zero) @ trait < 0.95, "the control: a regression about zero takes of it"
    free = chosen_from(x[None].astype(np.float32), ("mean_difference",), lengths=longer)
    bound = chosen_from(x[None].astype(np.float32), ("mean_difference",))
    assert abs(np.corrcoef(free.raw, longer)[0, 1]) < 0.05
    assert abs(np.corrcoef(bound.raw, longer)[0, 1]) > 0.5
    assert without_length(x, None) is x
    assert length_axis(x, np.full(2000, 0.3)) is None


def test_the_same_seed_gives_the_same_bits_and_inputs_stay():
    differences = planted([0.3] * 12, pairs=100)
    before = differences.copy()
    first, again = chosen_from(differences, seed=1), chosen_from(differences, seed=1)
    assert first.raw.tobytes() == again.raw.tobytes()
    assert first.unbiased.tobytes() == again.unbiased.tobytes()
    np.testing.assert_array_equal(differences, before)
    assert chosen_from(differences, seed=2).raw.tobytes() != first.raw.tobytes()


def test_probabilities_learned_from_margins_that_no_layer_was_picked_for_promise_less():
    """Of thirteen layers alike, fifty prompts pick one whose held-out margins are right by luck."""
    promised = {"raw": [], "comparable": []}
    for seed in range(40):
        rng = np.random.default_rng(seed)
        differences = rng.normal(size=(13, 1050, 32)) + 0.7 * rng.normal(size=(1050, 32))
        differences[:, :, 0] += 0.25
        # Layers differ in the size of what they hold, as real ones do: one scale must not be made of several.
        differences = (differences * 2.0 ** np.arange(13)[:, None, None]).astype(np.float32)
        choice = chosen_from(differences[:, :50], ("mean_difference",), seed=seed)
        direction = ESTIMATORS[choice.estimator](differences[choice.place, :50])
        margins = differences[choice.place, 50:] @ direction
        for name, found in promised.items():
            calibration = fit_calibration("unit", choice.raw, unbiased=getattr(choice, name))
            p = calibration.prob(margins) if calibration.gives_prob else np.full(1000, 0.5)
            found.append(np.maximum(p, 1 - p).mean() - right(margins).mean())
    means = {name: float(np.mean(found)) for name, found in promised.items()}
    assert abs(means["comparable"]) < 0.02, means
    assert means["raw"] > means["comparable"] + 0.01, "the control: margins that the layer was picked for"


def test_margins_of_several_layers_are_made_comparable():
    differences = planted([0.6] * 7, pairs=60)
    scaled = differences * 10.0 ** np.arange(7, dtype=np.float32)[:, None, None]
    plain, choice = (chosen_from(d, ("mean_difference",), seed=5) for d in (differences, scaled))
    assert np.unique([np.sign(choice.unbiased), np.sign(choice.comparable)], axis=0).shape[0] == 1
    size = np.abs(choice.comparable).max() / np.abs(choice.raw).max()
    np.testing.assert_allclose(size, np.abs(plain.comparable).max() / np.abs(plain.raw).max(), rtol=1e-4)
    ratios = np.unique(np.round(choice.unbiased / choice.comparable, 3))
    assert len(ratios) > 1, "the control: here the folds picked several layers"
