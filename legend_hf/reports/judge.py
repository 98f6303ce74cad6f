"""Margins and directions become what a report says of them: numbers, and in words what is doubtful about them.

In: arrays of one split, or a direction with what its tests gave. Out: a `SplitReport`, a `DirectionReport`. This file
reads neither datasets nor texts, and knows nothing of training but the form of TRL's loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from legend_hf.directions.direction import Direction
from legend_hf.hub.concept import SAFETY, Concept
from legend_hf.hub.verdict import FEW_PROMPTS, settled, verdict_on
from legend_hf.margins.origin import beside
from legend_hf.reports.findings import (
    UNKNOWN,
    Category,
    Coverage,
    DirectionReport,
    Estimate,
    LadderCheck,
    Length,
    Margins,
    ProbabilityErrors,
    SplitReport,
    Spread,
    Stability,
    Suspicious,
    Tried,
)
from legend_hf.reports.measure import (
    agreement,
    at_the_start,
    auc,
    beside_length,
    coverage,
    means_of,
    pearson,
    probability_errors,
    share_of,
    shares_of,
    spearman,
)
from legend_hf.reports.tables import listed

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
SUSPICIOUS = 20  # rows that a split names at most
NAMED_MISSING = 5  # categories that a doubt names
LEAST_ERROR = 0.05  # calibration error that matters


def split_report(
    m: Margins, *, seed: int, expected: Sequence[str] | None = None, unsaid: bool = False, concept: Concept = SAFETY
) -> SplitReport:
    """Measures the margins of one direction in one split, and says what of it is implausible.

    Args:
        m: The arrays.
        seed: Of all draws.
        expected: Names that the categories should have.
        unsaid: Whether it matters that nothing says which direction made the margins.
        concept: What the margins are about.
    """
    right, shorter = agreement(m.raw), agreement(-m.longer)
    loss, pull = at_the_start(m.margin)
    shares = shares_of(
        {
            "agreement": right,
            "negative": m.raw < 0,
            "at_limits": np.abs(m.margin) == 1.0,
            "pull": pull,
        },
        m.groups,
    )
    baseline = beside_length(right, shorter, m.groups)
    by_rule = shorter if baseline.rule == "shorter" else 1 - shorter
    against, along = by_rule == 0, by_rule == 1
    length = Length(
        spearman=spearman(m.raw, m.longer, m.groups, seed),
        pearson=pearson(m.raw, m.longer, m.groups, seed),
        rule=baseline.rule,
        baseline=baseline.share,
        gain=baseline.gain,
        rows_against=int(against.sum()),
        agreement_against=share_of(right[against], m.groups[against]),
        agreement_along=share_of(right[along], m.groups[along]),
    )
    errors = None if m.probability is None else probability_errors(m.probability, m.groups, seed)
    spread = None if m.category is None else coverage(m.category, m.groups, expected=expected)
    order = np.lexsort((m.row, m.raw))  # the lowest first, and by row where equal
    return SplitReport(
        split=m.split,
        column=m.column,
        rows=m.total,
        read=len(m.row),
        skipped=m.total - len(m.row) - m.invalid,
        invalid=m.invalid,
        prompts=len(np.unique(m.groups)),
        agreement=shares["agreement"],
        auc=auc(m.raw, m.groups, seed) if len(m.row) else UNKNOWN,
        negative=shares["negative"],
        at_limits=shares["at_limits"],
        margin=_spread(m.margin),
        raw=_spread(m.raw),
        pull=shares["pull"],
        loss=means_of({"": loss}, m.groups)[""],
        length=length,
        probability=errors,
        bins=None if m.bin is None else {f"{v:.6g}": int((m.bin == v).sum()) for v in np.unique(m.bin)},
        categories=None if m.category is None else _categories(m),
        suspicious=tuple(
            Suspicious(int(m.row[i]), float(m.margin[i]), float(m.raw[i]), m.excerpts.get(int(m.row[i])))
            for i in order[:SUSPICIOUS]
            if m.raw[i] < 0
        ),
        doubts=(
            *_split_doubts(m, shares["agreement"], length, errors, shares["pull"], spread),
            *_origin_doubts(m, unsaid),
        ),
        coverage=spread,
        concept=concept,
    )


def _categories(m: Margins) -> tuple[Category, ...]:
    assert m.category is not None
    found = []
    for name in np.unique(m.category):
        inside = m.category == name
        groups, raw, margin = m.groups[inside], m.raw[inside], m.margin[inside]
        shares = shares_of({"negative": raw < 0, "agreement": agreement(raw)}, groups)
        mean = means_of({"": margin}, groups)[""]
        prompts, share = len(np.unique(groups)), len(raw) / len(m.row)
        found.append(Category(str(name), len(raw), prompts, mean, **shares, share=share))
    return tuple(sorted(found, key=lambda c: (-c.rows, c.name)))


def _spread(values: np.ndarray) -> Spread:
    if len(values) == 0:
        return Spread(None, None, {str(q): None for q in QUANTILES})
    quantiles = np.quantile(values, QUANTILES).tolist()
    return Spread(float(values.mean()), float(values.std()), dict(zip(map(str, QUANTILES), quantiles, strict=True)))


def _split_doubts(
    m: Margins,
    share: Estimate,
    length: Length,
    errors: ProbabilityErrors | None,
    pull: Estimate,
    spread: Coverage | None,
) -> Iterable[str]:
    """What a reader of the numbers should not overlook."""
    if m.invalid:
        yield f"rows without a finite margin: {m.invalid}; a training on them ends in NaN or an error."
    if len(m.row) == 0:
        yield "no row has a margin and texts that can be read, so nothing is known."
        return
    prompts = len(np.unique(m.groups))
    if share.interval is None:
        yield f"too few distinct prompts for intervals: {prompts}."
    elif prompts < FEW_PROMPTS:
        yield f"there are {prompts} distinct prompts, fewer than {FEW_PROMPTS}: too few to rely on."
    yield from _missing(spread, "row")
    if not m.raw.any():
        yield "all margins are 0."
        return
    if share.value is not None and share.value < 0.5:
        yield "the margins contradict the labels more often than not: they point the wrong way, or at nothing."
    elif share.interval is not None and share.interval[0] <= 0.5:
        more = settled(prompts, (share.value or 0.5) - 0.5, share.interval[0] - 0.5, "a coin")
        yield f"agreement with the labels cannot be told from a coin's; {more}."
    if length.gain.interval is not None and length.gain.interval[0] <= 0:
        more = settled(prompts, length.gain.value or 0.0, length.gain.interval[0], "length")
        yield f"agreement with the labels is not beyond that of the {length.rule} response, by its interval; {more}."
    if length.spearman.value is not None and abs(length.spearman.value) >= 0.5:
        yield "the margins go along with the length of the responses."
    if not m.has_raw and (m.raw == 0).any():
        yield (
            f"rows with a margin of exactly 0 and no raw margin that says which side scores higher: "
            f"{int((m.raw == 0).sum())}; they count as half right."
        )
    if m.has_raw and (m.margin * m.raw < 0).any():
        yield f"rows whose margin and raw margin have opposite signs: {int((m.margin * m.raw < 0).sum())}."
    if errors is not None and errors.ece.interval is not None and errors.ece.interval[0] > 0:
        value = errors.ece.value or 0.0
        if value > LEAST_ERROR:
            yield f"the probabilities are off by {value:.2f} on average: calibrate on pairs like these."
    if pull.value is not None and pull.value > 0.9:
        yield "margins this large push every pair alike in TRL's loss, which loses their sizes: use a calibrated scale."


def _missing(spread: Coverage | None, what: str) -> Iterable[str]:
    """A doubt about categories that should be there."""
    if spread is not None and spread.missing:
        named = listed(spread.missing, NAMED_MISSING)
        yield f"expected categories without a {what}: {len(spread.missing)} of {spread.expected} ({named})."


def _origin_doubts(m: Margins, unsaid: bool) -> Iterable[str]:
    """What to doubt about where margins come from."""
    several = len(m.made_by - {None})
    if several > 1:
        yield f"the margins were made by {several} directions, whose margins cannot be compared."
    if unsaid and len(m.row):
        yield f"nothing says which direction made the margins: there is no `{beside(m.column)}`, or rows lack it."


def direction_report(
    direction: Direction,
    *,
    name: str = "",
    stability: Stability | None = None,
    coverage: Coverage | None = None,
    ladder: LadderCheck | None = None,
) -> DirectionReport:
    """Collects what is known of a direction, and what of it is implausible."""
    facts = asdict(direction.facts)
    return DirectionReport(
        name=name,
        repo_id=direction.repo_id,
        revision=direction.revision,
        reader=direction.reader.to_dict(),
        facts=facts,
        search=_tried(facts["search"]),
        stability=stability,
        doubts=(
            *_direction_doubts(facts, stability),
            *_missing(coverage, "pair"),
            *(ladder.doubts if ladder is not None else ()),
        ),
        coverage=coverage,
        ladder=ladder,
    )


def _direction_doubts(facts: Mapping[str, Any], stability: Stability | None) -> tuple[str, ...]:
    found = list(verdict_on(facts).doubts)
    if stability is not None and stability.halves.value is not None and stability.halves.value < 0.5:
        found.append("directions of two halves of the pairs have little in common: fit it on more pairs.")
    if stability is not None and stability.given is not None and stability.given <= 0:
        found.append("the pairs that were given for the test point the other way.")
    return tuple(found)


def _tried(search: Sequence[Mapping[str, Any]] | None) -> tuple[Tried, ...]:
    return tuple(
        Tried(entry["layer"], entry["estimator"], entry["accuracy"], (entry["interval"][0], entry["interval"][1]))
        for entry in search or ()
    )
