"""Preferences, from a heap of pairs to a reward model: select, annotate, order, push, train.

In: preference rows, a direction, a model for the reward. Out: a curriculum of annotated pairs on the Hub (or, without
`--repo-id`, in a folder), and a reward model trained on its stages in their order. By itself it runs offline on what
ships with the project, in a minute:

    python scripts/select_to_reward.py --output rewarded
    python scripts/select_to_reward.py --dataset you/preferences --direction you/legend-direction \
        --reward-model you/base-model --repo-id you/preferences-curriculum --output rewarded
"""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, load_dataset

from legend_hf import Direction, annotate, fit_direction, push_annotated, save_annotated
from legend_hf.preferences import PairSimilarityFn, curriculum, export_for, select_pairs
from legend_hf.publish import check_saved_place
from legend_hf.reports import check_for_trl

DEMO = Path(__file__).parent / "demo"
out = logging.getLogger("select_to_reward")


def main() -> None:
    """Runs the whole way and says what came out of each step."""
    args = arguments()
    logging.basicConfig(format="%(message)s")
    out.setLevel(logging.INFO)

    if args.repo_id is None:
        check_saved_place(args.output / "annotated", reads=[args.dataset])  # before the work, not after it
    rows = rows_of(args.dataset)
    similar = rows.map(PairSimilarityFn(args.reward_model), batched=True)
    selected = select_pairs(similar, keep="dissimilar", fraction=args.fraction)
    out.info("Selected %d of %d pairs, those whose responses differ most.", len(selected), len(rows))

    direction = direction_of(args.direction)
    annotated = annotate(selected, direction)
    positive = sum(margin > 0 for margin in annotated["margin"]) / len(annotated)
    out.info("Annotated them; the direction agrees with %.0f %% of the labels.", 100 * positive)

    stages = curriculum(annotated, mode="global", stages=args.stages)
    out.info("Ordered them in stages of %s pairs, clear ones first.", [len(stage) for stage in stages.values()])

    stages = published(stages, direction, args)
    ready = export_for(stages, trainer="trl").dataset
    report = check_for_trl(ready, args.reward_model, max_length=args.max_length)
    if not report.ok:
        raise SystemExit(str(report))
    train(ready, args)


def arguments() -> argparse.Namespace:
    """What is asked for; by default what ships with the project."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default=str(DEMO / "preferences" / "explicit.jsonl"), help="Hub id or .jsonl file")
    parser.add_argument("--direction", help="Hub id or folder; fitted on the shipped contrast pairs when left out")
    parser.add_argument("--reward-model", default=str(DEMO / "annotator"), help="model that the reward grows on")
    parser.add_argument("--fraction", type=float, default=0.5, help="share of the pairs to keep")
    parser.add_argument("--stages", type=int, default=2, help="stages of the curriculum")
    parser.add_argument("--max-length", type=int, default=1024, help="longest side in tokens")
    parser.add_argument("--max-steps", type=int, default=-1, help="steps in each stage; one epoch when left out")
    parser.add_argument("--repo-id", help="dataset repository for the annotated stages, made private")
    parser.add_argument("--output", type=Path, required=True, help="folder for the results")
    return parser.parse_args()


def rows_of(source: str) -> Dataset:
    """Preference rows of a file or of a Hub dataset's training split."""
    if os.path.isfile(source):
        return load_dataset("json", data_files=source, split="train")
    return load_dataset(source, split="train")


def direction_of(source: str | None) -> Direction:
    """The direction that is asked for, or one fitted on the shipped contrast pairs."""
    if source is not None:
        return Direction.from_pretrained(source)
    return fit_direction(rows_of(str(DEMO / "contrast_pairs.jsonl")), model=str(DEMO / "annotator"))


def published(stages: DatasetDict, direction: Direction, args: argparse.Namespace) -> DatasetDict:
    """Publishes the stages with their card and loads them back: what is trained on is what others will load."""
    if args.repo_id is not None:
        push_annotated(stages, args.repo_id, direction=direction)
        return load_dataset(args.repo_id)
    save_annotated(stages, args.output / "annotated", direction=direction)
    return load_dataset(str(args.output / "annotated"))


def train(stages: DatasetDict, args: argparse.Namespace) -> None:
    """Trains a reward model on one stage after the other; TRL uses the column `margin` by itself."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    tokenizer = AutoTokenizer.from_pretrained(args.reward_model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model: Any = AutoModelForSequenceClassification.from_pretrained(args.reward_model, num_labels=1)
    model.config.pad_token_id = tokenizer.pad_token_id
    for name in sorted(stages, key=lambda name: int(name.removeprefix("stage_"))):
        config = RewardConfig(
            output_dir=str(args.output / "checkpoints"), max_length=args.max_length, max_steps=args.max_steps,
            num_train_epochs=1, per_device_train_batch_size=4, learning_rate=1e-4, save_strategy="no", report_to=[],
            bf16=False, disable_tqdm=True, logging_strategy="no", seed=0,
        )  # fmt: skip
        trainer = RewardTrainer(model=model, args=config, train_dataset=stages[name], processing_class=tokenizer)
        done = trainer.train()
        model = trainer.model
        out.info("%s: %d steps, mean loss %.3f", name, done.global_step, done.training_loss)
    model.save_pretrained(args.output / "reward_model")
    tokenizer.save_pretrained(args.output / "reward_model")
    out.info("The reward model is in %s.", args.output / "reward_model")


if __name__ == "__main__":
    main()
