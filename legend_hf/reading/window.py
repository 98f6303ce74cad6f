"""How long a text may be: what a model's config and tokenizer say, and how many positions its tables really have.

In: a config and a tokenizer. Out: a number of tokens. This file knows no weights: whether such a text can be read is
tried by `probe`, when the model is loaded.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

UNBOUNDED = 1 << 62

# What configs call the longest text. Some say -1 or nothing where there is no bound.
_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")


def window(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """Most tokens that a text may have: by the config, the tokenizer or the tables of positions, whichever is least."""
    text = config.get_text_config(decoder=True)
    said = [getattr(text, name, None) for name in _NAMES]
    said += [tokenizer.model_max_length, _positions(text.__class__, text.to_json_string(use_diff=False))]
    return min((int(n) for n in said if isinstance(n, int | float) and 0 < n < UNBOUNDED), default=UNBOUNDED)


@lru_cache(maxsize=32)
def _positions(kind: Any, json: str) -> int | None:
    """Texts as long as the smallest table of absolute positions allows, None without one that can be seen.

    Some models leave its first rows out: RoBERTa and its kin begin behind the row of the padding, OPT at an offset.
    """
    import json as reader

    import torch
    from transformers import AutoModel
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):  # shapes without memory
            model = AutoModel.from_config(kind.from_dict(reader.loads(json)), trust_remote_code=False)
    except Exception:  # a model's own code can fail in any way; what it can read is tried with its weights
        return None
    finally:
        logging.set_verbosity(verbosity)
    lengths = [length for name, module in model.named_modules() if (length := _length(name, module)) is not None]
    return min(lengths, default=None)


def _length(name: str, module: Any) -> int | None:
    """Tokens for which a table of absolute positions has rows, None if this is none."""
    own = name.rpartition(".")[2].lower()
    rows = getattr(module, "num_embeddings", None)
    named = own == "wpe" or ("position" in own and "rel" not in own)
    if not named or not isinstance(rows, int):
        return None
    padding, offset = getattr(module, "padding_idx", None), getattr(module, "offset", 0)
    before = padding + 1 if isinstance(padding, int) else offset if isinstance(offset, int) else 0
    return int(rows) - before
