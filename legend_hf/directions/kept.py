"""What a fit has read is on disk until the fit ends well: a run that was stopped goes on where it was.

In: what decides the vectors, and blocks of differences in their order. Out: the blocks that are there already, to the
bit. A file is one fit's: its name is a digest of all that decides its numbers, so the same fit finds it again and no
other one does. It is as large as what was read: 4 bytes a layer, pair and dimension; what nobody came back for in 30
days, the next fit deletes. This file knows neither texts nor models.
"""

from __future__ import annotations

import logging
import os
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from legend_hf.hub.transfer import without_secrets
from legend_hf.reading.plain import digest_of

logger = logging.getLogger(__name__)

SUFFIX = ".differences"
DAYS = 30.0
"""How long what a stopped fit has read waits for it to go on."""
_MAGIC = b"legend_hf differences 1\n"
_CHECK = 4  # bytes of checksum before each block


class KeptDifferences:
    """Blocks of differences in a folder, in their order; `with` closes it.

    Args:
        folder: Where stopped fits are kept; made if missing.
        deciding: All that decides the numbers, as JSON has it.

    Raises:
        ValueError: The folder is a URL.
        OSError: The folder cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str], deciding: Any) -> None:
        if "://" in os.fspath(folder):
            raise ValueError(f"`store` is {without_secrets(os.fspath(folder))!r}; give a folder on a local disk")
        digest = digest_of(deciding)
        self.path = Path(folder).expanduser().resolve() / f"{digest}{SUFFIX}"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        forget(self.path.parent, but=self.path)
        # Private: whose texts these are can be guessed.
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        self._file = os.fdopen(handle, "r+b")
        self._number = 0

    def __enter__(self) -> KeptDifferences:
        """Has the file for this process alone."""
        try:
            _lock(self._file)
        except BlockingIOError as error:
            self._file.close()
            raise BlockingIOError(
                f"the same fit is running in another process, and keeps what it reads in {str(self.path)!r}; wait for "
                "it, or name another folder with `store=`"
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def blocks(self, shape: tuple[int, int], rows: list[int]) -> Iterator[np.ndarray]:
        """The blocks that are there and whole, `[layers, rows, d_model]` each; what follows the last one is cut off.

        Args:
            shape: Layers and dimensions.
            rows: Pairs of each block.
        """
        self._file.seek(0)
        end = len(_MAGIC)
        if self._file.read(end) != _MAGIC:
            self._file.seek(0)
            self._file.truncate()
            self._file.write(_MAGIC)
        for number, pairs in enumerate(rows):
            size = 4 * shape[0] * pairs * shape[1]
            check, content = self._file.read(_CHECK), self._file.read(size)
            if len(content) < size or check != self._checked(number, content):
                break
            end += _CHECK + size
            self._number = number + 1
            yield np.frombuffer(content, dtype="<f4").reshape(shape[0], pairs, shape[1])
        self._file.truncate(end)
        self._file.seek(end)

    def keep(self, block: np.ndarray) -> None:
        """Writes the next block; on return it outlives a kill of this process."""
        content = np.ascontiguousarray(block, dtype="<f4").tobytes()
        try:
            self._file.write(self._checked(self._number, content) + content)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OSError(
                f"what was read cannot be kept in {str(self.path)!r} ({error}); make room and run the same again to go "
                "on, or name a folder on another disk with `store=`"
            ) from error
        self._number += 1

    def remove(self) -> None:
        """Deletes the file: the fit has ended well."""
        self.path.unlink(missing_ok=True)

    @staticmethod
    def _checked(number: int, content: bytes) -> bytes:
        return zlib.crc32(content, number).to_bytes(_CHECK, "little")


def forget(folder: str | os.PathLike[str], *, unused_days: float = DAYS, but: Path | None = None) -> int:
    """Deletes what stopped fits left in a folder: each is as large as all that it read.

    Args:
        folder: Where stopped fits are kept.
        unused_days: How long nobody came back for it.
        but: A file that stays; so do those of fits that are running.

    Returns:
        How many.
    """
    gone = 0
    for path in Path(folder).expanduser().glob(f"{'[0-9a-f]' * 64}{SUFFIX}"):
        with suppress(OSError):  # another process has it or was quicker, or it is another user's
            if path != but and time.time() - path.stat().st_mtime >= unused_days * 86400:
                with open(path, "rb") as file:
                    _lock(file)
                    path.unlink()
                gone += 1
                logger.info("deleted %s, kept for a fit that was stopped", path)
    return gone


def _lock(file: IO[bytes]) -> None:
    """Has a file for this process alone; where another one has it, a BlockingIOError."""
    with suppress(ImportError):  # Windows has no such locks
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def default_folder() -> Path:
    """Where the command line keeps what stopped fits have read: under the Hugging Face assets cache."""
    from huggingface_hub.constants import HF_ASSETS_CACHE

    return Path(HF_ASSETS_CACHE) / "legend_hf" / "fits"
