"""Steps that a start and a re-exec share: warn, write the files that HAProxy reads, and become HAProxy."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

import msgspec

from multibinder.launch.errors import LaunchError
from multibinder_haproxy.config.model import Config
from multibinder_haproxy.haproxy_exec import exec_haproxy
from multibinder_haproxy.instance import Instance
from multibinder_haproxy.invocation import VARIABLE, Invocation
from multibinder_haproxy.records import Loaded
from multibinder_haproxy.reexec import mss

#: execve(2): one string of the environment has at most 32 pages (MAX_ARG_STRLEN).
_VARIABLE_BYTES = 32 * 4096 - len(VARIABLE) - 2
_NO_BINDER = (
    "MULTIBINDER_SOCK is not set: HAProxy binds by itself, and A RESTART WILL REFUSE CONNECTIONS; start "
    "'multibinder serve' and set MULTIBINDER_SOCK to its socket"
)


def warn_of_config(instance: Instance, invocation: Invocation, config: Config) -> None:
    """Log surprises for the operator in a configuration that is about to be loaded."""
    warn(instance, config.warnings)
    if not invocation.templates:
        warn(instance, ["no -f names a template (.j2, .mb, .erb): multibinder holds none of its sockets"])
    elif not config.slots:
        warn(instance, ["no template calls bind_tcp(): multibinder holds none of HAProxy's sockets"])
    if not invocation.binder:
        warn(instance, [_NO_BINDER])


def warn(instance: Instance, warnings: Sequence[str]) -> None:
    for warning in warnings:
        instance.log.write("warning", warning)


def report_fallback(instance: Instance, reason: str) -> None:
    """Tell the log and systemd that HAProxy gets the last good configuration."""
    instance.log.write("error", f"{reason}\nNOT the current configuration: HAProxy runs with the last good one")
    instance.log.set_status(f"Running with the LAST GOOD configuration: {reason.splitlines()[0]}")


def next_generation(before: Loaded | None) -> int:
    return before.generation + 1 if before else 1


def write_files(instance: Instance, invocation: Invocation, loaded: Loaded, fds: Mapping[str, int]) -> Invocation:
    """Write the files that HAProxy reads, and the records. Return the invocation with ``fds``, by slot key.

    Raises LaunchError.
    """
    invocation = invocation.with_fds(fds)
    size = len(msgspec.json.encode(invocation))
    if size > _VARIABLE_BYTES:
        raise LaunchError(
            f"{len(fds)} binds are too many for one instance: their record has {size} bytes and the environment takes "
            f"{_VARIABLE_BYTES} (execve(2)); split the configuration into several instances"
        )
    files = loaded.config.fill(fds) if invocation.binder else loaded.config.plain()
    instance.write_config(files, invocation.rendered_directories)
    instance.write_loaded(loaded)
    instance.write_invocation(invocation)
    mss.take_off(files.values(), fds.values())
    return invocation


def become_haproxy(invocation: Invocation, command: list[str]) -> NoReturn:
    """Execute HAProxy in this process, with the invocation in its environment. ``command`` is its argv."""
    os.environ[VARIABLE] = msgspec.json.encode(invocation).decode()
    sys.stderr.flush()
    exec_haproxy(invocation.haproxy, command)
