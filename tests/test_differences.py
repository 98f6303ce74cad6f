"""Differences of all layers in one pass: the same numbers in memory, in a file, and text by text."""

from __future__ import annotations

import gc
import os
import tempfile
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest

from legend_hf.directions.differences import read_differences
from legend_hf.reading.formats import conversation
from legend_hf.reading.reader import Runtime, describe_model, open_reader

TEXTS = [("Tell me about tea.", "Gladly: it is a drink.", "No."), ("Rain?", "It falls", "Why would I know that, " * 9)]


@pytest.fixture(scope="module")
def opened(tiny_llama):
    return open_reader(describe_model(tiny_llama, device="cpu"), Runtime(path=str(tiny_llama), device="cpu"))


@pytest.fixture(scope="module")
def pairs(opened):
    sides = [conversation(prompt, response) for prompt, *both in TEXTS for response in both]
    encoded = opened.encode(sides)
    return list(zip(encoded[0::2], encoded[1::2], strict=True))


def test_each_difference_is_that_of_its_pair_and_layer_whatever_comes_together(opened, pairs):
    layers = [0, 2, 3]
    one_by_one = []
    for chosen, rejected in pairs:
        ((_, c),), ((_, r),) = opened.read([chosen], layers), opened.read([rejected], layers)
        one_by_one.append((c[0] - r[0]).numpy())
    expected = np.stack(one_by_one, axis=1)  # [layers, n, d_model]
    for budget in (1, 100, 100_000):
        got = read_differences(opened, pairs, layers, batch_tokens=budget)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, atol=1e-5)
    swapped = read_differences(opened, [(r, c) for c, r in pairs], layers, batch_tokens=100_000)
    np.testing.assert_allclose(swapped, -expected, atol=1e-5)
    assert not np.allclose(expected[0], expected[1], atol=1e-2), "the layers must differ, or this shows nothing"


def test_a_file_holds_the_same_bits_and_is_gone_afterwards(opened, pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    inside = read_differences(opened, pairs, range(4))
    outside = read_differences(opened, pairs, range(4), in_memory=100)
    assert type(inside) is type(outside) is np.ndarray
    assert isinstance(outside.base, np.memmap)
    assert inside.base is None
    assert outside.shape == (4, 2, 32)
    np.testing.assert_array_equal(inside, outside)
    assert not os.listdir(tmp_path), "the file has no name, so a killed run leaves none behind"
    del outside
    gc.collect()
    assert not os.listdir(tmp_path)


def test_no_more_than_a_vector_a_pair_and_layer_is_kept():
    import torch

    width, pairs, layers = 5000, 100, 4

    class Counter:
        """Yields one text's number as its vector, so that a difference is -1 everywhere."""

        reader = SimpleNamespace(d_model=width)

        def read(self, texts, layers, batch_tokens=None):
            for i in range(len(texts)):
                yield [i], torch.full((1, len(layers), width), float(i))

    tracemalloc.start()
    differences = read_differences(Counter(), [(None, None)] * pairs, range(layers))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (differences == -1).all()
    # Both sides would be twice the size, and their difference as much again.
    assert differences.nbytes == 4 * layers * pairs * width
    assert peak < 1.2 * differences.nbytes
