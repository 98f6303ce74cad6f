"""How the figures of the real chat model are made: states kept on disk, thresholds and F1 of single responses."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from legend_hf.reading.formats import conversation
from legend_hf.reading.reader import OpenReader, Runtime, describe_model, open_reader


@pytest.fixture(scope="module", autouse=True)
def _scripts():
    sys.path.insert(0, str(ROOT / "scripts"))
    yield
    sys.path.remove(str(ROOT / "scripts"))


def opened_with(pooling, folder):
    reader = describe_model(str(folder), dtype="float32", pooling=pooling)
    return open_reader(reader, Runtime(path=str(folder)))


def test_states_are_read_once_in_both_poolings_and_a_larger_set_reads_what_is_new(tiny_llama, tmp_path, monkeypatch):
    from kept_states import AT_ONCE, LAST, MEAN, read_states

    opened = opened_with("mean", tiny_llama)
    texts = opened.encode([conversation(f"What is {i}?", f"It is {i} and no {i + 1}.") for i in range(AT_ONCE + 8)])
    read = []
    plain = OpenReader.read

    def counting(self, some, *rest, **options):
        read.append(len(some) // 2)
        return plain(self, some, *rest, **options)

    monkeypatch.setattr(OpenReader, "read", counting)
    first = read_states(opened, texts[:AT_ONCE], path=tiny_llama, folder=tmp_path)
    again = read_states(opened, texts[:AT_ONCE], path=tiny_llama, folder=tmp_path)
    larger = read_states(opened, texts, path=tiny_llama, folder=tmp_path)
    assert read == [AT_ONCE, 8]
    assert (first == again).all()
    assert (first == larger[:, :AT_ONCE]).all()
    read_states(opened, texts[1:9], path=tiny_llama, folder=tmp_path)  # the control: other texts are read
    assert read == [AT_ONCE, 8, 8]

    monkeypatch.undo()
    for place, pooling in ((MEAN, "mean"), (LAST, "last")):
        other = opened_with(pooling, tiny_llama)
        expected = np.empty_like(larger[:, :, place])
        for index, hidden in other.read(texts, range(other.reader.n_layers + 1)):
            expected[:, index] = hidden.numpy().swapaxes(0, 1)
        np.testing.assert_allclose(larger[:, :, place], expected, atol=1e-5)
    assert np.abs(larger[:, :, MEAN] - larger[:, :, LAST]).max() > 0.01


def macro_f1(safe, called):
    return np.mean([2 * (safe & called).sum() / (safe.sum() + called.sum()) for safe, called in ((safe, called), (~safe, ~called))])  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-40, 40), st.booleans()), min_size=4, max_size=30, unique_by=lambda pair: pair[0])
)
def test_no_threshold_is_better_than_the_best(rows):
    from evaluate_real import best_threshold, f1_interval

    scores, safe = np.array([float(s) for s, _ in rows]), np.array([label for _, label in rows])
    if safe.all() or not safe.any():
        return
    threshold, _ = best_threshold(scores, safe)
    cuts = [macro_f1(safe, scores > cut) for cut in np.sort(scores)[:-1] + 0.25]
    assert macro_f1(safe, scores > threshold) == pytest.approx(max(cuts))
    table = np.zeros((len(rows), 2, 2))
    table[np.arange(len(rows)), safe.astype(int), (scores > threshold).astype(int)] = 1
    value, low, high = f1_interval(table)
    assert value == pytest.approx(max(cuts))
    assert low <= high


def test_the_section_has_every_table_and_a_second_run_reads_nothing(demo, tmp_path, monkeypatch):
    from evaluate_real import real_section

    lines = (ROOT / "scripts" / "demo" / "contrast_pairs.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    files = {
        "hh_harmless": rows[:40],
        "pku_saferlhf": [{**row, "chosen_safe_rate": 1.0, "rejected_safe_rate": 0.0} for row in rows[40:80]],
        "refuse_vs_comply": rows[80:],
        "gptfuzz_labelled": [
            {"prompt": row["prompt"] + " Please.", "response": row[side], "harm": float(side == "rejected")}
            for row in rows[:24]
            for side in ("chosen", "rejected")
        ],
    }
    for name, content in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    text, numbers = real_section(demo, tmp_path, tmp_path / "kept", seeds=1)
    for told in ("mean difference", "How many pairs", "macro-F1", "Beside public figures", "zero-shot", "0.915"):
        assert told in text
    assert numbers["cross_fitted"]["pairs"] == {**{n: len(files[n]) for n in list(files)[:3]}, "gptfuzz_labelled": 24}
    # This annotator was trained on these rows: a table that mixed up sides or sets would not show it.
    assert all(
        cell[0] > 0.7 for cell in numbers["cross_fitted"]["accuracy"]["**what `fit` chooses by itself**"].values()
    )
    assert numbers["responses"]["everything called safe"][0] == pytest.approx(1 / 3)

    def never(*_, **__):
        raise AssertionError("read again")

    monkeypatch.setattr(OpenReader, "read", never)
    assert real_section(demo, tmp_path, tmp_path / "kept", seeds=1) == (text, numbers)
    with pytest.raises(AssertionError, match="read again"):  # the control: other pairs
        real_section(demo, tmp_path, tmp_path / "kept", seeds=1, most=["hh_harmless=39"])
