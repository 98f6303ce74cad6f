"""An error advises only arguments that the function has which raised it, or says whose they are."""

from __future__ import annotations

import inspect
import re
from dataclasses import replace

import numpy as np
import pytest
from builders import pair_rows

from legend_hf import Direction, LegendMarginFn, LegendScoreFn, annotate, fit_direction
from legend_hf.preferences import PairSimilarityFn, curriculum, export_for, ladder_pairs, make_pairs, select_pairs
from legend_hf.reports import check_for_trl, ladder_check
from legend_hf.reports.report import report

ROWS = pair_rows()
BAD = {
    "empty": "",
    "missing": None,
    "long": "word " * 900,
}


@pytest.fixture(scope="module")
def direction(tiny_llama):
    return fit_direction(ROWS, model=str(tiny_llama))


def rows(bad=None, **columns):
    from datasets import Dataset

    made = [dict(row) for row in ROWS]
    for row in made:
        row.update(margin=0.5, margin_raw=1.0, chosen_score=1.0, rejected_score=0.0, **columns)
    if bad is not None:
        made[2]["chosen"] = BAD[bad]
    return Dataset.from_list(made)


def lists(bad=None):
    from datasets import Dataset

    made = [{"prompt": r["prompt"], "responses": [r["chosen"], r["rejected"]], "scores": [1.0, 0.0]} for r in ROWS]
    if bad is not None:
        made[2]["responses"][0] = BAD[bad]
    return Dataset.from_list(made)


def plain(bad=None):
    return rows(bad).select_columns(["prompt", "chosen", "rejected"])


def strange():
    """Rows of no shape that anything takes."""
    from datasets import Dataset

    return Dataset.from_list([{"question": "Why?", "good": "So.", "bad": "No.", "margin": 0.5}])


# Name: who is asked, and what is done with bad texts and with columns of other names.
CASES = {
    "LegendMarginFn": (LegendMarginFn, lambda d, bad: plain(bad).map(LegendMarginFn(d), batched=True)),
    "LegendScoreFn": (
        LegendScoreFn,
        lambda d, bad: lists(bad).select_columns(["prompt", "responses"]).map(LegendScoreFn(d), batched=True),
    ),
    "PairSimilarityFn": (PairSimilarityFn, lambda d, bad: plain(bad).map(PairSimilarityFn(d), batched=True)),
    "annotate": (annotate, lambda d, bad: annotate(plain(bad), d)),
    "fit_direction": (fit_direction, lambda d, bad: fit_direction(plain(bad), model=d.model_path)),
    "Direction.score": (Direction.score, lambda d, bad: d.score("Why?", BAD[bad])),
    "export_for": (export_for, lambda d, bad: export_for(rows(bad), trainer="trl", messages=True)),
    "curriculum": (curriculum, lambda d, bad: curriculum(rows(bad))),
    "make_pairs": (make_pairs, lambda d, bad: make_pairs(lists(bad), rule="dissimilar", model=d)),
    "ladder_check": (ladder_check, lambda d, bad: ladder_check(d, lists(bad).remove_columns("scores"))),
    "ladder_pairs": (ladder_pairs, lambda d, bad: ladder_pairs(lists(bad))),
    "report": (report, lambda d, bad: report(rows(bad))),
}
SHAPES = {
    "LegendMarginFn": lambda d: strange().remove_columns("margin").map(LegendMarginFn(d), batched=True),
    "LegendScoreFn": lambda d: strange().map(LegendScoreFn(d), batched=True),
    "PairSimilarityFn": lambda d: strange().map(PairSimilarityFn(d), batched=True),
    "annotate": lambda d: annotate(strange().remove_columns("margin"), LegendMarginFn(d)),
    "fit_direction": lambda d: fit_direction(strange(), model=d.model_path),
    "export_for": lambda d: export_for(strange(), trainer="trl"),
    "curriculum": lambda d: curriculum(strange()),
    "make_pairs": lambda d: make_pairs(strange(), rule="best"),
    "ladder_check": lambda d: ladder_check(d, strange()),
    "ladder_pairs": lambda d: ladder_pairs(strange()),
    "report": lambda d: report(strange()),
    "select_pairs": lambda d: select_pairs(strange()),
    "check_for_trl": lambda d: check_for_trl(strange(), d.model_path, max_length=64),
}
OTHERS = {"select_pairs": select_pairs, "check_for_trl": check_for_trl}
ADVISED = re.compile(r"`([a-z_]+)=[^`]*`|`([a-z]+_column)`|argument `([a-z_]+)`")


def foreign(asked, error):
    """The arguments that an error advises, and neither the function has nor the error gives to another."""
    said = " ".join([str(error), *getattr(error, "__notes__", [])])
    whose = [callable_ for name, callable_ in {"LegendMarginFn": LegendMarginFn}.items() if f"`{name}`" in said]
    has = {name for one in (asked, *whose) for name in inspect.signature(one).parameters}
    return {next(filter(None, found)) for found in ADVISED.findall(said)} - has


def refusal(attempt):
    """What it raises, None if it takes what it is given."""
    try:
        attempt()
    except ValueError as error:
        return error
    return None


TAKES = {"export_for", "curriculum", "make_pairs", "ladder_pairs", "report", "PairSimilarityFn"}
"""Some of these read no tokens, cut what is long, or leave bad rows out."""


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", CASES)
def test_the_advice_about_a_bad_text_can_be_followed(direction, tiny_llama, name, bad):
    asked, attempt = CASES[name]
    error = refusal(lambda: attempt(replace(direction, model_path=str(tiny_llama)), bad))
    assert error is not None or name in TAKES
    assert not foreign(asked, error), error
    if name in ("LegendMarginFn", "LegendScoreFn"):
        assert 'on_error="skip"' in str(error), "the control: where it is an argument it is advised"


@pytest.mark.parametrize("name", SHAPES)
def test_the_advice_about_other_columns_can_be_followed(direction, tiny_llama, name):
    asked = CASES[name][0] if name in CASES else OTHERS[name]
    error = refusal(lambda: SHAPES[name](replace(direction, model_path=str(tiny_llama))))
    assert error is not None or name == "check_for_trl"
    assert not foreign(LegendMarginFn if name == "annotate" else asked, error), error


def test_a_score_that_is_not_finite_is_an_error(direction, tiny_llama, monkeypatch):
    monkeypatch.setattr(Direction, "project", lambda self, hidden: np.array([np.nan]))
    with pytest.raises(ValueError, match="not finite") as refused:
        direction.score("Why?", "So.")
    assert not foreign(Direction.score, refused.value) - {"layer", "dtype"}


def test_the_control_finds_foreign_advice():
    assert foreign(Direction.score, ValueError('skip such rows with `on_error="skip"`')) == {"on_error"}
    assert foreign(Direction.score, ValueError("say so with `chosen_column`")) == {"chosen_column"}
    assert not foreign(Direction.score, ValueError("name another `device=`"))
