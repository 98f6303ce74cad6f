"""A command is made from its functions: options, defaults, types and help are those of signatures and docstrings.

In: the functions that a command calls, by name, and a body that says what a shell adds to them: which words are loaded,
what is saved and printed. Out: a command for typer. Nothing is imported for a command before it is asked for. This file
knows no command and no function.

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cached_property, partial
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperGroup

from legend_hf.cli.errors import Say, say, user_errors
from legend_hf.cli.spelling import spelled

COMMANDS: dict[str, Door] = {}
"""Every command by its name, in the order of the help. `store show` is one of the group `store`."""
GROUPS: dict[str, str] = {}
"""What a group of commands is for."""
Call = partial[Any]
"""A function with the options that were given for it."""
# The revision of a model; `--revision` is that of a direction everywhere.
RENAMED = {"revision": "model_revision"}


def command(
    *functions: str,
    under: str,
    name: str | None = None,
    without: Sequence[str] = (),
    renamed: Mapping[str, str] = RENAMED,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a command of a body, which is given each function with its options, and then its own parameters.

    Args:
        functions: What the command calls, as `stage.module.name` of this package; a class is called, too.
        under: Heading in the help of all commands.
        name: Of the command; the body's, where None.
        without: Parameters of the functions that are no options here.
        renamed: Parameters of the functions whose option has another name.
    """

    def made(body: Callable[..., None]) -> Callable[..., None]:
        known = name or body.__name__
        whole = tuple(f"legend_hf.{function}" for function in functions)
        COMMANDS[known] = Door(known, body, whole, under, tuple(without), renamed)
        return body

    return made


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
    def looked_for(self) -> bool:
        """Whether it names something that is looked for here first, and then on the Hub."""
        return any(get_origin(kind) is os.PathLike for kind in _members(self.kind))

    def parameter(self) -> inspect.Parameter:
        """What typer makes of it."""
        kind, given = _typed(self.kind), self.default
        plain = typer.Argument if self.argument else partial(typer.Option, *self._names())
        says = self.says.removesuffix(".")
        if get_origin(kind) is list and not self.argument:
            says += "; can be given again"
        if any(get_origin(one) is Mapping for one in _members(self.kind)):
            says = f"{says.partition(';')[0]}; an object, as JSON"
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
        if Mapping in members:
            try:
                read = json.loads(given)
            except ValueError:
                read = None
            if not isinstance(read, dict):
                raise ValueError(f"`{self.spelled}` is {given!r}; give an object as JSON, such as '{{\"key\": true}}'")
            return read
        return int(given) if {int, str} <= members and re.fullmatch(r"-?\d+", given) else given

    def _names(self) -> list[str]:
        if _typed(self.kind) is not bool:
            return [self.spelled]
        return [f"{self.spelled}/--no-{self.spelled[2:]}" if self.default is True else self.spelled]


@dataclass(frozen=True)
class Door:
    """One command. Attributes are those of `command`."""

    name: str
    body: Callable[..., None]
    functions: tuple[str, ...]
    under: str
    without: tuple[str, ...]
    renamed: Mapping[str, str]

    @property
    def says(self) -> str:
        """What the command does: what its docstring says before the example."""
        return inspect.cleandoc(self.body.__doc__ or "").partition("\n\nExample: ")[0]

    @property
    def example(self) -> str:
        """A line to try, without `legend-hf`."""
        behind = inspect.cleandoc(self.body.__doc__ or "").partition("\n\nExample: ")[2]
        return " ".join(behind.partition("\n\n")[0].split())

    @cached_property
    def words(self) -> dict[str, Word]:
        """Every word that can be typed: arguments, what must be given, then the functions' options, then the rest."""
        own = self._own_words
        called = [
            word
            for function in self.functions
            for parameter in self._offered(function)
            for word in self._words_of(parameter, function)
        ]
        ordered = sorted(
            [*(word for word in own if word.argument or word.default is MISSING), *called, *own],
            key=lambda word: (not word.argument, word.default is not MISSING),
        )
        names: dict[str, Word] = {}
        for word in ordered:
            names.setdefault(word.name, word)
        return names

    def option_of(self, parameter: str) -> Word | None:
        """The option that a parameter of the command's functions is, as a message names it."""
        return self.words.get(self.renamed.get(parameter, parameter)) or self.words.get(parameter)

    def callback(self) -> Callable[..., None]:
        """What typer calls."""

        def called(**given: Any) -> None:
            looked_for = [given[word.name] for word in self.words.values() if word.looked_for]
            with user_errors(looked_for, self.spelled, kept=given.get("output")):
                values = {name: word.value(given[name]) for name, word in self.words.items()}
                own = {name: self._filled(parameter, None, values) for name, parameter in self._own.items()}
                calls = [self._called(function, values) for function in self.functions]
                self.body(*calls, **own)

        called.__signature__ = inspect.Signature([word.parameter() for word in self.words.values()])  # type: ignore[attr-defined]
        called.__annotations__ = {}
        return called

    def spelled(self, said: str) -> list[str]:
        """What a message says in Python, as it is typed here."""
        calls = {f.rpartition(".")[2]: (one.name, one.option_of) for one in COMMANDS.values() for f in one.functions}
        own = {function.rpartition(".")[2]: ("", self.option_of) for function in self.functions}
        return spelled(said, self.option_of, {**calls, **own})

    @cached_property
    def _own(self) -> dict[str, inspect.Parameter]:
        """The body's parameters behind the functions."""
        parameters = inspect.signature(self.body, eval_str=True).parameters
        return dict(list(parameters.items())[len(self.functions) :])

    @cached_property
    def _own_words(self) -> list[Word]:
        return [word for parameter in self._own.values() for word in self._words_of(parameter)]

    @cached_property
    def _docs(self) -> dict[str, str]:
        """What the functions say of each parameter."""
        said = [pair for function in reversed(self.functions) for pair in sentences(function_of(function)).items()]
        return {self.renamed.get(name, name): sentence for name, sentence in said}

    def _offered(self, function: str) -> list[inspect.Parameter]:
        """A function's parameters that only names can give, but for those whose name is one of the body's words."""
        left_out = {*self.without, *(word.name for word in self._own_words)}
        found = inspect.signature(function_of(function)).parameters.values()
        offered = [one for one in found if one.kind is one.KEYWORD_ONLY and one.name not in self.without]
        return [one for one in offered if self.renamed.get(one.name, one.name) not in left_out]

    def _words_of(self, parameter: inspect.Parameter, function: str | None = None) -> Iterator[Word]:
        """The words of a parameter: one, or one for each field of its class."""
        kind = _kind_of(parameter, function)
        if kind is Say:
            return
        argument = parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        default = MISSING if parameter.default is parameter.empty else parameter.default
        flat, shell = _one_word(kind), sentences(self.body)
        if flat is None:
            name = self._name_of(parameter.name, function)
            yield Word(name, kind, default, shell.get(name) or self._docs.get(name, ""), argument)
            return
        hints, said = get_type_hints(flat), sentences(flat)
        for field in self._asked(flat, function):
            first = field.default is MISSING
            name = parameter.name if first else self._name_of(field.name, function)
            says = shell.get(name) or said.get(field.name, "")
            yield Word(name, hints[field.name], default if first else field.default, says, argument and first)

    def _asked(self, flat: Any, function: str | None) -> list[Field[Any]]:
        """The fields of a class that make words; what a function asks for itself is its own to pass on."""
        own = inspect.signature(function_of(function)).parameters if function is not None else {}
        return [field for field in fields(flat) if field.default is MISSING or field.name not in own]

    def _name_of(self, parameter: str, function: str | None) -> str:
        return parameter if function is None else self.renamed.get(parameter, parameter)

    def _filled(self, parameter: inspect.Parameter, function: str | None, values: Mapping[str, Any]) -> Any:
        """What the body, or a function, gets for a parameter: a value, or an object of several."""
        if parameter.annotation is Say:
            return partial(say, spell=self.spelled)
        flat = _one_word(_kind_of(parameter, function))
        if flat is None:
            return values[self._name_of(parameter.name, function)]
        if any(f.default is MISSING for f in fields(flat)) and values[parameter.name] is None:
            return None
        asked = self._asked(flat, function)
        names = {f.name: parameter.name if f.default is MISSING else self._name_of(f.name, function) for f in asked}
        return flat(**{name: values[word] for name, word in names.items()})

    def _called(self, function: str, values: Mapping[str, Any]) -> Callable[..., Any]:
        options = {}
        for parameter in self._offered(function):
            options[parameter.name] = self._filled(parameter, function, values)
        return partial(function_of(function), **options)


def function_of(name: str) -> Any:
    """A function or class by its name, imported when it is needed."""
    module, _, function = name.rpartition(".")
    return getattr(import_module(module), function)


def _kind_of(parameter: inspect.Parameter, function: str | None) -> Any:
    """A parameter's type, by the names of its function's module."""
    kind = parameter.annotation
    return eval(kind, vars(import_module(function.rpartition(".")[0]))) if function and isinstance(kind, str) else kind


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


def _one_word(kind: Any) -> Any:
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


class Doors(TyperGroup):
    """All commands, each made when it is asked for; the help of all needs none of them."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = _Made()  # type: ignore[assignment]

    def list_commands(self, ctx: Any) -> list[str]:
        """In the order of the help."""
        return list(self.commands)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Each with its first sentence, under headings."""
        width = max(map(len, self.commands))
        for heading in dict.fromkeys(door.under for door in COMMANDS.values()):
            with formatter.section(heading):
                rows = {}
                for door in COMMANDS.values():
                    if door.under == heading:
                        name = door.name.split()[0]
                        rows[name] = GROUPS.get(name) or door.says.partition("\n\n")[0]
                formatter.write_dl([(f"{name:<{width}}", " ".join(said.split())) for name, said in rows.items()])


class _Made(Mapping[str, Any]):
    """Commands by their names; `store show` and its like are commands of a group."""

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(name.split()[0] for name in COMMANDS))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __getitem__(self, name: str) -> Any:
        doors = [door for door in COMMANDS.values() if door.name.split()[0] == name]
        if not doors:
            raise KeyError(name)
        settings: Any = {"add_completion": False, "pretty_exceptions_enable": False, "rich_markup_mode": None}
        made = typer.Typer(help=GROUPS.get(name), no_args_is_help=name in GROUPS, **settings)
        with user_errors((), lambda said: []):  # what the functions need is imported here
            for door in doors:
                epilog = f"Example: legend-hf {door.example}"
                made.command(door.name.split()[-1], help=door.says, epilog=epilog)(door.callback())
            return typer.main.get_command(made)
