"""What a report says, as plain data: numbers with their intervals, and the arrays behind them.

In: nothing. Out: dataclasses, each number with what it means. Whatever the rows cannot give is None. This file computes
and reads nothing, so that what measures and what shows can both rest on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from legend_hf.hub.concept import SAFETY, Concept
from legend_hf.hub.verdict import Verdict, verdict_on


@dataclass(frozen=True)
class Estimate:
    """A number and how far it can be trusted.

    Attributes:
        value: None where the rows cannot give it.
        interval: 95 %, by prompt, as `directions.resample` says; None with fewer than `FEWEST_PROMPTS` prompts, and for
            a mean without bounds where all values are equal. Never without width.
    """

    value: float | None
    interval: tuple[float, float] | None = None

    def shown(self, one: Callable[[float], str], unknown: str = "–") -> str:
        """The number with its interval, `0.63 [0.58, 0.68]`, each as `one` writes it."""
        if self.value is None:
            return unknown
        if self.interval is None or not all(math.isfinite(end) for end in self.interval):
            return one(self.value)
        return f"{one(self.value)} [{one(self.interval[0])}, {one(self.interval[1])}]"


UNKNOWN = Estimate(None)


@dataclass(frozen=True)
class Baseline:
    """What the length of the responses gets right by itself.

    Attributes:
        rule: Which response the better rule takes, `"shorter"` or `"longer"`; None without rows.
        share: What it gets right. Its interval knows that it is the better one of two.
        gain: How much more is right than that; its interval holds for whichever rule is the better one.
    """

    rule: str | None
    share: Estimate
    gain: Estimate


@dataclass(frozen=True)
class ProbabilityBin:
    """Rows about equally sure of their preferred side.

    Attributes:
        rows: How many.
        confidence: Their mean probability of the side that they prefer, 0.5 to 1.
        right: Share of them whose preferred side is the label's.
    """

    rows: int
    confidence: float
    right: Estimate


@dataclass(frozen=True)
class ProbabilityErrors:
    """How well probabilities keep what they promise.

    Attributes:
        rows: Rows with a probability.
        ece: Expected calibration error: the mean distance between confidence and share right, over bins of equal mass.
            0 is best. In its interval lies what it would be without the luck of these prompts; from 0 on, if exact
            probabilities may well show as much.
        ece_by_chance: What exactly right probabilities would show on average on as many prompts whose rows repeat each
            other as these do: small bins never are exact.
        brier: Mean squared distance between probability and label. 0.25 is that of a constant one half.
        nll: Mean negative log likelihood in nats. 0.693 is that of a constant one half.
        bins: From the least to the most sure.
    """

    rows: int
    ece: Estimate
    ece_by_chance: float
    brier: Estimate
    nll: Estimate
    bins: tuple[ProbabilityBin, ...]


@dataclass(frozen=True)
class Stability:
    """How much a direction depends on the pairs that it was fitted on.

    Attributes:
        estimator: How directions were fitted for this test.
        pairs: Pairs read.
        prompts: Distinct prompts among them.
        halves: Cosine between directions of two disjoint halves of the prompts: mean, and where 95 % of the random
            halvings lie.
        bootstrap: Cosine between the direction of all pairs and that of a bootstrap draw of the prompts; likewise.
        truth: Cosine to expect between the mean difference of all pairs and that of infinitely many such pairs; unknown
            for other estimators. Rough, and rather too low, where halves have little in common.
        signs_stable: Share of pairs whose margin has the same sign under 95 % of the directions that were fitted on
            draws without their prompt.
        given: Cosine between the direction of all pairs and the direction that was to be tested, if one was.
    """

    estimator: str
    pairs: int
    prompts: int
    halves: Estimate = UNKNOWN
    bootstrap: Estimate = UNKNOWN
    truth: Estimate = UNKNOWN
    signs_stable: float | None = None
    given: float | None = None


@dataclass(frozen=True)
class Coverage:
    """How rows spread over categories.

    Attributes:
        rows: Rows that have a category; all shares are of these.
        without: Rows that have none.
        categories: Distinct categories.
        effective: How many categories of equal size would be as varied: the exponential of the entropy of the shares
            (in nats). It equals `categories` where all are equal, and nears 1 where one has nearly all rows.
        largest: The category with the most rows, and its share. None without rows.
        thin: Categories of fewer than `FEWEST_PROMPTS` distinct prompts: too few for an interval.
        expected: How many categories were expected, None if that was not said.
        missing: Those of them without a row.
        unexpected: Categories that were not among them.
    """

    rows: int
    without: int
    categories: int
    effective: float | None
    largest: tuple[str, float] | None
    thin: tuple[str, ...]
    expected: int | None
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Ladders:
    """The arrays behind a `LadderCheck`: `n` ladders of up to `k` responses, best first, NaN behind a shorter ladder's.

    Attributes:
        row: Row numbers `[n]`, from 0.
        scores: `[n, k]`, in hidden-state units; only differences between two of them mean something.
        lengths: Characters of the responses `[n, k]`.
        groups: Number of each ladder's prompt `[n]`.
        tau: Kendall's tau of each ladder's scores `[n]`, see `measure.kendall_tau`.
        length_tau: The same of "the shorter, the better" `[n]`.
    """

    row: np.ndarray
    scores: np.ndarray
    lengths: np.ndarray
    groups: np.ndarray
    tau: np.ndarray
    length_tau: np.ndarray


@dataclass(frozen=True)
class Rank:
    """The responses of one rank.

    Attributes:
        rank: 1 is the best.
        rows: Ladders that have this rank.
        score: Mean score, in hidden-state units. Prompts that differ in all their scores make its interval wide.
        relative: Mean of the score minus the mean score of its own ladder.
    """

    rank: int
    rows: int
    score: Estimate
    relative: Estimate


@dataclass(frozen=True)
class Step:
    """Two neighbouring ranks.

    Attributes:
        rank: The better one of the two; the other is the next.
        rows: Ladders that have both.
        agreement: Share of them that score the better one higher; equal scores count half. Near one half the direction
            does not see this step.
        length: The same for the rule of length that does best on whole ladders, `LadderCheck.length_rule`.
    """

    rank: int
    rows: int
    agreement: Estimate
    length: Estimate


@dataclass(frozen=True)
class LadderCheck:
    """How far a direction's scores follow the order of ladders. Every interval is 95 %, by prompt.

    Attributes:
        rows: Rows of the dataset.
        read: Ladders that were scored.
        skipped: Rows that cannot be read.
        prompts: Distinct prompts (first user turns) among the ladders read.
        responses: Number of responses in a ladder to the number of such ladders.
        tau: Mean of the ladders' Kendall's tau-a between order and scores: 1 where scores fall at every step, -1 where
            they rise, about 0 by chance. A pair of equal scores counts 0. With two responses it is twice the share of
            ladders in order, minus 1.
        perfect: Share of ladders whose scores fall at every step.
        perfect_by_chance: That share if every order were as likely.
        length: `tau` of the better one of the two rules of length: the shorter response is the better, or the longer.
        gain: `tau` minus `length`, on the same ladders; its interval holds for whichever rule is the better one.
        ranks: From the best.
        steps: From the best.
        doubts: What is implausible, in words.
        measured: The arrays behind these numbers. Not part of a report's JSON.
        length_rule: Which response that rule takes, `"shorter"` or `"longer"`; None without ladders.
    """

    rows: int
    read: int
    skipped: int
    prompts: int
    responses: Mapping[str, int]
    tau: Estimate
    perfect: Estimate
    perfect_by_chance: float | None
    length: Estimate
    gain: Estimate
    ranks: tuple[Rank, ...]
    steps: tuple[Step, ...]
    doubts: tuple[str, ...]
    measured: Ladders = field(repr=False, compare=False)
    length_rule: str | None = None


@dataclass(frozen=True, eq=False)
class Margins:
    """The margins of one direction in one split, as arrays over the rows that were read.

    Attributes:
        split: Name of the split.
        column: Name of the margin column.
        total: Rows of the split.
        invalid: Rows left out because a number is null, NaN or infinite.
        row: Row numbers `[n]`, from 0.
        margin: On the training scale `[n]`.
        raw: Before calibration `[n]`; the margin itself where the dataset has no raw column.
        has_raw: Whether the dataset has a raw column.
        probability: `[n]`, or None without such a column.
        bin: `[n]`, or None without such a column.
        longer: Characters of the chosen response minus those of the rejected one `[n]`.
        groups: Number of each row's prompt `[n]`.
        category: `[n]` of strings, or None.
        excerpts: Row number to the beginnings of (prompt, chosen, rejected), of the lowest raw margins; empty unless
            asked for.
        made_by: The marks of the directions that made them; None is a row that does not say.
    """

    split: str
    column: str
    total: int
    invalid: int
    row: np.ndarray
    margin: np.ndarray
    raw: np.ndarray
    has_raw: bool
    probability: np.ndarray | None
    bin: np.ndarray | None
    longer: np.ndarray
    groups: np.ndarray
    category: np.ndarray | None
    excerpts: Mapping[int, tuple[str, str, str]]
    made_by: frozenset[str | None] = frozenset({None})


@dataclass(frozen=True)
class Length:
    """What the margins owe to the length of the responses, in characters.

    Attributes:
        spearman: Rank correlation of the raw margin with the length of the chosen minus that of the rejected response.
        pearson: The same, linear.
        rule: Which response the better one of two rules takes for the safer, `"shorter"` or `"longer"`; None without
            rows.
        baseline: Share of pairs that this rule gets right; equal lengths count half.
        gain: Agreement of the margins minus the baseline, on the same rows.
        rows_against: Pairs that the rule gets wrong.
        agreement_against: Share of those that the margins get right.
        agreement_along: Share that the margins get right where the rule is right too.
    """

    spearman: Estimate
    pearson: Estimate
    rule: str | None
    baseline: Estimate
    gain: Estimate
    rows_against: int
    agreement_against: Estimate
    agreement_along: Estimate


@dataclass(frozen=True)
class Spread:
    """How numbers are distributed; None without rows."""

    mean: float | None
    sd: float | None
    quantiles: Mapping[str, float | None]


@dataclass(frozen=True)
class Category:
    """The margins of one category.

    Attributes:
        name: As in the dataset; `(none)` for rows without one.
        rows: Rows read.
        prompts: Distinct prompts among them.
        margin: Mean on the training scale.
        negative: Share of pairs whose raw margin is below 0.
        agreement: Share of pairs whose raw margin is above 0; 0 counts half.
        share: Of all rows read.
    """

    name: str
    rows: int
    prompts: int
    margin: Estimate
    negative: Estimate
    agreement: Estimate
    share: float


@dataclass(frozen=True)
class Suspicious:
    """A row whose margin contradicts its label: perhaps its sides are swapped, perhaps the direction errs.

    Attributes:
        row: Its number in the split, from 0.
        margin: On the training scale.
        raw: Before calibration.
        excerpt: Beginnings of prompt, chosen and rejected, only if asked for.
    """

    row: int
    margin: float
    raw: float
    excerpt: tuple[str, str, str] | None = None


@dataclass(frozen=True)
class SplitReport:
    """One direction's margins in one split.

    Attributes:
        split: Name of the split.
        column: Name of the margin column.
        rows: Rows of the split.
        read: Rows whose margins and texts were used.
        skipped: Rows that the annotation skipped, or whose texts cannot be read.
        invalid: Rows whose margin is null, NaN or infinite.
        prompts: Distinct prompts (first user turns) among the rows read.
        agreement: Share of pairs whose raw margin is above 0, as the label says; 0 counts half.
        auc: See `measure.auc`.
        negative: Share of pairs whose raw margin is below 0.
        at_limits: Share of margins at exactly -1 or 1, where the `unit` calibration clips.
        margin: Distribution on the training scale.
        raw: Distribution before calibration.
        pull: Mean of sigmoid(margin): the size of the gradient of TRL's loss at the start of a training, when both
            rewards are equal. One half without margins; near 1 every pair pushes alike and the sizes are lost.
        loss: Mean of that loss then; 0.693 without margins.
        length: What they owe to length.
        probability: Errors of `margin_prob`, None without that column.
        bins: Value of `margin_bin` to number of rows, None without that column.
        categories: From the most rows to the fewest; None unless a column was named.
        suspicious: The most negative raw margins first.
        doubts: What is implausible, in words.
        coverage: How the rows read spread over categories; None unless a column was named.
        concept: What the margins are about, as their direction says; safety where none was given.
    """

    split: str
    column: str
    rows: int
    read: int
    skipped: int
    invalid: int
    prompts: int
    agreement: Estimate
    auc: Estimate
    negative: Estimate
    at_limits: Estimate
    margin: Spread
    raw: Spread
    pull: Estimate
    loss: Estimate
    length: Length
    probability: ProbabilityErrors | None
    bins: Mapping[str, int] | None
    categories: tuple[Category, ...] | None
    suspicious: tuple[Suspicious, ...]
    doubts: tuple[str, ...]
    coverage: Coverage | None = None
    concept: Concept = SAFETY


@dataclass(frozen=True)
class Tried:
    """One layer and estimator that were tried while fitting."""

    layer: int
    estimator: str
    accuracy: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class DirectionReport:
    """What is known of a direction.

    Attributes:
        name: In a mapping of several, else empty.
        repo_id: On the Hub, or None.
        revision: Its commit there.
        reader: How it reads, as in its configuration.
        facts: Of its fit, as in its configuration.
        search: Accuracy by layer and estimator while fitting, empty if that is not recorded.
        stability: See `stability_of`, None unless pairs were given.
        doubts: What is implausible, in words.
        coverage: How those pairs spread over categories; None unless they have the category column that was named.
        ladder: See `ladder.ladder_check`, None unless ladders were given.
    """

    name: str
    repo_id: str | None
    revision: str | None
    reader: Mapping[str, Any]
    facts: Mapping[str, Any]
    search: tuple[Tried, ...]
    stability: Stability | None
    doubts: tuple[str, ...]
    coverage: Coverage | None = None
    ladder: LadderCheck | None = None

    @property
    def verdict(self) -> Verdict:
        """Is the direction any good? By the facts of its fit."""
        return verdict_on(self.facts)


@dataclass(frozen=True)
class Findings:
    """All that a report says.

    Attributes:
        library: Name and version of what measured this.
        seed: Of all draws.
        splits: One for each split and margin column.
        directions: One for each direction that was given.
        measured: The arrays behind `splits`, for plots. Not part of the JSON.
    """

    library: str
    seed: int
    splits: tuple[SplitReport, ...]
    directions: tuple[DirectionReport, ...]
    measured: tuple[Margins, ...] = field(repr=False, compare=False)
