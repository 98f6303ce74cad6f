"""The choices of a fit, as plain data: what `fit_direction` decides by, with every default in sight.

In: what the caller said, and the name of a preset. Out: a Recipe, whole and checked before anything is read. This file
knows no pairs and no model, and does nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from legend_hf.directions.calibrate import KINDS
from legend_hf.directions.estimators import ESTIMATORS
from legend_hf.reading.plain import check_choice, make_plain
from legend_hf.reading.templates import REFERENCE

LONGEST = 1 << 30
"""Tokens of a text that is cut at the model's window and nowhere else."""


@dataclass(frozen=True)
class Recipe:
    """How a direction is fitted: how texts are read, how the vector is estimated, and what a margin is.

    `replace(Recipe.reference(), layer=16)` is the public code at another layer.

    Attributes:
        template: `"auto"`, `"chat"`, `"dialogue"`, `"alpaca"` or a string with `{prompt}`.
        joiner: What stands between a plain template and the response; None takes the template's own.
        fit_joiner: The same while fitting, where it differs; None fits as it scores.
        eos: `"none"`, `"append"` or `"template"`.
        eos_of_tokenizer: Append the end-of-text token where the tokenizer ends texts by itself, whatever `eos` says.
        layer: `"auto"` chooses by held-out accuracy; or an index into `hidden_states`, -1 being the last.
        pooling: `"mean"` over the response, `"last"` or `"mean_all"`.
        estimator: `"auto"` chooses by held-out accuracy; or the name of one in `directions.estimators`.
        debias: None, or `"length"`.
        calibration: What `margin` is: `"unit"`, `"raw"`, `"bins"`, `"logit"` or `"link"`.
        dtype: `"auto"`, `"float32"`, `"bfloat16"` or `"float16"`.
        max_length: Longest text in tokens, bounded by the model's window.

    Raises:
        ValueError: A choice is not one of those allowed.
    """

    template: str = "auto"
    joiner: str | None = None
    fit_joiner: str | None = None
    eos: str = "none"
    eos_of_tokenizer: bool = False
    layer: int | str = "auto"
    pooling: str = "mean"
    estimator: str = "auto"
    debias: str | None = None
    calibration: str = "unit"
    dtype: str = "auto"
    max_length: int = 2048

    def __post_init__(self) -> None:
        """Refuses what is no choice; what depends on the model, the Reader refuses."""
        make_plain(self)
        check_choice("estimator", self.estimator, ("auto", *ESTIMATORS))
        check_choice("debias", self.debias, ("length", None))
        check_choice("calibration", self.calibration, KINDS)
        if isinstance(self.layer, str) and self.layer != "auto":
            raise ValueError(f"`layer` is {self.layer!r}; allowed are 'auto' or an index into `hidden_states`")

    @classmethod
    def reference(cls) -> Recipe:
        """What the public code does, field by field (colfeng/Legend@02ba9af; SMV.py fits, annotation.py scores)."""
        return cls(
            template=REFERENCE,
            joiner="",
            fit_joiner="\n",
            eos="none",
            eos_of_tokenizer=True,  # it reads what the tokenizer gives, its last token too
            layer=-1,
            pooling="last",
            estimator="mean_difference",
            debias=None,
            calibration="raw",
            dtype="float32",
            max_length=LONGEST,
        )

    @classmethod
    def made_of(cls, preset: str | Recipe | None, given: Mapping[str, Any]) -> Recipe:
        """Fills in what was not given, from the preset or the defaults.

        Args:
            preset: Name of one, or a Recipe that serves as one.
            given: Field to value; None where nothing was said.

        Raises:
            ValueError: There is no such preset, or what is given contradicts it.
        """
        said = {name: value for name, value in given.items() if value is not None}
        if preset is None:
            return cls(**said)
        if not isinstance(preset, Recipe):
            check_choice("preset", preset, (*PRESETS, None))
        fixed = PRESETS[preset]() if isinstance(preset, str) else preset
        for name, value in said.items():
            if value != getattr(fixed, name):
                shown = f"`preset={preset!r}`" if isinstance(preset, str) else "the recipe given as `preset`"
                raise ValueError(
                    f"`{name}={value!r}` contradicts {shown}, which sets it to {getattr(fixed, name)!r}; leave out one "
                    "of the two"
                )
        return fixed

    @property
    def for_reader(self) -> dict[str, Any]:
        """What `describe_model` is told of how a text is read; a layer that is yet to be chosen reads as the last."""
        reads = ("template", "joiner", "eos", "layer", "pooling", "dtype", "max_length")
        return {name: getattr(self, name) for name in reads} | ({"layer": -1} if self.layer == "auto" else {})


PRESETS: Mapping[str, Callable[[], Recipe]] = {"reference": Recipe.reference}
