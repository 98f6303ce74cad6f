"""`legend-hf`: the command line, a door to the library and nothing more.

In: arguments. Out: what one function of the library did, in words. A command is made of that function's signature and
docstring (`door`), loads what the words name, calls and prints; a user's error ends with exit code 2 and one line that
says what to do. No command knows anything that the library does not know: `annotating` goes from questions to published
margins, `stores` keeps what was read, `preferences` goes from margins to what is trained on, `comparing` asks whether
that helped, `seeing` shows where margins come from.
"""

from __future__ import annotations

import os
import sys

from legend_hf.cli import annotating, comparing, preferences, seeing, stores  # each puts its commands into `app`
from legend_hf.cli.options import app

__all__ = ["annotating", "app", "comparing", "main", "preferences", "seeing", "stores"]


def main() -> None:
    """The entry point of `legend-hf`."""
    if not sys.stderr.isatty():  # each time that a bar is drawn is a line of a log
        os.environ.setdefault("TQDM_MININTERVAL", "10")
    app()
