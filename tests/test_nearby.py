"""Models by their names: a folder or a Hub id anywhere, and a name that leads nowhere is told what is there."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from builders import pair_rows

from legend_hf import ArtifactError, Direction, LegendMarginFn, LegendScoreFn, Writer, annotate, fit_direction
from legend_hf.directions import induce_pairs
from legend_hf.hub.nearby import is_path
from legend_hf.preferences import PairSimilarityFn
from legend_hf.reading.reader import describe_model

PAIRS = pair_rows()


@pytest.fixture(scope="module")
def house(tiny_llama, tmp_path_factory):
    """A folder of models and directions, and the same on the Hub: `user/nearby-model`, `user/nearby-direction`."""
    folder = tmp_path_factory.mktemp("house")
    shutil.copytree(tiny_llama, folder / "models" / "tiny-llama")
    shutil.copytree(tiny_llama, folder / "models" / "other-llama")
    config = json.loads((folder / "models" / "other-llama" / "config.json").read_text())
    (folder / "models" / "other-llama" / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    direction = fit_direction(PAIRS, model=folder / "models" / "tiny-llama")
    direction.save_pretrained(folder / "safety-direction")
    return folder


@pytest.fixture(scope="module")
def hub_ids(hub, house):
    from huggingface_hub import HfApi

    api = HfApi()
    for name, folder in (
        ("nearby-model", house / "models" / "tiny-llama"),
        ("nearby-other", house / "models" / "other-llama"),
        ("nearby-direction", house / "safety-direction"),
    ):
        api.create_repo(f"user/{name}", exist_ok=True)
        api.upload_folder(repo_id=f"user/{name}", folder_path=folder)
    return {"model": "user/nearby-model", "other": "user/nearby-other", "direction": "user/nearby-direction"}


# Every door that takes a model by its name.
MODELS = {
    "fit": lambda name: fit_direction(PAIRS, model=name),
    "reader": lambda name: describe_model(name),
    "writer": lambda name: induce_pairs([{"prompt": "Why?"}], model=Writer(os.fspath(name))),
    "similarity": lambda name: PairSimilarityFn(name),
}


@pytest.mark.parametrize("door", MODELS)
def test_a_typo_of_a_folder_is_told_what_stands_there(house, door, monkeypatch):
    with pytest.raises(FileNotFoundError) as told:
        MODELS[door](str(house / "models" / "tiny-lama"))
    assert f"there is no folder {str(house / 'models' / 'tiny-lama')!r}" in str(told.value)
    assert f"in {str(house / 'models')!r} stand 'tiny-llama', 'other-llama'" in str(told.value), "the closest first"
    with pytest.raises(FileNotFoundError, match="in .* stand 'models', 'safety-direction'"):
        MODELS[door](str(house / "modles" / "tiny-llama"))
    monkeypatch.chdir(house)
    with pytest.raises(FileNotFoundError, match="stand 'tiny-llama', 'other-llama'"):
        MODELS[door]("./models/tinny-llama")
    # What may be a Hub id is looked for there first.
    with pytest.raises(FileNotFoundError, match="does not exist, or it is private.*stand 'tiny-llama', 'other-llama'"):
        MODELS[door]("models/tinny-llama")
    with pytest.raises(FileNotFoundError, match=r"is a file, not the folder of a model"):
        MODELS[door](str(house / "models" / "tiny-llama" / "config.json"))


def test_the_shell_says_it_once(house, tmp_path):
    from typer.testing import CliRunner

    from legend_hf.cli.options import app

    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    for typed in (
        ["fit", tmp_path / "pairs.jsonl", "--model", house / "models" / "tiny-lama", "--output", tmp_path / "out"],
        ["annotate", tmp_path / "pairs.jsonl", house / "safety-direction", "--output", tmp_path / "out", "--model",
         house / "models" / "tiny-lama"],
    ):  # fmt: skip
        done = CliRunner().invoke(app, [str(word) for word in (*typed, "--no-store")])
        assert (done.exit_code, done.stderr.count("there is no")) == (2, 1), done.stderr
        assert "stand 'tiny-llama', 'other-llama'; give the folder of a model" in done.stderr


@pytest.mark.parametrize("door", MODELS)
def test_a_typo_of_an_id_is_told_what_the_cache_holds(hub_ids, door):
    describe_model(hub_ids["model"])  # now it is in the cache
    with pytest.raises(FileNotFoundError) as told:
        MODELS[door]("user/neraby-model")
    assert "`user/neraby-model`: it does not exist" in str(told.value)
    assert "the cache here holds the models 'user/nearby-model'" in str(told.value)
    assert "nearby-direction" not in str(told.value), "which is no model"


@pytest.mark.parametrize("door", MODELS)
def test_a_direction_in_the_place_of_a_model_is_told_so(house, hub_ids, door):
    for name in (str(house / "safety-direction"), hub_ids["direction"]):
        with pytest.raises(ValueError, match="is a direction, not a model; give it as `direction`"):
            MODELS[door](name)
    with pytest.raises(ValueError, match=r"has no `config.json`.*in it are 'tiny-llama', 'other-llama'|'other-llama'"):
        MODELS[door](str(house / "models"))


DIRECTIONS = {"from_pretrained": Direction.from_pretrained, "margins": LegendMarginFn, "scores": LegendScoreFn}


@pytest.mark.parametrize("door", DIRECTIONS)
def test_a_direction_that_is_not_there_is_told_what_is(house, hub_ids, door, monkeypatch):
    load = DIRECTIONS[door]
    load(hub_ids["direction"])
    for name in (str(house / "models" / "tiny-llama"), hub_ids["model"]):
        with pytest.raises(ArtifactError, match="is a model, not a direction"):
            load(name)
    with pytest.raises(FileNotFoundError, match="there is no folder .*stand 'safety-direction', 'models'"):
        load(str(house / "safty-direction"))
    monkeypatch.chdir(house)
    with pytest.raises(FileNotFoundError, match="there is no folder 'safty-direction'.*stand 'safety-direction'"):
        load("safty-direction")
    with pytest.raises(FileNotFoundError, match="the cache here holds the directions .*'user/nearby-direction'"):
        load("user/neraby-direction")
    with pytest.raises(FileNotFoundError, match=r"in it are 'safety-direction', which have one"):
        load(str(house))


def test_a_fit_on_a_folder_can_say_which_hub_model_it_is(house, hub_ids, hub, tmp_path):
    from datasets import Dataset

    folder = house / "models" / "tiny-llama"
    direction = fit_direction(PAIRS, model=folder, model_id=hub_ids["model"])
    assert (direction.reader.model, len(direction.reader.revision)) == (hub_ids["model"], 40)
    assert (direction.reader.model_sha256, direction.model_path) == (None, str(folder))
    alone = fit_direction(PAIRS, model=folder)
    assert direction.vector.tobytes() == alone.vector.tobytes()
    direction.save_pretrained(tmp_path / "named")
    # Whoever has no folder reads by the name.
    loaded = Direction.from_pretrained(tmp_path / "named")
    assert loaded.model_path is None
    assert loaded.score("Why?", "Because.") == pytest.approx(direction.score("Why?", "Because."), abs=1e-6)
    assert f"base_model: {hub_ids['model']}" in (tmp_path / "named" / "README.md").read_text()
    pinned = f"{hub_ids['model']}@{direction.reader.revision}"
    assert fit_direction(PAIRS, model=folder, model_id=pinned).reader == direction.reader
    for wrong, message in ((hub_ids["other"], "its `config_sha256` differs"), ("user/neraby-model", "does not exist")):
        with pytest.raises((ValueError, OSError), match=message):
            fit_direction(PAIRS, model=folder, model_id=wrong)
    same = fit_direction(PAIRS, model=hub_ids["model"], model_id=hub_ids["model"])
    assert same.reader.model == hub_ids["model"]
    rows = annotate(Dataset.from_list(PAIRS), LegendMarginFn(loaded))
    assert rows["margin_raw"][:] == pytest.approx(
        annotate(Dataset.from_list(PAIRS), direction)["margin_raw"][:], abs=1e-5
    )


def test_the_model_of_a_direction_is_a_folder_or_an_id_everywhere(house, hub_ids):
    of_folder = Direction.from_pretrained(house / "safety-direction")
    folder, expected = house / "models" / "tiny-llama", None
    for given in (folder, str(folder), hub_ids["model"]):
        for direction in (
            Direction.from_pretrained(house / "safety-direction", model=given),
            of_folder.with_model(given),
            LegendMarginFn(of_folder, model=given).directions[""],
            LegendScoreFn(house / "safety-direction", model=given)._reading[""],
        ):
            score = direction.score("Why?", "Because.")
            expected = score if expected is None else expected
            assert score == pytest.approx(expected, abs=1e-6)
    for wrong in (house / "models" / "other-llama", hub_ids["other"]):
        with pytest.raises(ValueError, match=r"is another one: its config|its `config_sha256` differs"):
            of_folder.with_model(wrong)
    with pytest.raises(FileNotFoundError, match="stand 'tiny-llama', 'other-llama'"):
        Direction.from_pretrained(house / "safety-direction", model=house / "models" / "tiny-lama")
    named = replace(of_folder, reader=replace(of_folder.with_model(hub_ids["model"]).reader))
    assert named.with_model(hub_ids["model"]).reader == named.reader


def test_the_home_folder_may_be_spelled_short(house, monkeypatch):
    monkeypatch.setenv("HOME", str(house))
    assert describe_model("~/models/tiny-llama") == describe_model(house / "models" / "tiny-llama")


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("user/model", False), ("gpt2", False), ("user/model@main", False), ("models/mine", False),
        ("./models/mine", True), ("../mine", True), ("/data/mine", True), ("~/mine", True), ("a/b/c", True),
        (Path("user/model"), True), ("with space/x", True), ("hf://user/x", False), ("", True),
    ],
)  # fmt: skip
def test_what_can_only_be_a_folder(name, path):
    assert is_path(name) is path


@pytest.mark.parametrize("content", [b"[]", b"{", b"\xff", b"[" * 100_000], ids=["a list", "cut off", "bytes", "deep"])
def test_a_config_on_the_hub_that_is_none_is_refused_by_the_models_name(hub, content):
    from huggingface_hub import HfApi

    HfApi().create_repo("user/nearby-broken", exist_ok=True)
    HfApi().upload_file(path_or_fileobj=content, path_in_repo="config.json", repo_id="user/nearby-broken")
    with pytest.raises((ValueError, OSError), match="nearby-broken"):
        describe_model("user/nearby-broken")
