"""Text of the library as it is shown: drawn for a terminal's width, or as it is where a file or a pipe takes it.

In: Markdown. Out: what stands on the screen. This file does not know what the text says.
"""

from __future__ import annotations

import sys

import typer

from legend_hf.hub.frame import visible


def say(text: object, *, err: bool = False) -> None:
    """Says something on standard output, or error. What strangers wrote into it, such as names, steers no terminal."""
    typer.echo(visible(text), err=err)


def show(markdown: str) -> None:
    """Shows Markdown, in a terminal with its tables drawn and its entities as the signs that they stand for."""
    if not sys.stdout.isatty():
        say(markdown)
        return
    from rich.console import Console
    from rich.markdown import Markdown

    Console(file=sys.stdout).print(Markdown(visible(markdown)))
