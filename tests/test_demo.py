"""What ships for the demonstration: the annotator reads and cannot write, the rows are as promised, the job runs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from conftest import ROOT

DEMO = ROOT / "scripts" / "demo"


def lines(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_the_annotator_is_small_complete_and_without_a_head(demo):
    from transformers import AutoModel, AutoModelForCausalLM

    assert sum(f.stat().st_size for f in demo.iterdir()) < 8_000_000
    model, info = AutoModel.from_pretrained(demo, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not model.can_generate()
    assert not model.config.tie_word_embeddings
    _, info = AutoModelForCausalLM.from_pretrained(demo, output_loading_info=True)
    assert "lm_head.weight" in info["missing_keys"], "a head would have to be made up"


def test_there_are_enough_rows_of_every_shape():
    pairs = lines(DEMO / "contrast_pairs.jsonl")
    assert len(pairs) >= 60
    assert {frozenset(p) for p in pairs} == {frozenset({"prompt", "chosen", "rejected"})}
    shapes = {f.stem: lines(f) for f in (DEMO / "preferences").glob("*.jsonl")}
    assert set(shapes) == {"explicit", "dialogue", "messages", "safer"}
    assert sum(map(len, shapes.values())) >= 40
    longer = sum(len(p["chosen"]) > len(p["rejected"]) for p in pairs) / len(pairs)
    assert 0.3 < longer < 0.7, "length alone must not tell the side"


@pytest.mark.slow
def test_the_quickstart_leaves_what_it_says(tmp_path):
    done = subprocess.run(
        [sys.executable, str(DEMO / "quickstart.py"), "--output", str(tmp_path / "out")],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Margins: 62 rows" in done.stderr
    assert "scripts/quickstart --real" in done.stderr
    for name in ("direction/direction.safetensors", "direction/README.md", "annotated/README.md", "report/report.md"):
        assert (tmp_path / "out" / name).is_file()


@pytest.mark.real
def test_the_quickstart_on_the_real_model_beats_length_and_reports_both_directions(real_llm, tmp_path):
    done = subprocess.run(
        [sys.executable, str(DEMO / "quickstart.py"), "--real", "--output", str(tmp_path / "out")],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for what in ("the direction of these pairs", "the ready one, of hh-rlhf alone"):
        (line,) = [line for line in done.stderr.splitlines() if line.strip().startswith(what)]
        assert "62 rows, mean +" in line
    facts = json.loads((tmp_path / "out" / "direction" / "config.json").read_text())["facts"]
    assert facts["accuracy_interval"][0] > facts["length_accuracy"] + 0.1
    report = json.loads((tmp_path / "out" / "report" / "report.json").read_text())
    assert {split["column"] for split in report["splits"]} == {"margin_fitted", "margin_ready"}
    assert {f.name for f in (tmp_path / "out" / "report").glob("*.png")} >= {"layers-fitted.png", "layers-ready.png"}


def test_a_direction_on_the_annotator_tells_refusals_it_was_not_trained_on(demo, shared_data):
    """Real text and a real model: fitted on the shipped pairs, measured on pairs of other people's models."""
    from datasets import Dataset

    from legend_hf import LegendMarginFn, fit_direction

    direction = fit_direction(lines(DEMO / "contrast_pairs.jsonl"), model=str(demo), layer=2)
    rows = [r for r in lines(shared_data / "refuse_vs_comply.jsonl") if len(r["chosen"]) + len(r["rejected"]) < 2000][
        :60
    ]
    ds = Dataset.from_list([{k: r[k] for k in ("prompt", "chosen", "rejected")} for r in rows])
    margins = ds.map(LegendMarginFn(direction), batched=True)["margin"][:]
    assert sum(m > 0 for m in margins) > 0.8 * len(rows)
