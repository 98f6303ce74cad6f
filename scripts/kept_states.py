"""The hidden states of texts at every layer, kept on disk: read once, measured as often as one likes.

In: encoded texts and an open reader. Out: `[layers, texts, views, d_model]`, float32, pooled in two ways: the mean over
the response, and its last token; where asked for, also the token that ends its turn. What was read is found again by
all that decides it, so a run that was stopped goes on where it was, and one that only counts differently reads nothing.
This file knows no pairs, no labels and no directions.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from datasets.utils import tqdm

from legend_hf.directions.kept import KeptDifferences
from legend_hf.reading.reader import OpenReader, deciding
from legend_hf.reading.templates import Tokens

AT_ONCE = 128
"""Texts that are read together and kept together: what a stopped run loses at most."""
MEAN, LAST, END = 0, 1, 2


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
    ends: Sequence[Tokens] | None = None,
) -> np.ndarray:
    """Reads texts, or finds what was read of them.

    Args:
        opened: The reader, with its whole model; it pools by the mean.
        texts: Encoded texts.
        path: Folder that the model was loaded from.
        folder: Where states are kept, 4 bytes a text, view, layer and dimension.
        title: What the texts are, for the progress bar.
        layers: Indices into `hidden_states`; None for all.
        ends: The same texts up to the end of the turn, encoded with `eos="template"` and `pooling="last"`.

    Returns:
        `[layers, texts, views, d_model]`, float32: of `MEAN` and `LAST`, with `ends` also of `END`.
    """
    which = [] if layers is None else [list(layers)]
    layers, width = range(opened.reader.n_layers + 1) if layers is None else layers, opened.reader.d_model
    states = np.empty((len(layers), len(texts), 2 if ends is None else 3, width), dtype=np.float32)
    for first in tqdm(range(0, len(texts), AT_ONCE), desc=f"States of {title}, {AT_ONCE} texts at once"):
        piece = slice(first, first + AT_ONCE)
        wanted = [(slice(MEAN, END), [view for text in texts[piece] for view in (text, pooled_at_last(text))])]
        if ends is not None:
            wanted.append((slice(END, END + 1), [pooled_at_last(text) for text in ends[piece]]))
        with ExitStack() as files:
            missing: list[tuple[KeptDifferences, np.ndarray, list[Tokens]]] = []
            for place, views in wanted:
                part = states[:, piece, place]
                # A file for each piece, so that a larger set, or a smaller one, finds the pieces that it shares; and
                # one for the ends, so that who asks for them finds what was read without.
                found_by = ["states", deciding(opened.reader, str(path)), said(views), *which]
                kept = files.enter_context(KeptDifferences(folder, found_by))
                block = next(kept.blocks((len(layers), width), [len(views)]), None)
                if block is None:
                    missing.append((kept, part, views))
                else:
                    part[:] = block.reshape(part.shape)
            # Of one forward pass: texts with the same tokens are read once.
            read = read_views(opened, [view for _, _, views in missing for view in views], layers)
            for kept, part, views in missing:
                block, read = np.split(read, [len(views)], axis=1)
                kept.keep(block)
                part[:] = block.reshape(part.shape)
    return states


def pooled_at_last(text: Tokens) -> Tokens:
    """The text with its last token in place of the response: a mean over it is that token's own state."""
    return Tokens(text.ids, (text.last,), text.last)


def said(texts: Sequence[Tokens]) -> str:
    """A digest of what is read of texts."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(np.array((*text.ids, -1, *text.content, -1), dtype="<i8").tobytes())
    return digest.hexdigest()


def read_views(opened: OpenReader, texts: Sequence[Tokens], layers: Sequence[int]) -> np.ndarray:
    """`[layers, texts, d_model]`, float32."""
    found = np.empty((len(layers), len(texts), opened.reader.d_model), dtype=np.float32)
    for index, hidden in opened.read(texts, layers) if texts else ():
        found[:, index] = hidden.cpu().numpy().swapaxes(0, 1)
    return found
