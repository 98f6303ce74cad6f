"""Encoded pairs become differences of vectors, for all layers in one pass of the model.

In: both sides' token ids and an open reader. Out: chosen minus rejected, `[layers, n, d_model]`, float32, in memory
or, when that is large, in a temporary file that is mapped into it. A layer is one piece of it, so that a fit, which
looks at one layer after the other, needs memory for one. This file knows no directions and no folds.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence

import numpy as np

from legend_hf.directions.kept import KeptDifferences
from legend_hf.reading import progress
from legend_hf.reading.formats import Pair, response_length
from legend_hf.reading.reader import OpenReader
from legend_hf.reading.stopping import finish_batches, how_to_go_on
from legend_hf.reading.templates import Tokens

# 33 layers of width 4096 and 10 000 pairs are 5 GiB, which a machine that holds such a model may not have twice.
IN_MEMORY = 1 << 30
AT_ONCE = 128
"""Pairs that are read together, and kept together: what a stopped fit loses at most. With a store or without, so that
the numbers are the same to the bit."""


def read_differences(
    opened: OpenReader,
    texts: Sequence[tuple[Tokens, Tokens]],
    layers: Sequence[int],
    *,
    batch_tokens: int | None = None,
    in_memory: int = IN_MEMORY,
    kept: KeptDifferences | None = None,
    skipped: int = 0,
) -> np.ndarray:
    """Reads both sides of every pair and subtracts. SIGINT and SIGTERM wait for the forward pass at hand.

    Neither side is kept: whichever is read first waits in the other's place, so there is never more than one vector a
    pair and layer.

    Args:
        opened: The reader, with its model.
        texts: Encoded pairs, chosen first.
        layers: Indices into `hidden_states`.
        batch_tokens: Most tokens in one forward pass.
        in_memory: Most bytes of differences to hold in memory; more go to a file in the temporary folder, which has no
            name and is gone with the array, however the process ends.
        kept: Where the differences are kept as soon as they are read, and those of a run that was stopped are found.
        skipped: Pairs that were skipped, for the progress bar.

    Returns:
        Vector of chosen minus vector of rejected, `[layers, n, d_model]`, float32.

    Raises:
        OSError: The temporary folder has no room; `TMPDIR` names another.
    """
    differences = _zeros((len(layers), len(texts), opened.reader.d_model), in_memory)
    starts = range(0, len(texts), AT_ONCE)
    parts = [differences[:, first : first + AT_ONCE] for first in starts]
    said = how_to_go_on(None if kept is None else str(kept.path.parent))
    shown = progress.reading(len(texts), desc="Reading pairs", texts=2 * len(texts), skipped=skipped)
    with shown, finish_batches(said) as batch_is_done:
        done = 0
        if kept is not None:
            sizes = [part.shape[1] for part in parts]
            for part, block in zip(parts, kept.blocks((len(layers), opened.reader.d_model), sizes), strict=False):
                part[:] = block
                done += 1
                progress.read(2 * part.shape[1], known=True)
        for first, part in list(zip(starts, parts, strict=True))[done:]:
            flat = [side for pair in texts[first : first + AT_ONCE] for side in pair]
            left = len(flat)
            for index, hidden in opened.read(flat, layers, batch_tokens=batch_tokens):
                vectors = hidden.cpu().numpy()  # [b, layers, d_model]
                # One text at a time: a batch may hold both sides of a pair, and `+=` over places would lose one.
                for text, vector in zip(index, vectors, strict=True):
                    if text % 2 == 0:
                        part[:, text // 2] += vector
                    else:
                        part[:, text // 2] -= vector
                left -= len(index)
                if left == 0 and kept is not None:
                    kept.keep(part)
                batch_is_done()
    return differences


def _zeros(shape: tuple[int, int, int], in_memory: int) -> np.ndarray:
    size = 4 * int(np.prod(shape, dtype=np.int64))
    if size <= in_memory:
        return np.zeros(shape, dtype=np.float32)
    with tempfile.TemporaryFile(prefix="legend_hf_") as file:
        file.truncate(size)  # What was never written reads as zero.
        if hasattr(os, "posix_fallocate"):
            # A full disk is an error here; found later, by writing to the mapping, it would kill the process.
            os.posix_fallocate(file.fileno(), 0, size)
        # The mapping outlives the file's name and handle. As a plain array, or whatever is computed from it would be
        # a mapping by type as well.
        return np.asarray(np.memmap(file, dtype=np.float32, mode="r+", shape=shape))


def log_lengths(pairs: Sequence[Pair]) -> np.ndarray:
    """How much longer the chosen response is than the rejected one, `[n]`: difference of logarithms of characters."""
    return np.array(
        [np.log1p(response_length(pair.chosen)) - np.log1p(response_length(pair.rejected)) for pair in pairs]
    )
