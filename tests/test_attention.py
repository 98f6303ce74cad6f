"""Reading by trees, padded or grouped gives the numbers of reading one text at a time, and the probe knows which does.

Tiny random models of many architectures. Their weights are large enough for attention to matter: a wrong mask moves
the states by as much as they spread (see the controls).
"""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from legend_hf.reading import attention, forward, probe
from legend_hf.reading.forward import (
    Route,
    attention_of,
    find_blocks,
    hidden_states,
    padded_inputs,
    read_vectors,
)
from legend_hf.reading.packing import plan_trees
from legend_hf.reading.state import reading

LONGEST = 160
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 97}
MLP = {**SIZES, "intermediate_size": 48, "max_position_embeddings": 512}
GROUPED = {**MLP, "num_key_value_heads": 2}
FACTORS = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
# Past 64 tokens these two read every text of a batch with frequencies that follow the longest.
LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, **FACTORS}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}

# Name: (class of the config, its arguments, the way that the probe must find)
MODELS = {
    "llama": ("LlamaConfig", GROUPED, "tree"),
    "qwen2": (
        "Qwen2Config",
        {**GROUPED, "use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1},
        "tree",
    ),
    "qwen3": ("Qwen3Config", {**GROUPED, "head_dim": 16}, "tree"),
    "mistral": ("MistralConfig", {**GROUPED, "sliding_window": 21}, "tree"),
    "gemma2": (
        "Gemma2Config",
        {**GROUPED, "head_dim": 8, "sliding_window": 20, "attn_logit_softcapping": 0.5, "query_pre_attn_scalar": 1},
        "tree",
    ),
    "gemma3": ("Gemma3TextConfig", {**GROUPED, "num_hidden_layers": 7, "head_dim": 8, "sliding_window": 20}, "tree"),
    "phi3": ("Phi3Config", {**GROUPED, "pad_token_id": 0}, "tree"),
    "olmo2": ("Olmo2Config", GROUPED, "tree"),
    "gpt_neox": ("GPTNeoXConfig", MLP, "tree"),
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 97}, "tree"),
    "opt": (
        "OPTConfig",
        {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 512},
        "tree",
    ),
    "gpt_oss": (
        "GptOssConfig",
        {**GROUPED, "head_dim": 8, "sliding_window": 20, "num_local_experts": 2, "num_experts_per_tok": 1},
        "tree",
    ),
    "bloom": ("BloomConfig", {"hidden_size": 32, "n_layer": 3, "n_head": 4, "vocab_size": 97}, "padded"),
    "stablelm": ("StableLmConfig", GROUPED, "padded"),
    "falcon": ("FalconConfig", SIZES, "padded"),
    "mamba": ("MambaConfig", {"hidden_size": 32, "num_hidden_layers": 3, "vocab_size": 97, "state_size": 8}, "padded"),
    "bert": ("BertConfig", MLP, "padded"),
    # Attention in chunks of 24: the layers are told only through the mask.
    "llama4": (
        "Llama4TextConfig",
        {**GROUPED, "head_dim": 8, "intermediate_size_mlp": 48, "num_local_experts": 2, "attention_chunk_size": 24},
        "padded",
    ),
    "phi3_longrope": (
        "Phi3Config",
        {**GROUPED, "pad_token_id": 0, "original_max_position_embeddings": 64, "rope_parameters": LONGROPE},
        "grouped",
    ),
    "llama_dynamic": ("LlamaConfig", {**GROUPED, "max_position_embeddings": 64, "rope_parameters": DYNAMIC}, "grouped"),
}


def build(name, *, spread=0.3, dtype=torch.float32):
    config_class, arguments, _ = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, config_class)(**arguments)
    model = transformers.AutoModel.from_config(config, dtype=torch.float32).eval()
    for parameter_name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "emb" not in parameter_name and spread:
            torch.nn.init.normal_(parameter, std=spread)
    return model.to(dtype)


def make_texts(seed=1, *, rows=6, prompt=(9, 100), response=(1, 40)):
    """Pairs on one prompt each, one of them with a response of a later turn."""
    random = np.random.default_rng(seed)

    def more(low, high):
        return random.integers(30, 97, random.integers(low, high)).tolist()

    texts = []
    for _ in range(rows):
        common = more(*prompt)
        texts += [common + more(*response), common + more(*response)]
    texts.append(texts[0] + more(4, 9))
    return texts, [range(len(text) - min(3, len(text)), len(text)) for text in texts]


def plain(model):
    if model.config._attn_implementation == attention.NAME:
        model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
    return model


def one_by_one(model, texts, needed, layers):
    """What a reader without any of our machinery does: `output_hidden_states`, one text at a time."""
    plain(model)
    found = []
    for text, places in zip(texts, needed, strict=True):
        with reading(model), torch.no_grad():
            states = model(input_ids=torch.tensor([text]), output_hidden_states=True, use_cache=False).hidden_states
        found.append(torch.stack([states[layer][0, list(places)].float().mean(0) for layer in layers]))
    return torch.stack(found)


def read(model, route, texts, needed, layers, **options):
    if route.attention is None:  # made by hand
        attention.register_tree_attention()
        route = replace(route, attention=attention.NAME if route.way == "tree" else attention_of(plain(model)))
    vectors = torch.full((len(texts), len(layers), model.config.hidden_size), torch.nan)
    for index, batch in read_vectors(model, texts, needed, layers, route=route, **options):
        vectors[index] = batch
    return vectors


def difference(found, expected):
    """Largest difference, in standard deviations of the expected numbers of that layer."""
    return float(((found - expected).abs().amax((0, 2)) / expected.std((0, 2))).max())


@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_reads_as_one_text_at_a_time(name):
    model = build(name)
    texts, needed = make_texts()
    route = probe.probe(model, max_length=LONGEST)
    assert route.way == MODELS[name][2], route.reason
    n = len(find_blocks(model))
    layers = range(n + 1)
    expected = one_by_one(model, texts, needed, layers)
    assert difference(read(model, route, texts, needed, layers, batch_tokens=256), expected) < 1e-4


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "bert", "llama_dynamic"])
def test_margins_do_not_depend_on_budget_order_or_neighbours(name):
    model = build(name)
    route = probe.probe(model, max_length=LONGEST)
    texts, needed = make_texts()
    direction = torch.randn(32, generator=torch.Generator().manual_seed(2))

    def margins(vectors):
        scores = vectors[:12, -1] @ direction
        return scores[0::2] - scores[1::2]

    expected = margins(one_by_one(model, texts, needed, [len(find_blocks(model))]))
    back = list(range(len(texts)))[::-1]
    variants = [
        read(model, route, texts, needed, [len(find_blocks(model))], batch_tokens=budget) for budget in (1, 150, 10**6)
    ]
    variants.append(read(model, route, [texts[i] for i in back], [needed[i] for i in back], [3])[back])
    variants.append(torch.cat([read(model, route, texts[i : i + 1], needed[i : i + 1], [3]) for i in range(13)]))
    for vectors in variants:
        assert float((margins(vectors) - expected).abs().max()) < 1e-4 * float(expected.std())


@pytest.fixture(scope="module")
def llama():
    return build("llama")


@pytest.fixture(scope="module")
def mistral():
    return build("mistral")


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.lists(st.integers(30, 32), min_size=1, max_size=40), min_size=1, max_size=8),
    st.integers(1, 120),
    st.integers(1, 6),
    st.sampled_from(["llama", "mistral"]),
    st.sampled_from([2, 5, 64]),
    st.sampled_from(["dense", "sdpa"]),
)
def test_random_trees(llama, mistral, texts, budget, min_shared, name, run, kernel):
    model = {"llama": llama, "mistral": mistral}[name]
    needed = [range(len(text)) for text in texts]
    expected = one_by_one(model, texts, needed, [3])[:, 0]
    attention.register_tree_attention()
    with pytest.MonkeyPatch.context() as patch:
        # Short runs, so that a text has many.
        patch.setitem(attention._RUN, "cpu", run)
        for pack in plan_trees(texts, needed, max_tokens=budget, min_shared=min_shared):
            route = Route("tree", "", attention.NAME, kernel)
            found = forward._read_batch(model, pack, [3], route, None, False)[:, 0]
            torch.testing.assert_close(found, expected[list(pack.texts)], atol=2e-5, rtol=1e-4)


# Deliberate faults. Each must be seen by the comparison above, and by the probe.


def _sees_ahead(layout, rows, high, low, window, device):
    return torch.zeros(rows, rows), rows


def _sees_one_ahead(layout, rows, high, low, window, device):
    return torch.full((rows, rows), float("-inf")).triu(2), rows


_true_mask = attention._mask


def _window_too_wide(layout, rows, high, low, window, device):
    return _true_mask(layout, rows, high, low, window and window + 1, device)


def _forgets_the_prompt(x, branch):
    own = x[:, branch.start : branch.end]
    return torch.cat([*(x[:, s:e] * 0 for s, e in branch.before), own], dim=1)


def _sees_the_partner(x, branch):
    # The branch laid just before it, instead of the end of its own prompt.
    wrong = x[:, branch.start - branch.position : branch.start] if branch.position else x[:, :0]
    return torch.cat([wrong, x[:, branch.start : branch.end]], dim=1)


FAULTS = [
    ("llama", "_mask", _sees_ahead),
    ("llama", "_mask", _sees_one_ahead),
    ("mistral", "_mask", _window_too_wide),
    ("llama", "_rows", _forgets_the_prompt),
    ("llama", "_rows", _sees_the_partner),
]


@pytest.mark.parametrize(("name", "part", "fault"), FAULTS)
def test_control_a_wrong_mask_fails_the_comparison_and_the_probe(monkeypatch, name, part, fault):
    model = build(name)
    texts, needed = make_texts()
    expected = one_by_one(model, texts, needed, [3])
    attention.register_tree_attention()
    good = Route("tree", "")
    assert difference(read(model, good, texts, needed, [3]), expected) < 1e-4
    monkeypatch.setattr(attention, part, fault)
    assert difference(read(model, good, texts, needed, [3]), expected) > 1e-2
    route = probe.probe(model, max_length=LONGEST)
    assert route.way == "padded"
    assert "differ from one-by-one reading" in route.reason


@pytest.mark.parametrize("name", ["llama", "mistral", "bloom", "mamba", "stablelm", "llama4"])
def test_the_probe_sees_as_much_in_a_model_as_it_is_initialised(name):
    # Weights of standard deviation 0.02, where attention adds little to what the tokens themselves say.
    assert probe.probe(build(name, spread=None), max_length=LONGEST).way == MODELS[name][2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "llama4", "mamba", "bert"])
def test_half_precision(name, dtype):
    model = build(name, dtype=dtype)
    before = [(p.data_ptr(), p.dtype) for p in model.parameters()]
    route = probe.probe(model, max_length=LONGEST)
    # A fault is told from rounding because the probe runs in float32; the weights come back as they were.
    assert route.way == MODELS[name][2]
    assert [(p.data_ptr(), p.dtype) for p in model.parameters()] == before
    texts, needed = make_texts()
    exact = one_by_one(build(name), texts, needed, [3])
    tree, alone = read(model, route, texts, needed, [3]), one_by_one(model, texts, needed, [3])

    def error(vectors):
        return float((vectors - exact).square().mean().sqrt() / exact.std())

    assert error(tree) < 1.5 * error(alone) + 1e-3
    assert error(tree) < (0.1 if dtype == torch.bfloat16 else 0.02)


@pytest.mark.parametrize("name", [n for n in MODELS if n != "mamba"])
def test_each_layer_is_exactly_the_one_of_a_full_run(name):
    model = build(name)
    inputs = padded_inputs(model, make_texts()[0][:3])
    with reading(model), torch.no_grad():
        whole = model(**inputs, output_hidden_states=True)
    n = len(find_blocks(model))
    assert len(whole.hidden_states) == n + 1
    assert torch.equal(whole.hidden_states[n], whole.last_hidden_state)
    for layers in [list(range(n + 1)), *([layer] for layer in range(n + 1))]:
        found = {}
        with reading(model):
            hidden_states(model, inputs, layers, lambda layer, states, into=found: into.update({layer: states.clone()}))
        assert sorted(found) == layers
        for layer in layers:
            assert torch.equal(found[layer], whole.hidden_states[layer])


@pytest.mark.parametrize("name", MODELS)
def test_a_model_whose_upper_blocks_are_taken_out_reads_the_same(name):
    model = build(name)
    texts, needed = make_texts()
    n = len(find_blocks(model))
    expected = one_by_one(model, texts, needed, range(n + 1))
    weights = sum(p.numel() for p in model.parameters())
    route = probe.probe(model, max_length=LONGEST, depth=1)
    assert route.way == MODELS[name][2]
    assert sum(p.numel() for p in model.parameters()) < weights, "what is not needed is not held"
    assert forward.loaded_blocks(model) == (2 if name == "mamba" else 1)  # whose list begins after its first block
    assert difference(read(model, route, texts, needed, [0, 1]), expected[:, :2]) < 1e-4
    with pytest.raises(ValueError, match=rf"give at least one, each from 0 \(embeddings\) to 1 \(of its {n} blocks 1"):
        read(model, route, texts, needed, [n])


def test_control_the_last_state_of_fewer_blocks_is_another():
    model = build("llama")
    texts, needed = make_texts()
    shallow = build("llama")
    shallow.layers = shallow.layers[:2]
    shallow.config.num_hidden_layers = 2
    expected = one_by_one(model, texts, needed, [2])
    assert difference(read(shallow, Route("padded", ""), texts, needed, [2]), expected) > 0.1  # after the final norm


def test_nothing_runs_beyond_the_highest_layer():
    model = build("llama")
    ran = []
    for i, block in enumerate(find_blocks(model)):
        block.register_forward_hook(lambda *_, i=i: ran.append(i))
    model.norm.register_forward_hook(lambda *_: ran.append("norm"))
    texts, needed = make_texts(rows=1)
    hooks = [len(block._forward_hooks) for block in find_blocks(model)]
    for layers, expected in ([[0], []], [[1], [0]], [[2, 0], [0, 1]], [[3], [0, 1, 2, "norm"]]):
        ran.clear()
        read(model, Route("padded", ""), texts, needed, layers)
        # The counting hooks stand before ours, so the last block is counted before ours stops it.
        assert ran == expected
    assert [len(block._forward_hooks) for block in find_blocks(model)] == hooks


def test_lengths_of_earlier_texts_leave_no_trace():
    # The frequencies of dynamic RoPE stay stretched after a long text; each reading starts afresh.
    model = build("llama_dynamic")
    route = probe.probe(model, max_length=LONGEST)
    short, long, need = [40 + i % 50 for i in range(70)], [41] * 150, [[60]]
    first = read(model, route, [short], need, [3])
    read(model, route, [long], need, [3])
    assert torch.equal(read(model, route, [short], need, [3]), first)
    # Control: left alone, transformers does remember.
    with torch.no_grad():
        model(input_ids=torch.tensor([long]))
        after_long = model(input_ids=torch.tensor([short])).last_hidden_state[0, 60]
    assert float((after_long - first[0, 0]).abs().max()) > 1e-3


class Counts(torch.nn.Module):
    """A block that counts what it has read, in each of the ways in which a module can remember."""

    def __init__(self, block):
        super().__init__()
        self.block, self.texts = block, 0
        self.register_buffer("total", torch.zeros(1))
        self.register_buffer("anew", torch.zeros(1))
        self.child = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.zeros_(self.child.weight)

    def forward(self, hidden_states, *args, **kwargs):
        out = self.block(hidden_states, *args, **kwargs)
        out = out + self.texts + self.total + self.anew + self.child.weight
        self.texts += 1
        self.total += 1
        self.anew = self.anew + 1
        self.child = torch.nn.Linear(1, 1, bias=False)
        return out


def _counting():
    model = build("llama")
    model.layers[1] = Counts(model.layers[1])
    return model


def _big_bird():
    # Sparse attention for texts of more than 28 tokens; a shorter one exchanges it for good.
    torch.manual_seed(0)
    config = transformers.BigBirdConfig(**MLP, block_size=4, num_random_blocks=1)
    return transformers.AutoModel.from_config(config).eval()


@pytest.mark.parametrize("make", [_big_bird, _counting, lambda: build("llama_dynamic"), lambda: build("phi3_longrope")])
def test_no_text_changes_how_a_later_one_is_read(make):
    model = make()
    long, short, need = [40 + i % 50 for i in range(120)], [41, 42, 43, 44], [[2], [2]]
    route = probe.probe(model, max_length=LONGEST)
    first = read(model, route, [long, long[::-1]], need, [3])
    read(model, route, [short], [[1]], [3])
    read(model, route, [long + short * 8], [[1]], [3])
    assert torch.equal(read(model, route, [long, long[::-1]], need, [3]), first)
    both = read(model, route, [short, long, short, long[::-1]], [[1], [2], [1], [2]], [3])
    assert difference(both[[1, 3]], first) < 1e-4
    # And both are what a model reads that has read nothing.
    fresh = one_by_one(make(), [long, long[::-1]], need, [3])
    assert difference(first, fresh) < 1e-4


def test_rows_that_are_no_tokens_are_refused_by_layer():
    # Sparse attention works on blocks of 4 and fills the last one: its blocks return more rows than there are tokens.
    model = _big_bird()
    route = probe.probe(model, max_length=LONGEST)
    assert dict(route.refused).keys() == {0, 1, 2}
    with pytest.raises(ValueError, match=r"layer 2 of BigBirdModel cannot be read: .* for tokens of shape \[1, 155\]"):
        read(model, route, [[40] * 50], [[49]], [2])
    with pytest.raises(ValueError, match="layers 0 to 2 of BigBirdModel gives .*; take the last layer, 3"):
        probe.probe(_big_bird(), max_length=LONGEST, depth=2)
    assert probe.probe(_big_bird(), max_length=28, depth=2).refused == (), "the control: short texts need no filling"


@pytest.mark.parametrize("make", [_big_bird, _counting])
def test_control_left_alone_such_models_do_remember(make):
    model = make()
    long, short = torch.tensor([[40 + i % 50 for i in range(120)]]), torch.tensor([[41, 42, 43, 44]])
    with torch.no_grad():
        first = model(long).last_hidden_state
        model(short)
        assert float((model(long).last_hidden_state - first).abs().max()) > 1e-3


def test_a_model_that_reads_by_chance_is_refused():
    class Dice(Counts):
        def forward(self, hidden_states, *args, **kwargs):
            return self.block(hidden_states, *args, **kwargs) + torch.rand(1)

    model = build("llama")
    model.layers[0] = Dice(model.layers[0])
    with pytest.raises(ValueError, match="LlamaModel reads the same text differently the second time .* chance"):
        probe.probe(model, max_length=LONGEST)


def _scaled_by_depth():
    arguments = {**GROUPED, "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8}
    config = transformers.MiniCPM3Config(**arguments, qk_rope_head_dim=8, v_head_dim=8, pad_token_id=0)
    torch.manual_seed(0)
    return transformers.AutoModel.from_config(config).eval()


def test_a_model_whose_blocks_depend_on_how_many_there_are_reads_the_same_when_cut():
    model, texts, needed = _scaled_by_depth(), *make_texts()
    expected = one_by_one(model, texts, needed, [0, 1, 2])
    route = probe.probe(model, max_length=LONGEST, depth=2)
    assert forward.loaded_blocks(model) == 2
    assert difference(read(model, route, texts, needed, [0, 1, 2]), expected) < 1e-4
    # The control: with a config of two blocks it is another model.
    whole, other = _scaled_by_depth(), _scaled_by_depth()
    config = transformers.MiniCPM3Config(**{**whole.config.to_dict(), "num_hidden_layers": 2})
    other = transformers.AutoModel.from_config(config).eval()
    other.load_state_dict({k: v for k, v in whole.state_dict().items() if "layers.2." not in k})
    assert difference(one_by_one(other, texts, needed, [1]), expected[:, [1]]) > 0.01


class Wrong(torch.nn.Module):
    """Stands for a model whose own list is not that of its blocks."""

    def __init__(self, model, change):
        super().__init__()
        self.model, self.change = model, change
        self.config, self.device, self.dtype = model.config, model.device, model.dtype
        self.get_input_embeddings = model.get_input_embeddings
        self.set_attn_implementation = model.set_attn_implementation

    def forward(self, input_ids=None, attention_mask=None, use_cache=None, output_hidden_states=False, **kwargs):
        out = self.model(
            input_ids, attention_mask, use_cache=False, output_hidden_states=output_hidden_states, **kwargs
        )
        if output_hidden_states:
            out.hidden_states = self.change(out.hidden_states)
        return out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda own: own[:-1], "Wrong gives 3 hidden states for 3 blocks"),
        (lambda own: (own[0], *own), "gives 5 hidden states for 3 blocks, so layer k of it cannot be told"),
        (lambda own: None, "cannot read a text of 20 tokens by itself"),
    ],
)
def test_a_list_of_another_length_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        probe.probe(Wrong(build("llama"), change), max_length=LONGEST)


@pytest.mark.parametrize(
    "change",
    [lambda own: (*own[:2], own[2] * 2, own[3]), lambda own: own[::-1], lambda own: tuple(s + 1 for s in own)],
)
def test_layers_that_are_no_blocks_output_are_read_from_the_models_own_list(change):
    model = Wrong(build("llama"), change)
    texts, needed = make_texts()
    route = probe.probe(model, max_length=LONGEST)
    found = read(model, route, texts, needed, range(4))
    plain(model.model)
    states = [change(model.model(torch.tensor([text]), output_hidden_states=True).hidden_states) for text in texts]
    rows = [[s[0, list(at)].mean(0) for s in own] for own, at in zip(states, needed, strict=True)]
    expected = torch.stack([torch.stack(row) for row in rows]).detach()
    assert difference(found, expected) < 1e-4


@pytest.mark.parametrize("shape", [lambda s: s[..., :16], lambda s: s[:, 1:], lambda s: s[0], lambda s: None])
def test_a_layer_of_another_shape_is_refused_by_name_and_the_others_are_read(shape):
    model = Wrong(build("llama"), lambda own: (*own[:2], shape(own[2]), own[3]))
    texts, needed = make_texts()
    route = probe.probe(model, max_length=LONGEST)
    assert difference(read(model, route, texts, needed, [1, 3]), one_by_one(model.model, texts, needed, [1, 3])) < 1e-4
    with pytest.raises(
        ValueError, match=r"layer 2 of Wrong cannot be read: its hidden states are .*take another `layer`"
    ):
        read(model, route, texts, needed, [1, 2])


def test_neighbours_that_matter_lead_to_reading_alone():
    model = build("bert")
    true_forward = model.forward

    def crowded(input_ids, **kwargs):
        out = true_forward(input_ids, **kwargs)
        shift = 0.1 * (len(input_ids) - 1)
        out.last_hidden_state = out.last_hidden_state + shift
        return out

    model.forward = crowded
    route = probe.probe(model, max_length=LONGEST)
    assert route.way == "alone", "groups are tried too"
    texts, needed = make_texts()
    assert difference(read(model, route, texts, needed, [3]), one_by_one(build("bert"), texts, needed, [3])) < 1e-4


def test_longrope_that_no_text_reaches_allows_trees():
    model = build("phi3_longrope")
    assert probe.probe(model, max_length=64).way == "tree"
    assert probe.probe(model, max_length=65).way == "grouped"


def test_the_choice_can_be_forced():
    model = build("llama")
    onednn = forward.onednn_is_faster(model)
    for way, name in [("grouped", "sdpa"), ("tree", attention.NAME), ("padded", "sdpa"), (None, attention.NAME)]:
        route = probe.probe(model, max_length=LONGEST, force=way)
        assert (route.way, route.attention, route.onednn) == (way or "tree", name, onednn)
        assert attention_of(model) == "sdpa"
    with pytest.raises(ValueError, match="BertModel cannot be read by trees: the layer also looks ahead; leave the"):
        probe.probe(build("bert"), max_length=LONGEST, force="tree")
    with pytest.raises(
        ValueError, match="`force` is 'flat'; allowed are 'tree', 'padded', 'grouped', 'alone', or None"
    ):
        probe.probe(model, max_length=LONGEST, force="flat")


def test_readers_that_share_a_model_can_take_turns():
    model = build("phi3_longrope")
    short, long = (probe.probe(model, max_length=n) for n in (64, LONGEST))
    assert (short.way, long.way) == ("tree", "grouped")
    texts, needed = make_texts(prompt=(9, 20))
    expected = one_by_one(model, texts, needed, [3])
    reading = [read_vectors(model, texts, needed, [3], route=r, batch_tokens=60) for r in (short, long, short)]
    for turn in zip(*reading, strict=False):
        for index, vectors in turn:
            torch.testing.assert_close(vectors, expected[index], atol=1e-5, rtol=1e-4)
    assert probe.probe(model, max_length=64) == replace(short, onednn=forward.onednn_is_faster(model))


def test_the_probe_takes_no_random_numbers_of_the_user():
    model = build("llama")
    forward._onednn_gain.cache_clear()
    before = torch.get_rng_state()
    probe.probe(model, max_length=LONGEST)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_short_longest_text_can_be_probed():
    assert probe.probe(build("mistral"), max_length=5).way == "tree"


def test_padding_that_changes_numbers_leads_to_groups(monkeypatch):
    model = build("bert")
    true_inputs = forward.padded_inputs

    def without_mask(model, texts):
        return {k: v for k, v in true_inputs(model, texts).items() if k != "attention_mask"}

    monkeypatch.setattr(probe, "padded_inputs", without_mask)
    route = probe.probe(model, max_length=LONGEST)
    assert route.way == "grouped"
    assert "padded: its states differ" in route.reason


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"tree_layout": None}, "no `tree_layout` reached the layer"),
        ({"attention_mask": torch.ones(1)}, "brings its own mask"),
        ({"dropout": 0.1}, "dropout is on"),
        ({"is_causal": False}, "looks ahead"),
        ({"position_bias": torch.zeros(1), "use_cache": True}, "the layer asks for `position_bias`"),
        ({"query": torch.zeros(2, 2, 3, 4)}, "more than one row"),
        ({"query": torch.zeros(1, 2, 1, 4)}, "queries and keys of different length"),
    ],
)
def test_layers_that_want_something_else_are_refused(keywords, message):
    (pack,) = plan_trees([[1, 2, 3]], [[2]], max_tokens=9)
    arguments = {
        "query": torch.zeros(1, 2, 3, 4),
        "key": torch.zeros(1, 1, 3, 4),
        "value": torch.zeros(1, 1, 3, 4),
        "attention_mask": None,
        "is_causal": True,
        "tree_layout": attention.tree_layout(pack, "cpu"),
        "position_ids": torch.zeros(1),
        "output_attentions": False,
    }
    out, weights = attention.tree_attention(torch.nn.Identity(), **arguments)
    assert out.shape == (1, 3, 2, 4)
    assert weights is None
    with pytest.raises(attention.UnservedAttention, match=message):
        attention.tree_attention(torch.nn.Identity(), **{**arguments, **keywords})
    del arguments["is_causal"]
    with pytest.raises(attention.UnservedAttention, match="looks ahead"):
        attention.tree_attention(torch.nn.Identity(), **arguments)


def test_blocks_that_cannot_be_told_are_an_error():
    model = build("llama")
    model.others = torch.nn.ModuleList(torch.nn.Identity() for _ in range(3))
    with pytest.raises(ValueError, match="LlamaModel has 2 lists of 3 modules `layers` `others`"):
        find_blocks(model)


@pytest.mark.parametrize("layers", [[], [4], [-1], [1, 9]])
def test_layers_that_are_not_there_are_an_error(llama, layers):
    with pytest.raises(ValueError, match=r"`layers` is \[.*\]; give at least one, each from 0 \(embeddings\) to 3"):
        next(read_vectors(llama, [[40]], [[0]], layers, route=Route("padded", "")))


@pytest.mark.parametrize("way", ["tree", "padded", "grouped"])
@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("[enforce fail] can't allocate memory: 9 GB")]
)
def test_a_batch_that_does_not_fit_is_read_in_smaller_ones(monkeypatch, caplog, way, error):
    model = build("llama")
    attention.register_tree_attention()
    texts, needed = make_texts(prompt=(20, 21), response=(8, 9))
    expected = one_by_one(model, texts, needed, [3])
    true_states = forward.hidden_states
    sizes = []

    def small_memory(model, inputs, *args, **kwargs):
        sizes.append(inputs["input_ids"].numel())
        if sizes[-1] > 90:
            raise error
        true_states(model, inputs, *args, **kwargs)

    monkeypatch.setattr(forward, "hidden_states", small_memory)
    with caplog.at_level(logging.WARNING, logger="legend_hf"):
        found = read(model, Route(way, ""), texts, needed, [3], batch_tokens=400)
    assert difference(found, expected) < 1e-4
    assert "does not fit the memory of cpu; going on with `batch_tokens=" in caplog.text
    # A single text has no smaller batch.
    with pytest.raises(RuntimeError, match="memory"):
        read(model, Route(way, ""), [[40] * 91], [[90]], [3], batch_tokens=400)


def test_other_errors_pass_through(monkeypatch, llama):
    def broken(*_, **__):
        raise RuntimeError("something else")

    monkeypatch.setattr(forward, "hidden_states", broken)
    with pytest.raises(RuntimeError, match="something else"):
        read(llama, Route("padded", ""), [[40], [41]], [[0], [0]], [1])


@pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="torch built without oneDNN")
@pytest.mark.parametrize("name", ["llama", "opt", "mamba", "gpt2"])
def test_products_through_onednn_are_the_same(monkeypatch, name):
    model = build(name)
    texts, needed = make_texts()
    route = probe.probe(model, max_length=LONGEST)
    off, on = (
        read(model, Route(route.way, "", onednn=onednn), texts, needed, [3], batch_tokens=300)
        for onednn in (False, True)
    )
    assert difference(on, off) < 1e-4
    # Control: it is really used. (GPT-2 has no `Linear`.)
    seen = []
    op = torch.ops.mkldnn._linear_pointwise
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", lambda *a: seen.append(1) or op(*a))
    read(model, Route(route.way, "", onednn=True), texts, needed, [3], batch_tokens=300)
    assert bool(seen) == (name != "gpt2")
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="torch built without oneDNN")
def test_products_that_onednn_is_not_meant_for_go_as_before():
    for layer in (torch.nn.Linear(4, 5), torch.nn.Linear(4, 5).double(), torch.nn.Linear(4, 5).bfloat16()):
        x = torch.randn(3, 8, dtype=layer.weight.dtype)
        for a in (x[:, ::2], x[:, :4].contiguous(), x[0, :4]):
            expected = layer(a)
            with forward._through_onednn(layer):
                torch.testing.assert_close(layer(a), expected)


def test_a_library_that_errs_is_not_faster(monkeypatch):
    monkeypatch.setattr(
        torch.ops.mkldnn, "_linear_pointwise", lambda x, w, *_: x.new_zeros(len(x), len(w)), raising=False
    )
    forward._onednn_gain.cache_clear()
    assert forward._onednn_gain(64, 48) == 0.0
    forward._onednn_gain.cache_clear()


def _varlen_by_its_documentation(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, enable_gqa
):
    """Flash attention over sequences: the last query sees the last key, a window (left, right) around each."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    out = torch.empty_like(query)
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    for q0, q1, k0, k1 in zip(cu_seq_q, cu_seq_q[1:], cu_seq_k, cu_seq_k[1:], strict=False):
        assert q1 - q0 <= max_q
        assert k1 - k0 <= max_k
        at = torch.arange(k1 - k0)[None] - (torch.arange(q1 - q0)[:, None] + (k1 - k0) - (q1 - q0))
        left, right = window_size
        seen = (at <= right) & ((at >= -left) if left >= 0 else True)
        scores = torch.einsum("qhd,khd->hqk", query[q0:q1], key[k0:k1]) * scale
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        out[q0:q1] = torch.einsum("hqk,khd->qhd", weights, value[k0:k1])
    return out


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2", "gemma2"])
def test_the_kernel_for_gpus_is_called_as_its_documentation_says(monkeypatch, name):
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    called = []

    def stand_in(*args, **kwargs):
        called.append(1)
        return _varlen_by_its_documentation(*args, **kwargs)

    monkeypatch.setattr(varlen, "varlen_attn", stand_in)
    model = build(name)
    attention.register_tree_attention()
    texts, needed = make_texts()
    expected = one_by_one(model, texts, needed, [3])
    route = Route("tree", "", kernel="varlen")
    assert difference(read(model, route, texts, needed, [3]), expected) < 1e-4
    # Capped scores are beyond that kernel and take the other.
    assert bool(called) == (name != "gemma2")


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2", "gemma2"])
def test_torch_s_own_attention_gives_the_same_and_is_taken_in_half_precision_where_it_is_faster(monkeypatch, name):
    called = []
    plain = torch.nn.functional.scaled_dot_product_attention
    texts, needed = make_texts()
    expected = one_by_one(build(name), texts, needed, [3])
    attention.register_tree_attention()
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: called.append(1) or plain(*a, **k)
    )
    assert difference(read(build(name), Route("tree", "", kernel="sdpa"), texts, needed, [3]), expected) < 1e-4
    # Capped scores and windows are beyond it and take the other.
    assert bool(called) == (name in ("llama", "gpt2"))
    for faster in (True, False):
        monkeypatch.setattr(attention, "sdpa_is_faster", lambda dtype, faster=faster: faster)
        half = probe.probe(build(name, dtype=torch.bfloat16), max_length=LONGEST)
        assert (half.way, half.kernel) == ("tree", "sdpa" if faster else "dense")
        assert probe.probe(build(name), max_length=LONGEST).kernel == "dense"


@pytest.mark.parametrize("fault", [_forgets_the_prompt, _sees_the_partner])
def test_control_the_probe_sees_what_is_wrong_with_torch_s_own_attention(monkeypatch, fault):
    monkeypatch.setattr(attention, "sdpa_is_faster", lambda dtype: True)
    monkeypatch.setattr(attention, "_rows", fault)
    assert probe.probe(build("llama", dtype=torch.bfloat16), max_length=LONGEST).way == "padded"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "bert"])
def test_on_a_gpu(name, dtype):
    exact = one_by_one(build(name), *make_texts(), [3])
    model = build(name, dtype=dtype).to("cuda")
    route = probe.probe(model, max_length=LONGEST)
    assert route.way == MODELS[name][2], route.reason
    found = read(model, route, *make_texts(), [3]).cpu()
    error = float((found - exact).square().mean().sqrt() / exact.std())
    assert error < (1e-3 if dtype == torch.float32 else 0.1)


def test_an_unknown_kernel_is_an_error():
    (pack,) = plan_trees([[1, 2, 3]], [[2]], max_tokens=9)
    with pytest.raises(ValueError, match="`kernel` is 'fast'; allowed are 'dense', 'sdpa', 'varlen'"):
        attention.tree_layout(pack, "cpu", kernel="fast")


def test_registering_twice_is_registering_once():
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    for _ in range(2):
        attention.register_tree_attention()
        assert AttentionInterface()[attention.NAME] is attention.tree_attention
        assert ALL_MASK_ATTENTION_FUNCTIONS[attention.NAME]("anything", mask_function=None) is None


def test_importing_costs_neither_torch_nor_transformers():
    import subprocess
    import sys

    code = "import sys, legend_hf.reading.probe; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
