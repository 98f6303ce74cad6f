"""The shell's own ways: which dataset, which part of it, how much, with several directions, on a narrow terminal."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import subprocess
import sys

import pytest
from builders import pair_rows
from datasets import Dataset, Value, load_dataset
from huggingface_hub import HfApi
from typer.testing import CliRunner

import legend_hf
from legend_hf import Direction, LegendMarginFn, annotate, fit_direction
from legend_hf.cli import app
from legend_hf.cli.door import COMMANDS
from legend_hf.cli.options import Rows

PAIRS = pair_rows(after_prompt=" ")
DATASET = ["config", "data_dir", "data_files", "split", "revision", "max_samples", "shuffle", "seed"]


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def done(*arguments):
    told = run(*arguments)
    assert told.exit_code == 0, (told.output, told.exception)
    return told


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def there(tmp_path_factory, tiny_llama):
    """Rows in a folder with two parts, and two directions."""
    folder = tmp_path_factory.mktemp("shell")
    for part, rows in (("mild", PAIRS), ("wild", pair_rows(["darts", "kites"], how="in spring"))):
        (folder / "rows" / part).mkdir(parents=True)
        (folder / "rows" / part / "train.jsonl").write_text(jsonl(rows))
    (folder / "pairs.jsonl").write_text(jsonl(PAIRS))
    fit_direction(PAIRS, model=str(tiny_llama)).save_pretrained(folder / "one")
    fit_direction(PAIRS[::-1], model=str(tiny_llama), layer=1).save_pretrained(folder / "two")
    return folder


# -- Which rows ----------------------------------------------------------------------------------------------


def test_wherever_a_dataset_is_named_its_parts_can_be():
    named = {name: door for name, door in COMMANDS.items() if "split" in door.words}
    assert {"fit", "annotate", "score", "report", "induce", "select", "pairs", "curriculum", "corrections", "corr-at-k",
            "export", "check"} <= {*named}  # fmt: skip
    for name, door in named.items():
        assert {*DATASET} <= {*door.words}, name
    assert "data_dir" not in COMMANDS["inspect"].words, "the control"


@pytest.mark.parametrize("where", ["folder", "hub"])
def test_a_part_of_a_dataset_is_read_and_nothing_else(there, where, tmp_path, hub):
    source = there / "rows"
    if where == "hub":
        HfApi().create_repo(source := "user/shell-rows", repo_type="dataset", exist_ok=True)
        HfApi().upload_folder(repo_id=source, repo_type="dataset", folder_path=there / "rows")
    wild = pair_rows(["darts", "kites"], how="in spring")
    assert Rows(source, data_dir="wild").load()["train"].to_list() == wild
    assert Rows(source, data_files=["wild/train.jsonl"]).load()["train"].to_list() == wild
    assert len(Rows(source, data_files=["wild/train.jsonl", "mild/train.jsonl"]).load()["train"]) == 8
    assert len(Rows(source).load()["train"]) == 8, "the control"
    if where == "hub":
        first = HfApi().list_repo_commits(source, repo_type="dataset")[0].commit_id
        HfApi().delete_file("mild/train.jsonl", source, repo_type="dataset")
        assert len(Rows(source).load()["train"]) == 2
        assert len(Rows(source, revision=first).load()["train"]) == 8
    given = ["export", source, "--trainer", "openrlhf", "--output", tmp_path / "out", "--data-dir", "nowhere"]
    assert run(*given).exit_code == 2


@pytest.mark.parametrize(
    ("source", "options"),
    [
        ("pairs.jsonl", ["--data-dir", "mild"]),
        ("pairs.jsonl", ["--data-files", "x.jsonl"]),
        ("pairs.jsonl", ["--config", "default"]),
        ("pairs.jsonl", ["--revision", "main"]),
        ("rows", ["--revision", "main"]),
        ("saved", ["--data-dir", "train"]),
    ],
)
def test_a_part_of_what_has_none_is_refused_and_not_passed_over(there, tmp_path, source, options):
    Dataset.from_list(PAIRS).save_to_disk(there / "saved")
    told = run("export", there / source, "--trainer", "trl", "--output", tmp_path / "out", *options)
    assert told.exit_code == 2
    assert f"`{options[0]}` is " in told.stderr
    assert f"leave `{options[0]}` out" in told.stderr


def test_some_rows_are_the_first_ones_or_drawn_by_a_seed(there):
    whole = Rows(there / "pairs.jsonl").load()["train"].to_list()
    assert whole == PAIRS
    assert Rows(there / "pairs.jsonl", max_samples=2).load()["train"].to_list() == PAIRS[:2]
    assert Rows(there / "pairs.jsonl", max_samples=99).load()["train"].to_list() == PAIRS
    drawn = {
        seed: Rows(there / "pairs.jsonl", shuffle=True, seed=seed, max_samples=4).load()["train"].to_list()
        for seed in (0, 1)
    }
    assert drawn[0] != drawn[1]
    assert drawn[0] == Rows(there / "pairs.jsonl", shuffle=True, max_samples=4).load()["train"].to_list()
    assert all(row in PAIRS for rows in drawn.values() for row in rows)


def test_one_seed_is_that_of_the_rows_and_of_the_function(there, tiny_llama, tmp_path):
    given = ["fit", there / "pairs.jsonl", "--model", tiny_llama, "--no-store", "--max-samples", "5", "--shuffle"]
    done(*given, "--seed", "3", "--output", tmp_path / "d")
    facts = Direction.from_pretrained(tmp_path / "d").facts
    assert (facts.pairs, facts.seed) == (5, 3)


# -- With what, and whereto ----------------------------------------------------------------------------------


def test_every_example_says_what_then_with_what_then_whereto():
    """What is read comes first, `--output` or a repository last; only switches may follow."""
    for name, door in COMMANDS.items():
        words = door.example.split()[len(name.split()) :]
        places = [w.name for w in door.words.values() if w.argument]
        assert places == sorted(places, key=lambda w: w == "repo_id"), name
        if "--output" in words and name not in ("annotate", "score", "select"):
            assert not [w for w in words[words.index("--output") :] if w in ("--model", "--direction", "--trainer")], (
                name
            )


def test_several_directions_are_read_at_once(there, tiny_llama, tmp_path):
    given = ["annotate", there / "pairs.jsonl", f"safety={there / 'one'}", f"other={there / 'two'}"]
    done(*given, "--model", tiny_llama, "--no-store", "--output", tmp_path / "out")
    directions = {"safety": Direction.from_pretrained(there / "one"), "other": Direction.from_pretrained(there / "two")}
    expected = annotate(Dataset.from_list(PAIRS), LegendMarginFn(directions, model=tiny_llama))
    got = load_dataset(str(tmp_path / "out"), split="train")
    assert "margin_safety" in got.column_names
    assert got.to_list() == expected.to_list()
    told = done("report", tmp_path / "out", "--direction", given[2], "--direction", given[3])
    assert "margin_other" in told.stdout
    for bad in ([there / "one", there / "two"], [f"a={there / 'one'}", f"a={there / 'two'}"]):
        told = run("annotate", there / "pairs.jsonl", *bad, "--output", tmp_path / "none")
        assert told.exit_code == 2
        assert "safety=you/direction" in told.stderr


def test_a_direction_is_pushed_and_told_from_a_dataset(there, tiny_llama, tmp_path, hub):
    HfApi().create_repo("user/shell-llama", exist_ok=True)
    HfApi().upload_folder(repo_id="user/shell-llama", folder_path=tiny_llama)
    told = run("push", there / "one", there / "one", "user/shell-direction")
    assert told.exit_code == 2
    assert f"`legend-hf push-direction {there / 'one'} user/shell-direction`" in told.stderr
    told = run("push-direction", there / "one", "user/shell-direction")
    assert told.exit_code == 2
    assert "--model-id" in told.stderr
    assert not HfApi().repo_exists("user/shell-direction")
    done("push-direction", there / "one", "user/shell-direction", "--model-id", "user/shell-llama")
    got = Direction.from_pretrained("user/shell-direction")
    assert got.vector.tobytes() == Direction.from_pretrained(there / "one").vector.tobytes()
    assert HfApi().model_info("user/shell-direction").private
    done("push-direction", there / "one", "user/shell-open", "--model-id", "user/shell-llama", "--public")
    assert not HfApi().model_info("user/shell-open").private


def test_version_and_short_help():
    assert done("--version").stdout == f"legend-hf {legend_hf.__version__}\n"
    for command in ([], ["store"], *(name.split() for name in COMMANDS)):
        assert done(*command, "-h").stdout == done(*command, "--help").stdout
    assert run("fit", "-v").exit_code == 2, "the control"


# -- What is said --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "folder", "refusals", "source", "card"])
def test_a_file_that_is_not_utf8_is_named_with_its_line(there, tiny_llama, tmp_path, kind):
    rows = {
        "jsonl": jsonl(PAIRS[:2]), "json": json.dumps(PAIRS[:2], indent=0), "csv": "prompt,chosen,rejected\na,b,c\n",
        "tsv": "prompt\tchosen\trejected\na\tb\tc\n",
    }  # fmt: skip
    text = rows.get(kind, jsonl(PAIRS[:2]))
    ending = kind if kind in rows else "jsonl"
    bad = f"{text}é".encode("latin-1")
    file = tmp_path / "rows" / f"train.{ending}"
    file.parent.mkdir()
    file.write_bytes(bad if kind in rows or kind == "folder" else text.encode())
    named = file
    given = ["fit", file.parent if kind == "folder" else file, "--model", tiny_llama, "--no-store"]
    if kind == "refusals":
        named = tmp_path / "refusals.txt"
        named.write_bytes(bad)
        given = ["induce", file, "--model", tiny_llama, "--refusals", named]
    if kind == "source":
        named = tmp_path / "rows" / "train.jsonl.source"
        named.write_bytes(bad)
    out = tmp_path / ("out.jsonl" if kind == "refusals" else "out")
    if kind == "card":
        out.mkdir()
        named = out / "README.md"
        named.write_bytes(bad)
        given += ["--overwrite"]
    told = run(*given, "--output", out)
    assert told.exit_code == 2, told.output
    assert f"'{named}' is not UTF-8: line {text.count(chr(10)) + 1} holds the byte 0xe9; " in told.stderr
    assert "iconv" in told.stderr
    assert "Reading pairs" not in told.stderr


def in_a_terminal(width, *arguments):
    """What a command shows on a terminal of that width."""
    ours, its = pty.openpty()
    env = {**os.environ, "COLUMNS": str(width), "TERM": "xterm"}
    command = [sys.executable, "-m", "legend_hf.cli", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=its, stderr=subprocess.DEVNULL, env=env)
    os.close(its)
    shown = b""
    with contextlib.suppress(OSError):  # which is how Linux says that nobody writes any more
        while part := os.read(ours, 65536):
            shown += part
    assert process.wait() == 0
    os.close(ours)
    return re.sub(r"\x1b\[[0-9;]*m", "", shown.decode()).replace("\r\n", "\n")


def test_tables_are_drawn_for_the_terminal(tmp_path):
    rows = [{**row, "margin": 0.1 * i - 0.2, "kind": "a|b <c>"} for i, row in enumerate(PAIRS)]
    Dataset.from_list(rows).cast_column("margin", Value("float32")).to_parquet(tmp_path / "margins.parquet")
    given = ["report", tmp_path / "margins.parquet", "--category-column", "kind"]
    shown = in_a_terminal(72, *given)
    assert max(map(len, shown.splitlines())) <= 72
    assert "| --- |" not in shown
    assert not re.search(r"&#?\w+;", shown)
    assert "a|b <c>" in shown
    plain = done(*given).stdout
    assert "| --- |" in plain, "the control: what goes into a file is Markdown"
    assert max(map(len, plain.splitlines())) > 150


def test_a_command_that_takes_one_direction_refuses_several(there, tiny_llama, tmp_path):
    given = ["trace", there / "pairs.jsonl", f"a={there / 'one'}", f"b={there / 'two'}", "--model", tiny_llama]
    told = run(*given, "--output", tmp_path / "page.html")
    assert told.exit_code == 2, (told.output, told.exception)
    assert "`DIRECTION` is a, b; give one of them" in told.stderr
