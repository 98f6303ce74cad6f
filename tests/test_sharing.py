"""Who reads which rows, and how many read: every row once, all end together, no more processes than help."""

from __future__ import annotations

import heapq

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from legend_hf.margins.sharing import LEAST_ROWS, parts_of, processes_for


def last_end(costs, workers: int) -> float:
    """When the last of some workers is done, each taking the next part when it is free."""
    free = [0.0] * workers
    for cost in costs:
        heapq.heappush(free, heapq.heappop(free) + cost)
    return max(free)


@given(st.lists(st.integers(0, 5000), max_size=300), st.integers(1, 9), st.integers(1, 200))
def test_every_row_is_handed_out_once_whatever_its_length(tokens, workers, most_rows):
    parts = parts_of(tokens, workers, most_rows=most_rows)
    assert sorted(row for first, end in parts for row in range(first, end)) == list(range(len(tokens)))
    assert all(0 < end - first <= most_rows for first, end in parts)
    sizes = [sum(tokens[first:end]) + end - first for first, end in parts]
    assert sizes == sorted(sizes, reverse=True)


@given(st.integers(0, 10_000), st.integers(2, 8))
def test_workers_end_together_where_rows_differ_in_length(seed, workers):
    draw = np.random.default_rng(seed)
    tokens = np.sort((draw.pareto(1.5, 3000) * 100 + 20).clip(max=4000).astype(int))  # sorted: the worst order
    ideal = tokens.sum() / workers
    parts = parts_of(tokens, workers, most_rows=200)
    largest = tokens.max() * LEAST_ROWS
    assert last_end([tokens[a:b].sum() for a, b in parts], workers) <= 1.05 * ideal + largest
    # The control: the same number of rows for each, as `map(num_proc=...)` gives, ends much later.
    assert max(part.sum() for part in np.array_split(tokens, workers)) > 1.3 * ideal


def test_more_processes_only_while_they_help():
    tried = []

    def timed(times):
        tried.clear()

        def seconds(processes: int, threads: int) -> float:
            tried.append((processes, threads))
            return times[processes]

        return seconds

    assert processes_for(8, timed({1: 10.0, 2: 5.0, 4: 4.0, 8: 4.1})) == 4
    assert tried == [(1, 8), (2, 4), (4, 2), (8, 1)]
    assert processes_for(8, timed({1: 1.0, 2: 1.5})) == 1
    assert tried == [(1, 8), (2, 4)]
    assert processes_for(8, timed({1: 10.0, 2: 5.0}), most=3) == 2
    assert processes_for(1, timed({1: 1.0})) == 1
    assert processes_for(6, timed({1: 9.0, 2: 5.0, 4: 3.0})) == 4
    # The control: a gain that is within the noise is no gain.
    assert processes_for(2, timed({1: 1.0, 2: 0.99})) == 1
    assert processes_for(2, timed({1: 1.0, 2: 0.9})) == 2
