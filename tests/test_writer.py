"""Writers: the assistant's turn stays open, whatever the template; what follows is the model's own, whatever the batch."""

from __future__ import annotations

import inspect
import json
import pickle
import sys
from dataclasses import FrozenInstanceError, asdict, fields
from pathlib import Path

import pytest
from datasets import Dataset
from tiny_causal import CHAT, loaded, save_tiny_causal, straight_line

import legend_hf
from legend_hf import Writer
from legend_hf.directions.induce import induce_pairs
from legend_hf.preferences.corr_at_k import compute_corr_at_k
from legend_hf.preferences.corrections import correction_ladders
from legend_hf.reading.reader import describe_model
from legend_hf.writing import writer as writing
from legend_hf.writing.writer import _read_answer, open_writer

PROMPT = "How do I borrow a bicycle without asking?"
PREFIX = "Sure, here it is. Take the bicycle, but no,"
TEXTS = [
    (PROMPT, ""),
    (PROMPT, PREFIX),
    ("Hi", "Yes. Wait, because"),
    ("Tell me a secret.", ""),
    ("Tell me a secret.", "Happy to explain. However, I"),
]


@pytest.fixture(scope="module")
def chatty(tiny_llama, tmp_path_factory):
    return save_tiny_causal(tiny_llama, tmp_path_factory.mktemp("chatty") / "m", CHAT)


@pytest.fixture(scope="module")
def plain(tiny_llama, tmp_path_factory):
    return save_tiny_causal(tiny_llama, tmp_path_factory.mktemp("plain") / "m")


def messages(prompt, prefix):
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": prefix}]


def opened(folder, *, output=None, overwrite=False, **options):
    return open_writer(Writer(folder, **options), max_new_tokens=12, output=output, overwrite=overwrite)


def go_on(writer, texts=TEXTS):
    said = writer.go_on([prompt for prompt, _ in texts], [prefix for _, prefix in texts])
    return [answer.response for answer in said]


def check_open(tokenizer, ids, prefix):
    """One BOS, in front; the text ends with the prefix, and no turn was ended behind the user's."""
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(ids).endswith("<|assistant|>\n" + prefix)
    assert ids.count(tokenizer.eos_token_id) == 1


def test_the_assistants_turn_stays_open(chatty):
    tokenizer = loaded(chatty)[0]
    writer = opened(chatty)
    ids = writer.encode(PROMPT, PREFIX)
    check_open(tokenizer, ids, PREFIX)
    expected = tokenizer.apply_chat_template(messages(PROMPT, PREFIX), continue_final_message=True, tokenize=False)
    assert ids == tokenizer(expected, add_special_tokens=False)["input_ids"]
    check_open(tokenizer, writer.encode(PROMPT, ""), "")
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
    writer, tokenizer = opened(folder), loaded(folder)[0]
    text = tokenizer.decode(writer.encode(PROMPT, PREFIX))
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
    writer = opened(plain, template=template)
    for prompt in (PROMPT, "\n\nHuman: A\n\nAssistant: B\n\nHuman: C\n\nAssistant:"):
        ids = writer.encode(prompt, PREFIX)
        assert tokenizer.decode(ids).endswith(begun + PREFIX)
        assert ids.count(tokenizer.bos_token_id) == 1
        assert tokenizer.eos_token_id not in ids
        assert tokenizer.decode(writer.encode(prompt, "")).endswith(begun.rstrip(" "))


@pytest.mark.parametrize("kind", ["chatty", "plain"])
def test_continuations_are_those_of_one_by_one_greedy_decoding(request, kind):
    folder = request.getfixturevalue(kind)
    template = "chat" if kind == "chatty" else "Q: {prompt}\nA: "
    writer = opened(folder, template=template)
    expected = [straight_line(folder, writer.encode(*text), 12) for text in TEXTS]
    assert len(set(expected)) == len(TEXTS), "continuations must depend on the texts, or nothing is tested"
    for batch_size in (1, 2, 16):
        assert go_on(opened(folder, batch_size=batch_size, template=template)) == expected
    # The control: behind a closed turn the model says something else.
    tokenizer = loaded(folder)[0]
    closed = [*writer.encode(*TEXTS[1]), tokenizer.eos_token_id]
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
    said = _read_answer([1], [2, 3, 0, 4], [0], tokenizer)
    assert (said.response, said.tokens, said.finished) == (" I stop", 2, True)
    assert _read_answer([1, 2, 3], [4], [0], tokenizer).response == "ped"
    assert _read_answer([1], [0], [0], tokenizer).response == ""


def test_sampling_depends_on_the_seed_alone(plain):
    import torch

    def sampled(seed):
        return go_on(opened(plain, batch_size=2, temperature=0.8, top_p=0.7, seed=seed), [TEXTS[1]] * 5)

    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    first = sampled(0)
    assert torch.equal(torch.random.get_rng_state(), before), "the caller's own random numbers are left alone"
    torch.manual_seed(8)
    assert sampled(0) == first
    assert len(set(first)) > 1, "equal texts are sampled anew"
    assert sampled(1) != first
    assert len(set(go_on(opened(plain), [TEXTS[1]] * 5))) == 1  # the control


def test_a_stopped_run_goes_on_where_it_was(plain, tmp_path, monkeypatch):
    expected = go_on(opened(plain, batch_size=1))
    output = tmp_path / "ladders.jsonl"
    assert go_on(opened(plain, batch_size=1, output=output)) == expected
    file = tmp_path / "ladders.jsonl.answers"
    lines = file.read_text().splitlines(keepends=True)
    assert len(lines) == 1 + len(TEXTS)
    assert json.loads(lines[1])["prompt"] in [list(text) for text in TEXTS]
    file.write_text("".join(lines[:3]) + lines[3][:9])  # two were finished, the third was being written

    writer, written = opened(plain, batch_size=1, output=output), []
    load = writing.load_generator

    def counting(*given):
        write = load(*given)
        return lambda texts, room, seed: written.extend(texts) or write(texts, room, seed)

    monkeypatch.setattr(writing, "load_generator", counting)
    assert go_on(writer) == expected
    assert len(written) == len(TEXTS) - 2
    with pytest.raises(ValueError, match="holds the answers of another run: `max_new_tokens` is 12 there and 9 here"):
        go_on(opened(plain, batch_size=1, max_new_tokens=9, output=output))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_new_tokens": 0}, "`max_new_tokens` is 0; it must be at least 1"),
        ({"batch_size": 0}, "`batch_size` is 0; it must be at least 1"),
        ({"temperature": 0.0}, "`temperature` is 0.0; it must be above 0"),
        ({"temperature": float("nan")}, "`temperature` is nan; it must be above 0"),
        ({"top_p": 1.5}, "`top_p` is 1.5; it must be above 0 and at most 1"),
        ({"dtype": "int8"}, "`dtype` is 'int8'; allowed are 'auto', 'float32'"),
        ({"device": "gpu"}, "`device` is 'gpu', which names no device"),
        ({"model": None}, "`model` is None; give a Hub id, a folder, or a `Writer` of one"),
        ({"model": ""}, "`model` is ''; give a Hub id"),
    ],
)
def test_writers_that_generate_nothing_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Writer(**{"model": "somewhere", **given})


def test_texts_beyond_the_window_and_models_without_a_head_are_refused(plain, tiny_llama):
    writer = opened(plain)
    with pytest.raises(ValueError, match=r"are \d+ tokens long, the model's window 512; shorten them"):
        writer.encode(PROMPT, "one two " * 400)
    with pytest.raises(ValueError, match=r"lacks the weights `lm_head.weight`"):
        go_on(opened(tiny_llama))
    with pytest.raises(ValueError, match="`chat_template_kwargs` needs `template=\"chat\"`, here it is 'alpaca'"):
        opened(plain, template="alpaca", chat_template_kwargs={"think": False})


# -- Who writes ----------------------------------------------------------------------------------------------

TASKS = {
    "induce_pairs": lambda model, **rest: induce_pairs(["Hi", "Name three colours."], model=model, **rest),
    "correction_ladders": lambda model, **rest: correction_ladders(Dataset.from_list(HARM), model=model, **rest),
    "compute_corr_at_k": lambda model, **rest: compute_corr_at_k(
        Dataset.from_list(HARM), model=model, judge=lambda q, p, c: [True] * len(q), ks=(2, 5), samples=2, **rest
    )[1],
}
# What a task takes where a Writer leaves it open.
OWN = {
    "induce_pairs": {"max_new_tokens": 1024},
    "correction_ladders": {"max_new_tokens": 128},
    "compute_corr_at_k": {"max_new_tokens": 32, "temperature": 0.8, "top_p": 0.7, "seed": 0},
}
HARM = [{"prompt": PROMPT, "response": "Wait until dark and then take the nearest one to the park without a word."}]


def run_of(file):
    return json.loads(file.read_text().splitlines()[0])["run"]


@pytest.mark.parametrize("task", TASKS)
def test_a_models_name_is_a_writer_that_says_nothing_else(plain, tmp_path, task):
    named = TASKS[task](str(plain), output=tmp_path / "named.jsonl")
    for i, writer in enumerate([Writer(plain), Writer(plain, **OWN[task])]):
        output = tmp_path / f"{i}.jsonl"
        assert TASKS[task](writer, output=output).to_list() == named.to_list()
        assert output.with_name(f"{i}.jsonl.answers").read_bytes() == (tmp_path / "named.jsonl.answers").read_bytes()
    run = run_of(tmp_path / "named.jsonl.answers")
    assert {name: run.get(name) for name in OWN[task]} == OWN[task]
    assert ("temperature" in run) == (task == "compute_corr_at_k"), "greedy, but for the task that samples"
    # The control: what a Writer says holds, and is another run.
    said = Writer(plain, max_new_tokens=4, temperature=1.5, top_p=0.9, seed=5, batch_size=2)
    other = TASKS[task](said, output=tmp_path / "other.jsonl")
    assert other.to_list() != named.to_list()
    run = run_of(tmp_path / "other.jsonl.answers")
    for name in ("max_new_tokens", "temperature", "top_p", "seed", "batch_size"):
        assert run[name] == getattr(said, name)
    with pytest.raises(ValueError, match="holds the answers of another run: `max_new_tokens` is 4 there"):
        TASKS[task](str(plain), output=tmp_path / "other.jsonl")


def test_what_a_writer_says_is_no_argument_of_a_task():
    own = {field.name for field in fields(Writer)} - {"model", "seed"}
    for task in (induce_pairs, correction_ladders, compute_corr_at_k):
        names = set(inspect.signature(task).parameters)
        assert len(names) <= 12
        assert not names & own, task
    # The control: a model that reads is described by arguments of the same names.
    assert {"revision", "template", "joiner", "dtype"} <= own & set(inspect.signature(describe_model).parameters)


def test_what_a_task_draws_and_what_a_writer_draws_are_two_seeds(plain):
    """A Writer without a seed takes the task's."""
    ladders = {
        (seed, own): TASKS["correction_ladders"](
            Writer(plain, max_new_tokens=6, temperature=2.0, seed=own, batch_size=1), seed=seed
        )
        for seed in (0, 1)
        for own in (None, 0, 1)
    }
    said = {key: made[0]["responses"][0] for key, made in ladders.items()}  # the direct response: no phrase is in it
    assert said[0, None] == said[0, 0] == said[1, 0]
    assert said[1, None] == said[0, 1] == said[1, 1]
    assert said[0, 0] != said[0, 1]
    drawn = {key: (made[0]["affirmation"], made[0]["triggers"]) for key, made in ladders.items()}
    assert drawn[0, 0] == drawn[0, 1]
    assert drawn[0, 0] != drawn[1, 0]


def test_answers_that_were_sampled_are_not_called_greedy(plain):
    greedy = induce_pairs(["Hi"], model=Writer(plain, max_new_tokens=4)).info.description
    sampled = induce_pairs(["Hi"], model=Writer(plain, max_new_tokens=4, temperature=0.8)).info.description
    assert "against greedy answers of up to 4 tokens" in greedy
    assert "against sampled (temperature 0.8, top_p 1) answers of up to 4 tokens" in sampled


@pytest.mark.parametrize("temperature", [None, 0.8])
def test_wherever_a_run_was_stopped_it_ends_as_one_that_never_was(plain, tmp_path, temperature):
    """Batches are planned over all texts, and drawn by seeds of their own: half a batch is drawn as all of it was."""
    texts = [*TEXTS, TEXTS[1], TEXTS[1]]
    writer = {"batch_size": 3, "temperature": temperature}
    expected = go_on(opened(plain, **writer), texts)
    output = tmp_path / "said.jsonl"
    assert go_on(opened(plain, output=output, **writer), texts) == expected
    file = tmp_path / "said.jsonl.answers"
    whole = file.read_bytes()
    lines = whole.splitlines(keepends=True)
    assert len(lines) == 1 + len({*texts} if temperature is None else texts)
    for kept in range(1, len(lines)):
        file.write_bytes(b"".join(lines[:kept]) + lines[kept][:9])
        assert go_on(opened(plain, output=output, **writer), texts) == expected
        assert file.read_bytes() == whole
    # The control: what is in the file is believed.
    file.write_bytes(whole.replace(json.dumps(expected[1], ensure_ascii=False)[1:-1].encode(), b"something else"))
    assert go_on(opened(plain, output=output, **writer), texts) != expected


@pytest.mark.parametrize(
    ("said", "response", "finished"),
    [
        (" Take it.\n\nHuman: And then?", " Take it.", True),
        (" Take it.\n\nAssistant: Or", " Take it.", True),
        ("\n\nHuman: And then?", "", True),
        ("Human: And then?", "", True),
        (" Take it. Human: no turn", " Take it. Human: no turn", False),
        (" Take it.\n\nHumans", " Take it.\n\nHumans", False),
        (" Take it.  ", " Take it.", False),
    ],
)
def test_an_answer_ends_before_the_next_turn(plain, said, response, finished):
    tokenizer = loaded(plain)[0]
    before, new = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("Assistant:", said))
    answer = _read_answer(before, new, [tokenizer.eos_token_id], tokenizer)
    assert (answer.response, answer.finished) == (response, finished)
    assert _read_answer(before, [*new, tokenizer.eos_token_id, 7], [tokenizer.eos_token_id], tokenizer).finished


def test_writing_stops_at_the_next_turn_of_a_dialogue_and_not_of_another_template(plain, monkeypatch):
    from transformers import LlamaForCausalLM

    given = {}
    generate = LlamaForCausalLM.generate
    monkeypatch.setattr(LlamaForCausalLM, "generate", lambda self, **rest: given.update(rest) or generate(self, **rest))
    go_on(opened(plain, template="dialogue"))
    assert given["stop_strings"] == ["\n\nHuman:", "\n\nAssistant:"]
    given.clear()
    go_on(opened(plain, template="alpaca"))
    assert "stop_strings" not in given


def test_a_writer_is_plain_data(plain):
    import numpy as np

    writer = Writer(
        plain, max_new_tokens=np.int64(5), temperature=np.float64(0.5), chat_template_kwargs={"a": np.int64(1)}
    )
    assert writer == Writer(str(plain), max_new_tokens=5, temperature=0.5, chat_template_kwargs={"a": 1})
    assert pickle.loads(pickle.dumps(writer)) == writer
    assert json.loads(json.dumps(asdict(writer)))["model"] == str(plain)
    with pytest.raises(FrozenInstanceError):
        writer.seed = 1
    assert Writer("nobody/nothing").model == "nobody/nothing", "nothing is looked for until it writes"


def test_a_walk_from_a_task_to_the_model_has_few_stays(plain):
    """Files of the package that a run enters before the model generates."""
    for task, call in TASKS.items():
        assert 5 < len(stays(lambda call=call: call(Writer(plain, max_new_tokens=2)))) <= 10, task


def stays(call):
    package, seen, reached = str(Path(legend_hf.__file__).parent), set(), []

    def profile(frame, event, argument):
        if event == "call" and not reached:
            file, name = frame.f_code.co_filename, frame.f_code.co_name
            if name == "generate" and "transformers" in file:
                reached.append(file)
            elif file.startswith(package) and name != "<module>":
                seen.add(file)

    call()  # what is imported late is imported now
    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    assert reached, "the model never generated"
    return seen
