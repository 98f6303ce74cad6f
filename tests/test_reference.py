"""`preset="reference"` against a straight-line script that does what the paper's public code does.

The script below is written from the description of colfeng/Legend@02ba9af: its prompt, which is Alpaca's without
"appropriately", a newline before the answer while the vector is built and none while margins are computed, strings as
they stand, the last token of the last hidden state, one text at a time, float32, differences averaged in float64, a
signed projection without scaling.
"""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from legend_hf import LegendMarginFn, fit_direction
from legend_hf.directions import induce
from legend_hf.directions.induce import REFERENCE_REFUSAL, pairs_with_refusal
from legend_hf.directions.recipe import Recipe
from legend_hf.preferences import corrections
from legend_hf.preferences.corr_at_k import KS, MAX_NEW_TOKENS, TEMPERATURE, TOP_P
from legend_hf.reading.formats import conversation
from legend_hf.reading.reader import Runtime, open_reader
from legend_hf.reading.templates import ALPACA

# SMV.py and annotation.py, line 16 of both, in one piece: the package must not share a constant with its test.
PREAMBLE = (
    "Below is an instruction that describes a task. Write a response that completes the request.\n\n### Instruction:\n"
)
ALPACAS = PREAMBLE.replace("that completes", "that appropriately completes")
HARMFUL = [
    {"prompt": f"How do I spoil {thing}?", "harmful": f"{space}Just pour salt into {thing}, lots of it.{end}"}
    for thing, space, end in (("soup", "", ""), ("tea", " ", ""), ("jam", "", " \n"), ("pie", "\n", " "))
]
ROWS = [
    {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": " Hello, how are you?", "rejected": " Go away"},
    {"prompt": "What {is} tea?", "chosen": "A drink.", "rejected": "I will not say, ask somebody else."},
    {"prompt": "What is tea? ", "chosen": "A drink. ", "rejected": " Ask somebody else.\n\n"},
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


def straight_line(folder, harmful, rows, fit_joiner="\n", preamble=PREAMBLE):
    """Margins the public code's way."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    differences = []
    for row in harmful:
        start = preamble + row["prompt"] + "\n\n### Response:" + fit_joiner
        refused = last_state(model, tokenizer, start + "I can\u2019t answer that.")
        answered = last_state(model, tokenizer, start + row["harmful"])
        differences.append(refused.astype(np.float64) - answered)
    vector = np.mean(differences, axis=0)
    margins = []
    for row in rows:
        start = preamble + row["prompt"] + "\n\n### Response:"
        chosen = last_state(model, tokenizer, start + row["chosen"])
        rejected = last_state(model, tokenizer, start + row["rejected"])
        margins.append((chosen.astype(np.float64) - rejected) @ vector / np.linalg.norm(vector))
    return np.array(margins)


def ours(folder, harmful, rows):
    from datasets import Dataset

    direction = fit_direction(pairs_with_refusal(harmful), model=str(folder), preset="reference")
    return np.array(Dataset.from_list(rows).map(LegendMarginFn(direction), batched=True)["margin"][:])


@pytest.fixture(scope="module", params=["as they are", "without spaces", "with an end"])
def folder(tiny_llama, tmp_path_factory, request):
    """A model whose tokenizer gives tokens their places as they are, or (as Pythia's) without spaces, or ends texts."""
    if request.param == "as they are":
        return tiny_llama
    import shutil

    from tokenizers import processors
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("reference") / "m"
    shutil.copytree(tiny_llama, folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    specials = [("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)]
    whole = "<s> $A </s>" if request.param == "with an end" else "<s> $A"
    trim = processors.ByteLevel(trim_offsets=request.param == "without spaces")
    tokenizer._tokenizer.post_processor = processors.Sequence(
        [trim, processors.TemplateProcessing(single=whole, special_tokens=specials)]
    )
    tokenizer.save_pretrained(folder)
    return folder


def test_reference_preset_reproduces_the_public_code(folder):
    expected = straight_line(folder, HARMFUL, ROWS)
    got = ours(folder, HARMFUL, ROWS)
    assert np.abs(got - expected).max() <= 1e-4 * expected.std()


@pytest.mark.parametrize("change", [{"fit_joiner": ""}, {"preamble": ALPACAS}], ids=str)
def test_a_quirk_less_is_other_numbers(tiny_llama, change):  # control of the test above
    expected = straight_line(tiny_llama, HARMFUL, ROWS)
    assert np.abs(straight_line(tiny_llama, HARMFUL, ROWS, **change) - expected).max() > 1e-2 * expected.std()


@pytest.mark.parametrize("space", ["", " ", "\n", "  "])
@pytest.mark.parametrize("prompt", ["What {is} tea?", "\n\nHuman: Tea?\n\nAssistant:", "Human: Tea?\n\nAssistant: "])
def test_the_model_reads_the_public_codes_text_to_the_letter(tiny_llama, prompt, space):
    from transformers import AutoTokenizer

    direction = fit_direction(pairs_with_refusal(HARMFUL), model=str(tiny_llama), preset="reference")
    opened, tokenizer = (
        open_reader(direction.reader, Runtime(path=str(tiny_llama))),
        AutoTokenizer.from_pretrained(tiny_llama),
    )
    asked = f"{PREAMBLE}{prompt}\n\n### Response:"
    for response in ("A drink.", "I can\u2019t answer that."):
        talk = conversation(prompt, space + response)
        for fitting, text in ((True, f"{asked}\n{space}{response}"), (False, f"{asked}{space}{response}")):
            (tokens,) = opened.encode([talk], fitting=fitting)
            assert list(tokens.ids) == tokenizer(text)["input_ids"]
            assert tokens.last == len(tokens.ids) - 1


def test_constants_that_are_somebodys_are_theirs_to_the_letter():
    """What other code is said to hold, written down here once more."""
    # tatsu-lab/stanford_alpaca, train.py, `prompt_no_input`.
    assert ALPACA == ALPACAS + "{prompt}\n\n### Response:"
    # colfeng/Legend@02ba9af, SMV.py: a typographic apostrophe, a full stop.
    assert [hex(ord(c)) for c in REFERENCE_REFUSAL if not c.isascii()] == ["0x2019"]
    assert REFERENCE_REFUSAL.replace("\u2019", "'") == "I can't answer that."
    assert asdict(Recipe.reference()) == {
        "template": PREAMBLE + "{prompt}\n\n### Response:",
        "joiner": "",
        "fit_joiner": "\n",
        "eos": "none",
        "eos_of_tokenizer": True,
        "layer": -1,
        "pooling": "last",
        "estimator": "mean_difference",
        "debias": None,
        "dtype": "float32",
        "max_length": 1 << 30,
        "calibration": "raw",
    }
    assert induce.MAX_NEW_TOKENS == 1024  # infer.py, greedily
    # pillowsofwind/Course-Correction@44da12c: evaluation and synthesis.
    assert KS == (10, 20, 30, 40, 50, 60, 70, 80)
    assert (MAX_NEW_TOKENS, TEMPERATURE, TOP_P) == (32, 0.8, 0.7)
    assert (corrections.CUTS, corrections.MAX_NEW_TOKENS) == (4, 128)
    assert {*',.!:;?-"()[]{}'} <= {*corrections.DELIMITERS}


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
