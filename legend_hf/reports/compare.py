"""Does a column help? The same reward model is trained on the same rows with it and without, and judged on others.

In: annotated rows, and a model that the reward grows on. Out: a `Comparison`: accuracy on held-out prompts of each way
of training, how far each is from training without, with an interval by prompt and a paired test. This file trains
nothing itself: `training.rewards` does, by TRL's own trainer. It knows no directions.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from legend_hf.directions import resample
from legend_hf.hub import cards
from legend_hf.margins.columns import MARGIN_STATUS, numbers_of, ok_rows, remedy_for, splits_of
from legend_hf.reading.formats import Columns, Pair, prompt_key, read_pairs
from legend_hf.reading.plain import check_choice
from legend_hf.reports.findings import Estimate
from legend_hf.reports.tables import bracketed
from legend_hf.reports.trl_rows import token_ids
from legend_hf.training.rewards import Ids, Training, reward_ahead, reward_tokenizer, reward_window

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

USES = ("margin", "margin_prob", "weight", "cleaned")
"""A margin to subtract; a soft label; a weight, max(0, 2 · margin_prob - 1); pairs without the most negative tenth."""
WITHOUT = "none"
CLEANED = 0.1
"""Share of the pairs, those with the most negative margins, that `"cleaned"` leaves out."""
FLIPS = 10000
FEWEST_PROMPTS = 10


@dataclass(frozen=True)
class Way:
    """One way of training, judged.

    Attributes:
        use: `"none"`, or what of the rows was used.
        pairs: How many pairs it was trained on.
        accuracy: Share of held-out pairs whose chosen side has the higher reward, mean over the seeds.
        gain: How much more than without the column, on the same pairs; None for `"none"`. The interval is by prompt,
            and knows how far single trainings lie apart.
        p: How likely so large a gain, either way, is by chance: signs drawn for whole prompts. None for `"none"`.
    """

    use: str
    pairs: int
    accuracy: Estimate
    gain: Estimate | None = None
    p: float | None = None


@dataclass(frozen=True)
class Comparison:
    """What training with a column changed.

    Attributes:
        ways: Each way of training, `"none"` first.
        model: What the reward grew on.
        trained: Pairs that were trained on.
        held_out: Pairs that were judged.
        prompts: Their prompts, none of which was trained on.
        left_out: Pairs that could not be read, or are longer than `max_length`.
        seeds: Trainings of each way.
        steps: Steps of each training.
    """

    ways: tuple[Way, ...]
    model: str
    trained: int
    held_out: int
    prompts: int
    left_out: int
    seeds: int
    steps: int

    def to_markdown(self) -> str:
        """The comparison as a table, and what it says."""
        head = ("trained with", "pairs", "held-out accuracy", "gain over none", "p")
        rows = [
            (
                cards.as_code(way.use), str(way.pairs), bracketed(way.accuracy, percent=True),
                "" if way.gain is None else _points(way.gain), "" if way.p is None else f"{way.p:.3f}",
            )
            for way in self.ways
        ]  # fmt: skip
        return (
            f"{self.steps} steps on {self.trained} pairs, {self.seeds} times each; judged on {self.held_out} pairs of "
            f"{self.prompts} other prompts{f'; {self.left_out} left out' if self.left_out else ''}.\n\n"
            f"{cards.as_table(head, rows)}\n\n" + "\n".join(f"- {line}" for line in self.says)
        )

    @property
    def says(self) -> tuple[str, ...]:
        """A sentence on each way: does it help, or how many pairs would tell?"""
        said = []
        for way in self.ways:
            if way.gain is None or way.gain.value is None:
                continue
            name, points = cards.as_code(way.use), _points(way.gain)
            if way.gain.interval is None:
                said.append(f"{name}: undecided, {self.prompts} prompts give no interval")
            elif way.gain.interval[0] > 0:
                said.append(f"{name} helps here: {points} points")
            elif way.gain.interval[1] < 0:
                said.append(f"{name} harms here: {points} points")
            else:
                half = (way.gain.interval[1] - way.gain.interval[0]) / 2
                most = max(abs(way.gain.value), 0.01)
                needed = math.ceil(self.held_out * (half / most) ** 2 / 100) * 100
                said.append(
                    f"{name}: undecided, {points} points; a difference of {100 * most:.1f} points would take some "
                    f"{needed} held-out pairs to be seen"
                )
        return tuple(said)


def compare(
    dataset: Dataset | DatasetDict,
    model: str | os.PathLike[str],
    *,
    use: Sequence[str] = ("margin",),
    held_out: float = 0.25,
    seeds: int = 3,
    epochs: float = 1.0,
    batch_size: int = 8,
    learning_rate: float = 1e-4,
    max_length: int = 1024,
    columns: Columns | None = None,
    revision: str | None = None,
) -> Comparison:
    """Trains reward models with TRL's `RewardTrainer`, with a column and without, and compares them.

    Every way has the same rows, the same first head, the same order and as many steps; only what is done with the
    column differs. So a gain is the column's. Where it is within the interval, more held-out pairs are needed, not more
    seeds. A margin of zeros gives exactly what no margin gives.

    Args:
        dataset: Annotated rows in any shape. Of a `DatasetDict` with `train` and `test`, the latter is judged.
        model: Hub id or folder of the model that the reward grows on; all its weights are trained.
        use: What to try beside training without: `"margin"`, `"margin_prob"` (a soft label), `"weight"` (made of
            `margin_prob` where there is no such column) and `"cleaned"` (without the tenth of the pairs that has the
            most negative `margin_raw`, or `margin`).
        held_out: Share of the prompts that is judged, where no split is.
        seeds: Trainings of each way.
        epochs: How often each pair is trained on.
        batch_size: Pairs in a step.
        learning_rate: At the start; it falls to 0 in a straight line.
        max_length: The longest side in tokens; pairs with a longer one are left out, as TRL leaves them out.
        columns: Names of the rows' columns, where they are not the usual ones.
        revision: Branch, tag or commit of the model.

    Returns:
        The comparison.

    Raises:
        ValueError: An argument that is not allowed, a column that is missing or holds what cannot be trained with, or
            rows of fewer than four prompts.
        ImportError: TRL is not installed.
    """
    _check(use, held_out, seeds, epochs, batch_size)
    rows, splits = _rows(dataset)
    if columns is None:
        columns = Columns()
    from datasets.utils import tqdm

    numbers = [_numbers(split, use) for split in splits[:1]]
    read = [_read(split, columns, model, revision, max_length) for split in splits]
    if len(splits) == 1:
        train, test = _dealt(read[0], held_out)
    else:
        known = {read[0].keys[i] for i in read[0].places}
        train, test = read[0].places, np.array([i for i in read[1].places if read[1].keys[i] not in known], dtype=int)
    judged = read[-1]
    groups = resample.groups_of([judged.keys[i] for i in test])
    if len(train) < batch_size or len(set(groups.tolist())) < 2:
        raise ValueError(
            f"there are {len(train)} pairs to train on and {len(test)} of other prompts to judge; give at least "
            f"{batch_size} and those of 2 prompts, a smaller `batch_size`, or another `held_out`"
        )
    how = Training(model, max(1, round(epochs * len(train) / batch_size)), batch_size, learning_rate, revision)
    right: dict[str, np.ndarray] = {}
    pairs: dict[str, int] = {}
    others = [judged.ids[i] for i in test]
    for seed, way in tqdm([(seed, way) for seed in range(seeds) for way in (WITHOUT, *use)], desc="Training"):
        column, values, some = _used(way, numbers[0], train)
        ahead = reward_ahead([read[0].ids[i] for i in some], others, how, use=column, numbers=values, seed=seed)
        right.setdefault(way, np.zeros((seeds, len(test))))[seed] = (np.sign(ahead) + 1) / 2
        pairs[way] = len(some)
    return Comparison(
        ways=tuple(_way(name, pairs[name], one, right[WITHOUT], groups) for name, one in right.items()),
        model=str(model), trained=len(train), held_out=len(test), prompts=int(groups.max()) + 1,
        left_out=sum(rows) - sum(len(one.places) for one in read), seeds=seeds, steps=how.steps,
    )  # fmt: skip


# -- Rows ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Read:
    """Rows as token ids; `places` are those of the rows that can be trained on."""

    ids: Mapping[int, Ids]
    keys: Mapping[int, str]
    places: np.ndarray


def _check(use: Sequence[str], held_out: float, seeds: int, epochs: float, batch_size: int) -> None:
    if isinstance(use, str):
        raise ValueError(f'`use` is {use!r}; give a list: `use=["{use}"]`')
    for one in use:
        check_choice("use", one, USES)
    if not use or len(set(use)) < len(use):
        raise ValueError(f"`use` is {list(use)}; give each of {', '.join(USES)} once at most, and at least one")
    if not 0 < held_out < 1:
        raise ValueError(f"`held_out` is {held_out}; allowed is a share between 0 and 1")
    for name, value in (("seeds", seeds), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"`{name}` is {value}; allowed is 1 or more")
    if not (0 < epochs < math.inf):
        raise ValueError(f"`epochs` is {epochs}; allowed is a number above 0")


def _rows(dataset: Any) -> tuple[list[int], list[Any]]:
    """Lengths and splits: one to be divided, or one to train on and one to judge."""
    splits = splits_of(dataset)
    if len(splits) == 1:
        chosen = list(splits.values())
    elif {"train", "test"} <= set(splits):
        chosen = [splits["train"], splits["test"]]
    else:
        raise ValueError(
            f"`dataset` has the splits {', '.join(splits)}; allowed are one, or `train` and `test`; pass "
            '`dataset["name"]`'
        )
    return [len(split) for split in chosen], [split.with_format(None) for split in chosen]


def _numbers(split: Dataset, use: Sequence[str]) -> dict[str, np.ndarray]:
    """The columns that are asked for `[n]`, refused before anything is trained."""
    found = {}
    for way in use:
        column = way
        if way == "cleaned":
            column = "margin_raw" if "margin_raw" in split.column_names else "margin"
        elif way == "weight" and "weight" not in split.column_names:
            column = "margin_prob"
        if column not in split.column_names:
            wanted = ', add=["margin_prob"]' if column == "margin_prob" else ""
            raise ValueError(
                f"the rows have no `{column}`, which `{way}` needs; annotate them with "
                f"`LegendMarginFn(direction{wanted})`, or leave `{way}` out of `use`"
            )
        values = numbers_of(split, column)
        if values is None:
            raise ValueError(
                f"`{column}` is {split.features[column]}; allowed is one number a row; {remedy_for(split, column)}"
            )
        values = values.copy()
        values[np.setdiff1d(np.arange(len(split)), ok_rows(split, MARGIN_STATUS))] = 0.0  # such rows are not trained on
        low, high = {"margin_prob": (0.0, 1.0), "weight": (0.0, math.inf)}.get(column, (-math.inf, math.inf))
        wrong = ~(np.isfinite(values) & (values >= low) & (values <= high))
        if wrong.any():
            raise ValueError(
                f"`{column}` is not a finite number from {low:g} to {high:g} in {int(wrong.sum())} rows (first: row "
                f"{int(wrong.argmax())}); annotate anew, or drop them with `Dataset.filter`"
            )
        found[way] = np.maximum(2 * values - 1, 0) if way == "weight" and column == "margin_prob" else values
    return found


def _read(
    split: Dataset, columns: Columns, model: str | os.PathLike[str], revision: str | None, max_length: int
) -> _Read:
    """Rows as TRL tokenises them, those of the same shape as the first."""
    tokenizer = reward_tokenizer(model, revision)
    longest = min(max_length, reward_window(model, tokenizer, revision))
    pairs = list(read_pairs(split, columns))
    as_text = all(pair.chosen.text is not None for pair in pairs if isinstance(pair, Pair))
    ids, keys = {}, {}
    for i in ok_rows(split, MARGIN_STATUS).tolist():
        pair = pairs[i]
        if isinstance(pair, Pair):
            sides = token_ids(_as_trl_reads(pair, as_text), tokenizer)
            if max(map(len, sides)) <= longest:
                ids[i], keys[i] = sides, prompt_key(pair.chosen)
    return _Read(ids, keys, np.array(list(ids), dtype=int))


def _as_trl_reads(pair: Pair, as_text: bool) -> dict[str, Any]:
    """A row with implicit prompt: whole texts, or whole conversations."""
    sides = {"chosen": pair.chosen, "rejected": pair.rejected}
    if as_text:
        return {name: "".join(side.text or ()) for name, side in sides.items()}
    row: dict[str, Any] = {name: [*side.prompt, *side.response] for name, side in sides.items()}
    tools = pair.chosen.tools
    return {
        **row,
        "tools": None if tools is None else list(tools),
        "chat_template_kwargs": dict(pair.chosen.chat_template_kwargs or {}),
    }


def _dealt(read: _Read, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows to judge, without a prompt in common; the same for every way and seed."""
    groups = resample.groups_of([read.keys[i] for i in read.places])
    count = int(groups.max()) + 1 if len(groups) else 0
    if count < 4:
        raise ValueError(f"the rows that can be read are of {count} prompts; give rows of at least 4")
    order = np.random.default_rng(0).permutation(count)
    judged = np.isin(groups, order[: max(2, round(share * count))])
    return read.places[~judged], read.places[judged]


def _used(
    way: str, numbers: Mapping[str, np.ndarray], train: np.ndarray
) -> tuple[str | None, np.ndarray | None, np.ndarray]:
    """The column that the trainer reads, its numbers, and the rows that it is given."""
    if way == WITHOUT:
        return None, None, train
    values = numbers[way][train]
    if way == "cleaned":
        kept = np.sort(np.argsort(values, kind="stable")[round(CLEANED * len(train)) :])
        return None, None, train[kept]
    return way, values, train


# -- Numbers ---------------------------------------------------------------------------------------------------


def _way(name: str, pairs: int, right: np.ndarray, without: np.ndarray, groups: np.ndarray) -> Way:
    """A way out of what it got right, `[seeds, held_out]`."""
    few = int(groups.max()) + 1 < FEWEST_PROMPTS
    accuracy, interval = resample.share_interval(right.mean(axis=0), groups)
    told = Estimate(accuracy, None if few else interval)
    if name == WITHOUT:
        return Way(name, pairs, told)
    ahead = right - without
    gain = float(ahead.mean())
    by_prompt = resample.difference_interval(ahead.mean(axis=0), groups)
    spread = None
    if by_prompt is not None and not few:
        # What one more seed would change lies beside what other prompts would.
        of_seeds = resample.Z * float(ahead.mean(axis=1).std(ddof=1)) / math.sqrt(len(ahead)) if len(ahead) > 1 else 0.0
        half = math.hypot((by_prompt[1] - by_prompt[0]) / 2, of_seeds)
        spread = (max(gain - half, -1.0), min(gain + half, 1.0))
    return Way(name, pairs, told, Estimate(gain, spread), flipped_signs(ahead.mean(axis=0), groups))


def flipped_signs(values: np.ndarray, groups: np.ndarray) -> float:
    """How often the mean of `values [n]` is as far from 0, either way, when whole groups have their sign drawn.

    A paired permutation test; it counts what was seen as one of the draws, so it is never 0. Equal everywhere: 1.
    """
    sums = np.bincount(groups, weights=values)
    signs = np.random.default_rng(0).choice(np.array([-1.0, 1.0]), size=(FLIPS, len(sums)))
    as_far = np.abs(signs @ sums) >= abs(float(sums.sum())) - 1e-9
    return float((as_far.sum() + 1) / (FLIPS + 1))


def _points(gain: Estimate) -> str:
    """A difference of shares in points, `+1.2 [-0.3, +2.7]`."""
    return gain.shown(lambda value: f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}"))
