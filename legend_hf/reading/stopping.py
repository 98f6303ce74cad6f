"""A long run ends when it is told to, says how to go on, and leaves nothing behind.

In: signals, and the death of a parent process. Out: a batch that is finished first, workers that end with their parent.
This file knows neither texts nor scores; it only knows when a batch is done.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_EVERY_SECONDS = 0.5
_TWICE_SECONDS = 1.0  # Launchers may pass on a Ctrl-C that the terminal has sent already.


_watched = -1  # The process whose watcher runs; a fork copies the number and not the thread.
_speaker = -1  # The process in which `stopping_in_order` is around the run.
_working = -1  # The process that `work_for_another` was called in.
_watching_for: int | None = None  # While workers run: the process that they must not outlive.


def how_to_go_on(kept_in: str | None) -> str:
    """What to do after a run was stopped that keeps what it reads there; None: nowhere."""
    if kept_in is None:
        return "nothing was kept: with a store (`store=`) the next run goes on where this one was stopped"
    return f"what was read is kept in {kept_in!r}: run the same again to go on from there"


@contextmanager
def finish_batches(how_to_go_on: str, at_last: Callable[[], None] = lambda: None) -> Iterator[Callable[[], None]]:
    """Lets SIGINT and SIGTERM wait until a batch is done.

    Outside the main thread, where Python delivers no signals, nothing is changed.

    Args:
        how_to_go_on: What to tell the user.
        at_last: What is done before such a signal takes its course, for it may end the process.

    Yields:
        A function to call after each batch. If a signal came meanwhile it says how to go on, and the signal takes its
        usual course.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    came: list[int] = []
    since = 0.0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal since
        if number == signal.SIGINT and number in came and time.monotonic() - since > _TWICE_SECONDS:
            put_back()
            signal.raise_signal(number)  # a second Ctrl-C: at once
            return
        if not came:
            since = time.monotonic()
            if speaks():  # not by `logging`, which may be in the middle of a line
                os.write(2, b"\nstopping after the batch at hand; Ctrl-C again stops at once\n")
        came.append(number)

    # A handler that Python did not install reads as None and could not be put back: such a signal is left alone.
    before = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: handler for number, handler in before.items() if handler not in (None, signal.SIG_IGN)}

    def put_back() -> None:
        with ExitStack() as stack:  # all of them, even if a signal that comes in between raises
            for number, handler in before.items():
                stack.callback(signal.signal, number, handler)

    def batch_is_done() -> None:
        if came:
            put_back()
            number = came[0]
            came.clear()
            at_last()
            if speaks() and _speaker != os.getpid():  # whoever is around the whole run speaks at its end
                logger.warning("stopped by %s; %s", signal.Signals(number).name, how_to_go_on)
            signal.raise_signal(number)

    try:
        for number in before:
            signal.signal(number, note)
        yield batch_is_done
    finally:
        put_back()
        batch_is_done()  # even if the batch failed: a signal that was noted is not lost


@contextmanager
def stopping_in_order(how_to_go_on: str, *, workers: bool) -> Iterator[None]:
    """Around a whole run: SIGINT and SIGTERM end the workers first, and say how to go on.

    Args:
        how_to_go_on: What to tell the user.
        workers: Whether forked workers do the reading. They, and all else that is forked meanwhile, then end with
            this process even if it is killed.

    Raises:
        KeyboardInterrupt: After SIGINT, whatever became of it on its way out. SIGTERM ends the process.
    """
    global _speaker, _watching_for
    owner = os.getpid()
    came: list[int] = []

    def unwind(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a forked worker that is told to end
            os._exit(128 + number)
        came.append(number)
        raise KeyboardInterrupt  # for SIGTERM too: libraries clean up after a Ctrl-C

    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    main = threading.current_thread() is threading.main_thread()
    before = {number: handler for number, handler in usual.items() if main and signal.getsignal(number) is handler}
    for number in before:
        signal.signal(number, unwind)
    if before:
        _speaker = owner
    if workers:
        _watching_for = owner
    try:
        yield
    except BaseException:
        if not came:
            raise
        logger.warning("stopped by %s; %s", signal.Signals(came[0]).name, how_to_go_on)
        if came[0] == signal.SIGINT:  # `datasets` may have turned it into the time-out of a worker
            raise KeyboardInterrupt from None
    finally:
        _speaker, _watching_for = -1, None
        for number, handler in before.items():
            signal.signal(number, handler)
        if signal.SIGTERM in came:
            signal.raise_signal(signal.SIGTERM)


def work_for_another() -> None:
    """In a process that works for another one, which is not a pool's: leaves Ctrl-C and all talk to that one."""
    global _working
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _working = os.getpid()


def speaks() -> bool:
    """Whether this process works for itself: it is no worker, of a pool or another."""
    return _worker() is None and _working != os.getpid()


def settle_in_worker() -> None:
    """In a worker process, leaves Ctrl-C to the main process and ends when that one is gone. Elsewhere, nothing."""
    worker = _worker()
    if worker is None:
        return
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = worker.parent_process()
    # Forked siblings keep each other's pipes to a dead parent open; the other methods have a server in between.
    forked = worker.current_process().name.startswith("ForkPool")
    _exit_when(lambda: not parent.is_alive() or (forked and os.getppid() != parent.pid))


def _exit_when(gone: Callable[[], bool]) -> None:
    """Ends this process when its parent is gone. A pool's idle worker would wait for tasks for ever."""
    global _watched
    if _watched == os.getpid():
        return
    _watched = os.getpid()

    def watch() -> None:
        while not gone():
            time.sleep(_EVERY_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="legend_hf-parent-watch", daemon=True).start()


def _after_fork() -> None:
    """`datasets` forks a queue's server beside its workers, which knows nothing of this library and would stay."""
    global _watching_for
    parent, _watching_for = _watching_for, None  # a worker's own children have another parent
    if parent is not None:
        _exit_when(lambda: os.getppid() != parent)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def worker_name() -> str | None:
    """What Python calls this process if another one started it as a worker, such as `SpawnPoolWorker-1`; else None."""
    process = _child()
    return None if process is None else str(process.current_process().name)


def _worker() -> Any:
    """What started this process as a worker of a pool, such as that of `map(num_proc=...)`; else None."""
    return _child() if "PoolWorker" in (worker_name() or "") else None


def _child() -> Any:
    """The module that started this process from another one; None if none did.

    `datasets` uses `multiprocess`; others use `multiprocessing`.
    """
    for name in ("multiprocess.process", "multiprocessing.process"):
        process = sys.modules.get(name)
        if process is not None and process.parent_process() is not None:
            return process
    return None
