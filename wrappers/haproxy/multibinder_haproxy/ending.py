"""How HAProxy's master ended: it was told to end, or it ended by itself."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import msgspec

from multibinder.kernel.pidfd import wait_status_of

#: The file in an instance's directory into which systemd's unit writes "$EXIT_CODE $EXIT_STATUS" (systemd.exec(5)),
#: and the finish script of another supervisor the same with the number of a signal.
EXIT_FILE = "exit"
#: Signals that end a process because somebody wants it to end. By others (SIGSEGV) it dies of its own fault.
_REQUESTS = frozenset([signal.SIGTERM, signal.SIGINT, signal.SIGKILL, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1])
#: The parent of a process that has ended takes its status within this time.
_REAPED_WITHIN_S = 1.0


class Ending(msgspec.Struct, frozen=True):
    """The end of HAProxy's master. ``words`` continue a sentence whose subject is HAProxy.

    ``was_told``: it ended because of a signal that asks for that. This says nothing about its configuration.
    """

    was_told: bool
    words: str


UNKNOWN = Ending(False, "ended, and how it ended is not known")


def ending_of(pidfd: int) -> Ending:
    """Return how the process of a pidfd ended. It has ended already."""
    deadline = time.monotonic() + _REAPED_WITHIN_S
    while (status := wait_status_of(pidfd)) is None and time.monotonic() < deadline:
        time.sleep(0.02)
    if status is None:
        return UNKNOWN
    return _signalled(os.WTERMSIG(status)) if os.WIFSIGNALED(status) else _exited(os.WEXITSTATUS(status))


def recorded_ending(directory: str, since: float) -> Ending:
    """Return how HAProxy ended according to systemd. ``since`` (seconds since the epoch) is older than the end."""
    path = os.path.join(directory, EXIT_FILE)
    with contextlib.suppress(OSError), open(path, encoding="ascii", errors="replace") as file:
        if os.fstat(file.fileno()).st_mtime >= since:
            return parse_ending(file.readline())
    return UNKNOWN


def parse_ending(line: str) -> Ending:
    """Read a line of systemd: ``exited 1``, ``killed TERM``, ``dumped SEGV``."""
    code, _, status = line.strip().partition(" ")
    if code == "exited" and status.isdigit():
        return _exited(int(status))
    with contextlib.suppress(KeyError):
        if code in ("killed", "dumped"):
            return _signalled(int(status) if status.isdigit() else signal.Signals[f"SIG{status}"])
    return UNKNOWN


def _exited(code: int) -> Ending:
    # HAProxy's master exits with 128 and the number of the signal that it, or its last worker, was ended by.
    if code == 0 or code - 128 in _REQUESTS:
        return Ending(True, f"ended with exit code {code}, because it was told to")
    return Ending(False, f"ended with exit code {code}")


def _signalled(number: int) -> Ending:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    return Ending(number in _REQUESTS, f"was ended by {name}")
