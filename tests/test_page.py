"""The page of a report: all of the Markdown is in it, nothing is loaded, strangers' texts do nothing, in a browser too."""

from __future__ import annotations

import dataclasses
import html
import json
import re
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_frame import parsed
from test_report import HOSTILE, in_categories
from test_trace_page import run_browser

from legend_hf import Direction
from legend_hf.reports import page
from legend_hf.reports.blocks import Shown, Table
from legend_hf.reports.report import report
from legend_hf.reports.report_card import blocks_of

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def made(request):
    """Two splits and a direction with all that a report can hold of them."""
    direction = Direction.from_pretrained(request.config.rootpath / "scripts" / "demo" / "real_direction")
    splits = {"train": in_categories(200, margin_prob=np.full(200, 0.6)), "test": in_categories(60)}
    about = report(None, direction={"safety": direction}).directions
    return dataclasses.replace(report(splits, category_column="kind", excerpts=True), directions=about)


@pytest.fixture(scope="module")
def source(made):
    return made.to_html()


def loaded(source):
    """All that a page has a browser fetch or run."""
    tags = parsed(source).tags
    asked = [
        v for tag, a in tags for k, v in a.items() if k in ("src", "srcset", "data", "poster", "href") and tag != "a"
    ]
    return (
        [url for url in asked if not url.startswith("data:image/png;base64,")]
        + [tag for tag, a in tags if tag in ("script", "iframe", "object", "link") or any(k[:2] == "on" for k in a)]
        + re.findall(r"url\(|@import", source)
    )


def test_a_page_needs_nothing_but_itself(source):
    assert loaded(source) == []
    assert len([tag for tag, _ in parsed(source).tags if tag == "img"]) == 6
    # The controls: each would be seen.
    for other in ('<img src="http://x/p.png">', "<script>1</script>", '<b onclick="x">', "<style>@import 'x'</style>"):
        assert loaded(source + other) != []


def said(text):
    """Text without its spaces, of which tables and lists have different ones."""
    return re.sub(r"\s", "", text)


def lacking(made, source):
    """Cells, lines and pictures of the Markdown that a page does not show."""
    shown = said(parsed(source).text + "".join(a.get("alt", "") for _, a in parsed(source).tags))
    pictures = {"margins.png": "Of the margins.", "<x>.png": "Of <others>."}
    text = made.to_markdown(plots=pictures)
    assert all(name in text for name in pictures)
    parts = []
    for line in text.split("## ", 1)[1].splitlines() + text.split("## ", 1)[0].splitlines():
        if line.startswith("|"):
            parts += [cell for cell in line.strip("|").split(" | ") if not re.fullmatch(r"[ -]*", cell)]
        elif not line.startswith("!["):
            parts.append(line.lstrip("#- "))
    plain = [said(html.unescape(re.sub(r"</?code>|\*\*|`|&#8288;|\]\(http[^)]*\)|\[(?=`)", "", p))) for p in parts]
    headed = {"Whatitsays", "Whatitis", "Howgoodthesemarginsare"}  # said by where it stands
    return [part for part in plain if part not in shown and part not in headed]


def test_all_that_the_markdown_says_is_in_the_page(made, source, monkeypatch):
    assert lacking(made, source) == []
    descriptions = [b.description for b in blocks_of(made, made_pictures(made)) if isinstance(b, Shown)]
    alternatives = [a["alt"] for tag, a in parsed(source).tags if tag == "img"]
    assert alternatives == descriptions
    assert len(descriptions) == 6
    # The control: without a table, or without a cell, something lacks.
    table = page._table
    monkeypatch.setattr(page, "_table", lambda t: table(Table(t.head, t.rows[1:], t.says, t.texts)))
    assert lacking(made, made.to_html(plots=False)) != []


def made_pictures(made):
    from legend_hf.reports.report import _inside, draw

    return _inside(draw(made))


def test_the_verdict_stands_first_and_what_is_drawn_beside_what_it_is_about(made, source):
    places = [
        source.index(part) for part in ("<h1>", 'class="verdict', "it beats a coin", "<img", "<table", "<h2>The dir")
    ]
    assert places == sorted(places)
    last = source.rindex("<img")
    assert last > source.index("<h2>The dir"), "the layers of the direction"
    assert source.count("<img", 0, source.index("<h2>The dir")) == 5


def test_the_same_bytes_each_time(made, source):
    assert made.to_html() == source


def spoken(made, text):
    """The same report, in which a stranger's text stands wherever one can."""
    splits = [
        dataclasses.replace(
            s,
            split=f"a{text}",
            doubts=(f"b{text}",),
            categories=tuple(dataclasses.replace(c, name=f"c{text}") for c in s.categories),
            suspicious=tuple(dataclasses.replace(x, excerpt=(f"d{text}", text, text)) for x in s.suspicious),
            coverage=dataclasses.replace(s.coverage, missing=(text,), expected=1),
        )
        for s in made.splits
    ]
    (about,) = made.directions
    facts = {**about.facts, "estimator": text, "held_out": text, "length_rule": text or "x"}
    about = dataclasses.replace(about, name=f"e{text}", facts=facts, doubts=(text,), repo_id=f"{text}/!")
    return dataclasses.replace(made, splits=tuple(splits), directions=(about,))


def structure(made, text):
    """Tags with the names of their attributes, and the values of those that do something."""
    return [
        (tag, *(a for a in sorted(attributes) if a != "data-head"), attributes.get("href"))
        for tag, attributes in parsed(spoken(made, text).to_html(plots=False)).tags
    ]


NASTY = ["<", ">", '"', "'", "`", "**", "|", "[`x`](https://huggingface.co/a)", "<script>", "</style>", "&lt;", "&#60;",
         "<code>", "</code>", "\u202e", "\n# ", "](javascript:x)", "onclick=", "<!--", "--", "a", "\ud800"]  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(text=st.lists(st.sampled_from(NASTY) | st.text(max_size=5), max_size=6).map("".join))
def test_a_strangers_text_changes_no_tag_of_the_page(made, text):
    assert structure(made, text) == structure(made, "plain")


def test_hostile_text_is_shown_as_text(made, monkeypatch):
    shown = parsed(spoken(made, HOSTILE).to_html(plots=False))
    assert "<script>alert(1)</script>" in shown.text
    assert "\u202e" not in spoken(made, "a\u202eb").to_html(plots=False)
    # The control: were it not escaped, the page would have other tags.
    plain = structure(made, "plain")
    monkeypatch.setattr(page, "escape", str)
    assert structure(made, HOSTILE) != plain


def test_a_notebook_shows_it_with_plots_or_says_why_there_are_none(made, monkeypatch):
    from legend_hf.reports import report as module  # the function: its module holds what is replaced

    shown = made._repr_html_()
    assert shown.startswith('<div class="legend">')
    assert shown.count("<img") == 6
    assert loaded(shown) == []
    assert "<h1" not in shown
    assert " id=" not in shown

    def missing(report):
        raise ImportError("plots need matplotlib; install it with `pip install 'legend-hf[plots]'`")

    monkeypatch.setitem(module.__globals__, "draw", missing)
    without = made._repr_html_()
    assert "<img" not in without
    assert "Not drawn: plots need matplotlib" in parsed(without).text
    assert "<table" in without


def test_a_saved_page_links_to_traces_that_lie_beside_it(made, tmp_path):
    page_of = tmp_path / "report.html"
    made.save(tmp_path, plots=False)
    assert 'href="traces.html"' not in page_of.read_text(encoding="utf-8")
    (tmp_path / "traces.html").write_text("somebody else's")
    made.save(tmp_path, plots=False)
    assert 'href="traces.html"' not in page_of.read_text(encoding="utf-8")
    (tmp_path / "traces.html").write_text(page.whole([], title="Traces"), encoding="utf-8")
    made.save(tmp_path, plots=False)
    assert '<a href="traces.html">' in page_of.read_text(encoding="utf-8")
    # Written before the report, they are no stranger's either, and they stay.
    new = tmp_path / "new"
    new.mkdir()
    shutil.copy(tmp_path / "traces.html", new)
    made.save(new, plots=False)
    assert (new / "traces.html").read_bytes() == (tmp_path / "traces.html").read_bytes()


def test_a_page_of_somebody_else_is_not_replaced(made, tmp_path):
    made.save(tmp_path, plots=False)
    made.save(tmp_path, plots=False)
    (tmp_path / "report.html").write_text("<p>mine</p>")
    with pytest.raises(ValueError, match=r"not written by this library: 'report\.html'"):
        made.save(tmp_path, plots=False)
    assert (tmp_path / "report.html").read_text() == "<p>mine</p>"


# What a browser itself makes of pages, each in a window of its width.
PROBE = """<script>onload = () => { document.title = JSON.stringify([...document.querySelectorAll("iframe")].map(frame => {
  const page = frame.contentDocument, pictures = [...page.images];
  return [page.documentElement.scrollWidth, pictures.filter(p => p.naturalWidth > 1000).length];
}))}</script>"""


@pytest.mark.slow
def test_in_a_browser_the_page_fits_the_screen_and_its_pictures_are_seen(made, tmp_path):
    spoken(made, HOSTILE).save(tmp_path)
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    # The control: without its rules a page does not fit a phone.
    (tmp_path / "bare.html").write_text(re.sub("<style>.*?</style>", "", source), encoding="utf-8")
    windows = [("report.html", 390), ("report.html", 1280), ("bare.html", 390)]
    frames = [f'<iframe src="{name}" style="width:{w}px;height:800px;border:0"></iframe>' for name, w in windows]
    (tmp_path / "windows.html").write_text("".join(frames) + PROBE)
    options = ["--allow-file-access-from-files", "--disable-dev-shm-usage", f"--user-data-dir={tmp_path / 'profile'}"]
    dom = run_browser(*options, "--dump-dom", (tmp_path / "windows.html").as_uri())
    found = dict(zip(windows, json.loads(re.search(r"<title>(.*?)</title>", dom)[1]), strict=True))
    bare, _ = found.pop(("bare.html", 390))
    assert found == {("report.html", 390): [390, 6], ("report.html", 1280): [1280, 6]}
    assert bare > 390
