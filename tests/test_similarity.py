"""`pair_similarity`: its number against plain transformers, what it ignores, and its contract with `datasets`."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys

import dill
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from legend_hf.directions.calibrate import RAW
from legend_hf.directions.direction import Direction
from legend_hf.margins.annotate import annotate
from legend_hf.preferences.similarity import PairSimilarityFn, cosine
from legend_hf.reading.formats import RowError
from legend_hf.reading.reader import OpenReader, describe_model

TOPICS = ["bread", "bikes", "paint", "tents", "maps", "soup", "songs", "rain", "chess", "tea"]
ROWS = [
    {"prompt": f"Question {i}: {'why ' * (i % 4)}{t}?", "chosen": f"Because of {t}. " * (1 + i % 3), "rejected": f"Never mind {i}."}
    for i, t in enumerate(TOPICS * 2)
]  # fmt: skip


@pytest.fixture(scope="module")
def fn(tiny_llama):
    return PairSimilarityFn(tiny_llama)


@pytest.fixture
def ds():
    from datasets import Dataset

    return Dataset.from_list(ROWS)


def mapped(fn, rows):
    from datasets import Dataset

    return np.array(Dataset.from_list(rows).map(fn, batched=True)["pair_similarity"][:])


def straight(folder, rows, *, max_length=512, layer=-1, specials=False, prompts=False):
    """Plain transformers: one text at a time, last hidden states, mean over the tokens that are not special."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()

    def embed(text):
        inputs = tokenizer(
            text, truncation=True, max_length=max_length, return_tensors="pt", return_special_tokens_mask=True
        )
        special = inputs.pop("special_tokens_mask")
        mask = (inputs["attention_mask"] * (1 if specials else 1 - special)).unsqueeze(-1)
        with torch.no_grad():
            hidden = model(**inputs, output_hidden_states=True).hidden_states[layer]
        return (hidden * mask).sum(1) / mask.sum(1)

    def text(row, side):
        return row["prompt"] + row[side] if prompts else row[side]

    return np.array(
        [torch.cosine_similarity(embed(text(r, "chosen")), embed(text(r, "rejected"))).item() for r in rows]
    )


def test_equals_plain_transformers(fn, tiny_llama):
    got = mapped(fn, ROWS)
    np.testing.assert_allclose(got, straight(tiny_llama, ROWS), atol=1e-5)
    assert got.std() > 0.01
    # The controls: with the prompt, with BOS in the mean, and at another layer the numbers are others.
    for other in ({"prompts": True}, {"specials": True}, {"layer": 1}):
        assert np.abs(got - straight(tiny_llama, ROWS, **other)).max() > 1e-3, other


def test_layer(tiny_llama):
    got = mapped(PairSimilarityFn(tiny_llama, layer=1), ROWS)
    np.testing.assert_allclose(got, straight(tiny_llama, ROWS, layer=1), atol=1e-5)
    with pytest.raises(ValueError, match="`layer` is 9; this model has 3 blocks"):
        PairSimilarityFn(tiny_llama, layer=9)


@pytest.mark.parametrize("batch_size", [1, 7])
@pytest.mark.parametrize("batch_tokens", [None, 40])
def test_numbers_do_not_depend_on_batches_or_neighbours(tiny_llama, fn, ds, batch_size, batch_tokens):
    small = PairSimilarityFn(tiny_llama, batch_tokens=batch_tokens)
    got = np.array(ds.map(small, batched=True, batch_size=batch_size)["pair_similarity"][:])
    np.testing.assert_allclose(got, mapped(fn, ROWS), atol=1e-6)


def test_long_responses_lose_their_ends_as_the_tokenizer_cuts_them(tiny_llama):
    rows = [{"prompt": "Why?", "chosen": "bread and soup " * n, "rejected": "rain or tea, " * 3} for n in (1, 5, 200)]
    got = mapped(PairSimilarityFn(tiny_llama, max_length=12), rows)
    np.testing.assert_allclose(got, straight(tiny_llama, rows, max_length=12), atol=1e-5)
    assert got[1] == got[2], "what was cut does not count"
    longer = mapped(PairSimilarityFn(tiny_llama), rows)  # the last one is longer than the model's window
    np.testing.assert_allclose(longer, straight(tiny_llama, rows, max_length=512), atol=1e-5)
    assert abs(longer[1] - longer[2]) > 1e-4
    np.testing.assert_array_equal(mapped(PairSimilarityFn(tiny_llama, max_length=4096), rows), longer)
    with pytest.raises(RowError, match="row 0, column `chosen`: `max_length` is 1, which leaves no room"):
        mapped(PairSimilarityFn(tiny_llama, max_length=1), rows)
    with pytest.raises(ValueError, match="`max_length` is 0; it must be at least 1"):
        PairSimilarityFn(tiny_llama, max_length=0)


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory):
    """An encoder, whose tokenizer puts a special token after the text too."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *TOPICS, "Because", "of", ".", "Never", "mind"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertModel(config).eval()
    folder = tmp_path_factory.mktemp("tiny_bert")
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("max_length", [512, 6])
def test_an_encoder_keeps_its_last_special_token(tiny_bert, max_length):
    got = mapped(PairSimilarityFn(tiny_bert, max_length=max_length), ROWS)
    np.testing.assert_allclose(got, straight(tiny_bert, ROWS, max_length=max_length), atol=1e-5)
    with_specials = straight(tiny_bert, ROWS, max_length=max_length, specials=True)
    assert np.abs(got - with_specials).max() > 1e-3, "the control: special tokens would count"


def test_prompts_do_not_matter_and_responses_do(fn):
    before = mapped(fn, ROWS)
    others = [{**row, "prompt": f"{row['rejected']} {i} entirely else" * (1 + i % 3)} for i, row in enumerate(ROWS)]
    np.testing.assert_array_equal(mapped(fn, others), before)
    without = [{"chosen": row["chosen"], "rejected": row["rejected"]} for row in ROWS]
    np.testing.assert_array_equal(mapped(fn, without), before)
    control = [{**row, "chosen": f"{row['chosen']} And tea."} for row in ROWS]
    assert (mapped(fn, control) != before).all()


def test_shapes_of_one_pair_get_one_similarity(fn):
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
    got = [mapped(fn, [row])[0] for row in shapes]
    np.testing.assert_allclose(got, got[0], rtol=1e-6)
    assert got[0] != 1


def test_of_several_turns_the_assistants_are_read(fn):
    user, tea, why, more = (
        {"role": role, "content": text}
        for role, text in (("user", "Tea?"), ("assistant", "Tea."), ("user", "Why?"), ("assistant", "It is warm."))
    )
    several = {"prompt": [user], "chosen": [tea, why, more], "rejected": [{"role": "assistant", "content": "No."}]}
    flat = {"prompt": "Tea?", "chosen": "Tea.\n\nIt is warm.", "rejected": "No."}
    last = {"prompt": "Tea?", "chosen": "It is warm.", "rejected": "No."}
    got = [mapped(fn, [row])[0] for row in (several, flat, last)]
    assert got[0] == pytest.approx(got[1], abs=1e-6)
    assert abs(got[0] - got[2]) > 1e-4, "the control: the last turn alone is another response"


def test_symmetric_bounded_and_exactly_one_for_equals(fn):
    before = mapped(fn, ROWS)
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in ROWS]
    np.testing.assert_array_equal(mapped(fn, swapped), before)
    assert (np.abs(before) <= 1).all()
    equal = [{**row, "rejected": row["chosen"]} for row in ROWS]
    assert (mapped(fn, equal) == 1.0).all()
    assert (before != 1.0).all(), "the control"


def test_type_and_streaming(fn, ds):
    from datasets import Value

    out = ds.map(fn, batched=True)
    assert out.column_names == ["prompt", "chosen", "rejected", "pair_similarity"]
    assert out.features["pair_similarity"] == Value("float32")
    stream = ds.to_iterable_dataset(num_shards=2)
    got = stream.map(fn, batched=True, batch_size=4, features=fn.features(stream.features))
    assert list(got.features) == out.column_names
    np.testing.assert_allclose([row["pair_similarity"] for row in got], out["pair_similarity"][:], atol=1e-6)


def test_two_processes(fn, ds):
    alone = ds.map(fn, batched=True)
    two = ds.map(fn, batched=True, batch_size=3, num_proc=2, with_rank=True)
    np.testing.assert_allclose(two["pair_similarity"][:], alone["pair_similarity"][:], atol=1e-6)


def test_hash_is_stable_and_means_the_numbers(fn, ds, tiny_llama):
    from datasets.fingerprint import Hasher

    hashes = [Hasher.hash(fn)]
    ds.map(fn, batched=True)
    hashes += [
        Hasher.hash(one)
        for one in (fn, pickle.loads(pickle.dumps(fn)), dill.loads(dill.dumps(fn)), PairSimilarityFn(tiny_llama))
    ]
    code = (
        "import sys; from datasets.fingerprint import Hasher\n"
        "from legend_hf.preferences.similarity import PairSimilarityFn\n"
        "print(Hasher.hash(PairSimilarityFn(sys.argv[1])))"
    )
    fresh = subprocess.run(
        [sys.executable, "-c", code, str(tiny_llama)],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": "1"},
    )  # fmt: skip
    hashes.append(fresh.stdout.strip())
    assert len(set(hashes)) == 1
    others = [
        PairSimilarityFn(tiny_llama, layer=1),
        PairSimilarityFn(tiny_llama, max_length=5),
        PairSimilarityFn(tiny_llama, on_error="skip"),
        PairSimilarityFn(tiny_llama, chosen_column="better"),
    ]
    assert len({Hasher.hash(one) for one in others} | set(hashes)) == 5
    assert len(pickle.dumps(fn)) < 5_000, "no model travels with it"


def test_an_old_pickle_is_refused(fn, monkeypatch):
    from legend_hf.preferences import similarity

    old = pickle.dumps(fn)
    monkeypatch.setattr(similarity, "SIMILARITY_VERSION", similarity.SIMILARITY_VERSION + 1)
    with pytest.raises(ValueError, match="measures similarity differently .* make it anew"):
        pickle.loads(old)


def test_a_text_is_read_once_in_a_batch(fn, monkeypatch):
    seen = []
    read = OpenReader.read

    def counting(self, texts, *args, **kwargs):
        seen.append(len(texts))
        return read(self, texts, *args, **kwargs)

    monkeypatch.setattr(OpenReader, "read", counting)
    mapped(fn, [{"prompt": str(i), "chosen": "Tea.", "rejected": "No." if i % 2 else "Rain."} for i in range(8)])
    assert seen == [3]


def test_a_direction_or_a_reader_lends_its_model(fn, tiny_llama):
    reader = describe_model(tiny_llama, layer=1, pooling="last", template="alpaca")
    vector = np.eye(1, 32, dtype=np.float32)[0]
    direction = Direction(vector, reader, RAW, model_path=str(tiny_llama))
    np.testing.assert_allclose(mapped(PairSimilarityFn(direction), ROWS), mapped(fn, ROWS), atol=1e-6)
    again = pickle.loads(pickle.dumps(PairSimilarityFn(direction)))
    np.testing.assert_array_equal(mapped(again, ROWS), mapped(PairSimilarityFn(direction), ROWS))
    short = Direction(vector, describe_model(tiny_llama, max_length=6), RAW, model_path=str(tiny_llama))
    expected = straight(tiny_llama, ROWS, max_length=6)
    np.testing.assert_allclose(mapped(PairSimilarityFn(short), ROWS), expected, atol=1e-5)
    with pytest.raises(ValueError, match="`model` is a Reader of a model folder .* give the folder itself"):
        PairSimilarityFn(reader)
    with pytest.raises(ValueError, match="`dtype` is 'bfloat16', but `model` is a Direction"):
        PairSimilarityFn(direction, dtype="bfloat16")
    with pytest.raises(ValueError, match="`revision` is 'main', but `model` is a Direction"):
        PairSimilarityFn(direction, revision="main")


def test_misuse_is_refused(fn, tiny_llama, ds):
    with pytest.raises(ValueError, match="pass `batched=True` to `map`"):
        ds.map(fn)
    with pytest.raises(ValueError, match="leave `with_indices` out"):
        ds.map(fn, batched=True, with_indices=True)
    with pytest.raises(ValueError, match="`on_error` is 'ignore'; allowed are 'raise', 'skip'"):
        PairSimilarityFn(tiny_llama, on_error="ignore")
    with pytest.raises(ValueError, match="`batch_tokens` is 0"):
        PairSimilarityFn(tiny_llama, batch_tokens=0)
    done = ds.map(fn, batched=True)
    with pytest.raises(ValueError, match="already has `pair_similarity`; .* `overwrite=True`"):
        done.map(fn, batched=True)
    assert done.map(PairSimilarityFn(tiny_llama, overwrite=True), batched=True).column_names == done.column_names


def test_annotate_is_map_with_every_row_checked_and_empty_splits_kept(fn, ds, monkeypatch):
    from datasets import DatasetDict, IterableDataset

    splits = annotate(DatasetDict(train=ds, test=ds.select([])), fn)
    plain = ds.map(fn, batched=True)
    np.testing.assert_array_equal(splits["train"]["pair_similarity"][:], plain["pair_similarity"][:])
    assert splits["test"].features == splits["train"].features == fn.features(ds.features)
    assert len(splits["test"]) == 0
    stream = annotate(ds.to_iterable_dataset(), fn)
    assert isinstance(stream, IterableDataset)
    assert stream.features == fn.features(ds.features)
    assert len(list(stream)) == len(ds)
    with pytest.raises(ValueError, match="already has `pair_similarity`; .* `overwrite=True`"):
        annotate(splits, fn)
    assert "nothing was kept" in fn.how_to_go_on
    # A row of the last split is found before a row of the first is read.
    bad = ds.map(lambda row, i: {"chosen": row["chosen"] if i != 11 else " "}, with_indices=True)
    monkeypatch.setattr(OpenReader, "read", lambda *_, **__: pytest.fail("read a text first"))
    with pytest.raises(RowError, match="row 11, column `chosen`") as caught:
        annotate(DatasetDict(train=ds, test=bad), fn, batch_size=5)
    assert "in split 'test'" in caught.value.__notes__


def test_annotate_skips_rows_and_finds_a_fingerprint_of_what_decides(fn, tiny_llama):
    from datasets import Dataset

    bad = Dataset.from_list([ROWS[0], {**ROWS[1], "rejected": ""}])
    skipping = PairSimilarityFn(tiny_llama, on_error="skip")
    done = annotate(bad, skipping)
    assert done["pair_similarity_status"][0] == "ok"
    assert done["pair_similarity_status"][1].startswith("column `rejected`")
    assert PairSimilarityFn(tiny_llama, batch_tokens=40).fingerprint() == fn.fingerprint()
    others = [skipping, PairSimilarityFn(tiny_llama, layer=1), PairSimilarityFn(tiny_llama, max_length=9)]
    assert len({one.fingerprint() for one in (fn, *others)}) == 4


def test_annotate_takes_directions_by_their_names(ds, tiny_llama):
    vector = np.eye(1, 32, dtype=np.float32)[0]
    direction = Direction(vector, describe_model(str(tiny_llama)), RAW, model_path=str(tiny_llama))
    done = annotate(ds, {"one": direction, "two": direction})
    assert done["margin_one"][:] == done["margin_two"][:] == annotate(ds, direction)["margin"][:]


def test_annotate_says_what_a_dataset_is(ds, monkeypatch):
    monkeypatch.setattr(Direction, "from_pretrained", lambda *_, **__: pytest.fail("loaded a direction first"))
    for wrong, what in (
        (ds.to_list(), "a list"),
        ("you/pairs", "a str"),
        (ds.to_pandas(), "a DataFrame"),
        (None, "None"),
    ):
        with pytest.raises(ValueError, match=f"`dataset` is {what}; allowed are `Dataset`, .*`Dataset.from_list"):
            annotate(wrong, "you/direction")


def test_rows_that_cannot_be_read(fn, tiny_llama):
    pku = {"prompt": "Why?", "response_0": "Tea.", "response_1": "x", "safer_response_id": 1}
    with pytest.raises(RowError, match="row 0, column `response_1`: `max_length` is 1"):
        mapped(PairSimilarityFn(tiny_llama, max_length=1), [pku])
    bad = [{"prompt": "Why?", "chosen": "Tea.", "rejected": "  "}, {**ROWS[3], "chosen": None}]
    rows = [ROWS[0], bad[0], *ROWS[1:3], bad[1]]
    with pytest.raises(RowError, match="row 1, column `rejected`: .* is empty or only whitespace"):
        mapped(fn, rows)
    from datasets import Dataset

    skipping = PairSimilarityFn(tiny_llama, on_error="skip")
    out = Dataset.from_list(rows).map(skipping, batched=True)
    assert skipping.columns == out.column_names[-2:] == ["pair_similarity", "pair_similarity_status"]
    first, *others = mapped(fn, ROWS[:3])
    np.testing.assert_array_equal(out["pair_similarity"][:], [first, 0.0, *others, 0.0])
    status = out["pair_similarity_status"][:]
    assert [status[i] for i in (0, 2, 3)] == ["ok"] * 3
    assert status[1].startswith("column `rejected`: the response '  ' is empty or only whitespace")
    assert "given None" in status[4]
    only_bad = Dataset.from_list(bad).map(skipping, batched=True)
    assert only_bad["pair_similarity"][:] == [0.0, 0.0]


def test_hidden_states_that_are_not_finite_are_refused(fn, monkeypatch):
    import torch

    monkeypatch.setattr(
        OpenReader, "read", lambda self, texts, layers, **_: iter([(range(len(texts)), torch.full((len(texts), 1, 32), torch.inf))])
    )  # fmt: skip
    with pytest.raises(ValueError, match="hidden states are not finite in float32"):
        mapped(fn, ROWS[:2])


# -- The cosine alone ----------------------------------------------------------------------------------------

seeds = st.integers(0, 2**32 - 1)


def naive(one, other):
    return (one * other).sum(axis=1) / np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1))


@given(seeds, st.integers(1, 6), st.integers(1, 5), st.floats(1e-3, 1e3))
def test_cosine_is_invariant_and_bounded(seed, n, d, factor):
    rng = np.random.default_rng(seed)
    one, other = rng.standard_normal((2, n, d))
    got = cosine(one, other)
    np.testing.assert_allclose(got, naive(one, other), atol=1e-12)
    np.testing.assert_array_equal(got, cosine(other, one))
    assert (np.abs(got) <= 1).all()
    np.testing.assert_allclose(cosine(factor * one, other / factor), got, atol=1e-12)
    rotation = np.linalg.qr(rng.standard_normal((d, d)))[0]
    np.testing.assert_allclose(cosine(one @ rotation, other @ rotation), got, atol=1e-12)
    shifted = cosine(one + 1, other)  # the control: a shift is no rotation
    assert d == 1 or not np.allclose(shifted, got, atol=1e-12)


@given(seeds, st.integers(1, 64))
def test_nearly_parallel_vectors_stay_within_bounds_as_float32(seed, d):
    one = np.random.default_rng(seed).standard_normal((50, d)).astype(np.float32)
    for other in (one, 3 * one, np.nextafter(one, np.float32(9)), -one):
        got = cosine(one, other)
        assert (np.abs(got) <= 1).all()
        np.testing.assert_allclose(np.abs(got), 1, atol=1e-6)


def test_zero_and_extreme_vectors():
    zero, one = np.zeros((1, 3)), np.ones((1, 3))
    assert cosine(zero, one) == cosine(one, zero) == 0.0
    assert cosine(zero, zero) == 1.0, "equal texts are equal"
    for size in (1e-300, 1e300):
        assert cosine(size * one, one)[0] == pytest.approx(1)
    with np.errstate(all="ignore"):
        assert naive(1e300 * one, one)[0] == 0, "the control: squares overflow"
        assert not np.isfinite(naive(zero, one)).all()
    assert cosine(np.empty((0, 3)), np.empty((0, 3))).shape == (0,)
    before = one.copy()
    cosine(one, zero)
    np.testing.assert_array_equal(one, before)
