"""Raw projections become margins on a training scale.

In: raw margins, in hidden-state units. Out: a `Calibration`, and margins that a reward model's loss can use. A raw
projection can be tens of units, where `-logsigmoid(r_c - r_r - margin)` is a constant push for every pair. This file
knows neither texts nor models.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

KINDS = ("raw", "unit")
UNIT_QUANTILE = 0.95


@dataclass(frozen=True)
class Calibration:
    """How a raw margin becomes a margin.

    Attributes:
        kind: `"raw"` (the paper's number as it is) or `"unit"` (raw ÷ `scale`, clipped to [-1, 1]).
        scale: In hidden-state units; 1.0 for `"raw"`.
    """

    kind: str
    scale: float

    def __post_init__(self) -> None:
        """Refuses what cannot scale."""
        if self.kind not in KINDS:
            raise ValueError(f"`calibration` is {self.kind!r}; allowed are {', '.join(map(repr, KINDS))}")
        if not (np.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"the calibration's `scale` is {self.scale}; it must be a positive number")

    def apply(self, raw: np.ndarray) -> np.ndarray:
        """Scales raw margins `[n]` to margins `[n]`, float32; swapping a pair flips the sign exactly."""
        if self.kind == "raw":
            return raw.astype(np.float32)
        return np.clip(raw / self.scale, -1.0, 1.0).astype(np.float32)


RAW = Calibration("raw", 1.0)


def fit_unit(raw: np.ndarray) -> Calibration:
    """Scales so that the 95th percentile of |raw| becomes 1. There is no offset, or a swap would not flip the sign.

    The rule is ours: the paper uses the raw number, or bins whose edges it does not publish.

    Args:
        raw: Raw margins `[n]` of pairs that the direction was not fitted on.

    Raises:
        ValueError: All margins are zero.
    """
    scale = float(np.quantile(np.abs(raw), UNIT_QUANTILE)) if len(raw) else 0.0
    if scale == 0.0:
        raise ValueError(
            "the held-out raw margins are all zero, so nothing can be scaled; the pairs' two sides read alike: "
            'give pairs that differ, another layer, or `calibration="raw"`'
        )
    return Calibration("unit", scale)
