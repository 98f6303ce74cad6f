"""The hidden states of texts at every layer, kept on disk: read once, measured as often as one likes.

In: encoded texts and an open reader. Out: `[layers, texts, 2, d_model]`, float32, pooled both ways: the mean over the
response, and its last token. What was read is found again by all that decides it, so a run that was stopped goes on
where it was, and one that only counts differently reads nothing. This file knows no pairs, no labels and no directions.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from datasets.utils import tqdm

from legend_hf.directions.kept import KeptDifferences
from legend_hf.reading.reader import OpenReader, deciding
from legend_hf.reading.templates import Tokens

AT_ONCE = 128
"""Texts that are read together and kept together: what a stopped run loses at most."""
MEAN, LAST = 0, 1


def default_folder() -> Path:
    """Where states are kept unless the user says otherwise: beside the real chat model, outside the repository."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "legend_hf" / "states"


def read_states(
    opened: OpenReader,
    texts: Sequence[Tokens],
    *,
    path: Path,
    folder: Path,
    title: str = "texts",
    layers: Sequence[int] | None = None,
) -> np.ndarray:
    """Reads texts, or finds what was read of them.

    Args:
        opened: The reader, with its whole model; it pools by the mean.
        texts: Encoded texts.
        path: Folder that the model was loaded from.
        folder: Where states are kept, 8 bytes a text, layer and dimension.
        title: What the texts are, for the progress bar.
        layers: Indices into `hidden_states`; None for all.

    Returns:
        `[layers, texts, 2, d_model]`, float32: of `MEAN` and `LAST`.
    """
    which = [] if layers is None else [list(layers)]
    layers, width = range(opened.reader.n_layers + 1) if layers is None else layers, opened.reader.d_model
    states = np.empty((len(layers), len(texts), 2, width), dtype=np.float32)
    for first in tqdm(range(0, len(texts), AT_ONCE), desc=f"States of {title}, {AT_ONCE} texts at once"):
        part = states[:, first : first + AT_ONCE]
        # Both ways of pooling, of one forward pass: texts with the same tokens are read once.
        twice = [
            t for text in texts[first : first + AT_ONCE] for t in (text, Tokens(text.ids, (text.last,), text.last))
        ]
        said = hashlib.sha256()
        for text in twice:
            said.update(np.array((*text.ids, -1, *text.content, -1), dtype="<i8").tobytes())
        # A file for each piece, so that a larger set, or a smaller one, finds the pieces that it shares.
        with KeptDifferences(folder, ["states", deciding(opened.reader, str(path)), said.hexdigest(), *which]) as kept:
            block = next(kept.blocks((len(layers), width), [len(twice)]), None)
            if block is None:
                block = np.empty((len(layers), len(twice), width), dtype=np.float32)
                for index, hidden in opened.read(twice, layers):
                    block[:, index] = hidden.cpu().numpy().swapaxes(0, 1)
                kept.keep(block)
        part[:] = block.reshape(part.shape)
    return states
