"""How HAProxy comes to run: ``run``, and the re-exec by which HAProxy's master reloads."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping
from typing import NoReturn

import msgspec

from multibinder import MultibinderError
from multibinder_haproxy import sockets, summary
from multibinder_haproxy.arguments import old_workers, parse
from multibinder_haproxy.check import check_with_haproxy
from multibinder_haproxy.config.jinja import Config
from multibinder_haproxy.entry import exec_haproxy
from multibinder_haproxy.errors import BinderAway, BindRefused, ConfigRefused, TemplateFailure, WrapperError
from multibinder_haproxy.instance import Instance, Loaded
from multibinder_haproxy.invocation import VARIABLE, Invocation
from multibinder_haproxy.log import say, set_status
from multibinder_haproxy.master import Master

#: execve(2): one string of the environment has at most 32 pages (MAX_ARG_STRLEN).
_VARIABLE_BYTES = 32 * 4096 - len(VARIABLE) - 2
#: For the binder's answer while HAProxy's master is away: its workers serve, but nobody would replace one that dies.
_RESUME_TIMEOUT_S = 5.0


def run(invocation: Invocation) -> NoReturn:
    """Start HAProxy in this process. Raises WrapperError when it cannot be started."""
    instance = Instance.at(invocation.directory)
    instance.create()
    with instance.locked(timeout_s=invocation.wait_s):
        _refuse_a_second(instance, invocation)
        try:
            invocation, failure = _load(invocation, instance)
        except (WrapperError, OSError) as error:
            summary.start_failed(instance, error)
            raise
        if failure:
            _warn_of_fallback(invocation, str(failure))
        summary.started(instance, failure)
    _become_haproxy(invocation, invocation.command)


def resume(record: str, arguments: list[str]) -> NoReturn:
    """HAProxy's master has re-executed itself, and is us: load the configuration afresh and become HAProxy again.

    What goes wrong with the configuration or the binder ends in the last good configuration; what goes wrong beyond
    that is raised, and the caller executes HAProxy all the same, with the files as they are. Signals are blocked
    here, and stay so: HAProxy did it and will undo it.
    """
    invocation = msgspec.json.decode(record, type=Invocation)
    instance = Instance.at(invocation.directory)
    old = old_workers(parse(arguments))
    held = sockets.at_hand(invocation.fds)
    try:
        invocation = _renew(invocation, instance, held, old)
        summary.reload_began(instance, old)
    except (WrapperError, OSError) as error:
        try:
            invocation = _fall_back(invocation, instance, held, old, str(error))
        finally:
            summary.reload_began(instance, old, error)
    _settle_later(invocation, instance)
    _become_haproxy(invocation, [invocation.wrapper, *arguments])


def _refuse_a_second(instance: Instance, invocation: Invocation) -> None:
    try:
        running = Master(invocation.master_socket).processes().master
    except WrapperError:
        return
    raise WrapperError(
        f"{instance.name} is running already, as process {running}; "
        f"'multibinder-haproxy reload {instance.name}' loads its new configuration"
    )


def _load(invocation: Invocation, instance: Instance) -> tuple[Invocation, WrapperError | None]:
    """Choose and equip; and why it is not what the templates say, if so."""
    config, failure = _choose(invocation, instance)
    try:
        invocation = _equip(invocation, instance, config, str(failure) if failure else None)
    except BinderAway:
        raise
    except BindRefused as error:
        good = instance.read_last_good()
        if invocation.strict or good is None or config.same_as(good.config):
            raise
        return _equip(invocation, instance, good.config, str(error)), error
    if not failure:
        instance.write_last_good(config)
    return invocation, failure


def _choose(invocation: Invocation, instance: Instance) -> tuple[Config, WrapperError | None]:
    """The configuration to start with, and why it is not what the templates say, if so."""
    good = instance.read_last_good()
    try:
        config = invocation.render(os.environ)
        _warn(invocation, config)
        if not config.same_as(good.config if good else None):
            check_with_haproxy(invocation, config, os.environ)
    except (TemplateFailure, ConfigRefused) as error:
        if invocation.strict or good is None:
            raise
        return good.config, error
    return config, None


def _warn(invocation: Invocation, config: Config) -> None:
    for warning in config.warnings:
        say("warning", invocation.name, warning)
    if not invocation.sources:
        say(
            "warning", invocation.name, "no -f names a template (.j2, .mb, .erb): multibinder holds none of its sockets"
        )
    elif not config.slots:
        say("warning", invocation.name, "no template calls bind_tcp(): multibinder holds none of HAProxy's sockets")
    if not invocation.binder:
        say(
            "warning",
            invocation.name,
            "MULTIBINDER_SOCK is not set: HAProxy binds by itself, and A RESTART WILL REFUSE CONNECTIONS; "
            "start 'multibinder serve' and set MULTIBINDER_SOCK to its socket",
        )


def _warn_of_fallback(invocation: Invocation, reason: str) -> None:
    say("error", invocation.name, f"{reason}\nNOT the current configuration: HAProxy runs with the last good one")
    set_status(f"Running with the LAST GOOD configuration: {reason.splitlines()[0]}")


def _equip(invocation: Invocation, instance: Instance, config: Config, fallback: str | None) -> Invocation:
    """Get the sockets, write the files, and give back what this configuration does not bind."""
    fds: dict[str, int] = {}
    if invocation.binder:
        fds, notes = sockets.obtain(invocation.binder, config.slots, invocation.owner, invocation.wait_s)
        for note in notes:
            say("warning", invocation.name, note)
        try:
            # No worker of ours is left that could serve anything else of ours.
            sockets.release_others(invocation.binder, config.slots, invocation.owner)
        except MultibinderError as error:
            say("warning", invocation.name, f"cannot ask the binder what else we own: {error}")
    loaded = Loaded(_next(instance.read_loaded()), time.time(), config, os.getpid(), fallback=fallback, settled=True)
    return _write(invocation, instance, loaded, fds)


def _renew(invocation: Invocation, instance: Instance, held: Mapping[str, int], old: list[int]) -> Invocation:
    """Render afresh, ask for what is new, close what is no longer used. On an error, nothing has changed."""
    config = invocation.render(os.environ)
    _warn(invocation, config)
    before = instance.read_loaded()
    known = {slot.key: slot for slot in before.config.slots} if before else {}
    return _reequip(invocation, instance, held, known, Loaded(_next(before), time.time(), config, os.getpid(), old))


def _fall_back(
    invocation: Invocation, instance: Instance, held: Mapping[str, int], old: list[int], reason: str
) -> Invocation:
    good = instance.read_last_good()
    if good is None:
        raise WrapperError(reason)
    _warn_of_fallback(invocation, reason)
    known = {slot.key: slot for slot in good.config.slots}
    loaded = Loaded(_next(instance.read_loaded()), time.time(), good.config, os.getpid(), old, fallback=reason)
    return _reequip(invocation, instance, held, known, loaded)


def _next(before: Loaded | None) -> int:
    return before.generation + 1 if before else 1


def _reequip(
    invocation: Invocation, instance: Instance, held: Mapping[str, int], known: Mapping[str, object], loaded: Loaded
) -> Invocation:
    slots = loaded.config.slots
    if not invocation.binder:
        return _write(invocation, instance, loaded, {})
    # A slot whose options changed is asked for again, so that the binder applies them to the live socket.
    wanted = [slot for slot in slots if slot.key not in held or known.get(slot.key, slot) != slot]
    fresh, notes = sockets.obtain(
        invocation.binder, wanted, invocation.owner, sockets.RESTART_S, timeout_s=_RESUME_TIMEOUT_S
    )
    for note in notes:
        say("warning", invocation.name, note)
    fds = {slot.key: held.get(slot.key, fresh.get(slot.key, -1)) for slot in slots}
    try:
        result = _write(invocation, instance, loaded, fds)
    except BaseException:
        sockets.close(fresh.values())
        raise
    # HAProxy never closes descriptors that it does not know: what the new configuration does not bind would keep its
    # port listening in the master for ever.
    sockets.close({*held.values(), *fresh.values()} - {*fds.values()})
    return result


def _write(invocation: Invocation, instance: Instance, loaded: Loaded, fds: Mapping[str, int]) -> Invocation:
    invocation = invocation.with_fds(fds)
    size = len(msgspec.json.encode(invocation))
    if size > _VARIABLE_BYTES:
        raise WrapperError(
            f"{len(fds)} binds are too many for one instance: their record has {size} bytes and the environment takes "
            f"{_VARIABLE_BYTES} (execve(2)); split the configuration into several instances"
        )
    files = loaded.config.fill(fds) if invocation.binder else loaded.config.plain()
    instance.write_config(files, [source.target for source in invocation.sources if source.is_directory])
    instance.write_loaded(loaded)
    instance.write_invocation(invocation)
    return invocation


def _settle_later(invocation: Invocation, instance: Instance) -> None:
    """After a reload that no ``reload`` command watches, somebody must: see settle.py. It ends by itself."""
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
            runtime_directory = os.path.dirname(instance.directory)
            command = [invocation.wrapper, "settle", "--runtime-dir", runtime_directory, instance.name]
            os.execve(invocation.wrapper, command, kept)
    except OSError as error:
        say("error", invocation.name, f"cannot watch this reload: {error.strerror}")
    finally:
        os._exit(0)


def _become_haproxy(invocation: Invocation, command: list[str]) -> NoReturn:
    os.environ[VARIABLE] = msgspec.json.encode(invocation).decode()
    sys.stderr.flush()
    exec_haproxy(invocation.haproxy, command)
