"""The script that goes the whole way: select, annotate, order, push, train."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "select_to_reward.py"


def ran(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True)


@pytest.mark.slow
def test_the_whole_way_over_the_hub(hub, tmp_path):
    import torch
    from datasets import load_dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    done = ran("--repo-id", "user/select-to-reward", "--max-steps", "1", "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "stage_2: 1 steps, mean loss" in done.stderr

    stages = load_dataset("user/select-to-reward")
    assert list(stages) == ["stage_1", "stage_2"]
    assert {"prompt", "chosen", "rejected", "margin", "pair_similarity"} <= set(stages["stage_1"].column_names)
    assert min(stages["stage_1"]["margin"]) >= max(stages["stage_2"]["margin"]), "clear pairs first"
    assert sum(map(len, stages.values())) == 8, "half of the shipped rows"

    folder = tmp_path / "reward_model"
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokens = AutoTokenizer.from_pretrained(folder)("Gladly.", return_tensors="pt")
    assert torch.isfinite(model(**tokens).logits).all()


@pytest.mark.slow
def test_it_stops_before_a_training_that_could_not_be(tmp_path):
    done = ran("--max-length", "3", "--output", str(tmp_path))
    assert done.returncode == 1
    assert "would not train on this" in done.stderr
    assert not (tmp_path / "reward_model").exists()
    assert (tmp_path / "annotated").exists(), "what was made before is there"
