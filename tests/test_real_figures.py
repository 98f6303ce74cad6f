"""How the figures of the real chat model are made: states kept on disk, thresholds and F1 of single responses."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from legend_hf.reading.formats import conversation
from legend_hf.reading.reader import OpenReader, Runtime, describe_model, open_reader


@pytest.fixture(scope="module", autouse=True)
def _scripts():
    sys.path.insert(0, str(ROOT / "scripts"))
    yield
    sys.path.remove(str(ROOT / "scripts"))


def opened_with(pooling, folder):
    reader = describe_model(str(folder), dtype="float32", pooling=pooling)
    return open_reader(reader, Runtime(path=str(folder)))


def test_states_are_read_once_in_both_poolings_and_a_larger_set_reads_what_is_new(tiny_llama, tmp_path, monkeypatch):
    from kept_states import AT_ONCE, LAST, MEAN, read_states

    opened = opened_with("mean", tiny_llama)
    texts = opened.encode([conversation(f"What is {i}?", f"It is {i} and no {i + 1}.") for i in range(AT_ONCE + 8)])
    read = []
    plain = OpenReader.read

    def counting(self, some, *rest, **options):
        read.append(len(some) // 2)
        return plain(self, some, *rest, **options)

    monkeypatch.setattr(OpenReader, "read", counting)
    first = read_states(opened, texts[:AT_ONCE], path=tiny_llama, folder=tmp_path)
    again = read_states(opened, texts[:AT_ONCE], path=tiny_llama, folder=tmp_path)
    larger = read_states(opened, texts, path=tiny_llama, folder=tmp_path)
    assert read == [AT_ONCE, 8]
    assert (first == again).all()
    assert (first == larger[:, :AT_ONCE]).all()
    read_states(opened, texts[1:9], path=tiny_llama, folder=tmp_path)  # the control: other texts are read
    assert read == [AT_ONCE, 8, 8]

    monkeypatch.undo()
    for place, pooling in ((MEAN, "mean"), (LAST, "last")):
        other = opened_with(pooling, tiny_llama)
        expected = np.empty_like(larger[:, :, place])
        for index, hidden in other.read(texts, range(other.reader.n_layers + 1)):
            expected[:, index] = hidden.numpy().swapaxes(0, 1)
        np.testing.assert_allclose(larger[:, :, place], expected, atol=1e-5)
    assert np.abs(larger[:, :, MEAN] - larger[:, :, LAST]).max() > 0.01


def test_ends_of_turns_are_a_view_of_the_same_pass_and_leave_what_is_kept_as_it_is(tiny_llama, tmp_path, monkeypatch):
    from kept_states import AT_ONCE, END, read_states
    from tiny_causal import CHAT, save_tiny_causal

    model = save_tiny_causal(tiny_llama, tmp_path / "model", CHAT)
    opened = opened_with("mean", model)
    closing = describe_model(str(model), dtype="float32", pooling="last", eos="template")
    closing = open_reader(closing, Runtime(path=str(model)))
    talks = [conversation(f"What is {i}?", f"It is {i} and no {i + 1}.") for i in range(AT_ONCE + 8)]
    texts, ends = opened.encode(talks), closing.encode(talks)
    assert all(end.last > text.last for text, end in zip(texts, ends, strict=True))
    read = []
    plain = OpenReader.read

    def counting(self, some, *rest, **options):
        read.append(len(some))
        return plain(self, some, *rest, **options)

    monkeypatch.setattr(OpenReader, "read", counting)
    asked = {"path": model, "folder": tmp_path / "kept"}
    three = read_states(opened, texts, ends=ends, **asked)
    assert read == [3 * AT_ONCE, 3 * 8]
    assert (read_states(opened, texts, **asked) == three[:, :, :END]).all()
    assert (read_states(opened, texts, ends=ends, **asked) == three).all()
    assert read == [3 * AT_ONCE, 3 * 8], "what was read is found, with the ends or without"
    later = {"path": model, "folder": tmp_path / "later"}
    two = read_states(opened, texts[:9], **later)
    assert (read_states(opened, texts[:9], ends=ends[:9], **later)[:, :, :END] == two).all()
    assert read[2:] == [2 * 9, 9], "only the ends are read of what was read without"
    monkeypatch.setattr(OpenReader, "read", never)
    with pytest.raises(AssertionError, match="done again"):  # the control: other ends are read
        read_states(opened, texts[:9], ends=texts[:9], **later)
    monkeypatch.undo()
    expected = np.empty_like(three[:, :, END])
    for index, hidden in closing.read(ends, range(closing.reader.n_layers + 1)):
        expected[:, index] = hidden.numpy().swapaxes(0, 1)
    np.testing.assert_allclose(three[:, :, END], expected, atol=1e-5)


def macro_f1(safe, called):
    return np.mean([2 * (safe & called).sum() / (safe.sum() + called.sum()) for safe, called in ((safe, called), (~safe, ~called))])  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-40, 40), st.booleans()), min_size=4, max_size=30, unique_by=lambda pair: pair[0])
)
def test_no_threshold_is_better_than_the_best(rows):
    from evaluate_real import best_threshold, f1_interval

    scores, safe = np.array([float(s) for s, _ in rows]), np.array([label for _, label in rows])
    if safe.all() or not safe.any():
        return
    threshold, _ = best_threshold(scores, safe)
    cuts = [macro_f1(safe, scores > cut) for cut in np.sort(scores)[:-1] + 0.25]
    assert macro_f1(safe, scores > threshold) == pytest.approx(max(cuts))
    table = np.zeros((len(rows), 2, 2))
    table[np.arange(len(rows)), safe.astype(int), (scores > threshold).astype(int)] = 1
    value, low, high = f1_interval(table)
    assert value == pytest.approx(max(cuts))
    assert low <= high


@pytest.fixture
def sets(tmp_path):
    """The four sets of pairs, and questions: mild rows that ship, under the names of those that are measured on."""
    lines = (ROOT / "scripts" / "demo" / "contrast_pairs.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    rates = {"chosen_safe_rate": 1.0, "rejected_safe_rate": 0.0, "votes_for": 2}
    files = {
        "hh_harmless": rows[:40],
        "pku_saferlhf": [
            {**row, **rates, "votes_against": int(i % 5 == 0), "clean": i % 4 > 0} for i, row in enumerate(rows[40:80])
        ],
        "refuse_vs_comply": rows[80:],
        "gptfuzz_labelled": [
            {"prompt": row["prompt"] + " Please.", "response": row[side], "harm": float(side == "rejected")}
            for row in rows[:24]
            for side in ("chosen", "rejected")
        ],
        "advbench": [{"prompt": f"{row['prompt']} In short?"} for row in rows[:30]],
    }
    for name, content in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    return files


@given(st.floats(0.55, 0.95))
def test_what_a_threshold_can_get_right_follows_from_the_pairs_that_are_ordered(single):
    from evaluate_real import of_pairs, of_single

    assert of_single(of_pairs(single)) == pytest.approx(single)
    assert of_pairs(single) > single
    # Against draws: scores of two kinds, a threshold between them.
    chance = np.random.default_rng(0)
    safe, unsafe = chance.normal(1, 1, 40_000), chance.normal(-1, 1, 40_000)
    assert of_single((safe > unsafe).mean()) == pytest.approx(((safe > 0).mean() + (unsafe < 0).mean()) / 2, abs=0.01)


def test_the_section_has_every_table_and_a_second_run_reads_nothing(demo, tmp_path, sets, monkeypatch):
    from evaluate_real import real_section

    files = {name: content for name, content in sets.items() if name != "advbench"}
    text, numbers = real_section(demo, tmp_path, tmp_path / "kept", seeds=1)
    for told in ("mean difference", "How many pairs", "macro-F1", "Beside public figures", "zero-shot", "0.915"):
        assert told in text
    assert numbers["cross_fitted"]["pairs"] == {**{n: len(files[n]) for n in list(files)[:3]}, "gptfuzz_labelled": 24}
    # This annotator was trained on these rows: a table that mixed up sides or sets would not show it.
    assert all(
        cell[0] > 0.7 for cell in numbers["cross_fitted"]["accuracy"]["**what `fit` chooses by itself**"].values()
    )
    assert numbers["responses"]["everything called safe"][0] == pytest.approx(1 / 3)

    def never(*_, **__):
        raise AssertionError("read again")

    monkeypatch.setattr(OpenReader, "read", never)
    assert real_section(demo, tmp_path, tmp_path / "kept", seeds=1) == (text, numbers)
    with pytest.raises(AssertionError, match="read again"):  # the control: other pairs
        real_section(demo, tmp_path, tmp_path / "kept", seeds=1, most=["hh_harmless=39"])


def never(*_, **__):
    raise AssertionError("done again")


def options(tmp_path, **more):
    usual = {"data": tmp_path, "kept": tmp_path / "kept", "first": [], "seeds": 1, "device": "cpu", "dtype": "float32"}
    return argparse.Namespace(**usual | more)


def test_what_was_kept_in_one_dtype_is_not_found_in_another(tiny_llama, tmp_path, sets):
    from evaluate_real import read_sets
    from real_runs import answers_of, made_by

    usual, half = options(tmp_path), options(tmp_path, dtype="bfloat16")
    assert (
        made_by("evaluate_x", usual, " --only y")
        == "python scripts/evaluate_x.py --only y --results scripts/RESULTS.md"
    )
    assert " --dtype bfloat16 " in made_by("evaluate_x", half)
    assert answers_of(usual, "chat") != answers_of(half, "chat")
    few = dict.fromkeys(sets, 6)
    found = {
        given.dtype: read_sets(tiny_llama, tmp_path, given.kept, few, "cpu", dtype=given.dtype)
        for given in (usual, half, usual)
    }
    assert {name: reader.dtype for name, (_, reader) in found.items()} == {"float32": "float32", "bfloat16": "bfloat16"}
    one, other = (read.pairs.differences for read, _ in found.values())
    assert 0 < np.abs(one - other).max() < 0.1 * np.abs(one).max()


def test_the_induced_section_counts_what_was_said_tells_none_of_it_and_goes_on(tiny_llama, tmp_path, sets, monkeypatch):
    from evaluate_induced import induced_section
    from tiny_causal import CHAT, save_tiny_causal

    model = save_tiny_causal(tiny_llama, tmp_path / "model", CHAT)
    given = options(tmp_path, questions=30, tokens=6, reference=8)
    text, numbers = induced_section(model, given)
    assert numbers["chat"]["questions"] == numbers["reference"]["questions"] == 30
    assert numbers["chat"]["cut_at_limit"] > 0
    for name in ("chat", "reference"):
        said = [json.loads(line)["rejected"] for line in open(tmp_path / "kept" / f"induced_{name}.jsonl")]
        assert len(said) == numbers[name]["pairs"] >= 25
        assert not any(answer in text for answer in said)
    for told in (
        "the better rule of length",
        "ahead of length",
        "the paper's recipe",
        "public code",
        "reach the limit",
        "ahead of one refusal",
    ):
        assert told in text
    judged = tuple(sorted(numbers["ours"]["induced, 25, the paper's recipe"]))
    assert judged == tuple(sorted(["took", "induced", *(n for n in sets if n != "advbench")]))
    # A second run neither asks nor reads; the control: another question is asked.
    monkeypatch.setattr(OpenReader, "read", never)
    monkeypatch.setattr("legend_hf.writing.writer.load_generator", never)
    assert induced_section(model, given) == (text, numbers)
    lines = (tmp_path / "advbench.jsonl").read_text().splitlines()
    (tmp_path / "advbench.jsonl").write_text("\n".join([*lines[:-1], json.dumps({"prompt": "And why?"})]) + "\n")
    with pytest.raises(AssertionError, match="done again"):
        induced_section(model, given)


def test_several_refusals_stand_in_turn_against_the_same_answers_and_are_refusals():
    from evaluate_induced import REFUSALS, turned_down

    from legend_hf.writing.refusals import refuses

    assert all(map(refuses, REFUSALS))
    assert not refuses("Water it twice a week.")
    rows = [{"prompt": f"Why {i}?", "chosen": REFUSALS[0], "rejected": f"It is so, {i} times."} for i in range(24)]
    several = turned_down(rows)
    assert [(row["prompt"], row["rejected"]) for row in several] == [(row["prompt"], row["rejected"]) for row in rows]
    assert Counter(row["chosen"] for row in several) == dict.fromkeys(REFUSALS, 3)
    assert [row["chosen"] for row in several] != [*REFUSALS * 3], "which stands where is drawn"


def test_fitted_pairs_are_whole_prompts_of_one_set_and_another_seed_draws_others(tmp_path):
    from cross_fitting import Pairs
    from evaluate_induced import first_pairs

    names, groups = np.repeat(["induced", "hh_harmless"], 40), np.arange(80) // 2
    pairs = Pairs([{}] * 80, names, groups, np.ones((80, 2)), np.zeros((1, 80, 2)))
    drawn = first_pairs(pairs, "induced", 12, 0)
    assert (drawn.sum(), set(names[drawn])) == (12, {"induced"})
    assert all(drawn[groups == group].all() for group in groups[drawn])
    assert (first_pairs(pairs, "induced", 20, 0) >= drawn).all(), "more pairs are these and others"
    assert not (first_pairs(pairs, "induced", 12, 1) == drawn).all()


def test_the_section_of_responses_ranks_by_what_has_not_seen_the_prompt_and_is_the_transforms_own(
    demo, tmp_path, sets, monkeypatch
):
    from evaluate_responses import MANY, PER_PROMPT, responses_section

    from legend_hf.preferences import PairSimilarityFn

    given = options(tmp_path, prompts=None, similar=None, only=None)
    text, numbers = responses_section(demo, given)
    assert numbers["ranking"]["prompts"] == 24
    for count in (PER_PROMPT, MANY):
        assert numbers["ranking"][f"fitted on other prompts of GPTFuzz, {count} pairs of each"][0][0] > 0.8
    assert all(told in text for told in ("`best` is harmless", "dissimilar less similar", "a vote against"))
    rows = sets["pku_saferlhf"]
    own = PairSimilarityFn(str(demo), device="cpu", dtype="float32")(
        {key: [row[key] for row in rows] for key in ("prompt", "chosen", "rejected")}
    )["pair_similarity"]
    low = np.argsort(own)[: len(rows) // 2]
    assert numbers["similarity"]["dissimilar"][1][0] == pytest.approx(np.mean([not rows[i]["clean"] for i in low]))
    monkeypatch.setattr(OpenReader, "read", never)
    monkeypatch.setattr("evaluate_responses.check_score_fn", lambda *_: None)
    assert responses_section(demo, given) == (text, numbers)
    # The control: scores that are not those of the kept states stop it.
    monkeypatch.undo()
    monkeypatch.setattr("evaluate_responses.LegendScoreFn.__call__", lambda self, batch: {
        "scores": [np.arange(len(r), dtype=float) for r in batch["responses"]]
    })  # fmt: skip
    with pytest.raises(RuntimeError, match="scores differ from those of the table"):
        responses_section(demo, given)


def test_a_measurement_says_how_long_it_took_on_the_clock_and_on_the_processor(demo, tmp_path, caplog):
    from real_runs import measure, options

    def busy(model, given):
        until = time.process_time() + 0.3
        while time.process_time() < until:
            pass
        return "told", {"number": 1}

    def idle(model, given):
        time.sleep(0.3)
        return "told", {"number": 1}

    caplog.set_level("INFO")
    file, results = tmp_path / "numbers.json", tmp_path / "R.md"
    given = options("", kept="").parse_args(["--real", str(demo), "--json", str(file), "--results", str(results)])
    took = {}
    for section in (busy, idle):
        measure(given, section, "busy")
        took[section] = json.loads(file.read_text())
        assert took[section].pop("number") == 1
        assert results.read_text() == "# Results\n\n<!-- busy: begin -->\ntold\n<!-- busy: end -->\n"
        assert caplog.messages[-1] == "{minutes:.1f} minutes, {processor_minutes:.1f} of processor time".format(
            **took[section]
        )
    assert min(each["minutes"] for each in took.values()) >= 0.25 / 60
    assert took[busy]["processor_minutes"] >= 0.25 / 60 > 2 * took[idle]["processor_minutes"]


def test_every_measurement_writes_a_section_of_its_own_and_finds_it_again(tmp_path):
    from real_runs import replace_section

    said = (ROOT / "scripts" / "RESULTS.md").read_text(encoding="utf-8")
    file = tmp_path / "R.md"
    file.write_text(said, encoding="utf-8")
    names = [
        name for script in (ROOT / "scripts").glob("*.py")
        for name in re.findall(r'(?:measure|replace_section)\((?:[^()]|\([^()]*\))*,\s*"([a-z ]+)"\s*\)', script.read_text())
    ]  # fmt: skip
    assert len(names) == len(set(names)) >= 10
    for name in names:
        assert said.count(f"<!-- {name}: begin -->") == said.count(f"<!-- {name}: end -->") == 1
        replace_section(file, f"new {name}", name)
        replace_section(file, f"newer {name}", name)
    now = file.read_text(encoding="utf-8")
    assert sorted(re.findall("<!-- (.*): begin -->\nnewer \\1\n<!-- \\1: end -->", now)) == sorted(names)
    assert "\nnew " not in now
    replace_section(file, "told", "another")
    assert file.read_text(encoding="utf-8") == now + "\n<!-- another: begin -->\ntold\n<!-- another: end -->\n"


def test_all_measurements_run_in_turn_with_the_same_options_and_the_first_that_fails_is_the_last(tmp_path):
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    shutil.copy(ROOT / "scripts" / "measure_all", scripts)
    (scripts / "environment").write_text(f'root={tmp_path}; python() {{ {sys.executable} "$@"; }}')
    (scripts / "real_llm").write_text("#!/usr/bin/env bash\necho made\n")
    (scripts / "real_llm").chmod(0o755)
    names = re.findall(r"for name in (.*);", (scripts / "measure_all").read_text())[0].split()
    assert all((ROOT / "scripts" / f"evaluate_{name}.py").is_file() for name in names)
    program = "import sys; print(sys.argv[1:], file=sys.stderr); print('1.0 minutes, 2.0 of processor time')"
    for name in names:
        (scripts / f"evaluate_{name}.py").write_text(program)

    def run():
        return subprocess.run([scripts / "measure_all", "--seeds", "2"], capture_output=True, text=True, timeout=60)

    done = run()
    assert (done.returncode, done.stdout.splitlines()) == (
        0, [f"{name}: 1.0 minutes, 2.0 of processor time" for name in names],
    )  # fmt: skip
    assert done.stderr.count("['--seeds', '2']") == len(names) - 1
    assert done.stderr.count("['--only', 'real', '--seeds', '2']") == 1
    (scripts / f"evaluate_{names[1]}.py").write_text("raise SystemExit('out of room')")  # the control
    done = run()
    assert done.returncode != 0
    assert "out of room" in done.stderr
    assert done.stderr.count("--seeds") == 1


def test_the_section_of_variants_holds_every_way_and_judges_what_was_left_out(demo, tmp_path, sets):
    from evaluate_variants import END, FITTED, LAST, MEAN, PICKED, SHARES, variants_section

    for name in FITTED:  # texts that all end with the same token have one state there
        rows = [{**row, "rejected": row["rejected"].rstrip(".")} for row in sets[name]]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text, numbers = variants_section(demo, options(tmp_path, template_pairs=24, ends=24))
    assert len(numbers["ways"]) == 4 + len(SHARES)
    assert numbers["ways"]["what `fit` does"]["ahead"][0] == 0
    assert set(numbers["sources"]) == {n for n in sets if n != "advbench"}
    assert set(numbers["templates"]) == {"chat template", "plain dialogue"}
    assert len(numbers["pooling"]) == len(FITTED) + 1
    for told in numbers["pooling"].values():
        assert set(told) == {MEAN, LAST, PICKED, "ahead", "took"}
    assert END not in text, "this model has no template that ends a turn"
    for told in ("without what raters doubt", "fits averaged", "by sources", "plain dialogue", "(48)"):
        assert told in text


def test_the_end_of_a_turn_is_read_of_the_sets_that_it_is_asked_of(tiny_llama, tmp_path, sets, monkeypatch):
    from evaluate_real import FITTED, read_sets
    from evaluate_variants import END, LAST, MEAN, pooling
    from tiny_causal import CHAT, save_tiny_causal

    model = save_tiny_causal(tiny_llama, tmp_path / "model", CHAT)
    kept = tmp_path / "kept"
    read, reader = read_sets(model, tmp_path, kept, {}, "cpu")
    assert read.ends is None
    assert read_sets(model, tmp_path, kept, {}, "cpu", ends=FITTED)[0].ends is None, "not of all"
    some = read_sets(model, tmp_path, kept, dict.fromkeys(set(sets) - set(FITTED), 0), "cpu", ends=FITTED)[0]
    assert some.ends is not None
    assert some.ends.differences.shape == some.last.differences.shape
    assert np.abs(some.ends.differences - some.last.differences).max() > 0.01
    monkeypatch.setattr("evaluate_variants.by_pooling", lambda views, *_: views)
    views = pooling(read, reader, model, options(tmp_path, ends=None))
    assert list(views) == [MEAN, LAST, END]
    for view, own in ((views[MEAN], some.pairs), (views[LAST], some.last), (views[END], some.ends)):
        assert (view.differences == own.differences).all()


def test_pooling_by_held_out_accuracy_takes_the_view_in_which_the_sides_differ(demo, tmp_path, sets):
    from cross_fitting import TITLES
    from evaluate_real import read_sets
    from evaluate_variants import END, FITTED, LAST, MEAN, PICKED, by_pooling

    read, reader = read_sets(demo, tmp_path, tmp_path / "kept", {n: 0 for n in TITLES if n not in FITTED}, "cpu")
    chance = np.random.default_rng(0)
    drawn = chance.normal(size=read.pairs.differences.shape).astype(np.float32)
    told = drawn + 4 * np.eye(drawn.shape[-1], dtype=np.float32)[0]
    views = (MEAN, LAST, END)
    for best in views:
        several = {name: replace(read.pairs, differences=told if name == best else drawn) for name in views}
        _, numbers = by_pooling(several, reader, 1)
        assert len(numbers) == len(FITTED) + 1
        for each in numbers.values():
            assert each["took"] == {best.replace(MEAN, "mean"): 2}
            assert each[PICKED] == each[best]
            assert each[best][0] == 1.0
            assert each["ahead"][0] == pytest.approx(1 - each[MEAN][0])
            assert min(each[name][0] for name in views) < 0.8, "the control: the others are by chance"


def test_the_section_of_graded_responses_writes_once_and_shows_nothing_unasked(
    tiny_llama, tmp_path, sets, monkeypatch, caplog
):
    from evaluate_graded import WORDS, graded_section
    from tiny_causal import CHAT, save_tiny_causal

    from legend_hf import fit_direction

    model = save_tiny_causal(tiny_llama, tmp_path / "model", CHAT)
    fit = fit_direction(sets["hh_harmless"][:20], model=str(model), layer=1, estimator="mean_difference", device="cpu")
    fit.save_pretrained(tmp_path / "direction")
    rows = [
        {**row, "rejected": " ".join((row["rejected"].split() * 99)[: WORDS + 5])} for row in sets["pku_saferlhf"][:6]
    ]
    (tmp_path / "pku_saferlhf.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    caplog.set_level("INFO")
    given = options(tmp_path, direction=tmp_path / "direction", ladders=4, requests=6, tokens=8, samples=2, show=0)
    text, numbers = graded_section(model, given)
    assert "4 ladders" in text
    assert set(numbers["steps"]) == {1, 2, 3, 4, 5}
    assert list(numbers["corr"][0]) == [10, 20, 40, 80]
    assert not any(row["rejected"][:40] in text + caplog.text for row in rows)
    monkeypatch.setattr("legend_hf.writing.writer.load_generator", never)
    again, numbers = graded_section(model, argparse.Namespace(**{**vars(given), "show": 1}))
    assert again == text
    assert rows[0]["rejected"][:40] in caplog.text
    with pytest.raises(AssertionError, match="done again"):  # the control: one more ladder is written
        graded_section(model, argparse.Namespace(**{**vars(given), "ladders": 5}))


def test_the_section_of_traces_has_every_table_and_writes_ladders_once(tiny_llama, tmp_path, sets, monkeypatch, caplog):
    from evaluate_traces import SETS, traces_section
    from tiny_causal import CHAT, save_tiny_causal

    model = save_tiny_causal(tiny_llama, tmp_path / "model", CHAT)
    rows = [{**row, "rejected": " ".join((row["rejected"].split() * 9)[:50])} for row in sets["pku_saferlhf"][:12]]
    (tmp_path / "pku_saferlhf.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr("evaluate_traces.costs", lambda *_: ("### What it costs", {}))  # of long texts, and timed
    caplog.set_level("INFO")
    given = options(tmp_path, rows=12, layer=1, ladders=2, only=None)
    text, numbers = traces_section(model, given)
    assert set(numbers) == {"settled", "turns", "poolings", "costs"}
    assert set(numbers["settled"]) == set(SETS)
    assert any(name.startswith("written") for name in numbers["turns"])
    assert not any(row["rejected"][:40] in text + caplog.text for row in rows)
    monkeypatch.setattr("legend_hf.writing.writer.load_generator", never)
    assert traces_section(model, given) == (text, numbers)
    with pytest.raises(AssertionError, match="done again"):  # the control: one more ladder is written
        traces_section(model, argparse.Namespace(**{**vars(given), "ladders": 3}))
    assert traces_section(model, argparse.Namespace(**{**vars(given), "only": "costs"})) == (
        "### What it costs", {"costs": {}},
    )  # fmt: skip
