"""Questions become contrastive pairs, the paper's way: a fixed refusal against a harmful answer.

In: rows with a question and a harmful answer, which the user brings. Out: rows with `prompt`, `chosen` and `rejected`.
This file knows no model: it generates nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# The refusal of the public code, with its typographic apostrophe (U+2019): another character is another token.
REFERENCE_REFUSAL = "I can’t answer that."


def pairs_with_refusal(
    rows: Iterable[Mapping[str, Any]],
    *,
    refusal: str = REFERENCE_REFUSAL,
    prompt_column: str = "prompt",
    harmful_column: str = "harmful",
) -> list[dict[str, Any]]:
    """Puts one refusal against each harmful answer (paper, standard margin vector; public code, SMV step).

    Args:
        rows: Rows that have a question and a harmful answer to it.
        refusal: The harmless side of every pair.
        prompt_column: Where the question stands.
        harmful_column: Where the harmful answer stands.

    Returns:
        Rows for `fit_direction`: `chosen` is the refusal, `rejected` the harmful answer.

    Raises:
        KeyError: A row lacks one of the two columns.
    """
    return [{"prompt": row[prompt_column], "chosen": refusal, "rejected": row[harmful_column]} for row in rows]
