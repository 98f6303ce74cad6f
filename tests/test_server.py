"""A server that scores: several threads, one model, one store, and memory that stays what it is."""

from __future__ import annotations

import gc
import json
import threading
import tracemalloc
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import close_stores

from legend_hf import Direction, LegendMarginFn, fit_direction

THREADS = 4
WORDS = ["tea", "maps", "rain", "soup", "trains", "songs", "bread", "stars", "paint", "clocks"]


def pair(number: int) -> dict[str, str]:
    """Pairs of many lengths, none like another."""
    said = " ".join(WORDS[(number + i) % 10] for i in range(number % 13))
    return {"prompt": f"{number}: {said}?", "chosen": f"Ask for {said} {number}.", "rejected": f"Take it {said}"}


@pytest.fixture(scope="module")
def direction(tiny_llama: Path) -> Direction:
    return fit_direction([pair(i) for i in range(8)], model=str(tiny_llama))


@pytest.fixture
def serve(direction: Direction) -> Iterator[Callable[[LegendMarginFn], str]]:
    """Starts a server with a thread for each request: a pair goes in, its columns and both scores come out."""
    servers = []

    def start(fn: LegendMarginFn) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                row = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                columns = fn({name: [value] for name, value in row.items()})
                scores = [direction.score(row["prompt"], row[side]) for side in ("chosen", "rejected")]
                body = json.dumps({**{k: np.asarray(v).tolist() for k, v in columns.items()}, "scores": scores})
                self.send_response(200)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
    close_stores()


def asked(url: str, row: dict[str, str]) -> dict[str, Any]:
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(row).encode()), timeout=60) as answer:
        return json.loads(answer.read())


@pytest.mark.parametrize("store", [None, "s.sqlite", "memory://served/run"])
def test_many_at_a_time_get_their_own_answers(direction, serve, store, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    where = str(tmp_path / store) if store and "://" not in store else store
    rows = [pair(i) for i in range(40)] * 2
    expected = LegendMarginFn(direction)({name: [row[name] for row in rows] for name in rows[0]})
    url = serve(LegendMarginFn(direction, store=where))
    with ThreadPoolExecutor(THREADS) as threads:
        answers = list(threads.map(lambda row: asked(url, row), rows))
    limit = 1e-4 * np.std(expected["margin_raw"])
    got = np.array([[answer["chosen_score"][0], answer["rejected_score"][0]] for answer in answers])
    np.testing.assert_allclose(got, np.array([expected["chosen_score"], expected["rejected_score"]]).T, atol=limit)
    np.testing.assert_allclose([answer["scores"] for answer in answers], got, atol=limit)
    assert np.ptp(got) > 100 * limit, "the control: answers differ, so somebody else's would be seen"


CALLS, WINDOWS = 40, 4
LEFT = 400.0  # bytes a call; what is kept and freed by turns is a hundred or two


def left_behind(call: Callable[[int], Any]) -> float:
    """Bytes of Python objects that a call, by one of several threads, leaves behind once all that is kept is there."""
    windows = []
    tracemalloc.start()
    try:
        with ThreadPoolExecutor(THREADS) as threads:
            for first in range(1000, 1000 + WINDOWS * CALLS, CALLS):
                gc.collect()
                before = tracemalloc.get_traced_memory()[0]
                for _ in threads.map(call, range(first, first + CALLS)):
                    pass
                gc.collect()
                windows.append((tracemalloc.get_traced_memory()[0] - before) / CALLS)
    finally:
        tracemalloc.stop()
    return min(windows)


@pytest.mark.slow
@pytest.mark.parametrize("store", [None, "s.sqlite", "memory://grown/run"])
def test_a_call_leaves_no_memory_behind(direction, store, tmp_path, monkeypatch):
    """Of native memory `scripts/benchmark_scale.py --calls 100000` tells."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    fn = LegendMarginFn(direction, store=str(tmp_path / store) if store and "://" not in store else store)
    held: list[bytes] = []

    def call(number: int) -> None:
        row = pair(number)
        direction.score(row["prompt"], row["chosen"])
        fn({name: [value] for name, value in row.items()})

    def leaks(number: int) -> None:
        call(number)
        held.append(bytes(1000))

    call(0)
    assert left_behind(call) < LEFT
    assert left_behind(leaks) > LEFT, "the control: a thousand bytes a call are seen"
    close_stores()
