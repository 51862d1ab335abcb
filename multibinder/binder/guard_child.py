"""The start of a binder by its guard: fork(2), the descriptors of the store, execve(2)."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
from collections.abc import Mapping, Sequence

from multibinder.binder import ready
from multibinder.kernel.listen_fds import pass_listen_fds

_ALL_SIGNALS = signal.valid_signals()
_REASON_BYTES = 4096


class BinderProcess:
    """A binder that the guard has started, or that an earlier guard in this process has (``started`` False)."""

    def __init__(self, pid: int, failure: int = -1) -> None:
        self.pid = pid
        self._failure = failure

    def why_not_executed(self) -> str:
        """Return why the child could not execute the binder, or an empty text. Call it once, after the child's end."""
        if self._failure < 0:
            return ""
        try:
            return os.read(self._failure, _REASON_BYTES).decode(errors="replace")
        except OSError:
            return ""
        finally:
            self.detach()

    def detach(self) -> int:
        """Return the PID, and close the descriptor that belongs to this object."""
        if self._failure >= 0:
            os.close(self._failure)
            self._failure = -1
        return self.pid


def start(
    command: Sequence[str], descriptors: Sequence[tuple[str, int]], environment: Mapping[str, str]
) -> BinderProcess:
    """Start ``command`` with ``descriptors`` (name, number), which stay the caller's.

    Raises OSError and MemoryError.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        # Until the child has default handlers, a signal that it gets would be read by the guard: they share the
        # descriptor of set_wakeup_fd().
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _ALL_SIGNALS)
        try:
            pid = os.fork()
            if not pid:
                # The guard reports to the process that detached it, when the pid file is written.
                ours = {name: value for name, value in os.environ.items() if name != ready.DETACHED}
                _become(command, descriptors, {**ours, **environment}, writing)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    return BinderProcess(pid, reading)


def of_before(text: str) -> int:
    """Return the PID of the binder that an earlier guard in this process started; 0 if it is no child of ours."""
    try:
        os.waitid(os.P_PID, int(text or "0"), os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except (OSError, ValueError):
        return 0
    return int(text)


def _become(
    command: Sequence[str], descriptors: Sequence[tuple[str, int]], environment: dict[str, str], failure: int
) -> None:
    """Execute the binder in the child, or write the reason to ``failure`` and exit. All signals are blocked."""
    try:
        signal.set_wakeup_fd(-1)
        for handled in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD):
            signal.signal(handled, signal.SIG_DFL)
        # A signal that was sent since the fork ends the child here, as it would end a binder without handlers.
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        above = 3 + len(descriptors)
        if failure < above:
            failure = fcntl.fcntl(failure, fcntl.F_DUPFD_CLOEXEC, above)
        # All others are close-on-exec, but the descriptors get these numbers now.
        kept = {number for _, number in descriptors}
        for number in range(3, above):
            if number not in kept:
                with contextlib.suppress(OSError):
                    os.close(number)
        if environment.get("WATCHDOG_PID") == str(os.getppid()):
            # The guard passes the messages of its binder on.
            environment["WATCHDOG_PID"] = str(os.getpid())
        pass_listen_fds(descriptors, environment)
        os.execve(command[0], list(command), environment)
    except BaseException as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        with contextlib.suppress(OSError):
            os.write(failure, f"{command[0] if command else '-'}: {reason}".encode()[:_REASON_BYTES])
    finally:
        os._exit(127)
