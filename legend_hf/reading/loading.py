"""What decides a model's numbers as it is loaded, beside its dtype: one GGUF file of several, or a quantisation.

In: what somebody gave. Out: plain data that travels inside a `Reader`, and the words for what is missing to follow it.
Where a model's parts lie decides no number and is no part of it: that is a `Runtime`'s. This file loads nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import PurePosixPath
from typing import Any

from legend_hf.reading.plain import check_choice, make_plain

# Run on a CPU: bitsandbytes through all of this, torchao by transformers alone. Others load programs from the Hub to
# compute with, or were not tried.
QUANTISERS = ("bitsandbytes", "torchao")
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
_MOST_SAID = 10_000  # characters of a quantisation's options, which may come from a stranger


@dataclass(frozen=True)
class Loading:
    """How a model is loaded, as far as that decides its numbers.

    Attributes:
        gguf_file: The GGUF file of the folder or repository that holds config, tokenizer and weights; None reads
            `config.json` and safetensors. Its weights are widened to the Reader's dtype.
        quantization_config: What transformers calls so, as JSON has it or as one of its classes: the weights are
            quantised as they are loaded. `quant_method` is `"bitsandbytes"` or `"torchao"`.

    Raises:
        ValueError: They are not allowed, or not together.
    """

    gguf_file: str | None = None
    quantization_config: Mapping[str, Any] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        """Refuses what names no file, and what nothing here quantises by."""
        as_plain = getattr(self.quantization_config, "to_dict", None)  # of one of transformers' classes
        if as_plain is not None:
            object.__setattr__(self, "quantization_config", as_plain())
        make_plain(self)
        if self.gguf_file is not None:
            _check_file(self.gguf_file)
        if self.quantization_config is not None:
            _check_quantization(self.quantization_config)
        if self.gguf_file is not None and self.quantization_config is not None:
            raise ValueError(
                "`gguf_file` and `quantization_config` were both given; a GGUF file is quantised already: leave one out"
            )

    @classmethod
    def of(cls, gguf_file: str | None, quantization_config: Mapping[str, Any] | None) -> Loading | None:
        """What was asked for; None where a model is loaded as it is."""
        return None if gguf_file is None and quantization_config is None else cls(gguf_file, quantization_config)

    @property
    def method(self) -> str | None:
        """What quantises the weights, if anything does."""
        return None if self.quantization_config is None else str(self.quantization_config["quant_method"])

    @property
    def said(self) -> str:
        """It in a word or two, behind a model's name."""
        return str(self.gguf_file) if self.gguf_file is not None else f"quantised by {self.method}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values: what was given, and no more."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @property
    def packages(self) -> tuple[str, ...]:
        """What takes the file apart, or quantises."""
        return (("gguf",) if self.gguf_file is not None else ()) + ((self.method,) if self.method is not None else ())

    def check_packages(self) -> None:
        """Refuses what cannot be followed here, before anything is loaded.

        Raises:
            ImportError: A package is missing; the error names the extra that brings it.
        """
        what = f"`gguf_file={self.gguf_file!r}`" if self.gguf_file else f"a `quantization_config` of {self.method}"
        for package in self.packages:
            needs((package, "accelerate"), package, what)


def needs(packages: tuple[str, ...], extra: str, what: str) -> None:
    """Refuses what needs packages that are not here.

    Raises:
        ImportError: It names the extra that brings them.
    """
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise ImportError(f"{what} needs {' and '.join(missing)}: `pip install 'legend-hf[{extra}]'`")


def _check_file(name: Any) -> None:
    inside = isinstance(name, str) and name.endswith(".gguf") and "\\" not in name and "\0" not in name
    path = PurePosixPath(name) if inside else PurePosixPath("..")
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(
            f"`gguf_file` is {name!r}; give the name of a .gguf file inside `model`, which is a folder or the id of a "
            "repository, such as 'model.Q4_K_M.gguf'"
        )
    if _PART.search(name):
        raise ValueError(
            f"`gguf_file` is {name!r}, one part of several; join them (`llama-gguf-split --merge`) and name the whole"
        )


def _check_quantization(config: Any) -> None:
    example = '{"quant_method": "bitsandbytes", "load_in_8bit": true}'
    if not isinstance(config, Mapping) or "quant_method" not in config:
        raise ValueError(f"`quantization_config` is {config!r:.200}; give what transformers takes, such as {example}")
    check_choice("quant_method", config["quant_method"], QUANTISERS, otherwise=f"; such as {example}")
    try:
        written = json.dumps(config, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`quantization_config` is no JSON ({error}); give plain values, such as {example}") from error
    if len(written) > _MOST_SAID:
        raise ValueError(f"`quantization_config` has {len(written)} characters; at most {_MOST_SAID} are allowed")
