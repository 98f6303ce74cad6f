"""The frame of every HTML page: one look, no network, no JavaScript, and text of strangers that does nothing.

In: a title and a body, and texts to be put into it. Out: HTML, as a whole file or as a part for a notebook. This file
knows nothing of what a page shows.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from legend_hf._version import __version__

LEVELS = 10
"""Strengths of a colour on each side of neutral."""
GENERATOR = '<meta name="generator" content="legend_hf'

# Nothing is loaded and nothing runs, even if something were to get past the escaping.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_JOINERS = "\u200c\u200d"  # inside of words and of emoji: they order nothing anew and hide nothing


@dataclass(frozen=True)
class Look:
    """Colours of a page, each as red, green and blue.

    Attributes:
        ground: Behind everything.
        ink: Text.
        faint: Text that matters less.
        line: Rules and frames.
        towards: The strongest colour of the one side. Blue and orange are told apart with every kind of colour vision.
        away: That of the other side, of the same luminance: neither looks stronger.
    """

    ground: tuple[int, int, int]
    ink: tuple[int, int, int]
    faint: tuple[int, int, int]
    line: tuple[int, int, int]
    towards: tuple[int, int, int]
    away: tuple[int, int, int]


LIGHT = Look((255, 255, 255), (26, 28, 32), (92, 97, 106), (217, 220, 225), (80, 150, 225), (222, 120, 30))
DARK = Look((20, 22, 26), (232, 234, 238), (158, 164, 174), (58, 62, 70), (32, 104, 176), (154, 82, 10))


def escape(text: object) -> str:
    """A text as HTML shows it: `visible`, and nothing in it ends a tag or an attribute."""
    return html.escape(visible(text), quote=True)


def visible(text: object) -> str:
    """A text in which every character is seen, for a terminal too: none steers it, as strangers' might.

    Control characters, marks that change a text's direction and others that are not seen are written as what they are
    called, such as `⟨U+202E⟩`; tabs and line ends stay.
    """
    return "".join(c if _plain(c) else f"⟨U+{ord(c):04X}⟩" for c in str(text))


def _plain(character: str) -> bool:
    return character in "\t\n" or character in _JOINERS or unicodedata.category(character) not in _HIDDEN


def shade(value: float) -> str:
    """The class of a colour, for a value from -1 (the strongest away) to 1 (the strongest towards)."""
    level = round(LEVELS * min(1.0, max(-1.0, value)))
    return f"{'a' if level < 0 else 't'}{abs(level)}" if level else "z"


def is_page(file: Path) -> bool:
    """Whether a file is a page that this library wrote."""
    with open(file, "rb") as opened:
        return GENERATOR.encode() in opened.read(2000)


def page(title: str, body: str, style: str = "") -> str:
    """A whole file.

    Args:
        title: Of the page; escaped here.
        body: HTML.
        style: Rules of CSS beside those that all pages share.
    """
    return (
        "<!DOCTYPE html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><meta name="referrer" content="no-referrer">'
        f'{GENERATOR} {__version__}"><title>{escape(title)}</title>'
        f"<style>{_PAGE}{CSS}{style}</style></head>\n"
        f'<body><main class="legend">{body}</main></body></html>\n'
    )


def part(body: str, style: str = "") -> str:
    """The same for a notebook, whose own page it must not change."""
    return f'<div class="legend"><style>{CSS}{style}</style>{body}</div>'


def _rgb(colour: tuple[int, int, int]) -> str:
    return " ".join(map(str, colour))


def _variables(look: Look) -> str:
    parts: Mapping[str, tuple[int, int, int]] = vars(look)
    return "".join(f"--{name}:{_rgb(colour)};" for name, colour in parts.items())


def _shades() -> str:
    return "".join(
        f".legend .{side}{level}{{background:rgb(var(--{name})/{level / LEVELS:g})}}"
        for side, name in (("t", "towards"), ("a", "away"))
        for level in range(1, LEVELS + 1)
    )


_PAGE = (
    f"body{{margin:0;background:rgb({_rgb(LIGHT.ground)})}}"
    f"@media (prefers-color-scheme:dark){{body{{background:rgb({_rgb(DARK.ground)})}}}}"
    "main.legend{max-width:76rem;margin:0 auto;padding:1rem clamp(.75rem,3vw,2rem) 3rem}"
)
# In what a browser's own dark theme makes of a page the colours would be others: both are said here.
CSS = re.sub(
    r"\n\s*",
    "",
    f"""
    .legend{{{_variables(LIGHT)}color-scheme:light dark}}
    @media (prefers-color-scheme:dark){{.legend{{{_variables(DARK)}}}}}
    .legend{{background:rgb(var(--ground));color:rgb(var(--ink));font:16px/1.5 system-ui,sans-serif;
    print-color-adjust:exact;-webkit-print-color-adjust:exact;overflow-wrap:anywhere}}
    .legend *{{box-sizing:border-box}}
    .legend h1{{font-size:1.5rem;line-height:1.25;margin:.5rem 0}}
    .legend h2{{font-size:1.15rem;margin:2rem 0 .5rem}}
    .legend h3{{font-size:1rem;margin:0}}
    .legend p{{margin:.5rem 0;max-width:60rem}}
    .legend .faint{{color:rgb(var(--faint))}}
    .legend .small{{font-size:.875rem}}
    .legend a{{color:inherit}}
    .legend summary{{cursor:pointer}}
    .legend table{{border-collapse:collapse;font-variant-numeric:tabular-nums}}
    .legend th,.legend td{{border-bottom:1px solid rgb(var(--line));padding:.15rem .6rem;text-align:left;
    vertical-align:top}}
    {_shades()}
    """,
)
