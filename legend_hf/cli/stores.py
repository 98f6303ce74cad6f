"""What is kept of readings: `store show`, `prune`, `merge`, `compact`.

In: arguments. Out: what a store holds, and stores that hold less or more. This file does not know what is read, or for
what.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from legend_hf.cli.door import GROUPS, command
from legend_hf.cli.screen import say

KEPT = "What is kept of readings"
GROUPS["store"] = "Show, prune, merge and compact stores of scores."


@command(name="store show", under=KEPT)
def store_show(path: str | None = None) -> None:
    """Say what a store holds for each direction.

    Example: store show

    Options:
        path: A store or its URL; the one that `annotate` uses by itself when left out.
    """
    from legend_hf.hub.transfer import is_url
    from legend_hf.margins.stores import shown

    if path is not None and is_url(path):
        held = _existing_at(path).contents()
        say(f"{shown(path)}, {sum(kept.scores for kept in held)} scores")
    else:
        store, size = _existing_store(path)
        held = store.contents()
        say(f"{store.path}, {size / 2**20:.1f} MiB")
    for kept in held:
        label = " ".join(kept.label.split())  # of a store at a URL it is whatever somebody wrote there
        say(f"  {kept.scores} scores, last used {kept.used:%Y-%m-%d}: {label} ({kept.digest[:12]})")


@command(name="store prune", under=KEPT)
def store_prune(
    path: Path | None = None,
    *,
    unused_days: Annotated[float, typer.Option(help="Forget directions that were not used for so long.", min=0)] = 30.0,
    everything: Annotated[bool, typer.Option("--all", help="Forget all.")] = False,
) -> None:
    """Forget the scores of directions that are no longer used. Their space is given back.

    Without a path also what stopped fits have read.

    Example: store prune --unused-days 30

    Options:
        path: A store; the one that `annotate` uses by itself when left out.
    """
    from legend_hf.directions.kept import default_folder, forget

    days = 0.0 if everything else unused_days
    if path is None and (fits := forget(default_folder(), unused_days=days)):
        say(f"Forgot what {fits} stopped fits had read")
    store, before = _existing_store(path)
    gone = store.prune(unused_days=days)
    say(f"Forgot {gone} scores; {store.path} went from {before} to {store.path.stat().st_size} bytes")


@command(name="store merge", under=KEPT)
def store_merge(stores: Sequence[str], *, output: str) -> None:
    """Put the scores of several stores into one. They may be those of several machines, and URLs.

    Example: store merge node-1.sqlite node-2.sqlite --output all.sqlite

    Options:
        stores: Stores to take from, or their URLs.
        output: The store that takes over, or its URL; made if absent.
    """
    from legend_hf.hub.outputs import check_file
    from legend_hf.hub.transfer import is_url
    from legend_hf.margins.stores import shown, store_at

    files = [Path(path) for path in stores if not is_url(path)]
    for path in files:
        _check_there(path)
    if not is_url(output):
        # A file that is no store is refused when it is opened.
        check_file(Path(output), reads=files, ours=lambda file: True)
    store = store_at(output)
    for given in stores:
        source = _existing_at(given) if is_url(given) else store_at(given)
        say(f"{store.merge(source)} new scores from {shown(given)}")


@command(name="store compact", under=KEPT)
def store_compact(url: str) -> None:
    """Put the many files of a store at a URL into few. Others may use it meanwhile.

    Example: store compact s3://bucket/run

    Options:
        url: Of the store.
    """
    from legend_hf.hub.transfer import is_url
    from legend_hf.margins.stores import shown

    if not is_url(url):
        raise ValueError(f"{url!r} is no URL, and a store in a file is compact; give the URL of a store")
    before, after = _existing_at(url).compact()
    say(f"{shown(url)} went from {before} to {after} files of scores")


def _existing_at(url: str) -> Any:
    """A store at a URL that holds something; looking for it must not make it."""
    from legend_hf.margins.stores import shown, store_at

    store = store_at(url)
    if not store.contents():
        raise ValueError(f"there is no store at {shown(url)!r}; `legend-hf annotate` makes one: `--store URL`")
    return store


def _existing_store(path: str | Path | None) -> tuple[Any, int]:
    """A store and its size; showing one that is not there must not make it."""
    from legend_hf.margins.store import check_path, default_store, open_store

    file = _check_there(check_path(path or default_store()))
    return open_store(file), file.stat().st_size


def _check_there(file: Path) -> Path:
    if not file.exists():
        raise ValueError(f"there is no store {str(file)!r}; `legend-hf annotate` makes one")
    return file
