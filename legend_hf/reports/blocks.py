"""What a report is made of: headings, paragraphs, lists, tables and pictures, in the order in which they are read.

In: texts in the Markdown of `hub.cards`, in which every string of a stranger is inert. Out: blocks, and Markdown of
them; `page.py` makes HTML of the same. This file does not know what a report says.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from legend_hf.hub import cards


@dataclass(frozen=True)
class Heading:
    """The title of what follows; of a part of it, if `small`."""

    text: str
    small: bool = False


@dataclass(frozen=True)
class Paragraph:
    """One or more sentences."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A line each."""

    lines: Sequence[str]


@dataclass(frozen=True)
class InShort:
    """The lines that stand before everything, and whether one of them names something doubtful."""

    lines: Sequence[str]
    doubtful: bool


@dataclass(frozen=True)
class Table:
    """Cells under a head.

    Attributes:
        head: Of each column.
        rows: Cells; the first of each says what the row is.
        says: Whether the last cell of each row says in words what the others mean.
        texts: Whether cells are texts, which need room.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    says: bool = False
    texts: bool = False


@dataclass(frozen=True)
class Shown:
    """A picture.

    Attributes:
        source: File name, URL, or the picture itself as a `data:` URL.
        description: What it shows, for those who do not see it; plain text.
        about: What was drawn, beside which it stands; at the end if None.
    """

    source: str
    description: str
    about: object = None


Block: TypeAlias = Heading | Paragraph | Bullets | InShort | Table | Shown


def as_markdown(blocks: Iterable[Block]) -> str:
    """Blocks as Markdown."""
    return "\n\n".join(map(_markdown, blocks)) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, small):
            return f"{'###' if small else '##'} {text}"
        case Paragraph(text):
            return text
        case Bullets(lines) | InShort(lines):
            return "\n".join(f"- {line}" for line in lines)
        case Table(head, rows):
            return cards.as_table(head, rows)
        case Shown(source, description):
            return f"![{cards.escaped(description)}]({source})"
