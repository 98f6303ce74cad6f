"""What is known before is not done again, and rows are checked before a model is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from builders import pair_rows
from datasets import Dataset, load_from_disk

from legend_hf import Direction, LegendMarginFn, RowError, annotate, fit_direction
from legend_hf.reading import reader as readers
from legend_hf.reading import templates
from legend_hf.reading.reader import close_readers

BAD = {"prompt": "Tell me about rain.", "chosen": "Gladly.", "rejected": " "}


@pytest.fixture(scope="module")
def direction(tiny_llama: Path) -> Direction:
    return fit_direction(pair_rows(), model=str(tiny_llama))


@pytest.fixture(scope="module")
def stored(direction, tmp_path_factory) -> str:
    """Rows on disk, once annotated by a call, once by `map`, and, other columns, by two processes."""
    folder = str(tmp_path_factory.mktemp("rows"))
    Dataset.from_list(pair_rows()).save_to_disk(folder)
    annotate(load_from_disk(folder), LegendMarginFn(direction))
    load_from_disk(folder).map(LegendMarginFn(direction), batched=True)
    annotate(load_from_disk(folder), LegendMarginFn(direction, negative="zero"), num_proc=2)
    return folder


PROGRAM = """
import sys
from datasets import load_from_disk
from legend_hf import LegendMarginFn, annotate
from legend_hf.margins import transform
from legend_hf.reading import reader

def refused(*given, **named):
    raise AssertionError("it was done again")

reader._get_to_know = reader._load_body = transform.encode_rows = refused
fn = LegendMarginFn(sys.argv[2], model=sys.argv[3])
print(annotate(load_from_disk(sys.argv[1]), fn)["margin"][:])
try:
    annotate(load_from_disk(sys.argv[1]).select([1, 0]), fn)
except AssertionError as error:
    print("the control:", error)
"""


def test_what_is_cached_loads_checks_and_tokenises_nothing(direction, stored, tmp_path, monkeypatch):
    fn = LegendMarginFn(direction)
    expected = annotate(load_from_disk(stored), fn)["margin"][:]
    direction.save_pretrained(tmp_path / "d")
    close_readers()

    def refused(*given, **named):
        raise AssertionError("it was done again")

    for where, name in ((readers, "_get_to_know"), (readers, "_load_body"), (templates, "tokenize")):
        monkeypatch.setattr(where, name, refused)
    monkeypatch.setattr("legend_hf.margins.transform.encode_rows", refused)
    assert annotate(load_from_disk(stored), fn)["margin"][:] == expected
    assert load_from_disk(stored).map(fn, batched=True)["margin"][:] == expected
    two = annotate(load_from_disk(stored), LegendMarginFn(direction, negative="zero"))
    assert two["margin"][:] == [max(margin, 0.0) for margin in expected], "whoever read it"
    for other in (load_from_disk(stored).select([1, 0]), Dataset.from_list(pair_rows())):  # the controls
        with pytest.raises(AssertionError, match="it was done again"):
            annotate(other, fn)
    said = subprocess.run(
        [sys.executable, "-c", PROGRAM, stored, str(tmp_path / "d"), str(direction.model_path)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert said.splitlines() == [str(expected), "the control: it was done again"]


@pytest.mark.parametrize("skip", [False, True])
def test_an_empty_split_is_not_taken_for_a_cached_one(direction, stored, skip):
    fn = LegendMarginFn(direction, on_error="skip" if skip else "raise")
    assert {*fn.columns} <= {*annotate(load_from_disk(stored).select([]), fn).column_names}


def test_rows_are_checked_without_a_model_and_without_a_gpu(direction, monkeypatch):
    def refused(*given, **named):
        raise AssertionError("the GPU is used")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "_lazy_init", refused)
    rows = pair_rows()
    close_readers()
    with pytest.raises(RowError, match="row 6, column `rejected`"):
        annotate(Dataset.from_list([*rows, BAD]), LegendMarginFn(direction))
    assert readers._KNOWN
    assert not readers._LOADED
    with pytest.raises(AssertionError, match="the GPU is used"):  # the control: sound rows are read on it
        annotate(Dataset.from_list(rows), LegendMarginFn(direction))


def test_where_workers_read_this_process_loads_no_model(direction):
    fn, rows = LegendMarginFn(direction), Dataset.from_list(pair_rows())
    close_readers()
    done = annotate(rows, fn, num_proc=2)
    assert not readers._LOADED
    alone = annotate(rows, fn)
    assert readers._LOADED, "the control"
    assert done["margin"][:] == pytest.approx(alone["margin"][:], abs=1e-5)


def test_a_folder_that_changes_between_check_and_reading_is_refused(direction, tiny_llama, tmp_path):
    """Nothing stands between the two that would notice: the weights are looked at again when they are loaded."""
    import shutil

    from safetensors.torch import load_file, save_file

    folder = tmp_path / "m"
    shutil.copytree(tiny_llama, folder)
    opened = readers.open_reader(direction.reader, readers.Runtime(path=str(folder)), load=False)
    weights = load_file(folder / "model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="is another one"):
        _ = opened.model
