"""Causal language models small enough for a test: random, on the tokenizer of the fixture `tiny_llama`."""

from __future__ import annotations

import shutil
from functools import lru_cache
from pathlib import Path

# Ends every turn with EOS, and writes BOS itself.
CHAT = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def save_tiny_causal(tiny_llama: Path, folder: Path, chat_template: str | None = None) -> Path:
    """Writes a random Llama with a head, and with a chat template if one is given."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_llama / name, folder / name)
    if chat_template is not None:
        (folder / "chat_template.jinja").write_text(chat_template)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        # Large weights: attention then sees far, and what stands in the text decides how it goes on.
        config = LlamaConfig.from_pretrained(tiny_llama, architectures=None, initializer_range=0.2)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@lru_cache
def loaded(folder: Path):
    """The tokenizer and the model of a folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()


def straight_line(folder: Path, ids: list[int], tokens: int) -> str:
    """What follows some tokens, greedily, without batch, cache, padding or `generate`."""
    import torch

    tokenizer, model = loaded(folder)
    new: list[int] = []
    with torch.no_grad():
        while len(new) < tokens and tokenizer.eos_token_id not in new:
            new.append(int(model(input_ids=torch.tensor([ids + new])).logits[0, -1].argmax()))
    text = tokenizer.decode(new, skip_special_tokens=True)
    return (text if tokenizer.eos_token_id in new else text.rstrip("\ufffd")).rstrip()
