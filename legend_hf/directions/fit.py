"""Contrastive pairs become a `Direction`.

In: pairs in any accepted shape (chosen is the harmless side) and a model. Out: a direction with its calibration and
with what held-out pairs say of it. This file knows no datasets beyond their rows, no linear algebra, and writes no
columns.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np

from legend_hf.directions import resample
from legend_hf.directions.calibrate import RAW, Calibration, fit_calibration
from legend_hf.directions.choose import (
    FEWEST_PROMPTS,
    FOLDS,
    TRIED,
    Choice,
    choose,
    right,
    unseen_sources,
    without_length,
)
from legend_hf.directions.curve import learning_curve
from legend_hf.directions.differences import log_lengths, read_differences
from legend_hf.directions.direction import Direction, Facts
from legend_hf.directions.estimators import ESTIMATORS
from legend_hf.directions.kept import KeptDifferences
from legend_hf.directions.recipe import Recipe
from legend_hf.hub.concept import check_concept
from legend_hf.reading.formats import Columns, Pair, opening, read_pairs, sources_of
from legend_hf.reading.identity import model_folder
from legend_hf.reading.loading import Loading
from legend_hf.reading.plain import check_on_error
from legend_hf.reading.pretrained import DeviceMap
from legend_hf.reading.reader import (
    OpenReader,
    Reader,
    Runtime,
    deciding,
    describe_model,
    open_reader,
    published_as,
    tensors_of,
    with_layer,
)
from legend_hf.reading.rows import encode_pairs
from legend_hf.reading.stopping import how_to_go_on, stopping_in_order
from legend_hf.reading.templates import Tokens

logger = logging.getLogger(__name__)


def fit_direction(
    pairs: Iterable[Mapping[str, Any]],
    *,
    model: str | os.PathLike[str],
    revision: str | None = None,
    model_id: str | None = None,
    gguf_file: str | None = None,
    quantization_config: Mapping[str, Any] | None = None,
    preset: str | Recipe | None = None,
    template: str | None = None,
    joiner: str | None = None,
    eos: str | None = None,
    layer: int | str | None = None,
    pooling: str | None = None,
    estimator: str | None = None,
    debias: str | None = None,
    calibration: str | None = None,
    dtype: str | None = None,
    max_length: int | None = None,
    seed: int = 0,
    device: str | None = None,
    device_map: DeviceMap | None = None,
    batch_tokens: int | None = None,
    prompt_column: str = "prompt",
    chosen_column: str = "chosen",
    rejected_column: str = "rejected",
    source_column: str | None = None,
    on_error: str = "raise",
    pairs_source: str | None = None,
    concept: str | None = None,
    poles: Sequence[str] | None = None,
    trust_remote_code: bool = False,
    store: str | os.PathLike[str] | None = None,
) -> Direction:
    """Fits a direction from pairs: which layer is read and how the vector is estimated is tried on held-out prompts.

    Accuracy and calibration come from five-fold cross-fitting by prompt: each pair is scored by a direction fitted
    without its prompt. The accuracy is that of the whole procedure: layer and estimator are chosen anew for each fold,
    without it. So are the margins that probabilities are fitted on; scale and bins are those of the layer and estimator
    chosen by all. The direction that is returned is fitted on all pairs.

    With fewer than 20 prompts nothing is tried: `"auto"` is then the middle layer and the mean difference.

    With `source_column` the pairs say where they are from, and the choice is the one that does best on each source when
    fitted on the others, each counting the same. Both accuracies are recorded: `facts.accuracy`, on other prompts of
    the same sources, and `facts.transfer_accuracy`, on sources that had no part in choice or fit: what to expect of
    pairs of a kind that is not among yours.

    Args:
        pairs: A `Dataset` or rows, in any shape that `LegendMarginFn` takes; `chosen` is the harmless side, or
            that of the higher pole.
        model: Hub id or folder of the model that reads.
        revision: Branch, tag or commit of a Hub model; resolved to a commit.
        model_id: Hub id (`id` or `id@revision`) of the model that lies in the folder `model`, so that the direction is
            of that one for others. Weights, config and tokenizer are held against the Hub's record; no weights are
            downloaded.
        gguf_file: Name of the GGUF file in `model` that holds config, tokenizer and weights (extra `gguf`), which are
            widened to `dtype`. Part of the direction, as the next one.
        quantization_config: Quantise the weights as they are loaded (extra `bitsandbytes` or `torchao`): what
            transformers calls so, such as `{"quant_method": "bitsandbytes", "load_in_8bit": True}`. It changes the
            numbers.
        preset: `"reference"` sets everything to what the paper's public code does; a `Recipe` to what it holds.
        template: `"auto"` (default), `"chat"`, `"dialogue"`, `"alpaca"` or a string with `{prompt}`.
        joiner: What stands between a plain template and the response; None takes the template's own.
        eos: `"none"` (default), `"append"` or `"template"`.
        layer: `"auto"` (default) chooses by held-out accuracy, as `directions.choose` says; or an index into
            `hidden_states`, -1 being the last, which the paper takes.
        pooling: `"mean"` over the response (default), `"last"` or `"mean_all"`.
        estimator: `"auto"` (default) chooses between the first two by held-out accuracy; `"mean_difference"` (the
            paper), `"whitened"`, `"logistic"` or `"pca"`, which `directions.estimators` explains.
        debias: None (default), or `"length"`: among pairs with right labels, margins shall not regress on the
            difference of the responses' log lengths. Costs accuracy where shorter responses really are safer.
        calibration: What `margin` is: `"unit"` (default: in [-1, 1]), `"raw"`, `"bins"`, `"logit"` or `"link"`. All are
            fitted on the held-out pairs and stored.
        dtype: `"auto"` (default), `"float32"`, `"bfloat16"` or `"float16"`.
        max_length: Longest text in tokens, 2048 by default, bounded by the model's window.
        seed: Of the folds. The same seed on the same machine gives the same bits.
        device: Where to run; None takes a GPU when there is one.
        device_map: In place of `device`, for a model larger than one (extra `accelerate`): `"auto"`, or a mapping of
            parts of the model to devices, `"cpu"` and `"disk"`, as transformers has it. It changes no number.
        batch_tokens: Most tokens in one forward pass.
        prompt_column: Name of the prompts' column, where it is not `prompt`.
        chosen_column: Name of the chosen (harmless) responses' column.
        rejected_column: Name of the rejected (harmful) responses' column.
        source_column: Name of a column that says which source each pair is from, two of them at least; None leaves
            prompts out, and no sources.
        on_error: `"raise"` at the first pair that cannot be read, before any forward pass, or `"skip"` them.
        pairs_source: What the pairs are, for the card: a dataset id, say.
        concept: What the pairs contrast, in a word or two, where it is not safety: `"helpfulness"`, say. Cards, plots
            and reports speak of it.
        poles: What its two sides are called, the rejected one's first: `("unhelpful", "helpful")`.
        trust_remote_code: Run code that comes with the model.
        store: Folder that keeps what is read, 4 bytes a layer, pair and dimension, until the fit ends well: a run that
            was stopped or killed goes on where it was, to the same bits. What nobody came back for in 30 days is
            deleted. None keeps nothing.

    Returns:
        The direction, not yet saved.

    Raises:
        ValueError: `pairs` are no rows, an argument contradicts the preset, a pair cannot be read, the sides do not
            differ, there are too few prompts to hold any out, or `source_column` names fewer than two sources.
        RowError: A row is none of the accepted shapes (a ValueError).
        OSError: The model is not there; the error says what is.
    """
    check_pairs(pairs)
    check_concept(concept, poles)
    recipe = Recipe.made_of(
        preset,
        {
            "template": template,
            "joiner": joiner,
            "eos": eos,
            "layer": layer,
            "pooling": pooling,
            "estimator": estimator,
            "debias": debias,
            "calibration": calibration,
            "dtype": dtype,
            "max_length": max_length,
        },
    )
    check_on_error(on_error)
    # Refused before any row is read.
    runtime = Runtime(None, device, batch_tokens, trust_remote_code, device_map=device_map)
    loading = Loading.of(gguf_file, quantization_config)
    columns = Columns(prompt=prompt_column, chosen=chosen_column, rejected=rejected_column, source=source_column)
    read = [*read_pairs(pairs, columns, on_error=on_error)]  # all of them, before anything costly happens
    named = sources_of(read)
    _check_sources(named, source_column)
    opened, path = open_for(recipe, model, revision, model_id, runtime, loading)
    reader = opened.reader
    encoded = encode_pairs(partial(opened.encode, fitting=True), read, on_error=on_error)
    kept, texts = [pair for pair, _ in encoded], [sides for _, sides in encoded]
    skipped = len(read) - len(kept)
    groups = _groups(kept, recipe, source_column)
    layers, estimators = candidates(recipe, reader, len(np.unique(groups)))
    kept_here = None if store is None else KeptDifferences(store, _deciding(reader, path, layers, texts))
    with stopping_in_order(how_to_go_on(None if kept_here is None else str(kept_here.path.parent)), workers=False):
        with kept_here or nullcontext():
            # [layers, n, d_model]
            differences = read_differences(opened, texts, layers, kept=kept_here, skipped=skipped)
        lost = _not_finite(differences) if on_error == "skip" else set()
        if lost:
            differences = np.delete(differences, sorted(lost), axis=1)
            kept = [pair for row, pair in enumerate(kept) if row not in lost]
            skipped += len(lost)
            groups = _groups(kept, recipe, source_column)
        by_source = source_column is not None
        direction = _fitted(recipe, reader, differences, (layers, estimators), kept, groups, seed, by_source=by_source)
        packages = () if loading is None else loading.packages
        facts = replace(
            direction.facts,
            versions={**(direction.facts.versions or {}), **{name: version(name) for name in packages}},
            skipped=skipped,
            pairs_source=pairs_source,
            concept=concept,
            poles=None if poles is None else (poles[0], poles[1]),
        )
        direction = replace(direction, facts=facts, model_path=path, device_map=runtime.device_map)
        if kept_here is not None:
            kept_here.remove()
    if direction.verdict.doubtful:
        logger.warning("this direction is %s", direction.verdict.warning)
    return direction


def _fitted(
    recipe: Recipe,
    reader: Reader,
    differences: np.ndarray,
    candidates: tuple[Sequence[int], Sequence[str]],
    pairs: Sequence[Pair],
    groups: np.ndarray,
    seed: int,
    *,
    by_source: bool,
) -> Direction:
    """The direction that does best on pairs held out, fitted on all of them; of the facts, what the numbers say.

    Args:
        recipe: Of the fit.
        reader: What read the pairs; its layer is yet to be chosen.
        differences: `[layers, n, d_model]`.
        candidates: The layers, and the estimators.
        pairs: `[n]`.
        groups: Their prompts `[n]`.
        seed: Of the folds.
        by_source: Whether sources are left out, where prompts would be.
    """
    layers, estimators = candidates
    lengths = log_lengths(pairs) if recipe.debias == "length" else None
    chosen, unseen = None, None
    if len(np.unique(groups)) > 1:
        tried: dict[str, Any] = {"middle": reader.n_layers / 2, "seed": seed, "lengths": lengths}
        sources = resample.groups_of(sources_of(pairs)) if by_source else None
        chosen = choose(differences, layers, estimators, groups, sources=sources, **tried)
        if sources is not None:
            unseen = unseen_sources(differences, layers, estimators, groups, sources, **tried)
    place, name = (chosen.place, chosen.estimator) if chosen is not None else (0, estimators[0])
    facts = replace(_facts(pairs, groups, layers, chosen, seed), estimator=name, debias=recipe.debias)
    if unseen is not None:
        facts = replace(facts, **_transfer(right(unseen), groups, pairs))
    if chosen is not None:
        facts = replace(facts, curve=learning_curve(differences[place], groups, chosen, seed=seed, lengths=lengths))
    return Direction(
        vector=ESTIMATORS[name](without_length(differences[place], lengths)).astype(np.float32),
        reader=with_layer(reader, layers[place]),
        calibration=_calibrate(recipe.calibration, chosen),
        facts=facts,
    )


def _groups(pairs: Sequence[Pair], recipe: Recipe, source_column: str | None) -> np.ndarray:
    """The prompts of pairs `[n]`, of which there must be enough, as of sources."""
    groups = resample.groups_of([opening(pair.chosen) for pair in pairs])
    _check_enough(groups, recipe.calibration)
    _check_sources(sources_of(pairs), source_column)
    return groups


def open_for(
    recipe: Recipe,
    model: str | os.PathLike[str],
    revision: str | None,
    model_id: str | None,
    runtime: Runtime,
    loading: Loading | None = None,
) -> tuple[OpenReader, str | None]:
    """Opens what reads a model's texts as the recipe says, and says in which folder the model lies, if in one."""
    reader = describe_model(
        model,
        revision=revision,
        **recipe.for_reader,
        loading=loading,
        device=runtime.device,
        trust_remote_code=runtime.trust_remote_code,
    )
    reader = replace(reader, fit_joiner=recipe.fit_joiner)
    path = model_folder(model)
    if model_id is not None and model_id.partition("@")[0] != reader.model:
        reader = published_as(reader, model_id, trust_remote_code=runtime.trust_remote_code)
    runtime = replace(runtime, path=path)
    if open_reader(reader, runtime).ends_texts and recipe.eos_of_tokenizer:
        reader = replace(reader, eos="append")
    return open_reader(replace(reader, tensors_sha256=tensors_of(reader, path)), runtime), path


def _deciding(
    reader: Reader, path: str | None, layers: Sequence[int], texts: Sequence[tuple[Tokens, Tokens]]
) -> list[Any]:
    """All that decides what is read for a fit."""
    numbers = ((*t.ids, -1, *t.content, -1, t.last, -1) for pair in texts for t in pair)
    said = hashlib.sha256()
    for text in numbers:
        said.update(np.array(text, dtype="<i8").tobytes())
    return [deciding(with_layer(reader, -1), path), list(layers), len(texts), said.hexdigest()]


def check_pairs(pairs: Any) -> None:
    """Refuses what holds no rows: splits or columns by their names, a name, a table of another kind."""
    if isinstance(pairs, Mapping):
        from datasets import DatasetDict, IterableDatasetDict

        names = ", ".join(map(repr, pairs)) or "none"
        if isinstance(pairs, DatasetDict | IterableDatasetDict):
            one = repr(next(iter(pairs), "train"))
            raise ValueError(f"`pairs` has the splits {names}; choose one: `fit_direction(pairs[{one}], ...)`")
        raise ValueError(
            f"`pairs` is a {type(pairs).__name__} with the keys {names}; give rows: `Dataset.from_dict(pairs)` where "
            "the keys are columns, one of the values where they are splits"
        )
    if isinstance(pairs, str) or not isinstance(pairs, Iterable) or hasattr(pairs, "iterrows"):
        raise ValueError(
            f"`pairs` is {'None' if pairs is None else f'a {type(pairs).__name__}'}; give a `Dataset` or rows: "
            '`load_dataset(id, split="train")`, `Dataset.from_pandas(frame)`, or a list of dicts'
        )


def _not_finite(differences: np.ndarray) -> set[int]:
    """Pairs that are not finite in a layer in which most are; a layer that is beyond a dtype is no pair's fault."""
    finite = np.stack([np.isfinite(layer).all(axis=1) for layer in differences])  # [layers, n]
    return set(np.flatnonzero(~finite[finite.mean(axis=1) > 0.5].all(axis=0)).tolist())


def _check_enough(groups: np.ndarray, calibration: str) -> None:
    prompts = len(np.unique(groups))
    if len(groups) == 0:
        raise ValueError("no pair is left to fit on; give pairs with a `chosen` and a `rejected` response")
    if prompts < 2 and calibration != "raw":
        raise ValueError(
            f"all {len(groups)} pairs have one prompt, so none can be held out to calibrate on; give pairs of at least "
            '2 prompts, or `calibration="raw"`'
        )


def candidates(recipe: Recipe, reader: Reader, prompts: int) -> tuple[list[int], list[str]]:
    """The layers and estimators to try: one of each where there is nothing to choose, or too little to choose by."""
    few = prompts < FEWEST_PROMPTS
    if few and "auto" in (recipe.layer, recipe.estimator):
        logger.warning(
            "%d prompts are too few to choose by, at least %d are needed: taking the middle layer and the mean "
            "difference where you did not say which",
            prompts,
            FEWEST_PROMPTS,
        )
    layers, estimators = [reader.layer], [recipe.estimator]
    if recipe.layer == "auto":
        layers = [(reader.n_layers + 1) // 2] if few else list(range(reader.n_layers + 1))
    if recipe.estimator == "auto":
        estimators = ["mean_difference"] if few else list(TRIED)
    return layers, estimators


def _calibrate(kind: str, chosen: Choice | None) -> Calibration:
    return RAW if chosen is None else fit_calibration(kind, chosen.raw, unbiased=chosen.comparable)


def _check_sources(sources: Sequence[str | None], column: str | None) -> None:
    if column is not None and len(named := set(sources)) < 2:
        raise ValueError(
            f"`{column}` names {', '.join(map(repr, named)) or 'nothing'} as the source of all pairs, and one can be "
            "left out only of several; give pairs of at least two sources, or leave out `source_column`"
        )


def _facts(pairs: Sequence[Pair], groups: np.ndarray, layers: Sequence[int], chosen: Choice | None, seed: int) -> Facts:
    """What the pairs and the held-out numbers say of a fit."""
    shorter_right = right(-log_lengths(pairs))
    shorter, length_accuracy, length_interval = resample.better_rule(shorter_right, groups)
    accuracy, interval, held_out, effect, effect_interval = None, None, None, None, None
    gain, gain_interval = None, None
    if chosen is not None:
        gain, gain_interval = resample.gain_over_rule(right(chosen.unbiased), shorter_right, groups)
        accuracy, interval = resample.share_interval(right(chosen.unbiased), groups)
        effect, effect_interval = _effect(chosen.comparable, groups)
        count = int(resample.folds_of(groups, FOLDS, seed).max()) + 1
        held_out = f"{count}-fold cross-fitting by prompt (first user turn)"
        if chosen.nested:
            held_out += "; layer and estimator chosen for each fold without it"
            held_out += ", by sources left out of the fit" if pairs[0].source is not None else ""
    packages = ("torch", "transformers", "tokenizers", "numpy")
    return Facts(
        pairs=len(pairs),
        prompts=len(np.unique(groups)),
        accuracy=accuracy,
        accuracy_interval=interval,
        length_accuracy=length_accuracy,
        length_accuracy_interval=length_interval,
        held_out=held_out,
        seed=seed,
        versions={name: version(name) for name in packages},
        search=_search(chosen, layers, groups, seed) if chosen is not None and chosen.nested else None,
        length_rule="shorter" if shorter else "longer",
        effect=effect,
        effect_interval=effect_interval,
        gain=gain,
        gain_interval=gain_interval,
    )


def _transfer(rights: np.ndarray, groups: np.ndarray, pairs: Sequence[Pair]) -> dict[str, Any]:
    """How often pairs `[n]` of a source are right by what was fitted without it: the mean of the sources' shares."""
    named = np.array([pair.source for pair in pairs])
    shares: dict[str, float] = {}
    errors = []
    for source in dict.fromkeys(named.tolist()):
        own = named == source
        if np.isfinite(rights[own]).all():  # else too little was left to fit on
            shares[source] = float(rights[own].mean())
            errors.append(resample.standard_errors(rights[own, None], resample.groups_of(groups[own].tolist()))[0])
    if not shares:
        return {}
    mean, error = float(np.mean(list(shares.values()))), float(np.linalg.norm(errors)) / len(errors)
    ends = resample.wilson(np.array([mean]), np.array([error]), np.bincount(groups)) if np.isfinite(error) else None
    return {
        "transfer_accuracy": mean,
        "transfer_interval": None if ends is None else resample.interval_of(ends[0]),
        "transfer_by_source": shares,
    }


def _effect(raw: np.ndarray, groups: np.ndarray) -> tuple[float | None, resample.Interval | None]:
    """Mean of held-out raw margins `[n]` in units of their standard deviation, with its interval."""
    spread = float(raw.std())
    if spread == 0:
        return None, None
    means, intervals = resample.mean_intervals(raw[:, None] / spread, groups)
    return float(means[0]), resample.interval_of(intervals[0])


def _search(chosen: Choice, layers: Sequence[int], groups: np.ndarray, seed: int) -> tuple[Mapping[str, Any], ...]:
    """Cross-validated accuracy of all that was tried, in the order of estimators and layers, as plain values."""
    folds = resample.folds_of(groups, FOLDS, seed)
    order = sorted(chosen.tried, key=lambda trial: (list(ESTIMATORS).index(trial.estimator), trial.place))
    scores = np.stack([right(trial.held_out(folds)) for trial in order], axis=1)  # [n, trials]
    means, intervals = resample.share_intervals(scores, groups)
    return tuple(
        {
            "layer": layers[trial.place],
            "estimator": trial.estimator,
            "accuracy": float(mean),
            "interval": [float(low), float(high)],
        }
        for trial, mean, (low, high) in zip(order, means, intervals, strict=True)
    )
