"""A causal language model goes on with a response that somebody began.

In: prompts, and what each response begins with. Out: what the model writes next, greedily or sampled. The assistant's
turn stays open: nothing stands between the beginning and what follows it. This file knows no corrections and no ranks.

From the source (Course-Correction, arXiv 2407.16637): a response is begun in the open turn. Ours: everything else, the
ways of decoding and of resuming being those of `induce_pairs`.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from legend_hf.reading import templates
from legend_hf.reading.formats import conversation
from legend_hf.reading.plain import make_plain
from legend_hf.reading.reader import Reader, describe_model, resolve_device
from legend_hf.writing import generate
from legend_hf.writing.generate import Answer, AnswersFile, key_of, open_ids, open_text, plan_batches, tokenizer_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PLACE = "<the response>"  # stands for a response of which nothing is written yet


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen.

    Attributes:
        max_new_tokens: Longest continuation; where the model's window ends sooner, that is the limit.
        batch_size: Most texts continued together.
        temperature: Of sampling; None takes the likeliest token.
        top_p: Sample from the likeliest tokens that have this much probability together.
        seed: Of sampling.
    """

    max_new_tokens: int
    batch_size: int
    temperature: float | None = None
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses what generates nothing."""
        make_plain(self)
        for name in ("max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it must be at least 1")
        if self.temperature is not None and not self.temperature > 0:
            raise ValueError(f"`temperature` is {self.temperature}; it must be above 0, 0.8 say")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"`top_p` is {self.top_p}; it must be above 0 and at most 1")


class Continuer:
    """A model that goes on with responses; its weights are loaded at the first call. From `open_continuer`."""

    def __init__(
        self,
        source: str,
        reader: Reader,
        decoding: Decoding,
        chat_template_kwargs: Mapping[str, Any] | None,
        device: str | None,
        trust_remote_code: bool,
        file: AnswersFile | None,
    ) -> None:
        self.source = source
        self.reader = reader
        self.decoding = decoding
        self.tokenizer = tokenizer_of(source, reader, trust_remote_code)
        self._chat_template_kwargs = chat_template_kwargs
        self._device = device
        self._trust_remote_code = trust_remote_code
        self._file = file
        self._ids: dict[tuple[str, str], list[int]] = {}  # so that a text which was checked is not written again
        self._write: Callable[[Sequence[Sequence[int]], int, int], list[Answer]] | None = None

    def encode(self, prompt: str, prefix: str) -> list[int]:
        """Token ids of a prompt and an open response.

        Args:
            prompt: Plain text, or a dialogue string.
            prefix: What the response begins with; `""` leaves all of it to the model.

        Raises:
            ValueError: The text cannot be written in the template, or leaves no room for a continuation.
        """
        if (prompt, prefix) in self._ids:
            return self._ids[prompt, prefix]
        ids = open_ids(self._text(prompt, prefix), self.tokenizer, self.reader)
        if len(ids) >= self.reader.max_length:
            length = f"the prompt and what is written of the response are {len(ids)} tokens long"
            raise ValueError(f"{length}, the model's window {self.reader.max_length}; shorten them, or drop the row")
        self._ids[prompt, prefix] = ids
        return ids

    def __call__(self, prompts: Sequence[str], prefixes: Sequence[str]) -> list[str]:
        """Goes on with every text; equal texts get equal continuations, unless they are sampled.

        Args:
            prompts: `[n]` prompts.
            prefixes: `[n]` beginnings of their responses.

        Returns:
            `[n]` continuations, with the space that they begin with, if any; `""` where the model ends at once.

        Raises:
            ValueError: As `encode`.
        """
        return [answer.response for answer in self.answers(prompts, prefixes)]

    def answers(self, prompts: Sequence[str], prefixes: Sequence[str]) -> list[Answer]:
        """As a call, with how each continuation ended."""
        keys: list[str] = []
        asked: dict[str, list[int]] = {}
        seen: Counter[tuple[str, str]] = Counter()
        for text in zip(prompts, prefixes, strict=True):
            sampled = self.decoding.temperature is not None
            keys.append(key_of([*text, seen[text]] if sampled else [*text]))
            seen[text] += 1
            if keys[-1] not in asked:
                asked[keys[-1]] = self.encode(*text)
        window, longest = self.reader.max_length, self.decoding.max_new_tokens
        rooms = {key: min(longest, window - len(ids)) for key, ids in asked.items()}
        answers = {} if self._file is None else self._file.load()
        # Planned over all texts: a run that goes on has the batches, and so the texts, of one that never stopped.
        planned = plan_batches(asked, rooms, self.decoding.batch_size)
        batches = [batch for batch in planned if not answers.keys() >= set(batch)]
        if batches:
            from datasets.utils import tqdm

            if self._write is None:
                self._write = self._load()
            done = len(asked.keys() & answers.keys())
            with tqdm(total=len(asked), initial=done, desc="Continuing responses", unit="response") as bar:
                for batch in batches:
                    # A seed of the batch's own: its draws depend on no other batch.
                    draw = random.Random(f"{self.decoding.seed}:{batch}").getrandbits(63)
                    said = self._write([asked[key] for key in batch], rooms[batch[0]], draw)
                    new = {key: a for key, a in zip(batch, said, strict=True) if key not in answers}
                    if self._file is not None:
                        self._file.append(new)
                    answers.update(new)
                    bar.update(len(new))
        return [answers[key] for key in keys]

    def _text(self, prompt: str, prefix: str) -> str:
        """What the model goes on from: what a Reader sees, up to the end of the prefix."""
        reader, kwargs = self.reader, self._chat_template_kwargs
        if not prefix:
            return open_text(conversation(prompt, _PLACE), self.tokenizer, reader, kwargs)
        begun = replace(conversation(prompt, prefix), chat_template_kwargs=kwargs)
        whole = templates.render(
            begun, self.tokenizer, template=reader.template, joiner=reader.joiner, date=reader.date
        )
        # What a chat template writes behind the response would end the turn.
        return whole.text[: whole.spans[-1][1]]

    def _load(self) -> Callable[[Sequence[Sequence[int]], int, int], list[Answer]]:
        """Loads the model; what is returned goes on with a batch of texts (ids), in so many new tokens, by a seed."""
        import torch
        from transformers import GenerationConfig

        device = resolve_device(self._device)
        model = generate.load_annotator(self.source, self.reader, self._trust_remote_code).to(device).eval()
        generate.check_causal(model, self.source, device)
        ends = generate.end_ids(model, self.tokenizer)
        pad = ends[0] if ends else 0
        warmth = self.decoding.temperature
        sampling: dict[str, Any] = {"do_sample": False}
        if warmth is not None:
            # `top_k` would be 50 if it were not said.
            sampling = {"do_sample": True, "temperature": warmth, "top_p": self.decoding.top_p, "top_k": 0}
        # In place of the model's own settings, which `generate` would fill in.
        model.generation_config = GenerationConfig(
            num_beams=1,
            eos_token_id=ends or None,
            pad_token_id=pad,
            bos_token_id=self.tokenizer.bos_token_id,
            **sampling,
        )
        stop: dict[str, Any] = {}
        if self.reader.template == templates.DIALOGUE:
            stop = {"stop_strings": ["\n\nHuman:", "\n\nAssistant:"], "tokenizer": self.tokenizer}

        def write(texts: Sequence[Sequence[int]], room: int, seed: int) -> list[Answer]:
            width = max(map(len, texts))
            ids = torch.full((len(texts), width), pad, dtype=torch.long)  # [b, t]
            mask = torch.zeros((len(texts), width), dtype=torch.long)  # [b, t]
            for row, text in enumerate(texts):
                ids[row, width - len(text) :] = torch.tensor(text)
                mask[row, width - len(text) :] = 1
            with torch.inference_mode(), torch.random.fork_rng():
                torch.manual_seed(seed)
                whole = model.generate(
                    input_ids=ids.to(device), attention_mask=mask.to(device), max_new_tokens=room, **stop
                )  # [b, t + new]
            new = whole[:, width:].tolist()
            return [_continuation(text, more, ends, self.tokenizer) for text, more in zip(texts, new, strict=True)]

        return write


def open_continuer(
    model: str | os.PathLike[str],
    decoding: Decoding,
    *,
    revision: str | None = None,
    template: str = "auto",
    joiner: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    device: str | None = None,
    dtype: str = "auto",
    output: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> Continuer:
    """Makes a model ready to go on with responses, without loading its weights yet.

    Args:
        model: Hub id or folder of a causal language model with its head.
        decoding: How tokens are chosen.
        revision: Branch, tag or commit of a Hub model; resolved to a commit.
        template: As in `fit_direction`.
        joiner: What stands between a plain template and the response; None takes the template's own.
        chat_template_kwargs: Passed to the chat template.
        device: Where to run; None takes a GPU when there is one.
        dtype: `"auto"` (float32 on a CPU, bfloat16 on a GPU), `"float32"`, `"bfloat16"` or `"float16"`.
        output: Finished continuations are kept in `<output>.answers`, by which a stopped run goes on where it was.
        overwrite: Replace an `output` of something else, and the continuations of another run.
        trust_remote_code: Run code that comes with the model.

    Raises:
        ValueError: An argument that is not allowed.
        OSError: The tokenizer cannot be loaded.
    """
    if output is not None:
        generate.check_output(output, reads=[model], overwrite=overwrite)
    reader = describe_model(
        model,
        revision=revision,
        template=template,
        joiner=joiner,
        max_length=1 << 62,  # the model's window, whatever it is
        dtype=dtype,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    if chat_template_kwargs and reader.template != templates.CHAT:
        raise ValueError(
            f'`chat_template_kwargs` needs `template="chat"`, here it is {reader.template!r}; leave out one of the two'
        )
    file = None
    if output is not None:
        run = generate.run_identity(reader, decoding.max_new_tokens, chat_template_kwargs)
        if decoding.temperature is not None:
            run |= {name: getattr(decoding, name) for name in ("temperature", "top_p", "seed", "batch_size")}
        file = AnswersFile(Path(output), run, overwrite=overwrite)
    source = str(model) if reader.model is None else reader.model
    return Continuer(source, reader, decoding, chat_template_kwargs, device, trust_remote_code, file)


def _continuation(
    text: Sequence[int], new: Sequence[int], ends: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> Answer:
    """Reads the new tokens of one row: up to the first EOS or the next turn."""
    end = next((i for i, token in enumerate(new) if token in ends), None)
    ids = new[:end]

    def decode(tokens: Sequence[int]) -> str:
        return str(tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    # Decoded alone, a text loses the space that it begins with in some vocabularies.
    before, whole = decode(text), decode([*text, *ids])
    said = whole[len(before) :] if whole.startswith(before) else decode(ids)
    finished = end is not None
    marker = generate.MARKER.search(said)
    if marker is not None:
        said, finished = said[: marker.start()], True
    if not finished:
        said = said.rstrip("\ufffd")  # the limit may cut a character in the middle
    return Answer(said.rstrip(), len(ids), finished)
