"""A direction becomes columns; nothing is trained on them and nothing published.

`LegendMarginFn` adds margins to pairs, `LegendScoreFn` scores to lists of responses: transforms for `datasets.map`.
`annotate` does a whole dataset in one call, every row checked before the first is read.
`estimate` says what that would read and cost, and does none of it.
A `Store` keeps what was read, so that a stopped run goes on where it was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from legend_hf._lazy import hand_on

if TYPE_CHECKING:
    from legend_hf.margins.annotate import annotate as annotate
    from legend_hf.margins.estimate import estimate as estimate
    from legend_hf.margins.margin_fn import LegendMarginFn as LegendMarginFn
    from legend_hf.margins.score_fn import LegendScoreFn as LegendScoreFn
    from legend_hf.margins.store import Store as Store

__all__ = hand_on(
    __name__,
    {
        "LegendMarginFn": "margin_fn",
        "LegendScoreFn": "score_fn",
        "Store": "store",
        "annotate": "annotate",
        "estimate": "estimate",
    },
)
