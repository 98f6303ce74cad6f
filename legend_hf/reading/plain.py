"""What somebody gave becomes plain data: it pickles, goes into JSON, and equals what was meant.

In: paths, NumPy's numbers, enumerations, devices, alone or in lists and mappings. Out: str, int, float, bool. So a
layer out of `np.argmax` or a folder as a `Path` makes the same Reader, the same key of a store and the same fingerprint
as the number or the name itself, and what is equal has one key and one digest. A choice that nobody has is refused in
one way. This file does not know what the values are for.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import fields
from enum import Enum
from typing import Any


def plain(value: Any) -> Any:
    """A value as JSON has it; what is of no kind known here stays as it is."""
    if isinstance(value, Enum):
        return plain(value.value)
    numpy = sys.modules.get("numpy")  # without it there are no values of its kinds
    if numpy is not None and isinstance(value, numpy.generic):
        return value.item()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(plain, value)) if type(value) in (list, tuple) else value
    if type(value).__module__ == "torch" and type(value).__name__ == "device":  # without importing torch
        return str(value)
    return value


def make_plain(instance: Any) -> None:
    """Makes every field of a frozen dataclass plain; for its `__post_init__`, before anything is checked."""
    for f in fields(instance):
        object.__setattr__(instance, f.name, plain(getattr(instance, f.name)))


def key_of(value: Any) -> str:
    """What makes two values of rows the same, prompts say, as one text; what JSON does not have, in Python's words."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)


def digest_of(value: Any) -> str:
    """The sha256 of plain data: the same for the same data, in whatever order its keys come."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def check_choice(name: str, given: Any, allowed: Iterable[str | None], *, otherwise: str = "") -> None:
    """Refuses what is none of the values that an argument may have.

    Args:
        name: The argument, as its caller calls it.
        given: What was given for it.
        allowed: The values.
        otherwise: What else may stand there, or what one of them does, for the message.

    Raises:
        ValueError: It is none of them.
    """
    values = tuple(allowed)
    if not isinstance(given, str | None) or given not in values:
        words = [repr(value) for value in values if value is not None]
        said = [", ".join(words), *(["or None"] if None in values else [])]
        raise ValueError(f"`{name}` is {given!r}; allowed are {', '.join(said)}{otherwise}")


def check_on_error(on_error: str) -> None:
    """Refuses anything but `"raise"` and `"skip"`, which all that read rows do with a bad one."""
    check_choice("on_error", on_error, ("raise", "skip"))
