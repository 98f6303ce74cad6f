"""Questions become answers of a language model, greedily, and a stopped run goes on where it was.

In: open texts as token ids, and a causal language model. Out: one `Answer` a question, kept in a file as they are
finished. This file knows no pairs, no refusals and no hidden states.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from legend_hf.hub import outputs
from legend_hf.reading import templates
from legend_hf.reading.formats import Conversation
from legend_hf.reading.plain import plain
from legend_hf.reading.reader import Reader, loading_of, resolve_device

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_ANSWERS = "legend_hf answers, format 1"  # first words of a file of finished answers
_LOOKED_AT = 1600  # characters in which a loop is looked for, so of up to 400
MARKER = re.compile(r"(?:\A\s*|\n\n)(?:Human|Assistant):")


@dataclass(frozen=True)
class Answer:
    """What the annotator said to one question.

    Attributes:
        response: The text without whitespace around it; may be empty.
        tokens: How many tokens it was generated as.
        finished: Whether the annotator ended it; False when the limit did.
    """

    response: str
    tokens: int
    finished: bool

    @property
    def loops(self) -> bool:
        """Whether it ends in the same words over and over, numbers not compared: four times, or 48 characters long."""
        text = re.sub(r"\d+", "0", self.response.rstrip())[-_LOOKED_AT:]
        periods = range(1, len(text) // 4 + 1)
        return any(len(text) >= p + (w := max(3 * p, 48)) and text[-w:] == text[-w - p : -p] for p in periods)


def open_text(
    question: Conversation,
    tokenizer: PreTrainedTokenizerBase,
    reader: Reader,
    chat_template_kwargs: Mapping[str, Any] | None,
) -> str:
    """A question as a Reader sees it, up to where the response begins."""
    asked = replace(question, chat_template_kwargs=chat_template_kwargs)
    return templates.render_open(asked, tokenizer, template=reader.template, joiner=reader.joiner, date=reader.date)


def open_ids(text: str, tokenizer: PreTrainedTokenizerBase, reader: Reader) -> list[int]:
    """Token ids of an open text, which a tokenizer must not end."""
    chat = reader.template == templates.CHAT
    ids: list[int] = tokenizer(text, add_special_tokens=not chat, verbose=False)["input_ids"]
    if not chat and ids and ids[-1] == tokenizer.eos_token_id:
        ids = ids[:-1]  # this tokenizer ends every text with EOS by itself; an open one has no end
    return ids


def check_leave_out(given: Sequence[str], allowed: Iterable[str]) -> None:
    """Refuses words that name nothing to leave out."""
    names = list(allowed)
    if isinstance(given, str) or not set(given) <= set(names):
        raise ValueError(f"`leave_out` is {given!r}; give a list of some of {', '.join(map(repr, names))}, or none")


# -- Generation ----------------------------------------------------------------------------------------------


def plan_batches(asked: Mapping[str, Sequence[int]], rooms: Mapping[str, int], batch_size: int) -> list[list[str]]:
    """Groups questions of like length, longest first: what does not fit the memory shows at once.

    Only questions with the same room for an answer are together, so that none is cut shorter than it would be alone.
    """
    batches: list[list[str]] = []
    for key in sorted(asked, key=lambda key: (-rooms[key], -len(asked[key]))):
        if not batches or len(batches[-1]) == batch_size or rooms[batches[-1][0]] != rooms[key]:
            batches.append([])
        batches[-1].append(key)
    return batches


def tokenizer_of(source: str, reader: Reader, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """Loads the annotator's tokenizer."""
    from transformers import AutoTokenizer

    with loading_of("tokenizer", source):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source, revision=reader.revision, trust_remote_code=trust_remote_code
        )
    return tokenizer


def annotator_of(
    source: str, reader: Reader, tokenizer: PreTrainedTokenizerBase, device: str | None, trust_remote_code: bool
) -> Callable[[Sequence[Sequence[int]], int], list[Answer]]:
    """Loads the annotator; what is returned answers a batch of open texts (ids) in up to so many new tokens."""
    import torch
    from transformers import GenerationConfig

    device = resolve_device(device)
    model = load_annotator(source, reader, trust_remote_code).to(device).eval()
    check_causal(model, source, device)
    ends = end_ids(model, tokenizer)
    pad = ends[0] if ends else 0
    # In place of the model's own settings, which `generate` would fill in: a repetition penalty is no longer greedy.
    model.generation_config = GenerationConfig(
        do_sample=False, num_beams=1, eos_token_id=ends or None, pad_token_id=pad, bos_token_id=tokenizer.bos_token_id
    )
    stop: dict[str, Any] = {}
    if reader.template == templates.DIALOGUE:
        stop = {"stop_strings": ["\n\nHuman:", "\n\nAssistant:"], "tokenizer": tokenizer}

    def answer(texts: Sequence[Sequence[int]], room: int) -> list[Answer]:
        width = max(map(len, texts))
        ids = torch.full((len(texts), width), pad, dtype=torch.long)  # [b, t]
        mask = torch.zeros((len(texts), width), dtype=torch.long)  # [b, t]
        for row, text in enumerate(texts):
            # Padding stands on the left, so that every answer follows its question; positions do not count it.
            ids[row, width - len(text) :] = torch.tensor(text)
            mask[row, width - len(text) :] = 1
        with torch.inference_mode():
            whole = model.generate(
                input_ids=ids.to(device), attention_mask=mask.to(device), max_new_tokens=room, **stop
            )  # [b, t + new]
        return [_read_answer(new, ends, tokenizer) for new in whole[:, width:].tolist()]

    return answer


def _read_answer(new: Sequence[int], ends: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> Answer:
    """Reads one row of new tokens: up to the first EOS or the next turn."""
    end = next((i for i, token in enumerate(new) if token in ends), None)
    ids = new[:end]
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    finished = end is not None
    marker = MARKER.search(text)
    if marker is not None:
        text, finished = text[: marker.start()], True
    if not finished:
        text = text.rstrip("\ufffd")  # the limit may cut a character in the middle
    return Answer(text.strip(), len(ids), finished)


def load_annotator(source: str, reader: Reader, trust_remote_code: bool) -> Any:
    """Loads the weights, refusing what generates no text or lacks its head."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    with loading_of("config", source):
        config = AutoConfig.from_pretrained(source, revision=reader.revision, trust_remote_code=trust_remote_code)
    own = getattr(config, "auto_map", None) or {}
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and "AutoModelForCausalLM" not in own:
        kind = f"{source!r} is a model of type {config.model_type!r}"
        raise ValueError(f"{kind}, which generates no text; give a causal language model")
    with loading_of("model", source):
        model, loading = AutoModelForCausalLM.from_pretrained(
            source,
            revision=reader.revision,
            config=config,
            dtype=getattr(torch, reader.dtype),
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    # transformers fills in what a checkpoint lacks with random numbers, and only warns: random answers would follow.
    missing = sorted(loading["missing_keys"])
    if missing:
        shown = ", ".join(f"`{name}`" for name in missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise ValueError(
            f"{source!r} lacks the weights {shown} that a language model needs to generate: it can read, not answer; "
            "give a checkpoint with its language-model head (saved from an `...ForCausalLM` class)"
        )
    return model


def check_causal(model: Any, source: str, device: str) -> None:
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


def end_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends an answer, by the model or by the tokenizer; the first also serves as padding."""
    given = model.generation_config.eos_token_id
    ends = given if isinstance(given, list) else [given]
    return list(dict.fromkeys(e for e in [tokenizer.eos_token_id, *ends] if e is not None))


# -- Finished answers ----------------------------------------------------------------------------------------


def run_identity(reader: Reader, max_new_tokens: int, chat_template_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Everything that the answers depend on, and nothing that only says how fast they come."""
    names = ("model", "revision", "model_sha256", "code_sha256", "tokenizer_sha256", "template", "joiner", "dtype")
    identity = {name: getattr(reader, name) for name in names}
    if reader.template == templates.CHAT:
        identity |= {"chat_template_sha256": reader.chat_template_sha256, "date": reader.date}
        identity["chat_template_kwargs"] = dict(chat_template_kwargs or {})
    return {**identity, "max_new_tokens": max_new_tokens}


def answers_path(output: str | os.PathLike[str]) -> Path:
    """Where the answers stand that a run keeps beside its output."""
    return Path(output).with_name(Path(output).name + ".answers")


def check_output(
    output: str | os.PathLike[str],
    *,
    reads: Iterable[str | os.PathLike[str] | None] = (),
    overwrite: bool = False,
) -> None:
    """Refuses, before any work, an output that cannot be written, or that no run of this library made.

    Args:
        output: File for the rows, `.jsonl`; the answers stand beside it.
        reads: Files and folders that are read for it.
        overwrite: Replace what is there, the answers of another run too.

    Raises:
        ValueError: The place is taken, or its name has another ending.
        OSError: It cannot be written.
    """
    made = answers_path(output)
    if Path(output).is_file() and not made.is_file() and not overwrite:
        raise ValueError(
            f"`{output}` exists, and `{made.name}` does not, which a run keeps beside it: something else made it; give "
            "another `output`, or pass `overwrite=True` to replace it"
        )
    outputs.check_file(output, suffix=".jsonl", reads=reads, overwrite=True)
    outputs.check_file(made, reads=reads, overwrite=True)


class AnswersFile:
    """Finished answers as JSON lines, below a header that says whose they are; begun with the first answer."""

    def __init__(self, output: Path, identity: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self.output = output
        self.path = answers_path(output)
        self.identity = plain(identity)
        self.overwrite = overwrite
        self._begun = False  # whether the file is one that new answers belong below

    def load(self) -> dict[str, Answer]:
        """Answers by the key of their question.

        A line that is no answer, as a kill or a lost disk leaves it, is an answer that is not known: it is generated
        again. A file without any answer is no run that could go on, and is in nobody's way.
        """
        content = self.path.read_bytes() if self.path.exists() else b""
        begun = json.dumps({"file": _ANSWERS})[:-1].encode()  # what a kill at the first write leaves at least a part of
        if not content.strip(b"\0\r\n ") or (b"\n" not in content and content[: len(begun)] == begun[: len(content)]):
            return {}
        header, *lines = content.split(b"\n")
        torn = lines.pop() if lines else b""
        found = [_read(line) for line in lines]
        answers: dict[str, Answer] = {}
        for entry in filter(None, found):
            answers.setdefault(*entry)
        if not self._is_ours(header, bool(answers)):
            self.path.unlink()
            return {}
        if torn or None in found:
            lost = found.count(None) + bool(torn)
            logger.warning("%d lines of %s are no whole answers; what stood there is generated again", lost, self.path)
            outputs.write_whole(self.path, self._header() + "".join(map(_line, answers, answers.values())))
        self._begun = True
        return answers

    def append(self, answers: Mapping[str, Answer]) -> None:
        """Adds answers, on the disk when this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        begun = self._begun and self.path.exists()
        self._begun = True
        with open(self.path, "ab" if begun else "wb") as file:
            file.write(("" if begun else self._header()).encode())
            file.write("".join(map(_line, answers, answers.values())).encode())
            file.flush()
            os.fsync(file.fileno())

    def discard(self) -> None:
        """Forgets answers that turned out to be of no use, so that they stand in no other run's way."""
        self.path.unlink(missing_ok=True)

    def _header(self) -> str:
        return json.dumps({"file": _ANSWERS, "run": self.identity}) + "\n"

    def _is_ours(self, header: bytes, answered: bool) -> bool:
        """Whether a file is this run's, or another's that may go: one without answers, or by `overwrite`."""
        try:
            found = json.loads(header)
            run = found["run"] if found["file"] == _ANSWERS else None
        except (ValueError, KeyError, TypeError):
            run = None
        if not isinstance(run, dict):
            raise ValueError(
                f"`{self.path}` is no file of answers ({_ANSWERS!r}): it begins with {header[:60]!r}; give another "
                "`output`"
            )
        ours = json.loads(json.dumps(self.identity))
        differences = [
            f"`{name}` is {run.get(name)!r} there and {ours.get(name)!r} here"
            for name in {**ours, **run}
            if run.get(name) != ours.get(name)
        ]
        if differences and answered and not self.overwrite:
            raise ValueError(
                f"`{self.path}` holds the answers of another run: {'; '.join(differences)}; run with the same to go "
                "on, or give another `output`, or pass `overwrite=True` to begin anew"
            )
        return not differences


def _read(line: bytes) -> tuple[str, Answer] | None:
    """A question's key and its answer; None for a line that is none."""
    try:
        entry = json.loads(line)
        answer = Answer(**{name: value for name, value in entry.items() if name != "prompt"})
        whole = isinstance(answer.response, str) and type(answer.tokens) is int and isinstance(answer.finished, bool)
        return (key_of(entry["prompt"]), answer) if whole else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _line(key: str, answer: Answer) -> str:
    return json.dumps({"prompt": json.loads(key), **asdict(answer)}, ensure_ascii=False) + "\n"


def key_of(value: Any) -> str:
    """What makes two prompts, or two responses, the same."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
