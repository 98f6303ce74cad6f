"""Rows out of a file, a folder or the Hub, as they stand there: text that looks like a number or a date is text.

In: a path or a Hub id. Out: a `Dataset`, or a `DatasetDict` of splits. The readers of `datasets` for CSV and JSON take
`007` for 7, `NA` for nothing and `2024-01-02` for a date; here a file of rows is parsed by its own rules, and only JSON
has numbers and nulls. Knows no columns but those that this library itself writes as numbers.
"""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from legend_hf.hub import cards, outputs
from legend_hf.hub.transfer import without_secrets

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

_VERSION = 1  # of what files are parsed into
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_SPLIT = re.compile(r"\w+(\.\w+)*")
_SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` leaves in its folder
# Columns that are numbers wherever they stand: what this library writes, and the label of PKU-SafeRLHF.
_NUMBERS = re.compile(
    r"margin(_raw|_prob|_bin)?(_\w+)?|(chosen|rejected)_score(_\w+)?|score_(best|gap)(_\w+)?|pair_similarity"
    r"|safer_response_id|better_response_id"
)
_INTEGERS = ("safer_response_id", "better_response_id")


def load_rows(
    source: str | os.PathLike[str],
    config: str | None = None,
    split: str | None = None,
    *,
    data_dir: str | None = None,
    data_files: Sequence[str] = (),
    revision: str | None = None,
    numbers: Collection[str] = (),
) -> Any:
    """Loads rows from a file, a folder (saved or plain) or the Hub; never writes into a folder.

    Args:
        source: A file (`.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet`), a folder, or a Hub id.
        config: Configuration, where there are several.
        split: One split; None gives all of them.
        data_dir: Folder below a folder or in a repository, whose rows alone are taken.
        data_files: Files there, whose rows alone are taken.
        revision: Branch, tag or commit on the Hub.
        numbers: Columns that are numbers in CSV, too, where all else is text but what this library writes as numbers.

    Returns:
        A `Dataset` where a split was asked for, else a `DatasetDict` (a `Dataset`, where `save_to_disk` saved one).

    Raises:
        ValueError: A file of another kind, one that cannot be read, a split that is not there, or a part of what has
            none.
        OSError: Nothing is there.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError
    from pyarrow import ArrowInvalid

    path = Path(source)
    source = os.fspath(source)
    suffix = path.suffix.lower()
    saved = not (path / outputs.MANIFEST).is_file() and any((path / name).is_file() for name in _SAVED)
    parts = {"data_dir": data_dir, "data_files": list(data_files) or None}
    _check_parts(source, saved or path.is_file(), {"config": config, **parts, "revision": revision})
    if not os.path.exists(source) and (suffix in _READERS or not _HUB_ID.fullmatch(source)):
        shown = without_secrets(source)
        raise ValueError(f"there is no file or folder {shown!r} here, and it is no Hub id; give one that is there")
    try:
        if saved:
            return _load_saved(path, split)
        if path.is_dir() or not os.path.exists(source):
            return _load_folder(source, split, numbers, name=config, revision=revision, **parts)
        if suffix not in _READERS:
            raise ValueError(f"{source!r} ends in {path.suffix!r}; allowed are {', '.join(_READERS)}")
        return load_dataset("parquet", data_files=_escaped(path, numbers), split=split)
    except (DatasetGenerationError, ArrowInvalid) as error:
        raise ValueError(f"{source!r} cannot be read: {_reason(error)}") from error


def check_splits(names: Iterable[str]) -> None:
    """Refuses, before the work, names of splits that `load_dataset` would not give back from what is saved.

    Raises:
        ValueError: One is `all`, which stands for the union, or has other signs than letters, digits, `_` and `.`.
    """
    for name in names:
        if not _SPLIT.fullmatch(name) or name.lower() == "all":
            raise ValueError(
                f"a split called {name!r} could not be loaded again; rename it, or give it alone "
                f'(`split="{name}"`), and it is saved as `train`'
            )


def _check_parts(source: str, whole: bool, asked: Mapping[str, Any]) -> None:
    """Refuses to look for a part where there is none: what was asked for would be left out of account."""
    for name, given in asked.items():
        if given is not None and (whole or (name == "revision" and os.path.exists(source))):
            what = "a folder" if os.path.isdir(source) else "a file"
            has = "revisions are the Hub's" if name == "revision" else "it is read as a whole"
            raise ValueError(f"`{name}` is {given!r}, and {source!r} is {what} here: {has}; leave `{name}` out")


def _load_folder(source: str, split: str | None, numbers: Collection[str], **part: Any) -> Any:
    """Loads what `load_dataset` finds under a name, be it a folder's or the Hub's; `part` says which of it."""
    from datasets import load_dataset, load_dataset_builder

    if os.path.isdir(source):
        plain = glob.escape(source) == source
        with nullcontext(source) if plain else _mirror(source) as asked:
            found = load_dataset_builder(asked, **part).config.data_files or {}
            files = {name: [os.path.relpath(file, asked) for file in files] for name, files in found.items()}
        kinds = {Path(file).suffix.lower() for several in files.values() for file in several}
        if kinds <= _READERS.keys() and not (plain and kinds == {".parquet"}):
            named = {name: [_escaped(Path(source) / file, numbers) for file in files[name]] for name in files}
            return load_dataset("parquet", data_files=named, split=split)
    loaded = load_dataset(source, split=split, **part)
    if not os.path.exists(source) and _of_a_folder(loaded):
        raise ValueError(
            f"there is no file or folder {source!r} here, and the Hub has no such dataset; the datasets cache knows a "
            "folder of that name, which is gone or elsewhere; give the whole path"
        )
    return loaded


@contextmanager
def _mirror(folder: str) -> Iterator[str]:
    """The same files below another name: `datasets` takes brackets in a folder's name for a pattern, and finds none."""
    with TemporaryDirectory(prefix="legend_hf_") as mirror:
        for above, _, names in os.walk(folder):
            below = Path(mirror) / os.path.relpath(above, folder)
            below.mkdir(exist_ok=True)
            for name in names:
                (below / name).symlink_to(os.path.abspath(os.path.join(above, name)))
        yield mirror


def _of_a_folder(loaded: Any) -> bool:
    """Whether the cache has these rows from a local folder: there a hash stands where the Hub's have a commit."""
    splits = loaded.values() if isinstance(loaded, dict) else [loaded]
    files = [file["filename"] for rows in splits for file in rows.cache_files]
    return any(re.fullmatch(r"[0-9a-f]{16}", Path(file).parent.name) for file in files)


def _reason(error: BaseException) -> str:
    """What lies at the bottom of an error of `datasets`, whose own words say little."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error) or type(error).__name__


# -- Folders of rows -----------------------------------------------------------------------------------------


def sources_of(source: str | os.PathLike[str], rows: Any = None) -> list[dict[str, str | None]] | None:
    """Which datasets of the Hub rows are from: `repo_id` and `revision` (the commit) of each; None if nobody knows.

    Args:
        source: What was given to `load_rows`.
        rows: What it gave, for the commit.
    """
    path = Path(source)
    if not path.exists():
        splits = rows.values() if isinstance(rows, dict) else [rows]
        files = [Path(file["filename"]) for one in splits if one is not None for file in one.cache_files]
        commits = {file.parent.name for file in files if re.fullmatch(r"[0-9a-f]{40}", file.parent.name)}
        return [{"repo_id": os.fspath(source), "revision": commits.pop() if len(commits) == 1 else None}]
    beside = source_file(path)
    if beside.is_file():
        try:
            noted = json.loads(outputs.read_text(beside)).get("sources")
        except (ValueError, AttributeError):
            noted = None
        return noted if isinstance(noted, list) else None
    for folder in (path, *path.absolute().parents):
        manifest = outputs.read_manifest(folder)
        if manifest is not None:
            return united_sources(manifest)
    return None


def source_file(file: str | os.PathLike[str]) -> Path:
    """Where it is noted what a file of rows was made of."""
    return Path(f"{os.fspath(file)}.source")


def note_sources(file: str | os.PathLike[str], sources: list[dict[str, str | None]] | None) -> None:
    """Notes beside a file of rows which datasets of the Hub they are from, if that is known."""
    if sources:
        beside = source_file(file)
        noted = json.loads(outputs.read_text(beside)) if beside.is_file() else {}
        outputs.write_whole(beside, json.dumps({**noted, "sources": sources}, ensure_ascii=False, indent=2) + "\n")


def named_ids(sources: list[dict[str, str | None]] | None) -> list[str] | None:
    """Sources as `source=` takes them: `id@commit`."""
    if sources is None:
        return None
    return [f"{one['repo_id']}@{one['revision']}" if one["revision"] else str(one["repo_id"]) for one in sources]


def united_sources(manifest: Mapping[str, Any]) -> list[dict[str, str | None]] | None:
    """The sources of all configurations of a folder that this library wrote; None if those of one are not known."""
    found: list[dict[str, str | None]] = []
    for config in (manifest.get("configs") or {"": {}}).values():
        if not isinstance(config.get("sources"), list):
            return None
        found += [source for source in config["sources"] if source not in found]
    return found


def check_rows_folder(
    folder: str | os.PathLike[str],
    *,
    rows: str | os.PathLike[str] | None = None,
    reads: Iterable[Any] = (),
    overwrite: bool = False,
) -> None:
    """Refuses, before any work, a folder that rows cannot be saved into by `save_rows`.

    Args:
        folder: Where they will be saved.
        rows: What will be loaded for it.
        reads: What else is read for it, such as models.
        overwrite: As for `save_rows`.

    Raises:
        ValueError: The place is taken, or lies in the rows that are read.
        OSError: It cannot be written.
    """
    writes = (outputs.MANIFEST, "data/train")
    outputs.check_folder(folder, writes, owned=outputs.owned_files(folder), reads=[rows, *reads], overwrite=overwrite)
    if not overwrite:
        outputs.check_outside(folder, [rows])


def save_rows(
    splits: Mapping[str, Dataset],
    folder: str | os.PathLike[str],
    *,
    kind: str = "parquet",
    sources: list[dict[str, str | None]] | None = None,
    overwrite: bool = False,
) -> dict[str, Path]:
    """Writes splits where `load_dataset(folder)` finds each under its name.

    Args:
        splits: Those without rows have no place there, and are left out.
        folder: Made if missing.
        kind: Of the files, "parquet" or "jsonl".
        sources: What the rows are from, as `sources_of` says.
        overwrite: Replace what stands in the way: files of the same names, and others of `data/`.

    Returns:
        The file of each split that has rows.

    Raises:
        ValueError: There is no row; the splits' columns differ; a split's name could not be loaded; the place is taken.
        OSError: It cannot be written.
    """
    filled = {name: rows for name, rows in splits.items() if len(rows)}
    if not filled:
        raise ValueError("there are no rows left to save, and nothing was written; give others, or ask for less")
    first = next(iter(filled.values())).features
    if any(rows.features != first for rows in filled.values()):
        raise ValueError(
            f"the splits {', '.join(filled)} differ in their columns, and could not be loaded from one folder; do them "
            "one at a time by `split=`"
        )
    check_splits(filled)
    check_rows_folder(folder, overwrite=overwrite)
    target = Path(folder)
    if (target / "data").is_dir():
        shutil.rmtree(target / "data")
    names = {name: f"data/{name}-00000-of-00001.{kind}" for name in filled}
    for name, rows in filled.items():
        # As many digits as float32 has, which are not the default of JSON.
        write = rows.to_parquet if kind == "parquet" else partial(rows.to_json, double_precision=15)
        outputs.write_whole(target / names[name], write)
    readme = target / outputs.README
    if readme.is_file():  # of somebody else: its text stays, but not what it says of where rows lie
        outputs.write_whole(readme, cards.without_layout(outputs.read_text(readme)))
    # No card of ours: by `configs:` in one, `datasets` takes folders of one name for the same, whatever is in them.
    outputs.write_manifest(target, "dataset", names.values(), configs={"default": {"sources": sources}})
    return {name: target / file for name, file in names.items()}


# -- What `save_to_disk` wrote -------------------------------------------------------------------------------


def _load_saved(folder: Path, split: str | None) -> Dataset | DatasetDict:
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
        names = json.loads(outputs.read_text(dictionary))["splits"]
        if split is None:
            return DatasetDict({name: _load_saved_split(folder / name, name) for name in names})
        if split in names:
            return _load_saved_split(folder / split, split)
        there = f"the splits {', '.join(names)}"
    raise ValueError(f"`split` is {split!r}, and {str(folder)!r} holds {there}")


def _load_saved_split(folder: Path, name: str | None) -> Dataset:
    """Loads one split from the files that are its own; others may lie beside them."""
    from datasets import Dataset, DatasetInfo, load_dataset

    state = json.loads(outputs.read_text(folder / "state.json"))
    if name is None:
        named = re.match(r"\w+", state.get("_split") or "")  # a slice is called "train[:10]"
        name = named[0] if named else "train"
    features = DatasetInfo.from_directory(str(folder)).features
    files = [str(folder / file["filename"]) for file in state["_data_files"]]
    if name.lower() == "all" or not _SPLIT.fullmatch(name):
        name = "train"  # which `load_dataset` takes for a split
    filled = [glob.escape(file) for file in files if len(Dataset.from_file(file))]
    if not filled:  # which `load_dataset` does not take
        return Dataset.from_dict({column: [] for column in features}, features=features, split=name)
    return load_dataset("arrow", data_files={name: filled}, features=features, split=name)


# -- Files of rows -------------------------------------------------------------------------------------------


def _escaped(file: Path, numbers: Collection[str]) -> str:
    """A file for the reader of Parquet, to which a name is a pattern."""
    read = _READERS[file.suffix.lower()]
    return glob.escape(str(file if read is None else _as_parquet(file, read, numbers)))


def _as_parquet(file: Path, read: Callable[[str, str], dict[str, list[Any]]], numbers: Collection[str]) -> Path:
    """The rows of a text file in the datasets cache, under a name that changes with the file.

    Raises:
        ValueError: The file is not UTF-8, holds no rows, or is torn; by its line.
    """
    import datasets

    state = file.stat()
    name = json.dumps([_VERSION, os.path.realpath(file), state.st_size, state.st_mtime_ns, sorted(numbers)])
    cached = Path(datasets.config.HF_DATASETS_CACHE) / "legend_hf" / hashlib.sha256(name.encode()).hexdigest()[:16]
    parquet = cached / f"{re.sub(r'[^A-Za-z0-9_-]', '_', file.stem)[:40]}.parquet"
    if not parquet.is_file():
        columns = read(outputs.read_text(file), str(file))
        if read is not _read_json:
            columns = {name: _numbers(name, values, numbers) for name, values in columns.items()}
        if not any(columns.values()):
            raise ValueError(f"{str(file)!r} is empty; give rows")
        outputs.write_whole(parquet, partial(_table(columns, str(file)).to_parquet))
    return parquet


def _table(columns: dict[str, list[Any]], shown: str) -> Dataset:
    from datasets import Dataset, List

    try:
        table = Dataset.from_dict(columns, on_mixed_types="use_json")
        shielded = {name: _shielded(values, List(table.features[name])) for name, values in columns.items()}
        return Dataset.from_dict(shielded, features=table.features) if shielded != columns else table
    except (TypeError, ValueError, OverflowError, RecursionError) as error:  # pyarrow's own are among them
        for name, values in columns.items():
            try:
                Dataset.from_dict({name: values}, on_mixed_types="use_json")
            except (TypeError, ValueError, OverflowError, RecursionError) as one:
                raise ValueError(f"{shown!r} cannot be read: column {name!r}: {one}; give values of one type") from one
        raise ValueError(f"{shown!r} cannot be read: {error}") from error


def _shielded(value: Any, feature: Any) -> Any:
    """A value whose strings stay strings in columns of several types, which `datasets` would read as JSON."""
    from datasets import Json, List

    if isinstance(feature, Json):
        return json.dumps(value) if isinstance(value, str) else value
    if isinstance(feature, List) and isinstance(value, list):
        return [_shielded(item, feature.feature) for item in value]
    if isinstance(feature, dict) and isinstance(value, dict):
        return {name: _shielded(value.get(name), kind) for name, kind in feature.items()}
    return value


def _read_json(text: str, shown: str) -> dict[str, list[Any]]:
    """JSON lines, or one array of objects."""
    rows: list[Any] = []
    for line, value in _values(text, shown):
        if isinstance(value, list) and not rows:
            rows += value
        elif isinstance(value, dict):
            rows.append(value)
        else:
            raise ValueError(f"{shown!r} cannot be read: line {line} holds {str(value)[:40]!r}, and no row; {_ROWS}")
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"{shown!r} cannot be read: row {number} is {str(row)[:40]!r}; {_ROWS}")
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: [row.get(name) for row in rows] for name in names}


_ROWS = 'give an object a line, `{"prompt": ..., "chosen": ..., "rejected": ...}`'


def _values(text: str, shown: str) -> Iterator[tuple[int, Any]]:
    """Every JSON value of a text with the number of its first line."""
    decoder, place, line = json.JSONDecoder(), 0, 1
    space = re.compile(r"[ \t\r\n]*")
    while True:
        begin = space.match(text, place).end()  # type: ignore[union-attr]
        line += text.count("\n", place, begin)
        if begin == len(text):
            return
        try:
            value, place = decoder.raw_decode(text, begin)
        except (ValueError, RecursionError) as error:
            said = error.msg if isinstance(error, json.JSONDecodeError) else "it is nested too deep"
            where = line + text.count("\n", begin, getattr(error, "pos", begin))
            raise ValueError(f"{shown!r} cannot be read: line {where} is no JSON: {said}; {_ROWS}") from error
        yield line, value
        line += text.count("\n", begin, place)


def _read_csv(text: str, shown: str, delimiter: str = ",") -> dict[str, list[Any]]:
    """Values separated by commas or tabs below a line of names; all of them text but what must be numbers."""
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names: list[str] = []
    rows: list[list[str]] = []
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise ValueError(f"{shown!r} cannot be read: line {reader.line_num}: {error}; quote it as CSV") from error
        if row is None:
            break
        if not row:
            continue
        if not names:
            names = row
            if len({*names}) < len(names):
                raise ValueError(f"{shown!r} cannot be read: two columns have the same name in line 1; rename one")
            continue
        if len(row) != len(names):
            raise ValueError(
                f"{shown!r} cannot be read: the row that ends in line {reader.line_num} has {len(row)} values, and "
                f'there are {len(names)} columns; quote a value that holds a separator: "a{delimiter} b"'
            )
        rows.append(row)
    return {name: [row[i] for row in rows] for i, name in enumerate(names)}


def _numbers(name: str, values: list[str], numbers: Collection[str]) -> list[Any]:
    """The numbers of a column that is one by its name; text stays as it is."""
    if not _NUMBERS.fullmatch(name) and name not in numbers:
        return values
    try:
        return [int(v) if name in _INTEGERS else float(v) for v in values]
    except ValueError:
        return values


_READERS: dict[str, Callable[[str, str], dict[str, list[Any]]] | None] = {
    ".jsonl": _read_json,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": partial(_read_csv, delimiter="\t"),
    ".parquet": None,
}
