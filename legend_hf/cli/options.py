"""What the commands share: the app, options of one meaning, loading, saving, and a user's errors as one line.

In: what a user typed. Out: datasets, free places to save into, exit codes. This file knows no command.
"""

from __future__ import annotations

import glob
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
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
SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` leaves in its folder
# What the library says in Python, for those who sit at a shell; an entry comes before those that it contains.
IN_SHELL = {
    '`on_error="skip"` is an option of `LegendMarginFn`': "`--on-error skip` is an option of `legend-hf annotate`",
    '`on_error="skip"`': "`--on-error skip`",
    "with a store (`store=`)": "with a store (without `--no-store`)",
    "with `store=`, or go without one": "with `--store`, or go without one by `--no-store`",
    "`store=`": "`--store`",
    '`LegendMarginFn(direction, add=["margin_prob"])`': "`legend-hf annotate --add margin_prob`",
    '`add=["margin_prob"]`': "`--add margin_prob`",
    "`annotate(dataset, direction)`": "`legend-hf annotate`",
    "`export_for(dataset, messages=True)`": "`legend-hf export --messages`",
    "`export_for(dataset)`": "`legend-hf export`",
    "`Direction.from_pretrained(..., model=path)`": "`--model FOLDER`",
    '`mode="per_prompt"`': "`--mode per_prompt`",
    '`mode="global"`': "`--mode global`",
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
NumProcOption = Annotated[int | None, typer.Option(help="Processes.", min=1)]
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
def user_errors(*names: str | Path | None, kept: Path | None = None) -> Iterator[None]:
    """Turns the errors that a user can mend into one line and exit code 2; others keep their traceback.

    Args:
        names: What the user named that is looked for here first, and then on the Hub.
        kept: The output beside which what was generated is kept, so that a stopped run goes on.
    """
    said_meanwhile = _Said(logging.WARNING)
    logger = logging.getLogger("legend_hf")
    logger.addHandler(said_meanwhile)
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        said = " ".join(" ".join([str(error), *getattr(error, "__notes__", [])]).split())
        typer.echo(f"Error: {_looked_for(names, error, said)}{in_shell(said)}", err=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as stop:
        typer.echo("Stopped.", err=True)
        if kept is not None and kept.with_name(f"{kept.name}.answers").exists():
            typer.echo(f"What was generated is kept beside {kept}: run the same again to go on.", err=True)
        raise typer.Exit(130) from stop
    finally:
        logger.removeHandler(said_meanwhile)


class _Said(logging.Handler):
    """Shows the library's warnings as they are without any handler, on stderr, but with its arguments as options."""

    def emit(self, record: logging.LogRecord) -> None:
        typer.echo(in_shell(record.getMessage()), err=True)


def in_shell(said: str) -> str:
    """What the library said, with its arguments as options."""
    for python, option in IN_SHELL.items():
        said = said.replace(python, option)
    return said


def _looked_for(names: Iterable[str | Path | None], error: Exception, said: str) -> str:
    """Where the Hub does not know a name that may be a mistyped folder: that there is none. Else nothing."""
    from huggingface_hub.errors import HFValidationError

    if not isinstance(error, OSError | HFValidationError) or "there is no file or folder" in said:
        return ""
    for name in map(str, filter(None, names)):
        local = "/" not in name or name.startswith((".", "/", "~"))
        if local and not os.path.exists(name) and re.search(rf"(?<![\w/-]){re.escape(name)}(?![\w-])", said):
            return f"there is no file or folder {name!r} here, and the Hub says: "
    return ""


def load(source: str, config: str | None, split: str | None) -> Any:
    """Loads a dataset from a file, a folder (saved or plain) or the Hub; never writes into a folder.

    Raises:
        ValueError: A file of another kind, one that cannot be read, or a split that is not there.
        OSError: Nothing is there.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    suffix = Path(source).suffix
    if not os.path.exists(source) and (suffix in FILE_KINDS or not HUB_ID.fullmatch(source)):
        raise ValueError(f"there is no file or folder {source!r} here, and it is no Hub id; give one that is there")
    try:
        if any((Path(source) / name).is_file() for name in SAVED):
            return _load_saved(Path(source), split)
        if not os.path.isfile(source):
            loaded = load_dataset(source, config, split=split)
            if not os.path.exists(source) and _of_a_folder(loaded):
                raise ValueError(
                    f"there is no file or folder {source!r} here, and the Hub has no such dataset; the datasets cache "
                    "knows a folder of that name, which is gone or elsewhere; give the whole path"
                )
            return loaded
        if suffix not in FILE_KINDS:
            raise ValueError(f"{source!r} ends in {suffix!r}; allowed are {', '.join(FILE_KINDS)}")
        return load_dataset(FILE_KINDS[suffix], data_files=source, split=split)
    except DatasetGenerationError as error:
        raise ValueError(f"{source!r} cannot be read: {error.__cause__ or error}") from error
    except StopIteration as error:  # how `datasets` 5.2 says that JSON lines have no first one
        raise ValueError(f"{source!r} is empty; give rows") from error


def _of_a_folder(loaded: Any) -> bool:
    """Whether the cache has these rows from a local folder: there a hash stands where the Hub's have a commit."""
    splits = loaded.values() if isinstance(loaded, dict) else [loaded]
    files = [file["filename"] for rows in splits for file in rows.cache_files]
    return any(re.fullmatch(r"[0-9a-f]{16}", Path(file).parent.name) for file in files)


def _load_saved(folder: Path, split: str | None) -> Any:
    """Loads what `save_to_disk` wrote, by way of the datasets cache.

    With `load_from_disk`, `map` writes its results into the very folder, which may be read-only, and where
    `load_dataset(folder)` would later take them for rows.
    """
    from datasets import DatasetDict

    dictionary = folder / "dataset_dict.json"
    if not dictionary.is_file():
        if split is None:
            return _load_saved_split(folder, None)
        there = "one dataset without splits"
    else:
        names = json.loads(dictionary.read_text(encoding="utf-8"))["splits"]
        if split is None:
            return DatasetDict({name: _load_saved_split(folder / name, name) for name in names})
        if split in names:
            return _load_saved_split(folder / split, split)
        there = f"the splits {', '.join(names)}"
    raise ValueError(f"`--split` is {split!r}, and {str(folder)!r} holds {there}")


def _load_saved_split(folder: Path, name: str | None) -> Any:
    """Loads one split from the files that are its own; others may lie beside them."""
    from datasets import Dataset, DatasetInfo, load_dataset

    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    if name is None:
        named = re.match(r"\w+", state.get("_split") or "")  # a slice is called "train[:10]"
        name = named[0] if named else "train"
    features = DatasetInfo.from_directory(str(folder)).features
    files = [str(folder / file["filename"]) for file in state["_data_files"]]
    filled = [glob.escape(file) for file in files if len(Dataset.from_file(file))]
    if not filled:  # which `load_dataset` does not take
        return Dataset.from_dict({column: [] for column in features}, features=features, split=name)
    return load_dataset("arrow", data_files={name: filled}, features=features, split=name)


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


def other_folder(output: Path, source: str) -> None:
    """Refuses, before anything is read, to write into the dataset that is read, or among what `save_to_disk` wrote."""
    if os.path.exists(source) and output.exists() and os.path.samefile(output, source):
        raise ValueError(f"`--output` is {str(output)!r}, which is the dataset that is read; give another folder")
    found = [name for name in SAVED if (output / name).exists()]
    if found:
        raise ValueError(
            f"`--output` is {str(output)!r}, which holds a dataset of `save_to_disk` (`{found[0]}`); give another "
            "folder, since the two would be loaded as one"
        )


def save(splits: Any, output: Path, kind: str = "parquet") -> None:
    """Writes a `DatasetDict` where `load_dataset(output)` finds every split under its name, and says so.

    Args:
        splits: Those without rows have no place there, and are left out.
        output: A folder.
        kind: Of the files, "parquet" or "jsonl".

    Raises:
        ValueError: There is no row, or the splits' columns differ.
    """
    filled = [rows.features for rows in splits.values() if len(rows)]
    if not filled:
        raise ValueError("there are no rows left to save, and nothing was written; give others, or ask for less")
    if any(features != filled[0] for features in filled):
        raise ValueError(
            f"the splits {', '.join(splits)} differ in their columns, and could not be loaded from one folder; do them "
            "one at a time with `--split`"
        )
    (output / "data").mkdir(parents=True)
    for name, rows in splits.items():
        if not len(rows):
            typer.echo(f"{name}: left out, it has no rows")
            continue
        file = output / "data" / f"{name}-00000-of-00001.{kind}"
        # As many digits as float32 has, which are not the default.
        write_whole(file, rows.to_parquet if kind == "parquet" else partial(rows.to_json, double_precision=15))
        typer.echo(f"{name}: {len(rows)} rows in {file}")
    say_saved(output)


def say_saved(output: Path) -> None:
    """The last line of every command that saved a dataset: where, and how to load it."""
    how = f'"json", data_files="{output}"' if output.suffix == ".jsonl" else f'"{output}"'
    typer.echo(f"Saved in {output}; load_dataset({how}) gives it back")


def say_read(done: Any, what: str, status: str | None) -> None:
    """Says how many rows a run read, and how many it skipped, by the column `status` of a run that skips."""
    from legend_hf.margins.columns import OK

    every = list(done.values()) if isinstance(done, dict) else [done]
    skipped = sum(said != OK for rows in every for said in rows[status]) if status is not None else 0
    read = sum(map(len, every)) - skipped
    typer.echo(f"{read} rows {what}" + (f", {skipped} skipped ({status} says why)" if skipped else ""))


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
