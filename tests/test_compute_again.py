"""What a card says of computing its margins again is run, and gives the same columns; what it cannot know, it says."""

from __future__ import annotations

import json
import re
import uuid
from pathlib import Path
from typing import Any

import pytest
from loopback_hub import LoopbackHub
from test_publish import readme

from legend_hf import LegendMarginFn, annotate, fit_direction, push_annotated
from legend_hf.hub import transfer

TOPICS = ["bread", "bikes", "paint", "tents", "maps", "soup", "songs", "rain", "chess", "tea"]


def row(topic: str, i: int) -> dict[str, str]:
    return {"prompt": f"Tell me about {topic}.", "chosen": f"Gladly: {topic} {'is fine ' * (i + 1)}", "rejected": "No"}


@pytest.fixture(scope="module")
def direction(hub: LoopbackHub, tiny_llama: Path) -> Any:
    from datasets import Dataset

    pairs = Dataset.from_list([row(topic, i) for i, topic in enumerate(TOPICS * 3)])
    return fit_direction(pairs, model=str(tiny_llama))


@pytest.fixture(scope="module")
def source(hub: LoopbackHub) -> str:
    """A dataset with a folder in it, two configurations, a row that cannot be read, and a margin of its own."""
    name = f"user/AgainSource-{uuid.uuid4().hex[:8]}"
    rows = [row(topic, i) | {"margin": 1} for i, topic in enumerate(TOPICS)]
    bad = [*rows[:4], rows[4] | {"chosen": ""}]
    files = {
        "one/train.jsonl": rows,
        "one/test.jsonl": bad,
        "two/train.jsonl": rows[3:],
        "odd/train.jsonl": [{"question": r["prompt"], "good": r["chosen"], "bad": r["rejected"]} for r in rows],
    }
    card = "".join(f"- config_name: {c}\n  data_dir: {c}\n" for c in ("one", "two", "odd"))
    transfer.upload_files(
        name,
        {path: "".join(json.dumps(r) + "\n" for r in lines).encode() for path, lines in files.items()}
        | {"README.md": f"---\nconfigs:\n{card}---\n".encode()},
        repo_type="dataset",
        commit_message="by hand",
    )
    return name


def program(card: str) -> str:
    (found,) = re.findall(r"To compute them again:\n\n```python\n(.*?)```", card, re.DOTALL)
    return found


ODD = {"prompt_column": "question", "chosen_column": "good", "rejected_column": "bad"}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({"name": "two"}, {}),
    "one split, rows that cannot be read": ({"name": "one", "split": "test"}, {"on_error": "skip"}),
    "all splits": ({"name": "one"}, {"on_error": "skip", "scale": "raw"}),
    "zeroed, with bins": ({"name": "two"}, {"negative": "zero", "add": ["margin_bin"]}),
    "flagged": ({"name": "two", "split": "train"}, {"negative": "flag", "scale": "bins"}),
}


@pytest.mark.parametrize("case", CASES)
def test_what_the_card_says_gives_the_same_columns(
    hub: LoopbackHub, direction: Any, source: str, tiny_llama: Path, tmp_path: Path, case: str
):
    from datasets import DatasetDict, load_dataset

    arguments, options = CASES[case]
    data = annotate(load_dataset(source, **arguments), LegendMarginFn(direction, overwrite=True, **options))
    target = f"user/again-{uuid.uuid4().hex[:10]}"
    push_annotated(data, target, direction=direction)
    text = program(readme(hub, target))
    assert "Not recorded" not in text
    direction.save_pretrained(tmp_path / "direction")
    text = text.replace("path/to/the/direction", str(tmp_path / "direction"))
    text = text.replace("path/to/its/model", str(tiny_llama))
    made: dict[str, Any] = {}
    exec(text, made)
    again, data = (
        given if isinstance(given, DatasetDict) else DatasetDict({arguments["split"]: given})
        for given in (made["ds"], data)
    )
    assert again.keys() == data.keys()
    for split, rows in data.items():
        assert again[split].features == rows.features
        assert again[split][:] == rows[:]


def test_what_is_not_known_is_said(hub: LoopbackHub, direction: Any, source: str):
    from datasets import concatenate_datasets, load_dataset

    def said(data: Any) -> list[str]:
        target = f"user/again-{uuid.uuid4().hex[:10]}"
        push_annotated(data, target, direction=direction)
        return re.findall(r"# Not recorded: (.*)\.", program(readme(hub, target)))

    odd = annotate(load_dataset(source, "odd"), LegendMarginFn(direction, **ODD))
    assert said(odd) == ["`prompt_column`, `chosen_column` and `rejected_column` of `LegendMarginFn`"]
    fn = LegendMarginFn(direction, overwrite=True)
    two = load_dataset(source, "two", split="train")
    assert said(annotate(two.select([1, 2]), fn)) == ["which rows of it were taken"]
    assert said(annotate(concatenate_datasets([two, load_dataset(source, "one", split="train")]), fn)) == [
        "how the rows were loaded"
    ]
    files = load_dataset(source, data_files={"train": "two/train.jsonl"})
    assert said(annotate(files, fn)) == ["`data_dir`, `data_files` and further arguments of `load_dataset`"]
