r"""A batch of preference rows goes in, one `Pair` or one `RowError` per row comes out.

Every shape that preference datasets use becomes the same thing, a conversation: the messages of a prompt and
the messages of a response. The shapes:

- TRL's four: `chosen` and `rejected` as strings or message lists, with a `prompt` (explicit) or without
  (implicit);
- hh-rlhf: whole dialogues in one string, turns opened by `\n\nHuman:` and `\n\nAssistant:`;
- PKU-SafeRLHF: `prompt`, `response_0`, `response_1` and `safer_response_id`;
- N responses: a list column `responses`, see `responses_from_batch`; UltraFeedback's entries too, which hold a
  response beside the name of its model and its scores;
- beside any of them `tools` (a list of schemas, or that list as JSON) and `chat_template_kwargs` (a dict).

How a row is split:

- **Dialogue strings** begin with a marker, or (a prompt) end with an open `\n\nAssistant:`, or (without a
  `prompt` column) carry `\n\nAssistant:` anywhere. The response is the last assistant turn. A turn's content
  is exactly what stands between two markers, minus one space after the first of them; nothing else is
  stripped, trailing whitespace included. So messages written as a dialogue come back as they were;
  TRL's own conversion of hh-rlhf strips nothing either. Text before the first marker is a system message, or the
  user's if no human turn follows it.
- **Implicit message lists**: the response is the last message, as for dialogue strings, whatever the other side holds:
  what is read of a text never depends on its partner. So sides with different earlier turns have two prompts, where
  TRL's `extract_prompt` gives them responses of several turns behind what they share.
- **Implicit strings without markers** have no safe cut (a common *character* prefix ends inside a word): the
  prompt is empty and the whole string is the response.
- **Explicit**: the prompt is what the row says. If every side repeats it at its head (whole conversations
  beside a `prompt` column), it says nothing new and the row is read as implicit. `""` and `[]` are no prompt
  either.
- **Responses without a prompt** are read as they are, unless the row has a prompt after all, in a column that is called
  `question`, `instruction` or the like: such a batch is refused, for what a model reads would be half of the row.
- **A response begins with an assistant turn.** What a side has before that belongs to that side's prompt, so
  the two prompts may differ.

It does not know tokens, templates, models, or what happens to a refused row.
"""

from __future__ import annotations

import hashlib
import json
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import islice
from typing import Any, NamedTuple, TypeVar, cast

from legend_hf.reading.plain import make_plain

Message = Mapping[str, Any]  # `role`, `content`, maybe `tool_calls` and more; no key holds None
ROWS_AT_ONCE = 1000
ROLES = ("system", "developer", "user", "assistant", "tool", "function")

_MARKER = re.compile(r"\n\n(Human|Assistant):")
_MARKER_AT_START = re.compile(r"\s*(Human|Assistant):")  # some copies of hh-rlhf lack the leading newlines
_OPENING = "\n\nAssistant:"
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}
_INSTRUCTIONS = ("system", "developer")

_Value = str | list[Message]  # a cell that has been checked
_T = TypeVar("_T")


@dataclass(frozen=True)
class Conversation:
    """One prompt with one response.

    Attributes:
        prompt: The messages before the response; may be empty.
        response: One message or several turns; the first and the last are the assistant's, the last has text.
        tools: The row's tool schemas, or None.
        chat_template_kwargs: What the row passes to the chat template, or None.
        text: The row's own words (prompt, response), cut where the response begins, if both were strings:
            nothing is added or taken away, `"".join(text)` is the row's whole text. None for messages.
    """

    prompt: tuple[Message, ...]
    response: tuple[Message, ...]
    tools: tuple[Any, ...] | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None
    text: tuple[str, str] | None = None

    @property
    def plain(self) -> bool:
        """Whether it is roles and words alone, so that what is equal is written alike."""
        return not (self.tools or self.chat_template_kwargs) and all(
            len(message) == 2 and type(message.get("role")) is str and type(message.get("content")) is str
            for message in (*self.prompt, *self.response)
        )


@dataclass(frozen=True)
class Pair:
    """Two conversations of one row; their prompts may differ (hh-rlhf has such rows).

    Attributes:
        chosen: The better side.
        rejected: The other one.
        columns: The row's columns that the two were read from, for errors.
        source: Where the pair is from, in the row's words; None where no column was named for it.
    """

    chosen: Conversation
    rejected: Conversation
    columns: tuple[str, str] = field(default=("chosen", "rejected"), compare=False)
    source: str | None = None


@dataclass(frozen=True)
class Columns:
    """The names that a dataset uses; one that is not the default must exist in the batch."""

    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"
    responses: str = "responses"
    tools: str = "tools"
    chat_template_kwargs: str = "chat_template_kwargs"
    response_0: str = "response_0"
    response_1: str = "response_1"
    safer: str = "safer_response_id"
    source: str | None = None

    def __post_init__(self) -> None:
        """Takes names of any string type."""
        make_plain(self)


_DEFAULT_COLUMNS = Columns()
SKIP = ', or skip such rows with `on_error="skip"`'


class RowError(ValueError):
    """A row that cannot be read: a `ValueError`, because its value is what is wrong. It pickles.

    Attributes:
        row: Index of the row, counted from the `first_row` that the reading function was given.
        column: The column at fault, or None when several are together.
        reason: What was given (an excerpt), what is allowed, what to do.
    """

    def __init__(self, row: int, column: str | None, reason: str) -> None:
        super().__init__(row, column, reason)  # `args`, by which exceptions pickle, must be the arguments
        self.row = row
        self.column = column
        self.reason = reason

    def __str__(self) -> str:
        where = f"row {self.row}" if self.column is None else f"row {self.row}, column `{self.column}`"
        return f"{where}: {self.reason}"

    @property
    def status(self) -> str:
        """The same without the row: what a column that stands beside the row says of it."""
        reason = self.unskippable.reason  # to skip it is what was done
        return reason if self.column is None else f"column `{self.column}`: {reason}"

    @property
    def unskippable(self) -> RowError:
        """The same from a function that has no `on_error`, and must not advise it."""
        return RowError(self.row, self.column, self.reason.removesuffix(SKIP))


class UnnamedPrompt(ValueError):
    """Responses without a prompt stand beside a column that plainly holds their prompts.

    Attributes:
        column: That column.
    """

    def __init__(self, message: str, column: str) -> None:
        super().__init__(message, column)
        self.column = column

    def __str__(self) -> str:
        return str(self.args[0])


def pairs_from_batch(batch: Any, columns: Columns = _DEFAULT_COLUMNS, *, first_row: int = 0) -> list[Pair | RowError]:
    """Reads a batch of preference pairs in any of the shapes above.

    Args:
        batch: Column name -> one value per row, as `map(batched=True)` passes it in any format (lists, numpy,
            torch, pandas, arrow); a `Dataset` will do too. PKU's columns are read when `chosen` or `rejected`
            is absent.
        columns: The names of the columns.
        first_row: The row number of the batch's first row, for errors.

    Returns:
        One `Pair` or one `RowError` per row, in the order of the rows [n].

    Raises:
        ValueError: The batch is a single row (`map` without `batched=True`), has no such shape, its columns differ in
            length, or a prompt stands in a column that was not named.
    """
    names = _names(batch, columns)
    pku = {columns.prompt, columns.response_0, columns.response_1, columns.safer}
    if columns.chosen in names and columns.rejected in names:
        sides, safer = [columns.chosen, columns.rejected], []
    elif pku <= set(names):
        sides, safer = [columns.response_0, columns.response_1], [columns.safer]
    else:
        raise ValueError(
            f"the batch has the columns {_quoted(names)}, which is no shape of preference pairs; allowed are "
            f"`{columns.chosen}` and `{columns.rejected}`, with or without `{columns.prompt}`, or "
            f"`{columns.prompt}`, `{columns.response_0}`, `{columns.response_1}` and `{columns.safer}`; if "
            "yours have other names, say so with the arguments `prompt_column`, `chosen_column` and "
            "`rejected_column`, or use `rename_columns`"
        )
    table = _table(batch, names, [*sides, *safer], columns)

    def pair(row: Mapping[str, Any]) -> Pair:
        given = [(name, row[name]) for name in sides]
        if safer and _safer(row[columns.safer], columns.safer):
            given.reverse()
        chosen, rejected = _conversations(row, given, columns)
        source = None if columns.source is None else _source(row[columns.source], columns.source)
        return Pair(chosen, rejected, (given[0][0], given[1][0]), source)

    read = _each(table, pair, first_row)
    _check_prompts(
        batch, names, columns, [() if isinstance(r, RowError) else (r.chosen, r.rejected) for r in read], first_row
    )
    return read


def responses_from_batch(
    batch: Any, columns: Columns = _DEFAULT_COLUMNS, *, first_row: int = 0
) -> list[tuple[Conversation, ...] | RowError]:
    """As `pairs_from_batch`, but each row holds N responses in `columns.responses`, with or without a prompt.

    A response is a string or a message list, or a dict that holds one of them as `response`, as UltraFeedback's do;
    its other keys are ignored. A row's dicts may also arrive as one dict of lists, as `datasets` returns
    `Sequence({...})`. A response that cannot be read refuses its row.

    Args:
        batch: As in `pairs_from_batch`.
        columns: The names of the columns.
        first_row: As in `pairs_from_batch`.

    Returns:
        Per row one conversation for each of its responses, or one `RowError` [n].

    Raises:
        ValueError: As `pairs_from_batch`.
    """
    names = _names(batch, columns)
    if columns.responses not in names:
        raise ValueError(
            f"the batch has the columns {_quoted(names)}; allowed is `{columns.responses}`, a list of strings, of "
            "message lists, or of dicts with one of them as `response` per row, with or without "
            f"`{columns.prompt}`; if yours have other "
            "names, say so with the arguments `responses_column` and `prompt_column`, or use `rename_columns`"
        )
    table = _table(batch, names, [columns.responses], columns)

    def responses(row: Mapping[str, Any]) -> tuple[Conversation, ...]:
        return tuple(_conversations(row, _responses(row[columns.responses], columns.responses), columns))

    read = _each(table, responses, first_row)
    _check_prompts(batch, names, columns, [() if isinstance(r, RowError) else r for r in read], first_row)
    return read


def conversation(prompt: str | Sequence[Message] | None, response: str | Sequence[Message]) -> Conversation:
    """Reads one text by the rules for rows.

    Args:
        prompt: A string or a message list, or None when `response` holds the whole conversation.
        response: A string or a message list.

    Returns:
        The conversation, without tools.

    Raises:
        ValueError: One of the two cannot be read; the message names it.
    """
    row = {} if prompt is None else {_DEFAULT_COLUMNS.prompt: prompt}
    try:
        return _conversations(row, [("response", response)], _DEFAULT_COLUMNS)[0]
    except _Refusal as refusal:
        raise ValueError(f"`{refusal.column}`: {refusal.reason.removesuffix(SKIP)}") from None


def opening(conversation: Conversation) -> str:
    """What makes two rows "of one prompt": the first user turn, so that turns of one dialogue stay together."""
    for message in (*conversation.prompt, *conversation.response):
        if message["role"] == "user":
            return str(message.get("content") or "")
    return str(conversation.response[0].get("content") or "")


def prompt_key(conversation: Conversation) -> str:
    """Identity of a prompt in that sense, short enough to keep one for every row."""
    return hashlib.sha256(opening(conversation).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def response_length(conversation: Conversation) -> int:
    """Characters of the response, all its turns together."""
    return sum(len(message.get("content") or "") for message in conversation.response)


# -- Rows ----------------------------------------------------------------------------------------------------


def plain_rows(rows: Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    """The rows as they are stored, whatever format their dataset shows them in (a row of arrow's is a table)."""
    as_stored = getattr(rows, "with_format", None)
    return rows if as_stored is None else cast(Iterable[Mapping[str, Any]], as_stored(None))


def batches_of(
    rows: Iterable[Mapping[str, Any]], size: int = ROWS_AT_ONCE
) -> Iterator[tuple[int, Mapping[str, list[Any]]]]:
    """Columns of some rows at a time, each with the number of its first row; what a row lacks is None.

    Raises:
        RowError: A row is no mapping.
    """
    names: list[str] = []
    stored, first = iter(plain_rows(rows)), 0
    while chunk := list(islice(stored, size)):
        for number, row in enumerate(chunk, start=first):
            if not isinstance(row, Mapping):
                raise RowError(number, None, f"given {row!r:.60}; allowed is a dict with `chosen` and `rejected`")
            names += [name for name in row if name not in names]
        yield first, {name: [row.get(name) for row in chunk] for name in names}
        first += len(chunk)


def read_pairs(
    rows: Iterable[Mapping[str, Any]], columns: Columns | None = None, *, on_error: str = "skip"
) -> Iterator[Pair | RowError]:
    """Reads rows of pairs, one after the other, in any format.

    Args:
        rows: A dataset or rows.
        columns: Names of the columns, where they are not the usual ones.
        on_error: `"raise"` at the first row that cannot be read, or `"skip"`: its refusal stands in its place.

    Raises:
        RowError: A row is no mapping; or, as said, cannot be read.
    """
    for first, batch in batches_of(rows):
        for entry in pairs_from_batch(batch, columns or Columns(), first_row=first):
            if isinstance(entry, RowError) and on_error == "raise":
                raise entry
            yield entry


def sources_of(pairs: Iterable[Pair | RowError]) -> list[str | None]:
    """What each pair says of where it is from; refused rows say nothing and are left out."""
    return [pair.source for pair in pairs if isinstance(pair, Pair)]


# -- Batches -------------------------------------------------------------------------------------------------


class _Refusal(Exception):
    """What a `RowError` says, raised where the row's number is not known."""

    def __init__(
        self,
        column: str | None,
        given: str,
        allowed: str,
        remedy: str = "fill it in" + SKIP,
    ) -> None:
        super().__init__(column, given, allowed, remedy)
        self.column = column
        self.reason = f"{given}; allowed {allowed}; {remedy}"


def _each(
    table: Mapping[str, list[Any]], read: Callable[[Mapping[str, Any]], _T], first_row: int
) -> list[_T | RowError]:
    """Reads row after row; a refused row takes nothing from the others."""
    result: list[_T | RowError] = []
    for number, values in enumerate(zip(*table.values(), strict=True), start=first_row):
        try:
            result.append(read(dict(zip(table, values, strict=True))))
        except _Refusal as refusal:
            result.append(RowError(number, refusal.column, refusal.reason))
        except RecursionError:
            reason = "a value is nested too deeply; allowed are strings and lists of messages; flatten it"
            result.append(RowError(number, None, reason))
    return result


def names_of(batch: Any) -> list[str]:
    """The names of a batch's columns, in any format of `datasets`.

    Raises:
        ValueError: It is no batch.
    """
    if isinstance(batch, Mapping):
        return list(batch)
    # `column_names`: Dataset, pyarrow; `columns`: pandas, polars
    found = getattr(batch, "column_names", None)
    found = getattr(batch, "columns", None) if found is None else found
    if found is None or callable(found):
        raise ValueError(
            f"given {_excerpt(batch)} as a batch; allowed is a mapping of column names to one value per "
            "row (a dict of lists, a DataFrame, a Table); pass `dataset[:n]`, or use `map` with "
            "`batched=True`"
        )
    return list(found)


def _names(batch: Any, columns: Columns) -> list[str]:
    """The batch's column names; refuses a batch that lacks a column which the caller named."""
    names = names_of(batch)
    for column in fields(Columns):
        name = getattr(columns, column.name)
        if name != column.default and name not in names:
            raise ValueError(
                f"`{column.name}_column={name!r}` names no column; allowed are the batch's columns, "
                f"{_quoted(names)}; name one of these"
            )
    return names


def _table(batch: Any, names: Sequence[str], required: Sequence[str], columns: Columns) -> dict[str, list[Any]]:
    """The required columns, and those that any shape may have, as lists of equal length."""
    optional = [columns.prompt, columns.tools, columns.chat_template_kwargs]
    optional += [] if columns.source is None else [columns.source]
    wanted = [*required, *optional]
    twice = next((name for name in wanted if wanted.count(name) > 1), None)
    if twice is not None:
        both = [f"`{column.name}_column`" for column in fields(Columns) if getattr(columns, column.name) == twice]
        raise ValueError(
            f"{' and '.join(both)} name the same column, `{twice}`; allowed is a column of its own for each; name "
            "another one"
        )
    twice = next((name for name in wanted if names.count(name) > 1), None)
    if twice is not None:  # tables and frames can
        raise ValueError(
            f"the batch has {names.count(twice)} columns named `{twice}`; allowed is one; rename or drop the others"
        )
    table: dict[str, list[Any]] = {}
    for name in [*required, *(name for name in optional if name in names)]:
        column = _listed(batch[name])
        if column is None:
            raise _single_row(name, batch[name])
        table[name] = column
    # A single row of message lists looks like a batch, but its "rows" are messages.
    texts = [table[name] for name in (*required, columns.prompt) if name in table and name != columns.safer]
    single = all(column and all(_is_message(value) for value in column) for column in texts)
    if required[0] == columns.responses:  # so does a single list of responses, but a row holds a list of its own
        single = single or (bool(texts[0]) and all(isinstance(value, str) or _is_entry(value) for value in texts[0]))
    if single:
        raise _single_row(required[0], texts[0])
    if len({len(column) for column in table.values()}) > 1:
        lengths = ", ".join(f"`{name}` has {len(column)}" for name, column in table.items())
        raise ValueError(f"given columns of different lengths: {lengths}; allowed is one value per row in each")
    return table


def _single_row(name: str, value: Any) -> ValueError:
    return ValueError(
        f"`{name}` holds {_excerpt(value)}, the value of a single row; allowed is a batch, a list with one "
        "such value per row; pass `batched=True` to `map`"
    )


def _listed(value: Any) -> list[Any] | None:
    """A list, out of whatever formatted datasets use for lists; None for anything else."""
    if isinstance(value, list):
        return value
    if isinstance(value, str | bytes | bytearray | memoryview | Mapping):
        return None
    for convert in ("to_pylist", "tolist", "to_list"):  # arrow; numpy, torch, pandas; polars
        if callable(getattr(value, convert, None)):
            found = getattr(value, convert)()
            return found if isinstance(found, list) else None  # 0-d arrays give their scalar
    return list(value) if isinstance(value, Sequence) else None


def _unlisted(value: Mapping[str, Any], key: str) -> list[dict[str, Any]] | None:
    """Dicts out of a dict of lists, as `datasets` returns `Sequence({...})`; None for another dict."""
    lists = {name: _listed(items) for name, items in value.items() if items is not None}
    columns = [items for items in lists.values() if items is not None]
    if key not in lists or len(columns) < len(lists) or len({len(items) for items in columns}) != 1:
        return None
    return [dict(zip(lists, items, strict=True)) for items in zip(*columns, strict=True)]


def _scalar(value: Any) -> Any:
    """The Python value in a 0-d array or tensor; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def _plain(value: Any, column: str, *, nulls: bool = False) -> Any:
    """Nested values as checked strings, dicts, lists and scalars.

    Without `nulls`, keys that hold None are dropped: Arrow gives every row the keys of all the others, filled
    with None, and a chat template would print them.
    """
    if isinstance(value, str):
        return _string(value, column, "the text")
    if isinstance(value, Mapping):
        return {
            _string(key, column, "a key") if isinstance(key, str) else key: _plain(item, column, nulls=nulls)
            for key, item in value.items()
            if nulls or item is not None
        }
    items = _listed(value)
    return _scalar(value) if items is None else [_plain(item, column, nulls=nulls) for item in items]


# What prompts are called elsewhere; the second are called so too, but so may be names or topics.
_PROMPTS = frozenset(["prompt", "question", "instruction", "query", "input", "problem", "request"])
_PROMPTS_TOO = _PROMPTS | {"user", "human", "ask", "goal", "context", "history", "post", "message"}
_PROMPTS_TOO |= {"dialogue", "dialog", "conversation"}
_BESIDE = frozenset(["text", "content", "body", "str", "string", "raw", "full", "first", "last", "the", "turn"])


def _check_prompts(
    batch: Any, names: Sequence[str], columns: Columns, rows: Sequence[Sequence[Conversation]], first_row: int
) -> None:
    """Refuses responses without a prompt beside a column that plainly holds their prompts."""
    bare = [i for i, sides in enumerate(rows) if not all(side.prompt for side in sides)]
    words = {name: _words(name) for name in names if bare and name not in vars(columns).values()}
    likely = [name for name in words if words[name] <= _PROMPTS and len(words[name]) == 1]
    likely += [name for name in words if words[name] <= _PROMPTS_TOO | _BESIDE and words[name] & _PROMPTS_TOO]
    for name in dict.fromkeys(likely):
        cells = _listed(batch[name]) or []
        for i in bare[: len(cells)]:
            cell = _scalar(cells[i])
            if _asks(cell, sure=words[name] <= _PROMPTS) and not all(_holds(side, cell) for side in rows[i]):
                raise UnnamedPrompt(
                    f"row {first_row + i} has responses without a prompt, and its column `{name}` holds "
                    f"{_excerpt(cell)}; allowed is a prompt in the column `{columns.prompt}` or in the responses; say "
                    f"`prompt_column={name!r}`, or `remove_columns({name!r})` if that is no prompt",
                    name,
                )


def _words(name: str) -> set[str]:
    """The words of a column's name, in lower case and the singular."""
    return {word.lower().removesuffix("s") for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+|\d+", name)}


def _asks(cell: Any, *, sure: bool) -> bool:
    """Whether a cell is text, or messages; where its column may hold names or topics, text of several words."""
    if isinstance(cell, str):
        return bool(cell.strip()) if sure else len(cell.split()) > 1
    items = _unlisted(cell, "role") if isinstance(cell, Mapping) else _listed(cell)
    return bool(items) and all(_is_message(item) for item in items or ())


def _holds(side: Conversation, cell: Any) -> bool:
    """Whether a side has the text of the cell in it."""
    said = "".join(str(message.get("content") or "") for message in side.response)
    return isinstance(cell, str) and cell.strip() in said


def _is_missing(value: Any) -> bool:
    """Whether a cell is empty: None, or what pandas puts in its place."""
    return value is None or (isinstance(value, float) and value != value) or type(value).__name__ == "NAType"


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("role"), str)


def _is_entry(value: Any) -> bool:
    """Whether this is a dict with one response, and not the dict of lists with all of a row's."""
    held = value.get("response") if isinstance(value, Mapping) else None
    messages = None if isinstance(held, str) else _listed(held)
    return isinstance(held, str) or (bool(messages) and all(_is_message(message) for message in messages or ()))


# -- Rows ----------------------------------------------------------------------------------------------------


def _conversations(row: Mapping[str, Any], given: Sequence[tuple[str, Any]], columns: Columns) -> list[Conversation]:
    """Reads the sides of one row, given as (name, value), each alone: together they only say whether they fit."""
    tools = _tools(row.get(columns.tools), columns.tools)
    kwargs = _kwargs(row.get(columns.chat_template_kwargs), columns.chat_template_kwargs)
    prompt = _prompt(_value(row[columns.prompt], columns.prompt)) if columns.prompt in row else _NO_PROMPT
    sides = [(name, _value(value, name)) for name, value in given]
    repeats = [_repeats(prompt, side) for _, side in sides]
    if any(repeats) and not all(repeats):
        whole, bare = sides[repeats.index(True)][0], sides[repeats.index(False)][0]
        raise _Refusal(
            None,
            f"`{whole}` repeats `{columns.prompt}` at its head, `{bare}` does not",
            "are responses only, or whole conversations only",
            f"cut the prompt out of `{whole}`, or drop the row with `Dataset.filter`",
        )
    if prompt is _NO_PROMPT or all(repeats):
        splits = _split_implicit(sides)
    else:
        splits = [_split_explicit(prompt, name, side) for name, side in sides]
    for (name, side), split in zip(sides, splits, strict=True):
        _check_end(split.response, name, side)
    return [Conversation(tuple(s.prompt), tuple(s.response), tools, kwargs, s.text) for s in splits]


def _responses(cell: Any, column: str) -> list[tuple[str, Any]]:
    """The responses of one row, each with its name for errors, out of whatever holds them."""
    given = _unlisted(cell, "response") if isinstance(cell, Mapping) else _listed(cell)
    if not given:
        raise _Refusal(
            column,
            f"given {_excerpt(cell)}",
            "is a list with at least one response, each a string, a message list, or a dict with one of them as "
            "`response`",
        )
    named = []
    for i, entry in enumerate(given):
        name, held = f"{column}[{i}]", isinstance(entry, Mapping) and "role" not in entry
        if held and "response" not in entry:
            raise _Refusal(
                name,
                f"given a dict with the keys {_quoted(entry)} and no `response`",
                "is a string, a message list, or a dict with one of them as `response`",
                "rename the key that holds the response",
            )
        named.append((name, entry["response"] if held else entry))
    return named


def _tools(value: Any, column: str) -> tuple[Any, ...] | None:
    """Tool schemas, or None when there are none; a null inside JSON is the schema's own and stays."""
    if _is_missing(value) or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, str):
        try:
            tools = _plain(json.loads(value), column, nulls=True)
        except (ValueError, RecursionError):
            tools = value
    else:
        tools = _plain(value, column)
    if tools is None:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise _Refusal(
            column,
            f"given {_excerpt(value)}",
            "is a list of tool schemas (dicts), or the same list as valid JSON",
            "write the schemas so, or remove the column",
        )
    return tuple(tools) or None


def _kwargs(value: Any, column: str) -> dict[str, Any] | None:
    if _is_missing(value):
        return None
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise _Refusal(
            column,
            f"given {_excerpt(value)}",
            "is a dict of keyword arguments for the chat template",
            "make it a dict with strings as keys, or remove the column",
        )
    return _plain(value, column) or None


def _safer(value: Any, column: str) -> int:
    """PKU's choice; a whole float will do, because pandas has no other integers beside a missing one."""
    number = _scalar(value)
    if isinstance(number, bool) or not isinstance(number, int | float) or number not in (0, 1):
        raise _Refusal(column, f"given {_excerpt(value)}", "is 0 or 1, the number of the safer response")
    return int(number)


def _source(value: Any, column: str) -> str:
    if _is_missing(value) or not str(value).strip():
        raise _Refusal(column, f"given {_excerpt(value)}", "is what names where the pair is from")
    return str(value)


def _check_end(response: Sequence[Message], column: str, side: _Value) -> None:
    """Refuses a response that does not end with words of the assistant."""
    if not response or response[-1]["role"] != "assistant":
        ending = f"ends with a turn of `{response[-1]['role']}`" if response else "has no turn of `assistant`"
        raise _Refusal(
            column,
            f"{_excerpt(side)} {ending}",
            "is a response whose last turn is the assistant's",
            "cut off what follows that, or drop the row with `Dataset.filter`",
        )
    content = response[-1].get("content")
    if content is None:
        raise _Refusal(column, f"the last message of {_excerpt(side)} has only `tool_calls`", "is one with text")
    if not content or content.isspace():
        raise _Refusal(column, f"the response {_excerpt(content)} is empty or only whitespace", "is one with text")


# -- Values --------------------------------------------------------------------------------------------------


def _value(given: Any, column: str) -> _Value:
    """A cell as a checked string or as checked messages."""
    given = _scalar(given)
    allowed = "is a string or a list of messages"
    if isinstance(given, str):
        return _string(given, column, "the text")
    if _is_missing(given):
        raise _Refusal(column, f"given {given!r}", allowed)
    columnwise = isinstance(given, Mapping) and not _is_message(given)
    items = _unlisted(given, "role") if columnwise else _listed(given)
    if items is None:
        remedy = "write `[...]` around it" if _is_message(given) else "convert it"
        raise _Refusal(column, f"given {_excerpt(given)} ({type(given).__name__})", allowed, remedy)
    return [_message(item, column, f"message {index}") for index, item in enumerate(items)]


def _string(given: str, column: str, what: str) -> str:
    """The string as plain `str`; refused if no tokenizer could encode it."""
    text = str(given)  # numpy's strings print as `np.str_(...)`
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise _Refusal(
                column,
                f"{what} has the lone surrogate {text[error.start]!r} at character {error.start}",
                "is text that UTF-8 can encode",
                'replace it, for example with `text.encode("utf-8", "replace").decode()`',
            ) from None
    return text


def _message(given: Any, column: str, what: str) -> Message:
    """A copy of one message, checked, without keys that hold nothing."""
    if not isinstance(given, Mapping):
        shown = f"{what} is {_excerpt(given)} ({type(given).__name__})"
        raise _Refusal(column, shown, "is a dict with `role` and `content`", "convert it")
    found = {key: item for key, item in given.items() if item is not None}
    role = found.get("role")
    if not isinstance(role, str) or role not in ROLES:
        shown = f"the role {_excerpt(role)}" if "role" in found else f"the keys {_quoted(found)} and no `role`"
        raise _Refusal(
            column,
            f"{what} has {shown}",
            f"are the keys `role`, `content`, the roles {_quoted(ROLES)}",
            "rename it",
        )
    message: dict[str, Any] = {"role": str(role)}
    if "content" in found:
        message["content"] = _content(found["content"], column, what)
    for key, item in found.items():
        if key not in ("role", "content"):
            plain = _plain(item, column)
            if not isinstance(plain, list | dict) or plain:  # unset `tool_calls` of an old Sequence are empty
                message[_string(key, column, "a key") if isinstance(key, str) else key] = plain
    if "content" not in message and not (role == "assistant" and "tool_calls" in message):
        raise _Refusal(
            column,
            f"{what}, of the role `{role}`, has no `content`, or None",
            "is text, which only an assistant's message with `tool_calls` may lack",
        )
    return message


def _content(given: Any, column: str, what: str) -> str:
    """The text of a message: a string, or the joined texts of a list of parts."""
    given = _scalar(given)
    if isinstance(given, str):
        return _string(given, column, what)
    parts = _unlisted(given, "type") if isinstance(given, Mapping) else _listed(given)
    if parts is None:
        shown = f"{what} has the content {_excerpt(given)} ({type(given).__name__})"
        raise _Refusal(column, shown, "is a string or a list of text parts", "convert it")
    texts = []
    for part in parts:
        kind, text = (part.get("type"), part.get("text")) if isinstance(part, Mapping) else (None, None)
        if not isinstance(kind, str) or kind != "text" or not isinstance(text, str):
            raise _Refusal(
                column,
                f"{what} has the part {_excerpt(part)}",
                'is text only, as parts {"type": "text", "text": "..."}',
                "drop the row with `Dataset.filter`",
            )
        texts.append(_string(text, column, what))
    return "".join(texts)


# -- Splitting -----------------------------------------------------------------------------------------------


class _Turn(NamedTuple):
    """One turn of a dialogue string."""

    role: str  # "" for what stands before the first marker
    start: int  # where `raw` begins in the string
    raw: str  # everything up to the next marker
    marked: bool = True  # whether it follows a marker, whose one space is then not part of the content

    def message(self) -> Message:
        return _said(self.role, self.raw[1:] if self.marked and self.raw.startswith(" ") else self.raw)


class _Prompt(NamedTuple):
    """The prompt of a row, before its responses are looked at."""

    messages: list[Message]
    text: str | None = None  # if it was a string
    is_dialogue: bool = False
    opening: str | None = None  # whitespace behind a final open `\n\nAssistant:`; None without one


class _Split(NamedTuple):
    """One side, cut in two."""

    prompt: list[Message]
    response: list[Message]
    text: tuple[str, str] | None


_NO_PROMPT = _Prompt([])


def _said(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _turns(text: str, *, at_start: bool) -> list[_Turn]:
    """Cuts a string at its markers, in one pass.

    Args:
        text: The string.
        at_start: Whether a marker at its very start may lack the newlines. Unless a marker is found there,
            the first turn is what precedes the markers, maybe nothing.
    """
    first = _MARKER_AT_START.match(text) if at_start else None
    markers = [*([first] if first else []), *_MARKER.finditer(text, first.end() if first else 0)]
    ends = [*(marker.start() for marker in markers), len(text)]
    turns = [] if first else [_Turn("", 0, text[: ends[0]], marked=False)]
    for marker, end in zip(markers, ends[1:], strict=True):
        turns.append(_Turn(_SPEAKERS[marker[1]], marker.end(), text[marker.end() : end]))
    return turns


def _dialogue(text: str) -> list[_Turn]:
    """The turns of a dialogue string, each with a role."""
    turns = _turns(text, at_start=True)
    if not turns[0].role:
        # Instructions precede a human who speaks; what the assistant answers at once is the human's own.
        follows = turns[1].role if len(turns) > 1 else ""
        turns[0] = turns[0]._replace(role="system" if follows == "user" else "user")
    return turns


def _prompt(value: _Value) -> _Prompt:
    """A prompt as messages."""
    if not value:
        return _NO_PROMPT
    if not isinstance(value, str):
        return _Prompt(value)
    if not (_MARKER_AT_START.match(value) or value.rstrip().endswith(_OPENING)):
        return _Prompt([_said("user", value)], value)
    turns = _dialogue(value)
    is_open = turns[-1].role == "assistant" and not turns[-1].raw.strip()
    opening = turns.pop().raw if is_open else None
    return _Prompt([turn.message() for turn in turns], value, True, opening)


def _repeats(prompt: _Prompt, side: _Value) -> bool:
    """Whether a side has the prompt again at its head, maybe behind instructions that the prompt lacks."""
    if not prompt.messages:
        return False
    if isinstance(side, str):
        if not _MARKER_AT_START.match(side):
            return False
        side = [turn.message() for turn in _dialogue(side)]
    skip = 0
    if prompt.messages[0]["role"] not in _INSTRUCTIONS:
        skip = next((i for i, message in enumerate(side) if message["role"] not in _INSTRUCTIONS), 0)
    head = side[skip : skip + len(prompt.messages)]
    return len(side) > skip + len(head) and [*map(_stripped, head)] == [*map(_stripped, prompt.messages)]


def _stripped(message: Message) -> tuple[str, str]:
    return message["role"], message.get("content", "").strip()


def _lead(messages: Sequence[Message]) -> int:
    """How many messages stand before the first of the assistant's."""
    return next((i for i, message in enumerate(messages) if message["role"] == "assistant"), len(messages))


def _split_implicit(sides: Sequence[tuple[str, _Value]]) -> list[_Split]:
    """Splits sides that hold whole conversations."""
    strings = [side for _, side in sides if isinstance(side, str)]
    lists = [side for _, side in sides if not isinstance(side, str)]
    if strings and lists:
        raise _Refusal(
            None,
            f"without a prompt, {_quoted(name for name, _ in sides)} mix strings and message lists",
            "is one kind",
            "convert one into the other",
        )
    if lists:
        cuts = [max(_lead(side), len(side) - 1) for side in lists]
        return [_Split(side[:cut], side[cut:], None) for side, cut in zip(lists, cuts, strict=True)]
    marked = [_OPENING in side or _MARKER_AT_START.match(side) is not None for side in strings]
    if not any(marked):
        return [_Split([], [_said("assistant", side)], ("", side)) for side in strings]
    if not all(marked):
        dialogue, bare = sides[marked.index(True)][0], sides[marked.index(False)][0]
        raise _Refusal(
            None,
            f"without a prompt, `{dialogue}` carries the markers of a dialogue and `{bare}` does not",
            "are dialogues only, or plain texts only",
            "add the markers, or a prompt",
        )
    splits = []
    for side in strings:
        *before, last = _dialogue(side)
        text = (side[: last.start], side[last.start :])
        splits.append(_Split([turn.message() for turn in before], [last.message()], text))
    return splits


def _split_explicit(prompt: _Prompt, column: str, side: _Value) -> _Split:
    """Joins a prompt and a response."""
    if isinstance(side, str):
        turns = _continued(prompt, side)
        messages = [turn.message() for turn in turns]
    else:
        messages = side
    lead = _lead(messages)
    if lead and prompt.messages:
        last, first = prompt.messages[-1]["role"], messages[0]["role"]
        if first in _INSTRUCTIONS or first == last == "user":
            raise _Refusal(
                column,
                f"the response {_excerpt(side)} begins with a turn of `{first}`, where the prompt ends with "
                f"one of `{last}`",
                "is a response that continues the prompt",
                "if it holds the whole conversation, remove the prompt's column",
            )
    text = None
    if isinstance(side, str) and prompt.text is not None and lead < len(messages):
        start = turns[lead].start
        text = (prompt.text + side[:start], side[start:])
    return _Split([*prompt.messages, *messages[:lead]], messages[lead:], text)


def _continued(prompt: _Prompt, side: str) -> list[_Turn]:
    """The turns of a string that goes on where a prompt stops."""
    if not prompt.is_dialogue:
        return [_Turn("assistant", 0, side, marked=False)]
    turns = _turns(side, at_start=prompt.opening is None)
    if turns[0].role:
        return turns
    if not turns[0].raw.strip() and len(turns) > 1 and turns[1].role == "assistant":
        return turns[1:]  # the prompt opened the assistant's turn already
    return [turns[0]._replace(role="assistant", marked=prompt.opening == ""), *turns[1:]]


# -- Words for errors ----------------------------------------------------------------------------------------

_EXCERPT = 60  # characters of a value that an error shows
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _EXCERPT
_REPR.maxlist = _REPR.maxtuple = _REPR.maxdict = 3


def _excerpt(value: Any) -> str:
    """The beginning of a value's repr, without the cost of all of it."""
    try:
        text = isinstance(value, str)
        shown = repr(str(value[:_EXCERPT])) if text else " ".join(_REPR.repr(value).split())
    except ValueError:  # integers of more than 4300 digits do not print
        shown = f"a {type(value).__name__} that does not print"
    return f"{shown[:_EXCERPT]}..." if len(shown) > _EXCERPT else shown


def _quoted(names: Iterable[Any]) -> str:
    """Names in backticks, at most twenty."""
    every = [
        f"`{name[:_EXCERPT] if isinstance(name, str) and name.isprintable() else _excerpt(name)}`" for name in names
    ]
    return ", ".join([*every[:20], *(["..."] if len(every) > 20 else [])]) or "none"
