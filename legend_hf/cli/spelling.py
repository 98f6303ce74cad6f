"""What a message of the library names as Python, as it is typed in a shell.

In: a message, and what finds the words of commands. Out: the message with `--overwrite` where it says
`overwrite=True`. All of it follows from the commands' signatures: this file knows no message and no option.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Callable, Mapping
from typing import Any

Find = Callable[[str], Any]
"""The word that a parameter is in a command; None if there is none."""


def spelled(said: str, own: Find, calls: Mapping[str, tuple[str, Find]]) -> str:
    """Spells every argument and call that a message has in backticks as a shell has it, where it has it.

    Args:
        said: The message.
        own: Finds the words of the command that it comes from.
        calls: For each function the command that calls it, `""` for that one, and what finds the words of that:
            `export_for(rows, messages=True)` is `legend-hf export --messages`.
    """
    return re.sub(r"`([^`]+)`", lambda code: f"`{_typed(code[1], own, calls) or code[1]}`", said)


def _typed(code: str, own: Find, calls: Mapping[str, tuple[str, Find]]) -> str | None:
    """What stands in a shell for a piece of Python; None where there is nothing."""
    word = own(code)
    if word is not None:
        return str(word.shown)
    call = _read(code)
    named = call.func.id if call is not None and isinstance(call.func, ast.Name) else ""
    if call is None or (named and named not in calls):
        return None
    command, find = calls[named] if named else ("", own)
    options = [_option(find, one) for one in call.keywords]
    if None in options or not (command or options):
        return None
    return " ".join([*(["legend-hf", command] if command else []), *map(str, options)])


def _read(code: str) -> ast.Call | None:
    """A call, `f(rows, name=value)`, or what could stand in one, `name=value`, where the value may be missing."""
    for tried in (code, f"_f({code})", f"_f({code}...)"):
        try:
            read = ast.parse(tried, mode="eval").body
        except SyntaxError:
            continue
        if isinstance(read, ast.Call) and isinstance(read.func, ast.Name):
            if read.func.id == "_f":
                read.func = ast.Constant(None)
                return read if not read.args else None
            return read
    return None


def _option(find: Find, given: ast.keyword) -> str | None:
    """One option as it is typed; None if the command has none of that name."""
    word = find(given.arg or "")
    if word is None or word.argument:
        return None
    value: Any
    try:
        value = ast.literal_eval(given.value)
    except ValueError:  # the message leaves it to the reader
        value = ...
    if value is True:
        return word.spelled
    if value is False or value is None:
        without = find(f"no_{word.name}")
        return without.spelled if without is not None else word.off
    if value is ...:
        what = given.value.id if isinstance(given.value, ast.Name) else word.name
        return f"{word.spelled} {what.upper()}"
    several = value if isinstance(value, list | tuple) else [value]
    return " ".join(f"{word.spelled} {shlex.quote(str(one))}" for one in several)
