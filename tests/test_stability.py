"""How stable a direction is, on differences of which the truth is known, and under what must not matter."""

from __future__ import annotations

import numpy as np
import pytest

from legend_hf.reports import stability
from legend_hf.reports.findings import UNKNOWN
from legend_hf.reports.stability import direction_stability


def planted(n, noise, seed=0, width=20, prompts=None):
    rng = np.random.default_rng(seed)
    truth = np.zeros(width)
    truth[0] = 1.0
    groups = np.arange(n) if prompts is None else rng.integers(0, prompts, n)
    return truth + noise * rng.normal(size=(n, width)), groups, truth


def test_stability_of_a_clear_direction_and_of_none():
    clear = direction_stability(*planted(2000, 1.0)[:2])
    assert clear.halves.value > 0.97
    assert clear.bootstrap.value > 0.97
    assert clear.halves.interval[0] > 0.94
    rng = np.random.default_rng(0)
    none = direction_stability(rng.normal(size=(2000, 20)), np.arange(2000))
    assert abs(none.halves.value) < 0.6
    assert none.signs_stable < 0.5 < clear.signs_stable
    # A draw with replacement shares most pairs with the whole, so this number alone would flatter.
    assert none.bootstrap.value > 0.5


def test_the_cosine_to_expect_is_the_cosine_to_the_truth():
    expected, real = [], []
    for seed in range(30):
        differences, groups, truth = planted(400, 3.0, seed)
        expected.append(direction_stability(differences, groups).truth.value)
        mean = differences.mean(axis=0)
        real.append(mean @ truth / np.linalg.norm(mean))
    assert np.mean(expected) == pytest.approx(np.mean(real), abs=0.03)
    # The halves themselves would promise less.
    assert np.mean([e**2 / (2 - e**2) for e in expected]) < np.mean(real) - 0.15


def test_stability_halves_by_prompt():
    """Pairs of one prompt that share what is peculiar to it look stable if they are drawn apart."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 25)
    differences = (rng.normal(size=(40, 30)) * 3)[groups] + rng.normal(size=(1000, 30)) * 0.1
    assert direction_stability(differences, np.arange(1000)).halves.value > 0.85
    assert direction_stability(differences, groups).halves.value < 0.4


def test_stability_knows_no_order_and_compares_with_a_given_vector(monkeypatch):
    differences, groups, truth = planted(300, 2.0, prompts=100)
    found = direction_stability(differences, groups, vector=truth, seed=3)
    mean = differences.mean(axis=0)
    assert found.given == pytest.approx(mean @ truth / np.linalg.norm(mean))
    assert direction_stability(differences, groups, vector=-truth).given == pytest.approx(-found.given)
    order = np.random.default_rng(1).permutation(300)
    again = direction_stability(differences[order], groups[order], vector=truth, seed=3)
    assert again.halves.value == pytest.approx(found.halves.value)
    assert again.bootstrap.interval == pytest.approx(found.bootstrap.interval)
    assert again.signs_stable == found.signs_stable
    # Nor blocks of rows, which only bound the memory.
    monkeypatch.setattr(stability, "ROWS_AT_ONCE", 7)
    blocks = direction_stability(differences, groups, vector=truth, seed=3)
    assert blocks.halves.value == pytest.approx(found.halves.value)
    assert blocks.signs_stable == found.signs_stable


def test_stability_of_too_few_prompts_or_equal_sides_is_unknown():
    few = direction_stability(np.ones((100, 4)), np.arange(100) % 5)
    assert (few.prompts, few.halves, few.signs_stable) == (5, UNKNOWN, None)
    assert direction_stability(np.empty((0, 4)), np.empty(0)).pairs == 0
    assert direction_stability(np.zeros((100, 4)), np.arange(100)).halves == UNKNOWN


@pytest.mark.parametrize("estimator", ["pca", "whitened", "logistic"])
def test_stability_of_the_other_estimators(estimator):
    differences, groups, truth = planted(300, 1.0, prompts=150, width=8)
    found = direction_stability(differences, groups, estimator=estimator, vector=truth)
    assert found.estimator == estimator
    assert found.halves.value > 0.9
    assert found.given > 0.95
    assert found.signs_stable > 0.6
    assert found.truth == UNKNOWN, "the rule for it is one of means"
    noise = np.random.default_rng(0).normal(size=(300, 8))
    assert direction_stability(noise, groups, estimator=estimator).halves.value < 0.8
    assert direction_stability(np.zeros((60, 8)), np.arange(60), estimator=estimator).halves == UNKNOWN
