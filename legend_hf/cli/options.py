"""What the commands share: the app, what stands for rows, directions, places and stores, and what is said of them.

In: what a user typed. Out: datasets, directions, free places to save into. This file knows no command.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from legend_hf._version import __version__
from legend_hf.cli.door import SETTINGS, Doors
from legend_hf.cli.screen import say
from legend_hf.hub.rows import check_splits, save_rows, sources_of
from legend_hf.hub.rows import load_rows as load

__all__ = ["Kept", "Named", "Place", "Reading", "Rows", "app", "load", "one_split", "save", "say_read", "say_saved"]

app = typer.Typer(
    name="legend-hf",
    help="Margins for preference datasets: fit a direction, annotate, publish; choose, pair, order and export rows.",
    cls=Doors,
    no_args_is_help=True,
    **SETTINGS,
)


def _version(asked: bool) -> None:
    if asked:
        say(f"legend-hf {__version__}")
        raise typer.Exit


@app.callback()
def _whole(
    version: Annotated[bool, typer.Option("--version", help="Say which version this is.", callback=_version)] = False,
) -> None:
    pass


@dataclass(frozen=True)
class Rows:
    """Rows of a file, a folder or the Hub.

    Attributes:
        source: Hub id, folder, or a .jsonl, .json, .csv, .tsv or .parquet file.
        config: Configuration, where there are several.
        data_dir: Folder of the dataset, such as harmless-base of Anthropic/hh-rlhf; all of it when left out.
        data_files: File of the dataset, instead of all.
        split: One split; all of them when left out.
        revision: Branch, tag or commit of the dataset on the Hub.
        max_samples: Most rows of each split; all of them when left out.
        shuffle: Shuffle the rows first, by --seed.
        seed: Of the shuffling.
    """

    source: str | os.PathLike[str]
    config: str | None = None
    data_dir: str | None = None
    data_files: Sequence[str] = ()
    split: str | None = None
    revision: str | None = None
    max_samples: int | None = None
    shuffle: bool = False
    seed: int = 0

    def load(self, numbers: Collection[str] = ()) -> Any:
        """As `load_rows` gives them, or some of them."""
        if self.max_samples is not None and self.max_samples < 1:
            raise ValueError(f"`max_samples` is {self.max_samples}; allowed is at least 1")
        rows = load(
            self.source,
            self.config,
            self.split,
            data_dir=self.data_dir,
            data_files=self.data_files,
            revision=self.revision,
            numbers=numbers,
        )
        if not isinstance(rows, dict):
            return self._some(rows)
        return type(rows)({name: self._some(one) for name, one in rows.items()})

    def _some(self, rows: Any) -> Any:
        rows = rows.shuffle(seed=self.seed) if self.shuffle else rows
        return rows if self.max_samples is None else rows.select(range(min(self.max_samples, len(rows))))

    def one(self, what: str, numbers: Collection[str] = ()) -> Any:
        """The only split, or the one that was named."""
        return one_split(self.load(numbers), what)

    def splits(self) -> Any:
        """A `DatasetDict`, so that what is saved has one shape."""
        from datasets import DatasetDict

        rows = self.load()
        if not isinstance(rows, DatasetDict):
            named = re.match(r"\w+", str(rows.split or ""))  # a slice is called "train[:10]"
            rows = DatasetDict({named[0] if named else "train": rows})
        check_splits(rows)
        return rows

    @property
    def public_name(self) -> str | None:
        """A Hub id may stand in a card; a path of somebody's machine may not."""
        return None if os.path.exists(self.source) else str(self.source)


@dataclass(frozen=True)
class Named:
    """A direction by its name.

    Attributes:
        source: Hub id, folder or fsspec URL of a direction.
        revision: Branch, tag or commit of the direction.
    """

    source: str | os.PathLike[str]
    revision: str | None = None

    def load(self) -> Any:
        """The direction."""
        from legend_hf import Direction

        return Direction.from_pretrained(self.source, revision=self.revision)


@dataclass(frozen=True)
class Reading:
    """One direction or several that read.

    Attributes:
        source: Hub id, folder or fsspec URL of a direction; NAME=ID for each of several.
        revision: Branch, tag or commit of the direction.
        model: Folder or Hub id of the direction's model, where it is not to be read from its own place.
        device_map: Where the parts of a model larger than one device go: auto, or parts to devices, cpu and disk.
    """

    source: Sequence[str | os.PathLike[str]]
    revision: str | None = None
    model: str | os.PathLike[str] | None = None
    device_map: str | Mapping[str, str | int] | None = None

    @property
    def reads(self) -> list[Any]:
        """All that is read for it."""
        return [*self._named.values(), self.model]

    def load(self) -> Any:
        """The direction; several by their names."""
        from legend_hf.margins.scoring import load_directions

        loaded = dict(
            load_directions(self._named, revision=self.revision, model=self.model, device_map=self.device_map)
        )
        return loaded[""] if [*loaded] == [""] else loaded

    def one(self) -> Any:
        """The only direction, where a command takes one."""
        loaded = self.load()
        if isinstance(loaded, dict):
            raise ValueError(f"`direction` is {', '.join(loaded)}; give one of them, without a name")
        return loaded

    @property
    def _named(self) -> dict[str, str]:
        given = [str(source) for source in self.source]
        parts = [("", "", one) if os.path.exists(one) else re.split(r"^(\w+)=", one, maxsplit=1) for one in given]
        named = {(name[1] if len(name) > 1 else ""): name[-1] for name in parts}
        if len(named) < len(given):
            raise ValueError(
                f"`direction` is {' '.join(given)}; give each of several a name of its own, such as "
                "safety=you/direction helpfulness=you/other"
            )
        return named


@dataclass(frozen=True)
class Place:
    """Where a result goes.

    Attributes:
        output: Folder for the result.
        overwrite: Replace what stands in the way.
    """

    output: Path
    overwrite: bool = False


@dataclass(frozen=True)
class Kept:
    """Whether what is read is kept, so that a stopped run goes on.

    Attributes:
        store: File, .sqlite, or URL of a folder that keeps scores; in the assets cache when left out.
        no_store: Keep nothing: a stopped run starts anew.
        dry_run: Only say what would be read, what cannot be, and what that costs.
    """

    store: str | None = None
    no_store: bool = False
    dry_run: bool = False

    def path(self, default: Callable[[], Path]) -> str | Path | None:
        """Where it is kept: where the user said, nowhere, or where the command line always keeps it."""
        if self.store is not None and self.no_store:
            raise ValueError("`--store` and `--no-store` were both given; leave one out")
        return None if self.no_store else self.store or default()


def one_split(dataset: Any, what: str, remedy: str = "choose one with `--split`") -> Any:
    """Takes the only split of a dataset; several are the user's to choose from."""
    if not isinstance(dataset, dict):
        return dataset
    if len(dataset) > 1:
        raise ValueError(f"the {what} have the splits {', '.join(dataset)}; {remedy}")
    return next(iter(dataset.values()))


def save(splits: Any, place: Place, kind: str = "parquet", *, source: Rows | None = None, rows: Any = None) -> None:
    """Saves a `DatasetDict` by `save_rows`, and says so; `rows` of `source` are what it was made of."""
    known = sources_of(source.source, rows) if source is not None else None
    files = save_rows(splits, place.output, kind=kind, sources=known, overwrite=place.overwrite)
    for name, one in splits.items():
        say(f"{name}: {len(one)} rows in {files[name]}" if name in files else f"{name}: left out, it has no rows")
    say_saved(place.output)


def say_saved(output: Path) -> None:
    """The last line of every command that saved a dataset: where, and how to load it."""
    how = f'"json", data_files="{output}"' if output.suffix == ".jsonl" else f'"{output}"'
    say(f"Saved in {output}; load_dataset({how}) gives it back")


def say_read(done: Any, what: str, status: str | None) -> None:
    """Says how many rows a run read, and how many it skipped, by the column `status` of a run that skips."""
    from legend_hf.margins.columns import OK

    skipped = sum(said != OK for rows in done.values() for said in rows[status]) if status is not None else 0
    read = sum(map(len, done.values())) - skipped
    say(f"{read} rows {what}" + (f", {skipped} skipped ({status} says why)" if skipped else ""))
