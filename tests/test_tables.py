"""Cells of tables: a number is shown with its interval wherever it has one, and a table holds every figure of every split."""

from __future__ import annotations

import math
import re
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legend_hf.reports.blocks import as_markdown
from legend_hf.reports.findings import UNKNOWN, Estimate
from legend_hf.reports.tables import bracketed, by_split, listed

numbers = st.floats(-100, 100)


@given(numbers, numbers, numbers, st.booleans(), st.booleans())
def test_a_number_stands_before_its_interval_in_one_form(value, low, high, signs, percent):
    shown = bracketed(Estimate(value, (low, high)), signs=signs, percent=percent)
    alone = [bracketed(Estimate(v), signs=signs, percent=percent).removesuffix(" %") for v in (value, low, high)]
    assert shown == f"{alone[0]} [{alone[1]}, {alone[2]}]" + (" %" if percent else "")
    times = 100 if percent else 1
    read = float(re.split(r" ", shown)[0].replace("\N{MINUS SIGN}", "-"))
    assert read == pytest.approx(times * value, abs=0.051)


@pytest.mark.parametrize("ends", [(math.nan, 1.0), (0.0, math.inf)])
def test_what_is_not_known_is_not_made_up(ends):
    assert bracketed(Estimate(0.5, ends)) == bracketed(Estimate(0.5)) == "0.500"
    assert bracketed(UNKNOWN, percent=True) == bracketed(UNKNOWN, signs=True) == "–"
    assert bracketed(Estimate(0.5, (0.0, 1.0))) == "0.500 [0.000, 1.000]", "the control: what is known is shown"


def test_names_are_counted_where_they_are_too_many():
    assert listed(["a", "b"], 2) == "a, b"
    assert listed(["a", "b", "c", "d"], 2) == "a, b and 2 more"
    assert listed([], 2) == ""


def test_a_table_has_a_figure_a_row_and_a_split_a_column():
    splits = [SimpleNamespace(split=name, rows=number) for name, number in (("train", 3), ("a|b", 4))]
    figures = [("rows", lambda s: str(s.rows), "All."), ("twice", lambda s: str(2 * s.rows), "Twice as many.")]
    head, rule, *body = as_markdown([by_split("Figure", figures, splits)]).splitlines()
    assert [head.count(word) for word in ("Figure", "train", "What it says")] == [1, 1, 1]
    assert [re.split(r" *(?<!\\)\| *", line)[1:-1] for line in body] == [
        ["rows", "3", "4", "All."],
        ["twice", "6", "8", "Twice as many."],
    ]
    assert len(re.split(r"(?<!\\)\|", head)) == len(re.split(r"(?<!\\)\|", rule)), "a name adds no column"
