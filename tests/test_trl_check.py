"""`check_for_trl` against TRL's real `RewardTrainer`: what it calls an error breaks there, what it calls silent is silent."""

from __future__ import annotations

import json
import math
import re
from copy import deepcopy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from legend_hf.reports.trl_check import check_for_trl
from legend_hf.reports.trl_rows import token_ids

THINGS = ("bread", "bikes", "paint", "tents", "maps", "soup", "rain", "tea")
CHATML = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% if loud %}LOUD{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def said(role, content):
    return {"role": role, "content": content}


def explicit(i, thing):
    row = {"prompt": f"Tell me about {thing}. ", "chosen": f"Gladly: {thing} with care.", "rejected": f"No {thing}"}
    return row | {"margin": (-1) ** i * i / 10}


def implicit(i, thing):
    row = explicit(i, thing)
    return {side: row["prompt"] + row[side] for side in ("chosen", "rejected")} | {"margin": row["margin"]}


def conversational(i, thing):
    row = explicit(i, thing)
    sides = {side: [said("assistant", row[side])] for side in ("chosen", "rejected")}
    return {"prompt": [said("user", row["prompt"])], **sides, "margin": row["margin"]}


def whole(i, thing):
    row = conversational(i, thing)
    return {side: row["prompt"] + row[side] for side in ("chosen", "rejected")} | {"margin": row["margin"]}


def with_tools(i, thing):
    tools = json.dumps([{"type": "function", "function": {"name": thing}}]) if i % 2 else None
    return conversational(i, thing) | {"tools": tools, "chat_template_kwargs": {"loud": bool(i % 3)}}


SHAPES = [explicit, implicit, conversational, whole, with_tools]


def made(shape, **columns):
    """A dataset of a shape, some columns replaced; float margins are float32, as the transform writes them."""
    from datasets import Dataset, Value

    rows = {}
    for i, thing in enumerate(THINGS):
        for name, value in shape(i, thing).items():
            rows.setdefault(name, []).append(value)
    dataset = Dataset.from_dict({**rows, **columns})
    if dataset.features.get("margin") == Value("float64"):
        dataset = dataset.cast_column("margin", Value("float32"))
    return dataset


@pytest.fixture(scope="module")
def tokenizer(tiny_llama):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.fixture
def trainer_of(tiny_llama, tokenizer, tmp_path):
    import torch
    from transformers import AutoModelForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    def make(dataset, *, max_length=1024, chat_template=CHATML, batch=4, without=()):
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(tiny_llama, num_labels=1, dtype=torch.float32)
        own = deepcopy(tokenizer)
        own.chat_template = chat_template
        for token in without:
            setattr(own, token, None)
        config = RewardConfig(
            output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=batch, max_length=max_length,
            logging_steps=1, report_to=[], bf16=False, use_cpu=True, disable_tqdm=True, save_strategy="no", seed=0,
            gradient_checkpointing=False,
        )  # fmt: skip
        return RewardTrainer(model=model, args=config, train_dataset=dataset, processing_class=own)

    return make


def only(check):
    (split,) = check.splits
    return split


# -- What is fine --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.__name__)
def test_a_clean_dataset_passes_and_trains(shape, trainer_of, tokenizer):
    dataset = made(shape)
    check = check_for_trl(dataset, tokenizer)
    assert check.ok, check.errors
    assert check.warnings == ()
    assert only(check).trained == len(dataset)
    result = trainer_of(dataset).train()
    assert result.global_step == 2
    assert np.isfinite(result.training_loss)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.__name__)
def test_rows_are_tokenised_as_the_trainer_does_it(shape, trainer_of, tokenizer):
    dataset = made(shape)
    trained = trainer_of(dataset).train_dataset
    ours = [token_ids(row, tokenizer) for row in dataset]
    assert [one for one, _ in ours] == list(trained["chosen_ids"])
    assert [other for _, other in ours] == list(trained["rejected_ids"])
    longest = max(len(side) for pair in ours for side in pair)
    assert only(check_for_trl(dataset, tokenizer)).longest == longest
    # The control: without the EOS of standard rows, the template's keywords or the tools, the ids are others.
    bare = [tokenizer(text=row.get("prompt", "") + row["chosen"])["input_ids"] for row in dataset if shape is explicit]
    assert bare != [one for one, _ in ours]
    if shape is with_tools:
        plain = [token_ids({k: row[k] for k in ("prompt", "chosen", "rejected")}, tokenizer) for row in dataset]
        assert plain != ours


def test_the_tokenizer_may_be_given_by_its_folder(tiny_llama, tokenizer):
    dataset = made(explicit)
    assert check_for_trl(dataset, str(tiny_llama)) == check_for_trl(dataset, tokenizer)
    with pytest.raises(OSError, match="nowhere"):
        check_for_trl(dataset, str(tiny_llama / "nowhere"))


# -- What breaks ---------------------------------------------------------------------------------------------

MARGINS = [0.1] * len(THINGS)
BREAKING = {
    "string prompt, message lists": (
        lambda: made(conversational, prompt=["Tell me"] * 8),
        (TypeError, AttributeError),  # which of them depends on the order of a set of strings, so on the process
        "`prompt` is a string and `chosen` messages in 8",
    ),
    "message prompt, strings": (
        lambda: made(explicit, prompt=[[said("user", "x")]] * 8), Exception, "`prompt` is messages and `chosen` a string",
    ),
    "margin None": (
        lambda: made(explicit, margin=[None, *MARGINS[1:]]), TypeError, r"missing, NaN or infinite in 1 of 8 rows \(first: 0\)",
    ),
    "margin all None": (lambda: made(explicit, margin=[None] * 8), TypeError, "`margin` is null, .*it is empty, so annotate anew"),
    "margin of words": (lambda: made(explicit, margin=["much"] * 8), ValueError, "`margin` is string, .*they say numbers `cast_column"),
    "no rows": (lambda: made(explicit).select([]), StopIteration, "no rows"),
    "no rejected": (lambda: made(explicit).remove_columns("rejected"), KeyError, "no `chosen` and `rejected`"),
    "chosen None": (
        lambda: made(explicit, chosen=["a", None] * 4), AttributeError, r"`chosen` is None in 4 of 8 rows \(first: row 1\)",
    ),
    "prompt None": (lambda: made(explicit, prompt=["a", None] * 4), TypeError, "`prompt` is None in 4"),
    "empty lists": (lambda: made(whole, chosen=[[]] * 8, rejected=[[]] * 8), IndexError, "`chosen` is an empty list"),
    "old sequences": (
        lambda: made(explicit, **{s: [{"role": ["user"], "content": ["x"]}] * 8 for s in ("chosen", "rejected")}),
        Exception, "`chosen` is a dict of lists",
    ),
    "keywords None": (
        lambda: made(conversational, chat_template_kwargs=[{"loud": True}, *[None] * 7]), TypeError,
        r"`chat_template_kwargs` is None in 7 of 8 rows \(first: row 1\)",
    ),
    "tools that are no JSON": (
        lambda: made(conversational, tools=["[]", *["nonsense"] * 7]), json.JSONDecodeError, r"JSONDecodeError in 7 of 8 rows \(first: row 1\): Expecting",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BREAKING)
def test_what_is_called_an_error_breaks_the_trainer(name, trainer_of, tokenizer):
    make, raised, message = BREAKING[name]
    dataset = make()
    check = check_for_trl(dataset, tokenizer)
    assert not check.ok
    assert any(re.search(message, error) for error in check.errors), check.errors
    with pytest.raises(raised):
        trainer_of(dataset, batch=8).train()


def test_messages_without_a_chat_template_break(trainer_of, tokenizer, tiny_llama):
    check = check_for_trl(made(conversational), tiny_llama)
    assert any("no chat template for the messages of 8 of 8 rows" in error for error in check.errors)
    with pytest.raises(ValueError, match="chat_template"):
        trainer_of(made(conversational), chat_template=None)


def test_nothing_is_left_under_a_small_limit(trainer_of, tokenizer):
    check = check_for_trl(made(explicit), tokenizer, max_length=3)
    assert any("no row is left" in error for error in check.errors)
    assert only(check).trained == len(trainer_of(made(explicit), max_length=3).train_dataset) == 0
    with pytest.raises(Exception):  # noqa: B017, PT011 - whichever
        trainer_of(made(explicit), max_length=3).train()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_margins_that_are_not_finite_spoil_the_loss(bad, trainer_of, tokenizer):
    import torch

    dataset = made(explicit, margin=[*MARGINS[:-1], bad])
    check = check_for_trl(dataset, tokenizer)
    assert any("in 1 of 8 rows (first: 7)" in error for error in check.errors)
    assert only(check).not_finite == 1
    trainer = trainer_of(dataset, batch=8)
    batch = next(iter(trainer.get_train_dataloader()))
    assert not torch.isfinite(trainer.compute_loss(trainer.model, batch))


def test_lists_of_one_margin_give_a_wrong_loss_without_an_error(trainer_of, tokenizer):
    values = [3.0, -3.0] * 4
    listed, scalar = made(explicit, margin=[[m] for m in values]), made(explicit, margin=values)
    check = check_for_trl(listed, tokenizer)
    assert any("`margin` is List" in error and "wrong loss" in error for error in check.errors)
    assert check_for_trl(scalar, tokenizer).ok

    def loss(dataset):
        import torch

        trainer = trainer_of(dataset, batch=8)
        with torch.no_grad():
            trainer.model.score.weight.mul_(100)  # so that the pairs differ
        trainer.model.eval()
        batch = next(iter(trainer.get_train_dataloader()))
        return batch["margin"].shape, trainer.compute_loss(trainer.model, batch).item()

    assert loss(scalar)[0] == (8,)
    assert loss(listed)[0] == (8, 1)
    assert loss(listed)[1] != pytest.approx(loss(scalar)[1], abs=1e-4)


def test_a_column_of_another_kind_misleads_the_trainer(tokenizer):
    from trl.data_utils import is_conversational

    dataset = made(explicit, messages=[[said("user", "x")]] * 8)
    check = check_for_trl(dataset, tokenizer)
    assert any("`messages` is messages where others are a string in 8 of 8 rows" in e for e in check.errors)
    row = dataset[0]
    answers = {is_conversational({key: row[key]}) for key in ("prompt", "messages")}
    assert answers == {True, False}, "TRL looks at one of the columns, whichever its set gives first"
    assert check_for_trl(dataset.remove_columns("messages"), tokenizer).ok


def test_a_tokenizer_without_padding_and_eos_is_an_error(trainer_of, tokenizer):
    own = deepcopy(tokenizer)
    own.eos_token = own.pad_token = None
    errors = check_for_trl(made(explicit), own).errors
    assert any("neither a padding nor an EOS token" in error for error in errors)
    assert any("no EOS token, which TRL appends" in error for error in errors)
    with pytest.raises(ValueError, match="`pad_token`"):
        trainer_of(made(explicit), without=("eos_token", "pad_token"))
    # With padding alone, strings still lack the EOS, and messages do well without it.
    own.pad_token = "<s>"
    assert len(check_for_trl(made(explicit), own).errors) == 1
    assert check_for_trl(made(conversational), own).ok


# -- What is silent ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [explicit, conversational], ids=lambda s: s.__name__)
def test_rows_that_are_too_long_are_removed_as_it_says(shape, trainer_of, tokenizer):
    dataset = made(shape)
    lengths = sorted(max(map(len, token_ids(row, tokenizer))) for row in dataset)
    for limit in (lengths[0], lengths[4], lengths[-1]):
        check = check_for_trl(dataset, tokenizer, max_length=limit)
        kept = only(check).trained
        assert kept == len(trainer_of(dataset, max_length=limit).train_dataset)
        assert only(check).too_long == len(dataset) - kept
        assert any("removed silently" in w for w in check.warnings) == (limit < lengths[-1])
    assert only(check_for_trl(dataset, tokenizer, max_length=None)).trained == len(dataset)


@pytest.mark.parametrize("long", ["chosen", "rejected"])
def test_either_side_can_be_too_long_and_takes_its_margin_with_it(long, trainer_of, tokenizer):
    other = "rejected" if long == "chosen" else "chosen"
    texts = {long: ["and so on " * 30] * 2 + ["Yes"] * 6, other: ["No"] * 8}
    dataset = made(explicit, **texts, margin=[-20.0, -20.0, *[0.1, 0.2] * 3])
    check = check_for_trl(dataset, tokenizer, max_length=40)
    assert only(check).trained == len(trainer_of(dataset, max_length=40).train_dataset) == 6
    assert only(check).negative == only(check).silent == 0
    assert only(check_for_trl(dataset, tokenizer)).negative == 0.25


@pytest.mark.parametrize("names", [("chosen_ids", "rejected_ids"), ("chosen_input_ids", "rejected_input_ids")])
@pytest.mark.filterwarnings("ignore:Detected legacy dataset columns")
def test_token_ids_that_are_there_are_taken_and_the_texts_are_not_read(names, trainer_of, tokenizer):
    ids = [list(range(5, 25))] * 4 + [[5, 6]] * 4
    dataset = made(explicit, **{names[0]: ids, names[1]: [[5, 7]] * 8})
    check = check_for_trl(dataset, tokenizer, max_length=10)
    assert check.ok
    assert any("holds token ids already" in w and f"`{names[0]}`" in w for w in check.warnings)
    trained = trainer_of(dataset, max_length=10).train_dataset
    assert list(trained["chosen_ids"]) == [[5, 6]] * 4
    assert only(check).trained == len(trained) == 4
    assert only(check).longest == 20
    # The control: tokenised by the trainer, none would be left.
    assert only(check_for_trl(made(explicit), tokenizer, max_length=10)).trained == 0


@pytest.mark.parametrize("name", ["margins", "Margin", "margin_safety"])
def test_a_misspelt_margin_is_ignored_as_it_says(name, trainer_of, tokenizer):
    dataset = made(explicit).rename_column("margin", name)
    check = check_for_trl(dataset, tokenizer)
    assert check.ok
    assert any(f"ignores `{name}`" in w for w in check.warnings)
    assert "margin" not in next(iter(trainer_of(dataset).get_train_dataloader()))
    assert only(check).loss == only(check).loss_without == pytest.approx(math.log(2))
    assert not any("ignores" in w for w in check_for_trl(dataset.remove_columns(name), tokenizer).warnings)
    assert "margin" in next(iter(trainer_of(made(explicit)).get_train_dataloader()))


def test_equal_sides_are_counted_and_have_no_gradient_in_the_model(trainer_of, tokenizer):
    import torch

    rows = made(explicit)
    dataset = made(explicit, rejected=list(rows["chosen"]))
    check = check_for_trl(dataset, tokenizer)
    assert only(check).same == 8
    assert any("teach nothing" in w for w in check.warnings)
    for data, moved in ((dataset, False), (rows, True)):
        trainer = trainer_of(data, batch=8)
        trainer.compute_loss(trainer.model.eval(), next(iter(trainer.get_train_dataloader()))).backward()
        assert bool(torch.any(trainer.model.score.weight.grad.abs() > 1e-6)) == moved


def test_sides_that_differ_only_beyond_the_limit_are_told(tokenizer):
    long = "again and " * 40
    dataset = made(explicit, chosen=[f"{long} yes"] * 8, rejected=[f"{long} no"] * 8)
    check = check_for_trl(dataset, tokenizer, max_length=20)
    assert only(check).same_if_cut == only(check).too_long == 8
    assert any("if cut to 20" in w for w in check.warnings)
    differing = made(explicit, chosen=[f"yes {long}"] * 8, rejected=[f"no {long}"] * 8)
    assert only(check_for_trl(differing, tokenizer, max_length=20)).same_if_cut == 0


def test_prompts_glued_to_their_responses_are_told(tokenizer):
    glued = made(explicit, prompt=["What is tea?"] * 8)
    assert any("join prompt and response without a space" in w for w in check_for_trl(glued, tokenizer).warnings)
    apart = made(explicit, prompt=["What is tea?"] * 8, chosen=[" a"] * 8, rejected=["\nb"] * 8)
    assert not check_for_trl(apart, tokenizer).warnings


def test_glued_prompts_of_several_splits_are_told_once_and_in_their_order(tokenizer):
    from datasets import DatasetDict

    glued, apart = made(explicit, prompt=["What is tea?"] * 8), made(explicit)
    check = check_for_trl(DatasetDict(train=glued, dev=apart, alpha=glued.select(range(4))), tokenizer)
    assert [split.split for split in check.splits] == ["train", "dev", "alpha"]
    (warning,) = check.warnings
    assert warning.startswith("`train`, `alpha`: 12 of 12 rows (100.0%) join prompt and response without a space")


def test_remedies_for_margins_that_are_no_numbers_work(tokenizer):
    from datasets import Value

    words = made(explicit, margin=["0.5", "-1"] * 4)
    (error,) = check_for_trl(words, tokenizer).errors
    assert error.endswith('where they say numbers `cast_column("margin", Value("float32"))`, else annotate anew')
    assert check_for_trl(words.cast_column("margin", Value("float32")), tokenizer).ok
    nothing = made(explicit, margin=[None] * 8).cast_column("margin", Value("float32"))
    for empty in (nothing, made(explicit, margin=[None] * 8)):
        (error,) = check_for_trl(empty, tokenizer).errors
        assert error.endswith("annotate anew")
        assert "take the number out" not in error
    (error,) = check_for_trl(made(explicit, margin=[[0.1]] * 8), tokenizer).errors
    assert "; take the number out of it" in error


def test_rows_that_were_not_measured_are_told(tokenizer):
    dataset = made(explicit, margin_status=["ok"] * 6 + ["too long"] * 2)
    assert any("2 of 8 rows (25.0%) have a `margin_status`" in w for w in check_for_trl(dataset, tokenizer).warnings)
    assert not check_for_trl(made(explicit, margin_status=["ok"] * 8), tokenizer).warnings


# -- Margins -------------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(st.lists(st.floats(-40, 40, width=32), min_size=8, max_size=8))
def test_loss_and_gradient_at_the_start_are_the_formulas(tokenizer_and_trainer, margins):
    import torch

    tokenizer, trainer = tokenizer_and_trainer
    dataset = made(explicit, margin=np.array(margins, dtype=np.float32))
    figures = only(check_for_trl(dataset, tokenizer))
    batch = next(iter(trainer.get_train_dataloader())) | {"margin": torch.tensor(margins, dtype=torch.float32)}
    loss, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    assert loss.item() == pytest.approx(figures.loss, rel=1e-4, abs=1e-6)
    gradient = torch.autograd.grad(loss, outputs.logits)[0].squeeze(-1)[:8].abs() * 8
    assert float(gradient.mean()) == pytest.approx(figures.gradient, rel=1e-4, abs=1e-6)
    assert figures.negative == np.mean([m < 0 for m in margins])
    clear = [m for m in margins if abs(abs(m) - math.log(99)) > 1e-3]
    if len(clear) == 8:
        assert figures.saturated == float((gradient > 0.99).float().mean())
        assert figures.silent == float((gradient < 0.01).float().mean())


@pytest.fixture(scope="module")
def tokenizer_and_trainer(tiny_llama, tokenizer, tmp_path_factory):
    """A trainer whose head is 0, so that all rewards are equal."""
    import torch
    from transformers import AutoModelForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    model = AutoModelForSequenceClassification.from_pretrained(tiny_llama, num_labels=1, dtype=torch.float32)
    torch.nn.init.zeros_(model.score.weight)
    config = RewardConfig(
        output_dir=str(tmp_path_factory.mktemp("start")), per_device_train_batch_size=8, report_to=[], bf16=False,
        use_cpu=True, gradient_checkpointing=False,
    )  # fmt: skip
    return tokenizer, RewardTrainer(model=model, args=config, train_dataset=made(explicit), processing_class=tokenizer)


@pytest.mark.parametrize(
    ("margins", "warned"),
    [
        ([30.0, 20.0, 10.0, 9.0, 8.0, 7.0, 6.0, 5.0], "so large that its size no longer matters"),
        ([-30.0, 1.0] * 4, "so far below 0 that they teach nothing"),
        ([-0.1] * 5 + [0.3] * 3, "more than half"),
        ([0.0] * 8, "every `margin` is 0"),
        ([1.0] * 4 + [-1.0] + [0.2, 0.3, 0.4], "of the margins 5 of 8 are of the size 1"),
        ([0.1, -0.2, 0.9, 0.4, 0.3, 0.2, -0.5, 1.0], None),
    ],
)
def test_margins_that_do_not_help_are_told(margins, warned, tokenizer):
    check = check_for_trl(made(explicit, margin=margins), tokenizer)
    assert check.ok
    if warned is None:
        assert check.warnings == ()
    else:
        assert any(warned in warning for warning in check.warnings), check.warnings


@pytest.mark.parametrize(("kind", "message"), [("int64", "is int64"), ("float64", "is float64"), ("bool", "is bool")])
def test_other_numbers_train_and_are_told(kind, message, trainer_of, tokenizer):
    from datasets import Value

    dataset = made(explicit, margin=[0, 1] * 4).cast_column("margin", Value(kind))
    check = check_for_trl(dataset, tokenizer)
    assert check.ok
    assert any(message in warning for warning in check.warnings)
    assert only(check).margin_type == kind
    assert next(iter(trainer_of(dataset).get_train_dataloader()))["margin"].dtype.is_floating_point


# -- Splits --------------------------------------------------------------------------------------------------


def test_margins_in_one_split_only_are_told_and_refused_by_push(tokenizer, hub):
    from datasets import DatasetDict

    splits = DatasetDict(train=made(explicit), test=made(explicit).remove_columns("margin"))
    check = check_for_trl(splits, tokenizer)
    assert check.ok
    assert any("`margin` is missing in `test` only" in warning for warning in check.warnings)
    with pytest.raises(ValueError, match="same features"):
        splits.push_to_hub("me/splits-that-differ")
    assert [s.margin_type for s in check.splits] == ["float32", None]
    same = DatasetDict(train=made(explicit), test=made(explicit))
    assert check_for_trl(same, tokenizer).warnings == ()


def test_splits_of_other_types_are_told(tokenizer):
    from datasets import DatasetDict, Value

    splits = DatasetDict(train=made(explicit), test=made(explicit).cast_column("margin", Value("float64")))
    assert any("differ in name or type" in warning for warning in check_for_trl(splits, tokenizer).warnings)


def test_errors_name_their_split(tokenizer):
    from datasets import DatasetDict

    splits = DatasetDict(train=made(explicit), test=made(explicit).select([]))
    assert check_for_trl(splits, tokenizer).errors == (
        "`test`: it has no rows, and TRL fails at an empty split; leave it out of the training",
    )


# -- Words and arguments -------------------------------------------------------------------------------------


def test_the_text_says_what_was_found(tokenizer):
    good = str(check_for_trl(made(explicit), tokenizer))
    assert good.startswith("**TRL's `RewardTrainer` would train on this.**")
    assert "Errors" not in good
    bad = check_for_trl(made(explicit, margin=[math.nan] * 8), tokenizer)
    assert "would not train on this" in bad.to_markdown()
    assert all(f"- {line}" in bad.to_markdown() for line in (*bad.errors, *bad.warnings))
    rows = [line for line in good.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 1


def test_names_of_strangers_are_no_markup(tokenizer):
    from datasets import DatasetDict

    text = str(check_for_trl(DatasetDict({"a|b<i>": made(explicit).rename_column("margin", "margin<b>|")}), tokenizer))
    assert "<i>" not in text
    assert "<b>" not in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1


def test_the_dataset_is_left_as_it_was_whatever_its_format(tokenizer):
    dataset = made(explicit)
    before = dataset.to_dict()
    for format in ("numpy", "torch"):
        assert check_for_trl(dataset.with_format(format), tokenizer) == check_for_trl(dataset, tokenizer)
    assert dataset.to_dict() == before


def test_arguments_that_are_not_allowed(tokenizer):
    from datasets import DatasetDict

    with pytest.raises(ValueError, match="`max_length` is 0; allowed is at least 1"):
        check_for_trl(made(explicit), tokenizer, max_length=0)
    with pytest.raises(ValueError, match="`dataset` is an IterableDataset; allowed are `Dataset` and `DatasetDict`"):
        check_for_trl(made(explicit).to_iterable_dataset(), tokenizer)
    for no_tokenizer, what in ((None, "None"), (7, "an int")):
        with pytest.raises(
            ValueError, match=f"`tokenizer` is {what}; allowed are a tokenizer, or the folder or Hub id"
        ):
            check_for_trl(made(explicit), no_tokenizer)
    with pytest.raises(ValueError, match="has no splits"):
        check_for_trl(DatasetDict(), tokenizer)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_prompt_under_another_name_is_not_passed_over(tokenizer, shape):
    def said(dataset):
        return [
            warning for warning in check_for_trl(dataset, tokenizer).warnings if "seems to hold the prompts" in warning
        ]

    dataset = made(shape)
    named = dataset.rename_column("prompt", "question") if "prompt" in dataset.column_names else dataset
    assert len(said(named)) == (named is not dataset)
    assert all("its column `question` seems to hold" in warning for warning in said(named))
    assert said(dataset) == []
