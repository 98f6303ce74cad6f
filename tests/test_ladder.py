"""Ladders: orders of which the truth is known, on a real model; intervals that keep their promise; rows that are refused."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from legend_hf.directions.calibrate import Calibration
from legend_hf.directions.direction import Direction
from legend_hf.reading.formats import RowError
from legend_hf.reading.reader import describe_model
from legend_hf.reports import ladder
from legend_hf.reports.findings import UNKNOWN
from legend_hf.reports.ladder import ladder_check, measure_ladders
from legend_hf.reports.report import report

WORDS = ("bread", "bikes", "paint", "tents", "maps", "soup", "rain", "tea", "wool", "glass", "slow", "warm", "quiet")


def words(rng, n):
    return " ".join(rng.choice(WORDS) for _ in range(n))


def made(n=60, k=4, seed=0):
    """Rows whose responses have no order at all; every third prompt comes twice."""
    rng = random.Random(seed)
    return [
        {
            "prompt": f"Question {i - (i % 3 == 2)}: {words(random.Random(i - (i % 3 == 2)), 3)}?",
            "responses": [f"{words(rng, rng.randint(2, 9))}." for _ in range(k)],
            "kept": i,
        }
        for i in range(n)
    ]


def dataset(rows):
    from datasets import Dataset

    return Dataset.from_list(rows)


@pytest.fixture(scope="module")
def direction(tiny_llama):
    """A random one, which knows of no ladder."""
    vector = np.random.default_rng(3).normal(size=32)
    return Direction(
        vector=(vector / np.linalg.norm(vector)).astype(np.float32),
        reader=describe_model(str(tiny_llama), layer=2),
        calibration=Calibration("raw"),
        model_path=str(tiny_llama),
    )


@pytest.fixture(scope="module")
def sorted_rows(direction):
    """The rows, with the responses in the order of the direction's own scores, which another way of reading gave."""
    return [
        {**row, "responses": sorted(row["responses"], key=lambda r: -direction.score(row["prompt"], r))}
        for row in made(24, 3)
    ]


def test_a_random_direction_sees_no_ladder(direction):
    """An interval of 95 % may miss for one draw, so there are ten."""
    taus, doubted = [], 0
    for seed in range(10):
        found = ladder_check(direction, dataset(made(seed=seed)))
        assert (found.rows, found.read, found.skipped, found.prompts, found.responses) == (60, 60, 0, 40, {"4": 60})
        low, high = found.tau.interval
        assert low < found.tau.value < high
        said = any("cannot be told from chance" in doubt for doubt in found.doubts)
        assert said is bool(low <= 0 <= high)
        taus.append(found.tau.value)
        doubted += said
    assert doubted >= 8
    assert abs(np.mean(taus)) < 0.08
    assert found.perfect_by_chance == pytest.approx(1 / 24)


def test_a_direction_that_made_the_order_finds_it_and_its_opposite_finds_it_reversed(direction, sorted_rows):
    rows = dataset(sorted_rows)
    found = ladder_check(direction, rows)
    assert found.tau.value == found.perfect.value == 1.0
    assert 0.4 < found.tau.interval[0] < found.tau.interval[1] == 1.0, "of 16 prompts"
    assert found.measured.tau.tolist() == [1.0] * 24
    assert [step.agreement.value for step in found.steps] == [1.0, 1.0]
    assert found.doubts == ("the ladders have 16 distinct prompts, fewer than 20: too few to rely on.",)
    means = [rank.relative.value for rank in found.ranks]
    assert means == sorted(means, reverse=True)
    assert sum(means) == pytest.approx(0, abs=1e-9)
    against = ladder_check(replace(direction, vector=-direction.vector), rows)
    assert against.tau.value == -1.0
    assert against.perfect.value == 0.0
    assert any("rise along the ladders" in doubt for doubt in against.doubts)
    upside_down = dataset([{**row, "responses": row["responses"][::-1]} for row in sorted_rows])
    assert ladder_check(direction, upside_down).tau.value == -1.0
    # The control: rows that are not in the order of the scores.
    assert abs(ladder_check(direction, dataset(made(24, 3))).tau.value) < 0.5


@pytest.mark.parametrize("batch_tokens", [None, 40])
def test_scores_are_those_of_each_text_alone(direction, batch_tokens):
    rows = made(6, 3)
    found = ladder_check(direction, dataset(rows), batch_tokens=batch_tokens).measured
    alone = np.array([[direction.score(row["prompt"], r) for r in row["responses"]] for row in rows])
    assert np.abs(found.scores - alone).max() <= 1e-4 * alone.std()
    assert np.abs(found.scores - alone[:, ::-1]).max() > 0.1 * alone.std(), "the control: another order is seen"
    np.testing.assert_array_equal(found.lengths, [[len(r) for r in row["responses"]] for row in rows])


def test_equal_responses_are_ties_that_earn_nothing(direction):
    same = ladder_check(direction, dataset([{**row, "responses": row["responses"][:1] * 3} for row in made(12)]))
    assert same.tau.value == same.perfect.value == same.length.value == 0.0
    assert [step.agreement.value for step in same.steps] == [0.5, 0.5]


def numbers(check):
    estimates = [check.tau, check.perfect, check.length, check.gain]
    estimates += [e for rank in check.ranks for e in (rank.score, rank.relative)]
    estimates += [e for step in check.steps for e in (step.agreement, step.length)]
    return np.array([n for e in estimates for n in (e.value, *e.interval)])


def test_the_order_of_the_rows_and_the_batches_do_not_matter(direction, monkeypatch):
    rows = made(40, 3)
    found = ladder_check(direction, dataset(rows))
    order = np.random.default_rng(1).permutation(40)
    monkeypatch.setattr(ladder, "ROWS_AT_ONCE", 7)
    shuffled = ladder_check(direction, dataset(rows).select(order))
    np.testing.assert_allclose(numbers(shuffled), numbers(found), atol=1e-5)
    np.testing.assert_allclose(shuffled.measured.tau, found.measured.tau[order])
    other = ladder_check(direction, dataset(made(40, 3, seed=9)))
    assert np.abs(numbers(other) - numbers(found)).max() > 1e-3, "the control: other rows give other numbers"


def test_ladders_on_disk_formatted_and_with_other_names(direction, tmp_path):
    from datasets import load_from_disk

    ds = dataset(made(12, 3))
    expected = ladder_check(direction, ds)
    ds.save_to_disk(tmp_path / "ladders")
    stored = load_from_disk(tmp_path / "ladders").with_format("numpy")
    assert ladder_check(direction, stored) == expected
    renamed = ds.rename_columns({"prompt": "question", "responses": "graded"})
    assert ladder_check(direction, renamed, prompt_column="question", responses_column="graded") == expected
    messages = [
        {**row, "responses": [[{"role": "assistant", "content": r}] for r in row["responses"]]} for row in made(12, 3)
    ]
    messages = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in messages]
    assert ladder_check(direction, dataset(messages)).responses == {"3": 12}


# What is measured, on scores that were made up.


def random_ladders(n, k, seed=0, signal=0.0):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(n, k)) - signal * np.arange(k)
    return scores, rng.integers(5, 90, (n, k)).astype(float), np.arange(n)


def measured(scores, lengths, groups):
    return measure_ladders(scores, lengths, groups, row=np.arange(len(scores)), rows=len(scores))


@pytest.mark.parametrize(("signal", "truth"), [(0.0, 0.0), (math.sqrt(2), 0.6827)])
def test_the_interval_holds_the_truth_about_as_often_as_it_says(signal, truth):
    """Of two responses with noise of variance 1 each and √2 between them, tau is 2 Φ(1) - 1."""
    hits = 0
    for seed in range(40):
        low, high = measured(*random_ladders(150, 2, seed, signal)).tau.interval
        hits += low <= truth <= high
    assert hits >= 34
    low, high = measured(*random_ladders(150, 2, 0, signal)).tau.interval
    assert not low <= truth + 0.4 <= high, "the control: not everything is inside"


def test_two_responses_make_tau_twice_the_agreement_less_one():
    scores, lengths, groups = random_ladders(80, 2, signal=0.7)
    scores[:5, 1] = scores[:5, 0]
    lengths[:9, 1] = lengths[:9, 0]
    found = measured(scores, lengths, groups)
    (step,) = found.steps
    assert found.tau.value == pytest.approx(2 * step.agreement.value - 1)
    assert found.tau.interval == pytest.approx(tuple(2 * end - 1 for end in step.agreement.interval))
    assert found.length.value == pytest.approx(2 * step.length.value - 1)
    assert found.gain.value == pytest.approx(found.tau.value - found.length.value)
    assert found.perfect.value == (scores[:, 0] > scores[:, 1]).mean() != step.agreement.value


def test_a_step_that_is_not_seen_is_told_from_those_that_are():
    """What last-token reading may do to graded corrections: the ends differ and the middle is tied."""
    scores, lengths, groups = random_ladders(300, 6)
    scores += np.array([4.0, 0, 0, 0, 0, -4.0])
    found = measured(scores, lengths, groups)
    assert found.steps[0].agreement.value > 0.95
    assert found.steps[4].agreement.value > 0.95
    for step in found.steps[1:4]:
        assert abs(step.agreement.value - 0.5) < 0.1
    assert 0.5 < found.tau.value < 0.7  # 9 of 15 pairs are seen
    assert found.doubts == ()
    assert found.perfect.value < 0.15


@pytest.mark.parametrize(("rule", "sign"), [("shorter", 1), ("longer", -1)])
def test_scores_that_are_length_are_no_gain_whichever_length_is_better(rule, sign):
    _, lengths, groups = random_ladders(100, 4, seed=5)
    lengths += sign * 30 * np.arange(4)
    found = measured(-sign * lengths, lengths, groups)
    assert found.length_rule == rule
    assert found.tau.value == pytest.approx(found.length.value)
    assert found.tau.interval == pytest.approx(found.length.interval)
    assert found.tau.interval[0] > 0
    assert found.gain.value == pytest.approx(0.0)
    assert found.doubts == (
        f'its order of the ladders\' responses is not beyond that of their length ("the {rule}, the better"), within the '
        "interval.",
    )
    assert [step.length.value for step in found.steps] == [step.agreement.value for step in found.steps]
    scores = random_ladders(100, 4, seed=6, signal=3.0)[0]
    assert measured(scores, lengths, groups).gain.interval[0] > 0, "the control: these know more"


def test_scores_may_move_by_prompt_without_moving_what_is_relative():
    scores, lengths, groups = random_ladders(100, 3, signal=0.5)
    moved = scores + 1000 * np.random.default_rng(2).normal(size=(100, 1))
    one, other = measured(scores, lengths, groups), measured(moved, lengths, groups)
    assert one.tau == other.tau
    for a, b in zip(one.ranks, other.ranks, strict=True):
        assert a.relative.value == pytest.approx(b.relative.value, abs=1e-9)
        assert a.relative.interval == pytest.approx(b.relative.interval, abs=1e-9)
        assert a.score.value != pytest.approx(b.score.value, abs=1)


def test_ladders_of_several_lengths_count_where_they_have_the_rank():
    scores, lengths, groups = random_ladders(60, 4, signal=1.0)
    for values in (scores, lengths):
        values[:20, 2:] = np.nan
    found = measured(scores, lengths, groups)
    assert found.responses == {"2": 20, "4": 40}
    assert [rank.rows for rank in found.ranks] == [60, 60, 40, 40]
    assert [(step.rank, step.rows) for step in found.steps] == [(1, 60), (2, 40), (3, 40)]
    long = measured(scores[20:], lengths[20:], groups[20:])
    assert found.ranks[2:] == long.ranks[2:]
    assert found.steps[2:] == long.steps[2:]
    assert found.ranks[0].score.value == pytest.approx(scores[:, 0].mean())
    assert found.steps[0].agreement.value == (scores[:, 0] > scores[:, 1]).mean()
    assert found.perfect_by_chance == pytest.approx((20 / 2 + 40 / 24) / 60)
    assert np.isfinite(found.measured.tau).all()


def test_intervals_are_by_prompt():
    scores, lengths, _ = random_ladders(40, 3, signal=0.5)
    repeated, long = np.repeat(scores, 6, axis=0), np.repeat(lengths, 6, axis=0)
    apart = measured(repeated, long, np.arange(240)).tau.interval
    together = measured(repeated, long, np.repeat(np.arange(40), 6)).tau.interval
    assert together[1] - together[0] > 2 * (apart[1] - apart[0])


# What is refused.


def test_bad_rows_are_named_before_any_is_scored(direction, monkeypatch):
    from legend_hf.margins.scoring import Scoring

    monkeypatch.setattr(Scoring, "score", lambda *_: pytest.fail("scored before all rows were checked"))
    monkeypatch.setattr(ladder, "ROWS_AT_ONCE", 5)
    rows = made(12, 3)
    for responses, column, reason in (
        (["alone"], "responses", "given one response; a ladder has at least two, best first"),
        ([], "responses", "at least one response"),
        (["good", ""], "responses\\[1\\]", "empty or only whitespace"),
        (["good", None, "good"], "responses\\[1\\]", "given None"),
    ):
        bad = [*rows[:10], {**rows[10], "responses": responses}, rows[11]]
        with pytest.raises(RowError, match=f"row 10, column `{column}`.*{reason}"):
            ladder_check(direction, dataset(bad))


def test_bad_rows_are_skipped_counted_and_named_in_the_log(direction, monkeypatch, caplog):
    monkeypatch.setattr(ladder, "ROWS_AT_ONCE", 5)
    rows = made(14, 3)
    bad = [*rows[:3], {**rows[0], "responses": ["alone"]}, *rows[3:], {**rows[0], "responses": ["a", " "]}]
    found = ladder_check(direction, dataset(bad), on_error="skip")
    assert (found.rows, found.read, found.skipped) == (16, 14, 2)
    assert found.measured.row.tolist() == [0, 1, 2, *range(4, 15)]
    assert "left out 2 of 16 ladders that cannot be read: rows [3, 15]" in caplog.text
    np.testing.assert_allclose(numbers(found), numbers(ladder_check(direction, dataset(rows))), atol=1e-5)


def test_no_ladder_gives_no_number(direction):
    empty = dataset(made(3)).select([])
    unreadable = dataset([{"prompt": "Why?", "responses": ["alone"]}])
    for rows in (empty, unreadable):
        found = ladder_check(direction, rows, on_error="skip")
        assert found.tau == found.perfect == found.gain == UNKNOWN
        assert (found.read, found.ranks, found.steps, found.responses) == (0, (), (), {})
        assert any("nothing is known" in doubt for doubt in found.doubts)
    few = ladder_check(direction, dataset(made(3)))
    assert few.tau.value is not None
    assert few.tau.interval is None
    assert any("too few distinct prompts for intervals: 2" in doubt for doubt in few.doubts)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (list, {}, "`ladders` is a list; give one `Dataset`: a split of a dictionary of them"),
        (lambda ds: {"train": ds}, {}, "`ladders` is a dict; give one `Dataset`"),
        (lambda ds: ds.remove_columns("responses"), {}, "arguments `responses_column` and `prompt_column`"),
        (lambda ds: ds, {"responses_column": "graded"}, "`responses_column='graded'` names no column"),
        (lambda ds: ds, {"prompt_column": "question"}, "`prompt_column='question'` names no column"),
        (lambda ds: ds, {"on_error": "zero"}, "`on_error` is 'zero'; allowed are 'raise', 'skip'"),
        (lambda ds: ds, {"batch_tokens": 0}, "`batch_tokens` is 0"),
    ],
)
def test_errors_name_what_was_given_and_what_to_do(direction, monkeypatch, change, options, message):
    from legend_hf.margins.scoring import Scorer

    monkeypatch.setattr(Scorer, "open", lambda *_: pytest.fail("loaded a model first"))
    with pytest.raises(ValueError, match=message):
        ladder_check(direction, change(dataset(made(3))), **options)


def test_a_direction_may_be_given_by_its_folder(direction, tiny_llama, tmp_path, monkeypatch):
    ladders = dataset(made(3))
    direction.save_pretrained(tmp_path)
    load = Direction.from_pretrained
    monkeypatch.setattr(Direction, "from_pretrained", lambda source: replace(load(source), model_path=str(tiny_llama)))
    assert ladder_check(str(tmp_path), ladders) == ladder_check(tmp_path, ladders) == ladder_check(direction, ladders)
    monkeypatch.undo()
    monkeypatch.setattr(ladder.Scorer, "open", lambda *_: pytest.fail("loaded a model first"))
    with pytest.raises((ValueError, OSError), match="nowhere"):
        ladder_check(str(tmp_path / "nowhere"), ladders)
    with pytest.raises(ValueError, match="`ladders` is an IterableDataset; give one `Dataset`"):
        ladder_check(str(tmp_path / "nowhere"), ladders.to_iterable_dataset())


def test_scores_that_are_not_finite_are_refused(direction, monkeypatch):
    monkeypatch.setattr(Direction, "project", lambda _, hidden: np.full(len(hidden), np.inf))
    with pytest.raises(ValueError, match="row 0: .* not finite in float32 for this text"):
        ladder_check(direction, dataset(made(4, 3)))


# In the report.


def test_the_report_has_the_ladders(direction, sorted_rows):
    bad = [*sorted_rows, {**sorted_rows[0], "responses": ["alone"]}]
    text = report(None, direction=direction, ladders=dataset(bad)).to_markdown()
    assert "| ladders read | 24 of 25 (1 skipped) | All numbers below are about these: 24 of 3 responses. |" in text
    assert "| **Kendall's tau** | +1.000 [+0.513, +1.000] | " in text
    assert "By chance: 17 %." in text
    assert "a hypothesis, not a property of the method" in text
    ranks = [line for line in text.splitlines() if line.startswith(("| 1 |", "| 2 |", "| 3 |"))]
    assert [line.count("|") for line in ranks] == [6, 6, 6]
    assert "| 1.000 [0.756, 1.000] |" in ranks[0]
    assert ranks[2].endswith("| – | – |")
    assert text.partition("Along ladders")[0].count("Doubtful") == 1
    assert "16 distinct prompts, fewer than 20" in text


def test_the_json_has_its_numbers_and_not_its_arrays(direction, sorted_rows):
    made_report = report(None, direction=direction, ladders=dataset(sorted_rows), seed=4)
    (found,) = json.loads(made_report.to_json())["directions"]
    assert found["ladder"]["tau"] == {"value": 1.0, "interval": [pytest.approx(0.5126, abs=1e-4), 1.0]}
    assert [step["rank"] for step in found["ladder"]["steps"]] == [1, 2]
    assert "measured" not in found["ladder"]
    assert made_report.directions[0].ladder == ladder_check(direction, dataset(sorted_rows))
    assert json.loads(report(None, direction=direction).to_json())["directions"][0]["ladder"] is None


@pytest.mark.parametrize("rows", [made(), made(2), []], ids=["no order", "few", "none"])
def test_the_report_doubts_what_is_doubtful(direction, rows):
    ds = dataset(rows) if rows else dataset(made(2)).select([])
    made_report = report(None, direction={"odd": direction}, ladders=ds)
    (about,) = made_report.directions
    assert about.ladder.doubts
    assert set(about.ladder.doubts) <= set(about.doubts)
    assert made_report.to_markdown().count("**Doubtful:**") == len(about.doubts)
    json.loads(made_report.to_json(), parse_constant=lambda name: pytest.fail(f"{name} in the JSON"))


def test_ladders_need_a_direction():
    with pytest.raises(ValueError, match="`ladders` test a direction; give it as `direction=`"):
        report(None, ladders=dataset(made(2)))


def test_importing_ladders_is_cheap():
    code = "import sys, legend_hf.reports.ladder; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"torch", "transformers", "datasets"}.isdisjoint(loaded)
