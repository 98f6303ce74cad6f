"""A report becomes blocks, which Markdown and HTML are made of: compact tables, each number with what it means.

In: a report. Out: blocks. Every string in it may come from a stranger and is escaped. This file computes nothing and
knows neither datasets nor plots, only the pictures' names.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from legend_hf.hub import cards
from legend_hf.hub.concept import Concept, either
from legend_hf.reports.blocks import Block, Bullets, Heading, InShort, Paragraph, Shown, Table
from legend_hf.reports.findings import (
    UNKNOWN,
    Coverage,
    DirectionReport,
    Estimate,
    Findings,
    LadderCheck,
    SplitReport,
    Stability,
)
from legend_hf.reports.measure import FEWEST_PROMPTS
from legend_hf.reports.tables import Figure, bracketed, by_split, listed, signed

SHOWN_CATEGORIES = 30
SHOWN_SUSPICIOUS = 10
SHOWN_LAYERS = 12
SHOWN_RANKS = 12

_FIGURES: Sequence[Figure[SplitReport]] = (
    (
        "rows read",
        lambda s: f"{s.read} of {s.rows}" + (f" ({s.skipped} skipped)" if s.skipped else ""),
        "Rows with a margin and texts. All numbers below are about these.",
    ),
    ("prompts", lambda s: str(s.prompts), "Distinct first user turns."),
    (
        "**agreement with the labels**",
        lambda s: bracketed(s.agreement),
        "Share of pairs whose chosen response gets the higher score. A coin gets 0.5.",
    ),
    (
        "length alone",
        lambda s: bracketed(s.length.baseline) + (f", the {s.length.rule} one" if s.length.rule else ""),
        "The same for a rule that looks at length alone: the better one of taking the shorter response and taking "
        "the longer.",
    ),
    (
        "gain over length",
        lambda s: bracketed(s.length.gain, signs=True),
        "Agreement minus length alone, on the same rows. A useful margin is above 0 beyond its interval.",
    ),
    (
        "where length is wrong",
        lambda s: bracketed(s.length.agreement_against) + f" ({s.length.rows_against} rows)",
        "Agreement where that rule takes the rejected response. A margin that only measures length gets 0 "
        "here and 1 below, or the reverse.",
    ),
    (
        "where length is right",
        lambda s: bracketed(s.length.agreement_along),
        "Agreement where it takes the chosen response.",
    ),
    (
        "correlation with length",
        lambda s: bracketed(s.length.spearman, signs=True),
        "Rank correlation of the margin with how much longer the chosen response is. 0: the margin's size does not "
        "depend on length.",
    ),
    (
        "AUC",
        lambda s: bracketed(s.auc),
        "How often a pair the right way round gets a larger margin than a swapped one. Above the agreement: large "
        "margins are right more often than small ones.",
    ),
    (
        "negative",
        lambda s: bracketed(s.negative, percent=True),
        "Pairs whose rejected response reads as {more}: the margin errs, or the label does.",
    ),
    (
        "margins: 5 %, median, 95 %",
        lambda s: ", ".join(signed(s.margin.quantiles[str(q)]) for q in (0.05, 0.5, 0.95)),
        "The middle 90 % of the margins lie between the outer two.",
    ),
    (
        "at ±1",
        lambda s: bracketed(s.at_limits, percent=True),
        "Margins of exactly 1 or −1: cut there by the `unit` scale, or the largest size of `bins`.",
    ),
    (
        "pull at the start",
        lambda s: bracketed(s.pull),
        "Mean size of the gradient of TRL's loss on a pair when a training starts. 0.5 without margins; near 1 all "
        "pairs push alike and the margins' sizes are lost.",
    ),
)
# Of splits with probabilities; a split without them has a dash.
_OF_PROBABILITIES: Sequence[Figure[SplitReport]] = (
    (
        "calibration error (ECE)",
        lambda s: "–" if (e := s.probability) is None else f"{bracketed(e.ece)}; {e.ece_by_chance:.3f} by chance",
        "How far the stated probability is from the share that is right, on average. 0 is best; by chance: "
        "what exact probabilities would show on as many prompts.",
    ),
    (
        "Brier score",
        lambda s: "–" if s.probability is None else bracketed(s.probability.brier),
        "Mean squared error of the probability. 0.25 is that of always saying one half.",
    ),
    (
        "negative log likelihood",
        lambda s: "–" if s.probability is None else bracketed(s.probability.nll),
        "In nats a pair. 0.693 is that of always saying one half.",
    ),
)


def blocks_of(report: Findings, pictures: Sequence[Shown] = ()) -> list[Block]:
    """All that a report says, the verdict first.

    Args:
        report: The numbers.
        pictures: Each stands beside the split or the direction that it is about, and at the end if about none.
    """
    doubtful = any(s.doubts for s in report.splits) or any(d.doubts for d in report.directions)
    blocks: list[Block] = [InShort(lines, doubtful)] if (lines := list(_in_short(report))) else []
    blocks += _splits(report.splits, pictures) if report.splits else []
    for direction in report.directions:
        blocks += _direction(direction, pictures)
    return blocks + [picture for picture in pictures if picture.about is None]


def _in_short(report: Findings) -> Iterator[str]:
    """A line on each direction and each split, by which one decides whether to read on."""
    for direction in report.directions:
        name = f" {cards.as_code(direction.name)}" if direction.name else ""
        yield f"**The direction{name}:** {cards.escaped(direction.verdict.headline)}."
    several = len({s.column for s in report.splits}) > 1
    for s in report.splits:
        name = (f"{cards.as_code(s.column)} in " if several else "") + cards.as_code(s.split)
        found = f"doubtful, for {len(s.doubts)} reasons below" if len(s.doubts) > 1 else "doubtful, see below"
        yield (
            f"**Margins of {name}:** {found if s.doubts else 'nothing doubtful'}. They agree with the labels in "
            f"{bracketed(s.agreement, percent=True)} of {s.read} pairs, length alone in "
            f"{bracketed(s.length.baseline, percent=True)}, a coin in 50 %."
        )


def _splits(splits: Sequence[SplitReport], pictures: Sequence[Shown]) -> Iterator[Block]:
    several = len({s.column for s in splits}) > 1
    yield Heading("How good these margins are")
    yield Paragraph(
        "In brackets: 95 % intervals by prompt, since rows of one "
        "prompt repeat each other. The labels are the dataset's own (chosen is preferred) and not free of errors."
    )
    for column in dict.fromkeys(s.column for s in splits):
        own = [s for s in splits if s.column == column]
        if several:
            yield Heading(cards.as_code(column), small=True)
        doubts = [f"**Doubtful** ({cards.as_code(s.split)}): {cards.escaped(doubt)}" for s in own for doubt in s.doubts]
        if doubts:
            yield Bullets(doubts)
        yield from (picture for s in own for picture in pictures if picture.about is s)
        yield _measures(own)
        for s in own:
            yield from _suspicious(s) if s.suspicious else ()
        for s in own:
            yield from _categories(s) if s.categories else ()


def _measures(splits: Sequence[SplitReport]) -> Table:
    """One table: a measure a row, a split a column, and what the number means."""
    figures = (*_FIGURES, *(_OF_PROBABILITIES if any(split.probability for split in splits) else ()))
    more = cards.escaped(either(split.concept.more for split in splits))
    return by_split("Measure", [(name, shown, says.replace("{more}", more)) for name, shown, says in figures], splits)


def _suspicious(split: SplitReport) -> Iterator[Block]:
    shown = split.suspicious[:SHOWN_SUSPICIOUS]
    intro = (
        f"**Rows to look at** in {cards.as_code(split.split)} (numbered from 0, the most negative raw margin first): "
        f"here the rejected response reads as {cards.escaped(split.concept.more)} by most. Sides may be swapped, or "
        "the margin may err: `legend-hf trace DATASET DIRECTION --output traces.html` shows both token by token."
    )
    yield Paragraph(intro)
    if all(s.excerpt is None for s in shown):
        yield Paragraph(", ".join(f"{s.row} ({signed(s.raw)})" for s in shown))
        return
    rows = [(str(s.row), signed(s.raw), *(cards.escaped(text) for text in s.excerpt or ("", "", ""))) for s in shown]
    yield Table(("Row", "Raw margin", "Prompt", "Chosen", "Rejected"), rows, texts=True)


def _categories(split: SplitReport) -> Iterator[Block]:
    categories = split.categories or ()
    yield Paragraph(f"**By category** in {cards.as_code(split.split)}:")
    yield Table(
        ("Category", "Rows", "Prompts", "Mean margin", "Negative", "Agreement with the labels"),
        [
            (
                cards.escaped(c.name),
                f"{c.rows} ({100 * c.share:.1f} %)",
                str(c.prompts),
                bracketed(c.margin, signs=True),
                bracketed(c.negative, percent=True),
                bracketed(c.agreement),
            )
            for c in categories[:SHOWN_CATEGORIES]
        ],
    )
    more = len(categories) - SHOWN_CATEGORIES
    if more > 0:
        yield Paragraph(f"And {more} categories with fewer rows.")
    if split.coverage is not None:
        yield Paragraph(_coverage(split.coverage))


def _coverage(coverage: Coverage) -> str:
    """How even categories are and what they lack, in a few sentences."""

    def named(names: Sequence[str]) -> str:
        return listed([cards.escaped(name) for name in names], SHOWN_CATEGORIES)

    said = []
    if coverage.effective is not None and coverage.largest is not None:
        name, share = coverage.largest
        said.append(
            f"Categories: {coverage.categories}, as varied as {coverage.effective:.1f} of equal size (the exponential "
            f"of the entropy of their shares); the largest, {cards.escaped(name)}, has {100 * share:.1f} %."
        )
    if coverage.without:
        said.append(f"Without a category: {coverage.without} of {coverage.rows + coverage.without}.")
    if coverage.thin:
        said.append(f"Of fewer than {FEWEST_PROMPTS} prompts, too few for intervals: {named(coverage.thin)}.")
    if coverage.expected is not None:
        said.append(f"Missing, of {coverage.expected} expected: {named(coverage.missing) or 'none'}.")
    if coverage.unexpected:
        said.append(f"Not among those expected: {named(coverage.unexpected)}.")
    return " ".join(said)


def _transfer(facts: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    if facts.get("transfer_accuracy") is None:
        return []
    measured = bracketed(Estimate(facts["transfer_accuracy"], facts["transfer_interval"]))
    return [("other sources", measured, "The same of pairs whose source was left out of the fit, each in turn.")]


def _direction(direction: DirectionReport, pictures: Sequence[Shown]) -> Iterator[Block]:
    facts, reader = direction.facts, direction.reader
    accuracy = Estimate(_or_none(facts["accuracy"]), facts["accuracy_interval"])
    length = Estimate(_or_none(facts["length_accuracy"]), facts["length_accuracy_interval"])
    rows = [
        ("model", cards.model_name(reader), "What reads the texts."),
        (
            "concept",
            cards.escaped(Concept.of(facts).said),
            "What the pairs contrast, from the rejected side to the chosen.",
        ),
        ("layer", f"{reader['layer']} of {reader['n_layers']}", "0 is the embeddings."),
        (
            "estimator",
            cards.escaped(facts["estimator"]) + (", without length" if facts["debias"] == "length" else ""),
            "How the vector came from the pairs.",
        ),
        (
            "pairs",
            f"{cards.escaped(facts['pairs'])} of {cards.escaped(facts['prompts'])} prompts",
            "What it was fitted on.",
        ),
        ("held out", cards.escaped(facts["held_out"]), "What the next numbers were measured on."),
        ("accuracy", bracketed(accuracy), "Share of held-out pairs whose chosen response scores higher."),
        (
            "length alone",
            bracketed(length) + (f", the {cards.escaped(facts['length_rule'])} one" if facts["length_rule"] else ""),
            "The same for the better one of two rules: to take the shorter response, or the longer.",
        ),
        *_transfer(facts),
        (
            "effect",
            bracketed(Estimate(_or_none(facts["effect"]), facts["effect_interval"]), signs=True),
            "Mean of the held-out raw margins over their standard deviation. About 0: the direction says nothing of "
            "new pairs, however large its margins.",
        ),
    ]
    if direction.stability is not None:
        rows += _stability(direction.stability)
    yield Heading(f"The direction {cards.as_code(direction.name)}" if direction.name else "The direction")
    if direction.repo_id:
        yield Paragraph(cards.repository_link(direction.repo_id, "", ""))
    yield Bullets(cards.verdict_lines(direction.verdict))
    if direction.doubts:
        yield Bullets([f"**Doubtful:** {cards.escaped(doubt)}" for doubt in direction.doubts])
    yield Table(("", "", "What it is"), rows, says=True)
    if direction.search:
        yield from _search(direction)
    yield from (picture for picture in pictures if picture.about is direction)
    if direction.coverage is not None:
        yield Paragraph(f"**Categories of the pairs of the test.** {_coverage(direction.coverage)}")
    if direction.ladder is not None:
        yield from _ladder(direction.ladder)


def _stability(stable: Stability) -> list[tuple[str, str, str]]:
    """What the test of a direction on pairs gave: names, numbers, and what they mean."""
    truth = (
        "cosine to expect with the truth",
        bracketed(stable.truth),
        "The direction of all pairs with that of infinitely many such pairs, worked out from the halves.",
    )
    return [
        (
            "pairs of the test",
            f"{stable.pairs} of {stable.prompts} prompts",
            f"What directions were fitted on, by {cards.escaped(stable.estimator)}, for the next numbers.",
        ),
        (
            "cosine between halves",
            bracketed(stable.halves),
            "Directions of two disjoint halves of the pairs. 1: the same one; in brackets where 95 % of the "
            "halvings lie.",
        ),
        (
            "cosine of bootstrap draws",
            bracketed(stable.bootstrap),
            "The direction of all pairs with those of random draws of the prompts, which share most of them.",
        ),
        *([truth] if stable.truth.value is not None else []),
        (
            "stable signs",
            "–" if stable.signs_stable is None else f"{100 * stable.signs_stable:.1f} %",
            "Pairs whose margin has one sign under 95 % of the directions fitted on draws without their prompt.",
        ),
        (
            "cosine with this direction",
            bracketed(Estimate(stable.given)),
            "The direction of all pairs of the test with the one that this report is about.",
        ),
    ]


def _search(direction: DirectionReport) -> Iterator[Block]:
    """The layers that did best, in their order; the picture has them all."""
    estimators = list(dict.fromkeys(t.estimator for t in direction.search))
    found = {(t.layer, t.estimator): Estimate(_or_none(t.accuracy), t.interval) for t in direction.search}
    best: dict[int, float] = {}
    for tried in direction.search:
        best[tried.layer] = max(best.get(tried.layer, 0.0), tried.accuracy)
    shown = sorted(sorted(best, key=lambda layer: -best[layer])[:SHOWN_LAYERS])
    which = f"the {len(shown)} best of {len(best)} layers" if len(shown) < len(best) else "each layer"
    yield Paragraph(
        f"Share of pairs that {which} got right while fitting, cross-validated by prompt. The best of many is a little "
        "too good, having been picked; the accuracy above is not."
    )
    yield Table(
        ("Layer", *(cards.escaped(e) for e in estimators)),
        [(str(layer), *(bracketed(found.get((layer, e), UNKNOWN)) for e in estimators)) for layer in shown],
    )


def _ladder(ladder: LadderCheck) -> Iterator[Block]:
    """How the scores go along ladders: the whole, then rank by rank."""
    sizes = ", ".join(f"{rows} of {size} responses" for size, rows in ladder.responses.items())
    chance = "–" if ladder.perfect_by_chance is None else f"{100 * ladder.perfect_by_chance:.2g} %"
    rows = [
        (
            "ladders read",
            f"{ladder.read} of {ladder.rows}" + (f" ({ladder.skipped} skipped)" if ladder.skipped else ""),
            f"All numbers below are about these{f': {sizes}' if sizes else ''}.",
        ),
        ("prompts", str(ladder.prompts), "Distinct first user turns."),
        (
            "**Kendall's tau**",
            bracketed(ladder.tau, signs=True),
            "Pairs of responses in the ladder's order minus pairs the other way round, as a share of all pairs; the "
            "mean over ladders. 1: scores fall at every step; 0: chance.",
        ),
        (
            "length alone",
            bracketed(ladder.length, signs=True) + (f", the {ladder.length_rule} one" if ladder.length_rule else ""),
            "The same for the better one of two rules: the shorter response is the better, or the longer.",
        ),
        (
            "gain over length",
            bracketed(ladder.gain, signs=True),
            "Tau minus that of length, on the same ladders.",
        ),
        (
            "in perfect order",
            bracketed(ladder.perfect, percent=True),
            f"Ladders whose scores fall at every step. By chance: {chance}.",
        ),
    ]
    steps = {step.rank: step for step in ladder.steps}
    ranks = [
        (
            str(rank.rank),
            str(rank.rows),
            bracketed(rank.relative, signs=True),
            bracketed(steps[rank.rank].agreement) if rank.rank in steps else "–",
            bracketed(steps[rank.rank].length) if rank.rank in steps else "–",
        )
        for rank in ladder.ranks[:SHOWN_RANKS]
    ]
    yield Paragraph(
        "**Along ladders** of responses, which their author ordered from the best to the worst. That scores fall along "
        "a ladder is a hypothesis, not a property of the method."
    )
    yield Table(("", "", "What it is"), rows, says=True)
    if ranks:
        yield Paragraph(
            "Rank by rank. The score is relative to the mean of its own ladder, in hidden-state units; a step whose "
            "share is about 0.5 is not seen."
        )
        yield Table(
            ("Rank", "Ladders", "Score", "Scores above the next", f"Is {ladder.length_rule} than the next"), ranks
        )
    more = len(ladder.ranks) - SHOWN_RANKS
    if more > 0:
        yield Paragraph(f"And {more} further ranks.")


def _or_none(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
