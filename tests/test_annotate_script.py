"""The script for jobs, as `uv` runs it: by its header, out of the wheel, on machines whose disks vanish."""

from __future__ import annotations

import os
import re
import runpy
import signal
import subprocess
import sys
import sysconfig
import time
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, load_dataset
from huggingface_hub import HfApi

from legend_hf import LegendMarginFn, annotate, fit_direction
from legend_hf.margins.remote_store import RemoteStore

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "annotate_margins.py"
ROWS = 60


def test_its_header_is_that_of_a_script_with_dependencies():
    """As PEP 723 reads it; what it names is this package and nothing that the package brings."""
    text = SCRIPT.read_text(encoding="utf-8")
    (found,) = re.finditer(r"(?m)^# /// script$\s(?P<content>(^#(| .*)$\s)+)^# ///$", text)
    header = tomllib.loads("".join(line[2:] for line in found["content"].splitlines(keepends=True)))
    package = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert header == {"requires-python": package["requires-python"], "dependencies": [package["name"]]}
    assert "hf jobs uv run" in text
    assert len(text.splitlines()) <= 150


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--device", "cuda"], "has no GPU that torch can use"),
        (["--shard", "9/8"], "allowed are '1/8' to '8/8'"),
        (["--checkpoint", "gs://bucket/run"], "install gcsfs"),
    ],
)
def test_what_would_be_in_vain_is_said_at_once(given, said, hub, monkeypatch):
    import torch

    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    words = [str(SCRIPT), "nobody/rows", "user/margins", "--direction", "nobody/direction", *given]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit, match=re.escape(said)):
        runpy.run_path(str(SCRIPT), run_name="__main__")


# What a run is made slow and talkative by, from outside: the script itself is run as it is.
SLOW = """
import sys, threading, time

def watch():
    while not {"legend_hf.margins.remote_store", "legend_hf.reading.reader"} <= set(sys.modules):
        time.sleep(0.01)
    time.sleep(0.2)  # until they are whole
    sys.modules["legend_hf.margins.remote_store"].CHUNK_ROWS = 10
    opened = sys.modules["legend_hf.reading.reader"].OpenReader
    read = opened.read
    def slow(*given, **named):
        for batch in read(*given, **named):
            with open(LOG, "ab", buffering=0) as log:
                log.write(b"%d\\n" % len(batch[0]))
            time.sleep(PAUSE)
            yield batch
    opened.read = slow

threading.Thread(target=watch, daemon=True).start()
"""


def packed(folder: Path, name: str, version: str, files: dict[str, str]) -> None:
    """A wheel of these files and nothing else."""
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    wheel = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    inside = {**files, f"{info}/METADATA": metadata, f"{info}/WHEEL": wheel}
    record = "".join(f"{file},,\n" for file in [*inside, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for file, content in {**inside, f"{info}/RECORD": record}.items():
            archive.writestr(file, content)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> Path:
    """An index in a folder: the package as it is built; of what it needs, what stands in this environment.

    `uv` resolves the script's header and installs what it finds into a new environment. Only what is under a package's
    name is not packed anew: an empty wheel of its version, and a path to where it lies.
    """
    from importlib.metadata import version

    folder = tmp_path_factory.mktemp("wheels")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        check=True, capture_output=True,
    )  # fmt: skip
    needs = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    for need in needs:
        name = re.match(r"[\w.-]+", need)[0]  # type: ignore[index]
        site = {"zz_tests.pth": sysconfig.get_path("purelib") + "\n"} if name == "torch" else {}
        packed(folder, name.replace("-", "_"), version(name).partition("+")[0], site)
    return folder


class Job:
    """The script on a machine that has nothing but `uv` and the Hub."""

    def __init__(self, wheels: Path, machine: Path, *given: Any, pause: float = 0.0) -> None:
        self.log = machine / "log"
        for name in ("home", "tmp", "patch"):
            (machine / name).mkdir(parents=True)
        (machine / "patch" / "sitecustomize.py").write_text(
            f"LOG, PAUSE = {str(self.log)!r}, {pause}\n" + SLOW, encoding="utf-8"
        )
        hidden = ("PYTHONPATH", "VIRTUAL_ENV", "UV_", "HF_HOME", "HF_DATASETS_CACHE")
        env = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
        env |= {
            "HF_HOME": str(machine / "home"), "TMPDIR": str(machine / "tmp"), "UV_CACHE_DIR": str(machine / "uv"),
            "PYTHONPATH": str(machine / "patch"),
        }  # fmt: skip
        uv = [sys.executable, "-m", "uv", "run", "--offline", "--no-index", "--find-links", str(wheels)]
        self.process = subprocess.Popen(
            [*uv, "--python", sys.executable, str(SCRIPT), *map(str, given)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, cwd=machine, start_new_session=True,
        )  # fmt: skip

    def read(self) -> int:
        """Texts that were read so far."""
        return sum(map(int, self.log.read_text().split())) if self.log.exists() else 0

    def done(self) -> str:
        out, err = self.process.communicate(timeout=170)
        assert self.process.returncode == 0, err
        return out + err


@pytest.mark.slow
def test_a_job_is_killed_and_goes_on_on_another_machine(wheels, tiny_llama, tmp_path, hub):
    pairs = [
        {"prompt": f"May I have {i} of them?", "chosen": f"Ask for {i}, kindly.", "rejected": f"Take {i} of them"}
        for i in range(ROWS)
    ]
    rows = Dataset.from_list(pairs)
    rows.push_to_hub("user/job-rows", private=False)
    direction = fit_direction(rows.select(range(8)), model=str(tiny_llama))
    direction.save_pretrained(tmp_path / "direction")
    (tmp_path / "bucket").mkdir()
    bucket = f"file://{tmp_path}/bucket/run"
    words = ["user/job-rows", "--direction", tmp_path / "direction", "--model", tiny_llama, "--checkpoint", bucket]

    first = Job(wheels, tmp_path / "a", *words, "user/job-margins", "--batch-size", 5, pause=0.3)
    end = time.monotonic() + 120
    while first.read() < 40 and time.monotonic() < end and first.process.poll() is None:
        time.sleep(0.01)
    os.killpg(first.process.pid, signal.SIGKILL)
    first.process.communicate()
    assert 40 <= first.read() < 2 * ROWS
    kept = sum(held.scores for held in RemoteStore(bucket, mirror=tmp_path / "m.sqlite").contents())
    assert kept >= first.read() - 20, "but for a chunk and what was under way"
    assert not HfApi().repo_exists("user/job-margins", repo_type="dataset")

    second = Job(wheels, tmp_path / "b", *words, "user/job-margins")
    assert "Pushed: " in second.done()
    assert second.read() == 2 * ROWS - kept
    pushed = load_dataset("user/job-margins", split="train")
    expected = annotate(rows, LegendMarginFn(direction))
    np.testing.assert_allclose(pushed["margin_raw"], expected["margin_raw"], atol=1e-4 * np.std(expected["margin_raw"]))
    card = HfApi().hf_hub_download("user/job-margins", "README.md", repo_type="dataset")
    text = Path(card).read_text(encoding="utf-8")
    assert "user/job-rows" in text
    assert re.search(r"60 rows in \d+ s of wall clock, [\d.]+ rows/s", text)
    assert HfApi().dataset_info("user/job-margins").private

    # Jobs of an array read nothing again, for the checkpoint has it all; each is a configuration of its own.
    third = Job(wheels, tmp_path / "c", *words, "user/job-parts", "--shard", "2/4", "--no-private")
    third.done()
    assert third.read() == 0
    part = load_dataset("user/job-parts", "default-00002-of-00004", split="train")
    assert part["prompt"][:] == rows["prompt"][15:30]
    assert not HfApi().dataset_info("user/job-parts").private
