"""Questions, or responses that somebody labelled, become contrastive pairs.

In: questions and an annotator model; or questions with harmful answers; or single responses with a label. Out: rows
with `prompt`, `chosen` (the harmless side) and `rejected`, for `fit_direction`, whose `pairs_source` takes their
`info.description`. This file holds no harmful text and knows no hidden states: what it generates is the user's.

From the source (Legend, arXiv 2406.08124; colfeng/Legend@02ba9af): harmful answers come from a language model without
safety tuning, greedily, up to 1024 new tokens; the harmless side is one fixed refusal; the questions were the `goal`s
of AdvBench, the template Alpaca's. Ours: every other template, several refusals, resuming, sampling by category, and
pairs out of labelled responses.
"""

from __future__ import annotations

import json
import logging
import math
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from legend_hf.hub import outputs
from legend_hf.reading.formats import Columns, Pair, RowError, pairs_from_batch, plain_rows
from legend_hf.reading.plain import digest_of, key_of
from legend_hf.writing.answers import Answer, check_leave_out, counted
from legend_hf.writing.refusals import refuses
from legend_hf.writing.writer import Writer, open_writer

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

# The refusal of the public code, with its typographic apostrophe (U+2019): another character is another token.
REFERENCE_REFUSAL = "I can’t answer that."
MAX_NEW_TOKENS = 1024

# What an answer may be in place of a harmful one, and what a count of it is of.
DOUBTS = {"refusal": "refuse", "cut": "were cut at the limit", "loop": "end in a loop"}

_PLACE = "<the response>"  # stands for a response that is not there yet

_Rows = TypeVar("_Rows")


def induce_pairs(
    questions: Iterable[str | Mapping[str, Any]],
    *,
    model: str | os.PathLike[str] | Writer,
    refusals: str | Sequence[str] = REFERENCE_REFUSAL,
    prompt_column: str = "prompt",
    category_column: str = "category",
    leave_out: Sequence[str] = (),
    seed: int = 0,
    output: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> Dataset:
    """Lets an annotator answer harmful questions and puts a refusal against each answer (paper, paired responses).

    To induce pairs is to have a model write them; what comes out is a preference dataset in TRL's words (`prompt`,
    `chosen`, `rejected`).

    The annotator must be one that answers: of a model tuned for safety both sides would be refusals. Answers that
    refuse (by a rule for English, `legend_hf.writing.refusals`), were cut or end in a loop are counted in the log
    and in `info.description`; `leave_out` leaves them out. Each distinct question is answered once, whatever the
    model's own generation settings say: greedily and in up to 1024 tokens, unless a `Writer` says otherwise. An answer
    ends at the model's EOS, or before a next turn in the words of hh-rlhf, which base models go on to write and which a
    row's response cannot hold. Questions of like length are answered together, padded on the left; in float32 that
    gives the answers that each would have alone, in lower precision a near-tie may fall differently.

    Args:
        questions: Strings, or rows (a `Dataset`, say) with a prompt: a string or a message list.
        model: The annotator: Hub id or folder of a causal language model with its head, or a `Writer`. The paper's
            were trained with Alpaca's template, and its public code asks them with `templates.REFERENCE`. A Writer's
            `chat_template_kwargs` are kept as a column, so that reading passes them too.
        refusals: The harmless side: one text, or several, each dealt equally often (to within one).
        prompt_column: Name of the questions' column, in rows.
        category_column: Name of the categories' column, kept if the rows have it.
        leave_out: Answers to leave out: `"refusal"`, `"cut"` (at the longest answer or the window), `"loop"` (the same
            words over and over at its end).
        seed: Of the dealing of several refusals.
        output: File for the pairs, as JSON lines. Beside it stand `<output>.answers`, the answers finished so far, by
            which a stopped run goes on where it was (at most one batch is lost), and `<output>.source`, the provenance.
        overwrite: Replace an `output` of something else, and the answers of another run.

    Returns:
        Columns `prompt`, `chosen`, `rejected`, the category if there was one; in the order of the questions. Empty
        answers, and those that are the refusal itself, are left out and counted. `info.description` says in a line
        where the pairs come from.

    Raises:
        ValueError: An argument that is not allowed; a model that cannot generate; `output` belongs to another run; not
            one answer is of use.
        RowError: A question that cannot be read, or leaves no room for an answer (a ValueError), before any answer.
        OSError: The model cannot be loaded, or a file not written.
    """
    rows = _question_rows(questions, prompt_column, category_column)
    deck = _refusals(refusals)
    check_leave_out(leave_out, DOUBTS)
    writer = open_writer(model, max_new_tokens=MAX_NEW_TOKENS, seed=seed, output=output, overwrite=overwrite)
    prompts = [row["prompt"] for row in rows]
    _check_questions(prompts, prompt_column)
    for i, prompt in enumerate(prompts):
        writer.check_fits(i, prompt_column, prompt)
    said = writer.answer(prompts)
    kwargs = writer.writer.chat_template_kwargs
    try:
        counts, pairs = _paired(rows, said, deck, seed, category_column, kwargs, leave_out)
    except ValueError:
        if not leave_out:
            writer.discard()  # not one is of use, and they would keep a run with the remedy from going on
        raise
    facts = writer.facts() | counts
    description = _describe(facts)
    if output is not None:
        _save(output, pairs, {"description": description, **facts})
    return _dataset(pairs, description)


def described(pairs: str | os.PathLike[str]) -> str | None:
    """What `induce_pairs` noted beside its output of where the pairs are from; None where there is no note.

    Raises:
        ValueError: The note cannot be read.
    """
    file = Path(f"{os.fspath(pairs)}.source")
    if not file.is_file():
        return None
    try:
        noted = json.loads(outputs.read_text(file))["description"]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{str(file)!r} says nothing of where the pairs are from; mend it, or remove it") from error
    return str(noted)


def _save(output: str | os.PathLike[str], pairs: Sequence[Mapping[str, Any]], source: Mapping[str, Any]) -> None:
    """Writes the pairs, and beside them where they come from."""
    outputs.write_whole(Path(output), "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs))
    known = json.dumps(source, ensure_ascii=False, indent=2) + "\n"
    outputs.write_whole(Path(f"{os.fspath(output)}.source"), known)


def pairs_with_refusal(
    rows: Iterable[Mapping[str, Any]],
    *,
    refusals: str | Sequence[str] = REFERENCE_REFUSAL,
    prompt_column: str = "prompt",
    harmful_column: str = "harmful",
    category_column: str = "category",
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Puts a refusal against each harmful answer that the user has (paper, standard margin vector; public code, SMV).

    Answers that are refusals themselves, by a rule for English, are counted in the log: their pairs say nothing.

    Args:
        rows: Rows that have a question and a harmful answer to it.
        refusals: The harmless side of every pair; several (ours) are each dealt equally often, to within one.
        prompt_column: Where the question stands.
        harmful_column: Where the harmful answer stands.
        category_column: Kept if a row has it.
        seed: Of the dealing.

    Returns:
        Rows for `fit_direction`: `chosen` is the refusal, `rejected` the harmful answer; as messages where the
        question is a message list.

    Raises:
        ValueError: A row lacks one of the two columns, or there is no refusal.
    """
    rows = _checked_rows(rows, "rows")
    pairs = _against(rows, _refusals(refusals), prompt_column, harmful_column, category_column, seed)
    refusing = sum(refuses(_text_of(row[harmful_column])) for row in rows)
    if refusing:
        logger.warning(
            "%d of %d harmful answers refuse: on both sides of their pairs is a refusal", refusing, len(rows)
        )
    return pairs


def _against(
    rows: Sequence[Mapping[str, Any]],
    refusals: Sequence[str],
    prompt_column: str,
    harmful_column: str,
    category_column: str,
    seed: int,
) -> list[dict[str, Any]]:
    """Each row's harmful answer as the rejected side, a refusal as the chosen one."""
    dealt = _deal(refusals, len(rows), random.Random(seed))
    pairs = []
    for i, (row, refusal) in enumerate(zip(rows, dealt, strict=True)):
        _check_columns(row, i, prompt_column=prompt_column, harmful_column=harmful_column)
        prompt = row[prompt_column]
        pair = {
            "prompt": prompt,
            "chosen": _as_response(prompt, refusal),
            "rejected": _as_response(prompt, row[harmful_column]),
        }
        pairs.append({**pair, **_kept(row, category_column)})
    return pairs


def pairs_from_labels(
    rows: Iterable[Mapping[str, Any]],
    *,
    prompt_column: str = "prompt",
    response_column: str = "response",
    label_column: str = "harm",
    category_column: str = "category",
    threshold: float = 0.5,
    per_prompt: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Pairs labelled single responses: a harmless and a harmful one to the same prompt (ours; the paper generates).

    The same text twice to one prompt counts once; a text that is labelled both ways, or blank, not at all.

    Args:
        rows: Rows with a prompt, a response and a number that says how harmful it is.
        prompt_column: Where the prompt stands.
        response_column: Where the response stands.
        label_column: Where the label stands.
        category_column: Kept, from a prompt's first row, if the rows have it.
        threshold: A response is harmful if its label is at least this.
        per_prompt: Pairs of each prompt, as far as it has that many different ones. No pair comes twice, and no
            response once more than another of its kind needs. None takes as many as use no response twice.
        seed: Of the dealing.

    Returns:
        Columns `prompt`, `chosen`, `rejected`, the category if there was one; prompts in the order of the rows. Prompts
        with one kind only are left out and counted. `info.description` says in a line where the pairs come from.

    Raises:
        ValueError: A column is missing, or no prompt has both kinds.
        RowError: A label that is no number (a ValueError).
    """
    if per_prompt is not None and per_prompt < 1:
        raise ValueError(f"`per_prompt` is {per_prompt}; it must be at least 1, or None")
    groups: dict[str, tuple[Mapping[str, Any], dict[str, set[bool]]]] = {}
    seen = 0
    for i, row in enumerate(_checked_rows(rows, "rows")):
        _check_columns(row, i, prompt_column=prompt_column, response_column=response_column, label_column=label_column)
        harmful = _label(row[label_column], i, label_column) >= threshold
        _, kinds = groups.setdefault(key_of(row[prompt_column]), (row, {}))
        # A dict keeps the order of the rows; message lists are keyed by what they say.
        kinds.setdefault(key_of(row[response_column]), set()).add(harmful)
        seen += 1
    pairs: list[dict[str, Any]] = []
    one_kind, both_ways = 0, 0
    for key, (row, kinds) in groups.items():
        sides, both = _sides(kinds, random.Random(f"{seed}:{key}"))  # of each prompt alone: others change nothing
        both_ways += both
        one_kind += not all(sides)
        for chosen, rejected in _matched(*sides, per_prompt) if all(sides) else ():
            pair = {"prompt": row[prompt_column], "chosen": chosen, "rejected": rejected}
            pairs.append({**pair, **_kept(row, category_column)})
    if not pairs:
        raise ValueError(
            f"none of the {len(groups)} prompts has both a harmless and a harmful response, by `{label_column}` of at "
            f"least {threshold}; give responses of both kinds, or another `threshold`"
        )
    if one_kind:
        logger.warning("left out %d of %d prompts: their responses are of one kind only", one_kind, len(groups))
    return _dataset(
        pairs,
        f"{len(pairs)} pairs of {len(groups) - one_kind} prompts out of {seen} labelled responses, harmful where "
        f"`{label_column}` is at least {threshold:g}; {one_kind} prompts with one kind only and {both_ways} "
        f"responses labelled both ways left out; seed {seed}",
    )


def sample_questions(
    rows: _Rows,
    *,
    per_category: int,
    category_column: str = "category",
    seed: int = 0,
) -> _Rows:
    """Draws the same number of questions from every category, so that none dominates a direction (ours).

    What is drawn from a category depends on its own rows only. The idea of keeping books by category is SAGE-RT's
    (arXiv 2408.11851).

    Args:
        rows: A `Dataset`, or a list of rows, with a category.
        per_category: Questions of each category; one that has fewer gives all, and is named in the log with
            what it has.
        category_column: Where the category stands.
        seed: Of the drawing.

    Returns:
        What was given, the rows drawn only, in their order.

    Raises:
        ValueError: A row without a category, or a number below 1.
    """
    if per_category < 1:
        raise ValueError(f"`per_category` is {per_category}; it must be at least 1")
    members: dict[str, list[int]] = {}
    listed = _checked_rows(rows, "rows")
    for i, row in enumerate(listed):
        _check_columns(row, i, category_column=category_column)
        if row[category_column] is None:
            raise RowError(i, category_column, "given None; give every question a category, or drop it")
        members.setdefault(str(row[category_column]), []).append(i)
    short = {name: len(members[name]) for name in sorted(members) if len(members[name]) < per_category}
    if short:
        logger.warning("%d of %d categories have fewer than %d rows: %s", len(short), len(members), per_category, short)
    drawn = sorted(
        i
        for name, indices in members.items()
        for i in random.Random(f"{seed}:{name}").sample(indices, min(per_category, len(indices)))
    )
    select: Callable[[list[int]], _Rows] | None = getattr(rows, "select", None)
    if select is not None:
        return select(drawn)
    return [listed[i] for i in drawn]  # type: ignore[return-value]


# -- Questions -----------------------------------------------------------------------------------------------


def _question_rows(questions: Any, prompt_column: str, category_column: str) -> list[dict[str, Any]]:
    """Every question as `prompt`, with its category if it has one."""
    rows: list[dict[str, Any]] = []
    for i, question in enumerate(_checked_rows(questions, "questions")):
        if isinstance(question, Mapping):
            _check_columns(question, i, prompt_column=prompt_column)
            rows.append({"prompt": question[prompt_column], **_kept(question, category_column)})
        else:
            rows.append({"prompt": question})
    if not rows:
        raise ValueError("there are no `questions`; give at least one")
    return rows


def _check_questions(prompts: Sequence[Any], prompt_column: str) -> None:
    """Refuses what a row of pairs could not have as its prompt, and what asks nothing."""
    batch = {prompt_column: prompts, "chosen": [_PLACE] * len(prompts), "rejected": [_PLACE] * len(prompts)}
    for i, entry in enumerate(pairs_from_batch(batch, Columns(prompt=prompt_column))):
        if not isinstance(entry, Pair):
            raise entry
        question = entry.chosen.prompt
        if not question or question[-1]["role"] == "assistant" or _blank(prompts[i]):
            given = f"given {str(prompts[i])[:60]!r}, which asks nothing"
            allowed = "a question is text, or messages that end with the user's"
            raise RowError(i, prompt_column, f"{given}; {allowed}; mend it, or drop it")
    if len({isinstance(prompt, str) for prompt in prompts}) > 1:
        raise ValueError("some questions are strings and some are message lists; give one kind, a column has one type")


# -- Pairs ---------------------------------------------------------------------------------------------------


def _paired(
    rows: Sequence[Mapping[str, Any]],
    said: Sequence[Answer],
    refusals: Sequence[str],
    seed: int,
    category_column: str,
    chat_template_kwargs: Mapping[str, Any] | None,
    leave_out: Sequence[str],
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Pairs out of questions and their answers, and what there is to count."""
    there = [(row, answer) for row, answer in zip(rows, said, strict=True) if answer.response.strip()]
    doubts = [_doubts(answer) for _, answer in there]
    answered = [
        {**row, "harmful": answer.response.strip()}
        for (row, answer), found in zip(there, doubts, strict=True)
        if not found & set(leave_out)
    ]
    pairs = _against(answered, refusals, "prompt", "harmful", category_column, seed)
    used = [pair for pair in pairs if pair["chosen"] != pair["rejected"]]
    if chat_template_kwargs:
        used = [{**pair, "chat_template_kwargs": dict(chat_template_kwargs)} for pair in used]
    counts = Counter(name for found in doubts for name in found)
    facts = {
        "questions": len(rows),
        "questions_sha256": digest_of([row["prompt"] for row in rows]),
        "refusals": len(refusals),
        "refusals_sha256": digest_of(refusals),
        "seed": seed,
        "pairs": len(used),
        "empty": len(rows) - len(there),
        "refused": len(pairs) - len(used),
        "cut_at_limit": sum(not answer.finished for answer in said),
        "refusing": counts["refusal"],
        "loops": counts["loop"],
        "left_out": sorted(set(leave_out)),
        "doubtful": len(there) - len(answered),
    }
    if counts:
        told = counted(counts, DOUBTS)
        logger.warning("of %d answers %s; `leave_out` left out %d", len(there), told, facts["doubtful"])
    _say_lost(facts)
    return facts, used


def _say_lost(facts: Mapping[str, Any]) -> None:
    """Says of how many questions there is no pair, and why; all of them are an error."""
    if facts["pairs"] == facts["questions"]:
        return
    lost = f"{facts['empty']} answers are empty, {facts['refused']} are the refusal itself"
    if facts["left_out"]:
        lost += f", {facts['doubtful']} are left out by `leave_out`"
    if not facts["pairs"]:
        raise ValueError(
            f"not one of {facts['questions']} questions gives a pair: {lost}; use the `template` that the model was "
            "trained with, or another model"
        )
    logger.warning("left out %d of %d questions: %s", facts["questions"] - facts["pairs"], facts["questions"], lost)


def _doubts(answer: Answer) -> set[str]:
    """What an answer may be in place of a harmful one."""
    found = {"refusal": refuses(answer.response), "cut": not answer.finished, "loop": answer.loops}
    return {name for name, there in found.items() if there}


def _describe(facts: Mapping[str, Any]) -> str:
    """The provenance in a line, as a card takes it."""
    reference = facts["refusals_sha256"] == digest_of([REFERENCE_REFUSAL])
    many = "another refusal" if facts["refusals"] == 1 else f"{facts['refusals']} refusals"
    refusals = "the reference refusal" if reference else many
    template = facts["template"]
    left_out = ""
    if facts["left_out"]:
        left_out = f", of which {facts['doubtful']} are left out ({', '.join(facts['left_out'])})"
    greedy = "greedy"
    if "temperature" in facts:
        greedy = f"sampled (temperature {facts['temperature']:g}, top_p {facts['top_p']:g})"
    named = f"template sha256 {digest_of(template)[:12]}" if "{prompt}" in template else f"{template} template"
    return (
        f"{refusals} against {greedy} answers of up to {facts['max_new_tokens']} tokens by {facts['annotator']} "
        f"({named}, {facts['dtype']}) to {facts['questions']} questions (sha256 {facts['questions_sha256'][:12]}): "
        f"{facts['pairs']} pairs; {facts['empty']} empty and {facts['refused']} refusing answers left out, "
        f"{facts['cut_at_limit']} cut at the limit, {facts['refusing']} refusing in any words, {facts['loops']} in a "
        f"loop{left_out}; seed {facts['seed']}"
    )


def _dataset(pairs: Sequence[Mapping[str, Any]], description: str) -> Dataset:
    from datasets import Dataset, DatasetInfo

    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    dataset = Dataset.from_dict({name: [pair.get(name) for pair in pairs] for name in names})
    dataset.info.update(DatasetInfo(description=description))
    return dataset


def _as_response(prompt: Any, response: Any) -> Any:
    """A response in the kind of its prompt."""
    if isinstance(response, str) and not isinstance(prompt, str):
        return [{"role": "assistant", "content": response}]
    return response


def _text_of(response: Any) -> str:
    """The words of a response, a string or messages."""
    if isinstance(response, str):
        return response
    return "\n".join(str(message["content"]) for message in response or () if message.get("content"))


def _refusals(given: str | Sequence[str]) -> list[str]:
    refusals = [given] if isinstance(given, str) else list(given)
    if not refusals or not all(isinstance(text, str) and text.strip() for text in refusals):
        raise ValueError(f"`refusals` is {given!r}; give one text or several, none of them empty")
    return refusals


def _deal(items: Sequence[str], count: int, rng: random.Random) -> list[str]:
    """`count` items, each as often as any other or once more, in an order drawn anew in every round."""
    dealt: list[str] = []
    while len(dealt) < count:
        dealt += rng.sample(items, len(items))
    return dealt[:count]


def _sides(kinds: Mapping[str, set[bool]], deal: random.Random) -> tuple[tuple[list[Any], list[Any]], int]:
    """A prompt's harmless and harmful responses in an order that is drawn, and how many are labelled both ways."""
    said = {text: labels for text, labels in kinds.items() if not _blank(json.loads(text))}
    harmless = [json.loads(text) for text, labels in said.items() if labels == {False}]
    harmful = [json.loads(text) for text, labels in said.items() if labels == {True}]
    deal.shuffle(harmless)
    deal.shuffle(harmful)
    return (harmless, harmful), sum(len(labels) > 1 for labels in said.values())


def _matched(harmless: Sequence[Any], harmful: Sequence[Any], count: int | None) -> Iterator[tuple[Any, Any]]:
    """Different pairs; every item of a side is used as often as any other of it, or once more.

    Two counters that turn together meet each pair once in lcm(a, b) steps if a and b have no common divisor; with one,
    setting the second counter ahead by a step after every lcm reaches the pairs that are left.
    """
    a, b = len(harmless), len(harmful)
    turn = math.lcm(a, b)
    for step in range(min(a, b) if count is None else min(count, a * b)):
        yield harmless[step % a], harmful[(step + step // turn) % b]


def _label(given: Any, row: int, column: str) -> float:
    value = given.item() if hasattr(given, "item") else given
    if not isinstance(value, Real) or not math.isfinite(value):
        raise RowError(
            row, column, f"given {value!r}; allowed is a number, 0 for harmless and 1 for harmful, say; convert it"
        )
    return float(value)


# -- Rows ----------------------------------------------------------------------------------------------------


def _checked_rows(given: Any, name: str) -> list[Any]:
    if isinstance(given, str):
        raise ValueError(f"`{name}` is one string; give a list of them, `[...]`")
    if isinstance(given, Mapping):  # a DatasetDict, too, is one
        raise ValueError(
            f"`{name}` is a mapping with the keys {', '.join(map(repr, given))}; give one split, or a list"
        )
    return list(plain_rows(given))


def _check_columns(row: Mapping[str, Any], number: int, **columns: str) -> None:
    """Refuses a row that lacks a column, by the argument that names it."""
    lacking = {argument: name for argument, name in columns.items() if name not in row}
    if lacking:
        raise ValueError(
            f"row {number} has the columns {', '.join(f'`{name}`' for name in row)}, and not "
            f"{', '.join(f'`{name}`' for name in lacking.values())}; name the right ones with "
            f"{', '.join(f'`{argument}=`' for argument in lacking)}, or use `rename_columns`"
        )


def _kept(row: Mapping[str, Any], column: str) -> dict[str, Any]:
    return {column: row[column]} if column in row else {}


def _blank(text: Any) -> bool:
    return not text or (isinstance(text, str) and text.isspace())
