"""``run --adopt``: take the place of a server that has opened its listeners itself.

A process beside ``run`` waits for the copies, because ``run`` imports little. Until then ``run`` releases nothing.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Collection

from multibinder.launch import first_switch
from multibinder.launch.errors import LaunchError
from multibinder.launch.log import InstanceLog
from multibinder.launch.run.ask import ask
from multibinder.launch.run.files import PROGRAM, RunInstance
from multibinder.launch.run.report import Request
from multibinder.launch.run.settings import RunSettings
from multibinder.wire.addresses import Address
from multibinder.wire.errors import MultibinderError

_LOOK_S, _ANSWER_S = 0.1, 5.0


def begin(instance: RunInstance, settings: RunSettings, addresses: Collection[Address]) -> None:
    """Adopt what another server has of these addresses, and let a process end that server when the copies are ready.

    Call it in the process that becomes ``run``. Raises LaunchError; then nothing was adopted.
    """
    assert settings.socket is not None  # noqa: S101 (the caller has checked it)
    instance.create()
    log = InstanceLog(PROGRAM, settings.name)
    # Started first: whenever this process is killed, what it has adopted is let go.
    _start_watching(instance, settings, log)
    for former in first_switch.begin(instance, settings.socket, settings.owner, addresses):
        log.write("notice", f"taking over from {former}, which serves until the copies are ready")


def _start_watching(instance: RunInstance, settings: RunSettings, log: InstanceLog) -> None:
    """Start the process that ends the former servers, in a session of its own and no child of ours."""
    pidfd = os.pidfd_open(os.getpid())
    child = os.fork()
    if child:
        os.close(pidfd)
        os.waitpid(child, 0)
        return
    try:
        os.setsid()
        if os.fork() == 0:
            _watch(instance, settings, log, pidfd)
    except Exception as error:
        log.write("error", f"the server that served before is not ended: {type(error).__name__}: {error}")
    finally:
        os._exit(0)


def _watch(instance: RunInstance, settings: RunSettings, log: InstanceLog, pidfd: int) -> None:
    """Wait until all copies serve, or ``run`` has ended, and finish the switch or take it back."""
    assert settings.socket is not None  # noqa: S101
    ended = select.poll()
    ended.register(pidfd, select.POLLIN)
    while not ended.poll(_LOOK_S * 1000):
        if _is_ready(instance, settings.service.instances):
            first_switch.finish(instance, log)
            return
        time.sleep(_LOOK_S)
    try:
        left = first_switch.leave(instance, settings.socket, settings.owner)
    except MultibinderError as error:
        log.write("error", f"the binder still holds what was adopted: {error}; the server that had it serves on")
        return
    if left:
        log.write("notice", f"not started: {', '.join(left)} left open for the server that serves there")


def _is_ready(instance: RunInstance, wanted: int) -> bool:
    try:
        status = ask(instance, Request("status"), _ANSWER_S, lambda _: None).status
    except (LaunchError, OSError):
        return False  # it starts
    if status is None or status.state != "running":
        return False
    return sum(copy.state == "ready" for copy in status.copies) >= wanted
