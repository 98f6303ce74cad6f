"""Scores of N responses per prompt: their contract with `datasets`, their numbers, and what is refused."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace

import dill
import numpy as np
import pytest
from builders import pair_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from legend_hf import LegendMarginFn, RowError, annotate, fit_direction
from legend_hf.directions.calibrate import RAW, fit_calibration
from legend_hf.directions.direction import Direction
from legend_hf.margins.score_fn import LegendScoreFn

TOPICS = ["bread", "bikes", "paint", "tents", "maps", "soup", "songs", "rain", "chess", "tea", "ropes", "lamps"]
PAIRS = pair_rows(TOPICS, how="is best done with care")
OPENINGS = ["Because of", "Never mind", "Let us look at", "Who would ask about", "I am fond of"]
# One to five responses each.
ROWS = [
    {
        "prompt": f"Question {i}: {'why ' * (i % 7)}{t}?",
        "responses": [f"{OPENINGS[(i + j) % 5]} {t}{' again' * (i % 3)}." for j in range(1 + i % 5)],
        "source": f"set {i}",
    }
    for i, t in enumerate(TOPICS)
]
COLUMNS = ["scores", "ranking", "best_response", "score_best", "score_gap"]


@pytest.fixture(scope="module")
def direction(tiny_llama):
    return fit_direction(PAIRS, model=str(tiny_llama))


@pytest.fixture(scope="module")
def calibrated(direction):
    """The same direction, whose calibration holds every kind, and whose probabilities are far from one half."""
    rng = np.random.default_rng(0)
    raw = direction.calibration.scale * (rng.standard_normal(200) + 1.0) / 4
    return replace(direction, calibration=fit_calibration("unit", raw))


@pytest.fixture
def ds():
    from datasets import Dataset

    return Dataset.from_list(ROWS)


@pytest.fixture
def read(monkeypatch):
    """How many texts each forward reading was given."""
    from legend_hf.reading import reader

    counts = []
    real = reader.OpenReader.read

    def spy(self, texts, *args, **kwargs):
        counts.append(len(texts))
        return real(self, texts, *args, **kwargs)

    monkeypatch.setattr(reader.OpenReader, "read", spy)
    return counts


def one_by_one(direction, rows):
    return [[direction.score(row["prompt"], response) for response in row["responses"]] for row in rows]


def close(got, expected):
    """The numerical contract: 1e-4 of the standard deviation."""
    got, expected = np.concatenate(list(map(np.asarray, got))), np.concatenate(list(map(np.asarray, expected)))
    return np.abs(got - expected).max() <= 1e-4 * expected.std()


def check_agreement(row):
    """What a row's columns say of each other."""
    scores = np.array(row["scores"])
    assert row["ranking"] == sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    assert row["best_response"] == row["ranking"][0]
    best, *others = sorted(map(np.float32, row["scores"]), reverse=True)
    assert row["score_best"] == best
    assert row["score_gap"] == (best - others[0] if others else 0)


def test_columns_and_their_meaning(direction, ds):
    from datasets import List, Value

    fn = LegendScoreFn(direction)
    out = ds.map(fn, batched=True)
    assert (
        out.column_names
        == ["prompt", "responses", "source", *COLUMNS, "scores_direction"]
        == [*ds.column_names, *fn.columns]
    )
    assert out.features["scores"] == List(Value("float32"))
    assert out.features["ranking"] == List(Value("int32"))
    assert out.features["best_response"] == Value("int32")
    assert out.features["score_best"] == out.features["score_gap"] == Value("float32"), "which a viewer draws"
    assert out.features == fn.features(ds.features), "what is promised is what `map` finds by itself"
    assert out.remove_columns(fn.columns).features == ds.features
    assert [len(scores) for scores in out["scores"]] == [len(row["responses"]) for row in ROWS]
    assert close(out["scores"], one_by_one(direction, ROWS))
    for row in out:
        check_agreement(row)
    assert {row["best_response"] for row in out} != {0}
    # The control: columns that contradict each other are seen.
    row = out[4]
    with pytest.raises(AssertionError):
        check_agreement({**row, "ranking": row["ranking"][::-1]})
    with pytest.raises(AssertionError):
        check_agreement({**row, "best_response": row["ranking"][-1]})


@pytest.mark.parametrize("batch_size", [1, 5, 64])
@pytest.mark.parametrize("batch_tokens", [None, 40])
def test_numbers_do_not_depend_on_batches_order_or_neighbours(direction, ds, batch_size, batch_tokens):
    expected = one_by_one(direction, ROWS)
    fn = LegendScoreFn(direction, batch_tokens=batch_tokens)
    assert close(ds.map(fn, batched=True, batch_size=batch_size)["scores"], expected)
    order = np.random.default_rng(0).permutation(len(ROWS))
    shuffled = ds.select(order).map(fn, batched=True, batch_size=batch_size)["scores"]
    assert close(shuffled, [expected[i] for i in order])
    turned = [scores[::-1] for scores in expected]
    assert not close([turned[i] for i in order], [expected[i] for i in order]), "the control"


def test_two_responses_are_a_pair(calibrated):
    """Scores, margins and probabilities of a pair are the same, whichever transform reads it."""
    from datasets import Dataset

    pairs = [{**row, "chosen": row["responses"][0], "rejected": row["responses"][-1]} for row in ROWS]
    rows = [{"prompt": row["prompt"], "responses": [row["chosen"], row["rejected"]]} for row in pairs]
    margins = Dataset.from_list(pairs).map(LegendMarginFn(calibrated), batched=True, remove_columns=["responses"])
    out = Dataset.from_list(rows).map(LegendScoreFn(calibrated, add=["choice_probs"]), batched=True)
    scores = np.array(out["scores"][:])
    sides = np.stack([np.array(margins[name][:]) for name in ("chosen_score", "rejected_score")], axis=1)
    assert np.abs(scores - sides).max() <= 1e-4 * np.array(margins["margin_raw"][:]).std()
    raw = scores[:, 0].astype(np.float64) - scores[:, 1]
    logit = replace(calibrated.calibration, kind="logit", link=None)
    probs = np.array(out["choice_probs"][:])
    np.testing.assert_allclose(probs[:, 0], logit.prob(raw), atol=1e-6)
    assert np.ptp(probs[:, 0]) > 0.2, "the control: there were probabilities to tell apart"
    assert not np.allclose(probs[:, 0], calibrated.calibration.prob(raw), atol=1e-3), "and the link is another"


@settings(max_examples=15)
@given(data=st.data())
def test_permuting_responses_permutes_their_columns(calibrated, data):
    """Response by response, whatever the other responses are and wherever it stands."""
    texts = data.draw(st.lists(st.text("abc de.", min_size=1).filter(str.strip), min_size=1, max_size=7, unique=True))
    order = data.draw(st.permutations(range(len(texts))))
    fn = LegendScoreFn(calibrated, add=["choice_probs"])
    one = fn({"prompt": ["Why?"], "responses": [texts]})
    other = fn({"prompt": ["Why?"], "responses": [[texts[i] for i in order]]})
    deviation = max(one["scores"][0].std(), 1e-3)
    assert np.abs(one["scores"][0][order] - other["scores"][0]).max() <= 1e-4 * deviation
    np.testing.assert_allclose(one["choice_probs"][0][order], other["choice_probs"][0], atol=1e-4)
    gaps = np.diff(np.sort(one["scores"][0]))
    if (gaps > 1e-4 * deviation).all():  # else the two readings may round to other orders
        assert [texts[i] for i in one["ranking"][0]] == [[texts[i] for i in order][j] for j in other["ranking"][0]]


def test_equal_responses_rank_in_their_order(direction):
    fn = LegendScoreFn(direction)
    row = fn({"prompt": ["Why?"], "responses": [["Well.", "Hm.", "Well.", "Hm.", "Well."]]})
    scores, ranking = row["scores"][0], row["ranking"][0].tolist()
    assert len(set(scores.tolist())) == 2
    assert ranking in ([0, 2, 4, 1, 3], [1, 3, 0, 2, 4])
    assert row["best_response"][0] == ranking[0] in (0, 1)


def test_choice_probs_are_shares_that_rise_with_the_scores(calibrated, ds):
    from datasets import List, Value

    fn = LegendScoreFn(calibrated, add=["choice_probs"])
    out = annotate(ds, fn)
    assert fn.columns == [*COLUMNS, "choice_probs", "scores_direction"]
    assert out.features["choice_probs"] == List(Value("float32"))
    for row in out:
        scores, probs = np.array(row["scores"]), np.array(row["choice_probs"])
        assert probs.sum() == pytest.approx(1, abs=1e-6)
        assert (probs > 0).all()
        assert (np.diff(probs[row["ranking"]]) <= 0).all()
        # Luce: the odds of two responses do not depend on the others.
        np.testing.assert_allclose(
            np.log(probs / probs[0]), calibrated.calibration.logit * (scores - scores[0]), atol=1e-4
        )
        if len(probs) == 1:
            assert probs == [1]
    spoilt = np.array(out[4]["choice_probs"])[::-1]
    assert not (np.diff(spoilt[out[4]["ranking"]]) <= 0).all(), "the control"


def test_extreme_scores_give_shares_and_no_nan(calibrated, monkeypatch):
    monkeypatch.setattr(Direction, "project", lambda self, hidden: np.linspace(-1e30, 1e30, len(hidden)))
    fn = LegendScoreFn(calibrated, add=["choice_probs"])
    row = fn({"prompt": ["Why?"], "responses": [["A.", "B.", "C."]]})
    assert sorted(row["choice_probs"][0].tolist()) == [0, 0, 1]
    for value in (np.nan, np.inf, 1e39):  # the last one is finite in float64 alone
        monkeypatch.setattr(Direction, "project", lambda self, hidden, v=value: np.full(len(hidden), v))
        with pytest.raises(ValueError, match="row 0: .* hidden states are not finite in float32 for this text"):
            fn({"prompt": ["Why?"], "responses": [["A.", "B.", "C."]]})


def test_one_reading_of_the_prompt_for_all_responses(direction, monkeypatch):
    """Tokens that the model is given, for forty responses to a long prompt and more than forty to another."""
    from legend_hf.reading import reader

    inputs = []
    opened = reader.open_reader(direction.reader, reader.Runtime(path=direction.model_path))
    assert opened.route.way == "tree"
    hook = opened.model.register_forward_pre_hook(
        lambda module, args, kwargs: inputs.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    rows = {
        "prompt": ["Tell me, please, " * 12 + f"what {topic} is." for topic in ("tea", "rain")],
        "responses": [[f"Number {i} says {i * i}." for i in range(n)] for n in (40, 47)],
    }
    try:
        out = LegendScoreFn(direction)(rows)
        together = sum(inputs)
        inputs.clear()
        alone = one_by_one(direction, [dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)])
        apart = sum(inputs)
    finally:
        hook.remove()
    assert [len(scores) for scores in out["scores"]] == [40, 47]
    assert close(out["scores"], alone)
    prompt = len(opened.tokenizer(rows["prompt"][0])["input_ids"])
    assert prompt > 60
    assert together < apart - 70 * prompt, "the prompt was read for every response"


def test_scores_in_a_store_are_not_read_again_by_either_transform(direction, tmp_path, read):
    store = tmp_path / "scores.sqlite"
    row = ROWS[4]
    pair = {"prompt": [row["prompt"]], "chosen": [row["responses"][1]], "rejected": [row["responses"][3]]}
    batch = {"prompt": [row["prompt"]], "responses": [row["responses"]]}
    margins = LegendMarginFn(direction, store=store)(pair)
    first = LegendScoreFn(direction, store=store)(batch)
    assert read == [2, 3], "two of the five were known"
    assert first["scores"][0][[1, 3]].tolist() == [margins["chosen_score"][0], margins["rejected_score"][0]]
    again = LegendScoreFn(direction, store=store)(batch)
    LegendMarginFn(direction, store=store)(pair)
    assert sum(read[2:]) == 0
    np.testing.assert_array_equal(again["scores"][0], first["scores"][0])
    read.clear()
    LegendScoreFn(direction)(batch)
    assert read == [5], "the control: without the store all are read"


def test_entries_like_ultrafeedback(direction, ds):
    """Dicts with a response beside other things, message lists, and rows without a prompt."""
    from datasets import Dataset

    fn = LegendScoreFn(direction, prompt_column="instruction", responses_column="completions")
    entries = [
        {
            "instruction": row["prompt"],
            "completions": [{"response": text, "model": "m", "rating": 3} for text in row["responses"]],
        }
        for row in ROWS
    ]
    out = annotate(Dataset.from_list(entries), fn)
    expected = annotate(ds, LegendScoreFn(direction))
    assert out["scores"][:] == expected["scores"][:]
    messages = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "responses": [[{"role": "assistant", "content": text}] for text in row["responses"]],
        }
        for row in ROWS
    ]
    assert close(annotate(Dataset.from_list(messages), LegendScoreFn(direction))["scores"], expected["scores"])
    bare = annotate(ds.remove_columns("prompt"), LegendScoreFn(direction))
    assert not close(bare["scores"], expected["scores"]), "the control: the prompt counts"


def test_every_kind_of_dataset(calibrated, ds):
    from datasets import Dataset, DatasetDict

    fn = LegendScoreFn(calibrated, add=["choice_probs"], on_error="skip")
    splits = annotate(DatasetDict(train=ds, test=ds.select([4]), empty=ds.select([])), fn)
    assert {name: len(split) for name, split in splits.items()} == {"train": 12, "test": 1, "empty": 0}
    assert len({str(split.features) for split in splits.values()}) == 1
    expected = splits["train"]["scores"][:]
    stream = ds.to_iterable_dataset(num_shards=3)
    for out in (annotate(stream, fn), stream.map(fn, batched=True, batch_size=5, features=fn.features(ds.features))):
        assert out.features == splits["train"].features
        assert close([row["scores"] for row in out], expected)
    skipped = annotate(Dataset.from_list([{"prompt": "Why?", "responses": []}]), fn)
    assert skipped["scores"][:] == [[]]
    assert skipped.features["scores"] == splits["train"].features["scores"], "typed, where there is nothing to type by"


@pytest.mark.parametrize("kind", ["numpy", "torch", "pandas", "arrow"])
def test_formatted_datasets(direction, ds, kind):
    expected = ds.map(LegendScoreFn(direction), batched=True)
    out = ds.with_format(kind).map(LegendScoreFn(direction), batched=True)
    assert close(out.with_format(None)["scores"], expected["scores"])
    kept = annotate(ds.with_format(kind), LegendScoreFn(direction))
    assert kept.format["type"] == kind
    assert kept.with_format(None)["ranking"][:] == expected["ranking"][:]


@pytest.mark.parametrize("kind", [None, "numpy", "torch", "pandas", "arrow"])
def test_skipped_rows_are_finite_and_say_why(calibrated, kind):
    from datasets import Dataset

    rows = [
        ROWS[2],
        {"prompt": "Why?", "responses": ["Yes.", " ", "No."]},
        {"prompt": "Why?", "responses": ["Yes.", "word " * 600]},
        ROWS[3],
        {"prompt": "Why?", "responses": []},
        {"prompt": "Why?", "responses": None},
        {"prompt": None, "responses": ["Yes.", "No."]},
    ]
    fn = LegendScoreFn(calibrated, add=["choice_probs"], on_error="skip")
    assert fn.columns == [*COLUMNS, "choice_probs", "scores_direction", "scores_status"]
    ds = Dataset.from_list([{"prompt": row["prompt"], "responses": row["responses"]} for row in rows])
    out = ds.with_format(kind).map(fn, batched=True).with_format(None)
    status = out["scores_status"][:]
    assert [said == "ok" for said in status] == [True, False, False, True, False, False, False]
    assert status[1].startswith("column `responses[1]`: ")
    assert status[2].startswith("column `responses[1]`: ")
    assert "max_length" in status[2]
    assert close([out[0]["scores"], out[3]["scores"]], one_by_one(calibrated, [ROWS[2], ROWS[3]]))
    for row, count in ((1, 3), (2, 2), (4, 0), (5, 0), (6, 2)):
        got = {name: out[row][name] for name in fn.columns}
        assert got["scores"] == [0] * count
        assert got["ranking"] == list(range(count))
        assert got["best_response"] == -1
        assert got["choice_probs"] == pytest.approx([1 / max(count, 1)] * count)
    only_bad = ds.select([4, 5]).map(fn, batched=True)
    assert only_bad.features["scores"] == out.features["scores"]
    assert only_bad["scores"][:] == [[], []]


def test_a_bad_row_is_named_before_anything_is_read(direction, ds, monkeypatch):
    from datasets import Dataset, DatasetDict

    from legend_hf.reading import reader

    monkeypatch.setattr(reader.OpenReader, "read", lambda *a, **k: pytest.fail("a text was read"))
    bad = Dataset.from_list([*ROWS[:3], {**ROWS[3], "responses": ["Yes.", "word " * 600]}])
    fn = LegendScoreFn(direction)
    with pytest.raises(RowError, match=r"row 3, column `responses\[1\]`: the response needs .* `max_length` is 512"):
        fn(bad[:])
    with pytest.raises(RowError, match=r"row 3, column `responses\[1\]`") as caught:
        annotate(DatasetDict(train=ds, test=bad), fn, batch_size=2)
    assert caught.value.__notes__ == ["in split 'test'"]
    blank = [{"prompt": "Why?", "words": ["Yes.", ""]}]
    with pytest.raises(RowError, match=r"row 0, column `words\[1\]`: the response '' is empty"):
        annotate(Dataset.from_list(blank), LegendScoreFn(direction, responses_column="words"))


def test_fingerprint_is_stable_before_between_and_after_calls(calibrated, ds, tmp_path):
    from datasets.fingerprint import Hasher

    def make(**options):
        return LegendScoreFn(calibrated, **{"add": ["choice_probs"], **options})

    fn = make()
    hashes = [Hasher.hash(fn)]
    before = pickle.dumps(fn)
    ds.map(fn, batched=True)
    assert pickle.dumps(fn) == before
    assert len(before) < 20_000, "no model travels with it"
    hashes += [
        Hasher.hash(fn),
        Hasher.hash(pickle.loads(before)),
        Hasher.hash(dill.loads(dill.dumps(fn))),
        Hasher.hash(make()),
    ]
    assert len(set(hashes)) == 1
    assert Hasher.hash(make(add=[])) not in hashes
    elsewhere = make(device="cpu", batch_tokens=7, route="padded", store=tmp_path / "s.sqlite")
    assert elsewhere.fingerprint() == fn.fingerprint()
    others = [
        make(add=[]),
        make(on_error="skip"),
        make(responses_column="texts"),
        make(prompt_column="question"),
        LegendScoreFn({"safety": calibrated}, add=["choice_probs"]),
        LegendScoreFn(replace(calibrated, vector=-calibrated.vector), add=["choice_probs"]),
    ]
    assert len({one.fingerprint() for one in others} | {fn.fingerprint()}) == len(others) + 1
    assert LegendMarginFn(calibrated).fingerprint() not in {make(add=[]).fingerprint(), fn.fingerprint()}
    copy = pickle.loads(pickle.dumps(make(on_error="skip", store=tmp_path / "s.sqlite", responses_column="texts")))
    assert copy.skips
    assert copy.columns == [*COLUMNS, "choice_probs", "scores_direction", "scores_status"]
    assert "s.sqlite" in copy.how_to_go_on


def test_an_old_pickle_is_refused(direction, monkeypatch):
    from legend_hf.margins import scoring

    old = pickle.dumps(LegendScoreFn(direction))
    monkeypatch.setattr(scoring, "SCORING_VERSION", scoring.SCORING_VERSION + 1)
    with pytest.raises(ValueError, match="scores differently .* make it anew"):
        pickle.loads(old)


def test_cached_result_is_found_again(direction, ds, tmp_path):
    from datasets import load_from_disk

    ds.save_to_disk(tmp_path / "ds")
    outs = [
        annotate(load_from_disk(tmp_path / "ds"), LegendScoreFn(direction, **options))
        for options in ({}, {}, {"batch_tokens": 50, "store": tmp_path / "s.sqlite"}, {"on_error": "skip"})
    ]
    files = [out.cache_files for out in outs]
    assert files[0] == files[1] == files[2] != files[3]


FORKED = """
import json, sys, numpy as np
from datasets import Dataset
from legend_hf import annotate
from legend_hf.margins.score_fn import LegendScoreFn
fn = LegendScoreFn(sys.argv[1], model=sys.argv[2], store=sys.argv[4])
alone = LegendScoreFn(sys.argv[1], model=sys.argv[2])
ds = Dataset.from_list(json.load(open(sys.argv[3])))
one = ds.map(alone, batched=True)
two = annotate(ds, fn, num_proc=2, batch_size=2)
print(np.abs(np.concatenate(one["scores"][:]) - np.concatenate(two["scores"][:])).max())
"""


def test_two_processes_after_the_parent_has_scored(direction, tmp_path, tiny_llama):
    direction.save_pretrained(tmp_path / "d")
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    done = subprocess.run(
        [sys.executable, "-c", FORKED, *(str(p) for p in (tmp_path / "d", tiny_llama, tmp_path / "rows.json", tmp_path / "s.sqlite"))],
        capture_output=True, text=True, check=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "2"},
    )  # fmt: skip
    assert float(done.stdout) <= 1e-4 * np.concatenate(one_by_one(direction, ROWS)).std()


def test_several_directions_read_each_text_once(direction, calibrated, tiny_llama, read):
    other = fit_direction(PAIRS, model=str(tiny_llama), layer=1)
    last = fit_direction(PAIRS, model=str(tiny_llama), pooling="last")
    batch = {name: [row[name] for row in ROWS[:5]] for name in ("prompt", "responses")}
    read.clear()
    fn = LegendScoreFn({"a": direction, "b": other, "c": last})
    out = fn(batch)
    assert read == [15, 15], "layers share a reading, another pooling is another reader"
    assert (
        list(out) == fn.columns == [f"{column}_{name}" for name in "abc" for column in (*COLUMNS, "scores_direction")]
    )
    for name, alone in (("a", direction), ("b", other), ("c", last)):
        assert close(out[f"scores_{name}"], LegendScoreFn(alone)(batch)["scores"])
    assert not close(out["scores_a"], out["scores_b"])
    named = LegendScoreFn({"safety": calibrated}, add=["choice_probs"], on_error="skip")
    assert named.columns == [f"{c}_safety" for c in (*COLUMNS, "choice_probs", "scores_direction")] + ["scores_status"]
    assert pickle.loads(pickle.dumps(named)).columns == named.columns
    for names in (["status"], ["a", "status"]):
        with pytest.raises(ValueError, match="`scores_status` would mean two things; give other names"):
            LegendScoreFn(dict.fromkeys(names, direction))


def test_misuse_names_the_remedy(direction, ds):
    fn = LegendScoreFn(direction)
    with pytest.raises(ValueError, match="batched=True"):
        ds.map(fn)
    with pytest.raises(ValueError, match="leave `with_indices` out"):
        ds.map(fn, batched=True, with_indices=True)
    with pytest.raises(ValueError, match="allowed is `responses`, a list of strings"):
        ds.rename_column("responses", "texts").map(fn, batched=True)
    for arguments, message in (
        ({"on_error": "ignore"}, "`on_error` is 'ignore'; allowed are 'raise', 'skip'"),
        ({"add": "choice_probs"}, r"`add` is 'choice_probs'; allowed is \['choice_probs'\], or nothing"),
        ({"add": ["margin_prob"]}, r"`add` is \['margin_prob'\]; allowed is \['choice_probs'\]"),
        ({"batch_tokens": 0}, "`batch_tokens` is 0"),
        ({"route": "quick"}, "`route` is 'quick'; allowed are 'tree', 'padded', 'grouped'"),
        ({"store": "scores.txt"}, "sqlite"),
    ):
        with pytest.raises(ValueError, match=message):
            LegendScoreFn(direction, **arguments)
    with pytest.raises(ValueError, match="give each direction a name"):
        LegendScoreFn({})
    with pytest.raises(ValueError, match="`choice_probs` needs a direction with a `logit` calibration, bare has 'raw'"):
        LegendScoreFn({"bare": replace(direction, calibration=RAW)}, add=["choice_probs"])
    LegendScoreFn(replace(direction, calibration=RAW))


def test_existing_columns_are_protected(direction, ds):
    taken = ds.add_column("ranking", [0] * len(ds))
    with pytest.raises(ValueError, match="already has `ranking`; rename or remove"):
        taken.map(LegendScoreFn(direction), batched=True)
    with pytest.raises(ValueError, match="already has `ranking`"):
        annotate(taken, LegendScoreFn(direction))
    over = annotate(taken, pickle.loads(pickle.dumps(LegendScoreFn(direction, overwrite=True))))
    assert over["ranking"][:] == annotate(ds, LegendScoreFn(direction))["ranking"][:]


@pytest.mark.parametrize("route", ["tree", "padded", "grouped"])
def test_the_way_of_reading_can_be_forced_and_changes_no_score(direction, ds, route):
    fn = pickle.loads(pickle.dumps(LegendScoreFn(direction, route=route)))
    assert close(ds.map(fn, batched=True)["scores"], one_by_one(direction, ROWS))
