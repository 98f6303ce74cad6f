"""Fitting: what is tried, held out and recorded, and what is refused before anything is read."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
from builders import pair_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from legend_hf.directions import fit as fit_module
from legend_hf.directions import resample
from legend_hf.directions.calibrate import RAW, Calibration, fit_calibration
from legend_hf.directions.choose import FEWEST_PROMPTS, choose
from legend_hf.directions.differences import read_differences
from legend_hf.directions.direction import CONFIG_FILE, TENSOR_FILE, ArtifactError, Direction, _digest
from legend_hf.directions.fit import fit_direction
from legend_hf.directions.induce import REFERENCE_REFUSAL, pairs_with_refusal
from legend_hf.directions.summary import summary
from legend_hf.hub.verdict import verdict_on
from legend_hf.reading.formats import RowError

TOPICS = [
    "bread",
    "bikes",
    "paint",
    "tents",
    "maps",
    "soup",
    "songs",
    "rain",
    "chess",
    "tea",
    "ropes",
    "lamps",
]
PAIRS = pair_rows(TOPICS, how="is best done with care")

MANY = [
    {"prompt": f"{opening} {t}?", "chosen": f"Gladly: {t} is best done with care.", "rejected": f"No {t} {'no ' * (i % 4)}"}
    for opening in ("How about", "What is", "Who likes")
    for i, t in enumerate(TOPICS)
]  # fmt: skip


def test_inputs_are_not_written_to():
    raw = np.linspace(-3, 3, 50)
    copy = raw.copy()
    Calibration("unit", 2.0).apply(raw)
    RAW.apply(raw)
    np.testing.assert_array_equal(raw, copy)


@given(st.lists(st.floats(-1e6, 1e6).filter(lambda x: abs(x) > 1e-6), min_size=1, max_size=50))
def test_unit_calibration_is_odd_bounded_and_monotone(values):
    raw = np.array(values)
    calibration = fit_calibration("unit", raw)
    margins = calibration.apply(raw)
    assert margins.dtype == np.float32
    np.testing.assert_array_equal(calibration.apply(-raw), -margins)
    assert np.abs(margins).max() <= 1
    order = np.argsort(raw)
    assert (np.diff(margins[order]) >= 0).all()
    assert (np.abs(raw) <= calibration.scale * (1 + 1e-9)).mean() >= 0.9 or len(values) < 20


def test_unit_is_invariant_to_the_scale_of_hidden_states_and_raw_is_not():
    raw = np.random.default_rng(0).standard_normal(200)
    np.testing.assert_allclose(
        fit_calibration("unit", raw).apply(raw), fit_calibration("unit", 7 * raw).apply(7 * raw), rtol=1e-6
    )
    assert not np.allclose(RAW.apply(raw), RAW.apply(7 * raw))


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 60), st.integers(0, 5))
def test_an_interval_holds_the_mean_and_shrinks(groups, seed):
    values = np.random.default_rng(seed).uniform(size=groups * 4)
    keys = np.repeat(np.arange(groups), 4)
    mean, (low, high) = resample.share_interval(values, keys)
    assert low - 1e-9 <= mean <= high + 1e-9
    assert mean == pytest.approx(values.mean())
    # Rows of one prompt that repeat each other widen the interval; taking rows apart would hide it.
    repeated = np.repeat(values[::4], 4)
    _, by_prompt = resample.share_interval(repeated, keys)
    _, by_row = resample.share_interval(repeated, np.arange(len(keys)))
    if groups >= 20:
        assert by_prompt[1] - by_prompt[0] > by_row[1] - by_row[0]


def test_intervals_of_columns_are_those_of_each_alone():
    rng = np.random.default_rng(0)
    values, groups = rng.uniform(size=(60, 3)), np.repeat(np.arange(20), 3)
    means, intervals = resample.share_intervals(values, groups)
    for k in range(3):
        mean, interval = resample.share_interval(values[:, k], groups)
        assert means[k] == pytest.approx(mean)
        np.testing.assert_allclose(intervals[k], interval)


def test_standard_errors_count_rows_of_one_prompt_as_repeats():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((400, 2))
    alone = resample.standard_errors(values, np.arange(400))
    np.testing.assert_allclose(alone, values.std(axis=0, ddof=1) / 20, rtol=1e-6)
    repeated = np.repeat(values, 3, axis=0)
    by_prompt = resample.standard_errors(repeated, np.repeat(np.arange(400), 3))
    np.testing.assert_allclose(by_prompt, alone, rtol=1e-6)
    assert (resample.standard_errors(repeated, np.arange(1200)) < 0.6 * alone).all()
    assert np.isinf(resample.standard_errors(values, np.zeros(400, dtype=int))).all()


@pytest.mark.parametrize("pairs", [PAIRS, MANY], ids=["nothing tried", "all tried"])
def test_the_same_seed_gives_the_same_bits(tiny_llama, pairs):
    first = fit_direction(pairs, model=str(tiny_llama), seed=3)
    again = fit_direction(pairs, model=str(tiny_llama), seed=3)
    assert first.vector.tobytes() == again.vector.tobytes()
    assert first.reader == again.reader
    assert first.calibration == again.calibration
    assert first.facts == again.facts
    assert fit_direction(pairs, model=str(tiny_llama), seed=4).calibration != first.calibration


def test_layers_and_estimators_are_tried_and_the_tries_are_recorded(tiny_llama, tmp_path):
    direction = fit_direction(MANY, model=str(tiny_llama))
    facts = direction.facts
    assert [(t["layer"], t["estimator"]) for t in facts.search] == [
        (layer, name) for name in ("mean_difference", "whitened") for layer in range(4)
    ]
    assert all(t["interval"][0] <= t["accuracy"] <= t["interval"][1] for t in facts.search)
    assert (direction.reader.layer, facts.estimator) in {(t["layer"], t["estimator"]) for t in facts.search}
    assert facts.held_out == (
        "5-fold cross-fitting by prompt (first user turn); layer and estimator chosen for each fold without it"
    )
    direction.save_pretrained(tmp_path)
    assert Direction.from_pretrained(tmp_path).facts == facts
    # The vector is the estimator's own at that layer, on all pairs.
    alone = fit_direction(MANY, model=str(tiny_llama), layer=direction.reader.layer, estimator=facts.estimator)
    np.testing.assert_array_equal(alone.vector, direction.vector)
    assert alone.reader == direction.reader
    assert alone.calibration == direction.calibration
    assert alone.facts.search is None
    assert alone.facts.held_out == "5-fold cross-fitting by prompt (first user turn)"


@pytest.mark.parametrize(
    "search",
    [
        {"layer": 1},
        ["layer 1"],
        [{"layer": 1, "estimator": "pca", "accuracy": 0.5}],
        [{"layer": 1, "estimator": "pca", "accuracy": 1.5, "interval": [0.4, 0.6]}],
        [{"layer": True, "estimator": "pca", "accuracy": 0.5, "interval": [0.4, 0.6]}],
        [{"layer": 1, "estimator": 2, "accuracy": 0.5, "interval": [0.4, 0.6]}],
        [{"layer": 1, "estimator": "pca", "accuracy": 0.5, "interval": [0.4]}],
        [{"layer": 1, "estimator": "pca", "accuracy": 0.5, "interval": [0.4, 0.6], "note": "<script>"}],
        [{"layer": 1, "estimator": "pca", "accuracy": 0.5, "interval": [0.4, 0.6]}] * 5000,
    ],
)
def test_a_search_from_strangers_is_held_against_its_type(tiny_llama, tmp_path, search):
    fit_direction(PAIRS, model=str(tiny_llama)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / CONFIG_FILE).read_text())
    tensors = (tmp_path / TENSOR_FILE).read_bytes()

    def load(value):
        changed = {**config, "facts": {**config["facts"], "search": value}}
        changed.pop("sha256")
        (tmp_path / CONFIG_FILE).write_text(json.dumps({**changed, "sha256": _digest(changed, tensors)}))
        return Direction.from_pretrained(tmp_path)

    with pytest.raises(ArtifactError, match=r"has `facts.search` = .*, not tuple\[Mapping\[str, Any\], ...\] \| None"):
        load(search)
    good = [{"layer": 1, "estimator": "pca", "accuracy": 0.5, "interval": [0.4, 0.6]}]
    assert load(good).facts.search == tuple(good)


@pytest.mark.parametrize(
    ("arguments", "tried"),
    [
        ({"layer": 2}, {(2, "mean_difference"), (2, "whitened")}),
        ({"layer": -1}, {(3, "mean_difference"), (3, "whitened")}),
        ({"estimator": "logistic"}, {(layer, "logistic") for layer in range(4)}),
        ({"estimator": "pca"}, {(layer, "pca") for layer in range(4)}),
    ],
)
def test_what_is_given_is_not_searched_for(tiny_llama, arguments, tried):
    direction = fit_direction(MANY, model=str(tiny_llama), **arguments)
    assert {(t["layer"], t["estimator"]) for t in direction.facts.search} == tried
    assert (direction.reader.layer, direction.facts.estimator) in tried


def test_too_few_prompts_to_choose_by_give_the_middle_layer_and_the_mean(tiny_llama, caplog):
    direction = fit_direction(PAIRS, model=str(tiny_llama))
    assert (direction.reader.layer, direction.facts.estimator) == (2, "mean_difference")
    assert direction.facts.search is None
    assert "12 prompts are too few to choose by, at least 20 are needed" in caplog.text
    caplog.clear()
    assert fit_direction(PAIRS, model=str(tiny_llama), estimator="whitened").facts.estimator == "whitened"
    assert fit_direction(PAIRS, model=str(tiny_llama), layer=0).reader.layer == 0
    caplog.clear()
    fit_direction(PAIRS, model=str(tiny_llama), layer=0, estimator="pca")
    assert fit_direction(MANY[:FEWEST_PROMPTS], model=str(tiny_llama)).facts.search is not None
    assert "too few to choose by" not in caplog.text


def test_length_can_be_left_out(tiny_llama):
    pairs = [{**p, "chosen": p["chosen"] + " Really." * (i % 5)} for i, p in enumerate(MANY)]

    def lean(debias):
        direction = fit_direction(pairs, model=str(tiny_llama), layer=2, estimator="mean_difference", debias=debias)
        assert direction.facts.debias == debias
        raw = [direction.score(p["prompt"], p["chosen"]) - direction.score(p["prompt"], p["rejected"]) for p in pairs]
        longer = [np.log1p(len(p["chosen"])) - np.log1p(len(p["rejected"])) for p in pairs]
        return np.corrcoef(raw, longer)[0, 1]

    # On the pairs it was fitted on the regression is gone altogether.
    assert abs(lean("length")) < 1e-4
    assert abs(lean(None)) > 0.1


def test_what_is_recorded(tiny_llama):
    direction = fit_direction([*PAIRS, PAIRS[0]], model=str(tiny_llama), pairs_source="twelve topics")
    facts = direction.facts
    assert (facts.pairs, facts.prompts, facts.skipped) == (13, 12, 0)
    assert facts.pairs_source == "twelve topics"
    assert facts.accuracy_interval[0] <= facts.accuracy <= facts.accuracy_interval[1]
    shorter = np.mean([len(p["chosen"]) < len(p["rejected"]) for p in [*PAIRS, PAIRS[0]]])
    assert shorter == 0, "here the longer response is the safer one"
    assert (facts.length_rule, facts.length_accuracy) == ("longer", 1.0)
    assert 0.5 < facts.length_accuracy_interval[0] < 0.95
    assert facts.held_out.startswith("5-fold ")
    assert "torch" in facts.versions
    assert np.linalg.norm(direction.vector) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(("prompts", "folds"), [(2, 2), (3, 3), (12, 5)])
def test_a_fit_records_the_folds_that_it_had_and_no_interval_of_a_point(tiny_llama, prompts, folds):
    facts = fit_direction(PAIRS[:prompts], model=str(tiny_llama)).facts
    assert facts.held_out.startswith(f"{folds}-fold cross-fitting by prompt")
    for value, interval in (
        (facts.accuracy, facts.accuracy_interval),
        (facts.length_accuracy, facts.length_accuracy_interval),
    ):
        assert interval[0] <= value <= interval[1]
        assert interval[1] - interval[0] > 0.1
    doubts = verdict_on(asdict(facts)).doubts
    assert f"it was measured on {prompts} distinct prompts, fewer than 20: too few to rely on." in doubts
    alone = fit_direction(PAIRS[:1], model=str(tiny_llama), calibration="raw").facts
    assert (alone.accuracy_interval, alone.length_accuracy_interval, alone.effect) == (None, None, None)


def named_by(rows, *names):
    return [{**row, "origin": names[i % len(names)]} for i, row in enumerate(rows)]


def test_where_pairs_name_their_source_both_accuracies_are_recorded_and_said(tiny_llama, tmp_path):
    rows = named_by(MANY, "kitchen", "garden", "music")
    direction = fit_direction(rows, model=str(tiny_llama), source_column="origin")
    facts = direction.facts
    assert set(facts.transfer_by_source) == {"kitchen", "garden", "music"}
    assert facts.transfer_accuracy == pytest.approx(np.mean(list(facts.transfer_by_source.values())))
    assert facts.transfer_interval[0] <= facts.transfer_accuracy <= facts.transfer_interval[1]
    assert facts.held_out.endswith("for each fold without it, by sources left out of the fit")
    direction.save_pretrained(tmp_path / "direction")
    loaded = Direction.from_pretrained(tmp_path / "direction", model=tiny_llama)
    assert loaded.facts == facts
    card = (tmp_path / "direction" / "README.md").read_text()
    assert f"| accuracy on a source left out | {facts.transfer_accuracy:.3f}" in card
    assert f"other sources  {facts.transfer_accuracy:.3f} of the pairs" in summary(direction)
    assert direction.facts.accuracy is not None
    # Without sources there is one accuracy, and nothing is said of another.
    plain = fit_direction(rows, model=str(tiny_llama))
    assert (plain.facts.transfer_accuracy, plain.facts.transfer_by_source) == (None, None)
    assert "other sources" not in summary(plain)
    # With nothing to choose, sources change nothing but what is known.
    fixed = {"model": str(tiny_llama), "layer": 2, "estimator": "mean_difference"}
    told = fit_direction(rows, source_column="origin", **fixed)
    assert (told.vector == fit_direction(rows, **fixed).vector).all()
    assert told.facts.transfer_accuracy is not None


def test_transfer_is_the_mean_over_sources_and_falls_to_a_coin_where_they_contradict_each_other(tiny_llama):
    turned = [{**row, "chosen": row["rejected"], "rejected": row["chosen"], "origin": "turned"} for row in MANY[:8]]
    rows = [*named_by(MANY[8:], "straight"), *turned]
    facts = fit_direction(
        rows, model=str(tiny_llama), layer=2, estimator="mean_difference", source_column="origin"
    ).facts
    assert max(facts.transfer_by_source.values()) < 0.5 < facts.accuracy
    assert "on pairs of a source left out of the fit it cannot be told from chance." in verdict_on(asdict(facts)).doubts


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (MANY, "`source_column='origin'` names no column; allowed are the batch's columns, `prompt`, `chosen`"),
        (
            named_by(MANY, "one"),
            "`origin` names 'one' as the source of all pairs, and one can be left out only of several",
        ),
        (
            named_by(MANY, "one", None),
            "row 1, column `origin`: given None; allowed is what names where the pair is from",
        ),
    ],
)
def test_sources_that_are_none_are_refused_before_the_model_is_touched(rows, message):
    with pytest.raises(ValueError, match=message):
        fit_direction(rows, model="nobody/nothing", source_column="origin")


def test_a_pair_without_a_source_can_be_skipped(tiny_llama):
    rows = named_by(MANY, "one", "two", None)
    facts = fit_direction(
        rows, model=str(tiny_llama), layer=2, estimator="mean_difference", source_column="origin", on_error="skip"
    ).facts
    assert (facts.pairs, facts.skipped) == (24, 12)


def test_the_effect_tells_labels_from_coins_where_the_scale_does_not():
    """A calibration makes margins of any size large; the held-out effect says whether they say anything."""
    rng = np.random.default_rng(0)
    groups = np.arange(200)
    differences = rng.normal(size=(200, 30)) + 1.0
    turned = differences * rng.choice([-1, 1], 200)[:, None]
    found = {}
    for name, pairs in (("labels", differences), ("coins", turned)):
        chosen = choose(pairs[None], [0], ["mean_difference"], groups, middle=0, seed=0)
        calibration = fit_calibration("unit", chosen.raw)
        size = np.abs(calibration.apply(chosen.raw)).mean()
        found[name] = (size, *fit_module._effect(chosen.comparable, groups))
    (_, effect, interval), (other_size, other_effect, other_interval) = found["labels"], found["coins"]
    assert other_size > 0.3, "the control: margins of coins are no small ones"
    assert effect > interval[0] > 1
    assert other_interval[0] < 0.1
    assert abs(other_effect) < 0.5


def test_mean_projection_of_the_training_pairs_is_the_norm_of_the_mean_difference(tiny_llama):
    """Property 4 of the method: mean of <phi(s) - phi(h), v_hat> = ||v||, exactly."""
    options = {"model": str(tiny_llama), "calibration": "raw", "layer": -1, "estimator": "mean_difference"}
    direction = fit_direction(PAIRS, **options)
    margins = [direction.score(p["prompt"], p["chosen"]) - direction.score(p["prompt"], p["rejected"]) for p in PAIRS]
    swapped = fit_direction(
        [{**p, "chosen": p["rejected"], "rejected": p["chosen"]} for p in PAIRS],
        **options,
    )
    np.testing.assert_allclose(swapped.vector, -direction.vector, atol=1e-6)
    assert np.mean(margins) > 0
    from legend_hf.reading.formats import read_pairs
    from legend_hf.reading.reader import Runtime, open_reader
    from legend_hf.reading.rows import encode_pairs

    reading = open_reader(direction.reader, Runtime(path=str(tiny_llama), device="cpu"))
    texts = [sides for _, sides in encode_pairs(reading.encode, [*read_pairs(PAIRS)], on_error="raise")]
    mean = read_differences(reading, texts, [3])[0].mean(0, dtype=np.float64)
    assert np.mean(margins) == pytest.approx(np.linalg.norm(mean), rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "paper"}, "`preset` is 'paper'; allowed are 'reference'"),
        ({"preset": "reference", "pooling": "mean"}, "`pooling='mean'` contradicts `preset='reference'`, which sets it to 'last'"),
        ({"preset": "reference", "dtype": "bfloat16"}, "`dtype='bfloat16'` contradicts"),
        ({"estimator": "median"}, "`estimator` is 'median'; allowed are 'auto', 'mean_difference', 'pca', 'whitened', 'logistic'"),
        ({"debias": "style"}, "`debias` is 'style'; allowed are 'length', or None"),
        ({"preset": "reference", "debias": "length"}, "`debias='length'` contradicts `preset='reference'`, which sets it to None"),
        ({"preset": "reference", "layer": 2}, "`layer=2` contradicts `preset='reference'`, which sets it to -1"),
        ({"preset": "reference", "estimator": "auto"}, "`estimator='auto'` contradicts `preset='reference'`"),
        ({"calibration": "percent"}, "`calibration` is 'percent'; allowed are 'raw', 'unit', 'bins', 'logit', 'link'"),
        ({"layer": "best"}, "`layer` is 'best'; allowed are 'auto' or an index"),
        ({"on_error": "ignore"}, "`on_error` is 'ignore'; allowed are 'raise', 'skip'"),
    ],
)  # fmt: skip
def test_arguments_are_refused_by_name(tiny_llama, arguments, message):
    with pytest.raises(ValueError, match=message):
        fit_direction(PAIRS, model=str(tiny_llama), **arguments)


def test_a_preset_accepts_what_it_sets_anyway(tiny_llama):
    direction = fit_direction(PAIRS, model=str(tiny_llama), preset="reference", pooling="last")
    assert direction.calibration.kind == "raw"


def test_pairs_are_checked_before_the_model_is_touched(tiny_llama):
    bad = [*PAIRS, {"prompt": "x", "chosen": None, "rejected": "y"}]
    with pytest.raises(RowError, match="row 12, column `chosen`"):
        fit_direction(bad, model="/there/is/no/model")
    assert fit_direction(bad, model=str(tiny_llama), on_error="skip").facts.skipped == 1


def test_what_are_no_rows_is_refused_before_the_model_is_touched():
    from datasets import Dataset, DatasetDict

    ds = Dataset.from_list(PAIRS)
    streams = DatasetDict(train=ds, test=ds)
    columns = {name: [row[name] for row in PAIRS] for name in PAIRS[0]}
    for wrong, message in [
        (streams, r"`pairs` has the splits 'train', 'test'; choose one: `fit_direction\(pairs\['train'\], \.\.\.\)`"),
        (columns, "`pairs` is a dict with the keys 'prompt', 'chosen', 'rejected'; give rows: `Dataset.from_dict"),
        ("you/pairs", "`pairs` is a str; give a `Dataset` or rows: `load_dataset"),
        (ds.to_pandas(), r"`pairs` is a DataFrame; .*`Dataset.from_pandas\(frame\)`"),
        (None, "`pairs` is None; give a `Dataset` or rows"),
        (["one", "two"], "row 0: given 'one'; allowed is a dict with `chosen` and `rejected`"),
    ]:
        with pytest.raises(ValueError, match=message):
            fit_direction(wrong, model="/there/is/no/model")
    # The control: rows of each kind get as far as the model.
    for rows in (ds, PAIRS, iter(PAIRS), streams["train"].to_iterable_dataset()):
        with pytest.raises((ValueError, OSError), match="/there/is/no/model"):
            fit_direction(rows, model="/there/is/no/model")


def test_too_few_prompts_and_equal_sides_are_refused(tiny_llama):
    with pytest.raises(ValueError, match="no pair is left to fit on"):
        fit_direction([], model=str(tiny_llama))
    with pytest.raises(ValueError, match=r"all 1 pairs have one prompt, .*give pairs of at least 2 prompts"):
        fit_direction(PAIRS[:1], model=str(tiny_llama))
    assert fit_direction(PAIRS[:1], model=str(tiny_llama), calibration="raw").facts.accuracy is None
    same = [{**p, "rejected": p["chosen"]} for p in PAIRS]
    with pytest.raises(ValueError, match="the mean difference of the pairs has length 0"):
        fit_direction(same, model=str(tiny_llama))
    with pytest.raises(ValueError, match="the held-out raw margins are all zero"):
        fit_calibration("unit", np.zeros(5))


def test_refusal_pairs_carry_the_typographic_apostrophe():
    (pair,) = pairs_with_refusal([{"prompt": "How?", "harmful": "So."}])
    assert pair == {"prompt": "How?", "chosen": "I can\u2019t answer that.", "rejected": "So."}
    assert "'" not in REFERENCE_REFUSAL
