"""An annotated dataset, by configuration and split: what its card will say of it, once all of it has been checked.

In: datasets of any accepted shape, and what made their margins. Out: configurations that a trainer and `load_dataset`
can rely on, with statistics, scales and the options that compute the columns again. This file knows no repositories and
writes nothing.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from legend_hf.directions.calibrate import Calibration
from legend_hf.directions.direction import Direction, Facts
from legend_hf.hub.outputs import MANIFEST
from legend_hf.hub.parquet import Config
from legend_hf.hub.source import loaded_as
from legend_hf.margins.columns import (
    MARGIN_ADDED,
    MARGIN_COLUMNS,
    MARGIN_NEGATIVE,
    MARGIN_STATUS,
    MARGIN_TRACES,
    SCORES_MARKS,
    SIMILARITY,
    column_of,
    ok_rows,
    suffixed,
)
from legend_hf.margins.margin_fn import LegendMarginFn
from legend_hf.margins.origin import check_made_by, every_scale, marks_of, not_of_this, same

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    Annotated: TypeAlias = Dataset | DatasetDict | Mapping[str, DatasetDict]

logger = logging.getLogger(__name__)

MadeBy: TypeAlias = LegendMarginFn | Direction | Mapping[str, Direction]

# Other transforms of this library, and a column by which theirs are known: no program computes them again.
_OTHERS = {"LegendScoreFn": SCORES_MARKS, "PairSimilarityFn": SIMILARITY}
_NAME = re.compile(r"\w[\w.-]*")
_SPLIT = re.compile(r"\w+(\.\w+)*")


def made_by(direction: MadeBy) -> tuple[Mapping[str, Direction], Mapping[str, Any] | None]:
    """Directions by name, and the transform's arguments where that was given.

    Raises:
        TypeError: It is neither a transform of pairs nor directions.
    """
    if isinstance(direction, LegendMarginFn):
        return direction.directions, direction.arguments
    named = direction if isinstance(direction, Mapping) else {"": direction}
    for value in named.values():
        if not isinstance(value, Direction):
            raise TypeError(
                f"`direction` is a {type(value).__name__}; give the `Direction` that the margins come from, such as "
                '`Direction.from_pretrained("you/direction")`, or the `LegendMarginFn` that made them'
            )
    return named, None


def inspected(
    dataset: Annotated,
    direction: MadeBy,
    config_name: str | None = None,
    noted: Mapping[str, Mapping[str, Any]] | None = None,
) -> Mapping[str, Config]:
    """Checks all that `load_dataset` and a trainer rely on, and takes the statistics.

    Args:
        dataset: As `push_annotated` takes it.
        direction: As `push_annotated` takes it.
        config_name: Of a dataset that has one configuration; None is `"default"`.
        noted: What a folder knows of each configuration: the `arguments` of the transform that made its margins, and
            how its rows were `loaded`.

    Raises:
        TypeError: The dataset is streaming, or not a dataset.
        ValueError: A column is missing, not finite or not of these directions, splits differ in their columns, or a
            configuration has a name that cannot be one.
    """
    directions, arguments = made_by(direction)
    return {
        name: _inspect(
            name,
            splits,
            directions,
            {**(noted or {}).get(name, {}), **({"arguments": arguments} if arguments else {})},
            whole=whole,
        )
        for name, (splits, whole) in _by_config(dataset, config_name).items()
    }


def _by_config(dataset: Annotated, config_name: str | None) -> Mapping[str, tuple[Mapping[str, Dataset], bool]]:
    """Sorts any accepted input by configuration: its splits, and whether these are all that it has.

    Raises:
        TypeError: The dataset is streaming, or not a dataset.
        ValueError: A configuration has a name that cannot be one.
    """
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

    if isinstance(dataset, IterableDataset | IterableDatasetDict):
        raise TypeError(
            "a streaming dataset cannot be pushed with its statistics, which need every row first; save it with "
            "`Dataset.from_generator(lambda: iter(ds), features=ds.features)` and give that"
        )
    if config_name is not None and not (_NAME.fullmatch(config_name) and config_name != "data"):
        raise ValueError(
            f"`config_name` is {config_name!r}; give letters, digits and `-_.`, and not 'data', where 'default' lies"
        )
    if isinstance(dataset, Dataset):
        # A slice is called "train[:10]".
        named = _SPLIT.match(str(dataset.split or ""))
        return {config_name or "default": ({named[0] if named else "train": dataset}, False)}
    if isinstance(dataset, DatasetDict):
        dataset = {config_name or "default": dataset}
    elif config_name is not None:
        raise ValueError("`config_name` is given, but `dataset` maps configuration names already; leave one out")
    if not isinstance(dataset, Mapping) or not dataset:
        raise TypeError(
            f"`dataset` is {'empty' if isinstance(dataset, Mapping) else type(dataset).__name__}; give a `Dataset`, a "
            "`DatasetDict`, or a mapping from configuration names to `DatasetDict`s"
        )
    for name, splits in dataset.items():
        if not isinstance(splits, DatasetDict):
            raise TypeError(
                f"`dataset` maps {name!r} to a {type(splits).__name__}; where the keys are splits, make it a "
                "`DatasetDict`; where they are configurations, give a `DatasetDict` for each"
            )
        if not _NAME.fullmatch(name) or name == "data":
            raise ValueError(
                f"the configuration name {name!r} cannot be one; give letters, digits and `-_.`, not 'data'"
            )
    return {name: ({str(split): rows for split, rows in splits.items()}, True) for name, splits in dataset.items()}


def _inspect(
    config: str,
    splits: Mapping[str, Dataset],
    directions: Mapping[str, Direction],
    noted: Mapping[str, Any],
    *,
    whole: bool,
) -> Config:
    fn = _transform(directions, noted.get("arguments"))
    filled = _filled(config, splits)
    statistics = [
        _statistics(rows, f"config `{config}`, split `{split}`", split, name, d)
        for split, rows in filled.items()
        for name, d in directions.items()
    ]
    provenance = {
        name: {
            "repo_id": d.repo_id,
            "revision": d.revision,
            "reader": asdict(d.reader),
            "calibration": asdict(d.calibration),
            "facts": asdict(d.facts),
        }
        for name, d in directions.items()
    }
    scales = _scales(config, directions, statistics, fn)
    features = next(iter(filled.values())).features
    facts: dict[str, Any] = {
        "directions": provenance,
        "statistics": statistics,
        "scales": scales,
        "kept_splits": [],
        "loaded": noted.get("loaded") or loaded_as(filled),
        **(_options_of(fn, features) if fn is not None else _options_by_columns(features, directions, scales)),
    }
    facts["unknown"] += [f"the columns of `{name}`" for name, column in _OTHERS.items() if column in features]
    return Config(filled, whole, facts)


def _filled(config: str, splits: Mapping[str, Dataset]) -> dict[str, Dataset]:
    """The splits that have rows, all of which must have the same columns and names that can be loaded."""
    first = next(iter(splits.values()), None)
    for split, rows in splits.items():
        assert first is not None
        if not _SPLIT.fullmatch(split) or split.lower() == "all":  # which stands for the union of all splits
            raise ValueError(f"the split name {split!r} cannot be loaded; give letters, digits, `_` and `.`, not 'all'")
        if rows.features != first.features:
            differ = {k for k in {*rows.features, *first.features} if rows.features.get(k) != first.features.get(k)}
            raise ValueError(
                f"the splits of config `{config}` differ in {', '.join(f'`{k}`' for k in sorted(differ))}; "
                "annotate all of them in one call (`annotate(dataset_dict, direction)`), or push them as two "
                "configurations"
            )
    filled = {split: rows for split, rows in splits.items() if len(rows)}
    if not filled:
        raise ValueError(f"config `{config}` has no rows, so there is nothing to push; give a dataset with rows")
    for split in splits.keys() - filled.keys():
        # `load_dataset` of the whole repository would fail with 'Instruction "test" corresponds to no data!'.
        logger.warning("left out split `%s` of config `%s`: it has no rows and could not be loaded", split, config)
    return filled


def _scales(
    config: str,
    directions: Mapping[str, Direction],
    statistics: Sequence[dict[str, Any]],
    fn: LegendMarginFn | None,
) -> dict[str, str]:
    """What each direction's `margin` is, in words, the same in all splits; takes `scales` out of the statistics."""
    scales = {}
    for name in directions:
        column = suffixed("margin", name)
        found = [row.pop("scales") for row in statistics if row["column"] == column]
        common = [scale for scale in found[0] if all(scale in others for others in found)]
        own = None if fn is None else _label(fn, name)
        if own is not None and own not in common and common != ["as annotated"]:
            raise ValueError(
                f"`{column}` of config `{config}` is {' or '.join(common) or 'in several ways'}, and the transform "
                f"makes it {own}; give the transform that it was annotated with"
            )
        if not common:
            raise ValueError(
                f"`{column}` of config `{config}` is raw in one split and calibrated in another, or calibrated in two "
                "ways; annotate all splits alike"
            )
        scales[name] = own or common[0]
    return scales


def _options_of(fn: LegendMarginFn, features: Any) -> dict[str, Any]:
    """How to compute the columns again: the transform's own arguments, and what was taken out since."""
    plainest = LegendMarginFn(fn.directions).arguments
    return {
        "options": {name: value for name, value in fn.arguments.items() if value != plainest[name]},
        "dropped": [column for column in fn.columns if column not in features],
        "unknown": [],
    }


def _options_by_columns(
    features: Any, directions: Mapping[str, Direction], scales: Mapping[str, str]
) -> dict[str, Any]:
    """The same as far as the columns tell, and what they do not."""
    lacking = ["`scale` and `negative`"] if "as annotated" in scales.values() else []
    if not {"chosen", "rejected"} <= {*features} and "response_0" not in features:
        lacking.append("`prompt_column`, `chosen_column` and `rejected_column`")
    unknown = [f"{names} of `LegendMarginFn`" for names in lacking]
    return {"options": _options(features, directions, scales), "unknown": unknown}


def _transform(directions: Mapping[str, Direction], arguments: Any) -> LegendMarginFn | None:
    """The transform that made margins, where its arguments are known."""
    if not arguments:
        return None
    # What is known of a fit makes no column, and whether it is doubtful is said elsewhere.
    bare = {name: replace(direction, facts=Facts()) for name, direction in directions.items()}
    known = LegendMarginFn(bare).arguments
    if not isinstance(arguments, Mapping) or set(arguments) - set(known):
        raise ValueError(
            f"the folder's `{MANIFEST}` notes the options {arguments!r:.200}, which this version does not "
            "know; upgrade (`pip install -U legend-hf`), or give the transform as `direction`"
        )
    return LegendMarginFn(bare, **arguments)


def _label(fn: LegendMarginFn, name: str) -> str:
    """What a transform makes of its raw margins, in the words of a card."""
    label = fn.directions[name].calibration.label(fn.arguments["scale"])
    return label + (", below 0 set to 0" if fn.arguments["negative"] == "zero" else "")


def _options(features: Any, directions: Mapping[str, Direction], scales: Mapping[str, str]) -> dict[str, Any]:
    """The arguments of `LegendMarginFn` that give these columns; defaults are left out."""
    from datasets import Value

    zeroed = any(scale.endswith(", below 0 set to 0") for scale in scales.values())
    kinds = {
        name: next((k for k in (d.calibration.kind, *d.calibration.kinds, "raw")
                    if d.calibration.label(k) == scales[name].removesuffix(", below 0 set to 0")), None)
        for name, d in directions.items()
    }  # fmt: skip
    options: dict[str, Any] = {}
    if any(kind not in (None, directions[name].calibration.kind) for name, kind in kinds.items()):
        options["scale"] = next(iter(kinds.values()))
    first = next(iter(directions))
    add = [column for column in _addable(directions[first].calibration) if suffixed(column, first) in features]
    for word, columns in MARGIN_TRACES.items():
        if all(_of_type(features, suffixed(column, first), kind) for column, kind in columns.items()):
            add.append(word)
    if add:
        options["add"] = add
    if zeroed or features.get(suffixed(MARGIN_NEGATIVE, first)) == Value("bool"):
        options["negative"] = "zero" if zeroed else "flag"
    if MARGIN_STATUS in features:
        options["on_error"] = "skip"
    return options


def _of_type(features: Mapping[str, Any], column: str, kind: str | list[str]) -> bool:
    """Whether a column holds what a transform writes by that name; somebody else's may have the same."""
    from datasets import List, Value

    return features.get(column) == (List(Value(kind[0])) if isinstance(kind, list) else Value(kind))


def _addable(calibration: Calibration) -> list[str]:
    """The columns that can be asked for; one of such a name that a direction cannot have made is somebody else's."""
    can = {"margin_bin": "bins" in calibration.kinds, "margin_prob": calibration.gives_prob}
    return [column for column in MARGIN_ADDED if can[column]]


def _statistics(rows: Dataset, where: str, split: str, name: str, direction: Direction) -> dict[str, Any]:
    """Checks one direction's columns in one split and describes its margins; skipped rows do not count."""
    calibration = direction.calibration
    columns = {column: suffixed(column, name) for column in (*MARGIN_COLUMNS, *_addable(calibration))}
    if columns["margin"] not in rows.features:
        raise ValueError(
            f"{where} has no column `{columns['margin']}`; annotate it first: `annotate(dataset, "
            "direction)`. It has " + ", ".join(f"`{c}`" for c in list(rows.features)[:20])
        )
    if not check_made_by(direction, marks_of(rows, columns["margin"]), columns["margin"], f"{where}: "):
        logger.warning(
            "%s: nothing says which direction made `%s`; margins that `annotate` makes now do", where, columns["margin"]
        )
    values = {c: _numbers(rows, full, where) for c, full in columns.items() if full in rows.features}
    read = ok_rows(rows, MARGIN_STATUS)
    numbers = {c: values[read].astype(np.float64) for c, values in values.items()}
    margin = numbers["margin"]
    # Where the raw margins are there, they say which side reads as safer, whatever was made of them.
    sides = numbers.get("margin_raw", margin)
    scales = ["as annotated"]
    if "margin_raw" in numbers:
        scales = _scales_that_fit(numbers, calibration, columns, f"{where}: ")
        _check_flags(rows, suffixed(MARGIN_NEGATIVE, name), columns["margin_raw"], read, sides < 0, where)
    quantiles = np.quantile(margin, [0.05, 0.5, 0.95]).tolist() if len(margin) else [None] * 3
    return {
        "split": split,
        "column": columns["margin"],
        "scales": scales,
        "rows": len(rows),
        "skipped": len(rows) - len(margin),
        "mean": float(margin.mean()) if len(margin) else None,
        "sd": float(margin.std()) if len(margin) else None,
        **dict(zip(("q05", "q50", "q95"), quantiles, strict=True)),
        "positive": float((sides > 0).mean()) if len(sides) else None,
    }


def _scales_that_fit(
    numbers: Mapping[str, np.ndarray], calibration: Calibration, columns: Mapping[str, str], where: str
) -> list[str]:
    """What `margin` can be, in words, the likeliest first; refuses columns that are not made of the raw margins."""
    raw = numbers["margin_raw"]
    # Where all margins are 0, every scale fits; the first one is taken.
    scales = [text for text, expected in every_scale(calibration, raw) if same(numbers["margin"], expected)]
    made: dict[str, list[np.ndarray]] = {}
    if "margin_bin" in numbers:
        bins = calibration.apply(raw, "bins")
        made["margin_bin"] = [bins, np.maximum(bins, 0)]
    if "margin_prob" in numbers:
        made["margin_prob"] = [calibration.prob(raw)]
    wrong = ["margin"] if not scales else []
    wrong += [c for c, expected in made.items() if not any(same(numbers[c], e) for e in expected)]
    if wrong:
        remedy = ", or drop the raw column if the margins were changed on purpose"
        raise not_of_this(where, columns[wrong[0]], f"`{columns['margin_raw']}`", remedy)
    return scales


def _check_flags(rows: Dataset, flag: str, raw: str, read: np.ndarray, below: np.ndarray, where: str) -> None:
    """Refuses flags that do not stand where the raw margin is below 0 `[n]`, of the rows that were read `[n]`."""
    from datasets import Value

    if rows.features.get(flag) != Value("bool"):
        return
    flagged = np.array([bool(value) for value in column_of(rows, flag).to_pylist()], dtype=bool)
    if (flagged[read] != below).any():
        raise ValueError(
            f"{where}: `{flag}` does not say where `{raw}` is below 0; annotate again, or rename the column if it says "
            "something else"
        )


def _numbers(rows: Dataset, column: str, where: str) -> np.ndarray:
    """A column `[n]`, float32, of which every value is a finite number."""
    from datasets import Value

    if rows.features[column] != Value("float32"):
        raise ValueError(
            f"{where}: `{column}` is {rows.features[column]}, not float32, which trainers add to their "
            f'rewards; annotate again, or cast it: `ds.cast_column("{column}", Value("float32"))`'
        )
    values: np.ndarray = column_of(rows, column).to_numpy()
    bad = np.flatnonzero(~np.isfinite(values))  # A null arrives as NaN.
    if len(bad):
        raise ValueError(
            f"{where}: `{column}` is not a finite number in {len(bad)} rows, the first is row {bad[0]}; a "
            "single one makes the training loss NaN. Annotate these rows again, or filter them out"
        )
    return values
