"""Watch one load of HAProxy: until a worker answers, HAProxy gives up, or its master ends."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Iterator

import msgspec

from multibinder.kernel.pidfd import has_ended
from multibinder.launch.errors import LaunchError, Unreachable
from multibinder_haproxy.ending import UNKNOWN, Ending, ending_of
from multibinder_haproxy.errors import ReloadFailed
from multibinder_haproxy.master import Master, Processes
from multibinder_haproxy.records import Identity
from multibinder_haproxy.reexec import processes as reexec_processes

_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _PAUSE_GROWS = 0.02, 0.25, 1.2
#: The master's list may be empty for a moment, before it has forked a worker.
_SEEN_TWICE = 2


class MasterGone(LaunchError):
    """HAProxy's master ended."""


class Watch:
    """Watches HAProxy's master by a pidfd, which never names a later process with the same PID, and by its CLI."""

    def __init__(self, master: Master, pidfd: int | None) -> None:
        """``pidfd`` is the caller's; None if the master had ended before it could be opened."""
        self.master = master
        self._pidfd = pidfd

    def has_ended(self) -> bool:
        return self._pidfd is None or has_ended(self._pidfd)

    def ending(self) -> Ending:
        """Return how the master ended. It has ended already."""
        return UNKNOWN if self._pidfd is None else ending_of(self._pidfd)

    def await_worker(self, old: Collection[int], deadline: float, look: Callable[[], object]) -> list[int]:
        """Wait for the workers of a load, and return their PIDs once they answer. ``old`` were there before.

        ``deadline`` is on time.monotonic(). ``look`` is called now and then. Raises MasterGone, ReloadFailed if HAProxy
        gave up, TimeoutError at the deadline.
        """
        pause_s = _FIRST_PAUSE_S
        gave_up = 0
        while (left_s := deadline - time.monotonic()) > 0:
            look()
            if self.has_ended():
                raise MasterGone("HAProxy's master has ended")
            listed = self._processes(min(1.0, left_s))
            if listed is not None:
                new = listed.new_workers(old)
                # While HAProxy 3 still loads, its new worker is in the list, but does not answer yet.
                if new and all(self.master.answers(pid) for pid in new):
                    look()
                    return new
                gave_up = gave_up + 1 if listed.gave_up(old) else 0
                if gave_up == _SEEN_TWICE:
                    raise ReloadFailed(self.master.startup_log())
            time.sleep(pause_s)
            pause_s = min(pause_s * _PAUSE_GROWS, _LONGEST_PAUSE_S)
        raise TimeoutError

    def await_end(self, timeout_s: float) -> bool:
        """Return whether the master has ended, after at most ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        while not self.has_ended():
            if time.monotonic() > deadline:
                return False
            time.sleep(_FIRST_PAUSE_S)
        return True

    def processes(self, timeout_s: float) -> Processes | None:
        """Ask until the master answers: HAProxy 2.6 re-executes itself once more. None if it ends, or does not."""
        deadline = time.monotonic() + timeout_s
        while not self.has_ended() and (left_s := deadline - time.monotonic()) > 0:
            if listed := self._processes(left_s):
                return listed
            time.sleep(_FIRST_PAUSE_S)
        return None

    def _processes(self, timeout_s: float) -> Processes | None:
        try:
            return self.master.processes(timeout_s)
        except Unreachable:
            return None  # it loads, or executes itself


@contextlib.contextmanager
def watched(master: Master, identity: Identity | None, pid: int, pidfd: int | None = None) -> Iterator[Watch]:
    """Watch the process ``pid``, or the inherited ``pidfd`` of it. ``identity`` is what is recorded about it."""
    if pidfd is None:
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(pid)
        # Looked at after the pidfd was opened: so it is the very process.
        if pidfd is not None and identity is not None and not reexec_processes.is_alive(msgspec.to_builtins(identity)):
            os.close(pidfd)
            pidfd = None
    try:
        yield Watch(master, pidfd)
    finally:
        if pidfd is not None:
            os.close(pidfd)
