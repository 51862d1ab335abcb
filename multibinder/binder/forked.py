"""Work in a forked child of the binder, so that no request waits for it. The child runs the code that runs already."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Collection

from multibinder.binder.loop import Loop

#: Called with the answer of the work; or with None and the reason why there is none.
Tell = Callable[[bytes | None, str], None]

#: The most bytes of the child's answer that are read in one turn of the loop.
_CHUNK_BYTES = 1 << 20
#: An answer is this byte, its length, and its text. A child that could not do its work writes the other byte, and why.
_DONE, _FAILED = b"+", b"-"
_LENGTH_BYTES = 8
#: The binder gives up on a child that its own alarm has not ended: it is stopped, or waits in the kernel for a disk.
_GIVE_UP_S = 1.0
#: From one attempt to reap a killed child to the next.
_REAP_EVERY_S = 1.0
#: The most time that ``stop`` waits for the end of a killed child.
_STOP_S = 0.5
#: More descriptors than any process has open; for a child that cannot read how many it has.
_DESCRIPTORS = 1 << 20
_ALL_SIGNALS = signal.valid_signals()


class Forked:
    """A child process that calls ``work`` and sends what it returns to the binder.

    ``tell`` is called once, from the loop: with the answer; or with None and why, if the child could not be started
    (a shortage of descriptors, processes or memory), failed, or took longer than ``timeout_s``. After ``stop`` it is
    not called. The child has no descriptor of the binder, and the binder's handlers of signals are not called in it.

    The object owns the child and its pipe. Nothing of either is left when ``tell`` is called, but a killed child that
    the kernel cannot end yet.
    """

    def __init__(self, loop: Loop, work: Callable[[], bytes], tell: Tell, *, timeout_s: float) -> None:
        self._loop = loop
        self._tell = tell
        self._timeout_s = timeout_s
        self._output = bytearray()
        self._pid = 0
        self._pipe = -1
        self._is_over = False
        try:
            self._start(work)
        except (OSError, MemoryError) as error:
            self._kill()
            self._reap_soon()
            why = getattr(error, "strerror", None) or "Cannot allocate memory"
            loop.call_later(0, lambda: self._finish(None, f"no process can be started for it: {why}"))
        else:
            loop.call_later(timeout_s + _GIVE_UP_S, self._give_up)

    @property
    def is_running(self) -> bool:
        """Return whether ``tell`` is still to be called."""
        return not self._is_over

    def stop(self) -> None:
        """End the child. ``tell`` is not called."""
        self._is_over = True
        self._kill()
        # A child in an uninterruptible sleep ends later; the kernel or the next life of this process reaps it then.
        until = time.monotonic() + _STOP_S
        while self._pid and not self._reap() and time.monotonic() < until:
            time.sleep(0.002)

    def _start(self, work: Callable[[], bytes]) -> None:
        self._pipe, writing = os.pipe2(os.O_CLOEXEC)
        try:
            # Until the child has default handlers, a signal that it gets would be read by the binder: they share the
            # descriptor of set_wakeup_fd().
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _ALL_SIGNALS)
            try:
                self._pid = os.fork()
                if not self._pid:
                    _work_and_exit(work, writing, self._timeout_s)
            finally:
                _set_mask(before)
        finally:
            os.close(writing)
        self._loop.watch(self._pipe, self._read)

    def _read(self) -> None:
        chunk = os.read(self._pipe, _CHUNK_BYTES)
        self._output += chunk
        if chunk:
            return
        self._close_pipe()
        # It has closed its end of the pipe, which only exit(2) does. If the program that started us made us ignore
        # SIGCHLD, the kernel has reaped it.
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0)
        self._pid = 0
        self._finish(*_answer(bytes(self._output)))

    def _give_up(self) -> None:
        if not self._is_over:
            self._kill()
            self._reap_soon()
            self._finish(None, f"it took longer than {self._timeout_s:g} s")

    def _finish(self, answer: bytes | None, why: str) -> None:
        if not self._is_over:
            self._is_over = True
            self._output.clear()
            self._tell(answer, why)

    def _kill(self) -> None:
        self._close_pipe()
        if self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)

    def _close_pipe(self) -> None:
        if self._pipe >= 0:
            self._loop.unwatch(self._pipe)
            os.close(self._pipe)
            self._pipe = -1

    def _reap_soon(self) -> None:
        if self._pid and not self._reap():
            self._loop.call_later(_REAP_EVERY_S, self._reap_soon)

    def _reap(self) -> bool:
        """Reap the child if it has ended, and return whether it has."""
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(self._pid, os.WNOHANG) == (0, 0):
                return False
        self._pid = 0
        return True


def _set_mask(numbers: Collection[int]) -> None:
    """Set the signal mask, at the second attempt if the kernel refuses: blocked signals would never be obeyed."""
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, numbers)
    except OSError:
        signal.pthread_sigmask(signal.SIG_SETMASK, numbers)


def answer_of(work: Callable[[], bytes], *, timeout_s: float) -> tuple[bytes | None, str]:
    """Have a child do the work, and wait for it. Return what ``Forked`` would tell. For a start, when no loop runs."""
    told: list[tuple[bytes | None, str]] = []
    loop = Loop()

    def tell(answer: bytes | None, why: str) -> None:
        told.append((answer, why))
        loop.stop()

    Forked(loop, work, tell, timeout_s=timeout_s)
    loop.run(lambda: None)
    loop.close()
    return told[0]


def _answer(output: bytes) -> tuple[bytes | None, str]:
    """Return the answer of a child; or None, and why there is none."""
    kind, text = output[:1], output[1 + _LENGTH_BYTES :]
    if len(output) <= _LENGTH_BYTES or len(text) != int.from_bytes(output[1 : 1 + _LENGTH_BYTES], "big"):
        return None, "its process ended too early, or took too long"
    return (text, "") if kind == _DONE else (None, text.decode(errors="replace"))


def _work_and_exit(work: Callable[[], bytes], writing: int, timeout_s: float) -> None:
    """Do the work in the child, write the answer to the pipe, and exit. All signals are blocked when it is called."""
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        signal.setitimer(signal.ITIMER_REAL, timeout_s)
        _close_all_but(writing)
        try:
            answer, kind = work(), _DONE
        except Exception as error:  # also a bug: the binder logs it, and goes on
            answer, kind = f"{type(error).__name__}: {error}".encode(errors="replace"), _FAILED
        text = memoryview(kind + len(answer).to_bytes(_LENGTH_BYTES, "big") + answer)
        while text:
            text = text[os.write(writing, text) :]
    finally:
        os._exit(0)


def _close_all_but(kept: int) -> None:
    """Close the binder's descriptors: if it is killed now, copies here must not keep its ports open, nor its lock."""
    os.closerange(3, kept)
    last = _DESCRIPTORS
    # The limit may have been lowered below the number of open ones.
    with contextlib.suppress(OSError):
        last = max(map(int, os.listdir("/proc/self/fd")))
    os.closerange(max(3, kept + 1), 1 + last)
