"""The commands from margins to training data: each does what its function does, and says what it did."""

from __future__ import annotations

import json
import logging
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, load_dataset, load_from_disk
from tiny_causal import CHAT, save_tiny_causal
from typer.testing import CliRunner

from legend_hf import Direction, LegendScoreFn, annotate, fit_direction
from legend_hf.cli import app
from legend_hf.cli.door import COMMANDS as COMMANDS_MADE
from legend_hf.cli.options import Place, load, save
from legend_hf.directions.calibrate import fit_calibration
from legend_hf.hub.outputs import write_whole
from legend_hf.margins.store import open_store
from legend_hf.preferences import PairSimilarityFn, curriculum, export_for, ladder_pairs, make_pairs, select_pairs

THINGS = ("bread", "bikes", "paint", "tents", "maps", "soup")
PAIRS = [
    {"prompt": f"Tell me about {t}. ", "chosen": f"Gladly: {t} with care." + " Truly." * i, "rejected": f"No idea, who needs {t}"}
    for i, t in enumerate(THINGS)
]  # fmt: skip
# Two prompts with three pairs each; one number is too small for the digits that JSON lines have by default.
MARGINS = [0.5, -0.25, 1.2345678e-7, 0.75, 0.3333333, 1.0]
RESPONSES = [
    {
        "prompt": f"Why {t}?",
        "responses": [f"Because of {t}.", f"Never mind {t}, really.", f"I am fond of {t}."],
        "id": i,
    }
    for i, t in enumerate(THINGS)
]
STEPS = "First, wait until noon, then look around. Take the jar; it has no lid, no lock and no label. Carry it out, sit down, and eat: nobody will ask. Later, bring it back, or not."
HARMS = [{"prompt": f"How do I take the {t}?", "response": STEPS.replace("jar", t)} for t in ("jar", "cake")]
COMMANDS = ("select", "score", "pairs", "curriculum", "corrections", "corr-at-k", "export", "check")


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def done(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


def annotated(rows=PAIRS, margins=MARGINS):
    rows = [{**row, "margin": margin, "id": i} for i, (row, margin) in enumerate(zip(rows, margins, strict=False))]
    return Dataset.from_list(rows).cast_column("margin", Value("float32"))


@pytest.fixture(scope="module")
def files(tmp_path_factory, tiny_llama):
    """A folder with pairs, responses, two requests, a direction and a model with a head."""
    folder = tmp_path_factory.mktemp("cli_preferences")
    for name, rows in (("pairs", PAIRS), ("responses", RESPONSES), ("harms", HARMS)):
        Dataset.from_list(rows).to_json(folder / f"{name}.jsonl")
    DatasetDict({"train": annotated(), "test": annotated(PAIRS[:2])}).save_to_disk(folder / "annotated")
    direction = fit_direction(PAIRS, model=str(tiny_llama))
    raw = direction.calibration.scale * (np.random.default_rng(0).standard_normal(200) + 1.0) / 4
    direction = replace(direction, calibration=fit_calibration("unit", raw))  # holds every kind
    direction.save_pretrained(folder / "direction")
    save_tiny_causal(tiny_llama, folder / "causal", CHAT)
    return folder


@pytest.fixture(scope="module")
def scored(files, tiny_llama):
    """What `score` saves, by the command."""
    told = done(
        "score", files / "responses.jsonl", files / "direction", "--model", tiny_llama, "--output", files / "scored",
        "--add", "choice_probs", "--store", files / "scores.sqlite",
    )  # fmt: skip
    assert told.stdout.endswith(f'Saved in {files / "scored"}; load_dataset("{files / "scored"}") gives it back\n')
    assert "6 rows scored\n" in told.stdout
    return files / "scored"


def test_select_is_select_pairs(files, tiny_llama, tmp_path):
    rows = Dataset.from_list(PAIRS).map(PairSimilarityFn(tiny_llama), batched=True)
    told = done("select", files / "pairs.jsonl", "--model", tiny_llama, "--output", tmp_path / "half")
    got = load_dataset(str(tmp_path / "half"))["train"]
    assert got.to_list() == select_pairs(rows).to_list()
    similarity = np.sort(rows["pair_similarity"][:])
    low, high = similarity[:3].mean(), similarity[3:].mean()
    assert f"train: kept 3 pairs (mean similarity {low:.3f}), dropped 3 (mean similarity {high:.3f})" in told.stdout
    # Another rule, and no second measuring of what is there.
    rows.save_to_disk(tmp_path / "measured")
    options = ["--keep", "random", "--fraction", "0.34", "--seed", "3"]
    told = done("select", tmp_path / "measured", "--model", "nowhere", "--output", tmp_path / "third", *options)
    got = load_dataset(str(tmp_path / "third"))["train"]
    assert got.to_list() == select_pairs(rows, keep="random", fraction=0.34, seed=3).to_list()
    assert "nothing was measured with nowhere" in told.stdout


def test_a_slice_is_saved_under_the_name_of_its_split(files, tiny_llama, tmp_path):
    given = ["select", files / "pairs.jsonl", "--split", "train[:4]", "--model", tiny_llama]
    told = done(*given, "--output", tmp_path / "half")
    assert "train: kept 2 pairs" in told.stdout
    assert list(load_dataset(str(tmp_path / "half"))) == ["train"]


def test_select_does_every_split_and_skips_what_cannot_be_read(tiny_llama, tmp_path):
    rows = Dataset.from_list([*PAIRS, {"prompt": "And?", "chosen": "", "rejected": "No."}])
    splits = DatasetDict({"train": rows, "test": rows.select([])})
    splits.save_to_disk(tmp_path / "splits", num_shards={"train": 1, "test": 1})
    given = ["select", tmp_path / "splits", "--model", tiny_llama, "--output", tmp_path / "half"]
    refused = run(*given)
    assert refused.exit_code == 2
    assert "row 6" in refused.stderr
    told = done(*given, "--on-error", "skip")
    assert "train: kept 3 pairs" in told.stdout
    assert "1 could not be read" in told.stdout
    assert "test: kept 0 pairs, dropped 0" in told.stdout
    got = load_dataset(str(tmp_path / "half"))
    assert "test: left out, it has no rows" in told.stdout
    assert list(got) == ["train"]
    assert set(got["train"]["pair_similarity_status"]) == {"ok"}


def test_random_rows_need_no_model(files, tmp_path):
    told = done("select", files / "pairs.jsonl", "--keep", "random", "--seed", "3", "--output", tmp_path / "some")
    assert "train: kept 3 pairs, dropped 3\n" in told.stdout
    got = load_dataset(str(tmp_path / "some"))["train"]
    rows = Dataset.from_list(PAIRS)
    assert got.features == rows.features
    kept = select_pairs(rows.add_column("pair_similarity", [0.5] * 6), keep="random", seed=3)
    assert got.to_list() == kept.remove_columns("pair_similarity").to_list()
    assert run("select", files / "pairs.jsonl", "--output", tmp_path / "others").exit_code == 2, "the control"


def test_score_is_annotate_with_the_transform(files, scored, tiny_llama):
    direction = Direction.from_pretrained(files / "direction", model=tiny_llama)
    expected = annotate(Dataset.from_list(RESPONSES), LegendScoreFn(direction, add=["choice_probs"]))
    got = load_dataset(str(scored))["train"]
    assert got.features == expected.features
    assert got.to_list() == expected.to_list()
    assert sum(kept.scores for kept in open_store(files / "scores.sqlite").contents()) == 18


def test_score_keeps_scores_by_itself_unless_told_not_to(files, tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    given = ["score", files / "responses.jsonl", files / "direction", "--model", tiny_llama]
    # A finished `map` would be found again, and would read nothing.
    Dataset.from_list(RESPONSES[:2]).to_json(tmp_path / "fresh.jsonl")
    given[1] = tmp_path / "fresh.jsonl"
    done(*given, "--output", tmp_path / "without", "--no-store")
    assert not (tmp_path / "assets").exists()
    Dataset.from_list(RESPONSES[:3]).to_json(tmp_path / "fresh.jsonl")
    done(*given, "--output", tmp_path / "with")
    store = open_store(tmp_path / "assets" / "legend_hf" / "scores.sqlite")
    assert sum(kept.scores for kept in store.contents()) == 9


def test_pairs_is_make_pairs(files, scored, tiny_llama, tmp_path):
    rows = load_dataset(str(scored))
    told = done("pairs", scored, "--rule", "best", "--direction", files / "direction", "--output", tmp_path / "best")
    direction = Direction.from_pretrained(files / "direction")
    expected = make_pairs(rows, rule="best", direction=direction)["train"]
    got = load_dataset(str(tmp_path / "best"))["train"]
    assert got.features == expected.features
    assert got.to_list() == expected.to_list()
    assert "margin" in got.column_names
    assert f"train: {len(expected)} pairs of 6 prompts" in told.stdout
    done("pairs", scored, "--model", tiny_llama, "--output", tmp_path / "dissimilar")
    got = load_dataset(str(tmp_path / "dissimilar"))["train"]
    assert got.to_list() == make_pairs(rows, model=tiny_llama)["train"].to_list()
    assert "pair_similarity" in got.column_names


def test_curriculum_is_curriculum(files, tmp_path):
    given = ["curriculum", files / "annotated", "--split", "train", "--mode", "global"]
    told = done(*given, "--stages", "2", "--negative", "drop", "--output", tmp_path / "stages")
    expected = curriculum(annotated(), mode="global", stages=2, negative="drop")
    got = load_dataset(str(tmp_path / "stages"))
    assert {name: rows.to_list() for name, rows in got.items()} == {
        name: rows.to_list() for name, rows in expected.items()
    }
    assert "stage_1: 3 pairs\nstage_2: 2 pairs\nleft out: 1 of 6 pairs\n" in told.stdout
    done(*given, "--order", "hard_first", "--output", tmp_path / "hard")
    hardest = load_dataset(str(tmp_path / "hard"))["stage_1"]
    assert sorted(hardest["id"]) == [1, 2]


def test_curriculum_hints_at_global_where_prompts_have_one_pair(tmp_path):
    annotated().to_parquet(tmp_path / "single.parquet")
    rows = [{**row, "prompt": "Tell me. "} for row in PAIRS]
    annotated(rows).to_parquet(tmp_path / "several.parquet")

    def said(name, *options):
        out = tmp_path / f"{name}{len(options)}"
        return done("curriculum", tmp_path / f"{name}.parquet", *options, "--output", out).stderr

    hint = 'most prompts have one pair only, and `mode="per_prompt"` orders the pairs of a prompt; `mode="global"`'
    hint = re.sub(r'`mode="(\w+)"`', r"`--mode \1`", hint)
    assert said("single").count(hint) == 1
    assert hint not in said("single", "--mode", "global")
    assert hint not in said("several")


def test_stages_can_be_pushed(files, tiny_llama, tmp_path, hub):
    done(
        "annotate",
        files / "pairs.jsonl",
        files / "direction",
        "--model",
        tiny_llama,
        "--output",
        tmp_path / "annotated",
    )
    given = ["--mode", "global", "--stages", "2"]
    done("curriculum", tmp_path / "annotated", *given, "--output", tmp_path / "stages")
    done("push", tmp_path / "stages", files / "direction", "user/cli-stages")
    pushed = load_dataset("user/cli-stages")
    kept = load_dataset(str(tmp_path / "stages"))
    assert list(pushed) == ["stage_1", "stage_2"]
    assert {name: rows.to_list() for name, rows in pushed.items()} == {
        name: rows.to_list() for name, rows in kept.items()
    }


def test_corrections_are_ladders_and_their_pairs(files, tmp_path):
    given = ["corrections", files / "harms.jsonl", "--model", files / "causal", "--max-new-tokens", "4", "--cuts", "2"]
    written = ["--output", tmp_path / "new" / "ladders.jsonl", "--pairs", tmp_path / "new" / "pairs.jsonl"]
    told = done(*given, *written)
    assert "2 ladders of 4 responses out of 2 rows" in told.stdout
    assert "12 pairs of every two rungs" in told.stdout
    for file in (written[1], written[3]):
        assert f'Saved in {file}; load_dataset("json", data_files="{file}") gives it back\n' in told.stdout
    ladders = load_dataset("json", data_files=str(written[1]), split="train")
    assert [row["responses"][-1] for row in ladders] == [row["response"] for row in HARMS]
    pairs = load_dataset("json", data_files=str(written[3]), split="train")
    assert (
        pairs.select_columns(["chosen", "rejected"]).to_list()
        == ladder_pairs(ladders).select_columns(["chosen", "rejected"]).to_list()
    )
    # Again: nothing is generated anew, and the same is written.
    answers = (tmp_path / "new" / "ladders.jsonl.answers").read_bytes()
    before = [written[i].read_bytes() for i in (1, 3)]
    done(*given, *written)
    assert [written[i].read_bytes() for i in (1, 3)] == before
    assert (tmp_path / "new" / "ladders.jsonl.answers").read_bytes() == answers
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == [
        "ladders.jsonl",
        "ladders.jsonl.answers",
        "pairs.jsonl",
    ]


JUDGES = """
import math

calls = []
NOT_ONE = 3

def even(requests, prefixes, continuations):
    calls.append(len(continuations))
    return [i % 2 == 0 for i in range(len(continuations))]

def broken(requests, prefixes, continuations):
    return [math.sqrt(-1)]
"""


@pytest.fixture
def judges(tmp_path, monkeypatch):
    """A folder to stand in, with a module of judges and one that cannot be imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", ".")])
    (tmp_path / "cli_judges.py").write_text(JUDGES)
    (tmp_path / "cli_torn.py").write_text("import no_such_library\n")
    yield tmp_path
    for name in ("cli_judges", "cli_torn"):
        sys.modules.pop(name, None)


def corr(files, *options):
    given = ["--model", files / "causal", "--max-new-tokens", "4", "--k", "5", "--k", "20"]
    return run("corr-at-k", files / "harms.jsonl", *given, *options)


def test_corr_at_k_with_phrases_says_that_they_are_crude(files, tmp_path):
    told = corr(files, "--samples", "3", "--output", tmp_path / "records.jsonl")
    assert told.exit_code == 0, told.output
    assert "which is crude" in told.stdout
    assert "requests: 2, continuations at each k: 6" in told.stdout
    records = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    assert len(records) == 12
    for k in (5, 20):
        rate = np.mean([record["corrected"] for record in records if record["k"] == k])
        assert f"{k:>6}  {rate:.3f} [" in told.stdout
    assert f"  mean  {np.mean([record['corrected'] for record in records]):.3f} [" in told.stdout


def test_corr_at_k_with_a_judge_of_the_current_folder(files, judges):
    told = corr(files, "--judge", "cli_judges:even")
    assert told.exit_code == 0, told.output
    assert "crude" not in told.stdout
    assert "     5  1.000 [0.012, 1.000]\n    20  0.000 [0.000, 0.988]\n  mean  0.500 [" in told.stdout
    assert sys.modules["cli_judges"].calls == [4], "called once, with all"


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        ("cli_judges", "give `module:function`, such as"),
        ("cli_judges.py:even", "there is no module `cli_judges.py`"),
        ("./cli_judges:even", "give `module:function`, such as"),
        ("cli_nowhere:even", "there is no module `cli_nowhere`, neither installed nor in"),
        ("cli_torn:even", "No module named 'no_such_library'"),
        ("cli_judges:odd", "and `odd` is not in there"),
        ("cli_judges:NOT_ONE", "and `NOT_ONE` is no function"),
    ],
)
def test_a_judge_that_cannot_be_one_is_refused_before_anything_is_read(files, judges, judge, message):
    told = run("corr-at-k", judges / "there-is-no-such-file.jsonl", "--model", "nowhere", "--judge", judge)
    assert told.exit_code == 2
    assert message in told.stderr
    assert "such-file" not in told.stderr


def test_a_judge_that_fails_keeps_its_traceback(files, judges):
    told = corr(files, "--judge", "cli_judges:broken")
    assert isinstance(told.exception, RuntimeError)
    assert "the judge `cli_judges:broken` failed" in str(told.exception)
    assert isinstance(told.exception.__cause__, ValueError)
    assert not hasattr(told.exception, "__notes__"), "nothing is kept without a file"
    told = corr(files, "--judge", "cli_judges:broken", "--output", judges / "records.jsonl")
    assert (judges / "records.jsonl.answers").is_file()
    (note,) = told.exception.__notes__  # the traceback ends with it
    assert f"The continuations are kept beside {judges / 'records.jsonl'}: mend the judge" in note
    told = run("corr-at-k", "--help")
    assert "judge(requests, prefixes, continuations) -> list of bool, called once with all" in " ".join(
        told.output.split()
    )


def talking(rows):
    """The rows as messages, some with tools."""
    turns = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "chosen": [{"role": "assistant", "content": row["chosen"]}],
            "rejected": [{"role": "assistant", "content": row["rejected"]}],
            "tools": json.dumps([{"type": "function", "function": {"name": "look"}}]) if i % 2 else None,
            "chat_template_kwargs": {"loud": bool(i % 2)},
        }
        for i, row in enumerate(rows)
    ]
    return annotated(turns)


@pytest.mark.parametrize("trainer", ["trl", "openrlhf", "ms-swift"])
@pytest.mark.parametrize("shape", ["strings", "messages", "stages"])
def test_an_export_is_what_load_dataset_gives_back(trainer, shape, files, tmp_path):
    if shape == "stages":
        given = curriculum(annotated(), mode="global")
    else:
        rows = talking(PAIRS) if shape == "messages" else annotated()
        given = DatasetDict({"train": rows, "test": rows.select([4, 0])})
    given.save_to_disk(tmp_path / "given")
    told = done("export", tmp_path / "given", "--trainer", trainer, "--output", tmp_path / "out")
    expected = export_for(given, trainer=trainer)
    got = load_dataset(str(tmp_path / "out"))
    assert set(got) == set(expected.dataset)
    for name, rows in expected.dataset.items():
        assert got[name].column_names == list(expected.columns)
        margins = [np.array(one["margin"][:], dtype=np.float32) for one in (got[name], rows)]
        assert np.array_equal(*margins)
        assert got[name].remove_columns("margin").to_list() == rows.remove_columns("margin").to_list()
        if trainer == "trl":
            assert got[name].features == rows.features
        file = tmp_path / "out" / "data" / f"{name}-00000-of-00001.{'parquet' if trainer == 'trl' else 'jsonl'}"
        assert f"{name}: {len(rows)} rows in {file}" in told.stdout
    written = [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(written) == len(got) + 1, "and nothing else but"
    assert "legend_hf.json" in written
    for said in (*expected.flags, *expected.notes, ", ".join(expected.columns)):
        assert COMMANDS_MADE["export"].spelled(said) in told.stdout


def test_the_digits_of_json_lines_are_those_of_float32(tmp_path):
    rows = annotated()
    rows.to_json(tmp_path / "few.jsonl")
    few = load_dataset("json", data_files=str(tmp_path / "few.jsonl"), split="train")["margin"][:]
    assert not np.array_equal(np.array(few, dtype=np.float32), np.array(rows["margin"][:], dtype=np.float32)), (
        "the control"
    )


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    def torn(path):
        path.write_text("half")
        raise OSError("no space left")

    (tmp_path / "rows.jsonl").write_text("old")
    with pytest.raises(OSError, match="no space left"):
        write_whole(tmp_path / "rows.jsonl", torn)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
    assert (tmp_path / "rows.jsonl").read_text() == "old"
    write_whole(tmp_path / "rows.jsonl", lambda path: path.write_text("new"))
    assert (tmp_path / "rows.jsonl").read_text() == "new"


def test_export_passes_its_options_on(tmp_path):
    rows = annotated().add_column("margin_prob", [0.9, 0.4, 0.5, 0.6, 0.7, 0.8]).rename_column("prompt", "question")
    splits = DatasetDict({"train": rows, "test": rows.select([])})
    splits.save_to_disk(tmp_path / "given", num_shards={"train": 1, "test": 1})
    options = ["--messages", "--weights", "--prompt-column", "question", "--output", tmp_path / "out"]
    told = done("export", tmp_path / "given", "--trainer", "trl", *options)
    assert "test: left out, it has no rows" in told.stdout
    got = load_dataset(str(tmp_path / "out"))
    assert list(got) == ["train"]
    assert got["train"].column_names == ["prompt", "chosen", "rejected", "margin", "margin_prob", "weight"]
    assert got["train"][0]["prompt"] == [{"role": "user", "content": "Tell me about bread. "}]


def test_check_says_by_its_exit_code_if_trl_would_train(files, tiny_llama, tmp_path):
    from legend_hf.reports import check_for_trl

    told = done("check", files / "annotated", "--tokenizer", tiny_llama, "--output", tmp_path / "new" / "check.md")
    expected = check_for_trl(load_from_disk(str(files / "annotated")), tiny_llama).to_markdown()
    assert told.stdout.startswith(COMMANDS_MADE["check"].spelled(expected))
    assert (tmp_path / "new" / "check.md").read_text() == expected
    short = run("check", files / "annotated", "--tokenizer", tiny_llama, "--max-length", "2", "--split", "test")
    assert short.exit_code == 1
    assert "would not train on this" in short.stdout
    assert "no row is left: all have a side of more than 2 tokens" in short.stdout
    assert "`train`" not in short.stdout


def test_from_responses_to_a_checked_export(files, scored, tiny_llama, tmp_path):
    """Each command takes what the one before saved."""
    (tmp_path / "empty").mkdir()
    done("pairs", scored, "--rule", "all", "--direction", files / "direction", "--output", tmp_path / "pairs")
    done("select", tmp_path / "pairs", "--model", tiny_llama, "--fraction", "0.8", "--output", tmp_path / "few")
    done("curriculum", tmp_path / "few", "--output", tmp_path / "stages")
    done("export", tmp_path / "stages", "--trainer", "trl", "--output", tmp_path / "empty")
    told = done("check", tmp_path / "empty", "--tokenizer", tiny_llama)
    assert "stage_1" in told.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["select", "{d}/pairs.jsonl", "--output", "{o}"], "no column `pair_similarity` in the splits train; measure it with `--model MODEL`"),
        (["select", "{d}/pairs.jsonl", "--model", "{m}", "--output", "{o}", "--keep", "best"], "`--keep` is 'best'; allowed are"),
        (["select", "{d}/pairs.jsonl", "--model", "{m}", "--output", "{o}", "--fraction", "1.5"], "`--fraction` is 1.5; it must be"),
        (["select", "{d}/empty.jsonl", "--model", "{m}", "--output", "{o}"], "empty.jsonl' is empty; give rows"),
        (["select", "nope", "--model", "{m}", "--output", "{o}"], "there is no file or folder 'nope' here, and the Hub says: "),
        (["select", "{d}/pairs.jsonl", "--model", "nope", "--output", "{o}"], "there is no file or folder 'nope' here, and the Hub says: "),
        (["pairs", "scored-not", "--output", "{o}"], "there is no file or folder 'scored-not' here, and the Hub says: "),
        (["check", "{d}/annotated", "--tokenizer", "nope"], "there is no file or folder 'nope' here, and the Hub says: "),
        (["check", "{d}/annotated", "--tokenizer", "./nope"], "there is no file or folder './nope' here, and the Hub says: "),
        (["check", "{d}/annotated", "--tokenizer", "user/nope"], "Error: user/nope"),
        (["score", "{d}/responses.jsonl", "{d}/direction", "--output", "{o}", "--num-proc", "0"], "'--num-proc': Input should be greater than or equal to 1"),
        (["select", "{d}/annotated", "--output", "{d}/annotated"], "is what is read"),
        (["score", "{d}/responses.jsonl", "{d}/direction", "--output", "{o}", "--no-store"], "say where it is: `--model FOLDER`"),
        (["score", "{d}/responses.jsonl", "{d}/direction", "--model", "{m}", "--output", "{o}", "--add", "probs"], "allowed is ['choice_probs']"),
        (["score", "{d}/pairs.jsonl", "{d}/direction", "--model", "{m}", "--output", "{o}", "--no-store"], "responses"),
        (["score", "{d}/pairs.jsonl", "{d}/direction", "--output", "{o}", "--store", "s.sqlite", "--no-store"], "were both given"),
        (["score", "{s}", "{d}/direction", "--model", "{m}", "--output", "{o}", "--no-store"], "or pass `--overwrite`"),
        (["pairs", "{s}", "--output", "{o}"], "`--rule dissimilar` compares embeddings and needs `--model`"),
        (["pairs", "{s}", "--output", "{o}", "--rule", "worst"], "`--rule` is 'worst'; allowed are"),
        (["pairs", "{s}", "--output", "{o}", "--rule", "best", "--scores-column", "marks"], "`--scores-column marks` names no column"),
        (["curriculum", "{d}/annotated", "--output", "{o}"], "have the splits train, test; choose one with `--split`"),
        (["curriculum", "{d}/annotated", "--output", "{o}", "--split", "dev"], "`--split` is 'dev', and"),
        (["curriculum", "{d}/pairs.jsonl", "--output", "{o}"], "`--by margin` names no column"),
        (["curriculum", "{d}/annotated", "--split", "train", "--output", "{o}", "--order", "easy"], "`--order` is 'easy'; allowed are"),
        (["corrections", "{d}/harms.jsonl", "--model", "{d}/causal", "--output", "{o}.txt"], "give a file that ends in `.jsonl`"),
        (["corrections", "{d}/harms.jsonl", "--model", "{d}/causal", "--output", "{o}.jsonl", "--pairs", "p.csv"], "'p.csv' cannot be read again as what it will be"),
        (["corrections", "{d}/pairs.jsonl", "--model", "{d}/causal", "--output", "{o}.jsonl"], "and not `response`"),
        (["corr-at-k", "{d}/harms.jsonl", "--model", "{d}/causal", "--k", "0"], "different numbers of words"),
        (["corr-at-k", "{d}/harms.jsonl", "--model", "{d}/causal", "--output", "{o}"], "give a file that ends in `.jsonl`"),
        (["export", "{d}/annotated", "--trainer", "axolotl", "--output", "{o}"], "`--trainer` is 'axolotl'; allowed are"),
        (["export", "{d}/annotated", "--trainer", "openrlhf", "--weights", "--output", "{o}"], "`--weights` is for the trainers of `legend_hf.training`"),
        (["export", "{d}/pairs.jsonl", "--trainer", "trl", "--output", "{o}"], "split 'train' has no `margin`"),
        (["check", "{d}/annotated", "--tokenizer", "{m}", "--max-length", "0"], "`--max-length` is 0; allowed is at least 1"),
        (["check", "{d}/torn.jsonl", "--tokenizer", "{m}"], "torn.jsonl' cannot be read"),
        (["check", "{d}/nowhere", "--tokenizer", "{m}"], "nowhere"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)  # fmt: skip
def test_user_errors_are_one_line_and_exit_code_2(files, scored, tiny_llama, tmp_path, hub, arguments, message):
    (files / "torn.jsonl").write_text('{"prompt": "So')
    (files / "empty.jsonl").write_text("")
    told = run(*[a.format(d=files, m=tiny_llama, o=tmp_path / "out", s=scored) for a in arguments])
    assert told.exit_code == 2, told.output
    (line,) = [line for line in told.stderr.splitlines() if line.startswith("Error: ")]
    assert message in line
    assert "Traceback" not in told.output
    assert not (tmp_path / "out").exists(), "nothing is left behind"


def test_what_commands_save_has_every_split_and_feature(tmp_path):
    features = Features(a=Value("int8"), kind=ClassLabel(names=["x", "y"]), turns=[{"role": Value("string")}])
    rows = Dataset.from_dict({"a": [1, 2], "kind": [0, 1], "turns": [[], [{"role": "user"}]]}, features=features)
    splits = DatasetDict({"stage_1": rows, "test": rows.select([1])})
    save(splits, Place(tmp_path / "out"))
    got = load_dataset(str(tmp_path / "out"))
    assert {name: (one.features, one.to_list()) for name, one in got.items()} == {
        name: (one.features, one.to_list()) for name, one in splits.items()
    }
    for broken, message in (
        ({"train": rows.select([])}, "no rows left to save"),
        ({"train": rows, "test": rows.remove_columns("a")}, "differ in their columns"),
    ):
        with pytest.raises(ValueError, match=message):
            save(DatasetDict(broken), Place(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def contents(folder):
    return {
        p.relative_to(folder): (p.read_bytes() if p.is_file() else None, p.stat().st_mode) for p in folder.rglob("*")
    }


@pytest.mark.parametrize("writable", [True, False])
def test_a_saved_folder_is_read_and_never_written_to(files, tiny_llama, tmp_path, writable):
    rows = annotated().cast_column("id", Value("int8"))
    rows = rows.add_column("kind", [0, 1] * 3).cast_column("kind", ClassLabel(names=["x", "y"]))
    splits = DatasetDict({"train": rows, "dev": rows.select([4, 1]), "test": rows.select([])})
    given = tmp_path / "given [1]*"  # which is no pattern
    splits.save_to_disk(given, num_shards={"train": 2, "dev": 1, "test": 1})
    if not writable:
        for path in [given, *given.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
    before = contents(given)
    got = load(str(given), None, None)
    assert {name: (one.features, one.to_list()) for name, one in got.items()} == {
        name: (one.features, one.to_list()) for name, one in splits.items()
    }
    assert load(str(given / "train"), None, None).to_list() == rows.to_list()
    bare = ["--model", tiny_llama, "--output"]
    done("annotate", given, files / "direction", "--overwrite", "--no-store", *bare, tmp_path / "margins")
    done("select", given, *bare, tmp_path / "half")
    done("report", given)
    assert contents(given) == before
    assert load_dataset(str(tmp_path / "margins"))["train"].num_rows == 6
    # The control: the usual way of loading writes there, and the folder then loads with rows that are not its own.
    if writable:
        load_from_disk(str(given))["dev"].map(lambda row: {"new": row["id"]})
        assert contents(given) != before
        assert load(str(given), None, None)["dev"].to_list() == splits["dev"].to_list(), "only its own files are read"


def test_a_folder_that_is_gone_is_not_read_from_the_cache(tmp_path, monkeypatch, hub):
    (tmp_path / "gone_rows").mkdir()
    annotated().to_parquet(tmp_path / "gone_rows" / "train.parquet")
    monkeypatch.chdir(tmp_path)
    assert len(load("gone_rows", None, "train")) == 6
    (tmp_path / "gone_rows").rename(tmp_path / "elsewhere")
    assert len(load_dataset("gone_rows", split="train")) == 6, "the control: `datasets` remembers it by its name"
    told = run("curriculum", "gone_rows", "--output", tmp_path / "out")
    assert told.exit_code == 2
    assert "there is no file or folder 'gone_rows' here, and the Hub has no such dataset" in told.stderr


def test_a_folder_under_use_is_no_output(files, tmp_path):
    annotated().save_to_disk(tmp_path / "saved")
    (tmp_path / "plain").mkdir()
    annotated().to_parquet(tmp_path / "plain" / "train.parquet")
    (tmp_path / "link").symlink_to(tmp_path / "plain")
    before = contents(tmp_path)
    for source, output, message in (
        ("plain", "plain", "is what is read"),
        ("plain", "link", "is what is read"),
        (
            "plain",
            "saved",
            "holds files that were not written by this library: 'data-00000-of-00001.arrow', 'dataset_info.json', 'state.json'",
        ),
    ):
        told = run("annotate", tmp_path / source, "no/such-direction", "--output", tmp_path / output)
        assert told.exit_code == 2
        assert message in told.stderr, "before anything is read"
    assert contents(tmp_path) == before


def test_annotate_and_score_count_what_they_skipped(files, tiny_llama, tmp_path):
    Dataset.from_list([*PAIRS, {"prompt": "And?", "chosen": "", "rejected": "No."}]).to_json(tmp_path / "pairs.jsonl")
    Dataset.from_list([*RESPONSES, {"prompt": "And?", "responses": ["", "No."], "id": 9}]).to_json(
        tmp_path / "responses.jsonl"
    )
    rest = ["--model", tiny_llama, "--on-error", "skip", "--no-store", "--output"]
    out = tmp_path / "margins"
    told = done("annotate", tmp_path / "pairs.jsonl", files / "direction", *rest, out)
    end = f'Saved in {out}; load_dataset("{out}") gives it back\n'
    assert told.stdout.endswith("6 rows annotated, 1 skipped (margin_status says why)\n" + end)
    told = done("score", tmp_path / "responses.jsonl", files / "direction", *rest, tmp_path / "scored")
    assert "6 rows scored, 1 skipped (scores_status says why)\n" in told.stdout


def test_what_the_library_says_in_python_is_spelled_for_the_shell(files, tiny_llama, tmp_path):
    Dataset.from_list([{"prompt": "And?", "chosen": "", "rejected": "No."}]).to_json(tmp_path / "pairs.jsonl")
    given = [tmp_path / "pairs.jsonl", files / "direction", "--model", tiny_llama, "--output", tmp_path / "out"]
    told = run("annotate", *given)
    assert "`--on-error skip`" in told.stderr
    assert "on_error" not in told.stderr
    glued = [{"chosen": "Yes.", "rejected": "No.", "prompt": "And?", "margin": 0.5}]
    Dataset.from_list(glued).cast_column("margin", Value("float32")).to_parquet(tmp_path / "glued.parquet")
    told = run("check", tmp_path / "glued.parquet", "--tokenizer", tiny_llama, "--output", tmp_path / "check.md")
    assert "`legend-hf export --messages`" in told.stdout
    assert "`export_for(dataset, messages=True)`" in (tmp_path / "check.md").read_text(), "saved is the library's own"


def test_warnings_of_the_library_are_spelled_too(files, monkeypatch):
    def warns(*arguments, **options):
        logging.getLogger("legend_hf.margins").warning("name another with `store=`")
        raise ValueError("enough")

    monkeypatch.setattr(Direction, "from_pretrained", warns)
    assert run("inspect", "there").stderr == "name another with `store=`\nError: enough\n", "it has no such option"
    told = run("annotate", files / "pairs.jsonl", "there", "--output", files / "no-such-folder")
    assert told.stderr == "name another with `--store STORE`\nError: enough\n"
    assert not logging.getLogger("legend_hf").handlers


def test_ctrl_c_is_answered(files, tmp_path, monkeypatch):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(Direction, "from_pretrained", stop)
    told = run("inspect", files / "direction")
    assert (told.exit_code, told.stderr) == (130, "Stopped.\n")
    out = tmp_path / "out.jsonl"
    monkeypatch.setattr("legend_hf.cli.options.load", stop)
    for kept in (False, True):
        if kept:
            (tmp_path / "out.jsonl.answers").write_text("")
        line = f"What was generated is kept beside {out}: run the same again to go on.\n" if kept else ""
        for command in ("induce", "corrections", "corr-at-k"):
            told = run(command, files / "harms.jsonl", "--model", files / "causal", "--output", out)
            assert told.exit_code == 130
            assert told.stderr.endswith("Stopped.\n" + line)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command):
    told = done(command, "--help")
    assert f"Example: legend-hf {command} " in " ".join(told.output.split())
    assert f" {command} " in run("--help").output
