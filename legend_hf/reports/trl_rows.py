"""What does TRL's `RewardTrainer` make of a dataset's rows, and at which does it fail?

In: a split, and the tokenizer of the model that will be trained. Out: its rows' lengths in tokens, and whether they are
refused, equal on both sides or glued. It is what TRL 1.16 does. This file needs no TRL, and knows no margins.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from legend_hf.hub import cards

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

ROWS_AT_ONCE = 1000
_IDS = ("chosen_ids", "rejected_ids")
_OLD_IDS = ("chosen_input_ids", "rejected_input_ids")
# TRL looks at any one of these columns to tell strings from messages.
_TELLING = ("prompt", "chosen", "rejected", "completion", "messages")
_GOOD = ("a string", "messages")


@dataclass(frozen=True, eq=False)
class Prepared:
    """What TRL's preparation makes of a split's rows.

    Attributes:
        lengths: Tokens of the longer side `[n]`; 0 of a row that is refused.
        same: Whether both sides are the same tokens `[n]`.
        same_if_cut: Whether they would be, cut to the longest length `[n]`.
        refused: Whether TRL fails at the row `[n]`.
        glued: Whether the prompt's end and a response's beginning become one word `[n]`.
        errors: At what it fails, in words; each with its remedy.
        warnings: What may not be meant.
    """

    lengths: np.ndarray
    same: np.ndarray
    same_if_cut: np.ndarray
    refused: np.ndarray
    glued: np.ndarray
    errors: tuple[str, ...]
    warnings: tuple[str, ...]


def prepared(split: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> Prepared:
    """Tokenises a split's rows as `RewardTrainer` does it.

    Args:
        split: Rows in any format of Python values.
        tokenizer: Of the model to train.
        max_length: The longest side that is trained on, in tokens; None for no limit.
    """
    from datasets.utils import tqdm

    errors: list[str] = []
    warnings: list[str] = []
    lengths = np.zeros(len(split), dtype=np.int64)
    same, same_cut, refused, glued = (np.zeros(len(split), dtype=bool) for _ in range(4))
    ids = _ids_columns(split)
    if ids is not None:
        warnings.append(
            f"it holds token ids already (`{ids[0]}`, `{ids[1]}`), so TRL reads no text; remove them unless this "
            "tokenizer made them"
        )
    if ids is None and not {"chosen", "rejected"} <= set(split.column_names):
        errors.append(
            "it has no `chosen` and `rejected`, which TRL needs by these names; `export_for(dataset)` gives them"
        )
        refused[:] = True
        return Prepared(lengths, same, same_cut, refused, glued, tuple(errors), tuple(warnings))
    reasons: Counter[str] = Counter()
    firsts: dict[str, tuple[int, str]] = {}  # of each reason: the first row, and what was said there
    expected = ""  # the kind that TRL takes all rows for
    wanted = [*_TELLING, "tools", "chat_template_kwargs"] if ids is None else ids
    texts = split.select_columns([column for column in wanted if column in split.column_names])
    for i, row in enumerate(tqdm(_rows(texts), total=len(split), desc="Tokenising rows", unit="row")):
        if ids is not None:
            pair = row[ids[0]], row[ids[1]]
        else:
            kinds = {column: _kind(row[column]) for column in _TELLING if column in row}
            expected = expected or kinds["chosen"]
            reason, said = _reason(kinds, expected, row, tokenizer), ""
            if reason is None:
                try:
                    pair = token_ids(row, tokenizer)
                except Exception as error:  # whatever a chat template or a tokenizer raises, it raises in TRL as well
                    reason, said = (
                        f"{type(error).__name__} in {{}}",
                        f": {cards.escaped(error)}; drop them, or fill them in",
                    )
            if reason is not None:
                reasons[reason] += 1
                firsts.setdefault(reason, (i, said))
                refused[i] = True
                continue
            glued[i] = expected == "a string" and _is_glued(row)
        lengths[i] = max(map(len, pair))
        same[i] = pair[0] == pair[1]
        same_cut[i] = max_length is not None and pair[0][:max_length] == pair[1][:max_length]
    for reason, count in reasons.items():
        first, said = firsts[reason]
        errors.append(reason.format(f"{count} of {len(split)} rows (first: row {first})") + said)
    return Prepared(lengths, same, same_cut, refused, glued, tuple(errors), tuple(warnings))


def token_ids(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Both sides of a row as `RewardTrainer` tokenises them.

    Args:
        row: `chosen` and `rejected`, strings or message lists, maybe a `prompt` of the same kind, `tools` and
            `chat_template_kwargs`.
        tokenizer: Of the model to train.
    """
    prompt = row.get("prompt")
    sides = []
    for side in (row["chosen"], row["rejected"]):
        if isinstance(side, str):
            whole = side if side.endswith(tokenizer.eos_token) else side + tokenizer.eos_token
            sides.append(tokenizer(text=(prompt or "") + whole)["input_ids"])
        else:
            tools = row.get("tools")
            sides.append(
                tokenizer.apply_chat_template(
                    [*(prompt or []), *side],
                    tokenize=True,
                    return_dict=True,
                    tools=json.loads(tools) if isinstance(tools, str) else tools,
                    **row.get("chat_template_kwargs", {}),
                )["input_ids"]
            )
    return sides[0], sides[1]


def _reason(
    kinds: Mapping[str, str], expected: str, row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
) -> str | None:
    """Why TRL fails at a row, with `{}` for which rows; None if it does not."""
    remedy = "`export_for(dataset)` makes one kind of them"
    for column, kind in kinds.items():
        if column in ("prompt", "chosen", "rejected") and kind not in _GOOD:
            return f"`{column}` is {kind} in {{}}, allowed are strings and lists of messages; fill it in or drop them"
    if "prompt" in kinds and kinds["prompt"] != kinds["chosen"]:
        return f"`prompt` is {kinds['prompt']} and `chosen` {kinds['chosen']} in {{}}, which TRL cannot join; {remedy}"
    other = [column for column, kind in kinds.items() if kind != expected]
    if other:
        return (
            f"`{other[0]}` is {kinds[other[0]]} where others are {expected} in {{}}: TRL looks at any one of the "
            f"columns {', '.join(f'`{column}`' for column in kinds)} to tell what all are; {remedy}"
        )
    if "chat_template_kwargs" in row and row["chat_template_kwargs"] is None:
        return "`chat_template_kwargs` is None in {}, which TRL cannot unpack; remove the column, or fill it with dicts"
    if expected == "a string" and tokenizer.eos_token is None:
        return "the tokenizer has no EOS token, which TRL appends to the strings of {}; set `eos_token`"
    if expected == "messages" and not getattr(tokenizer, "chat_template", None):
        return (
            "the tokenizer has no chat template for the messages of {}; set one with `RewardConfig.chat_template_path`"
        )
    return None


def _kind(value: Any) -> str:
    if value is None or isinstance(value, str):
        return "None" if value is None else "a string"
    if isinstance(value, list):
        if not value:
            return "an empty list"
        return "messages" if isinstance(value[0], dict) and "role" in value[0] else "a list without roles"
    return "a dict of lists" if isinstance(value, dict) else f"of type {type(value).__name__}"


def _is_glued(row: Mapping[str, Any]) -> bool:
    """Whether the end of the prompt and the beginning of a response become one word."""
    prompt = row.get("prompt")
    if not prompt or prompt[-1].isspace():
        return False
    return any(side and not side[0].isspace() for side in (row["chosen"], row["rejected"]))


def _rows(split: Dataset) -> Iterator[dict[str, Any]]:
    for first in range(0, len(split), ROWS_AT_ONCE):
        batch = split[first : first + ROWS_AT_ONCE]
        yield from (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))


def _ids_columns(split: Dataset) -> tuple[str, str] | None:
    """The columns that TRL takes for token ids."""
    return next((pair for pair in (_IDS, _OLD_IDS) if set(pair) <= set(split.column_names)), None)
