"""A report becomes a page: the verdict, pictures, tables and rows to look at, in one file.

In: blocks. Out: HTML, a whole file or a part for a notebook, of the same texts as the Markdown. It needs no network
and no JavaScript, and the look is the one of all pages (`hub.frame`). This file does not know what a report says.

Every text goes through `frame.escape`, whoever wrote it; what becomes a tag is what `hub.cards` writes as code, bold or
a link to the Hub, which no string of a stranger can look like.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator, Sequence

from legend_hf.hub.frame import escape, page, part
from legend_hf.reports.blocks import Block, Bullets, Heading, InShort, Paragraph, Shown, Table

_MARKS = re.compile(
    r"\*\*(?P<bold>.+?)\*\*|\[`(?P<name>[^`]+)`\]\((?P<link>https://huggingface\.co/[\w./-]+)\)"
    r"|`(?P<code>[^`]+)`|<code>(?P<spelt>.*?)</code>",
    re.ASCII,
)
_JOINER = "&#8288;"  # keeps readers of Markdown from making links of addresses; HTML makes none

_STYLE = (
    ".legend .verdict{border:1px solid rgb(var(--line));border-left:.4rem solid rgb(var(--towards));"
    "border-radius:.5rem;padding:.25rem 1rem;margin:1rem 0;max-width:60rem}"
    ".legend .verdict.doubtful{border-left-color:rgb(var(--away))}"
    ".legend ul{margin:.5rem 0;padding-left:1.2rem;max-width:60rem}.legend .verdict ul{list-style:none;padding:0}"
    ".legend li{margin:.35rem 0}.legend h3{margin:1.5rem 0 .5rem}"
    ".legend .wide{overflow-x:auto;margin:.75rem 0}"
    ".legend thead th{color:rgb(var(--faint));font-weight:600;font-size:.875rem;vertical-align:bottom}"
    ".legend tbody th{font-weight:400;min-width:10rem}"
    ".legend .says{display:block;max-width:34rem}"
    ".legend td{min-width:5.5rem}.legend .texts td{min-width:0}"
    ".legend .pictures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,34rem),1fr));gap:1rem;"
    "margin:1rem 0}.legend figure{margin:0;min-width:0;max-width:56rem;"
    "border:1px solid rgb(var(--line));border-radius:.5rem}"
    ".legend figcaption{padding:.25rem .75rem .5rem}.legend .drawn{overflow-x:auto;border-radius:.5rem}"
    ".legend img{display:block;width:100%;min-width:34rem}"
    # What is drawn for white paper, on a dark ground; hues stay what they are.
    "@media(prefers-color-scheme:dark){.legend img{filter:invert(.9) hue-rotate(180deg)}}"
    "@media(max-width:40rem){.legend .texts thead{display:none}"
    ".legend .texts tr,.legend .texts th,.legend .texts td{display:block;border:0}"
    ".legend .texts tr{border-bottom:1px solid rgb(var(--line));padding:.5rem 0}"
    ".legend .texts th::before,.legend .texts td::before{content:attr(data-head) ': ';"
    "color:rgb(var(--faint));font-size:.875rem}}"
)


def shown(blocks: Sequence[Block], *, note: str = "") -> str:
    """A report as a part of a notebook's page; `note` stands at its end."""
    return part("".join(_body(blocks)) + _note(note), _STYLE)


def whole(blocks: Sequence[Block], *, title: str, traces: str | None = None, note: str = "") -> str:
    """A report as a file.

    Args:
        blocks: What it is made of.
        title: Of the page.
        traces: Where a page of the traces of its rows lies, relative to it.
        note: What to say at its end, plain text.
    """
    link = f'<p><a href="{escape(traces)}">Rows of these margins, token by token</a></p>' if traces else ""
    return page(title, f"<h1>{escape(title)}</h1>" + "".join(_body(blocks, link)) + _note(note), _STYLE)


def _note(note: str) -> str:
    return f'<p class="faint small">{escape(note)}</p>' if note else ""


def _body(blocks: Sequence[Block], link: str = "") -> Iterator[str]:
    """Each block, with pictures about the same side by side where there is room."""
    for i, block in enumerate(blocks):
        if isinstance(block, Shown):
            first, last = (
                not any(_beside(block, b) for b in near) for near in (blocks[i - 1 : i], blocks[i + 1 : i + 2])
            )
            yield ('<div class="pictures">' if first else "") + _picture(block) + ("</div>" if last else "")
        else:
            yield _block(block)
        if i == 0:
            yield link


def _beside(picture: Shown, other: Block) -> bool:
    return isinstance(other, Shown) and other.about is picture.about


def _block(block: Heading | Paragraph | Bullets | InShort | Table) -> str:
    match block:
        case Heading(text, small):
            return f"<{'h3' if small else 'h2'}>{_inline(text)}</{'h3' if small else 'h2'}>"
        case Paragraph(text):
            return f"<p>{_inline(text)}</p>"
        case Bullets(lines):
            return "<ul>" + "".join(f"<li>{_inline(line)}</li>" for line in lines) + "</ul>"
        case InShort(lines, doubtful):
            return f'<div class="verdict{" doubtful" if doubtful else ""}">{_block(Bullets(lines))}</div>'
        case Table():
            return "".join(_table(block))


def _picture(picture: Shown) -> str:
    text = escape(picture.description)
    drawn = f'<div class="drawn" tabindex="0"><img src="{escape(picture.source)}" alt="{text}"></div>'
    return f'<figure>{drawn}<figcaption class="faint small" aria-hidden="true">{text}</figcaption></figure>'


def _table(table: Table) -> Iterator[str]:
    """What a row says in words stands under its name: there is room on a narrow screen, and the eye finds it."""
    head = table.head[:-1] if table.says else table.head
    yield '<div class="wide" tabindex="0"><table' + (' class="texts"' if table.texts else "") + ">"
    if any(head):
        yield "<thead><tr>" + "".join(f'<th scope="col">{_inline(cell)}</th>' for cell in head) + "</tr></thead>"
    yield "<tbody>"
    for name, *cells in table.rows:
        says = f'<span class="says faint small">{_inline(cells.pop())}</span>' if table.says else ""
        heads = [f' data-head="{escape(_plain(title))}"' if table.texts else "" for title in head]
        yield f'<tr><th scope="row"{heads[0]}>{_inline(name)}{says}</th>'
        yield from (f'<td dir="auto"{h}>{_inline(cell)}</td>' for h, cell in zip(heads[1:], cells, strict=True))
        yield "</tr>"
    yield "</tbody></table></div>"


def _inline(text: str) -> str:
    """A line of the Markdown of `hub.cards` as HTML."""
    return "".join(_pieces(text))


def _pieces(text: str) -> Iterable[str]:
    end = 0
    for mark in _MARKS.finditer(text):
        yield escape(_plain(text[end : mark.start()]))
        end = mark.end()
        if mark["bold"]:
            yield f"<b>{_inline(mark['bold'])}</b>"
        elif mark["link"]:
            yield f'<a href="{escape(mark["link"])}">{escape(mark["name"])}</a>'
        else:
            yield f"<code>{escape(_plain(mark['code'] or mark['spelt'] or ''))}</code>"
    yield escape(_plain(text[end:]))


def _plain(text: str) -> str:
    """The characters that entities stand for."""
    return html.unescape(text.replace(_JOINER, ""))
