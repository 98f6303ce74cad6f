"""The reader: the same numbers whatever the batch, against straight-line code, for decoders and encoders."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest

from legend_hf.reading import reader as reader_module
from legend_hf.reading.formats import conversation
from legend_hf.reading.forward import loaded_blocks
from legend_hf.reading.reader import Reader, Runtime, describe_model, folder_sha256, open_reader

TALKS = [
    conversation("How do I bake bread?", "Mix flour, water, salt and yeast, then wait and bake."),
    conversation("Tell me a secret.", "No."),
    conversation("\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: What is the capital of France?\n\nAssistant:", " Paris."),
    conversation("Name three colours.", "Red, green and blue, and then some more of them: " + "violet, " * 30),
]


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory, tiny_llama):
    """A folder with a random BERT beside a tokenizer that puts [CLS] and [SEP] around a text."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    text = [str(t.text) + str(t.response) for t in TALKS]
    tokenizer.train_from_iterator(text, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]"
    )
    torch.manual_seed(0)
    model = BertModel(
        BertConfig(
            vocab_size=len(fast),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
        )
    )
    folder = tmp_path_factory.mktemp("tiny_bert")
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def opened(folder, **choices):
    reader = describe_model(str(folder), device="cpu", **choices)
    return open_reader(reader, Runtime(path=str(folder), device="cpu"), depth=reader.n_layers)


def vectors(reading, texts, layers, **options):
    out = np.empty((len(texts), len(layers), reading.reader.d_model), dtype=np.float32)
    for index, hidden in reading.read(texts, layers, **options):
        out[index] = hidden.numpy()
    return out


def one_by_one(folder, reading, texts, layers):
    """What the reader promises, without any of its machinery: each text alone through the whole model."""
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    rows = []
    for text in texts:
        with torch.no_grad():
            states = model(torch.tensor([text.ids]), output_hidden_states=True).hidden_states
        places = [text.last] if reading.reader.pooling == "last" else list(text.content)
        rows.append([states[layer][0, places].mean(0).numpy() for layer in layers])
    return np.array(rows)


@pytest.mark.parametrize("pooling", ["mean", "last", "mean_all"])
@pytest.mark.parametrize("batch_tokens", [1, 100, 10_000])
@pytest.mark.parametrize("model", ["tiny_llama", "tiny_bert"])
def test_batches_give_what_one_by_one_reading_gives(model, pooling, batch_tokens, request):
    folder = request.getfixturevalue(model)
    reading = opened(folder, pooling=pooling)
    texts = reading.encode(TALKS)
    layers = [0, 1, reading.reader.n_layers]
    expected = one_by_one(folder, reading, texts, layers)
    got = vectors(reading, texts, layers, batch_tokens=batch_tokens)
    np.testing.assert_allclose(got, expected, atol=2e-6)
    backwards = vectors(reading, texts[::-1], layers, batch_tokens=batch_tokens)[::-1]
    np.testing.assert_allclose(backwards, expected, atol=2e-6)
    # The control: one position further on is another vector.
    moved = [replace(t, content=tuple(i - 1 for i in t.content), last=t.last - 1) for t in texts]
    if pooling != "mean_all":
        assert np.abs(one_by_one(folder, reading, moved, layers) - expected).max() > 1e-2


def test_last_layer_is_after_the_final_norm(tiny_llama):
    import torch
    from transformers import AutoModel

    reading = opened(tiny_llama, pooling="last")
    (text,) = reading.encode(TALKS[:1])
    model = AutoModel.from_pretrained(tiny_llama).eval()
    final = model(torch.tensor([text.ids])).last_hidden_state[0, text.last]
    got = vectors(reading, [text], [reading.reader.n_layers])[0, 0]
    np.testing.assert_allclose(got, final.detach().numpy(), atol=2e-6)


def test_encoder_pools_the_response_between_its_special_tokens(tiny_bert):
    reading = opened(tiny_bert)
    (text,) = reading.encode([conversation("Tell me a secret.", "No.")])
    assert text.ids[0] == 2
    assert text.ids[-1] == 3
    assert reading.tokenizer.decode([text.ids[i] for i in text.content]) == "no ."


def test_the_model_is_loaded_once_for_readers_that_differ_in_cutting_only(tiny_llama):
    first, second = opened(tiny_llama), opened(tiny_llama, pooling="last", layer=1)
    assert first.model is second.model
    assert opened(tiny_llama, dtype="bfloat16").model is not first.model


def test_blocks_above_the_layer_are_not_loaded_unless_needed(tiny_llama):
    reader = describe_model(str(tiny_llama), layer=1, device="cpu", max_length=77)  # a length of its own: a fresh model
    runtime = Runtime(path=str(tiny_llama), device="cpu")
    shallow = open_reader(reader, runtime)
    assert loaded_blocks(shallow.model) == 1
    texts = shallow.encode(TALKS[:2])
    deep = open_reader(reader, runtime, depth=3)
    assert loaded_blocks(deep.model) == 3
    np.testing.assert_allclose(vectors(shallow, texts, [1]), vectors(deep, texts, [1]), atol=1e-6)
    assert open_reader(reader, runtime).model is deep.model, "the deeper one serves both"
    with pytest.raises(ValueError, match=r"of its 3 blocks 1 are loaded"):
        vectors(shallow, texts, [3])


def test_weights_that_are_missing_are_no_random_numbers(tiny_llama, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_llama, tmp_path / "m")
    weights = load_file(tmp_path / "m" / "model.safetensors")
    del weights["layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lack 'layers.1.mlp.up_proj.weight', which would be random numbers"):
        opened(tmp_path / "m")


@pytest.mark.parametrize("route", ["tree", "padded", "grouped"])
def test_the_way_of_reading_can_be_forced_and_changes_no_number(tiny_llama, route):
    reader = describe_model(str(tiny_llama), device="cpu")
    reading = open_reader(reader, Runtime(path=str(tiny_llama), device="cpu", route=route))
    assert reading.route.way == route
    texts = reading.encode(TALKS)
    np.testing.assert_allclose(vectors(reading, texts, [3]), one_by_one(tiny_llama, reading, texts, [3]), atol=2e-6)
    with pytest.raises(ValueError, match="`route` is 'fast'; allowed are 'tree', 'padded', 'grouped'"):
        Runtime(route="fast")


def test_the_probe_chooses_by_what_the_model_can_do(tiny_llama, tiny_bert, caplog):
    assert opened(tiny_llama).route.way == "tree"
    reader_module.close_readers()
    with caplog.at_level("WARNING", "legend_hf"):
        assert opened(tiny_bert).route.way == "padded"
        opened(tiny_bert)
    (said,) = [r.getMessage() for r in caplog.records]
    assert "is read the padded way: " in said


def test_dtype_is_explicit_and_recorded(tiny_llama):
    import torch

    assert opened(tiny_llama).reader.dtype == "float32", "auto is float32 on a CPU"
    half = opened(tiny_llama, dtype="bfloat16")
    assert half.model.dtype == torch.bfloat16
    (batch,) = [hidden for _, hidden in half.read(half.encode(TALKS[:1]), [1])]
    assert batch.dtype == torch.float32, "pooled in float32, whatever the model computes in"


def test_minus_one_is_the_last_layer_and_the_window_bounds_the_length(tiny_llama):
    reader = describe_model(str(tiny_llama), layer=-1, max_length=10_000)
    assert reader.layer == reader.n_layers == 3
    assert reader.max_length == 512
    assert reader.template == "dialogue", "without a chat template, the markers of hh-rlhf"


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"layer": 4}, "`layer` is 4; this model has 3 blocks, so allowed are 0"),
        ({"layer": -2}, "`layer` is -2"),
        ({"pooling": "max"}, "`pooling` is 'max'; allowed are 'mean', 'last', 'mean_all'"),
        ({"eos": "yes"}, "`eos` is 'yes'; allowed are 'none', 'append', 'template'"),
        ({"eos": "template"}, '`eos="template"` needs `template="chat"`'),
        ({"template": "simple"}, "`template` is 'simple'; allowed are .* contains `{prompt}`"),
        ({"dtype": "int8"}, "`dtype` is 'int8'; allowed are"),
        ({"max_length": 0}, r"`max_length` \(0\) .* must be positive"),
        ({"revision": "main"}, "is a folder; a folder has no revisions"),
    ],
)
def test_readers_refuse_by_name(tiny_llama, choices, message):
    with pytest.raises(ValueError, match=message):
        describe_model(str(tiny_llama), **choices)


def test_identity_of_a_folder_is_what_is_in_it(tiny_llama, tmp_path):
    copy = tmp_path / "another name"
    shutil.copytree(tiny_llama, copy)
    assert folder_sha256(copy) == folder_sha256(tiny_llama)
    (copy / "README.md").write_text("words")
    assert folder_sha256(copy) == folder_sha256(tiny_llama), "a card changes no number"
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert folder_sha256(copy) != folder_sha256(tiny_llama)
    with pytest.raises(ValueError, match="the direction was fitted on"):
        open_reader(describe_model(str(tiny_llama)), Runtime(path=str(copy), device="cpu"))


def test_a_folder_without_config_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no `config.json`; give the folder of a model"):
        folder_sha256(tmp_path)


@pytest.mark.parametrize("field", ["model_type", "d_model", "n_layers", "tokenizer_sha256"])
def test_a_model_that_does_not_match_is_refused_by_what_differs(tiny_llama, field):
    reader = describe_model(str(tiny_llama))
    other = getattr(reader, field)
    changed = replace(reader, **{field: other + 1 if isinstance(other, int) else "other"})
    with pytest.raises(ValueError, match=f"its `{field}` is .*, the direction was fitted with"):
        open_reader(changed, Runtime(path=str(tiny_llama), device="cpu"))


def test_chat_template_matters_only_where_it_is_used(tiny_llama):
    reader = replace(describe_model(str(tiny_llama)), chat_template_sha256="other")
    open_reader(reader, Runtime(path=str(tiny_llama), device="cpu"))
    with pytest.raises(ValueError, match="its `chat_template_sha256` is None"):
        open_reader(replace(reader, template="chat"), Runtime(path=str(tiny_llama), device="cpu"))


def test_a_reader_of_a_folder_says_how_to_name_the_folder(tiny_llama):
    with pytest.raises(ValueError, match="say where it is: `model=folder`"):
        open_reader(describe_model(str(tiny_llama)), Runtime(device="cpu"))


def test_a_reader_needs_exactly_one_identity(tiny_llama):
    reader = describe_model(str(tiny_llama))
    with pytest.raises(ValueError, match="either by `model` and `revision` or by `model_sha256`"):
        replace(reader, model="you/model")
    assert Reader(**reader.to_dict()) == reader


def test_encoder_decoders_are_refused(tmp_path):
    from transformers import T5Config

    T5Config(num_layers=1, d_model=16).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is an encoder-decoder model"):
        describe_model(str(tmp_path))


def test_ranks_go_round_the_gpus(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [reader_module.resolve_device(None, rank) for rank in (None, 0, 1, 2, 3)] == [
        "cuda:0", "cuda:0", "cuda:1", "cuda:0", "cuda:1",
    ]  # fmt: skip
    assert reader_module.resolve_device("cpu", 3) == "cpu"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert reader_module.resolve_device(None, 3) == "cpu"


@pytest.mark.parametrize(("eos", "pooling"), [("none", "mean"), ("append", "last")])
@pytest.mark.parametrize("model", ["tiny_llama", "tiny_bert"])
def test_a_check_says_what_encoding_says_and_tokenises_only_what_is_in_doubt(model, eos, pooling, request, monkeypatch):
    if (model, eos) == ("tiny_bert", "append"):
        pytest.skip("its tokenizer has no EOS")
    odd = ["?!", "\u200b", "日本語" * 30, "🙂" * 60, "word " * 60, "a" * 130, "x y " * 40, "\n7\n", "e\u0301" * 90]
    talks = [*TALKS, *(conversation("Say it.", one) for one in odd)]
    tokenized: list[int] = []
    whole = reader_module.templates.tokenize

    def tokenize(rendered, *given, **named):
        tokenized.append(len(rendered))
        return whole(rendered, *given, **named)

    monkeypatch.setattr(reader_module.templates, "tokenize", tokenize)
    for max_length in (20, 70, 100, 150):
        folder = str(request.getfixturevalue(model))
        reader = describe_model(folder, device="cpu", max_length=max_length, eos=eos, pooling=pooling)
        reading = open_reader(reader, Runtime(path=folder, device="cpu"), load=False)
        expected = [str(one) if isinstance(one, ValueError) else None for one in reading.encode(talks)]
        assert any(expected)
        tokenized.clear()
        assert [None if one is None else str(one) for one in reading.check(talks)] == expected
        doubtful = len(talks) - (0 if max_length <= 70 else 2)  # short ones, with words, are not in doubt
        assert sum(one is not None for one in expected) <= sum(tokenized) <= doubtful
    assert tokenized <= [len(talks) - 4]
    monkeypatch.setattr(reader_module, "_all_embedded", lambda tokenizer, size: False)  # the control: all are
    tokenized.clear()
    reading.check(talks)
    assert tokenized == [len(talks)]
