"""Columns are judged; none is made or changed.

`report` says how good the margins of a dataset are, and how far a direction can be trusted: JSON, Markdown, pictures.
`ladder_check` asks whether a direction orders graded responses as their author did.
`gallery` shows rows with what a direction reads in each token, so that a person can judge their labels.
`stability_of` asks how much a direction depends on the pairs that it was fitted on.
`compare` trains the same reward model with a column and without, and says whether the column helps.
`check_for_trl` says what TRL's `RewardTrainer` would do with a dataset, before it does it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from legend_hf._lazy import hand_on

if TYPE_CHECKING:
    from legend_hf.reports.compare import compare as compare
    from legend_hf.reports.gallery import gallery as gallery
    from legend_hf.reports.ladder import ladder_check as ladder_check
    from legend_hf.reports.report import report as report
    from legend_hf.reports.stability import stability_of as stability_of
    from legend_hf.reports.trl_check import check_for_trl as check_for_trl

__all__ = hand_on(
    __name__,
    {
        "check_for_trl": "trl_check",
        "compare": "compare",
        "gallery": "gallery",
        "ladder_check": "ladder",
        "report": "report",
        "stability_of": "stability",
    },
)
