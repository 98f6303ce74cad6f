"""An annotated preference dataset becomes what one trainer reads: its columns, its flags, and what to know about both.

In: a `Dataset` or `DatasetDict` with `margin`, in any shape that `reading.formats` takes. Out: an `Export`, whose
dataset has the columns which that trainer reads and no others. This file knows no tokenizer and no model: whether rows
fit a model's window is for `check_for_trl` to say. TRL is run in the tests; what OpenRLHF
0.11.2 and ms-swift 4.6.0 do with a row was read in their sources, not run.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from legend_hf.margins.columns import MARGIN_STATUS, like_margin, numbers_of, ok_rows, one_size, remedy_for, splits_of
from legend_hf.margins.scoring import edition
from legend_hf.reading.formats import Columns, Pair, RowError, pairs_from_batch
from legend_hf.reading.plain import check_choice

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, Features

logger = logging.getLogger(__name__)

TRAINERS = ("trl", "openrlhf", "ms-swift")

# `map` hashes an imported function by its name alone: what it writes changed whenever this did.
_EXPORT_VERSION = 2
_OPENING = "\n\nAssistant:"  # where a response begins in a dialogue string

_NOT_RUN = "Held to the source of {name}, which itself was not run."
# What ms-swift's dataset reader lets pass: a row with another role is deleted, with a line in its log.
_SWIFT_ROLES = ("system", "user", "assistant", "tool")
# What becomes of the rejected side: columns that say it, the first that can in every row. Where they name what follows
# the last turn of the user, ms-swift gives the rejected side the chosen one's tools and keywords; whole conversations
# need their own.
_REJECTED: dict[str, tuple[str, ...]] = {
    "rejected_response": ("rejected_response",),
    "rejected_turns": ("rejected_turns",),
    "rejected_messages": ("rejected_messages", "rejected_tools", "rejected_chat_template_kwargs"),
}


@dataclass(frozen=True)
class Export:
    """What a trainer reads, and what to tell it.

    Attributes:
        dataset: The same kind as was given, with the same splits.
        trainer: `"trl"`, `"openrlhf"` or `"ms-swift"`.
        columns: The columns of `dataset`; the trainer reads all of them.
        flags: Command-line flags that the trainer needs in order to read them; TRL needs none.
        notes: What the trainer does with the margin, what was left out, and how this was verified.
    """

    dataset: Dataset | DatasetDict
    trainer: str
    columns: tuple[str, ...]
    flags: tuple[str, ...]
    notes: tuple[str, ...]


def export_for(
    dataset: Dataset | DatasetDict,
    *,
    trainer: str = "trl",
    messages: bool = False,
    weights: bool = False,
    prompt_column: str = "prompt",
    chosen_column: str = "chosen",
    rejected_column: str = "rejected",
) -> Export:
    """Gives a trainer the columns that it reads, whatever the shape of the rows.

    Rows come out with an explicit prompt: strings where all columns hold strings, message lists otherwise. So hh-rlhf's
    dialogues are cut where the response begins (joined again they are the same text), PKU-SafeRLHF's rows become
    prompt, chosen and rejected, and a string prompt with message lists, at which TRL fails, becomes messages. Where the
    two sides' prompts differ, the prompt is what they share. Rows whose `margin_status` is not `"ok"` are left out:
    their 0.0 says nothing.

    Where margins helped a reward model in `scripts/RESULTS.md`, soft labels, weights and leaving out the most negative
    pairs helped more; where it was regularised well, none of them did. `legend_hf.reports.compare` says it for your
    rows.

    `weights=True` adds what a pair's label is worth, for the losses of TRL's that read no such column:
    `legend_hf.training` has `SoftRewardTrainer` and `SoftDPOTrainer`, with `use="margin_prob"` (a soft label) or
    `use="weight"`. Take one or the other: `weight` is max(0, 2p - 1), which makes both losses' gradients equal where
    training starts, and 0 for a pair whose label is more likely wrong than right (ours; |2p - 1| would push hardest
    towards the labels that are surely wrong).

    Args:
        dataset: Annotated rows, in any shape that `LegendMarginFn` takes.
        trainer: `"trl"` (`RewardTrainer`, `DPOTrainer` and others), `"openrlhf"` or `"ms-swift"`.
        messages: Write message lists where all columns are strings, too. TRL joins a string prompt and response with
            nothing between; chat templates need messages. ms-swift always gets them.
        weights: Add `margin_prob` and `weight`, for the trainers above; `"trl"` only.
        prompt_column: Name of the prompts' column, where it is not `prompt`.
        chosen_column: Name of the chosen responses' column.
        rejected_column: Name of the rejected responses' column.

    Returns:
        The export. `margin` is float32, one finite number a row.

    Raises:
        ValueError: An argument that is not allowed; a column is missing; a margin that is no finite number.
        RowError: A row that cannot be read, that as messages has no prompt, or whose roles ms-swift does not take (a
            ValueError).
    """
    from datasets import DatasetDict

    check_choice("trainer", trainer, TRAINERS)
    if weights and trainer != "trl":
        raise ValueError(
            f"`weights=True` is for the trainers of `legend_hf.training`, which are TRL's; `trainer` is {trainer!r}; "
            'pass `trainer="trl"`, or leave `weights` out'
        )
    names = Columns(prompt=prompt_column, chosen=chosen_column, rejected=rejected_column)
    splits = {name: split.with_format(None) for name, split in splits_of(dataset).items()}
    for split in splits.values():
        pairs_from_batch(split[:0], names)  # refuses columns that are no preference pairs
    kept = {name: _kept(split) for name, split in splits.items()}
    for name, rows in kept.items():
        _check_numbers(name, splits[name], rows, ["margin", *(["margin_prob"] if weights else [])])
    left_out = {name: len(splits[name]) - len(rows) for name, rows in kept.items()}
    for name, count in left_out.items():
        if count:
            logger.warning("left out %d of %d rows of %r: `margin_status` is not ok", count, len(splits[name]), name)

    margins = [
        values[kept[name]] for name, split in splits.items() if (values := numbers_of(split, "margin")) is not None
    ]
    same = one_size(np.concatenate(margins))
    if same is not None:
        logger.warning("of the margins %s, so they tell few pairs from others", same)

    as_messages = messages or trainer == "ms-swift" or not all(_is_text(split, names) for split in splits.values())
    write = _WRITERS["ms-swift" if trainer == "ms-swift" else "messages" if as_messages else "strings"]
    features = _features([split.features for split in splits.values()], names, trainer, as_messages, weights)
    done = {name: _write(name, splits[name], rows, names, write, features) for name, rows in kept.items()}
    equal = sum(len(rows) - len(done[name]) for name, rows in kept.items())
    if trainer == "ms-swift":
        done = _one_rejected(done)
    elif trainer == "openrlhf" and as_messages:
        done = _sides_that_answer(done)
    columns = tuple(next(iter(done.values())).column_names)
    if equal:
        logger.warning("left out %d rows: both sides are equal, and ms-swift deletes such rows", equal)
    lost = [
        name for name in (names.tools, names.chat_template_kwargs) if any(name in s.features for s in splits.values())
    ]
    notes = _notes(trainer, columns)
    if not as_messages:
        notes += _notes_on_strings(lost if trainer == "trl" else [])
    notes += _notes_on_rows(equal, sum(left_out.values()), same)
    return Export(
        dataset=DatasetDict(done) if isinstance(dataset, DatasetDict) else next(iter(done.values())),
        trainer=trainer,
        columns=columns,
        flags=_flags(trainer, as_messages, columns),
        notes=tuple(notes),
    )


def _notes_on_strings(lost: Sequence[str]) -> list[str]:
    """What strings are not, where message lists would be; `lost` are columns that only a chat template reads."""
    notes = []
    if lost:
        notes.append(
            f"Left out: {' and '.join(f'`{name}`' for name in lost)}, which only a chat template reads, and strings "
            "pass through none; `messages=True` keeps them."
        )
    notes.append("Prompt and response are joined with nothing between; `messages=True` gives chat templates a say.")
    return notes


def _notes_on_rows(equal: int, left_out: int, same: str | None) -> list[str]:
    """How many rows are not there, and what those that are there say too little of."""
    notes = []
    if equal:
        notes.append(f"{equal} rows were left out: both their sides are equal, and ms-swift deletes such rows.")
    if same is not None:
        notes.append(f"Of the margins {same}, so they tell few pairs from others.")
    if left_out:
        notes.append(f"{left_out} rows were left out: their `margin_status` is not ok.")
    return notes


# -- What is refused -----------------------------------------------------------------------------------------


def _check_numbers(name: str, split: Dataset, rows: np.ndarray, columns: Sequence[str]) -> None:
    """Refuses a split without the numbers, or whose `rows` have some that no training survives."""
    for column in columns:
        if column not in split.column_names:
            raise ValueError(_missing(name, split, column))
        values = numbers_of(split, column)
        if values is None:
            raise ValueError(
                f"split {name!r}: `{column}` is {split.features[column]}; allowed is one number a row (a list of one "
                f"number mixes the pairs of a batch with each other); {remedy_for(split, column)}"
            )
        values = values[rows]
        wrong = ~np.isfinite(values) if column == "margin" else ~((values >= 0) & (values <= 1))
        if wrong.any():
            allowed = "a finite number" if column == "margin" else "a probability from 0 to 1"
            raise ValueError(
                f"split {name!r}: `{column}` is not {allowed} in {int(wrong.sum())} rows (first: row "
                f"{rows[int(wrong.argmax())]}); annotate anew, or drop them with `Dataset.filter`"
            )


def _missing(name: str, split: Dataset, column: str) -> str:
    if column == "margin_prob":
        return (
            f"split {name!r} has no `margin_prob`, which `weights=True` needs; annotate it with "
            '`LegendMarginFn(direction, add=["margin_prob"])`, whose direction needs a `link` or `logit` calibration'
        )
    similar = like_margin(split.column_names)
    rename = f', or, if that is it, `rename_column("{similar[0]}", "margin")`' if similar else ""
    return f"split {name!r} has no `margin`; add it with `annotate(dataset, direction)`{rename}"


def _kept(split: Dataset) -> np.ndarray:
    """The row numbers `[k]` of the rows whose margin was measured."""
    return ok_rows(split, MARGIN_STATUS)


# -- Rows ----------------------------------------------------------------------------------------------------


def _write(
    name: str,
    split: Dataset,
    rows: np.ndarray,
    names: Columns,
    write: Callable[[Pair], dict[str, Any] | str],
    features: Features,
) -> Dataset:
    """A split's kept rows in the trainer's shape."""
    from datasets import Dataset

    if not len(rows):  # `map` would return the old columns
        empty: dict[str, list[Any]] = {column: [] for column in features}
        return Dataset.from_dict(empty, features=features, split=split.split)
    try:
        return split.select(rows).map(
            _convert,
            batched=True,
            with_indices=True,
            remove_columns=split.column_names,
            features=features,
            fn_kwargs={
                "rows": rows,
                "names": names,
                "write": write,
                "columns": list(features),
                "version": f"{_EXPORT_VERSION}, {edition()}",
            },
            desc="Exporting rows",
        )
    except RowError as error:
        error.add_note(f"in split {name!r}")
        raise


def _convert(
    batch: Mapping[str, Any],
    index: Sequence[int],
    *,
    rows: np.ndarray,
    names: Columns,
    write: Callable[[Pair], dict[str, Any] | str],
    columns: Sequence[str],
    version: str,
) -> dict[str, Any]:
    """One batch; `rows` are the row numbers before any were left out. `version` is there to be hashed."""
    written: dict[str, list[Any]] = {column: [] for column in columns}
    kept: list[int] = []
    for place, (i, pair) in enumerate(zip(index, pairs_from_batch(batch, names), strict=True)):
        if isinstance(pair, RowError):
            raise RowError(int(rows[i]), pair.column, pair.reason).unskippable
        row = write(pair)
        if isinstance(row, str):
            raise RowError(int(rows[i]), None, row)
        if not row:
            continue
        kept.append(place)
        tools = pair.chosen.tools
        row["tools"] = row["rejected_tools"] = None if tools is None else json.dumps(tools, ensure_ascii=False)
        row["chat_template_kwargs"] = dict(pair.chosen.chat_template_kwargs or {})
        row["rejected_chat_template_kwargs"] = row["chat_template_kwargs"]
        for column in written.keys() & row.keys():
            written[column].append(row[column])
    numbers = {c: np.asarray(batch[c], dtype=np.float32)[kept] for c in ("margin", "margin_prob") if c in columns}
    if "weight" in columns:
        numbers["weight"] = np.maximum(2 * numbers["margin_prob"] - 1, 0)
    return {**written, **numbers}


def _strings(pair: Pair) -> dict[str, Any]:
    """Strings that joined are the row's own text, to the character."""
    one, other = pair.chosen.text, pair.rejected.text
    assert one is not None  # because all columns are strings
    assert other is not None
    cut = len(one[0])
    if one[0] != other[0]:  # then a response is all that follows the last opening of the shared part
        shared = _shared(one[0], other[0], lambda a, b: a == b)
        last = one[0].rfind(_OPENING, 0, shared)
        cut = last + len(_OPENING) if last >= 0 else 0
    return {"prompt": one[0][:cut], "chosen": one[0][cut:] + one[1], "rejected": other[0][cut:] + other[1]}


def _messages(pair: Pair) -> dict[str, Any] | str:
    """Message lists; what the two prompts share is the prompt."""
    one, other = pair.chosen, pair.rejected
    shared = _shared(one.prompt, other.prompt, _says_the_same)
    if not shared:
        return (
            "the two sides share no message, so as messages the row has no prompt, which chat templates refuse; "
            "allowed are rows with a prompt; add one, or drop the row with `Dataset.filter`"
        )
    return {
        "prompt": list(one.prompt[:shared]),
        "chosen": [*one.prompt[shared:], *one.response],
        "rejected": [*other.prompt[shared:], *other.response],
    }


def _shared(one: Sequence[Any], other: Sequence[Any], same: Callable[[Any, Any], bool]) -> int:
    """How long the beginning is that both have."""
    shorter = min(len(one), len(other))
    return next((i for i in range(shorter) if not same(one[i], other[i])), shorter)


def _says_the_same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two messages do; ids and time stamps beside the words do not count."""
    return all(one.get(key) == other.get(key) for key in ("role", "content", "tool_calls"))


def _swift(pair: Pair) -> dict[str, Any] | str:
    """ms-swift's standard format: the chosen conversation, and the rejected side in each way that can say it.

    Its reader puts `rejected_response`, a text or messages, in the place of all that follows the last turn of the user
    in `messages`. Equal sides give nothing.
    """
    explicit = _messages(pair)
    if isinstance(explicit, str):
        return explicit
    chosen, rejected = (explicit["prompt"] + explicit[side] for side in ("chosen", "rejected"))
    for side in (chosen, rejected):
        wrong = _why_not_swift(side)
        if wrong is not None:
            return wrong
    if len(chosen) == len(rejected) == _shared(chosen, rejected, _says_the_same):
        return {}
    start = max((i for i, message in enumerate(chosen) if message["role"] == "user"), default=-1) + 1
    turns: list[Any] | None = rejected[start:]
    if _shared(chosen[:start], rejected, _says_the_same) < start or any(turn["role"] == "user" for turn in turns or ()):
        turns = None
    alone = turns is not None and len(turns) == 1 and isinstance(turns[0].get("content"), str)
    return {
        "messages": chosen,
        "rejected_response": turns[0]["content"] if alone and turns and "tool_calls" not in turns[0] else None,
        "rejected_turns": turns or None,
        "rejected_messages": rejected,
    }


def _why_not_swift(side: Sequence[Mapping[str, Any]]) -> str | None:
    """Why ms-swift would delete a conversation, or stop at it; None if it would not."""
    for i, message in enumerate(side):
        role = message["role"]
        first = i == 0 or (i == 1 and side[0]["role"] == "system")
        if role not in _SWIFT_ROLES:
            found = f"message {i} has the role {role!r}, and ms-swift deletes such rows"
        elif (role == "system" and i > 0) or (role == "tool" and first):
            found = f"message {i} has the role {role!r}, at which ms-swift stops in this place"
        else:
            continue
        return (
            f"{found}; allowed are `system` at the beginning, then `user`, `assistant`, and `tool` behind one of them; "
            "rename or merge the message, or drop the row with `Dataset.filter`"
        )
    return None


_WRITERS: dict[str, Callable[[Pair], dict[str, Any] | str]] = {
    "strings": _strings,
    "messages": _messages,
    "ms-swift": _swift,
}


def _one_rejected(done: Mapping[str, Dataset]) -> dict[str, Dataset]:
    """The first way to say the rejected side that says all in every row of every split."""
    said = next(way for way in _REJECTED if not any(cell is None for split in done.values() for cell in split[way]))
    unread = {column for way, columns in _REJECTED.items() if way != said for column in columns}
    slim = {name: split.remove_columns(sorted(unread & set(split.column_names))) for name, split in done.items()}
    if said == "rejected_turns":
        return {name: split.rename_column("rejected_turns", "rejected_response") for name, split in slim.items()}
    return slim


def _sides_that_answer(done: Mapping[str, Dataset]) -> dict[str, Dataset]:
    """OpenRLHF cuts a side where the prompt, opened for an answer, would end: sides that begin otherwise stay whole."""
    firsts = (messages[0]["role"] for split in done.values() for side in _SIDES for messages in split[side])
    if all(role == "assistant" for role in firsts):
        return dict(done)
    return {
        name: split.map(_whole, batched=True, remove_columns=["prompt"], fn_kwargs={"version": edition()})
        for name, split in done.items()
    }


def _whole(batch: Mapping[str, list[Any]], *, version: str) -> dict[str, list[Any]]:
    """One batch; `version` is there to be hashed."""
    return {side: [p + r for p, r in zip(batch["prompt"], batch[side], strict=True)] for side in _SIDES}


_SIDES = ("chosen", "rejected")


# -- Types ---------------------------------------------------------------------------------------------------


def _text_columns(columns: Iterable[str], names: Columns) -> list[str]:
    """The columns that hold the rows' texts."""
    there = set(columns)
    sides = (names.chosen, names.rejected)
    if not set(sides) <= there:
        sides = (names.response_0, names.response_1)
    return [name for name in (names.prompt, *sides) if name in there]


def _is_text(split: Dataset, names: Columns) -> bool:
    """Whether all texts are strings."""
    return all(
        getattr(split.features[name], "dtype", None) in ("string", "large_string")
        for name in _text_columns(split.column_names, names)
    )


def _features(given: Sequence[Features], names: Columns, trainer: str, as_messages: bool, weights: bool) -> Features:
    """The columns of the export and their types, the same for every split."""
    from datasets import Features, List, Value

    texts = ["messages", *_REJECTED] if trainer == "ms-swift" else _EXPLICIT
    kind = List(_message_type(given, names)) if as_messages else Value("string")
    types: dict[str, Any] = {name: Value("string") if name == "rejected_response" else kind for name in texts}
    if as_messages and trainer != "openrlhf":
        if any(names.tools in features for features in given):
            types["tools"] = Value("string")  # as JSON: a column of schemas would fill each with the others' keys
            types |= {"rejected_tools": Value("string")} if trainer == "ms-swift" else {}
        kwargs = [features[names.chat_template_kwargs] for features in given if names.chat_template_kwargs in features]
        known = next((kind for kind in kwargs if kind != Value("null")), None)
        if known is not None:
            types["chat_template_kwargs"] = known
            types |= {"rejected_chat_template_kwargs": known} if trainer == "ms-swift" else {}
    numbers = ["margin", *(["margin_prob", "weight"] if weights else [])]
    return Features({**types, **{name: Value("float32") for name in numbers}})


_EXPLICIT = ["prompt", "chosen", "rejected"]


def _message_type(given: Sequence[Features], names: Columns) -> Any:
    """The type of a message: a role, a content, and what else any message of the rows has."""
    from datasets import LargeList, List, Value

    message: dict[str, Any] = {"role": Value("string"), "content": Value("string")}
    for features in given:
        for name in _text_columns(features, names):
            kind = features[name]
            if isinstance(kind, List | LargeList):
                if not isinstance(kind.feature, dict):
                    return kind.feature  # JSON, which holds any message as it is
                found = kind.feature
            elif isinstance(kind, dict):  # lists of each key, as old datasets have it
                found = {key: getattr(values, "feature", values) for key, values in kind.items()}
            else:
                found = {}
            message = {**found, **message}
    return message


# -- Words ---------------------------------------------------------------------------------------------------


def _flags(trainer: str, as_messages: bool, columns: Sequence[str]) -> tuple[str, ...]:
    if trainer == "openrlhf":
        flags = ["--model.margin_loss_enable", *(["--data.prompt_key prompt"] if "prompt" in columns else [])]
        flags += ["--data.chosen_key chosen", "--data.rejected_key rejected"]
        return (*flags, *(["--data.apply_chat_template"] if as_messages else []))
    if trainer == "ms-swift":
        # Its loader drops this column otherwise, and the rejected side would be read without its keywords.
        keep = ["--remove_unused_columns false"] if "rejected_chat_template_kwargs" in columns else []
        return ("--rlhf_type rm", *keep)
    return ()


def _notes(trainer: str, columns: Sequence[str]) -> list[str]:
    if trainer == "openrlhf":
        return [
            "Subtracts `margin` only with `--model.margin_loss_enable` (in older versions `--margin_loss`, and the "
            "`--data.` flags without that prefix); `--model.loss_type logexp` then still ignores it, silently.",
            "Reads neither `tools` nor `chat_template_kwargs`; they are left out, as are all other columns.",
            "Puts no BOS before strings, a space and EOS behind them, and cuts what is longer than its `max_len`, "
            "silently.",
            _NOT_RUN.format(name="OpenRLHF 0.11.2"),
        ]
    if trainer == "ms-swift":
        return [
            "Subtracts `margin` by itself. Before the fix of modelscope/ms-swift#9927 (merged in August 2026) it "
            "subtracted every margin of a batch from every pair of it, a wrong loss without an error, and dropped "
            "missing margins, which shifted the others: use a version with the fix, or a batch of one pair. "
            "Here no margin is missing.",
            "All other columns are left out. Of a message it reads `role`, `content`, `tool_calls`, a tool's `name`, "
            "and drops the rest.",
            *_SWIFT_NOTES[: 1 + ("chat_template_kwargs" in columns)],
            _NOT_RUN.format(name="ms-swift 4.6.0"),
        ]
    notes = [
        "`RewardTrainer` uses `margin` by itself: -logsigmoid(r_c - r_r - margin). `DPOTrainer` and `KTOTrainer` "
        "ignore it, silently.",
        "All other columns are left out. `RewardTrainer` removes rows with a side over `max_length`, silently: "
        "`check_for_trl` counts them.",
        "Run with TRL 1.16: `RewardTrainer` and `DPOTrainer` train on it.",
    ]
    if "chat_template_kwargs" in columns:
        notes.append("Where a row lacks a keyword for the chat template that another row has, TRL passes None for it.")
    if "weight" in columns:
        notes.append(
            "`margin_prob` and `weight` reach no loss of TRL's own; `legend_hf.training` has `SoftRewardTrainer` and "
            '`SoftDPOTrainer`, which train with either: `use="margin_prob"` or `use="weight"`.'
        )
    else:
        notes.append(
            "Where a margin helped a reward model in this library's own comparison, soft labels and weights helped "
            "more: `weights=True` adds them, and `compare` says what helps on these rows."
        )
    return notes


_SWIFT_NOTES = (
    "Where a row has no system message, it writes that of its own template.",
    "Of `chat_template_kwargs` its own templates read a few, `enable_thinking` among them; `--template_backend jinja` "
    "gives the tokenizer's chat template all of them, None where a row lacks a keyword that another row has.",
)
