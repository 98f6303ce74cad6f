"""Signals around batches: noted, said, passed on, and every handler put back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from legend_hf.reading import stopping
from legend_hf.reading.stopping import finish_batches, stopping_in_order


@pytest.fixture(autouse=True)
def _handlers_are_put_back():
    before = {number: signal.getsignal(number) for number in stopping.SIGNALS}
    yield
    assert {number: signal.getsignal(number) for number in stopping.SIGNALS} == before


def batch(seconds: float, *numbers: int) -> float:
    """A batch of so many seconds in which these signals come at once; returns how long it took."""
    start = time.monotonic()
    for number in numbers:
        os.kill(os.getpid(), number)
    while time.monotonic() - start < seconds:
        time.sleep(0.01)
    return time.monotonic() - start


def test_a_signal_waits_for_the_batch(caplog, capfd):
    done = []
    with pytest.raises(KeyboardInterrupt), finish_batches("run the same again") as batch_is_done:  # noqa: PT012
        done.append(batch(0.1, signal.SIGINT))
        batch_is_done()
        done.append("another batch")
    assert len(done) == 1
    assert done[0] >= 0.1
    assert "stopped by SIGINT; run the same again" in caplog.text
    assert "stopping after the batch at hand; Ctrl-C again stops at once" in capfd.readouterr().err
    # The control: alone, it does not wait.
    with pytest.raises(KeyboardInterrupt):
        done.append(batch(0.1, signal.SIGINT))
    assert len(done) == 1


def test_without_a_signal_nothing_happens(caplog):
    with finish_batches("...") as batch_is_done:
        batch_is_done()
    assert not caplog.text


def test_a_second_ctrl_c_does_not_wait(monkeypatch):
    monkeypatch.setattr(stopping, "_TWICE_SECONDS", 0.1)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), finish_batches("..."):
        batch(20, signal.SIGINT)
    assert time.monotonic() - start < 10


def test_a_ctrl_c_that_comes_twice_at_once_is_one():
    with pytest.raises(KeyboardInterrupt), finish_batches("..."):
        assert batch(0.1, signal.SIGINT, signal.SIGINT) >= 0.1


def test_a_signal_is_not_lost_in_a_batch_that_fails():
    with pytest.raises(KeyboardInterrupt) as caught, finish_batches("..."):  # noqa: PT012
        batch(0.05, signal.SIGINT)
        raise OSError("the disk is full")
    assert "the disk is full" in str(caught.value.__context__)


def test_a_handler_of_the_user_decides():
    """Such as that of a cluster's time limit, which only sets a flag: the run goes on."""
    came = []
    before = signal.signal(signal.SIGTERM, lambda *_: came.append(True))
    try:
        with finish_batches("...") as batch_is_done:
            batch(0.02, signal.SIGTERM)
            assert not came
            batch_is_done()
            assert came == [True]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_in_another_thread_nothing_is_changed():
    seen = []

    def work() -> None:
        with finish_batches("..."), stopping_in_order("...", workers=False):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]


@pytest.mark.parametrize("inside", [True, False])
def test_a_whole_run_says_once_how_to_go_on(caplog, inside):
    """Whether the signal comes in a batch, or between batches, where libraries work."""
    with pytest.raises(KeyboardInterrupt), stopping_in_order("run the same again", workers=False):  # noqa: PT012
        if inside:
            with finish_batches("run the same again") as batch_is_done:
                batch(0.02, signal.SIGINT)
                batch_is_done()
        try:
            batch(0.02, signal.SIGINT)
        except KeyboardInterrupt:
            raise TimeoutError("as `datasets` makes of it") from None
    assert caplog.text.count("stopped by SIGINT; run the same again") == 1


def test_other_errors_pass_through():
    with pytest.raises(ValueError, match="another"), stopping_in_order("...", workers=True):
        raise ValueError("another")


def test_sigterm_ends_the_process_after_cleaning_up(tmp_path):
    pid = os.fork()
    if pid == 0:
        try:
            with stopping_in_order("...", workers=False):
                try:
                    batch(5, signal.SIGTERM)
                finally:
                    (tmp_path / "cleaned").touch()
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
    assert (tmp_path / "cleaned").exists()


def test_what_is_forked_by_a_killed_run_ends(tmp_path):
    """While workers run, everything forked ends with this process; what it was forked from tells which."""
    pid = os.fork()
    if pid == 0:
        with stopping_in_order("...", workers=True):
            child = os.fork()
            if child == 0:
                time.sleep(60)
            (tmp_path / "child").write_text(str(child))
            time.sleep(60)
        os._exit(0)
    while not (tmp_path / "child").exists() or not (tmp_path / "child").read_text():
        time.sleep(0.01)
    child = int((tmp_path / "child").read_text())
    os.kill(child, 0)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    end = time.monotonic() + 10
    while _runs(child) and time.monotonic() < end:
        time.sleep(0.05)
    assert not _runs(child)


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_these_tests_do_not_depend_on_a_shell_that_ignores_sigint():
    """As `scripts/test &` has it."""
    this = f"{__file__}::test_a_signal_waits_for_the_batch"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", this],
        capture_output=True, text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
