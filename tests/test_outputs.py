"""Nothing that others made, or that is read, is lost by what is written: known before the work, over every writer."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from builders import pair_rows
from datasets import Dataset, DatasetDict, Value, load_dataset
from tiny_causal import CHAT, save_tiny_causal
from typer.testing import CliRunner

from legend_hf import Direction, annotate, fit_direction, save_annotated
from legend_hf.cli import app
from legend_hf.hub import outputs
from legend_hf.hub.rows import load_rows

THINGS = ("bread", "bikes", "paint", "tents", "maps", "soup")
PAIRS = pair_rows(THINGS, after_prompt=" ")


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def given(tmp_path_factory, tiny_llama):
    """A folder with all that the commands read."""
    folder = tmp_path_factory.mktemp("given")
    steps = "First, wait until noon, then look. Take the jar; it has no lid. Carry it out, sit down, and eat: later."
    rows = {
        "pairs": PAIRS,
        "responses": [{"prompt": f"Why {t}?", "responses": [f"Because of {t}.", f"Never mind {t}."]} for t in THINGS],
        "scored": [{"prompt": "Why?", "responses": ["Because.", "Never."], "scores": [0.5, -0.5]}],
        "questions": [{"prompt": f"What is {t}?"} for t in THINGS[:2]],
        "harms": [{"prompt": "How do I take the jar?", "response": steps}],
    }
    for name, some in rows.items():
        Dataset.from_list(some).to_json(folder / f"{name}.jsonl")
    margins = Dataset.from_list([{**pair, "margin": 0.1 * i} for i, pair in enumerate(PAIRS)])
    margins.cast_column("margin", Value("float32")).to_parquet(folder / "margins.parquet")
    fit_direction(PAIRS, model=str(tiny_llama)).save_pretrained(folder / "direction")
    save_tiny_causal(tiny_llama, folder / "causal", CHAT)
    return folder


# Every command that writes: what it reads first, and its other arguments; a folder or a file is written.
FOLDERS = {
    "fit": ("pairs.jsonl", ["--model", "{m}"]),
    "annotate": ("pairs.jsonl", ["{g}/direction", "--model", "{m}", "--no-store"]),
    "score": ("responses.jsonl", ["{g}/direction", "--model", "{m}", "--no-store"]),
    "select": ("pairs.jsonl", ["--keep", "random"]),
    "pairs": ("scored.jsonl", ["--rule", "best"]),
    "curriculum": ("margins.parquet", ["--mode", "global", "--stages", "2"]),
    "export": ("margins.parquet", ["--trainer", "openrlhf"]),
    "report": ("margins.parquet", ["--no-plots"]),
}
FILES = {
    "induce": ("questions.jsonl", ["--model", "{g}/causal", "--max-new-tokens", "3"]),
    "corrections": ("harms.jsonl", ["--model", "{g}/causal", "--max-new-tokens", "3"]),
    "corr-at-k": ("harms.jsonl", ["--model", "{g}/causal", "--max-new-tokens", "3", "--k", "5"]),
    "check": ("margins.parquet", ["--tokenizer", "{m}"]),
}
WRITERS = {**FOLDERS, **FILES}


@pytest.fixture
def call(given, tiny_llama, tmp_path):
    """Runs a command on a source with an output."""

    def called(command, output, *more, source=None):
        first, rest = WRITERS[command]
        return run(
            command,
            source or given / first,
            *[a.format(g=given, m=tiny_llama) for a in rest],
            "--output",
            output,
            *more,
        )

    return called


def name_of(command: str) -> str:
    return "out" if command in FOLDERS else "out.jsonl"


@pytest.mark.parametrize("command", FOLDERS)
def test_a_folder_of_others_is_refused_before_the_work_and_written_by_the_flag(command, call, tmp_path, monkeypatch):
    out = tmp_path / "out"
    (out / "data").mkdir(parents=True)
    (out / "data" / "train-00000-of-00001.parquet").write_bytes(b"precious")
    (out / "notes.txt").write_text("mine")
    (out / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: mine-*\n---\nMine.\n")
    before = contents(out)
    with monkeypatch.context() as patch:
        patch.setattr("legend_hf.hub.rows.load_rows", lambda *a, **k: pytest.fail("rows were read"))
        patch.setattr("legend_hf.cli.options.load", lambda *a, **k: pytest.fail("rows were read"))
        refused = call(command, out)
    assert refused.exit_code == 2, refused.output
    assert "files that were not written by this library" in refused.stderr
    assert "or pass `--overwrite`" in refused.stderr
    assert contents(out) == before
    done = call(command, out, "--overwrite")
    assert done.exit_code == 0, done.output
    after = contents(out)
    assert after["notes.txt"] == b"mine", "what is in nobody's way stays"
    assert b"Mine." in after["README.md"]
    if "load_dataset" in done.stdout:
        assert len(load_dataset(str(out))) >= 1


@pytest.mark.parametrize("command", FILES)
def test_a_file_of_others_is_refused_before_the_work_and_written_by_the_flag(command, call, tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text("precious")
    refused = call(command, out)
    assert refused.exit_code == 2, refused.output
    assert "something else made it" in refused.stderr
    assert contents(tmp_path) == {"out.jsonl": b"precious"}
    done = call(command, out, "--overwrite")
    assert done.exit_code in (0, 1), done.output
    assert out.read_bytes() != b"precious"


@pytest.mark.parametrize("how", ["itself", "link", "parent", "inside"])
@pytest.mark.parametrize("command", FOLDERS)
def test_what_is_read_is_no_place_to_write(command, how, call, given, tmp_path):
    source = tmp_path / "rows"
    source.mkdir()
    rows = load_rows(given / WRITERS[command][0], split="train")
    rows.to_parquet(source / "train.parquet")
    out = {"itself": source, "link": tmp_path / "link", "parent": tmp_path, "inside": source / "new"}[how]
    if how == "link":
        out.symlink_to(source, target_is_directory=True)
    before = contents(tmp_path)
    told = call(command, out, source=source)
    if command == "fit" and how == "inside":
        assert told.exit_code == 0, "a direction is no row"
        return
    assert told.exit_code == 2, told.output
    assert "read" in told.stderr
    assert contents(tmp_path) == before
    if how in ("itself", "link"):  # nothing gets what is read lost
        assert call(command, out, "--overwrite", source=source).exit_code == 2
        assert contents(tmp_path) == before


@pytest.mark.parametrize("command", FILES)
def test_the_file_that_is_read_is_no_place_to_write(command, call, given, tmp_path):
    rows = load_rows(given / WRITERS[command][0], split="train")
    rows.to_json(tmp_path / "rows.jsonl")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "rows.jsonl")
    before = contents(tmp_path)
    for out in ("rows.jsonl", "link.jsonl"):
        for flag in ([], ["--overwrite"]):
            told = call(command, tmp_path / out, *flag, source=tmp_path / "rows.jsonl")
            assert told.exit_code == 2, told.output
            assert contents(tmp_path) == before


@pytest.mark.parametrize("command", WRITERS)
def test_an_output_that_cannot_be_written_is_found_before_the_work(command, call, tmp_path, monkeypatch):
    monkeypatch.setattr("legend_hf.cli.options.load", lambda *a, **k: pytest.fail("rows were read"))
    (tmp_path / "file").write_text("a file")
    (tmp_path / "folder" / name_of(command)).mkdir(parents=True)
    places = [tmp_path / "file" / name_of(command), Path("/proc/nowhere") / name_of(command)]
    places.append(tmp_path / "file" if command in FOLDERS else tmp_path / "folder" / name_of(command))
    for place in places:
        told = call(command, place, "--overwrite")
        assert told.exit_code == 2, told.output
        assert "Traceback" not in told.output
        assert str(place) in told.stderr or str(place.parent) in told.stderr or "/proc" in told.stderr

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(outputs, "TemporaryDirectory", full)
    told = call(command, tmp_path / "new" / name_of(command))
    assert told.exit_code == 2
    assert "nothing can be written into" in told.stderr


@pytest.mark.parametrize("command", WRITERS)
def test_missing_parents_are_made_and_nothing_else_is_left(command, call, tmp_path):
    done = call(command, tmp_path / "a" / "b" / name_of(command))
    assert done.exit_code in (0, 1), done.output
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b"]
    assert not [p for p in tmp_path.rglob("*") if p.name.startswith(".")]


def test_an_earlier_direction_is_replaced_only_by_the_flag(call, tmp_path):
    assert call("fit", tmp_path / "d", "--layer", "1").exit_code == 0
    before = contents(tmp_path)
    told = call("fit", tmp_path / "d", "--layer", "2")
    assert told.exit_code == 2
    assert "holds an earlier result; give another, or pass `--overwrite`" in told.stderr
    assert contents(tmp_path) == before
    assert call("fit", tmp_path / "d", "--layer", "2", "--overwrite").exit_code == 0
    assert Direction.from_pretrained(tmp_path / "d").reader.layer == 2


def test_the_same_margins_are_saved_again_and_others_only_by_the_flag(given, tiny_llama, tmp_path):
    """And what is loaded is what was saved last: `datasets` knows a folder with a card by that card alone."""
    first = Direction.from_pretrained(given / "direction", model=tiny_llama)
    other = fit_direction(PAIRS, model=str(tiny_llama), layer=1)
    rows = DatasetDict(train=Dataset.from_list(PAIRS))
    out = tmp_path / "annotated"
    for _ in range(2):
        save_annotated(annotate(rows, first), out, direction=first)
    made = annotate(rows, other)
    with pytest.raises(ValueError, match="holds an earlier result; give another, or pass `overwrite=True`"):
        save_annotated(made, out, direction=other)
    assert load_dataset(str(out))["train"]["margin"][:] == annotate(rows, first)["train"]["margin"][:]
    save_annotated(made, out, direction=other, overwrite=True)
    assert load_dataset(str(out))["train"]["margin"][:] == made["train"]["margin"][:]
    # The same in a folder of the same name elsewhere.
    save_annotated(annotate(rows, first), tmp_path / "there" / "annotated", direction=first)
    got = load_dataset(str(tmp_path / "there" / "annotated"))["train"]["margin"][:]
    assert got == annotate(rows, first)["train"]["margin"][:]


def test_rows_that_lie_in_the_folder_are_not_written_over(given, tiny_llama, tmp_path):
    direction = Direction.from_pretrained(given / "direction", model=tiny_llama)
    Dataset.from_list(PAIRS).save_to_disk(tmp_path / "mine")
    before = contents(tmp_path)
    made = annotate(Dataset.load_from_disk(str(tmp_path / "mine")), direction)
    with pytest.raises(ValueError, match="holds what is read"):
        save_annotated(made, tmp_path / "mine", direction=direction)
    assert {name: contents(tmp_path)[name] for name in before} == before


@pytest.mark.parametrize("command", [*FOLDERS, "induce", "corrections", "corr-at-k"])
def test_what_is_printed_after_saving_is_true(command, call, tmp_path):
    """The promise is taken from the screen and executed."""
    done = call(command, tmp_path / name_of(command))
    assert done.exit_code == 0, done.output
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("Saved ")]
    if "; " in line:
        promise = line.partition("; ")[2].removesuffix(" gives it back")
        got = eval(promise, {"load_dataset": load_dataset})
        assert sum(map(len, got.values())) > 0
    else:
        paths = [Path(part.strip(" ,")) for part in line.removeprefix("Saved ").removeprefix("in ").split(", ")]
        assert all(path.exists() for path in paths)
        assert command in ("fit", "report")


@pytest.mark.parametrize("command", ["induce", "corrections", "corr-at-k"])
def test_a_file_that_could_not_be_loaded_again_is_refused_before_the_work(command, call, tmp_path):
    for name in ("x.txt", "x", "x.json", "x.parquet"):
        told = call(command, tmp_path / name)
        assert told.exit_code == 2
        assert "give a file that ends in `.jsonl`" in told.stderr
    assert list(tmp_path.iterdir()) == []


def test_two_outputs_are_two_files(call, given, tmp_path):
    told = call("corrections", tmp_path / "x.jsonl", "--pairs", tmp_path / "x.jsonl")
    assert told.exit_code == 2
    assert "give two files" in told.stderr
    taken = tmp_path / "taken.jsonl"
    taken.write_text("precious")
    told = call("corrections", tmp_path / "x.jsonl", "--pairs", taken)
    assert told.exit_code == 2
    assert taken.read_text() == "precious"
    assert not (tmp_path / "x.jsonl").exists()
    assert call("corrections", tmp_path / "x.jsonl", "--pairs", tmp_path / "p.jsonl").exit_code == 0
    assert call("corrections", tmp_path / "x.jsonl", "--pairs", tmp_path / "p.jsonl").exit_code == 0, "again, its own"


def test_the_shell_says_how_a_split_that_cannot_be_saved_is_taken(call, given, tmp_path):
    rows = load_rows(given / "pairs.jsonl", split="train")
    DatasetDict({"all": rows}).save_to_disk(tmp_path / "rows")
    for command in ("annotate", "select"):
        told = call(command, tmp_path / command, source=tmp_path / "rows")
        assert told.exit_code == 2, told.output
        assert "a split called 'all' could not be loaded again" in told.stderr
        assert "(`--split all`)" in told.stderr
        done = call(command, tmp_path / command, "--split", "all", source=tmp_path / "rows")
        assert done.exit_code == 0, done.output
        assert list(load_dataset(str(tmp_path / command))) == ["train"]


def test_the_tables_hold_every_command_that_writes():
    import click
    from typer.main import get_command

    def writes(command: click.Command) -> bool:
        return any("--output" in getattr(p, "opts", ()) for p in command.params)

    commands = get_command(app).commands
    pages = {"trace", "compare"}  # for a person to read: no rows, and no command reads them
    assert {name for name, command in commands.items() if writes(command)} == {*WRITERS} | pages
    assert all(any("--overwrite" in p.opts for p in command.params) for command in commands.values() if writes(command))


def test_a_store_is_not_merged_into_what_it_is_made_of(tmp_path):
    from legend_hf.margins.store import open_store

    open_store(tmp_path / "a.sqlite").contents()
    told = run("store", "merge", tmp_path / "a.sqlite", "--output", tmp_path / "a.sqlite")
    assert told.exit_code == 2, told.output
    (tmp_path / "d").mkdir()
    assert run("store", "merge", tmp_path / "a.sqlite", "--output", tmp_path / "d").exit_code == 2


def test_the_record_of_a_folder_that_is_none_is_nobodys(tmp_path):
    for text in ("", "[]", "{", '{"kind": 1}', '{"kind": "dataset", "files": [1]}', "\xff"):
        (tmp_path / outputs.MANIFEST).write_bytes(text.encode("latin-1"))
        assert outputs.read_manifest(tmp_path) is None
    outputs.write_manifest(tmp_path, "dataset", ["b", "a"], more=1)
    assert json.loads((tmp_path / outputs.MANIFEST).read_text())["files"] == ["a", "b"]
    assert os.listdir(tmp_path) == [outputs.MANIFEST]
