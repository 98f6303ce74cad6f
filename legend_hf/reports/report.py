"""How good are these margins? A dataset with margin columns becomes a `Report`: JSON, Markdown for a card, plots.

In: a dataset that was annotated, and optionally its direction, with pairs to test that direction's stability on and
ladders to test its order on. Out: numbers with intervals by prompt, what is doubtful about them in words, and the rows
whose margin contradicts their label most. Texts are read for their lengths and prompts alone. This file computes no
margins, writes no card (`report_card.py` does), draws nothing (`plots.py` does) and knows nothing of training but the
form of TRL's loss.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from legend_hf._version import __version__
from legend_hf.directions.choose import without_length
from legend_hf.directions.differences import read_differences
from legend_hf.directions.direction import Direction
from legend_hf.directions.estimators import ESTIMATORS
from legend_hf.hub import cards, outputs
from legend_hf.margins.columns import OK, suffixed
from legend_hf.margins.margin_fn import STATUS
from legend_hf.margins.origin import beside, check_made_by, every_scale, marks_in, not_of_this, same
from legend_hf.reading.formats import (
    Columns,
    Conversation,
    Pair,
    RowError,
    opening,
    pairs_from_batch,
    response_length,
)
from legend_hf.reading.reader import Runtime, open_reader
from legend_hf.reading.templates import Tokens
from legend_hf.reports.ladder import LadderCheck, ladder_check
from legend_hf.reports.measure import (
    NO_CATEGORY,
    UNKNOWN,
    Coverage,
    Estimate,
    ProbabilityErrors,
    Stability,
    agreement,
    auc,
    beside_length,
    coverage,
    direction_stability,
    means_of,
    pearson,
    probability_errors,
    share_of,
    shares_of,
    spearman,
)

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

    AnyDataset: TypeAlias = Dataset | DatasetDict | IterableDataset | IterableDatasetDict

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
ROWS_AT_ONCE = 1000
MOST_CATEGORIES = 200
DIGEST = 32  # characters of a prompt's hash that are kept
EXCERPT = 80
NAMED_MISSING = 5  # categories that a doubt names
LEAST_ERROR = 0.05  # calibration error that matters
# What follows `margin_` in columns that are not the margins of a direction of that name.
_KINDS = ("raw", "bin", "prob", "negative", "status", "direction")


@dataclass(frozen=True, eq=False)
class Margins:
    """The margins of one direction in one split, as arrays over the rows that were read.

    Attributes:
        split: Name of the split.
        column: Name of the margin column.
        total: Rows of the split.
        invalid: Rows left out because a number is null, NaN or infinite.
        row: Row numbers `[n]`, from 0.
        margin: On the training scale `[n]`.
        raw: Before calibration `[n]`; the margin itself where the dataset has no raw column.
        has_raw: Whether the dataset has a raw column.
        probability: `[n]`, or None without such a column.
        bin: `[n]`, or None without such a column.
        longer: Characters of the chosen response minus those of the rejected one `[n]`.
        groups: Number of each row's prompt `[n]`.
        category: `[n]` of strings, or None.
        excerpts: Row number to the beginnings of (prompt, chosen, rejected), of the lowest raw margins; empty unless
            asked for.
        made_by: The marks of the directions that made them; None is a row that does not say.
    """

    split: str
    column: str
    total: int
    invalid: int
    row: np.ndarray
    margin: np.ndarray
    raw: np.ndarray
    has_raw: bool
    probability: np.ndarray | None
    bin: np.ndarray | None
    longer: np.ndarray
    groups: np.ndarray
    category: np.ndarray | None
    excerpts: Mapping[int, tuple[str, str, str]]
    made_by: frozenset[str | None] = frozenset({None})


@dataclass(frozen=True)
class Length:
    """What the margins owe to the length of the responses, in characters.

    Attributes:
        spearman: Rank correlation of the raw margin with the length of the chosen minus that of the rejected response.
        pearson: The same, linear.
        rule: Which response the better one of two rules takes for the safer, `"shorter"` or `"longer"`; None without
            rows.
        baseline: Share of pairs that this rule gets right; equal lengths count half.
        gain: Agreement of the margins minus the baseline, on the same rows.
        rows_against: Pairs that the rule gets wrong.
        agreement_against: Share of those that the margins get right.
        agreement_along: Share that the margins get right where the rule is right too.
    """

    spearman: Estimate
    pearson: Estimate
    rule: str | None
    baseline: Estimate
    gain: Estimate
    rows_against: int
    agreement_against: Estimate
    agreement_along: Estimate


@dataclass(frozen=True)
class Spread:
    """How numbers are distributed; None without rows."""

    mean: float | None
    sd: float | None
    quantiles: Mapping[str, float | None]


@dataclass(frozen=True)
class Category:
    """The margins of one category.

    Attributes:
        name: As in the dataset; `(none)` for rows without one.
        rows: Rows read.
        prompts: Distinct prompts among them.
        margin: Mean on the training scale.
        negative: Share of pairs whose raw margin is below 0.
        agreement: Share of pairs whose raw margin is above 0; 0 counts half.
        share: Of all rows read.
    """

    name: str
    rows: int
    prompts: int
    margin: Estimate
    negative: Estimate
    agreement: Estimate
    share: float


@dataclass(frozen=True)
class Suspicious:
    """A row whose margin contradicts its label: perhaps its sides are swapped, perhaps the direction errs.

    Attributes:
        row: Its number in the split, from 0.
        margin: On the training scale.
        raw: Before calibration.
        excerpt: Beginnings of prompt, chosen and rejected, only if asked for.
    """

    row: int
    margin: float
    raw: float
    excerpt: tuple[str, str, str] | None = None


@dataclass(frozen=True)
class SplitReport:
    """One direction's margins in one split.

    Attributes:
        split: Name of the split.
        column: Name of the margin column.
        rows: Rows of the split.
        read: Rows whose margins and texts were used.
        skipped: Rows that the annotation skipped, or whose texts cannot be read.
        invalid: Rows whose margin is null, NaN or infinite.
        prompts: Distinct prompts (first user turns) among the rows read.
        agreement: Share of pairs whose raw margin is above 0, as the label says; 0 counts half.
        auc: See `measure.auc`.
        negative: Share of pairs whose raw margin is below 0.
        at_limits: Share of margins at exactly -1 or 1, where the `unit` calibration clips.
        margin: Distribution on the training scale.
        raw: Distribution before calibration.
        pull: Mean of sigmoid(margin): the size of the gradient of TRL's loss at the start of a training, when both
            rewards are equal. One half without margins; near 1 every pair pushes alike and the sizes are lost.
        loss: Mean of that loss then; 0.693 without margins.
        length: What they owe to length.
        probability: Errors of `margin_prob`, None without that column.
        bins: Value of `margin_bin` to number of rows, None without that column.
        categories: From the most rows to the fewest; None unless a column was named.
        suspicious: The most negative raw margins first.
        doubts: What is implausible, in words.
        coverage: How the rows read spread over categories; None unless a column was named.
    """

    split: str
    column: str
    rows: int
    read: int
    skipped: int
    invalid: int
    prompts: int
    agreement: Estimate
    auc: Estimate
    negative: Estimate
    at_limits: Estimate
    margin: Spread
    raw: Spread
    pull: Estimate
    loss: Estimate
    length: Length
    probability: ProbabilityErrors | None
    bins: Mapping[str, int] | None
    categories: tuple[Category, ...] | None
    suspicious: tuple[Suspicious, ...]
    doubts: tuple[str, ...]
    coverage: Coverage | None = None


@dataclass(frozen=True)
class DirectionReport:
    """What is known of a direction.

    Attributes:
        name: In a mapping of several, else empty.
        repo_id: On the Hub, or None.
        revision: Its commit there.
        reader: How it reads, as in its configuration.
        facts: Of its fit, as in its configuration.
        search: Accuracy by layer and estimator while fitting, empty if that is not recorded.
        stability: See `stability_of`, None unless pairs were given.
        doubts: What is implausible, in words.
        coverage: How those pairs spread over categories; None unless they have the category column that was named.
        ladder: See `ladder.ladder_check`, None unless ladders were given.
    """

    name: str
    repo_id: str | None
    revision: str | None
    reader: Mapping[str, Any]
    facts: Mapping[str, Any]
    search: tuple[Tried, ...]
    stability: Stability | None
    doubts: tuple[str, ...]
    coverage: Coverage | None = None
    ladder: LadderCheck | None = None


@dataclass(frozen=True)
class Tried:
    """One layer and estimator that were tried while fitting."""

    layer: int
    estimator: str
    accuracy: float
    interval: tuple[float, float]


_FILES = ("report.json", "report.md")


@dataclass(frozen=True)
class Report:
    """How good margins are.

    Attributes:
        library: Name and version of what wrote this.
        seed: Of all draws.
        splits: One for each split and margin column.
        directions: One for each direction that was given.
        measured: The arrays behind `splits`, for plots. Not part of the JSON.
    """

    library: str
    seed: int
    splits: tuple[SplitReport, ...]
    directions: tuple[DirectionReport, ...]
    measured: tuple[Margins, ...] = field(repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; whatever is unknown or not finite is None."""
        return {
            "library": self.library,
            "seed": self.seed,
            "splits": [_plain(asdict(split)) for split in self.splits],
            "directions": [_direction_values(direction) for direction in self.directions],
        }

    def to_json(self) -> str:
        """The numbers as JSON, without NaN."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def to_markdown(self, *, plots: Mapping[str, str] | None = None) -> str:
        """Tables that a person understands, each number with what it means.

        Args:
            plots: File name or URL of a picture to its description; they are shown at the end of the report.
        """
        from legend_hf.reports.report_card import markdown

        return markdown(self, plots or {})

    def save(self, folder: str | os.PathLike[str], *, plots: bool = True, overwrite: bool = False) -> list[Path]:
        """Writes `report.json`, `report.md` and the plots.

        Args:
            folder: Made if missing. An earlier report in it, which costs little to make again, is replaced.
            plots: Draw PNGs too, which needs the extra `plots` (matplotlib).
            overwrite: Write among files of others, and replace those that have the names of these.

        Returns:
            The files that were written.

        Raises:
            ImportError: Plots are wanted and matplotlib is missing.
            ValueError: The folder holds something else.
            OSError: It cannot be written.
        """
        check_place(folder, plots=plots, overwrite=overwrite)
        pictures: Mapping[str, Any] = {}
        if plots:
            from legend_hf.reports.plots import draw

            pictures = draw(self)
        target = Path(folder)
        shown = {name: picture.description for name, picture in pictures.items()}
        files = {"report.json": self.to_json().encode(), "report.md": self.to_markdown(plots=shown).encode()}
        files |= {name: picture.png for name, picture in pictures.items()}
        for old in _owned(target) - files.keys():
            (target / old).unlink()  # a plot of an earlier report would be taken for one of this
        for name, content in files.items():
            outputs.write_whole(target / name, content)
        return [target / name for name in files]


def check_place(
    folder: str | os.PathLike[str],
    *,
    plots: bool = True,
    reads: Iterable[str | os.PathLike[str] | None] = (),
    overwrite: bool = False,
) -> None:
    """Refuses, before the work, a folder that a report cannot be saved into, and plots that cannot be drawn.

    Args:
        folder: Where it will be saved.
        plots: Whether plots are wanted.
        reads: What is read for it.
        overwrite: As for `Report.save`.

    Raises:
        ImportError: Plots are wanted and matplotlib is missing.
        ValueError: The place is taken.
        OSError: It cannot be written.
    """
    if plots:
        from legend_hf.reports.plots import check_matplotlib

        check_matplotlib()
    outputs.check_folder(folder, _FILES, owned=_owned(Path(folder)), again=True, reads=reads, overwrite=overwrite)


def _owned(folder: Path) -> set[str]:
    """Names of the files of an earlier report."""
    file = folder / "report.json"
    if not file.is_file():
        return set()
    try:
        if not str(json.loads(file.read_text(encoding="utf-8"))["library"]).startswith("legend_hf "):
            return set()
    except (ValueError, KeyError, TypeError):
        return set()
    shown = (folder / "report.md").read_text(encoding="utf-8") if (folder / "report.md").is_file() else ""
    return {*_FILES, *(p.name for p in folder.glob("*.png") if f"]({p.name})" in shown)}


def report(
    dataset: AnyDataset | Mapping[str, Dataset] | None,
    *,
    direction: Direction | Mapping[str, Direction] | None = None,
    category_column: str | None = None,
    categories: Sequence[str] | None = None,
    prompt_column: str = "prompt",
    chosen_column: str = "chosen",
    rejected_column: str = "rejected",
    responses_column: str = "responses",
    stability_pairs: Iterable[Mapping[str, Any]] | None = None,
    ladders: Dataset | None = None,
    suspicious: int = 20,
    excerpts: bool = False,
    seed: int = 0,
    device: str | None = None,
) -> Report:
    """Says how good the margins of a dataset are.

    Every interval is 95 % and by prompt: rows with the same first user turn count as repeats of each other.

    Args:
        dataset: Annotated: a dataset or splits with `margin` columns, those of several directions included; streaming
            ones are read once. None reports on directions alone.
        direction: What the margins come from, for its facts; as `LegendMarginFn` was given it. Another one than made
            the margins is refused.
        category_column: A column with one value a row, for a table by category and for what it covers; of
            `stability_pairs` too, if they have it.
        categories: Names that `category_column` should have, to say which are missing.
        prompt_column: Name of the prompts' column, where it is not `prompt`.
        chosen_column: Name of the chosen responses' column.
        rejected_column: Name of the rejected responses' column.
        responses_column: Name of the responses' column of `ladders`.
        stability_pairs: Pairs to test the directions' stability on, in any accepted shape; reads them with the model.
        ladders: Prompts with responses from the best to the worst, to compare the directions' scores with that order
            (see `ladder.ladder_check`); reads them with the model. Rows that cannot be read are left out and counted.
        suspicious: Most rows to name per split.
        excerpts: Show the beginnings of those rows' texts, which can be harmful, beside their numbers.
        seed: Of all draws.
        device: Where `stability_pairs` and `ladders` are read.

    Raises:
        ValueError: There is no margin column or no text, a margin is no number, an argument is not possible, or the
            margins are not those of `direction`.
    """
    directions = direction if isinstance(direction, Mapping) else {"": direction} if direction is not None else {}
    if stability_pairs is not None and not directions:
        raise ValueError("`stability_pairs` test a direction; give it as `direction=`, or leave them out")
    if ladders is not None and not directions:
        raise ValueError("`ladders` test a direction; give it as `direction=`, or leave them out")
    if suspicious < 0:
        raise ValueError(f"`suspicious` is {suspicious}; give how many rows to name, 0 or more")
    expected = None if categories is None else _expected(categories, category_column)
    columns = Columns(prompt=prompt_column, chosen=chosen_column, rejected=rejected_column)
    # A dataset's own mapping type has a `keys` of its splits, as any mapping has.
    splits = {} if dataset is None else dataset if isinstance(dataset, Mapping) else {"": dataset}
    measured = [
        margins
        for name, split in splits.items()
        for margins in read_margins(
            split,
            name=str(name) or str(getattr(split, "split", None) or "train"),
            columns=columns,
            category_column=category_column,
            excerpts=suspicious if excerpts else 0,
        )
    ]
    unsaid = _check_origins(measured, directions)
    pairs = None if stability_pairs is None else list(stability_pairs)
    spread = None
    if pairs is not None and category_column is not None and any(category_column in row for row in pairs):
        feature = (getattr(stability_pairs, "features", None) or {}).get(category_column)
        spread = _coverage_of_pairs(pairs, columns, category_column, feature, expected)
    return Report(
        library=f"legend_hf {__version__}",
        seed=seed,
        splits=tuple(
            replace(made, doubts=(*made.doubts, *_origin_doubts(margins, margins in unsaid)))
            for margins in measured
            for made in [_split_report(margins, suspicious, seed, expected)]
        ),
        directions=tuple(
            direction_report(
                d,
                name=name,
                stability=None if pairs is None else stability_of(pairs, d, columns=columns, seed=seed, device=device),
                coverage=spread,
                ladder=None
                if ladders is None
                else ladder_check(
                    d,
                    ladders,
                    responses_column=responses_column,
                    prompt_column=prompt_column,
                    on_error="skip",
                    seed=seed,
                    device=device,
                ),
            )
            for name, d in directions.items()
        ),
        measured=tuple(measured),
    )


def stability_of(
    pairs: Iterable[Mapping[str, Any]],
    direction: Direction,
    *,
    columns: Columns | None = None,
    seed: int = 0,
    device: str | None = None,
) -> Stability:
    """Reads pairs as the direction's fit reads them, and tests how much a direction fitted like it depends on the draw.

    Pairs that cannot be read are left out.

    Args:
        pairs: A `Dataset` or rows in any accepted shape; chosen is the harmless side.
        direction: Its reader reads, its estimator fits, and its vector is what the pairs' direction is compared with.
        columns: Names of the columns, where they are not the usual ones.
        seed: Of the draws.
        device: Where to run; None takes a GPU when there is one.
    """
    opened = open_reader(direction.reader, Runtime(path=direction.model_path, device=device))
    texts: list[tuple[Tokens, Tokens]] = []
    keys: list[bytes] = []
    lengths: list[float] = []
    for entries in _read_rows(list(pairs), columns or Columns()):
        read = [pair for pair in entries if isinstance(pair, Pair)]
        sides = opened.encode([side for pair in read for side in (pair.chosen, pair.rejected)], fitting=True)
        for pair, chosen, rejected in zip(read, sides[0::2], sides[1::2], strict=True):
            if isinstance(chosen, Tokens) and isinstance(rejected, Tokens):
                texts.append((chosen, rejected))
                keys.append(_prompt_key(pair.chosen))
                lengths.append(math.log1p(response_length(pair.chosen)) - math.log1p(response_length(pair.rejected)))
    (differences,) = read_differences(opened, texts, [direction.reader.layer])
    known = direction.facts.estimator
    return direction_stability(
        without_length(differences, np.array(lengths)) if direction.facts.debias == "length" else differences,
        _numbers(keys),
        estimator=known if known is not None and known in ESTIMATORS else "mean_difference",
        seed=seed,
        vector=direction.vector,
    )


def direction_report(
    direction: Direction,
    *,
    name: str = "",
    stability: Stability | None = None,
    coverage: Coverage | None = None,
    ladder: LadderCheck | None = None,
) -> DirectionReport:
    """Collects what is known of a direction, and what of it is implausible."""
    facts = asdict(direction.facts)
    return DirectionReport(
        name=name,
        repo_id=direction.repo_id,
        revision=direction.revision,
        reader=direction.reader.to_dict(),
        facts=facts,
        search=_tried(facts["search"]),
        stability=stability,
        doubts=(
            *_direction_doubts(facts, stability),
            *_missing(coverage, "pair"),
            *(ladder.doubts if ladder is not None else ()),
        ),
        coverage=coverage,
        ladder=ladder,
    )


def read_margins(
    split: Dataset | IterableDataset,
    *,
    name: str = "train",
    columns: Columns | None = None,
    category_column: str | None = None,
    excerpts: int = 0,
) -> list[Margins]:
    """Reads one split's margins, lengths and prompts: one `Margins` for each margin column.

    Args:
        split: A dataset with margin columns.
        name: What to call it.
        columns: Names of the text columns.
        category_column: A column with one value a row.
        excerpts: Of how many rows to keep the beginnings of the texts, those with the lowest raw margins below 0.

    Raises:
        ValueError: It has no margins or no texts, a value is not one number, or there are too many categories.
    """
    names: list[str] = list(split.column_names or ())
    suffixes = _suffixes(names, split.features or {}, {})
    parts: dict[str, list[float]] = {}
    numbers: list[int] = []
    longer: list[int] = []
    keys: list[bytes] = []
    categories: list[Any] = []
    worst: dict[str, list[tuple[float, int, tuple[str, str, str]]]] = {}
    marks: dict[str, set[object]] = {}
    total = 0
    for batch in split.with_format(None).iter(batch_size=ROWS_AT_ONCE):
        if not names:  # streaming, where the columns are known from the first rows
            names = list(batch)
        if not total:
            suffixes = _suffixes(names, split.features or {}, batch)
        if not suffixes:
            break
        if category_column is not None and category_column not in batch:
            raise ValueError(_no_category(category_column, names))
        kept: dict[int, Pair] = {}
        status = batch.get(STATUS)
        for i, pair in enumerate(pairs_from_batch(batch, columns or Columns(), first_row=total)):
            if isinstance(pair, RowError) or (status is not None and status[i] != OK):
                continue
            kept[i] = pair
            numbers.append(total + i)
            longer.append(response_length(pair.chosen) - response_length(pair.rejected))
            keys.append(_prompt_key(pair.chosen))
        for suffix, columns_of_it in suffixes.items():
            where = f"split `{name}`"
            read = {c: [_number(batch[c][i], c, total + i, where) for i in kept] for c in columns_of_it}
            for column, values in read.items():
                parts.setdefault(column, []).extend(values)
            said = beside(f"margin{suffix}")
            marks.setdefault(suffix, set()).update(batch[said][i] if said in batch else None for i in kept)
            raws = read.get(f"margin_raw{suffix}", read[f"margin{suffix}"])
            _keep_worst(worst.setdefault(suffix, []), excerpts, kept, raws, read.values(), total)
        if category_column is not None:
            categories += [batch[category_column][i] for i in kept]
        total += len(next(iter(batch.values())))
    if not suffixes:
        raise ValueError(
            f"split `{name}` has no column `margin`; annotate it first: `annotate(dataset, direction)`. It has "
            + (", ".join(f"`{c}`" for c in names[:20]) or "no columns")
        )
    if category_column is not None and category_column not in names:
        raise ValueError(_no_category(category_column, names))
    feature = (split.features or {}).get(category_column)
    labels = None if category_column is None else _labels(categories, category_column, feature)
    arrays = {column: np.array(values, dtype=np.float64) for column, values in parts.items()}
    row, groups = np.array(numbers, dtype=np.int64), _numbers(keys)
    found = []
    for suffix, own_columns in suffixes.items():
        own = {column: arrays.get(column, np.empty(0)) for column in own_columns}
        margin_column, raw_column, prob_column, bin_column = (
            f"{kind}{suffix}" for kind in ("margin", "margin_raw", "margin_prob", "margin_bin")
        )
        good = np.isfinite(np.stack(list(own.values()))).all(axis=0)
        own = {column: values[good] for column, values in own.items()}
        probability = own.get(prob_column)
        if probability is not None and ((probability < 0) | (probability > 1)).any():
            raise ValueError(f"`{prob_column}` of split `{name}` has values outside [0, 1]; it must hold probabilities")
        raw = own.get(raw_column, own[margin_column])
        found.append(
            Margins(
                split=name,
                column=margin_column,
                total=total,
                invalid=int((~good).sum()),
                row=row[good],
                margin=own[margin_column],
                raw=raw,
                has_raw=raw_column in own,
                probability=probability,
                bin=own.get(bin_column),
                longer=np.array(longer, dtype=np.float64)[good],
                groups=groups[good],
                category=None if labels is None else labels[good],
                excerpts={-minus_row: texts for _, minus_row, texts in worst.get(suffix, [])},
                made_by=marks_in(marks.get(suffix, ())),
            )
        )
    return found


def _split_report(m: Margins, suspicious: int, seed: int, expected: Sequence[str] | None) -> SplitReport:
    right, shorter = agreement(m.raw), agreement(-m.longer)
    shares = shares_of(
        {
            "agreement": right,
            "negative": m.raw < 0,
            "at_limits": np.abs(m.margin) == 1.0,
            "pull": _sigmoid(m.margin),
        },
        m.groups,
    )
    baseline = beside_length(right, shorter, m.groups)
    by_rule = shorter if baseline.rule == "shorter" else 1 - shorter
    against, along = by_rule == 0, by_rule == 1
    length = Length(
        spearman=spearman(m.raw, m.longer, m.groups, seed),
        pearson=pearson(m.raw, m.longer, m.groups, seed),
        rule=baseline.rule,
        baseline=baseline.share,
        gain=baseline.gain,
        rows_against=int(against.sum()),
        agreement_against=share_of(right[against], m.groups[against]),
        agreement_along=share_of(right[along], m.groups[along]),
    )
    errors = None if m.probability is None else probability_errors(m.probability, m.groups, seed)
    spread = None if m.category is None else coverage(m.category, m.groups, expected=expected)
    order = np.lexsort((m.row, m.raw))  # the lowest first, and by row where equal
    return SplitReport(
        split=m.split,
        column=m.column,
        rows=m.total,
        read=len(m.row),
        skipped=m.total - len(m.row) - m.invalid,
        invalid=m.invalid,
        prompts=len(np.unique(m.groups)),
        agreement=shares["agreement"],
        auc=auc(m.raw, m.groups, seed) if len(m.row) else UNKNOWN,
        negative=shares["negative"],
        at_limits=shares["at_limits"],
        margin=_spread(m.margin),
        raw=_spread(m.raw),
        pull=shares["pull"],
        loss=means_of({"": np.logaddexp(0.0, m.margin)}, m.groups)[""],
        length=length,
        probability=errors,
        bins=None if m.bin is None else {f"{v:.6g}": int((m.bin == v).sum()) for v in np.unique(m.bin)},
        categories=None if m.category is None else _categories(m),
        suspicious=tuple(
            Suspicious(int(m.row[i]), float(m.margin[i]), float(m.raw[i]), m.excerpts.get(int(m.row[i])))
            for i in order[:suspicious]
            if m.raw[i] < 0
        ),
        doubts=tuple(_split_doubts(m, shares["agreement"], length, errors, shares["pull"], spread)),
        coverage=spread,
    )


def _categories(m: Margins) -> tuple[Category, ...]:
    assert m.category is not None
    found = []
    for name in np.unique(m.category):
        inside = m.category == name
        groups, raw, margin = m.groups[inside], m.raw[inside], m.margin[inside]
        shares = shares_of({"negative": raw < 0, "agreement": agreement(raw)}, groups)
        mean = means_of({"": margin}, groups)[""]
        prompts, share = len(np.unique(groups)), len(raw) / len(m.row)
        found.append(Category(str(name), len(raw), prompts, mean, **shares, share=share))
    return tuple(sorted(found, key=lambda c: (-c.rows, c.name)))


def _split_doubts(
    m: Margins,
    share: Estimate,
    length: Length,
    errors: ProbabilityErrors | None,
    pull: Estimate,
    spread: Coverage | None,
) -> Iterable[str]:
    """What a reader of the numbers should not overlook."""
    if m.invalid:
        yield f"rows without a finite margin: {m.invalid}; a training on them ends in NaN or an error."
    if len(m.row) == 0:
        yield "no row has a margin and texts that can be read, so nothing is known."
        return
    prompts = len(np.unique(m.groups))
    if share.interval is None:
        yield f"too few distinct prompts for intervals: {prompts}."
    elif prompts < cards.FEW_PROMPTS:
        yield f"there are {prompts} distinct prompts, fewer than {cards.FEW_PROMPTS}: too few to rely on."
    yield from _missing(spread, "row")
    if not m.raw.any():
        yield "all margins are 0."
        return
    if share.value is not None and share.value < 0.5:
        yield "the margins contradict the labels more often than not: they point the wrong way, or at nothing."
    elif share.interval is not None and share.interval[0] <= 0.5:
        yield "agreement with the labels cannot be told from a coin's."
    if length.gain.interval is not None and length.gain.interval[0] <= 0:
        yield f"agreement with the labels is not beyond that of the {length.rule} response, within the interval."
    if length.spearman.value is not None and abs(length.spearman.value) >= 0.5:
        yield "the margins go along with the length of the responses."
    if not m.has_raw and (m.raw == 0).any():
        yield (
            f"rows with a margin of exactly 0 and no raw margin that says which side reads as safer: "
            f"{int((m.raw == 0).sum())}; they count as half right."
        )
    if m.has_raw and (m.margin * m.raw < 0).any():
        yield f"rows whose margin and raw margin have opposite signs: {int((m.margin * m.raw < 0).sum())}."
    if errors is not None and errors.ece.interval is not None and errors.ece.interval[0] > 0:
        value = errors.ece.value or 0.0
        if value > LEAST_ERROR:
            yield f"the probabilities are off by {value:.2f} on average: calibrate on pairs like these."
    if pull.value is not None and pull.value > 0.9:
        yield "margins this large push every pair alike in TRL's loss, which loses their sizes: use a calibrated scale."


def _missing(spread: Coverage | None, what: str) -> Iterable[str]:
    """A doubt about categories that should be there."""
    if spread is not None and spread.missing:
        named = ", ".join(spread.missing[:NAMED_MISSING])
        more = len(spread.missing) - NAMED_MISSING
        yield (
            f"expected categories without a {what}: {len(spread.missing)} of {spread.expected} "
            f"({named}{f' and {more} more' if more > 0 else ''})."
        )


def _direction_doubts(facts: Mapping[str, Any], stability: Stability | None) -> tuple[str, ...]:
    found = list(cards.doubts(facts))
    interval, length, accuracy = facts["accuracy_interval"], facts["length_accuracy"], facts["accuracy"]
    if (
        interval is not None
        and None not in (length, accuracy)
        and interval[0] <= length < accuracy  # at or below it, the card's own doubt says so
    ):
        found.append("the interval of its held-out accuracy contains the length baseline.")
    if stability is not None and stability.halves.value is not None and stability.halves.value < 0.5:
        found.append("directions of two halves of the pairs have little in common: fit it on more pairs.")
    if stability is not None and stability.given is not None and stability.given <= 0:
        found.append("the pairs that were given for the test point the other way.")
    return tuple(found)


def _tried(search: Sequence[Mapping[str, Any]] | None) -> tuple[Tried, ...]:
    return tuple(
        Tried(entry["layer"], entry["estimator"], entry["accuracy"], (entry["interval"][0], entry["interval"][1]))
        for entry in search or ()
    )


def _expected(categories: Sequence[str], category_column: str | None) -> tuple[str, ...]:
    """The names that a category column should have, as `_labels` would write them."""
    if category_column is None:
        raise ValueError("`categories` are names that a column should have; name the column with `category_column=`")
    if isinstance(categories, str) or not len(categories):
        raise ValueError(f"`categories` is {categories!r}; give a list of the names to expect, or leave it out")
    return tuple(dict.fromkeys(str(name)[:EXCERPT] for name in categories))


def _coverage_of_pairs(
    rows: Sequence[Mapping[str, Any]],
    columns: Columns,
    category_column: str,
    feature: Any,
    expected: Sequence[str] | None,
) -> Coverage:
    """How pairs that can be read spread over categories."""
    entries = [entry for part in _read_rows(rows, columns) for entry in part]
    kept = [(row.get(category_column), pair) for row, pair in zip(rows, entries, strict=True) if isinstance(pair, Pair)]
    labels = _labels([value for value, _ in kept], category_column, feature)
    return coverage(labels, _numbers([_prompt_key(pair.chosen) for _, pair in kept]), expected=expected)


def _read_rows(rows: Sequence[Mapping[str, Any]], columns: Columns) -> Iterator[list[Pair | RowError]]:
    """Reads rows of pairs, some at a time."""
    for first in range(0, len(rows), ROWS_AT_ONCE):
        chunk = rows[first : first + ROWS_AT_ONCE]
        names = list(dict.fromkeys(name for row in chunk for name in row))
        yield pairs_from_batch({name: [row.get(name) for row in chunk] for name in names}, columns, first_row=first)


def _keep_worst(
    heap: list[tuple[float, int, tuple[str, str, str]]],
    most: int,
    pairs: Mapping[int, Pair],
    raws: Sequence[float],
    numbers: Iterable[Sequence[float]],
    first: int,
) -> None:
    """Keeps the texts of the lowest raw margins below 0, and of equal ones those of the first rows.

    Args:
        heap: Of (-margin, -row, texts); its first one is the next to go.
        most: How many to keep.
        pairs: The rows of a batch that can be read, by their numbers in it.
        raws: Their raw margins `[n]`.
        numbers: All their numbers; a row with one that is not finite is left out of the report.
        first: Number of the batch's first row.
    """
    finite = np.isfinite(np.array(list(numbers))).all(axis=0)
    for (i, pair), raw, good in zip(pairs.items(), raws, finite, strict=True):
        rank = (-raw, -(first + i))
        if raw < 0 and good and most and (len(heap) < most or rank > heap[0][:2]):
            entry = (*rank, _excerpt(pair))
            heapq.heappush(heap, entry) if len(heap) < most else heapq.heapreplace(heap, entry)


def _suffixes(names: Sequence[str], features: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, list[str]]:
    """What follows `margin` in the names of margin columns, with the columns of each that hold its numbers.

    `""` is the only direction, `"_safety"` a named one. A column `margin_note` is nobody's: a direction's margin has
    its other columns beside it. Where there are none such, and no `margin`, columns of fractions are taken as they are.

    Args:
        names: Of all columns.
        features: Types of the columns, where they are known.
        batch: Of the first rows, by which a column is known otherwise.
    """
    named = [name.removeprefix("margin") for name in names if name.startswith("margin_")]
    # `margin_raw_safety` belongs to `margin_safety`; a direction that is itself called "raw" has a `margin_raw_raw`.
    free = [s for s in named if not any(s == f"_{kind}" or s.startswith(f"_{kind}_") for kind in _KINDS)]
    kinds = ("chosen_score", "rejected_score", *(f"margin_{kind}" for kind in _KINDS))
    own = [s for s in named if any(f"{kind}{s}" in names for kind in kinds)]
    found = ([""] if "margin" in names else []) + own
    found = found or [s for s in free if _holds(f"margin{s}", float, features, batch)]
    return {
        suffix: [f"margin{suffix}", *(c for c in (f"margin_raw{suffix}",) if c in names)]
        + [c for c in (f"margin_prob{suffix}", f"margin_bin{suffix}") if _holds(c, (int, float), features, batch)]
        for suffix in found
    }


def _holds(column: str, kind: Any, features: Mapping[str, Any], batch: Mapping[str, Any]) -> bool:
    """Whether a column holds numbers of a kind, by its type, or by its first value where that is not known."""
    if column in features:
        dtype = str(getattr(features[column], "dtype", ""))
        return dtype.startswith("float") or (kind is not float and dtype.startswith(("int", "uint")))
    first = next((value for value in batch.get(column, ()) if value is not None), None)
    return isinstance(first, kind) and not isinstance(first, bool)


def _check_origins(measured: Sequence[Margins], directions: Mapping[str, Direction]) -> list[Margins]:
    """Refuses a direction that did not make the margins; gives those that do not say whose they are."""
    unsaid: list[Margins] = []
    for name, direction in directions.items():
        own = [m for m in measured if m.column == suffixed("margin", name)] or list(measured)
        refusals = []
        for m in own:
            where, raw = f"split `{m.split}`: ", m.column.replace("margin", "margin_raw", 1)
            try:
                if not check_made_by(direction, m.made_by, m.column, where):
                    unsaid.append(m)
                made = every_scale(direction.calibration, m.raw)
                if m.has_raw and not any(same(m.margin, numbers) for _, numbers in made):
                    raise not_of_this(where, m.column, f"`{raw}`")
            except ValueError as refusal:
                refusals.append(refusal)
        if refusals and (own[0].column == suffixed("margin", name) or len(refusals) == len(own)):
            raise refusals[0]
    return unsaid


def _origin_doubts(m: Margins, unsaid: bool) -> Iterable[str]:
    """What to doubt about where margins come from."""
    several = len(m.made_by - {None})
    if several > 1:
        yield f"the margins were made by {several} directions, whose margins cannot be compared."
    if unsaid and len(m.row):
        yield f"nothing says which direction made the margins: there is no `{beside(m.column)}`, or rows lack it."


def _number(value: Any, column: str, row: int, where: str) -> float:
    if value is None:
        return math.nan
    if isinstance(value, int | float | np.number):
        return float(value)
    raise ValueError(
        f"row {row} of {where} has `{column}` = {value!r:.60}, a {type(value).__name__}; a margin is one number a row: "
        "annotate the dataset again with `overwrite=True`, or rename the column"
    )


def _no_category(column: str, names: Sequence[str]) -> str:
    return f"`category_column` is {column!r}; the dataset has " + ", ".join(f"`{c}`" for c in names[:30])


def _labels(values: Sequence[Any], column: str, feature: Any) -> np.ndarray:
    """Category names `[n]`, from strings, whole numbers, truth values or class labels."""
    names = getattr(feature, "names", None)
    labels = []
    for value in values:
        if isinstance(value, float | list | dict):
            raise ValueError(
                f"`category_column` {column!r} holds {value!r:.60}, a {type(value).__name__}; name a column with one "
                "string, whole number or truth value a row"
            )
        known = names is not None and isinstance(value, int) and 0 <= value < len(names)
        labels.append(NO_CATEGORY if value is None else str(names[value] if known and names else value)[:EXCERPT])
    distinct = len(set(labels))
    if distinct > MOST_CATEGORIES:
        raise ValueError(
            f"`category_column` {column!r} has {distinct} values; allowed are up to {MOST_CATEGORIES}: name a column "
            "of categories, not of texts or identifiers"
        )
    return np.array(labels, dtype=np.str_)


def _numbers(keys: Sequence[bytes]) -> np.ndarray:
    """Numbers prompts by their content, not by their place: `[n]`."""
    return np.unique(np.array(keys, dtype=f"S{DIGEST}"), return_inverse=True)[1]


def _prompt_key(conversation: Conversation) -> bytes:
    """Identity of a prompt, short enough to keep one for every row."""
    return hashlib.sha256(opening(conversation).encode("utf-8", "surrogatepass")).hexdigest()[:DIGEST].encode()


def _excerpt(pair: Pair) -> tuple[str, str, str]:
    prompt = str(pair.chosen.prompt[-1].get("content") or "") if pair.chosen.prompt else ""
    return (_short(prompt), _short(_said(pair.chosen)), _short(_said(pair.rejected)))


def _said(conversation: Conversation) -> str:
    return " ".join(str(m.get("content") or "") for m in conversation.response)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= EXCERPT else line[:EXCERPT] + "…"


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0.0, -x))


def _spread(values: np.ndarray) -> Spread:
    if len(values) == 0:
        return Spread(None, None, {str(q): None for q in QUANTILES})
    quantiles = np.quantile(values, QUANTILES).tolist()
    return Spread(float(values.mean()), float(values.std()), dict(zip(map(str, QUANTILES), quantiles, strict=True)))


def _direction_values(direction: DirectionReport) -> Any:
    """A direction's numbers as plain values, without the arrays behind them."""
    values = asdict(direction)
    if values["ladder"] is not None:
        del values["ladder"]["measured"]
    return _plain(values)


def _plain(value: Any) -> Any:
    """Values that JSON has; what is not finite is None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):  # half a surrogate pair cannot be written
        return value.encode("utf-8", "replace").decode()
    return value
