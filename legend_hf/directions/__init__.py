"""Vectors become a direction; no column is made.

`fit_direction` makes one out of pairs, a `Recipe` says how, `Direction` is what comes out: the artifact.
`induce_pairs` lets a model answer questions and puts refusals against its answers, `pairs_with_refusal` does so with
answers that are there, `pairs_from_labels` makes pairs of single responses with a label, `sample_questions` draws
questions evenly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from legend_hf._lazy import hand_on

if TYPE_CHECKING:
    from legend_hf.directions.direction import ArtifactError as ArtifactError
    from legend_hf.directions.direction import Direction as Direction
    from legend_hf.directions.estimate import estimate_fit as estimate_fit
    from legend_hf.directions.fit import fit_direction as fit_direction
    from legend_hf.directions.induce import induce_pairs as induce_pairs
    from legend_hf.directions.induce import pairs_from_labels as pairs_from_labels
    from legend_hf.directions.induce import pairs_with_refusal as pairs_with_refusal
    from legend_hf.directions.induce import sample_questions as sample_questions
    from legend_hf.directions.recipe import Recipe as Recipe

__all__ = hand_on(
    __name__,
    {
        "ArtifactError": "direction",
        "Direction": "direction",
        "Recipe": "recipe",
        "estimate_fit": "estimate",
        "fit_direction": "fit",
        "induce_pairs": "induce",
        "pairs_from_labels": "induce",
        "pairs_with_refusal": "induce",
        "sample_questions": "induce",
    },
)
