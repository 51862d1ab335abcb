"""Stop an instance whose ``run`` is gone: end the copies that it left, and give up the listeners."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterator, Sequence

from multibinder.kernel.process import stat_or_none
from multibinder.launch import lock
from multibinder.launch.errors import LaunchError, NotAnswering
from multibinder.launch.run.files import MASTER_LOCK, RunInstance
from multibinder.launch.run.summary import RunSummary
from multibinder.wire.client import Client
from multibinder.wire.errors import MultibinderError
from multibinder.wire.instance_summary import CopyProcess


def stop_leftovers(instance: RunInstance, timeout_s: float, keep_listeners: bool) -> tuple[list[str], list[int]]:
    """End the copies, and return the addresses that were closed, and the PIDs that were told to end.

    Copies that have not ended after ``timeout_s`` are killed. A new ``run`` is kept out meanwhile. Raises NotAnswering
    if there is one, NoSuchInstance, LaunchError.
    """
    settings = instance.read_settings()
    with _without_run(instance):
        summary = RunSummary(instance)
        copies = [copy for copy in summary.read_or_new().copies if is_alive(copy)]
        # No copy must accept a client that is refused a moment later. They are told first, as 'run' does.
        _end(copies, settings.service.stop_signal, timeout_s)
        closed: list[str] = []
        if not keep_listeners and settings.socket:
            try:
                with Client(settings.socket) as client:
                    own = (settings.owner, os.geteuid())
                    held = [each for each in client.list() if own in [(its.label, its.uid) for its in each.claims]]
                    released = client.release(held, owner=settings.owner) if held else []
                closed = [each.address for each in released if each.outcome == "closed"]
            except MultibinderError as error:
                raise LaunchError(
                    f"{instance.name} is stopped, but its listeners could not be released: {error}; run 'stop' again"
                ) from error
        summary.stopped()
    return closed, [copy.pid for copy in copies]


def is_alive(copy: CopyProcess) -> bool:
    """Return whether the copy runs, and its PID is not that of a later process."""
    stat = stat_or_none(copy.pid)
    return stat is not None and not stat.has_ended and stat.start_ticks == copy.start_ticks


@contextlib.contextmanager
def _without_run(instance: RunInstance) -> Iterator[None]:
    try:
        with lock.locked(instance.path(MASTER_LOCK), -1):
            yield
    except TimeoutError:
        raise NotAnswering(f"a 'multibinder run' of {instance.name} has just been started; try again") from None


def _end(copies: Sequence[CopyProcess], stop_signal: int, timeout_s: float) -> None:
    with contextlib.ExitStack() as stack:
        opened: list[tuple[CopyProcess, int]] = []
        for copy in copies:
            with contextlib.suppress(ProcessLookupError):
                pidfd = os.pidfd_open(copy.pid)
                stack.callback(os.close, pidfd)
                if is_alive(copy):  # the pidfd is that of the copy, and not of a later process
                    opened.append((copy, pidfd))
                    signal.pidfd_send_signal(pidfd, stop_signal)
        deadline = time.monotonic() + timeout_s
        for copy, pidfd in opened:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                # Each copy leads a session of its own, and so the group of its children.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(copy.pid, signal.SIGKILL)
