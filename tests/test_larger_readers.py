"""Readers larger than a device: GGUF files, weights quantised as they are loaded, parts of a model on several devices.

What decides numbers is part of the Reader; where a model's parts lie is not, and changes none.
"""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from builders import pair_rows
from gguf_files import write_gguf
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from legend_hf import ArtifactError, Direction, LegendMarginFn, LegendScoreFn, fit_direction
from legend_hf.cli import app
from legend_hf.directions.direction import CONFIG_FILE, TENSOR_FILE, _unpack
from legend_hf.directions.summary import summary
from legend_hf.hub import cards
from legend_hf.margins.scoring import _digest
from legend_hf.preferences import PairSimilarityFn
from legend_hf.reading import loading as loading_module
from legend_hf.reading.loading import Loading
from legend_hf.reading.reader import Runtime, close_readers, deciding, describe_model, open_reader

PAIRS = pair_rows()
FIT = {"layer": 2, "estimator": "mean_difference", "device": "cpu"}
INT8 = {"quant_method": "bitsandbytes", "load_in_8bit": True}
# All that a tiny Llama has, without its head; the second block is read from the disk each time.
SPREAD = {"embed_tokens": "cpu", "rotary_emb": "cpu", "norm": "cpu"}
SPREAD |= {"layers.0": "cpu", "layers.1": "disk", "layers.2": "disk"}
FILE = "tiny.Q8_0.gguf"


@pytest.fixture(scope="module")
def ggufs(tiny_llama, tmp_path_factory):
    """A folder with two GGUF files of one shape and nothing else: the tiny model, and one with other weights."""
    folder = tmp_path_factory.mktemp("ggufs")
    write_gguf(tiny_llama, folder / FILE)
    write_gguf(tiny_llama, folder / "other.gguf", **{"layers.0.mlp.up_proj.weight": 0.5})
    return folder


@pytest.fixture(scope="module")
def plain(tiny_llama):
    return fit_direction(PAIRS, model=tiny_llama, **FIT)


@pytest.fixture(scope="module")
def of_gguf(ggufs):
    return fit_direction(PAIRS, model=ggufs, gguf_file=FILE, **FIT)


@pytest.fixture(scope="module")
def quantised(tiny_llama):
    return fit_direction(PAIRS, model=tiny_llama, quantization_config=INT8, **FIT)


def raw(fn):
    columns = {name: [row[name] for row in PAIRS] for name in PAIRS[0]}
    return np.array(fn(columns)["margin_raw"])


# What was asked for is recorded, and where nothing was, nothing is.


def test_a_reader_without_loading_options_is_written_and_hashed_as_it_always_was(plain):
    written = plain.to_config()["reader"]
    assert "loading" not in written
    assert deciding(plain.reader, plain.model_path)[0].keys() == written.keys() - {
        "tensors_sha256", "model", "revision", "model_sha256",
    }  # fmt: skip
    state, _ = LegendMarginFn(plain)._reading.state()
    assert len(state["directions"][0]["reader"]) == len(written)
    assert len(state["directions"][0]["from"]) == 3
    assert "loaded from" not in cards.direction_card({**plain.to_config(), "repo_id": None}, None)


@given(
    st.sampled_from([{"gguf_file": "a/b.gguf"}, {"quantization_config": INT8}]),
    st.dictionaries(st.text(max_size=5), st.booleans() | st.integers() | st.none() | st.text(max_size=5), max_size=3),
)
def test_the_options_are_the_same_after_every_way_that_a_reader_travels(plain, given_options, more):
    if "quantization_config" in given_options:
        given_options = {"quantization_config": {**more, **given_options["quantization_config"]}}
    reader = replace(plain.reader, loading=Loading(**given_options))
    direction = replace(plain, reader=reader)
    files = direction._files(None)
    assert _unpack(files[CONFIG_FILE], files[TENSOR_FILE], "here").reader == reader
    fn = pickle.loads(pickle.dumps(LegendMarginFn(direction)))
    assert fn.directions[""].reader == reader
    assert hash(reader) == hash(replace(reader, loading=Loading(**given_options)))
    # Not a score of the one is taken for a score of the other.
    assert _digest(direction) != _digest(plain)
    assert deciding(reader, None) != deciding(plain.reader, None)
    assert reader.name != plain.reader.name
    for one, there in ((direction, True), (plain, False)):
        assert ("loaded from, or quantised by" in one._files(None)["README.md"].decode()) is there
        assert ("loaded" in summary(one)) is there


def test_every_option_decides_a_key_of_its_own(plain):
    loadings = [None, Loading("a.gguf"), Loading("b.gguf"), Loading(None, INT8)]
    loadings.append(Loading(None, {**INT8, "llm_int8_threshold": 0.0}))
    readers = [replace(plain.reader, loading=loading) for loading in loadings]
    assert len({_digest(replace(plain, reader=reader)) for reader in readers}) == len(loadings)
    assert len({json.dumps(deciding(reader, None)) for reader in readers}) == len(loadings)


def test_a_class_of_transformers_is_the_same_as_its_plain_values():
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_8bit=True)
    assert Loading(None, config) == Loading(None, config.to_dict())
    assert Loading(None, config).quantization_config["load_in_8bit"] is True


# GGUF files.


def test_a_gguf_file_gives_the_numbers_of_the_weights_in_it(plain, of_gguf, ggufs, tmp_path):
    np.testing.assert_allclose(of_gguf.vector, plain.vector, atol=1e-6)
    np.testing.assert_allclose(raw(LegendMarginFn(of_gguf)), raw(LegendMarginFn(plain)), atol=1e-5)
    # The control: the other file, by the same vector.
    other = fit_direction(PAIRS, model=ggufs, gguf_file="other.gguf", **FIT)
    assert (
        np.abs(raw(LegendMarginFn(other)) - raw(LegendMarginFn(plain))).max() > 0.2 * raw(LegendMarginFn(plain)).std()
    )
    assert other.reader.weights_sha256 != of_gguf.reader.weights_sha256
    # Saved and loaded with the folder given again.
    of_gguf.save_pretrained(tmp_path / "direction")
    again = Direction.from_pretrained(tmp_path / "direction", model=ggufs)
    assert again.reader == of_gguf.reader
    np.testing.assert_array_equal(raw(LegendMarginFn(again)), raw(LegendMarginFn(of_gguf)))


def test_the_file_is_the_models_identity(of_gguf, ggufs, tiny_llama, demo, tmp_path):
    shutil.copy(ggufs / FILE, tmp_path)
    shutil.copytree(demo, tmp_path, dirs_exist_ok=True)  # another model beside it, with another tokenizer
    elsewhere = of_gguf.with_model(tmp_path)
    np.testing.assert_array_equal(raw(LegendMarginFn(elsewhere)), raw(LegendMarginFn(of_gguf)))
    shutil.copy(ggufs / "other.gguf", tmp_path / FILE)
    with pytest.raises(ValueError, match="is another one: its weights have sha256"):
        of_gguf.with_model(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"has no '{FILE}'; there are no GGUF files"):
        of_gguf.with_model(tiny_llama)


def test_a_gguf_file_of_the_hub(hub, of_gguf, ggufs, tmp_path, monkeypatch):
    from huggingface_hub import HfApi

    HfApi().create_repo("user/tiny-gguf", exist_ok=True)
    commit = HfApi().upload_folder(repo_id="user/tiny-gguf", folder_path=ggufs).oid
    shutil.copy(ggufs / "other.gguf", tmp_path / FILE)
    monkeypatch.chdir(tmp_path)  # of a bare name transformers would take this one
    close_readers()
    there = fit_direction(PAIRS, model="user/tiny-gguf", gguf_file=FILE, **FIT)
    assert (there.reader.model, there.reader.revision) == ("user/tiny-gguf", commit)
    assert there.reader.weights_sha256 == of_gguf.reader.weights_sha256
    np.testing.assert_array_equal(there.vector, of_gguf.vector)
    # The folder's direction is pushed as one of the Hub's file, not of another file.
    pushed = of_gguf.push_to_hub("user/of-gguf", model_id="user/tiny-gguf")
    assert pushed.reader == there.reader
    assert Direction.from_pretrained("user/of-gguf").reader.gguf_file == FILE
    with pytest.raises(FileNotFoundError, match=f"has no `no.gguf` at commit .* there are 'other.gguf', '{FILE}'"):
        describe_model("user/tiny-gguf", loading=Loading("no.gguf"))
    with pytest.raises(FileNotFoundError, match=r"has no `config.json`; the GGUF files there are .*name one of them"):
        describe_model("user/tiny-gguf")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"gguf_file": "/etc/x.gguf"}, "give the name of a .gguf file inside `model`"),
        ({"gguf_file": "../x.gguf"}, "give the name of a .gguf file inside `model`"),
        ({"gguf_file": "model.safetensors"}, "give the name of a .gguf file inside `model`"),
        ({"gguf_file": "x-00001-of-00003.gguf"}, "one part of several; join them"),
        ({"gguf_file": "x.gguf", "quantization_config": INT8}, "is quantised already: leave one out"),
        ({"quantization_config": {"load_in_8bit": True}}, '`quantization_config` is .* such as {"quant_method"'),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "'mxfp4'; allowed are 'bitsandbytes', 'torchao'"),
        ({"quantization_config": {**INT8, "x": {1}}}, "is no JSON"),
        ({"quantization_config": {**INT8, "x": "y" * 20_000}}, "at most 10000 are allowed"),
        ({"device_map": "everywhere"}, "`device_map` is 'everywhere'; allowed are 'auto', 'balanced'"),
        ({"device_map": {}}, "`device_map` is {}; give 'auto', or a mapping"),
        ({"device_map": {"layers": "tpu"}}, "which names no device"),
        ({"device_map": "auto", "device": "cpu"}, "give one of the two"),
    ],
)
def test_an_option_that_is_not_allowed_is_refused_before_anything_is_read(given, message, tmp_path):
    options = {"device": None, **given}
    with pytest.raises(ValueError, match=message):
        fit_direction(PAIRS, model=tmp_path / "nowhere", **options)


def test_what_is_not_there_says_what_is(ggufs, tiny_llama, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"has no 'no.gguf'; the GGUF files there are 'other.gguf', '{FILE}'"):
        fit_direction(PAIRS, model=ggufs, gguf_file="no.gguf")
    with pytest.raises(ValueError, match="has no `config.json`.* or name a GGUF file of it by `gguf_file`"):
        fit_direction(PAIRS, model=ggufs)
    with pytest.raises(ValueError, match=f"is the file .*; give `model='.*'` and `gguf_file='{FILE}'`"):
        fit_direction(PAIRS, model=str(ggufs / FILE))
    (tmp_path / "bad.gguf").write_bytes(b"GGUF and then nothing")
    with pytest.raises(ValueError, match="the config of .* cannot be loaded"):
        fit_direction(PAIRS, model=tmp_path, gguf_file="bad.gguf")
    config = json.loads((tiny_llama / "config.json").read_text())
    shutil.copytree(tiny_llama, tmp_path / "done")
    (tmp_path / "done" / "config.json").write_text(json.dumps({**config, "quantization_config": INT8}))
    with pytest.raises(ValueError, match="is quantised already; leave it out"):
        fit_direction(PAIRS, model=tmp_path / "done", quantization_config=INT8)


def test_a_package_that_is_missing_names_its_extra(tiny_llama, ggufs, plain, monkeypatch):
    monkeypatch.setattr(loading_module, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs gguf and accelerate: `pip install 'legend-hf\[gguf\]'`"):
        fit_direction(PAIRS, model=ggufs, gguf_file=FILE)
    with pytest.raises(ImportError, match=r"needs bitsandbytes and accelerate: .*legend-hf\[bitsandbytes\]"):
        fit_direction(PAIRS, model=tiny_llama, quantization_config=INT8)
    with pytest.raises(ImportError, match=r"`device_map` needs accelerate: `pip install 'legend-hf\[accelerate\]'`"):
        raw(LegendMarginFn(plain, device_map="auto"))


@pytest.mark.parametrize("loading", [{"gguf_file": "../../x.gguf"}, {"quantization_config": {"quant_method": "hqq"}}])
def test_a_strangers_artifact_can_ask_for_no_other_file_and_no_other_method(plain, loading):
    forged = json.loads(plain._files(None)[CONFIG_FILE])
    forged["reader"]["loading"] = loading
    with pytest.raises(ArtifactError):
        _unpack(json.dumps(forged).encode(), plain._files(None)[TENSOR_FILE], "here")


# Parts of a model on several devices.


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}, SPREAD])
def test_where_the_parts_of_a_model_lie_changes_no_number_and_no_identity(device_map, plain, tiny_llama):
    close_readers()
    spread = LegendMarginFn(plain, device_map=device_map)
    np.testing.assert_allclose(raw(spread), raw(LegendMarginFn(plain)), atol=1e-6)
    fitted = fit_direction(PAIRS, model=tiny_llama, **{**FIT, "device": None}, device_map=device_map)
    np.testing.assert_allclose(fitted.vector, plain.vector, atol=1e-6)
    assert (fitted.reader, fitted.device_map) == (plain.reader, device_map)
    assert fitted.to_config()["reader"] == plain.to_config()["reader"]
    assert _digest(replace(plain, device_map=device_map)) == _digest(plain)
    assert spread._reading.deciding() == LegendMarginFn(plain)._reading.deciding()
    assert pickle.loads(pickle.dumps(spread)).directions[""].device_map == device_map
    assert fitted.score("a", "b c") == pytest.approx(plain.score("a", "b c"), abs=1e-5)


def test_blocks_on_the_disk_are_not_in_memory(tiny_llama):
    close_readers()
    reader = describe_model(tiny_llama, device="cpu")
    opened = open_reader(reader, Runtime(path=str(tiny_llama), device_map=SPREAD))
    where = {name.split(".")[1]: p.device.type for name, p in opened.model.named_parameters() if "layers" in name}
    assert where == {"0": "cpu", "1": "meta", "2": "meta"}
    assert opened.route.way == "tree"
    # It has been read through each layer, when it was tried out: nothing stayed behind.


def test_a_part_that_is_not_there_and_a_device_beside_a_map_are_refused(plain):
    named = "names 'model.layers', which .* does not have; the parts of the model without its head are 'embed_tokens', 'layers'"
    with pytest.raises(ValueError, match=named):
        raw(LegendMarginFn(plain, device_map={"": "cpu", "model.layers": "disk"}))
    with pytest.raises(ValueError, match="give one of the two: a map says all devices"):
        LegendScoreFn(replace(plain, device_map="auto"), device="cpu")
    from datasets import Dataset

    from legend_hf import annotate

    with pytest.raises(ValueError, match="reads on 'several devices' alone"):
        annotate(Dataset.from_list(PAIRS), LegendMarginFn(plain, device_map="auto"), devices=["cpu", "cpu"])


# Weights that are quantised as they are loaded.


def test_quantised_weights_are_read_from_fit_to_column(plain, quantised, tiny_llama, tmp_path):
    assert quantised.reader.loading.quantization_config == INT8
    assert quantised.facts.versions["bitsandbytes"]
    assert quantised.reader.weights_sha256 == plain.reader.weights_sha256
    opened = open_reader(quantised.reader, Runtime(path=str(tiny_llama), device="cpu"))
    assert {p.dtype for n, p in opened.model.named_parameters() if "proj" in n} == {torch.int8}
    quantised.save_pretrained(tmp_path)
    again = Direction.from_pretrained(tmp_path, model=tiny_llama)
    margins = raw(LegendMarginFn(again))
    np.testing.assert_array_equal(margins, raw(LegendMarginFn(quantised)))
    exact = raw(LegendMarginFn(plain))
    assert 0 < np.abs(margins - exact).max() < 0.2 * exact.std()
    assert np.corrcoef(margins, exact)[0, 1] > 0.9
    store = str(tmp_path / "scores.sqlite")
    raw(LegendMarginFn(plain, store=store))
    np.testing.assert_array_equal(raw(LegendMarginFn(quantised, store=store)), margins)  # none of the other's


def test_embeddings_are_read_by_the_same_options(tiny_llama, ggufs):
    columns = {name: [row[name] for row in PAIRS] for name in PAIRS[0]}
    fns = {
        "plain": PairSimilarityFn(tiny_llama, device="cpu"),
        "gguf": PairSimilarityFn(ggufs, gguf_file=FILE, device="cpu"),
        "spread": PairSimilarityFn(tiny_llama, device_map=SPREAD),
        "int8": PairSimilarityFn(tiny_llama, quantization_config=INT8, device="cpu"),
    }
    fns = {name: pickle.loads(pickle.dumps(fn)) for name, fn in fns.items()}
    found = {name: np.array(fn(columns)["pair_similarity"]) for name, fn in fns.items()}
    np.testing.assert_allclose(found["gguf"], found["plain"], atol=1e-5)
    np.testing.assert_allclose(found["spread"], found["plain"], atol=1e-5)
    assert 0 < np.abs(found["int8"] - found["plain"]).max() < 0.1
    with pytest.raises(ValueError, match="`gguf_file` is .*, but `model` is a Reader, which says its own"):
        PairSimilarityFn(fns["plain"]._reading.reader, gguf_file=FILE)


def test_the_shell_takes_the_same_options(ggufs, tmp_path):
    rows = tmp_path / "pairs.jsonl"
    rows.write_text("\n".join(map(json.dumps, PAIRS)))
    run = CliRunner().invoke
    options = ["--model", str(ggufs), "--gguf-file", FILE, "--no-store"]
    done = run(app, ["fit", str(rows), *options, "--output", str(tmp_path / "d"), "--device-map", "auto"])
    assert done.exit_code == 0, done.output
    assert f"loaded  {FILE}" in done.output
    done = run(app, ["fit", str(rows), *options, "--output", str(tmp_path / "e"), "--dry-run"])
    assert done.exit_code == 0, done.output
    mapped = ["--model", str(ggufs), "--device-map", '{"": "cpu"}', "--no-store"]
    done = run(app, ["annotate", str(rows), str(tmp_path / "d"), *mapped, "--output", str(tmp_path / "made")])
    assert done.exit_code == 0, done.output
    done = run(app, ["fit", str(rows), *options, "--output", str(tmp_path / "f"), "--quantization-config", "int8"])
    assert done.exit_code == 2
    assert "give an object as JSON" in done.output
