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
from typing import Annotated, Any

import typer

from legend_hf.cli.options import (
    BatchTokensOption,
    ChosenColumnOption,
    ConfigOption,
    DatasetArgument,
    DeviceOption,
    DtypeOption,
    FolderOption,
    ModelRevisionOption,
    OnErrorOption,
    OneSplitOption,
    OverwriteOption,
    PromptColumnOption,
    RejectedColumnOption,
    ResponsesColumnOption,
    RevisionOption,
    SplitOption,
    TemplateOption,
    all_splits,
    app,
    in_shell,
    load,
    one_split,
    save,
    say_saved,
    user_errors,
    writer,
)
from legend_hf.hub.outputs import check_file, write_whole
from legend_hf.hub.rows import check_rows_folder, check_splits, note_sources, sources_of

EmbedderOption = Annotated[
    str | None, typer.Option(help="Hub id or folder of the model whose embeddings say how alike responses are.")
]
WriterOption = Annotated[str, typer.Option(help="Hub id or folder of the language model that goes on with responses.")]
HarmColumnOption = Annotated[str, typer.Option(help="Name of the full harmful responses' column.")]


@app.command(
    epilog="Example: legend-hf select Anthropic/hh-rlhf --model Qwen/Qwen2.5-0.5B --output half --on-error skip"
)
def select(
    dataset: DatasetArgument,
    output: FolderOption,
    model: EmbedderOption = None,
    model_revision: ModelRevisionOption = None,
    config: ConfigOption = None,
    split: SplitOption = None,
    keep: Annotated[str, typer.Option(help="dissimilar, similar or random.")] = "dissimilar",
    fraction: Annotated[float, typer.Option(help="Share of the rows to keep, above 0 and at most 1.")] = 0.5,
    seed: Annotated[int, typer.Option(help="Of random.")] = 0,
    on_error: OnErrorOption = "raise",
    prompt_column: PromptColumnOption = "prompt",
    chosen_column: ChosenColumnOption = "chosen",
    rejected_column: RejectedColumnOption = "rejected",
    device: DeviceOption = None,
    batch_tokens: BatchTokensOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Keep the share of the rows whose two responses are least (or most) alike, by the column `pair_similarity`."""
    with user_errors(dataset, model):
        from legend_hf import PairSimilarityFn
        from legend_hf.preferences.pairs import select_measured

        check_rows_folder(output, rows=dataset, reads=[model], overwrite=overwrite)
        splits = all_splits(load(dataset, config, split))
        check_splits(splits)
        fn = None
        if model is not None and all("pair_similarity" in rows.column_names for rows in splits.values()):
            typer.echo(f"`pair_similarity` is there already: nothing was measured with {model}")
        elif model is not None:
            fn = PairSimilarityFn(
                model,
                revision=model_revision,
                on_error=on_error,
                device=device,
                batch_tokens=batch_tokens,
                prompt_column=prompt_column,
                chosen_column=chosen_column,
                rejected_column=rejected_column,
            )
        kept, shares = select_measured(splits, fn, keep=keep, fraction=fraction, seed=seed)
        for name, share in shares.items():
            typer.echo(
                f"{name}: kept {share.kept} pairs{_mean(share.kept_mean)}, dropped {share.dropped}"
                + _mean(share.dropped_mean)
                + (f", {share.unread} could not be read" if share.unread else "")
            )
        save(kept, output, source=dataset, rows=splits, overwrite=overwrite)


@app.command(epilog="Example: legend-hf pairs scored --rule best --direction you/direction --output pairs")
def pairs(
    dataset: DatasetArgument,
    output: FolderOption,
    rule: Annotated[str, typer.Option(help="dissimilar, similar, centroid, random, best or all.")] = "dissimilar",
    direction: Annotated[
        str | None, typer.Option(help="The direction whose scores these are: it makes `margin`, which trainers read.")
    ] = None,
    revision: RevisionOption = None,
    model: EmbedderOption = None,
    model_revision: ModelRevisionOption = None,
    config: ConfigOption = None,
    split: SplitOption = None,
    scores_column: Annotated[str, typer.Option(help="Name of the column with the lists of scores.")] = "scores",
    responses_column: ResponsesColumnOption = "responses",
    prompt_column: PromptColumnOption = "prompt",
    on_error: OnErrorOption = "raise",
    seed: Annotated[int, typer.Option(help="Of random, and of centroid for many responses.")] = 0,
    device: DeviceOption = None,
    batch_tokens: BatchTokensOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Make preference pairs out of several scored responses per prompt, such as those of `score`."""
    with user_errors(dataset, model, direction):
        from legend_hf import Direction, make_pairs

        check_rows_folder(output, rows=dataset, reads=[model, direction], overwrite=overwrite)
        splits = all_splits(load(dataset, config, split))
        check_splits(splits)
        made = make_pairs(
            splits,
            rule=rule,
            model=model,
            revision=model_revision,
            device=device,
            batch_tokens=batch_tokens,
            scores_column=scores_column,
            responses_column=responses_column,
            prompt_column=prompt_column,
            direction=Direction.from_pretrained(direction, revision=revision) if direction else None,
            on_error=on_error,
            seed=seed,
        )
        for name, rows in made.items():
            typer.echo(f"{name}: {len(rows)} pairs of {len(splits[name])} prompts")
        save(made, output, source=dataset, rows=splits, overwrite=overwrite)


@app.command(epilog="Example: legend-hf curriculum annotated --mode global --stages 3 --output stages")
def curriculum(
    dataset: DatasetArgument,
    output: FolderOption,
    config: ConfigOption = None,
    split: OneSplitOption = None,
    by: Annotated[str, typer.Option(help="Column of numbers, the larger the easier.")] = "margin",
    stages: Annotated[int | None, typer.Option(help="How many; as many as needed, or 3 for global.")] = None,
    mode: Annotated[str, typer.Option(help="per_prompt or global.")] = "per_prompt",
    order: Annotated[str, typer.Option(help="easy_first or hard_first.")] = "easy_first",
    negative: Annotated[str, typer.Option(help="Pairs below 0: hardest, or drop them.")] = "hardest",
    prompt_column: PromptColumnOption = "prompt",
    chosen_column: ChosenColumnOption = "chosen",
    rejected_column: RejectedColumnOption = "rejected",
    overwrite: OverwriteOption = False,
) -> None:
    """Divide pairs into stages to train on one after the other, from clear to close; each stage is a split."""
    with user_errors(dataset):
        from legend_hf import curriculum as make_curriculum

        check_rows_folder(output, rows=dataset, overwrite=overwrite)
        rows = one_split(load(dataset, config, split, numbers=[by]), "pairs")
        made = make_curriculum(
            rows,
            by=by,
            stages=stages,
            mode=mode,
            order=order,
            negative=negative,
            prompt_column=prompt_column,
            chosen_column=chosen_column,
            rejected_column=rejected_column,
        )
        for name, stage in made.items():
            typer.echo(f"{name}: {len(stage)} pairs")
        left_out = len(rows) - sum(map(len, made.values()))
        if left_out:
            typer.echo(f"left out: {left_out} of {len(rows)} pairs")
        save(made, output, source=dataset, rows=rows, overwrite=overwrite)


@app.command(
    epilog="Example: legend-hf corrections harms.jsonl --model you/aligned --output ladders.jsonl --pairs pairs.jsonl"
)
def corrections(
    dataset: DatasetArgument,
    model: WriterOption,
    output: Annotated[Path, typer.Option(help="File for the ladders, .jsonl; a stopped run goes on.", dir_okay=False)],
    pairs: Annotated[
        Path | None, typer.Option(help="File for the pairs of every two rungs, .jsonl.", dir_okay=False)
    ] = None,
    model_revision: ModelRevisionOption = None,
    config: ConfigOption = None,
    split: OneSplitOption = None,
    prompt_column: PromptColumnOption = "prompt",
    response_column: HarmColumnOption = "response",
    cuts: Annotated[int | None, typer.Option(help="Corrected rungs of a ladder, 4 when left out.")] = None,
    on_error: Annotated[str, typer.Option(help="raise at a row that gives no ladder, or skip it.")] = "raise",
    leave_out: Annotated[
        list[str] | None,
        typer.Option("--leave-out", help="no_refusal, silent, cut or loop: ladders to leave out; can be given again."),
    ] = None,
    template: TemplateOption = "auto",
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Longest continuation in tokens, 128 when left out.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Most texts continued together.")] = None,
    dtype: DtypeOption = "auto",
    seed: Annotated[int, typer.Option(help="Of phrases and cuts.")] = 0,
    device: DeviceOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Make ladders of responses out of full harmful ones: the earlier a response turns back, the better its rank."""
    with user_errors(dataset, model, kept=output):
        from legend_hf.preferences import corrections as ladders
        from legend_hf.writing.answers import check_output

        check_output(output, reads=[dataset, model], overwrite=overwrite)
        if pairs is not None:
            if os.path.realpath(pairs) == os.path.realpath(output):
                raise ValueError(f"`--output` and `--pairs` are both {str(pairs)!r}; give two files")
            check_file(pairs, suffix=".jsonl", reads=[dataset, model, output], ours=_is_paired, overwrite=overwrite)
        rows = one_split(load(dataset, config, split), "rows")
        sources = sources_of(dataset, rows)
        made = ladders.correction_ladders(
            rows,
            model=writer(model, model_revision, template, max_new_tokens, batch_size, dtype, device),
            cuts=ladders.CUTS if cuts is None else cuts,
            seed=seed,
            prompt_column=prompt_column,
            response_column=response_column,
            on_error=on_error,
            leave_out=leave_out or (),
            output=output,
            overwrite=overwrite,
        )
        note_sources(output, sources)
        typer.echo(made.info.description)
        say_saved(output)
        if pairs is not None:
            paired = ladders.ladder_pairs(made)
            write_whole(pairs, paired.to_json)
            note_sources(pairs, sources)
            typer.echo(f"{len(paired)} pairs of every two rungs")
            say_saved(pairs)


@app.command(
    "corr-at-k", epilog="Example: legend-hf corr-at-k harms.jsonl --model you/policy --judge my_judges:strict --k 20"
)
def corr_at_k(
    dataset: DatasetArgument,
    model: WriterOption,
    model_revision: ModelRevisionOption = None,
    judge: Annotated[
        str | None,
        typer.Option(
            help="Your judge, `module:function` (modules of this folder, too): judge(requests, prefixes, "
            "continuations) -> list of bool, called once with all. A rule for English when left out."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="File for every continuation and its verdict, .jsonl; a stopped run goes on.", dir_okay=False
        ),
    ] = None,
    config: ConfigOption = None,
    split: OneSplitOption = None,
    prompt_column: PromptColumnOption = "prompt",
    response_column: HarmColumnOption = "response",
    k: Annotated[
        list[int] | None, typer.Option("--k", help="Words to begin with, 10 to 80 when left out; can be given again.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Continuations of each text.")] = 1,
    template: TemplateOption = "auto",
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Longest continuation in tokens, 32 when left out.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Most texts continued together.")] = None,
    dtype: DtypeOption = "auto",
    seed: Annotated[int, typer.Option(help="Of phrases and sampling.")] = 0,
    device: DeviceOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Measure how often a model turns back from a harmful response of which k words were written for it: Corr@k."""
    with user_errors(dataset, model, kept=output):
        from legend_hf.hub.cards import FEW_PROMPTS
        from legend_hf.preferences import corr_at_k as correction
        from legend_hf.writing.answers import check_output

        verdict = correction.refusal_judge if judge is None else _judge(judge, output)
        if output is not None:
            check_output(output, reads=[dataset, model], overwrite=overwrite)
        found, records = correction.compute_corr_at_k(
            one_split(load(dataset, config, split), "rows"),
            model=writer(model, model_revision, template, max_new_tokens, batch_size, dtype, device),
            judge=verdict,
            ks=k or correction.KS,
            samples=samples,
            seed=seed,
            prompt_column=prompt_column,
            response_column=response_column,
            output=output,
            overwrite=overwrite,
        )
        if judge is None:
            typer.echo(
                "Judged by a rule for English, which is crude: it knows nothing of what is said (its precision and "
                "recall: `help(legend_hf.refusal_judge)`). For figures to publish, give `--judge`."
            )
        each = len(records) // len(found.ks)
        typer.echo(f"Corr@k with 95 % intervals; requests: {found.requests}, continuations at each k: {each}")
        if found.requests < FEW_PROMPTS:
            typer.echo(f"Doubtful: fewer than {FEW_PROMPTS} requests are too few to rely on.")
        for words, value, interval, short in zip(
            found.ks, found.values, found.intervals, found.short or [0] * len(found.ks), strict=True
        ):
            typer.echo(
                f"{words:>6}  {_rate(value, interval)}" + (f"  {short} after a text of fewer words" if short else "")
            )
        typer.echo(f"  mean  {_rate(found.mean, found.mean_interval)}")
        if output is not None:
            write_whole(output, records.to_json)
            say_saved(output)


@app.command(epilog="Example: legend-hf export annotated --trainer trl --messages --output for-trl")
def export(
    dataset: DatasetArgument,
    trainer: Annotated[str, typer.Option(help="trl, openrlhf or ms-swift.")],
    output: FolderOption,
    config: ConfigOption = None,
    split: SplitOption = None,
    messages: Annotated[
        bool, typer.Option("--messages", help="Write messages where rows are strings, for chat templates.")
    ] = False,
    weights: Annotated[
        bool, typer.Option("--weights", help="Add margin_prob and weight, for a subclass of TRL's DPOTrainer.")
    ] = False,
    prompt_column: PromptColumnOption = "prompt",
    chosen_column: ChosenColumnOption = "chosen",
    rejected_column: RejectedColumnOption = "rejected",
    overwrite: OverwriteOption = False,
) -> None:
    """Write the columns that a trainer reads: Parquet for TRL, JSON lines for the others, a file for each split."""
    with user_errors(dataset):
        from legend_hf import export_for

        check_rows_folder(output, rows=dataset, overwrite=overwrite)
        splits = all_splits(load(dataset, config, split))
        check_splits(splits)
        made = export_for(
            splits,
            trainer=trainer,
            messages=messages,
            weights=weights,
            prompt_column=prompt_column,
            chosen_column=chosen_column,
            rejected_column=rejected_column,
        )
        typer.echo(f"Columns: {', '.join(made.columns)}")
        if made.flags:
            typer.echo(f"Flags: {' '.join(made.flags)}")
        for note in made.notes:
            typer.echo(f"- {in_shell(note)}")
        kind = "parquet" if trainer == "trl" else "jsonl"
        save(made.dataset, output, kind, source=dataset, rows=splits, overwrite=overwrite)


@app.command(epilog="Example: legend-hf check for-trl --tokenizer Qwen/Qwen2.5-0.5B-Instruct --output check.md")
def check(
    dataset: DatasetArgument,
    tokenizer: Annotated[str, typer.Option(help="Hub id or folder of the model to train.")],
    config: ConfigOption = None,
    split: SplitOption = None,
    max_length: Annotated[int | None, typer.Option(help="As in RewardConfig, 1024 when left out.")] = None,
    model_revision: ModelRevisionOption = None,
    output: Annotated[Path | None, typer.Option(help="File for the same text.", dir_okay=False)] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Say what TRL's RewardTrainer would do with a dataset; exit code 1 if it would not train on it as it is."""
    with user_errors(dataset, tokenizer):
        from legend_hf.reports import trl_check as checking

        if output is not None:
            check_file(output, reads=[dataset, tokenizer], ours=_is_checked, overwrite=overwrite)
        found = checking.check_for_trl(
            load(dataset, config, split),
            tokenizer,
            max_length=checking.MAX_LENGTH if max_length is None else max_length,
            revision=model_revision,
        )
        said = in_shell(found.to_markdown())
        typer.echo(said)
        if output is not None:
            write_whole(output, said)
            typer.echo(f"Saved in {output}")
        if not found.ok:
            raise typer.Exit(1)


def _mean(similarity: float | None) -> str:
    return "" if similarity is None else f" (mean similarity {similarity:.3f})"


def _rate(value: float, interval: tuple[float, float] | None) -> str:
    return f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


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
