"""The frame of every HTML page: its colours, what becomes of a stranger's text, that nothing is loaded."""

from __future__ import annotations

import re
import unicodedata
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legend_hf.hub.frame import DARK, LEVELS, LIGHT, escape, page, part, shade


def luminance(colour):
    """Relative luminance of sRGB, as in WCAG 2."""
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (c / 255 for c in colour)]
    return float(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])


def contrast(a, b):
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("look", [LIGHT, DARK], ids=["light", "dark"])
def test_both_colours_are_as_strong_at_every_level_and_text_stays_readable(look):
    for level in range(LEVELS + 1):
        towards, away = (
            [g + (c - g) * level / LEVELS for g, c in zip(look.ground, side, strict=True)]
            for side in (look.towards, look.away)
        )
        assert contrast(towards, away) < 1.06
        assert contrast(look.ink, towards) >= 4.5
        assert contrast(look.ink, away) >= 4.5
    assert contrast(look.faint, look.ground) >= 4.5
    # The control: red and blue of the same strength are not.
    assert contrast((255, 0, 0), (0, 0, 255)) > 1.06


def test_a_value_has_the_colour_of_its_side_and_no_more_than_the_strongest():
    assert [shade(v) for v in (-9.0, -1.0, -0.06, 0.0, 0.04, 0.5, 1.0, 9.0)] == [
        "a10",
        "a10",
        "a1",
        "z",
        "z",
        "t5",
        "t10",
        "t10",
    ]


class Seen(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def parsed(source):
    seen = Seen()
    seen.feed(source)
    seen.close()
    return seen


@given(st.text(st.characters(exclude_categories=[])))
def test_a_strangers_text_is_text_wherever_it_stands(text):
    seen = parsed(f'<p title="{escape(text)}">{escape(text)}</p>')
    assert [tag for tag, _ in seen.tags] == ["p"]
    assert set(seen.tags[0][1]) == {"title"}
    hidden = {c for c in seen.text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")}
    assert hidden <= set("\t\n\u200c\u200d")
    escape(text).encode("utf-8")  # half a surrogate pair cannot be written


def test_what_would_turn_a_line_around_or_hide_is_called_by_its_name():
    assert escape("a\u202eb\x00\ufeff\u2066") == "a⟨U+202E⟩b⟨U+0000⟩⟨U+FEFF⟩⟨U+2066⟩"
    assert escape("<b>'\"&") == "&lt;b&gt;&#x27;&quot;&amp;"
    # The control: letters, emoji of several parts and other scripts stay as they are.
    assert escape("naïve 👩‍🚀 שלום\n\tx") == "naïve 👩‍🚀 שלום\n\tx"


def test_a_page_loads_nothing_and_runs_nothing():
    source = page("<T>", "<p>x</p>")
    seen = parsed(source)
    policy = next(a["content"] for tag, a in seen.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert not re.search(r"https?:|//|url\(|@import|<script|<link", source)
    assert "&lt;T&gt;" in source
    assert "prefers-color-scheme:dark" in source
    assert parsed(part("<p>x</p>")).tags[0] == ("div", {"class": "legend"})
    # What a notebook shows changes nothing outside of itself.
    rules = re.findall(r"(?<=[}{>])[^{}<>@:]+(?=\{)", part(""))
    assert len(rules) > 20
    assert all(rule.startswith(".legend") for rule in rules)
    assert "body" in re.findall(r"(?<=[}{>])[^{}<>@:]+(?=\{)", source)
