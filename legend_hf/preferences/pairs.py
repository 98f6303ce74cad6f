"""Which pairs are worth labelling or training on: a share of a dataset's rows, or pairs out of N responses per prompt.

In: rows with a `pair_similarity`; or rows with several responses and their scores. Out: fewer rows; or one row for each
chosen pair. This file knows no directions beyond what scales a margin, and never reads a prompt to choose.

From the source (REAL, arXiv 2409.17169): the subsets, which are the dissimilar half (its recommendation, "easy"), the
similar half ("hard") and a random half of the pairs; for several responses the most and the least similar pair, the
samples nearest to the centres of k-means with k=2 on normalised embeddings ("centroid"), and a random pair. Ours: any
fraction, seeds, ties, the exact optimum of k-means for few responses, and labels: the public code never looks at the
scores it collects, its chosen response is the one that stands first, which is a defect and not repeated here.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from numbers import Real
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from legend_hf.directions.direction import Direction
from legend_hf.margins.annotate import annotate
from legend_hf.margins.columns import (
    MARGIN_MARKS,
    MARGIN_STATUS,
    OK,
    SCORES_STATUS,
    SIMILARITY,
    SIMILARITY_STATUS,
    finite_numbers,
    ok_rows,
    one_size,
    shown_as,
    splits_of,
)
from legend_hf.margins.origin import beside, check_made_by, check_one, marks_of
from legend_hf.margins.scoring import edition
from legend_hf.preferences.alongside import Alongside, alongside
from legend_hf.preferences.similarity import (
    Embedder,
    PairSimilarityFn,
    cosine,
    embedder_of,
    unit_rows,
)
from legend_hf.reading.formats import SKIP, Columns, Conversation, RowError, responses_from_batch
from legend_hf.reading.plain import check_choice, check_on_error
from legend_hf.reading.rows import encode_rows, of_responses
from legend_hf.reading.templates import Tokens

if TYPE_CHECKING:
    import os

    from datasets import Dataset, DatasetDict

    from legend_hf.margins.scoring import GivenDirection
    from legend_hf.reading.reader import Reader

    Rows = TypeVar("Rows", Dataset, DatasetDict)

logger = logging.getLogger(__name__)

KEEPS = ("dissimilar", "similar", "random")
EMBEDDED_RULES = ("dissimilar", "similar", "centroid")
RULES = (*EMBEDDED_RULES, "random", "best", "all")

_EXACT_UP_TO = 12  # responses for which every way to part them in two is tried
_STARTS = 10  # of Lloyd's algorithm, for more responses
_SAME = 1e-12  # cosines and sums of squares that differ by less differ by rounding
_BATCH = 1000  # rows


def select_pairs(
    dataset: Rows, *, keep: str = "dissimilar", fraction: float = 0.5, by: str = SIMILARITY, seed: int = 0
) -> Rows:
    """Keeps a share of the rows, those whose responses are least (or most) alike: REAL's subsets.

    Selecting drops rows; how many are kept and dropped is logged. Of n rows `fraction * n`, rounded down, are kept, in
    their order. Equal similarities are ordered as the rows are, so with `fraction=0.5` the dissimilar and the similar
    rows have no row in common.

    Args:
        dataset: A `Dataset` with the column, or a `DatasetDict`, of whose every split that share is kept.
        keep: `"dissimilar"` (the rows lowest in `by`; the source recommends them), `"similar"` (the highest) or
            `"random"` rows, for comparison.
        fraction: Share of the rows to keep, above 0 and at most 1. Rows that could not be read (their
            `pair_similarity_status` or `margin_status` is not `"ok"`) are not counted among them and never kept.
        by: Column of numbers to go by.
        seed: Of `"random"`.

    Returns:
        The same kind, with fewer rows.

    Raises:
        ValueError: An argument that is not allowed (a stream too, which cannot be sorted), no such column, or a row
            without a number in it.
    """
    _check_share(keep, fraction)
    splits = _splits(dataset)
    for split in splits.values():
        if by not in split.column_names:
            remedy = (
                "add it first: `ds.map(PairSimilarityFn(model), batched=True)`" if by == SIMILARITY else "name another"
            )
            raise ValueError(f"the dataset has no column `{by}`, but {_quoted(split.column_names)}; {remedy}")
        check_one(marks_of(split, by), by)
    chosen = {name: _selected(split, _readable(split), keep, fraction, by, seed) for name, split in splits.items()}
    return _like(dataset, {name: split.select(chosen[name]) for name, split in splits.items()})


@dataclass(frozen=True)
class Share:
    """What became of a split's rows.

    Attributes:
        kept: Rows that are kept.
        dropped: Rows that are not, though they could be read.
        unread: Rows that could not be read.
        kept_mean: Mean similarity of those that are kept; None where there are none, or nobody measured.
        dropped_mean: The same of those that are dropped.
    """

    kept: int
    dropped: int
    unread: int
    kept_mean: float | None
    dropped_mean: float | None

    def to_text(self) -> str:
        """In a line."""
        kept, dropped = (
            "" if mean is None else f" (mean similarity {mean:.3f})" for mean in (self.kept_mean, self.dropped_mean)
        )
        unread = f", {self.unread} could not be read" if self.unread else ""
        return f"kept {self.kept} pairs{kept}, dropped {self.dropped}{dropped}{unread}"


def select_measured(
    dataset: Rows,
    fn: PairSimilarityFn | None = None,
    *,
    keep: str = "dissimilar",
    fraction: float = 0.5,
    seed: int = 0,
) -> tuple[Rows, dict[str | None, Share]]:
    """Measures `pair_similarity` where it is missing, keeps a share of the rows as `select_pairs` does, and counts.

    Args:
        dataset: A `Dataset`, or a `DatasetDict`, of whose every split that share is kept.
        fn: Measures the splits without `pair_similarity`; what is there is taken as it is. `"random"` needs none.
        keep: `"dissimilar"`, `"similar"` or `"random"` rows, as for `select_pairs`.
        fraction: Share of the rows to keep, above 0 and at most 1.
        seed: Of `"random"`.

    Returns:
        The same kind, with fewer rows; and what became of those of each split (None for a `Dataset`).

    Raises:
        ValueError: As `select_pairs`; or a split without `pair_similarity`, and no `fn`.
        RowError: A row cannot be measured, unless `fn` skips it.
    """
    _check_share(keep, fraction)
    splits = _splits(dataset)
    bare = [name for name, split in splits.items() if SIMILARITY not in split.column_names]
    if bare and fn is None and keep != "random":
        where = f" in the splits {', '.join(map(str, bare))}" if None not in bare else ""
        raise ValueError(f"there is no column `{SIMILARITY}`{where}; measure it with `PairSimilarityFn(model=...)`")
    if bare and fn is not None:
        splits |= _splits(annotate(_like(dataset, {name: splits[name] for name in bare}), fn))
    chosen, shares = {}, {}
    for name, split in splits.items():
        by = SIMILARITY if SIMILARITY in split.column_names else None
        readable = _readable(split)
        rows = _selected(split, readable, keep, fraction, by, seed)
        means: list[float | None] = [None, None]
        if by is not None:
            alike = np.array(split.with_format(None)[by][:], dtype=np.float64)
            for i, some in enumerate((np.array(rows, dtype=int), np.setdiff1d(readable, rows))):
                means[i] = float(alike[some].mean()) if len(some) else None
        chosen[name] = split.select(rows)
        shares[name] = Share(len(rows), len(readable) - len(rows), len(split) - len(readable), *means)
    return _like(dataset, chosen), shares


def make_pairs(
    dataset: Rows,
    *,
    rule: str = "dissimilar",
    model: str | os.PathLike[str] | Reader | Direction | Embedder | None = None,
    scores_column: str = "scores",
    responses_column: str = "responses",
    prompt_column: str = "prompt",
    direction: GivenDirection | None = None,
    on_error: str = "raise",
    seed: int = 0,
) -> Rows:
    """Makes preference pairs out of N scored responses per prompt: one row for each chosen pair.

    Embeddings choose the pair, scores label it: the response with the higher score is the chosen one. (REAL's public
    code does not look at its scores.) A pair with equal scores has no label and is dropped; so is a prompt with fewer
    than two responses or two different scores. All that is dropped is counted in a warning.

    The rules:

    * `"dissimilar"`, `"similar"`: the pair with the lowest, the highest cosine; among equals the first.
    * `"centroid"`: the responses nearest to the two centres of k-means on the normalised embeddings. See `pick_pair`.
    * `"random"`: one of the pairs.
    * `"best"` (not from REAL; the pairs that Curry-DPO orders): the best response against each other one, the worst of
      them first. Of several best ones, the first.
    * `"all"` (ours): every two responses.

    With two responses per prompt the first four are one.

    Args:
        dataset: A `Dataset`, or a `DatasetDict` whose every split is done, with a list of responses (strings or message
            lists, or dicts with one of them as `response`) and a list of scores per row, in the same order.
        rule: One of those above.
        model: As in `PairSimilarityFn`, or an `embedder_of` one, which says the rest of its options, too;
            `"dissimilar"`, `"similar"` and `"centroid"` need it. With the other rules it only adds `pair_similarity`.
        scores_column: Name of the scores' column.
        responses_column: Name of the responses' column.
        prompt_column: Name of the prompts' column, which is called `prompt` in the result; there need not be one.
        direction: The direction whose raw scores these are, or what `Direction.from_pretrained` takes; its calibration
            then makes `margin` of `margin_raw`. Without it there is no `margin`.
        on_error: `"raise"` at the first row that cannot be read, before any is embedded, or `"skip"` (drop and count)
            such rows. Rows that `LegendScoreFn` skipped (their `scores_status` is not `"ok"`) are always skipped.
        seed: Of `"random"`, and of where k-means starts for more than 12 responses.

    Returns:
        The same kind, with `prompt` (if there was one), `chosen`, `rejected`, `chosen_score`, `rejected_score` and
        `margin_raw` (their difference, above 0, in the units of the scores: hidden-state units where a direction gave
        them, those of a rating or a reward model where that did), maybe `margin`, maybe `pair_similarity` (all
        float32), `chosen_index` and `rejected_index` (their places among the responses, int64),
        `margin_direction` where the scores say which one made them, and every further column as it stands, but: of a
        list with an entry for each response two are kept, the chosen one's first, and columns that name responses by
        their places (`ranking`, `best_response`) are left out, `score_best` and
        `score_gap` too. In the order of the rows.

    Raises:
        ValueError: An argument that is not allowed, a missing column, one that would be overwritten, or scores that are
            not those of `direction`.
        RowError: A row that cannot be read: responses, or scores that are not one finite number each.
        OSError: The direction or the model cannot be loaded.
    """
    check_choice("rule", rule, RULES)
    check_on_error(on_error)
    if rule in EMBEDDED_RULES and model is None:
        raise ValueError(
            f'`rule="{rule}"` compares embeddings and needs `model`: a Hub id, a folder, a `Reader` or a `Direction`; '
            'give one, or take `rule="random"`, `"best"` or `"all"`'
        )
    splits = _splits(dataset)
    columns = Columns(prompt=prompt_column, responses=responses_column)
    named = {"scores_column": scores_column, "responses_column": responses_column}
    plans = {
        name: _layout(split, named, prompt_column, embedded=model is not None, scaled=direction is not None)
        for name, split in splits.items()
    }
    if direction is not None and not isinstance(direction, Direction):
        direction = Direction.from_pretrained(direction)
    if direction is not None:
        _check_scored_by(direction, splits, scores_column)
    embedder = model if model is None or isinstance(model, Embedder) else embedder_of(model)
    if on_error == "raise":  # at the first bad row of any split, before a row is embedded
        for name, split in splits.items():
            for row in _read_rows(split, columns, scores_column, embedder):
                if isinstance(row, RowError):
                    if name is not None:
                        row.add_note(f"in split {name!r}")
                    raise row
    chosen: dict[str | None, _Found] = {}
    for name, split in splits.items():
        rows = _read_rows(split, columns, scores_column, embedder, desc="Choosing pairs")
        chosen[name] = _find_pairs(rows, rule, embedder, seed)
        _log_found(chosen[name], len(split), name)
    kept = alongside(
        [(split, chosen[name].rows) for name, split in splits.items()],
        responses_column,
        (scores_column, prompt_column, columns.tools, columns.chat_template_kwargs),
    )
    made = {
        name: _build(split, chosen[name], plans[name], kept, responses_column, prompt_column, direction)
        for name, split in splits.items()
    }
    return _like(dataset, made)


def pick_pair(embeddings: np.ndarray, rule: str, *, seed: int = 0) -> tuple[int, int]:
    """Chooses two of n responses by their embeddings alone.

    The choice changes neither with a positive factor on any embedding nor with a rotation of all. Pairs count in the
    order (0, 1), (0, 2), ..., (1, 2), ...; among equals the first is taken. Equal embeddings have the cosine 1, so two
    equal responses are never the dissimilar pair, unless all are equal.

    `"centroid"`: k-means with k=2 on the normalised embeddings; the responses nearest (Euclidean) to each centre. For
    up to 12 responses every way to part them in two is tried, so the sum of squares is the least there is; for more,
    Lloyd's algorithm starts at the least similar pair and at 10 drawn ones, and the best end is taken. Where one
    response is nearest to both centres it stands for the cluster that it belongs to; for the other cluster, the one of
    its own responses that is nearest to its centre.

    Args:
        embeddings: `[n, d]`, n >= 2, finite.
        rule: `"dissimilar"`, `"similar"` or `"centroid"`.
        seed: Of the drawn starts of k-means.

    Returns:
        Two different places, the smaller one first.

    Raises:
        ValueError: Fewer than two embeddings, or a rule that uses none.
    """
    check_choice("rule", rule, EMBEDDED_RULES)
    count = len(embeddings)
    if count < 2:
        raise ValueError(f"given {count} embeddings; a pair needs at least 2")
    if count == 2:
        return 0, 1
    one, other = np.triu_indices(count, 1)
    alike = cosine(embeddings[one], embeddings[other])
    if rule == "centroid":
        return _centroid_pair(unit_rows(embeddings), int(np.argmin(alike)), seed)
    k = _first_least(alike if rule == "dissimilar" else -alike)
    return int(one[k]), int(other[k])


@dataclass(frozen=True)
class _Row:
    """One row that can be read."""

    texts: tuple[Tokens, ...]  # of its responses; empty without an embedder
    scores: tuple[float, ...]


@dataclass
class _Found:
    """The pairs of a split, and why others are not among them."""

    rows: list[int]
    chosen: list[int]
    rejected: list[int]
    chosen_score: list[float]
    rejected_score: list[float]
    similarity: list[float]
    dropped: Counter[str]


def _check_share(keep: str, fraction: float) -> None:
    check_choice("keep", keep, KEEPS)
    if not 0 < fraction <= 1:
        raise ValueError(f"`fraction` is {fraction}; it must be above 0 and at most 1")


def _readable(split: Dataset) -> np.ndarray:
    """Rows of a split that could be read, by what those who read it say, ascending."""
    good = ok_rows(split, SIMILARITY_STATUS, MARGIN_STATUS)
    if len(good) < len(split):
        logger.warning("%d of %d rows could not be read and are left out", len(split) - len(good), len(split))
    return good


def _selected(split: Dataset, rows: np.ndarray, keep: str, fraction: float, by: str | None, seed: int) -> list[int]:
    """Which of the rows to keep, ascending; without a column to go by the draw alone decides."""
    values = np.zeros(len(rows)) if by is None else finite_numbers(split, by, rows)
    # 0.29 * 100 is a little less than 29.
    count = math.floor(fraction * len(rows) + 1e-9)
    if keep == "random":
        order = np.random.default_rng(seed).permutation(len(rows))
    else:
        order = np.argsort(values, kind="stable")
    taken = order[len(rows) - count :] if keep == "similar" else order[:count]
    how = keep if by is None else f"{keep} by `{by}`"
    logger.info("kept %d of %d rows (%s), dropped %d", count, len(split), how, len(split) - count)
    return sorted(rows[taken].tolist())


def _check_scored_by(direction: Direction, splits: Mapping[str | None, Dataset], column: str) -> None:
    """Refuses scores that another direction gave, and says where nobody knows."""
    for name, split in splits.items():
        where = "" if name is None else f"split {name!r}: "
        if not check_made_by(direction, marks_of(split, column), column, where):
            logger.warning(
                "%snothing says which direction made `%s`; `margin` is right only if it is the one given", where, column
            )


def _read_rows(
    split: Dataset, columns: Columns, scores_column: str, embedder: Embedder | None, *, desc: str = "Checking rows"
) -> Iterator[_Row | RowError | None]:
    """Reads a split, a batch at a time; None for a row that whoever scored it could not read."""
    from datasets.utils import tqdm

    plain = split.with_format(None)
    with tqdm(total=len(plain), desc=desc, unit="row") as bar:
        for first in range(0, len(plain), _BATCH):
            batch = plain[first : first + _BATCH]
            rows = responses_from_batch(batch, columns, first_row=first)
            read = _scored(rows, batch[scores_column], columns, scores_column, embedder, first)
            for row, said in zip(read, batch.get(SCORES_STATUS, [OK] * len(rows)), strict=True):
                yield row if said == OK else None
            bar.update(len(rows))


def _scored(
    rows: Sequence[tuple[Conversation, ...] | RowError],
    scores: Sequence[Any],
    columns: Columns,
    scores_column: str,
    embedder: Embedder | None,
    first: int,
) -> Iterator[_Row | RowError]:
    """Puts texts and scores to the responses of one batch."""
    encode: Callable[[Sequence[Conversation]], list[Any]] = list if embedder is None else embedder.open().encode
    read = encode_rows(encode, of_responses(rows, columns.responses), first_row=first)
    for number, (row, given) in enumerate(zip(read, scores, strict=True), start=first):
        why = None if isinstance(row, RowError) else _why_no_scores(given, len(row), columns.responses)
        if isinstance(row, RowError):
            yield row
        elif why is not None:
            yield RowError(number, scores_column, why)
        else:
            yield _Row(() if embedder is None else row, tuple(float(score) for score in given))


def _why_no_scores(given: Any, responses: int, column: str) -> str | None:
    remedy = "give one finite number for each response, in their order"
    if not isinstance(given, list):
        return f"given {given!r:.60}; {remedy}"
    if len(given) != responses:
        return f"{len(given)} scores for {responses} responses in `{column}`; {remedy}"
    for i, score in enumerate(given):
        # In float32, in which they are written.
        if not isinstance(score, Real) or not abs(float(score)) <= float(np.finfo(np.float32).max):
            return f"score {i} is {score!r}; {remedy}"
    return None


def _find_pairs(rows: Iterator[_Row | RowError | None], rule: str, embedder: Embedder | None, seed: int) -> _Found:
    """Chooses and labels the pairs of every row."""
    found = _Found([], [], [], [], [], [], Counter())
    numbered = enumerate(rows)
    while batch := list(islice(numbered, _BATCH)):
        usable: list[tuple[int, _Row]] = []
        for number, row in batch:
            if row is None:
                found.dropped["rows that were not scored"] += 1
            elif isinstance(row, RowError):
                found.dropped["rows that cannot be read"] += 1
            elif len(row.scores) < 2:
                found.dropped["prompts with fewer than two responses"] += 1
            elif len(set(row.scores)) < 2:
                found.dropped["prompts whose scores are all equal"] += 1
            else:
                usable.append((number, row))
        vectors = None
        if embedder is not None:
            vectors = embedder.open().embed([text for _, row in usable for text in row.texts])  # [responses, d_model]
            if not np.isfinite(vectors).all():
                raise ValueError(embedder.not_finite().removesuffix(SKIP))
        place = 0
        for number, good in usable:
            own = None if vectors is None else vectors[place : place + len(good.scores)]
            place += len(good.scores)
            for i, j in _choose(rule, good.scores, own, number, seed):
                if good.scores[i] == good.scores[j]:
                    found.dropped["pairs with equal scores"] += 1
                    continue
                better, worse = (i, j) if good.scores[i] > good.scores[j] else (j, i)
                found.rows.append(number)
                found.chosen.append(better)
                found.rejected.append(worse)
                found.chosen_score.append(good.scores[better])
                found.rejected_score.append(good.scores[worse])
                if own is not None:
                    found.similarity.append(float(cosine(own[[i]], own[[j]])[0]))
    return found


def _choose(
    rule: str, scores: Sequence[float], embeddings: np.ndarray | None, row: int, seed: int
) -> list[tuple[int, int]]:
    """The pairs of one row, in order, not yet labelled."""
    count = len(scores)
    if rule == "best":
        best = max(range(count), key=lambda i: scores[i])
        return [(best, i) for i in sorted(range(count), key=lambda i: scores[i]) if i != best]
    every = list(combinations(range(count), 2))
    if rule == "all":
        return every
    if rule == "random":
        # Of the row's number: what one row gets does not depend on how many responses the others have.
        return [every[np.random.default_rng([seed, row]).integers(len(every))]]
    assert embeddings is not None
    return [pick_pair(embeddings, rule, seed=seed)]


def _log_found(found: _Found, rows: int, split: str | None) -> None:
    where = "" if split is None else f" in split {split!r}"
    logger.info("%d pairs of %d of %d prompts%s", len(found.rows), len(set(found.rows)), rows, where)
    if found.dropped:
        dropped = ", ".join(f"{count} {what}" for what, count in sorted(found.dropped.items()))
        logger.warning("dropped%s: %s", where, dropped)


@dataclass(frozen=True)
class _Layout:
    """What the result of a split looks like."""

    features: Any  # of all columns, in order; the prompts' under its own name
    drop: list[str]
    prompt: str | None
    marks: str | None  # the column that says which direction scored


def _layout(split: Dataset, named: Mapping[str, str], prompt_column: str, *, embedded: bool, scaled: bool) -> _Layout:
    """Refuses columns that are missing or would be overwritten, and says what the result will look like."""
    from datasets import Features, Value

    names = split.column_names
    for argument, name in named.items():
        if name not in names:
            raise ValueError(
                f"`{argument}={name!r}` names no column; allowed are the dataset's, {_quoted(names)}; pairs are made "
                "of a list of responses and a list of their scores per row"
            )
    if prompt_column != "prompt" and prompt_column not in names:
        raise ValueError(f"`prompt_column={prompt_column!r}` names no column; allowed are {_quoted(names)}")
    responses = split.features[named["responses_column"]]
    inner = _response_feature(responses)
    if inner is None:
        raise ValueError(f"`{named['responses_column']}` is {responses}; allowed is a list column; convert it")
    number, index = Value("float32"), Value("int64")
    new = {"chosen": inner, "rejected": inner}
    new |= dict.fromkeys(("chosen_score", "rejected_score", "margin_raw"), number)
    new |= {"margin": number} if scaled else {}
    new |= {SIMILARITY: number} if embedded else {}
    new |= {"chosen_index": index, "rejected_index": index}
    drop = list(named.values())
    marks = beside(named["scores_column"])
    marks = marks if marks in names else None
    if marks is not None:  # which direction scored is which one made the margins
        drop.append(marks)
        new[MARGIN_MARKS] = split.features[marks]
    kept = {name: feature for name, feature in split.features.items() if name not in drop}
    taken = [name for name in new if name in kept]
    taken += ["prompt"] if prompt_column != "prompt" and "prompt" in kept else []
    if taken:
        raise ValueError(f"the dataset already has {_quoted(taken)}; rename or remove what is there")
    prompt = {prompt_column: kept.pop(prompt_column)} if prompt_column in kept else {}
    return _Layout(Features({**prompt, **new, **kept}), drop, prompt_column if prompt else None, marks)


def _response_feature(feature: Any) -> Any:
    """What one response is, out of what a row's are: a list, maybe of dicts that hold it, or a dict of lists."""
    if isinstance(feature, dict):
        return _response_feature(feature.get("response"))
    inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
    return inner.get("response") if isinstance(inner, dict) else inner


def _response(responses: Any, place: int) -> Any:
    """One of a row's responses, as it stands in there."""
    if isinstance(responses, Mapping):
        return responses["response"][place]
    entry = responses[place]
    return entry["response"] if isinstance(entry, Mapping) else entry


def _build(
    split: Dataset,
    found: _Found,
    layout: _Layout,
    kept: Alongside,
    responses_column: str,
    prompt_column: str,
    direction: Direction | None,
) -> Dataset:
    """Writes the rows of the pairs."""
    from datasets import Dataset, Features

    numbers = _numbers(found, direction)
    features = Features(kept.features(layout.features))
    if not found.rows:  # `map` returns an empty split without the columns
        empty: dict[str, list[Any]] = {name: [] for name in features}
        made = Dataset.from_dict(empty, features=features, split=split.split)
    else:
        made = (
            split.with_format(None)
            .select(found.rows)
            .map(
                _fill,
                batched=True,
                with_indices=True,
                fn_kwargs={
                    "responses_column": responses_column,
                    "marks": layout.marks,
                    "kept": kept,
                    "numbers": numbers,
                    "version": edition(),
                },
                remove_columns=[*layout.drop, *kept.places],
                features=features,
                desc="Making pairs",
            )
            .select_columns(list(features))
        )
    if layout.prompt not in (None, "prompt"):
        made = made.rename_column(prompt_column, "prompt")
    return shown_as(made, split)


def _numbers(found: _Found, direction: Direction | None) -> dict[str, np.ndarray]:
    """The new columns of numbers `[pairs]`."""
    chosen, rejected = np.array(found.chosen_score, dtype=np.float64), np.array(found.rejected_score, dtype=np.float64)
    raw = np.clip(chosen - rejected, None, np.finfo(np.float32).max).astype(np.float32)
    numbers: dict[str, np.ndarray] = {
        "chosen_score": chosen.astype(np.float32),
        "rejected_score": rejected.astype(np.float32),
        "margin_raw": raw,
        "chosen_index": np.array(found.chosen, dtype=np.int64),
        "rejected_index": np.array(found.rejected, dtype=np.int64),
    }
    if direction is not None:
        # Of the float32 that is written, so that it can be made of it again.
        numbers["margin"] = direction.calibration.apply(raw.astype(np.float64))
        same = one_size(numbers["margin"])
        if same is not None:
            logger.warning(
                "of the margins %s, so they tell few pairs from others: are these the raw scores of `direction`? "
                "Of ratings or rewards `margin_raw` says more; leave `direction` out",
                same,
            )
    if found.similarity:
        numbers[SIMILARITY] = np.array(found.similarity, dtype=np.float32)
    return numbers


def _fill(
    batch: Mapping[str, Any],
    rows: Sequence[int],
    *,
    responses_column: str,
    marks: str | None,
    kept: Alongside,
    numbers: Mapping[str, np.ndarray],
    version: str,
) -> dict[str, Any]:
    """One batch; `version` is there to be hashed."""
    columns: dict[str, Any] = {name: values[rows] for name, values in numbers.items()}
    if marks is not None:
        columns[MARGIN_MARKS] = batch[marks]
    for side in ("chosen", "rejected"):
        places = zip(batch[responses_column], columns[f"{side}_index"], strict=True)
        columns[side] = [_response(responses, i) for responses, i in places]
    places = zip(columns["chosen_index"], columns["rejected_index"], strict=True)
    entries = [kept.of_pair(batch, row, one, other) for row, (one, other) in enumerate(places)]
    return columns | {name: [entry[name] for entry in entries] for name in kept.each}


def _centroid_pair(units: np.ndarray, least_similar: int, seed: int) -> tuple[int, int]:
    """See `pick_pair`; all that k-means needs of the normalised embeddings `[n, d]` is their products."""
    gram = units @ units.T  # [n, n]
    sides = _bipartitions(len(gram)) if len(gram) <= _EXACT_UP_TO else _lloyd(gram, least_similar, seed)
    return _nearest_to_centres(gram, sides[_first_least(_spread(gram, sides))])


def _nearest_to_centres(gram: np.ndarray, side: np.ndarray) -> tuple[int, int]:
    """The samples nearest to the centres of the two clusters that `side` (bool `[n]`) parts; never one sample twice."""
    clusters = (side, ~side)
    away = [_distances(gram, members) for members in clusters]
    nearest = [_first_least(distances) for distances in away]
    if nearest[0] == nearest[1]:
        other = 1 if side[nearest[0]] else 0  # the cluster that it does not belong to
        own = np.flatnonzero(clusters[other])
        nearest[other] = int(own[_first_least(away[other][own])])
    return min(nearest), max(nearest)


def _bipartitions(count: int) -> np.ndarray:
    """Every way to part `count` in two that are not empty: bool `[2^(count - 1) - 1, count]`."""
    numbers = np.arange(2 ** (count - 1) - 1)
    others = (numbers[:, None] >> np.arange(count - 1)) & 1
    return np.hstack([np.ones((len(numbers), 1)), others]).astype(bool)


def _lloyd(gram: np.ndarray, least_similar: int, seed: int) -> np.ndarray:
    """Where Lloyd's algorithm ends, for each start: bool `[starts, n]`, both sides of each not empty."""
    one, other = np.triu_indices(len(gram), 1)
    drawn = np.random.default_rng(seed).integers(len(one), size=_STARTS)
    ends = []
    for start in [least_similar, *drawn.tolist()]:
        centres = [np.arange(len(gram)) == i for i in (one[start], other[start])]
        side = _distances(gram, centres[0]) <= _distances(gram, centres[1])
        # Two equal samples as a start leave one side empty: then the first of them stands alone.
        side = centres[0] if side.all() else side
        for _ in range(100):
            new = _distances(gram, side) <= _distances(gram, ~side)
            if new.all() or not new.any() or (new == side).all():
                break
            side = new
        ends.append(side)
    return np.stack(ends)


def _spread(gram: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """Sum of squared distances to the own centre, less a constant, of each parting `[p, n]`: `[p]`."""
    total = np.zeros(len(sides))
    for members in (sides, ~sides):
        weight = members.astype(np.float64)
        total -= ((weight @ gram) * weight).sum(axis=1) / weight.sum(axis=1)
    return total


def _distances(gram: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Squared Euclidean distance of each sample to the centre of the members (bool `[n]`): `[n]`."""
    weight = members / members.sum()
    distances: np.ndarray = np.diag(gram) - 2.0 * gram @ weight + weight @ gram @ weight
    return distances


def _first_least(values: np.ndarray) -> int:
    """Place of the least value; of those equal to it but for rounding, the first."""
    return int(np.flatnonzero(values <= values.min() + _SAME)[0])


def _splits(dataset: Any) -> dict[str | None, Dataset]:
    """The splits by name; an only one has none."""
    from datasets import Dataset

    splits: dict[Any, Dataset] = splits_of(dataset)
    return {None: dataset} if isinstance(dataset, Dataset) else splits


def _like(dataset: Any, splits: Mapping[str | None, Dataset]) -> Any:
    return splits[None] if None in splits else type(dataset)(splits)


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"
