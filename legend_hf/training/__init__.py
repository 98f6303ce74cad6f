"""Margins are trained with, where TRL's own trainers have no use for them; needs TRL (`pip install 'legend-hf[trl]'`).

`SoftRewardTrainer` and `SoftDPOTrainer` are TRL's trainers with a number for each pair in their loss: `margin_prob` as
a soft label, or `weight`. For a margin that is subtracted TRL's `RewardTrainer` needs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from legend_hf._lazy import hand_on

if TYPE_CHECKING:
    from legend_hf.training.dpo import SoftDPOTrainer as SoftDPOTrainer
    from legend_hf.training.reward import SoftRewardTrainer as SoftRewardTrainer

__all__ = hand_on(__name__, {"SoftDPOTrainer": "dpo", "SoftRewardTrainer": "reward"})
