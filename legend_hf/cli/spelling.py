"""What a message of the library names as Python, as it is typed in a shell.

In: a message, the command that it comes from, and all commands. Out: pairs of spellings, such as `overwrite=True` and
`--overwrite`. All of it follows from the commands' signatures: this file knows no message and no option.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Mapping
from typing import Any, Protocol


class Command(Protocol):
    """What is asked of a command."""

    @property
    def name(self) -> str:
        """As it is typed."""

    @property
    def functions(self) -> tuple[str, ...]:
        """What it calls, as `package.module.name`."""

    @property
    def words(self) -> Mapping[str, Any]:
        """Its arguments and options."""

    def option_of(self, parameter: str) -> Any:
        """The option that a parameter of its functions is; None if it has none."""


def spelled(said: str, door: Command, doors: Mapping[str, Command]) -> list[str]:
    """Says for each argument or call that a message has in backticks what it is in a shell, if that is not plain.

    Args:
        said: The message.
        door: The command that it comes from.
        doors: All commands, for calls of their functions: `export_for(rows, messages=True)` is
            `legend-hf export --messages`.
    """
    typed = {code: _typed(code, door, doors) for code in re.findall(r"`([^`]+)`", said)}
    return [f"`{code}` is `{option}`" for code, option in typed.items() if option]


def _typed(code: str, door: Command, doors: Mapping[str, Command]) -> str | None:
    """What stands in a shell for a piece of Python; None where that is plain, or there is nothing."""
    word = door.option_of(code)
    if word is not None:
        return None if word.argument or word.spelled == f"--{code}" else word.spelled
    call = _read(code)
    if call is None:
        return None
    named = call.func.id if isinstance(call.func, ast.Name) else ""
    calls = [one for one in (door, *doors.values()) if named in {f.rpartition(".")[2] for f in one.functions}]
    if named and not calls:
        return None
    target = calls[0] if named else door
    options = [_option(target, one) for one in call.keywords]
    if None in options or (target is door and not options):
        return None
    before = [] if target is door else ["legend-hf", target.name]
    return " ".join([*before, *map(str, options)])


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


def _option(door: Command, given: ast.keyword) -> str | None:
    """One option as it is typed; None if the command has none of that name."""
    word = door.option_of(given.arg or "")
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
        without = door.words.get(f"no_{word.name}")
        on = f"--no-{word.spelled[2:]}" if word.default is True else None
        return without.spelled if without is not None else on
    if value is ...:
        what = given.value.id if isinstance(given.value, ast.Name) else word.name
        return f"{word.spelled} {what.upper()}"
    several = value if isinstance(value, list | tuple) else [value]
    return " ".join(f"{word.spelled} {shlex.quote(str(one))}" for one in several)
