"""Steps of a load for which our whole package is there: warn, give HAProxy a configuration, and become HAProxy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import msgspec

from multibinder.launch.direct.errors import Away, Refused
from multibinder.launch.errors import LaunchError
from multibinder.launch.records import cannot_write
from multibinder_haproxy.config.model import Config
from multibinder_haproxy.errors import BinderAway, BindRefused
from multibinder_haproxy.instance import Instance
from multibinder_haproxy.invocation import Invocation
from multibinder_haproxy.reexec import load
from multibinder_haproxy.reexec.errors import LoadFailed

_NO_BINDER = (
    "MULTIBINDER_SOCK is not set: HAProxy binds by itself, and A RESTART WILL REFUSE CONNECTIONS; start "
    "'multibinder serve' and set MULTIBINDER_SOCK to its socket"
)


def warn_of_config(instance: Instance, invocation: Invocation, config: Config) -> None:
    """Log surprises for the operator in a configuration that is about to be loaded."""
    warn(instance, config.warnings)
    if not invocation.binder:
        warn(instance, [_NO_BINDER])
    elif not invocation.templates:
        warn(instance, ["no -f names a template (.j2, .mb, .erb): multibinder holds none of its sockets"])
    elif not config.slots and invocation.taking.binds:
        warn(instance, ["the configuration has no bind that the binder can hold"])
    elif not config.slots:
        warn(instance, ["no template calls bind_tcp(): multibinder holds none of HAProxy's sockets"])


def warn(instance: Instance, warnings: Sequence[str]) -> None:
    for warning in warnings:
        instance.log.write("warning", warning)


def give(invocation: Invocation, config: Config, fallback: LaunchError | None) -> Invocation:
    """Get the listeners of a configuration, and write the files that HAProxy reads, for a start in this process.

    ``fallback`` says why this is the last good configuration. Waits for the binder as long as the invocation says.
    Return the invocation with the descriptors. Raises BinderAway, BindRefused, LaunchError.
    """
    record = msgspec.to_builtins(invocation)
    try:
        after = load.give(
            record,
            msgspec.to_builtins(config),
            str(fallback) if fallback else None,
            [],
            invocation.wait_s,
            phase=fallback.phase if fallback else "load",
        )
    except Away as error:
        raise BinderAway(str(error)) from error
    except Refused as error:
        raise BindRefused(str(error)) from error
    except LoadFailed as error:
        raise LaunchError(str(error)) from error
    except OSError as error:
        raise cannot_write(error.filename or invocation.directory, error) from error
    return msgspec.convert(after, Invocation)


def become_haproxy(invocation: Invocation, lock: int) -> NoReturn:
    """Execute HAProxy in this process. The instance's lock, which the caller holds, passes to ``settle``.

    Raises LaunchError if HAProxy cannot be executed.
    """
    try:
        load.start(msgspec.to_builtins(invocation), lock)
    except LoadFailed as error:
        raise LaunchError(str(error)) from error
    raise AssertionError("execve(2) returned")
