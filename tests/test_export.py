"""Exports: whatever shape comes in, the words stay, and TRL's real trainers train on them with the loss that is promised."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from legend_hf import RowError
from legend_hf.preferences.export import export_for
from legend_hf.reports.trl_check import check_for_trl

THINGS = ("bread", "bikes", "paint", "tents", "maps", "soup", "rain", "tea")
CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def said(role, content):
    return {"role": role, "content": content}


def strings(i, thing):
    return {"prompt": f"Tell me about {thing}. ", "chosen": f"Gladly: {thing}.", "rejected": f"No {thing}"}


def dialogue(i, thing):
    head = f"\n\nHuman: Hello\n\nAssistant: Hi\n\nHuman: Tell me about {thing}\n\nAssistant:"
    return {"chosen": f"{head} Gladly: {thing}. ", "rejected": f"{head} No {thing}"}


def pku(i, thing):
    row = strings(i, thing)
    sides = [row["chosen"], row["rejected"]]
    if i % 2:
        sides.reverse()
    return {"prompt": row["prompt"], "response_0": sides[0], "response_1": sides[1], "safer_response_id": i % 2}


def messages(i, thing):
    row = strings(i, thing)
    sides = {side: [said("assistant", row[side])] for side in ("chosen", "rejected")}
    return {"prompt": [said("user", row["prompt"])], **sides}


def whole(i, thing):
    row = messages(i, thing)
    return {side: row["prompt"] + row[side] for side in ("chosen", "rejected")}


def mixed(i, thing):
    return messages(i, thing) | {"prompt": strings(i, thing)["prompt"]}


def repeated(i, thing):
    return whole(i, thing) | {"prompt": strings(i, thing)["prompt"]}


def old(i, thing):
    row = whole(i, thing)
    return {
        side: {key: [message[key] for message in row[side]] for key in ("role", "content")}
        for side in ("chosen", "rejected")
    }


SHAPES = [strings, dialogue, pku, messages, whole, mixed, repeated, old]
AS_MESSAGES = [messages, whole, mixed, repeated, old]
NUMBERS = {
    "margin": [0.5, -0.2, 1.0, 0.0, 0.3, 0.7, -1.0, 0.1],
    "margin_prob": [0.9, 0.4, 1.0, 0.5, 0.6, 0.8, 0.0, 0.55],
}


def made(shape, **columns):
    from datasets import Dataset

    rows = {}
    for i, thing in enumerate(THINGS):
        for name, value in shape(i, thing).items():
            rows.setdefault(name, []).append(value)
    return Dataset.from_dict({**rows, **NUMBERS, "note": [f"n{i}" for i in range(8)], **columns})


@pytest.fixture(scope="module")
def tokenizer(tiny_llama):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.chat_template = CHATML
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


# -- TRL -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.__name__)
def test_the_columns_are_those_that_trl_reads(shape, tokenizer):
    from datasets import Value

    export = export_for(made(shape))
    assert export.trainer == "trl"
    assert export.columns == tuple(export.dataset.column_names) == ("prompt", "chosen", "rejected", "margin")
    assert export.dataset.features["margin"] == Value("float32")
    assert export.dataset["margin"] == pytest.approx(NUMBERS["margin"])
    assert export.flags == ()
    check = check_for_trl(export.dataset, tokenizer)
    assert check.ok, check.errors
    assert check.warnings == ()
    expected = messages if shape in AS_MESSAGES else strings
    if shape is not dialogue:
        rows = [expected(i, thing) for i, thing in enumerate(THINGS)]
        assert export.dataset.remove_columns("margin").to_list() == rows


@pytest.mark.parametrize("shape", [mixed, pku, old], ids=lambda s: s.__name__)
def test_the_control_without_the_export_trl_cannot_read_them(shape, tokenizer):
    assert not check_for_trl(made(shape), tokenizer).ok


def test_dialogues_are_cut_where_the_response_begins_and_keep_every_character(trainer_of):
    given = made(dialogue)
    export = export_for(given)
    for row, before in zip(export.dataset, given, strict=True):
        assert row["prompt"].endswith("\n\nAssistant:")
        assert row["prompt"] + row["chosen"] == before["chosen"]
        assert row["prompt"] + row["rejected"] == before["rejected"]
    # So the reward model reads the same tokens either way.
    one, other = trainer_of(export.dataset).train_dataset, trainer_of(given).train_dataset
    assert list(one["chosen_ids"]) == list(other["chosen_ids"])
    assert list(one["rejected_ids"]) == list(other["rejected_ids"])


@settings(max_examples=60)
@given(st.lists(st.tuples(st.booleans(), st.text("ab \n", min_size=1, max_size=4)), max_size=6), st.data())
def test_sides_with_other_prompts_keep_every_character(turns, data):
    from legend_hf.preferences.export import _strings
    from legend_hf.reading.formats import Pair, pairs_from_batch

    def text(turns):
        return "".join(f"\n\n{'Human' if human else 'Assistant'}: {words}" for human, words in turns)

    split = data.draw(st.integers(0, len(turns)))
    one = text(turns) + "\n\nAssistant: yes"
    other = text([*turns[:split], (True, "else"), *turns[split:]]) + "\n\nAssistant: no"
    (pair,) = pairs_from_batch({"chosen": [one], "rejected": [other]})
    if isinstance(pair, Pair):
        row = _strings(pair)
        assert row["prompt"] + row["chosen"] == one
        assert row["prompt"] + row["rejected"] == other
        assert row["prompt"] == "" or row["prompt"].endswith("\n\nAssistant:")


@pytest.mark.parametrize("lead", [("assistant", "user"), ("user",)], ids=["other turns", "other questions"])
def test_what_only_one_side_has_of_a_prompt_goes_to_its_response(lead):
    from datasets import Dataset

    head = [said("system", "Be kind.")]
    one, other = ([*head, *(said(role, f"{role} {i}") for role in lead), said("assistant", f"{i}")] for i in "ab")
    row = export_for(Dataset.from_list([{"chosen": one, "rejected": other, "margin": 0.5}])).dataset[0]
    assert row["prompt"] == head
    assert row["prompt"] + row["chosen"] == one
    assert row["prompt"] + row["rejected"] == other


def test_messages_keep_what_else_they_hold_and_tools_become_json():
    from datasets import Dataset

    call = [{"type": "function", "function": {"name": "weather"}}]
    tools = [[{"name": "weather"}], [{"name": "clock", "zone": "utc"}], None]
    rows = [
        {
            "prompt": [said("user", "Is it sunny?"), {"role": "assistant", "content": "", "tool_calls": call}, said("tool", "sun")],
            "chosen": [said("assistant", "Yes")],
            "rejected": [said("assistant", "No")],
            "tools": tool,
            "chat_template_kwargs": {"loud": True} if tool else None,
            "margin": 0.5,
        }
        for tool in tools
    ]  # fmt: skip
    export = export_for(Dataset.from_list(rows))
    assert export.columns == ("prompt", "chosen", "rejected", "tools", "chat_template_kwargs", "margin")
    got = export.dataset[0]
    assert got["prompt"][1]["tool_calls"][0]["function"]["name"] == "weather"
    # As lists, Arrow would have given each schema the other's keys.
    assert [value and json.loads(value) for value in export.dataset["tools"]] == tools
    assert export.dataset["chat_template_kwargs"] == [{"loud": True}, {"loud": True}, {"loud": None}]


def test_all_strings_can_become_messages():
    export = export_for(made(pku), messages=True)
    assert export.dataset.remove_columns("margin").to_list() == [messages(i, t) for i, t in enumerate(THINGS)]


def test_splits_formats_and_other_column_names():
    from datasets import DatasetDict

    given = made(strings).rename_column("prompt", "question").with_format("numpy")
    splits = DatasetDict(train=given, test=given.select([0]), none=given.select([]))
    export = export_for(splits, prompt_column="question")
    assert {name: len(split) for name, split in export.dataset.items()} == {"train": 8, "test": 1, "none": 0}
    assert len({str(split.features) for split in export.dataset.values()}) == 1
    assert given.column_names == ["question", "chosen", "rejected", "margin", "margin_prob", "note"]


def test_one_split_of_messages_makes_messages_of_all():
    from datasets import DatasetDict

    export = export_for(DatasetDict(train=made(strings), test=made(messages)))
    assert export.dataset["train"].to_list() == export.dataset["test"].to_list()


def test_rows_that_were_not_measured_are_left_out(caplog):
    status = ["ok", "too long", *["ok"] * 6]
    given = made(strings, margin_status=status, margin=[0.5, float("nan"), *[0.1] * 6])
    with caplog.at_level(logging.WARNING):
        export = export_for(given)
    assert "left out 1 of 8 rows" in caplog.text
    assert [row["chosen"] for row in export.dataset] == [c for i, c in enumerate(given["chosen"]) if i != 1]
    assert any("1 rows were left out" in note for note in export.notes)
    # The control: measured, the same row stays, and its NaN is refused.
    with pytest.raises(ValueError, match=r"`margin` is not a finite number in 1 rows \(first: row 1\)"):
        export_for(given.remove_columns("margin_status"))


# -- The other trainers --------------------------------------------------------------------------------------


def test_openrlhf_gets_its_columns_and_flags():
    export = export_for(made(strings), trainer="openrlhf")
    assert export.columns == ("prompt", "chosen", "rejected", "margin")
    assert export.flags == (
        "--model.margin_loss_enable", "--data.prompt_key prompt", "--data.chosen_key chosen", "--data.rejected_key rejected",
    )  # fmt: skip
    assert any("logexp" in note for note in export.notes)
    assert any("was not run" in note for note in export.notes)
    chat = export_for(made(messages, tools=["[]"] * 8), trainer="openrlhf")
    assert chat.flags == (*export.flags, "--data.apply_chat_template")
    assert chat.columns == export.columns


def test_ms_swift_gets_whole_conversations_and_the_rejected_response():
    export = export_for(made(dialogue), trainer="ms-swift")
    assert export.columns == ("messages", "rejected_response", "margin")
    row = export.dataset[0]
    assert [message["role"] for message in row["messages"]] == ["user", "assistant", "user", "assistant"]
    assert row["messages"][-1]["content"] == "Gladly: bread. "
    assert row["rejected_response"] == "No bread"
    assert any("9927" in note for note in export.notes)
    assert any("was not run" in note for note in export.notes)


def test_ms_swift_gets_whole_rejected_conversations_where_some_need_it():
    from datasets import Dataset, DatasetDict

    long = made(dialogue).to_list()[:1]
    long[0]["rejected"] = "\n\nHuman: Hello\n\nAssistant: Hm\n\nHuman: Well?\n\nAssistant: No"
    splits = DatasetDict(train=made(dialogue), test=Dataset.from_list(long))
    export = export_for(splits, trainer="ms-swift")
    assert export.columns == ("messages", "rejected_messages", "margin")
    assert [m["content"] for m in export.dataset["test"][0]["rejected_messages"]] == ["Hello", "Hm", "Well?", "No"]
    assert export.dataset["train"][0]["rejected_messages"][-1] == said("assistant", "No bread")


# What the readers do with a row, told in our words. Columns that a loader lets pass, and what becomes of them:
READ = {
    # ms-swift 4.6.0, swift/dataset/preprocessor/core.py (`standard_keys`) and swift/template/template_inputs.py
    "ms-swift": {
        "messages", "rejected_messages", "rejected_response", "tools", "rejected_tools", "margin", "chat_template_kwargs"
    },
    # OpenRLHF 0.11.2, openrlhf/datasets/reward_dataset.py
    "openrlhf": {"prompt", "chosen", "rejected", "margin"},
    # TRL 1.16.0, trl/trainer/reward_trainer.py
    "trl": {"prompt", "chosen", "rejected", "tools", "chat_template_kwargs", "margin"},
}  # fmt: skip


def plain(messages):
    return [(m["role"], m.get("content"), bool(m.get("tool_calls"))) for m in messages]


def swift_reads(row, flags=()):
    """Both sides of a row as (messages, tools, keywords), by ms-swift's rules; `None` where it deletes the row."""
    row = {k: v for k, v in row.items() if k in READ["ms-swift"] or "--remove_unused_columns false" in flags}
    assert all(m["role"] in ("system", "user", "assistant", "tool") for m in row["messages"])
    supplement = row.get("rejected_messages") is None
    if "rejected_response" in row:  # in the place of all that follows the last turn of the user
        said = row.pop("rejected_response")
        if said is None or said == row["messages"][-1]["content"]:
            return None
        said = [{"role": "assistant", "content": said}] if isinstance(said, str) else said
        assert not any(m["role"] == "user" for m in said)
        last = max((i for i, m in enumerate(row["messages"]) if m["role"] == "user"), default=-1)
        row["rejected_messages"] = row["messages"][: last + 1] + said
    sides = []
    for prefix in ("", "rejected_"):
        got = [row.get(prefix + name) for name in ("messages", "tools", "chat_template_kwargs")]
        if prefix and supplement:
            got = [
                row.get(n) if v is None else v
                for n, v in zip(("messages", "tools", "chat_template_kwargs"), got, strict=True)
            ]
        sides.append((plain(got[0]), got[1], got[2]))
    return sides


CALL = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "weather"}}]}
ASK, HI, SUN = said("user", "Is it sunny?"), said("system", "Be kind."), said("tool", "sun")
YES, NO, HM, WHY = said("assistant", "Yes"), said("assistant", "No"), said("assistant", "Hm"), said("user", "Why?")
TURNS = {  # prompt, chosen, rejected, and the column that can say the rejected side
    "one turn": ([ASK], [YES], [NO], "rejected_response"),
    "a system message": ([HI, ASK], [YES], [NO], "rejected_response"),
    "tools were used before": ([ASK, CALL, SUN], [YES], [NO], "rejected_response as messages"),
    "tools are used on one side": ([ASK], [YES], [CALL, SUN, NO], "rejected_response as messages"),
    "a begun answer": ([ASK, HM], [YES], [NO], "rejected_response as messages"),
    "the rejected side asks back": ([ASK], [YES], [HM, WHY, NO], "rejected_messages"),
    "the chosen side asks back": ([ASK], [HM, WHY, YES], [NO], "rejected_messages"),
}


def of_turns(*names):
    from datasets import Dataset

    rows = [
        {
            "prompt": TURNS[name][0],
            "chosen": TURNS[name][1],
            "rejected": TURNS[name][2],
            "tools": [{"name": "weather"}],
            "chat_template_kwargs": {"enable_thinking": False},
            "margin": 0.5,
        }
        for name in names
    ]
    return Dataset.from_list(rows)


@pytest.mark.parametrize(
    "names", [*((name,) for name in TURNS), tuple(TURNS), tuple(TURNS)[:5]], ids=lambda n: "+".join(n)[:30]
)
def test_ms_swift_reads_both_sides_with_their_tools_and_keywords(names):
    export = export_for(of_turns(*names), trainer="ms-swift")
    assert len(export.dataset) == len(names)
    for name, row in zip(names, export.dataset, strict=True):
        prompt, chosen, rejected, _ = TURNS[name]
        one, other = swift_reads(row, export.flags)
        assert one[0] == plain(prompt + chosen)
        assert other[0] == plain(prompt + rejected)
        assert one[1:] == other[1:] == ('[{"name": "weather"}]', {"enable_thinking": False})
    ways = ["rejected_response", "rejected_response as messages", "rejected_messages"]
    way = max((TURNS[name][3] for name in names), key=ways.index)
    assert way.split()[0] in export.columns
    assert set(export.columns) <= READ["ms-swift"] | {"rejected_chat_template_kwargs"}
    assert ("--remove_unused_columns false" in export.flags) == (way == "rejected_messages")


def test_the_control_what_was_exported_before_loses_turns_and_tools():
    row = export_for(of_turns("the rejected side asks back"), trainer="ms-swift").dataset[0]
    one, other = swift_reads(
        {k: v for k, v in row.items() if k not in ("rejected_tools", "rejected_chat_template_kwargs")}
    )
    assert (one[1], other[1]) == ('[{"name": "weather"}]', None)
    used = export_for(of_turns("tools were used before"), trainer="ms-swift").dataset[0]
    assert plain([SUN])[0] not in swift_reads(used | {"rejected_response": "No"})[1][0]


def test_ms_swift_deletes_equal_sides_so_they_are_left_out(caplog):
    given = made(strings).map(lambda row: {"rejected": row["chosen"]} if "soup" in row["prompt"] else row)
    with caplog.at_level(logging.WARNING):
        export = export_for(given, trainer="ms-swift")
    assert "left out 1 rows: both sides are equal" in caplog.text
    assert any(note.startswith("1 rows were left out: both their sides are equal") for note in export.notes)
    assert len(export.dataset) == 7
    assert export.dataset["margin"] == pytest.approx(
        [m for i, m in enumerate(NUMBERS["margin"]) if THINGS[i] != "soup"]
    )
    # The control: the other trainers read them.
    assert len(export_for(given, trainer="openrlhf").dataset) == 8


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([said("developer", "Be kind."), ASK], "message 0 has the role 'developer', and ms-swift deletes such rows"),
        ([ASK, HM, HI, WHY], "message 2 has the role 'system', at which ms-swift stops in this place"),
        ([HI, SUN], "message 1 has the role 'tool', at which ms-swift stops"),
        ([ASK, CALL, said("function", "sun")], "message 2 has the role 'function'"),
    ],
)
def test_roles_at_which_ms_swift_stops_are_refused(prompt, message):
    from datasets import Dataset

    given = Dataset.from_list([{"prompt": prompt, "chosen": [YES], "rejected": [NO], "margin": 0.5}])
    with pytest.raises(RowError, match=message):
        export_for(given, trainer="ms-swift")
    export_for(given, trainer="trl")


def openrlhf_reads(row, flags):
    """Both sides as text, by OpenRLHF's rules: a side is what its whole text has more than the opened prompt."""
    if "--data.prompt_key prompt" not in flags:
        return [chatml(row[side]) for side in ("chosen", "rejected")]
    prompt = chatml(row["prompt"], opened=True)
    return [prompt + chatml(row["prompt"] + row[side])[len(prompt) :] for side in ("chosen", "rejected")]


def chatml(messages, opened=False):
    text = "".join(f"<|{m['role']}|>\n{m['content']}\n" for m in messages)
    return text + "<|assistant|>\n" * opened


@pytest.mark.parametrize("lead", [[], [HM, WHY]], ids=["answers", "one side asks first"])
def test_openrlhf_reads_every_word_of_sides_that_do_not_begin_with_an_answer(lead):
    from datasets import Dataset

    one, other = [HI, *lead, ASK, YES], [HI, *lead, WHY, NO]
    given = Dataset.from_list([{"chosen": one, "rejected": other, "margin": 0.5}])
    export = export_for(given, trainer="openrlhf")
    assert openrlhf_reads(export.dataset[0], export.flags) == [chatml(one), chatml(other)]
    assert set(export.columns) <= READ["openrlhf"]
    # The control: with the prompt named, words are lost.
    split = export_for(given, trainer="trl").dataset[0]
    assert openrlhf_reads(split, ["--data.prompt_key prompt"]) != [chatml(one), chatml(other)]


@pytest.mark.parametrize("trainer", READ)
def test_no_trainer_gets_a_column_that_it_does_not_read(trainer):
    given = made(messages, tools=["[]"] * 8, chat_template_kwargs=[{"loud": True}] * 8)
    export = export_for(given, trainer=trainer)
    assert set(export.columns) <= READ[trainer]
    told = " ".join(export.notes)
    for name in {"tools", "chat_template_kwargs"} - set(export.columns):
        assert f"`{name}`" in told, "what is dropped is said"
    if trainer == "trl":
        texts = export_for(made(strings, tools=["[]"] * 8), trainer="trl")
        assert "tools" not in texts.columns
        assert any("Left out: `tools`, which only a chat template reads" in note for note in texts.notes)


# -- What is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "arguments", "message"),
    [
        (lambda: made(strings), {"trainer": "axolotl"}, "`trainer` is 'axolotl'; allowed are 'trl', 'openrlhf', 'ms-swift'"),
        (lambda: made(strings), {"trainer": "openrlhf", "weights": True}, "`weights=True` is for the trainers of `legend_hf.training`"),
        (lambda: made(strings).remove_columns("margin"), {}, r"has no `margin`; add it with `annotate\(dataset, direction\)`$"),
        (lambda: made(strings).rename_column("margin", "margins"), {}, r'`rename_column\("margins", "margin"\)`'),
        (lambda: made(strings).remove_columns("margin_prob"), {"weights": True}, "has no `margin_prob`, which `weights=True` needs"),
        (lambda: made(strings, margin=[[0.1]] * 8), {}, "`margin` is List.*allowed is one number a row.*; take the number out of it"),
        (lambda: made(strings, margin=[None] * 8), {}, "`margin` is Value.'null'.*; it is empty, so annotate anew"),
        (lambda: made(strings, margin=[None, *[0.1] * 7]), {}, r"`margin` is not a finite number in 1 rows \(first: row 0\)"),
        (lambda: made(strings, margin_prob=[1.5] * 8), {"weights": True}, "`margin_prob` is not a probability from 0 to 1 in 8 rows"),
        (lambda: made(strings).remove_columns("chosen"), {}, "no shape of preference pairs"),
        (lambda: made(strings).to_iterable_dataset(), {}, "`dataset` is an IterableDataset; allowed are `Dataset` and `DatasetDict`"),
        (lambda: made(strings), {"prompt_column": "question"}, "names no column"),
    ],
)  # fmt: skip
def test_arguments_and_datasets_that_are_not_allowed(given, arguments, message):
    with pytest.raises(ValueError, match=message):
        export_for(given(), **arguments)


def test_a_row_that_cannot_be_read_is_named_by_its_own_number():
    given = made(strings, rejected=["No"] * 7 + [" "], margin_status=["too long", *["ok"] * 7])
    with pytest.raises(RowError, match="row 7, column `rejected`: the response ' ' is empty") as caught:
        export_for(given)
    assert "in split 'dataset'" in caught.value.__notes__


def test_messages_without_a_prompt_are_refused():
    plain = made(strings).remove_columns("prompt")
    with pytest.raises(RowError, match="row 0: the two sides share no message"):
        export_for(plain, messages=True)
    assert export_for(plain).dataset["prompt"] == [""] * 8


# -- Training ------------------------------------------------------------------------------------------------


ARGUMENTS = {
    "max_steps": 2, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "logging_steps": 1, "report_to": [],
    "bf16": False, "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "gradient_checkpointing": False,
}  # fmt: skip


@pytest.fixture
def trainer_of(tiny_llama, tokenizer, tmp_path):
    import torch
    from transformers import AutoModelForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    def make(dataset):
        model = AutoModelForSequenceClassification.from_pretrained(tiny_llama, num_labels=1, dtype=torch.float32)
        config = RewardConfig(output_dir=str(tmp_path), **ARGUMENTS)
        return RewardTrainer(model=model, args=config, train_dataset=dataset, processing_class=tokenizer)

    return make


@pytest.fixture(scope="module")
def policies(tmp_path_factory, tiny_llama):
    """Folders of two random language models, so that policy and reference differ from the start."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folders = []
    for seed in (1, 2):
        folders.append(tmp_path_factory.mktemp(f"policy{seed}"))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            config = LlamaConfig.from_pretrained(tiny_llama, architectures=None, initializer_range=0.2)
            LlamaForCausalLM(config).save_pretrained(folders[-1])
    return folders


@pytest.fixture
def dpo_of(policies, tokenizer, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM
    from trl import DPOConfig, DPOTrainer

    def make(dataset, kind=DPOTrainer, **arguments):
        policy, reference = (AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32) for f in policies)
        config = DPOConfig(output_dir=str(tmp_path), beta=0.1, **ARGUMENTS, **arguments)
        return kind(
            model=policy, ref_model=reference, args=config, train_dataset=dataset, eval_dataset=dataset,
            processing_class=tokenizer,
        )  # fmt: skip

    return make


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.__name__)
def test_both_of_trls_trainers_train_on_it(shape, trainer_of, dpo_of):
    export = export_for(made(shape))
    for trainer in (trainer_of(export.dataset), dpo_of(export.dataset)):
        result = trainer.train()
        assert result.global_step == 2
        assert np.isfinite(result.training_loss)
    assert "margin" in next(iter(trainer_of(export.dataset).get_train_dataloader()))


def test_plain_texts_without_a_prompt_train_too(trainer_of, dpo_of):
    export = export_for(made(strings).remove_columns("prompt"))
    for trainer in (trainer_of(export.dataset), dpo_of(export.dataset)):
        assert np.isfinite(trainer.train().training_loss)


def test_dpo_ignores_the_margin_as_the_notes_say(dpo_of):
    export = export_for(made(strings), weights=True)
    assert any("`DPOTrainer` and `KTOTrainer` ignore it" in note for note in export.notes)
    batch = next(iter(dpo_of(export.dataset).get_train_dataloader()))
    assert not {"margin", "margin_prob", "weight"} & set(batch)


def test_weights_are_written_and_say_what_the_docstring_says():
    export = export_for(made(strings), weights=True)
    assert export.columns == ("prompt", "chosen", "rejected", "margin", "margin_prob", "weight")
    p, weight = np.array(export.dataset["margin_prob"]), np.array(export.dataset["weight"])
    assert weight == pytest.approx(np.maximum(2 * np.array(NUMBERS["margin_prob"]) - 1, 0), abs=1e-6)

    # At h = 0 the soft label pulls with p - 1/2, the weighted hard label with weight / 2; d/dh by differences.
    def slope(loss):
        return (loss(1e-5) - loss(-1e-5)) / 2e-5

    soft = slope(lambda h: -p * np.log(sigmoid(h)) - (1 - p) * np.log(sigmoid(-h)))
    hard = slope(lambda h: -weight * np.log(sigmoid(h)))
    assert soft[p >= 0.5] == pytest.approx(hard[p >= 0.5], abs=1e-6)
    assert (hard[p < 0.5] == 0).all()
    # The control: |2p - 1| would pull towards a label that is surely wrong.
    assert np.abs(2 * p - 1)[p < 0.5].max() > 0.9
