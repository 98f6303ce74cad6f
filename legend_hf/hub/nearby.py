"""A name that leads nowhere: what is there instead? A typo is mended by what stands beside the thing that was meant.

In: the name of a model or a direction, as somebody gave it. Out: words for an error, with the closest names first: what
stands in the folder that the name leads to, and what the Hub's cache on this machine holds. This file asks no network.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import SequenceMatcher
from pathlib import Path

from legend_hf.hub.transfer import without_secrets

MOST_NAMED = 6
DIRECTION = "direction.safetensors"
"""The file by which a folder is known for a direction's."""

_ID = re.compile(r"[A-Za-z0-9_][\w.-]*(?:/[A-Za-z0-9_][\w.-]*)?(?:@.+)?", re.ASCII)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(?:://|::)")


def is_path(name: str | os.PathLike[str]) -> bool:
    """Whether a name can only be that of a folder: no Hub id is spelled so. `models/mine` may be either."""
    text = os.fspath(name)
    return not isinstance(name, str) or not (_ID.fullmatch(text) or _URL.match(text))


def no_folder(name: str | os.PathLike[str], what: str) -> str:
    """What to say where there should be the folder of a model, or of a direction, and is none."""
    text = os.path.expanduser(os.fspath(name))
    if os.path.exists(text):
        return f"{text!r} is a file, not the folder of a {what}; give the folder that it lies in"
    shown = without_secrets(text)  # a URL that lacks a stroke reads as a path
    return f"there is no folder {shown!r}; {beside(text)}; give the folder of a {what}, or the id of one on the Hub"


def beside(path: str) -> str:
    """What stands in the nearest folder that there is above a path: its folders, if it has any."""
    meant = Path(os.path.abspath(path))
    while not meant.parent.is_dir():
        meant = meant.parent
    folder = meant.parent
    try:
        entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
        held = [entry.name for entry in entries if entry.is_dir()] or [entry.name for entry in entries]
    except OSError:
        return f"{str(folder)!r} cannot be looked into"
    return f"in {str(folder)!r} {_named(held, meant.name)}"


def held_in(folder: Path) -> str:
    """What a folder holds, and which folders in it hold a model."""
    inside = [entry.name for entry in folder.iterdir() if (entry / "config.json").is_file()]
    if inside:
        return f"in it are {_listed(inside, folder.name)}, which have one"
    return f"it holds {_listed([entry.name for entry in folder.iterdir()], folder.name) or 'nothing'}"


def cached(*, directions: bool) -> list[str]:
    """Ids of the models, or of the directions, that the Hub's cache on this machine holds."""
    from huggingface_hub import constants

    found = []
    for folder in Path(constants.HF_HUB_CACHE).glob("models--*"):
        holds = [*folder.glob(f"snapshots/*/{DIRECTION if directions else 'config.json'}")]
        if holds and (directions or not [*folder.glob(f"snapshots/*/{DIRECTION}")]):
            found.append("/".join(folder.name.split("--")[1:]))
    return found


@contextmanager
def saying_what_is_there(name: str | os.PathLike[str], what: str) -> Iterator[None]:
    """An error that a model (or a direction) cannot be found also says what can be.

    Args:
        name: As it was given.
        what: `"model"` or `"direction"`.
    """
    try:
        yield
    except (FileNotFoundError, ConnectionError) as error:
        text = os.fspath(name)
        if _URL.match(text):
            raise
        if os.path.isdir(text):
            raise type(error)(f"{error}; {held_in(Path(text))}") from error
        ids = cached(directions=what == "direction")
        said = [f"the cache here holds the {what}s {_listed(ids, text)}" if ids else f"the cache here holds no {what}"]
        if os.path.isdir(os.path.dirname(text)):
            said.append(beside(text))
        raise type(error)(f"{error}; {'; '.join(said)}") from error


def _named(names: Sequence[str], meant: str) -> str:
    return f"stand {_listed(names, meant)}" if names else "stands nothing"


def _listed(names: Sequence[str], meant: str) -> str:
    """The names that are most like what was meant, and how many more there are."""
    order = sorted(names, key=lambda name: (-SequenceMatcher(None, name.lower(), meant.lower()).ratio(), name))
    more = len(order) - MOST_NAMED
    return ", ".join(map(repr, order[:MOST_NAMED])) + (f" and {more} more" if more > 0 else "")
