"""What a text is called before it is tokenised, so that one whose scores are known need not be.

In: a conversation, and a digest of all that decides which tokens it becomes. Out: its name, 32 bytes. Tokens stay the
key of a score: a name only leads to them, and one that is not known, as after an update of a library, costs the
tokenising alone. This file knows neither stores nor directions.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version

from legend_hf.reading.formats import Conversation
from legend_hf.reading.templates import Tokens

WRITERS = ("transformers", "tokenizers", "jinja2")
"""Packages that decide how a text is written and cut into tokens."""


@dataclass(frozen=True)
class Text:
    """One text for a reader.

    Attributes:
        tokens: What the reader reads; None where all its scores are known.
        scores: Those, in the order of the reader's directions; else empty.
        name: What it was called before it was tokenised, where it has a name.
    """

    tokens: Tokens | None
    scores: tuple[float, ...] = ()
    name: bytes | None = field(default=None, compare=False)

    @property
    def ids(self) -> Sequence[int]:
        """Token ids that are still to be read."""
        return () if self.tokens is None else self.tokens.ids


@cache
def writers() -> list[str]:
    """The versions of `WRITERS`."""
    return [f"{name} {version(name)}" for name in WRITERS]


def name_of(conversation: Conversation, by: bytes) -> bytes | None:
    """The name of a text; None for one that has more to it than what was said, such as tools.

    Args:
        conversation: The text.
        by: Digest of what decides its tokens.
    """
    if conversation.tools or conversation.chat_template_kwargs:
        return None
    said = list(conversation.text or ())
    for message in (*conversation.prompt, *conversation.response):
        role, content = message.get("role"), message.get("content")
        if len(message) != 2 or type(role) is not str or type(content) is not str:
            return None
        said += role, content
    parts = [part.encode("utf-8", "surrogatepass") for part in said]
    # Each with its length: none runs into the next.
    sizes = (len(conversation.prompt), len(conversation.response), *map(len, parts))
    return hashlib.sha256(b"".join((by, struct.pack(f"<{len(sizes)}q", *sizes), *parts))).digest()
