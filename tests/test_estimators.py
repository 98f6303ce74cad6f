"""Estimators: each finds what it is made for and the others miss, and all are what their definition says."""

from __future__ import annotations

import numpy as np
import pytest

from legend_hf.directions.estimators import (
    ESTIMATORS,
    PRIOR_PAIRS,
    NoDirectionError,
    Sums,
    logistic,
    mean_difference,
    pca,
    whitened,
    whitened_from,
)

each_estimator = pytest.mark.parametrize("name", list(ESTIMATORS))


def axes(width, count, rng):
    """Orthonormal directions `[count, width]`."""
    return np.linalg.qr(rng.standard_normal((width, count)))[0].T


def plain(pairs, width, noise, seed=0):
    """A direction of varying strength under the same noise everywhere."""
    rng = np.random.default_rng(seed)
    (truth,) = axes(width, 1, rng)
    return truth, rng.uniform(0.5, 1.5, (pairs, 1)) * truth + noise * rng.standard_normal((pairs, width))


def unsteady(rng):
    """Strong on average but swinging, beside a weak steady trait and a loud random one: for the mean, whom that is one."""
    truth, steady, loud = axes(32, 3, rng)
    n = 4000
    return truth, rng.normal(1, 3, (n, 1)) * truth + rng.normal(0.1, 0.03, (n, 1)) * steady + rng.normal(
        0, 8, (n, 1)
    ) * loud


def mislabelled(rng):
    """Of a strong trait, almost half the labels are wrong: for the axis alone."""
    (truth,) = axes(64, 1, rng)
    side = np.where(rng.permutation(600)[:, None] < 280, -1, 1)
    return truth, side * rng.normal(3, 0.3, (600, 1)) * truth + rng.standard_normal((600, 64))


def noisy_axes(rng):
    """Eight directions are twenty times as loud as the true one: for whom the noise is measured."""
    truth, *loud = axes(32, 9, rng)
    x = truth + 0.1 * rng.standard_normal((2000, 32))
    return truth, x + sum(rng.normal(0, 20, (2000, 1)) * axis for axis in loud)


def far_outliers(rng):
    """One pair in a hundred is a thousand times as far out as the others, anywhere: for whom it matters little then."""
    (truth,) = axes(64, 1, rng)
    x = 3 * truth + rng.standard_normal((2000, 64))
    x[:20] = 1000 * rng.standard_normal((20, 64))
    return truth, x


@pytest.mark.parametrize(
    ("case", "finds"),
    [
        (unsteady, {"mean_difference"}),
        (mislabelled, {"pca"}),
        # Both divide by the noise: without outliers the logistic's first step is the whitened direction.
        (noisy_axes, {"whitened", "logistic"}),
        (far_outliers, {"logistic"}),
    ],
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_each_estimator_finds_its_own_planted_case_where_others_do_not(case, finds, seed):
    truth, differences = case(np.random.default_rng(seed))
    cosines = {name: float(estimate(differences) @ truth) for name, estimate in ESTIMATORS.items()}
    assert {name for name, cosine in cosines.items() if cosine > 0.85} == finds, cosines
    assert max(c for name, c in cosines.items() if name not in finds) < 0.8, cosines


@each_estimator
def test_a_planted_direction_is_found_as_pairs_grow(name):
    cosines = []
    for pairs in (10, 100, 1000, 10_000):
        truth, differences = plain(pairs, 64, noise=0.7)
        cosines.append(float(ESTIMATORS[name](differences) @ truth))
    assert cosines == sorted(cosines)
    assert cosines[-1] > 0.995
    assert cosines[0] < 0.9, "with ten noisy pairs it must not be found yet"


@each_estimator
@pytest.mark.parametrize("shape", [(7, 40), (300, 40)])
def test_unit_length_same_bits_odd_and_untouched_inputs(name, shape):
    differences = plain(*shape, noise=1.0)[1].astype(np.float32)
    before = differences.copy()
    vector = ESTIMATORS[name](differences)
    assert vector.dtype == np.float64
    assert vector.shape == (40,)
    assert np.linalg.norm(vector) == pytest.approx(1)
    assert vector.tobytes() == ESTIMATORS[name](differences).tobytes()
    np.testing.assert_array_equal(differences, before)
    np.testing.assert_allclose(ESTIMATORS[name](-differences), -vector, atol=1e-8)
    # A unit of hidden states is nobody's business.
    np.testing.assert_allclose(ESTIMATORS[name](1000 * differences.astype(np.float64)), vector, atol=1e-7)


@each_estimator
@pytest.mark.parametrize("shape", [(9, 40), (300, 40)])
def test_turning_the_space_turns_the_direction(name, shape):
    _, differences = plain(*shape, noise=1.0)
    turn = axes(40, 40, np.random.default_rng(5))
    vector = ESTIMATORS[name](differences)
    np.testing.assert_allclose(ESTIMATORS[name](differences @ turn), vector @ turn, atol=1e-6)
    # The control: stretching one axis is no turn, and only turns are promised.
    stretched = differences * np.r_[10.0, np.ones(39)]
    assert not np.allclose(ESTIMATORS[name](stretched), vector, atol=1e-2)


@each_estimator
@pytest.mark.parametrize(
    "differences", [np.zeros((5, 8)), np.full((5, 8), np.nan), np.full((30, 8), np.inf)], ids=["zero", "nan", "inf"]
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_no_direction_is_an_error_that_says_what_to_do(name, differences):
    with pytest.raises(NoDirectionError, match="their two sides read alike, or not as finite numbers; give pairs"):
        ESTIMATORS[name](differences)


def test_pairs_that_cancel_have_an_axis_but_no_mean():
    x = np.random.default_rng(0).integers(-9, 10, (4, 8)).astype(np.float64)
    both = np.concatenate([x, -x])
    for estimate in (mean_difference, whitened, logistic):
        with pytest.raises(NoDirectionError, match="has length 0"):
            estimate(both)
    assert np.linalg.norm(pca(both)) == pytest.approx(1)


@pytest.mark.parametrize("shape", [(5, 60), (59, 60), (61, 60), (500, 60)])
def test_whitened_solves_its_equations_with_fewer_and_with_more_pairs_than_dimensions(shape):
    _, x = plain(*shape, noise=1.0)
    n, width = shape
    share = PRIOR_PAIRS * width / (n + PRIOR_PAIRS * width)
    moment = x.T @ x / n
    target = np.trace(moment) / width * np.eye(width)
    expected = np.linalg.solve((1 - share) * moment + share * target, x.mean(axis=0))
    expected /= np.linalg.norm(expected)
    np.testing.assert_allclose(whitened(x), expected, atol=1e-9)
    np.testing.assert_allclose(whitened_from(Sums.of(x, outer=True)), expected, atol=1e-9)
    # About zero or about the mean is the same direction.
    mean = x.mean(axis=0)
    about_mean = np.linalg.solve((1 - share) * (moment - np.outer(mean, mean)) + share * target, mean)
    np.testing.assert_allclose(about_mean / np.linalg.norm(about_mean), expected, atol=1e-9)


def test_whitened_is_the_mean_for_few_pairs_and_fishers_direction_for_many():
    rng = np.random.default_rng(0)
    spread = rng.uniform(0.2, 5, 16)
    mean = rng.standard_normal(16)
    few = mean + spread * rng.standard_normal((3, 16))
    many = mean + spread * rng.standard_normal((100_000, 16))
    fisher = mean / spread**2 / np.linalg.norm(mean / spread**2)
    assert whitened(few) @ mean_difference(few) > 0.99
    assert whitened(many) @ fisher > 0.99
    assert mean_difference(many) @ fisher < 0.9, "the control: these two differ here"


def test_sums_add_up_and_lose_an_axis_as_the_differences_do():
    _, x = plain(50, 12, noise=1.0)
    (axis,) = axes(12, 1, np.random.default_rng(2))
    whole, parts = Sums.of(x, outer=True), Sums.of(x[:20], outer=True) + Sums.of(x[20:], outer=True)
    assert parts.count == whole.count == 50
    np.testing.assert_allclose(parts.outer, whole.outer)
    rest = x - np.outer(x @ axis, axis)
    np.testing.assert_allclose(whole.across(axis).outer, Sums.of(rest, outer=True).outer, atol=1e-9)
    np.testing.assert_allclose(whole.across(axis).total, rest.sum(axis=0), atol=1e-9)
    assert not np.allclose(whole.total, rest.sum(axis=0))


@pytest.mark.parametrize("shape", [(20, 50), (400, 50)])
@pytest.mark.parametrize("noise", [0.01, 3.0], ids=["separable", "overlapping"])
def test_logistic_stands_at_the_bottom_of_its_loss(shape, noise):
    _, x = plain(*shape, noise=noise)
    n, width = shape
    x = x * np.sqrt(width) / np.median(np.linalg.norm(x, axis=1))
    vector = logistic(x)
    # Along its own direction the best length is where the slope is zero; there the whole slope must be.
    penalty = PRIOR_PAIRS * width / (4 * n)

    def slope(length):
        return length * penalty * vector - x.T @ ((1 - np.tanh(length * (x @ vector) / 2)) / 2) / n

    low, high = 0.0, 1e3
    for _ in range(100):
        low, high = ((low + high) / 2, high) if slope((low + high) / 2) @ vector < 0 else (low, (low + high) / 2)
    assert np.linalg.norm(slope(low)) < 1e-8 * np.linalg.norm(slope(0.0))
    shaken = np.roll(vector, 1)
    assert np.linalg.norm(slope(low) + penalty * (shaken - vector)) > 1e-3 * np.linalg.norm(slope(0.0))


@pytest.mark.parametrize("shape", [(6, 20), (200, 20), (700, 300)])
def test_pca_is_the_first_singular_vector_with_the_sign_of_most_pairs(shape):
    truth, x = plain(*shape, noise=0.3)
    x[: shape[0] // 3] *= -1
    _, _, vectors = np.linalg.svd(x)
    first = vectors[0] * np.sign(np.sign(x @ vectors[0]).sum())
    np.testing.assert_allclose(pca(x), first, atol=1e-7)
    assert pca(x) @ truth > 0.5
    assert pca(-x) @ truth < -0.5
