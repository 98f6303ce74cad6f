"""Which direction made a column? The columns remember it, and another one is refused in the same words everywhere.

In: directions, and the column of marks that stands beside their numbers. Out: a direction's mark, or a refusal. This
file knows neither texts nor models.

A mark is a column of one word a row, `margin_direction` or `scores_direction`, because rows are all that everything
keeps: `map` and `load_dataset` drop what a feature or a dataset's info says besides, `concatenate_datasets` takes the
first one's, and rows of two directions can be put together. In Parquet a word that repeats takes next to nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from legend_hf.directions.calibrate import Calibration
from legend_hf.directions.direction import Direction
from legend_hf.margins.columns import MARGIN_MARKS, SCORES_MARKS, column_of, suffixed

if TYPE_CHECKING:
    from datasets import Dataset

_MARK = re.compile(r"[0-9a-f]{16}")
# How a text is read, but for where the model lies: a model folder that was published since is the same model.
_READING = ("template", "joiner", "eos", "layer", "pooling", "max_length", "dtype", "date")
_OF_MARGINS = re.compile(r"(?:margin(?:_raw|_bin|_prob|_negative)?|chosen_score|rejected_score)(?:_(?P<name>.+))?")
_OF_SCORES = re.compile(r"(?:scores|ranking|best_response|score_best|score_gap|choice_probs)(?:_(?P<name>.+))?")


def mark(direction: Direction) -> str:
    """What a column says of the direction that made it: a hash of the vector and of how it reads.

    The calibration is not in it: what it makes of the scores can be made again, and is compared itself.
    """
    reading = json.dumps([getattr(direction.reader, name) for name in _READING])
    return hashlib.sha256(direction.vector.tobytes() + reading.encode()).hexdigest()[:16]


def beside(column: str) -> str | None:
    """The column of marks that belongs to a column of numbers; None where no transform writes such a column."""
    for pattern, marks in ((_OF_MARGINS, MARGIN_MARKS), (_OF_SCORES, SCORES_MARKS)):
        found = pattern.fullmatch(column)
        if found:
            return suffixed(marks, found["name"] or "")
    return None


def marks_in(values: Iterable[object]) -> frozenset[str | None]:
    """The different marks among values; None stands for a row whose direction is not known."""
    return frozenset(v if isinstance(v, str) and _MARK.fullmatch(v) else None for v in set(values))


def marks_of(rows: Dataset, column: str) -> frozenset[str | None]:
    """The different marks that stand beside a column of numbers."""
    marks = beside(column)
    strings = ("string", "large_string")  # the latter out of pandas and polars
    if marks is None or marks not in rows.column_names or getattr(rows.features[marks], "dtype", "") not in strings:
        return frozenset({None})
    return marks_in(column_of(rows, marks).unique().to_pylist())


def check_made_by(direction: Direction, marks: Iterable[str | None], column: str, where: str = "") -> bool:
    """Refuses numbers of another direction.

    Args:
        direction: What they are said to come from.
        marks: Those that stand beside them.
        column: What they are called.
        where: In which rows, for the message.

    Returns:
        Whether all of them are known to be this direction's; older data and columns made by hand do not say.

    Raises:
        ValueError: They are another's.
    """
    own, found = mark(direction), set(marks)
    others = sorted(found - {own, None}, key=str)
    if others:
        raise not_of_this(
            where,
            column,
            f"the texts: it was made by {', '.join(map(str, others))} (`{beside(column)}`), this is {own}",
        )
    return found <= {own}


def check_one(marks: Iterable[str | None], column: str, where: str = "") -> None:
    """Refuses to compare numbers of several directions with each other.

    Raises:
        ValueError: There are several.
    """
    known = sorted(str(found) for found in set(marks) - {None})
    if len(known) > 1:
        raise ValueError(
            f"{where}`{column}` was made by {len(known)} directions (`{beside(column)}`: {', '.join(known)}), whose "
            "numbers cannot be compared; take the rows of one, or annotate all with one direction"
        )


def not_of_this(where: str, column: str, made_of: str, otherwise: str = "") -> ValueError:
    """The one refusal of a column that a direction did not make."""
    return ValueError(
        f"{where}`{column}` is not what this direction makes of {made_of}; give the direction it was annotated with"
        f"{otherwise}"
    )


def every_scale(calibration: Calibration, raw: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """What `margin` may be, in words and in numbers `[n]`; what is likeliest comes first."""
    others = [kind for kind in calibration.kinds if kind not in (calibration.kind, "raw")]
    kinds = dict.fromkeys([calibration.kind, *others, "raw"])
    for kind in kinds:
        yield calibration.label(kind), calibration.apply(raw, kind)
    for kind in kinds:
        yield f"{calibration.label(kind)}, below 0 set to 0", np.maximum(calibration.apply(raw, kind), 0)


def same(values: np.ndarray, expected: np.ndarray) -> bool:
    """Whether two columns are equal but for the last bits of float32."""
    return np.allclose(values.astype(np.float64), expected, rtol=1e-5, atol=1e-6)
