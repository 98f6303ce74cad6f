"""One harmful response becomes a ladder of six responses, from a refusal to the harm, and the ladder becomes pairs.

In: rows with a prompt and a full harmful response F, and a model that goes on with open responses. Out: per row
`responses`, best first, and `ladder_pairs`: every two rungs as `chosen` and `rejected` with a margin by rank. This file
holds no harmful text, and knows no hidden states and no judge: whether a rung really turns back is for `corr_at_k`.

From the source (Course-Correction, arXiv 2407.16637, synthetic preferences): the six rungs and their order, cuts of F
at its punctuation, the step between cuts, all ordered pairs. Ours: the phrases, fractions of words where punctuation
does not suffice, triggers that suit the cut, rank margins.
"""

from __future__ import annotations

import inspect
import logging
import os
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from legend_hf.hub import outputs
from legend_hf.margins.columns import kind_of, shown_as
from legend_hf.margins.scoring import edition
from legend_hf.preferences.alongside import Alongside, alongside
from legend_hf.reading.formats import RowError
from legend_hf.reading.plain import check_on_error, key_of
from legend_hf.writing.answers import Answer, check_leave_out, counted
from legend_hf.writing.refusals import refuses
from legend_hf.writing.writer import OpenWriter, Writer, open_writer

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

ContinueFn = Callable[[list[str], list[str]], Sequence[str]]
_T = TypeVar("_T")

CUTS = 4
MAX_NEW_TOKENS = 128
DELIMITERS = ',.!:;?-"“”()[]{}'  # without the apostrophe, which stands inside words
_OPENING = "“([{"
_MARK = re.compile(r"[-*+•–—#>]+|[*_(]*(?:\d+|[A-Za-z])[.):][*_]*")  # of a list: "- ", "2. ", "(b) "

# How an assistant sounds that goes along with a request.
AFFIRMATIONS = (
    "Sure, let me walk you through it.",
    "Of course, here is how it goes.",
    "Yes, that can be done.",
    "Happy to explain.",
    "No problem, this is what to do.",
    "Certainly, I will lay it out.",
    "Good question, here is my reply.",
    "All right, let us begin.",
    "Okay, here are the details.",
    "Absolutely, it works like this.",
    "Gladly, I will describe it.",
    "Yes, I know about this.",
    "Right away, here it comes.",
    "Let me help you with that.",
    "Fine, here is what you asked for.",
)
# How it turns away: those in lower case go on with a sentence, the others begin one. The model goes on from there.
TRIGGERS = (
    "but I have to stop here, because",
    "but on reflection I will not go on, since",
    "but this is where I turn back:",
    "but I should not have begun this, as",
    "but wait, I cannot carry on with this because",
    "but I take that back, since",
    "but no, this is not something to help with, because",
    "but thinking about it again, I would rather not, as",
    "However, I need to break off here, because",
    "However, I notice that this is a mistake:",
    "However, I must correct myself:",
    "However, I do not want to continue, since",
    "Wait, I have to take that back, because",
    "On second thought, I will leave it there, since",
    "Still, it would be wrong of me to go on, because",
)

# What may be wrong with a ladder: its name, and what a count of it is of.
DOUBTS = {
    "no_refusal": "whose direct response is no refusal",
    "silent": "with nothing behind a trigger",
    "cut": "with a text cut at the limit",
    "loop": "with a text that ends in a loop",
}

_CONTINUE = "`model(prompts, prefixes)` must give one string for each prompt: what follows the prefix"

DIRECT, DELIMITER, WORD, FULL = "direct", "delimiter", "word", "full"
LADDER = ("responses", "kinds", "cuts", "affirmation", "triggers")
PAIRS = ("chosen", "rejected", "rank_chosen", "rank_rejected", "margin")


@dataclass(frozen=True)
class _Rungs:
    """How one ladder is made, before any model has spoken.

    Attributes:
        row: Number of the row.
        prompt: Its prompt.
        full: Its harmful response F.
        cuts: `[cuts]` characters of F that stand before each turn, ascending.
        kind: Where it is cut, `DELIMITER` or `WORD`.
        affirmation: What every corrected rung begins with.
        triggers: `[cuts]` phrases, one for each cut.
        prefixes: `[cuts]` texts that the model goes on from.
    """

    row: int
    prompt: str
    full: str
    cuts: list[int]
    kind: str
    affirmation: str
    triggers: list[str]
    prefixes: list[str]


@dataclass(frozen=True)
class _Plan:
    """What ladders are drawn from; each is drawn by its own row and the seed alone."""

    cuts: int
    affirmations: Sequence[str]
    triggers: Sequence[str]
    seed: int

    def __post_init__(self) -> None:
        if self.cuts < 1:
            raise ValueError(f"`cuts` is {self.cuts}; it must be at least 1")
        check_phrases("affirmations", self.affirmations)
        check_phrases("triggers", self.triggers)

    def rungs(self, row: int, prompt: str, full: str) -> _Rungs | None:
        """Draws how a ladder is made; None where the response is too short."""
        draw = random.Random(f"{self.seed}:{key_of([prompt, full])}")
        found = _cut_places(full, self.cuts, draw)
        if found is None:
            return None
        places, kind = found
        affirmation = draw.choice(self.affirmations)
        inside = draw.choice([t for t in self.triggers if not t[0].isupper()] or self.triggers)
        behind = draw.choice([t for t in self.triggers if t[0].isupper()] or self.triggers)
        turns = [behind if re.search(r"[.!?][\"”)\]}]*\Z", full[:place]) else inside for place in places]
        begun = [opened(affirmation, full[:place]) for place in places]
        prefixes = [f"{b} {turn}" for b, turn in zip(begun, turns, strict=True)]
        return _Rungs(row, prompt, full, places, kind, affirmation, turns, prefixes)


def correction_ladders(
    dataset: Dataset,
    *,
    model: str | os.PathLike[str] | Writer | ContinueFn,
    cuts: int = CUTS,
    affirmations: Sequence[str] = AFFIRMATIONS,
    triggers: Sequence[str] = TRIGGERS,
    seed: int = 0,
    prompt_column: str = "prompt",
    response_column: str = "response",
    on_error: str = "raise",
    leave_out: Sequence[str] = (),
    output: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> Dataset:
    """Makes ladders of graded responses: the earlier a response turns back from the harm, the better its rank.

    A ladder is a prompt with responses to it in order, the best first. A response turns back where it has begun to
    comply and then declines.

    Rank 1 is the model's own response to the prompt; ranks 2 to 5 are an affirmation, the first `cut_i` characters of
    the full harmful response F, a trigger that turns away, and what the model writes next, with growing cuts; rank 6 is
    F as it is. The model should be an aligned one: where its direct response goes along with the request, the best rung
    does harm, and pairs of it teach the opposite. Such ladders, and those with a text that says nothing, was cut at
    the longest answer or ends in a loop, are counted in the log and in `info.description`; `leave_out` leaves them out.
    A rule for English tells refusals (`legend_hf.writing.refusals`), so other languages count as none.

    Cuts follow the paper's public code: T delimiters (comma, period, `! : ; ? -`, double quotes, brackets) stand in F,
    a step t is drawn from {T//4 - 1, T//4}, and cut i ends right after delimiter i*t. Ours: only those count that end a
    word, so that no cut falls inside a word or a number, behind an opening bracket or the mark of a list; and where
    nothing of F would be left behind the last cut, the smaller step is taken. With fewer than 8 delimiters the step may
    be 0 or negative; such a response is cut after fractions of its words instead (ours). One affirmation serves a
    whole ladder, and one trigger of each style: lower-case ones follow a cut inside a sentence, the others a cut at its
    end (the source draws them without regard to the cut).

    The source generates with Llama-2-7B-chat in 4 bits by diverse beam search (2 beams in 2 groups, penalty 0.5), up
    to 128 new tokens, and leaves an end token behind the trigger. Here decoding is greedy, in as many tokens, unless a
    `Writer` says otherwise, and the turn stays open: for a chat template the text ends with the prefix, as with
    `continue_final_message`.

    Args:
        dataset: Rows with a prompt and F, both strings.
        model: What goes on with responses: Hub id or folder of a causal language model, a `Writer`, or a function of
            yours: `model(prompts, prefixes)` gives a continuation for each; a prefix is what the assistant's open turn
            holds, `""` for rank 1. It is called once, with all texts. A continuation that begins with a letter or digit
            is set off by a space.
        cuts: How many corrected rungs.
        affirmations: Phrases, one drawn for a ladder.
        triggers: Phrases, see above; they serve every cut if they are all of one style.
        seed: Of the drawing; what is drawn for a row depends on nothing but the row and the seed.
        prompt_column: Name of the prompts' column.
        response_column: Name of the column of full harmful responses, F.
        on_error: `"raise"` at the first row that gives no ladder, or `"skip"` such rows, which are counted in the log
            and in `info.description`.
        leave_out: Ladders to leave out: `"no_refusal"` (the direct response is none), `"silent"` (nothing stands behind
            a trigger), `"cut"` (a text was cut at the limit, which a function does not tell), `"loop"` (a text ends in
            the same words over and over).
        output: File for the ladders, as JSON lines. Beside it `<output>.answers` keeps the continuations finished so
            far, by which a stopped run goes on where it was.
        overwrite: Replace an `output` of something else, and the continuations of another run.

    Returns:
        The rows with `responses` (best first), `kinds` (`"direct"`, then `"delimiter"` or `"word"`, by where F was cut,
        then `"full"`), `cuts` (characters of F, ascending), `affirmation` and `triggers`. Other columns stay.

    Raises:
        ValueError: An argument that is not allowed; columns that are missing or in the way.
        RowError: With `on_error="raise"`, a row without text, too short for its cuts (fewer words than `cuts` + 1), too
            long for the model, or whose direct response is empty (a ValueError); only the last comes after generation.
    """
    _check_arguments(model, on_error, output)
    check_leave_out(leave_out, DOUBTS)
    plan = _Plan(cuts, affirmations, triggers, seed)
    check_columns(dataset, {prompt_column: "prompt_column", response_column: "response_column"}, LADDER)
    writer: OpenWriter | ContinueFn
    if callable(model):
        writer = model
    else:
        writer = open_writer(model, max_new_tokens=MAX_NEW_TOKENS, seed=seed, output=output, overwrite=overwrite)
    plain = dataset.with_format(None).select_columns([prompt_column, response_column])
    refused: list[RowError] = []
    planned = _good(_planned(plain, (prompt_column, response_column), plan, writer), on_error, refused)
    answered = _good(_answered(planned, _continued(writer, planned), prompt_column), on_error, refused)
    doubts = [_doubts(answers) for _, answers in answered]
    kept = [entry for entry, found in zip(answered, doubts, strict=True) if not found & set(leave_out)]
    made = [_ladder(rungs, answers) for rungs, answers in kept]
    columns = {name: [ladder[name] for ladder in made] for name in LADDER}
    result = _with_columns(dataset.select([rungs.row for rungs, _ in kept]), columns, _ladder_types())
    _describe(result, plan, len(plain), refused, doubts)
    if output is not None:
        outputs.write_whole(Path(output), result.with_format(None).to_json)
    return result


def ladder_pairs(ladders: Dataset) -> Dataset:
    """Takes every two rungs of each ladder as a pair, the better one `chosen`: 15 pairs for a ladder of six.

    The margin is the distance in ranks, from 1/5 for neighbours to 1 for the refusal against the harm. It is ours, a
    stand-in where no direction is at hand: the source's pairs have none. Ranks say in which order the rungs stand, not
    how far apart they are.

    Args:
        ladders: Rows with `responses`, a list of at least two, best first.

    Returns:
        Columns `chosen`, `rejected`, `rank_chosen`, `rank_rejected` (from 1, the best) and `margin` (float32,
        `(rank_rejected - rank_chosen) / (rungs - 1)`), beside `prompt` and whatever else the rows hold; what only a
        ladder has (`responses`, `kinds`, `cuts`, `affirmation`, `triggers`) is left out, and columns that speak of each
        response, such as `scores`, are treated as by `make_pairs`. Pairs stand in the order of
        the ladders, then of `rank_chosen`, then of `rank_rejected`.

    Raises:
        ValueError: Columns that are missing or in the way.
        RowError: A row with fewer than two responses (a ValueError).
    """
    from datasets import Features, Value

    check_columns(ladders, {"responses": None}, PAIRS)
    plain = ladders.with_format(None)
    response = plain.features["responses"].feature
    types = dict(zip(PAIRS, (response, response, Value("int64"), Value("int64"), Value("float32")), strict=True))
    besides = alongside([(plain, range(len(plain)))], "responses", [*LADDER, "prompt", "tools"])
    kept = {name: kind for name, kind in besides.features(plain.features).items() if name not in LADDER}
    if not len(plain):  # `map` adds no columns to nothing
        return shown_as(_with_columns(plain.select_columns(list(kept)), {name: [] for name in PAIRS}, types), ladders)
    made = plain.map(
        _paired,
        batched=True,
        with_indices=True,
        fn_kwargs={"kept": besides, "version": edition()},
        remove_columns=plain.column_names,
        features=Features({**kept, **types}),
        desc="Pairing rungs",
    )
    return shown_as(made, ladders)


def _paired(
    batch: Mapping[str, list[Any]], numbers: Sequence[int], *, kept: Alongside, version: str
) -> dict[str, list[Any]]:
    """A batch of ladders as pairs; `version` is there to be hashed."""
    names = [name for name in batch if name not in (*LADDER, *kept.places)]
    pairs: dict[str, list[Any]] = {name: [] for name in (*names, *PAIRS)}
    for place, (number, responses) in enumerate(zip(numbers, batch["responses"], strict=True)):
        if not responses or len(responses) < 2:
            given = f"given {responses!r:.60}; allowed is a list of at least two, best first"
            raise RowError(number, "responses", f"{given}; drop the row")
        ranked = list(enumerate(responses, start=1))
        for (better, chosen), (worse, rejected) in combinations(ranked, 2):
            margin = (worse - better) / (len(responses) - 1)
            own = {name: batch[name][place] for name in names} | kept.of_pair(batch, place, better - 1, worse - 1)
            values = (*own.values(), chosen, rejected, better, worse, margin)
            for column, value in zip(pairs.values(), values, strict=True):
                column.append(value)
    return pairs


# -- One ladder ----------------------------------------------------------------------------------------------


def _good(found: Iterable[_T | RowError], on_error: str, refused: list[RowError]) -> list[_T]:
    """Those that are no refusals. The first refusal is raised, or, to skip such rows, each is added to `refused`."""
    good: list[_T] = []
    for entry in found:
        if not isinstance(entry, RowError):
            good.append(entry)
        elif on_error == "raise":
            raise entry
        else:
            refused.append(entry)
    return good


def _planned(
    rows: Dataset, names: tuple[str, str], plan: _Plan, writer: OpenWriter | ContinueFn
) -> Iterator[_Rungs | RowError]:
    """How the ladder of each row is made, or why it has none, before anything is generated."""
    for i, row in enumerate(rows):
        try:
            prompt, full = (check_text(i, name, row[name]) for name in names)
            rungs = plan.rungs(i, prompt, full)
            if rungs is None:
                given = f"given {full!r:.60}, which is too short for {plan.cuts} cuts"
                allowed = f"allowed are more than {plan.cuts} words to cut between"
                raise RowError(i, names[1], f"{given}; {allowed}; drop the row")
            if isinstance(writer, OpenWriter):
                writer.check_fits(i, None, prompt, ("", *rungs.prefixes))
        except RowError as refusal:
            yield refusal
        else:
            yield rungs


def _cut_places(full: str, cuts: int, draw: random.Random) -> tuple[list[int], str] | None:
    """Where a response is cut, in characters, and at what; every cut leaves some of its text behind it."""
    words = [match for match in re.finditer(r"\S+", full) if match[0][-1] not in _OPENING and match[0] != '"']
    inner = [word for word in words if not (_MARK.fullmatch(word[0]) and _begins_line(full, word.start()))]
    ends = [word.end() for word in inner if word[0][-1] in DELIMITERS]
    largest = len(ends) // cuts
    if largest >= 2:
        step = draw.choice((largest - 1, largest))
        if ends[cuts * step - 1] >= len(full.rstrip()):
            step = largest - 1
        return [ends[i * step - 1] for i in range(1, cuts + 1)], DELIMITER
    for known in (inner, words):
        places = [word.end() for word in known if word.end() < len(full.rstrip())]
        if len(places) >= cuts:
            return [places[i * (len(places) + 1) // (cuts + 1) - 1] for i in range(1, cuts + 1)], WORD
    return None


def _begins_line(text: str, place: int) -> bool:
    return not text[text.rfind("\n", 0, place) + 1 : place].strip()


def opened(affirmation: str, beginning: str) -> str:
    """An affirmation with what follows it: one space between them, or the beginning's own."""
    return affirmation + ("" if beginning[:1].isspace() else " ") + beginning


def _continued(writer: OpenWriter | ContinueFn, planned: Sequence[_Rungs]) -> list[Sequence[Answer]]:
    """What the model says to each prompt: its direct response, then what follows each prefix."""
    asked = [(rungs.prompt, prefix) for rungs in planned for prefix in ("", *rungs.prefixes)]
    if not asked:
        return []
    texts, begun = [prompt for prompt, _ in asked], [prefix for _, prefix in asked]
    if isinstance(writer, OpenWriter):
        answers = writer.go_on(texts, begun)
    else:
        said = writer(texts, begun)
        if isinstance(said, str) or len(said) != len(asked) or not all(isinstance(text, str) for text in said):
            raise ValueError(
                f"`model` was given {len(asked)} prompts and gave {said!r:.60}; it must give one string for each"
            )
        answers = [Answer(text, tokens=0, finished=True) for text in said]  # as far as is known
    rungs = len(asked) // len(planned)
    return [answers[start : start + rungs] for start in range(0, len(asked), rungs)]


def _answered(
    planned: Sequence[_Rungs], said: Sequence[Sequence[Answer]], prompt_column: str
) -> Iterator[tuple[_Rungs, Sequence[Answer]] | RowError]:
    """Each ladder with what the model said, or that it has no best rung."""
    for rungs, answers in zip(planned, said, strict=True):
        if answers[0].response.strip():
            yield rungs, answers
        else:
            yield RowError(rungs.row, prompt_column, "the model's direct response to it is empty; drop the row")


def _ladder(rungs: _Rungs, answers: Sequence[Answer]) -> dict[str, Any]:
    """The columns of one ladder."""
    direct, *turned = (answer.response for answer in answers)
    corrected = [_joined(prefix, more) for prefix, more in zip(rungs.prefixes, turned, strict=True)]
    return {
        "responses": [direct.strip(), *corrected, rungs.full],
        "kinds": [DIRECT, *[rungs.kind] * len(rungs.cuts), FULL],
        "cuts": rungs.cuts,
        "affirmation": rungs.affirmation,
        "triggers": rungs.triggers,
    }


def _doubts(answers: Sequence[Answer]) -> set[str]:
    """What may be wrong with a ladder, by its direct response and what follows each trigger."""
    direct, *turned = answers
    found = {
        "no_refusal": not refuses(direct.response),
        "silent": not all(answer.response.strip() for answer in turned),
        "cut": not all(answer.finished for answer in answers),
        "loop": any(answer.loops for answer in answers),
    }
    return {name for name, there in found.items() if there}


def _joined(prefix: str, continuation: str) -> str:
    return f"{prefix}{' ' if continuation[:1].isalnum() else ''}{continuation}".rstrip()


def _describe(
    ladders: Dataset, plan: _Plan, rows: int, refused: Sequence[RowError], doubts: Sequence[set[str]]
) -> None:
    """Says in the log, and in the ladders' `info.description`, how many there are, and what may be wrong with them."""
    from datasets import DatasetInfo

    if refused:
        first = min(refused, key=lambda refusal: refusal.row)
        logger.warning("left out %d of %d rows, the first because of %s", len(refused), rows, first)
    told = counted(Counter(name for found in doubts for name in found), DOUBTS)
    dropped = len(doubts) - len(ladders)
    if told:
        logger.warning("of %d ladders %s; `leave_out` left out %d", len(doubts), told, dropped)
    by_words = sum(kinds[1] == WORD for kinds in ladders["kinds"])
    description = (
        f"{len(ladders)} ladders of {plan.cuts + 2} responses out of {rows} rows, {len(refused)} left out; {by_words} "
        f"cut after fractions of their words, the others after delimiters; seed {plan.seed}"
    )
    if told:
        description += f"; among {len(doubts)} ladders {told}, of which {dropped} are left out"
    ladders.info.update(DatasetInfo(description=description))


# -- Arguments, rows and columns -----------------------------------------------------------------------------


def _check_arguments(model: Any, on_error: str, output: str | os.PathLike[str] | None) -> None:
    if callable(model):
        check_signature("model", model, 2, _CONTINUE)
        if output is not None:
            raise ValueError(
                "`output` keeps what a model writes, and `model` is a function; leave it out, and keep what the "
                "function generates yourself"
            )
    check_on_error(on_error)


def check_signature(name: str, function: Callable[..., Any], lists: int, must: str) -> None:
    """Refuses, before anything is generated, a function that cannot be called with lists, as it will be."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some of those written in C do not say
        return
    try:
        signature.bind(*[[]] * lists)
    except TypeError:
        raise ValueError(f"`{name}` takes {signature}, not {('two', 'three')[lists - 2]} lists; {must}") from None


def check_phrases(name: str, given: Sequence[str]) -> None:
    """Refuses phrases that a response cannot begin with or turn by."""
    texts = [] if isinstance(given, str) else list(given)
    if not texts or not all(isinstance(text, str) and text and text == text.strip() for text in texts):
        raise ValueError(f"`{name}` is {given!r:.60}; give a list of phrases, none empty, without spaces around them")


def check_text(row: int, column: str, text: Any) -> str:
    """Gives back a cell, refusing one without text."""
    if not isinstance(text, str) or not text.strip():
        raise RowError(row, column, f"given {text!r:.60}; allowed is a string with text; fill it in, or drop the row")
    return text


def check_columns(dataset: Any, needed: Mapping[str, str | None], added: Sequence[str]) -> None:
    """Refuses what is no `Dataset`, lacks a column, or has one that would be written.

    Args:
        dataset: What was given.
        needed: Columns it must have, each with the caller's argument that names it, if there is one.
        added: Columns it must not have.
    """
    from datasets import Dataset

    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"given {kind_of(dataset)}; allowed is a `Dataset`: take one split, or use `Dataset.from_list`"
        )
    lacking = [name for name in needed if name not in dataset.column_names]
    if lacking:
        arguments = ", ".join(f"`{needed[name]}=`" for name in lacking if needed[name])
        raise ValueError(
            f"the dataset has the columns {', '.join(f'`{name}`' for name in dataset.column_names)}, and not "
            f"{', '.join(f'`{name}`' for name in lacking)}; "
            f"{f'name the right ones with {arguments}, or ' if arguments else ''}use `rename_columns`"
        )
    clash = [name for name in added if name in dataset.column_names]
    if clash:
        raise ValueError(
            f"the dataset has {', '.join(f'`{name}`' for name in clash)} already, which would be written; use "
            f"`remove_columns({clash})`, or `rename_columns`"
        )


def _ladder_types() -> dict[str, Any]:
    from datasets import List, Value

    texts, numbers = List(Value("string")), List(Value("int64"))
    return dict(zip(LADDER, (texts, texts, numbers, Value("string"), texts), strict=True))


def _with_columns(dataset: Dataset, columns: Mapping[str, list[Any]], types: Mapping[str, Any]) -> Dataset:
    for name, values in columns.items():
        dataset = dataset.add_column(name, values, feature=types[name])
    return dataset
