"""How alike are the two responses of a pair? A cosine of response-only embeddings, as a `datasets.map` transform.

In: batches of preference rows, in any accepted shape. Out: the column `pair_similarity`, float32, from -1 to 1, never
null. An `Embedder` says how a response alone becomes an embedding; `pairs` reads N responses with it too. This file
knows no margins and no scores, and never reads a prompt.

From the source (REAL, arXiv 2409.17169): the prompt is not in the encoder's input; an embedding is the mean over the
response's tokens of the last hidden layer of the language model that is to be aligned; similarity is the cosine;
responses lose what is beyond 512 tokens (its dialogue data) or 128 (its forum data). Ours: everything around it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from legend_hf.directions.direction import Direction
from legend_hf.margins import scoring
from legend_hf.margins.columns import OK, after, check_free, check_rank, raise_first, written
from legend_hf.reading import templates
from legend_hf.reading.formats import Columns, Conversation, Pair, RowError, names_of, pairs_from_batch
from legend_hf.reading.plain import check_on_error, make_plain, plain
from legend_hf.reading.reader import Reader, Runtime, deciding, describe_model, open_reader, resolve_device, with_layer
from legend_hf.reading.stopping import settle_in_worker
from legend_hf.reading.templates import TextError, Tokens

if TYPE_CHECKING:
    from datasets import Dataset, Features

# A change that alters numbers raises this; it is part of the pickled state, by which `map` finds cached results.
SIMILARITY_VERSION = 1
COLUMN = "pair_similarity"
STATUS = "pair_similarity_status"
MAX_LENGTH = 512
"""Tokens of a response that are read, where the caller does not say: what REAL's code takes for dialogues."""

_BARE = "{prompt}"  # a template that adds nothing, given an empty prompt


@dataclass(frozen=True)
class Embedder:
    """How a response, without its prompt, becomes an embedding. Plain data; the model is loaded once per process.

    Attributes:
        reader: The model, the layer and the dtype.
        max_length: Most tokens of one text, special ones included; a longer response loses its end.
        path: Folder to load the model from, instead of the Hub.
        device: Where to run; None takes a GPU when there is one.
        batch_tokens: Most tokens in one forward pass; None takes the device's default.
        trust_remote_code: Run code that comes with the model.
    """

    reader: Reader
    max_length: int
    path: str | None = None
    device: str | None = None
    batch_tokens: int | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Makes numbers and paths what pickles and hashes alike."""
        make_plain(self)

    def encode(self, conversations: Sequence[Conversation], *, rank: int | None = None) -> list[Tokens | TextError]:
        """Tokenises the responses, each alone, and cuts their ends; one that has no tokens comes back as an error.

        Args:
            conversations: Prompts, which are not looked at, with their responses.
            rank: Of the worker.
        """
        opened = self._open(rank)
        texts = templates.tokenize(
            [_alone(conversation, opened.tokenizer) for conversation in conversations],
            opened.tokenizer,
            eos="none",
            pooling="mean",
            max_length=sys.maxsize,  # cut below, at the other end than for a margin
        )
        return [_cut(text, self.max_length) if isinstance(text, Tokens) else text for text in texts]

    def embed(self, texts: Sequence[Tokens], *, rank: int | None = None) -> np.ndarray:
        """Reads texts and means their hidden states: `[n, d_model]`, float32. A text that stands twice is read once.

        Args:
            texts: What `encode` gave.
            rank: Of the worker.

        Returns:
            Not finite where the model's dtype could not hold the numbers.
        """
        opened = self._open(rank)
        distinct = list(dict.fromkeys(texts))
        place = {text: i for i, text in enumerate(distinct)}
        vectors = np.empty((len(distinct), self.reader.d_model), dtype=np.float32)
        for index, hidden in opened.read(distinct, [self.reader.layer]):
            vectors[index] = hidden[:, 0].cpu().numpy()
        return vectors[[place[text] for text in texts]]

    def _open(self, rank: int | None) -> Any:
        settle_in_worker()
        device = resolve_device(self.device, rank)
        return open_reader(self.reader, Runtime(self.path, device, self.batch_tokens, self.trust_remote_code))


def embedder_of(
    model: str | os.PathLike[str] | Reader | Direction,
    *,
    revision: str | None = None,
    layer: int = -1,
    max_length: int = MAX_LENGTH,
    device: str | None = None,
    batch_tokens: int | None = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> Embedder:
    """Makes the Embedder of a model. Arguments are those of `PairSimilarityFn`.

    Raises:
        ValueError: An argument that is not allowed, or that contradicts `model`.
        OSError: The model or its tokenizer cannot be loaded.
    """
    if max_length < 1:
        raise ValueError(f"`max_length` is {max_length}; it must be at least 1 token")
    path = None
    if isinstance(model, Reader | Direction):
        for name, given, default in (("revision", revision, None), ("dtype", dtype, "auto")):
            if given != default:
                raise ValueError(
                    f"`{name}` is {given!r}, but `model` is a {type(model).__name__}, which says its own; leave out "
                    f"`{name}`, or give the model's id or folder"
                )
        path = model.model_path if isinstance(model, Direction) else None
        reader = model.reader if isinstance(model, Direction) else model
        if reader.model is None and path is None:
            raise ValueError(
                f"`model` is a {type(model).__name__} of a model folder (sha256 {reader.model_sha256}) and does not "
                "say where it is; give the folder itself, or `Direction.from_pretrained(..., model=folder)`"
            )
    else:
        path = os.fspath(model) if os.path.isdir(model) else None
        reader = describe_model(
            model,
            revision=revision,
            template=_BARE,
            max_length=max_length,
            dtype=dtype,
            device=device,
            trust_remote_code=trust_remote_code,
        )
    # `max_length` of a Reader that is given stays as it is: so the model in memory is shared with its direction's.
    alone = replace(reader, template=_BARE, joiner="", fit_joiner=None, eos="none", pooling="mean")
    Runtime(device=device, batch_tokens=batch_tokens)  # checks them now, not in a worker
    return Embedder(
        reader=with_layer(alone, layer),
        max_length=min(max_length, reader.max_length),
        path=path,
        device=device,
        batch_tokens=batch_tokens,
        trust_remote_code=trust_remote_code,
    )


class PairSimilarityFn:
    """Adds `pair_similarity` to a preference dataset: `annotate(ds, PairSimilarityFn("your/base-model"))`.

    The cosine of the two responses' embeddings, float32, in [-1, 1], never null: near 1 where the two say nearly the
    same, exactly 1 where they are the same (in the tokens that are read), 0 where the model gives one of two different
    texts a zero vector. An embedding is the mean over the response's own tokens of the last hidden layer; the model
    reads the tokenizer's BOS before them, but its state, the same for every text, is not in the mean. REAL takes the
    language model that is to be aligned. The prompt is not read: it only tells where a response begins. Of a response
    of several turns the assistant's are read, a blank line between them; what others say between them is not, nor are
    tool calls.

    A response longer than `max_length` loses its end, as the method has it (`LegendMarginFn` cuts the prompt instead,
    and refuses a response that does not fit).

    It is a `datasets.map` transform, `ds.map(fn, batched=True)`, for `Dataset`, `DatasetDict` and `IterableDataset`
    (pass `features=fn.features(ds.features)`); `annotate` checks every row first. Any
    `batch_size`, `num_proc` and `with_rank=True`. It is plain data and pickles to the same bytes before and after it
    was used.

    Args:
        model: Hub id or folder of a model that `AutoModel` loads; or a `Reader` or a `Direction`, whose model, revision
            and dtype are taken (not their layer, pooling or template), and beyond whose `max_length` nothing is read.
        revision: Branch, tag or commit of a Hub model; resolved to a commit.
        layer: Index into `hidden_states`; -1 is the last, after the final norm.
        max_length: Most tokens of a response that are read, special ones included; bounded by the model's window.
        on_error: `"raise"` at the first row that cannot be read, before its batch is read, or `"skip"` it: its
            similarity is then 0.0, and `pair_similarity_status` says why (`"ok"` for the other rows).
        device: Where to run; None takes a GPU when there is one.
        batch_tokens: Most tokens in one forward pass; None takes the device's default.
        dtype: `"auto"` (float32 on a CPU, bfloat16 on a GPU), `"float32"`, `"bfloat16"` or `"float16"`.
        overwrite: Replace columns of these names.
        prompt_column: Name of the prompts' column, where it is not `prompt`.
        chosen_column: Name of the chosen responses' column.
        rejected_column: Name of the rejected responses' column.
        trust_remote_code: Run code that comes with the model.

    Raises:
        ValueError: An argument that is not allowed, or that contradicts `model`.
        OSError: The model or its tokenizer cannot be loaded.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Reader | Direction,
        *,
        revision: str | None = None,
        layer: int = -1,
        max_length: int = MAX_LENGTH,
        on_error: str = "raise",
        device: str | None = None,
        batch_tokens: int | None = None,
        dtype: str = "auto",
        overwrite: bool = False,
        prompt_column: str = "prompt",
        chosen_column: str = "chosen",
        rejected_column: str = "rejected",
        trust_remote_code: bool = False,
    ) -> None:
        check_on_error(on_error)
        self._embedder = embedder_of(
            model,
            revision=revision,
            layer=layer,
            max_length=max_length,
            device=device,
            batch_tokens=batch_tokens,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
        )
        self._on_error = on_error
        self._overwrite = overwrite
        self._columns = Columns(prompt=prompt_column, chosen=chosen_column, rejected=rejected_column)

    @property
    def columns(self) -> list[str]:
        """Names of the columns this writes, in order."""
        return [COLUMN, *([STATUS] if self.skips else [])]

    @property
    def skips(self) -> bool:
        """Whether rows that cannot be read are skipped."""
        return self._on_error == "skip"

    @property
    def how_to_go_on(self) -> str:
        """What to do after a run was stopped."""
        return "nothing was kept, for similarities have no store: the next run reads all rows again"

    def features(self, features: Features | None) -> Features | None:
        """The features of a dataset after this transform, which streaming needs; None for None, as `LegendMarginFn`."""
        return after(features, self._types())

    def _types(self) -> Features:
        """The features of the new columns alone, in order."""
        from datasets import Features, Value

        return Features({name: Value("string" if name == STATUS else "float32") for name in self.columns})

    def __call__(self, batch: Any, rank: int | None = None) -> Any:
        """Embeds the responses of one batch; this is what `map` calls.

        Args:
            batch: Columns of one batch, in any format.
            rank: Of the worker, with `with_rank=True`.

        Returns:
            The new columns, `[n]` each; for a table or a frame, a copy of it with them.

        Raises:
            ValueError: Not called with `batched=True`, or a column would be overwritten.
            RowError: A row cannot be read (with `on_error="raise"`); no text of the batch has been read then.
        """
        check_rank(rank)
        self.check_free(names_of(batch))
        rows = self._encode(pairs_from_batch(batch, self._columns), rank)
        raise_first(row for row in rows if isinstance(row, RowError) and not self.skips)
        good = [i for i, row in enumerate(rows) if not isinstance(row, RowError)]
        vectors = self._embedder.embed([t for row in rows if not isinstance(row, RowError) for t in row], rank=rank)
        for i, finite in zip(good, np.isfinite(vectors).reshape(len(good), -1).all(axis=1), strict=True):
            if not finite:
                rows[i] = RowError(i, None, self._embedder.reader.not_finite)
        raise_first(row for row in rows if isinstance(row, RowError) and not self.skips)
        similarity = np.zeros(len(rows), dtype=np.float32)
        read = np.array([not isinstance(rows[i], RowError) for i in good], dtype=bool)
        similarity[np.array(good, dtype=int)[read]] = cosine(vectors[0::2][read], vectors[1::2][read])
        columns: dict[str, Any] = {COLUMN: similarity}
        if self.skips:
            columns[STATUS] = [row.status if isinstance(row, RowError) else OK for row in rows]
        return written(batch, columns, self._types())

    def check(self, batch: Mapping[str, Any] | Dataset, *, first_row: int = 0) -> RowError | None:
        """Finds the first row of a batch that cannot be read, without reading any.

        Args:
            batch: Columns of one batch.
            first_row: Number of its first row in the dataset, for the message.
        """
        rows = self._encode(pairs_from_batch(batch, self._columns, first_row=first_row), None, first_row=first_row)
        return next((row for row in rows if isinstance(row, RowError)), None)

    def check_free(self, there: Collection[str]) -> None:
        """Refuses to overwrite columns unless asked to.

        Raises:
            ValueError: A column exists and `overwrite` is False.
        """
        check_free(self.columns, there, overwrite=self._overwrite)

    def fingerprint(self) -> str:
        """Hash of all that decides the columns, and of nothing that only says where to compute them."""
        embedder = self._embedder
        decides = [
            *_versions(),
            *deciding(embedder.reader, embedder.path),
            embedder.max_length,
            self._on_error,
            asdict(self._columns),
        ]
        return hashlib.sha256(json.dumps(plain(decides), sort_keys=True).encode()).hexdigest()[:32]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles as one string, so that equal transforms give equal bytes. No model is in it: workers load theirs."""
        state = {
            "similarity_version": _versions(),
            "embedder": asdict(self._embedder),
            "on_error": self._on_error,
            "overwrite": self._overwrite,
            "columns": asdict(self._columns),
        }
        return _rebuild, (json.dumps(plain(state), sort_keys=True),)

    def _encode(
        self, pairs: Sequence[Pair | RowError], rank: int | None, *, first_row: int = 0
    ) -> list[tuple[Tokens, Tokens] | RowError]:
        """Tokenises both responses of every pair; a row that cannot be read is a `RowError`."""
        good = [(row, pair) for row, pair in enumerate(pairs) if isinstance(pair, Pair)]
        texts = self._embedder.encode([side for _, pair in good for side in (pair.chosen, pair.rejected)], rank=rank)
        result: list[Any] = list(pairs)
        for (row, pair), chosen, rejected in zip(good, texts[0::2], texts[1::2], strict=True):
            bad = [
                RowError(first_row + row, name, str(text))
                for name, text in zip(pair.columns, (chosen, rejected), strict=True)
                if isinstance(text, TextError)
            ]
            result[row] = bad[0] if bad else (chosen, rejected)
        return result


def cosine(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Cosine of each row of `one [n, d]` with the same row of `other [n, d]`: `[n]`, float64, in [-1, 1].

    Equal rows give exactly 1, zero rows too; otherwise a zero row, which points nowhere, gives 0. Swapping the two
    arguments changes no bit.
    """
    product = np.einsum("nd,nd->n", unit_rows(one), unit_rows(other))
    return np.where((one == other).all(axis=1), 1.0, np.clip(product, -1.0, 1.0))


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Rows of `vectors [n, d]` divided by their lengths: `[n, d]`, float64; a zero row stays zero."""
    wide = np.asarray(vectors, dtype=np.float64)
    # Divided by its largest entry first, so that no square over- or underflows.
    largest = np.abs(wide).max(axis=1, keepdims=True, initial=0.0)
    scaled = wide / np.where(largest == 0.0, 1.0, largest)
    lengths = np.linalg.norm(scaled, axis=1, keepdims=True)
    unit: np.ndarray = scaled / np.where(lengths == 0.0, 1.0, lengths)
    return unit


def _versions() -> list[int]:
    """What the numbers depend on beside the model: this file, and how texts are read."""
    return [SIMILARITY_VERSION, scoring.SCORING_VERSION]


def _rebuild(state: str) -> PairSimilarityFn:
    """Unpickles a transform, refusing one whose numbers this version would not reproduce."""
    read = json.loads(state)
    if read["similarity_version"] != _versions():
        raise ValueError(
            f"this transform was pickled by a version of legend_hf that measures similarity differently (version "
            f"{read['similarity_version']}, this one has {_versions()}); make it anew"
        )
    fn = PairSimilarityFn.__new__(PairSimilarityFn)
    fn._embedder = Embedder(**{**read["embedder"], "reader": Reader(**read["embedder"]["reader"])})
    fn._on_error = read["on_error"]
    fn._overwrite = read["overwrite"]
    fn._columns = Columns(**read["columns"])
    return fn


def _alone(conversation: Conversation, tokenizer: Any) -> templates.Rendered:
    """Writes a response without its prompt, and without the one space that dialogue strings have before it."""
    text = "\n\n".join(m["content"] for m in conversation.response if m["role"] == "assistant" and m.get("content"))
    bare = Conversation((), ({"role": "assistant", "content": text},), text=("", text))
    return templates.render(bare, tokenizer, template=_BARE, joiner="", date="")


def _cut(text: Tokens, max_length: int) -> Tokens | TextError:
    """Cuts a response's end; special tokens that the tokenizer puts after it (SEP) stay, as they do in its own cut."""
    if len(text.ids) <= max_length:
        return text
    after = text.ids[text.content[-1] + 1 :]
    room = max_length - len(after)
    content = tuple(place for place in text.content if place < room)
    if not content:
        return TextError(f"`max_length` is {max_length}, which leaves no room for a response; give more")
    return Tokens((*text.ids[:room], *after), content, content[-1])
