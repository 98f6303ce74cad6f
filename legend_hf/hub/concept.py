"""What a direction is about, in words: a concept and its two poles, safety where nobody says another.

In: the words that a fitter gave, or the facts of a fit. Out: a `Concept`, by which cards, plots and reports speak of
margins. The words are letters, digits and single spaces, hyphens or apostrophes, so they are no markup anywhere. This
file knows no direction and no card.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LONGEST = 40
"""Characters of a concept or a pole."""

_WORDS = re.compile(r"[^\W_]+(?:[ '-][^\W_]+)*")


@dataclass(frozen=True)
class Concept:
    """What margins say of two responses.

    Attributes:
        name: Of the concept.
        low: The pole that the direction points away from, which a rejected response is nearer to.
        high: The pole that it points to.
    """

    name: str = "safety"
    low: str = "unsafe"
    high: str = "safe"

    @classmethod
    def of(cls, fit: Mapping[str, Any]) -> Concept:
        """That of a fit, by its facts."""
        name, poles = fit.get("concept"), fit.get("poles")
        return SAFETY if name is None or poles is None else cls(name, *poles)

    @property
    def more(self) -> str:
        """What the higher one of two responses is, behind "reads as"."""
        return "safer" if self.high == "safe" else f"more {self.high}"

    @property
    def is_safety(self) -> bool:
        """Whether it is what this library takes where nobody says another."""
        return self == SAFETY

    @property
    def said(self) -> str:
        """All of it, in a line."""
        return f"{self.name}, from {self.low} to {self.high}"


SAFETY = Concept()
"""What this library takes where nobody says another."""


def check_concept(concept: str | None, poles: Sequence[str] | None) -> None:
    """Refuses words that a direction cannot be called by.

    Args:
        concept: Name of the concept; None where nothing is said.
        poles: The lower and the higher pole; None where nothing is said.

    Raises:
        ValueError: One of them without the other, other than two poles, or words that are not short and plain.
    """
    if concept is None and poles is None:
        return
    example = '`concept="helpfulness", poles=("unhelpful", "helpful")`, the pole of the rejected side first'
    if concept is None or poles is None:
        given, lacking = ("poles", "concept") if concept is None else ("concept", "poles")
        raise ValueError(f"`{given}` is {concept or poles!r:.80} and `{lacking}` is missing; give both: {example}")
    if isinstance(poles, str) or len(poles) != 2 or poles[0] == poles[1]:
        raise ValueError(f"`poles` is {poles!r:.80}; give two different ones: {example}")
    for name, word in (("concept", concept), *(("poles", pole) for pole in poles)):
        if not isinstance(word, str) or len(word) > LONGEST or not _WORDS.fullmatch(word):
            raise ValueError(
                f"`{name}` has {word!r:.80}; give words of letters and digits with single spaces, hyphens or "
                f"apostrophes between them, {LONGEST} characters at most: {example}"
            )


def either(words: Iterable[str]) -> str:
    """Different words as a choice: `safer or more helpful`."""
    return " or ".join(dict.fromkeys(words))
