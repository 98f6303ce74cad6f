"""The page of a trace: whole without network and JavaScript, true to its numbers, inert, and shown by a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from test_frame import parsed
from test_trace import PROMPT, SAID, direction_of, others  # noqa: F401

from legend_hf.hub.concept import Concept
from legend_hf.hub.frame import shade
from legend_hf.tracing import Trace
from legend_hf.tracing.page import FOLD_TOKENS
from legend_hf.tracing.values import Neutral

EVIL = "<script>alert(1)</script> \" onload='x' \u202e\u0000 </div></main> &lt; {{x}} שלום"


def made(n=2000, **changes) -> Trace:
    """A trace without a model."""
    values = np.random.default_rng(0).normal(size=n) * 5
    words = [f"word{i} " for i in range(n)]
    ends = np.cumsum([len(word) for word in words])
    parts = {
        "prompt": "Say something.",
        "text": "".join(words),
        "tokens": tuple(words),
        "places": tuple(zip((ends - [len(w) for w in words]).tolist(), ends.tolist(), strict=True)),
        "ids": tuple(range(n)),
        "values": values,
        "scores": np.cumsum(values) / np.arange(1, n + 1),
        "why_no_scores": "",
        "score": float(values.mean()),
        "neutral": Neutral(1.0, 8.0, Concept("tone", "cold", "warm")),
        "pooling": "mean",
        "of": "a model, layer 2 of 3",
    }
    return Trace(**{**parts, **changes})


@pytest.fixture(scope="module")
def pair(tiny_llama):
    direction = direction_of(tiny_llama, template="dialogue")
    row = {"prompt": f"{PROMPT} {EVIL}", "chosen": f"Gladly {EVIL}", "rejected": f"Gladly\n\nnot. {SAID}"}
    return direction.trace_pair(row, title=EVIL)


def test_the_page_says_each_tokens_value_in_colour_on_hover_and_for_screen_readers(pair, tmp_path):
    pair.save(tmp_path / "trace.html")
    seen = parsed((tmp_path / "trace.html").read_text("utf-8"))
    tokens = [a for _, a in seen.tags if a.get("class", "").startswith("k ")]
    traces = [pair.chosen, pair.rejected]
    assert len(tokens) == sum(len(t.ids) for t in traces)
    numbers = [(value, t) for t in traces for value in t.values]
    for attributes, (value, trace) in zip(tokens, numbers, strict=True):
        reach = trace.max_value - trace.neutral.zero
        assert attributes["class"] == f"k {shade((value - trace.neutral.zero) / reach)}"
        shown = re.match(r"[+−]?[\d.]+", attributes["title"])[0].replace("−", "-")
        assert float(shown) == pytest.approx(value, abs=0.051)
        assert attributes["aria-label"].endswith(attributes["title"].split(" ")[0])
        assert attributes["role"] == "img"
    assert {a["class"] for _, a in seen.tags if a.get("class", "").startswith("k ")} > {"k z"}
    lines = [a["points"] for tag, a in seen.tags if tag == "polyline"]
    assert [len(line.split()) for line in lines] == [len(t.ids) for t in traces]
    assert sum(a.get("class") == "fork" for _, a in seen.tags) == 2


def test_a_strangers_text_is_inert_and_nothing_is_loaded(pair):
    source = pair._repr_html_()
    tags = {tag for tag, _ in parsed(source).tags}
    assert tags <= {*("div", "style", "p", "b", "span", "section", "h2", "h3", "article", "svg", "title", "path"), "polyline", "details", "summary"}  # fmt: skip
    assert not any(name.startswith("on") for _, attributes in parsed(source).tags for name in attributes)
    assert "\u202e" not in source
    assert "\x00" not in source
    assert "⟨U+202E⟩" in source
    assert not re.search(r"https?:|url\(|@import|<script", source)
    # The control: the text itself would have brought a script and left its place.
    assert "script" in {tag for tag, _ in parsed(EVIL).tags}


def test_long_texts_fold_and_short_ones_do_not():
    long, short = (parsed(made(n)._repr_html_()) for n in (FOLD_TOKENS + 50, FOLD_TOKENS))
    assert tuple(tag for tag, _ in long.tags if tag in ("details", "summary")) == ("details", "summary")
    assert "50 more tokens" in long.text
    assert "details" not in {tag for tag, _ in short.tags}
    prompt = parsed(made(5, prompt="word " * 400)._repr_html_())
    assert "the rest of the prompt" in prompt.text
    assert prompt.text.count("word ") >= 400


def test_without_scores_the_page_says_why_and_shows_the_tokens(others):  # noqa: F811
    source = direction_of(others["encoder"], template="dialogue").trace(PROMPT, SAID)._repr_html_()
    assert "No running score" in source
    assert "<svg" not in source
    assert source.count('class="k ') > 10


def test_the_words_are_those_of_the_direction_and_the_scale_is_that_of_the_calibration():
    trace = made(30)
    text = parsed(trace._repr_html_()).text
    assert (trace.min_value, trace.max_value) == (-7.0, 9.0)
    for said in ("towards warm", "towards cold", "cold −7.0", "+9.0 warm", "no colour near +1.0"):
        assert said in text
    assert "safe" not in text
    alone = made(30, neutral=Neutral(0.0))
    assert alone.max_value == np.abs(alone.values).max()


def test_a_page_replaces_a_page_and_nothing_else(tmp_path):
    file = tmp_path / "page.html"
    made(5).save(file)
    made(6).save(file)
    other = tmp_path / "notes.html"
    other.write_text("mine")
    with pytest.raises(ValueError, match="something else made it"):
        made(5).save(other)
    assert other.read_text() == "mine"
    made(5).save(other, overwrite=True)


def browser() -> str:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("needs a browser: Debian's package `chromium`")
    return found


def run_browser(*options: str) -> str:
    run = [browser(), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *options]
    return subprocess.run(run, capture_output=True, text=True, timeout=120, check=True).stdout


# What the browser itself makes of the page, put into its title: the colours of a page are not seen in its source.
PROBE = """<script>onload = () => {
  const style = (s) => getComputedStyle(document.querySelector(s));
  document.title = JSON.stringify([document.documentElement.scrollWidth <= innerWidth, style("body").backgroundColor,
    style(".k.t10, .k.t9, .k.t8").backgroundColor, document.querySelectorAll(".k").length,
    document.querySelectorAll("script").length, performance.getEntriesByType("resource").length])}</script>"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_it_at_desk_and_phone_width_light_and_dark(tmp_path: Path, width, dark):
    file = tmp_path / "page.html"
    made(300).save(file)
    source = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", file.read_text("utf-8"))
    file.write_text(source.replace("</head>", f"{PROBE}</head>"), "utf-8")  # the page's own policy lets no script run
    mode = ["--blink-settings=preferredColorScheme=0"] if dark else []
    dom = run_browser(*mode, f"--window-size={max(width, 500)},900", "--dump-dom", f"file://{file}")
    fits, ground, colour, tokens, scripts, loaded = json.loads(re.search(r"<title>(.*?)</title>", dom)[1])
    assert (fits, tokens, scripts, loaded) == (True, 300, 1, 0)
    assert ground == ("rgb(20, 22, 26)" if dark else "rgb(255, 255, 255)")
    assert re.match(r"rgba?\(32, 104, 176" if dark else r"rgba?\(80, 150, 225", colour)


@pytest.mark.slow
def test_a_page_of_2000_tokens_opens_at_once_and_runs_no_script(tmp_path):
    small, large = tmp_path / "small.html", tmp_path / "large.html"
    made(3).save(small)
    made(2000).save(large)
    seconds = {}
    for file in (small, large):
        start = time.perf_counter()
        assert "Say something." in run_browser("--dump-dom", f"file://{file}")
        seconds[file] = time.perf_counter() - start
    assert seconds[large] - seconds[small] < 3  # a busy machine; half a second on an idle one
    assert large.stat().st_size < 600_000
    evil = tmp_path / "evil.html"
    made(5, prompt="x").save(evil)
    evil.write_text(evil.read_text("utf-8").replace("</main>", "<script>document.title='ran'</script></main>"), "utf-8")
    assert "<title>ran</title>" not in run_browser("--dump-dom", f"file://{evil}"), "the page's policy forbids it"
