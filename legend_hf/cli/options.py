"""What the commands share: the app, options of one meaning, loading, saving, and a user's errors as one line.

In: what a user typed. Out: datasets, free places to save into, exit codes. This file knows no command.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from legend_hf.hub.rows import load_rows as load
from legend_hf.hub.rows import save_rows, sources_of

__all__ = ["app", "load"]

app = typer.Typer(
    name="legend-hf",
    help="Margins for preference datasets: fit a direction, annotate, publish; choose, pair, order and export rows.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

# Errors of other libraries that are neither ValueError nor OSError, and say that a file, the Hub or the memory fails.
_FOREIGN = {
    "safetensors.SafetensorError",
    "safetensors_rust.SafetensorError",
    "torch.OutOfMemoryError",
    "sqlite3.Error",
    "jinja2.TemplateError",
    "httpx.HTTPError",
    "httpx2.HTTPError",
    "yaml.YAMLError",
}
# What the library says in Python, for those who sit at a shell; an entry comes before those that it contains.
IN_SHELL = {
    "`PairSimilarityFn(model=...)`": "`--model`",
    "`split` is": "`--split` is",
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

DatasetArgument = Annotated[
    str, typer.Argument(help="Hub id, folder, or a .jsonl, .json, .csv, .tsv or .parquet file.")
]
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
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace what stands in the way where the output goes.")
]
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
    except BrokenPipeError:
        raise  # whoever read the output has enough, which is no error
    except Exception as error:
        if not _is_users(error):
            raise
        said = " ".join(" ".join([str(error), *getattr(error, "__notes__", [])]).split()) or type(error).__name__
        typer.echo(f"Error: {_looked_for(names, error, said)}{in_shell(said)}", err=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as stop:
        typer.echo("Stopped.", err=True)
        if kept is not None and kept.with_name(f"{kept.name}.answers").exists():
            typer.echo(f"What was generated is kept beside {kept}: run the same again to go on.", err=True)
        raise typer.Exit(130) from stop
    finally:
        logger.removeHandler(said_meanwhile)


def _is_users(error: Exception) -> bool:
    """Whether an error says what a user can mend: of files, names, the network or too little memory."""
    if isinstance(error, ValueError | OSError | ImportError | MemoryError):
        return True
    # The Rust of `tokenizers` raises the plain class for files that it cannot read.
    kinds = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__}
    return type(error) is Exception or not kinds.isdisjoint(_FOREIGN)


class _Said(logging.Handler):
    """Shows the library's warnings as they are without any handler, on stderr, but with its arguments as options."""

    def emit(self, record: logging.LogRecord) -> None:
        typer.echo(in_shell(record.getMessage()), err=True)


def in_shell(said: str) -> str:
    """What the library said, with its arguments as options."""
    for python, option in IN_SHELL.items():
        said = said.replace(python, option)
    said = re.sub(r"`(\w+)_column`", r"`--\1-column`", said)
    return re.sub(r'`split="([^"]*)"`', r"`--split \1`", said)


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


def writer(
    model: str,
    revision: str | None,
    template: str,
    max_new_tokens: int | None,
    batch_size: int | None,
    dtype: str,
    device: str | None,
) -> Any:
    """The `Writer` of a command's options; what was left out is the library's to say."""
    from legend_hf.writing.writer import Writer

    sizes = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    given: dict[str, Any] = {name: size for name, size in sizes.items() if size is not None}
    return Writer(model, revision=revision, template=template, dtype=dtype, device=device, **given)


def public_name(source: str) -> str | None:
    """A Hub id may stand in a card; a path of somebody's machine may not."""
    return None if os.path.exists(source) else source


def chosen_store(store: Path | None, no_store: bool, default: Callable[[], Path] | None = None) -> Path | None:
    """Where a run keeps what it read: where the user said, nowhere, or where the command line always keeps it."""
    from legend_hf.margins.store import default_store

    if store is not None and no_store:
        raise ValueError("`--store` and `--no-store` were both given; leave one out")
    return None if no_store else store or (default or default_store)()


def save(
    splits: Any,
    output: Path,
    kind: str = "parquet",
    *,
    source: str | None = None,
    rows: Any = None,
    overwrite: bool = False,
) -> None:
    """Saves a `DatasetDict` by `save_rows`, and says so; `rows` of `source` are what it was made of."""
    known = sources_of(source, rows) if source is not None else None
    files = save_rows(splits, output, kind=kind, sources=known, overwrite=overwrite)
    for name, rows in splits.items():
        typer.echo(
            f"{name}: {len(rows)} rows in {files[name]}" if name in files else f"{name}: left out, it has no rows"
        )
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
