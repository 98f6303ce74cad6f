"""Whatever type an argument has, what is made of it is plain data: it pickles, saves, and equals the plain one."""

from __future__ import annotations

import inspect
import json
import pickle
import re
import typing
from collections.abc import Callable
from enum import Enum, StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import pair_rows
from datasets import Dataset

import legend_hf
from legend_hf import (
    Direction,
    LegendMarginFn,
    LegendScoreFn,
    directions,
    fit_direction,
    preferences,
    reading,
    reports,
    writing,
)
from legend_hf import margins as margins_stage
from legend_hf.preferences import PairSimilarityFn
from legend_hf.reading.formats import Columns
from legend_hf.reading.plain import check_choice, digest_of, key_of, plain
from legend_hf.reading.reader import Runtime, describe_model

PAIRS = pair_rows(("bread", "bikes", "paint", "tents"))
SCORED = [{"prompt": "Why?", "responses": ["Because.", "No idea."]}]


class Word(StrEnum):
    SKIP = "skip"
    CPU = "cpu"
    RAW = "raw"
    MEAN = "mean"
    LAST = "last"
    FLOAT32 = "float32"
    DIFFERENCE = "mean_difference"
    DIALOGUE = "dialogue"
    PROMPT = "prompt"
    CHOSEN = "chosen"
    ZERO = "zero"
    TREE = "tree"
    PROB = "margin_prob"


def device() -> Any:
    import torch

    return torch.device("cpu")


class Folder:
    """A path of no class of ours."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return self.path


@pytest.fixture(scope="module")
def artifact(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("direction")
    fit_direction(PAIRS, model=str(tiny_llama), layer=2, estimator="mean_difference").save_pretrained(folder)
    return folder


def fitted(tiny_llama: Path, artifact: Path, **given: Any) -> Any:
    options: dict[str, Any] = {"model": str(tiny_llama), "layer": 2, "estimator": "mean_difference"}
    return fit_direction(PAIRS, **{**options, **given})


def margins(tiny_llama: Path, artifact: Path, **given: Any) -> Any:
    return LegendMarginFn(**{"direction": str(artifact), "model": str(tiny_llama), **given})


def scores(tiny_llama: Path, artifact: Path, **given: Any) -> Any:
    return LegendScoreFn(**{"direction": str(artifact), "model": str(tiny_llama), **given})


def similarity(tiny_llama: Path, artifact: Path, **given: Any) -> Any:
    return PairSimilarityFn(**{"model": str(tiny_llama), **given})


def reader(tiny_llama: Path, artifact: Path, **given: Any) -> Any:
    return describe_model(**{"model": str(tiny_llama), **given})


ANYWHERE: dict[str, Any] = {
    "batch_tokens": np.int64(50),
    "device": device,
    "on_error": Word.SKIP,
    "trust_remote_code": np.bool_(False),
}
# Every argument that ends up in what pickles; those that are left out are of other kinds (rows, mappings, tokens).
TABLE: dict[Callable[..., Any], dict[str, Any]] = {
    fitted: {
        **ANYWHERE,
        "model": Path,
        "layer": np.int64(2),
        "pooling": Word.LAST,
        "estimator": Word.DIFFERENCE,
        "calibration": Word.RAW,
        "dtype": Word.FLOAT32,
        "max_length": np.int32(100),
        "seed": np.int64(3),
        "template": Word.DIALOGUE,
        "joiner": np.str_(" "),
        "pairs_source": Path("you") / "pairs",
        "prompt_column": Word.PROMPT,
    },
    margins: {
        **ANYWHERE,
        "direction": Path,
        "model": Folder,
        "scale": Word.RAW,
        "add": [Word.PROB],
        "negative": Word.ZERO,
        "route": Word.TREE,
        "overwrite": np.bool_(True),
        "prompt_column": Word.PROMPT,
        "chosen_column": np.str_("chosen"),
    },
    scores: {
        **ANYWHERE,
        "direction": Folder,
        "model": Path,
        "route": Word.TREE,
        "overwrite": np.bool_(True),
        "prompt_column": Word.PROMPT,
    },
    similarity: {
        **ANYWHERE,
        "model": Path,
        "layer": np.int64(1),
        "max_length": np.uint8(50),
        "dtype": Word.FLOAT32,
        "overwrite": np.bool_(False),
        "prompt_column": Word.PROMPT,
    },
    reader: {
        "model": Folder,
        "layer": np.int64(1),
        "pooling": Word.MEAN,
        "max_length": np.int16(9),
        "dtype": Word.FLOAT32,
        "device": device,
        "template": Word.DIALOGUE,
    },
}
CASES = [(make, name, value) for make, given in TABLE.items() for name, value in given.items()]


def kept(made: Any) -> Any:
    """All that is kept of what was made, as its pickle or its artifact has it."""
    if isinstance(made, Direction):
        copy = pickle.loads(pickle.dumps(LegendMarginFn(made)))
        assert copy.fingerprint() == LegendMarginFn(made).fingerprint()
        return json.dumps(made.to_config(), sort_keys=True), made.model_path
    if hasattr(made, "fingerprint"):
        assert pickle.loads(pickle.dumps(made)).fingerprint() == made.fingerprint()
        return made.fingerprint(), made.__reduce__()
    return json.dumps(made.to_dict(), sort_keys=True)


@pytest.mark.parametrize(("make", "name", "value"), CASES, ids=[f"{m.__name__}-{n}" for m, n, _ in CASES])
def test_what_is_made_of_any_type_is_what_is_made_of_the_plain_one(
    tiny_llama: Path, artifact: Path, make: Callable[..., Any], name: str, value: Any
):
    if value in (Path, Folder):
        simple = str(artifact if name == "direction" else tiny_llama)
        value = value(simple)
    elif value is device:
        simple, value = "cpu", value()
    else:
        simple = plain(value)
        assert type(value) is not type(simple) or isinstance(value, list)
    if name not in inspect.signature(fit_direction).parameters and make is fitted:
        pytest.fail(f"`fit_direction` has no {name!r}")
    assert kept(make(tiny_llama, artifact, **{name: value})) == kept(make(tiny_llama, artifact, **{name: simple}))


def test_numbers_of_numpy_in_a_map(tiny_llama: Path, artifact: Path):
    fn = margins(tiny_llama, artifact, batch_tokens=np.int64(40), device=device())
    mapped = Dataset.from_list(PAIRS).map(fn, batched=True, num_proc=2)
    assert len(mapped["margin"]) == len(PAIRS)
    mapped = Dataset.from_list(SCORED).map(scores(tiny_llama, artifact, device=device()), batched=True)
    assert len(mapped) == 1


def test_an_argument_that_may_be_a_model_or_a_folder_takes_a_path():
    """The kind: every public argument of these names says so in its type, and the ones above were tried."""
    stages = [directions, margins_stage, preferences, reading, reports, writing]
    public = [getattr(stage, name) for stage in [legend_hf, *stages] for name in stage.__all__ if name != "__version__"]
    public += [Direction.from_pretrained, Direction.save_pretrained, describe_model]
    arguments = [
        (f"{callable_.__qualname__}({name})", str(parameter.annotation))
        for callable_ in public
        if callable(callable_) and not (inspect.isclass(callable_) and issubclass(callable_, Exception))
        for name, parameter in inspect.signature(callable_).parameters.items()
        if name in ("model", "output", "store", "folder", "cache_dir", "tokenizer")
    ]
    assert len(arguments) > 15
    assert [a for a, kind in arguments if "PathLike" not in kind and a != "Reader(model)"] == []  # that is a Hub id


def test_plain_keeps_what_it_does_not_know():
    class Number(Enum):
        ONE = 1

    rows = np.arange(3)
    assert plain(rows) is rows
    assert plain(None) is None
    assert plain({Word.SKIP: [np.float32(0.5), (Path("a"), Number.ONE)]}) == {"skip": [0.5, ("a", 1)]}
    assert type(plain(np.bool_(True))) is bool
    assert typing.cast(Any, Columns(prompt=np.str_("question"))).prompt.__class__ is str
    assert Runtime(batch_tokens=np.int64(3)).batch_tokens.__class__ is int  # type: ignore[arg-type]


def test_a_choice_that_nobody_has_is_refused_in_one_way():
    check_choice("on_error", Word.SKIP, ("raise", "skip"))
    check_choice("debias", None, ("length", None))
    for given, allowed, said in (
        ("ignore", ("raise", "skip"), "`x` is 'ignore'; allowed are 'raise', 'skip'"),
        (None, ("raise", "skip"), "`x` is None; allowed are 'raise', 'skip'"),
        (["skip"], ("skip", None), "`x` is ['skip']; allowed are 'skip', or None"),
        (np.array(["skip"]), ("skip",), "`x` is array(['skip'], dtype='<U4'); allowed are 'skip'"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
            check_choice("x", given, allowed)


WRITTEN_BY_HAND = re.compile(r"is \{[^{}]*![rs]\}; allowed are (\{|'\w+', '\w+')")


def test_no_file_refuses_a_choice_by_hand():
    files = sorted((Path(__file__).parents[1] / "legend_hf").rglob("*.py"))
    assert [f.name for f in files if WRITTEN_BY_HAND.search(f.read_text(encoding="utf-8"))] == ["plain.py"]
    assert WRITTEN_BY_HAND.search("""f"`keep` is {keep!r}; allowed are 'all', 'some'\"""")  # the control


def test_equal_data_has_one_key_and_one_digest_in_whatever_order_its_keys_come():
    one = {"role": "user", "content": "Grüß dich\ud800", "parts": [1, 2.5, None]}
    other = dict(reversed(one.items()))
    assert list(one) != list(other)
    for same in (key_of, digest_of):
        assert same(one) == same(other)
        different = [one | {"parts": [2.5, 1, None]}, one | {"parts": [1, 2.5]}, [one], "user", None]
        assert len({same(value) for value in (one, *different)}) == len(different) + 1
    assert json.loads(key_of(one)) == one, "a key says what it is the key of"
