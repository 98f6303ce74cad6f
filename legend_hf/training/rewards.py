"""One reward model is trained by TRL's `RewardTrainer`, with a column or without, and judged on held-out pairs.

In: pairs as token ids, a number for each, and how to train. Out: how much the chosen side of each held-out pair is
ahead. The same seed makes the same head and the same order of the pairs, whatever is trained with, and on one machine
the same numbers. This file knows no texts and no statistics.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from legend_hf.reading.window import window

Ids = tuple[list[int], list[int]]
"""Token ids of a pair: chosen, rejected."""
USES = (None, "margin", "margin_prob", "weight")


@dataclass(frozen=True)
class Training:
    """How a reward model is trained.

    Attributes:
        model: Hub id or folder of the model that the reward grows on.
        steps: Steps of the optimizer, for every arm alike.
        batch_size: Pairs in each.
        learning_rate: At the start; it falls to 0 in a straight line.
        revision: Branch, tag or commit of the model.
    """

    model: str | os.PathLike[str]
    steps: int
    batch_size: int = 8
    learning_rate: float = 1e-4
    revision: str | None = None


def reward_ahead(
    trained: Sequence[Ids],
    judged: Sequence[Ids],
    how: Training,
    *,
    use: str | None = None,
    numbers: np.ndarray | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Trains on some pairs and judges others.

    Args:
        trained: The pairs to train on.
        judged: The pairs to judge.
        how: Model, steps and so on.
        use: What the numbers are: `"margin"`, `"margin_prob"` or `"weight"`; None trains without.
        numbers: One for each trained pair `[n]`.
        seed: Of the head and of the order.

    Returns:
        Reward of the chosen side minus that of the rejected one `[judged]`, float64.

    Raises:
        ImportError: TRL is not installed.
    """
    from legend_hf.training.soft import NEEDS_TRL

    try:
        from trl import RewardConfig, RewardTrainer
    except ImportError as error:
        raise ImportError(NEEDS_TRL) from error
    import torch
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, PrinterCallback, set_seed
    from transformers.utils import logging

    from legend_hf.training.reward import SoftRewardTrainer

    columns = {"chosen_ids": [one for one, _ in trained], "rejected_ids": [other for _, other in trained]}
    rows = Dataset.from_dict(columns if use is None else {**columns, use: np.asarray(numbers, dtype=np.float32)})
    set_seed(seed)
    tokenizer = reward_tokenizer(how.model, how.revision)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # that the head is new is meant, and said for every training
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            how.model, revision=how.revision, num_labels=1, dtype=torch.float32
        )
    finally:
        logging.set_verbosity(verbosity)
    with tempfile.TemporaryDirectory() as folder:
        config = RewardConfig(
            output_dir=folder, max_steps=how.steps, per_device_train_batch_size=how.batch_size, max_length=None,
            learning_rate=how.learning_rate, bf16=torch.cuda.is_available(), seed=seed, save_strategy="no",
            logging_strategy="no", report_to=[], disable_tqdm=True, activation_checkpointing=False,
            use_cpu=not torch.cuda.is_available(),
        )  # fmt: skip
        given = {"args": config, "train_dataset": rows, "processing_class": tokenizer}
        trainer = SoftRewardTrainer(model, use=use, **given) if use in USES[2:] else RewardTrainer(model, **given)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return _ahead(trainer, judged, how.batch_size)


def reward_tokenizer(model: str | os.PathLike[str], revision: str | None = None) -> Any:
    """A model's tokenizer with what TRL needs of it: an end of the text, and padding."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, revision=revision)
    if tokenizer.eos_token is None:  # an encoder's
        tokenizer.eos_token = tokenizer.sep_token or tokenizer.pad_token
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def reward_window(model: str | os.PathLike[str], tokenizer: Any, revision: str | None = None) -> int:
    """Most tokens that a text may have."""
    from transformers import AutoConfig

    return window(AutoConfig.from_pretrained(model, revision=revision), tokenizer)


def _ahead(trainer: Any, judged: Sequence[Ids], batch_size: int) -> np.ndarray:
    """Differences of the rewards of pairs `[judged]`, long ones first, so that batches are even."""
    import torch
    from trl.trainer.reward_trainer import DataCollatorForPreference

    model, tokenizer = trainer.model.eval(), trainer.processing_class
    collate = DataCollatorForPreference(pad_token_id=tokenizer.pad_token_id)
    order = sorted(range(len(judged)), key=lambda i: -max(map(len, judged[i])))
    ahead = np.empty(len(judged))
    for first in range(0, len(order), batch_size):
        places = order[first : first + batch_size]
        batch = collate([{"chosen_ids": judged[i][0], "rejected_ids": judged[i][1]} for i in places])
        with torch.no_grad():
            logits = model(**{name: value.to(model.device) for name, value in batch.items()}).logits
        chosen, rejected = logits.squeeze(-1).double().cpu().chunk(2)
        ahead[places] = (chosen - rejected).numpy()
    return ahead
