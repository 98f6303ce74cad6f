"""Pieces of an output, each a whole Parquet file that says how far it goes, at any fsspec URL.

In: tables, and where the reading of the source stood after each. Out: files that `load_dataset` finds, and, of a run
that was stopped, where to go on. A piece stands whole or not at all, and is never written again; so any number of jobs
may write beside each other. This file knows neither streams nor transforms.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from legend_hf.hub.outputs import write_whole
from legend_hf.hub.transfer import open_url, without_secrets
from legend_hf.scale.shards import Shard

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_A_FILE = 10_000
"""What is held in memory at a time, and lost where a run is killed."""
_KEY = b"legend_hf"
_PIECE = re.compile(
    r"(?P<split>[\w.]+)-(?P<number>[0-9]{5})-of-(?P<of>[0-9]{5})-(?P<piece>[0-9]{5})\.parquet"
)  # of any script's letters, as names of splits are


@dataclass(frozen=True)
class Reached:
    """How far a piece goes, and of what it is one.

    Attributes:
        made_by: Digest of all that decides the columns.
        source: The rows' name, as it was given; None where it has none.
        rows: Of this part of the source, up to the piece's end.
        state: Where the reading of the source stands, as JSON has it.
        last: Whether no row comes after it.
    """

    made_by: str
    source: str | None
    rows: int
    state: Any
    last: bool


@dataclass(frozen=True)
class Pieces:
    """The pieces of one part of one split.

    Attributes:
        output: Folder or fsspec URL.
        split: Name of the split.
        shard: Which part of it.
    """

    output: str
    split: str
    shard: Shard

    def path(self, piece: int) -> str:
        """Where a piece stands; `load_dataset(output)` finds it there, in the order of the rows."""
        return f"{self._root}/data/{self.split}-{self.shard.name}-{piece:05d}.parquet"

    def reached(self, made_by: str, source: str | None) -> tuple[int, Reached | None]:
        """How many pieces are complete, and how far the last of them goes.

        Raises:
            ValueError: What stands there was made by another transform, of another source, or in other parts.
        """
        there = self._there()
        complete, last = 0, None
        while complete in there:
            found = self._read(self.path(complete))
            if found is None:
                break
            complete, last = complete + 1, found
        asked = (made_by, source or (last and last.source))
        if last is not None and (last.made_by, last.source or source) != asked:
            what = "by another direction or other options" if last.made_by != made_by else f"of {last.source!r}"
            raise ValueError(
                f"{self.shown!r} holds pieces of split {self.split!r} that were made {what}; give another output, or "
                "remove what is there"
            )
        return complete, last

    def write(self, piece: int, table: pa.Table, reached: Reached) -> None:
        """Writes a piece; on return it outlives this machine as well as its place does."""
        import pyarrow.parquet as pq

        said = json.dumps(asdict(reached), sort_keys=True).encode()
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), _KEY: said})
        # As `datasets` writes: a set that is annotated again uploads only what changed.
        write = partial(pq.write_table, table, use_content_defined_chunking=True, write_page_index=True)
        if self._local:
            write_whole(Path(self.path(piece)), write)
            return
        content = io.BytesIO()
        write(content)
        self._files.pipe_file(self.path(piece), content.getvalue())

    @property
    def shown(self) -> str:
        """The output for a message."""
        return without_secrets(self.output)

    @property
    def _files(self) -> Any:
        return opened(self.output)[0]

    @property
    def _root(self) -> str:
        return opened(self.output)[1]

    @property
    def _local(self) -> bool:
        protocol = self._files.protocol
        return "file" in ((protocol,) if isinstance(protocol, str) else protocol)

    def _there(self) -> set[int]:
        """The pieces of this part; refuses those of other parts."""
        files = self._files
        files.invalidate_cache()
        try:
            names = [str(name).rpartition("/")[2] for name in files.ls(f"{self._root}/data", detail=False)]
        except FileNotFoundError:
            return set()
        found = [one for one in map(_PIECE.fullmatch, names) if one is not None and one["split"] == self.split]
        other = next((int(one["of"]) for one in found if int(one["of"]) != self.shard.of), None)
        if other is not None:
            raise ValueError(
                f"{self.shown!r} holds parts of {other}, and this is one of {self.shard.of}: together rows would "
                f"stand twice; give `shard` as i/{other}, or another output"
            )
        return {int(one["piece"]) for one in found if int(one["number"]) == self.shard.number}

    def _read(self, path: str) -> Reached | None:
        """What a piece says; None where it is not whole or not ours, and is to be written again."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with self._files.open(path, "rb") as file:
                said = (pq.read_schema(file).metadata or {}).get(_KEY)
            return Reached(**json.loads(said)) if said is not None else None
        except (pa.ArrowInvalid, ValueError, TypeError):
            return None


def check_apart(output: str, sources: Iterable[str]) -> None:
    """Refuses an output inside of a folder that is read: the next time, what was written would be read, too.

    Raises:
        ValueError: It lies in one of them.
    """
    files, root = _real(output)
    for source in sources:
        there, folder = _real(source)
        if there.protocol == files.protocol and f"{root}/".startswith(f"{folder}/") and there.isdir(folder):
            raise ValueError(
                f"{without_secrets(output)!r} lies in what is read ({without_secrets(source)!r}), and would be read "
                "with it the next time; give a place outside"
            )


def _real(place: str) -> tuple[Any, str]:
    files, root = opened(place)
    return files, os.path.realpath(root) if "file" in files.protocol else root


def opened(place: str) -> tuple[Any, str]:
    """The file system of a folder or URL, and the path in it, without a slash at its end."""
    files, root = open_url(place)
    return files, root.rstrip("/")
