"""``run``: start HAProxy in this process."""

from __future__ import annotations

import os
import time
from typing import NoReturn

import msgspec

from multibinder.launch import first_switch
from multibinder.launch.errors import LaunchError
from multibinder_haproxy import last_good
from multibinder_haproxy.check import check_with_haproxy
from multibinder_haproxy.conditions import decide
from multibinder_haproxy.config.model import Config
from multibinder_haproxy.errors import BinderAway, BindRefused, ConfigRefused, NeverCameUp, TemplateFailure
from multibinder_haproxy.instance import Instance
from multibinder_haproxy.invocation import Invocation
from multibinder_haproxy.loading import become_haproxy, give, warn_of_config
from multibinder_haproxy.reconcile import release_all
from multibinder_haproxy.reexec import environment, load, processes
from multibinder_haproxy.rights import release_refused
from multibinder_haproxy.settle import judge_earlier_start
from multibinder_haproxy.version import refuse_too_old, was_replaced_since

#: The process that settles the end of an earlier start has the lock for a moment.
_SETTLED_WITHIN_S = 10.0


def run(invocation: Invocation, *, adopt: bool = False) -> NoReturn:
    """Prepare the configuration and its sockets, and become HAProxy. Raises LaunchError if it cannot be started.

    With ``adopt``, addresses on which another server accepts are taken over from it; it is ended when a worker came up.

    After a failure the listeners of the instance are closed, unless the invocation keeps them for the next start: a
    port that no process serves makes its clients wait for nothing.
    """
    instance = Instance.at(invocation.directory)
    _refuse_a_second(instance)
    instance.create()
    with instance.locked(max(invocation.wait_s, _SETTLED_WITHIN_S)) as lock:
        _refuse_a_second(instance)
        carried = processes.take_master_lock(instance.directory)
        invocation = msgspec.structs.replace(invocation, lock_descriptor=carried)
        try:
            environment.write(instance.directory, os.environ)
            _prepare_state_directory(instance, invocation)
            judge_earlier_start(instance, invocation)
            invocation, failure = _prepare(instance, invocation, adopt=adopt)
            if failure:
                load.report_fallback(instance.name, str(failure))
            become_haproxy(invocation, lock)
        except (LaunchError, OSError) as error:
            instance.summary.start_failed(error)
            if not invocation.keep_listeners:
                _close_listeners(instance, invocation)
            raise


def _refuse_a_second(instance: Instance) -> None:
    """Raise LaunchError if the instance has a master, also one that still loads, or that lost its directory."""
    running = processes.master_of(instance.directory)
    if running is not None:
        raise LaunchError(
            f"{instance.name} is running already, as process {running}; "
            f"'multibinder-haproxy reload {instance.name}' loads its new configuration"
        )


def _prepare_state_directory(instance: Instance, invocation: Invocation) -> None:
    try:
        last_good.make_directory(invocation)
    except LaunchError as error:
        instance.log.write("warning", f"the last good configuration will not survive a reboot: {error}")


def _close_listeners(instance: Instance, invocation: Invocation) -> None:
    closed, problem = release_all(invocation)
    if closed:
        instance.log.write("warning", f"HAProxy is not started: closed {', '.join(closed)}")
    if problem:
        instance.log.write("error", problem)


def _prepare(instance: Instance, invocation: Invocation, *, adopt: bool) -> tuple[Invocation, LaunchError | None]:
    """Get the sockets and write the files for the current configuration, or for the last good one.

    In the latter case, also return the reason. Raises LaunchError if neither is possible.
    """
    config, failure = _config_to_start(instance, invocation)
    if adopt and invocation.binder:
        here = [slot.address for slot in config.slots if not slot.netns]
        for former in first_switch.begin(instance, invocation.binder, invocation.owner, here):
            instance.log.write("notice", f"taking over from {former}, which serves until a worker has come up")
    if closed := release_refused(invocation, config):
        instance.log.write("warning", f"the binder has no right to {', '.join(closed)} any more: closed, for HAProxy")
    try:
        invocation = give(invocation, config, failure)
    except BinderAway:
        raise
    except BindRefused as error:
        good = last_good.read(invocation)
        if invocation.strict or good is None or config.same_as(good.config):
            raise
        return give(invocation, good.config, error), error
    return invocation, failure


def _config_to_start(instance: Instance, invocation: Invocation) -> tuple[Config, LaunchError | None]:
    """Render and check the current configuration. If that fails, return the last good one and the reason.

    Raises TemplateFailure, ConfigRefused or NeverCameUp if there is no last good one, or ``--strict`` forbids it.
    """
    good = last_good.read(invocation)
    try:
        rendered = invocation.render(os.environ, keep_compiled=True)
        config = decide(invocation, rendered, os.environ, wait_s=invocation.wait_s)
        warn_of_config(instance, invocation, config)
        # Another HAProxy may refuse what the one before was content with.
        if good is None or not config.same_as(good.config) or was_replaced_since(invocation.haproxy, good.at):
            if good is None or not config.same_as(good.config):
                _refuse_condemned(invocation, config, has_another=good is not None)
            refuse_too_old(invocation.haproxy)
            check_with_haproxy(invocation, config, os.environ)
    except (TemplateFailure, ConfigRefused, NeverCameUp) as error:
        if invocation.strict or good is None:
            raise
        return good.config, error
    return config, None


def _refuse_condemned(invocation: Invocation, config: Config, *, has_another: bool) -> None:
    """Raise NeverCameUp for a configuration with which no worker came up, unless there is no other one to try."""
    condemned = last_good.condemned(invocation, config)
    if condemned is None or not (has_another or invocation.strict):
        return
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(condemned.at))
    raise NeverCameUp(
        f"no worker came up with the current configuration on {at}: {condemned.reason}\n"
        "It is tried again when it, or a file that it is made of, has changed, or at "
        f"'multibinder-haproxy reload {invocation.name}'"
        + (f", or without {last_good.path_of_condemned(invocation)}" if invocation.strict else "")
    )
