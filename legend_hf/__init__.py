"""Margins for preference datasets: project hidden states on a direction that means something.

    from datasets import load_dataset
    from legend_hf import LegendMarginFn

    ds = load_dataset("Anthropic/hh-rlhf", data_dir="harmless-base")
    ds = ds.map(LegendMarginFn("you/legend-direction"), batched=True)

The names below are loaded when they are first used, so that importing the package costs neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from legend_hf._version import __version__ as __version__

if TYPE_CHECKING:
    from legend_hf.directions.direction import ArtifactError as ArtifactError
    from legend_hf.directions.direction import Direction as Direction
    from legend_hf.directions.fit import fit_direction as fit_direction
    from legend_hf.directions.induce import induce_pairs as induce_pairs
    from legend_hf.directions.induce import pairs_from_labels as pairs_from_labels
    from legend_hf.directions.induce import sample_questions as sample_questions
    from legend_hf.margins.annotate import annotate as annotate
    from legend_hf.margins.margin_fn import LegendMarginFn as LegendMarginFn
    from legend_hf.margins.score_fn import LegendScoreFn as LegendScoreFn
    from legend_hf.preferences.corr_at_k import CorrAtK as CorrAtK
    from legend_hf.preferences.corr_at_k import compute_corr_at_k as compute_corr_at_k
    from legend_hf.preferences.corr_at_k import corr_at_k as corr_at_k
    from legend_hf.preferences.corr_at_k import refusal_judge as refusal_judge
    from legend_hf.preferences.corrections import correction_ladders as correction_ladders
    from legend_hf.preferences.corrections import ladder_pairs as ladder_pairs
    from legend_hf.preferences.curriculum import curriculum as curriculum
    from legend_hf.preferences.export import export_for as export_for
    from legend_hf.preferences.pairs import make_pairs as make_pairs
    from legend_hf.preferences.pairs import select_pairs as select_pairs
    from legend_hf.preferences.similarity import PairSimilarityFn as PairSimilarityFn
    from legend_hf.publish import push_annotated as push_annotated
    from legend_hf.publish import push_folder as push_folder
    from legend_hf.publish import save_annotated as save_annotated
    from legend_hf.reading.formats import RowError as RowError
    from legend_hf.reading.reader import Reader as Reader
    from legend_hf.reports.ladder import ladder_check as ladder_check
    from legend_hf.reports.trl_check import check_for_trl as check_for_trl

_HOME = {
    "ArtifactError": "legend_hf.directions.direction",
    "CorrAtK": "legend_hf.preferences.corr_at_k",
    "Direction": "legend_hf.directions.direction",
    "LegendMarginFn": "legend_hf.margins.margin_fn",
    "LegendScoreFn": "legend_hf.margins.score_fn",
    "PairSimilarityFn": "legend_hf.preferences.similarity",
    "Reader": "legend_hf.reading.reader",
    "RowError": "legend_hf.reading.formats",
    "annotate": "legend_hf.margins.annotate",
    "check_for_trl": "legend_hf.reports.trl_check",
    "compute_corr_at_k": "legend_hf.preferences.corr_at_k",
    "corr_at_k": "legend_hf.preferences.corr_at_k",
    "correction_ladders": "legend_hf.preferences.corrections",
    "curriculum": "legend_hf.preferences.curriculum",
    "export_for": "legend_hf.preferences.export",
    "fit_direction": "legend_hf.directions.fit",
    "induce_pairs": "legend_hf.directions.induce",
    "ladder_check": "legend_hf.reports.ladder",
    "ladder_pairs": "legend_hf.preferences.corrections",
    "make_pairs": "legend_hf.preferences.pairs",
    "pairs_from_labels": "legend_hf.directions.induce",
    "push_annotated": "legend_hf.publish",
    "push_folder": "legend_hf.publish",
    "refusal_judge": "legend_hf.preferences.corr_at_k",
    "sample_questions": "legend_hf.directions.induce",
    "save_annotated": "legend_hf.publish",
    "select_pairs": "legend_hf.preferences.pairs",
}
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'legend_hf' has no attribute {name!r}; it has {', '.join(sorted(_HOME))}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
