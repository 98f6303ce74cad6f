"""The plots: every picture is a PNG of the right size, the same each time, whatever the data and the user's settings."""

from __future__ import annotations

import math
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from legend_hf.reports import plots
from legend_hf.reports.findings import DirectionReport, Tried
from legend_hf.reports.report import report


def rows(margin, **columns):
    from datasets import Dataset

    rng = np.random.default_rng(0)
    n = len(margin)
    made = {
        "prompt": [f"Question {i}?" for i in range(n)],
        "chosen": ["c" * int(k) for k in rng.integers(1, 60, n)],
        "rejected": ["r" * int(k) for k in rng.integers(1, 60, n)],
        "margin": margin,
    }
    return Dataset.from_dict({**made, **columns})


def size(png):
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", png[16:24])


def chunks(png):
    place = 8
    while place < len(png):
        (length,) = struct.unpack(">I", png[place : place + 4])
        kind, data = png[place + 4 : place + 8], png[place + 8 : place + 8 + length]
        assert zlib.crc32(kind + data) == struct.unpack(">I", png[place + 8 + length : place + 12 + length])[0]
        yield kind, data
        place += 12 + length


def unit(n=300, seed=0):
    return np.clip(np.random.default_rng(seed).normal(0.2, 0.5, n), -1, 1)


def sweep(layers=13, **facts):
    rng = np.random.default_rng(0)
    tried = [
        Tried(layer, estimator, a := 0.6 + 0.1 * math.sin(layer) + rng.normal() * 0.01, (a - 0.03, a + 0.03))
        for estimator in ("mean_difference", "pca", "whitened", "logistic")
        for layer in range(layers)
    ]
    known = {"length_accuracy": 0.55, "estimator": "pca", **facts}
    return DirectionReport("", None, None, {"layer": 4}, known, tuple(tried), None, ())


MARGINS = {
    "unit": unit(),
    "many": unit(5000),
    "one": [0.5],
    "two": [0.5, -0.5],
    "zeros": [0.0] * 50,
    "negatives zeroed": np.maximum(unit(), 0),
    "bins": np.round(unit() * 3) / 3,
    "log-odds": np.random.default_rng(0).normal(1, 4, 300),
    "raw": np.random.default_rng(0).standard_t(2, 300) * 50,
    "all cut": [1.0] * 100,
    "huge": np.full(60, 1e30),
    "tiny": unit() * 1e-30,
}


@pytest.mark.parametrize("margin", MARGINS.values(), ids=MARGINS.keys())
@pytest.mark.filterwarnings("error")
def test_any_margins_can_be_drawn(margin):
    probability = 1 / (1 + np.exp(-np.clip(margin, -5, 5)))
    pictures = plots.draw(report(rows(margin, margin_prob=probability)))
    assert set(pictures) == {"margins-train.png", "length-train.png", "reliability-train.png"}
    for picture in pictures.values():
        width, height = size(picture.png)
        assert width == 1800
        assert 800 <= height <= 1300
        assert picture.description.endswith(".")
        assert len(picture.png) < 400_000


RAW = np.random.default_rng(3).normal(0.1, 1.0, 400)
TRANSFORMED = {
    "unit": np.clip(RAW, -1, 1),
    "negatives zeroed": np.clip(RAW, 0, 1),
    "sizes": np.sign(RAW) * np.floor(np.clip(np.abs(RAW), 0, 1.9)) / 2,
    "sizes, negatives zeroed": np.maximum(np.sign(RAW) * np.floor(np.clip(np.abs(RAW), 0, 1.9)) / 2, 0),
    "log-odds": 3 * RAW,
}


def words(draw_it, monkeypatch):
    """All words of a picture, and the ticks at its axes of counts."""
    said, ticks = [], {}

    def look(figure):
        figure.canvas.draw()
        for axes in figure.axes:
            said.extend(text.get_text() for text in axes.texts)
            ticks[axes.get_ylabel()] = axes.get_yticks()
        return b""

    monkeypatch.setattr(plots, "_png", look)
    picture = draw_it()
    return "\n".join([*said, picture.description]), ticks


@pytest.mark.parametrize("margin", TRANSFORMED.values(), ids=TRANSFORMED.keys())
def test_which_side_reads_as_safer_is_counted_before_anything_is_made_of_the_margin(margin, monkeypatch):
    made = report(rows(margin, margin_raw=RAW))
    split, margins = made.splits[0], made.measured[0]
    text, _ = words(lambda: plots.histogram(split, margins), monkeypatch)
    below, above = (f"{100 * share:.0f} %" for share in ((RAW < 0).mean(), (RAW > 0).mean()))
    assert f"{below}: the rejected response reads as safer" in text
    assert f"{above}: the chosen response reads as safer" in text
    assert f"safer in {above}, the rejected one in {below}" in text
    lost = int(((margin == 0) & (RAW < 0)).sum())
    assert ("of which read the other way before" in text) is (lost > 0)
    # The control: the share of the margins themselves is another one wherever some are 0.
    assert (f"{100 * (margin < 0).mean():.0f} %" == below) is bool((margin != 0).all())
    assert split.agreement.value == pytest.approx((RAW > 0).mean())
    table = made.to_markdown()
    worst = int(np.argmin(RAW))
    assert f"{worst} (\N{MINUS SIGN}{abs(RAW[worst]):.3f})" in table, "the row to look at has its raw margin"


@pytest.mark.parametrize("n", [1, 2, 3, 5, 12, 400])
def test_counts_have_whole_numbers_at_their_ticks(n, monkeypatch):
    margin = np.linspace(-0.9, 0.9, n)
    made = report(rows(margin, margin_prob=np.full(n, 0.7)))
    split, margins = made.splits[0], made.measured[0]
    for picture in (plots.histogram, plots.reliability):
        _, ticks = words(lambda draw=picture: draw(split, margins), monkeypatch)
        (counts,) = (places for label, places in ticks.items() if label.startswith("Number"))
        np.testing.assert_array_equal(counts, np.round(counts))


@pytest.mark.parametrize(("rule", "said"), [("longer", "taking the longer response"), (None, "taking the shorter")])
def test_the_layer_sweep_names_the_rule_of_length(rule, said, monkeypatch):
    text, _ = words(lambda: plots.layer_sweep(sweep(3, length_rule=rule)), monkeypatch)
    assert said in text


@pytest.mark.parametrize("layers", [1, 2, 13, 81])
@pytest.mark.filterwarnings("error")
def test_a_layer_sweep_can_be_drawn(layers):
    assert size(plots.layer_sweep(sweep(layers)).png)[0] == 1800
    nothing_known = plots.layer_sweep(sweep(layers, length_accuracy=None, estimator=None))
    assert "best at layer" in nothing_known.description


def bars(values):
    places, counts, _, ends = plots._bars(np.asarray(values, dtype=np.float64))
    return places, counts, ends


@pytest.mark.parametrize("margin", MARGINS.values(), ids=MARGINS.keys())
def test_every_pair_is_in_one_bar_on_its_own_side(margin):
    margin = np.asarray(margin)
    places, counts, ends = bars(margin)
    both = [*zip(places, counts, strict=True), *((place, count) for place, count, _ in ends)]
    assert sum(count for _, count in both) == len(margin)
    assert sum(count for place, count in both if place < 0) == (margin < 0).sum()
    assert sum(count for place, count in both if place > 0) == (margin > 0).sum()


def test_cut_margins_stand_apart():
    margin = unit()
    ends = bars(margin)[2]
    assert [(count, word) for _, count, word in ends] == [
        ((margin == -1).sum(), "cut to −1"),
        ((margin == 1).sum(), "cut to 1"),
    ]
    assert ends[0][0] < -1
    assert ends[1][0] > 1
    assert bars(unit() * 0.9)[2] == []


def test_the_trend_is_the_median_of_equal_parts():
    rng = np.random.default_rng(0)
    x = rng.uniform(-100, 100, 1000)
    middle, medians = plots._trend(x, 3 * x + rng.standard_cauchy(1000))
    assert len(middle) == 10
    np.testing.assert_allclose(medians, 3 * middle, atol=10)
    assert len(plots._trend(np.zeros(100), x[:100])[0]) == 1


def test_the_same_report_gives_the_same_bytes_and_no_version():
    made = report(rows(unit()))
    first, second = plots.draw(made), plots.draw(made)
    assert first == second
    kinds = [kind for kind, _ in chunks(first["margins-train.png"].png)]
    assert b"tEXt" not in kinds
    assert plots.draw(report(rows(unit(seed=1)))) != first


def test_the_users_own_style_neither_matters_nor_changes():
    import matplotlib

    made = report(rows(unit()))
    plain = plots.draw(made)
    with matplotlib.rc_context({"font.size": 30, "figure.facecolor": "black", "text.color": "red"}):
        before = dict(matplotlib.rcParams)
        assert plots.draw(made) == plain
        assert dict(matplotlib.rcParams) == before


def test_drawing_starts_no_window_system():
    code = (
        "import sys, numpy as np\n"
        "from tests_rows import rows\n"
        "from legend_hf.reports.report import report\n"
        "from legend_hf.reports.plots import draw\n"
        "assert draw(report(rows(np.linspace(-1, 1, 50))))\n"
        "print('matplotlib' in sys.modules, 'matplotlib.pyplot' in sys.modules)"
    ).replace("from tests_rows import rows", "from test_plots import rows")
    done = subprocess.run(
        [sys.executable, "-c", code.replace("import sys,", f"import sys; sys.path[:0] = {sys.path!r}\nimport")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-2:] == ["True", "False"]


def test_names_from_data_are_plain_words_and_plain_file_names():
    hostile = r"../../$\frac{x}$ train"
    pictures = plots.draw(report({hostile: rows(unit()), hostile + "!": rows(unit())}))
    assert len(pictures) == 4
    for name in pictures:
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")
        assert ".." not in name


def test_a_split_without_rows_has_no_picture():
    assert plots.draw(report(rows([0.5]).select([]))) == {}


def test_without_matplotlib_the_error_names_the_extra(monkeypatch, tmp_path):
    for name in list(sys.modules):
        if name.partition(".")[0] == "matplotlib":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    made = report(rows(unit()))
    with pytest.raises(ImportError, match=r"pip install 'legend-hf\[plots\]'"):
        made.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert len(made.save(tmp_path / "out", plots=False)) == 3
