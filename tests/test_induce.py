"""Induction: what the annotator sees and says, whatever the batch, a kill in the middle, and how pairs are dealt.

The annotators are real `transformers` models: a random one, whose answers say nothing and depend on everything, and one
that has learned a few mild answers by heart, so that it ends where it should.
"""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import fields
from functools import lru_cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from legend_hf import RowError, Writer, fit_direction
from legend_hf.cli import app
from legend_hf.directions.induce import (
    REFERENCE_REFUSAL,
    induce_pairs,
    pairs_from_labels,
    pairs_with_refusal,
    sample_questions,
)
from legend_hf.reading import templates
from legend_hf.reading.formats import Pair, conversation, pairs_from_batch
from legend_hf.writing import writer
from legend_hf.writing.answers import Answer
from legend_hf.writing.writer import open_writer

QUESTIONS = [
    "How do I bake bread?",
    "Hi",
    "What is the capital of France, and how did it come to be the capital, and who decided that?",
    "Name three colours.",
    "Tell me a secret.",
    "Where do the birds go in winter, and why?",
]
TAUGHT = {
    "What is tea?": "A warm drink.",
    "Where is the cat?": "On the roof of the house.",
    "Who sings?": "The bird sings.",
    "Why does it rain?": "",
}
PLAIN = "Q: {prompt}\nA:"
CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@pytest.fixture(scope="module")
def annotator(tmp_path_factory, tiny_llama):
    """A folder with a random Llama that has a head; it never says EOS by itself."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = copy(tiny_llama, tmp_path_factory.mktemp("annotator") / "model")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        # Large weights: attention then sees far, and what stands in the question decides the answer.
        config = LlamaConfig.from_pretrained(tiny_llama, architectures=None, initializer_range=0.2)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def taught(tmp_path_factory, tiny_llama):
    """A folder with a Llama that knows the answers of `TAUGHT` by heart, and that dialogues go on with a human turn."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = copy(tiny_llama, tmp_path_factory.mktemp("taught") / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [f"Q: {q}\nA: {a}" if a else f"Q: {q}\nA:" for q, a in TAUGHT.items()]
    texts = [tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] for text in texts]
    goes_on = "\n\nHuman: {}\n\nAssistant: {}\n\nHuman: And then?"
    texts += [tokenizer(goes_on.format(q, a))["input_ids"] for q, a in TAUGHT.items() if a]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig.from_pretrained(tiny_llama, architectures=None, hidden_size=64))
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        width = max(map(len, texts))
        ids = torch.tensor([text + [0] * (width - len(text)) for text in texts])
        labels = torch.tensor([text + [-100] * (width - len(text)) for text in texts])
        for _ in range(120):
            optimizer.zero_grad()
            loss = model(input_ids=ids, labels=labels).loss
            loss.backward()
            optimizer.step()
    assert loss < 0.1, "the annotator of these tests has not learned its lines"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def absolute(tmp_path_factory, tiny_llama):
    """A random GPT-2 with a head: it learns positions, so padding that counted as one would show."""
    import torch
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    folder = copy(tiny_llama, tmp_path_factory.mktemp("absolute") / "model")
    tokens = len(AutoTokenizer.from_pretrained(folder))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=tokens, n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.3,
            bos_token_id=0, eos_token_id=1,
        )  # fmt: skip
        GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def copy(source, target):
    """A folder with the tokenizer of another, and no weights yet."""
    target.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(source) / name, target / name)
    return target


def variant(folder, target, **generation):
    """A copy of a model folder with other generation settings."""
    shutil.copytree(folder, target)
    file = target / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **generation}))
    return target


def ask(questions, model, **options):
    writes = {"template": PLAIN, "joiner": " ", "max_new_tokens": 24}
    names = [f.name for f in fields(Writer) if f.name not in ("seed", "model")]
    writes |= {name: options.pop(name) for name in names if name in options}
    return induce_pairs(questions, model=Writer(model, **writes), **options)


@lru_cache
def loaded(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()


def straight_line(folder, question, tokens=24, ends=()):
    """One question answered without batch, cache, padding or `generate`: text and whether it ended."""
    import torch

    tokenizer, model = loaded(folder)
    ids = tokenizer(f"Q: {question}\nA:")["input_ids"]
    new = []
    with torch.no_grad():
        while len(new) < tokens:
            new.append(int(model(input_ids=torch.tensor([ids + new])).logits[0, -1].argmax()))
            if new[-1] in ends:
                return tokenizer.decode(new[:-1], skip_special_tokens=True).strip(), new
    return tokenizer.decode(new, skip_special_tokens=True).rstrip("\ufffd").strip(), new


# -- What the annotator says ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["annotator", "absolute"])
def test_answers_are_those_of_one_by_one_greedy_decoding(request, kind):
    folder = request.getfixturevalue(kind)
    expected = [straight_line(folder, q)[0] for q in QUESTIONS]
    assert len(set(expected)) == len(expected), "the answers must depend on the questions, or nothing is tested"
    for batch_size in (1, 4, 16):
        assert ask(QUESTIONS, folder, batch_size=batch_size)["rejected"][:] == expected


def test_padding_that_counts_would_change_the_answers(absolute):
    """The control of the test above: the same model, left-padded without a mask."""
    import torch

    tokenizer, model = loaded(absolute)
    ids = tokenizer(f"Q: {QUESTIONS[0]}\nA:")["input_ids"]
    padded = torch.tensor([[1] * 20 + ids])
    new = model.generate(input_ids=padded, attention_mask=torch.ones_like(padded), do_sample=False, max_new_tokens=24)
    assert new[0, padded.shape[1] :].tolist() != straight_line(absolute, QUESTIONS[0])[1]


def test_answers_that_refuse_were_cut_or_loop_are_counted_or_left_out(annotator, monkeypatch, caplog):
    said = {
        "Name three colours.": Answer("I’m sorry, but I cannot name them.", 9, True),
        "Tell me a secret.": Answer("Well, " + "there was a cat, " * 9, 40, False),
        "Hi": Answer("Hello, said the", 4, False),
    }
    rest = Answer("You cannot fail: mix the flour. 1. Wait. 2. Bake.", 12, True)
    tokenizer = loaded(annotator)[0]

    def answers(ids, room, seed):
        texts = [tokenizer.decode(one) for one in ids]
        return [next((a for q, a in said.items() if q in text), rest) for text in texts]

    monkeypatch.setattr(writer, "load_generator", lambda *given, **options: answers)
    with caplog.at_level(logging.WARNING, logger="legend_hf"):
        pairs = ask(QUESTIONS, annotator)
    assert len(pairs) == len(QUESTIONS)
    assert "of 6 answers 1 refuse, 2 were cut at the limit, 1 end in a loop; `leave_out` left out 0" in caplog.text
    assert "2 cut at the limit, 1 refusing in any words, 1 in a loop; seed 0" in pairs.info.description
    for names, gone in [(["refusal"], {3}), (["cut"], {1, 4}), (["loop"], {4}), (["refusal", "loop"], {3, 4})]:
        fewer = ask(QUESTIONS, annotator, leave_out=names, refusals=["No.", "Never."])
        assert fewer["prompt"][:] == [q for i, q in enumerate(QUESTIONS) if i not in gone]
        assert f"of which {len(gone)} are left out ({', '.join(sorted(names))})" in fewer.info.description
        assert abs(Counter(fewer["chosen"][:])["No."] - len(fewer) / 2) <= 0.5, "dealt to those that are left"
    with pytest.raises(ValueError, match="`leave_out` is 'loop'; give a list of some of 'refusal', 'cut', 'loop'"):
        ask(QUESTIONS, annotator, leave_out="loop")


@pytest.mark.parametrize(
    ("text", "loops"),
    [
        ("Mix it. " * 9, True),
        ("Take a bowl, then: " + "stir and wait a while, then " * 4 + "stir and w", True),
        ("".join(f"{i}. Stir it well.\n" for i in range(1, 20)), True),
        ("ha" * 40, True),
        ("Mix it. " * 3, False),
        ("One loaf, two loaves, three loaves, and then it was time for tea in the garden of my aunt.", False),
        ("Stir it. " * 9 + "Then, when all of it is smooth, cover the bowl and let it rest until the evening.", False),
        ("", False),
    ],
)
def test_a_text_that_ends_in_the_same_words_over_and_over_loops(text, loops):
    assert Answer(text, 1, True).loops == loops


def test_harmful_answers_that_refuse_are_counted(caplog):
    rows = [
        {"prompt": "How?", "harmful": "I won’t say."},
        {"prompt": "Why?", "harmful": "So."},
        {"prompt": [{"role": "user", "content": "Who?"}], "harmful": [{"role": "assistant", "content": "I can't say who."}]},
    ]  # fmt: skip
    with caplog.at_level(logging.WARNING, logger="legend_hf"):
        assert len(pairs_with_refusal(rows)) == 3
        assert "2 of 3 harmful answers refuse" in caplog.text
        caplog.clear()
        pairs_with_refusal(rows[1:2])
        assert not caplog.text


def test_answers_end_at_eos_and_empty_ones_are_left_out_and_counted(taught, caplog):
    with caplog.at_level(logging.WARNING, logger="legend_hf"):
        pairs = ask(list(TAUGHT), taught)
    assert dict(zip(pairs["prompt"], pairs["rejected"], strict=True)) == {q: a for q, a in TAUGHT.items() if a}
    assert set(pairs["chosen"]) == {REFERENCE_REFUSAL}
    assert "left out 1 of 4 questions: 1 answers are empty, 0 are the refusal itself" in caplog.text
    assert "3 pairs; 1 empty and 0 refusing answers left out, 0 cut at the limit" in pairs.info.description
    # The control: without room to end, answers are cut, and counted as cut.
    short = ask(list(TAUGHT), taught, max_new_tokens=2)
    assert all(a.startswith(s) and len(s) < len(a) for s, a in zip(short["rejected"], TAUGHT.values(), strict=False))
    assert "3 cut at the limit" in short.info.description


def test_an_answer_that_is_the_refusal_is_left_out(taught):
    pairs = ask(["What is tea?", "Who sings?"], taught, refusals="The bird sings.")
    assert pairs["prompt"][:] == ["What is tea?"]
    assert "another refusal against" in pairs.info.description
    assert "0 empty and 1 refusing" in pairs.info.description


def test_every_end_token_that_the_model_names_ends_an_answer(annotator, tmp_path):
    _, new = straight_line(annotator, QUESTIONS[0])
    end = next(token for i, token in enumerate(new) if i > 3 and token not in new[:i])
    expected, cut = straight_line(annotator, QUESTIONS[0], ends=(end,))
    assert 3 < len(cut) < len(new)
    folder = variant(annotator, tmp_path / "m", eos_token_id=[1, end])
    assert ask(QUESTIONS[:1], folder)["rejected"][0] == expected


def test_greedy_whatever_the_models_own_settings_say(annotator, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    settings = {"repetition_penalty": 3.0, "no_repeat_ngram_size": 2, "min_new_tokens": 9}
    folder = variant(annotator, tmp_path / "m", **settings)
    assert ask(QUESTIONS, folder)["rejected"][:] == ask(QUESTIONS, annotator)["rejected"][:]
    ids = torch.tensor([[0, 50, 60, 70]])
    plain, set_ = (
        AutoModelForCausalLM.from_pretrained(f).generate(input_ids=ids, do_sample=False, max_new_tokens=24)
        for f in (annotator, folder)
    )
    assert plain.tolist() != set_.tolist(), "settings that change nothing would test nothing"


def test_a_dialogue_ends_where_the_next_turn_begins(taught):
    questions = [q for q, a in TAUGHT.items() if a]
    pairs = ask(questions, taught, template="dialogue", max_new_tokens=60)
    assert pairs["rejected"][:] == [TAUGHT[q] for q in questions]
    assert "0 cut at the limit" in pairs.info.description
    # As dialogue strings, too; the rows can be read again.
    asked = [f"\n\nHuman: {q}\n\nAssistant:" for q in questions]
    pairs = ask(asked, taught, template="dialogue", max_new_tokens=60)
    assert pairs["rejected"][:] == [TAUGHT[q] for q in questions]
    read = pairs_from_batch(pairs[:])
    assert all(isinstance(pair, Pair) and len(pair.rejected.response) == 1 for pair in read)


@pytest.mark.parametrize("max_new_tokens", [480, 1024])
def test_the_window_bounds_an_answer(annotator, max_new_tokens, tmp_path):
    """512 positions: an answer gets what its own question leaves, not what the longest of its batch does."""
    ask(QUESTIONS[:3], annotator, max_new_tokens=max_new_tokens, output=tmp_path / "pairs.jsonl")
    lines = (tmp_path / "pairs.jsonl.answers").read_text().splitlines()[1:]
    for entry in map(json.loads, lines):
        from transformers import AutoTokenizer

        question = AutoTokenizer.from_pretrained(annotator)(f"Q: {entry['prompt']}\nA:")["input_ids"]
        assert entry["tokens"] == min(max_new_tokens, 512 - len(question))


# -- What the annotator sees ---------------------------------------------------------------------------------


def seen(folder, question, template, joiner=None, chat_template=None, **kwargs):
    """The open text, and what a Reader sees of the same question with a response."""
    asked = Writer(folder, template=template, joiner=joiner, chat_template_kwargs=kwargs or None)
    annotator = open_writer(asked, max_new_tokens=1)
    reader, tokenizer = annotator.reader, annotator.tokenizer
    talk = conversation(question, "Paris.")
    whole = templates.render(talk, tokenizer, template=reader.template, joiner=reader.joiner, date=reader.date)
    return annotator.text(question), whole.text


@pytest.mark.parametrize("question", ["Hi there", "\n\nHuman: A\n\nAssistant: B\n\nHuman: C\n\nAssistant:"])
@pytest.mark.parametrize(
    ("template", "ending", "gap"),
    [("alpaca", "### Response:\n", ""), ("dialogue", "\n\nAssistant:", " "), ("Q: {prompt} A: ", " A:", " "), ("chat", "<|assistant|>\n", "")],
)  # fmt: skip
def test_the_annotator_sees_what_a_reader_sees_up_to_the_response(
    tiny_llama, tmp_path, template, question, ending, gap
):
    folder = shutil.copytree(tiny_llama, tmp_path / "m")
    (folder / "chat_template.jinja").write_text(CHATML)
    opened, whole = seen(folder, question, template)
    assert opened.endswith(ending)
    assert whole.removesuffix("\n") == opened + gap + "Paris."


def test_a_generation_prompt_and_its_arguments_reach_the_annotator_and_the_row(annotator, tmp_path):
    folder = shutil.copytree(annotator, tmp_path / "m")
    thinking = CHATML.replace(
        "<|assistant|>\n{% endif", "<|assistant|>\n{% if think is false %}<no>{% endif %}{% endif"
    )
    dated = "{{ strftime_now('%Y') }}"
    (folder / "chat_template.jinja").write_text(dated + thinking)
    opened, _ = seen(folder, "Hi", "chat", think=False)
    assert opened.endswith("<|assistant|>\n<no>")
    assert opened.startswith("2025<"), "the date is frozen, as a Reader's is"
    assert not seen(folder, "Hi", "chat")[0].endswith("<no>")
    pairs = ask(["Hi"], folder, template="auto", joiner=None, chat_template_kwargs={"think": False})
    assert pairs["chat_template_kwargs"][:] == [{"think": False}]
    assert pairs["rejected"][0] != ask(["Hi"], folder, template="auto", joiner=None)["rejected"][0]
    with pytest.raises(ValueError, match="`chat_template_kwargs` needs `template=\"chat\"`, here it is 'alpaca'"):
        ask(["Hi"], folder, template="alpaca", chat_template_kwargs={"think": False})


# -- Models that cannot answer -------------------------------------------------------------------------------


def test_a_model_without_a_head_is_refused(tiny_llama):
    """`AutoModelForCausalLM` loads it with a random head, and only warns."""
    with pytest.raises(ValueError, match=r"lacks the weights `lm_head.weight` that a language model needs to generate"):
        ask(QUESTIONS, tiny_llama)


def test_encoders_are_refused(tiny_llama, tmp_path):
    import torch
    from transformers import BertConfig, BertForMaskedLM, ViTConfig, ViTModel

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    torch.manual_seed(0)
    bert = copy(tiny_llama, tmp_path / "bert")
    BertForMaskedLM(BertConfig(vocab_size=400, initializer_range=0.5, **sizes)).save_pretrained(bert)
    with pytest.raises(ValueError, match="looks ahead: a later token changes .* give a causal language model"):
        ask(QUESTIONS, bert)
    vision = copy(tiny_llama, tmp_path / "vit")
    ViTModel(ViTConfig(**sizes)).save_pretrained(vision)
    with pytest.raises(ValueError, match="is a model of type 'vit', which generates no text"):
        ask(QUESTIONS, vision)


# -- Going on ------------------------------------------------------------------------------------------------

KILLED = """
import json, sys
from legend_hf import Writer
from legend_hf.directions import induce_pairs
questions, writes, output = map(json.loads, sys.argv[1:])
induce_pairs(questions, model=Writer(**writes), output=output)
"""


def test_a_killed_run_goes_on_and_ends_as_one_that_never_stopped(annotator, tmp_path):
    questions = [f"{q} And {i}?" for i in range(3) for q in QUESTIONS]
    whole = ask(questions, annotator, max_new_tokens=150, batch_size=2, output=tmp_path / "whole.jsonl")
    output = tmp_path / "pairs.jsonl"
    answers = tmp_path / "pairs.jsonl.answers"
    writes = {"model": str(annotator), "template": PLAIN, "joiner": " ", "max_new_tokens": 150, "batch_size": 2}
    run = subprocess.Popen([sys.executable, "-c", KILLED, *map(json.dumps, (questions, writes, str(output)))])
    try:
        deadline = time.monotonic() + 120
        while not answers.exists() or answers.read_bytes().count(b"\n") < 5:
            assert run.poll() is None, "it ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        run.send_signal(signal.SIGKILL)
        run.wait()
    before = answers.read_bytes()
    done = before.count(b"\n") - 1
    assert 4 <= done < len(questions)
    assert not output.exists(), "the pairs are written when they are complete"

    pairs = ask(questions, annotator, max_new_tokens=150, batch_size=2, output=output)
    assert answers.read_bytes().startswith(before[: before.rindex(b"\n") + 1]), "what was done is done"
    assert pairs[:] == whole[:]
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert answers.read_bytes() == (tmp_path / "whole.jsonl.answers").read_bytes()


@pytest.fixture
def finished(taught, tmp_path):
    """A finished run: its options, and its file of answers."""
    options = {"model": str(taught), "output": tmp_path / "pairs.jsonl"}
    ask(list(TAUGHT), **options)
    return options, tmp_path / "pairs.jsonl.answers"


def test_a_torn_last_line_and_a_damaged_one_are_answered_again(finished, caplog):
    options, answers = finished
    good = answers.read_bytes()
    pairs = options["output"].read_bytes()
    for cut in (1, 7, len(good.splitlines(keepends=True)[-1]) - 1):
        answers.write_bytes(good[:-cut])
        ask(list(TAUGHT), **options)
        assert answers.read_bytes() == good
        assert options["output"].read_bytes() == pairs
    lines = good.splitlines(keepends=True)
    for damage in (b"{nothing\n", b'{"prompt": "x"}\n', b"[1]\n", b"\0\0\0\n"):
        answers.write_bytes(b"".join([lines[0], damage, *lines[2:]]))
        caplog.clear()
        ask(list(TAUGHT), **options)
        assert "1 lines of" in caplog.text
        assert "generated again" in caplog.text
        assert sorted(answers.read_bytes().splitlines()) == sorted(good.splitlines()), "a bad line is no answer"
        assert options["output"].read_bytes() == pairs


def test_a_finished_run_needs_no_model_and_more_questions_only_their_own_answers(finished, monkeypatch):
    options, answers = finished
    good = answers.read_bytes()
    more = [*reversed(TAUGHT), "What is a map?"]
    asked = []
    real = writer.load_generator

    def counting(*arguments, **options):
        answer = real(*arguments, **options)
        return lambda texts, room, seed: asked.append(len(texts)) or answer(texts, room, seed)

    monkeypatch.setattr(writer, "load_generator", counting)
    ask(list(TAUGHT), **options)
    assert asked == []
    pairs = ask(more, batch_size=1, **options)
    assert asked == [1]
    assert pairs["prompt"][:] == [q for q in more if TAUGHT.get(q) != ""]
    assert answers.read_bytes().startswith(good)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_new_tokens": 25}, "`max_new_tokens` is 24 there and 25 here"),
        ({"template": "alpaca", "joiner": None}, r"`template` is 'Q: {prompt}\\nA:' there and 'alpaca' here; `joiner`"),
        ({"dtype": "bfloat16"}, "`dtype` is 'float32' there and 'bfloat16' here"),
        (
            {"model": "annotator"},
            "`model_sha256` is '.*' there and '.*' here; run with the same to go on, or give another",
        ),
    ],
)
def test_another_configuration_is_refused(finished, annotator, change, message):
    options, answers = finished
    before = answers.read_bytes()
    if "model" in change:
        change = {"model": str(annotator)}
    with pytest.raises(ValueError, match=f"pairs.jsonl.answers` holds the answers of another run: {message}"):
        ask(list(TAUGHT), **{**options, **change})
    assert answers.read_bytes() == before
    # The control: what only says how fast, and what the refusals are, is no other configuration.
    ask(list(TAUGHT), **options, batch_size=3, refusals=["No.", "Never."], seed=4)


def test_files_of_others_are_left_alone(taught, tmp_path):
    output = tmp_path / "pairs.jsonl"
    output.write_text("mine")
    with pytest.raises(
        ValueError, match=r"pairs.jsonl` exists, and `pairs.jsonl.answers` does not.*something else made"
    ):
        ask(list(TAUGHT), taught, output=output)
    output.unlink()
    answers = tmp_path / "pairs.jsonl.answers"
    for text in ("mine", "mine\n", '{"a": 1}\n', "[]\n"):
        answers.write_text(text)
        with pytest.raises(
            ValueError, match=r"is no file of answers \('legend_hf answers, format 1'\): it begins with"
        ):
            ask(list(TAUGHT), taught, output=output)
        assert answers.read_text() == text


@pytest.mark.parametrize(
    "left",
    [
        b"",
        b"\0" * 300,
        b'{"file": "legend_hf answers, form',
        b'{"file": "legend_hf answers, format 1", "run": {"model": "another"',
        b'{"file": "legend_hf answers, format 1", "run": {"model": "another"}}\n',
        b'{"file": "legend_hf answers, format 1", "run": {"model": "another"}}\n{"prompt": "Wh',
    ],
)
def test_what_a_failed_run_left_without_an_answer_is_in_nobodys_way(taught, tmp_path, left):
    output = tmp_path / "pairs.jsonl"
    expected = ask(list(TAUGHT), taught, output=tmp_path / "new" / "pairs.jsonl")
    (tmp_path / "pairs.jsonl.answers").write_bytes(left)
    assert ask(list(TAUGHT), taught, output=output)[:] == expected[:]
    assert (tmp_path / "pairs.jsonl.answers").read_bytes() == (tmp_path / "new" / "pairs.jsonl.answers").read_bytes()


def test_an_induction_that_failed_does_not_block_the_next(taught, annotator, tiny_llama, tmp_path):
    """Whatever it failed by: no head, a question too long, answers that are all empty."""
    output = tmp_path / "pairs.jsonl"
    silent = [question for question, answer in TAUGHT.items() if not answer]
    assert silent
    for questions, model, message in (
        (list(TAUGHT), tiny_llama, "lacks the weights"),
        (["Why? " * 2000], taught, "no room|window"),
        (silent, taught, "not one of"),
    ):
        with pytest.raises(ValueError, match=message):
            ask(questions, model, output=output)
        assert list(tmp_path.iterdir()) == [], "nothing is left behind"
    ask(list(TAUGHT), annotator, output=output)
    # The control: answers of a run that did not fail are kept, and by `overwrite` they are not.
    with pytest.raises(ValueError, match="holds the answers of another run.*or pass `overwrite=True` to begin anew"):
        ask(list(TAUGHT), taught, output=output)
    again = ask(list(TAUGHT), taught, output=output, overwrite=True)
    assert again[:] == ask(list(TAUGHT), taught)[:]


# -- What comes back -----------------------------------------------------------------------------------------


def test_order_count_categories_and_duplicates(taught, tmp_path):
    from datasets import Dataset, load_dataset

    rows = [{"question": q, "topic": i % 2, "n": i} for i, q in enumerate([*TAUGHT, *reversed(TAUGHT)])]
    options = {"prompt_column": "question", "category_column": "topic", "output": tmp_path / "pairs.jsonl"}
    pairs = ask(Dataset.from_list(rows), taught, **options)
    kept = [row for row in rows if TAUGHT[row["question"]]]
    assert pairs.column_names == ["prompt", "chosen", "rejected", "topic"]
    assert pairs["prompt"][:] == [row["question"] for row in kept]
    assert pairs["topic"][:] == [row["topic"] for row in kept]
    assert pairs["rejected"][:] == [TAUGHT[row["question"]] for row in kept]
    assert len((tmp_path / "pairs.jsonl.answers").read_text().splitlines()) == 1 + len(TAUGHT)
    written = load_dataset("json", data_files=str(tmp_path / "pairs.jsonl"), split="train")
    assert written[:] == pairs[:]
    source = json.loads((tmp_path / "pairs.jsonl.source").read_text())
    assert source["description"] == pairs.info.description
    assert (source["questions"], source["pairs"], source["empty"]) == (8, 6, 2)
    assert str(tmp_path) not in json.dumps(source), "a path of this machine is no provenance"


def test_message_lists_stay_message_lists(annotator):
    questions = [[{"role": "user", "content": q}] for q in QUESTIONS]
    pairs = ask(questions, annotator)
    assert pairs["prompt"][:] == questions
    as_text = ask(QUESTIONS, annotator)
    assert [c[0]["content"] for c in pairs["rejected"]] == as_text["rejected"][:]
    assert pairs["chosen"][0] == [{"role": "assistant", "content": REFERENCE_REFUSAL}]
    assert all(isinstance(pair, Pair) for pair in pairs_from_batch(pairs[:]))


def test_pairs_can_be_fitted_and_their_source_recorded(annotator):
    pairs = ask(QUESTIONS, annotator, template="alpaca", joiner=None)
    direction = fit_direction(pairs, model=str(annotator), preset="reference", pairs_source=pairs.info.description)
    assert direction.facts.pairs == len(QUESTIONS)
    assert direction.facts.pairs_source.startswith(
        "the reference refusal against greedy answers of up to 24 tokens by a "
    )
    assert "(alpaca template, float32) to 6 questions" in direction.facts.pairs_source


def test_what_cannot_be_asked_is_refused_before_any_model_is_loaded(annotator, monkeypatch):
    from datasets import Dataset, DatasetDict

    def never(*arguments, **options):
        raise AssertionError("the annotator was loaded")

    monkeypatch.setattr(writer, "load_generator", never)
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    for questions, message in (
        ([], "there are no `questions`"),
        ("Why?", "`questions` is one string; give a list of them"),
        (DatasetDict(train=Dataset.from_list([{"prompt": "Hi"}])), "a mapping with the keys 'train'; give one split"),
        ([{"goal": "Hi"}], r"row 0 has the columns `goal`, and not `prompt`; name the right ones with"),
        (["Hi", "  "], r"row 1, column `prompt`: given '  ', which asks nothing"),
        (["Hi", ""], r"row 1, column `prompt`: given '', which asks nothing"),
        (["Hi", said], r"row 1, column `prompt`: .*, which asks nothing; .* end with the user's"),
        (["Hi", None], r"row 1, column `prompt`"),
        (["Hi", 5], r"row 1, column `prompt`: given 5"),
        (["Hi", said[:1]], "some questions are strings and some are message lists"),
        (
            ["Hi", "why " * 600],
            r"row 1, column `prompt`: the question is \d+ tokens long, the model's window 512; shorten",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            ask(questions, annotator)
    for options, message in (
        ({"max_new_tokens": 0}, "`max_new_tokens` is 0; it must be at least 1"),
        ({"batch_size": 0}, "`batch_size` is 0; it must be at least 1"),
        ({"refusals": []}, r"`refusals` is \[\]; give one text or several"),
        ({"refusals": ["No.", " "]}, "none of them empty"),
        ({"refusals": ""}, "`refusals` is ''"),
        ({"template": "nothing"}, "`template` is 'nothing'; allowed are"),
    ):
        with pytest.raises(ValueError, match=message):
            ask(["Hi"], annotator, **options)
    with pytest.raises(AssertionError, match="the annotator was loaded"):
        ask(["Hi"], annotator)


def test_not_one_answer_is_an_error(taught):
    with pytest.raises(
        ValueError, match="not one of 1 questions gives a pair: 1 answers are empty.*use the `template`"
    ):
        ask(["Why does it rain?"], taught)


# -- Dealing -------------------------------------------------------------------------------------------------


def evenly(used, items):
    counts = [Counter(used)[item] for item in items]
    return max(counts) - min(counts) <= 1


@given(st.integers(1, 60), st.integers(1, 9), st.integers(0, 3))
def test_refusals_are_dealt_evenly_and_again_the_same(rows, refusals, seed):
    deck = [f"No {i}." for i in range(refusals)]
    given = [{"prompt": f"q{i}", "harmful": "So."} for i in range(rows)]
    pairs = pairs_with_refusal(given, refusals=deck, seed=seed)
    assert [pair["prompt"] for pair in pairs] == [row["prompt"] for row in given]
    assert evenly([pair["chosen"] for pair in pairs], deck)
    assert pairs == pairs_with_refusal(given, refusals=deck, seed=seed)


def test_dealing_is_by_seed_and_even_where_drawing_is_not():
    deck = [f"No {i}." for i in range(5)]
    given = [{"prompt": f"q{i}", "harmful": "So."} for i in range(50)]
    deals = [[pair["chosen"] for pair in pairs_with_refusal(given, refusals=deck, seed=seed)] for seed in (0, 1)]
    assert deals[0] != deals[1]
    assert deals[0][:5] != deals[0][5:10], "the rounds differ, so that order in the list says nothing"
    assert not evenly(random.Random(0).choices(deck, k=50), deck), "the control: independent draws are uneven"


def test_pairs_with_refusal_keeps_categories_and_names_what_lacks():
    (pair,) = pairs_with_refusal([{"prompt": "How?", "harmful": "So.", "category": "x", "other": 1}])
    assert pair == {"prompt": "How?", "chosen": REFERENCE_REFUSAL, "rejected": "So.", "category": "x"}
    with pytest.raises(ValueError, match="row 1 has the columns `prompt`, and not `harmful`"):
        pairs_with_refusal([{"prompt": "How?", "harmful": "So."}, {"prompt": "Why?"}])


def labelled(kinds, prompt="p"):
    return [{"prompt": prompt, "response": f"{prompt} {i}", "harm": kind} for i, kind in enumerate(kinds)]


@settings(max_examples=60)
@given(st.integers(1, 8), st.integers(1, 8), st.one_of(st.none(), st.integers(1, 80)), st.integers(0, 3))
def test_pairs_from_labels_use_every_response_evenly_and_no_pair_twice(harmless, harmful, per_prompt, seed):
    rows = labelled([0] * harmless + [1] * harmful)
    pairs = list(pairs_from_labels(rows, per_prompt=per_prompt, seed=seed))
    label = {row["response"]: row["harm"] for row in rows}
    assert all((label[p["chosen"]], label[p["rejected"]]) == (0, 1) for p in pairs)
    assert len({(p["chosen"], p["rejected"]) for p in pairs}) == len(pairs)
    expected = min(harmless, harmful) if per_prompt is None else min(per_prompt, harmless * harmful)
    assert len(pairs) == expected
    assert evenly([p["chosen"] for p in pairs], [r for r, kind in label.items() if kind == 0])
    assert evenly([p["rejected"] for p in pairs], [r for r, kind in label.items() if kind == 1])


def test_independent_draws_would_repeat_pairs():
    """The control of the property above."""
    rng = random.Random(0)
    drawn = [(rng.randrange(6), rng.randrange(6)) for _ in range(12)]
    assert len(set(drawn)) < 12
    assert not evenly([a for a, _ in drawn], range(6))


def test_pairs_from_labels_leaves_out_one_kind_both_ways_and_blanks(caplog):
    rows = [
        *labelled([0, 1, 1], "a"),
        *labelled([1, 1], "only harmful"),
        *labelled([0, 1], "b"),
        {"prompt": "b", "response": "b 0", "harm": 1},  # labelled both ways now, so b has one kind
        {"prompt": "a", "response": " ", "harm": 0},
        {"prompt": "a", "response": "a 1", "harm": 1.0},  # once more
    ]
    with caplog.at_level(logging.WARNING, logger="legend_hf"):
        pairs = pairs_from_labels(rows, per_prompt=99)
    assert sorted(pairs["rejected"]) == ["a 1", "a 2"]
    assert set(pairs["chosen"]) == {"a 0"}
    assert "left out 2 of 3 prompts: their responses are of one kind only" in caplog.text
    assert pairs.info.description.startswith(
        "2 pairs of 1 prompts out of 10 labelled responses, harmful where `harm` is"
    )
    assert "2 prompts with one kind only and 1 responses labelled both ways left out" in pairs.info.description


def test_pairs_of_a_prompt_do_not_depend_on_other_prompts_and_do_on_the_seed():
    one = labelled([0, 1] * 10, "a")
    alone = list(pairs_from_labels(one, seed=1))
    among = [p for p in pairs_from_labels([*labelled([0, 1] * 4, "b"), *one], seed=1) if p["prompt"] == "a"]
    assert alone == among
    assert alone != list(pairs_from_labels(one, seed=2))


def test_graded_labels_categories_and_other_names():
    rows = [{"q": "a", "text": f"t{i}", "grade": grade, "topic": "x"} for i, grade in enumerate([0.1, 0.4, 0.7, 0.9])]
    names = {"prompt_column": "q", "response_column": "text", "label_column": "grade", "category_column": "topic"}
    pairs = pairs_from_labels(rows, **names, threshold=0.8)
    assert pairs["rejected"][:] == ["t3"]
    assert pairs["topic"][:] == ["x"]
    assert len(pairs_from_labels(rows, **names)) == 2


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (labelled([0, 0]), {}, "none of the 1 prompts has both a harmless and a harmful response, by `harm` of at least 0.5"),
        ([], {}, "none of the 0 prompts"),
        (labelled([0, 1]), {"per_prompt": 0}, "`per_prompt` is 0; it must be at least 1, or None"),
        (labelled([0, 1]), {"label_column": "harmful"}, "row 0 has the columns .* and not `harmful`"),
        (labelled([0, "yes"]), {}, r"row 1, column `harm`: given 'yes'; allowed is a number"),
        (labelled([0, None]), {}, r"row 1, column `harm`: given None"),
        (labelled([0, float("nan")]), {}, r"row 1, column `harm`: given nan"),
    ],
)  # fmt: skip
def test_labels_that_cannot_be_paired(rows, options, message):
    with pytest.raises(ValueError, match=message):
        pairs_from_labels(rows, **options)


def test_labelled_responses_of_a_public_set(shared_data):
    rows = [json.loads(line) for line in (shared_data / "gptfuzz_labelled.jsonl").read_text().splitlines()]
    harmful = {(row["prompt"], row["response"]) for row in rows if row["harm"]}
    pairs = pairs_from_labels(rows, per_prompt=5)
    assert len(pairs) == 500
    for pair in pairs:
        assert (pair["prompt"], pair["rejected"]) in harmful
        assert (pair["prompt"], pair["chosen"]) not in harmful


# -- Sampling ------------------------------------------------------------------------------------------------

TOPICS = [{"prompt": f"{name} {i}", "category": name} for name, n in (("a", 20), ("b", 3), ("c", 9)) for i in range(n)]


def test_no_category_dominates_a_sample(caplog):
    from datasets import Dataset

    with caplog.at_level(logging.WARNING, logger="legend_hf"):
        drawn = sample_questions(TOPICS, per_category=5)
    assert Counter(row["category"] for row in drawn) == {"a": 5, "b": 3, "c": 5}
    assert "1 of 3 categories have fewer than 5 rows: {'b': 3}" in caplog.text
    assert [TOPICS.index(row) for row in drawn] == sorted(TOPICS.index(row) for row in drawn)
    as_dataset = sample_questions(Dataset.from_list(TOPICS), per_category=5)
    assert isinstance(as_dataset, Dataset)
    assert list(as_dataset) == drawn
    assert drawn != sample_questions(TOPICS, per_category=5, seed=1)
    # What is drawn from one category does not depend on another, whose rows may come and go.
    without = sample_questions([row for row in TOPICS if row["category"] != "a"], per_category=5)
    assert without == [row for row in drawn if row["category"] != "a"]
    plain = Counter(row["category"] for row in random.Random(0).sample(TOPICS, 13))
    assert plain["a"] > 5, "the control: a plain sample follows the sizes"


def test_sampling_needs_categories():
    with pytest.raises(ValueError, match="`per_category` is 0; it must be at least 1"):
        sample_questions(TOPICS, per_category=0)
    with pytest.raises(ValueError, match="row 0 has the columns `prompt`, and not `category`"):
        sample_questions([{"prompt": "Hi"}], per_category=1)
    with pytest.raises(RowError, match="row 1, column `category`: given None; give every question a category"):
        sample_questions([TOPICS[0], {"prompt": "Hi", "category": None}], per_category=1)


# -- The command ---------------------------------------------------------------------------------------------


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def files(tmp_path):
    rows = [{"prompt": q, "category": "warm" if "tea" in q else "other"} for q in TAUGHT]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "refusals.txt").write_text("I won’t say.\n\nAsk somebody else.\n", encoding="utf-8")
    return tmp_path


def test_the_command_is_the_function(files, taught):
    from datasets import load_dataset

    done = run(
        "induce", files / "questions.jsonl", "--model", taught, "--output", files / "pairs.jsonl",
        "--refusals", files / "refusals.txt", "--template", PLAIN, "--max-new-tokens", 24, "--seed", 3,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "2 refusals against greedy answers of up to 24 tokens" in done.output
    rows = load_dataset("json", data_files=str(files / "questions.jsonl"), split="train")
    refusals = ["I won’t say.", "Ask somebody else."]
    expected = induce_pairs(rows, model=Writer(taught, template=PLAIN, max_new_tokens=24), refusals=refusals, seed=3)
    written = load_dataset("json", data_files=str(files / "pairs.jsonl"), split="train")
    assert written[:] == expected[:]
    assert written.column_names == ["prompt", "chosen", "rejected", "category"]


def test_the_command_draws_by_category(files, taught):
    done = run(
        "induce", files / "questions.jsonl", "--model", taught, "--output", files / "pairs.jsonl", "--per-category", 1,
        "--template", PLAIN, "--max-new-tokens", 24,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "to 2 questions" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "{headless}"], "lacks the weights `lm_head.weight`"),
        (["--model", "{m}", "--prompt-column", "goal"], "row 0 has the columns `prompt`, `category`, and not `goal`"),
        (["--model", "{m}", "--max-new-tokens", "0"], "`--max-new-tokens` is 0; it must be at least 1"),
        (["--model", "{m}", "--refusals", "{d}/empty.txt"], "`--refusals` is []; give one text or several"),
        (["--model", "{m}", "--per-category", "0"], "`--per-category` is 0"),
        (["--model", "{d}"], "config.json"),
    ],
)
def test_user_errors_are_one_line_and_exit_code_2(files, taught, tiny_llama, arguments, message):
    (files / "empty.txt").write_text("\n")
    given = [a.format(m=taught, d=files, headless=tiny_llama) for a in arguments]
    done = run("induce", files / "questions.jsonl", "--output", files / "pairs.jsonl", *given)
    assert done.exit_code == 2, done.output
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert message in line
    assert "Traceback" not in done.output
    assert not (files / "pairs.jsonl").exists()


def test_help_shows_an_example():
    done = run("induce", "--help")
    assert done.exit_code == 0
    assert "Example: legend-hf induce" in " ".join(done.output.split())
    assert "induce" in run("--help").output


def test_progress_bars_obey_the_datasets_switch(files, taught, capfd):
    """The switch is read when `datasets` is imported, so it is tested by its function."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    command = ["-m", "legend_hf.cli", "induce", str(files / "questions.jsonl"), "--model", str(taught)]
    options = ["--output", str(files / "pairs.jsonl"), "--template", PLAIN, "--max-new-tokens", "24"]
    env = {k: v for k, v in os.environ.items() if k != "HF_DATASETS_DISABLE_PROGRESS_BARS"}
    done = subprocess.run([sys.executable, *command, *options], capture_output=True, text=True, check=True, env=env)
    assert "Generating answers" in done.stderr
    were_on = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        ask(list(TAUGHT), taught)
    finally:
        if were_on:
            enable_progress_bars()
    assert "Generating answers" not in capfd.readouterr().err
