"""A trace in a few numbers: level and trend of its last tokens, where it turns, when its sign is settled.

In: one number for each token of a text. Out: the state of a Legendre memory after each token, and what is made of it.
This file knows neither tokens nor models.

From the papers: the Legendre memory unit's linear recurrence with its fixed matrices (Voelker et al., NeurIPS 2019),
and its parallel form, the convolution with the impulse response by FFT (Chilkuri and Eliasmith, ICML 2021), as
LMUFormer (Liu et al., ICLR 2024) has it. Nothing is learned here: there it stands between trained layers. Ours: to put
the projections of a text's tokens into it, and what `turn_of` and `settled_after` make of it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

ORDER = 6
WINDOW = 16
FEWEST_TOKENS = 4
"""A shorter text has no place to turn at."""


class Turn(NamedTuple):
    """Where a text turns.

    Attributes:
        token: Index of the first token after the turn; -1 where there is none.
        sign: 1 towards the direction, -1 away from it, 0 where there is no turn.
        size: How far: the level of the half window after it minus that before it, as a memory of the window has it.
    """

    token: int
    sign: int
    size: float


@lru_cache(maxsize=64)
def matrices(q: int, theta: float) -> tuple[np.ndarray, np.ndarray]:
    """The memory's `[q, q]` and `[q]` matrices for steps of one token, by zero-order hold: exact for inputs that hold.

    theta · m'(t) = A m(t) + B u(t), with A_ij = (2i+1) · (-1 if i < j else (-1)^(i-j+1)) and B_i = (2i+1) · (-1)^i.

    Args:
        q: How many numbers the state has.
        theta: Length of the window in tokens.

    Raises:
        ValueError: There is no such memory.
    """
    import torch

    if not (isinstance(q, int) and 1 <= q <= 64):
        raise ValueError(f"`q` is {q!r}; a memory has 1 to 64 numbers, such as {ORDER}")
    if not 1 <= theta < float("inf"):
        raise ValueError(f"`theta` is {theta!r}; a window has at least 1 token, such as {WINDOW}")
    i, j = np.arange(q)[:, None], np.arange(q)[None, :]
    both = np.zeros((q + 1, q + 1))
    both[:q, :q] = (2 * i + 1) * np.where(i < j, -1.0, (-1.0) ** (i - j + 1))
    both[:q, q] = (2 * np.arange(q) + 1) * (-1.0) ** np.arange(q)
    # The exponential of both together holds the integral that belongs to B.
    step = torch.linalg.matrix_exp(torch.from_numpy(both / theta)).numpy()
    a, b = step[:q, :q].copy(), step[:q, q].copy()
    a.flags.writeable = b.flags.writeable = False  # they are kept
    return a, b


def remember(values: np.ndarray, q: int = ORDER, theta: float = WINDOW) -> np.ndarray:
    """The memory's state after each token, by the recurrence; it starts at rest, as if all before had been 0.

    A constant drives it to that constant times (1, 0, 0, ...): `m[:, 0]` is the level of the last `theta` tokens, and
    `m[:, 1]` is above 0 where they fall, below where they rise, by half of what a straight line rises in a window.

    Args:
        values: Of each token `[t]`.
        q: How many numbers the state has: 2 for level and trend, more to remember the window's shape.
        theta: Length of the window in tokens.

    Returns:
        `[t, q]`, float64, in the units of `values`.
    """
    a, b = matrices(q, theta)
    states = np.zeros((len(values), q))
    state = np.zeros(q)
    for t, value in enumerate(np.asarray(values, dtype=np.float64)):
        state = a @ state + b * value
        states[t] = state
    return states


def remember_at_once(values: np.ndarray, q: int = ORDER, theta: float = WINDOW) -> np.ndarray:
    """The same as `remember`, all tokens at once: the convolution with the impulse response, by FFT."""
    values = np.asarray(values, dtype=np.float64)
    n = len(values)
    impulse = np.zeros(n)
    impulse[:1] = 1.0
    response = remember(impulse, q, theta)  # [t, q], the same for all texts
    size = 2 * max(n, 1)
    product = np.fft.rfft(response, size, axis=0) * np.fft.rfft(values, size)[:, None]
    return np.fft.irfft(product, size, axis=0)[:n]


def recall(states: np.ndarray, ago: float, theta: float = WINDOW) -> np.ndarray:
    """What the value was some tokens ago, decoded from the memory by shifted Legendre polynomials: `[t]`.

    Args:
        states: What `remember` gave, `[t, q]`.
        ago: Tokens, from 0, the one just read, to `theta` - 1, the oldest in the window.
        theta: Length of the window in tokens.
    """
    if not 0 <= ago <= theta - 1:
        raise ValueError(f"`ago` is {ago!r}; the memory reaches from 0 to {theta - 1:g} tokens back")
    x = 2 * (ago + 0.5) / theta - 1  # the middle of the token's time, for which its value holds
    polynomials = [np.polynomial.legendre.Legendre.basis(i)(x) for i in range(states.shape[1])]
    return states @ np.array(polynomials)


def turn_of(values: np.ndarray, theta: float = WINDOW) -> Turn:
    """Where a text turns: half a window before the memory's trend is steepest, of the windows that lie in the text.

    Args:
        values: Of each token `[t]`.
        theta: Length of the window in tokens; of a text shorter than two windows, half of its tokens.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) < FEWEST_TOKENS or np.ptp(values) == 0:
        return Turn(-1, 0, 0.0)
    theta = min(theta, len(values) / 2)
    # From rest at the first value: a text does not turn by beginning.
    trend = remember(values - values[0], ORDER, theta)[:, 1]
    whole = int(np.ceil(theta)) - 1  # the first token that ends a window
    at = whole + int(np.abs(trend[whole:]).argmax())
    # A step of 1 in the middle of the window is a trend of 3/4.
    size = -float(trend[at]) / 0.75
    return Turn(max(1, round(at + 1 - theta / 2)), int(np.sign(size)), size)


def settled_after(numbers: np.ndarray) -> int:
    """After how many tokens the sign of a running number `[t]` is the one that it ends with, for good: 1 to t.

    A number that ends at 0 has no sign: t.
    """
    other = np.flatnonzero(np.sign(numbers) != np.sign(numbers[-1])) if numbers[-1] != 0 else [len(numbers) - 2]
    return int(other[-1]) + 2 if len(other) else 1
