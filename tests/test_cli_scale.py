"""`annotate --engine` and `--shard`: what the shell adds to streams and job arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from builders import pair_rows
from datasets import Dataset, load_dataset
from typer.testing import CliRunner

from legend_hf import annotate, fit_direction
from legend_hf.cli import app

ROWS = 25


@pytest.fixture(scope="module")
def direction(tiny_llama: Path, tmp_path_factory):
    fitted = fit_direction(pair_rows(), model=str(tiny_llama))
    folder = tmp_path_factory.mktemp("direction")
    fitted.save_pretrained(folder, overwrite=True)
    return fitted, folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> tuple[Dataset, Path]:
    made = Dataset.from_list(pair_rows([f"thing {i}" for i in range(ROWS)]))
    file = tmp_path_factory.mktemp("rows") / "rows.parquet"
    made.to_parquet(file, batch_size=4)
    return made, file


def run(direction, rows, output, *options: str) -> str:
    fitted, folder = direction
    words = ["annotate", str(rows[1]), str(folder), "--model", fitted.model_path, "--output", str(output), *options]
    done = CliRunner().invoke(app, words)
    return f"{done.exit_code} {done.output}"


def test_jobs_of_an_array_write_one_output_that_is_the_whole(direction, rows, tmp_path):
    for shard in ("2/3", "1/3", "3/3", "2/3"):
        assert run(direction, rows, tmp_path / "out", "--shard", shard).startswith("0 ")
    done = load_dataset(str(tmp_path / "out"), split="train")
    whole = annotate(rows[0], direction[0])
    assert done["prompt"][:] == whole["prompt"][:]
    assert np.allclose(done["margin"], whole["margin"], rtol=0, atol=1e-4 * np.std(whole["margin"]))
    # The control: a part that is missing is seen.
    next((tmp_path / "out" / "data").glob("train-00002-*")).unlink()
    assert len(load_dataset(str(tmp_path / "out"), split="train")) < ROWS


def test_a_stream_says_what_stands_where(direction, rows, tmp_path):
    said = run(direction, rows, tmp_path / "out", "--engine", "stream")
    assert said.startswith("0 ")
    assert f"train: {ROWS} rows annotated in {tmp_path}/out" in said
    url = f"memory://{tmp_path.name}/out"
    assert f"train: {ROWS} rows of part 1/1 annotated in {url}" in run(direction, rows, url, "--shard", "1/1")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--shard", "0/2"), "`--shard` is '0/2'; allowed are '1/8' to '8/8'"),
        (("--engine", "spark"), "`--engine` is 'spark'; allowed are 'stream', 'ray'"),
        (("--engine", "ray", "--shard", "1/2"), "which parts rows itself"),
        (("--engine", "ray", "--max-samples", "2"), "`--max-samples` is not for Ray, which reads whole files"),
        (("--engine", "ray", "--split", "test"), "`--split` is not for Ray"),
        (("--engine", "stream", "--checkpoint", "x"), "`--checkpoint` is of `--engine ray`"),
        (("--engine", "stream", "--shuffle"), "need all rows at once"),
        (("--engine", "stream", "--dry-run"), "`--dry-run` needs all rows at once"),
        (("--shard", "1/2", "--num-proc", "2"), "`--num-proc` needs all rows at once"),
        (("--shard", "1/2", "--devices", "auto"), "`--devices` needs all rows at once"),
    ],
)
def test_what_does_not_go_together_is_refused(direction, rows, tmp_path, options, said):
    answer = " ".join(run(direction, rows, tmp_path / "out", *options).split())
    assert answer.startswith(("2 ", "1 "))
    assert said in answer
    assert not (tmp_path / "out").exists()
