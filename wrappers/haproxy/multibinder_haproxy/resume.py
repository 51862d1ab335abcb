"""The re-exec by which HAProxy's master reloads: load the configuration anew, and become HAProxy again."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from typing import NoReturn

import msgspec

from multibinder.launch.errors import LaunchError
from multibinder_haproxy import sockets
from multibinder_haproxy.arguments import old_workers, parse
from multibinder_haproxy.config.model import Config, Slot
from multibinder_haproxy.instance import Instance
from multibinder_haproxy.invocation import VARIABLE, Invocation
from multibinder_haproxy.loading import (
    become_haproxy,
    next_generation,
    report_fallback,
    warn,
    warn_of_config,
    write_files,
)
from multibinder_haproxy.records import Loaded

#: The time for the binder's answer. HAProxy's master is away meanwhile: a worker that dies is not replaced.
_RESUME_TIMEOUT_S = 5.0


def resume(record: str, arguments: list[str]) -> NoReturn:
    """Load the configuration anew, and become HAProxy again. This process is HAProxy's master, re-executed.

    ``record`` is the Invocation, ``arguments`` are those of the re-exec. After a failure of the configuration or the
    binder, the last good configuration is loaded. Any other failure is raised; then the caller executes HAProxy with
    the files as they are. Signals are blocked here, and stay so: HAProxy blocked them, and unblocks them itself.
    """
    invocation = msgspec.json.decode(record, type=Invocation)
    instance = Instance.at(invocation.directory)
    old = old_workers(parse(arguments))
    held = sockets.still_listening(invocation.fds)
    try:
        invocation = _load_current(instance, invocation, held, old)
        instance.summary.reload_began(old)
    except (LaunchError, OSError) as error:
        try:
            invocation = _fall_back(instance, invocation, held, old, str(error))
        finally:
            instance.summary.reload_began(old, error)
    _settle_later(instance, invocation)
    become_haproxy(invocation, [invocation.wrapper, *arguments])


def _load_current(instance: Instance, invocation: Invocation, held: Mapping[str, int], old: list[int]) -> Invocation:
    """Render the templates, and prepare the result for HAProxy. After an error, nothing has changed."""
    config = invocation.render(os.environ)
    warn_of_config(instance, invocation, config)
    before = instance.read_loaded()
    loaded = Loaded(next_generation(before), time.time(), config, os.getpid(), old)
    return _reobtain_and_write(instance, invocation, held, before.config if before else None, loaded)


def _fall_back(
    instance: Instance, invocation: Invocation, held: Mapping[str, int], old: list[int], reason: str
) -> Invocation:
    """Prepare the last good configuration. Raises LaunchError with ``reason`` if there is none."""
    good = instance.read_last_good()
    if good is None:
        raise LaunchError(reason)
    report_fallback(instance, reason)
    loaded = Loaded(
        next_generation(instance.read_loaded()), time.time(), good.config, os.getpid(), old, fallback=reason
    )
    return _reobtain_and_write(instance, invocation, held, good.config, loaded)


def _reobtain_and_write(
    instance: Instance, invocation: Invocation, held: Mapping[str, int], before: Config | None, loaded: Loaded
) -> Invocation:
    """Ask the binder for the listeners that are new, write the files, and close what is no longer used.

    ``held`` are the descriptors of this process by slot key; ``before`` is the configuration that asked for them.
    """
    slots = loaded.config.slots
    if not invocation.binder:
        return write_files(instance, invocation, loaded, {})
    known = {slot.key: slot for slot in before.slots} if before else {}
    fresh, notes = sockets.obtain(
        invocation.binder,
        [slot for slot in slots if slot.key not in held or _has_other_options(slot, known)],
        invocation.owner,
        sockets.RESTART_S,
        timeout_s=_RESUME_TIMEOUT_S,
    )
    warn(instance, notes)
    fds = {slot.key: held.get(slot.key, fresh.get(slot.key, -1)) for slot in slots}
    try:
        result = write_files(instance, invocation, loaded, fds)
    except BaseException:
        sockets.close(fresh.values())
        raise
    # HAProxy never closes descriptors that it does not know. Those that the new configuration does not bind would keep
    # their ports listening in the master for ever.
    sockets.close({*held.values(), *fresh.values()} - {*fds.values()})
    return result


def _has_other_options(slot: Slot, known: Mapping[str, Slot]) -> bool:
    """Return whether the options of a slot changed: then the binder applies them to the live socket."""
    return known.get(slot.key, slot) != slot


def _settle_later(instance: Instance, invocation: Invocation) -> None:
    """Start ``settle`` in another process, unless a ``reload`` command waits for this reload."""
    if instance.is_locked():
        return
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        os.setsid()
        if os.fork() == 0:
            signal.pthread_sigmask(signal.SIG_SETMASK, [])
            os.closerange(3, max([64, *invocation.fds.values()]) + 1)
            kept = {
                key: value for key, value in os.environ.items() if not key.startswith("HAPROXY_") and key != VARIABLE
            }
            command = [invocation.wrapper, "settle", "--runtime-dir", instance.runtime_directory, instance.name]
            os.execve(invocation.wrapper, command, kept)
    except OSError as error:
        instance.log.write("error", f"cannot watch this reload: {error.strerror}")
    finally:
        os._exit(0)
