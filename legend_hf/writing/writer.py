"""A `Writer` says how a model goes on with texts; an `OpenWriter` does it, and a stopped run goes on where it was.

In: prompts, and what each response begins with, if anything. Out: one `Answer` each, greedy or sampled, kept in a file
as they are finished. A model that writes is described as one that reads, by `describe_model`, and sees what a Reader
sees; the assistant's turn stays open. This file knows no pairs, no corrections and no ranks.

From the source (Course-Correction, arXiv 2407.16637): a response is begun in the open turn. Ours: everything else.
"""

from __future__ import annotations

import os
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from legend_hf.reading import templates
from legend_hf.reading.formats import RowError, conversation
from legend_hf.reading.identity import model_folder
from legend_hf.reading.plain import check_choice, key_of, make_plain
from legend_hf.reading.pretrained import load_config, load_tokenizer, load_weights
from legend_hf.reading.reader import (
    DTYPES,
    Reader,
    describe_model,
    parse_device,
    resolve_device,
)
from legend_hf.writing.answers import Answer, AnswersFile, check_output

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from legend_hf.reading.formats import Message

# Goes on with a batch of open texts (ids), in up to so many new tokens, by a seed of its own.
Generate = Callable[[Sequence[Sequence[int]], int, int], list[Answer]]

_MARKER = re.compile(r"(?:\A\s*|\n\n)(?:Human|Assistant):")
_PLACE = "<the response>"  # stands for a response of which nothing is written yet
_WHOLE_WINDOW = 1 << 62  # the model's window, whatever it is


@dataclass(frozen=True)
class Writer:
    """How a model writes: which model, what it sees, how it chooses tokens. Plain data; nothing is loaded yet.

    What is None in `max_new_tokens`, `temperature`, `top_p` and `seed` is left to the function that writes: up to 1024
    tokens for `induce_pairs` and 128 for `correction_ladders`, both greedily; 32 for `compute_corr_at_k`, sampled at
    temperature 0.8 and top_p 0.7. A model's name in place of a Writer is a Writer with nothing else said.

    Attributes:
        model: Hub id or folder of a causal language model with its head.
        revision: Branch, tag or commit of a Hub model; resolved to a commit.
        template: `"auto"`, `"chat"`, `"dialogue"`, `"alpaca"` or a string with `{prompt}`, as in `fit_direction`. The
            model sees what a Reader sees up to the response, without trailing spaces; a chat template opens the
            assistant's turn as it does for generation.
        joiner: What stands between a plain template and the response; None takes the template's own.
        chat_template_kwargs: Passed to the chat template; `{"enable_thinking": False}`, say.
        max_new_tokens: Longest answer; where the model's window ends sooner, that is the limit.
        temperature: Of sampling, above 0.
        top_p: Sample from the likeliest tokens that have this much probability together; without a top_k beside.
        seed: Of sampling. Samples also depend on `batch_size` and on the texts beside.
        batch_size: Most texts answered together.
        device: Where to run; None takes a GPU when there is one.
        dtype: `"auto"` (float32 on a CPU, bfloat16 on a GPU), `"float32"`, `"bfloat16"` or `"float16"`.
        trust_remote_code: Run code that comes with the model.
    """

    model: str | os.PathLike[str]
    _: KW_ONLY
    revision: str | None = None
    template: str = "auto"
    joiner: str | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None
    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    batch_size: int = 16
    device: str | None = None
    dtype: str = "auto"
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Refuses what generates nothing. What the model cannot follow, `open_writer` refuses."""
        make_plain(self)
        if not isinstance(self.model, str) or not self.model:
            raise ValueError(f"`model` is {self.model!r:.60}; give a Hub id, a folder, or a `Writer` of one")
        for name in ("max_new_tokens", "batch_size"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ValueError(f"`{name}` is {number}; it must be at least 1")
        if self.temperature is not None and not self.temperature > 0:
            raise ValueError(f"`temperature` is {self.temperature}; it must be above 0, 0.8 say")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"`top_p` is {self.top_p}; it must be above 0 and at most 1")
        check_choice("dtype", self.dtype, ("auto", *DTYPES))
        if self.device is not None:
            parse_device(self.device)


class OpenWriter:
    """A Writer with its tokenizer in memory; the weights are loaded at the first text. Get one from `open_writer`.

    Attributes:
        writer: How it writes, with nothing left open but `temperature`: None takes the likeliest token.
        reader: What the model is known by, and what it sees.
        tokenizer: The model's.
    """

    def __init__(self, writer: Writer, reader: Reader, file: AnswersFile | None = None) -> None:
        self.writer = writer
        self.reader = reader
        self._source = reader.model or model_folder(writer.model) or os.fspath(writer.model)
        self.tokenizer = load_tokenizer(self._source, reader.revision, writer.trust_remote_code)
        self._file = file
        self._ids: dict[str, list[int]] = {}  # so that a text which was checked is not written again
        self._generate: Generate | None = None

    def text(self, prompt: str | Sequence[Message], prefix: str = "") -> str:
        """What the model goes on from: what a Reader sees, up to the end of the prefix.

        Args:
            prompt: Plain text, a dialogue string, or messages.
            prefix: What the response begins with; `""` leaves all of it to the model.

        Raises:
            ValueError: The text cannot be written in the template.
        """
        kwargs = self.writer.chat_template_kwargs
        begun = replace(conversation(prompt, prefix or _PLACE), chat_template_kwargs=kwargs)
        written: dict[str, Any] = {name: getattr(self.reader, name) for name in ("template", "joiner", "date")}
        if not prefix:
            return templates.render_open(begun, self.tokenizer, **written)
        whole = templates.render(begun, self.tokenizer, **written)
        # What a chat template writes behind the response would end the turn.
        return whole.text[: whole.spans[-1][1]]

    def encode(self, prompt: str | Sequence[Message], prefix: str = "") -> list[int]:
        """Token ids of a prompt and an open response, as `text` writes them.

        Raises:
            ValueError: The text cannot be written in the template, or leaves no room for an answer.
        """
        key = key_of([prompt, prefix])
        if key in self._ids:
            return self._ids[key]
        chat, text = self.reader.template == templates.CHAT, self.text(prompt, prefix)
        ids: list[int] = self.tokenizer(text, add_special_tokens=not chat, verbose=False)["input_ids"]
        if not chat and ids and ids[-1] == self.tokenizer.eos_token_id:
            ids = ids[:-1]  # this tokenizer ends every text with EOS by itself; an open one has no end
        if len(ids) >= self.reader.max_length:
            what = "the prompt and what is written of the response are" if prefix else "the question is"
            length = f"{what} {len(ids)} tokens long, the model's window {self.reader.max_length}"
            raise ValueError(f"{length}; shorten {'them' if prefix else 'it'}, or drop the row")
        self._ids[key] = ids
        return ids

    def check_fits(
        self, row: int, column: str | None, prompt: str | Sequence[Message], prefixes: Sequence[str] = ("",)
    ) -> None:
        """Refuses, before anything is generated, a row of which the template or the window does not take a text.

        Args:
            row: Its number.
            column: The column to blame, if it is one.
            prompt: As for `text`.
            prefixes: As for `text`; all of those that will be gone on with.

        Raises:
            RowError: As said.
        """
        for prefix in prefixes:
            try:
                self.encode(prompt, prefix)
            except ValueError as error:
                raise RowError(row, column, str(error)) from error

    def answer(self, prompts: Sequence[str | Sequence[Message]]) -> list[Answer]:
        """Answers prompts, each distinct one once.

        Returns:
            `[n]` answers.

        Raises:
            ValueError: As `encode`.
        """
        answers = self.write({key_of(prompt): self.encode(prompt) for prompt in prompts})
        return [answers[key_of(prompt)] for prompt in prompts]

    def go_on(self, prompts: Sequence[str], prefixes: Sequence[str]) -> list[Answer]:
        """Goes on with responses; equal texts get equal answers, unless they are sampled.

        Args:
            prompts: `[n]` prompts.
            prefixes: `[n]` beginnings of their responses.

        Returns:
            `[n]` answers, with the space that they begin with, if any; `""` where the model ends at once.

        Raises:
            ValueError: As `encode`.
        """
        keys: list[str] = []
        asked: dict[str, list[int]] = {}
        seen: Counter[tuple[str, str]] = Counter()
        for text in zip(prompts, prefixes, strict=True):
            sampled = self.writer.temperature is not None
            keys.append(key_of([*text, seen[text]] if sampled else [*text]))
            seen[text] += 1
            if keys[-1] not in asked:
                asked[keys[-1]] = self.encode(*text)
        answers = self.write(asked)
        return [answers[key] for key in keys]

    def write(self, asked: Mapping[str, Sequence[int]]) -> dict[str, Answer]:
        """Goes on with token ids; what the file of answers has already is not generated again.

        Args:
            asked: Texts by `encode`, under keys that `key_of` makes, by which the file knows them.

        Returns:
            An answer for each key, maybe beside others that the file holds.
        """
        window, longest = self.reader.max_length, self.writer.max_new_tokens
        assert longest is not None
        rooms = {key: min(longest, window - len(ids)) for key, ids in asked.items()}
        answers = {} if self._file is None else self._file.load()
        # Planned over all texts: a run that goes on has the batches, and so the answers, of one that never stopped.
        planned = plan_batches(asked, rooms, self.writer.batch_size)
        batches = [batch for batch in planned if not answers.keys() >= set(batch)]
        if not batches:
            return answers
        from datasets.utils import tqdm

        if self._generate is None:
            self._generate = load_generator(self.writer, self._source, self.reader, self.tokenizer)
        done = len(asked.keys() & answers.keys())
        with tqdm(total=len(asked), initial=done, desc="Generating answers", unit="answer") as bar:
            for batch in batches:
                # A seed of the batch's own: its draws depend on no other batch.
                seed = random.Random(f"{self.writer.seed}:{batch}").getrandbits(63)
                said = self._generate([asked[key] for key in batch], rooms[batch[0]], seed)
                new = {key: answer for key, answer in zip(batch, said, strict=True) if key not in answers}
                if self._file is not None:
                    self._file.append(new)
                answers.update(new)
                bar.update(len(new))
        return answers

    def discard(self) -> None:
        """Forgets answers that turned out to be of no use, so that they stand in no other run's way."""
        if self._file is not None:
            self._file.discard()

    def facts(self) -> dict[str, Any]:
        """What a provenance says of the model and of how it wrote."""
        reader = self.reader
        facts = {"annotator": reader.name, "template": reader.template, "joiner": reader.joiner, "dtype": reader.dtype}
        sampling = _sampling(self.writer)
        if sampling:
            sampling["sampling_seed"] = sampling.pop("seed")  # a task's own seed is another matter
        return {**facts, "max_new_tokens": self.writer.max_new_tokens, **sampling}


def open_writer(
    model: str | os.PathLike[str] | Writer,
    *,
    max_new_tokens: int,
    temperature: float | None = None,
    top_p: float = 1.0,
    seed: int = 0,
    output: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> OpenWriter:
    """Makes a model ready to write, without loading its weights yet.

    Args:
        model: A Writer, or the Hub id or folder of its model.
        max_new_tokens: What this task takes where the Writer leaves it open, as the next three.
        temperature: See `Writer`; None is greedy.
        top_p: See `Writer`.
        seed: See `Writer`.
        output: Finished answers are kept in `<output>.answers`, by which a stopped run goes on where it was.
        overwrite: Replace an `output` of something else, and the answers of another run.

    Raises:
        ValueError: An argument that is not allowed, or that the model cannot follow.
        OSError: The tokenizer cannot be loaded.
    """
    writer = model if isinstance(model, Writer) else Writer(model)
    task: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
    writer = replace(writer, **{name: value for name, value in task.items() if getattr(writer, name) is None})
    if output is not None:
        check_output(output, reads=[writer.model], overwrite=overwrite)
    reader = describe_model(
        writer.model,
        revision=writer.revision,
        template=writer.template,
        joiner=writer.joiner,
        max_length=_WHOLE_WINDOW,
        dtype=writer.dtype,
        device=writer.device,
        trust_remote_code=writer.trust_remote_code,
    )
    if writer.chat_template_kwargs and reader.template != templates.CHAT:
        raise ValueError(
            f'`chat_template_kwargs` needs `template="chat"`, here it is {reader.template!r}; leave out one of the two'
        )
    file = None if output is None else AnswersFile(Path(output), _identity(writer, reader), overwrite=overwrite)
    return OpenWriter(writer, reader, file)


def _identity(writer: Writer, reader: Reader) -> dict[str, Any]:
    """Everything that the answers depend on, and nothing that only says how fast they come."""
    names = ("model", "revision", "model_sha256", "code_sha256", "tokenizer_sha256", "template", "joiner", "dtype")
    identity = {name: getattr(reader, name) for name in names}
    if reader.template == templates.CHAT:
        identity |= {"chat_template_sha256": reader.chat_template_sha256, "date": reader.date}
        identity["chat_template_kwargs"] = dict(writer.chat_template_kwargs or {})
    identity["max_new_tokens"] = writer.max_new_tokens
    if writer.temperature is not None:
        identity |= {**_sampling(writer), "batch_size": writer.batch_size}
    return identity


def _sampling(writer: Writer) -> dict[str, Any]:
    """How tokens are drawn; nothing of a writer that takes the likeliest."""
    if writer.temperature is None:
        return {}
    return {name: getattr(writer, name) for name in ("temperature", "top_p", "seed")}


# -- Generation ----------------------------------------------------------------------------------------------


def plan_batches(asked: Mapping[str, Sequence[int]], rooms: Mapping[str, int], batch_size: int) -> list[list[str]]:
    """Groups texts of like length, longest first: what does not fit the memory shows at once.

    Only texts with the same room for an answer are together, so that none is cut shorter than it would be alone.
    """
    batches: list[list[str]] = []
    for key in sorted(asked, key=lambda key: (-rooms[key], -len(asked[key]))):
        if not batches or len(batches[-1]) == batch_size or rooms[batches[-1][0]] != rooms[key]:
            batches.append([])
        batches[-1].append(key)
    return batches


def load_generator(writer: Writer, source: str, reader: Reader, tokenizer: PreTrainedTokenizerBase) -> Generate:
    """Loads a model with its head, to go on with batches of open texts as the writer says.

    Raises:
        ValueError: It generates no text, lacks its head, or looks ahead.
    """
    import torch
    from transformers import GenerationConfig

    device = resolve_device(writer.device)
    model = _load_causal(source, reader, writer.trust_remote_code).to(device).eval()
    _check_causal(model, source, device)
    ends = _end_ids(model, tokenizer)
    pad = ends[0] if ends else 0
    sampling: dict[str, Any] = {"do_sample": False}
    if writer.temperature is not None:
        # `top_k` would be 50 if it were not said.
        sampling = {"do_sample": True, "temperature": writer.temperature, "top_p": writer.top_p, "top_k": 0}
    # In place of the model's own settings, which `generate` would fill in: a repetition penalty is no longer greedy.
    model.generation_config = GenerationConfig(
        num_beams=1, eos_token_id=ends or None, pad_token_id=pad, bos_token_id=tokenizer.bos_token_id, **sampling
    )
    stop: dict[str, Any] = {}
    if reader.template == templates.DIALOGUE:
        stop = {"stop_strings": ["\n\nHuman:", "\n\nAssistant:"], "tokenizer": tokenizer}

    def generate(texts: Sequence[Sequence[int]], room: int, seed: int) -> list[Answer]:
        width = max(map(len, texts))
        ids = torch.full((len(texts), width), pad, dtype=torch.long)  # [b, t]
        mask = torch.zeros((len(texts), width), dtype=torch.long)  # [b, t]
        for row, text in enumerate(texts):
            # Padding stands on the left, so that every answer follows its text; positions do not count it.
            ids[row, width - len(text) :] = torch.tensor(text)
            mask[row, width - len(text) :] = 1
        with torch.inference_mode(), torch.random.fork_rng():  # the caller's own random numbers are left alone
            torch.manual_seed(seed)
            whole = model.generate(
                input_ids=ids.to(device), attention_mask=mask.to(device), max_new_tokens=room, **stop
            )  # [b, t + new]
        new = whole[:, width:].tolist()
        return [_read_answer(text, more, ends, tokenizer) for text, more in zip(texts, new, strict=True)]

    return generate


def _read_answer(
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
    marker = _MARKER.search(said)
    if marker is not None:
        said, finished = said[: marker.start()], True
    if not finished:
        said = said.rstrip("\ufffd")  # the limit may cut a character in the middle
    return Answer(said.rstrip(), len(ids), finished)


def _load_causal(source: str, reader: Reader, trust_remote_code: bool) -> Any:
    """Loads the weights, refusing what generates no text or lacks its head."""
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    config = load_config(source, reader.revision, trust_remote_code)
    own = getattr(config, "auto_map", None) or {}
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and "AutoModelForCausalLM" not in own:
        kind = f"{source!r} is a model of type {config.model_type!r}"
        raise ValueError(f"{kind}, which generates no text; give a causal language model")
    model, missing = load_weights(
        AutoModelForCausalLM, source, reader.revision, config, reader.dtype, trust_remote_code
    )
    if missing:
        shown = ", ".join(f"`{name}`" for name in missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise ValueError(
            f"{source!r} lacks the weights {shown} that a language model needs to generate: it can read, not answer; "
            "give a checkpoint with its language-model head (saved from an `...ForCausalLM` class)"
        )
    return model


def _check_causal(model: Any, source: str, device: str) -> None:
    """Refuses an encoder: its masked-language-model head loads as if it generated."""
    import torch

    ids = torch.arange(8, device=device)[None] % model.config.get_text_config().vocab_size
    other = ids.clone()
    other[0, -1] = 0
    with torch.inference_mode():
        before, after = (model(input_ids=x, use_cache=False).logits[0, :-1].float() for x in (ids, other))  # [7, vocab]
    if (before - after).abs().max() > 0.05 * before.std():
        raise ValueError(
            f"{source!r} looks ahead: a later token changes what it says of earlier ones, as in an encoder; give a "
            "causal language model"
        )


def _end_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends an answer, by the model or by the tokenizer; the first also serves as padding."""
    given = model.generation_config.eos_token_id
    ends = given if isinstance(given, list) else [given]
    return list(dict.fromkeys(e for e in [tokenizer.eos_token_id, *ends] if e is not None))
