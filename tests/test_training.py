"""The trainers with a number for each pair, held to TRL's own: the same loss where the number says nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from builders import pair_rows

TOPICS = ("bread", "bikes", "paint", "tents", "maps", "soup", "rain", "tea")
PROBABILITIES = (0.5, 0.97, 0.03, 0.6, 0.8, 1.0, 0.0, 0.35)
WEIGHTS = (0.0, 0.94, 0.0, 0.2, 0.6, 1.0, 3.0, 0.5)
NUMBERS = {"margin_prob": PROBABILITIES, "weight": WEIGHTS}
ARGUMENTS = {
    "max_steps": 2, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "logging_steps": 1, "report_to": [],
    "bf16": False, "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "gradient_checkpointing": False,
    "seed": 0,
}  # fmt: skip


def rows(**columns):
    from datasets import Dataset

    made = Dataset.from_list(pair_rows(TOPICS, after_prompt=" "))
    for name, values in {"margin": [0.4] * 8, **NUMBERS, **columns}.items():
        made = made.add_column(name, list(values)) if values is not None else made
    return made


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_llama):
    """Folders of two random language models with a tokenizer that pads, so that policy and reference differ."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.pad_token = tokenizer.eos_token
    made = []
    for seed in (1, 2):
        made.append(tmp_path_factory.mktemp(f"policy{seed}"))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            config = LlamaConfig.from_pretrained(tiny_llama, architectures=None, initializer_range=0.2)
            LlamaForCausalLM(config).save_pretrained(made[-1])
        tokenizer.save_pretrained(made[-1])
    return made


@pytest.fixture
def dpo(folders, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    def make(dataset, use=None, **options):
        from legend_hf.training import SoftDPOTrainer

        policy, reference = (AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32) for f in folders)
        return (DPOTrainer if use is None else partial(SoftDPOTrainer, use=use))(
            model=policy, ref_model=reference, train_dataset=dataset, eval_dataset=dataset,
            args=DPOConfig(output_dir=str(tmp_path), beta=0.1, **ARGUMENTS | options),
            processing_class=AutoTokenizer.from_pretrained(folders[0]),
        )  # fmt: skip

    return make


@pytest.fixture
def reward(folders, tmp_path):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    def make(dataset, use=None, **options):
        from legend_hf.training import SoftRewardTrainer

        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(folders[0], num_labels=1, dtype=torch.float32)
        return (RewardTrainer if use is None else partial(SoftRewardTrainer, use=use))(
            model=model, train_dataset=dataset, eval_dataset=dataset,
            args=RewardConfig(output_dir=str(tmp_path), **ARGUMENTS | options),
            processing_class=AutoTokenizer.from_pretrained(folders[0]),
        )  # fmt: skip

    return make


@pytest.fixture(params=["reward", "dpo"])
def make(request):
    """Makes TRL's trainer, or ours with `use`."""
    return request.getfixturevalue(request.param)


def trained(trainer):
    """Losses of two steps as logged, and the weights after them."""
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, {name: weight.detach().numpy() for name, weight in trainer.model.named_parameters()}


@pytest.mark.parametrize("use", ["margin_prob", "weight"])
@pytest.mark.parametrize("keep", [True, False], ids=["columns removed", "columns kept"])
def test_a_number_of_ones_trains_what_trl_trains_to_the_last_bit(make, use, keep):
    theirs = trained(make(rows(margin=None)))
    ours = trained(make(rows(**{use: [1.0] * 8}), use, remove_unused_columns=keep))
    assert ours[0] == theirs[0]
    assert all((ours[1][name] == weight).all() for name, weight in theirs[1].items())
    # The control: other numbers train something else.
    assert trained(make(rows(), use, remove_unused_columns=keep))[0] != theirs[0]


def test_a_loss_is_read_once_and_logits_that_are_asked_for_keep_no_graph(dpo):
    trainer = dpo(rows(), "margin_prob")
    batch = next(iter(trainer.get_train_dataloader()))
    passes = []
    trainer.model.base_model.register_forward_hook(lambda *_: passes.append(1))
    loss = trainer.compute_loss(trainer.model, dict(batch))
    assert len(passes) == 1
    assert loss.requires_grad, "the control: what is trained on has its graph"
    again, outputs = trainer.compute_loss(trainer.model, dict(batch), return_outputs=True)
    assert again.item() == loss.item()
    assert outputs.logits.shape[:2] == batch["input_ids"].shape
    assert not outputs.logits.requires_grad


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def ahead_by(trainer, batch):
    """How much each chosen side is ahead, from the models' own logits, token by token for a policy."""
    import torch

    read = {name: batch[name] for name in ("input_ids", "attention_mask")}
    if not hasattr(trainer, "ref_model"):
        with torch.no_grad():
            chosen, rejected = trainer.model(**read).logits.squeeze(-1).double().chunk(2)
        return (chosen - rejected).numpy()
    sums = []
    for model in (trainer.model, trainer.ref_model):
        with torch.no_grad():
            logits = model(**read).logits
        for i, ids in enumerate(read["input_ids"]):
            logps = torch.log_softmax(logits[i].double(), dim=-1)
            places = [t for t in range(1, len(ids)) if batch["completion_mask"][i, t]]
            sums.append(sum(float(logps[t - 1, ids[t]]) for t in places))
    policy, reference = np.array(sums).reshape(2, 2, -1)
    ratios = policy - reference
    return trainer.beta * (ratios[0] - ratios[1])


@pytest.mark.parametrize("use", ["margin_prob", "weight"])
def test_the_loss_is_what_it_says_out_of_the_models_own_logits(make, use):
    trainer = make(rows(), use)
    batch = next(iter(trainer.get_train_dataloader()))
    assert "margin" not in batch
    numbers = batch[use].double().numpy()
    assert sorted(numbers) == pytest.approx(sorted(NUMBERS[use]), abs=1e-6)
    h = ahead_by(trainer, batch)
    assert np.abs(h).max() > 0.05
    soft = np.mean(-numbers * np.log(sigmoid(h)) - (1 - numbers) * np.log(sigmoid(-h)))
    hard = np.mean(-numbers * np.log(sigmoid(h)))
    loss = trainer.compute_loss(trainer.model, dict(batch)).item()
    assert loss == pytest.approx(soft if use == "margin_prob" else hard, abs=1e-5)
    # The control: the other formula is another number.
    assert abs(soft - hard) > 1e-3


@pytest.mark.parametrize("use", ["margin_prob", "weight"])
def test_the_gradient_is_that_of_differences(make, use):
    """Down its own gradient the loss falls as fast as the gradient's length says."""
    import torch

    trainer = make(rows(), use)
    trainer.model.double().eval()
    if hasattr(trainer, "ref_model"):
        trainer.ref_model.double()
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model, dict(batch))
    weights = [weight for weight in trainer.model.parameters() if weight.requires_grad]
    slopes = torch.autograd.grad(loss, weights, allow_unused=True)
    size = sum(float((slope**2).sum()) for slope in slopes if slope is not None)
    step, values = 1e-5, []
    for sign in (1, -2):
        with torch.no_grad():
            for weight, slope in zip(weights, slopes, strict=True):
                weight.add_(0 if slope is None else sign * step * slope)
            values.append(float(trainer.compute_loss(trainer.model, dict(batch))))
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(size, rel=1e-3)
    assert size > 1e-8


def test_it_centres_rewards_as_trl_does(reward):
    ones = reward(rows(weight=[1.0] * 8), "weight", center_rewards_coefficient=0.5)
    assert trained(ones)[0] == trained(reward(rows(margin=None), center_rewards_coefficient=0.5))[0]
    assert trained(ones)[0] != trained(reward(rows(margin=None)))[0]


def test_it_evaluates_and_logs_what_trl_logs(make):
    trainer = make(rows(), "margin_prob")
    before = trainer.evaluate()
    trained(trainer)
    after = trainer.evaluate()
    assert after["eval_loss"] < before["eval_loss"]
    name = "eval_rewards/accuracies" if hasattr(trainer, "ref_model") else "eval_accuracy"
    assert 0 <= after[name] <= 1


def test_reference_log_probabilities_may_be_computed_before(dpo):
    plain = trained(dpo(rows(), "margin_prob"))[0]
    assert trained(dpo(rows(), "margin_prob", precompute_ref_log_probs=True))[0] == pytest.approx(plain, abs=1e-6)


def test_a_stream_trains_too(make):
    losses, _ = trained(make(rows().to_iterable_dataset(), "weight"))
    assert np.isfinite(losses).all()
    with pytest.raises(ValueError, match="`a batch`: `weight` is not a finite number from 0 in 1 rows"):
        trained(make(rows(weight=[*WEIGHTS[:7], -1.0]).to_iterable_dataset(), "weight"))


@pytest.mark.parametrize(
    ("given", "use", "message"),
    [
        ({}, "margin", "`use` is 'margin'; allowed are 'margin_prob', 'weight'"),
        (
            {"weight": None},
            "weight",
            r"`train_dataset` has no `weight`, it has .*; `export_for\(dataset, weights=True\)`",
        ),
        ({"margin_prob": [1.5, *[0.5] * 7]}, "margin_prob", "not a probability from 0 to 1 in 1 rows .first: row 0"),
        ({"margin_prob": [float("nan")] * 8}, "margin_prob", "not a probability from 0 to 1 in 8 rows"),
        ({"weight": [1.0] * 7 + [-0.5]}, "weight", "not a finite number from 0 in 1 rows .first: row 7"),
        ({"weight": [float("inf")] * 8}, "weight", "not a finite number from 0 in 8 rows"),
        ({"weight": [[1.0]] * 8}, "weight", "`weight` is List.*allowed is one number a row; take the number out"),
    ],
)
def test_what_is_refused_before_a_model_is_looked_at(given, use, message):
    from legend_hf.training import SoftDPOTrainer, SoftRewardTrainer

    for kind in (SoftRewardTrainer, SoftDPOTrainer):
        with pytest.raises(ValueError, match=message):
            kind("no/such-model", use=use, train_dataset=rows(**given))
        with pytest.raises(ValueError, match=message.replace("train_dataset", "eval_dataset.'test'.")):
            kind("no/such-model", use=use, train_dataset=rows(), eval_dataset={"test": rows(**given)})


@pytest.mark.parametrize(
    "option", [{"loss_type": "hinge"}, {"use_weighting": True}, {"ld_alpha": 0.5}, {"f_divergence_type": "forward_kl"}]
)
def test_another_loss_of_dpo_is_refused(option, tmp_path):
    from trl import DPOConfig

    from legend_hf.training import SoftDPOTrainer

    config = DPOConfig(output_dir=str(tmp_path), bf16=False, use_cpu=True, **option)
    with pytest.raises(ValueError, match=f"`DPOConfig.{next(iter(option))}=.*another loss than this trainer's"):
        SoftDPOTrainer("no/such-model", args=config, train_dataset=rows())


def test_the_weights_of_an_export_pull_as_its_soft_labels_do_where_training_starts():
    import torch

    from legend_hf.training.soft import pair_losses

    p = torch.tensor(PROBABILITIES, dtype=torch.float64)
    slopes = {}
    for use, numbers in (("margin_prob", p), ("weight", (2 * p - 1).clamp(min=0))):
        ahead = torch.zeros(8, dtype=torch.float64, requires_grad=True)
        (slopes[use],) = torch.autograd.grad(pair_losses(ahead, numbers, use).sum(), ahead)
    likely = p >= 0.5
    assert slopes["margin_prob"][likely].numpy() == pytest.approx(slopes["weight"][likely].numpy())
    assert (slopes["weight"][~likely] == 0).all()
    assert (slopes["margin_prob"][~likely] > 0).all()  # the control: the soft label turns round


def test_without_trl_the_message_names_the_extra():
    code = "import sys; sys.modules['trl'] = None\nfrom legend_hf.training import SoftDPOTrainer"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ.copy())
    assert done.returncode == 1
    assert "pip install 'legend-hf[trl]'" in done.stderr
