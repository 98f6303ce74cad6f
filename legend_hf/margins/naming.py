"""What a text is called before it is tokenised, so that one whose scores are known need not be.

In: a conversation, and a digest of all that decides which tokens it becomes. Out: its name, 32 bytes. Tokens stay the
key of a score: a name only leads to them, and one that is not known, as after an update of a library, costs the
tokenising alone. So a name may say too much, and never too little. This file knows neither stores nor directions.
"""

from __future__ import annotations

import hashlib
import json
import locale
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from legend_hf._version import __version__
from legend_hf.reading import formats, reader, templates
from legend_hf.reading.formats import Conversation
from legend_hf.reading.plain import digest_of
from legend_hf.reading.reader import OpenReader, deciding, with_layer
from legend_hf.reading.templates import Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class Text:
    """One text for a reader; equal to another with the same tokens, or where those are not known, of the same name.

    Attributes:
        tokens: What the reader reads; None where all its scores are known.
        scores: Those, in the order of the reader's directions; else empty.
        name: What it was called before it was tokenised, where it has a name.
    """

    tokens: Tokens | None
    scores: tuple[float, ...] = ()
    name: bytes | None = None

    @property
    def _key(self) -> Any:
        return self.name if self.tokens is None else self.tokens

    def __eq__(self, other: object) -> bool:
        """By tokens or name."""
        return isinstance(other, Text) and self._key == other._key

    def __hash__(self) -> int:
        """Of tokens or name."""
        return hash(self._key)

    @property
    def ids(self) -> Sequence[int]:
        """Token ids that are still to be read."""
        return () if self.tokens is None else self.tokens.ids


def naming_of(opened: OpenReader, path: str | None) -> bytes:
    """A digest of what decides which tokens a text becomes, and that they are this reader's.

    Args:
        opened: The reader; its layer is no part of it.
        path: Folder that its model is loaded from, if any.
    """
    days = locale.setlocale(locale.LC_TIME)  # a chat template may ask for the name of a month
    return bytes.fromhex(
        digest_of([_of_code(), days, _of_tokenizer(opened.tokenizer), *deciding(with_layer(opened.reader, -1), path)])
    )


@cache
def _of_code() -> list[str]:
    """The programs that write a text and cut it into tokens: versions of the libraries, and our own as it is."""
    import jinja2
    import tokenizers
    import transformers

    own = []
    for module in (formats, templates, reader):
        try:
            own.append(hashlib.sha256(Path(str(module.__file__)).read_bytes()).hexdigest())
        except OSError:  # installed without its source
            own.append(__version__)
    return [transformers.__version__, tokenizers.__version__, jinja2.__version__, *own]


@lru_cache(maxsize=32)  # it keeps the tokenizers alive
def _of_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of all that a tokenizer is, as it is written down: more than decides tokens."""
    written = json.loads(tokenizer.backend_tokenizer.to_str())
    written |= {"truncation": None, "padding": None}  # which each call sets
    names = ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "split_special_tokens")
    facts = {
        "kind": f"{type(tokenizer).__module__}.{type(tokenizer).__qualname__}",
        "written": written,
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "template": tokenizer.chat_template,
        **{name: getattr(tokenizer, name, None) for name in names},
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def name_of(conversation: Conversation, by: bytes) -> bytes | None:
    """The name of a text; None for one that is not plain.

    Args:
        conversation: The text.
        by: Digest of what decides its tokens.
    """
    if not conversation.plain:
        return None
    said = list(conversation.text or ())
    for message in (*conversation.prompt, *conversation.response):
        said += message["role"], message["content"]
    parts = [part.encode("utf-8", "surrogatepass") for part in said]
    # Each with its length: none runs into the next.
    sizes = (len(conversation.prompt), len(conversation.response), *map(len, parts))
    return hashlib.sha256(b"".join((by, struct.pack(f"<{len(sizes)}q", *sizes), *parts))).digest()
