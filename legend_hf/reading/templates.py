"""Conversations become token ids.

In: `Conversation`s and a fast tokenizer. Out: `Tokens`, the ids of one whole text and the positions that pooling reads.
Each text is tokenised and cut **alone**, never beside its partner, so a score belongs to one text and can be stored,
re-paired and added. This file knows no model and no direction.
"""

from __future__ import annotations

import json
import re
import string
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from legend_hf.reading.formats import SKIP, Conversation, Message

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

CHAT = "chat"
DIALOGUE = "dialogue"
# Alpaca's prompt without input (tatsu-lab/stanford_alpaca, train.py). `{prompt}` takes the instruction.
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{prompt}\n\n### Response:"
)
# What the paper's public code has in its place (colfeng/Legend@02ba9af: SMV.py, annotation.py): no "appropriately".
REFERENCE = (
    "Below is an instruction that describes a task. Write a response that completes the request."
    "\n\n### Instruction:\n{prompt}\n\n### Response:"
)
DEFAULT_JOINER = {CHAT: "", DIALOGUE: " ", "alpaca": "\n"}

# transformers gives templates a `strftime_now` that reads the clock, and takes no function of ours in its place. A
# macro of that name in front of the template shadows it, whatever format it is called with: of the pieces between its
# `%`, each but the first begins with a directive, or is empty and makes a `%` with the one before. (`+%}` keeps the
# template's own first line break.)
_FROZEN_CLOCK = (
    "{% macro strftime_now(format) %}{% set day = DAY %}{% set ns = namespace(plain=true) %}"
    "{% for p in format.split('%') %}{% if ns.plain %}{% set ns.plain = false %}{{ p }}"
    "{% elif not p and not loop.last %}{% set ns.plain = true %}%"
    "{% elif p[:2] in day %}{{ day[p[:2]] }}{{ p[2:] }}{% elif p[:1] in day %}{{ day[p[:1]] }}{{ p[1:] }}"
    "{% else %}%{{ p }}{% endif %}{% endfor %}{% endmacro +%}"
)
_CHANCE = re.compile(r"\|\s*random\b|\blipsum\s*\(")  # Jinja's own, which transformers leaves in place

_PLAIN = re.compile("[A-Za-z0-9]")

REACH = 16  # characters for each token of the window: how much of a long prompt or response is looked at, at first
SLACK = 64  # tokens that the part which is looked at must have beyond the window, so that none at its cut edge is kept
PORTION = 1_000_000  # characters that are tokenised at once; a tokenizer needs some hundred bytes for each token

_SAID = 300  # characters of a template's own error that are repeated

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
        response: The response's content tokens where pooling reads others too (`mean_all`); else empty, see `said`.
    """

    ids: tuple[int, ...]
    content: tuple[int, ...]
    last: int
    response: tuple[int, ...] = ()

    @property
    def said(self) -> tuple[int, ...]:
        """Ascending positions in `ids` of the response's content tokens, whatever is pooled."""
        return self.response or self.content


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
    verbatim: bool = False,
) -> Rendered:
    """Writes one conversation as the text a model reads.

    Args:
        conversation: Prompt and response.
        tokenizer: Used for its chat template only.
        template: `"chat"`, `"dialogue"` (the markers of hh-rlhf), `"alpaca"`, or a string that contains `{prompt}`.
        joiner: What stands between a plain template's last character and the response.
        date: ISO date that chat templates print as today's.
        verbatim: A string's own space behind a dialogue's marker stays beside the joiner, as in the public code.

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
    response = _response(conversation, stands_alone=not joiner or verbatim)
    return Rendered(head + response, ((len(head), len(head) + len(response)),), specials=True)


def render_all(
    conversations: Sequence[Conversation],
    tokenizer: PreTrainedTokenizerBase,
    *,
    template: str,
    joiner: str,
    date: str,
    verbatim: bool = False,
) -> list[Rendered | TextError]:
    """Writes many as `render` writes each; what cannot be written comes back as its error.

    A chat template is called once for all that are plain, where most of the time of a call for one goes into the call.
    """

    def alone(conversation: Conversation) -> Rendered | TextError:
        try:
            return render(conversation, tokenizer, template=template, joiner=joiner, date=date, verbatim=verbatim)
        except TextError as error:
            return error

    if template != CHAT:
        return [alone(one) for one in conversations]
    plain = [place for place, one in enumerate(conversations) if one.plain]
    written = dict(
        zip(plain, _rendered_together([conversations[place] for place in plain], tokenizer, date), strict=True)
    )
    return [written.get(place) or alone(one) for place, one in enumerate(conversations)]


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
    offsets. Too long a text loses tokens from the prompt's beginning, a leading BOS (or CLS) is kept. Of a prompt or a
    response with more than `REACH` characters for each token of the window only a part is looked at; the tokens are
    those that the whole text would give, except in the middle of a word as long as that part.

    Args:
        rendered: Texts.
        tokenizer: A fast tokenizer; it is not changed.
        eos: `"none"`, `"append"` (the EOS token ends every text) or `"template"` (what the chat template puts after
            the response stays in the text, and the token that ends the turn is the last: the EOS, or another).
        pooling: `"mean"`, `"last"` or `"mean_all"`, decides which positions count as content.
        max_length: Longest text in tokens.

    Returns:
        One `Tokens` a text, or the `TextError` that says why it cannot be read.
    """
    short = [_shortened(one, tokenizer, max_length) for one in rendered]
    special = _Special.of(tokenizer)
    located = (
        _locate(one, ids, encoding, tokenizer, special, eos=eos, pooling=pooling, max_length=max_length)
        for portion in _portions([one for one in short if isinstance(one, Rendered)])
        for one, ids, encoding in zip(portion, *_encode(portion, tokenizer, eos=eos), strict=True)
    )
    return [one if isinstance(one, TextError) else next(located) for one in short]


def surely_fits(rendered: Rendered, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> bool:
    """Whether a response certainly has tokens, and not too many, without tokenising it.

    A token stands for a byte at least. Where a tokenizer writes texts longer than they are, so that this errs, it is
    only later that the text is refused.
    """
    behind = rendered.text[rendered.spans[0][0] :]
    short = len(behind) + SLACK <= max_length and (behind.isascii() or len(behind.encode()) + SLACK <= max_length)
    said = any(_PLAIN.search(rendered.text, start, end) for start, end in rendered.spans)
    return short and said and _reads_plain(tokenizer)


@lru_cache(maxsize=8)  # it keeps the tokenizers alive
def _reads_plain(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer makes a token of each letter and digit of ASCII."""
    return all(_count(letter, tokenizer) for letter in string.ascii_letters + string.digits)


def _shortened(rendered: Rendered, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Rendered | TextError:
    """Leaves out what would be cut anyway, long before the response, so that a long text costs what is kept of it."""
    start, end = rendered.spans[0][0], rendered.spans[-1][1]
    reach = REACH * max_length
    while reach < end - start:
        needed = _count(rendered.text[start : start + reach], tokenizer) - SLACK
        if needed > max_length:
            return _too_long(needed, max_length)
        reach *= 2
    reach = REACH * max_length
    while reach < start and _count(rendered.text[start - reach : start], tokenizer) < max_length + SLACK:
        reach *= 2
    if reach >= start:
        return rendered
    first = "" if rendered.specials else _first_special(rendered.text, tokenizer)
    moved = start - reach - len(first)
    spans = tuple((a - moved, b - moved) for a, b in rendered.spans)
    return Rendered(first + rendered.text[start - reach :], spans, rendered.specials)


def _first_special(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The BOS (or CLS) that a chat template wrote at the beginning, which a cut keeps."""
    tokens = (tokenizer.bos_token, tokenizer.cls_token)
    return next((token for token in tokens if token and text.startswith(token)), "")


def _portions(rendered: Sequence[Rendered]) -> Iterator[list[Rendered]]:
    """Puts texts together until a portion is large enough."""
    portion: list[Rendered] = []
    size = 0
    for one in rendered:
        portion.append(one)
        size += len(one.text)
        if size >= PORTION:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion


def _encode(
    rendered: Sequence[Rendered], tokenizer: PreTrainedTokenizerBase, *, eos: str
) -> tuple[list[list[int]], list[Encoding]]:
    """Token ids, and what knows their character offsets, for texts of one template."""
    encoded = tokenizer(
        [one.text if eos == "template" else one.text[: one.spans[-1][1]] for one in rendered],
        add_special_tokens=rendered[0].specials,
        return_attention_mask=False,
        return_token_type_ids=False,
        truncation=False,
        padding=False,
        verbose=False,  # its length warning speaks of the model's window, which is checked below
    )
    return encoded["input_ids"], encoded.encodings


def _count(text: str, tokenizer: PreTrainedTokenizerBase) -> int:
    return len(tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"])


def _too_long(needed: int, max_length: int, least: str = "at least ") -> TextError:
    return TextError(
        f"the response needs {least}{needed} tokens by itself, `max_length` is {max_length}; shorten it, or fit a "
        f"direction with a larger `max_length` (bounded by the model's window){SKIP}"
    )


class _Special(NamedTuple):
    """Ids of a tokenizer's special tokens, which it looks up anew whenever it is asked."""

    bos: Any
    cls: Any
    sep: Any
    eos: Any

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> _Special:
        return cls(tokenizer.bos_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.eos_token_id)


def _locate(
    rendered: Rendered,
    ids: list[int],
    encoding: Encoding,
    tokenizer: PreTrainedTokenizerBase,
    special: _Special,
    *,
    eos: str,
    pooling: str,
    max_length: int,
) -> Tokens | TextError:
    """Finds the content tokens of one text and cuts it to `max_length`."""
    content = _content_of(rendered, encoding)
    if not content:
        return TextError("the response has no tokens; give it some text, or drop the row")
    last = content[-1]
    if eos == "template":
        closing = _end_of_turn(ids, content[-1] + 1, tokenizer)
        if closing is None and pooling == "last":
            return TextError(
                "the chat template puts no token of its own behind the response that could be its end; use "
                '`eos="append"`, or `eos="none"`'
            )
        last = last if closing is None else closing
    elif ids[-1] == special.eos and len(ids) - 1 > content[-1] and special.eos != special.sep:
        # This tokenizer ends every text with EOS by itself; whether a text ends so is the Reader's to say.
        ids = ids[:-1]
    if eos == "append":
        ids = [*ids, special.eos]
        last = len(ids) - 1
    kept = 1 if ids[0] in (special.bos, special.cls) else 0
    cut = len(ids) - max_length
    if cut > 0:
        room = content[0] - kept
        if cut > room:
            return _too_long(len(ids) - room, max_length, least="")
        ids = ids[:kept] + ids[kept + cut :]
        content = [place - cut for place in content]
        last -= cut
    if pooling == "mean_all":
        return Tokens(tuple(ids), tuple(range(len(ids))), last, tuple(content))
    return Tokens(tuple(ids), tuple(content), last)


def _content_of(rendered: Rendered, encoding: Encoding) -> Sequence[int]:
    """Which tokens of a text, uncut, are the response's content."""
    first, *more = [_tokens_in(encoding, start, end) for start, end in rendered.spans]
    # Several turns: what stands between the assistant's contents is not content.
    return first if not more else sorted(set(first).union(*more))


def _tokens_in(encoding: Encoding, start: int, end: int) -> range:
    """The tokens that end past the start of a span of characters and begin before its end.

    Some tokenizers leave spaces out of their offsets; a token of nothing else then has no width, and stands at its end.
    Offsets ascend, so a few are looked at: a list of all of them costs as much as half of the tokenising. The special
    tokens that the tokenizer puts around a text have none.
    """

    def place(token: int) -> tuple[int, int]:
        return encoding.token_to_chars(token) or (0, 0)

    def is_behind(token: int) -> bool:
        a, b = place(token)
        return a >= end and not a == b == end

    stop = len(encoding)
    while stop and encoding.token_to_chars(stop - 1) is None:
        stop -= 1
    first = bisect_right(range(stop), start, key=lambda token: place(token)[1])
    if first < stop and is_behind(stop - 1):
        stop = bisect_left(range(stop), True, first, key=is_behind)
    return range(first, stop)


def places_in_text(
    rendered: Rendered, tokenizer: PreTrainedTokenizerBase, *, eos: str, max_length: int
) -> tuple[str, list[tuple[int, int]]]:
    """Where in a text its response's content tokens stand: those of `tokenize`, which cuts none of them.

    Args:
        rendered: A text that `tokenize` can read.
        tokenizer: As for `tokenize`.
        eos: As for `tokenize`.
        max_length: As for `tokenize`.

    Returns:
        The text, of a long one the end, and the characters `[start, stop)` in it of each content token, in order.
    """
    short = _shortened(rendered, tokenizer, max_length)
    if isinstance(short, TextError):
        raise short
    (encoding,) = _encode([short], tokenizer, eos=eos)[1]
    offsets = encoding.offsets
    return short.text, [offsets[i] for i in _content_of(short, encoding)]


def _end_of_turn(ids: Sequence[int], start: int, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Where behind a response its turn ends: at the EOS, or where the template has another token, at that one."""
    ends = [i for i in range(start, len(ids)) if ids[i] == tokenizer.eos_token_id]
    if not ends:
        special = {
            *tokenizer.all_special_ids,
            *(i for i, t in tokenizer.added_tokens_decoder.items() if t.content.strip()),
        }
        ends = [i for i in range(start, len(ids)) if ids[i] in special]
    return ends[0] if ends else None


def _render_dialogue(conversation: Conversation, joiner: str) -> Rendered:
    """Writes messages with the markers of hh-rlhf, `joiner` standing before each content."""
    parts: list[str] = []
    for message in conversation.prompt:
        # Instructions at the very start stand without a marker, as a preamble does in a dialogue string.
        bare = not any(parts) and message["role"] in ("system", "developer")
        parts.append(_content(message) if bare else _MARKERS[message["role"]] + joiner + _content(message))
    spans, end = [], sum(map(len, parts))
    for message in conversation.response:
        marker, content = _MARKERS[message["role"]] + joiner, _content(message)
        parts += marker, content
        if message["role"] == "assistant" and content:
            spans.append((end + len(marker), end + len(marker) + len(content)))
        end += len(marker) + len(content)
    return Rendered("".join(parts), tuple(spans), specials=True)


def _instruction(conversation: Conversation) -> str:
    """The prompt as the public code gives it to the Alpaca template: a dialogue up to and including its last marker."""
    if conversation.text is not None:
        return conversation.text[0]
    messages = conversation.prompt
    if len(messages) == 1 and messages[0]["role"] == "user":
        return _content(messages[0])
    return "".join(_MARKERS[m["role"]] + " " + _content(m) for m in messages) + _MARKERS["assistant"]


def _response(conversation: Conversation, *, stands_alone: bool) -> str:
    """The response as a plain template takes it.

    The space that follows a dialogue's marker is no part of what was said. It `stands_alone` where no joiner separates
    the response from the template.
    """
    first, *rest = conversation.response
    if conversation.text is not None:
        response, said = conversation.text[1], _content(first)
        return response if stands_alone or (said and response.startswith(said)) else response.removeprefix(" ")
    return _content(first) + "".join(_MARKERS[m["role"]] + " " + _content(m) for m in rest)


def _content(message: Message) -> str:
    """A message's text, with the tool calls that a plain template has no other place for."""
    content = message.get("content") or ""
    calls = message.get("tool_calls")
    if not calls:
        return content
    try:
        return f"{content}\n{json.dumps(calls, sort_keys=True)}".lstrip("\n")
    except (TypeError, ValueError, RecursionError) as error:
        raise TextError(f"`tool_calls` cannot be written as JSON: {error}; make it plain JSON, or drop it") from error


def _render_chat(conversation: Conversation, tokenizer: PreTrainedTokenizerBase, date: str) -> Rendered:
    """Renders with the tokenizer's chat template and finds the response in what it wrote.

    Templates trim contents, and put headers and end-of-turn tokens around them. So the same messages are rendered once
    more with a marker in place of each content: what stands between the markers is the template's own, and what the
    real text has there instead is the content.
    """
    asked = _asked(conversation)
    text = _apply(asked.messages, conversation, tokenizer, date)
    return _found(asked.contents, text, frame=_apply(asked.marked, conversation, tokenizer, date))


def _rendered_together(
    conversations: Sequence[Conversation], tokenizer: PreTrainedTokenizerBase, date: str
) -> list[Rendered | None]:
    """Plain conversations, in one call; None for what must be tried alone to know why it fails."""
    from transformers import PreTrainedTokenizerBase as Base

    if not conversations or type(tokenizer).apply_chat_template is not Base.apply_chat_template:
        return [None] * len(conversations)  # one of its own may take no more than one
    asked = [_asked(one) for one in conversations]
    frames = [asked[0].marked]
    for one in asked:  # the sides of a pair mostly have one between them
        if one.marked != frames[-1]:
            frames.append(one.marked)
    template = chat_template_of(tokenizer)
    talks = [_prepared(talk, tokenizer, template) for talk in (*(one.messages for one in asked), *frames)]
    try:
        written = tokenizer.apply_chat_template(talks, chat_template=_dated(template, date), tokenize=False)
    except (ImportError, MemoryError):
        raise
    except Exception:  # one of them, and a call does not say which
        if len(asked) == 1:
            return [None]
        half = len(asked) // 2
        parts = (conversations[:half], conversations[half:])
        return [one for part in parts for one in _rendered_together(part, tokenizer, date)]
    texts, framed = written[: len(asked)], iter(written[len(asked) :])
    result: list[Rendered | None] = []
    marked, frame = None, ""
    for one, text in zip(asked, texts, strict=True):
        if one.marked != marked:
            marked, frame = one.marked, next(framed)
        try:
            result.append(_found(one.contents, text, frame=frame))
        except TextError:
            result.append(None)
    return result


class _Asked(NamedTuple):
    """A conversation's messages, the same with a marker for each content of the response, and those contents."""

    messages: list[Message]
    marked: list[Message]
    contents: list[str]


def _asked(conversation: Conversation) -> _Asked:
    messages = [*conversation.prompt, *conversation.response]
    contents, marked = [], list(messages)
    for i in range(len(conversation.prompt), len(messages)):
        if messages[i]["role"] == "assistant" and messages[i].get("content"):
            contents.append(messages[i]["content"])
            marked[i] = {**messages[i], "content": f"<response-{len(contents)}-of-this-text>"}
    return _Asked(messages, marked, contents)


def _found(contents: Sequence[str], text: str, *, frame: str) -> Rendered:
    """The text with the places of contents in it, which the frame has markers for."""
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
    tools = list(conversation.tools) if conversation.tools else None
    template = chat_template_of(tokenizer, with_tools=tools is not None)
    try:
        talk = _prepared(messages, tokenizer, template)
        options = {"chat_template": _dated(template, date), "tools": tools, "add_generation_prompt": open_turn}
        of_row = conversation.chat_template_kwargs or {}  # which may not repeat those
        return str(tokenizer.apply_chat_template(talk, tokenize=False, **options, **of_row))
    except (ImportError, MemoryError):
        raise  # not the row's fault
    except Exception as error:  # the template is a program of the model's, run on whatever the row holds
        said = " ".join(str(error)[:_SAID].split()) or type(error).__name__
        raise TextError(f"the chat template refuses these messages: {said}; mend the row or drop it") from error


def _prepared(talk: Sequence[Message], tokenizer: PreTrainedTokenizerBase, template: str) -> list[dict[str, Any]]:
    """Messages as a chat template wants them."""
    listed = _roles_of_parts(tokenizer, template)
    return [_in_parts(m) if (m["role"] == "assistant") in listed else dict(m) for m in talk]


def _dated(template: str, date: str) -> str:
    """A chat template that takes a day for today."""
    return _frozen_clock(date) + template if "strftime_now" in template else template


def chat_template_of(tokenizer: PreTrainedTokenizerBase, *, with_tools: bool = False) -> str:
    """The chat template that writes a text, of the one or the several that a tokenizer has.

    Of several it is, as in transformers, `tool_use` for texts with tools and else `default`; where there is no
    `default`, the only one that is not for tools or documents.

    Raises:
        ValueError: There is none, several have names of their own and none is the default, or it draws by chance.
    """
    template = tokenizer.chat_template
    if not template:
        raise ValueError('the tokenizer has no chat template; use `template="dialogue"`, or another plain one')
    if isinstance(template, Mapping):
        own = [name for name in template if name not in ("tool_use", "rag")] or list(template)
        name = "tool_use" if with_tools and "tool_use" in template else "default" if "default" in template else own[0]
        if name not in ("tool_use", "default") and len(own) > 1:
            raise ValueError(
                f"the tokenizer has the chat templates {', '.join(map(repr, own))} and none is named 'default'; rename "
                'one in `tokenizer.chat_template` and save the model with it, or use `template="dialogue"`'
            )
        template = template[name]
    chance = _CHANCE.search(template)
    if chance is not None:
        raise ValueError(
            f"the chat template draws by chance ({chance[0]!r}), so a text would have another score each time; use "
            'another one, or `template="dialogue"`'
        )
    return str(template)


@lru_cache(maxsize=64)
def _frozen_clock(date: str) -> str:
    """The macro, with what each directive gives at midnight of a day, by what follows its `%`: `d`, `-d`, ..."""
    day = datetime.fromisoformat(date)
    values = {"s": str(int(day.replace(tzinfo=UTC).timestamp()))}  # it would depend on the machine's time zone
    for letter in string.ascii_letters:
        for flag in ("", *"-_0^#"):
            values.setdefault(flag + letter, day.strftime(f"%{flag}{letter}"))
    return _FROZEN_CLOCK.replace("DAY", repr({one: value for one, value in values.items() if value != f"%{one}"}))


@lru_cache(maxsize=8)  # it keeps the tokenizers alive
def _roles_of_parts(tokenizer: PreTrainedTokenizerBase, template: str) -> frozenset[bool]:
    """Whose contents a chat template wants as lists of parts: the assistant's (True), the others' (False), or both.

    Found by trying, strings first. A template for parts that is given a string writes nothing of it, or fails.
    """
    marks = "<asked-in-this-text>", "<said-in-this-text>"
    talk = [{"role": role, "content": mark} for role, mark in zip(("user", "assistant"), marks, strict=True)]
    ways = [frozenset(), frozenset({False, True}), frozenset({False}), frozenset({True})]
    for listed in ways:
        messages = [_in_parts(m) if (m["role"] == "assistant") in listed else m for m in talk]
        try:
            text = str(tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False))
        except ImportError:
            raise
        except Exception:  # a program of the model's: this is not the way, and if none is, each row will say why
            continue
        printed = re.search(r"""['"]<(asked|said)-in-this-text>['"]""", text)  # a list as it stands in a program
        if all(mark in text for mark in marks) and not (listed and printed):
            return listed
    return ways[0]


def _in_parts(message: Message) -> dict[str, Any]:
    """A message with its text as a list of one part."""
    content = message.get("content")
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else dict(message)
