"""The command line: each command does what its function does, and a user's error is one line and exit code 2."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
from builders import pair_rows
from typer.testing import CliRunner

from legend_hf import Direction, LegendMarginFn, annotate, fit_direction
from legend_hf.cli import app

PAIRS = pair_rows()


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def files(tmp_path_factory, tiny_llama):
    """A folder with pairs as JSON lines, CSV and Parquet, and a direction fitted by the command."""
    from datasets import Dataset

    folder = tmp_path_factory.mktemp("cli")
    ds = Dataset.from_list(PAIRS)
    ds.to_json(folder / "pairs.jsonl")
    ds.to_csv(folder / "pairs.csv")
    ds.to_parquet(folder / "pairs.parquet")
    done = run("fit", folder / "pairs.jsonl", "--model", tiny_llama, "--output", folder / "direction")
    assert done.exit_code == 0, done.output
    assert "6 pairs of 6 prompts, mean_difference" in done.output
    return folder


def test_fit_is_fit_direction(files, tiny_llama):
    expected = fit_direction(PAIRS, model=str(tiny_llama))
    got = Direction.from_pretrained(files / "direction")
    assert got.vector.tobytes() == expected.vector.tobytes()
    assert got.calibration == expected.calibration
    assert got.facts.pairs_source is None, "a path of this machine is no source to name in a card"


def test_fit_passes_its_options_on(files, tiny_llama, tmp_path):
    (tmp_path / "pairs.jsonl").write_bytes((files / "pairs.jsonl").read_bytes())
    (tmp_path / "pairs.jsonl.source").write_text('{"description": "answers of a model"}')
    done = run(
        "fit", tmp_path / "pairs.jsonl", "--model", tiny_llama, "--output", tmp_path / "d",
        "--layer", "-1", "--estimator", "whitened", "--debias", "length", "--calibration", "raw",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    got = Direction.from_pretrained(tmp_path / "d")
    assert (got.reader.layer, got.facts.estimator, got.facts.debias) == (3, "whitened", "length")
    assert got.calibration.kind == "raw"
    assert got.facts.pairs_source == "answers of a model", "as `induce` recorded it"


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_annotate_is_annotate(files, tiny_llama, tmp_path, kind):
    from datasets import Dataset, load_dataset

    done = run(
        "annotate",
        files / f"pairs.{kind}",
        files / "direction",
        "--model",
        tiny_llama,
        "--output",
        tmp_path / "out",
    )
    assert done.exit_code == 0, done.output
    expected = annotate(Dataset.from_list(PAIRS), Direction.from_pretrained(files / "direction", model=tiny_llama))
    got = load_dataset(str(tmp_path / "out"), split="train")
    assert got["margin"][:] == expected["margin"][:]
    assert (tmp_path / "out" / "README.md").is_file()


def test_push_and_inspect(files, tiny_llama, tmp_path, hub):
    from datasets import load_dataset
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo("user/cli-llama", exist_ok=True)
    api.upload_folder(repo_id="user/cli-llama", folder_path=tiny_llama)
    Direction.from_pretrained(files / "direction").push_to_hub("user/cli-direction", model_id="user/cli-llama")
    out = tmp_path / "out"
    assert run("annotate", files / "pairs.jsonl", "user/cli-direction", "--output", out).exit_code == 0
    done = run("push", out, "user/cli-direction", "user/cli-margins")
    assert done.exit_code == 0, done.output
    pushed = load_dataset("user/cli-margins", split="train")
    assert pushed["margin"][:] == load_dataset(str(out), split="train")["margin"][:]

    facts = json.loads(run("inspect", "user/cli-direction", "--json").output)
    assert facts["facts"]["pairs"] == 6
    assert "user/cli-llama@" in run("inspect", "user/cli-direction").output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "{d}/pairs.jsonl", "--model", "{m}", "--output", "{o}", "--pooling", "max"], "`--pooling` is 'max'; allowed are"),
        (["fit", "{d}/pairs.jsonl", "--model", "{m}", "--output", "{o}", "--layer", "best"], "`--layer` is 'best'; allowed are 'auto'"),
        (["fit", "{d}/pairs.jsonl", "--model", "{m}", "--output", "{o}", "--layer", "9"], "`--layer` is 9; this model has 3 blocks"),
        (["fit", "{d}/pairs.txt", "--model", "{m}", "--output", "{o}"], "'.txt'; allowed are .jsonl"),
        (["annotate", "{d}/new.jsonl", "{d}/direction", "--output", "{o}"], "say where it is: `--model FOLDER`"),
        (["annotate", "{d}/torn.jsonl", "{d}/direction", "--model", "{m}", "--output", "{o}"], "torn.jsonl' cannot be read"),
        (["annotate", "{d}/saved", "{d}/direction", "--model", "{m}", "--output", "{o}", "--split", "dev"], "holds the splits train"),
        (["annotate", "{d}/saved/train", "{d}/direction", "--model", "{m}", "--output", "{o}", "--split", "dev"], "holds one dataset without splits"),
        (["annotate", "{d}/pairs.jsonl", "{d}", "--output", "{o}"], "config.json"),
        (["annotate", "{d}/pairs.jsonl", "{d}/direction", "--model", "{m}", "--output", "{o}", "--chosen-column", "better"], "better"),
        (["annotate", "nowhere.jsonl", "{d}/direction", "--model", "{m}", "--output", "{o}"], "there is no file or folder 'nowhere.jsonl' here"),
        (["annotate", "{d}/nowhere", "{d}/direction", "--model", "{m}", "--output", "{o}"], "there is no file or folder '/"),
        (["annotate", "user/there-is-none", "{d}/direction", "--model", "{m}", "--output", "{o}"], "user/there-is-none"),
        (["inspect", "user/there-is-none"], "user/there-is-none"),
    ],
)  # fmt: skip
def test_user_errors_are_one_line_and_exit_code_2(files, tiny_llama, tmp_path, hub, arguments, message):
    from datasets import Dataset, DatasetDict

    (files / "pairs.txt").write_text("x")
    Dataset.from_list([{**PAIRS[0], "prompt": "Not annotated before."}]).to_json(files / "new.jsonl")
    (files / "torn.jsonl").write_text('{"prompt": "Te')
    DatasetDict({"train": Dataset.from_list(PAIRS)}).save_to_disk(files / "saved")
    done = run(*[a.format(d=files, m=tiny_llama, o=tmp_path / "out") for a in arguments])
    assert done.exit_code == 2, done.output
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert message in line
    assert "Traceback" not in done.output
    assert not re.search(r"from_pretrained|`[a-z_]+=", line), "no Python for those who sit at a shell"


def test_a_bug_keeps_its_traceback(files, monkeypatch):
    def broken(*arguments, **options):
        raise KeyError("not the user's")

    monkeypatch.setattr(Direction, "from_pretrained", broken)
    assert isinstance(run("inspect", files / "direction").exception, KeyError)


@pytest.mark.parametrize(
    "command", ["induce", "fit", "annotate", "report", "push", "push-direction", "inspect", "store show"]
)
def test_help_shows_an_example(command):
    done = run(*command.split(), "--help")
    assert done.exit_code == 0
    assert f"Example: legend-hf {command}" in " ".join(done.output.split())
    assert command.split()[0] in run("--help").output


def test_help_costs_no_heavy_import():
    code = "import sys, legend_hf.cli; print(*{'torch', 'transformers', 'datasets', 'pandas'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"
    # The control: this would notice.
    code = code.replace("legend_hf.cli", "datasets")
    assert "datasets" in subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_the_module_and_the_script_are_the_same_door():
    from importlib.metadata import entry_points

    import legend_hf.cli

    (script,) = entry_points(group="console_scripts", name="legend-hf")
    assert script.load() is legend_hf.cli.main
    module = [sys.executable, "-m", "legend_hf.cli", "--help"]
    said = subprocess.run(module, capture_output=True, text=True, check=True).stdout
    assert "annotate" in said
    assert "curriculum" in said


def test_progress_bars_obey_the_datasets_switch(files, tiny_llama, tmp_path):
    def stderr(**env):
        return subprocess.run(
            [sys.executable, "-m", "legend_hf.cli", "fit", str(files / "pairs.jsonl"), "--model", str(tiny_llama),
             "--output", str(tmp_path / f"d{len(env)}")],
            capture_output=True, text=True, check=True,
            env={**{k: v for k, v in os.environ.items() if k != "HF_DATASETS_DISABLE_PROGRESS_BARS"}, **env},
        ).stderr  # fmt: skip

    assert "Reading pairs" in stderr()
    assert "Reading pairs" not in stderr(HF_DATASETS_DISABLE_PROGRESS_BARS="1")


def test_the_numbers_of_the_command_are_those_of_map(files, tiny_llama):
    from datasets import Dataset

    fn = LegendMarginFn(files / "direction", model=tiny_llama)
    ds = Dataset.from_list(PAIRS)
    assert annotate(ds, fn)["margin"][:] == ds.map(fn, batched=True)["margin"][:]
