"""Train the demonstration's annotator: a very small language model that has read about harm.

In:  a folder with `hh_harmless.jsonl` and `gptfuzz_labelled.jsonl` (trained on), `pku_saferlhf.jsonl` and
     `refuse_vs_comply.jsonl` (measured on, never trained on); the project's `demo/contrast_pairs.jsonl`.
Out: `scripts/demo/annotator`: a tokenizer, a backbone without a language-model head, a card with its figures.

It does not know the library: it trains and measures with torch and transformers alone. What it makes is for
demonstrations and tests, not for annotating data that anyone relies on.

    python scripts/train_demo_annotator.py --data ../shared/data
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import math
import random
import re
import time
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from tqdm.auto import tqdm
from transformers import (
    AutoModel,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    get_cosine_schedule_with_warmup,
)
from transformers.utils import logging as transformers_logging

from legend_hf.directions import resample

log = logging.getLogger("train_demo_annotator")
DEMO = Path(__file__).parent / "demo"
BOS, EOS, PAD = "<s>", "</s>", "<pad>"
SHIPPED = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
LAYER = 2  # chosen on prompts that a run with --develop had left out; the layers after it do as well
VERDICTS = {False: "\n\nVerdict: harmful", True: "\n\nVerdict: harmless"}


@dataclass(frozen=True)
class Recipe:
    """Everything that shapes the training; the card prints it."""

    vocabulary: int = 4096
    d_model: int = 192
    layers: int = 4
    heads: int = 3
    mlp: int = 512
    context: int = 2048
    passes: int = 10
    batch_tokens: int = 2048
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    dropout: float = 0.1
    word_dropout: float = 0.15
    verdict_weight: float = 10.0
    pooled_weight: float = 1.0
    whole_share: float = 0.3
    prompt_tokens: int = 160
    response_tokens: int = 384
    gptfuzz_texts: int = 1800
    contrast_repeats: int = 1
    bfloat16: bool = True
    seed: int = 0


@dataclass(frozen=True)
class Text:
    """A prompt (dialogue text that ends in an open assistant turn), a response, whether it is harmless."""

    source: str
    opening: str
    prompt: str
    response: str
    harmless: bool


Pair = tuple[Text, Text]  # chosen (harmless), rejected


# ------------------------------------------------------------------------------------------------------------
# The rows, and the rule by which one prompt in five is left out
# ------------------------------------------------------------------------------------------------------------


def opening(prompt: str) -> str:
    """The first human turn in small letters, words only: what decides whether a prompt is left out."""
    first = re.split(r"\n\n(?:Assistant|Human):", re.sub(r"^\s*Human:", "", prompt), maxsplit=1)[0]
    return " ".join(re.findall(r"\w+", first.lower()))


def fold(opened: str) -> int:
    """0 to 4, by the sha256 of the opening. Fold 0 is never trained on."""
    return int(hashlib.sha256(opened.encode()).hexdigest(), 16) % 5


def dialogue(prompt: str) -> str:
    """A bare question as a dialogue of hh-rlhf; a dialogue as it is."""
    return prompt if prompt.startswith("\n\nHuman:") else f"\n\nHuman: {prompt}\n\nAssistant:"


def read_jsonl(path: Path) -> list[dict]:
    """The rows of a file with one JSON object a line."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def read_pairs(path: Path, source: str) -> list[Pair]:
    """(chosen, rejected) of a file with the columns prompt, chosen and rejected."""
    pairs = []
    for row in read_jsonl(path):
        sides = [
            Text(
                source,
                opening(row["prompt"]),
                dialogue(row["prompt"]),
                row[column].strip(),
                column == "chosen",
            )
            for column in ("chosen", "rejected")
        ]
        if all(side.response for side in sides) and sides[0].response != sides[1].response:
            pairs.append((sides[0], sides[1]))
    return pairs


def pair_up(texts: list[Text], per_prompt: int = 10) -> list[Pair]:
    """Harmless and harmful answers to the same prompt, drawn with a fixed seed."""
    chance = random.Random(0)
    sides: defaultdict[str, dict[bool, list[Text]]] = defaultdict(lambda: {True: [], False: []})
    for text in texts:
        sides[text.opening][text.harmless].append(text)
    pairs: list[Pair] = []
    for side in sides.values():
        many = min(per_prompt, len(side[True]), len(side[False]))
        pairs += zip(chance.sample(side[True], many), chance.sample(side[False], many), strict=True)
    return pairs


def read_gptfuzz(path: Path) -> list[Text]:
    """The distinct responses in Latin letters and of sane length, with the label that people gave them."""
    seen: dict[tuple[str, str], Text] = {}
    for row in read_jsonl(path):
        response = row["response"].strip()
        foreign = sum(ord(letter) > 0x24F for letter in response)
        if 0 < len(response) <= 4000 and foreign <= len(response) / 20:
            key = (row["prompt"], response)
            seen.setdefault(
                key,
                Text("gptfuzz", opening(row["prompt"]), dialogue(row["prompt"]), response, not row["harm"]),
            )
    return list(seen.values())


# ------------------------------------------------------------------------------------------------------------
# Tokenizer and model
# ------------------------------------------------------------------------------------------------------------


def train_tokenizer(texts: list[Text], recipe: Recipe) -> PreTrainedTokenizerFast:
    """Byte-level BPE that puts BOS in front and nothing behind; no chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    corpus = [text.prompt + " " + text.response + VERDICTS[text.harmless] for text in texts]
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=recipe.context,
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> LlamaForCausalLM:
    """A small Llama whose blocks drop out what they add to the residual stream while it trains."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.d_model,
        intermediate_size=recipe.mlp,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=recipe.context,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=False,
    )
    model = LlamaForCausalLM(config)
    drop = nn.Dropout(recipe.dropout)  # Llama has no dropout of its own on the residual stream
    for block in model.model.layers:
        block.self_attn.register_forward_hook(lambda module, args, out: (module.drop(out[0]), *out[1:]))
        block.mlp.register_forward_hook(lambda module, args, out: module.drop(out))
        block.self_attn.drop = block.mlp.drop = drop
    return model


# ------------------------------------------------------------------------------------------------------------
# Training
# ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Encoded:
    """A text as token ids, BOS first; `start` is the first token of the response."""

    ids: tuple[int, ...]
    start: int
    harmless: bool


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[Text]) -> list[Encoded]:
    """Each text tokenised whole, as a reader would; a token is of the response once it ends inside it."""
    encoded = []
    for text in texts:
        out = tokenizer(text.prompt + " " + text.response, return_offsets_mapping=True)
        # The space before the response belongs to its first token; a token that ends there does not.
        start = next(i for i, (_, end) in enumerate(out["offset_mapping"]) if end > len(text.prompt) + 1)
        encoded.append(Encoded(tuple(out["input_ids"]), start, text.harmless))
    return encoded


def with_verdict(
    text: Encoded, verdicts: dict[bool, list[int]], recipe: Recipe, chance: random.Random
) -> tuple[list[int], int, int, bool]:
    """Token ids of one training text, where its response begins and ends, and whether it is harmless.

    The response is broken off at a random place (in `whole_share` of the cases it stays whole), so that every
    token may be the last before a verdict, and its length says nothing about the verdict.
    """
    prompt, response = text.ids[: text.start], text.ids[text.start :]
    prompt = prompt[:1] + prompt[max(1, len(prompt) - recipe.prompt_tokens) :]
    longest = min(len(response), recipe.response_tokens)
    keep = longest if chance.random() < recipe.whole_share else chance.randint(min(3, longest), longest)
    if keep > 64 and chance.random() < 0.5:
        keep = chance.randint(8, 64)
    ids = [*prompt, *response[:keep], *verdicts[text.harmless]]
    return ids, len(prompt), len(prompt) + keep, text.harmless


def batches(
    documents: list[tuple[list[int], int, int, bool]], recipe: Recipe, chance: random.Random
) -> list[list[int]]:
    """Indices of documents of like length, at most `batch_tokens` with padding, in random order."""
    order = sorted(range(len(documents)), key=lambda i: len(documents[i][0]) + chance.random() * 8)
    groups: list[list[int]] = [[]]
    for i in order:
        if groups[-1] and (len(groups[-1]) + 1) * len(documents[i][0]) > recipe.batch_tokens:
            groups.append([])
        groups[-1].append(i)
    chance.shuffle(groups)
    return groups


def pad(rows: list[list[int]], pad_id: int) -> torch.Tensor:
    """Right-padded ids `[n, longest]`; attention is causal, so padding changes nothing to its left."""
    longest = max(map(len, rows))
    return torch.tensor([row + [pad_id] * (longest - len(row)) for row in rows])


def train(
    texts: list[Text], tokenizer: PreTrainedTokenizerFast, recipe: Recipe, minutes: float
) -> tuple[LlamaForCausalLM, dict]:
    """Next-token training with AdamW and a cosine schedule; stops early when the minutes are used up.

    To the loss over the tokens comes one over the responses: the mean hidden state of a response's tokens,
    given to the language-model head, should prefer the right one of the two words that end a verdict. Without
    it the verdict itself is learnt, but the mean over the response hardly shows it.
    """
    torch.manual_seed(recipe.seed)
    chance = random.Random(recipe.seed)
    model = build_model(tokenizer, recipe)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
        betas=(0.9, 0.98),
    )
    verdicts = {harmless: tokenizer(line, add_special_tokens=False)["input_ids"] for harmless, line in VERDICTS.items()}
    encoded = dict(zip(texts, encode(tokenizer, texts), strict=True))
    always = [encoded[text] for text in texts if text.source == "hh-rlhf"]
    always += [encoded[text] for text in texts if text.source == "contrast"] * recipe.contrast_repeats
    fuzz = {
        side: [encoded[text] for text in texts if text.source == "gptfuzz" and text.harmless is side]
        for side in (True, False)
    }

    plan = []
    for _ in range(recipe.passes):
        chosen = list(always)
        for side in fuzz.values():
            chosen += chance.sample(side, min(len(side), recipe.gptfuzz_texts // 2))
        documents = [with_verdict(text, verdicts, recipe, chance) for text in chosen]
        plan += [[documents[i] for i in group] for group in batches(documents, recipe, chance)]
    schedule = get_cosine_schedule_with_warmup(optimizer, max(1, len(plan) // 25), len(plan))

    begun, tokens, step, running = time.monotonic(), 0, 0, math.log(len(tokenizer))
    model.train()
    bar = tqdm(plan, desc="training", unit="batch", mininterval=5)
    for step, documents in enumerate(bar, start=1):
        if time.monotonic() - begun > minutes * 60:
            log.warning("stopped after %.1f minutes, at batch %d of %d", minutes, step, len(plan))
            break
        ids = pad([document[0] for document in documents], tokenizer.pad_token_id)
        targets = ids[:, 1:]
        weight = (targets != tokenizer.pad_token_id).float()
        for row, (document, *_) in enumerate(documents):
            weight[row, len(document) - 2] = recipe.verdict_weight
        place = torch.arange(targets.shape[1])  # the last input, never a response's, is left off
        read = torch.stack([((place >= start) & (place < end)).float() for _, start, end, _ in documents])
        harmless = torch.tensor([float(document[3]) for document in documents])
        inputs = ids[:, :-1].clone()
        noise = (torch.rand(inputs.shape) < recipe.word_dropout) & (inputs > 2)
        inputs[noise] = torch.randint(3, len(tokenizer), (int(noise.sum()),))
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bfloat16):
            hidden = model.model(input_ids=inputs).last_hidden_state
            logits = model.lm_head(hidden)
        losses = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
        losses = losses.unflatten(0, targets.shape)
        loss = (losses * weight).sum() / weight.sum()
        mean = (hidden.float() * read[..., None]).sum(1) / read.sum(1, keepdim=True)
        words = [model.lm_head.weight[verdicts[side][-1]] for side in (True, False)]
        leaning = mean @ (words[0] - words[1])
        loss = loss + recipe.pooled_weight * F.binary_cross_entropy_with_logits(leaning, harmless)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        tokens += int((weight > 0).sum())
        running += 0.02 * (loss.item() - running)
        bar.set_postfix(loss=f"{running:.3f}", refresh=False)
    taken = time.monotonic() - begun
    log.info("%d batches, %d tokens, %.1f minutes, %.0f tokens a second", step, tokens, taken / 60, tokens / taken)
    return model.eval(), {"tokens": tokens, "minutes": taken / 60, "batches": step}


# ------------------------------------------------------------------------------------------------------------
# Measuring
# ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def perplexity(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: list[Text]) -> tuple[float, float]:
    """Per token and per character, over whole dialogues without their verdict."""
    loss, tokens, characters = 0.0, 0, 0
    for text, encoded in zip(texts, encode(tokenizer, texts), strict=True):
        ids = torch.tensor([encoded.ids])
        loss += F.cross_entropy(model(input_ids=ids).logits[0, :-1].float(), ids[0, 1:], reduction="sum").item()
        tokens += len(encoded.ids) - 1
        characters += len(text.prompt) + 1 + len(text.response)
    return math.exp(loss / tokens), math.exp(loss / characters)


@torch.no_grad()
def response_means(backbone: Any, tokenizer: PreTrainedTokenizerFast, texts: list[Text]) -> torch.Tensor:
    """Mean hidden state over each response's tokens, at every layer, in float32: `[n, layers, d_model]`."""
    context: int = backbone.config.max_position_embeddings
    rows: list[tuple[list[int], int]] = []
    for text in encode(tokenizer, texts):
        ids, start = list(text.ids), text.start
        surplus = max(0, len(ids) - context)
        from_prompt = min(surplus, start - 1)  # cut from the prompt's beginning, BOS kept
        if surplus > from_prompt:
            raise ValueError(f"a response of {len(ids) - start} tokens does not fit a context of {context}")
        rows.append((ids[:1] + ids[1 + from_prompt :], start - from_prompt))
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    means: list[torch.Tensor] = [torch.empty(0)] * len(rows)
    for begin in tqdm(range(0, len(order), 16), desc="reading", unit="batch", mininterval=5, leave=False):
        group = order[begin : begin + 16]
        batch = pad([rows[i][0] for i in group], tokenizer.pad_token_id)
        hidden = torch.stack(backbone(input_ids=batch, output_hidden_states=True).hidden_states, dim=2)
        for place, i in enumerate(group):
            means[i] = hidden[place, rows[i][1] : len(rows[i][0])].mean(0)
    return torch.stack(means)


def differences(backbone: Any, tokenizer: PreTrainedTokenizerFast, pairs: list[Pair]) -> torch.Tensor:
    """Chosen minus rejected at every layer, `[n, n_layers + 1, d_model]`."""
    texts = list(dict.fromkeys(side for pair in pairs for side in pair))
    means = dict(zip(texts, response_means(backbone, tokenizer, texts), strict=True))
    return torch.stack([means[chosen] - means[rejected] for chosen, rejected in pairs])


def wins(margin: torch.Tensor) -> torch.Tensor:
    """1 where the chosen side scores higher, a half for a tie."""
    return (margin > 0).float() + (margin == 0).float() / 2


def won(fitted_on: torch.Tensor, measured_on: torch.Tensor) -> torch.Tensor:
    """What the mean difference of some pairs says of other pairs, at every layer: `[n, n_layers + 1]`."""
    return wins((measured_on * F.normalize(fitted_on.mean(0), dim=-1)).sum(-1))


def shorter_wins(pairs: list[Pair]) -> torch.Tensor:
    """The rule that the response with fewer characters is the harmless one, `[n]`."""
    return wins(torch.tensor([float(len(rejected.response) - len(chosen.response)) for chosen, rejected in pairs]))


def groups_of(pairs: list[Pair]) -> np.ndarray:
    """Numbers of the pairs' prompts, `[n]`."""
    return resample.groups_of([chosen.opening for chosen, _ in pairs])


def written(value: float, interval: resample.Interval | None) -> str:
    """A number with its interval."""
    return f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def measure(folder: Path, fits: dict[str, list[Pair]], tests: dict[str, list[Pair]]) -> tuple[str, str]:
    """Load what was saved, fit a direction on each of `fits`, tell how it does on each of `tests`.

    Returns two tables in Markdown: accuracies at `LAYER` with intervals, and accuracies at every layer.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    backbone, loading = AutoModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    if loading["missing_keys"] or loading["unexpected_keys"]:
        raise RuntimeError(f"the saved folder does not load cleanly: {loading}")
    backbone.eval()
    fitted = {name: differences(backbone, tokenizer, pairs) for name, pairs in fits.items()}
    read = {name: differences(backbone, tokenizer, pairs) for name, pairs in tests.items()}

    groups = {name: groups_of(pairs) for name, pairs in tests.items()}
    shorter = {name: shorter_wins(pairs).double().numpy() for name, pairs in tests.items()}
    length = {name: resample.better_rule(wins, groups[name]) for name, wins in shorter.items()}
    rules = ", ".join(dict.fromkeys("shorter" if own else "longer" for own, _, _ in length.values()))

    def row(title: str, cells: list[tuple[float, resample.Interval | None]]) -> str:
        average = sum(value for value, _ in cells) / len(cells)
        return f"| {' | '.join([title, *(written(*cell) for cell in cells)])} | {average:.3f} |"

    accuracies = [
        f"| | {' | '.join(tests)} | average |",
        "|---" * (len(tests) + 2) + "|",
        row(f"length alone (the {rules} response)", [(share, ends) for _, share, ends in length.values()]),
    ]
    numbers = [f"layer {i}" for i in range(backbone.config.num_hidden_layers + 1)]
    layers = [f"| fitted on | measured on | {' | '.join(numbers)} |", "|---" * (len(numbers) + 2) + "|"]
    for fit, difference in fitted.items():
        scores = {name: won(difference, values) for name, values in read.items()}
        here = {name: values[:, LAYER].double().numpy() for name, values in scores.items()}
        accuracies.append(
            row(f"direction of {fit}", [resample.share_interval(v, groups[name]) for name, v in here.items()])
        )
        gains = [resample.gain_over_rule(v, shorter[name], groups[name]) for name, v in here.items()]
        accuracies.append(row("... ahead of length by", gains))
        for name, values in scores.items():
            layers.append(f"| {fit} | {name} | {' | '.join(f'{v:.3f}' for v in values.mean(0).tolist())} |")
    return "\n".join(accuracies), "\n".join(layers)


# ------------------------------------------------------------------------------------------------------------
# From rows to folder
# ------------------------------------------------------------------------------------------------------------


def main() -> None:
    """Read, train, save, measure what was saved, write the card."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the four .jsonl files")
    parser.add_argument("--out", type=Path, default=DEMO / "annotator", help="folder to write")
    parser.add_argument("--minutes", type=float, default=45, help="stop training after so many minutes")
    parser.add_argument("--passes", type=int, default=Recipe.passes, help="passes over the training texts")
    parser.add_argument("--threads", type=int, default=1, help="of torch; other counts change the last digits")
    parser.add_argument("--measure-only", action="store_true", help="train nothing; measure --out, rewrite its card")
    parser.add_argument("--develop", action="store_true", help="leave fold 1 out as well and measure on it alone")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    transformers_logging.set_verbosity_error()  # longer texts than the context are cut here, knowingly
    torch.set_num_threads(given.threads)
    recipe = replace(Recipe(), passes=given.passes)

    harmless = read_pairs(given.data / "hh_harmless.jsonl", "hh-rlhf")
    fuzz = read_gptfuzz(given.data / "gptfuzz_labelled.jsonl")
    contrast = read_pairs(DEMO / "contrast_pairs.jsonl", "contrast")
    pku = read_pairs(given.data / "pku_saferlhf.jsonl", "pku")
    refusals = read_pairs(given.data / "refuse_vs_comply.jsonl", "refusals")
    measured = {chosen.opening for chosen, _ in pku + refusals}
    unseen = {0, 1} if given.develop else {0}

    def may_train(name: str) -> bool:
        return fold(name) not in unseen and name not in measured

    train_pairs = [pair for pair in harmless if may_train(pair[0].opening)]
    train_fuzz = [text for text in fuzz if may_train(text.opening)]
    texts = [side for pair in train_pairs for side in pair] + train_fuzz + [side for pair in contrast for side in pair]
    fits = {"the contrast pairs": contrast, "hh-rlhf": train_pairs, "GPTFuzz": pair_up(train_fuzz)}
    fits["all three"] = [pair for pairs in fits.values() for pair in pairs]
    held_fold = max(unseen)
    left_out = [pair for pair in harmless if fold(pair[0].opening) == held_fold]
    tests = {"hh-rlhf, left out": left_out, "PKU-SafeRLHF": pku, "refusal or compliance": refusals}
    if given.develop:
        fuzz_left_out = pair_up([text for text in fuzz if fold(text.opening) == held_fold])
        tests = {"hh-rlhf, fold 1": left_out, "GPTFuzz, fold 1": fuzz_left_out}

    if not given.measure_only:
        tokenizer = train_tokenizer(texts, recipe)
        model, spent = train(texts, tokenizer, recipe, given.minutes)
        per_token, per_character = perplexity(model, tokenizer, [chosen for chosen, _ in left_out])
        backbone = model.model.to(torch.float16)  # without the head nothing can be generated
        backbone.config.architectures = ["LlamaModel"]
        backbone.save_pretrained(given.out)
        tokenizer.save_pretrained(given.out)
        facts = {
            "recipe": asdict(recipe),
            "parameters": sum(p.numel() for p in backbone.parameters()),
            "texts": Counter(text.source for text in texts),
            "threads": given.threads,
            **spent,
            "perplexity_per_token": round(per_token, 2),
            "perplexity_per_character": round(per_character, 3),
        }
        (given.out / "training.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")

    accuracies, layers = measure(given.out, fits, tests)
    log.info("%s\n\n%s", accuracies, layers)
    if given.develop:
        return
    facts = json.loads((given.out / "training.json").read_text(encoding="utf-8"))
    settings = facts["recipe"]
    card = Template((DEMO / "annotator_card.md").read_text(encoding="utf-8")).substitute(
        {f"recipe_{name}": value for name, value in settings.items()},
        recipe="\n".join(f"| `{name}` | {value} |" for name, value in settings.items()),
        parameters=f"{facts['parameters']:,}",
        megabytes=f"{sum((given.out / name).stat().st_size for name in SHIPPED) / 1e6:.1f}",
        hh_texts=f"{facts['texts']['hh-rlhf']:,}",
        fuzz_texts=f"{facts['texts']['gptfuzz']:,}",
        fuzz_prompts=len({text.opening for text in train_fuzz}),
        contrast_texts=facts["texts"]["contrast"],
        left_out_pairs=len(left_out),
        pku_pairs=f"{len(pku):,}",
        refusal_pairs=len(refusals),
        per_token=f"{facts['perplexity_per_token']:.1f}",
        per_character=f"{facts['perplexity_per_character']:.2f}",
        tokens=f"{facts['tokens'] / 1e6:.1f}",
        minutes=f"{facts['minutes']:.0f}",
        threads=facts["threads"],
        layer=LAYER,
        fit_sizes=", ".join(f"{name} {len(pairs):,}" for name, pairs in fits.items()),
        accuracies=accuracies,
        layers=layers,
    )
    (given.out / "README.md").write_text(card, encoding="utf-8")
    log.info("wrote %s", given.out)


if __name__ == "__main__":
    main()
