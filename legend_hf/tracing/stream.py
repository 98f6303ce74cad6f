"""A text is read while it is written: the score of all that stands there so far, token by token.

In: an open reader, a prompt, a unit vector, and pieces of a response as text or as token ids. Out: the score so far,
that of reading the text so far anew. What was read stays in a cache of keys and values, so that a token costs one step
of the model and one dot product. Whether a model can be read so is tried. This file knows neither directions nor
columns, and no model that writes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from legend_hf.reading.formats import SKIP, Message, conversation
from legend_hf.reading.forward import device_of, hidden_states, out_of_memory, own_attention, rope_limit
from legend_hf.reading.probe import TOLERANCE, TOLERANCE_HALF
from legend_hf.reading.reader import OpenReader
from legend_hf.reading.state import reading
from legend_hf.reading.templates import TextError, Tokens
from legend_hf.tracing.trace import states_at

if TYPE_CHECKING:
    import torch

_TRIAL = 24  # tokens that a model is tried on


class Stream:
    """Reads one response as it is written. Get one from `Direction.stream`.

    A stream is fed text or tokens, not both. Fed with text it tokenises all of it anew, since what follows may change
    the tokens at the end, and reads only what changed: the score is that of `Direction.score` for the text so far. Fed
    with tokens it takes them as they are.

    Args:
        opened: The reader, with its model.
        prompt: A string or messages; None for a response alone.
        vector: `[d_model]`, of length one.

    Raises:
        ValueError: The prompt cannot be read, or the model cannot be read on from where it was.
    """

    def __init__(self, opened: OpenReader, prompt: str | list[Message] | None, vector: np.ndarray) -> None:
        fault = stream_fault(opened)
        if fault:
            raise ValueError(
                f"{type(opened.model).__name__} cannot be read on from where it was ({fault}); use `trace` for a text "
                "that is there as a whole"
            )
        self._opened, self._prompt = opened, prompt
        self._reading = _Reading(opened, vector)
        frame = self._encoded("a")
        first = frame.said[0]
        # A space before a word is most often part of the word's token: a model that writes begins before it.
        while opened.reader.joiner.endswith(" ") and first > 1 and self._is_space(frame.ids[first - 1]):
            first -= 1
        self._before, self._after = frame.ids[:first], frame.ids[frame.said[-1] + 1 :]
        self._ends = frame.last - frame.said[-1]  # how far behind the response the token lies that ends the text
        self._text = ""
        self._tokens: list[int] = []
        self._given = 0  # tokens, those included that end a turn
        self._score = float("nan")
        self._special = frozenset(opened.tokenizer.all_special_ids)

    @property
    def ids(self) -> tuple[int, ...]:
        """The prompt's token ids, up to where the response begins: what a model that writes goes on from."""
        return self._before

    @property
    def score(self) -> float:
        """The score so far; NaN before there is a token."""
        return self._score

    def feed(self, piece: str | int | Sequence[int]) -> float:
        """Takes the next piece of the response.

        Args:
            piece: Text, or token ids. Ids of special tokens, such as that which ends a turn, are no part of a response
                and are passed over.

        Returns:
            The score so far, in hidden-state units; NaN while there is nothing but space.

        Raises:
            ValueError: The stream is fed with the other kind, the text has become too long or cannot be read, or has no
                finite score. What was fed before stays.
        """
        if isinstance(piece, str):
            if self._given:
                raise ValueError("this stream was fed with tokens before; open another for text")
            whole = self._text + piece
            if whole.strip():
                self._score = self._scored(self._encoded(whole))
            self._text = whole
            return self._score
        if self._text:
            raise ValueError("this stream was fed with text before; open another for tokens")
        given = [piece] if isinstance(piece, int) else [int(i) for i in piece]
        tokens = self._tokens + [i for i in given if i not in self._special]
        if len(tokens) > len(self._tokens):
            self._score = self._scored(self._framed(tokens))
        self._tokens, self._given = tokens, self._given + len(given)
        return self._score

    def stop_below(self, score: float, *, after: int = 1) -> Callable[..., torch.Tensor]:
        """A stopping criterion for `generate`: stops once the score so far is below a number.

        Such as `model.generate(torch.tensor([stream.ids]), stopping_criteria=[stream.stop_below(-5.0, after=8)])`, for
        one text at a time. The model that writes must have the reader's tokenizer; it is most often the same.

        Args:
            score: In hidden-state units.
            after: Tokens that must be there before the first time.
        """
        import torch

        def stop(input_ids: torch.Tensor, scores: Any = None, **_: Any) -> torch.Tensor:
            begun = len(self.ids)
            if input_ids.shape[0] != 1 or tuple(input_ids[0, :begun].tolist()) != self.ids:
                raise ValueError(
                    "this stream follows one text that begins with its own prompt; give `generate` the tokens "
                    "`torch.tensor([stream.ids])`"
                )
            self.feed(input_ids[0, begun + self._given :].tolist())
            return torch.tensor([len(self._tokens) >= after and self._score < score], device=input_ids.device)

        return stop

    def _encoded(self, said: str) -> Tokens:
        (text,) = self._opened.encode([conversation(self._prompt, said)])
        if isinstance(text, TextError):
            raise ValueError(str(text).removesuffix(SKIP))
        return text

    def _framed(self, tokens: Sequence[int]) -> Tokens:
        """Tokens with what stands around them."""
        ids = (*self._before, *tokens, *self._after)
        most = self._opened.reader.max_length
        if len(ids) > most:
            raise ValueError(f"the text has become longer than `max_length` ({most} tokens); give a shorter prompt")
        stop = len(self._before) + len(tokens)
        # A lone space behind the template's own, which ends in one, is no part of the response.
        lone = self._opened.reader.joiner.endswith(" ") and len(tokens) > 1 and self._is_space(tokens[0])
        said = tuple(range(len(self._before) + lone, stop))
        end = stop - 1 + self._ends
        if self._opened.reader.pooling == "mean_all":
            return Tokens(ids, tuple(range(len(ids))), end, said)
        return Tokens(ids, said, end)

    def _is_space(self, token: int) -> bool:
        return self._opened.tokenizer.decode([token]) == " "

    def _scored(self, text: Tokens) -> float:
        pooled = [text.last] if self._opened.reader.pooling == "last" else list(text.content)
        values = self._reading.values(text.ids[: pooled[-1] + 1])
        score = float(values[pooled].mean())
        if not np.isfinite(score):
            raise ValueError(self._opened.reader.not_finite.removesuffix(SKIP))
        return score


class _Reading:
    """The tokens that a model has read, and what it made of them."""

    def __init__(self, opened: OpenReader, vector: np.ndarray | None) -> None:
        self._opened, self._vector = opened, vector
        self._start()

    def values(self, ids: Sequence[int]) -> np.ndarray:
        """Projection of each token `[t]`, float64; or the states `[t, d_model]`, where there is no vector.

        What begins as what was read before is not read again.
        """
        both = zip(ids, self._ids, strict=False)
        n = next((i for i, (a, b) in enumerate(both) if a != b), min(len(ids), len(self._ids)))
        if n < len(self._ids):
            self._back_to(n)
        new = list(ids[len(self._ids) :])
        limit = rope_limit(self._opened.model)
        if limit is not None and len(ids) > limit:
            raise ValueError(
                f"the text has become longer than {limit} tokens, where this model's positions depend on how long the "
                "text is; use `score` for the text as a whole"
            )
        if new:
            self._read(new)
        return self._values[: len(ids)]

    def _start(self) -> None:
        from transformers import DynamicCache

        self._ids: list[int] = []
        self._values = np.empty(0) if self._vector is not None else np.empty((0, self._opened.reader.d_model))
        self._cache = DynamicCache(config=self._opened.model.config)

    def _back_to(self, n: int) -> None:
        """Forgets all but the first tokens; a cache that cannot begins anew."""
        try:
            self._cache.crop(n)
        except Exception:  # of a window that has moved on, each kind says so in its own way
            self._start()
            return
        if self._cache.get_seq_length() != n:
            self._start()
            return
        self._ids, self._values = self._ids[:n], self._values[:n]

    def _read(self, new: list[int]) -> None:
        import torch

        model, layer, route = self._opened.model, self._opened.reader.layer, self._opened.route
        inputs = {
            "input_ids": torch.tensor([new], device=device_of(model)),
            "past_key_values": self._cache,
            "use_cache": True,
        }
        found: list[np.ndarray] = []

        def take(_: int, states: torch.Tensor) -> None:
            wide = states[0].double()
            if self._vector is not None:
                wide = wide @ torch.from_numpy(self._vector.astype(np.float64)).to(wide.device)
            found.append(wide.cpu().numpy())

        try:
            with reading(model):
                own_attention(model)
                hidden_states(model, inputs, [layer], take, sites=route.sites, onednn=route.onednn)
        except BaseException:
            self._start()  # what the cache holds now, nobody knows
            raise
        self._ids += new
        self._values = np.concatenate([self._values, found[0]])


_FAULTS: WeakKeyDictionary[Any, dict[int, str]] = WeakKeyDictionary()


def stream_fault(opened: OpenReader) -> str:
    """Why a model cannot be read on from where it was; empty where it can. Tried once for each layer of a model.

    Random tokens are read in pieces, one of which is taken back, and compared with one reading of all.

    Args:
        opened: The reader, with its model.
    """
    model, layer = opened.model, opened.reader.layer
    known = _FAULTS.setdefault(model, {})
    if layer not in known:
        known[layer] = _tried(opened)
    return known[layer]


def _tried(opened: OpenReader) -> str:
    from legend_hf.reading.probe import random_tokens

    limit = min(_TRIAL, opened.reader.max_length, rope_limit(opened.model) or _TRIAL)
    ids = random_tokens(opened.model, limit)
    whole = states_at(opened, ids, range(len(ids))).double().cpu().numpy()
    read = _Reading(opened, None)
    try:
        for n in (len(ids) // 3, len(ids) // 2, *range(len(ids) // 3 + 1, len(ids) + 1)):
            read.values(ids[:n])
        pieces = read.values(ids)
    except Exception as error:  # a model's own code can fail in any way on what it does not know
        if out_of_memory(error):
            raise
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    off = float(np.sqrt(np.square(pieces - whole).mean()) / (whole.std(0).mean() + 1e-30))
    if not off <= (TOLERANCE if opened.reader.dtype == "float32" else TOLERANCE_HALF):
        return f"in pieces its states are others, by {off:.0e} of their spread"
    return ""
