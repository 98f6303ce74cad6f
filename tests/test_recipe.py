"""A recipe is whole, plain and checked before anything is read; a preset is one, and a contradiction is refused."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, fields, replace
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from legend_hf import fit_direction
from legend_hf.directions.recipe import PRESETS, Recipe

OTHERS: dict[str, Any] = {
    "template": "{prompt}\n",
    "joiner": " ",
    "fit_joiner": " ",
    "eos": "append",
    "eos_of_tokenizer": True,
    "layer": 1,
    "pooling": "mean_all",
    "estimator": "whitened",
    "debias": "length",
    "calibration": "bins",
    "dtype": "bfloat16",
    "max_length": 99,
}
"""For each field a value that neither the defaults nor a preset have."""


def test_every_keyword_of_a_fit_that_is_a_choice_is_a_field_and_none_is_given_twice():
    names = {f.name for f in fields(Recipe)}
    assert OTHERS.keys() == names
    taken = names & signature(fit_direction).parameters.keys()
    assert names - taken == {"fit_joiner", "eos_of_tokenizer"}, "only recipes say these"
    assert all(signature(fit_direction).parameters[name].default is None for name in taken)


@pytest.mark.parametrize("preset", [*PRESETS, Recipe.reference(), Recipe(layer=2), None])
@pytest.mark.parametrize("name", OTHERS)
def test_what_is_said_counts_or_contradicts(preset: str | Recipe | None, name: str):
    fixed = PRESETS[preset]() if isinstance(preset, str) else preset
    assert Recipe.made_of(preset, {}) == (fixed or Recipe())
    if fixed is None:
        assert asdict(Recipe.made_of(None, {name: OTHERS[name]})) == asdict(Recipe()) | {name: OTHERS[name]}
        return
    held = getattr(fixed, name)
    assert Recipe.made_of(preset, {name: held}) == fixed, "what it sets anyway"
    other = OTHERS[name] if held != OTHERS[name] else None
    if other is not None:
        with pytest.raises(ValueError, match=re.escape(f"`{name}={other!r}` contradicts ")):
            Recipe.made_of(preset, {name: other})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"estimator": "median"}, "`estimator` is 'median'; allowed are 'auto', 'mean_difference'"),
        ({"debias": "tone"}, "`debias` is 'tone'; allowed are 'length', or None"),
        ({"calibration": "sigmoid"}, "`calibration` is 'sigmoid'; allowed are 'raw'"),
        ({"layer": "last"}, "`layer` is 'last'; allowed are 'auto' or an index"),
    ],
)
def test_what_is_no_choice_is_refused_when_it_is_made(given: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        Recipe(**given)
    with pytest.raises(ValueError, match=said):
        replace(Recipe.reference(), **given)


def test_a_recipe_is_plain_data():
    odd = Recipe(layer=np.int64(3), max_length=np.int32(64))  # type: ignore[arg-type]
    assert odd == Recipe(layer=3, max_length=64)
    assert Recipe(**json.loads(json.dumps(asdict(odd)))) == odd


def test_a_fit_by_a_recipe_is_the_fit_by_its_keywords(tiny_llama: Path):
    pairs = [
        {"prompt": f"May I take {t}?", "chosen": f"Ask whose {t} it is.", "rejected": f"Take {t}"}
        for t in ("a pen", "the ladder", "her book", "some salt")
    ]

    def fit(**options: Any) -> tuple[bytes, dict[str, Any]]:
        made = fit_direction(pairs, model=str(tiny_llama), **options)
        return made.vector.tobytes(), made.to_config()

    choices = {"layer": 1, "pooling": "last", "calibration": "raw"}
    assert fit(preset=Recipe(**choices)) == fit(**choices)
    assert fit(preset=Recipe.reference()) == fit(preset="reference")
    # The control: other choices give another direction.
    assert fit(preset=replace(Recipe.reference(), layer=1)) != fit(preset="reference")
