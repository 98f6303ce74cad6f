"""From questions to published margins: `induce`, `fit`, `annotate`, `score`, `report`, `push`, `inspect`, `store`.

In: arguments. Out: what one function of the library did, in words. This file does not know what margins are used for.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from legend_hf.cli.options import (
    BatchTokensOption,
    ChosenColumnOption,
    ConfigOption,
    DatasetArgument,
    DeviceOption,
    DirectionArgument,
    DtypeOption,
    FolderOption,
    ModelPathOption,
    ModelRevisionOption,
    NoStoreOption,
    NumProcOption,
    OnErrorOption,
    OverwriteOption,
    PromptColumnOption,
    RejectedColumnOption,
    ResponsesColumnOption,
    RevisionOption,
    SplitOption,
    StoreOption,
    TemplateOption,
    all_splits,
    app,
    chosen_store,
    load,
    one_split,
    public_name,
    save,
    say_read,
    say_saved,
    user_errors,
    writer,
)

stores = typer.Typer(help="Show, prune and merge stores of scores.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(stores, name="store")

StoreArgument = Annotated[
    Path | None, typer.Argument(help="A store; the one that `annotate` uses by itself when left out.", dir_okay=False)
]


@app.command(epilog="Example: legend-hf induce questions.jsonl --model you/annotator --output pairs.jsonl")
def induce(
    questions: DatasetArgument,
    model: Annotated[str, typer.Option(help="Hub id or folder of the language model that answers.")],
    output: Annotated[Path, typer.Option(help="File for the pairs, .jsonl; a stopped run goes on.", dir_okay=False)],
    model_revision: ModelRevisionOption = None,
    config: ConfigOption = None,
    split: SplitOption = None,
    prompt_column: Annotated[str, typer.Option(help="Name of the questions' column.")] = "prompt",
    category_column: Annotated[str, typer.Option(help="Name of the categories' column, if any.")] = "category",
    per_category: Annotated[int | None, typer.Option(help="Draw this many questions of each category.")] = None,
    refusals: Annotated[
        Path | None, typer.Option(help="Refusals, one a line; the paper's when left out.", exists=True, dir_okay=False)
    ] = None,
    template: TemplateOption = "auto",
    leave_out: Annotated[
        list[str] | None,
        typer.Option("--leave-out", help="refusal, cut or loop: answers to leave out; can be given again."),
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest answer in tokens, 1024 when left out.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Most questions answered together.")] = None,
    dtype: DtypeOption = "auto",
    seed: Annotated[int, typer.Option(help="Of the refusals' dealing and of the drawing.")] = 0,
    device: DeviceOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Let a model answer questions and put a refusal against each answer: contrastive pairs for `fit`."""
    with user_errors(questions, model, kept=output):
        from legend_hf.directions import induce as induction
        from legend_hf.hub.outputs import read_text
        from legend_hf.hub.rows import note_sources, sources_of
        from legend_hf.writing.answers import check_output

        check_output(output, reads=[questions, model, refusals], overwrite=overwrite)
        lines = read_text(refusals).splitlines() if refusals is not None else None
        rows = one_split(load(questions, config, split), "questions")
        if per_category is not None:
            rows = induction.sample_questions(
                rows, per_category=per_category, category_column=category_column, seed=seed
            )
        pairs = induction.induce_pairs(
            rows,
            model=writer(model, model_revision, template, max_new_tokens, batch_size, dtype, device),
            refusals=induction.REFERENCE_REFUSAL if lines is None else [line for line in lines if line.strip()],
            prompt_column=prompt_column,
            category_column=category_column,
            leave_out=leave_out or (),
            seed=seed,
            output=output,
            overwrite=overwrite,
        )
        note_sources(output, sources_of(questions, rows))
        typer.echo(pairs.info.description)
        say_saved(output)


@app.command(epilog="Example: legend-hf fit pairs.jsonl --model HuggingFaceTB/SmolLM2-135M --output direction")
def fit(
    pairs: DatasetArgument,
    model: Annotated[str, typer.Option(help="Hub id or folder of the model that reads.")],
    output: Annotated[Path, typer.Option(help="Folder for the direction.", file_okay=False)],
    model_revision: ModelRevisionOption = None,
    config: ConfigOption = None,
    split: SplitOption = None,
    preset: Annotated[str | None, typer.Option(help="reference: all as in the paper's public code.")] = None,
    template: Annotated[str | None, typer.Option(help="auto, chat, dialogue, alpaca, or text with {prompt}.")] = None,
    layer: Annotated[
        str | None, typer.Option(help="auto, or an index into hidden_states; -1 is the last.", metavar="[auto|INTEGER]")
    ] = None,
    estimator: Annotated[
        str | None, typer.Option(help="auto, mean_difference (the paper's), whitened, logistic or pca.")
    ] = None,
    debias: Annotated[str | None, typer.Option(help="length: leave out what length explains.")] = None,
    calibration: Annotated[str | None, typer.Option(help="What margin is: unit, raw, bins, logit or link.")] = None,
    pooling: Annotated[str | None, typer.Option(help="mean, last or mean_all.")] = None,
    eos: Annotated[str | None, typer.Option(help="none, append or template.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Longest text in tokens.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")] = None,
    on_error: OnErrorOption = "raise",
    prompt_column: PromptColumnOption = "prompt",
    chosen_column: ChosenColumnOption = "chosen",
    rejected_column: RejectedColumnOption = "rejected",
    seed: Annotated[int, typer.Option(help="Of the folds.")] = 0,
    device: DeviceOption = None,
    batch_tokens: BatchTokensOption = None,
    overwrite: OverwriteOption = False,
    store: Annotated[
        Path | None,
        typer.Option(
            help="Folder that keeps what is read until the fit ends well; in the assets cache when left out.",
            file_okay=False,
        ),
    ] = None,
    no_store: Annotated[bool, typer.Option("--no-store", help="Keep nothing: a stopped fit starts anew.")] = False,
) -> None:
    """Fit a direction on contrastive pairs and save it with its card; a stopped fit goes on where it was."""
    with user_errors(pairs, model):
        from legend_hf import fit_direction
        from legend_hf.directions.direction import check_place
        from legend_hf.directions.kept import default_folder

        keeps = chosen_store(store, no_store, default_folder)
        check_place(output, reads=[pairs, model], overwrite=overwrite)
        rows = one_split(load(pairs, config, split), "pairs")
        direction = fit_direction(
            rows,
            model=model,
            revision=model_revision,
            preset=preset,
            template=template,
            layer=int(layer) if layer is not None and layer.lstrip("-").isdigit() else layer,
            estimator=estimator,
            debias=debias,
            calibration=calibration,
            pooling=pooling,
            eos=eos,
            max_length=max_length,
            dtype=dtype,
            on_error=on_error,
            prompt_column=prompt_column,
            chosen_column=chosen_column,
            rejected_column=rejected_column,
            seed=seed,
            device=device,
            batch_tokens=batch_tokens,
            pairs_source=_induced(pairs) or public_name(pairs),
            store=keeps,
        )
        direction.save_pretrained(output, overwrite=overwrite)
        typer.echo(_summary(direction))
        typer.echo(f"Saved in {output}")


@app.command(epilog="Example: legend-hf annotate Anthropic/hh-rlhf you/direction --output annotated --on-error skip")
def annotate(
    dataset: DatasetArgument,
    direction: DirectionArgument,
    output: Annotated[Path, typer.Option(help="Folder for the annotated dataset.", file_okay=False)],
    revision: RevisionOption = None,
    model: ModelPathOption = None,
    config: ConfigOption = None,
    split: SplitOption = None,
    scale: Annotated[str | None, typer.Option(help="What `margin` is: raw, unit, bins, logit or link.")] = None,
    add: Annotated[list[str] | None, typer.Option(help="margin_bin, margin_prob; can be given twice.")] = None,
    negative: Annotated[str, typer.Option(help="Margins below 0: keep, zero, or flag in a column.")] = "keep",
    on_error: OnErrorOption = "raise",
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace existing margin columns, and what stands in the way in the output."),
    ] = False,
    prompt_column: PromptColumnOption = "prompt",
    chosen_column: ChosenColumnOption = "chosen",
    rejected_column: RejectedColumnOption = "rejected",
    num_proc: NumProcOption = None,
    device: DeviceOption = None,
    batch_tokens: BatchTokensOption = None,
    store: StoreOption = None,
    no_store: NoStoreOption = False,
) -> None:
    """Add margin columns to every split and save the result with its card; a stopped run goes on where it was."""
    with user_errors(dataset, direction):
        from legend_hf import Direction, LegendMarginFn, save_annotated
        from legend_hf import annotate as annotate_dataset
        from legend_hf.hub.rows import check_splits, named_ids, sources_of
        from legend_hf.margins.margin_fn import STATUS
        from legend_hf.publish import check_saved_place, made_of

        check_saved_place(output, dataset=dataset, reads=[direction, model], overwrite=overwrite)
        keeps = chosen_store(store, no_store)
        loaded = Direction.from_pretrained(direction, revision=revision, model=model)
        fn = LegendMarginFn(
            loaded,
            scale=scale,
            add=add or (),
            negative=negative,
            on_error=on_error,
            device=device,
            batch_tokens=batch_tokens,
            store=keeps,
            overwrite=overwrite,
            prompt_column=prompt_column,
            chosen_column=chosen_column,
            rejected_column=rejected_column,
        )
        rows = all_splits(load(dataset, config, split))
        check_splits(rows)
        sources = sources_of(dataset, rows)
        check_saved_place(output, {"default": made_of(sources, loaded)}, overwrite=overwrite)
        annotated = annotate_dataset(rows, fn, num_proc=num_proc)
        save_annotated(annotated, output, direction=fn, source=named_ids(sources), overwrite=overwrite)
        say_read(annotated, "annotated", STATUS if fn.skips else None)
        say_saved(output)


@app.command(
    epilog="Example: legend-hf score openbmb/UltraFeedback you/direction --output scored --prompt-column instruction "
    "--responses-column completions"
)
def score(
    dataset: DatasetArgument,
    direction: DirectionArgument,
    output: FolderOption,
    revision: RevisionOption = None,
    model: ModelPathOption = None,
    config: ConfigOption = None,
    split: SplitOption = None,
    add: Annotated[list[str] | None, typer.Option(help="choice_probs.")] = None,
    on_error: OnErrorOption = "raise",
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Replace existing columns of scores, and what stands in the way in the output."
        ),
    ] = False,
    prompt_column: PromptColumnOption = "prompt",
    responses_column: ResponsesColumnOption = "responses",
    num_proc: NumProcOption = None,
    device: DeviceOption = None,
    batch_tokens: BatchTokensOption = None,
    store: StoreOption = None,
    no_store: NoStoreOption = False,
) -> None:
    """Score lists of responses: adds `scores`, `ranking` and `best_response` to every split, for `pairs`."""
    with user_errors(dataset, direction):
        from legend_hf import Direction, LegendScoreFn
        from legend_hf import annotate as annotate_dataset
        from legend_hf.hub.rows import check_rows_folder, check_splits
        from legend_hf.margins.score_fn import STATUS

        check_rows_folder(output, rows=dataset, reads=[direction, model], overwrite=overwrite)
        keeps = chosen_store(store, no_store)
        fn = LegendScoreFn(
            Direction.from_pretrained(direction, revision=revision, model=model),
            add=add or (),
            on_error=on_error,
            device=device,
            batch_tokens=batch_tokens,
            store=keeps,
            overwrite=overwrite,
            prompt_column=prompt_column,
            responses_column=responses_column,
        )
        splits = all_splits(load(dataset, config, split))
        check_splits(splits)
        scored = annotate_dataset(splits, fn, num_proc=num_proc)
        say_read(scored, "scored", STATUS if fn.skips else None)
        save(scored, output, source=dataset, rows=splits, overwrite=overwrite)


@app.command(epilog="Example: legend-hf report annotated --direction you/direction --output report")
def report(
    dataset: Annotated[str, typer.Argument(help="An annotated dataset: Hub id, folder or file.")],
    direction: Annotated[str | None, typer.Option(help="Hub id, folder or fsspec URL of its direction.")] = None,
    revision: RevisionOption = None,
    model: ModelPathOption = None,
    config: ConfigOption = None,
    split: SplitOption = None,
    category_column: Annotated[str | None, typer.Option(help="Column of categories, for a table by each.")] = None,
    category: Annotated[list[str] | None, typer.Option(help="A category to expect; can be given again.")] = None,
    stability_pairs: Annotated[
        str | None, typer.Option(help="Pairs to test the direction's stability on, such as those of its fit.")
    ] = None,
    ladders: Annotated[
        str | None, typer.Option(help="Prompts with responses from best to worst, to test the direction's order on.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for report.json, report.md and the plots.", file_okay=False)
    ] = None,
    plots: Annotated[bool, typer.Option("--plots/--no-plots", help="Draw PNGs into the folder.")] = True,
    excerpts: Annotated[
        bool, typer.Option("--excerpts", help="Show beginnings of suspicious rows' texts, which can be harmful.")
    ] = False,
    prompt_column: PromptColumnOption = "prompt",
    chosen_column: ChosenColumnOption = "chosen",
    rejected_column: RejectedColumnOption = "rejected",
    seed: Annotated[int, typer.Option(help="Of all draws.")] = 0,
    device: DeviceOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Say how good the margins of a dataset are: agreement, length, calibration, suspicious rows."""
    with user_errors(dataset, direction, stability_pairs, ladders):
        from legend_hf import Direction
        from legend_hf.hub.outputs import check_outside
        from legend_hf.reports.report import check_place
        from legend_hf.reports.report import report as make_report

        if output is not None:
            reads = [dataset, direction, model, stability_pairs, ladders]
            check_place(output, plots=plots, reads=reads, overwrite=overwrite)
            check_outside(output, [] if overwrite else [dataset])
        loaded = Direction.from_pretrained(direction, revision=revision, model=model) if direction else None
        pairs = one_split(load(stability_pairs, None, None), "stability pairs") if stability_pairs else None
        ranked = one_split(load(ladders, None, None), "ladders") if ladders else None
        made = make_report(
            load(dataset, config, split),
            direction=loaded,
            category_column=category_column,
            categories=category or None,
            prompt_column=prompt_column,
            chosen_column=chosen_column,
            rejected_column=rejected_column,
            stability_pairs=pairs,
            ladders=ranked,
            excerpts=excerpts,
            seed=seed,
            device=device,
        )
        typer.echo(made.to_markdown())
        if output is not None:
            typer.echo("Saved " + ", ".join(str(path) for path in made.save(output, plots=plots, overwrite=overwrite)))


@app.command(epilog="Example: legend-hf push annotated you/hh-margins you/direction --source Anthropic/hh-rlhf")
def push(
    folder: Annotated[Path, typer.Argument(help="Folder that `annotate` saved.", exists=True, file_okay=False)],
    repo_id: Annotated[str, typer.Argument(help="Dataset repository on the Hub.")],
    direction: DirectionArgument,
    revision: RevisionOption = None,
    source: Annotated[
        list[str] | None,
        typer.Option(
            help="Hub id of the dataset that was annotated, where the folder does not know; can be given again."
        ),
    ] = None,
    config_name: Annotated[str | None, typer.Option(help="Configuration to push as.")] = None,
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public.")] = False,
) -> None:
    """Push an annotated dataset to the Hub, every split, with its card."""
    with user_errors(direction):
        from legend_hf import Direction, push_folder

        push_folder(
            folder,
            repo_id,
            direction=Direction.from_pretrained(direction, revision=revision),
            source=source,
            config_name=config_name,
            private=not public,
        )
        typer.echo(f"Pushed to {repo_id}")


@app.command(epilog="Example: legend-hf inspect you/direction --json")
def inspect(
    direction: DirectionArgument,
    revision: RevisionOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
) -> None:
    """Show what a direction is and what is known of its fit."""
    with user_errors(direction):
        from legend_hf import Direction

        loaded = Direction.from_pretrained(direction, revision=revision)
        typer.echo(json.dumps(loaded.to_config(), indent=2, sort_keys=True) if as_json else _summary(loaded))


@stores.command("show", epilog="Example: legend-hf store show")
def store_show(path: StoreArgument = None) -> None:
    """Say what a store holds for each direction."""
    with user_errors():
        store, size = _existing_store(path)
        typer.echo(f"{store.path}, {size / 2**20:.1f} MiB")
        for kept in store.contents():
            typer.echo(f"  {kept.scores} scores, last used {kept.used:%Y-%m-%d}: {kept.label} ({kept.digest[:12]})")


@stores.command("prune", epilog="Example: legend-hf store prune --unused-days 30")
def store_prune(
    path: StoreArgument = None,
    unused_days: Annotated[float, typer.Option(help="Forget directions that were not used for so long.", min=0)] = 30.0,
    everything: Annotated[bool, typer.Option("--all", help="Forget all.")] = False,
) -> None:
    """Forget the scores of directions that are no longer used, and give their space back."""
    with user_errors():
        store, before = _existing_store(path)
        gone = store.prune(unused_days=0.0 if everything else unused_days)
        typer.echo(f"Forgot {gone} scores; {store.path} went from {before} to {store.path.stat().st_size} bytes")


@stores.command("merge", epilog="Example: legend-hf store merge all.sqlite node-1.sqlite node-2.sqlite")
def store_merge(
    into: Annotated[Path, typer.Argument(help="The store that takes over; made if absent.", dir_okay=False)],
    stores: Annotated[list[Path], typer.Argument(help="Stores to take from.", exists=True, dir_okay=False)],
) -> None:
    """Put the scores of several stores into one, such as those of several machines."""
    with user_errors():
        from legend_hf.hub.outputs import check_file
        from legend_hf.margins.store import open_store

        check_file(into, reads=stores, ours=lambda file: True)  # a file that is no store is refused when it is opened
        store = open_store(into)
        for path in stores:
            typer.echo(f"{store.merge(open_store(path))} new scores from {path}")


def _existing_store(path: Path | None) -> tuple[Any, int]:
    """A store and its size; showing one that is not there must not make it."""
    from legend_hf.margins.store import check_path, default_store, open_store

    file = check_path(path or default_store())
    if not file.exists():
        raise ValueError(f"there is no store {str(file)!r}; `legend-hf annotate` makes one")
    return open_store(file), file.stat().st_size


def _induced(source: str) -> str | None:
    """The provenance that `induce` wrote beside its pairs."""
    from legend_hf.hub.outputs import read_text

    file = Path(f"{source}.source")
    if not file.is_file():
        return None
    try:
        described = json.loads(read_text(file))["description"]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{str(file)!r} says nothing of where the pairs are from; mend it, or remove it") from error
    return str(described)


def _summary(direction: Any) -> str:
    facts, reader = direction.facts, direction.reader

    def share(value: float | None, interval: tuple[float, float] | None) -> str:
        if value is None:
            return "not recorded"
        return f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")

    rows = [
        ("model", reader.name),
        ("reads", f"{reader.template!r} template, {reader.pooling} pooling, layer {reader.layer} of {reader.n_layers}, "
                  f"up to {reader.max_length} tokens, {reader.dtype}"),
        ("fitted on", f"{facts.pairs} pairs of {facts.prompts} prompts, {facts.estimator}"),
        ("held out", facts.held_out or "not recorded"),
        ("accuracy", share(facts.accuracy, facts.accuracy_interval)),
        ("length alone", share(facts.length_accuracy, facts.length_accuracy_interval)
                         + (f", the {facts.length_rule} one" if facts.length_rule else "")),
        ("effect", "not recorded" if facts.effect is None else f"{facts.effect:+.2f} deviations, held out"),
        ("calibration", direction.calibration.label()),
    ]  # fmt: skip
    return "\n".join(f"{name:>12}  {value}" for name, value in rows)
