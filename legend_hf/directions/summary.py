"""A direction in a few lines, for people.

In: a direction. Out: what reads, what it was fitted on, and what held-out pairs said of it. This file knows no card.
"""

from __future__ import annotations

from legend_hf.directions.direction import Direction


def summary(direction: Direction) -> str:
    """What a direction is and what is known of its fit, a line each."""
    facts, reader = direction.facts, direction.reader

    def share(value: float | None, interval: tuple[float, float] | None) -> str:
        if value is None:
            return "not recorded"
        return f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")

    rows = [
        ("model", reader.name),
        ("reads", f"{reader.template!r} template, {reader.pooling} pooling, layer {reader.layer} of {reader.n_layers}, "
                  f"up to {reader.max_length} tokens, {reader.dtype}"),
        ("fitted on", f"{facts.pairs} pairs of {facts.prompts} prompts, {facts.estimator}"),
        ("held out", facts.held_out or "not recorded"),
        ("accuracy", share(facts.accuracy, facts.accuracy_interval)),
        ("length alone", share(facts.length_accuracy, facts.length_accuracy_interval)
                         + (f", the {facts.length_rule} one" if facts.length_rule else "")),
        ("effect", "not recorded" if facts.effect is None else f"{facts.effect:+.2f} deviations, held out"),
        ("calibration", direction.calibration.label()),
    ]  # fmt: skip
    return "\n".join(f"{name:>12}  {value}" for name, value in rows)
