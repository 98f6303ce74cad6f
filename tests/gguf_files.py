"""A GGUF file out of the folder of a Llama, as llama.cpp's own converter lays it out."""

from __future__ import annotations

import json
from pathlib import Path


def write_gguf(folder: Path, path: Path, **more: float) -> Path:
    """Writes the model and the byte-level BPE tokenizer of a folder into one GGUF file, in float32.

    Args:
        folder: Of a `LlamaModel` and its tokenizer.
        path: The file.
        more: Added to weights by their names, to make another model.
    """
    import gguf
    import torch
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text())
    heads, key_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(key_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config["vocab_size"])

    rules = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = sorted(rules["model"]["vocab"], key=rules["model"]["vocab"].get)
    special = {token["content"] for token in rules["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(vocabulary)
    kinds = gguf.TokenType
    writer.add_token_types([kinds.CONTROL if token in special else kinds.NORMAL for token in vocabulary])
    writer.add_token_merges([" ".join(merge) for merge in rules["model"]["merges"]])
    writer.add_bos_token_id(vocabulary.index("<s>"))
    writer.add_eos_token_id(vocabulary.index("</s>"))
    writer.add_add_bos_token(True)

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    weights = load_file(folder / "model.safetensors")
    for name, weight in {**weights, "lm_head.weight": weights["embed_tokens.weight"]}.items():
        n = {"q_proj": heads, "k_proj": key_heads}.get(name.split(".")[-2])
        if n is not None:  # llama.cpp turns pairs of neighbours where transformers turns halves
            weight = weight.reshape(n, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
        named = names.get_name(f"model.{name}" if name != "lm_head.weight" else name, try_suffixes=(".weight",))
        writer.add_tensor(named, (weight + more.get(name, 0.0)).to(torch.float32).contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
