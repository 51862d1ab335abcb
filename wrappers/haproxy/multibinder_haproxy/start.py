"""``run``: start HAProxy in this process."""

from __future__ import annotations

import os
from typing import NoReturn

import msgspec

from multibinder.launch.errors import LaunchError
from multibinder_haproxy.check import check_with_haproxy
from multibinder_haproxy.conditions import decide
from multibinder_haproxy.config.model import Config
from multibinder_haproxy.errors import BinderAway, BindRefused, ConfigRefused, TemplateFailure
from multibinder_haproxy.instance import Instance
from multibinder_haproxy.invocation import Invocation
from multibinder_haproxy.loading import become_haproxy, give, warn_of_config
from multibinder_haproxy.reexec import environment, load, processes
from multibinder_haproxy.version import refuse_too_old, was_replaced_since


def run(invocation: Invocation) -> NoReturn:
    """Prepare the configuration and its sockets, and become HAProxy. Raises LaunchError if it cannot be started."""
    instance = Instance.at(invocation.directory)
    _refuse_a_second(instance)
    instance.create()
    with instance.locked(timeout_s=invocation.wait_s) as lock:
        _refuse_a_second(instance)
        carried = processes.take_master_lock(instance.directory)
        invocation = msgspec.structs.replace(invocation, lock_descriptor=carried)
        try:
            environment.write(instance.directory, os.environ)
            invocation, failure = _prepare(instance, invocation)
        except (LaunchError, OSError) as error:
            instance.summary.start_failed(error)
            raise
        if failure:
            load.report_fallback(instance.name, str(failure))
        become_haproxy(invocation, lock)


def _refuse_a_second(instance: Instance) -> None:
    """Raise LaunchError if the instance has a master, also one that still loads, or that lost its directory."""
    running = processes.master_of(instance.directory)
    if running is not None:
        raise LaunchError(
            f"{instance.name} is running already, as process {running}; "
            f"'multibinder-haproxy reload {instance.name}' loads its new configuration"
        )


def _prepare(instance: Instance, invocation: Invocation) -> tuple[Invocation, LaunchError | None]:
    """Get the sockets and write the files for the current configuration, or for the last good one.

    In the latter case, also return the reason. Raises LaunchError if neither is possible.
    """
    config, failure = _config_to_start(instance, invocation)
    try:
        invocation = give(invocation, config, failure)
    except BinderAway:
        raise
    except BindRefused as error:
        good = instance.read_last_good()
        if invocation.strict or good is None or config.same_as(good.config):
            raise
        return give(invocation, good.config, error), error
    return invocation, failure


def _config_to_start(instance: Instance, invocation: Invocation) -> tuple[Config, LaunchError | None]:
    """Render and check the current configuration. If that fails, return the last good one and the reason.

    Raises TemplateFailure or ConfigRefused if there is no last good one, or ``--strict`` forbids it.
    """
    good = instance.read_last_good()
    try:
        config = decide(invocation, invocation.render(os.environ), os.environ)
        warn_of_config(instance, invocation, config)
        # Another HAProxy may refuse what the one before was content with.
        if good is None or not config.same_as(good.config) or was_replaced_since(invocation.haproxy, good.at):
            refuse_too_old(invocation.haproxy)
            check_with_haproxy(invocation, config, os.environ)
    except (TemplateFailure, ConfigRefused) as error:
        if invocation.strict or good is None:
            raise
        return good.config, error
    return config, None
