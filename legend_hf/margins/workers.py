"""Processes of this machine that read rows, each with its own device and its own copy of the models.

In: a transform and devices; tables of rows. Out: the tables of its columns, or the error of the first row that cannot
be read. A worker is a new interpreter, neither a fork nor a copy of the caller's program: so CUDA may have been used
before, and a script needs no `if __name__ == "__main__":`. It ends with this process, even if that is killed. This file
knows neither datasets nor what is made of a row.
"""

from __future__ import annotations

import logging
import os
import pickle
import queue
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import pyarrow as pa

    from legend_hf.margins.transform import Transform

logger = logging.getLogger(__name__)

PATIENCE = 60.0
"""Seconds that a worker has for the forward pass at hand when a run is stopped."""
_HEAD = struct.Struct("<Q")
_START = "from legend_hf.margins.workers import serve; serve()"

T = TypeVar("T")


class Worker:
    """One process. Get several from `workers`.

    Args:
        fn: What it reads with.
        device: Where it reads, such as `"cuda:1"` or `"cpu"`.
        threads: Of a CPU; None leaves them to torch.
    """

    def __init__(self, fn: Transform, device: str, threads: int | None = None) -> None:
        import dill

        kind, _, number = device.partition(":")
        self.device = device
        # What this process imports from, and no more: of itself Python would look into the folder at hand first (-P).
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        env |= dict.fromkeys(("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"), "1")  # one is shown
        env.setdefault("TOKENIZERS_PARALLELISM", "false")  # as in the workers of `map`
        # Threads that spin while they wait take the cores from whoever else works on them.
        env.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        if kind == "cpu":
            env["CUDA_VISIBLE_DEVICES"] = ""
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _START], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env
        )
        self._asking = threading.Lock()
        # By value where it is a class of the caller's own program, which the worker does not run.
        self._send((dill.dumps(fn), int(number or 0) if kind == "cuda" else None, threads))

    def look(self, table: pa.Table, first_row: int) -> tuple[Exception | None, Any]:
        """As `Transform.look`."""
        return self._ask("look", table, first_row)

    def read(self, table: pa.Table) -> pa.Table:
        """The columns that the transform makes of a table."""
        return self._ask("read", table)

    def threads(self, number: int) -> None:
        """Sets how many threads it uses from now on."""
        self._ask("threads", number)

    def memory(self) -> int:
        """Most bytes of memory that it has held."""
        return self._ask("memory")

    def stop(self) -> None:
        """Asks it to end after the forward pass at hand; `close` waits for that."""
        self._process.terminate()

    def close(self) -> None:
        """Waits for its end, and brings it about where it takes too long."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE)
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                pipe.close()  # type: ignore[union-attr]

    def _ask(self, *job: Any) -> Any:
        with self._asking:
            try:
                self._send(job)
                kind, answer = _received(self._process.stdout)
            except (OSError, EOFError, ValueError) as error:
                self._process.wait(PATIENCE)
                raise RuntimeError(
                    f"the worker on {self.device} ended by itself (exit code {self._process.returncode}); -9 mostly "
                    "means that memory ran out: give fewer `devices`, or less `batch_tokens` to the transform"
                ) from error
        if kind == "error":
            raise answer
        return answer

    def _send(self, job: Any) -> None:
        _sent(self._process.stdin, job)


@contextmanager
def workers(fn: Transform, devices: Sequence[str], threads: int | None = None) -> Iterator[list[Worker]]:
    """Starts workers, to which more may be added, and ends all of them however the block ends."""
    running: list[Worker] = []
    try:
        running += [Worker(fn, device, threads) for device in devices]
        yield running
    finally:
        for worker in running:
            worker.stop()
        for worker in running:
            worker.close()


def handed_out(
    running: Sequence[Worker], parts: Iterable[T], work: Callable[[Worker, T], Any]
) -> Iterator[tuple[T, Any]]:
    """Has workers work on parts, each taking the next one when it is done with one.

    Yields:
        Each part with its result, as they come.

    Raises:
        Exception: That of the first part that failed; no other is begun then.
    """
    idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
    left, under_way = iter(parts), dict[Future[Any], T]()
    for worker in running:
        idle.put(worker)

    def one(part: T) -> Any:
        worker = idle.get()
        try:
            return work(worker, part)
        finally:
            idle.put(worker)

    with ThreadPoolExecutor(len(running), thread_name_prefix="legend_hf-worker") as threads:
        try:
            while True:
                for part in left:
                    under_way[threads.submit(one, part)] = part
                    if len(under_way) >= len(running):
                        break
                if not under_way:
                    return
                for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                    yield under_way.pop(future), future.result()
        except BaseException:
            for worker in running:  # otherwise the threads would wait for what nobody needs
                worker.stop()
            raise


# -- In the worker ---------------------------------------------------------------------------------------------------


def serve() -> None:
    """What a worker runs: takes jobs from its input until that ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what anything prints must not stand among the answers
    jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
    begun = _received(sys.stdin.buffer)
    threading.Thread(target=_take, args=(jobs,), name="legend_hf-jobs", daemon=True).start()
    from legend_hf.reading.stopping import work_for_another

    work_for_another()
    work = _Work(*begun)
    while True:
        kind, *given = jobs.get()
        try:
            answer = ("done", getattr(work, kind)(*given))
        except Exception as error:
            answer = ("error", _portable(error))
        _sent(answers, answer)


class _Work:
    def __init__(self, fn: bytes, rank: int | None, threads: int | None) -> None:
        self._pickled, self._rank, self._fn = fn, rank, None
        if threads is not None:
            self.threads(threads)

    @property
    def fn(self) -> Any:
        if self._fn is None:
            import dill
            from transformers.utils import logging as transformers_logging

            transformers_logging.disable_progress_bar()
            self._fn = dill.loads(self._pickled)
        return self._fn

    def look(self, table: Any, first_row: int) -> Any:
        from legend_hf.margins.tables import rows_of

        return self.fn.look(rows_of(table), first_row=first_row, rank=self._rank)

    def read(self, table: Any) -> Any:
        from legend_hf.margins.tables import made_of

        return made_of(self.fn, table, rank=self._rank)

    def threads(self, number: int) -> None:
        import torch

        torch.set_num_threads(number)

    def memory(self) -> int:
        with suppress(OSError), open("/proc/self/status", encoding="ascii") as file:
            return 1024 * next(int(line.split()[1]) for line in file if line.startswith("VmHWM:"))
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return int(most if sys.platform == "darwin" else most * 1024)


def _take(jobs: queue.SimpleQueue[Any]) -> None:
    while True:
        try:
            jobs.put(_received(sys.stdin.buffer))
        except (EOFError, OSError):
            os._exit(1)  # whoever asked is gone, killed or not


def _portable(error: Exception) -> Exception:
    """The error as it can be sent; one that cannot, by what it says."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


# -- Between the two: plain pickles through pipes that no other process can open -------------------------------------


def _sent(pipe: IO[bytes] | None, what: Any) -> None:
    assert pipe is not None
    content = pickle.dumps(what, protocol=pickle.HIGHEST_PROTOCOL)
    pipe.write(_HEAD.pack(len(content)) + content)
    pipe.flush()


def _received(pipe: IO[bytes] | None) -> Any:
    assert pipe is not None
    return pickle.loads(_exactly(pipe, _HEAD.unpack(_exactly(pipe, _HEAD.size))[0]))


def _exactly(pipe: IO[bytes], size: int) -> bytes:
    content = pipe.read(size)
    if len(content) < size:
        raise EOFError
    return content
