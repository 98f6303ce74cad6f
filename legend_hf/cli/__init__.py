"""`legend-hf`: the command line, a door to the library and nothing more.

In: arguments. Out: what one function of the library did, in words. A command is made of that function's signature and
docstring (`door`), loads what the words name, calls and prints; a user's error ends with exit code 2 and one line that
says what to do. No command knows anything that the library does not know: `annotating` goes from questions to published
<<<<<<< HEAD
margins, `stores` keeps what was read, `preferences` goes from margins to what is trained on, `seeing` shows where
margins come from.
=======
margins, `preferences` from margins to what is trained on, `comparing` asks whether that helped.
>>>>>>> 4348ba4 (compare: does a column help? The same reward model, trained with it and without, on other prompts)
"""

from __future__ import annotations

import os
import sys

<<<<<<< HEAD
from legend_hf.cli import annotating, preferences, seeing, stores  # each puts its commands into `app`
from legend_hf.cli.options import app

__all__ = ["annotating", "app", "main", "preferences", "seeing", "stores"]
=======
from legend_hf.cli import annotating, comparing, preferences  # each puts its commands into `app`, in this order
from legend_hf.cli.options import app

__all__ = ["annotating", "app", "comparing", "main", "preferences"]
>>>>>>> 4348ba4 (compare: does a column help? The same reward model, trained with it and without, on other prompts)


def main() -> None:
    """The entry point of `legend-hf`."""
    if not sys.stderr.isatty():  # each time that a bar is drawn is a line of a log
        os.environ.setdefault("TQDM_MININTERVAL", "10")
    app()
