"""Traces become a page: coloured tokens, the running score under them, what both mean in words.

In: traces and pairs of them. Out: HTML, a whole file or a part for a notebook. It needs no network and no JavaScript.
This file computes nothing that a trace does not hold, and the look is the one of all pages (`hub.frame`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from legend_hf.hub import outputs
from legend_hf.hub.frame import escape, is_page, page, part, shade
from legend_hf.tracing.values import PairValues, TokenValues

FOLD_TOKENS = 160
"""Of a longer text, what follows so many tokens is folded."""
FOLD_CHARACTERS = 600
"""Of a longer prompt, what follows so many characters is folded."""
_WIDTH, _HEIGHT = 1000, 100  # of the drawing's own units, which stretch
_MOST_POINTS = 1000

_STYLE = (
    ".legend .pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr));gap:1rem}"
    ".legend .side{border:1px solid rgb(var(--line));border-radius:.5rem;padding:.75rem;min-width:0;"
    "display:flex;flex-direction:column}.legend .chart{margin-top:auto}"
    ".legend .said{white-space:pre-wrap;unicode-bidi:isolate;margin:.5rem 0;line-height:1.75}"
    ".legend .said>details{display:inline}.legend .said>details>summary{white-space:normal;display:list-item;"
    "margin-left:1.2em;color:rgb(var(--faint))}"
    ".legend .k{border-radius:.2em;padding:.1em 0}.legend .k:hover{outline:2px solid rgb(var(--ink))}"
    ".legend .bit,.legend .nl{color:rgb(var(--faint))}"
    ".legend .fork{border-left:3px solid rgb(var(--ink));margin:0 .15em;padding-left:.25em;font-size:.7rem;"
    "vertical-align:.15em;white-space:nowrap}"
    ".legend .scale{display:flex;flex-wrap:wrap;align-items:center;gap:.1rem .5rem;margin:.75rem 0}"
    ".legend .bar{display:inline-flex;border:1px solid rgb(var(--line))}"
    ".legend .bar span{width:.7rem;height:1rem;display:block}"
    ".legend .chart{display:grid;grid-template-columns:1fr auto;gap:0 .4rem;font-size:.75rem;"
    "font-variant-numeric:tabular-nums}"
    ".legend .chart svg{width:100%;height:5.5rem;display:block;grid-row:1/span 2;"
    "border:1px solid rgb(var(--line))}"
    ".legend .chart .low{align-self:end}"
    ".legend svg .zero{stroke:rgb(var(--faint));stroke-dasharray:4 4;fill:none;vector-effect:non-scaling-stroke}"
    ".legend svg .run{stroke:rgb(var(--ink));stroke-width:2;fill:none;vector-effect:non-scaling-stroke}"
    ".legend svg .fork-line{stroke:rgb(var(--ink));stroke-width:1;fill:none;vector-effect:non-scaling-stroke}"
    ".legend .prompt{border-left:3px solid rgb(var(--line));padding-left:.75rem;white-space:pre-wrap;"
    "unicode-bidi:isolate;margin:.5rem 0}"
)


def shown(items: Sequence[TokenValues | PairValues]) -> str:
    """Traces as a part of a notebook's page."""
    return part("".join(_body(items)), _STYLE)


def whole(items: Sequence[TokenValues | PairValues], *, title: str, note: str = "") -> str:
    """Traces as a file.

    Args:
        items: Texts and pairs, in order.
        title: Of the page.
        note: What to say of them before them, plain text.
    """
    head = f"<h1>{escape(title)}</h1>" + (f"<p>{escape(note)}</p>" if note else "")
    return page(title, head + "".join(_body(items)), _STYLE)


def save(
    items: Sequence[TokenValues | PairValues],
    path: str | os.PathLike[str],
    *,
    title: str = "What the direction reads, token by token",
    note: str = "",
    overwrite: bool = False,
) -> None:
    """Writes a page; an earlier one in its place is replaced.

    Raises:
        ValueError: Something else is there, and `overwrite` is False.
        OSError: It cannot be written.
    """
    check_page(path, overwrite=overwrite)
    outputs.write_whole(Path(path), whole(items, title=title, note=note))


def check_page(
    path: str | os.PathLike[str], *, reads: Sequence[str | os.PathLike[str] | None] = (), overwrite: bool = False
) -> None:
    """Refuses, before the work, a place that a page cannot be written to without loss.

    Raises:
        ValueError: The place is taken.
        OSError: It cannot be written.
    """
    outputs.check_file(path, reads=reads, ours=is_page, overwrite=overwrite)


def _body(items: Sequence[TokenValues | PairValues]) -> Iterator[str]:
    """All of a page but its frame."""
    explained = False
    for item in items:
        traces = [item.chosen, item.rejected] if isinstance(item, PairValues) else [item]
        if not explained:
            yield _explanation(traces[0])
            explained = True
        yield from _pair(item) if isinstance(item, PairValues) else _single(item)


def _explanation(trace: TokenValues) -> str:
    """What the colours mean, for one who knows nothing of them."""
    neutral = trace.neutral.zero
    low, high = escape(trace.neutral.concept.low), escape(trace.neutral.concept.high)
    bar = "".join(f'<span class="{shade(i / 10)}"></span>' for i in range(-10, 11))
    how = {
        "last": "The score of a text is the value of its last token",
        "mean": "The score of a text is the mean of its tokens' values",
        "mean_all": "The score of a text is the mean of its tokens' values, those of the prompt included",
    }[trace.pooling]
    return (
        '<p>Each token of a response is coloured by what the direction reads there: <b class="t6">blue</b> towards '
        f'{high}, <b class="a6">orange</b> towards {low}, no colour near '
        f"{_number(neutral)}, the neutral value. {how}; the line under a response is the score of all that was said up "
        "to there, the dashed one is neutral.</p>"
        f'<div class="scale small" role="img" aria-label="Colours from {_number(trace.min_value)}, orange, over '
        f'{_number(neutral)}, none, to {_number(trace.max_value)}, blue"><span>{low} {_number(trace.min_value)}</span>'
        f'<span class="bar">{bar}</span><span>{_number(trace.max_value)} {high}</span></div>'
        f'<p class="faint small">Read by {escape(trace.of)}; values in units of its hidden states. A value tells what '
        "the model reads at a token, with all that stands before it in mind, not what the token alone means.</p>"
    )


def _single(trace: TokenValues) -> Iterator[str]:
    yield "<section>" + _prompt(trace.prompt)
    yield from _side(trace, "Response", _range([trace]), None)
    yield "</section>"


def _pair(pair: PairValues) -> Iterator[str]:
    margin, settled = pair.margin_raw, pair.settled
    which = "the chosen response" if margin > 0 else "the rejected response" if margin < 0 else "neither response"
    says = f"{which} reads as {escape(pair.chosen.neutral.concept.more)}"
    yield "<section>" + (f"<h2>{escape(pair.title)}</h2>" if pair.title else "")
    yield f"<p>Margin <b>{_number(margin)}</b>: {says}"
    if settled is not None:
        longest = max(len(pair.chosen.ids), len(pair.rejected.ids))
        yield f"; its sign is settled after {settled} of {longest} tokens"
    yield ".</p>" + _prompt(pair.chosen.prompt)
    if pair.rejected.prompt != pair.chosen.prompt:
        yield '<p class="small faint">The rejected response has a prompt of its own:</p>' + _prompt(
            pair.rejected.prompt
        )
    yield '<div class="pair">'
    limits = _range([pair.chosen, pair.rejected])
    yield from _side(pair.chosen, "Chosen", limits, pair.parts_at)
    yield from _side(pair.rejected, "Rejected", limits, pair.parts_at)
    yield "</div></section>"


def _prompt(prompt: str) -> str:
    if not prompt:
        return ""
    shown, rest = prompt[:FOLD_CHARACTERS], prompt[FOLD_CHARACTERS:]
    more = f"<details><summary>the rest of the prompt</summary>{escape(rest)}</details>" if rest else ""
    return f'<div class="prompt" dir="auto" role="group" aria-label="Prompt">{escape(shown)}{more}</div>'


def _side(trace: TokenValues, name: str, limits: tuple[float, float], parts_at: int | None) -> Iterator[str]:
    """One response: its tokens, and its running score."""
    turn, n = trace.turn, len(trace.ids)
    yield f'<article class="side"><h3>{name}</h3><div class="small faint">score {_number(trace.score)} · {n} tokens'
    if turn.sign:
        concept = trace.neutral.concept
        yield f" · turns {escape(concept.high if turn.sign > 0 else concept.low)} at token {turn.token + 1}"
    yield '</div><div class="said" dir="auto">'
    for i, token in enumerate(_tokens(trace)):
        if i == FOLD_TOKENS and n > FOLD_TOKENS + 20:
            yield f"<details><summary>{n - i} more tokens</summary>"
        if i == parts_at:
            yield '<span class="fork" title="the two responses part here">they part</span>'
        yield token
    yield ("</details>" if n > FOLD_TOKENS + 20 else "") + "</div>"
    yield (
        _chart(trace, limits, parts_at)
        if trace.scores is not None
        else (f'<p class="faint small">No running score: {escape(trace.why_no_scores)}.</p>')
    )
    yield "</article>"


def _tokens(trace: TokenValues) -> Iterator[str]:
    """Each token's HTML, with what stands between it and the one before, which is of no token."""
    reach = max(trace.max_value - trace.neutral.zero, 1e-30)
    end = 0
    for i, (start, stop) in enumerate(trace.places):
        between = escape(trace.text[end:start])
        text = trace.text[max(start, end) : stop]
        end = max(end, stop)
        value = float(trace.values[i])
        inside = escape(text).replace("\n", '<span class="nl">↵</span>\n') or '<span class="bit">·</span>'
        said = " ".join(text.split()) or ("line end" if "\n" in text else "space" if text else "part of a character")
        so_far = "" if trace.scores is None else f" · score so far {_number(float(trace.scores[i]))}"
        yield (
            f'{between}<span class="k {shade((value - trace.neutral.zero) / reach)}" role="img" '
            f'aria-label="{escape(said)} {_number(value)}" '
            f'title="{_number(value)}{so_far} · token {i + 1}">{inside}</span>'
        )


def _range(traces: Sequence[TokenValues]) -> tuple[float, float]:
    """What the lines of running scores reach over, neutral included: one for all sides of a pair."""
    numbers = [n for t in traces if t.scores is not None for n in (t.scores.min(), t.scores.max(), t.neutral.zero)]
    low, high = (min(numbers), max(numbers)) if numbers else (0.0, 1.0)
    room = 0.05 * (high - low) or 1.0
    return float(low - room), float(high + room)


def _chart(trace: TokenValues, limits: tuple[float, float], parts_at: int | None) -> str:
    """The running score as a line."""
    assert trace.scores is not None
    low, high = limits
    n = len(trace.scores)

    def x(i: float) -> float:
        return _WIDTH * (i + 0.5) / n

    def y(value: float) -> float:
        return _HEIGHT * (high - value) / (high - low)

    kept = np.unique(np.linspace(0, n - 1, min(n, _MOST_POINTS)).round().astype(int))
    points = [(x(i), y(float(trace.scores[i]))) for i in kept]
    points = points if n > 1 else [(0.0, points[0][1]), (float(_WIDTH), points[0][1])]
    line = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
    zero = y(trace.neutral.zero)
    fork = ""
    if parts_at is not None and parts_at < n:
        at = _WIDTH * parts_at / n
        fork = f'<path class="fork-line" d="M{at:.1f} 0V{_HEIGHT}"><title>the responses part</title></path>'
    says = (
        f"Running score over {n} tokens: begins at {_number(float(trace.scores[0]))}, ends at "
        f"{_number(float(trace.scores[-1]))}, neutral is {_number(trace.neutral.zero)}"
    )
    return (
        f'<div class="chart"><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{says}"><title>{says}</title><path class="zero" d="M0 {zero:.1f}H{_WIDTH}"/>{fork}'
        f'<polyline class="run" points="{line}"/></svg><span>{_number(high)}</span>'
        f'<span class="low">{_number(low)}</span></div>'
    )


def _number(value: float) -> str:
    """A number as it is shown: one digit behind the point, a true minus."""
    return f"{value:+.1f}".replace("-", "−") if abs(value) >= 0.05 else "0.0"
