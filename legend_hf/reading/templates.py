"""Conversations become token ids.

In: `Conversation`s and a fast tokenizer. Out: `Tokens`, the ids of one whole text and the positions that pooling reads.
Each text is tokenised and cut **alone**, never beside its partner, so a score belongs to one text and can be stored,
re-paired and added. This file knows no model and no direction.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from legend_hf.reading.formats import Conversation, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHAT = "chat"
DIALOGUE = "dialogue"
# The Alpaca prompt without input, which the paper's public code uses. `{prompt}` takes the instruction.
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{prompt}\n\n### Response:"
)
DEFAULT_JOINER = {CHAT: "", DIALOGUE: " ", "alpaca": "\n"}

# transformers gives templates a `strftime_now` that reads the clock, and takes no function of ours in its place. A
# macro of that name in front of the template shadows it. (`+%}` keeps the template's own first line break.)
_FROZEN_CLOCK = "{% macro strftime_now(format) %}{{ dates_by_format[format] }}{% endmacro +%}"
_DATE_FORMAT = re.compile(r"""strftime_now\(\s*("[^"]*"|'[^']*')\s*\)""")

_MARKERS = {
    "user": "\n\nHuman:",
    "assistant": "\n\nAssistant:",
    "system": "\n\nSystem:",
    "developer": "\n\nSystem:",
    "tool": "\n\nTool:",
    "function": "\n\nTool:",
}


class TextError(ValueError):
    """One text cannot be read: it is too long, or its chat template refuses or rewrites it."""


@dataclass(frozen=True)
class Tokens:
    """One text as a model reads it.

    Attributes:
        ids: Token ids of the whole text, after truncation.
        content: Ascending positions in `ids` that mean pooling averages over (the response's content tokens).
        last: The position that `last` pooling reads.
    """

    ids: tuple[int, ...]
    content: tuple[int, ...]
    last: int


@dataclass(frozen=True)
class Rendered:
    """One text as a string.

    Attributes:
        text: The whole string.
        spans: Character spans of the response's content in `text`, ascending.
        specials: Whether the tokenizer adds its own special tokens (a chat template writes them itself).
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    specials: bool


def render(
    conversation: Conversation,
    tokenizer: PreTrainedTokenizerBase,
    *,
    template: str,
    joiner: str,
    date: str,
) -> Rendered:
    """Writes one conversation as the text a model reads.

    Args:
        conversation: Prompt and response.
        tokenizer: Used for its chat template only.
        template: `"chat"`, `"dialogue"` (the markers of hh-rlhf), `"alpaca"`, or a string that contains `{prompt}`.
        joiner: What stands between a plain template's last character and the response.
        date: ISO date that chat templates print as today's.

    Raises:
        TextError: The chat template refuses the messages, or writes the response so differently that its place in
            the text is lost.
    """
    if template == CHAT:
        return _render_chat(conversation, tokenizer, date)
    if not conversation.prompt and conversation.text is not None and not conversation.text[0]:
        # A whole string without a known split: markers around it would be an invention.
        text = conversation.text[1]
        return Rendered(text, ((0, len(text)),), specials=True)
    if template == DIALOGUE:
        return _render_dialogue(conversation, joiner)
    before, _, after = (ALPACA if template == "alpaca" else template).partition("{prompt}")
    head = before + _instruction(conversation) + after + joiner
    response = _response(conversation, joiner)
    return Rendered(head + response, ((len(head), len(head) + len(response)),), specials=True)


def render_open(
    conversation: Conversation, tokenizer: PreTrainedTokenizerBase, *, template: str, joiner: str, date: str
) -> str:
    """Writes a conversation's prompt as `render` does, up to where a response would begin, for a model to go on.

    A chat template opens the assistant's turn as it does for generation. Spaces at the end are left out: one before a
    word is part of the word's token, and a model would go on in the middle of it.

    Raises:
        TextError: As `render`.
    """
    if template == CHAT:
        return _apply(conversation.prompt, conversation, tokenizer, date, open_turn=True)
    whole = render(conversation, tokenizer, template=template, joiner=joiner, date=date)
    return whole.text[: whole.spans[0][0]].rstrip(" ")


def tokenize(
    rendered: Sequence[Rendered],
    tokenizer: PreTrainedTokenizerBase,
    *,
    eos: str,
    pooling: str,
    max_length: int,
) -> list[Tokens | TextError]:
    """Tokenises texts, each alone.

    A content token is one that ends past the response's first character and starts before its end, found by character
    offsets. Too long a text loses tokens from the prompt's beginning, a leading BOS (or CLS) is kept.

    Args:
        rendered: Texts.
        tokenizer: A fast tokenizer; it is not changed.
        eos: `"none"`, `"append"` (the EOS token ends every text) or `"template"` (what the chat template puts after
            the response stays in the text).
        pooling: `"mean"`, `"last"` or `"mean_all"`, decides which positions count as content.
        max_length: Longest text in tokens.

    Returns:
        One `Tokens` a text, or the `TextError` that says why it cannot be read.
    """
    if not rendered:
        return []
    texts = [r.text if eos == "template" else r.text[: r.spans[-1][1]] for r in rendered]
    encoded = tokenizer(
        texts,
        add_special_tokens=rendered[0].specials,
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        truncation=False,
        padding=False,
        verbose=False,  # its length warning speaks of the model's window, which is checked below
    )
    return [
        _locate(r, ids, offsets, tokenizer, eos=eos, pooling=pooling, max_length=max_length)
        for r, ids, offsets in zip(rendered, encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]


def _locate(
    rendered: Rendered,
    ids: list[int],
    offsets: list[tuple[int, int]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    eos: str,
    pooling: str,
    max_length: int,
) -> Tokens | TextError:
    """Finds the content tokens of one text and cuts it to `max_length`."""
    start, end = rendered.spans[0][0], rendered.spans[-1][1]
    content = [i for i, (a, b) in enumerate(offsets) if b > start and a < end and b > a]
    if len(rendered.spans) > 1:  # several turns: what stands between the assistant's contents is not content
        content = [i for i in content if any(offsets[i][1] > a and offsets[i][0] < b for a, b in rendered.spans)]
    if not content:
        return TextError("the response has no tokens; give it some text, or drop the row")
    eos_id = tokenizer.eos_token_id
    last = content[-1]
    if eos == "template":
        last = next((i for i in range(content[-1] + 1, len(ids)) if ids[i] == eos_id), last)
    elif ids[-1] == eos_id and len(ids) - 1 > content[-1] and eos_id != tokenizer.sep_token_id:
        # This tokenizer ends every text with EOS by itself; whether a text ends so is the Reader's to say.
        ids = ids[:-1]
    if eos == "append":
        ids = [*ids, eos_id]
        last = len(ids) - 1
    kept = 1 if ids[0] in (tokenizer.bos_token_id, tokenizer.cls_token_id) else 0
    cut = len(ids) - max_length
    if cut > 0:
        room = content[0] - kept
        if cut > room:
            return TextError(
                f"the response needs {len(ids) - room} tokens by itself, `max_length` is {max_length}; shorten it, "
                'skip such rows with `on_error="skip"`, or fit a direction with a larger `max_length` (bounded by '
                "the model's window)"
            )
        ids = ids[:kept] + ids[kept + cut :]
        content = [i - cut for i in content]
        last -= cut
    if pooling == "mean_all":
        content = list(range(len(ids)))
    return Tokens(tuple(ids), tuple(content), last)


def _render_dialogue(conversation: Conversation, joiner: str) -> Rendered:
    """Writes messages with the markers of hh-rlhf, `joiner` standing before each content."""
    text, spans = "", []
    for message in conversation.prompt:
        # Instructions at the very start stand without a marker, as a preamble does in a dialogue string.
        bare = not text and message["role"] in ("system", "developer")
        text += _content(message) if bare else _MARKERS[message["role"]] + joiner + _content(message)
    for message in conversation.response:
        text += _MARKERS[message["role"]] + joiner
        content = _content(message)
        if message["role"] == "assistant" and content:
            spans.append((len(text), len(text) + len(content)))
        text += content
    return Rendered(text, tuple(spans), specials=True)


def _instruction(conversation: Conversation) -> str:
    """The prompt as the public code gives it to the Alpaca template: a dialogue up to and including its last marker."""
    if conversation.text is not None:
        return conversation.text[0]
    messages = conversation.prompt
    if len(messages) == 1 and messages[0]["role"] == "user":
        return _content(messages[0])
    return "".join(_MARKERS[m["role"]] + " " + _content(m) for m in messages) + _MARKERS["assistant"]


def _response(conversation: Conversation, joiner: str) -> str:
    """The response as a plain template takes it.

    Without a joiner the row's own leading space is the only thing that separates it from the template and stays, as in
    the public code; with one, it would stand twice.
    """
    if conversation.text is not None:
        response = conversation.text[1]
        return response.removeprefix(" ") if joiner else response
    first, *rest = conversation.response
    return _content(first) + "".join(_MARKERS[m["role"]] + " " + _content(m) for m in rest)


def _content(message: Message) -> str:
    """A message's text, with the tool calls that a plain template has no other place for."""
    content = message.get("content") or ""
    calls = message.get("tool_calls")
    return f"{content}\n{json.dumps(calls, sort_keys=True)}".lstrip("\n") if calls else content


def _render_chat(conversation: Conversation, tokenizer: PreTrainedTokenizerBase, date: str) -> Rendered:
    """Renders with the tokenizer's chat template and finds the response in what it wrote.

    Templates trim contents, and put headers and end-of-turn tokens around them. So the same messages are rendered once
    more with a marker in place of each content: what stands between the markers is the template's own, and what the
    real text has there instead is the content.
    """
    messages = [*conversation.prompt, *conversation.response]
    contents, marked = [], list(messages)
    for i in range(len(conversation.prompt), len(messages)):
        if messages[i]["role"] == "assistant" and messages[i].get("content"):
            contents.append(messages[i]["content"])
            marked[i] = {**messages[i], "content": f"<response-{len(contents)}-of-this-text>"}
    text = _apply(messages, conversation, tokenizer, date)
    frame = _apply(marked, conversation, tokenizer, date)

    spans, place = [], 0
    for k, content in enumerate(contents, start=1):
        before, found, frame = frame.partition(f"<response-{k}-of-this-text>")
        following = frame.partition(f"<response-{k + 1}-of-this-text>")[0]
        start = place + len(before)
        written = next(
            (c for c in (content, content.strip(), content.lstrip(), content.rstrip())
             if c and text.startswith(c + following, start)),
            None,
        )  # fmt: skip
        if not found or not text.startswith(before, place) or written is None:
            raise TextError(
                "the chat template rewrites the response, so its tokens cannot be told from the template's; "
                'use `template="dialogue"`, or pass `chat_template_kwargs` under which the template leaves it as it is'
            )
        spans.append((start, start + len(written)))
        place = start + len(written)
    return Rendered(text, tuple(spans), specials=False)


def _apply(
    messages: Sequence[Message],
    conversation: Conversation,
    tokenizer: PreTrainedTokenizerBase,
    date: str,
    *,
    open_turn: bool = False,
) -> str:
    import jinja2

    tools = list(conversation.tools) if conversation.tools else None
    template = tokenizer.get_chat_template(tools=tools)
    kwargs: dict[str, Any] = dict(conversation.chat_template_kwargs or {})
    formats = _DATE_FORMAT.findall(template)
    if formats:
        day = datetime.fromisoformat(date)
        template = _FROZEN_CLOCK + template
        kwargs["dates_by_format"] = {quoted[1:-1]: day.strftime(quoted[1:-1]) for quoted in formats}
    try:
        return str(
            tokenizer.apply_chat_template(
                [dict(m) for m in messages],
                tools=tools,
                chat_template=template,
                tokenize=False,
                add_generation_prompt=open_turn,
                **kwargs,
            )
        )
    except (jinja2.TemplateError, TypeError) as error:
        raise TextError(f"the chat template refuses these messages: {error}; mend the row or drop it") from error
