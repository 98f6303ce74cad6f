"""A dry run says what a run would read, skip and cost, and writes nothing; the run that follows does as it said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from builders import pair_rows
from datasets import Dataset, DatasetDict
from typer.testing import CliRunner

from legend_hf import LegendMarginFn, LegendScoreFn, annotate, fit_direction
from legend_hf.cli import app
from legend_hf.directions import estimate_fit
from legend_hf.margins import estimate
from legend_hf.preferences import PairSimilarityFn
from legend_hf.reading.reader import OpenReader, Runtime

GOOD = pair_rows([f"thing {i}" for i in range(12)])
BAD = [
    {"prompt": "And?", "chosen": "", "rejected": "No."},
    {"prompt": "And?", "chosen": "word " * 900, "rejected": "No."},
    {"prompt": "Or?", "chosen": "", "rejected": "Never."},
]
TALK = [
    {
        "prompt": [{"role": "user", "content": "Why?"}],
        "chosen": [{"role": "assistant", "content": "So."}],
        "rejected": [{"role": "assistant", "content": "No."}],
    }
]


@pytest.fixture(scope="module")
def direction(tiny_llama):
    return fit_direction(GOOD, model=str(tiny_llama), layer=2)


@pytest.fixture
def passes(monkeypatch):
    """Texts of each call that reads."""
    seen = []
    whole = OpenReader.read

    def read(self, texts, layers, **options):
        for index, vectors in whole(self, texts, layers, **options):
            seen.append(len(index))
            yield index, vectors

    monkeypatch.setattr(OpenReader, "read", read)
    return seen


def files(folder):
    return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in Path(folder).rglob("*")}


@pytest.mark.parametrize("batch_tokens", [40, 100_000])
def test_the_run_reads_what_was_said(direction, passes, batch_tokens):
    rows = Dataset.from_list([*GOOD, *GOOD[:3]])
    fn = LegendMarginFn(direction, batch_tokens=batch_tokens)
    said = estimate(rows, fn, batch_size=7)
    assert 0 < len(passes) <= 13, "no more than the sample"
    passes.clear()
    annotate(rows, fn, batch_size=7)
    assert (said.passes, said.unread) == (len(passes), sum(passes))
    assert (said.rows, said.texts) == (15, 30)
    assert said.seconds_between[0] <= said.seconds <= said.seconds_between[1]
    assert said.model_bytes > 4 * 32 * 300
    assert said.peak_bytes is None or said.peak_bytes > said.model_bytes


def test_rows_are_counted_by_kind_and_by_reason(direction):
    rows = [*GOOD, *BAD]
    said = estimate(DatasetDict({"train": Dataset.from_list(rows), "test": Dataset.from_list(TALK)}), direction)
    assert said.kinds == {
        "`chosen` and `rejected`: text, `prompt` beside": 12,
        "`chosen` and `rejected`: messages, `prompt` beside": 1,
    }
    assert [one.rows for one in said.refused] == [2, 1]
    assert said.refused[0].example.startswith("split 'train', row 12, column `chosen`: ")
    assert said.refused[1].example.startswith("split 'train', row 13, column `chosen`: ")
    assert said.rows == 16
    assert "3 cannot be read" in said.to_text()
    dialogues = [
        {"chosen": f"\n\nHuman: Hi.\n\nAssistant: {t}", "rejected": "\n\nHuman: Hi.\n\nAssistant: No."} for t in "ab"
    ]
    assert estimate(Dataset.from_list(dialogues), direction).kinds == {
        "`chosen` and `rejected`: text, prompt inside": 2
    }


def test_what_the_store_has_is_not_counted_and_none_is_made(direction, tmp_path):
    rows = Dataset.from_list([*GOOD, *GOOD])
    fn = LegendMarginFn(direction, store=tmp_path / "scores.sqlite")
    said = estimate(rows, fn, batch_size=5)
    assert said.unread == 24, "what repeats is found in the store"
    assert estimate(rows, LegendMarginFn(direction), batch_size=12).unread == 48, "the control"
    assert not list(tmp_path.iterdir())
    annotate(rows.select(range(4)), fn)
    before = files(tmp_path)
    assert before, "the control: a run makes one"
    assert estimate(rows, fn).unread == 16
    assert files(tmp_path) == before
    annotate(rows, fn)
    done = estimate(rows, fn)
    assert (done.unread, done.passes, done.seconds) == (0, 0, None)
    assert "time" not in done.to_text()


def test_every_transform_can_be_estimated(direction, tiny_llama):
    responses = Dataset.from_list([{"prompt": "Why?", "responses": ["So.", "No.", "Never."]}] * 3)
    said = estimate(responses, LegendScoreFn(direction))
    assert (said.kinds, said.unread) == ({"`responses`: text, `prompt` beside": 3}, 3)
    assert estimate(Dataset.from_list(GOOD), PairSimilarityFn(tiny_llama)).unread == 24
    with pytest.raises(ValueError, match="of a stream take some rows"):
        estimate(Dataset.from_list(GOOD).to_iterable_dataset(), direction)


def test_a_fit_reads_what_was_said(tiny_llama, passes):
    said = estimate_fit([*GOOD, *BAD], model=tiny_llama, runtime=Runtime(batch_tokens=40))
    assert len(passes) <= 13
    passes.clear()
    fit_direction([*GOOD, *BAD], model=str(tiny_llama), batch_tokens=40, on_error="skip")
    assert (said.passes, said.unread) == (len(passes), sum(passes))
    assert (said.rows, [one.rows for one in said.refused]) == (15, [2, 1])
    assert said.kept_bytes == 4 * 12 * 32, "one layer, since these prompts are too few to choose by"


def test_commands_that_only_try_write_nothing(direction, tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*GOOD, *BAD]))
    lists = [{"prompt": row["prompt"], "responses": [row["chosen"], row["rejected"]]} for row in GOOD]
    (tmp_path / "lists.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lists))
    direction.save_pretrained(tmp_path / "direction")
    commands = {
        "fit": ["pairs.jsonl", "--layer", "1"],
        "annotate": ["pairs.jsonl", tmp_path / "direction"],
        "score": ["lists.jsonl", tmp_path / "direction"],
    }
    for command, (rows, *options) in commands.items():
        given = [command, tmp_path / rows, *options, "--model", tiny_llama, "--output", tmp_path / "out"]
        before = files(tmp_path)
        told = CliRunner().invoke(app, [*map(str, given), "--dry-run"])
        assert told.exit_code == 0, told.output
        assert "forward pass" in told.stdout
        assert "on_error" not in told.stdout, "a shell has no such word, and here nothing stops at such a row"
        assert ("3 cannot be read" in told.stdout) == (rows == "pairs.jsonl")
        assert files(tmp_path) == before
        told = CliRunner().invoke(app, [*map(str, given), "--on-error", "skip"])
        assert told.exit_code == 0, told.output
        assert (tmp_path / "out").exists(), "the control: without it, it writes"
        assert (tmp_path / "assets").exists()
        shutil.rmtree(tmp_path / "out")
        shutil.rmtree(tmp_path / "assets")
