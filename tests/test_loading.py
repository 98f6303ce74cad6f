"""Loading and running what may not be there or may not fit: refused in the library's words, or read safely.

Devices, windows, architectures out of the ordinary, threads, workers.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
import transformers
from builders import pair_rows

from legend_hf import LegendMarginFn, fit_direction
from legend_hf.reading import reader as reader_module
from legend_hf.reading.formats import conversation
from legend_hf.reading.reader import Runtime, close_readers, describe_model, open_reader, resolve_device
from legend_hf.reading.templates import TextError, Tokens
from legend_hf.reading.window import window

TOPICS = ["bread", "bikes", "paint", "tents", "maps", "soup", "songs", "rain", "chess", "tea", "ropes", "lamps"]
PAIRS = pair_rows(TOPICS, how="is best done with care")
BASE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 400}
BASE |= {"intermediate_size": 48, "pad_token_id": 1}


@pytest.fixture(scope="module")
def direction(tiny_llama):
    return fit_direction(PAIRS, model=str(tiny_llama), layer=2, estimator="mean_difference")


def saved(folder, tokenizer_from, config_class, **config):
    """A random model beside the tokenizer of another."""
    from transformers import AutoTokenizer

    torch.manual_seed(0)
    transformers.AutoModel.from_config(getattr(transformers, config_class)(**config)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer_from).save_pretrained(folder)
    return str(folder)


# Devices.


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7", "mps", "xpu", "meta", "cpu:3"])
def test_a_device_that_is_not_here_is_refused_before_anything_is_read(direction, device):
    fn = LegendMarginFn(direction, device=device)  # may be made here and run where there is one
    message = f"`device` is '{device}', which is not on this machine .* here are 'cpu': name one of these, or leave"
    for run in (
        lambda: resolve_device(device),
        lambda: fn({"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]}),
        lambda: direction.score("a", "b", device=device),
        lambda: fit_direction(PAIRS, model=direction.model_path, device=device),
    ):
        with pytest.raises(ValueError, match=message):
            run()


@pytest.mark.parametrize("device", ["gpu", "", "cuda:x", "tpu", "CPU", 0])
def test_what_names_no_device_is_refused_when_it_is_given(direction, device):
    with pytest.raises(ValueError, match="which names no device; allowed are 'cpu', 'cuda', 'cuda:1'"):
        LegendMarginFn(direction, device=device)


def test_an_ordinal_beyond_the_gpus_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cuda:1") == "cuda:1"
    with pytest.raises(
        ValueError, match="'cuda:2', which is not on this machine .* here are 'cpu', 'cuda:0', 'cuda:1'"
    ):
        resolve_device("cuda:2")


# The window.

SHORT = {**BASE, "max_position_embeddings": 66}
# Config, its arguments, how long a text may be.
WINDOWS = {
    "roberta": ("RobertaConfig", SHORT, 64),
    "xlm_roberta": ("XLMRobertaConfig", SHORT, 64),
    "mpnet": ("MPNetConfig", SHORT, 64),
    "esm": ("EsmConfig", {**SHORT, "position_embedding_type": "absolute"}, 64),
    "longformer": ("LongformerConfig", {**SHORT, "attention_window": 16}, 64),
    "bert": ("BertConfig", SHORT, 66),
    "opt": ("OPTConfig", {**SHORT, "ffn_dim": 48, "word_embed_proj_dim": 32}, 66),
    "biogpt": ("BioGptConfig", SHORT, 66),
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 400, "n_positions": 66}, 66),
    "mpt": ("MptConfig", {"d_model": 32, "n_heads": 4, "n_layers": 2, "vocab_size": 400, "max_seq_len": 66}, 66),
    "ctrl": ("CTRLConfig", {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 400, "dff": 48, "n_positions": 66}, 66),
}  # fmt: skip


@pytest.mark.parametrize("name", WINDOWS)
def test_a_text_as_long_as_the_window_is_read_and_a_longer_one_is_a_row_error(name, tiny_llama, tmp_path):
    config_class, arguments, longest = WINDOWS[name]
    folder = saved(tmp_path, tiny_llama, config_class, **arguments)
    reader = describe_model(folder, device="cpu", dtype="float32", joiner=" ")
    assert reader.max_length == longest
    opened = open_reader(reader, Runtime(path=folder, device="cpu"))
    assert opened.route.refused == ()
    texts = opened.encode([conversation("Why? " * 60, "Because."), conversation("Why?", "So it is. " * 60)])
    assert isinstance(texts[0], Tokens)
    assert len(texts[0].ids) == longest  # cut from its beginning
    assert isinstance(texts[1], TextError)  # a response that does not fit by itself
    ((_, hidden),) = opened.read(texts[:1], [reader.layer])
    assert torch.isfinite(hidden).all()
    # The control: the model really has no more.
    with torch.no_grad(), pytest.raises((RuntimeError, IndexError, ValueError)):
        opened.model(input_ids=torch.full((1, longest + 1), 40))


def test_a_window_that_cannot_be_seen_is_tried_when_the_model_is_loaded(tiny_llama, tmp_path, monkeypatch):
    folder = saved(tmp_path, tiny_llama, "RobertaConfig", **SHORT)
    monkeypatch.setattr(reader_module, "window", lambda *_: 66)  # what the config says
    reader = describe_model(folder, device="cpu", dtype="float32")
    with pytest.raises(
        ValueError, match=r"cannot read texts of 66 tokens .*; the longest .* has 64: give `max_length=64`"
    ):
        open_reader(reader, Runtime(path=folder, device="cpu"))


@pytest.mark.parametrize("config_class", ["XLNetConfig", "BloomConfig"])
def test_a_model_without_a_bound_has_none(config_class, tiny_llama):
    from transformers import AutoTokenizer

    small = {"vocab_size": 97, "d_model": 32, "hidden_size": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}
    assert window(getattr(transformers, config_class)(**small), AutoTokenizer.from_pretrained(tiny_llama)) > 10**9


# Out of the ordinary.


def edited(folder, to, **changes):
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**config, **changes}))
    return str(to)


def no_tokenizer(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()


ODD = {
    "an attention that is not installed": (
        {"attn_implementation": "flash_attention_2"},
        "remove `attn_implementation`",
    ),
    "an attention that nobody knows": ({"attn_implementation": "wonder"}, "cannot be loaded"),
    "an architecture that nobody knows": ({"model_type": "wonder"}, "cannot be loaded: .*use another model"),
    "heads that do not fit": ({"num_attention_heads": 5, "head_dim": None}, "cannot be loaded|cannot be read"),
    "weights of other shapes": ({"intermediate_size": 48}, "cannot be loaded"),
    "nonsense": ({"num_hidden_layers": "three"}, "cannot be loaded|says no `num_hidden_layers`"),
    "no layers": ({"num_hidden_layers": None}, "cannot be loaded|says no `num_hidden_layers`"),
}


@pytest.mark.parametrize("name", ODD)
def test_what_cannot_be_loaded_is_refused_in_our_words(name, tiny_llama, tmp_path):
    changes, message = ODD[name]
    folder = edited(tiny_llama, tmp_path / "odd", **changes)
    with pytest.raises(ValueError, match=message) as caught:
        fit_direction(PAIRS, model=folder)
    assert "odd" in str(caught.value)  # which model
    assert len(str(caught.value)) < 600


def test_batches_are_as_large_as_the_runtime_says(tiny_llama, monkeypatch):
    reader = describe_model(str(tiny_llama), device="cpu")
    sizes = []
    plan = reader_module.read_vectors
    monkeypatch.setattr(
        reader_module, "read_vectors", lambda *a, batch_tokens, **k: (sizes.append(batch_tokens), plan(*a, batch_tokens=batch_tokens, **k))[1]
    )  # fmt: skip
    opened = open_reader(reader, Runtime(path=str(tiny_llama), device="cpu", batch_tokens=70))
    texts = opened.encode([conversation("Why?", f"Because of {t} and of {t}.") for t in TOPICS])
    assert len(list(opened.read(texts, [1]))) > len(list(opened.read(texts, [1], batch_tokens=10_000)))
    assert sizes == [70, 10_000]


# Threads and workers.


def test_threads_get_their_own_scores(direction):
    close_readers()
    texts = [(row["prompt"], row["chosen"] + " " + word) for row in PAIRS for word in ("", "Yes.", "Why not? " * 5)]
    expected = np.array([direction.score(*text) for text in texts])
    close_readers()  # loading is shared too
    wrong, errors = [], []

    def work(seed):
        order = np.random.default_rng(seed).permutation(np.tile(np.arange(len(texts)), 3))
        try:
            for i in order:
                got = direction.score(*texts[i])
                if abs(got - expected[i]) > 1e-4 * expected.std():
                    wrong.append((int(i), got))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert not wrong
    assert len(reader_module._LOADED) == 1, "loaded once for all"


def test_control_without_the_lock_threads_take_each_others(direction, monkeypatch):
    """The test above sees it: hooks of one thread hand over the states of another."""
    from contextlib import nullcontext

    from legend_hf.reading import forward

    texts = [(row["prompt"], row["chosen"]) for row in PAIRS]
    expected = {text: direction.score(*text) for text in texts}
    monkeypatch.setattr(forward, "reading", lambda model: nullcontext())
    meet = threading.Barrier(2)
    real = forward.hidden_states

    def together(model, inputs, layers, take, **options):
        def late(layer, states):
            if not meet.broken:
                meet.wait(5)
            take(layer, states)

        real(model, inputs, layers, late, **options)

    monkeypatch.setattr(forward, "hidden_states", together)
    wrong = []

    def work(text):
        try:
            wrong.append(abs(direction.score(*text) - expected[text]) > 1e-4)
        except Exception:
            wrong.append(True)

    threads = [threading.Thread(target=work, args=(text,)) for text in texts[:2]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert any(wrong)


SPAWNED = """
import os, sys
import multiprocess, multiprocessing
def threads(_):
    import torch
    from legend_hf.reading.reader import _settle_in_worker
    _settle_in_worker("cpu")
    return torch.get_num_threads()
if __name__ == "__main__":
    for module in (multiprocess, multiprocessing):
        for method in ("spawn", "fork"):
            with module.get_context(method).Pool(1) as pool:
                print(*pool.map(threads, [0]))
    import torch
    torch.set_num_threads(3)
    threads(0)
    print(torch.get_num_threads())  # no worker
"""


@pytest.mark.parametrize(("environment", "spawned"), [({}, "1"), ({"OMP_NUM_THREADS": "2"}, "2")])
def test_a_worker_of_any_start_method_leaves_the_other_cores_alone(tmp_path, environment, spawned):
    import os

    (tmp_path / "main.py").write_text(SPAWNED)
    clean = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    clean |= {"PYTHONPATH": os.pathsep.join(sys.path), **environment}
    ran = subprocess.run([sys.executable, str(tmp_path / "main.py")], env=clean, capture_output=True, text=True)
    assert ran.stdout.split() == [spawned, "1"] * 2 + ["3"], ran.stderr[-500:]


def test_the_tests_do_not_depend_on_how_many_threads_the_developer_likes(tmp_path):
    import os
    from pathlib import Path

    code = "import conftest, torch; print(torch.get_num_threads())"
    likes = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "2", "MKL_DOMAIN_NUM_THREADS": "2"}
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), **likes}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert ran.stdout.split() == ["1"], ran.stderr[-500:]
    # The control: left in place, it decides.
    code = "import os; os.environ['OMP_NUM_THREADS'] = '1'; import torch; print(torch.get_num_threads())"
    environment = {**os.environ, **likes}
    if torch.backends.mkl.is_available() and (os.cpu_count() or 1) > 1:
        ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert ran.stdout.split() == ["2"]
