"""From margins to what is trained on: `select`, `pairs`, `curriculum`, `corrections`, `corr-at-k`, `export`, `check`.

In: arguments. Out: what one function of the library did, in words, and saved datasets. This file knows which
functions a user may name as a judge, but no judge itself and no trainer.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import typer

from legend_hf.cli.annotating import SCORES
from legend_hf.cli.door import Call, Say, command
from legend_hf.cli.options import Named, Place, Rows, save, say_saved
from legend_hf.cli.screen import say
from legend_hf.hub.outputs import check_file, write_whole
from legend_hf.hub.rows import check_rows_folder, note_sources, sources_of

TRAINING = "From margins to training data"
CORRECTIONS = "Responses that turn back"


@command("preferences.similarity.PairSimilarityFn", "preferences.pairs.select_measured", under=TRAINING)
def select(
    make: Call, select_measured: Call, dataset: Rows, *, output: Place, model: str | os.PathLike[str] | None = None
) -> None:
    """Keep the share of the rows whose two responses are least (or most) alike.

    By the column `pair_similarity`, which `--model` measures where it is missing.

    Example: select Anthropic/hh-rlhf --data-dir harmless-base --model Qwen/Qwen2.5-0.5B --output half --on-error skip

    Options:
        model: Hub id or folder of the model whose embeddings say how alike responses are.
    """
    check_rows_folder(output.output, rows=dataset.source, reads=[model], overwrite=output.overwrite)
    splits = dataset.splits()
    known = all("pair_similarity" in rows.column_names for rows in splits.values())
    if model is not None and known:
        say(f"`pair_similarity` is there already: nothing was measured with {model}")
    kept, shares = select_measured(splits, None if model is None or known else make(model))
    for name, share in shares.items():
        say(f"{name}: {share.to_text()}")
    save(kept, output, source=dataset, rows=splits)


@command("preferences.pairs.make_pairs", "preferences.similarity.embedder_of", under=SCORES)
def pairs(
    make_pairs: Call,
    embedder_of: Call,
    dataset: Rows,
    *,
    output: Place,
    direction: Named | None = None,
    model: str | os.PathLike[str] | None = None,
) -> None:
    """Make preference pairs out of several scored responses per prompt, such as those of `score`.

    Example: pairs scored --rule best --direction you/direction --output pairs

    Options:
        rule: dissimilar, similar, centroid, random, best or all.
        direction: The direction whose scores these are: it makes `margin`, which trainers read.
        model: Hub id or folder of the model whose embeddings say how alike responses are.
    """
    reads = [model, direction.source if direction else None]
    check_rows_folder(output.output, rows=dataset.source, reads=reads, overwrite=output.overwrite)
    splits = dataset.splits()
    embedder = None if model is None else embedder_of(model)
    made = make_pairs(splits, model=embedder, direction=direction.load() if direction else None)
    for name, rows in made.items():
        say(f"{name}: {len(rows)} pairs of {len(splits[name])} prompts")
    save(made, output, source=dataset, rows=splits)


@command("preferences.curriculum.curriculum", under=TRAINING)
def curriculum(make: Call, dataset: Rows, *, output: Place) -> None:
    """Divide pairs into stages to train on one after the other, from clear to close; each stage is a split.

    Example: curriculum annotated --mode global --stages 3 --output stages

    Options:
        stages: How many; as many as needed, or 3 for global.
        mode: per_prompt or global.
        order: easy_first or hard_first.
        negative: Pairs below 0: hardest, or drop them.
    """
    check_rows_folder(output.output, rows=dataset.source, overwrite=output.overwrite)
    rows = dataset.one("pairs", numbers=[make.keywords["by"]])
    made = make(rows)
    for name, stage in made.items():
        say(f"{name}: {len(stage)} pairs")
    left_out = len(rows) - sum(map(len, made.values()))
    if left_out:
        say(f"left out: {left_out} of {len(rows)} pairs")
    save(made, output, source=dataset, rows=rows)


@command("preferences.corrections.correction_ladders", under=CORRECTIONS, without=["affirmations", "triggers"])
def corrections(correction_ladders: Call, dataset: Rows, *, output: Place, pairs: Path | None = None) -> None:
    """Make ladders of responses out of full harmful ones: the earlier a response turns back, the better its rank.

    A ladder is a prompt with responses to it in order, the best first. A response turns back where it has begun to
    comply and then declines. --pairs makes a preference dataset of them, in TRL's words: prompt, chosen, rejected.

    Example: corrections harms.jsonl --model you/aligned --output ladders.jsonl --pairs ranked.jsonl

    Options:
        model: Hub id or folder of the language model that goes on with responses.
        output: File for the ladders, .jsonl; a stopped run goes on.
        pairs: File for the pairs of every two rungs, .jsonl.
        max_new_tokens: Longest continuation in tokens, 128 when left out.
        temperature: Of sampling; the likeliest token is taken when left out.
    """
    from legend_hf.preferences.corrections import ladder_pairs
    from legend_hf.writing.answers import check_output

    reads, overwrite = [dataset.source, correction_ladders.keywords["model"].model], output.overwrite
    check_output(output.output, reads=reads, overwrite=overwrite)
    if pairs is not None:
        if os.path.realpath(pairs) == os.path.realpath(output.output):
            raise ValueError(f"`--output` and `--pairs` are both {str(pairs)!r}; give two files")
        check_file(pairs, suffix=".jsonl", reads=[*reads, output.output], ours=_is_paired, overwrite=overwrite)
    rows = dataset.one("rows")
    sources = sources_of(dataset.source, rows)
    made = correction_ladders(rows, output=output.output, overwrite=overwrite)
    note_sources(output.output, sources)
    say(made.info.description)
    say_saved(output.output)
    if pairs is not None:
        paired = ladder_pairs(made)
        write_whole(pairs, paired.to_json)
        note_sources(pairs, sources)
        say(f"{len(paired)} pairs of every two rungs")
        say_saved(pairs)


@command(
    "preferences.corr_at_k.compute_corr_at_k",
    name="corr-at-k",
    under=CORRECTIONS,
    without=["affirmations"],
    renamed={"revision": "model_revision", "ks": "k"},
)
def corr_at_k(
    compute_corr_at_k: Call,
    dataset: Rows,
    *,
    judge: str | None = None,
    output: Place | None = None,
    overwrite: bool = False,
) -> None:
    """Measure how often a model turns back from a harmful response of which k words were written for it: Corr@k.

    To turn back is to decline after all, in the middle of a response that has begun to comply.

    Example: corr-at-k harms.jsonl --model you/policy --judge my_judges:strict --k 20

    Options:
        model: Hub id or folder of the language model that goes on with responses.
        judge: Your judge, `module:function` (modules of this folder, too): judge(requests, prefixes, continuations) ->
            list of bool, called once with all; a rule for English when left out.
        output: File for every continuation and its verdict, .jsonl; a stopped run goes on.
        max_new_tokens: Longest continuation in tokens, 32 when left out.
        temperature: Of sampling, 0.8 when left out.
        top_p: Of sampling, 0.7 when left out.
    """
    from legend_hf.hub.verdict import FEW_PROMPTS
    from legend_hf.preferences.corr_at_k import refusal_judge
    from legend_hf.writing.answers import check_output

    file = output.output if output is not None else None
    verdict = refusal_judge if judge is None else _judge(judge, file)
    if file is not None:
        reads = [dataset.source, compute_corr_at_k.keywords["model"].model]
        check_output(file, reads=reads, overwrite=overwrite)
    found, records = compute_corr_at_k(dataset.one("rows"), judge=verdict, output=file, overwrite=overwrite)
    if judge is None:
        say(
            "Judged by a rule for English, which is crude: it knows nothing of what is said (its precision and "
            "recall: `help(legend_hf.preferences.corr_at_k.refusal_judge)`). For figures to publish, give `--judge`."
        )
    each = len(records) // len(found.ks)
    say(f"Corr@k with 95 % intervals; requests: {found.requests}, continuations at each k: {each}")
    if found.requests < FEW_PROMPTS:
        say(f"Doubtful: fewer than {FEW_PROMPTS} requests are too few to rely on.")
    say(found.to_text())
    if file is not None:
        write_whole(file, records.to_json)
        say_saved(file)


@command("preferences.export.export_for", under=TRAINING)
def export(export_for: Call, dataset: Rows, *, trainer: str, output: Place, say: Say) -> None:
    """Write the columns that a trainer reads: Parquet for TRL, JSON lines for the others, a file for each split.

    Example: export annotated --trainer trl --messages --output for-trl

    Options:
        weights: Add margin_prob and weight, for the trainers of legend_hf.training.
    """
    check_rows_folder(output.output, rows=dataset.source, overwrite=output.overwrite)
    splits = dataset.splits()
    made = export_for(splits, trainer=trainer)
    say(f"Columns: {', '.join(made.columns)}")
    if made.flags:
        say(f"Flags: {' '.join(made.flags)}")
    if made.notes:
        say("\n".join(f"- {note}" for note in made.notes))
    save(made.dataset, output, "parquet" if trainer == "trl" else "jsonl", source=dataset, rows=splits)


@command("reports.trl_check.check_for_trl", under=TRAINING)
def check(
    check_for_trl: Call, dataset: Rows, *, tokenizer: str | os.PathLike[str], output: Place | None = None, say: Say
) -> None:
    """Say what TRL's RewardTrainer would do with a dataset; exit code 1 if it would not train on it as it is.

    Example: check for-trl --tokenizer Qwen/Qwen2.5-0.5B-Instruct --output check.md

    Options:
        tokenizer: Hub id or folder of the model to train.
        output: File for the same text.
    """
    if output is not None:
        reads = [dataset.source, tokenizer]
        check_file(output.output, reads=reads, ours=_is_checked, overwrite=output.overwrite)
    found = check_for_trl(dataset.load(), tokenizer)
    said = found.to_markdown()
    say(said)
    if output is not None:
        write_whole(output.output, said)
        say(f"Saved in {output.output}")
    if not found.ok:
        raise typer.Exit(1)


def _is_paired(file: Path) -> bool:
    """Whether a file is one of pairs that `corrections` wrote."""
    with open(file, "rb") as lines:
        return b'"rank_chosen":' in lines.readline()


def _is_checked(file: Path) -> bool:
    """Whether a file is one that `check` wrote."""
    with open(file, "rb") as lines:
        return lines.readline().startswith(b"**TRL's `RewardTrainer` would ")


def _judge(name: str, output: Path | None) -> Callable[[list[str], list[str], list[str]], Sequence[Any]]:
    """The user's own judge out of `module:function`, where the current folder's modules are found, too."""
    module, _, function = name.partition(":")
    if not function.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise ValueError(
            f"`--judge` is {name!r}; give `module:function`, such as `my_judges:strict` for the function `strict` of "
            "my_judges.py in this folder"
        )
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last: a file of the user's must not take the place of a library
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # something that the user's module imports
        raise ValueError(
            f"`--judge` is {name!r}, and there is no module `{module}`, neither installed nor in {os.getcwd()!r}"
        ) from error
    judge = getattr(found, function, None)
    if not callable(judge):
        there = "is no function" if hasattr(found, function) else "is not in there"
        raise ValueError(f"`--judge` is {name!r}, and `{function}` {there} ({found.__file__}); name another")

    def judged(requests: list[str], prefixes: list[str], continuations: list[str]) -> Sequence[Any]:
        try:
            verdicts: Sequence[Any] = judge(requests, prefixes, continuations)
        except Exception as error:  # some of these would become a line without a traceback, which would not help
            failed = RuntimeError(f"the judge `{name}` failed")
            if output is not None:
                failed.add_note(
                    f"The continuations are kept beside {output}: mend the judge and run the same again, and none is "
                    "made anew."
                )
            raise failed from error
        return verdicts

    return judged
