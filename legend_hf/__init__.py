"""Margins for preference datasets: project hidden states on a direction that means something.

    from datasets import load_dataset
    from legend_hf import LegendMarginFn

    ds = load_dataset("Anthropic/hh-rlhf", data_dir="harmless-base")
    ds = ds.map(LegendMarginFn("you/legend-direction"), batched=True)

The names below are loaded when they are first used, so that importing the package costs neither torch nor transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from legend_hf._lazy import hand_on
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
    from legend_hf.writing.writer import Writer as Writer

__all__ = [
    *hand_on(
        __name__,
        {
            "ArtifactError": "directions.direction",
            "CorrAtK": "preferences.corr_at_k",
            "Direction": "directions.direction",
            "LegendMarginFn": "margins.margin_fn",
            "LegendScoreFn": "margins.score_fn",
            "PairSimilarityFn": "preferences.similarity",
            "Reader": "reading.reader",
            "RowError": "reading.formats",
            "Writer": "writing.writer",
            "annotate": "margins.annotate",
            "check_for_trl": "reports.trl_check",
            "compute_corr_at_k": "preferences.corr_at_k",
            "corr_at_k": "preferences.corr_at_k",
            "correction_ladders": "preferences.corrections",
            "curriculum": "preferences.curriculum",
            "export_for": "preferences.export",
            "fit_direction": "directions.fit",
            "induce_pairs": "directions.induce",
            "ladder_check": "reports.ladder",
            "ladder_pairs": "preferences.corrections",
            "make_pairs": "preferences.pairs",
            "pairs_from_labels": "directions.induce",
            "push_annotated": "publish",
            "push_folder": "publish",
            "refusal_judge": "preferences.corr_at_k",
            "sample_questions": "directions.induce",
            "save_annotated": "publish",
            "select_pairs": "preferences.pairs",
        },
    ),
    "__version__",
]
