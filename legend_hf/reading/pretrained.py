"""What transformers loads: a model's config, its tokenizer, its weights.

In: a Hub id with its commit or a folder, and how to load it. Out: transformers' own objects, or an error that names the
model, the reason and the remedy. Nothing that is loaded here can run a program that the caller did not ask for. This
file knows no Reader: whether a model is the one that was meant is not its question.
"""

from __future__ import annotations

import atexit
import copy
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from legend_hf.reading.forward import out_of_memory
from legend_hf.reading.identity import gguf_path, made_once
from legend_hf.reading.loading import Loading

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

DeviceMap: TypeAlias = str | Mapping[str, str | int]
# Characters of an error of transformers that are passed on.
_MOST_SAID = 300


def load_weights(
    auto: Any,
    source: str,
    commit: str | None,
    config: PretrainedConfig,
    dtype: str,
    trust_remote_code: bool,
    loading: Loading | None = None,
    device_map: DeviceMap | None = None,
) -> tuple[Any, list[str]]:
    """Loads a model by one of transformers' `Auto` classes, saying nothing of the weights that are left out.

    Returns:
        The model, and the names of the weights that it lacks, sorted: transformers fills them with random numbers.
    """
    import torch
    from transformers import GgufConfig
    from transformers.utils import logging as transformers_logging

    how: dict[str, Any] = {}
    if loading is not None and loading.gguf_file is not None:
        # Left as they are packed, they would be multiplied by a program that is fetched from the Hub.
        how["quantization_config"] = GgufConfig(dequantize=True)
    elif loading is not None:
        how["quantization_config"] = dict(loading.quantization_config or {})
    if device_map is not None:
        # On disk are read from where they lie the weights that lie there as they are, and from that folder all others.
        how |= {"device_map": device_map, "offload_folder": _own_folder("offload")}
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # it would list each weight of the head and of blocks not needed
    try:
        with loading_of("model", source):
            place, which = _pretrained(source, commit, loading)
            model, info = auto.from_pretrained(
                place,
                **which,
                **how,
                config=config,
                dtype=getattr(torch, dtype),
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
            )
    finally:
        transformers_logging.set_verbosity(verbosity)
    return model, sorted(info["missing_keys"])


def _pretrained(source: str, commit: str | None, loading: Loading | None) -> tuple[str, dict[str, Any]]:
    """What transformers is to load from, and which of the files there.

    A GGUF file is named by its whole path, and of an empty folder: of a name alone transformers looks in the folder
    that it runs in first, and it would mix in a tokenizer that lies beside the file.
    """
    if loading is None or loading.gguf_file is None:
        return source, {"revision": commit}
    return _own_folder("empty"), {"gguf_file": str(gguf_path(source, commit, loading.gguf_file))}


@lru_cache
def _own_folder(what: str) -> str:
    """An empty folder that goes with the process."""
    folder, owner = tempfile.mkdtemp(prefix=f"legend_hf_{what}_"), os.getpid()

    def gone() -> None:
        if os.getpid() == owner:  # and no fork of it
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(gone)
    return folder


def _config_in(path: str) -> PretrainedConfig:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(_own_folder("empty"), gguf_file=path)


def _tokenizer_in(path: str) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(_own_folder("empty"), gguf_file=path)


def load_config(
    source: str, commit: str | None, trust_remote_code: bool, loading: Loading | None = None
) -> PretrainedConfig:
    """Loads a model's config, refusing what cannot be read, and what it asks for in spite of our own arguments."""
    from transformers import AutoConfig

    with loading_of("config", source):
        place, which = _pretrained(source, commit, loading)
        if "gguf_file" in which:  # seconds to take apart
            config = copy.deepcopy(made_once(_config_in, Path(which["gguf_file"])))
        else:
            config = AutoConfig.from_pretrained(place, **which, trust_remote_code=trust_remote_code)
    quantised = getattr(config, "quantization_config", None)
    if quantised is not None and loading is not None and loading.method is not None:
        raise ValueError(
            f"`quantization_config` was given, and {source!r} is quantised already; leave it out: the model is read as "
            "it is"
        )
    if config.is_encoder_decoder:
        raise ValueError(
            f"{source!r} is an encoder-decoder model ({config.model_type}); use a decoder or an encoder: which of its "
            "two stacks should read a text is not defined here"
        )
    _check_inert(config, source, trust_remote_code)
    text = config.get_text_config(decoder=True)
    for name in ("hidden_size", "num_hidden_layers"):
        if not isinstance(getattr(text, name, None), int):
            raise ValueError(
                f"the config of {source!r} ({config.model_type}) says no `{name}`, so its layers cannot be told; use a "
                "decoder or an encoder of text"
            )
    return config


@contextmanager
def loading_of(what: str, source: str) -> Iterator[None]:
    """Whatever goes wrong inside transformers names the model, the reason and the remedy."""
    try:
        yield
    except OSError:  # what is not there or cannot be reached is said well already
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        remedy = "use another model, or another version of transformers"
        if "trust_remote_code" in str(error):
            remedy = "pass `trust_remote_code=True` if you trust whoever wrote that code"
        elif isinstance(error, ImportError):
            remedy = "install what is missing, or use a model whose config does not ask for it"
            if "attn" in str(error).lower() or "attention" in str(error).lower():
                remedy = "remove `attn_implementation` from its config, or install what it asks for"
        raise ValueError(f"the {what} of {source!r} cannot be loaded: {said_in_short(error)}; {remedy}") from error


def said_in_short(error: BaseException) -> str:
    """What an error says, in one line."""
    said = " ".join(str(error).split())
    said = said if len(said) <= _MOST_SAID else f"{said[:_MOST_SAID]}…"
    return said if isinstance(error, ValueError) and said else f"{type(error).__name__}: {said}".removesuffix(": ")


def _check_inert(config: PretrainedConfig, source: str, trust_remote_code: bool) -> None:
    """Refuses what a config can ask for in spite of our own arguments: weights of another kind, a kernel of the Hub."""
    weights = getattr(config, "transformers_weights", None)
    if weights is not None and not str(weights).endswith((".safetensors", ".safetensors.index.json")):
        raise ValueError(
            f"the config of {source!r} names its weights {str(weights)!r}, which can hold a program; use a model whose "
            "weights are safetensors"
        )
    parts = [config, *(getattr(config, name, None) for name in config.sub_configs)]
    asked = [getattr(part, "_attn_implementation", None) for part in parts]
    kernels = [name for name in asked if isinstance(name, str) and "/" in name]
    if kernels and not trust_remote_code:
        raise ValueError(
            f"the config of {source!r} asks for the program {kernels[0]!r} from the Hub to compute attention; remove "
            "`attn_implementation` from it, or pass `trust_remote_code=True` if you trust both"
        )


def load_tokenizer(
    source: str, commit: str | None, trust_remote_code: bool, loading: Loading | None = None
) -> PreTrainedTokenizerBase:
    """Loads a model's tokenizer, refusing one that cannot tell where in the text a token stands."""
    from transformers import AutoTokenizer

    with loading_of("tokenizer", source):
        place, which = _pretrained(source, commit, loading)
        if "gguf_file" in which:
            tokenizer = made_once(_tokenizer_in, Path(which["gguf_file"]))
        else:
            tokenizer = AutoTokenizer.from_pretrained(place, **which, trust_remote_code=trust_remote_code)
    if not tokenizer.is_fast:
        raise ValueError(
            f"the tokenizer of {source!r} is a slow one, which cannot tell where in the text a token stands; "
            "use a model with a `tokenizer.json`"
        )
    return tokenizer


def check_parts(device_map: Mapping[str, Any], source: str, config: PretrainedConfig, trust_remote_code: bool) -> None:
    """Refuses a map that names parts which a model does not have: transformers looks past them."""
    import torch
    from transformers import AutoModel

    with torch.random.fork_rng(devices=[]), torch.device("meta"), loading_of("model", source):  # shapes without memory
        model = AutoModel.from_config(config, trust_remote_code=trust_remote_code)
    parts = {name for name, _ in [*model.named_modules(), *model.named_parameters()]}
    unknown = [name for name in device_map if name not in parts]
    if unknown:
        there = ", ".join(repr(name) for name, _ in model.named_children())
        raise ValueError(
            f"`device_map` names {unknown[0]!r}, which {source!r} does not have; the parts of the model without its "
            f"head are {there}, and what is in them, such as 'layers.0'"
        )
