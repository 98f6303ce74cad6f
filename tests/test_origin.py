"""Columns remember the direction that made them, wherever they go; another one is refused in the same words."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from legend_hf import LegendMarginFn, LegendScoreFn, annotate, fit_direction, save_annotated
from legend_hf.cli import app
from legend_hf.directions.calibrate import Calibration
from legend_hf.margins.origin import mark, marks_of
from legend_hf.preferences import curriculum, make_pairs, select_pairs
from legend_hf.reports.report import report

TOPICS = ["bread", "bikes", "paint", "tents", "maps", "soup", "songs", "rain", "chess", "tea", "ropes", "lamps"]
ROWS = [
    {
        "prompt": f"Tell me about {t}.",
        "chosen": f"Gladly: {t} with care.",
        "rejected": f"No idea, who needs {t}",
        "responses": [f"Gladly: {t} with care.", f"No idea, who needs {t}", f"Perhaps {t}."],
    }
    for t in TOPICS
]
REFUSED = "is not what this direction makes of .*; give the direction it was annotated with"


@pytest.fixture(scope="module")
def a(tiny_llama):
    return fit_direction(ROWS, model=str(tiny_llama))


@pytest.fixture(scope="module")
def b(a):
    """Another direction of the same model, with the very calibration of the first: only the mark tells them apart."""
    vector = np.roll(a.vector, 1)
    return replace(a, vector=vector)


@pytest.fixture
def rows():
    from datasets import Dataset

    return Dataset.from_list(ROWS)


@pytest.fixture(scope="module")
def margins(a):
    from datasets import Dataset

    return annotate(Dataset.from_list(ROWS), a)


@pytest.fixture(scope="module")
def scored(a):
    from datasets import Dataset

    return Dataset.from_list(ROWS).select_columns(["prompt", "responses"]).map(LegendScoreFn(a), batched=True)


def through_map(rows, folder):
    return rows.map(lambda row: {"more": len(row["prompt"])})


def through_selecting(rows, folder):
    return rows.filter(lambda row: row["prompt"] != "x").shuffle(seed=1).select(range(8)).sort("prompt")


def through_concatenating(rows, folder):
    from datasets import concatenate_datasets

    return concatenate_datasets([rows.select(range(3)), rows.select(range(3, 12))])


def through_disk(rows, folder):
    from datasets import load_from_disk

    rows.save_to_disk(folder / "disk")
    return load_from_disk(folder / "disk")


def through_files(kind):
    def way(rows, folder):
        from datasets import load_dataset

        getattr(rows, f"to_{kind}")(folder / f"rows.{kind}")
        return load_dataset(kind, data_files=str(folder / f"rows.{kind}"), split="train")

    return way


def through_pandas(rows, folder):
    from datasets import Dataset

    return Dataset.from_pandas(rows.to_pandas())


def through_a_stream(rows, folder):
    from datasets import Dataset

    stream = rows.to_iterable_dataset().map(lambda row: {"more": 1})
    return Dataset.from_list(list(stream))


def through_the_hub(rows, folder):
    from datasets import load_dataset

    repo = f"user/marks-of-{len(rows.column_names)}-columns"
    rows.push_to_hub(repo)
    return load_dataset(repo, split="train")


WAYS = {
    "map": through_map,
    "selecting": through_selecting,
    "concatenating": through_concatenating,
    "disk": through_disk,
    "parquet": through_files("parquet"),
    "json": through_files("json"),
    "pandas": through_pandas,
    "stream": through_a_stream,
    "hub": through_the_hub,
}


@pytest.mark.parametrize("way", WAYS)
def test_what_made_a_column_is_known_after_every_journey(way, a, b, margins, scored, tmp_path, hub):
    gone = WAYS[way](scored, tmp_path)
    with pytest.raises(ValueError, match=f"`scores` {REFUSED}"):
        make_pairs(gone, rule="best", direction=b)
    pairs = make_pairs(gone, rule="best", direction=a)
    assert marks_of(pairs, "margin") == {mark(a)}, "the control: its own direction is taken, and remembered on"
    (tmp_path / "again").mkdir()
    gone = WAYS[way](margins, tmp_path / "again")
    with pytest.raises(ValueError, match=f"`margin` {REFUSED}"):
        report(gone, direction=b)
    assert not any("nothing says" in doubt for doubt in report(gone, direction=a).splits[0].doubts)


def test_every_function_refuses_another_direction_in_the_same_words(a, b, margins, scored, tmp_path):
    tries = {
        "report": lambda d: report(margins, direction=d),
        "report of a stream": lambda d: report(margins.to_iterable_dataset(), direction=d),
        "save": lambda d: save_annotated(margins, tmp_path / mark(d), direction=d),
        "pairs": lambda d: make_pairs(scored, rule="best", direction=d),
        "pairs, saved": lambda d: save_annotated(
            make_pairs(scored, rule="best", direction=a), tmp_path / f"p{mark(d)}", direction=d
        ),
        "pairs, reported": lambda d: report(make_pairs(scored, rule="all", direction=a), direction=d),
    }
    for name, attempt in tries.items():
        attempt(a)
        with pytest.raises(ValueError, match=REFUSED) as refused:
            attempt(b)
        assert mark(a) in str(refused.value), name
        assert mark(b) in str(refused.value), name


def test_the_command_refuses_too(a, b, margins, tmp_path):
    margins.to_parquet(tmp_path / "rows.parquet")
    for name, direction in (("a", a), ("b", b)):
        direction.save_pretrained(tmp_path / name)
    command = ["report", str(tmp_path / "rows.parquet"), "--direction"]
    assert CliRunner().invoke(app, [*command, str(tmp_path / "a")]).exit_code == 0
    done = CliRunner().invoke(app, [*command, str(tmp_path / "b")])
    assert done.exit_code == 2
    assert re.search(REFUSED, done.output)


def test_older_margins_are_held_against_the_calibration_and_otherwise_said(a, margins, scored, tmp_path, caplog):
    old = margins.remove_columns("margin_direction")
    (split,) = report(old, direction=a).splits
    assert any("nothing says which direction made the margins" in doubt for doubt in split.doubts)
    assert not any("nothing says" in doubt for doubt in report(old).splits[0].doubts), "nobody asked"
    wider = replace(a, calibration=Calibration("unit", a.calibration.scale * 3))
    for attempt in (lambda d: report(old, direction=d), lambda d: save_annotated(old, tmp_path / "x", direction=d)):
        with pytest.raises(ValueError, match=f"`margin` {REFUSED}"):
            attempt(wider)
    save_annotated(old, tmp_path / "old", direction=a)
    assert "nothing says which direction made `margin`" in caplog.text
    caplog.clear()
    make_pairs(scored.remove_columns("scores_direction"), rule="best", direction=a)
    assert "nothing says which direction made `scores`" in caplog.text
    caplog.clear()
    make_pairs(scored, rule="best", direction=wider)  # the same scores on another scale, which is what it is for
    assert "nothing says" not in caplog.text


def test_rows_of_two_directions_are_not_compared(a, b, rows, margins):
    from datasets import concatenate_datasets

    both = concatenate_datasets([margins, rows.map(LegendMarginFn(b), batched=True)])
    assert marks_of(both, "margin_raw") == {mark(a), mark(b)}
    for attempt in (lambda d: curriculum(d, mode="global"), lambda d: select_pairs(d, by="margin")):
        attempt(margins)
        with pytest.raises(ValueError, match="made by 2 directions .* cannot be compared"):
            attempt(both)
    assert any("made by 2 directions" in doubt for doubt in report(both).splits[0].doubts)
    with pytest.raises(ValueError, match=REFUSED):
        report(both, direction=a)


def test_several_directions_each_keep_their_mark(a, b, rows):
    named = annotate(rows, LegendMarginFn({"x": a, "y": b}))
    assert marks_of(named, "margin_x") == marks_of(named, "margin_raw_x") == {mark(a)}
    assert marks_of(named, "margin_y") == {mark(b)}
    report(named, direction={"x": a, "y": b})
    report(named, direction=b)  # not by name: one of them is its
    with pytest.raises(ValueError, match=f"`margin_x` {REFUSED}"):
        report(named, direction={"x": b, "y": a})
    scores = annotate(rows.select_columns(["prompt", "responses"]), LegendScoreFn({"x": a, "y": b}))
    make_pairs(scores, rule="best", scores_column="scores_x", direction=a)
    with pytest.raises(ValueError, match=f"`scores_y` {REFUSED}"):
        make_pairs(scores, rule="best", scores_column="scores_y", direction=a)


def test_a_mark_is_of_the_reading_and_not_of_where_the_model_lies(a):
    published = replace(a.reader, model="you/model", revision="0" * 40, model_sha256=None)
    assert mark(replace(a, reader=published, repo_id="you/direction")) == mark(a)
    assert mark(replace(a, calibration=Calibration("raw", 1.0))) == mark(a)
    for change in ({"pooling": "last"}, {"layer": 0}, {"template": "{prompt}"}):
        assert mark(replace(a, reader=replace(a.reader, **change))) != mark(a)


def test_a_column_of_that_name_with_other_words_says_nothing(a, margins):
    compass = margins.remove_columns("margin_direction").add_column("margin_direction", ["up", "down"] * 6)
    assert marks_of(compass, "margin") == {None}
    report(compass, direction=a)
