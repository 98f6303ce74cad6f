"""Margins for preference datasets: project hidden states on a direction that means something.

    from datasets import load_dataset
    from legend_hf import LegendMarginFn

    ds = load_dataset("Anthropic/hh-rlhf", data_dir="harmless-base")
    ds = ds.map(LegendMarginFn("you/legend-direction"), batched=True)

The names below are those of the common road; each stage hands on its own, such as `legend_hf.directions`,
`legend_hf.preferences` and `legend_hf.reports`. They are loaded when they are first used, so that importing the package
costs neither torch nor transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from legend_hf._lazy import hand_on
from legend_hf._version import __version__ as __version__

if TYPE_CHECKING:
    from legend_hf.directions.direction import ArtifactError as ArtifactError
    from legend_hf.directions.direction import Direction as Direction
    from legend_hf.directions.fit import fit_direction as fit_direction
    from legend_hf.margins.annotate import annotate as annotate
    from legend_hf.margins.margin_fn import LegendMarginFn as LegendMarginFn
    from legend_hf.margins.score_fn import LegendScoreFn as LegendScoreFn
    from legend_hf.publish import push_annotated as push_annotated
    from legend_hf.publish import save_annotated as save_annotated
    from legend_hf.reading.formats import RowError as RowError
    from legend_hf.reading.reader import Reader as Reader
    from legend_hf.reports.report import report as report
    from legend_hf.writing.writer import Writer as Writer

__all__ = [
    *hand_on(
        __name__,
        {
            "ArtifactError": "directions.direction",
            "Direction": "directions.direction",
            "LegendMarginFn": "margins.margin_fn",
            "LegendScoreFn": "margins.score_fn",
            "Reader": "reading.reader",
            "RowError": "reading.formats",
            "Writer": "writing.writer",
            "annotate": "margins.annotate",
            "fit_direction": "directions.fit",
            "push_annotated": "publish",
            "report": "reports.report",
            "save_annotated": "publish",
        },
    ),
    "__version__",
]
