"""Which model is it? Other weights are another model; other files beside them, other shards, another name are not."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import pair_rows

from legend_hf import Direction, LegendMarginFn, LegendScoreFn, annotate, fit_direction
from legend_hf.preferences import PairSimilarityFn
from legend_hf.reading import reader as reader_module
from legend_hf.reading.identity import folder_identity
from legend_hf.reading.reader import Runtime, describe_model, open_reader

PAIRS = pair_rows(("bread", "bikes", "paint", "tents"))
OPTIONS: dict[str, Any] = {"layer": 2, "estimator": "mean_difference"}


def uploaded(folder: Path, repo_id: str) -> str:
    from huggingface_hub import HfApi

    HfApi().create_repo(repo_id, exist_ok=True)
    return HfApi().upload_folder(repo_id=repo_id, folder_path=folder, delete_patterns="*").oid


def write_weights(folder: Path, name: str, tensors: Any, **metadata: str) -> None:
    from safetensors.torch import save_file

    save_file(tensors, folder / name, metadata={"format": "pt", **metadata})


def weights_of(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


# -- What somebody may find beside a model, or do to its files, that changes no number


def notes(folder: Path) -> None:
    (folder / "notes.txt").write_text("words")
    (folder / "README.md").write_text("# A model")
    (folder / ".gitattributes").write_text("*.bin filter=lfs")
    (folder / "all_results.json").write_text("{}")


def trainer_state(folder: Path) -> None:
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (folder / name).write_bytes(b"state")
    (folder / "trainer_state.json").write_text('{"step": 1}')
    (folder / "generation_config.json").write_text('{"temperature": 0.5}')
    shutil.copytree(folder, folder / "checkpoint-1")
    (folder / ".cache" / "huggingface").mkdir(parents=True)
    (folder / ".cache" / "huggingface" / "model.safetensors").write_bytes(b"")


def other_formats(folder: Path) -> None:
    for name in ("pytorch_model.bin", "tf_model.h5", "model.gguf", "model.onnx", "adapter.safetensors"):
        (folder / name).write_bytes(b"weights of another kind")


def program_that_is_not_run(folder: Path) -> None:
    (folder / "train.py").write_text("raise SystemExit")


def bookkeeping(folder: Path) -> None:
    edit(folder / "config.json", transformers_version="0.0.1", architectures=["Other"], _name_or_path="/elsewhere")


def defaults_written_out(folder: Path) -> None:
    edit(folder / "config.json", attention_dropout=0.0, mlp_bias=False, chunk_size_feed_forward=0)


def other_metadata(folder: Path) -> None:
    write_weights(folder, "model.safetensors", weights_of(folder), by="another library")


def shards(folder: Path) -> None:
    tensors = weights_of(folder)
    half = len(tensors) // 2
    parts = [dict(list(tensors.items())[:half]), dict(list(tensors.items())[half:])]
    index: dict[str, Any] = {"metadata": {}, "weight_map": {}}
    for number, part in enumerate(parts, start=1):
        name = f"model-0000{number}-of-00002.safetensors"
        write_weights(folder, name, part)
        index["weight_map"] |= dict.fromkeys(part, name)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def saved_again(folder: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


HARMLESS = [notes, trainer_state, other_formats, program_that_is_not_run, bookkeeping]
# The Hub says nothing of tensors, so these are recognised by what a fit recorded, and not by a push.
HARMLESS_HERE = [*HARMLESS, other_metadata, shards, saved_again]


# -- What makes it another model


def one_bit(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def tuned(folder: Path, seed: int = 0) -> None:
    import torch

    generator = torch.Generator().manual_seed(seed)
    tensors = {name: t + 0.1 * torch.randn(t.shape, generator=generator) for name, t in weights_of(folder).items()}
    write_weights(folder, "model.safetensors", tensors)


def tuned_shards(folder: Path) -> None:
    tuned(folder)
    shards(folder)


def other_shards_under_the_same_names(folder: Path) -> None:
    shards(folder)
    name = "model-00002-of-00002.safetensors"
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)


def half_precision(folder: Path) -> None:
    write_weights(folder, "model.safetensors", {name: t.bfloat16() for name, t in weights_of(folder).items()})


def other_norm(folder: Path) -> None:
    edit(folder / "config.json", rms_norm_eps=0.1)


def other_activation(folder: Path) -> None:
    edit(folder / "config.json", hidden_act="relu")


def lower_case(folder: Path) -> None:
    edit(folder / "tokenizer.json", normalizer={"type": "Lowercase"})


def other_merges(folder: Path) -> None:
    """Two rules that nothing in any fixed text depends on, exchanged."""
    rules = json.loads((folder / "tokenizer.json").read_text())
    merges = rules["model"]["merges"]
    merges[-1], merges[-2] = merges[-2], merges[-1]
    (folder / "tokenizer.json").write_text(json.dumps(rules))


OTHER = [
    *(one_bit, tuned, tuned_shards, other_shards_under_the_same_names, half_precision),
    *(other_norm, other_activation, lower_case, other_merges),
]


@pytest.fixture(scope="module")
def direction(tiny_llama: Path) -> Direction:
    return fit_direction(PAIRS, model=tiny_llama, **OPTIONS)


@pytest.fixture(scope="module")
def of_hub(hub: Any, tiny_llama: Path) -> Direction:
    """A direction that was fitted on a Hub model."""
    uploaded(tiny_llama, "user/identity")
    return fit_direction(PAIRS, model="user/identity", **OPTIONS)


@pytest.fixture(params=["fitted on a folder", "fitted on the Hub"])
def either(request: pytest.FixtureRequest) -> Direction:
    return request.getfixturevalue("direction" if request.param == "fitted on a folder" else "of_hub")


@pytest.fixture
def copy(tiny_llama: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_llama, tmp_path / "copy")


def through(direction: Direction, folder: Path, tmp_path: Path) -> np.ndarray:
    """The margins of a saved direction, its model taken from a folder."""
    direction.save_pretrained(tmp_path / "direction")
    fn = LegendMarginFn(tmp_path / "direction", model=folder)
    return fn({name: [pair[name] for pair in PAIRS] for name in PAIRS[0]})["margin_raw"]


@pytest.mark.parametrize("change", HARMLESS_HERE, ids=lambda c: c.__name__)
def test_the_same_model_is_the_same_whatever_lies_beside_it(
    either: Direction, tiny_llama: Path, copy: Path, tmp_path: Path, change: Callable[[Path], None]
):
    change(copy)
    np.testing.assert_allclose(through(either, copy, tmp_path), through(either, tiny_llama, tmp_path), atol=1e-5)


def test_a_config_that_is_written_otherwise_is_held_against_the_hubs(
    of_hub: Direction, tiny_llama: Path, copy: Path, tmp_path: Path
):
    defaults_written_out(copy)
    assert folder_identity(copy) != folder_identity(tiny_llama)
    np.testing.assert_allclose(through(of_hub, copy, tmp_path), through(of_hub, tiny_llama, tmp_path), atol=1e-5)


@pytest.mark.parametrize("change", OTHER, ids=lambda c: c.__name__)
def test_another_model_is_refused_by_what_differs(
    either: Direction, copy: Path, tmp_path: Path, change: Callable[[Path], None]
):
    change(copy)
    with pytest.raises(ValueError, match="the direction was fitted (on|with) .*or fit a new direction"):
        through(either, copy, tmp_path)
    shown = replace(either, model_path=str(copy))
    with pytest.raises(ValueError, match="the direction was fitted (on|with) .*or fit a new direction"):
        shown.score("Why?", "Because.")


@pytest.mark.parametrize("change", HARMLESS, ids=lambda c: c.__name__)
def test_a_push_takes_the_same_model_without_downloading_it(
    hub: Any, direction: Direction, copy: Path, change: Callable[[Path], None]
):
    change(copy)
    name = f"user/same-{change.__name__}"
    uploaded(copy, name)
    hub.log(clear=True)
    pushed = direction.push_to_hub("user/pushed-same", model_id=name)
    assert not hub.log(r"GET /dl/")
    assert pushed.reader.model == name
    assert pushed.reader.model_sha256 is None
    anywhere = replace(pushed, model_path=None)
    assert anywhere.score("Why?", "Because.") == pytest.approx(direction.score("Why?", "Because."), abs=1e-5)
    assert hub.log(r"GET /dl/"), "the control: so a download looks"


@pytest.mark.parametrize("change", OTHER, ids=lambda c: c.__name__)
def test_a_push_refuses_another_model_without_downloading_it(
    hub: Any, direction: Direction, copy: Path, change: Callable[[Path], None]
):
    change(copy)
    name = f"user/other-{change.__name__}".replace("_", "-")
    uploaded(copy, name)
    hub.log(clear=True)
    with pytest.raises(ValueError, match="is not the model of this direction: its `.*_sha256` differs"):
        direction.push_to_hub("user/pushed-other", model_id=name)
    assert not hub.log(r"GET /dl/|/commit/")


def test_a_push_holds_a_commit_that_is_named_against_the_reader(hub: Any, tiny_llama: Path, copy: Path):
    first = uploaded(tiny_llama, "user/moving")
    direction = fit_direction(PAIRS, model="user/moving", **OPTIONS)
    (copy / "README.md").write_text("# words")
    card_only = uploaded(copy, "user/moving")
    tuned(copy)
    other = uploaded(copy, "user/moving")
    assert direction.push_to_hub("user/moved", model_id=f"user/moving@{card_only}").reader.revision == first
    with pytest.raises(ValueError, match="its `weights_sha256` differs"):
        direction.push_to_hub("user/moved", model_id=f"user/moving@{other}")


def test_a_card_of_the_model_changes_neither_fingerprint_nor_store(
    hub: Any, tiny_llama: Path, copy: Path, tmp_path: Path
):
    """Only what decides a number is in the keys: not the commit, nor the name of the same weights."""
    uploaded(tiny_llama, "user/keys")

    def made(model: Any) -> tuple[str, str]:
        given = fit_direction(PAIRS, model=model, **OPTIONS)
        return LegendMarginFn(given).fingerprint(), PairSimilarityFn(model).fingerprint()

    before = made("user/keys")
    (copy / "README.md").write_text("# words")
    uploaded(copy, "user/keys")
    assert made("user/keys") == before
    assert made(copy) == before
    other_norm(copy)
    uploaded(copy, "user/keys")
    after = made("user/keys")
    assert after[0] != before[0]
    assert after[1] != before[1]


@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "exchanged"])
def test_a_folder_that_changes_under_a_running_process_is_read_anew(copy: Path, tmp_path: Path, in_place: bool):
    """Also where size and time of its files stay as they were."""
    from datasets import Dataset

    rows = Dataset.from_list(PAIRS)
    file, store = copy / "model.safetensors", tmp_path / "scores.sqlite"

    def numbers() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        given = fit_direction(PAIRS, model=copy, **OPTIONS)
        margins = annotate(rows, LegendMarginFn(given, store=store))["margin_raw"]
        mapped = rows.map(PairSimilarityFn(copy), batched=True)["pair_similarity"]
        return np.array(margins), np.array(annotate(rows, PairSimilarityFn(copy))["pair_similarity"]), np.array(mapped)

    direction = fit_direction(PAIRS, model=copy, **OPTIONS)
    similarity = PairSimilarityFn(copy)
    direction.score("Why?", "Because.")
    before, times = numbers(), (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    shutil.copytree(copy, tmp_path / "new")
    tuned(tmp_path / "new")
    if in_place:
        file.write_bytes((tmp_path / "new" / "model.safetensors").read_bytes())
    else:
        os.replace(tmp_path / "new" / "model.safetensors", file)
    os.utime(file, ns=times)
    after = numbers()
    reader_module.close_readers()
    shutil.copytree(copy, tmp_path / "elsewhere")
    for one, other, fresh in zip(before, after, numbers(), strict=True):
        assert np.abs(one - other).max() > 1e-4
        np.testing.assert_allclose(other, fresh, atol=1e-5)
    for old in (lambda: direction.score("Why?", "Because."), lambda: annotate(rows, similarity)):
        with pytest.raises(ValueError, match="is another one: its weights have sha256"):
            old()


@pytest.mark.parametrize("transform", [LegendMarginFn, LegendScoreFn])
def test_a_folder_is_not_passed_over_where_a_direction_is_an_object(of_hub: Direction, copy: Path, transform: Any):
    """An argument that is given is followed or refused."""
    assert dict(transform(of_hub, model=copy)._reading.directions)[""].model_path == str(copy)
    with pytest.raises(ValueError, match="`revision` is 'main' but `direction` is a `Direction`"):
        transform(of_hub, revision="main")
    tuned(copy)
    with pytest.raises(ValueError, match="is another one: its weights have sha256"):
        transform(of_hub, model=copy)


def test_a_foreign_file_does_not_load_the_model_again(copy: Path):
    reader = describe_model(copy)
    first = open_reader(reader, Runtime(path=str(copy)))
    (copy / "notes.txt").write_text("words")
    assert open_reader(reader, Runtime(path=str(copy))).model is first.model
    tuned(copy)
    with pytest.raises(ValueError, match="is another one"):
        open_reader(reader, Runtime(path=str(copy)))


def test_what_cannot_be_checked_offline_is_said(of_hub: Direction, copy: Path, caplog: pytest.LogCaptureFixture):
    """The recorded digests need no Hub; where nothing was recorded, the Hub is asked, and its silence is said."""
    known = replace(of_hub, model_path=str(copy))
    unknown = replace(of_hub.reader, weights_sha256=None, tensors_sha256=None, config_sha256=None)
    asked = replace(known, reader=unknown)
    nowhere = replace(known, reader=replace(unknown, model="user/nowhere", revision="0" * 40))
    for given in (known, asked, nowhere):
        given.score("Why?", "Because.")
    (said,) = [r.getMessage() for r in caplog.records if "cannot be checked" in r.getMessage()]
    assert "whether the folder holds user/nowhere" in said
    tuned(copy)
    for given in (known, asked):
        with pytest.raises(ValueError, match="is another one: its weights have sha256"):
            given.score("Why?", "Because.")
    before = LegendMarginFn(replace(nowhere, model_path=str(copy))).fingerprint()
    tuned(copy, seed=1)
    assert LegendMarginFn(replace(nowhere, model_path=str(copy))).fingerprint() != before


def test_an_artifact_that_lies_about_its_weights_is_refused(of_hub: Direction):
    """Else its scores would stand in the store under the keys of another model."""
    lies = replace(of_hub, reader=replace(of_hub.reader, weights_sha256="0" * 64))
    with pytest.raises(ValueError, match="`user/identity@.*` is another one: its weights have sha256"):
        lies.score("Why?", "Because.")
    of_hub.score("Why?", "Because.")


def test_the_hub_and_a_folder_say_the_same(hub: Any, copy: Path):
    for number, change in enumerate([lambda folder: None, shards]):
        change(copy)
        commit = uploaded(copy, "user/both")
        assert reader_module.commit_identity("user/both", commit) == folder_identity(copy), number


def test_weights_of_another_kind_are_refused_in_words(copy: Path):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"has no file named model\.safetensors.*save the model by `save_pretrained`"):
        describe_model(copy)


# -- Code that comes with a model

LAYERS = "SHIFT = {shift}\n"
MODULE = """from transformers import LlamaConfig, LlamaModel

from .shift import SHIFT


class Config(LlamaConfig):
    pass


class Model(LlamaModel):
    config_class = Config

    def __init__(self, config):
        super().__init__(config)
        self.norm.register_forward_hook(lambda module, given, states: states + SHIFT)
"""


def with_code(folder: Path, shift: float = 0.0, *, prefix: str = "", where: Path | None = None) -> None:
    """Gives a Llama code of its own, which transformers would read without as well."""
    (where or folder).mkdir(exist_ok=True)
    ((where or folder) / "own.py").write_text(MODULE)
    ((where or folder) / "shift.py").write_text(LAYERS.format(shift=shift))
    edit(folder / "config.json", auto_map={"AutoConfig": f"{prefix}own.Config", "AutoModel": f"{prefix}own.Model"})


def other_import(folder: Path) -> None:
    (folder / "shift.py").write_text(LAYERS.format(shift=0.5))


def other_module(folder: Path) -> None:
    (folder / "own.py").write_text(MODULE + "\n# another\n")


def margin_of(direction: Direction, **options: Any) -> float:
    fn = LegendMarginFn(direction, **options)
    return float(fn({name: [pair[name] for pair in PAIRS] for name in PAIRS[0]})["margin_raw"][0])


@pytest.mark.parametrize("change", [other_import, other_module], ids=lambda c: c.__name__)
def test_other_code_in_a_folder_is_another_model(copy: Path, change: Callable[[Path], None]):
    with_code(copy)
    plain = fit_direction(PAIRS, model=copy, **OPTIONS)
    coded = fit_direction(PAIRS, model=copy, trust_remote_code=True, **OPTIONS)
    assert (plain.reader.code_sha256, coded.reader.code_sha256 is None) == (None, False)
    assert LegendMarginFn(plain).fingerprint() != LegendMarginFn(coded).fingerprint()
    margin_of(coded, trust_remote_code=True)
    program_that_is_not_run(copy)
    margin_of(coded, trust_remote_code=True)
    with pytest.raises(ValueError, match="read by code that comes with it .*pass `trust_remote_code=True`"):
        margin_of(coded)
    with pytest.raises(ValueError, match="is another one: its code has sha256"):
        margin_of(plain, trust_remote_code=True)
    change(copy)
    with pytest.raises(ValueError, match="is another one: its code has sha256"):
        margin_of(coded, trust_remote_code=True)
    assert fit_direction(PAIRS, model=copy, trust_remote_code=True, **OPTIONS).reader.code_sha256 != (
        coded.reader.code_sha256
    )


def test_code_in_another_repository_is_held_against_what_the_fit_ran(hub: Any, copy: Path, tmp_path: Path):
    """A commit of the model says nothing of it: the newest state of the other one is what runs."""
    with_code(copy, prefix="user/code--", where=tmp_path / "code")
    uploaded(tmp_path / "code", "user/code")
    uploaded(copy, "user/coded")
    direction = fit_direction(PAIRS, model="user/coded", trust_remote_code=True, **OPTIONS)
    assert direction.reader.code_sha256 is not None
    margin_of(direction, trust_remote_code=True)
    pushed = uploaded(copy, "user/coded-again")
    other_import(tmp_path / "code")
    uploaded(tmp_path / "code", "user/code")
    reader_module.close_readers()
    with pytest.raises(ValueError, match="`user/coded@.*` is another one: its code has sha256"):
        margin_of(direction, trust_remote_code=True)
    assert describe_model("user/coded-again", revision=pushed, trust_remote_code=True).code_sha256 != (
        direction.reader.code_sha256
    )
