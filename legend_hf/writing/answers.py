"""What a model said, and the file that keeps it, so that a stopped run goes on where it was.

In: texts and how they came to an end, under keys of the caller's. Out: JSON lines below a header that says whose they
are, and the same answers out of them. This file knows no models and no tokens.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from legend_hf.hub import outputs
from legend_hf.reading.plain import key_of, plain

logger = logging.getLogger(__name__)

_ANSWERS = "legend_hf answers, format 1"  # first words of a file of finished answers
_LOOKED_AT = 1600  # characters in which a loop is looked for, so of up to 400


@dataclass(frozen=True)
class Answer:
    """What a model said to one text.

    Attributes:
        response: The text with the space that it begins with, if any; may be empty.
        tokens: How many tokens it was generated as.
        finished: Whether the model ended it; False when the limit did.
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


def check_leave_out(given: Sequence[str], allowed: Iterable[str]) -> None:
    """Refuses words that name nothing to leave out."""
    names = list(allowed)
    if isinstance(given, str) or not set(given) <= set(names):
        raise ValueError(f"`leave_out` is {given!r}; give a list of some of {', '.join(map(repr, names))}, or none")


def counted(counts: Mapping[str, int], words: Mapping[str, str]) -> str:
    """Counts in words, those of nothing left out."""
    return ", ".join(f"{counts[name]} {what}" for name, what in words.items() if counts.get(name))


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
