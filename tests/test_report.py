"""The report: counts what is there, names what is doubtful, breaks on nothing, and says it in JSON and Markdown."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest
from builders import pair_rows
from typer.testing import CliRunner

from legend_hf import Direction, annotate, fit_direction
from legend_hf.cli import app
from legend_hf.directions.direction import Facts
from legend_hf.reading.formats import Columns
from legend_hf.reports import judge
from legend_hf.reports.findings import UNKNOWN
from legend_hf.reports.judge import direction_report
from legend_hf.reports.report import report
from legend_hf.reports.stability import stability_of


def rows(n=200, seed=0, **columns):
    """Rows with margins: the longer response is chosen in half of them, every prompt stands twice."""
    from datasets import Dataset

    rng = np.random.default_rng(seed)
    made = {
        "prompt": [f"Question {i // 2}?" for i in range(n)],
        "chosen": ["c" * int(k) for k in rng.integers(1, 60, n)],
        "rejected": ["r" * int(k) for k in rng.integers(1, 60, n)],
        "margin_raw": rng.normal(4.0, 10.0, n).astype(np.float32),
    }
    made["margin"] = np.clip(made["margin_raw"] / 20, -1, 1)
    return Dataset.from_dict({**made, **columns})


def only(dataset, **options):
    (split,) = report(dataset, **options).splits
    return split


def test_counts_are_those_of_the_columns():
    ds = rows()
    raw = np.array(ds["margin_raw"])
    longer = np.array([len(c) - len(r) for c, r in zip(ds["chosen"], ds["rejected"], strict=True)])
    found = only(ds)
    assert (found.rows, found.read, found.skipped, found.invalid, found.prompts) == (200, 200, 0, 0, 100)
    assert found.agreement.value == pytest.approx((raw > 0).mean())
    assert found.negative.value == pytest.approx((raw < 0).mean())
    assert found.agreement.interval[0] < found.agreement.value < found.agreement.interval[1]
    by_length = np.where(longer == 0, 0.5, longer > 0)
    assert by_length.mean() > 0.5
    assert found.length.rule == "longer"
    assert found.length.baseline.value == pytest.approx(by_length.mean())
    assert found.length.gain.value == pytest.approx((raw > 0).mean() - by_length.mean())
    assert found.length.rows_against == (longer < 0).sum()
    assert found.length.agreement_against.value == pytest.approx((raw[longer < 0] > 0).mean())
    assert found.length.agreement_along.value == pytest.approx((raw[longer > 0] > 0).mean())
    margin = np.array(ds["margin"])
    assert found.at_limits.value == (np.abs(margin) == 1).mean() > 0
    assert found.margin.quantiles["0.05"] == pytest.approx(np.quantile(margin, 0.05))
    assert found.pull.value == pytest.approx((1 / (1 + np.exp(-margin))).mean())
    assert found.loss.value == pytest.approx(np.log1p(np.exp(margin)).mean())
    assert found.categories is found.probability is found.bins is None


def test_the_loss_without_margins_is_that_of_a_coin():
    found = only(rows(margin=np.zeros(200, dtype=np.float32)))
    assert found.loss.value == pytest.approx(math.log(2))
    assert found.pull.value == pytest.approx(0.5)


def test_the_loss_is_trls_loss_with_equal_rewards():
    import torch

    margin = rows()["margin"][:]
    expected = -torch.nn.functional.logsigmoid(torch.zeros(200) - torch.tensor(margin)).mean()
    assert only(rows()).loss.value == pytest.approx(float(expected), abs=1e-6)


def test_suspicious_rows_are_the_lowest_raw_margins_by_number(monkeypatch):
    ds = rows()
    raw = np.array(ds["margin_raw"])
    assert [s.row for s in only(ds).suspicious] == np.argsort(raw)[:20].tolist()
    monkeypatch.setattr(judge, "SUSPICIOUS", 7)
    found = only(ds)
    assert [s.row for s in found.suspicious] == np.argsort(raw)[:7].tolist()
    assert all(s.excerpt is None for s in found.suspicious)
    assert only(rows(margin_raw=np.ones(200))).suspicious == (), "a row that agrees with its label is not suspicious"
    shown = only(ds, excerpts=True).suspicious[0]
    assert shown.excerpt == (ds[shown.row]["prompt"], ds[shown.row]["chosen"], ds[shown.row]["rejected"])


def test_texts_are_in_the_report_only_when_asked_for():
    secret = rows(20, chosen=["a secret way to say it"] * 20, margin_raw=-np.ones(20))
    made = report(secret)
    assert "secret" not in made.to_json() + made.to_markdown()
    asked = report(secret, excerpts=True)
    assert "a secret way to say it" in asked.to_json()
    assert "a secret way to say it" in asked.to_markdown()


def test_a_planted_swap_is_found():
    rng = np.random.default_rng(0)
    raw = rng.normal(20, 3, 300)
    swapped = rng.choice(300, 12, replace=False)
    raw[swapped] *= -1
    found = only(rows(300, margin_raw=raw))
    assert {s.row for s in found.suspicious} == set(swapped.tolist())


def test_the_order_of_the_rows_does_not_matter():
    ds = rows(margin_prob=np.random.default_rng(1).uniform(0, 1, 200), kind=["a", "b", "b", "c"] * 50)
    order = np.random.default_rng(2).permutation(200)

    def facts(dataset):
        found = report(dataset, category_column="kind").to_dict()["splits"][0]
        return [json.dumps(value) for key, value in found.items() if key != "suspicious"], found

    def leaves(value):
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list):
            return [leaf for entry in value for leaf in leaves(entry)]
        return [value]

    plain, shuffled = (leaves({**facts(d)[1], "suspicious": []}) for d in (ds, ds.select(order)))
    assert len(plain) == len(shuffled)
    for one, other in zip(plain, shuffled, strict=True):
        assert one == (pytest.approx(other, abs=1e-9) if isinstance(other, float) else other)


@pytest.mark.parametrize("preferred", ["shorter", "longer"])
def test_a_length_meter_gains_nothing_whichever_length_is_preferred(preferred):
    """Three of four chosen responses are of the preferred length, and the margin is the length."""
    rng = np.random.default_rng(0)
    sizes = np.sort(np.stack([rng.integers(1, 30, 200), rng.integers(31, 60, 200)]), axis=0)
    likes = rng.random(200) < 0.75
    chosen_is_longer = likes if preferred == "longer" else ~likes
    chosen, rejected = np.where(chosen_is_longer, sizes[1], sizes[0]), np.where(chosen_is_longer, sizes[0], sizes[1])
    margin = (chosen - rejected) * (1.0 if preferred == "longer" else -1.0)
    ds = rows(
        chosen=["c" * int(n) for n in chosen], rejected=["r" * int(n) for n in rejected], margin_raw=margin,
        margin=margin / 60,
    )  # fmt: skip
    made = report(ds)
    length = made.splits[0].length
    assert length.rule == preferred
    assert length.baseline.value == pytest.approx(likes.mean())
    assert length.gain.value == pytest.approx(0.0)
    assert length.gain.interval[0] < 0 < length.gain.interval[1]
    assert (length.agreement_against.value, length.agreement_along.value) == (0.0, 1.0)
    assert f"not beyond that of the {preferred} response" in " ".join(made.splits[0].doubts)
    assert "prompts would" in " ".join(made.splits[0].doubts), "how many more would settle it, or that none would"
    assert f", the {preferred} one |" in made.to_markdown()
    # The control: a margin that is right where that rule is wrong gains.
    knows = only(ds.remove_columns("margin_raw").add_column("margin_raw", np.ones(200)))
    assert knows.length.gain.interval[0] > 0.1


def test_a_margin_that_is_length_is_told_from_one_that_is_not():
    ds = rows(400)
    longer = np.array([len(c) - len(r) for c, r in zip(ds["chosen"], ds["rejected"], strict=True)])
    measures = only(ds.remove_columns("margin_raw").add_column("margin_raw", -longer.astype(float)))
    assert measures.length.spearman.value == pytest.approx(-1)
    assert {measures.length.agreement_against.value, measures.length.agreement_along.value} == {0.0, 1.0}
    assert measures.length.gain.value <= 0
    assert any("length" in doubt for doubt in measures.doubts)
    free = only(rows(400, margin_raw=np.random.default_rng(5).normal(15, 10, 400)))
    assert abs(free.length.spearman.value) < 0.15
    assert free.length.agreement_against.value > 0.8
    assert not any("length" in doubt for doubt in free.doubts)


def test_probabilities_are_measured_and_a_doubt_is_raised_where_they_are_wrong():
    rng = np.random.default_rng(0)
    log_odds = rng.normal(0, 1.5, 4000)
    raw = np.where(rng.random(4000) < 1 / (1 + np.exp(-log_odds)), log_odds, -log_odds)
    good = only(rows(4000, margin_raw=raw, margin_prob=1 / (1 + np.exp(-raw))))
    bad = only(rows(4000, margin_raw=raw, margin_prob=1 / (1 + np.exp(-5 * raw))))
    assert good.probability.ece.value < 0.03 < 0.1 < bad.probability.ece.value
    assert not any("probabilities" in doubt for doubt in good.doubts)
    assert any("probabilities are off" in doubt for doubt in bad.doubts)
    assert sum(b.rows for b in good.probability.bins) == 4000


def test_raw_margins_as_margins_are_doubted():
    assert any("push every pair alike" in d for d in only(rows(margin=np.full(200, 30.0))).doubts)
    assert not any("push every pair alike" in d for d in only(rows()).doubts)


def test_categories_of_every_plain_kind():
    from datasets import ClassLabel

    ds = rows(kind=[0, 1, 1, 1] * 50, safe=[True, False] * 100, word=["x", None, "y", "y"] * 50)
    by_number = only(ds, category_column="kind").categories
    assert [(c.name, c.rows, c.prompts) for c in by_number] == [("1", 150, 100), ("0", 50, 50)]
    raw = np.array(ds["margin_raw"])
    assert by_number[1].negative.value == pytest.approx((raw[0::4] < 0).mean())
    assert by_number[1].agreement.interval is not None
    named = ds.cast_column("kind", ClassLabel(names=["violence", "fraud"]))
    assert [c.name for c in only(named, category_column="kind").categories] == ["fraud", "violence"]
    assert {c.name for c in only(ds, category_column="safe").categories} == {"True", "False"}
    assert [c.name for c in only(ds, category_column="word").categories] == ["y", "(none)", "x"]


def in_categories(n=200, **columns):
    """Half of the rows are fraud, a quarter theft, a tenth has no category, the rest is of two prompts of arson."""
    kinds = ["fraud"] * (n // 2) + ["theft"] * (n // 4) + [None] * (n // 10)
    return rows(n, kind=kinds + ["arson"] * (n - len(kinds)), **columns)


def test_coverage_says_shares_gaps_and_balance():
    found = only(in_categories(), category_column="kind", categories=["theft", "fraud", "libel", "libel"])
    assert [(c.name, c.rows, c.prompts, c.share) for c in found.categories] == [
        ("fraud", 100, 50, 0.5),
        ("theft", 50, 25, 0.25),
        ("arson", 30, 15, 0.15),
        ("(none)", 20, 10, 0.1),
    ]
    shares = np.array([100, 50, 30]) / 180
    covered = found.coverage
    assert covered.effective == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    assert (covered.categories, covered.without, covered.largest) == (3, 20, ("fraud", pytest.approx(100 / 180)))
    assert (covered.expected, covered.missing, covered.unexpected) == (3, ("libel",), ("arson",))
    assert "expected categories without a row: 1 of 3 (libel)." in found.doubts
    # The control: nothing is missing of what is there, and without names nothing can be.
    assert not any("expected" in d for d in only(in_categories(), category_column="kind", categories=["arson"]).doubts)
    unasked = only(in_categories(), category_column="kind")
    assert unasked.coverage.expected is None
    assert not any("expected" in doubt for doubt in unasked.doubts)
    assert only(in_categories()).coverage is None


def test_coverage_is_of_the_rows_read():
    status = ["ok"] * 150 + ["too long"] * 50
    found = only(in_categories(margin_status=status), category_column="kind", categories=["fraud", "arson"])
    assert found.coverage.missing == ("arson",)
    assert sum(c.share for c in found.categories) == pytest.approx(1)


def test_coverage_in_markdown_and_json():
    names = ["fraud", *(f"kind {i}" for i in range(8)), HOSTILE]
    made = report(in_categories(40), category_column="kind", categories=names)
    text = made.to_markdown()
    assert "Categories: 3, as varied as " in text
    assert "the largest, fraud, has 55.6 %." in text
    assert "Without a category: 4 of 40." in text
    assert "Of fewer than 10 prompts, too few for intervals: arson, theft." in text
    assert "Missing, of 10 expected: kind 0, kind 1," in text
    assert "Not among those expected: arson, theft." in text
    assert "expected categories without a row: 9 of 10 (kind 0, kind 1, kind 2, kind 3, kind 4 and 4 more)." in text
    assert "| fraud | 20 (50.0 %) | 10 |" in text
    assert "<script" not in text
    assert json.loads(made.to_json())["splits"][0]["coverage"]["missing"] == [n[:80] for n in names[1:]]
    assert (
        "Missing, of 1 expected: none."
        in report(in_categories(), category_column="kind", categories=["fraud"]).to_markdown()
    )


def test_names_of_class_labels_and_numbers_are_expected_as_they_are_written():
    from datasets import ClassLabel

    ds = rows(40, kind=[0, 1] * 20)
    assert only(ds, category_column="kind", categories=["0", "1", "2"]).coverage.missing == ("2",)
    named = ds.cast_column("kind", ClassLabel(names=["violence", "fraud"]))
    assert only(named, category_column="kind", categories=["fraud", "violence"]).coverage.missing == ()
    long = "x" * 200
    cut = only(rows(40, kind=[long] * 40), category_column="kind", categories=[long]).coverage
    assert (cut.missing, cut.unexpected) == ((), ())


def hostile_numbers():
    return rows(30, margin=[math.nan, None, math.inf] + [0.5] * 27, margin_raw=[1.0] * 30)


def everywhere(value):
    if isinstance(value, dict):
        return [leaf for entry in value.values() for leaf in everywhere(entry)]
    if isinstance(value, list):
        return [leaf for entry in value for leaf in everywhere(entry)]
    return [value]


@pytest.mark.parametrize(
    "dataset",
    [
        rows(0),
        rows(1),
        rows(2),
        rows(9, margin_prob=[0.0] * 9),
        rows(40, margin_status=["too long"] * 40),
        rows(40, margin=np.zeros(40), margin_raw=np.zeros(40), margin_prob=np.full(40, 0.5)),
        rows(40, chosen=["same"] * 40, rejected=["same"] * 40),
        rows(40, prompt=["one prompt"] * 40),
        rows(40, margin=np.full(40, 1e30), margin_raw=np.full(40, -1e30)),
        hostile_numbers(),
    ],
    ids=["empty", "one row", "two rows", "few", "all skipped", "all zero", "equal sides", "one prompt", "huge", "NaN"],
)  # fmt: skip
def test_any_split_has_a_report_without_nan(dataset):
    made = report(dataset)
    with np.errstate(all="raise"):
        read = json.loads(made.to_json(), parse_constant=lambda name: pytest.fail(f"{name} in the JSON"))
    assert all(math.isfinite(leaf) for leaf in everywhere(read) if isinstance(leaf, float))
    assert not [line for line in made.to_markdown().splitlines() if line[:1] == "|" and "nan" in line.lower()]
    (split,) = made.splits
    assert split.read + split.skipped + split.invalid == split.rows == len(dataset)
    assert split.read > 0 or split.agreement == split.auc == split.length.spearman == UNKNOWN
    assert split.doubts or set(dataset["chosen"]) == {"same"}, "so few or so odd rows are doubtful"


def test_skipped_and_invalid_rows_are_counted_apart_and_row_numbers_stay():
    status = ["ok"] * 40
    status[3] = "too long"
    raw = np.ones(40)
    raw[[3, 7]] = -100
    empty = ["c"] * 40
    empty[5] = " "
    margin = [None if i == 9 else 0.1 for i in range(40)]
    found = only(rows(40, margin_raw=raw, margin_status=status, chosen=empty, margin=margin))
    assert (found.read, found.skipped, found.invalid) == (37, 2, 1)
    assert [s.row for s in found.suspicious] == [7]
    assert any("without a finite margin: 1" in doubt for doubt in found.doubts)


def test_splits_of_dictionaries_and_of_streams():
    from datasets import DatasetDict

    splits = DatasetDict({"train": rows(60), "test": rows(0)})
    made = report(splits)
    assert [(s.split, s.rows) for s in made.splits] == [("train", 60), ("test", 0)]
    assert "| Measure | `train` | `test` | What it says |" in made.to_markdown()
    stream = report({"train": rows(60).to_iterable_dataset()})
    assert stream.splits == made.splits[:1]
    mixed = rows(60).with_format("numpy")
    assert report({"train": mixed}).splits == made.splits[:1]


def test_bins_are_counted():
    found = only(rows(40, margin_bin=[-1.0, 0.0, 1 / 3, 1.0] * 10))
    assert found.bins == {"-1": 10, "0": 10, "0.333333": 10, "1": 10}


def test_other_column_names_and_shapes():
    ds = rows(40)
    renamed = ds.rename_columns({"prompt": "question", "chosen": "good", "rejected": "bad"})
    names = {"prompt_column": "question", "chosen_column": "good", "rejected_column": "bad"}
    assert report(renamed, **names).splits == report(ds).splits
    text = [f"\n\nHuman: {p}\n\nAssistant: " for p in ds["prompt"]]
    implicit = ds.remove_columns(["prompt", "chosen", "rejected"])
    implicit = implicit.add_column("chosen", [t + c for t, c in zip(text, ds["chosen"], strict=True)])
    implicit = implicit.add_column("rejected", [t + r for t, r in zip(text, ds["rejected"], strict=True)])
    assert report(implicit).splits == report(ds).splits


HOSTILE = (
    "a | b\n# <script>alert(1)</script> [x](javascript:y) ![i](http://evil/p.png) `c` **d** <!-- legend_hf:end -->"
)


def test_markdown_escapes_whatever_strangers_wrote():
    ds = rows(40, prompt=[HOSTILE] * 40, chosen=[HOSTILE] * 40, kind=[HOSTILE] * 40, margin_raw=-np.ones(40))
    text = report({HOSTILE: ds}, category_column="kind", excerpts=True).to_markdown(plots={"margins.png": HOSTILE})
    assert "<script" not in text
    assert "](javascript" not in text
    assert "![i]" not in text
    assert "legend_hf:end -->" not in text
    assert "**d**" not in text
    assert text.count("![") == 1
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables} <= {4, 6, 7}
    assert len([line for line in text.splitlines() if line.startswith("#")]) == 1


def test_markdown_gives_every_number_a_meaning():
    text = report(rows(100, margin_prob=np.full(100, 0.6))).to_markdown()
    measures = [line for line in text.splitlines() if re.match(r"\| [*a-zA-Z]", line)][1:]
    assert len(measures) == 16
    for line in measures:
        name, value, meaning = (cell.strip() for cell in line.strip("|").split("|"))
        assert name, line
        assert value, line
        assert meaning.endswith("."), line
        assert len(meaning) > 20, line


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        (rows(5).remove_columns(["margin", "margin_raw"]), {}, "has no column `margin`; annotate it first"),
        (rows(5).remove_columns("chosen"), {}, "`prompt_column`, `chosen_column` and `rejected_column`"),
        (rows(5, margin=[[0.1]] * 5), {}, "`margin` = \\[0.1\\], a list; a margin is one number a row"),
        (rows(5, margin=["0.1"] * 5), {}, "a str; a margin is one number a row"),
        (rows(5, margin_prob=[1.5] * 5), {}, "`margin_prob` of split `train` has values outside \\[0, 1\\]"),
        (rows(5), {"category_column": "harm"}, "`category_column` is 'harm'; the dataset has `prompt`"),
        (rows(0), {"category_column": "harm"}, "`category_column` is 'harm'; the dataset has `prompt`"),
        (rows(5), {"category_column": "margin"}, "a float; name a column with one"),
        (rows(500), {"category_column": "prompt"}, "has 250 values; allowed are up to 200"),
        (rows(5), {"stability_pairs": [{}]}, "give it as `direction=`"),
        (rows(5), {"categories": ["a"]}, "name the column with `category_column=`"),
        (rows(5), {"category_column": "prompt", "categories": "fraud"}, "`categories` is 'fraud'; give a list"),
        (rows(5), {"category_column": "prompt", "categories": []}, "`categories` is \\[\\]; give a list of the names"),
    ],
)  # fmt: skip
def test_errors_name_what_was_given_and_what_to_do(dataset, options, message):
    with pytest.raises(ValueError, match=message):
        report(dataset, **options)


# Directions.

TOPICS = ("bread", "bikes", "paint", "tents", "maps", "soup", "rain", "tea", "wool", "glass", "sand", "clay")
PAIRS = pair_rows(TOPICS)


@pytest.fixture(scope="module")
def direction(tiny_llama):
    return fit_direction(PAIRS, model=str(tiny_llama))


def test_a_real_direction_and_its_dataset(direction, tmp_path):
    from datasets import Dataset

    ds = annotate(Dataset.from_list(PAIRS), direction)
    made = report(ds, direction=direction, stability_pairs=PAIRS)
    assert made.splits[0].agreement.value == np.mean(np.array(ds["margin_raw"]) > 0)
    (about,) = made.directions
    assert about.facts["pairs"] == 12
    assert about.stability.given > 0.5
    assert about.stability.halves.interval is not None
    read = json.loads(made.to_json())
    assert read["directions"][0]["reader"] == direction.reader.to_dict()
    text = made.to_markdown()
    assert "cosine between halves" in text
    assert "cosine to expect with the truth" in text
    assert "What it was fitted on." in text


@pytest.mark.parametrize(
    "options",
    [{}, {"estimator": "whitened"}, {"estimator": "pca", "pooling": "last"}, {"debias": "length", "layer": 3}],
    ids=str,
)
def test_stability_fits_as_the_fit_did(tiny_llama, options):
    """On the pairs of the fit, the direction that is fitted for the test is the one that is tested."""
    fitted = fit_direction(PAIRS, model=str(tiny_llama), **{"layer": 2, "estimator": "mean_difference"} | options)
    assert stability_of(PAIRS, fitted).given == pytest.approx(1, abs=1e-7)
    wrong = "logistic" if fitted.facts.estimator == "pca" else "pca"
    other = dataclasses.replace(fitted, facts=dataclasses.replace(fitted.facts, estimator=wrong, debias=None))
    assert stability_of(PAIRS, other).given < 1 - 5e-7


def test_stability_leaves_out_what_cannot_be_read_and_turns_with_the_labels(direction):
    found = stability_of(PAIRS, direction)
    unreadable = [*PAIRS, {"prompt": "x", "chosen": "", "rejected": "y"}]
    assert stability_of(unreadable, direction) == found
    renamed = [{"prompt": p["prompt"], "better": p["chosen"], "worse": p["rejected"]} for p in PAIRS]
    assert stability_of(renamed, direction, columns=Columns(chosen="better", rejected="worse")) == found
    swapped = [{**p, "chosen": p["rejected"], "rejected": p["chosen"]} for p in PAIRS]
    other = stability_of(swapped, direction)
    assert other.given == pytest.approx(-found.given)
    assert other.halves.value == pytest.approx(found.halves.value)
    assert "point the other way" in " ".join(direction_report(direction, stability=other).doubts)


@pytest.mark.parametrize(
    ("facts", "doubt"),
    [
        ({"pairs": 0}, "0 pairs"),
        ({"accuracy": math.nan}, "no share between 0 and 1"),
        ({"accuracy": 0.4}, "under one half"),
        ({"accuracy": 0.7, "accuracy_interval": (0.58, 0.8), "length_accuracy": 0.6}, "contains the length baseline"),
        ({"accuracy": 0.7, "accuracy_interval": (0.65, 0.8), "length_accuracy": 0.6}, None),
        ({}, None),
    ],
)
def test_implausible_facts_are_doubted(direction, facts, doubt):
    about = direction_report(dataclasses.replace(direction, facts=Facts(**facts)))
    assert about.doubts == () if doubt is None else any(doubt in found for found in about.doubts)
    made = dataclasses.replace(report(None), directions=(about,))
    assert ("**Doubtful:**" in made.to_markdown()) is (doubt is not None)
    assert "NaN" not in made.to_json()


@pytest.mark.parametrize(
    ("facts", "doubt"),
    [
        ({"pairs": 0, "prompts": 0}, "fitted on 0 pairs"),
        ({"pairs": 3, "prompts": 0}, "fitted on 0 prompts"),
        ({"pairs": -4, "prompts": 2}, "fitted on -4 pairs"),
        ({"pairs": 4, "prompts": -2}, "fitted on -2 prompts"),
        ({"skipped": -1}, "skipped -1 pairs"),
        ({"accuracy": math.nan, "accuracy_interval": (math.nan, math.nan)}, "no share between 0 and 1"),
        ({"accuracy": 1.2}, "no share between 0 and 1"),
        ({"accuracy_interval": (0.7, math.inf)}, "no share between 0 and 1"),
        ({"length_accuracy": math.nan}, "no share between 0 and 1"),
        ({"length_accuracy_interval": (-1.0, 0.6)}, "no share between 0 and 1"),
        ({"accuracy": None, "accuracy_interval": None}, "held-out accuracy is unknown"),
        ({"accuracy": 0.4, "accuracy_interval": (0.3, 0.5)}, "under one half"),
        ({"accuracy_interval": (0.85, 0.9)}, "does not contain it"),
        ({"accuracy_interval": (0.6, 0.7)}, "does not contain it"),
        ({"accuracy_interval": (0.9, 0.7)}, "does not contain it"),
        ({"length_accuracy_interval": (0.1, 0.2)}, "interval of the length baseline does not contain it"),
        ({"accuracy_interval": (0.4, 0.9)}, "reaches down to chance"),
        ({"accuracy": 0.55, "accuracy_interval": (0.52, 0.58)}, "no better than the length"),
        ({}, None),
    ],
    ids=str,
)
def test_the_markdown_of_a_direction_warns_of_implausible_facts(direction, facts, doubt):
    plausible = {
        "pairs": 200,
        "prompts": 150,
        "skipped": 0,
        "accuracy": 0.8,
        "accuracy_interval": (0.75, 0.85),
        "length_accuracy": 0.6,
        "length_accuracy_interval": (0.55, 0.65),
    }
    made = report(None, direction=dataclasses.replace(direction, facts=Facts(**{**plausible, **facts})))
    warnings = [line for line in made.to_markdown().splitlines() if line.startswith("- **Doubtful:** ")]
    if doubt is None:
        assert warnings == []
    else:
        assert any(doubt in line for line in warnings), warnings
        assert made.directions[0].doubts
    tables = [line for line in made.to_markdown().splitlines() if line.startswith("|")]
    assert not any("nan" in line or "inf" in line for line in tables)
    assert "NaN" not in made.to_json()


def test_facts_that_nobody_recorded_are_shown_as_such(direction):
    """An artifact may say nothing of its fit. That is not implausible, and the tables do not hide it."""
    text = report(None, direction=dataclasses.replace(direction, facts=Facts())).to_markdown()
    assert "| pairs | not recorded of not recorded prompts |" in text
    assert "| accuracy | – |" in text
    assert "Doubtful" not in text


def test_the_pairs_of_a_fit_are_covered_too(direction):
    from datasets import ClassLabel, Dataset

    kinds = ["food"] * 8 + ["town"] * 3 + ["sea"]
    pairs = [{**pair, "kind": kind} for pair, kind in zip(PAIRS, kinds, strict=True)]
    expected = ["food", "town", "air"]
    made = report(None, direction=direction, stability_pairs=pairs, category_column="kind", categories=expected)
    (about,) = made.directions
    assert (about.coverage.categories, about.coverage.largest) == (3, ("food", pytest.approx(8 / 12)))
    assert (about.coverage.missing, about.coverage.unexpected) == (("air",), ("sea",))
    assert about.coverage.thin == ("food", "sea", "town")
    assert "expected categories without a pair: 1 of 3 (air)." in about.doubts
    text = made.to_markdown()
    assert "**Categories of the pairs of the test.** Categories: 3, as varied as " in text
    assert json.loads(made.to_json())["directions"][0]["coverage"]["rows"] == 12
    # What cannot be read covers nothing, a dataset's labels have their names, and without the column there is nothing.
    unreadable = [*pairs, {"prompt": "x", "chosen": "", "rejected": "y", "kind": "air"}]
    options = {"direction": direction, "category_column": "kind", "categories": expected}
    assert report(None, stability_pairs=unreadable, **options).directions[0].coverage == about.coverage
    ds = Dataset.from_list(pairs).cast_column("kind", ClassLabel(names=["food", "town", "sea"]))
    assert report(None, stability_pairs=ds, **options).directions[0].coverage == about.coverage
    assert report(None, stability_pairs=PAIRS, **options).directions[0].coverage is None
    assert report(None, direction=direction, stability_pairs=pairs).directions[0].coverage is None


def test_a_search_is_reported_by_layer_and_estimator(direction):
    search = tuple(
        {"layer": layer, "estimator": name, "accuracy": 0.5 + layer / 100, "interval": [0.4, 0.9]}
        for name in ("mean_difference", "whitened")
        for layer in (range(20) if name == "mean_difference" else range(10, 15))
    )
    about = direction_report(dataclasses.replace(direction, facts=Facts(search=search)))
    assert [(t.layer, t.accuracy, t.interval) for t in about.search][:2] == [
        (0, 0.5, (0.4, 0.9)),
        (1, 0.51, (0.4, 0.9)),
    ]
    text = dataclasses.replace(report(None), directions=(about,)).to_markdown()
    assert "the 12 best of 20 layers" in text
    assert "| 10 | 0.600 [0.400, 0.900] | 0.600 [0.400, 0.900] |" in text
    assert "| 19 | 0.690 [0.400, 0.900] | – |" in text
    assert "| 7 |" not in text


def test_several_directions_are_told_apart_by_name(direction):
    made = report(None, direction={"safety": direction, "help": direction})
    assert [d.name for d in made.directions] == ["safety", "help"]
    assert "## The direction `help`" in made.to_markdown()


# Files and the command.


def test_saved_files_say_the_same(tmp_path):
    made = report(rows(40))
    files = made.save(tmp_path / "new" / "folder", plots=False)
    assert [f.name for f in files] == ["report.json", "report.md", "report.html"]
    assert json.loads(files[0].read_text(encoding="utf-8")) == made.to_dict()
    assert files[1].read_text(encoding="utf-8") == made.to_markdown()


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_the_command_prints_and_writes_the_report(tmp_path, direction):
    made = direction.calibration.apply(np.array(rows(40)["margin_raw"], dtype=np.float64))
    rows(40, kind=["a", "b"] * 20, margin=made).to_json(tmp_path / "annotated.jsonl")
    direction.save_pretrained(tmp_path / "direction")
    done = run(
        "report", tmp_path / "annotated.jsonl", "--direction", tmp_path / "direction", "--category-column", "kind",
        "--output", tmp_path / "out",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "agreement with the labels" in done.output
    assert "**By category** in `train`" in done.output
    assert "## The direction" in done.output
    names = {f.name for f in (tmp_path / "out").iterdir()}
    assert names == {"report.json", "report.md", "report.html", "margins-train.png", "length-train.png"}
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert all(f"]({name})" in text for name in names if name.endswith("png"))
    loaded = Direction.from_pretrained(tmp_path / "direction")
    assert json.loads((tmp_path / "out" / "report.json").read_text())["directions"][0]["facts"]["pairs"] == 12
    assert loaded.facts.pairs == 12
    assert "Example: legend-hf report" in run("report", "--help").output


def test_the_commands_errors_are_one_line(tmp_path):
    rows(5).remove_columns(["margin", "margin_raw"]).to_json(tmp_path / "plain.jsonl")
    done = run("report", tmp_path / "plain.jsonl")
    assert done.exit_code == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert "annotate it first" in line


def test_importing_the_report_is_cheap():
    code = "import sys, legend_hf.reports.report, legend_hf.reports.plots; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"torch", "transformers", "datasets", "matplotlib"}.isdisjoint(loaded)
