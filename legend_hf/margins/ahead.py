"""One batch is made ready while the one before it is read.

In: batches, and what makes one ready. Out: each with what was made of it, while a thread makes the next one. Tokenizers
and models let other threads work meanwhile. No more than one batch waits, and no thread is left behind: a process that
may fork has none before or after. This file does not know what a batch is.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
P = TypeVar("P")


def one_ahead(batches: Iterable[T], prepare: Callable[[T], P]) -> Generator[tuple[T, P]]:
    """Prepares batches in order, each while the one before it is in use.

    Close it where it is not used up.

    Args:
        batches: Asked for in this thread, one more than was used.
        prepare: Called in another thread, one batch at a time.

    Yields:
        Each batch, and what was prepared.

    Raises:
        Exception: That of `prepare`, where its batch would have come.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="legend_hf-ahead") as thread:
        held = None
        for batch in batches:
            begun = batch, thread.submit(prepare, batch)
            if held is not None:
                yield held[0], held[1].result()
            held = begun
        if held is not None:
            yield held[0], held[1].result()
