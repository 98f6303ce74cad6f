"""What a dataset calls its columns: every function that reads rows can be told, and says so by arguments it has."""

from __future__ import annotations

import inspect
import re

import numpy as np
import pytest
from datasets import Dataset

from legend_hf import LegendMarginFn, LegendScoreFn, annotate, directions, fit_direction, preferences, reports
from legend_hf.directions.induce import pairs_with_refusal
from legend_hf.preferences import PairSimilarityFn
from legend_hf.reading.formats import RowError
from legend_hf.reports.report import report

PAIRS = [
    {"prompt": f"May I eat {thing}?", "chosen": f"Ask a cook about {thing}.", "rejected": f"Eat all {thing}, go."}
    for thing in ("soap", "tea", "jam", "pie")
]
NAMES = {"prompt": "q", "chosen": "better", "rejected": "worse"}
ARGUMENTS = {f"{name}_column": other for name, other in NAMES.items()}


def renamed(rows):
    return [{NAMES[name]: text for name, text in row.items()} for row in rows]


@pytest.fixture(scope="module")
def direction(tiny_llama):
    return fit_direction(PAIRS, model=str(tiny_llama), layer=2)


@pytest.mark.parametrize("make", [list, Dataset.from_list, lambda rows: Dataset.from_list(rows).to_iterable_dataset()])
def test_a_direction_is_fitted_on_columns_of_any_name(direction, tiny_llama, make):
    named = fit_direction(make(renamed(PAIRS)), model=str(tiny_llama), layer=2, **ARGUMENTS)
    assert np.array_equal(named.vector, direction.vector)
    turned = fit_direction(  # control: the other way round it is another direction
        make(renamed(PAIRS)), model=str(tiny_llama), layer=2, prompt_column="q", chosen_column="worse", rejected_column="better"
    )  # fmt: skip
    assert not np.array_equal(turned.vector, direction.vector)


def test_a_text_that_does_not_fit_is_named_by_its_own_column(tiny_llama):
    rows = [*PAIRS, {**PAIRS[0], "rejected": "word " * 600}]
    with pytest.raises(RowError, match=r"row 4, column `worse`: the response needs"):
        fit_direction(renamed(rows), model=str(tiny_llama), layer=2, **ARGUMENTS)
    pku = [
        {"prompt": r["prompt"], "response_0": r["rejected"], "response_1": r["chosen"], "safer_response_id": 1}
        for r in rows
    ]
    with pytest.raises(RowError, match=r"row 4, column `response_0`: the response needs"):
        fit_direction(pku, model=str(tiny_llama), layer=2)


ODD = [{"a": "x", "b": "y"}]
# Called with rows that have none of the columns, and the direction where one is needed.
READERS = {
    fit_direction: lambda d: fit_direction(ODD, model=str(d.model_path)),
    LegendMarginFn: lambda d: annotate(Dataset.from_list(ODD), LegendMarginFn(d)),
    LegendScoreFn: lambda d: annotate(Dataset.from_list(ODD), LegendScoreFn(d)),
    PairSimilarityFn: lambda d: annotate(Dataset.from_list(ODD), PairSimilarityFn(d)),
    directions.induce_pairs: lambda d: directions.induce_pairs(ODD, model=str(d.model_path)),
    directions.pairs_from_labels: lambda d: directions.pairs_from_labels(ODD),
    directions.sample_questions: lambda d: directions.sample_questions(ODD, per_category=1),
    pairs_with_refusal: lambda d: pairs_with_refusal(ODD),
    reports.ladder_check: lambda d: reports.ladder_check(d, Dataset.from_list(ODD)),
    preferences.make_pairs: lambda d: preferences.make_pairs(Dataset.from_list(ODD), rule="best"),
    preferences.curriculum: lambda d: preferences.curriculum(Dataset.from_list([{**ODD[0], "margin": 1.0}])),
    preferences.export_for: lambda d: preferences.export_for(Dataset.from_list([{**ODD[0], "margin": 1.0}])),
    preferences.correction_ladders: lambda d: preferences.correction_ladders(
        Dataset.from_list(ODD), model=lambda prompts, prefixes: prompts
    ),
    preferences.ladder_pairs: lambda d: preferences.ladder_pairs(Dataset.from_list(ODD)),
    preferences.compute_corr_at_k: lambda d: preferences.compute_corr_at_k(
        Dataset.from_list(ODD), model=str(d.model_path), judge=list
    ),
    report: lambda d: report(Dataset.from_list([{**ODD[0], "margin": 1.0}])),
}


def arguments_in(text):
    return set(re.findall(r"\w*_columns?\b", text)) - {"rename_column", "rename_columns", "remove_columns"}


@pytest.mark.parametrize("function", READERS, ids=lambda function: function.__name__)
def test_an_error_names_arguments_that_its_function_has(direction, function):
    with pytest.raises(ValueError, match="`a`") as caught:
        READERS[function](direction)
    said = str(caught.value)
    assert arguments_in(said) <= set(inspect.signature(function).parameters), said
    assert arguments_in(said) or "use `rename_columns`" in said, said


def test_that_check_can_fail():  # control of the test above
    said = "say so with `prompt_column=` or the `*_column` arguments, or use `rename_columns`"
    assert arguments_in(said) == {"prompt_column", "_column"}
