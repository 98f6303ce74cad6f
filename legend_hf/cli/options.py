"""What the commands share: the app, options of one meaning, loading, saving, and a user's errors as one line.

In: what a user typed. Out: datasets, free places to save into, exit codes. This file knows no command.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="legend-hf",
    help="Margins for preference datasets: fit a direction, annotate, publish; choose, pair, order and export rows.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

FILE_KINDS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
# What the library says in Python, for those who sit at a shell.
IN_SHELL = {
    "`Direction.from_pretrained(..., model=path)`": "`--model FOLDER`",
    "`overwrite=True`": "`--overwrite`",
    "`messages=True`": "`--messages`",
    "`weights=True`": "`--weights`",
}

DatasetArgument = Annotated[str, typer.Argument(help="Hub id, folder, or a .jsonl, .csv or .parquet file.")]
DirectionArgument = Annotated[str, typer.Argument(help="Hub id, folder or fsspec URL of a direction.")]
ConfigOption = Annotated[str | None, typer.Option(help="Configuration of a Hub dataset.")]
SplitOption = Annotated[str | None, typer.Option(help="One split; all of them when left out.")]
OneSplitOption = Annotated[str | None, typer.Option(help="Which split, where there are several.")]
RevisionOption = Annotated[str | None, typer.Option(help="Branch, tag or commit of the direction.")]
ModelRevisionOption = Annotated[str | None, typer.Option(help="Branch, tag or commit of the model.")]
ModelPathOption = Annotated[
    Path | None, typer.Option(help="Folder of the direction's model, instead of the Hub.", file_okay=False)
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...; a GPU when there is one.")]
DtypeOption = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
TemplateOption = Annotated[str, typer.Option(help="auto, chat, dialogue, alpaca, or text with {prompt}.")]
OnErrorOption = Annotated[str, typer.Option(help="raise at a row that cannot be read, or skip it.")]
BatchTokensOption = Annotated[int | None, typer.Option(help="Most tokens in one forward pass.")]
NumProcOption = Annotated[int | None, typer.Option(help="Processes.")]
PromptColumnOption = Annotated[str, typer.Option(help="Name of the prompts' column.")]
ChosenColumnOption = Annotated[str, typer.Option(help="Name of the chosen responses' column.")]
RejectedColumnOption = Annotated[str, typer.Option(help="Name of the rejected responses' column.")]
ResponsesColumnOption = Annotated[str, typer.Option(help="Name of the column with the lists of responses.")]
StoreOption = Annotated[
    Path | None, typer.Option(help="File, .sqlite, that keeps scores; in the assets cache when left out.")
]
NoStoreOption = Annotated[bool, typer.Option("--no-store", help="Keep no scores: a stopped run starts anew.")]
FolderOption = Annotated[Path, typer.Option(help="New folder for the dataset.", file_okay=False)]


@contextmanager
def user_errors() -> Iterator[None]:
    """Turns the errors that a user can mend into one line and exit code 2; others keep their traceback."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        said = " ".join(" ".join([str(error), *getattr(error, "__notes__", [])]).split())
        typer.echo(f"Error: {in_shell(said)}", err=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as stop:  # what was kept, and how to go on, has been said
        raise typer.Exit(130) from stop


def in_shell(said: str) -> str:
    """What the library said, with its arguments as options."""
    for python, option in IN_SHELL.items():
        said = said.replace(python, option)
    return said


def load(source: str, config: str | None, split: str | None) -> Any:
    """Loads a dataset from a file, a folder (saved or plain) or the Hub.

    Raises:
        ValueError: A file of another kind, one that cannot be read, or a split that is not there.
        OSError: Nothing is there.
    """
    from datasets import Dataset, load_dataset, load_from_disk
    from datasets.exceptions import DatasetGenerationError

    suffix = Path(source).suffix
    if os.path.isdir(source) and any((Path(source) / n).exists() for n in ("state.json", "dataset_dict.json")):
        saved = load_from_disk(source)
        if split is None:
            return saved
        if isinstance(saved, Dataset) or split not in saved:
            there = "one dataset without splits" if isinstance(saved, Dataset) else f"the splits {', '.join(saved)}"
            raise ValueError(f"`--split` is {split!r}, and {source!r} holds {there}")
        return saved[split]
    if not os.path.exists(source) and (suffix in FILE_KINDS or not HUB_ID.fullmatch(source)):
        raise ValueError(f"there is no file or folder {source!r} here, and it is no Hub id; give one that is there")
    try:
        if not os.path.isfile(source):
            return load_dataset(source, config, split=split)
        if suffix not in FILE_KINDS:
            raise ValueError(f"{source!r} ends in {suffix!r}; allowed are {', '.join(FILE_KINDS)}")
        return load_dataset(FILE_KINDS[suffix], data_files=source, split=split)
    except DatasetGenerationError as error:
        raise ValueError(f"{source!r} cannot be read: {error.__cause__ or error}") from error


def one_split(dataset: Any, what: str) -> Any:
    """Takes the only split of a dataset; several are the user's to choose from."""
    if not isinstance(dataset, dict):
        return dataset
    if len(dataset) > 1:
        raise ValueError(f"the {what} have the splits {', '.join(dataset)}; choose one with `--split`")
    return next(iter(dataset.values()))


def all_splits(dataset: Any) -> Any:
    """A `DatasetDict` of what was loaded, so that what is saved has one shape."""
    from datasets import DatasetDict

    if isinstance(dataset, DatasetDict):
        return dataset
    named = re.match(r"\w+", str(dataset.split or ""))  # a slice is called "train[:10]"
    return DatasetDict({named[0] if named else "train": dataset})


def public_name(source: str) -> str | None:
    """A Hub id may stand in a card; a path of somebody's machine may not."""
    return None if os.path.exists(source) else source


def chosen_store(store: Path | None, no_store: bool) -> Path | None:
    """Where scores are kept: where the user said, nowhere, or where the command line always keeps them."""
    from legend_hf.margins.store import default_store

    if store is not None and no_store:
        raise ValueError("`--store` and `--no-store` were both given; leave one out")
    return None if no_store else store or default_store()


def new_folder(output: Path) -> None:
    """Refuses, before anything is computed, a folder in which old files would lie among the new ones."""
    if output.exists() and any(output.iterdir()):
        raise ValueError(f"`--output` is {str(output)!r}, which holds files already; give a new folder, or empty it")


def save(splits: Any, output: Path) -> None:
    """Saves a `DatasetDict`, for `load`, and says where."""
    # Left to itself, `datasets` 5.2 writes a split without rows as no file at all, which it then cannot load.
    splits.save_to_disk(output, num_shards={name: None if len(rows) else 1 for name, rows in splits.items()})
    typer.echo(f"Saved in {output}")


def new_file(path: Path, option: str, suffix: str = ".jsonl") -> None:
    """Refuses, before anything is computed, a file that these commands would not read again; makes its folder."""
    if path.suffix != suffix:
        raise ValueError(f"`{option}` is {str(path)!r}; give a file that ends in `{suffix}`")
    path.parent.mkdir(parents=True, exist_ok=True)


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Writes a whole file or none."""
    with TemporaryDirectory(prefix=".partial_", dir=path.parent) as folder:  # private, and gone whatever happens
        part = Path(folder) / path.name
        write(part)
        part.replace(path)
