"""A trace as plain data: numbers of tokens, what they are measured against, and what follows from them alone.

In: what one reading of a text gave. Out: the same, with scale, memory, turn, and where two responses part. This file
knows no model and no page.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from legend_hf.hub.concept import SAFETY, Concept
from legend_hf.reading.plain import make_plain
from legend_hf.tracing.memory import ORDER, WINDOW, Turn, remember, settled_after, turn_of


@dataclass(frozen=True)
class Neutral:
    """What a trace is measured against.

    Attributes:
        zero: The score that says neither, in hidden-state units.
        scale: How far from it is far: there the colours are at their strongest. None: as far as the text goes.
        concept: What the direction is about, and its poles.
    """

    zero: float = 0.0
    scale: float | None = None
    concept: Concept = SAFETY

    def __post_init__(self) -> None:
        """Refuses a scale that could show nothing."""
        make_plain(self)
        if not np.isfinite(self.zero) or not (self.scale is None or 0 < self.scale < float("inf")):
            raise ValueError(f"`zero` is {self.zero} and `scale` {self.scale}; give finite numbers, a scale above 0")


@dataclass(frozen=True, eq=False)
class TokenValues:
    """What a direction reads in one response, token by token.

    Attributes:
        prompt: What was said before, for a person to read.
        text: The response, as the model reads it.
        tokens: The text of each of its tokens `[t]`; of a token that is part of a character a replacement sign.
        places: Characters `[start, stop)` of `text` of each token.
        ids: Token ids.
        values: Projection of each token on the direction `[t]`, float64, in hidden-state units.
        scores: Score of the text up to and with each token `[t]`, float64, as reading that beginning alone gives it;
            None where one reading does not tell.
        why_no_scores: The reason then, else empty.
        score: Score of the whole text, as `Direction.score` gives it.
        neutral: What the values are measured against.
        pooling: How the reader makes one vector of a text.
        of: Model and layer, for a person to read.
    """

    prompt: str
    text: str
    tokens: tuple[str, ...]
    places: tuple[tuple[int, int], ...]
    ids: tuple[int, ...]
    values: np.ndarray
    scores: np.ndarray | None
    why_no_scores: str
    score: float
    neutral: Neutral
    pooling: str
    of: str

    @property
    def min_value(self) -> float:
        """The value of the strongest colour away from the direction."""
        return 2 * self.neutral.zero - self.max_value

    @property
    def max_value(self) -> float:
        """The value of the strongest colour towards the direction."""
        scale = self.neutral.scale
        if scale is None:
            scale = float(np.abs(self.values - self.neutral.zero).max(initial=0.0)) or 1.0
        return self.neutral.zero + scale

    @property
    def turn(self) -> Turn:
        """Where the text turns, with a window of `memory.WINDOW` tokens; see `memory.turn_of` for another."""
        return turn_of(self.values)

    @property
    def settled(self) -> int | None:
        """After how many tokens the score stays on the side of neutral that it ends on; None without `scores`."""
        return None if self.scores is None else settled_after(self.scores - self.neutral.zero)

    def memory(self, q: int = ORDER, theta: float = WINDOW) -> np.ndarray:
        """The Legendre memory of the values, measured from neutral, after each token `[t, q]`; see `memory.remember`.

        Args:
            q: How many numbers the state has; the first is the level of the last `theta` tokens, the second their fall.
            theta: Length of the window in tokens.
        """
        return remember(self.values - self.neutral.zero, q, theta)


@dataclass(frozen=True, eq=False)
class PairValues:
    """Two responses to one prompt, on one scale.

    Attributes:
        chosen: The chosen response's trace.
        rejected: The rejected response's.
        title: What to call the pair on a page.
    """

    chosen: TokenValues
    rejected: TokenValues
    title: str = ""

    @property
    def margin_raw(self) -> float:
        """Score of the chosen response minus that of the rejected one."""
        return self.chosen.score - self.rejected.score

    @property
    def parts_at(self) -> int:
        """Index of the first token at which the two differ; the length of the shorter one if it begins the other."""
        pairs = zip(self.chosen.ids, self.rejected.ids, strict=False)
        shorter = min(len(self.chosen.ids), len(self.rejected.ids))
        return next((i for i, (a, b) in enumerate(pairs) if a != b), shorter)

    @property
    def running(self) -> np.ndarray | None:
        """Margin of the first k tokens of each response, k from 1 to the longer one's length; None without `scores`.

        A response that is over keeps its score.
        """
        if self.chosen.scores is None or self.rejected.scores is None:
            return None
        return running_margin(self.chosen.scores, self.rejected.scores)

    @property
    def settled(self) -> int | None:
        """After how many tokens of each response the margin has the sign that it ends with; None without `scores`."""
        running = self.running
        return None if running is None else settled_after(running)


def running(values: np.ndarray, pooling: str) -> np.ndarray:
    """Score of each beginning of a text `[t]`, for a model that looks only back.

    Args:
        values: Projections of the positions that are pooled `[t]`, float64.
        pooling: The reader's.
    """
    return values if pooling == "last" else np.cumsum(values) / np.arange(1, len(values) + 1)


def running_margin(chosen: np.ndarray, rejected: np.ndarray) -> np.ndarray:
    """Margin of the first k tokens of two responses `[t]`; a response that is over keeps its score.

    Args:
        chosen: Scores of the chosen response's beginnings.
        rejected: Scores of the rejected response's.
    """
    n = max(len(chosen), len(rejected))
    a, b = (np.pad(scores, (0, n - len(scores)), mode="edge") for scores in (chosen, rejected))
    difference: np.ndarray = a - b
    return difference
