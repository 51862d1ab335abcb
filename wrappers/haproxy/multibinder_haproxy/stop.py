"""``stop``: end HAProxy gracefully, and close its ports."""

from __future__ import annotations

import contextlib
import os
import signal
import time

from multibinder import MultibinderError
from multibinder.kernel.process import is_alive
from multibinder.launch.errors import LaunchError
from multibinder_haproxy import sockets
from multibinder_haproxy.instance import Instance


def stop(instance: Instance, timeout_s: float, keep_listeners: bool) -> list[str]:
    """Let the workers finish their connections and end; release the listeners. Return the addresses that were closed.

    Raises Unreachable, or LaunchError if HAProxy is still there after ``timeout_s``: its listeners are closed by then,
    unless ``keep_listeners``.
    """
    instance.check_known()
    with instance.locked(timeout_s):
        invocation = instance.read_invocation()
        pid = instance.master().processes().master
        # SIGUSR1 to the master: graceful stop (management guide, "Stopping and restarting HAProxy").
        os.kill(pid, signal.SIGUSR1)
        instance.summary.stopping()
        closed: list[str] = []
        if invocation.binder and not keep_listeners:
            # No worker accepts from now on. A client in the queue should be refused rather than wait.
            with contextlib.suppress(MultibinderError):
                closed, _ = sockets.release_others(invocation.binder, [], invocation.owner)
        deadline = time.monotonic() + timeout_s
        while is_alive(pid):
            if time.monotonic() > deadline:
                raise LaunchError(
                    f"{instance.name} (pid {pid}) still has connections after {timeout_s:g} s; wait longer with "
                    f"--timeout, or end them with 'kill {pid}'"
                )
            time.sleep(0.05)
        instance.summary.stopped()
        return closed
