"""TRL's real `RewardTrainer` trains on what the transform writes, with the loss that `margin` is made for."""

from __future__ import annotations

import numpy as np
import pytest
from builders import pair_rows

from legend_hf import LegendMarginFn, fit_direction

PAIRS = pair_rows(("bread", "bikes", "paint", "tents", "maps", "soup", "rain", "tea"), after_prompt=" ")


@pytest.fixture(scope="module")
def annotated(tiny_llama):
    from datasets import Dataset

    direction = fit_direction(PAIRS, model=str(tiny_llama))
    return Dataset.from_list(PAIRS).map(LegendMarginFn(direction), batched=True)


@pytest.fixture
def trainer_of(tiny_llama, tmp_path):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    def make(dataset):
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(tiny_llama, num_labels=1, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
        tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id
        config = RewardConfig(
            output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=4, learning_rate=1e-2, logging_steps=1,
            report_to=[], bf16=False, use_cpu=True, disable_tqdm=True, save_strategy="no", seed=0,
            gradient_checkpointing=False,
        )  # fmt: skip
        return RewardTrainer(model=model, args=config, train_dataset=dataset, processing_class=tokenizer)

    return make


def losses(trainer):
    """The trainer's own loss on one batch, and what the documented formula gives for the same rewards and margins."""
    import torch

    batch = next(iter(trainer.get_train_dataloader()))
    margin = batch.get("margin")
    with torch.no_grad():
        loss, outputs = trainer.compute_loss(trainer.model.eval(), dict(batch), return_outputs=True)
    chosen, rejected = outputs.logits.squeeze(-1).chunk(2)
    difference = chosen - rejected - (margin if margin is not None else 0)
    return float(loss), float(-torch.nn.functional.logsigmoid(difference).mean()), margin


def test_reward_trainer_uses_the_margin_in_its_loss(annotated, trainer_of):
    loss, documented, margin = losses(trainer_of(annotated))
    assert margin is not None
    assert margin.shape == (4,)
    assert np.abs(margin.numpy()).max() > 0.01
    assert loss == pytest.approx(documented, abs=1e-6)
    # The control: without the column the loss is another one.
    plain, documented, margin = losses(trainer_of(annotated.remove_columns("margin")))
    assert margin is None
    assert plain == pytest.approx(documented, abs=1e-6)
    assert plain != pytest.approx(loss, abs=1e-4)


def test_a_margin_of_zeros_is_no_margin(annotated, trainer_of):
    zeros = annotated.remove_columns("margin").add_column("margin", np.zeros(len(annotated), dtype=np.float32))
    assert losses(trainer_of(zeros))[0] == pytest.approx(losses(trainer_of(annotated.remove_columns("margin")))[0])


def test_reward_trainer_trains_two_steps(annotated, trainer_of):
    trainer = trainer_of(annotated)
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    result = trainer.train()
    assert result.global_step == 2
    assert np.isfinite(result.training_loss)
    assert any((weight != before[name]).any() for name, weight in trainer.model.named_parameters())
    assert "margin" in trainer.train_dataset.column_names
