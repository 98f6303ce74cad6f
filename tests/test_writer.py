"""Continuations: the assistant's turn stays open, whatever the template; what follows is the model's own, whatever the batch."""

from __future__ import annotations

import json

import pytest
from tiny_causal import CHAT, loaded, save_tiny_causal, straight_line

from legend_hf.writing import writer
from legend_hf.writing.writer import Decoding, open_continuer

PROMPT = "How do I borrow a bicycle without asking?"
PREFIX = "Sure, here it is. Take the bicycle, but no,"
TEXTS = [
    (PROMPT, ""),
    (PROMPT, PREFIX),
    ("Hi", "Yes. Wait, because"),
    ("Tell me a secret.", ""),
    ("Tell me a secret.", "Happy to explain. However, I"),
]
GREEDY = Decoding(max_new_tokens=12, batch_size=4)


@pytest.fixture(scope="module")
def chatty(tiny_llama, tmp_path_factory):
    return save_tiny_causal(tiny_llama, tmp_path_factory.mktemp("chatty") / "m", CHAT)


@pytest.fixture(scope="module")
def plain(tiny_llama, tmp_path_factory):
    return save_tiny_causal(tiny_llama, tmp_path_factory.mktemp("plain") / "m")


def messages(prompt, prefix):
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": prefix}]


def go_on(continuer, texts=TEXTS):
    return continuer([prompt for prompt, _ in texts], [prefix for _, prefix in texts])


def check_open(tokenizer, ids, prefix):
    """One BOS, in front; the text ends with the prefix, and no turn was ended behind the user's."""
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(ids).endswith("<|assistant|>\n" + prefix)
    assert ids.count(tokenizer.eos_token_id) == 1


def test_the_assistants_turn_stays_open(chatty):
    tokenizer = loaded(chatty)[0]
    continuer = open_continuer(chatty, GREEDY)
    ids = continuer.encode(PROMPT, PREFIX)
    check_open(tokenizer, ids, PREFIX)
    expected = tokenizer.apply_chat_template(messages(PROMPT, PREFIX), continue_final_message=True, tokenize=False)
    assert ids == tokenizer(expected, add_special_tokens=False)["input_ids"]
    check_open(tokenizer, continuer.encode(PROMPT, ""), "")
    # The controls: a turn that the template closed, and a second BOS.
    closed = tokenizer.apply_chat_template(messages(PROMPT, PREFIX), tokenize=False)
    with pytest.raises(AssertionError):
        check_open(tokenizer, tokenizer(closed, add_special_tokens=False)["input_ids"], PREFIX)
    with pytest.raises(AssertionError):
        check_open(tokenizer, tokenizer(expected)["input_ids"], PREFIX)


@pytest.mark.parametrize(
    "template",
    [
        CHAT.replace("{{ m.content }}", "{{ m.content | trim }}"),
        CHAT.replace("<|assistant|>\n{% endif %}", "<|assistant|>\n<think>{% endif %}"),
        "{{ bos_token }}{{ strftime_now('%Y') }}" + CHAT,
    ],
)
def test_a_prefix_stands_where_the_template_puts_a_response(tiny_llama, tmp_path, template):
    folder = save_tiny_causal(tiny_llama, tmp_path / "m", template)
    continuer, tokenizer = open_continuer(folder, GREEDY), loaded(folder)[0]
    text = tokenizer.decode(continuer.encode(PROMPT, PREFIX))
    expected = tokenizer.apply_chat_template(messages(PROMPT, PREFIX), continue_final_message=True, tokenize=False)
    if "strftime_now" in template:
        assert text.startswith("<s>2025<"), "the date is frozen, as a Reader's is"
    else:
        assert text == expected
    assert text.endswith("<|assistant|>\n" + PREFIX)


@pytest.mark.parametrize(
    ("template", "begun"),
    [("dialogue", "\n\nAssistant: "), ("alpaca", "### Response:\n"), ("Q: {prompt}\nA: ", "\nA: ")],
)
def test_plain_templates_end_with_the_prefix(plain, template, begun):
    tokenizer = loaded(plain)[0]
    continuer = open_continuer(plain, GREEDY, template=template)
    for prompt in (PROMPT, "\n\nHuman: A\n\nAssistant: B\n\nHuman: C\n\nAssistant:"):
        ids = continuer.encode(prompt, PREFIX)
        assert tokenizer.decode(ids).endswith(begun + PREFIX)
        assert ids.count(tokenizer.bos_token_id) == 1
        assert tokenizer.eos_token_id not in ids
        assert tokenizer.decode(continuer.encode(prompt, "")).endswith(begun.rstrip(" "))


@pytest.mark.parametrize("kind", ["chatty", "plain"])
def test_continuations_are_those_of_one_by_one_greedy_decoding(request, kind):
    folder = request.getfixturevalue(kind)
    template = "chat" if kind == "chatty" else "Q: {prompt}\nA: "
    continuer = open_continuer(folder, GREEDY, template=template)
    expected = [straight_line(folder, continuer.encode(*text), 12) for text in TEXTS]
    assert len(set(expected)) == len(TEXTS), "continuations must depend on the texts, or nothing is tested"
    for batch_size in (1, 2, 16):
        assert go_on(open_continuer(folder, Decoding(12, batch_size), template=template)) == expected
    # The control: behind a closed turn the model says something else.
    tokenizer = loaded(folder)[0]
    closed = [*continuer.encode(*TEXTS[1]), tokenizer.eos_token_id]
    assert straight_line(folder, closed, 12) != expected[1]


def test_a_continuation_keeps_the_space_that_it_begins_with():
    """Such vocabularies drop a text's first space, so that new tokens decoded alone would be glued to the prefix."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["</s>", "▁but", "▁I", "▁stop", "ped"])}
    base = Tokenizer(models.WordLevel(words, unk_token="</s>"))
    base.pre_tokenizer, base.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=base, eos_token="</s>")
    assert tokenizer.decode([2, 3]) == "I stop"  # the control
    said = writer._continuation([1], [2, 3, 0, 4], [0], tokenizer)
    assert (said.response, said.tokens, said.finished) == (" I stop", 2, True)
    assert writer._continuation([1, 2, 3], [4], [0], tokenizer).response == "ped"
    assert writer._continuation([1], [0], [0], tokenizer).response == ""


def test_sampling_depends_on_the_seed_alone(plain):
    import torch

    def sampled(seed):
        return go_on(open_continuer(plain, Decoding(12, 2, 0.8, 0.7, seed)), [TEXTS[1]] * 5)

    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    first = sampled(0)
    assert torch.equal(torch.random.get_rng_state(), before), "the caller's own random numbers are left alone"
    torch.manual_seed(8)
    assert sampled(0) == first
    assert len(set(first)) > 1, "equal texts are sampled anew"
    assert sampled(1) != first
    assert len(set(go_on(open_continuer(plain, GREEDY), [TEXTS[1]] * 5))) == 1  # the control


def test_a_stopped_run_goes_on_where_it_was(plain, tmp_path, monkeypatch):
    expected = go_on(open_continuer(plain, Decoding(12, 1)))
    output = tmp_path / "ladders.jsonl"
    assert go_on(open_continuer(plain, Decoding(12, 1), output=output)) == expected
    file = tmp_path / "ladders.jsonl.answers"
    lines = file.read_text().splitlines(keepends=True)
    assert len(lines) == 1 + len(TEXTS)
    assert json.loads(lines[1])["prompt"] in [list(text) for text in TEXTS]
    file.write_text("".join(lines[:3]) + lines[3][:9])  # two were finished, the third was being written

    continuer, written = open_continuer(plain, Decoding(12, 1), output=output), []
    load = continuer._load

    def counting():
        write = load()
        return lambda texts, room, seed: written.extend(texts) or write(texts, room, seed)

    monkeypatch.setattr(continuer, "_load", counting)
    assert go_on(continuer) == expected
    assert len(written) == len(TEXTS) - 2
    with pytest.raises(ValueError, match="holds the answers of another run: `max_new_tokens` is 12 there and 9 here"):
        go_on(open_continuer(plain, Decoding(9, 1), output=output))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_new_tokens": 0}, "`max_new_tokens` is 0; it must be at least 1"),
        ({"batch_size": 0}, "`batch_size` is 0; it must be at least 1"),
        ({"temperature": 0.0}, "`temperature` is 0.0; it must be above 0"),
        ({"temperature": float("nan")}, "`temperature` is nan; it must be above 0"),
        ({"top_p": 1.5}, "`top_p` is 1.5; it must be above 0 and at most 1"),
    ],
)
def test_decodings_that_generate_nothing_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Decoding(**{"max_new_tokens": 1, "batch_size": 1, **given})


def test_texts_beyond_the_window_and_models_without_a_head_are_refused(plain, tiny_llama):
    continuer = open_continuer(plain, GREEDY)
    with pytest.raises(ValueError, match=r"are \d+ tokens long, the model's window 512; shorten them"):
        continuer.encode(PROMPT, "one two " * 400)
    with pytest.raises(ValueError, match=r"lacks the weights `lm_head.weight`"):
        go_on(open_continuer(tiny_llama, GREEDY))
    with pytest.raises(ValueError, match="`chat_template_kwargs` needs `template=\"chat\"`, here it is 'alpaca'"):
        open_continuer(plain, GREEDY, template="alpaca", chat_template_kwargs={"think": False})
