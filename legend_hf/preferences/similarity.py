"""How alike are the two responses of a pair? A cosine of response-only embeddings, as a `datasets.map` transform.

In: batches of preference rows, in any accepted shape. Out: the column `pair_similarity`, float32, from -1 to 1, never
null. An `Embedder` says how a response alone becomes an embedding; `pairs` reads N responses with it too. This file
knows no margins and no scores, and never reads a prompt.

From the source (REAL, arXiv 2409.17169): the prompt is not in the encoder's input; an embedding is the mean over the
response's tokens of the last hidden layer of the language model that is to be aligned; similarity is the cosine;
responses lose what is beyond 512 tokens (its dialogue data) or 128 (its forum data). Ours: everything around it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import numpy as np

from legend_hf.directions.direction import Direction
from legend_hf.margins import scoring
from legend_hf.margins.columns import SIMILARITY, SIMILARITY_STATUS
from legend_hf.margins.transform import Transform
from legend_hf.reading import templates
from legend_hf.reading.formats import Columns, Conversation, RowError, pairs_from_batch
from legend_hf.reading.identity import model_folder
from legend_hf.reading.loading import Loading
from legend_hf.reading.plain import make_plain
from legend_hf.reading.pretrained import DeviceMap
from legend_hf.reading.reader import (
    OpenReader,
    Reader,
    Runtime,
    deciding,
    describe_model,
    open_reader,
    resolve_device,
    with_layer,
)
from legend_hf.reading.rows import Row, of_pairs
from legend_hf.reading.stopping import settle_in_worker
from legend_hf.reading.templates import TextError, Tokens

# A change that alters numbers raises this; it is part of the pickled state, by which `map` finds cached results.
SIMILARITY_VERSION = 1
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
        device_map: In place of `device`, for a model larger than one, see `Runtime`.
    """

    reader: Reader
    max_length: int
    path: str | None = None
    device: str | None = None
    batch_tokens: int | None = None
    trust_remote_code: bool = False
    device_map: DeviceMap | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        """Makes numbers and paths what pickles and hashes alike."""
        make_plain(self)

    @property
    def spread(self) -> bool:
        """Whether the model lies on several devices."""
        return self.device_map is not None

    names = ("",)

    def __repr__(self) -> str:
        """The model and its layer, in a line."""
        return f"{self.reader.name_in_short}, layer {self.reader.layer} of {self.reader.n_layers}"

    how_to_go_on = "nothing was kept, for similarities have no store: the next run reads all rows again"

    def open(self, rank: int | None = None, *, look: bool = False) -> OpenEmbedder:
        """Opens the reader, whose model is loaded, once per process, when the first text is read.

        Args:
            rank: Of the worker; GPUs go round.
            look: As for a `Scorer`; there is no store.
        """
        settle_in_worker()
        device = None if self.spread else resolve_device(self.device, rank)
        where = (self.path, device, self.batch_tokens, self.trust_remote_code)
        runtime = Runtime(*where, device_map=self.device_map)
        return OpenEmbedder(self, open_reader(self.reader, runtime, load=False))

    def not_finite(self, name: str = "") -> str:
        """What is wrong with a text whose embedding is NaN or infinite."""
        return self.reader.not_finite

    def deciding(self) -> list[Any]:
        """All that decides an embedding, and nothing that only says where to compute it."""
        return [*_versions(), *deciding(self.reader, self.path), self.max_length]

    def state(self) -> tuple[dict[str, Any], tuple[bytes, ...]]:
        """Plain values, and no vector."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "device_map" or self.spread}
        return {"similarity_version": _versions(), "embedder": {**values, "reader": self.reader.to_dict()}}, ()

    @classmethod
    def from_state(cls, values: Mapping[str, Any], vectors: Sequence[bytes]) -> Embedder:
        """The Embedder that `state` describes.

        Raises:
            ValueError: It was written by a version that measures similarity differently.
        """
        if values["similarity_version"] != _versions():
            raise ValueError(
                f"this transform was pickled by a version of legend_hf that measures similarity differently (version "
                f"{values['similarity_version']}, this one has {_versions()}); make it anew"
            )
        return cls(**{**values["embedder"], "reader": Reader(**values["embedder"]["reader"])})


@dataclass(frozen=True, eq=False)
class OpenEmbedder:
    """An Embedder with its model in memory. Get one from `Embedder.open`."""

    embedder: Embedder
    opened: OpenReader

    def encode(self, conversations: Sequence[Conversation]) -> list[Tokens | TextError]:
        """Tokenises the responses, each alone, and cuts their ends; one that has no tokens comes back as an error.

        Args:
            conversations: Prompts, which are not looked at, with their responses.
        """
        tokenizer = self.opened.tokenizer
        texts = templates.tokenize(
            [_alone(conversation, tokenizer) for conversation in conversations],
            tokenizer,
            eos="none",
            pooling="mean",
            max_length=sys.maxsize,  # cut below, at the other end than for a margin
        )
        return [_cut(text, self.embedder.max_length) if isinstance(text, Tokens) else text for text in texts]

    def embed(self, texts: Sequence[Tokens]) -> np.ndarray:
        """Reads texts and means their hidden states: `[n, d_model]`, float32. A text that stands twice is read once.

        Args:
            texts: What `encode` gave.

        Returns:
            Not finite where the model's dtype could not hold the numbers.
        """
        reader = self.embedder.reader
        distinct = list(dict.fromkeys(texts))
        place = {text: i for i, text in enumerate(distinct)}
        vectors = np.empty((len(distinct), reader.d_model), dtype=np.float32)
        for index, hidden in self.opened.read(distinct, [reader.layer]):
            vectors[index] = hidden[:, 0].cpu().numpy()
        return vectors[[place[text] for text in texts]]

    def unread(self, texts: Sequence[Tokens]) -> list[tuple[OpenReader, list[int], list[Tokens]]]:
        """What `read` would read: the reader, its layer, and the distinct texts."""
        return [(self.opened, [self.embedder.reader.layer], list(dict.fromkeys(texts)))]

    def read(self, texts: Sequence[Tokens]) -> dict[str, np.ndarray]:
        """The embeddings, under the only name there is."""
        return {"": self.embed(texts)}


def embedder_of(
    model: str | os.PathLike[str] | Reader | Direction,
    *,
    revision: str | None = None,
    layer: int = -1,
    max_length: int = MAX_LENGTH,
    device: str | None = None,
    device_map: DeviceMap | None = None,
    batch_tokens: int | None = None,
    dtype: str = "auto",
    gguf_file: str | None = None,
    quantization_config: Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> Embedder:
    """Makes the Embedder of a model: how responses become embeddings, for `make_pairs`.

    Args:
        model: As in `PairSimilarityFn`.
        revision: Branch, tag or commit of a Hub model; resolved to a commit.
        layer: Index into `hidden_states` whose mean is the embedding; -1 is the last, after the final norm.
        max_length: Most tokens of a response that are read, special ones included; bounded by the model's window.
        device: Where to run; None takes a GPU when there is one.
        device_map: In place of `device`, for a model larger than one; as for `LegendMarginFn`.
        batch_tokens: Most tokens in one forward pass; None takes the device's default.
        dtype: `"auto"` (float32 on a CPU, bfloat16 on a GPU), `"float32"`, `"bfloat16"` or `"float16"`.
        gguf_file: Name of a GGUF file in `model` that is read; as for `fit_direction`.
        quantization_config: Quantise the weights as they are loaded; as for `fit_direction`.
        trust_remote_code: Run code that comes with the model.

    Raises:
        ValueError: An argument that is not allowed, or that contradicts `model`.
        OSError: The model or its tokenizer cannot be loaded.
    """
    loading = Loading.of(gguf_file, quantization_config)
    if max_length < 1:
        raise ValueError(f"`max_length` is {max_length}; it must be at least 1 token")
    path = None
    if isinstance(model, Reader | Direction):
        own: dict[str, tuple[Any, Any]] = {"revision": (revision, None), "dtype": (dtype, "auto")}
        own |= {"gguf_file": (gguf_file, None), "quantization_config": (quantization_config, None)}
        for name, (given, default) in own.items():
            if given != default:
                raise ValueError(
                    f"`{name}` is {given!r}, but `model` is a {type(model).__name__}, which says its own; leave out "
                    f"`{name}`, or give the model's id or folder"
                )
        path = model.model_path if isinstance(model, Direction) else None
        device_map = model.device_map if isinstance(model, Direction) and device_map is None else device_map
        reader = model.reader if isinstance(model, Direction) else model
        if reader.model is None and path is None:
            raise ValueError(
                f"`model` is a {type(model).__name__} of a model folder (sha256 {reader.model_sha256}) and does not "
                "say where it is; give the folder itself, or `Direction.from_pretrained(..., model=folder)`"
            )
    else:
        path = model_folder(model)
        reader = describe_model(
            model,
            revision=revision,
            template=_BARE,
            max_length=max_length,
            dtype=dtype,
            loading=loading,
            device=device,
            trust_remote_code=trust_remote_code,
        )
    # `max_length` of a Reader that is given stays as it is: so the model in memory is shared with its direction's.
    alone = replace(reader, template=_BARE, joiner="", fit_joiner=None, eos="none", pooling="mean")
    Runtime(device=device, batch_tokens=batch_tokens, device_map=device_map)  # checks them now, not in a worker
    return Embedder(
        reader=with_layer(alone, layer),
        max_length=min(max_length, reader.max_length),
        path=path,
        device=device,
        batch_tokens=batch_tokens,
        trust_remote_code=trust_remote_code,
        device_map=device_map,
    )


class PairSimilarityFn(Transform):
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
        device_map: In place of `device`, for a model larger than one; as for `LegendMarginFn`.
        batch_tokens: Most tokens in one forward pass; None takes the device's default.
        dtype: `"auto"` (float32 on a CPU, bfloat16 on a GPU), `"float32"`, `"bfloat16"` or `"float16"`.
        gguf_file: Name of a GGUF file in `model` that is read; as for `fit_direction`.
        quantization_config: Quantise the weights as they are loaded; as for `fit_direction`.
        overwrite: Replace columns of these names.
        prompt_column: Name of the prompts' column, where it is not `prompt`.
        chosen_column: Name of the chosen responses' column.
        rejected_column: Name of the rejected responses' column.
        trust_remote_code: Run code that comes with the model.

    Raises:
        ValueError: An argument that is not allowed, or that contradicts `model`.
        OSError: The model or its tokenizer cannot be loaded.
    """

    may_write: ClassVar = {SIMILARITY: "float32"}
    status = SIMILARITY_STATUS

    def __init__(
        self,
        model: str | os.PathLike[str] | Reader | Direction,
        *,
        revision: str | None = None,
        layer: int = -1,
        max_length: int = MAX_LENGTH,
        on_error: str = "raise",
        device: str | None = None,
        device_map: DeviceMap | None = None,
        batch_tokens: int | None = None,
        dtype: str = "auto",
        gguf_file: str | None = None,
        quantization_config: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        prompt_column: str = "prompt",
        chosen_column: str = "chosen",
        rejected_column: str = "rejected",
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__(
            Columns(prompt=prompt_column, chosen=chosen_column, rejected=rejected_column),
            on_error=on_error,
            overwrite=overwrite,
        )
        self._read_with(
            embedder_of(
                model,
                revision=revision,
                layer=layer,
                max_length=max_length,
                device=device,
                device_map=device_map,
                batch_tokens=batch_tokens,
                dtype=dtype,
                gguf_file=gguf_file,
                quantization_config=quantization_config,
                trust_remote_code=trust_remote_code,
            )
        )

    def _rows(self, batch: Any, first_row: int) -> list[Row | RowError]:
        return of_pairs(pairs_from_batch(batch, self._columns, first_row=first_row))

    def _make(self, name: str, numbers: Sequence[np.ndarray | None], batch: Any) -> dict[str, Any]:
        """See `Transform`; the numbers are the two responses' embeddings. A row without is 0.0."""
        read = np.array([pair is not None for pair in numbers], dtype=bool)
        similarity = np.zeros(len(numbers), dtype=np.float32)
        if read.any():
            similarity[read] = cosine(*np.stack([pair for pair in numbers if pair is not None], axis=1))
        return {SIMILARITY: similarity}


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
