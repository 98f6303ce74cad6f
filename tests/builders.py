"""What many tests need: mild pairs about things, whose chosen side answers and whose rejected one does not; an end."""

from __future__ import annotations

from collections.abc import Iterable

from legend_hf.margins import store

SIX = ("bread", "bikes", "paint", "tents", "maps", "soup")


def pair_rows(things: Iterable[str] = SIX, *, how: str = "with care", after_prompt: str = "") -> list[dict[str, str]]:
    """A pair of `prompt`, `chosen` and `rejected` for each thing.

    Args:
        things: What is asked about.
        how: What the chosen side says of it.
        after_prompt: Behind the prompt, such as a space.
    """
    return [
        {
            "prompt": f"Tell me about {thing}.{after_prompt}",
            "chosen": f"Gladly: {thing} {how}.",
            "rejected": f"No idea, who needs {thing}",
        }
        for thing in things
    ]


def close_stores() -> None:
    """Closes the files of all stores of this process; the next use opens them anew."""
    for opened in list(store._OPEN.values()):
        opened.close()
