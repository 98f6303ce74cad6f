"""From the shell the guards of Python hold: a folder knows its sources, and is pushed as it stands."""

from __future__ import annotations

import json

import pytest
from builders import pair_rows
from datasets import Dataset, DatasetDict, load_dataset
from huggingface_hub import HfApi
from typer.testing import CliRunner

from legend_hf import Direction, annotate, fit_direction, save_annotated
from legend_hf.cli import app
from legend_hf.publish import push_folder

THINGS = ("bread", "bikes", "paint", "tents", "maps", "soup")
PAIRS = pair_rows(THINGS, after_prompt=" ")


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def done(*arguments):
    told = run(*arguments)
    assert told.exit_code == 0, told.output
    return told


@pytest.fixture(scope="module")
def direction(tmp_path_factory, tiny_llama):
    folder = tmp_path_factory.mktemp("push_folder") / "direction"
    fit_direction(PAIRS, model=str(tiny_llama)).save_pretrained(folder)
    return folder


def source(name: str, *, private: bool) -> tuple[str, str]:
    """A dataset on the Hub, with a card that has a text and a licence; its id and its commit."""
    api = HfApi()
    api.create_repo(name, repo_type="dataset", private=private, exist_ok=True)
    Dataset.from_list(PAIRS).push_to_hub(name, private=private)
    card = api.hf_hub_download(name, "README.md", repo_type="dataset")
    text = open(card, encoding="utf-8").read().replace("---\n", "---\nlicense: cc-by-nc-4.0\n", 1) + "\nTheir words.\n"
    api.upload_file(path_or_fileobj=text.encode(), path_in_repo="README.md", repo_id=name, repo_type="dataset")
    return name, api.dataset_info(name).sha


def files_of(name: str) -> dict[str, str]:
    info = HfApi().dataset_info(name, files_metadata=True)
    return {entry.rfilename: entry.blob_id for entry in info.siblings}


# From the Hub to a folder with margins, by every way through the commands.
WAYS = {
    "annotate": [],
    "select": [["select", "{last}", "--keep", "random", "--fraction", "0.8"]],
    "select, file": [
        ["select", "{last}", "--keep", "random", "--fraction", "0.8"],
        "data/train-00000-of-00001.parquet",
    ],
}
AFTER = {"": None, "curriculum": ["curriculum", "{last}", "--mode", "global", "--stages", "2"]}


@pytest.mark.parametrize("after", AFTER)
@pytest.mark.parametrize("way", WAYS)
def test_a_folder_knows_its_source_through_every_command(way, after, direction, tiny_llama, tmp_path, hub):
    name, commit = source(f"user/Shell{''.join(filter(str.isalpha, way + after))}Private", private=True)
    last = name
    for number, step in enumerate(WAYS[way]):
        if isinstance(step, str):
            last = last / step
            continue
        done(*[part.format(last=last) for part in step], "--output", tmp_path / str(number))
        last = tmp_path / str(number)
    done("annotate", last, direction, "--model", tiny_llama, "--no-store", "--output", tmp_path / "annotated")
    folder = tmp_path / "annotated"
    if AFTER[after]:
        done(*[part.format(last=folder) for part in AFTER[after]], "--output", tmp_path / "after")
        folder = tmp_path / "after"
    noted = json.loads((folder / "legend_hf.json").read_text())["configs"]["default"]["sources"]
    assert noted == [{"repo_id": name, "revision": commit}]
    target = f"{name}-margins"
    before = files_of(name)
    for refused, message in (
        (["push", folder, direction, name], "is the dataset that was annotated"),
        (["push", folder, direction, target, "--public"], f"the source `{name}` is private or gated"),
    ):
        told = run(*refused)
        assert told.exit_code == 2, told.output
        assert message in told.stderr
    assert files_of(name) == before
    assert not HfApi().repo_exists(target, repo_type="dataset")
    # The control: to a private place it goes, rows, licence and all.
    done("push", folder, direction, target)
    pushed, saved = load_dataset(target), load_dataset(str(folder))
    assert {split: rows.to_list() for split, rows in pushed.items()} == {s: rows.to_list() for s, rows in saved.items()}
    card = open(HfApi().hf_hub_download(target, "README.md", repo_type="dataset"), encoding="utf-8").read()
    assert "license: cc-by-nc-4.0" in card
    assert "Their words." in card
    assert commit in card


def test_rows_of_a_file_of_which_nobody_knows_are_not_made_public_unless_somebody_says(
    direction, tiny_llama, tmp_path, hub
):
    Dataset.from_list(PAIRS).to_json(tmp_path / "pairs.jsonl")
    given = ["annotate", tmp_path / "pairs.jsonl", direction, "--model", tiny_llama, "--no-store"]
    done(*given, "--output", tmp_path / "out")
    told = run("push", tmp_path / "out", direction, "user/shell-nobody", "--public")
    assert told.exit_code == 2
    assert "it cannot be found out which dataset of the Hub that is" in told.stderr
    assert not HfApi().repo_exists("user/shell-nobody", repo_type="dataset")
    name, _ = source("user/shell-open", private=False)
    done("push", tmp_path / "out", direction, "user/shell-nobody", "--public", "--source", name)


def test_pairs_of_a_private_source_that_went_through_a_file_are_known(direction, tiny_llama, tmp_path, hub):
    from tiny_causal import CHAT, save_tiny_causal

    name, commit = source("user/ShellQuestions", private=True)
    save_tiny_causal(tiny_llama, tmp_path / "causal", CHAT)
    given = ["--model", tmp_path / "causal", "--max-new-tokens", "3", "--output", tmp_path / "pairs.jsonl"]
    done("induce", name, *given)
    done(
        "annotate",
        tmp_path / "pairs.jsonl",
        direction,
        "--model",
        tiny_llama,
        "--no-store",
        "--on-error",
        "skip",
        "--output",
        tmp_path / "o",
    )
    noted = json.loads((tmp_path / "o" / "legend_hf.json").read_text())["configs"]["default"]["sources"]
    assert noted == [{"repo_id": name, "revision": commit}]


def test_a_folder_is_pushed_with_its_text_and_all_its_configurations(direction, tiny_llama, tmp_path, hub):
    fitted = Direction.from_pretrained(direction, model=tiny_llama)
    made = DatasetDict(
        train=annotate(Dataset.from_list(PAIRS), fitted), test=annotate(Dataset.from_list(PAIRS[:2]), fitted)
    )
    out = tmp_path / "out"
    save_annotated({"one": made, "two": DatasetDict(train=made["test"])}, out, direction=fitted, source=[])
    readme = out / "README.md"
    readme.write_text(readme.read_text() + "\nMy own words.\n")
    done("push", out, direction, "user/shell-configs")
    for config in ("one", "two"):
        pushed, saved = load_dataset("user/shell-configs", config), load_dataset(str(out), config)
        assert {s: rows.to_list() for s, rows in pushed.items()} == {s: rows.to_list() for s, rows in saved.items()}

    def card() -> str:
        HfApi().dataset_info("user/shell-configs")
        return open(
            HfApi().hf_hub_download("user/shell-configs", "README.md", repo_type="dataset"), encoding="utf-8"
        ).read()

    first = card()
    assert "My own words." in first
    assert "sha256" not in first.split("---")[1], "what tells a folder's content apart has no place on the Hub"
    # Words of the Hub's card stay, and later ones of the folder's join them; again, and nothing changes.
    HfApi().upload_file(
        path_or_fileobj=(first + "\nWords of the Hub.\n").encode(), path_in_repo="README.md",
        repo_id="user/shell-configs", repo_type="dataset",
    )  # fmt: skip
    readme.write_text(readme.read_text() + "\nLater words.\n")
    commits = [push_folder(out, "user/shell-configs", direction=fitted).oid for _ in range(2)]
    assert commits[0] == commits[1]
    text = card()
    assert [text.count(words) for words in ("My own words.", "Words of the Hub.", "Later words.")] == [1, 1, 1]


def test_what_is_loaded_from_a_folder_is_exactly_its_rows(direction, tiny_llama, tmp_path):
    fitted = Direction.from_pretrained(direction, model=tiny_llama)
    made = annotate(DatasetDict(train=Dataset.from_list(PAIRS)), fitted)
    save_annotated(made, tmp_path / "out", direction=fitted)
    assert (tmp_path / "out" / "legend_hf.json").is_file()
    got = load_dataset(str(tmp_path / "out"))
    assert {name: rows.to_list() for name, rows in got.items()} == {name: rows.to_list() for name, rows in made.items()}
    assert got["train"].features == made["train"].features
