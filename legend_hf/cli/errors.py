"""A user's errors become a line and exit code 2; those of the library itself keep their traceback.

In: what a command does. Out: what went wrong, in words. This file knows no command.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import typer

from legend_hf.cli.screen import say

# Errors of other libraries that are neither ValueError nor OSError, and say that a file, the Hub or the memory fails.
_FOREIGN = {
    "safetensors.SafetensorError",
    "safetensors_rust.SafetensorError",
    "torch.OutOfMemoryError",
    "sqlite3.Error",
    "jinja2.TemplateError",
    "httpx.HTTPError",
    "httpx2.HTTPError",
    "yaml.YAMLError",
}
Spell = Callable[[str], str]


@contextmanager
def user_errors(names: Iterable[Any], spell: Spell, *, kept: Path | None = None) -> Iterator[None]:
    """Turns the errors that a user can mend into one line and exit code 2; others keep their traceback.

    Args:
        names: What the user named that is looked for here first, and then on the Hub.
        spell: How arguments that a message names are typed.
        kept: The output beside which what was generated is kept, so that a stopped run goes on.
    """
    said_meanwhile = _Said(spell)
    logger = logging.getLogger("legend_hf")
    logger.addHandler(said_meanwhile)
    try:
        yield
    except BrokenPipeError:
        raise  # whoever read the output has enough, which is no error
    except Exception as error:
        if not _is_users(error):
            raise
        said = " ".join(" ".join([str(error), *getattr(error, "__notes__", [])]).split()) or type(error).__name__
        say(f"Error: {_looked_for(names, error, said)}{spell(said)}", err=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as stop:
        say("Stopped.", err=True)
        if kept is not None and kept.with_name(f"{kept.name}.answers").exists():
            say(f"What was generated is kept beside {kept}: run the same again to go on.", err=True)
        raise typer.Exit(130) from stop
    finally:
        logger.removeHandler(said_meanwhile)


class _Said(logging.Handler):
    """Shows the library's warnings as they are without any handler, on stderr."""

    def __init__(self, spell: Spell) -> None:
        super().__init__(logging.WARNING)
        self._spell = spell

    def emit(self, record: logging.LogRecord) -> None:
        say(self._spell(record.getMessage()), err=True)


def _is_users(error: Exception) -> bool:
    """Whether an error says what a user can mend: of files, names, the network or too little memory."""
    if isinstance(error, ValueError | OSError | ImportError | MemoryError):
        return True
    # The Rust of `tokenizers` raises the plain class for files that it cannot read.
    kinds = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__}
    return type(error) is Exception or not kinds.isdisjoint(_FOREIGN)


def _looked_for(names: Iterable[Any], error: Exception, said: str) -> str:
    """Where the Hub does not know a name that may be a mistyped folder: that there is none. Else nothing."""
    from huggingface_hub.errors import HFValidationError

    if not isinstance(error, OSError | HFValidationError) or re.search("there is no (?:file or )?folder", said):
        return ""
    for name in chain.from_iterable([one] if isinstance(one, str) else one or () for one in names):
        local = "/" not in name or name.startswith((".", "/", "~"))
        if local and not os.path.exists(name) and re.search(rf"(?<![\w/-]){re.escape(name)}(?![\w-])", said):
            return f"there is no file or folder {name!r} here, and the Hub says: "
    return ""
