"""From questions to published margins: `fit`, `annotate`, `report`, `push`, `inspect`; `induce`, `score`.

In: arguments. Out: what one function of the library did, in words. This file does not know what margins are used for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from legend_hf.cli.door import Call, command
from legend_hf.cli.options import Kept, Named, Place, Reading, Rows, load, one_split, save, say_read, say_saved
from legend_hf.cli.scaling import Scale, annotate_at_scale
from legend_hf.cli.screen import say, show
from legend_hf.hub.rows import check_rows_folder, named_ids, note_sources, sources_of

ROAD = "The common road"
PAIRS = "Before it: contrastive pairs"
SCORES = "Several responses to a prompt"
OF_DIRECTION = {"revision": "direction_revision"}

Processes = Annotated[int | None, typer.Option(help="Processes.", min=1)]


@command(
    "directions.fit.fit_direction",
    "directions.estimate.estimate_fit",
    under=ROAD,
    without=["pairs_source", "loading", "runtime"],
)
def fit(fit_direction: Call, estimate_fit: Call, pairs: Rows, *, output: Place, store: Kept) -> None:
    """Fit a direction on contrastive pairs and save it with its card.

    Contrastive pairs are a preference dataset in TRL's words, prompt, chosen, rejected, whose two sides differ in what
    the direction is to mean. A stopped fit goes on where it was.

    Example: fit pairs.jsonl --model HuggingFaceTB/SmolLM2-135M --output direction

    Options:
        preset: reference: all as in the paper's public code.
        layer: auto (default), or an index into hidden_states; -1 is the last.
        estimator: auto (default), mean_difference (the paper's), whitened, logistic or pca.
        debias: length: leave out what length explains.
        store: Folder that keeps what is read until the fit ends well; in the assets cache when left out.
    """
    from legend_hf.directions.direction import check_place
    from legend_hf.directions.induce import described
    from legend_hf.directions.kept import default_folder
    from legend_hf.directions.recipe import Recipe
    from legend_hf.directions.summary import summary
    from legend_hf.reading.loading import Loading
    from legend_hf.reading.reader import Runtime

    keeps = store.path(default_folder)
    reads = [pairs.source, fit_direction.keywords["model"]]
    check_place(output.output, reads=reads, overwrite=output.overwrite)
    if store.dry_run:
        options = fit_direction.keywords
        said = {field.name: options[field.name] for field in fields(Recipe) if field.name in options}
        runs = {field.name: options[field.name] for field in fields(Runtime) if field.name in options}
        how = {
            "preset": Recipe.made_of(options["preset"], said),
            "loading": Loading.of(options["gguf_file"], options["quantization_config"]),
        }
        say(estimate_fit(pairs.one("pairs"), **how, runtime=Runtime(**runs)).to_text())
        return
    known = described(pairs.source) or pairs.public_name
    direction = fit_direction(pairs.one("pairs"), pairs_source=known, store=keeps)
    direction.save_pretrained(output.output, overwrite=output.overwrite)
    say(summary(direction))
    say(f"Saved in {output.output}")


@command(
    "margins.margin_fn.LegendMarginFn",
    "margins.annotate.annotate",
    "margins.estimate.estimate",
    under=ROAD,
    renamed=OF_DIRECTION,
)
def annotate(
    make: Call,
    run: Call,
    estimate: Call,
    dataset: Rows,
    direction: Reading,
    *,
    output: Place,
    num_proc: Processes = None,
    store: Kept,
    scale: Scale,
) -> None:
    """Add margin columns to every split and save the result with its card.

    A stopped run goes on where it was.

    Example: annotate Anthropic/hh-rlhf you/direction --data-dir harmless-base --output annotated --on-error skip

    Options:
        negative: Margins below 0: keep, zero, or flag in a column.
    """
    from legend_hf import save_annotated
    from legend_hf.margins.store import default_store
    from legend_hf.publish import check_saved_place, made_of

    if scale.asked:
        scale.check(dry_run=store.dry_run, num_proc=num_proc, devices=run.keywords["devices"])
        fn = make(direction.load(), store=store.store, overwrite=output.overwrite)
        annotate_at_scale(dataset, fn, output, scale, batch_size=run.keywords["batch_size"])
        return
    reads = direction.reads
    check_saved_place(output.output, dataset=dataset.source, reads=reads, overwrite=output.overwrite)
    keeps = store.path(default_store)
    loaded = direction.load()
    fn = make(loaded, store=keeps, overwrite=output.overwrite)
    rows = dataset.splits()
    sources = sources_of(dataset.source, rows)
    check_saved_place(output.output, {"default": made_of(sources, loaded)}, overwrite=output.overwrite)
    if store.dry_run:
        say(estimate(rows, fn).to_text())
        return
    annotated = run(rows, fn, num_proc=num_proc)
    source = named_ids(sources)
    save_annotated(annotated, output.output, direction=fn, source=source, overwrite=output.overwrite)
    say_read(annotated, "annotated", fn.status if fn.skips else None)
    say_saved(output.output)


@command("reports.report.report", under=ROAD, renamed={**OF_DIRECTION, "categories": "category"})
def report(
    make: Call,
    dataset: Rows,
    *,
    direction: Reading | None = None,
    stability_pairs: str | os.PathLike[str] | None = None,
    ladders: str | os.PathLike[str] | None = None,
    output: Place | None = None,
    plots: bool = True,
) -> None:
    """Say how good the margins of a dataset are.

    Agreement with the labels, length, calibration, suspicious rows.

    Example: report annotated --direction you/direction --output report

    Options:
        category: A category to expect.
        ladders: Prompts with responses from best to worst, to test the direction's order on.
        output: Folder for report.html, report.md, report.json and the plots; the page links to a traces.html there.
        plots: Draw PNGs, into the folder and the page.
    """
    from legend_hf.hub.outputs import check_outside
    from legend_hf.reports.report import check_place

    if output is not None:
        reads = [dataset.source, stability_pairs, ladders]
        reads += direction.reads if direction else []
        check_place(output.output, plots=plots, reads=reads, overwrite=output.overwrite)
        check_outside(output.output, [] if output.overwrite else [dataset.source])
    remedy = "give a file or a folder of one"
    made = make(
        direction=direction.load() if direction else None,
        stability_pairs=one_split(load(stability_pairs), "stability pairs", remedy) if stability_pairs else None,
        ladders=one_split(load(ladders), "ladders", remedy) if ladders else None,
        dataset=dataset.load(),
    )
    show(made.to_markdown())
    if output is not None:
        saved = made.save(output.output, plots=plots, overwrite=output.overwrite)
        say("Saved " + ", ".join(map(str, saved)))


@command("publish.push_folder", under=ROAD, without=["token"], renamed={"revision": "branch"})
def push(
    push_folder: Call,
    folder: Path,
    direction: Sequence[str | os.PathLike[str]],
    repo_id: str,
    *,
    direction_revision: str | None = None,
) -> None:
    """Push an annotated dataset to the Hub, every split, with its card.

    Example: push annotated you/direction you/hh-margins --source Anthropic/hh-rlhf

    Options:
        folder: Folder that `annotate` saved.
        direction: Hub id or folder of what it was annotated with; NAME=ID for each of several.
        direction_revision: Branch, tag or commit of the direction.
        repo_id: Dataset repository on the Hub.
        source: Hub id of the dataset that was annotated, where the folder does not know.
        private: Who may see a new repository.
    """
    from legend_hf.directions.direction import TENSOR_FILE

    if (folder / TENSOR_FILE).is_file():
        raise ValueError(f"{str(folder)!r} is a direction; push it by `legend-hf push-direction {folder} {repo_id}`")
    push_folder(folder, repo_id, direction=Reading(direction, direction_revision).load())
    say(f"Pushed to {repo_id}")


@command(
    "directions.direction.Direction.push_to_hub",
    name="push-direction",
    under=ROAD,
    without=["token"],
    renamed={"revision": "branch"},
)
def push_direction(push_to_hub: Call, folder: Path, repo_id: str) -> None:
    """Push a direction to the Hub, with its card.

    Example: push-direction direction you/direction --model-id HuggingFaceTB/SmolLM2-135M

    Options:
        folder: Folder that `fit` saved.
    """
    pushed = push_to_hub(Named(folder).load(), repo_id)
    say(f"Pushed to {pushed.repo_id}, commit {pushed.revision}")


@command(under=ROAD)
def inspect(
    direction: Named, *, as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False
) -> None:
    """Show what a direction is and what is known of its fit.

    Example: inspect you/direction --json
    """
    from legend_hf.directions.summary import summary

    loaded = direction.load()
    say(json.dumps(loaded.to_config(), indent=2, sort_keys=True) if as_json else summary(loaded))


@command("directions.induce.induce_pairs", under=PAIRS)
def induce(
    induce_pairs: Call, questions: Rows, *, output: Place, refusals: Path | None = None, per_category: int | None = None
) -> None:
    """Let a model answer questions and put a refusal against each answer: contrastive pairs for `fit`.

    To induce pairs is to have a model write them. What comes out is a preference dataset in TRL's words: prompt,
    chosen (the refusal), rejected (the answer).

    Example: induce questions.jsonl --model you/annotator --output pairs.jsonl

    Options:
        model: Hub id or folder of the language model that answers.
        max_new_tokens: Longest answer in tokens, 1024 when left out.
        temperature: Of sampling; the likeliest token is taken when left out.
        output: File for the pairs, .jsonl; a stopped run goes on.
        refusals: Refusals, one a line; the paper's when left out.
        per_category: Draw this many questions of each category.
        seed: Of the refusals' dealing and of the drawing.
    """
    from legend_hf.directions.induce import sample_questions
    from legend_hf.hub.outputs import read_text
    from legend_hf.writing.answers import check_output

    options = induce_pairs.keywords
    check_output(output.output, reads=[questions.source, options["model"].model, refusals], overwrite=output.overwrite)
    if refusals is not None:
        lines = read_text(refusals).splitlines()
        induce_pairs = partial(induce_pairs, refusals=[line for line in lines if line.strip()])
    rows = questions.one("questions")
    if per_category is not None:
        drawn = {name: options[name] for name in ("category_column", "seed")}
        rows = sample_questions(rows, per_category=per_category, **drawn)
    pairs = induce_pairs(rows, output=output.output, overwrite=output.overwrite)
    note_sources(output.output, sources_of(questions.source, rows))
    say(pairs.info.description)
    say_saved(output.output)


@command(
    "margins.score_fn.LegendScoreFn",
    "margins.annotate.annotate",
    "margins.estimate.estimate",
    under=SCORES,
    renamed=OF_DIRECTION,
)
def score(
    make: Call,
    run: Call,
    estimate: Call,
    dataset: Rows,
    direction: Reading,
    *,
    output: Place,
    num_proc: Processes = None,
    store: Kept,
) -> None:
    """Score lists of responses: adds `scores`, `ranking`, `best_response`, `score_best` and `score_gap`.

    Example: score openbmb/UltraFeedback you/direction --output scored --prompt-column instruction
    --responses-column completions
    """
    from legend_hf.margins.store import default_store

    reads = direction.reads
    check_rows_folder(output.output, rows=dataset.source, reads=reads, overwrite=output.overwrite)
    keeps = store.path(default_store)
    fn = make(direction.load(), store=keeps, overwrite=output.overwrite)
    splits = dataset.splits()
    if store.dry_run:
        say(estimate(splits, fn).to_text())
        return
    scored = run(splits, fn, num_proc=num_proc)
    say_read(scored, "scored", fn.status if fn.skips else None)
    save(scored, output, source=dataset, rows=splits)
