"""What `load_dataset` finds in a repository: its configurations, their splits, and the files of each.

In: names of files, and a README. Out: what would be loaded. `datasets` itself is asked, over empty files of the same
names, so what holds here holds there; no file is read and nothing is downloaded. Knows no rows and no cards.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from legend_hf.hub import transfer

logger = logging.getLogger(__name__)

# What `datasets` reads of these decides more than their name; what lies beside data is no data.
_NOT_DATA = re.compile(
    r"(dataset_infos\.json|legend_hf\.json|\.huggingface\.ya?ml|(?i:licen[cs]e|notice|readme|notes?|changelog|citation)[^/]*\.txt)"
)


@dataclass(frozen=True)
class Layout:
    """What can be loaded.

    Attributes:
        files: Configuration to split to the paths of its files.
        default: The configuration that is loaded where none is named; None: one must be named, or there is none.
        kind: Which of `datasets`' readers reads all of them; None where there is nothing.
    """

    files: Mapping[str, Mapping[str, tuple[str, ...]]]
    default: str | None
    kind: str | None


def layout_of(paths: Iterable[str], readme: str | None) -> Layout:
    """Says what `load_dataset` would find in these files under this README; what cannot be loaded is left out.

    Raises:
        ValueError: Only what is in an archive would tell.
    """
    from datasets import get_dataset_config_names, get_dataset_default_config_name, load_dataset_builder

    data = [path for path in paths if path != transfer.README and not _NOT_DATA.fullmatch(path)]
    # A server says what it likes, and here files are made.
    data = [path for path in data if not path.startswith("/") and ".." not in path.split("/")]
    if not data:
        return Layout({}, None, None)
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    default = kind = None
    with TemporaryDirectory(prefix="legend_hf_") as parent:
        folder = Path(parent, "data").resolve()
        folder.mkdir()
        for path in data:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).touch()
        if readme is not None:
            (folder / transfer.README).write_bytes(readme.encode())
        try:
            names = get_dataset_config_names(str(folder))
            default = get_dataset_default_config_name(str(folder))
        except Exception as error:  # whatever it is, it would be raised at a reader of the repository too
            logger.debug("nothing can be loaded: %s", error)
            if any(path.lower().endswith(".zip") for path in data):
                raise ValueError(
                    "what is there lies in archives, and what `load_dataset` makes of them cannot be told from "
                    "outside; choose another place"
                ) from error
            return Layout({}, None, None)
        for name in names:
            try:
                builder = load_dataset_builder(str(folder), name, cache_dir=str(Path(parent, "cache")))
            except Exception as error:  # as above
                logger.debug("configuration `%s` cannot be loaded: %s", name, error)
                continue
            kind = builder.name
            found[name] = {
                str(split): tuple(sorted(Path(file).relative_to(folder).as_posix() for file in files))
                for split, files in (builder.config.data_files or {}).items()
            }
    return Layout(found, default if default in found else None, kind)


def data_files(splits: Mapping[str, Collection[str]], there: Collection[str]) -> list[dict[str, Any]]:
    """The `data_files` of a card that name exactly these files: by a pattern where `datasets` itself would use one.

    Args:
        splits: Split to its files.
        there: All files of the repository.
    """
    entries: list[dict[str, Any]] = []
    for split, files in splits.items():
        starts = {f"{file.rpartition('/')[0]}/{split}-" for file in files if "/" in file}
        start = next(iter(starts)) if len(starts) == 1 else None
        if start is not None and not re.search(r"[*?[]", start) and set(files) == {
            path for path in there if path.startswith(start) and "/" not in path[len(start) :]
        }:  # fmt: skip
            entries.append({"split": split, "path": f"{start}*"})
        else:
            exact = [re.sub(r"([*?[])", r"[\1]", file) for file in files]
            entries.append({"split": split, "path": exact[0] if len(exact) == 1 else exact})
    return entries


def changed(before: Layout, after: Layout, *, but: Collection[str]) -> list[str]:
    """The configurations, but for some, that would not be what they were."""
    return [name for name in before.files if name not in but and after.files.get(name) != before.files[name]]


def check_same(before: Layout, after: Layout, *, new: Collection[str]) -> None:
    """Refuses what `load_dataset` could not read as it was, or not at all.

    Args:
        before: What could be loaded.
        after: What could be now.
        new: The configurations that were written.

    Raises:
        ValueError: As said.
    """
    lost = [name for name in new if name not in after.files or after.kind != "parquet"]
    for name in (*changed(before, after, but=new), *lost):
        raise ValueError(
            f"after this, `load_dataset` could not read config `{name}` as it is, beside what else is there; choose "
            "another `config_name`, or another place"
        )
