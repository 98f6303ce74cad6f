"""Fitting: what the estimator recovers, what is held out, and what is refused before anything is read."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from legend_hf.directions import fit as fit_module
from legend_hf.directions import resample
from legend_hf.directions.calibrate import RAW, Calibration, fit_unit
from legend_hf.directions.fit import fit_direction
from legend_hf.directions.induce import REFERENCE_REFUSAL, pairs_with_refusal
from legend_hf.reading.formats import RowError

TOPICS = [
    "bread",
    "bikes",
    "paint",
    "tents",
    "maps",
    "soup",
    "songs",
    "rain",
    "chess",
    "tea",
    "ropes",
    "lamps",
]
PAIRS = [
    {"prompt": f"Tell me about {t}.", "chosen": f"Gladly: {t} is best done with care.", "rejected": f"No idea, who needs {t}"}
    for t in TOPICS
]  # fmt: skip


def planted(pairs, d_model, noise, seed=0):
    """Pair differences that carry one known direction under noise."""
    rng = np.random.default_rng(seed)
    truth = rng.standard_normal(d_model)
    truth /= np.linalg.norm(truth)
    strength = rng.uniform(0.5, 1.5, size=(pairs, 1))
    return truth, (strength * truth + noise * rng.standard_normal((pairs, d_model))).astype(np.float32)


def test_mean_difference_recovers_a_planted_direction_as_pairs_grow():
    cosines = []
    for pairs in (10, 100, 1000, 10_000):
        truth, differences = planted(pairs, 64, noise=1.0)
        cosines.append(float(truth @ fit_module._unit(differences.mean(0, dtype=np.float64))))
    assert cosines == sorted(cosines)
    assert cosines[-1] > 0.99
    assert cosines[0] < 0.9, "with ten noisy pairs it must not be found yet"


def test_held_out_accuracy_is_one_half_for_random_labels_and_high_for_planted_ones():
    _, differences = planted(600, 32, noise=0.5)
    groups = np.arange(600)
    assert (fit_module._cross_fit(differences, groups, 0) > 0).mean() > 0.9
    flips = np.random.default_rng(1).choice([-1, 1], size=(600, 1)).astype(np.float32)
    random = (fit_module._cross_fit(differences * flips, groups, 0) > 0).mean()
    assert abs(random - 0.5) < 0.06
    inside = differences * flips
    leaky = (inside @ inside.mean(0) > 0).mean()
    assert leaky > random, "scoring the pairs one fitted on would promise more: that is what is held out here"


def test_cross_fitting_never_scores_a_prompt_that_it_fitted_on():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 3)
    folds = resample.folds_of(groups, 5, seed=3)
    assert all(len(set(folds[groups == g])) == 1 for g in range(40))
    assert sorted(np.bincount(folds)) == [24] * 5
    differences = rng.standard_normal((120, 8)).astype(np.float32)
    raw = fit_module._cross_fit(differences, groups, 3)
    for fold in range(5):
        direction = differences[folds != fold].mean(0, dtype=np.float64)
        expected = differences[folds == fold] @ (direction / np.linalg.norm(direction))
        np.testing.assert_allclose(raw[folds == fold], expected, rtol=1e-5, atol=1e-6)


def test_inputs_are_not_written_to():
    _, differences = planted(50, 16, noise=1.0)
    before = differences.copy()
    fit_module._cross_fit(differences, np.arange(50), 0)
    raw = np.linspace(-3, 3, 50)
    copy = raw.copy()
    Calibration("unit", 2.0).apply(raw)
    RAW.apply(raw)
    np.testing.assert_array_equal(differences, before)
    np.testing.assert_array_equal(raw, copy)


@given(st.lists(st.floats(-1e6, 1e6).filter(lambda x: abs(x) > 1e-6), min_size=1, max_size=50))
def test_unit_calibration_is_odd_bounded_and_monotone(values):
    raw = np.array(values)
    calibration = fit_unit(raw)
    margins = calibration.apply(raw)
    assert margins.dtype == np.float32
    np.testing.assert_array_equal(calibration.apply(-raw), -margins)
    assert np.abs(margins).max() <= 1
    order = np.argsort(raw)
    assert (np.diff(margins[order]) >= 0).all()
    assert (np.abs(raw) <= calibration.scale * (1 + 1e-9)).mean() >= 0.9 or len(values) < 20


def test_unit_is_invariant_to_the_scale_of_hidden_states_and_raw_is_not():
    raw = np.random.default_rng(0).standard_normal(200)
    np.testing.assert_allclose(fit_unit(raw).apply(raw), fit_unit(7 * raw).apply(7 * raw), rtol=1e-6)
    assert not np.allclose(RAW.apply(raw), RAW.apply(7 * raw))


@settings(max_examples=30)
@given(st.integers(2, 60), st.integers(0, 5))
def test_bootstrap_interval_holds_the_mean_and_shrinks(groups, seed):
    values = np.random.default_rng(seed).uniform(size=groups * 4)
    keys = np.repeat(np.arange(groups), 4)
    mean, (low, high) = resample.mean_interval(values, keys, seed)
    assert low - 1e-9 <= mean <= high + 1e-9
    assert mean == pytest.approx(values.mean())
    # Rows of one prompt that repeat each other widen the interval; drawing rows apart would hide it.
    repeated = np.repeat(values[::4], 4)
    _, by_prompt = resample.mean_interval(repeated, keys, seed)
    _, by_row = resample.mean_interval(repeated, np.arange(len(keys)), seed)
    if groups >= 20:
        assert by_prompt[1] - by_prompt[0] > by_row[1] - by_row[0]


def test_the_same_seed_gives_the_same_bits(tiny_llama):
    first = fit_direction(PAIRS, model=str(tiny_llama), seed=3)
    again = fit_direction(PAIRS, model=str(tiny_llama), seed=3)
    assert first.vector.tobytes() == again.vector.tobytes()
    assert first.calibration == again.calibration
    assert first.facts == again.facts
    assert fit_direction(PAIRS, model=str(tiny_llama), seed=4).calibration != first.calibration


def test_what_is_recorded(tiny_llama):
    direction = fit_direction([*PAIRS, PAIRS[0]], model=str(tiny_llama), pairs_source="twelve topics")
    facts = direction.facts
    assert (facts.pairs, facts.prompts, facts.skipped) == (13, 12, 0)
    assert facts.pairs_source == "twelve topics"
    assert facts.accuracy_interval[0] <= facts.accuracy <= facts.accuracy_interval[1]
    shorter = np.mean([len(p["chosen"]) < len(p["rejected"]) for p in [*PAIRS, PAIRS[0]]])
    assert facts.length_accuracy == pytest.approx(shorter)
    assert "torch" in facts.versions
    assert np.linalg.norm(direction.vector) == pytest.approx(1.0, abs=1e-6)


def test_mean_projection_of_the_training_pairs_is_the_norm_of_the_mean_difference(tiny_llama):
    """Property 4 of the method: mean of <phi(s) - phi(h), v_hat> = ||v||, exactly."""
    direction = fit_direction(PAIRS, model=str(tiny_llama), calibration="raw")
    margins = [direction.score(p["prompt"], p["chosen"]) - direction.score(p["prompt"], p["rejected"]) for p in PAIRS]
    swapped = fit_direction(
        [{**p, "chosen": p["rejected"], "rejected": p["chosen"]} for p in PAIRS],
        model=str(tiny_llama),
        calibration="raw",
    )
    np.testing.assert_allclose(swapped.vector, -direction.vector, atol=1e-6)
    assert np.mean(margins) > 0
    from legend_hf.reading.reader import Runtime, open_reader

    reading = open_reader(direction.reader, Runtime(path=str(tiny_llama), device="cpu"))
    _, texts, _ = fit_module._encode(reading, fit_module._rows(PAIRS, fit_module.Columns(), "raise")[0], "raise")
    mean = fit_module._differences(reading, texts, None).mean(0, dtype=np.float64)
    assert np.mean(margins) == pytest.approx(np.linalg.norm(mean), rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "paper"}, "`preset` is 'paper'; allowed are 'reference'"),
        ({"preset": "reference", "pooling": "mean"}, "`pooling='mean'` contradicts `preset='reference'`, which sets it to 'last'"),
        ({"preset": "reference", "dtype": "bfloat16"}, "`dtype='bfloat16'` contradicts"),
        ({"estimator": "median"}, "`estimator` is 'median'"),
        ({"calibration": "percent"}, "`calibration` is 'percent'; allowed are 'unit', 'raw'"),
        ({"layer": "best"}, "`layer` is 'best'; allowed are 'auto' or an index"),
        ({"on_error": "ignore"}, "`on_error` is 'ignore'; allowed are 'raise', 'skip'"),
    ],
)  # fmt: skip
def test_arguments_are_refused_by_name(tiny_llama, arguments, message):
    with pytest.raises(ValueError, match=message):
        fit_direction(PAIRS, model=str(tiny_llama), **arguments)


def test_a_preset_accepts_what_it_sets_anyway(tiny_llama):
    direction = fit_direction(PAIRS, model=str(tiny_llama), preset="reference", pooling="last")
    assert direction.calibration == RAW


def test_pairs_are_checked_before_the_model_is_touched(tiny_llama):
    bad = [*PAIRS, {"prompt": "x", "chosen": None, "rejected": "y"}]
    with pytest.raises(RowError, match="row 12, column `chosen`"):
        fit_direction(bad, model="/there/is/no/model")
    assert fit_direction(bad, model=str(tiny_llama), on_error="skip").facts.skipped == 1


def test_too_few_prompts_and_equal_sides_are_refused(tiny_llama):
    with pytest.raises(ValueError, match="no pair is left to fit on"):
        fit_direction([], model=str(tiny_llama))
    with pytest.raises(ValueError, match=r"all 1 pairs have one prompt, .*give pairs of at least 2 prompts"):
        fit_direction(PAIRS[:1], model=str(tiny_llama))
    assert fit_direction(PAIRS[:1], model=str(tiny_llama), calibration="raw").facts.accuracy is None
    same = [{**p, "rejected": p["chosen"]} for p in PAIRS]
    with pytest.raises(ValueError, match="the mean difference of the pairs has length 0"):
        fit_direction(same, model=str(tiny_llama))
    with pytest.raises(ValueError, match="the held-out raw margins are all zero"):
        fit_unit(np.zeros(5))


def test_refusal_pairs_carry_the_typographic_apostrophe():
    (pair,) = pairs_with_refusal([{"prompt": "How?", "harmful": "So."}])
    assert pair == {"prompt": "How?", "chosen": "I can\u2019t answer that.", "rejected": "So."}
    assert "'" not in REFERENCE_REFUSAL
