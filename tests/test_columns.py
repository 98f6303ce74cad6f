"""Every format of `datasets` and every transform: nothing is lost, hidden or overwritten; which direction made it."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from builders import pair_rows

from legend_hf import LegendMarginFn, LegendScoreFn, annotate, fit_direction
from legend_hf.margins import scoring
from legend_hf.preferences import PairSimilarityFn, export_for, ladder_pairs, make_pairs

TOPICS = ["bread", "bikes", "paint", "tents", "maps", "soup", "songs", "rain", "chess", "tea", "ropes", "lamps"]
PAIRS = pair_rows(TOPICS)
ROWS = [
    {**row, "responses": [row["chosen"], row["rejected"], *["Perhaps."] * (i % 2)], "note": i, "extra": None}
    for i, row in enumerate(PAIRS)
]
TRANSFORMS = {"margin": LegendMarginFn, "score": LegendScoreFn, "similarity": PairSimilarityFn}
FORMATS = ["numpy", "torch", "pandas", "arrow", "python", "polars", "jax", "custom"]


@pytest.fixture(scope="module")
def direction(tiny_llama):
    return fit_direction(PAIRS, model=str(tiny_llama))


def dataset(rows=ROWS):
    from datasets import Dataset

    return Dataset.from_list(rows)


def same(batch):
    return dict(batch)


def formatted(rows, kind, **more):
    """The rows in a format that the machine has."""
    if kind in ("polars", "jax") and importlib.util.find_spec(kind) is None:
        pytest.skip(f"needs {kind}")
    if kind == "custom":
        return rows.with_transform(same, **more)
    return rows.with_format(kind, **more)


def values(rows):
    return rows.with_format(None)[:] if hasattr(rows, "format") else list(rows)


def unwrapped(value):
    """Lists and scalars out of arrays and tensors."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return [unwrapped(entry) for entry in value] if isinstance(value, list) else value


def alike(got, expected):
    assert list(got) == list(expected)
    got = {name: unwrapped(list(column)) for name, column in got.items()}
    for name, column in expected.items():
        if column and isinstance(column[0], float):
            np.testing.assert_allclose(got[name], column, atol=1e-5)
        elif name in ("scores", "choice_probs"):
            np.testing.assert_allclose(np.concatenate(got[name]), np.concatenate(column), atol=1e-5)
        else:
            assert got[name] == column, name


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("kind", FORMATS)
def test_no_format_hides_loses_or_overwrites_a_column(direction, transform, kind):
    fn = TRANSFORMS[transform](direction, on_error="skip")
    plain = dataset().map(fn, batched=True)
    expected = values(plain)
    assert set(fn.columns) == set(expected) - set(ROWS[0]), "the control: a plain map adds its columns"
    rows = formatted(dataset(), kind)
    for done in (rows.map(fn, batched=True), annotate(rows, fn)):
        alike(values(done), expected)
        assert done.format["type"] == rows.format["type"]
        assert set(done.format["columns"]) == set(expected), "the new columns are shown"
        for name in fn.columns:  # polars knows only large strings and lists
            assert str(done.features[name]).lower().replace("large", "").replace("_", "") in (
                str(plain.features[name]).lower()
            )
        for again in (lambda d: d.map(fn, batched=True), lambda d: annotate(d, fn)):
            with pytest.raises(ValueError, match="already has"):
                again(done)
        over = TRANSFORMS[transform](direction, on_error="skip", overwrite=True)
        alike(values(annotate(done, over)), expected)
        alike(values(done.map(over, batched=True)), expected)
    if kind != "custom":
        for features in (fn.features(dataset().features), None):
            stream = dataset().to_iterable_dataset().with_format(kind)
            alike(values_of_stream(stream.map(fn, batched=True, batch_size=5, features=features)), expected)
        alike(values_of_stream(annotate(stream, fn, batch_size=5)), expected)


def values_of_stream(stream):
    rows = list(stream.with_format(None))
    return {name: [row[name] for row in rows] for name in rows[0]}


@pytest.mark.parametrize("all_columns", [False, True])
@pytest.mark.parametrize("kind", ["numpy", "arrow", None])
def test_a_format_that_leaves_columns_out_still_does_and_shows_the_new_ones(direction, kind, all_columns):
    rows = dataset().with_format(kind, columns=["prompt", "chosen"], output_all_columns=all_columns)
    fn = LegendMarginFn(direction)
    expected = values(dataset().map(fn, batched=True))
    for done in (rows.map(fn, batched=True), annotate(rows, fn), annotate(rows.select([]), fn)):
        assert set(done.format["columns"]) == {"prompt", "chosen", *fn.columns}
        assert done.format["type"] == kind
        assert done.format["output_all_columns"] == all_columns
        assert set(done.column_names) == set(expected)
    alike(values(annotate(rows, fn)), expected)
    hidden = annotate(dataset(), fn).with_format(kind, columns=["prompt", "chosen", "rejected"])
    for again in (lambda: hidden.map(fn, batched=True), lambda: annotate(hidden, fn)):
        with pytest.raises(ValueError, match="already has"):
            again()


def test_a_stream_without_features_keeps_its_way(direction):
    from datasets import IterableDataset

    rows = [{name: row[name] for name in ("prompt", "chosen", "rejected", "responses")} for row in ROWS]
    stream = IterableDataset.from_generator(lambda: iter(rows))
    assert stream.features is None, "the control: it does not know its features"
    for transform in TRANSFORMS.values():
        fn = transform(direction)
        done = list(stream.map(fn, batched=True, features=fn.features(stream.features)))
        alike({n: [r[n] for r in done] for n in done[0]}, values(dataset(rows).map(fn, batched=True)))


def test_pairs_of_responses_keep_the_format(direction):
    scored = annotate(dataset(), LegendScoreFn(direction))
    rows = scored.select_columns(["prompt", "responses", "scores", "note"])
    expected = make_pairs(rows, rule="best")
    for kind in ("numpy", "arrow", "pandas"):
        made = make_pairs(rows.with_format(kind, columns=["scores", "note"]), rule="best")
        assert made.format["type"] == kind
        alike(values(made), values(expected))
        assert "margin_raw" in made.format["columns"]
        assert "prompt" not in made.format["columns"]


def test_nothing_that_an_earlier_version_made_is_found_again(direction, monkeypatch):
    """`datasets` hashes an imported function by its name: an upgrade alone would change no fingerprint."""
    scored = annotate(dataset(), LegendScoreFn(direction)).select_columns(["prompt", "responses", "scores"])
    annotated = annotate(dataset(), direction)
    ladders = dataset().select_columns(["prompt", "responses"])
    makes = {
        "pairs": lambda: make_pairs(scored, rule="best", direction=direction),
        "ladder pairs": lambda: ladder_pairs(ladders),
        "export": lambda: export_for(annotated, trainer="trl").dataset,
        **{f"map of {n}": lambda t=t: dataset().map(t(direction), batched=True) for n, t in TRANSFORMS.items()},
        **{f"annotate with {n}": lambda t=t: annotate(dataset(), t(direction)) for n, t in TRANSFORMS.items()},
    }
    before = {name: make()._fingerprint for name, make in makes.items()}
    assert before == {name: make()._fingerprint for name, make in makes.items()}, "the control: they are found again"
    monkeypatch.setattr(scoring, "SCORING_VERSION", scoring.SCORING_VERSION + 1)
    assert not [name for name, make in makes.items() if make()._fingerprint == before[name]]


def test_every_map_of_the_library_passes_its_version():
    """One that is added later too: a transform holds its version, anything else is given it."""
    calls = []
    for file in sorted((Path(__file__).parents[1] / "legend_hf").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            named = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
            if named and node.func.attr in ("map", "filter", "from_generator"):
                calls.append((file.name, ast.unparse(node)))
    streams = ("stream.filter(", "IterableDataset.")  # which have no cache
    known = ("edition()", "new_fingerprint=", "(fn, batched=True", "keep_in_memory=True", *streams)
    loose = [(name, call) for name, call in calls if not any(word in call for word in known)]
    assert not loose
    assert len(calls) >= 5, "the control: some were found"
