"""TRL's `DPOTrainer` with a soft label or a weight for each pair.

In: what `DPOTrainer` takes, and rows with `margin_prob` or `weight`. Out: a trainer. TRL's loss keeps the numbers of a
pair to itself, so the log probabilities are summed here, by the same calls. This file knows no directions.
"""

from __future__ import annotations

from typing import Any

import torch

from legend_hf.training.soft import NEEDS_TRL, WithNumbers, check_rows, check_use, pair_losses, signature

try:
    from trl import DPOTrainer
except ImportError as error:
    raise ImportError(NEEDS_TRL) from error

# Of `DPOConfig`: what this loss does not know, and the value that leaves it out.
_PLAIN = {"loss_type": ["sigmoid"], "f_divergence_type": "reverse_kl", "ld_alpha": None, "use_weighting": False}


class SoftDPOTrainer(DPOTrainer):
    """TRL's `DPOTrainer` with its `"sigmoid"` loss, in which each pair has a soft label, or a weight.

        export = export_for(annotated, weights=True)
        trainer = SoftDPOTrainer("your/policy", use="margin_prob", train_dataset=export.dataset["train"])

    Of TRL's metrics it logs the four of the rewards. A router's auxiliary loss is not added.

    Args:
        model: As `trl.DPOTrainer` takes it.
        args: The same.
        use: The column of the numbers: `"margin_prob"`, the probability that the label is right, or `"weight"`, how
            much a pair counts. `soft.pair_losses` has the formulas.
        train_dataset: As `trl.DPOTrainer` takes it, with the column.
        eval_dataset: The same.
        **others: All that `trl.DPOTrainer` takes beside them.

    Raises:
        ValueError: `use` is something else; an option of `DPOConfig` asks for another loss; the rows lack the column,
            or some of its numbers are not allowed.
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
        for option, plain in _PLAIN.items() if args is not None else ():
            given = getattr(args, option)
            if given != plain:
                raise ValueError(
                    f"`DPOConfig({option}={given!r})` asks for another loss than this trainer's; leave it out "
                    f"({plain!r}), or train with TRL's own `DPOTrainer`"
                )
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
        """The loss of a batch."""
        mode = "train" if self.model.training else "eval"
        numbers, mask = inputs[self.use], inputs["completion_mask"]
        read = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        labels = read["input_ids"].masked_fill(mask == 0, -100)
        per_token = model(**read, use_cache=False, labels=labels, fused_lm_head=True).log_probs
        # Prompt-learning adapters put tokens of their own in front.
        logps = per_token[:, -(mask.size(1) - 1) :].sum(dim=1).chunk(2)
        if self.precompute_ref_logps:
            reference = inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
        else:
            reference = self.compute_ref_log_probs(self.ref_model or self.model, {**read, "completion_mask": mask})
        chosen, rejected = (policy - fixed for policy, fixed in zip(logps, reference, strict=True))
        loss = pair_losses(self.beta * (chosen - rejected), numbers, self.use).mean()
        self._note(mode, self.beta * chosen.detach(), self.beta * rejected.detach())
        if not return_outputs:
            return loss
        # As in TRL: the fused head makes no logits, so whoever asks for them has them of a pass of their own.
        with torch.no_grad():
            return loss, model(**read, use_cache=False)

    def _note(self, mode: str, chosen: Any, rejected: Any) -> None:
        """Keeps TRL's metrics of the rewards `[n]` for its log."""
        of = {"chosen": chosen, "rejected": rejected, "accuracies": (chosen > rejected).float()}
        for name, values in {**of, "margins": chosen - rejected}.items():
            self._metrics[mode][f"rewards/{name}"].append(self.accelerator.gather(values).mean().item())
