"""What margins are for: pairs chosen, ordered, corrected and handed to trainers by them. Nothing is published.

REAL: `PairSimilarityFn`, `select_pairs`, `select_measured`; `make_pairs` out of N responses, with an `embedder_of` one.
Curry-DPO: `curriculum`. Course-Correction: `correction_ladders`, `ladder_pairs`, `compute_corr_at_k`, `corr_at_k`.
`export_for` writes what TRL, OpenRLHF or ms-swift reads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from legend_hf._lazy import hand_on

if TYPE_CHECKING:
    from legend_hf.preferences.corr_at_k import CorrAtK as CorrAtK
    from legend_hf.preferences.corr_at_k import compute_corr_at_k as compute_corr_at_k
    from legend_hf.preferences.corr_at_k import corr_at_k as corr_at_k
    from legend_hf.preferences.corr_at_k import refusal_judge as refusal_judge
    from legend_hf.preferences.corrections import correction_ladders as correction_ladders
    from legend_hf.preferences.corrections import ladder_pairs as ladder_pairs
    from legend_hf.preferences.curriculum import curriculum as curriculum
    from legend_hf.preferences.export import export_for as export_for
    from legend_hf.preferences.pairs import make_pairs as make_pairs
    from legend_hf.preferences.pairs import select_measured as select_measured
    from legend_hf.preferences.pairs import select_pairs as select_pairs
    from legend_hf.preferences.similarity import PairSimilarityFn as PairSimilarityFn
    from legend_hf.preferences.similarity import embedder_of as embedder_of

__all__ = hand_on(
    __name__,
    {
        "CorrAtK": "corr_at_k",
        "PairSimilarityFn": "similarity",
        "compute_corr_at_k": "corr_at_k",
        "corr_at_k": "corr_at_k",
        "correction_ladders": "corrections",
        "curriculum": "curriculum",
        "embedder_of": "similarity",
        "export_for": "export",
        "ladder_pairs": "corrections",
        "make_pairs": "pairs",
        "refusal_judge": "corr_at_k",
        "select_measured": "pairs",
        "select_pairs": "pairs",
    },
)
