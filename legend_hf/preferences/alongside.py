"""Columns that speak of a row's responses one by one, and what a pair of two of them keeps.

In: rows with a list of responses, and which of them became pairs. Out: the names of the columns with an entry for each
response, and of those that name responses by their places. This file knows no scores and chooses nothing.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from legend_hf.margins.score_fn import BEST, GAP, RANKING, SCORE_BEST

if TYPE_CHECKING:
    from datasets import Dataset, Features

logger = logging.getLogger(__name__)

_OURS = re.compile(rf"(?:{RANKING}|{BEST}|{SCORE_BEST}|{GAP})(?:_.+)?")
_NAMES_ONE = re.compile(
    r"(?:^|_)(?:best|worst|top|chosen|rejected|preferred|selected|safer|better|winner|winning|loser|losing)(?:_|$)"
)


@dataclass(frozen=True)
class Alongside:
    """What a pair cannot keep as it stands.

    Attributes:
        each: Columns with an entry for each response. A pair keeps two of them, its chosen response's first.
        places: Columns that name responses by their places, and what `LegendScoreFn` says of all of a row's responses.
            A pair has none of them: its responses have other places.
    """

    each: tuple[str, ...]
    places: tuple[str, ...]

    def features(self, features: Features) -> dict[str, Any]:
        """The types of what a pair keeps."""
        return {
            name: _of_two(kind) if name in self.each else kind
            for name, kind in features.items()
            if name not in self.places
        }

    def of_pair(self, batch: Mapping[str, Sequence[Any]], row: int, chosen: int, rejected: int) -> dict[str, Any]:
        """The entries of one pair in the columns that have one for each response."""
        return {name: _two(batch[name][row], chosen, rejected) for name in self.each}


def alongside(splits: Iterable[tuple[Dataset, Sequence[int]]], responses: str, ignore: Sequence[str]) -> Alongside:
    """Finds the columns of a dataset that a pair cannot keep as they stand.

    A list, or a dict of lists, has an entry for each response if it is as long as them in every row that gives a pair.
    Places are what
    `LegendScoreFn` writes, lists that are an order of all places (of three responses or more), and whole numbers below
    the number of responses whose column is named like one of them (`best`, `worst_id`). What is found by its looks
    alone is told in the log.

    Args:
        splits: Each split with the numbers of its rows that give pairs.
        responses: The responses' column.
        ignore: Columns that are something else.
    """
    splits = list(splits)
    features = splits[0][0].features
    names = [name for name in features if name not in (responses, *ignore)]
    lists = [name for name in names if _inner(features[name]) is not None]
    single = [
        name
        for name in names
        if _NAMES_ONE.search(name) and str(getattr(features[name], "dtype", "")).startswith("int")
    ]
    dicts = [name for name in names if _are_lists(features[name])]
    each, orders, ones = {*lists, *dicts}, set(lists), set(single)
    seen, many = False, False
    for split, rows in splits:
        looked_at = (
            split.with_format("arrow").select_columns([responses, *lists, *dicts, *single]).select(sorted(set(rows)))
        )
        for table in looked_at.iter(batch_size=1000):
            batch = table.select([*lists, *dicts, *single]).to_pydict()
            for row, count in enumerate(_lengths(table[responses])):
                seen, many = True, many or count > 2
                each = {n for n in each if _is_each(batch[n][row], count)}
                orders = {n for n in orders & each if _is_order(batch[n][row])}
                ones = {n for n in ones if batch[n][row] in range(-1, count)}
    ours = {name for name in names if _OURS.fullmatch(name)}
    found = (orders if seen and many else set()) | (ones if seen else set())
    each = (each if seen else set()) - found - ours
    if each:
        logger.warning("taken for lists with an entry for each response, of which a pair keeps two: %s", _quoted(each))
    if found - ours:
        logger.warning("left out, since they seem to name responses by their places: %s", _quoted(found - ours))
    return Alongside(
        tuple(name for name in names if name in each), tuple(name for name in names if name in found | ours)
    )


def _inner(feature: Any) -> Any:
    """What a list holds; None of what is no list."""
    from datasets import LargeList, List

    if isinstance(feature, list):
        return feature[0]
    return feature.feature if isinstance(feature, List | LargeList) else None


def _are_lists(feature: Any) -> bool:
    return isinstance(feature, dict) and bool(feature) and all(_inner(kind) is not None for kind in feature.values())


def _of_two(feature: Any) -> Any:
    """The type of a list, or of a dict of lists, of two entries."""
    from datasets import List

    return {k: List(_inner(v)) for k, v in feature.items()} if isinstance(feature, dict) else List(_inner(feature))


def _two(cell: Any, chosen: int, rejected: int) -> Any:
    if isinstance(cell, Mapping):
        return {key: [entries[chosen], entries[rejected]] for key, entries in cell.items()}
    return [cell[chosen], cell[rejected]]


def _is_each(cell: Any, count: int) -> bool:
    lists = cell.values() if isinstance(cell, Mapping) else [cell]
    return all(entries is not None and len(entries) == count for entries in lists)


def _lengths(responses: Any) -> list[int]:
    """How many responses each row has, of a column of lists, or of dicts of lists."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_struct(responses.type):
        responses = pc.struct_field(responses, "response")
    return [length or 0 for length in pc.list_value_length(responses).to_pylist()]


def _is_order(entries: Sequence[Any]) -> bool:
    """Whether a list has every place once."""
    return all(isinstance(entry, int) for entry in entries) and sorted(entries) == list(range(len(entries)))


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))
