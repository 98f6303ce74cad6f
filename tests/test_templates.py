"""Conversations to tokens: what is content, what is cut, what a chat template may do."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from legend_hf.reading.formats import conversation
from legend_hf.reading.templates import CHAT, TextError, Tokens, render, render_all, render_open, tokenize

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
TRIMMING = (
    "{{ bos_token }}{% set today = strftime_now('%d %b %Y') %}<sys>Today: {{ today }}</sys>"
    "{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}</s>{% endfor %}"
)
REWRITING = "{% for m in messages %}{{ m.role }}: {{ m.content | upper }}\n{% endfor %}"
REFUSING = "{{ raise_exception('roles must alternate') }}"


@pytest.fixture(scope="module")
def tokenizer(tiny_llama):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_llama)


def with_template(tokenizer, template):
    from copy import deepcopy

    copy = deepcopy(tokenizer)
    copy.chat_template = template
    return copy


def read(
    tokenizer,
    talk,
    *,
    template="dialogue",
    joiner=" ",
    eos="none",
    pooling="mean",
    max_length=512,
    date="2025-01-01",
):
    rendered = render(talk, tokenizer, template=template, joiner=joiner, date=date)
    (tokens,) = tokenize([rendered], tokenizer, eos=eos, pooling=pooling, max_length=max_length)
    return tokens


def decode(tokenizer, tokens, places):
    return tokenizer.decode([tokens.ids[i] for i in places])


def test_dialogue_template_writes_the_markers_of_hh_rlhf(tokenizer):
    talk = conversation("\n\nHuman: Hello\n\nAssistant: Hi\n\nHuman: And now?\n\nAssistant:", " Bread.")
    rendered = render(talk, tokenizer, template="dialogue", joiner=" ", date="2025-01-01")
    assert rendered.text == "\n\nHuman: Hello\n\nAssistant: Hi\n\nHuman: And now?\n\nAssistant: Bread."
    ((start, end),) = rendered.spans
    assert rendered.text[start:end] == "Bread."


def test_a_preamble_is_written_as_it_stands(tokenizer):
    text = "Be brief.\n\nHuman: Hello\n\nAssistant:"
    rendered = render(conversation(text, " Hi"), tokenizer, template="dialogue", joiner=" ", date="2025-01-01")
    assert rendered.text == text + " Hi"


def test_an_assistant_that_speaks_first_keeps_its_marker(tokenizer):
    talk = conversation(None, "\n\nAssistant: Hi")
    assert render(talk, tokenizer, template="dialogue", joiner=" ", date="2025-01-01").text == "\n\nAssistant: Hi"


def test_same_dialogue_as_string_and_as_messages_gives_the_same_tokens(tokenizer):
    text = conversation("\n\nHuman: Hello there\n\nAssistant:", " Hi, friend.")
    messages = conversation(
        [{"role": "user", "content": "Hello there"}], [{"role": "assistant", "content": "Hi, friend."}]
    )
    plain = conversation("Hello there", "Hi, friend.")
    assert read(tokenizer, text) == read(tokenizer, messages) == read(tokenizer, plain)
    assert read(tokenizer, text) != read(tokenizer, conversation("Hello There", "Hi, friend."))


@pytest.mark.parametrize("template", ["dialogue", "alpaca", "Q: {prompt}\nA:"])
@settings(deadline=None, max_examples=60)
@given(
    prompt=st.text(min_size=1, max_size=40).filter(str.strip),
    response=st.text(min_size=1, max_size=40).filter(str.strip),
)
def test_content_tokens_cover_the_response_and_no_earlier_character(tokenizer, template, prompt, response):
    try:
        talk = conversation(prompt, response)
    except ValueError:
        return  # lone surrogates and the like are refused by the row reader, which has its own tests
    rendered = render(talk, tokenizer, template=template, joiner=" ", date="2025-01-01")
    (tokens,) = tokenize([rendered], tokenizer, eos="none", pooling="mean", max_length=4096)
    assert isinstance(tokens, Tokens)
    alone = tokenizer(rendered.text, return_offsets_mapping=True)
    assert list(tokens.ids) == alone["input_ids"][: len(tokens.ids)]
    start, end = rendered.spans[0]
    expected = [i for i, (a, b) in enumerate(alone["offset_mapping"]) if b > start and a < end]
    assert list(tokens.content) == expected
    assert tokens.last == expected[-1] == len(tokens.ids) - 1


def test_bos_stands_once_as_the_tokenizer_puts_it(tokenizer):
    plain = read(tokenizer, conversation("Hello", "Hi"))
    chat = read(with_template(tokenizer, TRIMMING), conversation("Hello", "Hi"), template=CHAT)
    assert plain.ids.count(tokenizer.bos_token_id) == 1
    assert chat.ids.count(tokenizer.bos_token_id) == 1
    assert (
        read(with_template(tokenizer, CHATML), conversation("Hello", "Hi"), template=CHAT).ids.count(
            tokenizer.bos_token_id
        )
        == 0
    )  # as `apply_chat_template(tokenize=True)` does: the template decides


@pytest.mark.parametrize("template", [CHATML, TRIMMING])
@pytest.mark.parametrize("response", ["Hi", "  spaced out \n", "</s", "1", "Hello Hello"])
def test_chat_content_leaves_out_headers_and_what_ends_the_turn(tokenizer, template, response):
    tokenizer = with_template(tokenizer, template)
    tokens = read(tokenizer, conversation("Hello Hi 1", response), template=CHAT)
    assert decode(tokenizer, tokens, tokens.content).strip() == response.strip()


def test_eos_policies(tokenizer):
    tokenizer = with_template(tokenizer, CHATML)
    talk = conversation("Hello", "Hi there")
    none = read(tokenizer, talk, template=CHAT)
    append = read(tokenizer, talk, template=CHAT, eos="append")
    template = read(tokenizer, talk, template=CHAT, eos="template")
    assert none.last == none.content[-1] == len(none.ids) - 1
    assert append.ids == (*none.ids, tokenizer.eos_token_id)
    assert append.last == len(append.ids) - 1
    assert append.content == none.content, "the EOS is read by `last`, and is no content"
    assert template.ids[template.last] == tokenizer.eos_token_id
    assert template.ids[: len(append.ids)] == append.ids
    assert len(template.ids) > len(append.ids), "the template ends its turn with a line break"


def test_a_tokenizer_that_appends_eos_by_itself_does_not_decide(tokenizer):
    from copy import deepcopy

    from tokenizers import processors

    greedy = deepcopy(tokenizer)
    greedy._tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        special_tokens=[("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)],
    )
    talk = conversation("Hello", "Hi")
    assert greedy("x")["input_ids"][-1] == tokenizer.eos_token_id
    assert read(greedy, talk) == read(tokenizer, talk)
    assert read(greedy, talk, eos="append") == read(tokenizer, talk, eos="append")


def test_dates_in_chat_templates_are_frozen(tokenizer):
    tokenizer = with_template(tokenizer, TRIMMING)
    talk = conversation("Hello", "Hi")
    new_year = read(tokenizer, talk, template=CHAT, date="2025-01-01")
    assert "Today: 01 Jan 2025" in tokenizer.decode(new_year.ids)
    assert new_year != read(tokenizer, talk, template=CHAT, date="2025-01-02")


# How a template may ask for the day; `F` is the format.
CLOCKS = {
    "plain": "{{ strftime_now('F') }}",
    "double quotes": '{{ strftime_now("F") }}',
    "variable": "{% set how = 'F' %}{{ strftime_now(how) }}",
    "row's own": "{{ strftime_now(how or 'F') }}",
    "keyword": "{{ strftime_now(format='F') }}",
    "filtered": "{{ strftime_now('F' | trim) }}",
    "put together": "{{ strftime_now('F'[:2] ~ 'F'[2:]) }}",
    "another name": "{% set now = strftime_now %}{{ now('F') }}",
    "if it is there": "{% if strftime_now is defined %}{{ strftime_now('F') }}{% endif %}",
    "in a macro": "{% macro day() %}{{ strftime_now('F') }}{% endmacro %}{{ day() }}",
    "in a loop": "{% for m in messages[:1] %}{% set how = 'F' %}{{ strftime_now(how) }}{% endfor %}",
    "lines": "{{\n strftime_now(\n 'F'\n)\n}}",
}
TALK_ONLY = "{% for m in messages %}[{{ m.role }}] {{ m.content }}</s>{% endfor %}"


@pytest.mark.parametrize("how", CLOCKS)
@pytest.mark.parametrize("form", ["%d %b %Y", "%-d. %B %y, %A", "%Y-%m-%dT%H:%M:%S.%f", "100%% %j %%d %%%d", "%c|%x|%p %s %Z", "%F %e %u", "no day"])  # fmt: skip
def test_no_way_of_asking_for_the_day_escapes_the_frozen_one(tokenizer, monkeypatch, how, form):
    import time
    from dataclasses import replace
    from datetime import datetime

    talk = replace(conversation("Hello", "Hi"), chat_template_kwargs={"how": None})
    asked = with_template(tokenizer, CLOCKS[how].replace("F", form) + TALK_ONLY)
    rest = "[user] Hello</s>[assistant] Hi</s>"
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        text = render(talk, asked, template=CHAT, joiner="", date="2025-03-09").text
    finally:
        monkeypatch.undo()
        time.tzset()
    day = datetime(2025, 3, 9).strftime(form.replace("%s", "1741478400"))
    assert text == day + rest
    # The control: the template as it is reads the clock.
    now = asked.apply_chat_template([*talk.prompt, *talk.response], tokenize=False, how=None)
    assert now.endswith(rest)
    assert (now == text) == ("%" not in form)


def test_templates_that_draw_by_chance_are_refused(tokenizer):
    for chance in ("{{ ['a', 'b'] | random }}", "{{ lipsum(1) }}"):
        with pytest.raises(ValueError, match='the chat template draws by chance .*use another one, or `template="dial'):
            read(with_template(tokenizer, chance + TALK_ONLY), conversation("Hello", "Hi"), template=CHAT)
    assert isinstance(
        read(with_template(tokenizer, TALK_ONLY), conversation("random", "lipsum"), template=CHAT), Tokens
    )


# Templates by what a content has to be for them: a string, a list of parts, either, or one for each side.
STRINGS = "{% for m in messages %}[{{ m.role }}] {{ m.content + '' }}</s>{% endfor %}"
PARTS = "{% for m in messages %}[{{ m.role }}] {% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %}</s>{% endfor %}"
STRICT = "{% for m in messages %}[{{ m.role }}] {{ m.content[0]['text'] + '' }}</s>{% endfor %}"
EITHER = (
    "{% for m in messages %}[{{ m.role }}] {% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{{ p.text }}{% endfor %}{% endif %}</s>{% endfor %}"
)
MIXED = (
    "{% for m in messages %}[{{ m.role }}] {% if m.role == 'assistant' %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{{ p.text }}{% endfor %}{% endif %}</s>{% endfor %}"
)
TURNED = MIXED.replace("==", "!=")
EXPECTED = "[system] Be kind.</s>[user] Hello</s>[assistant] So?</s>[user] And?</s>[assistant]  Hi\n</s>"


@pytest.mark.parametrize(
    "template",
    [STRINGS, PARTS, STRICT, EITHER, MIXED, TURNED],
    ids=["strings", "parts", "strict", "either", "mixed", "turned"],
)
def test_templates_get_contents_as_they_want_them(tokenizer, template):
    asked = [("system", "Be kind."), ("user", "Hello"), ("assistant", "So?"), ("user", "And?")]
    talk = conversation(
        [{"role": role, "content": text} for role, text in asked], [{"role": "assistant", "content": " Hi\n"}]
    )
    rendered = render(talk, with_template(tokenizer, template), template=CHAT, joiner="", date="2025-01-01")
    assert rendered.text == EXPECTED
    assert [rendered.text[a:b] for a, b in rendered.spans] == [" Hi\n"]
    opened = render_open(talk, with_template(tokenizer, template), template=CHAT, joiner="", date="2025-01-01")
    assert opened == EXPECTED.partition("[assistant]  Hi")[0]


@pytest.mark.parametrize("template", [STRINGS, PARTS], ids=["strings", "parts"])
def test_what_a_template_says_of_types_decides_nothing(tokenizer, template):
    said = "{{ \"{'type': 'function'}\" }}"
    rendered = render(
        conversation("Hello", "Hi"),
        with_template(tokenizer, said + template),
        template=CHAT,
        joiner="",
        date="2025-01-01",
    )
    assert rendered.text == "{'type': 'function'}[user] Hello</s>[assistant] Hi</s>"


def test_a_template_that_prints_lists_gets_strings(tokenizer):
    rewriting = "{% for m in messages %}{{ m.content if m.content is not string else m.content | upper }}{% endfor %}"
    with pytest.raises(TextError, match="the chat template rewrites the response"):
        read(with_template(tokenizer, rewriting), conversation("Hello", "Hi there"), template=CHAT)


def test_a_template_for_parts_loses_strings_without_a_word(tokenizer):  # control of the test above
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    asked = with_template(tokenizer, PARTS)
    assert asked.apply_chat_template(messages, tokenize=False) == "[user] </s>[assistant] </s>"


@pytest.mark.parametrize(
    ("named", "with_tools", "taken"),
    [
        ({"default": "D", "tool_use": "T"}, False, "D"),
        ({"default": "D", "tool_use": "T"}, True, "T"),
        ({"default": "D", "rag": "R"}, True, "D"),
        ({"chatml": "C"}, False, "C"),
        ({"chatml": "C", "tool_use": "T", "rag": "R"}, False, "C"),
        ({"chatml": "C", "tool_use": "T"}, True, "T"),
        ({"tool_use": "T"}, False, "T"),
        ({"short": "S", "long": "L"}, False, None),
        ({"short": "S", "long": "L", "tool_use": "T"}, False, None),
        ({"short": "S", "default": "D", "long": "L"}, False, "D"),
    ],
)
def test_of_named_templates_the_one_that_is_meant(tokenizer, named, with_tools, taken):
    asked = with_template(tokenizer, {name: f"{mark}:{TALK_ONLY}" for name, mark in named.items()})
    talk = replace(conversation("Hello", "Hi"), tools=({"type": "function"},) if with_tools else None)
    if taken is None:
        message = (
            "has the chat templates 'short', 'long' and none is named 'default'; rename one .* `template=\"dialogue\"`"
        )
        with pytest.raises(ValueError, match=message):
            render(talk, asked, template=CHAT, joiner="", date="2025-01-01")
    else:
        text = render(talk, asked, template=CHAT, joiner="", date="2025-01-01").text
        assert text == f"{taken}:[user] Hello</s>[assistant] Hi</s>"


def test_a_template_that_cannot_be_used_is_refused_with_the_model(tokenizer, tiny_llama, tmp_path):
    import shutil

    from legend_hf.reading.reader import describe_model

    with pytest.raises(ValueError, match='no chat template; use `template="dialogue"`'):
        describe_model(str(tiny_llama), template="chat")
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    with_template(tokenizer, {"short": CHATML, "long": CHATML}).save_pretrained(folder)
    with pytest.raises(ValueError, match="none is named 'default'"):
        describe_model(str(folder))
    assert describe_model(str(folder), template="dialogue").template == "dialogue"


def test_the_end_of_a_turn_need_not_be_the_eos(tokenizer):
    """`last` with `eos="template"` reads what ends the turn, and says so where nothing does."""
    from copy import deepcopy

    own = deepcopy(tokenizer)
    own.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    talk = conversation("Hello </s>", "Hi there")
    ending = {
        "<|end|>": "<|end|>",
        "<|end|>\n": "<|end|>",
        " .\n<|end|></s>": "</s>",
        "</s>": "</s>",
        "\n": None,
        "": None,
    }
    for closing, token in ending.items():
        chat = with_template(
            own, "{% for m in messages %}<s>{{ m.content }}" + closing.replace("\n", "{{ '\n' }}") + "{% endfor %}"
        )
        tokens = read(chat, talk, template=CHAT, eos="template", pooling="last")
        if token is None:
            assert isinstance(tokens, TextError)
            assert 'that could be its end; use `eos="append"`, or `eos="none"`' in str(tokens)
            assert isinstance(read(chat, talk, template=CHAT, eos="template", pooling="mean"), Tokens)
        else:
            assert decode(chat, tokens, [tokens.last]) == token
            assert tokens.last > tokens.content[-1]


def test_multi_turn_responses_pool_only_the_assistants_words(tokenizer):
    tokenizer = with_template(tokenizer, CHATML)
    talk = conversation(
        [{"role": "user", "content": "Hello"}],
        [
            {"role": "assistant", "content": "First"},
            {"role": "user", "content": "Mmm"},
            {"role": "assistant", "content": "Second"},
        ],
    )
    for template in (CHAT, "dialogue"):
        tokens = read(tokenizer, talk, template=template)
        words = decode(tokenizer, tokens, tokens.content)
        assert "First" in words
        assert "Second" in words
        assert "Mmm" not in words
        assert "Mmm" in tokenizer.decode(tokens.ids)


def test_truncation_cuts_the_prompts_beginning_and_keeps_bos(tokenizer):
    talk = conversation("one two three four five six seven eight nine ten " * 5, "The answer.")
    whole = read(tokenizer, talk)
    cut = read(tokenizer, talk, max_length=40)
    assert len(cut.ids) == 40
    assert cut.ids[0] == tokenizer.bos_token_id
    assert cut.ids[1:] == whole.ids[-39:]
    assert [cut.ids[i] for i in cut.content] == [whole.ids[i] for i in whole.content]
    assert cut.last == 39


def test_truncation_does_not_depend_on_anything_but_the_text(tokenizer):
    long, short = conversation("word " * 50, "An answer that is rather long."), conversation("word", "Short.")
    rendered = [render(t, tokenizer, template="dialogue", joiner=" ", date="2025-01-01") for t in (long, short)]
    together = tokenize(rendered, tokenizer, eos="none", pooling="mean", max_length=60)
    assert together == [read(tokenizer, long, max_length=60), read(tokenizer, short, max_length=60)]


def test_a_response_that_does_not_fit_is_refused_by_length(tokenizer):
    talk = conversation("Hello", "word " * 50)
    error = read(tokenizer, talk, max_length=20)
    assert isinstance(error, TextError)
    assert "`max_length` is 20; shorten it" in str(error)
    needed = int(str(error).split("needs ")[1].split()[0])
    assert isinstance(read(tokenizer, talk, max_length=needed), Tokens)
    assert isinstance(read(tokenizer, talk, max_length=needed - 1), TextError)


def test_mean_all_takes_every_token(tokenizer):
    tokens = read(tokenizer, conversation("Hello", "Hi"), pooling="mean_all")
    assert tokens.content == tuple(range(len(tokens.ids)))


def test_templates_that_rewrite_or_refuse_are_named(tokenizer):
    talk = conversation("Hello", "Hi there")
    with pytest.raises(TextError, match='the chat template rewrites the response.*use `template="dialogue"`'):
        read(with_template(tokenizer, REWRITING), talk, template=CHAT)
    with pytest.raises(TextError, match="the chat template refuses these messages: roles must alternate"):
        read(with_template(tokenizer, REFUSING), talk, template=CHAT)


CHOOSY = "{% for m in messages %}{% if 'bad' in m.content %}{{ raise_exception('not this') }}{% endif %}" + (
    "{{ m.role }} {{ m.flag }} {{ mood }} {{ m.content }}\n{% endfor %}"
)
AS_IT_SOUNDS = "{% for m in messages %}{{ m.role }}: {{ m.content | replace('loud', 'LOUD') }}\n{% endfor %}"


@pytest.mark.parametrize("template", [CHATML, TRIMMING, REWRITING, REFUSING, CHOOSY, AS_IT_SOUNDS])
@settings(max_examples=20)
@given(
    st.lists(st.sampled_from(["Hello", "bad", " loud ", "<response-1-of-this-text>", "Hi\n"]), min_size=2, max_size=9)
)
def test_many_at_once_are_written_as_each_alone(tokenizer, template, words):
    def alone(talk):
        try:
            return render(talk, asked, template=CHAT, joiner="", date="2025-03-09")
        except TextError as error:
            return str(error)

    asked = with_template(tokenizer, template)
    pairs = [conversation(prompt, response) for prompt in words[:3] for response in words[1:]]
    # What a row brings along keeps its place between the others; equal for Python is not written alike.
    pairs[1:1] = [
        replace(pairs[0], chat_template_kwargs=given)
        for given in ({"mood": 1}, {"date": 2}, {"tools": []}, {"talks": 3})
    ]
    flags = [tuple({**m, "flag": flag} for m in pairs[0].prompt) for flag in (1, True, 1.0)]
    talks = [*pairs, *(replace(pairs[0], prompt=prompt) for prompt in flags), replace(pairs[0], tools=({"a": 1},))]
    found = render_all(talks, asked, template=CHAT, joiner="", date="2025-03-09")
    assert [str(one) if isinstance(one, TextError) else one for one in found] == [alone(talk) for talk in talks]


def test_a_chat_template_is_called_once_for_many(tokenizer, monkeypatch):
    asked = with_template(tokenizer, CHATML)
    calls = []
    write = PreTrainedTokenizerBase.apply_chat_template
    monkeypatch.setattr(
        PreTrainedTokenizerBase,
        "apply_chat_template",
        lambda self, talks, **k: calls.append(len(talks)) or write(self, talks, **k),
    )
    talks = [conversation(f"Hello {i}", answer) for i in range(10) for answer in ("Yes", "No")]
    render_all(talks[:2], asked, template=CHAT, joiner="", date="2025-01-01")  # how it wants contents is known by now
    calls.clear()
    render_all(talks, asked, template=CHAT, joiner="", date="2025-01-01")
    assert calls == [30], "a text of each, and one frame of each prompt"
    render(talks[0], asked, template=CHAT, joiner="", date="2025-01-01")
    assert calls == [30, 2, 2], "the control: two messages, twice"
    monkeypatch.setattr(type(asked), "apply_chat_template", lambda self, talk, **k: write(self, talk[:9], **k))
    calls.clear()
    render_all(talks, asked, template=CHAT, joiner="", date="2025-01-01")  # of its own, which may take one at a time
    assert calls == []


def test_one_that_a_template_refuses_costs_the_others_little(tokenizer, monkeypatch):
    asked, write, calls = with_template(tokenizer, CHOOSY), PreTrainedTokenizerBase.apply_chat_template, []
    talks = [conversation(f"Hello {i}", "bad" if i == 77 else "Yes") for i in range(128)]
    monkeypatch.setattr(
        PreTrainedTokenizerBase, "apply_chat_template", lambda self, t, **k: calls.append(len(t)) or write(self, t, **k)
    )
    found = render_all(talks, asked, template=CHAT, joiner="", date="2025-01-01")
    assert [i for i, one in enumerate(found) if isinstance(one, TextError)] == [77]
    assert len(calls) < 40, "the control: each alone is two calls a text"


def test_equal_for_python_is_not_written_alike(tokenizer):
    """A shared frame would place the second response among the template's own characters."""
    asked = with_template(tokenizer, "{% for m in messages %}{{ m.role }} {{ m.weight }}{{ m.content }}{% endfor %}")
    talks = [
        replace(conversation("a", "b"), text=None, response=({"role": "assistant", "content": said, "weight": weight},))
        for said, weight in (("yes", 1), (".0", 1.0))
    ]
    found = render_all(talks, asked, template=CHAT, joiner="", date="2025-01-01")
    assert found == [render(one, asked, template=CHAT, joiner="", date="2025-01-01") for one in talks]


def test_an_empty_conversation_is_refused_whoever_opens_it(tokenizer):
    with pytest.raises(TextError, match="empty conversation"):
        render_open(
            conversation("", "x"), with_template(tokenizer, CHATML), template=CHAT, joiner="", date="2025-01-01"
        )


def test_tools_and_template_arguments_reach_the_chat_template(tokenizer):
    tokenizer = with_template(
        tokenizer, "{{ tools | length }} {{ mood }}{% for m in messages %}\n{{ m.content }}{% endfor %}"
    )
    talk = replace(
        conversation("Hello", "Hi"), tools=({"type": "function"},) * 3, chat_template_kwargs={"mood": "calm"}
    )
    assert tokenizer.decode(read(tokenizer, talk, template=CHAT).ids).startswith("3 calm")


def test_alpaca_without_joiner_keeps_the_rows_own_space(tokenizer):
    dialogue = conversation("\n\nHuman: Hello\n\nAssistant:", " Hi")

    def text(joiner, talk):
        return render(talk, tokenizer, template="alpaca", joiner=joiner, date="2025-01-01").text

    assert text("", dialogue).endswith("### Instruction:\n\n\nHuman: Hello\n\nAssistant:\n\n### Response: Hi")
    assert text("\n", dialogue).endswith("### Response:\nHi")
    assert text("", conversation("Hello {x}", "Hi")).endswith("### Instruction:\nHello {x}\n\n### Response:Hi")


def test_inputs_are_left_as_they_are(tokenizer):
    before = (tokenizer.padding_side, tokenizer.truncation_side, tokenizer.backend_tokenizer.to_str())
    read(tokenizer, conversation("word " * 100, "Hi"), max_length=30)
    assert before == (tokenizer.padding_side, tokenizer.truncation_side, tokenizer.backend_tokenizer.to_str())
