"""What a fit would read, and what that would cost: a dry run.

In: pairs and a model, as `fit_direction` takes them. Out: an Estimate. Nothing is fitted and nothing written. This file
knows no estimators and no folds.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from legend_hf.directions.differences import AT_ONCE
from legend_hf.directions.fit import candidates, check_pairs, open_for
from legend_hf.directions.recipe import Recipe
from legend_hf.reading.estimate import Estimate, Looked, estimate_reading, kind_of
from legend_hf.reading.formats import Columns, RowError, batches_of, opening, pairs_from_batch
from legend_hf.reading.loading import Loading
from legend_hf.reading.reader import Runtime
from legend_hf.reading.rows import encode_rows, of_pairs
from legend_hf.reading.templates import Tokens


def estimate_fit(
    pairs: Iterable[Mapping[str, Any]],
    *,
    model: str | os.PathLike[str],
    revision: str | None = None,
    preset: str | Recipe | None = None,
    loading: Loading | None = None,
    runtime: Runtime | None = None,
    prompt_column: str = "prompt",
    chosen_column: str = "chosen",
    rejected_column: str = "rejected",
    sample_seconds: float = 20.0,
) -> Estimate:
    """Says what `fit_direction` would read, skip and cost, and does none of it.

    Every pair is looked at and tokenised, and a few forward passes, drawn from all, are timed. What a stopped fit has
    kept is not taken into account, and choosing between layers comes on top of reading.

    Args:
        pairs: As for `fit_direction`. Those that cannot be read are counted, whatever its `on_error`.
        model: Hub id or folder of the model that reads.
        revision: Branch, tag or commit of a Hub model.
        preset: As for `fit_direction`; a `Recipe` holds its other choices.
        loading: A GGUF file of `model`, or a quantisation; None takes the model as it is.
        runtime: Where and how to run; None as a `Runtime()` says.
        prompt_column: Name of the prompts' column.
        chosen_column: Name of the harmless responses' column.
        rejected_column: Name of the harmful responses' column.
        sample_seconds: How long to read for the sample; one forward pass is always timed.

    Raises:
        ValueError: As `fit_direction`, but for pairs that cannot be read.
    """
    check_pairs(pairs)
    recipe = Recipe.made_of(preset, {})
    columns = Columns(prompt=prompt_column, chosen=chosen_column, rejected=rejected_column)
    opened, _ = open_for(recipe, model, revision, None, runtime or Runtime(), loading)
    kinds: list[str] = []
    refused: list[tuple[str, RowError]] = []
    prompts, texts = set(), list[Tokens]()
    for first, batch in batches_of(pairs):
        rows = of_pairs(pairs_from_batch(batch, columns, first_row=first))
        encoded = encode_rows(partial(opened.encode, fitting=True), rows, first_row=first)
        for place, (row, sides) in enumerate(zip(rows, encoded, strict=True)):
            if isinstance(sides, RowError):
                refused.append(("", sides))
            elif not isinstance(row, RowError):
                kinds.append(kind_of(row, {name: cell[place] for name, cell in batch.items()}, prompt_column))
                prompts.add(opening(row[0][1]))
                texts += sides
    layers, _ = candidates(recipe, opened.reader, len(prompts))

    def looked() -> Iterator[Looked]:
        yield Looked(kinds, refused, len(texts), [])
        for first in range(0, len(texts), 2 * AT_ONCE):
            yield Looked([], [], 0, [(opened, layers, texts[first : first + 2 * AT_ONCE])])

    kept_bytes = 4 * len(layers) * len(kinds) * opened.reader.d_model
    return estimate_reading(looked(), [opened], sample_seconds=sample_seconds, kept_bytes=kept_bytes)
