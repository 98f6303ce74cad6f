"""`preset="reference"` against a straight-line script that does what the paper's public code does.

The script below is written from the description of colfeng/Legend@02ba9af: the Alpaca prompt, a newline before the answer
while the vector is built and none while margins are computed, the last token of the last hidden state, one text at a
time, float32, differences averaged in float64, a signed projection without scaling.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from legend_hf import LegendMarginFn, fit_direction
from legend_hf.directions.induce import pairs_with_refusal

PREAMBLE = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n"
)
HARMFUL = [{"prompt": f"How do I spoil {t}?", "harmful": f"Just pour salt into {t}, lots of it."} for t in ("soup", "tea", "jam", "pie")]  # fmt: skip
ROWS = [
    {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": " Hello, how are you?", "rejected": " Go away"},
    {"prompt": "What {is} tea?", "chosen": "A drink.", "rejected": "I will not say, ask somebody else."},
    {
        "prompt": "\n\nHuman: A\n\nAssistant: B\n\nHuman: C\n\nAssistant:",
        "chosen": " D",
        "rejected": " E, no",
    },
]


def last_state(model, tokenizer, text):
    import torch

    with torch.no_grad():
        states = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states
    return states[-1][0, -1, :].numpy()


def straight_line(folder, harmful, rows, fit_joiner="\n"):
    """Margins the public code's way."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    differences = []
    for row in harmful:
        start = PREAMBLE + row["prompt"] + "\n\n### Response:" + fit_joiner
        refused = last_state(model, tokenizer, start + "I can\u2019t answer that.")
        answered = last_state(model, tokenizer, start + row["harmful"])
        differences.append(refused.astype(np.float64) - answered)
    vector = np.mean(differences, axis=0)
    margins = []
    for row in rows:
        start = PREAMBLE + row["prompt"] + "\n\n### Response:"
        chosen = last_state(model, tokenizer, start + row["chosen"])
        rejected = last_state(model, tokenizer, start + row["rejected"])
        margins.append((chosen.astype(np.float64) - rejected) @ vector / np.linalg.norm(vector))
    return np.array(margins)


def ours(folder, harmful, rows):
    from datasets import Dataset

    direction = fit_direction(pairs_with_refusal(harmful), model=str(folder), preset="reference")
    return np.array(Dataset.from_list(rows).map(LegendMarginFn(direction), batched=True)["margin"][:])


def test_reference_preset_reproduces_the_public_code(tiny_llama):
    expected = straight_line(tiny_llama, HARMFUL, ROWS)
    got = ours(tiny_llama, HARMFUL, ROWS)
    assert np.abs(got - expected).max() <= 1e-4 * expected.std()
    # The control: without the public code's odd newline the numbers are others.
    assert np.abs(straight_line(tiny_llama, HARMFUL, ROWS, fit_joiner="") - expected).max() > 1e-2 * expected.std()


def test_reference_preset_on_real_rows(shared_data, tiny_llama):
    model = shared_data.parent / "models" / "stories260K"
    if not model.is_dir():
        pytest.skip("needs the stories260K model beside the data folder")
    lines = (shared_data / "hh_harmless.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [{k: r[k] for k in ("prompt", "chosen", "rejected")} for r in map(json.loads, lines)]
    # The public code cuts nothing, so only rows well inside this model's 512 positions can be compared.
    rows = [r for r in rows if max(len(r["chosen"]), len(r["rejected"])) + len(r["prompt"]) < 500][:40]
    rows = [r for r in rows if r["chosen"].strip() and r["rejected"].strip()]
    for row in rows:  # as the public code has them: split right after the marker, so with the space
        row["chosen"], row["rejected"] = " " + row["chosen"], " " + row["rejected"]
    assert len(rows) > 20
    expected = straight_line(model, HARMFUL, rows)
    assert np.abs(ours(model, HARMFUL, rows) - expected).max() <= 1e-4 * expected.std()
