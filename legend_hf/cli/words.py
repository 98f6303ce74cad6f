"""A parameter becomes words of a command line: its type, its default, and the first sentence that is said of it.

In: parameters of functions and their docstrings. Out: what typer makes options of, and what the functions get of what
was typed. This file knows no command.

A parameter that only names can give is an option, one that a place can give is an argument; `snake_case` becomes
`--snake-case`. The help is the first sentence of the parameter's entry in `Args:`; where its words make no sense in a
shell, the body's docstring has others under `Options:`. A parameter whose class one word makes, such as `Rows`, is
flattened: the word has the parameter's own name, and the class's other fields are options beside it.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer

_OPPOSITES = {"private": "public"}


@dataclass(frozen=True)
class Word:
    """One word of a command line: an argument or an option.

    Attributes:
        name: Of the option, as a parameter.
        kind: Its type, as the function says.
        default: Its default; `MISSING` where it must be given.
        says: Its help.
        argument: Whether its place says what it is.
    """

    name: str
    kind: Any
    default: Any
    says: str
    argument: bool = False

    @property
    def spelled(self) -> str:
        """As it is typed."""
        return self.name if self.argument else f"--{self.name.replace('_', '-')}"

    @property
    def shown(self) -> str:
        """As a message has it: `--output`, or `DATASET` for what has no name where it is typed."""
        return self.name.upper() if self.argument else self.spelled

    @property
    def off(self) -> str | None:
        """What is typed for False, where the default is True."""
        if self.default is not True:
            return None
        return f"--{_OPPOSITES.get(self.name) or f'no-{self.spelled[2:]}'}"

    @property
    def looked_for(self) -> bool:
        """Whether it names something that is looked for here first, and then on the Hub."""
        return "PathLike" in str(self.kind)

    def parameter(self) -> inspect.Parameter:
        """What typer makes of it."""
        kind, given = _typed(self.kind), self.default
        plain = typer.Argument if self.argument else partial(typer.Option, *self._names())
        says = self.says.removesuffix(".")
        if get_origin(kind) is list and not self.argument:
            says += "; can be given again"
        if any(get_origin(one) is Mapping for one in _members(self.kind)):
            says = f"{says.partition(';')[0]}; an object, as JSON{', or a word' if str in _members(self.kind) else ''}"
        if given is MISSING:
            given = inspect.Parameter.empty
        elif get_origin(kind) is list:
            kind, given = kind | None, list(given) if given else None
        elif given is None:
            kind = kind | None
        said = self.kind if get_origin(self.kind) is Annotated else Annotated[kind, plain(help=f"{says}.")]
        return inspect.Parameter(self.name, inspect.Parameter.KEYWORD_ONLY, default=given, annotation=said)

    def value(self, given: Any) -> Any:
        """What the function gets of what was typed."""
        members = {get_origin(kind) or kind for kind in _members(self.kind)}
        if given is None or not isinstance(given, str):
            return self.default if given is None and self.default is not MISSING else given
        if Mapping in members and (str not in members or given.lstrip().startswith("{")):
            try:
                read = json.loads(given)
            except ValueError:
                read = None
            if not isinstance(read, dict):
                raise ValueError(f"`{self.spelled}` is {given!r}; give an object as JSON, such as '{{\"key\": true}}'")
            return read
        return int(given) if {int, str} <= members and re.fullmatch(r"-?\d+", given) else given

    def _names(self) -> list[str]:
        return [self.spelled if self.off is None else f"{self.spelled}/{self.off}"]


@dataclass(frozen=True)
class Part:
    """A parameter of a body or a function, as far as it is typed.

    Attributes:
        name: Of the parameter.
        makes: The class that its words make; None where it is the word itself.
        words: By the fields of the class.
    """

    name: str
    makes: Any
    words: Mapping[str, Word]

    def filled(self, values: Mapping[str, Any]) -> Any:
        """The value, or the object of several; None where the word that makes it was left out."""
        given = {field: values[word.name] for field, word in self.words.items()}
        if self.makes is None:
            return given[self.name]
        word = next((f.name for f in fields(self.makes) if f.default is MISSING), None)
        return None if word is not None and given[word] is None else self.makes(**given)


def function_of(name: str) -> Any:
    """A function or class by its name, imported when it is needed."""
    module, _, function = name.rpartition(".")
    of_class = module.rpartition(".")[2].istitle()
    return getattr(function_of(module) if of_class else import_module(module), function)


def sentences(what: Any) -> dict[str, str]:
    """The first sentence on each parameter, without the marks of code: from `Args:`, `Attributes:` or `Options:`."""
    found: dict[str, str] = {}
    for one in reversed(inspect.getmro(what)) if inspect.isclass(what) else [what]:
        entries = re.search(
            r"^(?:Args|Attributes|Options):\n((?: +.*\n?|\n)+)", inspect.cleandoc(one.__doc__ or ""), re.M
        )
        for entry in re.finditer(r"^    (\w+): (.*(?:\n {5,}.*)*)", entries[1] if entries else "", re.M):
            said = " ".join(entry[2].split())
            sentence = re.match(r".*?[.](?=\s+[A-Z`\"]|$)", said)
            plain = re.sub(r"[`\"]", "", sentence[0] if sentence else said)
            found[entry[1]] = re.sub(r"\bNone (?=[a-z]+s\b)", "left out, it ", plain)
    return found


def _members(kind: Any) -> tuple[Any, ...]:
    """The members of a union but None; a kind that is none is its own only one."""
    if get_origin(kind) is Annotated:
        return _members(get_args(kind)[0])
    several = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    return tuple(one for one in several if one is not type(None))


def one_word(kind: Any) -> Any:
    """The class that a word makes, if the parameter's kind is or allows one: all its fields but one have defaults."""
    members = _members(kind)
    for one in members:
        required = [f.default for f in fields(one)].count(MISSING) if is_dataclass(one) else 2
        if required == 1 or (required == 0 and len(members) == 1):
            return one
    return None


def _typed(kind: Any) -> Any:
    """The type that typer reads a word as."""
    members = _members(kind)
    for one in members:
        if get_origin(one) in (list, Sequence):
            return list[_typed(get_args(one)[0])]  # type: ignore[misc]
    origins = {get_origin(one) or one for one in members}
    for plain in (bool, float, Path) if str not in origins else ():
        if plain in origins:
            return plain
    if str not in origins and int in origins:
        return int
    if origins & {str, os.PathLike, Mapping, Literal}:
        return str
    raise TypeError(f"no word of a command line gives {kind}; leave the parameter out by `without`")
