"""A command is made from its functions: options, defaults, types and help are those of signatures and docstrings.

In: the functions that a command calls, by name, and a body that says what a shell adds to them: which words are loaded,
what is saved and printed. Out: a command for typer. Nothing is imported for a command before it is asked for. This file
knows no command and no function; what becomes of a parameter, `words` says.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import cached_property, partial
from itertools import chain
from typing import Any, get_type_hints

import typer
from typer.core import TyperGroup

from legend_hf.cli.errors import user_errors
from legend_hf.cli.screen import show
from legend_hf.cli.spelling import spelled
from legend_hf.cli.words import Part, Word, function_of, one_word, sentences

COMMANDS: dict[str, Door] = {}
"""Every command by its name, in the order of the help. `store show` is one of the group `store`."""
GROUPS: dict[str, str] = {}
"""What a group of commands is for."""
Call = partial[Any]
"""A function with the options that were given for it."""
Say = Callable[[str], None]
"""What shows Markdown of the library as a shell spells it, for a body that asks for it."""
# `--revision` is that of what a command is about, its first word.
RENAMED = {"revision": "model_revision"}
SETTINGS: Any = {
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
SHARED = {"seed"}
"""Words of a body's that are its functions' as well."""


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
    def parts(self) -> dict[str, list[Part]]:
        """What the body (`""`) and each function get that is typed; a word of the body's is no function's."""
        parameters = list(inspect.signature(self.body, eval_str=True).parameters.values())
        own = parameters[len(self.functions) :]
        found = {"": [self._part(one, "", first=one is own[0]) for one in own]}
        taken = {*self.without, *(word.name for part in found[""] for word in part.words.values())} - SHARED
        for function in self.functions:
            several = inspect.signature(function_of(function)).parameters.values()
            offered = [one for one in several if one.kind is one.KEYWORD_ONLY and one.name not in self.without]
            free = [one for one in offered if self.renamed.get(one.name, one.name) not in taken]
            found[function] = [self._part(one, function) for one in free]
        return found

    @cached_property
    def words(self) -> dict[str, Word]:
        """Every word that can be typed: arguments, what must be given, then the functions' options, then the rest."""
        own, *called = [[word for part in parts for word in part.words.values()] for parts in self.parts.values()]
        needed = [word for word in own if word.argument or word.default is MISSING]
        ordered = [*needed, *chain(*called), *own]
        names: dict[str, Word] = {}
        for word in sorted(ordered, key=lambda word: (not word.argument, word.default is not MISSING)):
            names.setdefault(word.name, word)
        return names

    def option_of(self, parameter: str) -> Word | None:
        """The option that a parameter of the command's functions is, as a message names it."""
        return self.words.get(self.renamed.get(parameter, parameter)) or self.words.get(parameter)

    def callback(self) -> Callable[..., None]:
        """What typer calls."""

        def called(**given: Any) -> None:
            def say(said: str) -> None:
                show(self.spelled(said))

            looked_for = [given[word.name] for word in self.words.values() if word.looked_for]
            with user_errors(looked_for, self.spelled, kept=given.get("output")):
                values = {name: word.value(given[name]) for name, word in self.words.items()}
                own, *options = [
                    {part.name: say if part.makes is Say else part.filled(values) for part in parts}
                    for parts in self.parts.values()
                ]
                calls = [partial(function_of(name), **some) for name, some in zip(self.functions, options, strict=True)]
                self.body(*calls, **own)

        called.__signature__ = inspect.Signature([word.parameter() for word in self.words.values()])  # type: ignore[attr-defined]
        called.__annotations__ = {}
        return called

    def spelled(self, said: str) -> str:
        """What a message says in Python, as it is typed here."""
        calls = {f.rpartition(".")[2]: (one.name, one.option_of) for one in COMMANDS.values() for f in one.functions}
        own = {function.rpartition(".")[2]: ("", self.option_of) for function in self.functions}
        return spelled(said, self.option_of, {**calls, **own})

    @cached_property
    def _docs(self) -> dict[str, str]:
        """What the functions say of each parameter."""
        said = [pair for function in reversed(self.functions) for pair in sentences(function_of(function)).items()]
        return {self.renamed.get(name, name): sentence for name, sentence in said}

    def _part(self, parameter: inspect.Parameter, function: str, *, first: bool = False) -> Part:
        """A parameter with its words: one, none for what is no word, or one for each field of its class.

        `first` is what the command is about, whose `revision` has no other name.
        """
        kind, named = parameter.annotation, self.renamed if function else {}
        beside: Collection[str] = ()
        if function:
            kind = eval(kind, vars(sys.modules[function_of(function).__module__])) if isinstance(kind, str) else kind
            beside = inspect.signature(function_of(function)).parameters
        if kind is Say:
            return Part(parameter.name, Say, {})
        default = MISSING if parameter.default is parameter.empty else parameter.default
        argument = parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        flat, shell = one_word(kind), sentences(self.body)
        if flat is None:
            name = named.get(parameter.name, parameter.name)
            word = Word(name, kind, default, shell.get(name) or self._docs.get(name, ""), argument)
            return Part(parameter.name, None, {parameter.name: word})
        hints, said, words = get_type_hints(flat), sentences(flat), {}
        for field in fields(flat):
            whole = field.default is MISSING
            if not whole and field.name in beside:
                continue  # what a function asks for itself is its own to pass on
            name = parameter.name if whole else named.get(field.name, field.name)
            if field.name == "revision" and not first:
                name = f"{parameter.name}_revision"
            says = shell.get(name) or said.get(field.name, "")
            value = default if whole else field.default
            words[field.name] = Word(name, hints[field.name], value, says, argument and whole)
        return Part(parameter.name, flat, words)


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
        made = typer.Typer(help=GROUPS.get(name), no_args_is_help=name in GROUPS, **SETTINGS)
        with user_errors((), str):  # what the functions need is imported here
            for door in doors:
                epilog = f"Example: legend-hf {door.example}"
                made.command(door.name.split()[-1], help=door.says, epilog=epilog)(door.callback())
            return typer.main.get_command(made)
