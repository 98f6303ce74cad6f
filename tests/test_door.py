"""No error that a user can mend gives a traceback: bad files, models, devices, judges of nothing, missing extras, Ctrl-C."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from builders import pair_rows
from datasets import Dataset, Value
from typer.testing import CliRunner

from legend_hf import Direction, fit_direction
from legend_hf.cli import app

THINGS = ("bread", "bikes", "paint", "tents", "maps", "soup")
PAIRS = pair_rows(THINGS, after_prompt=" ")
OTHERS = [{"ask": row["prompt"], "good": row["chosen"], "bad": row["rejected"]} for row in PAIRS]


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def there(tmp_path_factory, tiny_llama):
    """A folder with good things and bad ones."""
    folder = tmp_path_factory.mktemp("door")
    Dataset.from_list(PAIRS).to_json(folder / "pairs.jsonl")
    Dataset.from_list(OTHERS).to_json(folder / "others.jsonl")
    margins = Dataset.from_list([{**pair, "margin": 0.1 * i} for i, pair in enumerate(PAIRS)])
    margins.cast_column("margin", Value("float32")).to_parquet(folder / "margins.parquet")
    fit_direction(PAIRS, model=str(tiny_llama)).save_pretrained(folder / "direction")
    (folder / "empty.jsonl").write_text("")
    (folder / "latin.jsonl").write_bytes('{"prompt": "é"}'.encode("latin-1"))
    (folder / "binary.jsonl").write_bytes(bytes(range(256)))
    (folder / "binary.parquet").write_bytes(bytes(range(256)))
    (folder / "nothing").mkdir()
    for name, file, content in (
        ("torn-weights", "model.safetensors", b"\xff" * 64),
        ("no-weights", "model.safetensors", None),
        ("torn-config", "config.json", b"{"),
        ("strange-config", "config.json", b'{"model_type": "no-such-thing"}'),
        ("torn-tokenizer", "tokenizer.json", b"{}"),
        ("no-tokenizer", "tokenizer.json", None),
    ):
        shutil.copytree(tiny_llama, folder / name)
        if content is None:
            (folder / name / file).unlink()
            (folder / name / "tokenizer_config.json").unlink(missing_ok=name == "no-weights")
        else:
            (folder / name / file).write_bytes(content)
    shutil.copytree(folder / "direction", folder / "torn-direction")
    (folder / "torn-direction" / "direction.safetensors").write_bytes(b"\xff" * 64)
    (folder / "refusals.txt").write_bytes("Non, jamais, é.\n".encode("latin-1"))
    (folder / "noted.jsonl").write_bytes((folder / "pairs.jsonl").read_bytes())
    (folder / "noted.jsonl.source").write_text("[")
    return folder


def test_columns_of_other_names_can_be_fitted_on(there, tiny_llama, tmp_path):
    names = ["--prompt-column", "ask", "--chosen-column", "good", "--rejected-column", "bad"]
    done = run("fit", there / "others.jsonl", "--model", tiny_llama, "--output", tmp_path / "d", *names)
    assert done.exit_code == 0, done.output
    got = Direction.from_pretrained(tmp_path / "d")
    assert got.vector.tobytes() == Direction.from_pretrained(there / "direction").vector.tobytes()
    # The control: without them the error says what to give, and that is an option here.
    told = run("fit", there / "others.jsonl", "--model", tiny_llama, "--output", tmp_path / "e")
    assert told.exit_code == 2
    assert "-column" in told.stderr
    assert "_column=" not in told.stderr


FIT = ["fit", "{d}/pairs.jsonl", "--model", "{m}", "--output", "{o}"]
ANNOTATE = ["annotate", "{d}/pairs.jsonl", "{d}/direction", "--model", "{m}", "--output", "{o}"]
BAD = [
    *([*FIT, "--device", device] for device in ("cuda", "cuda:9", "cuda:x", "gpu", "mps", "meta", "")),
    [*ANNOTATE, "--no-store", "--device", "cuda"],
    *(["fit", "{d}/" + name, *FIT[2:]] for name in ("empty.jsonl", "latin.jsonl", "binary.jsonl", "binary.parquet")),
    *(["fit", "{d}/" + name, *FIT[2:]] for name in ("nothing", "direction", "pairs.jsonl/x", "noted.jsonl")),
    *(
        ["fit", "{d}/pairs.jsonl", "--model", "{d}/" + name, "--output", "{o}"]
        for name in (
            "torn-weights", "no-weights", "torn-config", "strange-config", "torn-tokenizer", "no-tokenizer", "nothing",
            "pairs.jsonl", "direction", "not-there",
        )
    ),
    *([*FIT, *more] for more in (["--dtype", "float8"], ["--max-length", "-1"], ["--layer", "x"], ["--batch-tokens", "0"])),
    *(["annotate", "{d}/pairs.jsonl", "{d}/" + name, "--model", "{m}", "--output", "{o}"] for name in ("torn-direction", "nothing", "pairs.jsonl")),
    [*ANNOTATE, "--store", "{d}/nothing"],
    [*ANNOTATE, "--num-proc", "two"],
    ["report", "{d}/margins.parquet", "--direction", "{d}/torn-direction"],
    ["report", "{d}/pairs.jsonl"],
    ["push", "{d}/nothing", "{d}/direction", "user/x"],
    ["push", "{d}/not-there", "{d}/direction", "user/x"],
    ["push", "{d}/direction", "{d}/direction", "user/x"],
    ["push-direction", "{d}/nothing", "user/x"],
    ["push-direction", "{d}/direction", "user/x"],
    ["annotate", "{d}/pairs.jsonl", "{d}/direction", "{d}/direction", "--output", "{o}"],
    *(["fit", "{d}/pairs.jsonl", *FIT[2:], *more] for more in (["--data-dir", "x"], ["--config", "x"], ["--max-samples", "0"])),
    ["inspect", "{d}/nothing"],
    ["inspect", "{d}/pairs.jsonl"],
    ["inspect", "http://127.0.0.1:1/x"],
    ["store", "show", "{d}/nothing"],
    ["induce", "{d}/pairs.jsonl", "--model", "{m}", "--output", "{o}.jsonl", "--refusals", "{d}/refusals.txt"],
    ["check", "{d}/margins.parquet", "--tokenizer", "{d}/torn-tokenizer"],
    ["check", "{d}/margins.parquet", "--tokenizer", "{d}/nothing"],
    ["select", "{d}/pairs.jsonl", "--model", "{d}/torn-weights", "--output", "{o}"],
    ["corr-at-k", "{d}/pairs.jsonl", "--model", "{d}/torn-config", "--output", "{o}.jsonl"],
    ["curriculum", "{d}/margins.parquet", "--by", "prompt", "--output", "{o}"],
    ["export", "{d}/nothing", "--trainer", "trl", "--output", "{o}"],
]  # fmt: skip


@pytest.mark.parametrize("arguments", BAD, ids=lambda a: " ".join(a[:1] + a[-2:]))
def test_no_error_of_a_user_gives_a_traceback(there, tiny_llama, tmp_path, hub, arguments, monkeypatch):
    monkeypatch.setattr("legend_hf.hub.transfer.ATTEMPTS", 1)
    told = run(*[a.format(d=there, m=tiny_llama, o=tmp_path / "out") for a in arguments])
    assert told.exit_code == 2, (told.output, told.exception)
    assert isinstance(told.exception, SystemExit)
    assert "Traceback" not in told.output
    lines = [line for line in told.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, told.stderr
    assert len(told.stderr) > len("Error: ") + 20


@pytest.mark.parametrize(("extra", "arguments"), [("matplotlib", ["report", "{d}/margins.parquet", "--output", "{o}"])])
def test_a_missing_extra_is_named_before_the_work(there, tmp_path, monkeypatch, extra, arguments):
    for name in list(sys.modules):
        if name.partition(".")[0] == extra:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, extra, None)
    monkeypatch.setattr("legend_hf.cli.options.load", lambda *a, **k: pytest.fail("rows were read"))
    told = run(*[a.format(d=there, o=tmp_path / "out") for a in arguments])
    assert told.exit_code == 2
    assert "pip install" in told.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "fault", [{"action": "status", "status": 500}, {"action": "drop"}, {"action": "status", "status": 403}]
)
def test_errors_of_the_hub_are_a_line(there, tiny_llama, tmp_path, hub, monkeypatch, fault):
    monkeypatch.setattr("legend_hf.hub.transfer.ATTEMPTS", 1)
    Dataset.from_list(PAIRS).push_to_hub("user/door-pairs")
    given = run(*[a.format(d=there, m=tiny_llama, o=tmp_path / "out") for a in ANNOTATE], "--no-store")
    assert given.exit_code == 0, given.output
    hub.faults.add(path="/", count=-1, **fault)
    for arguments in (
        ["inspect", "user/door-direction"],
        ["push", tmp_path / "out", there / "direction", "user/door-margins"],
        ["fit", there / "pairs.jsonl", "--model", "user/door-model", "--output", tmp_path / "d"],
        ["check", there / "margins.parquet", "--tokenizer", "user/door-model"],
    ):
        told = run(*arguments)
        assert told.exit_code == 2, (arguments, told.output, told.exception)
        assert "Traceback" not in told.output


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc to see what a process has loaded")
@pytest.mark.parametrize("loaded", ["_multiarray_umath", "libtorch_cpu"])
def test_ctrl_c_is_one_line_while_the_libraries_are_loaded_too(there, tiny_llama, tmp_path, loaded):
    process = subprocess.Popen(
        [sys.executable, "-m", "legend_hf.cli", "fit", str(there / "pairs.jsonl"), "--model", str(tiny_llama),
         "--output", str(tmp_path / "d")],
        stderr=subprocess.PIPE, text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    maps = Path(f"/proc/{process.pid}/maps")
    while process.poll() is None and loaded not in maps.read_text():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert said.splitlines()[-1] == "Stopped."
    assert "Traceback" not in said


def test_a_bug_keeps_its_traceback(there, monkeypatch):
    """The control."""

    def broken(*arguments, **options):
        raise KeyError(json.dumps("not the user's"))

    monkeypatch.setattr(Direction, "from_pretrained", broken)
    assert isinstance(run("inspect", there / "direction").exception, KeyError)
