"""``run``: start HAProxy in this process."""

from __future__ import annotations

import os
import time
from typing import NoReturn

from multibinder import MultibinderError
from multibinder.kernel.process import stat_or_none
from multibinder.launch.errors import LaunchError
from multibinder_haproxy import sockets
from multibinder_haproxy.check import check_with_haproxy
from multibinder_haproxy.config.model import Config
from multibinder_haproxy.errors import BinderAway, BindRefused, ConfigRefused, TemplateFailure
from multibinder_haproxy.instance import Instance
from multibinder_haproxy.invocation import Invocation
from multibinder_haproxy.loading import (
    become_haproxy,
    next_generation,
    report_fallback,
    warn,
    warn_of_config,
    write_files,
)
from multibinder_haproxy.master import Master
from multibinder_haproxy.records import Loaded


def run(invocation: Invocation) -> NoReturn:
    """Prepare the configuration and its sockets, and become HAProxy. Raises LaunchError if it cannot be started."""
    instance = Instance.at(invocation.directory)
    instance.create()
    with instance.locked(timeout_s=invocation.wait_s):
        _refuse_a_second(instance, invocation)
        try:
            invocation, failure = _prepare(instance, invocation)
        except (LaunchError, OSError) as error:
            instance.summary.start_failed(error)
            raise
        if failure:
            report_fallback(instance, str(failure))
        instance.summary.started(failure)
    become_haproxy(invocation, invocation.command)


def _refuse_a_second(instance: Instance, invocation: Invocation) -> None:
    running: int | None
    try:
        running = Master(invocation.master_socket).processes().master
    except LaunchError:
        running = _loading(instance)
    if running is None:
        return
    raise LaunchError(
        f"{instance.name} is running already, as process {running}; "
        f"'multibinder-haproxy reload {instance.name}' loads its new configuration"
    )


def _loading(instance: Instance) -> int | None:
    """Return the PID of the recorded master if it lives: it does not answer while it loads its configuration."""
    summary = instance.summary.read_or_new()
    master = summary.master if summary.state != "stopped" else None
    if master is None or not master.start_ticks or master.pid == os.getpid():
        return None
    found = stat_or_none(master.pid)
    return master.pid if found and not found.has_ended and found.start_ticks == master.start_ticks else None


def _prepare(instance: Instance, invocation: Invocation) -> tuple[Invocation, LaunchError | None]:
    """Get the sockets and write the files for the current configuration, or for the last good one.

    In the latter case, also return the reason. Raises LaunchError if neither is possible.
    """
    config, failure = _config_to_start(instance, invocation)
    try:
        invocation = _obtain_and_write(instance, invocation, config, str(failure) if failure else None)
    except BinderAway:
        raise
    except BindRefused as error:
        good = instance.read_last_good()
        if invocation.strict or good is None or config.same_as(good.config):
            raise
        return _obtain_and_write(instance, invocation, good.config, str(error)), error
    if not failure:
        instance.write_last_good(config)
    return invocation, failure


def _config_to_start(instance: Instance, invocation: Invocation) -> tuple[Config, LaunchError | None]:
    """Render and check the current configuration. If that fails, return the last good one and the reason.

    Raises TemplateFailure or ConfigRefused if there is no last good one, or ``--strict`` forbids it.
    """
    good = instance.read_last_good()
    try:
        config = invocation.render(os.environ)
        warn_of_config(instance, invocation, config)
        if not config.same_as(good.config if good else None):
            check_with_haproxy(invocation, config, os.environ)
    except (TemplateFailure, ConfigRefused) as error:
        if invocation.strict or good is None:
            raise
        return good.config, error
    return config, None


def _obtain_and_write(instance: Instance, invocation: Invocation, config: Config, fallback: str | None) -> Invocation:
    """Get the sockets, release those that this configuration does not bind, and write the files."""
    fds: dict[str, int] = {}
    if invocation.binder:
        fds, notes = sockets.obtain(invocation.binder, config.slots, invocation.owner, invocation.wait_s)
        warn(instance, notes)
        try:
            # No worker of this instance is left that could serve its other listeners.
            sockets.release_others(invocation.binder, config.slots, invocation.owner)
        except MultibinderError as error:
            warn(instance, [f"cannot ask the binder what else we own: {error}"])
    loaded = Loaded(
        generation=next_generation(instance.read_loaded()),
        at=time.time(),
        config=config,
        master=os.getpid(),
        fallback=fallback,
        settled=True,
    )
    return write_files(instance, invocation, loaded, fds)
