"""The `map` transform: its contract with `datasets`, its numbers, and what it refuses."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections import UserDict
from dataclasses import replace

import dill
import numpy as np
import pytest
from builders import pair_rows

from legend_hf import LegendMarginFn, RowError, annotate, fit_direction, save_annotated
from legend_hf.directions.calibrate import RAW, Bins, Calibration, fit_calibration
from legend_hf.directions.direction import Direction
from legend_hf.reading.forward import loaded_blocks

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
ROWS = [
    {"prompt": f"Question {i}: {'why ' * (i % 7)}{t}?", "chosen": f"Because of {t}. " * (1 + i % 3), "rejected": f"Never mind {i}."}
    for i, t in enumerate(TOPICS * 3)
]  # fmt: skip
NUMBERS = ["margin", "margin_raw", "chosen_score", "rejected_score"]


@pytest.fixture(scope="module")
def direction(tiny_llama):
    return fit_direction(PAIRS, model=str(tiny_llama))


@pytest.fixture(scope="module")
def calibrated(direction):
    """The same direction, whose calibration holds every kind."""
    rng = np.random.default_rng(0)
    raw = direction.calibration.scale * (rng.standard_normal(200) + 0.5) / 2
    return replace(direction, calibration=fit_calibration("unit", raw))


@pytest.fixture
def ds():
    from datasets import Dataset

    return Dataset.from_list(ROWS)


def numbers(ds):
    return np.stack([np.array(ds[name][:]) for name in NUMBERS], axis=1)


def close(got, expected):
    """The numerical contract: 1e-4 of the margins' standard deviation."""
    return np.abs(got - expected).max() <= 1e-4 * expected[:, 1].std()


def one_by_one(direction, rows):
    chosen = np.array([direction.score(r["prompt"], r["chosen"]) for r in rows])
    rejected = np.array([direction.score(r["prompt"], r["rejected"]) for r in rows])
    raw = chosen - rejected
    return np.stack([direction.calibration.apply(raw), raw, chosen, rejected], axis=1)


def test_columns_and_their_meaning(direction, ds):
    from datasets import Value

    out = ds.map(LegendMarginFn(direction), batched=True)
    assert out.column_names == ["prompt", "chosen", "rejected", *NUMBERS, "margin_direction"]
    assert all(out.features[name] == Value("float32") for name in NUMBERS)
    got = numbers(out)
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got[:, 1], got[:, 2] - got[:, 3], atol=1e-5)
    np.testing.assert_allclose(got[:, 0], np.clip(got[:, 1] / direction.calibration.scale, -1, 1), atol=1e-6)
    narrow = replace(direction, calibration=Calibration("unit", float(np.median(np.abs(got[:, 1])))))
    clipped = numbers(ds.map(LegendMarginFn(narrow), batched=True))
    assert 0.3 < (np.abs(clipped[:, 0]) == 1).mean() < 0.7
    np.testing.assert_array_equal(clipped[:, 1:], got[:, 1:])
    raw = ds.map(LegendMarginFn(direction, scale="raw"), batched=True)
    np.testing.assert_array_equal(numbers(raw)[:, 0], numbers(raw)[:, 1])


@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize("batch_tokens", [None, 60])
def test_numbers_do_not_depend_on_batches_order_or_neighbours(direction, ds, batch_size, batch_tokens):
    expected = one_by_one(direction, ROWS)
    fn = LegendMarginFn(direction, batch_tokens=batch_tokens)
    assert close(numbers(ds.map(fn, batched=True, batch_size=batch_size)), expected)
    order = np.random.default_rng(0).permutation(len(ROWS))
    shuffled = ds.select(order).map(fn, batched=True, batch_size=batch_size)
    assert close(numbers(shuffled), expected[order])
    assert not close(numbers(shuffled), expected), "the control: another order of rows is another table"


def test_antisymmetry_identity_and_additivity(direction):
    from datasets import Dataset

    a, b, c = "Gladly, here is how.", "No.", "Perhaps later, when it rains."
    rows = [{"prompt": "Why?", "chosen": x, "rejected": y} for x, y in ((a, b), (b, a), (a, a), (b, c), (a, c))]
    ab, ba, aa, bc, ac = np.array(Dataset.from_list(rows).map(LegendMarginFn(direction), batched=True)["margin_raw"][:])
    assert ab == -ba != 0
    assert aa == 0
    assert ac == pytest.approx(ab + bc, abs=1e-5)


def test_shapes_of_one_dialogue_get_one_margin(direction):
    from datasets import Dataset

    fn = LegendMarginFn(direction)
    user = {"role": "user", "content": "Why rain?"}

    def said(text):
        return {"role": "assistant", "content": text}

    shapes = [
        {"prompt": "Why rain?", "chosen": "Clouds.", "rejected": "No idea"},
        {"prompt": "\n\nHuman: Why rain?\n\nAssistant:", "chosen": " Clouds.", "rejected": " No idea"},
        {"chosen": "\n\nHuman: Why rain?\n\nAssistant: Clouds.", "rejected": "\n\nHuman: Why rain?\n\nAssistant: No idea"},
        {"prompt": [user], "chosen": [said("Clouds.")], "rejected": [said("No idea")]},
        {"chosen": [user, said("Clouds.")], "rejected": [user, said("No idea")]},
        {"prompt": "Why rain?", "response_0": "No idea", "response_1": "Clouds.", "safer_response_id": 1},
    ]  # fmt: skip
    margins = [Dataset.from_list([row]).map(fn, batched=True)["margin_raw"][0] for row in shapes]
    np.testing.assert_allclose(margins, margins[0], rtol=1e-6)
    assert margins[0] != 0


def test_fingerprint_is_stable_before_between_and_after_calls(direction, ds):
    from datasets.fingerprint import Hasher

    fn = LegendMarginFn(direction)
    hashes = [Hasher.hash(fn)]
    for _ in range(2):
        ds.map(fn, batched=True)
        hashes.append(Hasher.hash(fn))
    hashes += [
        Hasher.hash(pickle.loads(pickle.dumps(fn))),
        Hasher.hash(dill.loads(dill.dumps(fn))),
        Hasher.hash(pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(fn))))),
        Hasher.hash(LegendMarginFn(direction)),
    ]
    assert len(set(hashes)) == 1
    assert Hasher.hash(LegendMarginFn(direction, scale="raw")) not in hashes
    assert len(pickle.dumps(fn)) < 20_000, "no model travels with it"


def test_fingerprint_is_the_same_in_a_fresh_process_and_after_saving(direction, tmp_path, tiny_llama):
    direction.save_pretrained(tmp_path / "d")
    code = (
        "import sys; from datasets.fingerprint import Hasher; from legend_hf import LegendMarginFn\n"
        "fn = LegendMarginFn(sys.argv[1], model=sys.argv[2]); print(Hasher.hash(fn), fn.fingerprint())"
    )
    answers = {
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "d"), str(tiny_llama)],
            capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    from datasets.fingerprint import Hasher

    fn = LegendMarginFn(Direction.from_pretrained(tmp_path / "d", model=tiny_llama))
    assert answers == {f"{Hasher.hash(fn)} {fn.fingerprint()}\n"}


def test_fingerprint_method_ignores_where_to_compute_and_nothing_else(direction, calibrated):
    base = LegendMarginFn(direction).fingerprint()
    assert LegendMarginFn(direction, device="cpu", batch_tokens=7).fingerprint() == base
    others = [
        LegendMarginFn(direction, scale="raw"),
        LegendMarginFn(direction, on_error="skip"),
        LegendMarginFn(direction, chosen_column="better"),
        LegendMarginFn({"safety": direction}),
        LegendMarginFn(direction, negative="zero"),
        LegendMarginFn(direction, negative="flag"),
        LegendMarginFn(calibrated),
        LegendMarginFn(calibrated, add=["margin_prob"]),
        LegendMarginFn(calibrated, add=["margin_bin", "margin_prob"]),
        LegendMarginFn(calibrated, scale="bins"),
    ]
    assert len({fn.fingerprint() for fn in others} | {base}) == len(others) + 1
    both = LegendMarginFn(calibrated, add=("margin_prob", "margin_bin"))
    assert both.fingerprint() == others[-2].fingerprint(), "a set, in whatever order"
    assert pickle.dumps(both) == pickle.dumps(others[-2])


def test_an_old_pickle_is_refused(direction, monkeypatch):
    from legend_hf.margins import scoring

    old = pickle.dumps(LegendMarginFn(direction))
    monkeypatch.setattr(scoring, "SCORING_VERSION", scoring.SCORING_VERSION + 1)
    with pytest.raises(ValueError, match="scores differently .* make it anew"):
        pickle.loads(old)


def test_cached_result_is_found_again(direction, ds, tmp_path):
    ds.save_to_disk(tmp_path / "ds")
    from datasets import load_from_disk

    first = load_from_disk(tmp_path / "ds").map(LegendMarginFn(direction), batched=True)
    again = load_from_disk(tmp_path / "ds").map(LegendMarginFn(direction), batched=True)
    assert first._fingerprint == again._fingerprint
    assert first.cache_files == again.cache_files
    budget = annotate(load_from_disk(tmp_path / "ds"), LegendMarginFn(direction, batch_tokens=50))
    assert budget.cache_files == annotate(load_from_disk(tmp_path / "ds"), LegendMarginFn(direction)).cache_files


FORKED = """
import json, sys, numpy as np, torch
from datasets import Dataset
from legend_hf import LegendMarginFn
rows = json.load(open(sys.argv[3]))
fn = LegendMarginFn(sys.argv[1], model=sys.argv[2])
assert torch.get_num_threads() == 2
for _ in range(3):
    torch.softmax(torch.randn(3000, 3000), -1)  # the thread pool of the parent is at work
ds = Dataset.from_list(rows)
alone = ds.map(fn, batched=True)
two = ds.map(fn, batched=True, num_proc=2, batch_size=5, with_rank=True)
print(np.abs(np.array(alone["margin_raw"][:]) - np.array(two["margin_raw"][:])).max())
"""


def test_two_processes_after_the_parent_has_scored(direction, tmp_path, tiny_llama):
    """A fork after torch has run threads would wait for ever."""
    direction.save_pretrained(tmp_path / "d")
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    done = subprocess.run(
        [sys.executable, "-c", FORKED, str(tmp_path / "d"), str(tiny_llama), str(tmp_path / "rows.json")],
        capture_output=True, text=True, check=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "2"},
    )  # fmt: skip
    assert float(done.stdout) <= 1e-4 * one_by_one(direction, ROWS)[:, 1].std()


def test_streaming_with_features(direction, ds):
    fn = LegendMarginFn(direction)
    stream = ds.to_iterable_dataset(num_shards=3)
    out = stream.map(fn, batched=True, batch_size=5, features=fn.features(stream.features))
    assert list(out.features) == ["prompt", "chosen", "rejected", *NUMBERS, "margin_direction"]
    got = np.array([[row[name] for name in NUMBERS] for row in out])
    assert close(got, one_by_one(direction, ROWS))
    from_annotate = annotate(stream, direction)
    assert from_annotate.features == out.features
    assert next(iter(from_annotate))["margin"] == pytest.approx(got[0, 0], abs=1e-6)


@pytest.mark.parametrize("kind", ["numpy", "torch", "pandas", "arrow"])
def test_formatted_datasets(direction, ds, kind):
    expected = numbers(ds.map(LegendMarginFn(direction), batched=True))
    out = ds.with_format(kind).map(LegendMarginFn(direction), batched=True)
    np.testing.assert_allclose(numbers(out.with_format(None)), expected, atol=1e-5)
    kept = annotate(ds.with_format(kind), direction)
    assert kept.format["type"] == kind
    np.testing.assert_allclose(numbers(kept.with_format(None)), expected, atol=1e-5)


def test_rank_chooses_the_device(direction, ds, monkeypatch):
    from legend_hf.margins import scoring

    seen = []
    real = scoring.open_reader

    def spy(reader, runtime, **how):
        seen.append(runtime.device)
        return real(reader, scoring.Runtime(runtime.path, "cpu"), **how)

    monkeypatch.setattr(scoring, "open_reader", spy)
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    fn, batch = LegendMarginFn(direction), ds[:2]
    for rank in (None, 0, 1, 2):
        fn(batch, rank)
    assert seen == ["cuda:0", "cuda:0", "cuda:1", "cuda:0"]


def test_misuse_names_the_remedy(direction, ds):
    fn = LegendMarginFn(direction)
    with pytest.raises(ValueError, match="batched=True"):
        ds.map(fn)
    with pytest.raises(ValueError, match="leave `with_indices` out"):
        ds.map(fn, batched=True, with_indices=True)
    with pytest.raises(ValueError, match="`chosen_column`|`rejected_column`"):
        ds.rename_column("chosen", "better").map(fn, batched=True)
    renamed = ds.rename_columns({"chosen": "better", "rejected": "worse", "prompt": "question"})
    named = LegendMarginFn(direction, prompt_column="question", chosen_column="better", rejected_column="worse")
    assert close(numbers(renamed.map(named, batched=True)), one_by_one(direction, ROWS))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": "percent"}, "`scale` is 'percent'; allowed are 'raw', 'unit'"),
        ({"on_error": "ignore"}, "`on_error` is 'ignore'"),
        ({"batch_tokens": 0}, "`batch_tokens` is 0"),
        ({"negative": "swap"}, "`negative` is 'swap'; allowed are 'keep', 'zero', 'flag'"),
        ({"add": "margin_prob"}, "`add` is 'margin_prob'; give a list of 'margin_bin' and 'margin_prob'"),
        ({"add": ["prob"]}, r"`add` is \['prob'\]; give a list of 'margin_bin' and 'margin_prob'"),
    ],
)
def test_arguments_are_refused_by_name(direction, arguments, message):
    with pytest.raises(ValueError, match=message):
        LegendMarginFn(direction, **arguments)
    with pytest.raises(ValueError, match="give each direction a name"):
        LegendMarginFn({})


def test_what_the_artifact_does_not_hold_is_refused(direction, calibrated):
    raw = replace(direction, calibration=RAW)
    for kind in ("unit", "bins", "logit", "link"):
        with pytest.raises(
            ValueError, match=f'`scale="{kind}"` needs a direction with a `{kind}` calibration, this one has'
        ):
            LegendMarginFn(raw, scale=kind)
        LegendMarginFn(calibrated, scale=kind)
    with pytest.raises(
        ValueError, match="`margin_bin` needs a direction with a `bins` calibration, bare has 'raw'; fit"
    ):
        LegendMarginFn({"full": calibrated, "bare": raw}, add=["margin_bin"])
    with pytest.raises(ValueError, match="`margin_prob` needs a direction with a `link` or `logit` calibration"):
        LegendMarginFn(raw, add=["margin_prob"])


@pytest.mark.parametrize("kind", ["raw", "unit", "bins", "logit", "link"])
def test_every_column_is_made_of_the_raw_margin_as_it_is_written(calibrated, ds, kind):
    from datasets import Value

    fn = LegendMarginFn(calibrated, scale=kind, add=["margin_prob", "margin_bin"], negative="flag")
    out = annotate(ds, fn)
    added = ["margin_bin", "margin_prob", "margin_negative"]
    assert out.column_names == ["prompt", "chosen", "rejected", *NUMBERS, *added, "margin_direction"]
    assert [out.features[name] for name in added] == [Value("float32"), Value("float32"), Value("bool")]
    got = {name: np.array(out[name][:], dtype=np.float64) for name in (*NUMBERS, *added)}
    raw, calibration = got["margin_raw"], calibrated.calibration
    assert (raw < 0).any()
    assert (raw > 0).any()
    np.testing.assert_array_equal(got["margin"], calibration.apply(raw, kind))
    np.testing.assert_array_equal(got["margin_bin"], calibration.apply(raw, "bins"))
    np.testing.assert_array_equal(got["margin_prob"], calibration.prob(raw))
    np.testing.assert_array_equal(got["margin_negative"], raw < 0)
    for values in got.values():
        assert np.isfinite(values).all()
    assert ds.map(fn, batched=True).features == out.features
    stream = annotate(ds.to_iterable_dataset(), fn)
    assert stream.features == out.features
    assert list(stream)[5]["margin_negative"] == out[5]["margin_negative"]


def test_swapping_a_pair_mirrors_every_column(calibrated, ds):
    fn = LegendMarginFn(calibrated, add=["margin_bin", "margin_prob"])
    one = annotate(ds, fn)
    other = annotate(ds.rename_columns({"chosen": "rejected", "rejected": "chosen"}), fn)
    for name in ("margin", "margin_raw", "margin_bin"):
        np.testing.assert_array_equal(np.array(other[name][:]), -np.array(one[name][:]))
    mirrored = 1 - np.array(one["margin_prob"][:], dtype=np.float32)
    np.testing.assert_array_equal(np.array(other["margin_prob"][:], dtype=np.float32), mirrored)
    assert (mirrored != 0.5).all(), "the control: something was there to be mirrored"


def test_negative_margins_are_kept_zeroed_or_flagged_and_never_swapped(calibrated, ds):
    def columns(negative):
        fn = LegendMarginFn(calibrated, add=["margin_bin", "margin_prob"], negative=negative)
        out = fn(ds[:])
        assert list(out) == fn.columns
        return {name: np.asarray(values) for name, values in out.items()}

    keep, zero, flag = (columns(negative) for negative in ("keep", "zero", "flag"))
    below = keep["margin_raw"] < 0
    assert 0 < below.sum() < len(below)
    assert (keep["margin"][below] < 0).all()
    for name in ("margin_raw", "chosen_score", "rejected_score", "margin_prob"):
        np.testing.assert_array_equal(zero[name], keep[name])
    for name in ("margin", "margin_bin"):
        np.testing.assert_array_equal(zero[name], np.where(below, 0, keep[name]))
        assert not np.signbit(zero[name]).any()
    np.testing.assert_array_equal(flag.pop("margin_negative"), below)
    for name in keep:
        np.testing.assert_array_equal(flag[name], keep[name])


def test_what_is_written_is_accepted_by_publishing_and_what_is_changed_is_not(calibrated, ds, tmp_path):
    for number, (kind, negative) in enumerate([(None, "keep"), ("bins", "flag"), ("link", "zero"), ("raw", "zero")]):
        fn = LegendMarginFn(calibrated, scale=kind, add=["margin_bin", "margin_prob"], negative=negative)
        save_annotated(annotate(ds, fn), tmp_path / str(number), direction=calibrated)
        card = (tmp_path / str(number) / "README.md").read_text()
        label = calibrated.calibration.label(kind) + (", below 0 set to 0" if negative == "zero" else "")
        assert f"| {label} |" in card
        assert "| `margin_prob` | float32 |" in card
        assert ("| `margin_negative` | bool |" in card) == (negative == "flag")
    out = annotate(ds, LegendMarginFn(calibrated, add=["margin_bin", "margin_prob"], negative="flag"))
    for column, change in (
        ("margin_bin", lambda v: v / 2 + 0.1),
        ("margin_prob", lambda v: 1 - v),
        ("margin", lambda v: v / 3),
        ("margin_negative", lambda v: not v),
    ):
        spoilt = out.map(lambda row, c=column, f=change: {c: f(row[c])}, features=out.features)
        with pytest.raises(
            ValueError, match=f"`{column}` (is not what this direction makes of|does not say where) `margin_raw`"
        ):
            save_annotated(spoilt, tmp_path / "spoilt", direction=calibrated)
        assert not (tmp_path / "spoilt").exists()
    other = replace(calibrated, calibration=replace(calibrated.calibration, bins=Bins.even([0.01])))
    with pytest.raises(ValueError, match="`margin_bin` is not what this direction makes of"):
        save_annotated(out, tmp_path / "spoilt", direction=other)


def test_the_command_takes_the_same_options(calibrated, ds, tmp_path, tiny_llama):
    from datasets import load_dataset
    from typer.testing import CliRunner

    from legend_hf.cli import app

    calibrated.save_pretrained(tmp_path / "direction")
    ds.to_json(tmp_path / "pairs.jsonl")

    def run(*options):
        paths = [str(tmp_path / name) for name in ("pairs.jsonl", "direction")]
        output = ["--model", str(tiny_llama), "--output", str(tmp_path / "out")]
        return CliRunner().invoke(app, ["annotate", *paths, *output, *options])

    done = run("--scale", "link", "--add", "margin_prob", "--add", "margin_bin", "--negative", "flag")
    assert done.exit_code == 0, done.output
    got = load_dataset(str(tmp_path / "out"), split="train")
    fn = LegendMarginFn(calibrated, scale="link", add=["margin_bin", "margin_prob"], negative="flag")
    expected = annotate(ds, fn)
    assert got.features == expected.features
    for name in fn.columns:
        assert got[name][:] == expected[name][:]
    done = run("--add", "prob")
    assert done.exit_code == 2
    assert "give a list of 'margin_bin' and 'margin_prob'" in " ".join(done.output.split())


@pytest.mark.parametrize("names", [["raw"], ["bin"], ["status"], ["a", "raw_a"], ["a", "negative_a"]])
def test_names_of_directions_that_would_mean_two_things_are_refused(direction, names):
    with pytest.raises(ValueError, match="would mean two things; give other names"):
        LegendMarginFn(dict.fromkeys(names, direction))
    LegendMarginFn(dict.fromkeys(["safety", "b"], direction))


def test_an_existing_margin_is_protected(direction, ds):
    from datasets import Value

    whole = ds.add_column("margin", [1] * len(ds))
    fn = LegendMarginFn(direction)
    with pytest.raises(ValueError, match="already has `margin`; rename or remove"):
        whole.map(fn, batched=True)
    with pytest.raises(ValueError, match="already has `margin`"):
        annotate(whole, fn)
    over = LegendMarginFn(direction, overwrite=True)
    expected = one_by_one(direction, ROWS)
    for out in (annotate(whole, over), whole.map(over, batched=True, features=over.features(whole.features))):
        assert out.features["margin"] == Value("float32")
        assert close(numbers(out), expected)


def bad_rows():
    return [
        *ROWS[:3],
        {"prompt": "Why?", "chosen": "", "rejected": "No."},
        ROWS[3],
        {"prompt": "Why?", "chosen": "Yes.", "rejected": "word " * 600},
        {"prompt": None, "chosen": None, "rejected": None},
    ]


def test_a_bad_row_is_named_before_anything_is_read(direction, monkeypatch):
    from datasets import Dataset, DatasetDict

    from legend_hf.reading import reader

    ds = Dataset.from_list(bad_rows())
    monkeypatch.setattr(reader.OpenReader, "read", lambda *a, **k: pytest.fail("a text was read"))
    fn = LegendMarginFn(direction)
    with pytest.raises(RowError, match="row 3, column `chosen`"):
        fn(ds[:])
    with pytest.raises(RowError, match="row 4, column `rejected`: the response needs .* `max_length` is 512"):
        annotate(ds.select([0, 1, 2, 4, 5]), fn)
    splits = DatasetDict(train=ds.select([0, 1]), test=ds.select([0, 3]))
    with pytest.raises(RowError) as caught:
        annotate(splits, fn)
    assert caught.value.row == 1
    assert caught.value.__notes__ == ["in split 'test'"]


def test_skipped_rows_are_finite_and_say_why(direction, calibrated, tmp_path):
    from datasets import Dataset, Value

    out = annotate(Dataset.from_list(bad_rows()), LegendMarginFn(direction, on_error="skip"))
    assert out.features["margin_status"] == Value("string")
    status = out["margin_status"][:]
    assert [s == "ok" for s in status] == [True, True, True, False, True, False, False]
    assert "max_length" in status[5]
    got = numbers(out)
    assert (got[[3, 5, 6]] == 0).all()
    assert close(got[[0, 1, 2, 4]], one_by_one(direction, ROWS[:4]))
    fn = LegendMarginFn(calibrated, add=["margin_bin", "margin_prob"], negative="flag", on_error="skip")
    out = annotate(Dataset.from_list(bad_rows()), fn)
    for column, nothing in (("margin_bin", 0.0), ("margin_prob", 0.5), ("margin_negative", False)):
        assert [out[row][column] for row in (3, 5, 6)] == [nothing] * 3
    save_annotated(out, tmp_path, direction=calibrated)


def test_a_batch_of_nothing_but_bad_rows(direction):
    from datasets import Dataset

    out = Dataset.from_list(bad_rows()[5:]).map(LegendMarginFn(direction, on_error="skip"), batched=True)
    assert (numbers(out) == 0).all()


def test_annotate_does_every_split_the_empty_one_too(direction, ds):
    from datasets import DatasetDict

    splits = DatasetDict(train=ds, test=ds.select(range(4)), empty=ds.select([]))
    out = annotate(splits, direction)
    assert {name: len(split) for name, split in out.items()} == {"train": 36, "test": 4, "empty": 0}
    assert len({str(split.features) for split in out.values()}) == 1
    assert close(numbers(out["train"]), one_by_one(direction, ROWS))
    assert annotate(ds, direction).features == out["train"].features


def test_several_directions_read_each_text_once(direction, calibrated, tiny_llama, ds, monkeypatch):
    from legend_hf.reading import reader

    other = fit_direction(PAIRS, model=str(tiny_llama), layer=1)
    last = fit_direction(PAIRS, model=str(tiny_llama), pooling="last")
    read = []
    real = reader.OpenReader.read
    monkeypatch.setattr(
        reader.OpenReader,
        "read",
        lambda self, texts, *a, **k: (read.append(len(texts)), real(self, texts, *a, **k))[1],
    )
    fn = LegendMarginFn({"a": direction, "b": other, "c": last})
    out = fn(ds[:6])
    assert len(read) == 2, "layers share a reading, another pooling is another reader"
    assert list(out) == [f"{column}_{name}" for name in "abc" for column in (*NUMBERS, "margin_direction")]
    for name, alone in (("a", direction), ("b", other), ("c", last)):
        single = LegendMarginFn(alone)(ds[:6])
        for column in NUMBERS:
            np.testing.assert_allclose(out[f"{column}_{name}"], single[column], atol=1e-5)
    assert not np.allclose(out["margin_raw_a"], out["margin_raw_b"])
    assert pickle.loads(pickle.dumps(fn)).columns == fn.columns
    held = {name: replace(d, calibration=calibrated.calibration) for name, d in (("a", direction), ("b", other))}
    fn = LegendMarginFn(held, add=["margin_prob"], negative="flag")
    out = fn(ds[:6])
    assert list(out) == [
        f"{c}_{name}" for name in "ab" for c in (*NUMBERS, "margin_prob", "margin_negative", "margin_direction")
    ]
    for name in "ab":
        expected = calibrated.calibration.prob(out[f"margin_raw_{name}"].astype(np.float64))
        np.testing.assert_array_equal(out[f"margin_prob_{name}"], expected)
    assert pickle.loads(pickle.dumps(fn)).columns == fn.columns


def test_a_text_that_stands_twice_is_read_once(direction, monkeypatch):
    from legend_hf.reading import reader

    real, read = reader.OpenReader.read, []
    monkeypatch.setattr(
        reader.OpenReader,
        "read",
        lambda self, texts, *a, **k: (read.append(len(texts)), real(self, texts, *a, **k))[1],
    )
    LegendMarginFn(direction)(UserDict(prompt=["Why?"] * 3, chosen=["A.", "B.", "A."], rejected=["B.", "A.", "C."]))
    assert read == [3]


def test_non_finite_states_are_an_error_and_no_nan(direction, ds, monkeypatch):
    for value in (np.nan, np.inf, 1e39):  # the last one is finite in float64 alone
        monkeypatch.setattr(Direction, "project", lambda self, hidden, v=value: np.full(len(hidden), v))
        with pytest.raises(
            ValueError, match="row 0: .* hidden states are not finite in float32 for this text; take a lower"
        ):
            LegendMarginFn(direction)(ds[:3])


def test_only_the_blocks_that_the_directions_need_are_loaded(tiny_llama, ds):
    from legend_hf.reading import reader

    first = fit_direction(PAIRS, model=str(tiny_llama), layer=1)
    reader.close_readers()
    expected = LegendMarginFn(first)(ds[:4])
    (loaded,) = reader._LOADED.values()
    assert loaded_blocks(loaded.model) == 1
    both = LegendMarginFn({"a": first, "b": fit_direction(PAIRS, model=str(tiny_llama), layer=2)})(ds[:4])
    np.testing.assert_allclose(both["margin_raw_a"], expected["margin_raw"], atol=1e-6)


@pytest.mark.parametrize("route", ["tree", "padded", "grouped"])
def test_the_way_of_reading_can_be_forced_and_changes_no_margin(direction, ds, route):
    fn = pickle.loads(pickle.dumps(LegendMarginFn(direction, route=route)))
    assert close(numbers(ds.map(fn, batched=True)), one_by_one(direction, ROWS))
    assert fn.fingerprint() == LegendMarginFn(direction).fingerprint(), "it only says how to compute"
    with pytest.raises(ValueError, match="`route` is 'quick'; allowed are 'tree', 'padded', 'grouped'"):
        LegendMarginFn(direction, route="quick")
