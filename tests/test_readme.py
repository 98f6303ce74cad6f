"""The README: every block of it runs, as it stands, and every script and option that it names is there."""

from __future__ import annotations

import json
import random
import re
import shlex
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import pytest
from builders import pair_rows
from tiny_causal import CHAT, save_tiny_causal
from typer.testing import CliRunner

from legend_hf.cli import app

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
THINGS = [
    f"{size} {thing}"
    for size in ("small", "large", "old", "new", "red", "own")
    for thing in ("tents", "maps", "pens", "jars")
]
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
# Whom the names on the Hub belong to; the loopback Hub lets its own user write.
OWNERS = re.compile(r"\b(HuggingFaceTB|Qwen|Anthropic|PKU-Alignment|openbmb|you)/(?=[\w-])")


def blocks(language: str, text: str = TEXT) -> list[str]:
    """The README's blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def commands(text: str = TEXT) -> list[list[str]]:
    """The words of every line of the README's shell blocks, without what stands behind `#`."""
    lines = "".join(blocks("bash", text)).replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def owned(text: str) -> str:
    return OWNERS.sub("user/readme-", text)


def put(repo: str, rows: list[dict[str, object]], folder: Path, file: str) -> None:
    from huggingface_hub import HfApi

    path = folder / repo / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    HfApi().create_repo(owned(repo), repo_type="dataset", exist_ok=True)
    HfApi().upload_folder(repo_id=owned(repo), repo_type="dataset", folder_path=folder / repo)


def real_rows(shared: Path, name: str, count: int) -> list[dict[str, object]]:
    with open(shared / f"{name}.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for _, line in zip(range(count), file, strict=False)]


def place(folder: Path, model: Path, shared: Path | None) -> None:
    """Puts what the README names on the loopback Hub: real rows where there are any, an empty response among them."""
    from huggingface_hub import HfApi

    pairs = pair_rows(THINGS)
    hh: list[dict[str, object]] = [
        {side: f"\n\nHuman: {row['prompt']}\n\nAssistant: {row[side]}" for side in ("chosen", "rejected")}
        for row in pairs
    ]
    pku: list[dict[str, object]] = [
        {
            "prompt": row["prompt"],
            "response_0": row["chosen"],
            "response_1": row["rejected"],
            "is_response_0_safe": True,
            "is_response_1_safe": False,
            "better_response_id": 0,
            "safer_response_id": 0,
        }
        for row in pairs
    ]
    if shared:
        hh = real_rows(shared, "hh_harmless_raw", 16)
    hh.append({"chosen": "\n\nHuman: Hello.\n\nAssistant:", "rejected": "\n\nHuman: Hello.\n\nAssistant: Go away."})
    put("Anthropic/hh-rlhf", hh, folder, "harmless-base/train.jsonl")
    put("PKU-Alignment/PKU-SafeRLHF-10K", pku, folder, "train.jsonl")
    HfApi().create_repo(owned(MODEL), exist_ok=True)
    HfApi().upload_folder(
        repo_id=owned(MODEL), folder_path=model, allow_patterns=["*.json", "*.safetensors", "*.jinja"]
    )
    draw = random.Random(0)
    answered = [
        {"prompt": row["prompt"], "responses": draw.sample([row["chosen"], row["rejected"], "Perhaps."], 3)}
        for row in pairs
    ]
    put("you/several-responses", answered, folder, "train.jsonl")
    steps = (
        "First, wait until noon, then look. Take the jar, which has no lid. Carry it out, sit down, and eat all of it."
    )
    Path("harms.jsonl").write_text(
        "".join(json.dumps({"prompt": f"How do I take the {t}?", "response": steps}) + "\n" for t in THINGS[:3])
    )
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))


def runs_every_block(
    model: Path, shared: Path | None, folder: Path, leave_out: Collection[str] = ()
) -> dict[str, object]:
    place(folder / "hub", model, shared)
    known: dict[str, object] = {}
    for number, block in enumerate(blocks("python")):
        exec(compile(owned(block), f"README.md, Python block {number + 1}", "exec"), known)
    for words in commands():
        if words[0] == "legend-hf" and words[1] not in leave_out:
            told = CliRunner().invoke(app, [owned(word) for word in words[1:]])
            assert told.exit_code in ((0, 1) if words[1] == "check" else (0,)), (words, told.output, told.exception)
    return known


@pytest.mark.slow
def test_every_block_runs(hub, tiny_llama, tmp_path, monkeypatch):
    model = save_tiny_causal(tiny_llama, tmp_path / "model", CHAT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    shared = ROOT.parent / "shared" / "data"
    known = runs_every_block(model, shared if shared.is_dir() else None, tmp_path)
    rows = known["ds"]["train"]
    assert rows[0]["margin"] != 0
    assert rows[-1]["margin_status"] != "ok", "the empty response"


@pytest.mark.real
def test_every_block_runs_on_the_real_model(hub, real_llm, shared_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    # A dozen trainings of the whole model take a quarter of an hour here; the tiny one's are run above.
    runs_every_block(real_llm, shared_data, tmp_path, leave_out=["compare"])


def test_a_block_that_does_not_run_is_seen():
    """The control: blocks and commands are found, also those that would fail."""
    text = (
        "```python\nraise KeyError('x')\n```\n\n```bash\nscripts/nothing --here   # no\nlegend-hf no \\\n  way\n```\n"
    )
    with pytest.raises(KeyError, match="x"):
        exec(blocks("python", text)[0], {})
    assert commands(text) == [["scripts/nothing", "--here"], ["legend-hf", "no", "way"]]
    assert len(blocks("python")) > 3
    assert len(commands()) > 8


def test_every_script_and_option_in_a_block_is_there():
    for words in commands():
        if words[0] in ("pip", "legend-hf"):
            continue
        script = next((word for word in words if word.startswith("scripts/")), None)
        assert script is not None, words
        assert (ROOT / script).is_file(), words
        given = [word for word in words[words.index(script) + 1 :] if word.startswith("--")]
        source = (ROOT / script).read_text(encoding="utf-8")
        if script.endswith(".py") and given:
            told = subprocess.run([sys.executable, ROOT / script, "--help"], capture_output=True, text=True)
            source = told.stdout
        assert all(word in source for word in given), (words, "no such option")
