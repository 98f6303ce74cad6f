"""A direction in a few lines, for people.

In: a direction. Out: what reads, what it was fitted on, and the verdict of held-out pairs. This file knows no card.
"""

from __future__ import annotations

from legend_hf.directions.direction import Direction
from legend_hf.hub import cards


def summary(direction: Direction) -> str:
    """What a direction is and what is known of its fit, a line each."""
    facts, reader = direction.facts, direction.reader

    rows = [
        ("model", reader.name),
        ("concept", direction.concept.said),
        ("reads", f"{reader.template!r} template, {reader.pooling} pooling, layer {reader.layer} of {reader.n_layers}, "
                  f"up to {reader.max_length} tokens, {reader.dtype}"),
        *([("loaded", cards.loading_said(reader.loading.to_dict()))] if reader.loading is not None else []),
        ("fitted on", f"{facts.pairs} pairs of {facts.prompts} prompts, {facts.estimator}"),
        ("held out", facts.held_out or "not recorded"),
        *direction.verdict.lines,
        *([("other sources", f"{facts.transfer_accuracy:.3f} of the pairs of a source left out of the fit")]
          if facts.transfer_accuracy is not None else []),
        ("effect", "not recorded" if facts.effect is None else f"{facts.effect:+.2f} deviations, held out"),
        ("calibration", direction.calibration.label()),
    ]  # fmt: skip
    # A fact is somebody's text: one of several lines could pass for other facts.
    return "\n".join(f"{name:>12}  {' '.join(str(value).split())}" for name, value in rows)
