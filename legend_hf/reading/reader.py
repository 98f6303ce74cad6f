"""A `Reader` says how a (prompt, response) becomes one vector; an `OpenReader` does it with a loaded model.

In: conversations. Out: pooled hidden states `[b, layers, d_model]`, float32. A `Reader` is plain data and travels
inside the direction artifact, so fitting and scoring read alike. The model is loaded once per process and kept here,
never on an object that gets pickled. This file knows no directions, no margins and no columns.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from datetime import date as calendar_date
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from legend_hf.hub.nearby import saying_what_is_there
from legend_hf.reading import progress, templates
from legend_hf.reading.formats import SKIP, Conversation
from legend_hf.reading.forward import (
    WAYS,
    Route,
    Way,
    default_batch_tokens,
    device_of,
    out_of_memory,
    plan,
    read_vectors,
)
from legend_hf.reading.identity import (
    CONFIG,
    Identity,
    check_no_direction,
    commit_identity,
    config_sha256,
    folder_config,
    folder_identity,
    folder_sha256,
    folder_state,
    gguf_files,
    model_folder,
    other_files,
    tensors_sha256,
)
from legend_hf.reading.loading import Loading, needs
from legend_hf.reading.plain import check_choice, digest_of, key_of, make_plain, plain
from legend_hf.reading.pretrained import (
    DeviceMap,
    check_parts,
    load_config,
    load_tokenizer,
    load_weights,
    said_in_short,
)
from legend_hf.reading.probe import probe
from legend_hf.reading.stopping import worker_name
from legend_hf.reading.templates import TextError, Tokens
from legend_hf.reading.window import window

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

POOLINGS = ("mean", "last", "mean_all")
EOS_POLICIES = ("none", "append", "template")
DTYPES = ("float32", "bfloat16", "float16")
# The day that chat templates print when they ask for today's: scores must not change overnight.
FROZEN_DATE = "2025-01-01"
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


@dataclass(frozen=True)
class Reader:
    """How a text becomes a vector.

    Attributes:
        model: Hub id of the model, or None when it was read from a folder.
        revision: Commit of `model`, or None when it was read from a folder.
        model_sha256: One digest for a model folder, of its weights and its config; None for a Hub model.
        model_type: `config.model_type` of the model.
        d_model: Width of its hidden states.
        n_layers: Number of its blocks.
        tokenizer_sha256: Hash of the tokenizer's vocabulary and rules and of what it makes of a fixed text.
        chat_template_sha256: Hash of the chat template, None without one.
        template: `"chat"`, `"dialogue"`, `"alpaca"` or a string with `{prompt}`.
        joiner: What stands between a plain template and the response.
        fit_joiner: The joiner while fitting, where it differs (only in the reference preset), else None.
        eos: `"none"`, `"append"` or `"template"`.
        layer: Index into `hidden_states`: 0 = embeddings, k = output of block k, n_layers = the last block's output
            after the final norm.
        pooling: `"mean"` of the response's content tokens, `"last"` token, or `"mean_all"` of the whole text.
        max_length: Longest text in tokens; longer ones lose tokens from the prompt's beginning.
        dtype: Of the model's weights and activations. Pooling and projection are always done in float32 or wider.
        date: ISO date that chat templates print as today's.
        weights_sha256: Of the weight files, see `identity`; None: not known.
        tensors_sha256: Of the weights in whatever files; None: not known, only fits record it.
        config_sha256: Of the config's fields that can change a number; None: nothing was recorded of the model.
        code_sha256: Of the code that came with the model; None: none was run.
        loading: Which GGUF file, or which quantisation; None: the model as it is.
    """

    model: str | None
    revision: str | None
    model_sha256: str | None
    model_type: str
    d_model: int
    n_layers: int
    tokenizer_sha256: str
    chat_template_sha256: str | None
    template: str
    joiner: str
    fit_joiner: str | None
    eos: str
    layer: int
    pooling: str
    max_length: int
    dtype: str
    date: str = FROZEN_DATE
    weights_sha256: str | None = None
    tensors_sha256: str | None = None
    config_sha256: str | None = None
    code_sha256: str | None = None
    loading: Loading | None = None

    def __post_init__(self) -> None:
        """Refuses values that no reader can have, whoever wrote them."""
        make_plain(self)
        if isinstance(self.loading, Mapping):  # as it stands in an artifact
            object.__setattr__(self, "loading", Loading(**self.loading))
        check_choice("pooling", self.pooling, POOLINGS)
        check_choice("eos", self.eos, EOS_POLICIES)
        check_choice("dtype", self.dtype, DTYPES)
        if self.template not in (templates.CHAT, templates.DIALOGUE, "alpaca") and "{prompt}" not in self.template:
            raise ValueError(
                f'`template` is {self.template!r}; allowed are "auto", "chat", "dialogue", "alpaca", or a string that '
                "contains `{prompt}`"
            )
        if self.eos == "template" and self.template != templates.CHAT:
            raise ValueError(
                f'`eos="template"` needs `template="chat"`, got `template={self.template!r}`; a plain template ends '
                'with the response: use `eos="none"` or `eos="append"`'
            )
        if not 0 <= self.layer <= self.n_layers:
            raise ValueError(
                f"`layer` is {self.layer}; this model has {self.n_layers} blocks, so allowed are 0 (embeddings) to "
                f"{self.n_layers} (last block, after the final norm), or -1 for the last"
            )
        if self.max_length < 1 or self.d_model < 1:
            raise ValueError(f"`max_length` ({self.max_length}) and `d_model` ({self.d_model}) must be positive")
        calendar_date.fromisoformat(self.date)
        if (self.model is None) == (self.model_sha256 is None):
            raise ValueError("a reader is identified either by `model` and `revision` or by `model_sha256`")

    @property
    def name(self) -> str:
        """The model for a person to read: `id@commit`, or the folder's identity."""
        name = (
            f"{self.model}@{self.revision}" if self.model is not None else f"a folder with sha256 {self.model_sha256}"
        )
        return name if self.loading is None else f"{name} ({self.loading.said})"

    @property
    def name_in_short(self) -> str:
        """The same with the beginning of each hash."""
        name = f"a folder with sha256 {(self.model_sha256 or '')[:7]}"
        if self.model is not None:
            name = f"{self.model}@{self.revision or ''}"[: len(self.model) + 8]
        return name if self.loading is None else f"{name} ({self.loading.said})"

    @property
    def gguf_file(self) -> str | None:
        """The GGUF file that it reads from, if it does."""
        return None if self.loading is None else self.loading.gguf_file

    @property
    def not_finite(self) -> str:
        """What is wrong with a text whose hidden states or scores are NaN or infinite, and what to do."""
        remedy = 'read with `dtype="bfloat16"` or `"float32"`, which hold larger numbers'
        if self.dtype != "float16":  # bfloat16 is as wide as float32
            remedy = f"take a lower `layer` than {self.layer}, or a model whose weights are sound"
        return f"the model's hidden states are not finite in {self.dtype} for this text; {remedy}{SKIP}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they stand in the artifact's `config.json`; no `loading` where it is None."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "loading"}
        return values if self.loading is None else {**values, "loading": self.loading.to_dict()}


@dataclass(frozen=True)
class Runtime:
    """Where and how to run, none of which may change a number.

    Attributes:
        path: Folder to load the model from, instead of the Hub.
        device: `"cpu"`, `"cuda"`, `"cuda:1"` ...; None takes a GPU when there is one.
        batch_tokens: Most tokens in one forward pass; None takes the device's default.
        trust_remote_code: Run code that comes with the model. Off unless the caller says so.
        route: `"tree"`, `"padded"` or `"grouped"` forces how texts are put together; None tries it out.
        device_map: In place of `device`, for a model larger than one: `"auto"`, or a mapping of parts of the model
            without its head (`"layers.0"`) to devices, `"cpu"` and `"disk"`, as transformers has it.
    """

    path: str | None = None
    device: str | None = None
    batch_tokens: int | None = None
    trust_remote_code: bool = False
    route: Way | None = None
    device_map: DeviceMap | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        """Refuses a budget that could hold no token, and what names no device. Whether it is there, a run knows."""
        make_plain(self)
        if self.batch_tokens is not None and self.batch_tokens < 1:
            raise ValueError(f"`batch_tokens` is {self.batch_tokens}; it must be at least 1, or None for the default")
        if self.route is not None:
            check_choice("route", self.route, WAYS)
        if self.device is not None:
            parse_device(self.device)
        if self.device_map is not None:
            _check_device_map(self.device_map, self.device)


def describe_model(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    template: str = "auto",
    joiner: str | None = None,
    eos: str = "none",
    layer: int = -1,
    pooling: str = "mean",
    max_length: int = 2048,
    dtype: str = "auto",
    loading: Loading | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> Reader:
    """Makes the Reader of a model: resolves what is left open and records what identifies it.

    Args:
        model: Hub id or folder of a model that `AutoModel` loads.
        revision: Branch, tag or commit of a Hub model; resolved to a commit.
        template: `"auto"` takes the tokenizer's chat template if it has one, else the markers of hh-rlhf.
        joiner: None takes the template's own.
        eos: See `Reader`.
        layer: Index into `hidden_states`; -1 is the last.
        pooling: See `Reader`.
        max_length: Bounded by the model's window.
        dtype: `"auto"` takes float32 on a CPU and bfloat16 on a GPU.
        loading: A GGUF file of `model`, or a quantisation; None takes the model as it is.
        device: The device that `dtype="auto"` is resolved for.
        trust_remote_code: Run code that comes with the model.

    Returns:
        The reader, with nothing left open.

    Raises:
        ValueError: An argument that this model cannot follow.
        OSError: The model or its tokenizer cannot be loaded; the GGUF file is not there.
        ImportError: `loading` needs a package that is not here.
    """
    path = model_folder(model)
    gguf_file = None if loading is None else loading.gguf_file
    if loading is not None:
        loading.check_packages()
    if path is not None and revision is not None:
        raise ValueError(
            f"`revision` is {revision!r} but {path!r} is a folder; a folder has no revisions: leave it out"
        )
    if path is not None and gguf_file is None:
        folder_config(Path(path))  # a folder of something else is told what it is
    commit = None if path is not None else _resolve_commit(str(model), revision, gguf_file)
    config = load_config(path or str(model), commit, trust_remote_code, loading)
    tokenizer = load_tokenizer(path or str(model), commit, trust_remote_code, loading)
    if template == "auto":
        template = templates.CHAT if tokenizer.chat_template else templates.DIALOGUE
    if template == templates.CHAT:
        templates.chat_template_of(tokenizer)  # refuses what cannot be used
    text_config = config.get_text_config(decoder=True)
    n_layers = text_config.num_hidden_layers
    found = _identity(path or str(model), commit, gguf_file, trust_remote_code)
    return Reader(
        model=None if path is not None else str(model),
        revision=commit,
        model_sha256=folder_sha256(path, gguf_file=gguf_file) if path is not None else None,
        model_type=config.model_type,
        d_model=text_config.hidden_size,
        n_layers=n_layers,
        tokenizer_sha256=_tokenizer_sha256(tokenizer),
        chat_template_sha256=_chat_template_sha256(tokenizer),
        template=template,
        joiner=templates.DEFAULT_JOINER.get(template, "") if joiner is None else joiner,
        fit_joiner=None,
        eos=eos,
        layer=n_layers if layer == -1 else layer,
        pooling=pooling,
        max_length=min(max_length, window(config, tokenizer)),
        dtype=_resolve_dtype(dtype, device),
        weights_sha256=found.weights_sha256,
        config_sha256=found.config_sha256,
        code_sha256=found.code_sha256,
        loading=loading,
    )


class OpenReader:
    """A Reader with its tokenizer in memory, and its model once that is asked for. Get one from `open_reader`."""

    def __init__(
        self, reader: Reader, known: KnownModel, load: Callable[[], LoadedModel], batch_tokens: int | None = None
    ) -> None:
        self.reader = reader
        self.batch_tokens = batch_tokens
        self.tokenizer = known.tokenizer
        self._config = known.config
        self._load = load

    @cached_property
    def _loaded(self) -> LoadedModel:
        return self._load()

    @property
    def model(self) -> Any:
        """The model without head, loaded by now."""
        return self._loaded.model

    @property
    def route(self) -> Route:
        """How to read with it, which is tried when it is loaded."""
        return self._loaded.route

    def encode(self, conversations: Sequence[Conversation], *, fitting: bool = False) -> list[Tokens | TextError]:
        """Turns conversations into token ids, each alone; the texts that cannot be read come back as errors.

        Args:
            conversations: Prompts with their responses.
            fitting: Use the joiner of the fit, where the two differ.
        """
        rendered = self._render(conversations, fitting=fitting)
        read = iter(self._tokenize([one for one in rendered if isinstance(one, templates.Rendered)]))
        return [one if isinstance(one, TextError) else next(read) for one in rendered]

    def check(self, conversations: Sequence[Conversation]) -> list[TextError | None]:
        """Why conversations cannot be read, as `encode` says; None of those that can be.

        Those that certainly can be are not tokenised, which is most of the work.
        """
        rendered = self._render(conversations)
        sure = [isinstance(one, templates.Rendered) and self._surely_read(one) for one in rendered]
        doubtful = [one for one, known in zip(rendered, sure, strict=True) if not (known or isinstance(one, TextError))]
        read = iter(self._tokenize(doubtful))
        found = [
            None if known else one if isinstance(one, TextError) else next(read)
            for one, known in zip(rendered, sure, strict=True)
        ]
        return [one if isinstance(one, TextError) else None for one in found]

    def _surely_read(self, one: templates.Rendered) -> bool:
        if self.reader.eos == "template" and self.reader.pooling == "last":  # needs a token behind the response
            return False
        return _all_embedded(self.tokenizer, self._embedded) and templates.surely_fits(
            one, self.tokenizer, max_length=self.reader.max_length
        )

    def _render(
        self, conversations: Sequence[Conversation], *, fitting: bool = False
    ) -> list[templates.Rendered | TextError]:
        reader = self.reader
        joiner = reader.fit_joiner if fitting and reader.fit_joiner is not None else reader.joiner
        return templates.render_all(
            conversations, self.tokenizer, template=reader.template, joiner=joiner, date=reader.date,
            verbatim=reader.fit_joiner is not None,  # only the reference has one
        )  # fmt: skip

    def _tokenize(self, rendered: Sequence[templates.Rendered]) -> list[Tokens | TextError]:
        reader, size = self.reader, self._embedded
        tokenized = templates.tokenize(
            rendered, self.tokenizer, eos=reader.eos, pooling=reader.pooling, max_length=reader.max_length
        )
        if _all_embedded(self.tokenizer, size):
            return tokenized
        return [self._known(text, size) for text in tokenized]

    @cached_property
    def _embedded(self) -> int:
        """How many tokens the model has embeddings of: what its config says, else what it has."""
        size = getattr(self._config.get_text_config(decoder=True), "vocab_size", None)
        return size if isinstance(size, int) else int(self.model.get_input_embeddings().num_embeddings)

    @property
    def ends_texts(self) -> bool:
        """Whether the tokenizer puts an EOS behind every text by itself, which `eos="none"` takes away."""
        eos = self.tokenizer.eos_token_id
        return eos != self.tokenizer.sep_token_id and self.tokenizer("a")["input_ids"][-1] == eos

    def _known(self, text: Tokens | TextError, size: int) -> Tokens | TextError:
        """Refuses a token that the tokenizer has and the model has not: reading it would end the whole run."""
        if isinstance(text, TextError) or max(text.ids) < size:
            return text
        token = self.tokenizer.convert_ids_to_tokens(max(text.ids))
        return TextError(f"the text has {token!r}, a token that the model has no embedding of; take it out of the text")

    def read(
        self, texts: Sequence[Tokens], layers: Sequence[int], *, batch_tokens: int | None = None
    ) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Reads texts through the model and pools their hidden states.

        Args:
            texts: Encoded texts.
            layers: Indices into `hidden_states`.
            batch_tokens: Most tokens in one forward pass; None takes what it was opened with.

        Yields:
            Indices of the texts in this batch, and their vectors `[b, layers, d_model]`, float32, on the device.
        """
        batches = read_vectors(
            self.model,
            [text.ids for text in texts],
            [self._needed(text) for text in texts],
            layers,
            route=self.route,
            batch_tokens=self.batch_tokens if batch_tokens is None else batch_tokens,
        )
        return progress.counted(batches, len(texts))

    def plan(self, texts: Sequence[Tokens]) -> list[tuple[int, list[int]]]:
        """The forward passes of `read`, none of which is done: tokens and indices of the texts of each."""
        budget = default_batch_tokens(device_of(self.model)) if self.batch_tokens is None else self.batch_tokens
        ids, needed = [text.ids for text in texts], [self._needed(text) for text in texts]
        return [(size, index) for size, index, _ in plan(ids, needed, range(len(texts)), self.route, budget)]

    def _needed(self, text: Tokens) -> Sequence[int]:
        return (text.last,) if self.reader.pooling == "last" else text.content

    def read_tokens(
        self, texts: Sequence[Tokens], along: Mapping[int, torch.Tensor]
    ) -> Iterator[tuple[list[int], torch.Tensor, dict[int, list[np.ndarray]]]]:
        """Reads texts as `read` does, and says beside it how far along some vectors each token lies.

        Args:
            texts: Encoded texts.
            along: For each layer, vectors `[k, d_model]`.

        Yields:
            Indices of the texts in this batch; their vectors, as `read` gives them, of the layers in the order of
            `along`; and for each layer the projections `[t, k]`, float64, of each text's `seen(text)` positions.
        """
        found: dict[int, list[np.ndarray]] = {}

        def watch(layer: int, states: torch.Tensor, counts: Sequence[int]) -> None:
            lines = (states.double() @ along[layer].to(states.device).double().T).cpu()  # [m, k]
            found[layer] = [one.numpy() for one in lines.split(list(counts))]

        batches = read_vectors(
            self.model,
            [text.ids for text in texts],
            [self.seen(text) for text in texts],
            list(along),
            route=self.route,
            batch_tokens=self.batch_tokens,
            watch=watch,
            last=self.reader.pooling == "last",
        )
        for index, vectors in batches:
            yield index, vectors, dict(found)

    def seen(self, text: Tokens) -> tuple[int, ...]:
        """Ascending positions of a text that `read_tokens` looks at: the response's, and all that is pooled."""
        if self.reader.pooling == "last" and text.last != text.content[-1]:
            return (*text.content, text.last)
        return text.content

    def places(self, one: Conversation) -> tuple[str, list[tuple[int, int]]]:
        """The whole text that a conversation is read as, of a long one the end, and where its response's tokens stand.

        Raises:
            TextError: It cannot be read.
        """
        reader = self.reader
        written = templates.render(
            one, self.tokenizer, template=reader.template, joiner=reader.joiner, date=reader.date,
            verbatim=reader.fit_joiner is not None,
        )  # fmt: skip
        return templates.places_in_text(written, self.tokenizer, eos=reader.eos, max_length=reader.max_length)


@dataclass(frozen=True, eq=False)
class KnownModel:
    """What a model is known by before its weights are loaded: enough to check rows.

    Attributes:
        tokenizer: Its fast tokenizer.
        config: As published, whatever is loaded of it.
        identity: What would be loaded, whatever it is called.
    """

    tokenizer: PreTrainedTokenizerBase
    config: PretrainedConfig
    identity: Identity


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model in memory.

    Attributes:
        model: Without a language-model head, maybe without its last blocks.
        depth: Highest index into `hidden_states` that it can give.
        route: How to read with it.
    """

    model: Any
    depth: int
    route: Route


_KNOWN: dict[tuple[Any, ...], KnownModel] = {}
_LOADED: dict[tuple[Any, ...], LoadedModel] = {}
_loading = threading.RLock()  # one thread at a time, and a model that two ask for is loaded once
_settled = -1  # the process that has been made safe as a worker
_OWNER = os.getpid()


def open_reader(
    reader: Reader, runtime: Runtime | None = None, *, depth: int | None = None, load: bool = True
) -> OpenReader:
    """Loads a reader's tokenizer and model, once per process.

    Args:
        reader: What to read with.
        runtime: Where to run.
        depth: Highest layer that will be read; None is the reader's own. Blocks above it are not loaded.
        load: Load the model now; else when it is first asked for, as texts are encoded without it.

    Raises:
        ValueError: The model at hand is not the one that the reader names.
        RuntimeError: A GPU is asked for in a forked worker.
    """
    runtime = runtime or Runtime()
    device = resolve_device(runtime.device)
    if runtime.device_map is not None:
        needs(("accelerate",), "accelerate", "`device_map`")
    if reader.loading is not None:
        reader.loading.check_packages()
    depth = reader.layer if depth is None else depth
    _settle_in_worker(device)
    known = _known(reader, runtime, _place(reader, runtime))
    opened = OpenReader(reader, known, lambda: _loaded(reader, runtime, device, depth), runtime.batch_tokens)
    if load:
        _ = opened.model
    return opened


def _place(reader: Reader, runtime: Runtime) -> tuple[Any, ...]:
    """Where a model lies, and what lies there now."""
    source: tuple[Any, ...] = (reader.model, reader.revision)
    if runtime.path is not None:
        source = (runtime.path, _state(runtime, reader.gguf_file))
    return *source, runtime.trust_remote_code, reader.loading and key_of(reader.loading.to_dict())


def _known(reader: Reader, runtime: Runtime, place: tuple[Any, ...]) -> KnownModel:
    """What the reader's model is known by, which must be what the reader names."""
    with _loading:
        for kept in (_KNOWN, _LOADED):
            for other in [k for k in kept if k[0] == runtime.path and k[1] != place[1]]:  # what the folder was before
                del kept[other]
        if place not in _KNOWN:
            _KNOWN[place] = _get_to_know(reader, runtime)
        known = _KNOWN[place]
        _check_same(reader, known.identity, runtime.path)
        _check_match(reader, known.config, known.tokenizer)
        return known


def _loaded(reader: Reader, runtime: Runtime, device: str, depth: int) -> LoadedModel:
    with _loading:
        place = _place(reader, runtime)  # a folder may have changed since it was opened
        known = _known(reader, runtime, place)
        # Readers that differ only in how they cut and pool share one model; how it is read may depend on the length.
        key = (*place, reader.dtype, reader.max_length, runtime.route, device, key_of(runtime.device_map))
        if key not in _LOADED or _LOADED[key].depth < depth:
            _LOADED[key] = _load(reader, runtime, known.config, device, depth)
        return _LOADED[key]


def close_readers() -> None:
    """Forgets every loaded model of this process, to give its memory back."""
    _LOADED.clear()
    _KNOWN.clear()


def resolve_device(device: str | None, rank: int | None = None) -> str:
    """Says which device to use: the one asked for, else a GPU if there is one, spread over ranks.

    Raises:
        ValueError: It names no device, or none that is here.
    """
    import torch

    count = torch.cuda.device_count()
    if device is None and count == 0:
        return "cpu"
    kind, index = ("cuda", None) if device is None else parse_device(device)
    if kind == "cuda" and index is None and count:
        # A `map` may have more shards than GPUs, so ranks go round.
        return f"cuda:{(rank or 0) % count}"
    if kind == "cuda":
        there = index is not None and index < count
    elif kind == "cpu":
        there = index in (None, 0)
    else:
        there = kind != "meta"  # which holds no numbers
        try:
            torch.zeros(1, device=device)
        except Exception:  # each kind says in its own way that it is not there
            there = False
    if not there:
        here = ", ".join(["'cpu'", *(f"'cuda:{i}'" for i in range(count))])
        raise ValueError(
            f"`device` is {device!r}, which is not on this machine (torch {torch.__version__}); here are {here}: name "
            "one of these, or leave `device` out"
        )
    return str(device)


def parse_device(device: str) -> tuple[str, int | None]:
    """Its kind and number."""
    import torch

    try:
        if not isinstance(plain(device), str):  # torch takes a number for a GPU
            raise TypeError
        parsed = torch.device(plain(device))
    except (RuntimeError, TypeError):
        raise ValueError(
            f"`device` is {device!r}, which names no device; allowed are 'cpu', 'cuda', 'cuda:1' ..., or None for a "
            "GPU if there is one"
        ) from None
    return parsed.type, parsed.index


def _get_to_know(reader: Reader, runtime: Runtime) -> KnownModel:
    source, commit = runtime.path or reader.model, None if runtime.path else reader.revision
    if source is None:
        raise ValueError(
            f"this direction was fitted on a model folder (sha256 {reader.model_sha256}) that is not on the Hub; say "
            "where it is: `model=folder`"
        )
    if runtime.path is None and os.path.exists(source):
        raise ValueError(
            f"`{source}` is a model on the Hub, and something here is called the same, which would be read in its "
            "place; run from another folder, or give the model's folder: `model=folder`"
        )
    config = load_config(source, commit, runtime.trust_remote_code, reader.loading)
    tokenizer = load_tokenizer(source, commit, runtime.trust_remote_code, reader.loading)
    return KnownModel(tokenizer, config, _identity(source, commit, reader.gguf_file, runtime.trust_remote_code))


def _load(reader: Reader, runtime: Runtime, config: PretrainedConfig, device: str, depth: int) -> LoadedModel:
    source, commit = runtime.path or reader.model, None if runtime.path else reader.revision
    assert source is not None
    model = _load_body(source, commit, config, reader, runtime, device)
    try:
        route = probe(model, max_length=reader.max_length, force=runtime.route, depth=depth)
    except Exception as error:  # a model's own code can fail in any way
        if out_of_memory(error):
            raise
        said = str(error) if isinstance(error, ValueError) else said_in_short(error)
        raise ValueError(f"{source!r} cannot be read: {said}") from error
    say = logger.info if route.way == "tree" or runtime.route is not None else logger.warning
    say("%s is read the %s way: %s", source, route.way, route.reason)
    return LoadedModel(model, depth, route)


def _load_body(
    source: str, commit: str | None, config: PretrainedConfig, reader: Reader, runtime: Runtime, device: str
) -> Any:
    """Loads a model without head to where it runs, refusing one that lacks weights."""
    from transformers import AutoModel

    # What is quantised is put in its place as it is loaded, and cannot be moved.
    quantised = reader.loading is not None and reader.loading.method is not None
    device_map = {"": device} if runtime.device_map is None and quantised else runtime.device_map
    if isinstance(runtime.device_map, Mapping):
        check_parts(runtime.device_map, source, config, runtime.trust_remote_code)
    model, lacking = load_weights(
        AutoModel, source, commit, config, reader.dtype, runtime.trust_remote_code, reader.loading, device_map
    )
    # An encoder's pooler comes after the hidden states and is often not published.
    missing = [name for name in lacking if "pooler" not in name]
    if missing:
        raise ValueError(
            f"the weights of {source!r} lack {missing[0]!r}{f' and {len(missing) - 1} more' if missing[1:] else ''}, "
            "which would be random numbers; use a model whose weights are complete"
        )
    return (model if device_map is not None else model.to(device)).eval()


def check_folder(reader: Reader, folder: str) -> None:
    """Refuses a folder whose model is not the reader's, before anything of it is loaded.

    Raises:
        ValueError: Its weights or its config are others.
        OSError: It has no weights that are read.
    """
    found = folder_identity(folder, gguf_file=reader.gguf_file)
    _check_same(reader, found, folder, ignore=("code_sha256",))


def published_as(reader: Reader, model_id: str, *, trust_remote_code: bool = False) -> Reader:
    """The same reader of a model on the Hub, which must be the one that it reads now.

    The Hub's record of its files is asked; its weights are not downloaded, but for a GGUF file.

    Args:
        reader: Of a folder, or of the same model under another name.
        model_id: Its Hub id, `id` or `id@revision`.
        trust_remote_code: Run code that comes with the model.

    Raises:
        ValueError: It is another model.
        OSError: The Hub does not have it, or cannot be reached.
    """
    name, _, revision = model_id.partition("@")
    loading = Loading.of(reader.gguf_file, None)
    hub = describe_model(name, revision=revision or None, loading=loading, trust_remote_code=trust_remote_code)
    if hub.model is None:
        raise ValueError(f"`{name}` is a folder here; give the id of the model on the Hub")
    keys = ["model_type", "d_model", "n_layers", "tokenizer_sha256"]
    keys += ["chat_template_sha256"] if reader.template == templates.CHAT else []
    # Of a reader that was made by hand nothing may be known.
    keys += [k for k in ("config_sha256", "weights_sha256", "code_sha256") if reader.config_sha256 is not None]
    for key in keys:
        if getattr(hub, key) != getattr(reader, key):
            cut = ", or lie in other files: publish those that it was fitted on" if key == "weights_sha256" else ""
            raise ValueError(f"{model_id!r} is not the model of this direction: its `{key}` differs{cut}")
    return replace(reader, model=hub.model, revision=hub.revision, model_sha256=None)


def located(reader: Reader, model: str | os.PathLike[str]) -> tuple[Reader, str | None]:
    """A reader whose model is where the caller says, and the folder that it lies in, if in one.

    Args:
        reader: How texts are read.
        model: A folder, or a Hub id (`id` or `id@revision`), of the model that the reader reads.

    Raises:
        ValueError: It is another model.
        OSError: It is not there.
    """
    folder = model_folder(model)
    if folder is not None:
        check_folder(reader, folder)
        return reader, folder
    name, _, revision = str(model).partition("@")
    return (
        reader if reader.model == name and revision in ("", reader.revision) else published_as(reader, str(model))
    ), None


def tensors_of(reader: Reader, path: str | None) -> str | None:
    """Digest of the weights in whatever files, for a model that was loaded from a folder or is in the Hub's cache."""
    if reader.gguf_file is not None:
        return None
    if path is None:
        from huggingface_hub import try_to_load_from_cache

        assert reader.model is not None
        config = try_to_load_from_cache(reader.model, "config.json", revision=reader.revision)
        if not isinstance(config, str):
            return None
        path = os.path.dirname(config)
    return tensors_sha256(path)


def deciding(reader: Reader, path: str | None) -> list[Any]:
    """What decides a vector besides the text: the weights where they are known, else the names they were found under.

    So a commit that changes a model's card, or the same model under another name, is the same model.

    Args:
        reader: How texts are read.
        path: Folder that the model is loaded from, if any.
    """
    known = reader.weights_sha256 is not None and reader.config_sha256 is not None
    names = {"tensors_sha256", *(("model", "revision", "model_sha256") if known else ())}
    facts = {name: value for name, value in reader.to_dict().items() if name not in names}
    # A Hub model's name says nothing of what lies in a folder in its place.
    return [facts, None if known or path is None else folder_sha256(path, gguf_file=reader.gguf_file)]


def _identity(source: str, commit: str | None, gguf_file: str | None, trust_remote_code: bool) -> Identity:
    if commit is None:
        return folder_identity(source, gguf_file=gguf_file, trust_remote_code=trust_remote_code)
    return commit_identity(source, commit, gguf_file=gguf_file, trust_remote_code=trust_remote_code)


def _state(runtime: Runtime, gguf_file: str | None) -> str:
    assert runtime.path is not None
    return folder_state(runtime.path, gguf_file=gguf_file, trust_remote_code=runtime.trust_remote_code)


def _check_same(reader: Reader, found: Identity, folder: str | None, *, ignore: Sequence[str] = ()) -> None:
    """Refuses another model than the reader's: other weights, another config, other code."""
    expected = _expected(reader, folder)
    where = f"the model in {folder!r}" if folder is not None else f"`{reader.name}`"
    whole = None if expected is not None or folder is None else folder_sha256(folder, gguf_file=reader.gguf_file)
    if whole is not None and reader.model_sha256 not in (None, whole):
        raise _another(where, "weights or config", whole, reader.model_sha256, reader)
    for name, what in (("config_sha256", "config"), ("weights_sha256", "weights"), ("code_sha256", "code")):
        there, here = getattr(found, name), getattr(expected, name, None)
        if expected is None or there == here or name in ignore or (name == "weights_sha256" and None in (there, here)):
            continue
        if folder is not None and _same_otherwise(name, reader, folder, found):
            continue
        if name == "code_sha256" and there is None:
            raise ValueError(
                f"{where} was read by code that comes with it when the direction was fitted, and is not now; pass "
                "`trust_remote_code=True` if you trust it"
            )
        raise _another(where, what, there, here, reader)


def _another(where: str, what: str, there: str | None, here: str | None, reader: Reader) -> ValueError:
    return ValueError(
        f"{where} is another one: its {what} {'have' if what.startswith('weights') else 'has'} sha256 {there}, the "
        f"direction was fitted on {here}; give the model it was fitted on ({reader.name}), or fit a new direction"
    )


def _expected(reader: Reader, folder: str | None) -> Identity | None:
    """What was recorded of the reader's model; where nothing was and a folder takes its place, what the Hub says."""
    recorded = None
    if reader.config_sha256 is not None:
        recorded = Identity(reader.weights_sha256, reader.config_sha256, reader.code_sha256)
    if folder is None or reader.model is None or reader.weights_sha256 is not None:
        return recorded
    return _of_commit(reader) or recorded


@lru_cache(maxsize=32)
def _of_commit(reader: Reader) -> Identity | None:
    assert reader.model is not None
    assert reader.revision is not None
    try:
        found = commit_identity(reader.model, reader.revision, gguf_file=reader.gguf_file)
        return replace(found, code_sha256=reader.code_sha256)
    except OSError as error:
        logger.warning("whether the folder holds %s cannot be checked: %s", reader.name, error)
        return None


@lru_cache(maxsize=32)
def _same_otherwise(name: str, reader: Reader, folder: str, found: Identity) -> bool:
    """Whether it is the same, written otherwise: weights cut into other files, a config saved by another version."""
    if name == "weights_sha256":
        return reader.tensors_sha256 is not None and reader.tensors_sha256 == tensors_sha256(folder)
    if name != "config_sha256" or reader.model is None or found.code_sha256 is not None:
        return False
    try:
        published = load_config(reader.model, reader.revision, False)
    except (OSError, ValueError):
        return False
    return config_sha256(published.to_dict()) == config_sha256(load_config(folder, None, False).to_dict())


def _check_match(reader: Reader, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    text_config = config.get_text_config(decoder=True)
    found: Mapping[str, Any] = {
        "model_type": config.model_type,
        "d_model": text_config.hidden_size,
        "n_layers": text_config.num_hidden_layers,
        "tokenizer_sha256": _tokenizer_sha256(tokenizer),
        # Only a Reader that renders with the template depends on it.
        "chat_template_sha256": _chat_template_sha256(tokenizer),
    }
    for name, value in found.items():
        expected = getattr(reader, name)
        if value != expected and (name != "chat_template_sha256" or reader.template == templates.CHAT):
            raise ValueError(
                f"this model does not fit the direction: its `{name}` is {value!r}, the direction was fitted with "
                f"{expected!r}; use {reader.name}, or fit a new direction"
            )
    longest = window(config, tokenizer)
    if reader.max_length > longest:
        raise ValueError(
            f"this model does not fit the direction: it reads up to {longest} tokens, the direction up to "
            f"{reader.max_length}; use {reader.name}, or fit a new direction"
        )
    if reader.eos == "append" and tokenizer.eos_token_id is None:
        raise ValueError('`eos="append"` needs a tokenizer with an EOS token, this one has none; use `eos="none"`')


# Spaces, lines, case, digits, accents (composed and not), widths, other scripts: what tokenizers differ in.
_PROBE = " The  quick\n\nbrown FOX's 1234.5 naïve—été 日本語 🙂\tend e\u0301 \uff21 don\u2019t \u00a0x\r\n#@_a-b/c מ"


def _tokenizer_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of what a tokenizer does, not of how its file is written: that changes with the library."""
    return _tokenizer_hashes(tokenizer)


@lru_cache(maxsize=32)
def _all_embedded(tokenizer: PreTrainedTokenizerBase, size: int) -> bool:
    """Whether a model with so many embeddings has one of each token."""
    return max(tokenizer.get_vocab().values(), default=0) < size


@lru_cache(maxsize=32)
def _tokenizer_hashes(tokenizer: PreTrainedTokenizerBase) -> str:
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    merges = rules["model"].get("merges") or ()
    vocabulary = rules["model"].get("vocab")
    facts = {
        "vocabulary": sorted(tokenizer.get_vocab().items()),
        # Older files have a merge as one string, newer ones as two.
        "merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in merges],
        "scores": vocabulary if isinstance(vocabulary, list) else None,
        "added": sorted((token["content"], token["lstrip"], token["rstrip"]) for token in rules["added_tokens"]),
        "probe": tokenizer(_PROBE)["input_ids"],
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
    }
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _chat_template_sha256(tokenizer: PreTrainedTokenizerBase) -> str | None:
    template = tokenizer.chat_template
    return digest_of(template) if template else None


def _resolve_commit(model: str, revision: str | None, gguf_file: str | None) -> str:
    from legend_hf.hub.transfer import Repository

    with saying_what_is_there(model, "model"):
        repo = Repository(model, revision=revision).resolve()
        config = None if gguf_file is not None else repo.read(CONFIG)
        with suppress(json.JSONDecodeError, UnicodeDecodeError, RecursionError):  # what loads it says so
            check_no_direction(json.loads(config or b"{}"), model)
        if config is None and gguf_file is None:
            with suppress(ConnectionError):
                if there := gguf_files(repo):
                    raise FileNotFoundError(f"`{model}` has no `{CONFIG}`; {other_files(there)}")
    assert repo.revision is not None
    return repo.revision


def _check_device_map(device_map: Any, device: str | None) -> None:
    if device is not None:
        raise ValueError(
            f"`device` is {device!r} and `device_map` {device_map!r}; give one of the two: a map says all devices"
        )
    if isinstance(device_map, str):
        check_choice("device_map", device_map, DEVICE_MAPS, otherwise=", or a mapping of parts of the model to devices")
        return
    if not isinstance(device_map, Mapping) or not device_map or not all(isinstance(part, str) for part in device_map):
        raise ValueError(
            f"`device_map` is {device_map!r:.200}; give 'auto', or a mapping of parts of the model to devices, such as "
            '{"embed_tokens": "cuda:0", "layers": "cuda:1", "norm": "cuda:1", "rotary_emb": "cuda:0"}'
        )
    for place in device_map.values():
        if place != "disk" and (not isinstance(place, int) or isinstance(place, bool) or place < 0):
            parse_device(place)


def _resolve_dtype(dtype: str, device: str | None) -> str:
    if dtype == "auto":
        return "float32" if resolve_device(device) == "cpu" else "bfloat16"
    return dtype


def _settle_in_worker(device: str) -> None:
    """Makes a worker safe for tensor work, before there is any, and leaves the other cores to the other workers.

    A fork copies the parent's memory but not its threads. The first parallel region of OpenMP then waits for threads
    that do not exist, unless the worker is told to run on one. A spawned worker would take all cores, as each of its
    siblings does, unless the environment says how many are its own.
    """
    global _settled
    worker = worker_name()
    if _settled == os.getpid() or (os.getpid() == _OWNER and worker is None):
        return
    import torch

    if device.startswith("cuda") and torch.cuda.is_initialized():
        raise RuntimeError(
            "this worker was forked from a process that had already used the GPU, and CUDA cannot be used after a "
            'fork; call `multiprocess.set_start_method("spawn")` under `if __name__ == "__main__":` before `map`'
        )
    told = any(os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"))
    if not (told and worker is not None and worker.startswith(("Spawn", "ForkServer"))):
        torch.set_num_threads(1)
    _settled = os.getpid()


def _after_fork() -> None:
    """A lock that another thread of the parent held is held for ever in the child."""
    global _loading
    _loading = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def with_layer(reader: Reader, layer: int) -> Reader:
    """The same reader at another layer."""
    return replace(reader, layer=reader.n_layers if layer == -1 else layer)
