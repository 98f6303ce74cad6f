"""The Legendre memory of a trace: what the papers say of it, and what is made of it here."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from legend_hf.tracing.memory import (
    WINDOW,
    Turn,
    matrices,
    recall,
    remember,
    remember_at_once,
    settled_after,
    turn_of,
)


@pytest.mark.parametrize("q", [1, 2, 6, 12])
@pytest.mark.parametrize("theta", [1, 5, 16, 100.5])
def test_recurrence_and_fft_agree_and_a_constant_drives_the_state_to_the_first_unit_vector(q, theta):
    values = np.random.default_rng(q).normal(size=700)
    assert np.abs(remember(values, q, theta) - remember_at_once(values, q, theta)).max() <= 1e-12
    assert np.abs(remember(np.full(3000, 2.5), q, theta)[-1] - 2.5 * np.eye(q)[0]).max() <= 1e-12
    assert remember(values[:0], q, theta).shape == remember_at_once(values[:0], q, theta).shape == (0, q)


@pytest.mark.parametrize("q", [2, 6])
def test_a_step_is_the_exact_solution_of_the_differential_equation_for_an_input_that_holds(q):
    """Against many small Euler steps of the equation itself, written out."""
    theta, steps = 7.0, 40_000
    a = np.array([[(2 * i + 1) * (-1.0 if i < j else (-1.0) ** (i - j + 1)) for j in range(q)] for i in range(q)])
    b = np.array([(2 * i + 1) * (-1.0) ** i for i in range(q)])
    state = np.zeros(q)
    for value in (1.0, -0.5, 2.0):
        for _ in range(steps):
            state = state + (a @ state + b * value) / theta / steps
    assert np.abs(remember(np.array([1.0, -0.5, 2.0]), q, theta)[-1] - state).max() < 1e-3
    with pytest.raises(ValueError, match="read-only"):  # what is kept cannot be changed by accident
        matrices(q, theta)[0][0, 0] = 1


def test_the_delayed_signal_is_decoded_better_with_more_numbers():
    theta, t = 50.0, np.arange(1500)
    signal = np.sin(2 * np.pi * t / 200)
    worst = {
        q: max(
            np.abs(
                recall(remember(signal, q, theta), ago, theta)[500:] - np.sin(2 * np.pi * (t[500:] - ago) / 200)
            ).max()
            for ago in (5, 25, 45)
        )
        for q in (1, 2, 4, 6)
    }
    assert worst[1] > worst[2] > worst[4] > worst[6]
    assert worst[6] < 2e-3
    # The control: another delay's signal is none of it.
    wrong = recall(remember(signal, 6, theta), 25, theta)[500:] - signal[500:]
    assert np.abs(wrong).max() > 0.5


def test_level_and_trend_are_those_of_the_last_window():
    line = 0.1 * np.arange(400.0)
    level, trend = remember(line, 6, 20)[-1, :2]
    assert level == pytest.approx(0.1 * (399.5 - 10), abs=0.01)  # the middle of the window
    assert trend == pytest.approx(-0.1 * 20 / 2, abs=0.01)
    assert remember(-line, 6, 20)[-1, 1] == -trend


@given(st.integers(20, 100), st.sampled_from([-1, 1]), st.integers(0, 1000))
def test_a_text_turns_where_it_was_made_to(at, sign, seed):
    values = np.repeat([0.0, sign], [at, 120 - at])
    turn = turn_of(values)
    assert (abs(turn.token - at) <= 1, turn.sign, abs(turn.size - sign) < 0.05) == (True, sign, True)
    noisy = turn_of(values + np.random.default_rng(seed).normal(size=120, scale=0.2))
    assert (abs(noisy.token - at) <= WINDOW / 2, noisy.sign) == (True, sign)
    # Moved, stretched or turned over it turns at the same place.
    assert turn_of(7 - 3 * values).token == turn.token
    assert turn_of(7 - 3 * values).sign == -turn.sign


def test_a_text_without_a_turn_has_none():
    assert turn_of(np.zeros(50)) == turn_of(np.array([1.0, 2.0])) == turn_of(np.array([])) == Turn(-1, 0, 0.0)
    assert turn_of(np.array([0.0, 0, 1, 1])).sign == 1


@pytest.mark.parametrize(
    ("numbers", "after"),
    [([1, 2], 1), ([1, -1, 2, 3], 3), ([-1, 1], 2), ([1, 0], 2), ([0, 1], 2), ([3], 1), ([0], 1), ([-1, 0, -1], 3)],
)
def test_a_sign_is_settled_once_it_stays(numbers, after):
    numbers = np.array(numbers, dtype=float)
    assert settled_after(numbers) == settled_after(-numbers) == after


@pytest.mark.parametrize(("q", "theta", "said"), [(0, 5, "`q` is 0"), (65, 5, "`q` is 65"), (2.5, 5, "`q` is"), (2, 0.5, "`theta` is"), (2, float("nan"), "`theta` is")])  # fmt: skip
def test_a_memory_that_there_is_not_is_refused(q, theta, said):
    with pytest.raises(ValueError, match=said):
        remember(np.ones(3), q, theta)
    with pytest.raises(ValueError, match="reaches from 0 to 15 tokens back"):
        recall(np.ones((3, 2)), 16, 16)
