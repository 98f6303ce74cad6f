"""What a card says of computing its margins again is run, and gives the same columns; what it cannot know, it says."""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from loopback_hub import LoopbackHub
from test_publish import readme

from legend_hf import LegendMarginFn, LegendScoreFn, annotate, fit_direction, push_annotated, save_annotated
from legend_hf.hub import transfer
from legend_hf.publish import push_folder

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
    transfer.Repository(name, "dataset").commit(
        {path: "".join(json.dumps(r) + "\n" for r in lines).encode() for path, lines in files.items()}
        | {"README.md": f"---\nconfigs:\n{card}---\n".encode()},
        commit_message="by hand",
    )
    return name


def program(card: str) -> str:
    (found,) = re.findall(r"To compute them again:\n\n```python\n(.*?)```", card, re.DOTALL)
    return found


ODD = {"prompt_column": "question", "chosen_column": "good", "rejected_column": "bad"}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "columns of other names": ({"name": "odd"}, {**ODD, "add": ["margin_bin"], "scale": "bins"}),
    "names and a row that cannot be read": (
        {"name": "odd", "split": "train"},
        {**ODD, "chosen_column": "bad", "rejected_column": "good", "on_error": "skip", "negative": "zero"},
    ),
    "plain": ({"name": "two"}, {}),
    "one split, rows that cannot be read": ({"name": "one", "split": "test"}, {"on_error": "skip"}),
    "all splits": ({"name": "one"}, {"on_error": "skip", "scale": "raw"}),
    "zeroed, with bins": ({"name": "two"}, {"negative": "zero", "add": ["margin_bin"]}),
    "flagged": ({"name": "two", "split": "train"}, {"negative": "flag", "scale": "bins"}),
}


def pushed_by(way: str, data: Any, fn: LegendMarginFn, folder: Path) -> str:
    """Pushes by one of the ways there are, and says where."""
    target = f"user/again-{uuid.uuid4().hex[:10]}"
    directions = fn.directions if len(fn.directions) > 1 else fn.directions[""]
    if way == "folder":  # which says itself what the transform was
        save_annotated(data, folder / "saved", direction=fn)
        push_folder(folder / "saved", target, direction=directions)
    else:
        push_annotated(data, target, direction=fn if way == "transform" else directions)
    return target


def check_again(text: str, data: Any, fn: LegendMarginFn, model: Path, folder: Path) -> None:
    """Runs a card's program and holds what it gives against the rows that were pushed."""
    from datasets import DatasetDict

    for name, one in fn.directions.items():
        one.save_pretrained(folder / "direction" / name)
    text = text.replace("path/to/the/direction", str(folder / "direction"))
    text = text.replace("path/to/its/model", str(model))
    made: dict[str, Any] = {}
    exec(text, made)
    again, data = (
        given if isinstance(given, DatasetDict) else {str(given.split): given} for given in (made["ds"], data)
    )
    assert again.keys() == data.keys()
    for split, rows in data.items():
        assert again[split].features == rows.features
        assert again[split][:] == rows[:]


# A direction knows no names of columns: the card says so, as another test holds.
KNOWN = [(way, case) for case, (_, options) in CASES.items() for way in ("direction", "transform", "folder")
         if way != "direction" or not options.keys() & ODD.keys()]  # fmt: skip


@pytest.mark.parametrize(("way", "case"), KNOWN)
def test_what_the_card_says_gives_the_same_columns(
    hub: LoopbackHub, direction: Any, source: str, tiny_llama: Path, tmp_path: Path, case: str, way: str
):
    from datasets import load_dataset

    arguments, options = CASES[case]
    fn = LegendMarginFn(direction, overwrite=True, **options)
    data = annotate(load_dataset(source, **arguments), fn)
    text = program(readme(hub, pushed_by(way, data, fn, tmp_path)))
    assert "Not recorded" not in text
    check_again(text, data, fn, tiny_llama, tmp_path)


@pytest.mark.parametrize("way", ["direction", "transform", "folder"])
def test_several_directions_are_computed_again_each_by_its_name(
    hub: LoopbackHub, direction: Any, source: str, tiny_llama: Path, tmp_path: Path, way: str
):
    from datasets import load_dataset

    other = replace(direction, vector=-direction.vector)
    fn = LegendMarginFn({"one": direction, "other": other}, scale="raw", negative="flag")
    data = annotate(load_dataset(source, "two"), fn)
    text = program(readme(hub, pushed_by(way, data, fn, tmp_path)))
    assert "Not recorded" not in text
    check_again(text, data, fn, tiny_llama, tmp_path)


def test_what_was_taken_out_is_taken_out_again_and_a_scale_that_columns_do_not_tell_is_known(
    hub: LoopbackHub, direction: Any, source: str, tiny_llama: Path, tmp_path: Path
):
    from datasets import load_dataset

    fn = LegendMarginFn(direction, overwrite=True, scale="bins", negative="zero")
    data = annotate(load_dataset(source, "two"), fn).remove_columns(["margin_raw", "chosen_score"])
    for way in ("transform", "folder"):
        text = program(readme(hub, pushed_by(way, data, fn, tmp_path)))
        assert "Not recorded" not in text
        check_again(text, data, fn, tiny_llama, tmp_path)
    # The control: a direction does not know.
    assert "Not recorded: `scale` and `negative`" in program(readme(hub, pushed_by("direction", data, fn, tmp_path)))


def test_columns_of_other_transforms_are_said_not_to_be_computed_again(
    hub: LoopbackHub, direction: Any, source: str, tiny_llama: Path, tmp_path: Path
):
    from datasets import load_dataset

    from legend_hf.preferences.similarity import PairSimilarityFn

    both = load_dataset(source, "two").map(lambda r: {"responses": [r["chosen"], r["rejected"]]})
    fn = LegendMarginFn(direction, overwrite=True)
    both = annotate(annotate(both, LegendScoreFn(direction)), fn)
    both = annotate(both, PairSimilarityFn(str(tiny_llama)))
    text = program(readme(hub, pushed_by("transform", both, fn, tmp_path)))
    assert "# Not recorded: the columns of `LegendScoreFn`.\n# Not recorded: the columns of `PairSimilarityFn`." in text


def test_another_transform_than_the_one_that_made_the_margins_is_refused(
    hub: LoopbackHub, direction: Any, source: str, tmp_path: Path
):
    from datasets import load_dataset

    data = annotate(load_dataset(source, "two"), LegendMarginFn(direction, overwrite=True))
    for options in ({"scale": "raw"}, {"scale": "bins", "negative": "zero"}):
        with pytest.raises(ValueError, match="`margin` of config `default` is .*; give the transform that it was ann"):
            push_annotated(data, "user/again-refused", direction=LegendMarginFn(direction, **options))


def test_what_a_folder_notes_of_another_version_is_refused_and_holds_no_program(
    hub: LoopbackHub, direction: Any, source: str, tmp_path: Path
):
    from datasets import load_dataset

    data = annotate(load_dataset(source, "two"), LegendMarginFn(direction, overwrite=True))
    save_annotated(data, tmp_path, direction=LegendMarginFn(direction))
    noted = json.loads((tmp_path / "legend_hf.json").read_text())
    ours = noted["configs"]["default"]
    ours["arguments"]["tomorrows"] = 1
    (tmp_path / "legend_hf.json").write_text(json.dumps(noted))
    with pytest.raises(ValueError, match="notes the options .*tomorrows.*, which this version does not know; upgrade"):
        push_folder(tmp_path, "user/again-refused", direction=direction)
    del ours["arguments"]["tomorrows"]
    ours["loaded"] = {"arguments": {"name": 'two")\nprint("x', "x=1, y": "z"}, "unknown": ["a\n```\n<!-- b"]}
    (tmp_path / "legend_hf.json").write_text(json.dumps(noted))
    push_folder(tmp_path, "user/again-odd", direction=direction)
    text = program(readme(hub, "user/again-odd"))
    assert not any(line.startswith("print") for line in text.splitlines())
    assert "x=1" not in text
    assert "# Not recorded: a b.\n" in text


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
