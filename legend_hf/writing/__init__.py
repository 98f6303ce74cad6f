"""A text is gone on with by a model; no hidden state is read.

`Writer` says which model writes, what it sees and how it chooses tokens: plain data, the twin of `Reader`.
`open_writer` makes it ready to answer questions and to go on with begun responses; a stopped run goes on where it was.
`refuses` and `turns_away` say whether a text declines what was asked, by a rule for English.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from legend_hf._lazy import hand_on

if TYPE_CHECKING:
    from legend_hf.writing.refusals import refuses as refuses
    from legend_hf.writing.refusals import turns_away as turns_away
    from legend_hf.writing.writer import Writer as Writer
    from legend_hf.writing.writer import open_writer as open_writer

__all__ = hand_on(
    __name__, {"Writer": "writer", "open_writer": "writer", "refuses": "refusals", "turns_away": "refusals"}
)
