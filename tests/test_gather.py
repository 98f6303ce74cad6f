"""The columns of a report: which are margins, of which direction, and what is kept of texts."""

from __future__ import annotations

import numpy as np
import pytest
from test_report import only, rows

from legend_hf.reports import gather, judge
from legend_hf.reports.findings import Estimate
from legend_hf.reports.gather import read_margins
from legend_hf.reports.report import report


def test_reading_alone_gives_arrays():
    (margins,) = read_margins(rows(30), name="test")
    assert margins.split == "test"
    assert margins.margin.shape == margins.groups.shape == (30,)
    assert len(np.unique(margins.groups)) == 15
    assert isinstance(only(rows(30)).agreement, Estimate)


def test_no_more_texts_are_held_than_are_shown(monkeypatch):
    """However many rows contradict their label, in whatever order they come."""
    alive = most = 0

    class Excerpt(tuple):
        def __new__(cls, texts):
            nonlocal alive, most
            alive, most = alive + 1, max(most, alive + 1)
            return super().__new__(cls, texts)

        def __del__(self):
            nonlocal alive
            alive -= 1

    short = gather._excerpt
    monkeypatch.setattr(gather, "_excerpt", lambda pair: Excerpt(short(pair)))
    raw = -np.random.default_rng(3).permutation(3000).astype(np.float32)
    raw[::50] = raw[1::50]  # equal ones: the first row counts
    ds = rows(3000, margin_raw=raw)
    monkeypatch.setattr(judge, "SUSPICIOUS", 7)
    found = only(ds, excerpts=True)
    assert [s.row for s in found.suspicious] == np.lexsort((np.arange(3000), raw))[:7].tolist()
    assert all(s.excerpt == (ds[s.row]["prompt"], ds[s.row]["chosen"], ds[s.row]["rejected"]) for s in found.suspicious)
    assert 7 <= most <= 8, "the control: some were made"
    (margins,) = read_margins(ds, excerpts=7)
    assert set(margins.excerpts) == {s.row for s in found.suspicious}
    monkeypatch.setattr(judge, "SUSPICIOUS", 0)
    assert only(ds, excerpts=True).suspicious == ()


def test_several_directions_have_a_table_each_and_no_kind_of_column_is_taken_for_one():
    ds = rows(60).rename_columns({"margin": "margin_harm", "margin_raw": "margin_raw_harm"})
    ds = ds.add_column("margin_help", [0.1] * 60).add_column("margin_prob_help", [0.6] * 60)
    ds = ds.add_column("margin_negative_help", [False] * 60).add_column("margin_status", ["ok"] * 60)
    made = report(ds)
    assert [s.column for s in made.splits] == ["margin_harm", "margin_help"]
    assert [s.probability is None for s in made.splits] == [True, False]
    assert made.measured[0].has_raw
    assert not made.measured[1].has_raw
    assert "### `margin_help`" in made.to_markdown()
    # A direction that is called like a kind of column.
    odd = rows(20).rename_columns({"margin": "margin_bin", "margin_raw": "margin_raw_bin"})
    assert [s.column for s in report(odd).splits] == ["margin_bin"]


STRANGE = {
    "margin_note": ["see below"] * 20,
    "margin_of_error": [0.5] * 20,
    "margin_rank": list(range(20)),
    "margin_call": [True, False] * 10,
    "margin_parts": [[0.1, 0.2]] * 20,
    "margin_bin": ["high", "low"] * 10,
    "margin_prob": ["likely"] * 20,
    "margins": [1.0] * 20,
    "margin_empty": [None] * 20,
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("column", STRANGE)
def test_a_column_that_only_sounds_like_a_margin_is_nobodys(column, stream):
    from datasets import IterableDataset

    plain, ds = rows(20), rows(20, **{column: STRANGE[column]})
    if stream:  # that does not know its types
        plain, ds = (IterableDataset.from_generator(lambda d=d: iter(d.to_list())) for d in (plain, ds))
        assert ds.features is None
    assert report({"train": ds}).splits == report({"train": plain}).splits
    alone = rows(20).rename_columns({"margin": "margin_safety"}).remove_columns("margin_raw")
    assert [s.column for s in report(alone).splits] == ["margin_safety"], "the control: a margin alone is one"


def test_without_a_raw_column_the_margin_is_measured():
    ds = rows()
    assert only(ds.remove_columns("margin_raw")).agreement == only(ds).agreement
