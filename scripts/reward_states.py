"""What reward heads read: hidden states of preference pairs, and of single responses, at a few places of a model.

In: a model's folder, files of pairs or of labelled responses. Out: for each place the states of both sides, with the
rows' sets, prompts and lengths. States are found where `kept_states` keeps them, or read and kept. This file trains and
judges nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from kept_states import LAST, MEAN, read_states
from real_runs import USUAL_DTYPE
from train_demo_annotator import opening, read_jsonl

from legend_hf.directions import resample
from legend_hf.reading.formats import Pair, conversation, pairs_from_batch
from legend_hf.reading.reader import OpenReader, Runtime, describe_model, open_reader
from legend_hf.reading.templates import Tokens

POOLS = {"mean": MEAN, "last": LAST}


@dataclass(frozen=True, eq=False)
class Sets:
    """Pairs of several sets, in one order.

    Attributes:
        rows: The rows, of one reader all that it can read.
        names: The set of each pair `[n]`.
        groups: Its prompt `[n]`.
        numbers: Its place in its set's file `[n]`.
        longer: Log length of the chosen response minus that of the rejected one `[n]`.
        states: Chosen minus rejected at each place, `"22 mean"` and the like: `[n, d_model]`, float32.
        tokens: Mean tokens of a side.
    """

    rows: list[dict[str, Any]]
    names: np.ndarray
    groups: np.ndarray
    numbers: np.ndarray
    longer: np.ndarray
    states: dict[str, np.ndarray]
    tokens: float


def opened_model(model: Path, device: str | None, dtype: str = USUAL_DTYPE) -> OpenReader:
    """A model's reader, pooling by the mean, open."""
    reader = describe_model(str(model), device=device, dtype=dtype)
    return open_reader(reader, Runtime(path=str(model), device=device))


def read_pairs(
    opened: OpenReader, model: Path, files: Sequence[Path], places: Sequence[str], kept: Path, most: Mapping[str, int]
) -> Sets:
    """Pairs of files as one reader sees them; those that do not fit its window are left out.

    Args:
        opened: The reader.
        model: Its folder.
        files: Of pairs, as JSON lines with `prompt`, `chosen`, `rejected`.
        places: `"22 mean"`, `"-1 last"`: layer and pooling.
        kept: Folder of the kept states.
        most: Only so many of a file's pairs, by its name.
    """
    rows: list[dict[str, Any]] = []
    names: list[str] = []
    numbers: list[int] = []
    states: dict[str, list[np.ndarray]] = {place: [] for place in places}
    lengths: list[int] = []
    for file in files:
        read = read_jsonl(file)
        parsed = pairs_from_batch({key: [row[key] for row in read] for key in ("prompt", "chosen", "rejected")})
        good = [(i, pair) for i, pair in enumerate(parsed) if isinstance(pair, Pair)]
        sides = [opened.encode([getattr(pair, side) for _, pair in good]) for side in ("chosen", "rejected")]
        texts: list[Tokens] = []
        for (i, _), one, other in zip(good, *sides, strict=True):
            if (
                isinstance(one, Tokens)
                and isinstance(other, Tokens)
                and len(texts) < 2 * most.get(file.stem, len(good))
            ):
                rows.append(read[i])
                names.append(file.stem)
                numbers.append(i)
                texts += [one, other]
        lengths += [len(text.ids) for text in texts]
        whole = read_states(opened, texts, path=model, folder=kept, title=file.stem)
        for place, there in states.items():
            layer, pool = place.split()
            there.append(whole[int(layer), 0::2, POOLS[pool]] - whole[int(layer), 1::2, POOLS[pool]])
    logs = np.log1p([[len(row["chosen"].strip()), len(row["rejected"].strip())] for row in rows])
    return Sets(
        rows, np.array(names), resample.groups_of([opening(row["prompt"]) for row in rows]), np.array(numbers),
        logs[:, 0] - logs[:, 1], {place: np.concatenate(there) for place, there in states.items()},
        float(np.mean(lengths)),
    )  # fmt: skip


def with_states_of(sets: Sets, other: Sets, prefix: str) -> Sets:
    """Another reader's states under a name of their own; zeros, and so no margin, for pairs that it could not read."""
    places = {key: i for i, key in enumerate(zip(other.names.tolist(), other.numbers.tolist(), strict=True))}
    found = np.array([places.get(key, -1) for key in zip(sets.names.tolist(), sets.numbers.tolist(), strict=True)])
    added = {f"{prefix} {p}": np.where((found >= 0)[:, None], states[found], 0) for p, states in other.states.items()}
    return replace(sets, states={**sets.states, **added})


@dataclass(frozen=True, eq=False)
class Responses:
    """Labelled responses, several to a prompt.

    Attributes:
        harm: 1 where a response is harmful `[n]`.
        groups: Prompt of each `[n]`.
        characters: Its length `[n]`.
        states: At each place `[n, d_model]`.
    """

    harm: np.ndarray
    groups: np.ndarray
    characters: np.ndarray
    states: dict[str, np.ndarray]


def read_responses(
    opened: OpenReader, model: Path, rows: Sequence[Mapping[str, Any]], places: Sequence[str], kept: Path
) -> Responses:
    """Rows with `prompt`, `response` and `harm`; those that do not fit the window are left out."""
    encoded = opened.encode([conversation(row["prompt"], row["response"]) for row in rows])
    good = [(row, text) for row, text in zip(rows, encoded, strict=True) if isinstance(text, Tokens)]
    whole = read_states(opened, [text for _, text in good], path=model, folder=kept, title="labelled responses")
    return Responses(
        np.array([float(row["harm"]) for row, _ in good]),
        resample.groups_of([row["prompt"] for row, _ in good]),
        np.array([len(row["response"].strip()) for row, _ in good]),
        {place: whole[int(place.split()[0]), :, POOLS[place.split()[1]]] for place in places},
    )
