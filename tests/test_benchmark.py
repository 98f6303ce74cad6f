"""The benchmark: which model it takes, which ways it leaves out, and what its table says."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from conftest import ROOT

SAMPLE = ROOT / "scripts" / "demo" / "preferences" / "dialogue.jsonl"


@pytest.fixture(scope="module")
def benchmark():
    sys.path.insert(0, str(ROOT / "scripts"))
    import benchmark

    yield benchmark
    sys.path.remove(str(ROOT / "scripts"))


def parsed(benchmark, monkeypatch, *options):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *map(str, options)])
    return benchmark.parse()


def test_the_real_model_is_the_default_where_it_is_there(benchmark, tmp_path, monkeypatch):
    monkeypatch.setenv("LEGEND_HF_REAL_LLM", str(tmp_path))
    without = parsed(benchmark, monkeypatch)
    assert (without.model, without.arch) == (None, "smollm2-135m")
    (tmp_path / "config.json").write_text("{}")
    there = parsed(benchmark, monkeypatch)
    assert (there.model, there.arch) == (tmp_path, None)
    asked = parsed(benchmark, monkeypatch, "--arch", "tiny")
    assert (asked.model, asked.arch) == (None, "tiny")
    with pytest.raises(SystemExit):
        parsed(benchmark, monkeypatch, "--arch", "tiny", "--model", tmp_path)


def test_a_way_without_its_package_or_its_file_is_left_out_and_the_reason_said(benchmark, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    monkeypatch.setattr(benchmark, "find_spec", lambda name: None)
    assert benchmark.left_out(str(folder)).keys() == {"sentence-transformers", *benchmark.LLAMA_CPP}
    monkeypatch.setattr(benchmark, "find_spec", lambda name: object())
    missing = benchmark.left_out(str(folder))
    assert missing.keys() == set(benchmark.LLAMA_CPP)
    assert "`scripts/real_llm --gguf`" in missing["llama.cpp"]
    (tmp_path / "model.gguf").touch()
    assert benchmark.left_out(str(folder)) == {}


def test_margins_are_apart_by_as_much_as_they_differ(benchmark):
    exact = np.random.default_rng(0).normal(size=50)
    assert benchmark.apart(exact, exact) == {"largest_difference_over_std": 0.0, "spearman": pytest.approx(1)}
    assert benchmark.apart(-exact, exact)["spearman"] == pytest.approx(-1)
    moved = exact.copy()
    moved[3] += exact.std() / 4
    assert benchmark.apart(moved, exact)["largest_difference_over_std"] == pytest.approx(0.25)


@pytest.mark.slow
def test_the_whole_table_says_which_model_it_was_what_was_left_out_and_where_time_goes(
    benchmark, tmp_path, monkeypatch, capsys
):
    """In this process: one for each run would only cost time."""

    def here(way, folder, arguments, place):
        if way not in seen:
            rows = benchmark.read_rows(arguments.data, arguments.pairs)
            benchmark.run_once(way, benchmark.Job(folder, "cpu", rows, benchmark.strings_of(folder, rows)), place)
            took, peak = map(float, capsys.readouterr().out.split())
            seen[way] = took, peak, np.load(place / "vectors.npy")
        return seen[way]

    seen = {}
    out = tmp_path / "figures.json"
    monkeypatch.setattr(benchmark, "in_own_process", here)
    monkeypatch.setattr(benchmark, "MAX_LENGTH", 256)  # what is tried when a model is opened is that long
    monkeypatch.setattr(benchmark, "find_spec", lambda name: None)
    asked = ["--arch", "tiny", "--data", SAMPLE, "--pairs", 6, "--repeats", 1, "--profile", "--json", out]
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *map(str, [*asked, "--threads", 1])])
    benchmark.main()
    said, figures = capsys.readouterr().out, json.loads(out.read_text())
    assert said.startswith("tiny, random weights, 6 pairs of dialogue.jsonl")
    assert "Left out: (b) llama.cpp embeddings, last token, float32: no package `llama_cpp`" in said
    assert figures["ways"].keys() == {way for way in benchmark.WAYS if way not in figures["left_out"]}
    assert figures["agreement"]["ours"]["largest_difference_over_std"] < 1e-4
    assert figures["agreement"]["ours, bfloat16"]["largest_difference_over_std"] > 1e-4  # the control
    for dtype in ("float32", "bfloat16"):
        assert f"Where our time goes in {dtype}" in said
        assert all(seconds > 0 for part, seconds in figures["profile"][dtype].items() if part != "other")


@pytest.mark.real
def test_bfloat16_is_held_against_float32_along_the_ready_direction(benchmark, real_llm, monkeypatch):
    found = benchmark.ready_agreement(parsed(benchmark, monkeypatch, "--data", SAMPLE, "--model", real_llm))
    assert (found["pairs"], found["layer"]) == (15, 14)
    assert found["spearman"] > 0.97
    assert 1e-4 < found["largest_difference_over_std"] < 0.5  # it is bfloat16, and it is the same direction
