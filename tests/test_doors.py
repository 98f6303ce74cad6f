"""Commands are made from their functions: what there was is there, and signature and docstring say all the rest."""

from __future__ import annotations

import ast
import inspect
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path

import pytest
import typer
from datasets import Dataset
from tiny_causal import CHAT, save_tiny_causal
from typer.testing import CliRunner

import legend_hf
from legend_hf.cli import app
from legend_hf.cli.door import COMMANDS, Door
from legend_hf.cli.spelling import spelled
from legend_hf.cli.words import sentences

NEEDED = "it must be given"
COLUMNS = {"--prompt-column": "prompt", "--chosen-column": "chosen", "--rejected-column": "rejected"}
ROWS = {
    "--config": None, "--split": None, "--data-dir": None, "--data-files": None, "--revision": None,
    "--max-samples": None, "--shuffle": False, "--seed": 0,
}  # fmt: skip
STORE = {"--store": None, "--no-store": False}
# Every command that was written by hand, with what its options stood at where they were left out.
ONCE = {
    "induce": {
        "questions": NEEDED, "--model": NEEDED, "--output": NEEDED, "--model-revision": None, **ROWS,
        "--prompt-column": "prompt", "--category-column": "category", "--per-category": None, "--refusals": None,
        "--template": "auto", "--leave-out": None, "--max-new-tokens": 1024, "--batch-size": 16, "--dtype": "auto",
        "--seed": 0, "--device": None, "--overwrite": False,
    },
    "fit": {
        "pairs": NEEDED, "--model": NEEDED, "--output": NEEDED, "--model-revision": None, **ROWS, "--preset": None,
        "--template": None, "--layer": None, "--estimator": None, "--debias": None, "--calibration": None,
        "--pooling": None, "--eos": None, "--max-length": None, "--dtype": None, "--on-error": "raise", **COLUMNS,
        "--seed": 0, "--device": None, "--batch-tokens": None, "--overwrite": False, **STORE,
    },
    "annotate": {
        "dataset": NEEDED, "direction": NEEDED, "--output": NEEDED, "--direction-revision": None, "--model": None, **ROWS,
        "--scale": None, "--add": None, "--negative": "keep", "--on-error": "raise", "--overwrite": False, **COLUMNS,
        "--num-proc": None, "--device": None, "--batch-tokens": None, **STORE,
    },
    "score": {
        "dataset": NEEDED, "direction": NEEDED, "--output": NEEDED, "--direction-revision": None, "--model": None, **ROWS,
        "--add": None, "--on-error": "raise", "--overwrite": False, "--prompt-column": "prompt",
        "--responses-column": "responses", "--num-proc": None, "--device": None, "--batch-tokens": None, **STORE,
    },
    "report": {
        "dataset": NEEDED, "--direction": None, "--direction-revision": None, "--model": None, **ROWS, "--category-column": None,
        "--category": None, "--stability-pairs": None, "--ladders": None, "--output": None, "--plots": True,
        "--no-plots": True, "--excerpts": False, **COLUMNS, "--seed": 0, "--device": None, "--overwrite": False,
    },
    "push": {
        "folder": NEEDED, "direction": NEEDED, "repo_id": NEEDED, "--direction-revision": None, "--source": None,
        "--config-name": None, "--private": True, "--public": True,
    },
    "push-direction": {
        "folder": NEEDED, "repo_id": NEEDED, "--model-id": None, "--branch": None, "--private": True, "--public": True,
    },
    "inspect": {"direction": NEEDED, "--revision": None, "--json": False},
    "select": {
        "dataset": NEEDED, "--output": NEEDED, "--model": None, "--model-revision": None, **ROWS,
        "--keep": "dissimilar", "--fraction": 0.5, "--seed": 0, "--on-error": "raise", **COLUMNS, "--device": None,
        "--batch-tokens": None, "--overwrite": False,
    },
    "pairs": {
        "dataset": NEEDED, "--output": NEEDED, "--rule": "dissimilar", "--direction": None, "--direction-revision": None,
        "--model": None, "--model-revision": None, **ROWS, "--scores-column": "scores",
        "--responses-column": "responses", "--prompt-column": "prompt", "--on-error": "raise", "--seed": 0,
        "--device": None, "--batch-tokens": None, "--overwrite": False,
    },
    "curriculum": {
        "dataset": NEEDED, "--output": NEEDED, **ROWS, "--by": "margin", "--stages": None, "--mode": "per_prompt",
        "--order": "easy_first", "--negative": "hardest", **COLUMNS, "--overwrite": False,
    },
    "corrections": {
        "dataset": NEEDED, "--model": NEEDED, "--output": NEEDED, "--pairs": None, "--model-revision": None, **ROWS,
        "--prompt-column": "prompt", "--response-column": "response", "--cuts": 4, "--on-error": "raise",
        "--leave-out": None, "--template": "auto", "--max-new-tokens": 128, "--batch-size": 16, "--dtype": "auto",
        "--seed": 0, "--device": None, "--overwrite": False,
    },
    "corr-at-k": {
        "dataset": NEEDED, "--model": NEEDED, "--model-revision": None, "--judge": None, "--output": None, **ROWS,
        "--prompt-column": "prompt", "--response-column": "response", "--k": [10, 20, 30, 40, 50, 60, 70, 80],
        "--samples": 1, "--template": "auto", "--max-new-tokens": 32, "--batch-size": 16, "--dtype": "auto",
        "--seed": 0, "--device": None, "--overwrite": False,
    },
    "export": {
        "dataset": NEEDED, "--trainer": NEEDED, "--output": NEEDED, **ROWS, "--messages": False, "--weights": False,
        **COLUMNS, "--overwrite": False,
    },
    "check": {
        "dataset": NEEDED, "--tokenizer": NEEDED, **ROWS, "--max-length": 1024, "--model-revision": None,
        "--output": None, "--overwrite": False,
    },
    "compare": {
        "dataset": NEEDED, "--model": NEEDED, **ROWS, "--use": ["margin"], "--held-out": 0.25, "--seeds": 3,
        "--epochs": 1.0, "--batch-size": 8, "--learning-rate": 1e-4, "--max-length": 1024, "--model-revision": None,
        "--output": None, "--overwrite": False,
    },
    "trace": {
        "dataset": NEEDED, "direction": NEEDED, "--output": NEEDED, **ROWS, "--direction-revision": None,
        "--model": None, "--rows": "most-negative", "--most": 20, "--margin-column": "margin", **COLUMNS,
        "--device": None, "--overwrite": False,
    },
    "store show": {"path": None},
    "store prune": {"path": None, "--unused-days": 30.0, "--all": False},
    "store merge": {"stores": NEEDED, "--output": NEEDED},
    "store compact": {"url": NEEDED},
}  # fmt: skip


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def made(group, before=()):
    """Every command as typer has it, by its whole name."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from made(command, (*before, name))
        else:
            yield " ".join((*before, name)), command


@pytest.fixture(scope="module")
def commands():
    return dict(made(typer.main.get_command(app)))


def test_every_option_that_was_there_is_there_and_stands_at_the_same(commands):
    assert {*commands} == {*ONCE}
    for name, options in ONCE.items():
        there = {opt: p for p in commands[name].params for opt in (*p.opts, *p.secondary_opts)}
        assert options.keys() <= there.keys(), name
        for option, default in options.items():
            said = NEEDED if there[option].required else there[option].default
            left_to_the_function = said is None and f"{default} when left out" in (there[option].help or "")
            assert said == default or left_to_the_function, (name, option)


def test_no_command_takes_what_its_functions_do_not(commands):
    """The control: an option that is neither a function's nor the body's is no option."""
    for name, command in commands.items():
        assert {p.name for p in command.params} == {*COMMANDS[name].words}
    assert run("inspect", "x", "--on-error", "skip").exit_code == 2


@pytest.mark.parametrize("name", ONCE)
def test_help_is_readable_in_a_plain_terminal(name):
    told = CliRunner(env={"COLUMNS": "80", "TERM": "dumb"}).invoke(app, [*name.split(), "--help"])
    assert told.exit_code == 0, told.output
    assert max(map(len, told.output.splitlines())) <= 80
    for word in COMMANDS[name].words.values():
        said = inspect.signature(COMMANDS[name].callback()).parameters[word.name].annotation.__metadata__[0].help
        assert re.fullmatch(r"[^\s`\"][^`\"]{5,}[.]", said), (word.name, said)
        assert not re.search(r"\bNone\b|\bAs (for|in) |See there|\bself\b", said), (word.name, said)
    assert f"Example: legend-hf {name}" in " ".join(told.output.split())


def test_the_help_of_all_begins_with_the_common_road():
    told = CliRunner(env={"COLUMNS": "80", "TERM": "dumb"}).invoke(app, ["--help"])
    assert max(map(len, told.output.splitlines())) <= 80
    assert "..." not in told.output.partition("\n")[2], "no sentence is cut"
    stores = CliRunner(env={"COLUMNS": "80", "TERM": "dumb"}).invoke(app, ["store", "--help"])
    assert "..." not in stores.output.partition("\n")[2]
    first = [line.split()[0] for line in told.output.splitlines() if re.match(r"  \w[\w-]*  +\w", line)]
    assert first[:5] == ["fit", "annotate", "report", "push", "push-direction"]
    assert {*first} == {name.split()[0] for name in ONCE}


def test_making_every_command_loads_no_heavy_library():
    code = (
        "import sys, typer, legend_hf.cli as cli\n"
        "before = 'numpy' in sys.modules\n"
        "made = typer.main.get_command(cli.app)\n"
        "list(made.commands); listed = 'numpy' in sys.modules\n"
        "[made.commands[name] for name in made.commands]\n"
        "print(before, listed, *{'torch', 'transformers', 'datasets', 'pandas', 'matplotlib'} & set(sys.modules))"
    )

    def said(code):
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()

    assert said(code) == ["False", "False"], "and the help of all needs no command"
    assert said(code.replace("import sys", "import datasets, sys"))[2:], "the control"


# -- A door alone --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pen:
    """What writes.

    Attributes:
        name: Which pen.
        ink: Its colour.
        revision: Of the pen.
    """

    name: str
    ink: str = "blue"
    revision: str | None = None


@dataclass(frozen=True)
class Paper:
    """What is written on.

    Attributes:
        source: Which paper. Any will do.
        lines: How many lines.
    """

    source: str
    lines: int = 10


def write(
    words: Sequence[str],
    *,
    pen: str | Pen,
    size: int | str | None = None,
    weight: float = 0.5,
    marks: Sequence[int] = (1, 2),
    notes: Sequence[str] = (),
    facts: Mapping[str, int] | None = None,
    bold: bool = False,
    signed: bool = True,
    hidden: object = None,
):
    """Writes.

    Args:
        words: What is written.
        pen: A pen.
        size: `"auto"`, or a number of points, as
            printers have them. More is larger.
        weight: From 0 to 1, e.g. 0.5; None takes a half.
        marks: Numbers.
        notes: Beside the text.
        facts: What is known.
        bold: In bold.
        signed: With a name.
        hidden: No word gives it.
    """
    return words, pen, size, weight, marks, notes, facts, bold, signed, hidden


CALLED = []


def body(write, paper: Paper, *, pages: int = 1):
    """Write a letter.

    It is not sent.

    Example: letter a4 --pen quill

    Options:
        pages: Of the letter.
        bold: In thick letters.
    """
    CALLED.append((write, paper, pages))


def door(**other):
    settings = {"without": ("hidden",), "renamed": {"revision": "pen_revision"}, **other}
    return Door("letter", body, (f"{__name__}.write",), "Letters", **settings)


def letter(*arguments):
    alone = typer.Typer(rich_markup_mode=None)
    alone.command()(door().callback())
    CALLED.clear()
    return CliRunner().invoke(alone, list(arguments))


def test_words_follow_from_signatures_and_docstrings():
    words = door().words
    assert [(w.spelled, w.default, w.says) for w in words.values()] == [
        ("paper", MISSING, "Which paper."),
        ("--pen", MISSING, "Which pen."),
        ("--ink", "blue", "Its colour."),
        ("--pen-revision", None, "Of the pen."),
        ("--size", None, "auto, or a number of points, as printers have them."),
        ("--weight", 0.5, "From 0 to 1, e.g. 0.5; left out, it takes a half."),
        ("--marks", (1, 2), "Numbers."),
        ("--notes", (), "Beside the text."),
        ("--facts", None, "What is known."),
        ("--bold", False, "In thick letters."),
        ("--signed", True, "With a name."),
        ("--lines", 10, "How many lines."),
        ("--pages", 1, "Of the letter."),
    ]
    assert door().says == "Write a letter.\n\nIt is not sent."
    assert door().example == "letter a4 --pen quill"
    with pytest.raises(TypeError, match="no word of a command line gives <class 'object'>; leave the parameter out"):
        door(without=()).callback()
    assert sentences(write)["words"] == "What is written."


def test_what_is_typed_is_what_the_function_gets():
    assert letter("a4", "--pen", "quill").exit_code == 0
    ((call, paper, pages),) = CALLED
    assert (paper, pages) == (Paper("a4"), 1)
    assert call(["x"]) == (["x"], Pen("quill"), None, 0.5, [1, 2], (), None, False, True, None)
    typed = "a5 --lines 3 --pages 2 --pen quill --ink red --pen-revision v1 --size 12 --weight 1 --marks 7 --marks 8 "
    typed += """--notes a --notes b --facts '{"a": 1}' --bold --no-signed"""
    assert letter(*shlex.split(typed)).exit_code == 0
    ((call, paper, pages),) = CALLED
    assert (paper, pages) == (Paper("a5", 3), 2)
    assert call([]) == ([], Pen("quill", "red", "v1"), 12, 1.0, [7, 8], ["a", "b"], {"a": 1}, True, False, None)
    assert letter("a4", "--pen", "quill", "--size", "auto").exit_code == 0
    assert CALLED[0][0].keywords["size"] == "auto", "a word stays a word"
    told = letter("a4", "--pen", "quill", "--facts", "a=1")
    assert told.exit_code == 2
    assert "`--facts` is 'a=1'; give an object as JSON" in told.stderr


@pytest.mark.parametrize(
    ("said", "typed"),
    [
        ("give another, or pass `bold=True`", "give another, or pass `--bold`"),
        ("leave `signed=False`", "leave `--no-signed`"),
        ("`size=\"auto\"` or `size=12`", "`--size auto` or `--size 12`"),
        ('`notes=["a b", "c"]`', "`--notes 'a b' --notes c`"),
        ("name another with `ink=`", "name another with `--ink INK`"),
        ("say where it is: `pen=folder`", "say where it is: `--pen FOLDER`"),
        ("the `revision` is old", "the `--pen-revision` is old"),
        ("`size` is 0; allowed is at least 1", "`--size` is 0; allowed is at least 1"),
        ("`paper` is None", "`PAPER` is None"),
        ("call `write(words, bold=True)` for it", "call `--bold` for it"),
        ("call `other(rows, bold=True)` for it", "call `legend-hf note --bold` for it"),
        # And nothing where it is none of the command's.
        *[(plain, plain) for plain in (
            "`hidden=1` and `batched=True`, `paper='a4'`, `chosen`, `a, b`, `(`, `x.y(bold=True)`, `unknown(bold=True)`",
            "bold=True without marks of code",
        )],
    ],
)  # fmt: skip
def test_a_message_is_spelled_by_the_signatures_alone(said, typed):
    own = door()
    note = Door("note", body, (f"{__name__}.other",), "Letters", ("hidden",), {})
    calls = {"write": ("", own.option_of), "other": ("note", note.option_of)}
    assert spelled(said, own.option_of, calls) == typed


other = write
# What messages name and no command takes: arguments of `datasets`.
NOT_TYPED = {"batched", "with_rank", "streaming"}


def named_in_messages(source):
    """Every argument that a module's messages name with a value, as in `overwrite=True`; docstrings are no messages."""
    tree = ast.parse(source)
    parents = (ast.Module, ast.FunctionDef, ast.ClassDef)
    first = [node.body[0] for node in ast.walk(tree) if isinstance(node, parents) and node.body]
    docs = {id(node.value) for node in first if isinstance(node, ast.Expr)}
    texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return {name for text in texts if id(text) not in docs for name in re.findall(r"`(\w+)=[^`]*`", text.value)}


def test_what_messages_advise_can_be_typed():
    files = [file for file in Path(legend_hf.__file__).parent.rglob("*.py") if file.parent.name != "cli"]
    named = set().union(*(named_in_messages(file.read_text(encoding="utf-8")) for file in files))
    typed = {word for door in COMMANDS.values() for word in (*door.words, *door.renamed)}
    assert named - typed == NOT_TYPED
    assert {"overwrite", "on_error", "trust_remote_code", "store", "allow_source"} <= named & typed
    control = '"""`doc=1`"""\nraise ValueError(f"{x}; pass `nowhere=True` or `y`")'
    assert named_in_messages(control) - typed == {"nowhere"}


# -- The examples --------------------------------------------------------------------------------------------

THINGS = ("bread", "bikes", "paint", "tents", "maps", "soup")
STEPS = (
    "First, wait until noon, then look around. Take the jar; it has no lid, no lock. Carry it out, sit down, and eat."
)
# What somebody has who runs the examples, beyond what they make; and what makes them short.
MODELS = ("HuggingFaceTB/SmolLM2-135M", "Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B-Instruct")
WRITERS = ("you/annotator", "you/aligned", "you/policy")
MORE = {name: ["--max-new-tokens", "3"] for name in ("induce", "corrections", "corr-at-k")}
MORE["compare"] = ["--batch-size", "2", "--seeds", "1"]
ORDER = (
    *("induce", "fit", "push-direction", "annotate", "report", "inspect", "score", "pairs"),
    *("store merge", "store compact", "store show", "store prune"),
)


def owned(word):
    """A name in an example as one of whom the loopback Hub lets write."""
    return "causal" if word in WRITERS else re.sub(r"^(HuggingFaceTB|Qwen|Anthropic|openbmb|you)/", "user/doors-", word)


def on_the_hub(tiny_llama, folder):
    """What the examples name on the Hub; in what they do not ask for, such as other folders, no row can be read."""
    from huggingface_hub import HfApi

    api = HfApi()
    for model in MODELS:
        api.create_repo(owned(model), exist_ok=True)
        api.upload_folder(repo_id=owned(model), folder_path=tiny_llama)
    said = [(f"\n\nHuman: Tell me about {t}.\n\nAssistant: ", t) for t in THINGS]
    hh = [{"chosen": f"{human}Gladly: {t}.", "rejected": f"{human}Who needs {t}"} for human, t in said]
    hh.append({"chosen": hh[0]["rejected"], "rejected": hh[0]["chosen"]})  # the sign of one margin is another
    ultra = [
        {
            "instruction": f"Why {t}?",
            "completions": [{"response": f"For {t}.", "model": "a"}, {"response": "Never.", "model": "b"}],
        }
        for t in THINGS
    ]
    files = {
        "Anthropic/hh-rlhf": {
            "harmless-base/train.jsonl": hh,
            "helpful-base/train.jsonl": [{"chosen": "", "rejected": ""}],
        },
        "openbmb/UltraFeedback": {"train.jsonl": ultra},
    }
    for repo, contents in files.items():
        for file, some in contents.items():
            (folder / repo / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / repo / file).write_text("".join(json.dumps(row) + "\n" for row in some))
        api.create_repo(owned(repo), repo_type="dataset", exist_ok=True)
        api.upload_folder(repo_id=owned(repo), repo_type="dataset", folder_path=folder / repo)


def test_every_example_runs(tiny_llama, tmp_path, tmp_path_factory, monkeypatch, hub):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    on_the_hub(tiny_llama, tmp_path_factory.mktemp("hub"))
    pairs = [
        {"prompt": f"Tell me about {t}. ", "chosen": f"Gladly: {t}.", "rejected": f"Who needs {t}"} for t in THINGS
    ]
    rows = {
        "questions": [{"prompt": f"What is {t}?"} for t in THINGS[:2]],
        "harms": [{"prompt": f"How do I take the {t}?", "response": STEPS} for t in THINGS[:2]],
    }
    for name, some in rows.items():
        Dataset.from_list(some).to_json(tmp_path / f"{name}.jsonl")
    save_tiny_causal(tiny_llama, tmp_path / "causal", CHAT)
    (tmp_path / "my_judges.py").write_text(
        "def strict(requests, prefixes, continuations):\n    return [True] * len(requests)\n"
    )
    last = [name for name in COMMANDS if name not in ORDER]
    for name in (*ORDER, *last):
        example = shlex.split(COMMANDS[name].example)
        assert example[: len(name.split())] == name.split()
        given = [owned(word) for word in [*example, *MORE.get(name, [])]]
        if name == "fit":  # of pairs that a model of no use did not write
            (tmp_path / "pairs.jsonl.source").unlink(missing_ok=True)
            Dataset.from_list(pairs).to_json(tmp_path / "pairs.jsonl")
        if name == "store merge":
            for node in ("node-1.sqlite", "node-2.sqlite"):
                (tmp_path / node).write_bytes((tmp_path / "assets" / "legend_hf" / "scores.sqlite").read_bytes())
        if name == "store compact":
            given[-1] = f"file://{tmp_path}/run"
            merged = run("store", "merge", tmp_path / "assets" / "legend_hf" / "scores.sqlite", "--output", given[-1])
            assert merged.exit_code == 0, merged.output
        if name == "pairs":
            given += ["--prompt-column", "instruction", "--responses-column", "completions"]
        told = run(*given)
        said = (0, 1) if name == "check" else (0,)  # 1: TRL would not train on this
        assert told.exit_code in said, (name, told.output, told.exception)
    # The control: without its folder, the example would read what it must not.
    told = run("annotate", owned("Anthropic/hh-rlhf"), owned("you/direction"), "--output", "all", "--no-store")
    assert told.exit_code == 2
    assert "row" in told.stderr
