"""Contrastive pairs become a `Direction`.

In: pairs in any accepted shape (chosen is the harmless side) and a model. Out: a direction with its calibration and
with what held-out pairs say of it. This file knows no datasets beyond their rows and writes no columns.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from legend_hf.directions import resample
from legend_hf.directions.calibrate import RAW, Calibration, fit_unit
from legend_hf.directions.direction import Direction, Facts
from legend_hf.reading.formats import Columns, Conversation, Pair, RowError, pairs_from_batch
from legend_hf.reading.reader import OpenReader, Runtime, describe_model, open_reader
from legend_hf.reading.templates import Tokens

logger = logging.getLogger(__name__)

FOLDS = 5
ROWS_AT_ONCE = 1000
# What the public code does, field by field (colfeng/Legend@02ba9af; SMV.py fits, annotation.py scores).
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "reference": {
        "template": "alpaca",
        "joiner": "",
        "fit_joiner": "\n",
        "eos": "none",
        "layer": -1,
        "pooling": "last",
        "estimator": "mean_difference",
        "dtype": "float32",
        "max_length": 1 << 30,  # nothing is cut but at the model's window
        "calibration": "raw",
    }
}
DEFAULTS: Mapping[str, Any] = {
    "template": "auto",
    "joiner": None,
    "fit_joiner": None,
    "eos": "none",
    "layer": "auto",
    "pooling": "mean",
    "estimator": "mean_difference",
    "dtype": "auto",
    "max_length": 2048,
    "calibration": "unit",
}


def fit_direction(
    pairs: Iterable[Mapping[str, Any]],
    *,
    model: str,
    revision: str | None = None,
    preset: str | None = None,
    template: str | None = None,
    joiner: str | None = None,
    eos: str | None = None,
    layer: int | str | None = None,
    pooling: str | None = None,
    estimator: str | None = None,
    calibration: str | None = None,
    dtype: str | None = None,
    max_length: int | None = None,
    seed: int = 0,
    device: str | None = None,
    batch_tokens: int | None = None,
    columns: Columns | None = None,
    on_error: str = "raise",
    pairs_source: str | None = None,
    trust_remote_code: bool = False,
) -> Direction:
    """Fits a direction: the mean difference of the two sides' vectors over all pairs (paper, section on the SMV).

    Accuracy and calibration come from five-fold cross-fitting by prompt: each pair is scored by a direction fitted
    without its prompt. The direction that is returned is fitted on all pairs.

    Args:
        pairs: A `Dataset` or rows, in any shape that `LegendMarginFn` takes; `chosen` is the harmless side.
        model: Hub id or folder of the model that reads.
        revision: Of a Hub model; resolved to a commit.
        preset: `"reference"` sets everything to what the paper's public code does.
        template: `"auto"` (default), `"chat"`, `"dialogue"`, `"alpaca"` or a string with `{prompt}`.
        joiner: What stands between a plain template and the response; None takes the template's own.
        eos: `"none"` (default), `"append"` or `"template"`.
        layer: `"auto"` (default), or an index into `hidden_states`, -1 being the last.
        pooling: `"mean"` over the response (default), `"last"` or `"mean_all"`.
        estimator: `"mean_difference"`.
        calibration: `"unit"` (default: margins in [-1, 1]) or `"raw"`.
        dtype: `"auto"` (default), `"float32"`, `"bfloat16"` or `"float16"`.
        max_length: Longest text in tokens, 2048 by default, bounded by the model's window.
        seed: Of folds and bootstrap. The same seed on the same machine gives the same bits.
        device: Where to run; None takes a GPU when there is one.
        batch_tokens: Most tokens in one forward pass.
        columns: Names of the columns, where they are not the usual ones.
        on_error: `"raise"` at the first pair that cannot be read, before any forward pass, or `"skip"` them.
        pairs_source: What the pairs are, for the card: a dataset id, say.
        trust_remote_code: Run code that comes with the model.

    Returns:
        The direction, not yet saved.

    Raises:
        ValueError: An argument contradicts the preset, a pair cannot be read, the sides do not differ, or there are
            too few prompts to hold any out.
        RowError: A row is none of the accepted shapes (a ValueError).
    """
    choice = _choose(
        preset,
        template=template,
        joiner=joiner,
        eos=eos,
        layer=layer,
        pooling=pooling,
        estimator=estimator,
        calibration=calibration,
        dtype=dtype,
        max_length=max_length,
    )
    _check(choice, on_error)
    runtime = Runtime(path=None, device=device, batch_tokens=batch_tokens, trust_remote_code=trust_remote_code)
    read_pairs, skipped = _rows(pairs, columns or Columns(), on_error)
    reader = describe_model(
        model,
        revision=revision,
        template=choice["template"],
        joiner=choice["joiner"],
        fit_joiner=choice["fit_joiner"],
        eos=choice["eos"],
        layer=-1 if choice["layer"] == "auto" else choice["layer"],
        pooling=choice["pooling"],
        max_length=choice["max_length"],
        dtype=choice["dtype"],
        device=device,
        trust_remote_code=trust_remote_code,
    )
    path = model if reader.model is None else None
    opened = open_reader(reader, Runtime(path, device, batch_tokens, trust_remote_code))
    kept, texts, unreadable = _encode(opened, read_pairs, on_error)
    skipped += unreadable
    groups = resample.groups_of([_opening(pair.chosen) for pair in kept])
    _check_enough(groups, choice["calibration"])
    differences = _differences(opened, texts, runtime.batch_tokens)  # [n, d_model]
    mean = differences.mean(axis=0, dtype=np.float64)  # [d_model]
    held_out = _cross_fit(differences, groups, seed)  # [n] raw margins
    return Direction(
        vector=_unit(mean),
        reader=reader,
        calibration=_calibrate(choice["calibration"], held_out),
        facts=_facts(choice["estimator"], kept, groups, held_out, skipped, seed, pairs_source),
        model_path=path,
    )


def _choose(preset: str | None, **given: Any) -> dict[str, Any]:
    """Fills in what was not given, from the preset or the defaults; a contradiction is an error."""
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"`preset` is {preset!r}; allowed are {', '.join(map(repr, PRESETS))}, or None")
    fixed = PRESETS[preset] if preset is not None else {}
    for name, value in given.items():
        if value is not None and name in fixed and value != fixed[name]:
            raise ValueError(
                f"`{name}={value!r}` contradicts `preset={preset!r}`, which sets it to {fixed[name]!r}; leave out "
                "one of the two"
            )
    chosen = {name: value for name, value in given.items() if value is not None}
    return {**DEFAULTS, **chosen, **fixed}


def _check(choice: Mapping[str, Any], on_error: str) -> None:
    if choice["estimator"] != "mean_difference":
        raise ValueError(f"`estimator` is {choice['estimator']!r}; allowed is 'mean_difference'")
    if choice["calibration"] not in ("unit", "raw"):
        raise ValueError(f"`calibration` is {choice['calibration']!r}; allowed are 'unit', 'raw'")
    if on_error not in ("raise", "skip"):
        raise ValueError(f"`on_error` is {on_error!r}; allowed are 'raise', 'skip'")
    if isinstance(choice["layer"], str) and choice["layer"] != "auto":
        raise ValueError(f"`layer` is {choice['layer']!r}; allowed are 'auto' or an index into `hidden_states`")


def _rows(rows: Iterable[Mapping[str, Any]], columns: Columns, on_error: str) -> tuple[list[Pair], int]:
    """Reads every row before anything costly happens."""
    pairs: list[Pair] = []
    skipped = 0
    for first, batch in _batches(rows):
        for entry in pairs_from_batch(batch, columns, first_row=first):
            if isinstance(entry, Pair):
                pairs.append(entry)
            elif on_error == "raise":
                raise entry
            else:
                skipped += 1
    return pairs, skipped


def _batches(rows: Iterable[Mapping[str, Any]]) -> Iterable[tuple[int, dict[str, list[Any]]]]:
    names: list[str] = []
    chunk: list[Mapping[str, Any]] = []
    first = 0
    for row in rows:
        names += [name for name in row if name not in names]
        chunk.append(row)
        if len(chunk) == ROWS_AT_ONCE:
            yield first, {name: [r.get(name) for r in chunk] for name in names}
            first, chunk = first + len(chunk), []
    if chunk:
        yield first, {name: [r.get(name) for r in chunk] for name in names}


def _encode(
    opened: OpenReader, pairs: Sequence[Pair], on_error: str
) -> tuple[list[Pair], list[tuple[Tokens, Tokens]], int]:
    """Tokenises both sides of every pair; the pairs that do not fit are refused or left out."""
    chosen = opened.encode([pair.chosen for pair in pairs], fitting=True)
    rejected = opened.encode([pair.rejected for pair in pairs], fitting=True)
    kept, texts = [], []
    for row, (pair, c, r) in enumerate(zip(pairs, chosen, rejected, strict=True)):
        if isinstance(c, Tokens) and isinstance(r, Tokens):
            kept.append(pair)
            texts.append((c, r))
        elif on_error == "raise":
            column, error = ("chosen", c) if not isinstance(c, Tokens) else ("rejected", r)
            raise RowError(row, column, str(error))
    return kept, texts, len(pairs) - len(kept)


def _opening(conversation: Conversation) -> str:
    """What makes two pairs "of one prompt": the first user turn, so that turns of one dialogue stay together."""
    for message in (*conversation.prompt, *conversation.response):
        if message["role"] == "user":
            return str(message["content"])
    return str(conversation.response[0].get("content"))


def _check_enough(groups: np.ndarray, calibration: str) -> None:
    prompts = len(np.unique(groups))
    if len(groups) == 0:
        raise ValueError("no pair is left to fit on; give pairs with a `chosen` and a `rejected` response")
    if prompts < 2 and calibration != "raw":
        raise ValueError(
            f"all {len(groups)} pairs have one prompt, so none can be held out to calibrate on; give pairs of at least "
            '2 prompts, or `calibration="raw"`'
        )


def _differences(opened: OpenReader, texts: Sequence[tuple[Tokens, Tokens]], batch_tokens: int | None) -> np.ndarray:
    """Vector of chosen minus vector of rejected for each pair: `[n, d_model]`, float32."""
    from datasets.utils import tqdm

    flat = [side for pair in texts for side in pair]
    vectors = np.empty((len(flat), opened.reader.d_model), dtype=np.float32)
    with tqdm(total=len(flat), desc="Reading pairs", unit="text") as bar:
        for index, hidden in opened.read(flat, [opened.reader.layer], batch_tokens=batch_tokens):
            vectors[index] = hidden[:, 0].cpu().numpy()
            bar.update(len(index))
    differences: np.ndarray = vectors[0::2] - vectors[1::2]
    return differences


def _cross_fit(differences: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray | None:
    """Raw margin `[n]` of each pair under the mean difference of the pairs outside its fold; None with one prompt."""
    if len(np.unique(groups)) < 2:
        return None
    folds = resample.folds_of(groups, FOLDS, seed)
    raw = np.empty(len(differences))
    total = differences.sum(axis=0, dtype=np.float64)
    for fold in np.unique(folds):
        inside = folds == fold
        rest = total - differences[inside].sum(axis=0, dtype=np.float64)
        raw[inside] = differences[inside].astype(np.float64) @ _unit(rest).astype(np.float64)
    return raw


def _unit(vector: np.ndarray) -> np.ndarray:
    norm = float(np.linalg.norm(vector))
    if not np.isfinite(norm) or norm == 0.0:
        raise ValueError(
            f"the mean difference of the pairs has length {norm}: their two sides read alike, or not as finite "
            'numbers; give pairs whose sides differ, another layer, or `dtype="float32"`'
        )
    return (vector / norm).astype(np.float32)


def _calibrate(kind: str, held_out: np.ndarray | None) -> Calibration:
    if kind == "raw" or held_out is None:
        return RAW
    return fit_unit(held_out)


def _facts(
    estimator: str,
    pairs: Sequence[Pair],
    groups: np.ndarray,
    held_out: np.ndarray | None,
    skipped: int,
    seed: int,
    pairs_source: str | None,
) -> Facts:
    shorter = np.sign([_length(pair.rejected) - _length(pair.chosen) for pair in pairs])
    length_accuracy, length_interval = resample.mean_interval((shorter + 1) / 2, groups, seed)
    accuracy, interval = None, None
    if held_out is not None:
        accuracy, interval = resample.mean_interval((np.sign(held_out) + 1) / 2, groups, seed)
    packages = ("torch", "transformers", "tokenizers", "numpy")
    return Facts(
        estimator=estimator,
        pairs=len(pairs),
        prompts=len(np.unique(groups)),
        skipped=skipped,
        accuracy=accuracy,
        accuracy_interval=interval,
        length_accuracy=length_accuracy,
        length_accuracy_interval=length_interval,
        held_out=None if held_out is None else f"{FOLDS}-fold cross-fitting by prompt (first user turn)",
        seed=seed,
        pairs_source=pairs_source,
        versions={name: version(name) for name in packages},
    )


def _length(conversation: Conversation) -> int:
    return sum(len(m.get("content") or "") for m in conversation.response)
