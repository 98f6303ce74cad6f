"""What a direction reads, token by token; no column is made.

`Trace` holds the projections of one text's tokens and the score of each beginning, `TracePair` those of two responses
to one prompt; `Direction.trace` and `Direction.trace_pair` make them, and they show themselves as a page.
`Stream` reads a text while it is written; `Direction.stream` opens one.
`remember`, `recall` and `turn_of` are the Legendre memory of a trace.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from legend_hf._lazy import hand_on

if TYPE_CHECKING:
    from legend_hf.tracing.memory import Turn as Turn
    from legend_hf.tracing.memory import recall as recall
    from legend_hf.tracing.memory import remember as remember
    from legend_hf.tracing.memory import settled_after as settled_after
    from legend_hf.tracing.memory import turn_of as turn_of
    from legend_hf.tracing.stream import Stream as Stream
    from legend_hf.tracing.trace import Trace as Trace
    from legend_hf.tracing.trace import TracePair as TracePair

__all__ = hand_on(
    __name__,
    {
        "Stream": "stream",
        "Trace": "trace",
        "TracePair": "trace",
        "Turn": "memory",
        "recall": "memory",
        "remember": "memory",
        "settled_after": "memory",
        "turn_of": "memory",
    },
)
