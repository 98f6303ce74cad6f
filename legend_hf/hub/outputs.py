"""Places to write into: whose files stand there, and whether anything can be written, known before the work.

In: a path, and what is read meanwhile. Out: nothing, or the reason why that place is not free. Every folder that this
library writes holds a small JSON file that names the files it wrote, so that its own can be told from others'. Knows
files only: no rows, no directions.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from legend_hf._version import __version__

MANIFEST = "legend_hf.json"
"""Beside what was saved; `load_dataset` does not read it, since the saved rows lie in folders of their own."""
README = "README.md"
FORMAT = 1
_ASK = "give another, or pass `overwrite=True`"


def check_folder(
    folder: str | os.PathLike[str],
    writes: Collection[str],
    *,
    owned: Collection[str] = (),
    again: bool = False,
    reads: Iterable[str | os.PathLike[str] | None] = (),
    overwrite: bool = False,
) -> None:
    """Refuses, before any work, a folder that cannot be written, or in which something would be lost.

    What is there stays, unless it is the same thing again: what cost work, or is somebody else's, is not replaced
    without a word.

    Args:
        folder: Where to write; made later if missing. Hidden files in it count for nothing: none is read or touched.
        writes: Names of the files to come, relative to the folder, as far as they are known.
        owned: Names of the files in it that this library wrote.
        again: Whether those may be replaced, since it is the same again or costs little.
        reads: Files and folders that are read for it; names that are none, such as Hub ids, are passed over.
        overwrite: Replace what stands in the way. Not what is read: that would be lost while it is needed.

    Raises:
        ValueError: The place is taken.
        OSError: It cannot be written.
    """
    target, shown = Path(folder), repr(os.fspath(folder))
    if target.exists() and not target.is_dir():
        raise ValueError(f"{shown} is a file, and a folder must be there; give another")
    targets = [target / name for name in writes]
    # A folder below belongs to what is written: it is replaced with all that is in it.
    taken = {target / Path(name).parts[0] for name in writes}
    for source in _local(reads):
        if (source.is_dir() and _same_place(source, target)) or any(_holds(place, source) for place in taken):
            raise ValueError(f"{shown} is what is read ({str(source)!r}), which would be lost; give another")
        if not overwrite and _holds(target, source):
            raise ValueError(f"{shown} holds what is read ({str(source)!r}); {_ASK} to write beside it")
    for place in targets:
        _check_way(place, target)
    check_writable(target)
    if (target / README).is_file():
        read_text(target / README)  # what somebody wrote there stays, so it must be readable
    if overwrite:
        return
    there = _files(target) - {MANIFEST}
    foreign = sorted(there - {*owned})
    if owned:  # in a folder of ours, what lies beside what is written is left as it is
        foreign = [name for name in foreign if target / Path(name).parts[0] in taken]
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise ValueError(
            f"{shown} holds files that were not written by this library: {', '.join(map(repr, foreign[:3]))}{more}; "
            f"{_ASK} to replace what stands in the way"
        )
    if there & {*owned} and not again:
        raise ValueError(f"{shown} holds an earlier result; {_ASK} to replace it")


def check_outside(path: str | os.PathLike[str], rows: Iterable[str | os.PathLike[str] | None]) -> None:
    """Refuses a place inside of a folder of rows that are read: the next time, what is written would be rows, too.

    Raises:
        ValueError: The place lies in one of them.
    """
    for source in _local(rows):
        if source.is_dir() and _holds(source, Path(path)):
            raise ValueError(
                f"{os.fspath(path)!r} lies in the dataset that is read ({str(source)!r}), and would be loaded with it; "
                f"{_ASK} to write into it"
            )


def check_file(
    file: str | os.PathLike[str],
    *,
    suffix: str | None = None,
    reads: Iterable[str | os.PathLike[str] | None] = (),
    ours: Callable[[Path], bool] = lambda file: False,
    overwrite: bool = False,
) -> None:
    """Refuses, before any work, a file that cannot be written, or whose content would be lost.

    Args:
        file: Where to write; the folders above are made later if missing.
        suffix: What its name must end in.
        reads: Files and folders that are read for it.
        ours: Whether what is there is an earlier result of the same kind, which the new one may replace.
        overwrite: Replace what is there.

    Raises:
        ValueError: The place is taken, or has another ending.
        OSError: It cannot be written.
    """
    target, shown = Path(file), repr(os.fspath(file))
    if suffix is not None and target.suffix != suffix:
        raise ValueError(f"{shown} cannot be read again as what it will be; give a file that ends in `{suffix}`")
    if target.is_dir():
        raise ValueError(f"{shown} is a folder, and a file must be there; give another")
    for source in _local(reads):
        if _holds(target, source):
            raise ValueError(f"{shown} is what is read, which would be lost; give another")
    _check_way(target, target.parent)
    check_writable(target.parent)
    if target.exists() and not overwrite and not ours(target):
        raise ValueError(f"{shown} exists and something else made it; {_ASK} to replace it")


def check_writable(folder: Path) -> None:
    """Tries to write into a folder, or where it will be made; leaves nothing behind.

    Raises:
        ValueError: A file stands where one of the folders must be.
        OSError: Nothing can be written there.
    """
    nearest = folder.absolute()
    while not os.path.lexists(nearest):
        nearest = nearest.parent
    if not nearest.is_dir():
        raise ValueError(f"{str(nearest)!r} is no folder, and {str(folder)!r} cannot be made in it; give another place")
    try:
        with TemporaryDirectory(prefix=".partial_", dir=nearest):
            pass
    except OSError as error:
        raise OSError(f"nothing can be written into {str(nearest)!r}: {error.strerror or error}") from error


def read_manifest(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What this library wrote of a folder's files; None where it did not write them."""
    try:
        found = json.loads((Path(folder) / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get("kind"), str):
        return None
    files = found.get("files")
    return found if isinstance(files, list) and all(isinstance(name, str) for name in files) else None


def owned_files(folder: str | os.PathLike[str]) -> set[str]:
    """Names of the files in a folder that this library wrote, by its own record."""
    manifest = read_manifest(folder)
    return set(manifest["files"]) if manifest is not None else set()


def write_manifest(folder: str | os.PathLike[str], kind: str, files: Iterable[str], **facts: Any) -> None:
    """Says in a folder which of its files this library wrote, and what else is known of them."""
    said = {"format": FORMAT, "library": f"legend_hf {__version__}", "kind": kind, "files": sorted({*files}), **facts}
    write_whole(Path(folder) / MANIFEST, json.dumps(said, indent=2, ensure_ascii=False) + "\n")


def write_whole(path: Path, content: str | bytes | Callable[[Path], Any]) -> None:
    """Writes a whole file or none: text, bytes, or what a function writes into the path that it is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".partial_", dir=path.parent) as folder:  # private, and gone whatever happens
        part = Path(folder) / path.name
        if isinstance(content, str):
            part.write_bytes(content.encode("utf-8"))
        elif isinstance(content, bytes):
            part.write_bytes(content)
        else:
            content(part)
        os.replace(part, path)


def read_text(file: str | os.PathLike[str]) -> str:
    """A file's text without a byte order mark, its line ends as they are.

    Raises:
        ValueError: It is not UTF-8; by its line.
        OSError: It cannot be read.
    """
    content, shown = Path(file).read_bytes(), repr(os.fspath(file))
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = content[: error.start].count(b"\n") + 1, content[error.start]
        likely = "UTF-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "WINDOWS-1252"
        raise ValueError(
            f"{shown} is not UTF-8: line {line} holds the byte 0x{byte:02x}; write it anew in UTF-8, by `iconv -f "
            f"{likely} -t UTF-8` or whatever it was made in"
        ) from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise ValueError(f"{shown} is no text: line {line} holds a zero byte; give a text file")
    return text


def _local(names: Iterable[str | os.PathLike[str] | None]) -> list[Path]:
    return [Path(name) for name in names if name is not None and os.path.exists(name)]


def _same_place(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and os.path.samefile(one, other)


def _holds(place: Path, what: Path) -> bool:
    """Whether a path is that place or lies below it, whatever links lead there."""
    inner, outer = os.path.realpath(what), os.path.realpath(place)
    return _same_place(place, what) or os.path.commonpath([inner, outer]) == outer


def _check_way(place: Path, target: Path) -> None:
    """Refuses a file where a folder must be, and a folder where a file must be."""
    if place.is_dir():
        raise ValueError(f"{str(place)!r} is a folder, and a file must be there; give another place")
    for above in place.parents:
        if above == target:
            break
        if os.path.lexists(above) and not above.is_dir():
            raise ValueError(f"{str(above)!r} is a file, and a folder must be there; give another place")


def _files(folder: Path) -> set[str]:
    """Every file below a folder but the hidden ones, relative to it."""
    found = set()
    for above, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found |= {(Path(above) / name).relative_to(folder).as_posix() for name in names if not name.startswith(".")}
    return found
