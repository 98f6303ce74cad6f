"""TRL's `RewardTrainer` with a soft label or a weight for each pair.

In: what `RewardTrainer` takes, and rows with `margin_prob` or `weight`. Out: a trainer. All but the loss is TRL's: how
rows are tokenised and left out, what is logged, how a model is saved. This file knows no directions.
"""

from __future__ import annotations

from typing import Any

import torch

from legend_hf.training.soft import NEEDS_TRL, WithNumbers, check_rows, check_use, pair_losses, signature

try:
    from trl import RewardTrainer
except ImportError as error:
    raise ImportError(NEEDS_TRL) from error


class SoftRewardTrainer(RewardTrainer):
    """TRL's `RewardTrainer`, in whose loss each pair has a soft label, or a weight.

    A column `margin` is not subtracted here: its number comes in as a label or a weight, and would count twice.

        export = export_for(annotated, weights=True)
        trainer = SoftRewardTrainer("your/base-model", use="margin_prob", train_dataset=export.dataset["train"])

    Args:
        model: As `trl.RewardTrainer` takes it.
        args: The same.
        use: The column of the numbers: `"margin_prob"`, the probability that the label is right, or `"weight"`, how
            much a pair counts. `soft.pair_losses` has the formulas.
        train_dataset: As `trl.RewardTrainer` takes it, with the column.
        eval_dataset: The same.
        **others: All that `trl.RewardTrainer` takes beside them.

    Raises:
        ValueError: `use` is something else; the rows lack the column, or some of its numbers are not allowed.
        ImportError: TRL is not installed.
    """

    data_collator: Any  # TRL's own, whose types are not read here
    _signature_columns: Any

    def __init__(
        self,
        model: Any,
        *,
        args: Any = None,
        use: str = "margin_prob",
        train_dataset: Any = None,
        eval_dataset: Any = None,
        **others: Any,
    ) -> None:
        check_use(use)
        check_rows(train_dataset, use, "train_dataset")
        check_rows(eval_dataset, use, "eval_dataset")
        self.use = use
        super().__init__(model, args=args, train_dataset=train_dataset, eval_dataset=eval_dataset, **others)
        self.data_collator = WithNumbers(self.data_collator, use)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns = signature(self._signature_columns, self.use)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of a batch; TRL's is computed beside it for what it logs, out of the same forward pass."""
        inputs = {name: value for name, value in inputs.items() if name != "margin"}
        numbers = inputs.pop(self.use)
        _, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        chosen, rejected = torch.chunk(outputs.logits.squeeze(-1), chunks=2)
        loss = pair_losses(chosen - rejected, numbers, self.use).mean()
        if self.args.center_rewards_coefficient is not None:
            loss = loss + self.args.center_rewards_coefficient * torch.mean((chosen + rejected) ** 2)
        return (loss, outputs) if return_outputs else loss
