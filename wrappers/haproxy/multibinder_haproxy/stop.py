"""``stop``: end HAProxy gracefully, and close its ports."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import msgspec

from multibinder.kernel.process import is_child
from multibinder.launch.errors import LaunchError
from multibinder_haproxy.instance import Instance
from multibinder_haproxy.invocation import Invocation
from multibinder_haproxy.reconcile import release_all
from multibinder_haproxy.watch import Watch, watched

_PAUSE_S = 0.05
#: HAProxy up to 3.0 ignores SIGUSR1 while it loads a configuration at a reload, and later versions while they start.
_REPEAT_S = 0.5


class Stopped(msgspec.Struct, frozen=True):
    """The end of an instance: the addresses that were closed, and whether HAProxy ran before."""

    closed: list[str]
    was_running: bool


def stop(instance: Instance, timeout_s: float, keep_listeners: bool) -> Stopped:
    """Let the workers finish their connections and end; release the listeners.

    A load that is under way is not waited for. Raises LaunchError if HAProxy is still there after ``timeout_s``, or the
    listeners could not be released; they are released at once, unless ``keep_listeners``.
    """
    instance.check_known()
    invocation = instance.read_invocation()
    pid = instance.master_pid()
    closed: list[str] = []
    problem = ""
    with contextlib.ExitStack() as stack:
        is_locked = _try_to_lock(instance, stack)
        if pid is not None:
            with watched(instance.master(), None, pid) as watch:
                closed = _end(instance, invocation, watch, pid, timeout_s, keep_listeners)
        if not is_locked:
            # The process that settles the load, or a reload, has the lock until it sees that HAProxy has ended.
            stack.enter_context(instance.locked(timeout_s))
        if instance.master_pid() is not None:
            raise LaunchError(f"{instance.name} was started again while it was being stopped")
        if not keep_listeners:
            more, problem = release_all(invocation)
            closed += more
        instance.summary.stopped()
    if problem:
        raise LaunchError(f"{instance.name} is stopped, but {problem}; run 'stop' again")
    return Stopped(closed, pid is not None)


def _try_to_lock(instance: Instance, stack: contextlib.ExitStack) -> bool:
    try:
        stack.enter_context(instance.locked(timeout_s=-1))
    except LaunchError:
        return False
    return True


def _end(
    instance: Instance, invocation: Invocation, watch: Watch, pid: int, timeout_s: float, keep_listeners: bool
) -> list[str]:
    """End HAProxy, and return the addresses that were closed meanwhile. Raises LaunchError after ``timeout_s``."""
    # SIGUSR1 to the master: graceful stop (management guide, "Stopping and restarting HAProxy").
    _send(pid, signal.SIGUSR1)
    instance.summary.stopping()
    # No worker accepts from now on. A client in the queue should be refused rather than wait.
    closed = [] if keep_listeners else release_all(invocation)[0]
    deadline = time.monotonic() + timeout_s
    repeat_at = time.monotonic() + _REPEAT_S
    while not watch.has_ended():
        now = time.monotonic()
        if now > deadline:
            raise LaunchError(
                f"{instance.name} (pid {pid}) still has connections, or loads its configuration, after "
                f"{timeout_s:g} s; wait longer with --timeout, or end it with 'kill {pid}'"
            )
        if now > repeat_at:
            repeat_at = now + _REPEAT_S
            _end_load(instance, watch, pid)
        time.sleep(_PAUSE_S)
    return closed


def _end_load(instance: Instance, watch: Watch, pid: int) -> None:
    """End a load that is under way: HAProxy may ignore SIGUSR1 meanwhile, and takes SIGTERM at any moment."""
    loaded = instance.read_loaded()
    if loaded is None or loaded.settled or loaded.came_up:
        return
    old = [worker for worker in loaded.old_workers if is_child(worker, pid)]
    listed = watch.processes(_REPEAT_S)
    if listed is not None and any(watch.master.answers(worker) for worker in listed.new_workers(loaded.old_workers)):
        return  # it has loaded, and finishes connections
    for worker in old:
        _send(worker, signal.SIGUSR1)
    # The old workers finish their connections first: they would end with their master.
    _send(pid, signal.SIGUSR1 if old else signal.SIGTERM)


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
