"""Every layer of many architectures, read in every way there is, against the model's own `hidden_states`.

Tiny random models of what transformers has. What a way cannot read must be refused, never read wrongly.

pytest tests/test_architectures.py -m slow
python tests/test_architectures.py          # prints the table of scripts/RESULTS.md
"""

from __future__ import annotations

import copy
import logging
import sys
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
import transformers

from legend_hf.reading import probe
from legend_hf.reading.forward import WAYS, Route, read_vectors

LONGEST = 90
WORST = 1e-4

_SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 97}
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_PLAIN = {**_SIZES, **_TOKENS, "intermediate_size": 48, "max_position_embeddings": 512}
_DECODER = {**_PLAIN, "num_key_value_heads": 2, "head_dim": 8}
_SLIDING = {**_DECODER, "sliding_window": 20}
_EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_MOE = {**_DECODER, **_EXPERTS}
_LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
_GROUPS = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1}
_MLA = {**_MOE, **_LATENT, **_GROUPS, "num_key_value_heads": 4}
_GPT = {"n_embd": 32, "n_layer": 4, "n_head": 4, "vocab_size": 97, "n_positions": 256}
_XLM = {"emb_dim": 32, "n_layers": 4, "n_heads": 4, "vocab_size": 97, "n_words": 97}
_MAMBA = {"hidden_size": 32, "num_hidden_layers": 4, "vocab_size": 97, "state_size": 8}
_SSM = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 16}
_LINEAR = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
_ROTARY = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
_LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}

# Name in the table: (class of the config, its arguments)
MODELS = {
    **{
        name: (name, _DECODER)
        for name in (
            *("Llama", "Qwen2", "Qwen3", "Phi3", "Phi", "Olmo", "Olmo2", "Granite", "Cohere", "Starcoder2", "StableLm"),
            *("Persimmon", "Nemotron", "Glm", "Glm4", "Helium", "SmolLM3", "SeedOss", "Apertus", "Arcee", "Ernie4_5"),
            *("HunYuanDenseV1", "DiffLlama", "BitNet", "NanoChat", "GPTNeoX", "BioGpt", "InternLM3", "Lfm2"),
        )
    },
    **{name: (name, _SLIDING) for name in ("Mistral", "Gemma2", "Gemma3Text", "Cohere2", "Exaone4", "Olmo3")},
    **{name: (name, _MOE) for name in ("Mixtral", "GptOss", "Olmoe", "GraniteMoe")},
    **{name: (name, _MLA) for name in ("DeepseekV2", "DeepseekV3", "MiniCPM3", "Glm4MoeLite")},
    **{
        name: (name, _PLAIN)
        for name in (
            *("Bert", "Roberta", "Electra", "RemBert", "RoFormer", "MPNet", "ConvBert", "Deberta", "DebertaV2", "Esm"),
            *("Longformer", "MobileBert", "FNet", "ModernBertDecoder", "XLMRobertaXL", "RobertaPreLayerNorm", "IBert"),
            *("Canine", "Yoso"),
        )
    },
    "Llama, dynamic RoPE": ("Llama", {**_DECODER, "max_position_embeddings": 64, "rope_parameters": _ROTARY}),
    "Phi3, longrope": ("Phi3", {**_DECODER, "original_max_position_embeddings": 64, "rope_parameters": _LONGROPE}),
    "Llama4": ("Llama4Text", {**_MOE, "intermediate_size_mlp": 48, "attention_chunk_size": 24}),
    "Gemma3n": (
        "Gemma3nText",
        {
            **_SLIDING,
            "vocab_size_per_layer_input": 97,
            "hidden_size_per_layer_input": 8,
            "num_kv_shared_layers": 0,
            "laurel_rank": 4,
            "altup_num_inputs": 2,
            "activation_sparsity_pattern": [0.0] * 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ),
    "Gemma3n, shared keys": (
        "Gemma3nText",
        {
            **_SLIDING,
            "vocab_size_per_layer_input": 97,
            "hidden_size_per_layer_input": 8,
            "num_kv_shared_layers": 2,
            "laurel_rank": 4,
            "altup_num_inputs": 2,
            "activation_sparsity_pattern": [0.0] * 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ),
    "Gemma4": (
        "Gemma4Text",
        {
            **_SLIDING,
            "vocab_size_per_layer_input": 97,
            "hidden_size_per_layer_input": 8,
            "num_kv_shared_layers": 0,
            "global_head_dim": 8,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ),
    "Qwen3Next": ("Qwen3Next", {**_MOE, **_LINEAR, "shared_expert_intermediate_size": 24}),
    "Albert": ("Albert", {**_PLAIN, "embedding_size": 16}),
    "ModernBert": ("ModernBert", {**_PLAIN, "global_attn_every_n_layers": 2, "local_attention": 16}),
    "BigBird": ("BigBird", {**_PLAIN, "block_size": 4, "num_random_blocks": 1}),
    "SqueezeBert": ("SqueezeBert", {**_PLAIN, "embedding_size": 32, **{f"{x}_groups": 1 for x in ("q", "k", "v")}}),
    "GPT2": ("GPT2", _GPT),
    "GPTBigCode": ("GPTBigCode", _GPT),
    "GPTJ": ("GPTJ", {**_GPT, "rotary_dim": 4}),
    "CodeGen": ("CodeGen", {**_GPT, "rotary_dim": 4}),
    "OpenAIGPT": ("OpenAIGPT", _GPT),
    "CTRL": ("CTRL", {**_GPT, "dff": 48}),
    "GPTNeo": (
        "GPTNeo",
        {
            "hidden_size": 32,
            "num_layers": 4,
            "num_heads": 4,
            "vocab_size": 97,
            "attention_types": [[["global", "local"], 2]],
            "window_size": 20,
        },
    ),
    "OPT": ("OPT", {**_SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 512}),
    "OPT, projected": (
        "OPT",
        {
            **_SIZES,
            "ffn_dim": 48,
            "word_embed_proj_dim": 16,
            "do_layer_norm_before": False,
            "max_position_embeddings": 512,
        },
    ),
    "Bloom": ("Bloom", {"hidden_size": 32, "n_layer": 4, "n_head": 4, "vocab_size": 97}),
    "Falcon": ("Falcon", _SIZES),
    "Mpt": ("Mpt", {"d_model": 32, "n_heads": 4, "n_layers": 4, "vocab_size": 97, "max_seq_len": 256}),
    "XLNet": ("XLNet", {"d_model": 32, "n_layer": 4, "n_head": 4, "d_inner": 48, "vocab_size": 97}),
    "XLM": ("XLM", _XLM),
    "Flaubert": ("Flaubert", _XLM),
    "DistilBert": ("DistilBert", {"dim": 32, "n_layers": 4, "n_heads": 4, "hidden_dim": 48, "vocab_size": 97}),
    "Mamba": ("Mamba", _MAMBA),
    "Mamba2": ("Mamba2", {**_MAMBA, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 16}),
    "FalconMamba": ("FalconMamba", _MAMBA),
    "Rwkv": ("Rwkv", {**_SIZES, "attention_hidden_size": 32, "intermediate_size": 48}),
    "RecurrentGemma": ("RecurrentGemma", {**_DECODER, "lru_width": 32, "attention_window_size": 24}),
    "Jamba": (
        "Jamba",
        {
            **_MOE,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "use_mamba_kernels": False,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
        },
    ),
    "Bamba": ("Bamba", {**_DECODER, **_SSM, "attn_layer_indices": [1, 3]}),
    "FalconH1": ("FalconH1", {**_DECODER, **_SSM, "mamba_d_ssm": 64}),
    "Zamba2": (
        "Zamba2",
        {
            **_DECODER,
            "mamba_d_state": 8,
            "n_mamba_heads": 8,
            "mamba_headdim": 8,
            "mamba_ngroups": 1,
            "layers_block_type": ["mamba", "hybrid"] * 2,
            "chunk_size": 16,
            "use_mem_rope": False,
        },
    ),
    "Reformer, LSH": (
        "Reformer",
        {
            "hidden_size": 32,
            "num_attention_heads": 4,
            "attention_head_size": 8,
            "attn_layers": ["local", "lsh"] * 2,
            "vocab_size": 97,
            "axial_pos_embds_dim": [16, 16],
            "axial_pos_shape": [16, 32],
            "is_decoder": True,
            "lsh_attn_chunk_length": 16,
            "local_attn_chunk_length": 16,
            "num_buckets": 4,
            "feed_forward_size": 48,
        },
    ),
    "HrmText, a loop of blocks": ("HrmText", _DECODER),
    "LongcatFlash, two blocks in one": ("LongcatFlash", _MLA),
}


@dataclass(frozen=True)
class Found:
    """What became of one architecture."""

    route: Route | None = None
    layers: int = 0
    differences: dict[str, float] = field(default_factory=dict)  # way: largest difference of a layer
    refused: dict[str, str] = field(default_factory=dict)  # way: why


def build(name):
    config_class, arguments = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{config_class}Config")(**arguments)
    model = transformers.AutoModel.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            # As they are initialised, attention adds too little for a fault to be seen.
            if parameter.ndim > 1 and "emb" not in key and "norm" not in key:
                torch.nn.init.normal_(parameter, std=0.15)
    return model


def make_texts():
    """Pairs on shared prompts, two of equal length, one long."""
    random = np.random.default_rng(3)

    def more(n):
        return random.integers(30, 97, n).tolist()

    prompt, other, long = more(17), more(24), more(60)
    texts = [prompt + more(5), prompt + more(12), other + more(7), other + more(7), long + more(20), long + more(9)]
    return texts, [range(len(text) - 3, len(text)) for text in texts]


def own(model, texts, needed):
    """Straight-line code: each text alone through a fresh copy of the model."""
    rows = []
    for text, places in zip(texts, needed, strict=True):
        with torch.no_grad():
            states = copy.deepcopy(model)(torch.tensor([text]), output_hidden_states=True).hidden_states
        rows.append([s[0, list(places)].mean(0) if s.shape[:2] == (1, len(text)) else None for s in states])
    return rows


def compare(model, route, layers, expected, texts, needed):
    found = torch.full((len(texts), len(layers), model.config.get_text_config().hidden_size), torch.nan)
    for index, batch in read_vectors(model, texts, needed, layers, route=route, batch_tokens=150):
        found[index] = batch
    right = torch.stack([torch.stack([row[layer] for layer in layers]) for row in expected])
    return float(((found - right).abs().amax((0, 2)) / right.std((0, 2))).max())


def sweep(name):
    model = build(name)
    texts, needed = make_texts()
    expected = own(model, texts, needed)
    n = model.config.get_text_config().num_hidden_layers
    differences, refused, best = {}, {}, None
    for way in (None, *WAYS[:3]):
        one = copy.deepcopy(model)
        try:
            route = probe.probe(one, max_length=LONGEST, force=way)
        except ValueError as error:
            refused[way or "any"] = str(error)
            if way is None:
                return Found(refused=refused)
            continue
        best = best or route
        layers = [k for k in range(n + 1) if k not in dict(route.refused)]
        for layer, _ in route.refused:
            with pytest.raises(ValueError, match=f"layer {layer} of .* cannot be read"):
                next(read_vectors(one, texts, needed, [layer], route=route))
        differences[way or "any"] = compare(one, route, layers, expected, texts, needed)
    for depth in (1, n - 1):
        one = copy.deepcopy(model)
        try:
            route = probe.probe(one, max_length=LONGEST, depth=depth)
        except ValueError as error:
            refused[f"shallow {depth}"] = str(error)
            continue
        layers = [k for k in range(depth + 1) if k not in dict(route.refused)]
        differences[f"shallow {depth}"] = compare(one, route, layers, expected, texts, needed)
    return Found(best, n + 1, differences, refused)


# Refused whole; all others are read.
REFUSED = {"Canine", "Gemma3n", "Gemma3n, shared keys", "LongcatFlash, two blocks in one", "Reformer, LSH"}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_layer_is_the_models_own_in_every_way_that_is_not_refused(name):
    found = sweep(name)
    assert (found.route is None) == (name in REFUSED), found.refused
    for way, difference in found.differences.items():
        assert difference < WORST, way
    for why in found.refused.values():
        assert type(build(name)).__name__ in why
        assert any(
            remedy in why for remedy in ("use another model", "use a model", "leave the choice", "take the last")
        )


def table():
    """What became of all of them, as Markdown."""
    rows = ["| architecture | read by | ways that give its own numbers | layers equal | refused, and why |"]
    rows.append("|---|---|---|---|---|")
    for name in MODELS:
        found = sweep(name)
        why = "; ".join(
            f"{way}: {reason.split(': ', 1)[-1].split('; leave')[0]}" if way != "any" else reason
            for way, reason in found.refused.items()
        )
        if found.route is None:
            rows.append(f"| {name} | | | | {why} |")
            continue
        good = [way for way in (*WAYS[:3], "shallow") if any(w.startswith(way) for w in found.differences)]
        wrong = [way for way, difference in found.differences.items() if not difference < WORST]
        layers = found.layers - len(found.route.refused)
        list_ = found.route.sites is not None and None in found.route.sites
        why = "; ".join([*(f"layer {k}: {reason}" for k, reason in found.route.refused), *([why] if why else [])])
        rows.append(
            f"| {name} | {found.route.way}{', own list' if list_ else ''} | {', '.join(good)}"
            f"{' WRONG: ' + ', '.join(wrong) if wrong else ''} | {layers} of {found.layers} | {why} |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    logging.disable()
    transformers.logging.set_verbosity_error()
    sys.stdout.write(table() + "\n")
