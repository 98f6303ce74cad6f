"""A report becomes pictures: PNGs for a card, about 900 pixels wide at twice the density.

In: a report, or the arrays of one. Out: PNG bytes, the same for the same input. Needs matplotlib (the extra `plots`),
which is imported when the first picture is drawn, and leaves its global state alone. This file knows no datasets and
computes no measure but the counts and the trend that it draws.

Colours are those of Okabe and Ito, which people with any colour vision tell apart; what matters differs in shape too.
"""

from __future__ import annotations

import io
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from legend_hf.hub.concept import Concept
from legend_hf.reports.findings import DirectionReport, Estimate, Findings, Margins, SplitReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 9.0  # inches, 900 pixels at a density of 100
DENSITY = 200
BLUE, VERMILLION, GREEN, ORANGE, PURPLE = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7"
INK, GREY, PALE = "#222222", "#666666", "#DDDDDD"
SERIES = ((BLUE, "o", "-"), (VERMILLION, "s", "--"), (GREEN, "^", "-."), (PURPLE, "D", ":"), (ORANGE, "v", "-"))
BARS_A_SIDE = 20
# Above this many rows single points hide each other.
MOST_POINTS = 2000
TREND_BINS = 10
# Margins with no more values than this are sizes out of a few, and each has its own bar.
MOST_SIZES = 16
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "text.color": INK,
    "legend.frameon": False,
    "axes.unicode_minus": True,
}


@dataclass(frozen=True)
class Picture:
    """A plot.

    Attributes:
        png: The file's content.
        description: What it shows, for those who do not see it.
        about: Whose numbers it shows.
    """

    png: bytes
    description: str
    about: SplitReport | DirectionReport = field(repr=False, compare=False)


def check_matplotlib() -> None:
    """Says what to install where matplotlib is missing, before anything is measured that is to be drawn.

    Raises:
        ImportError: It is missing.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ImportError("plots need matplotlib; install it with `pip install 'legend-hf[plots]'`") from error


def draw(report: Findings) -> dict[str, Picture]:
    """Draws all that a report has the numbers for.

    Returns:
        File name to picture; splits without rows have none.

    Raises:
        ImportError: matplotlib is missing.
    """
    pictures: dict[str, Picture] = {}
    for split, margins in zip(report.splits, report.measured, strict=True):
        if len(margins.row) == 0:
            continue
        name = f"{split.split}{split.column.removeprefix('margin')}"
        pictures[_file("margins", name, pictures)] = histogram(split, margins)
        pictures[_file("length", name, pictures)] = length(split, margins)
        if split.probability is not None:
            pictures[_file("reliability", name, pictures)] = reliability(split, margins)
    for direction in report.directions:
        if direction.search:
            pictures[_file("layers", direction.name, pictures)] = layer_sweep(direction)
    return pictures


def histogram(split: SplitReport, margins: Margins) -> Picture:
    """How many pairs have which margin, with those at the limits of the scale apart."""
    values = margins.margin
    places, counts, width, ends = _bars(values)
    # What reads as safer is the raw margin's to say: the one that is drawn may have lost its sign.
    negative, positive = float((margins.raw < 0).mean()), float((margins.raw > 0).mean())
    more = split.concept.more
    with _figure(4.6) as figure:
        zeros, lost = int((values == 0).sum()), int(((values == 0) & (margins.raw < 0)).sum())
        subtitle = _about(split) + (f", {_count(zeros)} of them exactly 0 (grey)" if zeros else "")
        if lost:
            subtitle += f", {_count(lost)} of which read the other way before"
        axes = _axes(figure, f"By how much does the chosen response read as {more}?", subtitle)
        axes.bar(places, counts, 0.92 * width, color=[_colour(place) for place in places])
        for place, count, word in ends:
            colour = _colour(place)
            axes.bar([place], [count], 0.92 * width, color="white", edgecolor=colour, hatch="////", linewidth=1.2)
            axes.annotate(
                f"{100 * count / len(values):.1f} %\n{word}", (place, count), (0, 3), textcoords="offset points",
                ha="center", va="bottom", fontsize=9, color=colour,
            )  # fmt: skip
        axes.axvline(0, color=INK, linewidth=1)
        axes.set_ylim(0, 1.32 * max([*counts, *(count for _, count, _ in ends)]))  # room for the words above
        side = max(abs(place) for place in (*places, *(place for place, _, _ in ends))) + (2.5 if ends else 1) * width
        axes.set_xlim(-side, side)
        for offset, align, colour, text in (
            (-6, "right", VERMILLION, f"◀ {_percent(negative)}: the rejected response reads as {more}"),
            (6, "left", BLUE, f"{_percent(positive)}: the chosen response reads as {more} ▶"),
        ):
            axes.annotate(
                text, (0, 1), (offset, -2), xycoords=("data", "axes fraction"), textcoords="offset points", ha=align,
                va="top", fontsize=10.5, color=colour, weight="bold",
            )  # fmt: skip
        axes.set_xlabel(f"{_words(split.column)} of the pair")
        axes.set_ylabel("Number of pairs")
        _whole_numbers(axes)
        return Picture(
            _png(figure),
            f"Histogram of the margins of {split.split}: the chosen response reads as {more} in {_percent(positive)}, "
            f"the rejected one in {_percent(negative)}.",
            split,
        )


def length(split: SplitReport, margins: Margins) -> Picture:
    """Whether the margin only measures which response is longer."""
    x, y = margins.longer, margins.raw
    x_limit = max(float(np.quantile(np.abs(x), 0.98)), 1.0) * 1.05
    y_limit = max(float(np.quantile(np.abs(y), 0.995)), 1e-12) * 1.1
    shown = (np.abs(x) <= x_limit) & (np.abs(y) <= y_limit)
    correlation = split.length.spearman
    outside = int((~shown).sum())
    place = (f", {_count(outside)} of them outside the picture" if outside else "") + (
        "; darker: more pairs" if len(x) > MOST_POINTS else ""
    )
    with _figure(5.2) as figure:
        axes = _axes(
            figure,
            "Does the margin only measure length?",
            f"{_about(split)}{place}; rank correlation {_bracketed(correlation)}\n"
            "Line: medians of equal parts of the pairs, by length. Flat: no. Falling: longer means smaller margins.",
        )
        axes.axhline(0, color=GREY, linewidth=0.8)
        axes.axvline(0, color=GREY, linewidth=0.8)
        if len(x) > MOST_POINTS:
            axes.hexbin(
                x[shown], y[shown], gridsize=(48, 26), extent=(-x_limit, x_limit, -y_limit, y_limit), bins="log",
                cmap="Greys", mincnt=1, linewidths=0.2,
            )  # fmt: skip
            axes.grid(False)
        else:
            axes.scatter(x[shown], y[shown], s=14, color=BLUE, alpha=0.4, linewidths=0)
        middle, medians = _trend(x, y)
        if len(middle) > 1:
            axes.plot(
                middle, medians, color=VERMILLION, marker="o", markersize=6.5, linewidth=2.4, markeredgecolor="white"
            )
        axes.set_xlim(-x_limit, x_limit)
        axes.set_ylim(-y_limit, y_limit)
        axes.set_xlabel("◀ chosen response is shorter       Difference in length (characters)       chosen is longer ▶")
        axes.set_ylabel("Raw margin" if margins.has_raw else _words(split.column))
        return Picture(
            _png(figure),
            f"Margin against difference in length in {split.split}: rank correlation {_bracketed(correlation)}.",
            split,
        )


def reliability(split: SplitReport, margins: Margins) -> Picture:
    """Whether stated probabilities come true, and how many pairs have which."""
    errors = split.probability
    assert errors is not None
    assert margins.probability is not None
    with _figure(6.0) as figure:
        axes = _axes(
            figure,
            "Do the stated probabilities come true?",
            f"{_about(split)}; calibration error {_bracketed(errors.ece)} ({errors.ece_by_chance:.2f} by chance)\n"
            f"Points: about {_count(errors.rows // len(errors.bins))} pairs each, with 95 % intervals. "
            "Below the dashed line: too sure; above: too modest.",
            rows=2,
        )
        x = np.array([b.confidence for b in errors.bins])
        y = np.array([b.right.value for b in errors.bins], dtype=np.float64)
        low = np.array([b.right.interval[0] if b.right.interval else b.right.value for b in errors.bins])
        high = np.array([b.right.interval[1] if b.right.interval else b.right.value for b in errors.bins])
        axes.plot([0.5, 1], [0.5, 1], color=GREY, linewidth=1.2, linestyle="--")
        axes.errorbar(
            x, y, yerr=[np.maximum(y - low, 0), np.maximum(high - y, 0)], fmt="o", color=BLUE, markersize=7,
            capsize=3, linewidth=1.4,
        )  # fmt: skip
        axes.set_ylim(min(0.4, float(low.min()) - 0.03), 1.02)
        axes.set_ylabel("Share that the label agrees with")
        axes.tick_params(labelbottom=False)
        under: Any = figure.axes[1]
        confidence = np.maximum(margins.probability, 1 - margins.probability)
        under.hist(confidence, np.linspace(0.5, 1, 26), color=BLUE, alpha=0.75, rwidth=0.92)
        under.set_ylabel("Number\nof pairs")
        _whole_numbers(under)
        under.set_xlabel(f"Stated probability of the response that reads as {split.concept.more}")
        for one in (axes, under):
            one.set_xlim(0.49, 1.01)
            one.set_xticks(np.linspace(0.5, 1, 6))
        return Picture(
            _png(figure),
            f"Stated probability against the share that came true in {split.split}: calibration error "
            f"{_bracketed(errors.ece)}.",
            split,
        )


def layer_sweep(direction: DirectionReport) -> Picture:
    """Accuracy by layer and estimator, beside what the better rule of length gets right."""
    tried, facts, concept = direction.search, direction.facts, Concept.of(direction.facts)
    estimators = list(dict.fromkeys(t.estimator for t in tried))
    layers = sorted({t.layer for t in tried})
    with _figure(5.2) as figure:
        axes = _axes(
            figure,
            f"Which layer tells {concept.high} from {concept.low}?",
            f"Share of pairs whose {concept.more} response scores higher, on pairs held out by prompt; "
            "bands: 95 % intervals",
        )
        for place, estimator in enumerate(estimators):
            colour, marker, line = SERIES[place % len(SERIES)]
            own = sorted((t for t in tried if t.estimator == estimator), key=lambda t: t.layer)
            x, y = [t.layer for t in own], [t.accuracy for t in own]
            axes.plot(x, y, color=colour, marker=marker, linestyle=line, linewidth=2, label=_words(estimator), zorder=3)
            low, high = zip(*(t.interval for t in own), strict=True)
            axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
        shown = [v for t in tried for v in t.interval] + [0.5]
        baseline = facts["length_accuracy"]
        lines = [(0.5, "tossing a coin", ":")] + (
            [(baseline, f"taking the {_words(facts.get('length_rule') or 'shorter')} response", "--")]
            if baseline is not None
            else []
        )
        shown += [value for value, _, _ in lines]
        for value, text, style in lines:
            # Two lines that nearly meet get their words on different sides.
            below = len(lines) == 2 and value == min(v for v, _, _ in lines)
            axes.axhline(value, color=GREY, linewidth=1.2, linestyle=style, zorder=1)
            axes.annotate(
                f"{text}: {value:.2f}", (1, value), (-2, -3 if below else 3), xycoords=("axes fraction", "data"),
                textcoords="offset points", ha="right", va="top" if below else "bottom", fontsize=9.5, color=GREY,
            )  # fmt: skip
        chosen = [t for t in tried if t.layer == direction.reader["layer"] and t.estimator == facts["estimator"]]
        for t in chosen:
            axes.plot(
                [t.layer], [t.accuracy], "o", markersize=17, markerfacecolor="none", markeredgecolor=INK,
                markeredgewidth=1.6, zorder=4, linestyle="none", label="chosen",
            )  # fmt: skip
        room = 0.06 * (max(shown) - min(shown)) + 0.005
        axes.set_ylim(min(shown) - 2 * room, max(shown) + room)
        side = 0.03 * (layers[-1] - layers[0]) + 0.15
        axes.set_xlim(layers[0] - side, layers[-1] + side)
        step = max(1, -(-len(layers) // 17))
        axes.set_xticks(layers[::step])
        axes.set_xlabel("Layer (0: embeddings)")
        axes.set_ylabel("Share of pairs right")
        # Below the plot, where no line can lie under it.
        figure.legend(loc="outside lower center", ncols=min(5, len(estimators) + len(chosen[:1])), fontsize=10)
        best = max(tried, key=lambda t: t.accuracy)
        return Picture(
            _png(figure),
            f"Accuracy by layer and estimator: best at layer {best.layer} with {best.estimator}, {best.accuracy:.3f}.",
            direction,
        )


@contextmanager
def _figure(height: float) -> Iterator[Figure]:
    """A figure in our style, whatever the user's own is."""
    check_matplotlib()
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
        figure = Figure(figsize=(WIDTH, height), dpi=DENSITY, layout=layout, facecolor="white")
        FigureCanvasAgg(figure)
        yield figure


def _axes(figure: Figure, title: str, subtitle: str, *, rows: int = 1) -> Axes:
    """Axes under a title in words and a line of detail; a second row is low and shares the x axis."""
    grid = figure.subplots(rows, 1, height_ratios=[4, 1][:rows] if rows > 1 else None, squeeze=False)
    axes: Axes = grid[0][0]
    lines = subtitle.count("\n") + 1
    axes.set_title(title, loc="left", fontsize=14, weight="bold", pad=14 + 14 * lines)
    axes.annotate(
        subtitle, (0, 1), (0, 9), xycoords="axes fraction", textcoords="offset points", ha="left", va="bottom",
        fontsize=10, color=GREY, linespacing=1.3, annotation_clip=False,
    )  # fmt: skip
    for one in grid[:, 0]:
        one.grid(axis="y", color=PALE, linewidth=0.8)
        one.set_axisbelow(True)
    return axes


def _whole_numbers(axes: Axes) -> None:
    """Ticks of counts: there is no half of a pair."""
    from matplotlib.ticker import MaxNLocator

    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # No version of the drawing library in the file: the same picture has the same bytes.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _bars(values: np.ndarray) -> tuple[list[float], list[int], float, list[tuple[float, int, str]]]:
    """Places, heights and width of a histogram's bars, and those beside its ends: (place, height, word)."""
    distinct = np.unique(values)
    if len(distinct) <= MOST_SIZES < len(values):
        width = float(np.diff(distinct).min()) if len(distinct) > 1 else max(1.0, 0.2 * abs(float(distinct[0])))
        return distinct.tolist(), [int((values == v).sum()) for v in distinct], 0.8 * width, []
    largest = float(np.abs(values).max())
    cut = largest <= 1.0
    limit = 1.0 if cut else float(np.quantile(np.abs(values), 0.99)) or largest
    below, above = (values == -1, values == 1) if cut else (values < -limit, values > limit)
    edges = np.linspace(-limit, limit, 2 * BARS_A_SIDE + 1)
    width = float(edges[1] - edges[0])
    inside = values[~below & ~above & (values != 0)]
    places = [*((edges[:-1] + edges[1:]) / 2).tolist(), 0.0]
    counts = [*np.histogram(inside, edges)[0].tolist(), int((values == 0).sum())]
    ends = [
        (-limit - 1.2 * width, int(below.sum()), "cut to −1" if cut else "beyond"),
        (limit + 1.2 * width, int(above.sum()), "cut to 1" if cut else "beyond"),
    ]
    return places, counts, width, [end for end in ends if end[1]]


def _colour(place: float) -> str:
    return VERMILLION if place < 0 else BLUE if place > 0 else GREY


def _trend(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Median x and y of equal parts of the rows by x; equal x stay together."""
    parts = max(1, min(TREND_BINS, len(x) // 20))
    place = np.searchsorted(np.quantile(x, np.arange(1, parts) / parts), x, side="right")
    used = np.unique(place)
    return (
        np.array([np.median(x[place == p]) for p in used]),
        np.array([np.median(y[place == p]) for p in used]),
    )


def _about(split: SplitReport) -> str:
    return f"{_count(split.read)} pairs of {_words(split.split)}"


def _count(number: int) -> str:
    return f"{number:,}".replace(",", "\N{THIN SPACE}")


def _bracketed(estimate: Estimate) -> str:
    return estimate.shown("{:.2f}".format, "not known").replace("-", "\N{MINUS SIGN}")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _words(name: str) -> str:
    """A name from data as plain words: a dollar sign would begin a formula, a long one would push the plot aside."""
    text = "".join(c if c.isprintable() else " " for c in name).replace("_", " ").replace("$", r"\$")
    return text[:1].upper() + text[1:] if len(text) <= 40 and name.startswith("margin") else text[:40]


def _file(kind: str, name: str, taken: Collection[str]) -> str:
    """A file name that any system and any card takes."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-_")[:60]
    stem = f"{kind}-{plain}" if plain else kind
    number = 2
    found = f"{stem}.png"
    while found in taken:
        found, number = f"{stem}-{number}.png", number + 1
    return found
