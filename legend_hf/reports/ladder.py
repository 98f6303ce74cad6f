"""Does a direction order responses as a ladder does? Ranked responses become Kendall's tau, beside that of length.

In: a direction, and a dataset whose rows hold a prompt and its responses, best first. Out: a `LadderCheck`: how far
scores fall along the ladders, with intervals by prompt, which steps the direction sees, and what length alone would
see. This file knows neither pairs nor margins nor training, and not whether a ladder's order is true: it reports and
asserts nothing.

Ladders of six graded responses are Course-Correction's (arXiv 2407.16637, its synthetic preferences): a refusal, four
responses that start to comply and turn back later and later, one that complies. That scores of a direction fall along
such a ladder is **not from that paper, nor from Legend: it is a hypothesis of ours**, and ranks 2 to 5 may well be
nearly tied, since all of them end corrected. All measures here are ours too. Where responses grow at every step, as
those of ranks 1 to 5 there do, length alone orders them perfectly and no direction can beat it: look at the steps where
length is wrong. Any other ladder will do: graded answers, drafts of an editor.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from legend_hf.directions.direction import Direction
from legend_hf.hub.verdict import FEW_PROMPTS
from legend_hf.margins.columns import kind_of
from legend_hf.margins.naming import Text
from legend_hf.margins.scoring import GivenDirection, Scorer, Scoring
from legend_hf.reading.formats import (
    Columns,
    RowError,
    prompt_key,
    response_length,
    responses_from_batch,
)
from legend_hf.reading.plain import check_on_error
from legend_hf.reading.reader import OpenReader
from legend_hf.reading.rows import encode_rows, of_responses
from legend_hf.reading.templates import Tokens
from legend_hf.reports.findings import Estimate, LadderCheck, Ladders, Rank, Step
from legend_hf.reports.measure import agreement, beside_length, kendall_tau, means_of, renumbered, shares_of

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

ROWS_AT_ONCE = 1000
_NAMED = 10  # of those left out, in the log


def ladder_check(
    direction: GivenDirection,
    ladders: Dataset,
    *,
    responses_column: str = "responses",
    prompt_column: str = "prompt",
    on_error: str = "raise",
    device: str | None = None,
    batch_tokens: int | None = None,
    store: str | os.PathLike[str] | None = None,
    trust_remote_code: bool = False,
) -> LadderCheck:
    """Scores every response of ladders and compares the order of the scores with that of the ladder.

    A ladder is a prompt with responses to it in order, the best first.

    Each text is scored as it would be alone. Ladders may differ in their number of responses. That scores should fall
    along the ladder is a hypothesis of ours, see the head of this file; nothing is asserted.

    Args:
        direction: What scores: a `Direction`, or what `Direction.from_pretrained` takes.
        ladders: Rows with a list of two or more responses, best first, in any shape of `responses_from_batch`.
        responses_column: Name of the responses' column.
        prompt_column: Name of the prompts' column; without a column `prompt`, responses hold whole conversations.
        on_error: `"raise"` at the first row that cannot be read, before any is scored, or `"skip"` such rows.
        device: Where to run; None takes a GPU when there is one.
        batch_tokens: Most tokens in one forward pass; None takes the device's default.
        store: File, `.sqlite`, or URL that keeps every score as soon as it is read, as for `LegendMarginFn`.
        trust_remote_code: Run code that comes with the model.

    Returns:
        The check; its numbers are None where no ladder can be read.

    Raises:
        ValueError: An argument is not possible, or the scores are not finite.
        RowError: A row cannot be read (with `on_error="raise"`).
        OSError: The direction cannot be loaded.
    """
    from datasets import Dataset

    check_on_error(on_error)
    if not isinstance(ladders, Dataset):
        raise ValueError(
            f"`ladders` is {kind_of(ladders)}; give one `Dataset`: a split of a dictionary of them, or "
            "`Dataset.from_list(rows)`"
        )
    columns = Columns(prompt=prompt_column, responses=responses_column)
    plain = ladders.with_format(None)
    responses_from_batch(plain[:0], columns)  # refuses other columns before anything is loaded
    if not isinstance(direction, Direction):
        direction = Direction.from_pretrained(direction)
    scorer = Scorer(
        (("", direction),),
        device=device,
        batch_tokens=batch_tokens,
        trust_remote_code=trust_remote_code,
        store=None if store is None else os.fspath(store),
    )
    (scoring,) = scorer.open().readings
    batches: Iterable[list[_Encoded | RowError]] = _encoded(plain, columns, scoring.opened)
    if on_error == "raise":
        kept = []  # at most 8 bytes for each token of all ladders, so that none is tokenised again
        for encoded in batches:
            for entry in encoded:
                if isinstance(entry, RowError):
                    raise entry
            kept.append(encoded)
        batches = kept
    unread = scorer.not_finite("") if on_error == "raise" else None
    read = list(_scored(batches, scoring, len(plain), unread))
    row = [number for number, _, _, _ in read]
    if len(row) < len(plain):
        lost = np.setdiff1d(np.arange(len(plain)), row).tolist()
        logger.warning("left out %d of %d ladders that cannot be read: rows %s", len(lost), len(plain), lost[:_NAMED])
    groups = renumbered(np.array([prompt for _, prompt, _, _ in read], dtype=np.str_))
    lengths, scores = _padded([own for _, _, own, _ in read]), _padded([own for _, _, _, own in read])
    return measure_ladders(scores, lengths, groups, row=np.array(row, int), rows=len(plain))


def measure_ladders(
    scores: np.ndarray, lengths: np.ndarray, groups: np.ndarray, *, row: np.ndarray, rows: int
) -> LadderCheck:
    """Makes a `LadderCheck` of scores and lengths `[n, k]`, best first, NaN behind the last of a shorter ladder.

    Args:
        scores: Of the responses.
        lengths: Of the same responses, in characters.
        groups: Number of each ladder's prompt `[n]`.
        row: Number of each ladder in its dataset `[n]`.
        rows: Rows of the dataset.
    """
    sizes = np.isfinite(scores).sum(axis=1)
    tau, length_tau = kendall_tau(scores), kendall_tau(-lengths)
    # A tau is a share, of pairs in order, from -1 to 1 instead of 0 to 1.
    in_order, shorter = (tau + 1) / 2, (length_tau + 1) / 2
    shares = shares_of({"tau": in_order, "perfect": tau == 1.0}, groups)
    length = beside_length(in_order, shorter, groups)
    whole, gain = _scaled(shares["tau"], 2, -1), _scaled(length.gain, 2, 0)
    prompts = len(np.unique(groups))
    return LadderCheck(
        rows=rows,
        read=len(row),
        skipped=rows - len(row),
        prompts=prompts,
        responses={str(size): int((sizes == size).sum()) for size in np.unique(sizes)},
        tau=whole,
        perfect=shares["perfect"],
        perfect_by_chance=float(np.mean([1 / math.factorial(size) for size in sizes.tolist()])) if len(row) else None,
        length=_scaled(length.share, 2, -1),
        gain=gain,
        ranks=tuple(_ranks(scores, sizes, groups)),
        steps=tuple(_steps(scores, lengths if length.rule == "shorter" else -lengths, sizes, groups)),
        doubts=tuple(_doubts(whole, gain, length.rule, prompts)),
        measured=Ladders(row, scores, lengths, groups, tau, length_tau),
        length_rule=length.rule,
    )


def _scaled(estimate: Estimate, times: float, plus: float) -> Estimate:
    """A number and its interval on another scale."""
    if estimate.value is None:
        return estimate
    low, high = estimate.interval or (math.nan, math.nan)
    return Estimate(
        times * estimate.value + plus,
        None if estimate.interval is None else (times * low + plus, times * high + plus),
    )


@dataclass(frozen=True, eq=False)
class _Encoded:
    """What is kept of one ladder, for all of them to fit into memory.

    Attributes:
        prompt: A digest, for a prompt may be long.
        lengths: Characters of its responses.
        packed: Their token ids, content positions and last positions.
    """

    prompt: str
    lengths: list[int]
    packed: list[tuple[np.ndarray, np.ndarray, int]]

    def texts(self) -> Iterator[Tokens]:
        for ids, content, last in self.packed:
            yield Tokens(tuple(ids.tolist()), tuple(content.tolist()), last)


def _encoded(ladders: Dataset, columns: Columns, opened: OpenReader) -> Iterator[list[_Encoded | RowError]]:
    """The ladders as token ids, by batches of rows; a row that cannot be read says why."""
    for first in range(0, len(ladders), ROWS_AT_ONCE):
        batch = responses_from_batch(ladders[first : first + ROWS_AT_ONCE], columns, first_row=first)
        read = encode_rows(opened.encode, of_responses(batch, columns.responses), first_row=first)
        entries: list[_Encoded | RowError] = []
        for number, (row, texts) in enumerate(zip(batch, read, strict=True), start=first):
            if isinstance(texts, RowError) or isinstance(row, RowError):
                entries.append(cast(RowError, texts))  # what was refused stays refused
            elif len(row) < 2:
                reason = "given one response; a ladder has at least two, best first; add the others, or drop the row"
                entries.append(RowError(number, columns.responses, reason))
            else:
                packed = [(np.array(text.ids, np.int32), np.array(text.content, np.int32), text.last) for text in texts]
                lengths = [response_length(response) for response in row]
                entries.append(_Encoded(prompt_key(row[0]), lengths, packed))
        yield entries


def _scored(
    batches: Iterable[Sequence[_Encoded | RowError]], scoring: Scoring, rows: int, unread: str | None
) -> Iterator[tuple[int, str, list[int], list[float]]]:
    """Row number, prompt, lengths and scores of each ladder whose scores are finite.

    Args:
        batches: Of ladders, in their order.
        scoring: What scores texts.
        rows: How many ladders there are.
        unread: Why a row without finite scores is refused; None leaves it out.
    """
    from datasets.utils import tqdm

    first = 0
    with tqdm(total=rows, desc="Scoring ladders", unit="row") as bar:
        for encoded in batches:
            good = [(first + i, entry) for i, entry in enumerate(encoded) if not isinstance(entry, RowError)]
            # Together, so that a prompt is read once for all its responses and a response that stands twice once.
            read = iter(scoring.score([Text(text) for _, ladder in good for text in ladder.texts()])[""].tolist())
            for number, ladder in good:
                scores = [next(read) for _ in ladder.lengths]
                if np.isfinite(scores).all():
                    yield number, ladder.prompt, ladder.lengths, scores
                elif unread is not None:
                    raise RowError(number, None, unread)
            first += len(encoded)
            bar.update(len(encoded))


def _padded(ladders: Sequence[Sequence[float]]) -> np.ndarray:
    """Ladders as one array `[n, k]`, NaN behind the shorter ones."""
    padded = np.full((len(ladders), max(map(len, ladders), default=0)), np.nan)
    for target, values in zip(padded, ladders, strict=True):
        target[: len(values)] = values
    return padded


def _ranks(scores: np.ndarray, sizes: np.ndarray, groups: np.ndarray) -> Iterator[Rank]:
    relative = scores - np.nanmean(scores, axis=1, keepdims=True)
    for inside, ranks in _levels(sizes):
        columns = {f"score {r}": scores[inside, r] for r in ranks} | {f"to {r}": relative[inside, r] for r in ranks}
        means = means_of(columns, groups[inside])
        for r in ranks:
            yield Rank(r + 1, int(inside.sum()), means[f"score {r}"], means[f"to {r}"])


def _steps(scores: np.ndarray, lengths: np.ndarray, sizes: np.ndarray, groups: np.ndarray) -> Iterator[Step]:
    for inside, ranks in _levels(sizes):
        columns = {}
        for r in filter(None, ranks):  # the best rank has none before it
            columns[f"score {r}"] = agreement(scores[inside, r - 1] - scores[inside, r])
            columns[f"length {r}"] = agreement(lengths[inside, r] - lengths[inside, r - 1])
        shares = shares_of(columns, groups[inside])
        for r in filter(None, ranks):
            yield Step(r, int(inside.sum()), shares[f"score {r}"], shares[f"length {r}"])


def _levels(sizes: np.ndarray) -> Iterator[tuple[np.ndarray, range]]:
    """Which ladders `[n]` have which ranks, from 0: ranks that the same ladders have come together."""
    done = 0
    for size in np.unique(sizes).tolist():
        yield sizes >= size, range(done, size)
        done = size


def _doubts(tau: Estimate, gain: Estimate, rule: str | None, prompts: int) -> Iterator[str]:
    if tau.value is None:
        yield "no ladder can be read, so nothing is known of its order."
        return
    if tau.interval is None:
        yield f"the ladders have too few distinct prompts for intervals: {prompts}."
    else:
        if prompts < FEW_PROMPTS:
            yield f"the ladders have {prompts} distinct prompts, fewer than {FEW_PROMPTS}: too few to rely on."
        if tau.interval[0] <= 0 <= tau.interval[1]:
            yield "its order of the ladders' responses cannot be told from chance: the interval of tau contains 0."
    if tau.value < 0 and (tau.interval is None or tau.interval[1] < 0):
        yield "its scores rise along the ladders, whose best response comes first."
    if gain.interval is not None and gain.interval[0] <= 0:
        yield (
            "its order of the ladders' responses is not beyond that of their length "
            f'("the {rule}, the better"), within the interval.'
        )
