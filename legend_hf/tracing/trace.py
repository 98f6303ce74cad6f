"""What a vector reads in a text, token by token, and the score of each beginning of it.

In: an open reader, conversations, a unit vector, and what the page shall call neutral. Out: a `Trace` for each text,
from one reading. For a model that looks only back, that reading holds the score of every beginning: of the pooling
`last` the token's own projection, of `mean` the running mean. Whether the model does look only back is tried on the
text. This file knows neither directions nor columns, and `page` draws.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from legend_hf.reading.formats import SKIP, Conversation
from legend_hf.reading.forward import read_vectors
from legend_hf.reading.probe import TOLERANCE, TOLERANCE_HALF
from legend_hf.reading.reader import OpenReader
from legend_hf.reading.templates import TextError, Tokens
from legend_hf.tracing import page
from legend_hf.tracing.values import Neutral, PairValues, TokenValues, running

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class Trace(TokenValues):
    """What a direction reads in one response, token by token; attributes are those of `TokenValues`."""

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Writes the page: one HTML file that needs no network and no JavaScript.

        Args:
            path: The file; an earlier page there is replaced.
            overwrite: Replace whatever is there.

        Raises:
            ValueError: Something else is there.
            OSError: It cannot be written.
        """
        page.save([self], path, overwrite=overwrite)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return page.shown([self])


@dataclass(frozen=True, eq=False)
class TracePair(PairValues):
    """Two responses to one prompt, on one scale; attributes are those of `PairValues`."""

    chosen: Trace
    rejected: Trace

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Writes the page, as `Trace.save`."""
        page.save([self], path, overwrite=overwrite)

    def _repr_html_(self) -> str:
        return page.shown([self])


def trace_texts(
    opened: OpenReader, conversations: Sequence[Conversation], vector: np.ndarray, neutral: Neutral
) -> list[Trace]:
    """Reads texts once and says what a vector reads in each token.

    Args:
        opened: The reader, with its model.
        conversations: Prompts with their responses.
        vector: `[d_model]`, of length one.
        neutral: What the values are measured against.

    Raises:
        ValueError: A text cannot be read, or is not finite.
    """
    import torch

    texts: list[Tokens] = []
    for text in opened.encode(conversations):
        if isinstance(text, TextError):
            raise ValueError(str(text).removesuffix(SKIP))
        texts.append(text)
    reader = opened.reader
    line = torch.from_numpy(vector.astype(np.float64))
    found: dict[int, tuple[float, np.ndarray]] = {}
    for index, vectors, values in opened.read_tokens(texts, {reader.layer: line[None]}):
        whole = (vectors[:, 0].double() @ line.to(vectors.device)).tolist()
        for i, score, one in zip(index, whole, values[reader.layer], strict=True):
            found[i] = score, one[:, 0]
    made = []
    for i, (conversation, text) in enumerate(zip(conversations, texts, strict=True)):
        score, seen = found[i]
        if not (np.isfinite(seen).all() and np.isfinite(score)):
            raise ValueError(reader.not_finite.removesuffix(SKIP))
        made.append(_trace(opened, conversation, text, seen, score, neutral))
    return made


def _trace(
    opened: OpenReader, conversation: Conversation, text: Tokens, seen: np.ndarray, score: float, neutral: Neutral
) -> Trace:
    """One text's trace, of the projections of all positions that were looked at."""
    reader = opened.reader
    whole, places = opened.places(conversation)
    start, stop = min(a for a, _ in places), max(b for _, b in places)
    own = np.searchsorted(opened.seen(text), text.said)
    ids = tuple(text.ids[i] for i in text.said)
    why = prefix_fault(opened, text)
    return Trace(
        prompt=_said_before(conversation),
        text=whole[start:stop],
        tokens=tuple(opened.tokenizer.decode([i]) for i in ids),
        places=tuple((a - start, b - start) for a, b in places),
        ids=ids,
        values=seen[own],
        scores=None if why else running(seen, reader.pooling)[own],
        why_no_scores=why,
        score=score,
        neutral=neutral,
        pooling=reader.pooling,
        of=f"{reader.model or reader.model_type}, layer {reader.layer} of {reader.n_layers}",
    )


def _said_before(conversation: Conversation) -> str:
    """A prompt for a person to read: one message as it is, several with their roles."""
    messages = [(m["role"], str(m.get("content") or "")) for m in conversation.prompt]
    if [role for role, _ in messages] == ["user"]:
        return messages[0][1]
    return "\n\n".join(f"{role}: {content}" for role, content in messages)


_TRIED: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
"""Each model whose beginnings were read alike alone, and the longest text on which that was seen."""


def prefix_fault(opened: OpenReader, text: Tokens) -> str:
    """Why the beginnings of a text do not have the scores that one reading gives; empty where they do.

    Tried, not looked up: two beginnings of the text are read alone, that with one token of the response and that with
    half of them. A model that looks ahead gives other states there, and so does one whose positions depend on how long
    the text is. A model that has been seen to read a text alike is believed for those that are no longer.

    Args:
        opened: The reader, with its model.
        text: The text.
    """
    if opened.seen(text)[-1] != text.said[-1]:
        return (
            f'this reader pools the token that ends a text (`eos="{opened.reader.eos}"`), which its beginnings have '
            "not; a stream reads it after each"
        )
    model = opened.model
    if len(text.ids) <= _TRIED.get(model, 0):
        return ""
    places = sorted({text.said[0], text.said[len(text.said) // 2]})
    places = [place for place in places if place + 1 < len(text.ids)]
    within = states_at(opened, text.ids, text.said)
    spread = within.std(0).mean() if len(within) > 1 else within.abs().mean()
    own = {place: i for i, place in enumerate(text.said)}
    for place in places:
        (alone,) = states_at(opened, text.ids[: place + 1], (place,))
        off = float((alone - within[own[place]]).square().mean().sqrt() / (spread + 1e-30))
        if not off <= (TOLERANCE if opened.reader.dtype == "float32" else TOLERANCE_HALF):
            return (
                f"{type(model).__name__} gives a beginning other states when it is read alone (by {off:.0e} of their "
                "spread), so their scores are not known from one reading"
            )
    if places:
        _TRIED[model] = len(text.ids)
    return ""


def states_at(opened: OpenReader, ids: Sequence[int], places: Iterable[int]) -> torch.Tensor:
    """The states at some places of one text, read alone `[places, d_model]`, float32."""
    seen: list[torch.Tensor] = []
    layer = opened.reader.layer
    for _ in read_vectors(
        opened.model,
        [ids],
        [tuple(places)],
        [layer],
        route=opened.route,
        watch=lambda _, states, __: seen.append(states),
    ):
        pass
    return seen[-1]
