"""Checks of a configuration that change neither a listener nor the running HAProxy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from multibinder import SOCKET_VARIABLE
from multibinder.launch.errors import NotRunning
from multibinder_haproxy import sockets
from multibinder_haproxy.arguments import parse, working_directory
from multibinder_haproxy.conditions import decide
from multibinder_haproxy.config.model import Config, Slot
from multibinder_haproxy.descriptors import Inherited, inherited_by_this_process, make_room, named_by, stand_ins
from multibinder_haproxy.dry_run import DryRun
from multibinder_haproxy.errors import BinderAway, ConfigRefused
from multibinder_haproxy.instance import Instance
from multibinder_haproxy.invocation import Invocation
from multibinder_haproxy.master import environment_of
from multibinder_haproxy.plan import config_files
from multibinder_haproxy.reexec import environment as remembered
from multibinder_haproxy.shared import others_on
from multibinder_haproxy.start_only import foretold
from multibinder_haproxy.version import refuse_too_old, was_replaced_since


class Checked(msgspec.Struct, frozen=True):
    """A configuration that passed the checks.

    ``warnings`` are HAProxy's own, and what makes it likely that HAProxy fails all the same. ``config.warnings`` are
    not among them: each load logs those. ``notes`` are for a person who asks for a check.
    """

    config: Config
    warnings: list[str] = []
    notes: list[str] = []


def check_reload(
    instance: Instance,
    invocation: Invocation,
    wait_s: float = sockets.RESTART_S,
    *,
    keep_compiled: bool = False,
) -> Checked:
    """Return the configuration that a reload would load. Raises LaunchError if the reload would fail.

    It changes nothing, so it cannot find every fault. ``wait_s`` is the time for a binder that is started again.
    Only a reload itself keeps the compiled templates.
    """
    master = instance.master().processes().master
    loaded = instance.read_loaded()
    if loaded is None or was_replaced_since(invocation.haproxy, loaded.at):
        refuse_too_old(invocation.haproxy)
    started_with, environment = _environments(instance, master)
    rendered = invocation.render(started_with, keep_compiled=keep_compiled)
    config = decide(invocation, rendered, environment, master, loaded, wait_s)
    held = {slot.key: slot for slot in loaded.config.slots} if loaded else {}
    for bind in loaded.unused if loaded else ():
        held.pop(bind.key, None)  # closed, because no worker accepts on it
    _check_new_binds(invocation, [slot for slot in config.slots if held.get(slot.key) != slot], wait_s)
    warnings = check_with_haproxy(invocation, config, environment, master)
    return Checked(config, [*warnings, *others_on(invocation.binder, config.slots, invocation.owner)])


def check_start(invocation: Invocation, environment: Mapping[str, str]) -> Checked:
    """Return the configuration that a start would load, with a warning for each check that was not possible.

    Raises LaunchError if the start would fail. Changes nothing.
    """
    refuse_too_old(invocation.haproxy)
    config = decide(invocation, invocation.render(environment), environment)
    warnings = check_with_haproxy(invocation, config, environment)
    if not invocation.binder:
        return Checked(config, [*warnings, f"{SOCKET_VARIABLE} is not set: HAProxy would bind by itself"])
    try:
        sockets.check_binds(invocation.binder, config.slots, invocation.owner)
    except BinderAway as error:
        return Checked(config, [*warnings, f"whether the binder would grant the binds is unknown: {error}"])
    # A note: the command that is checked may be about to replace the one that has the addresses.
    return Checked(config, warnings, others_on(invocation.binder, config.slots, invocation.owner))


def check_with_haproxy(
    invocation: Invocation, config: Config, environment: Mapping[str, str], master: int | None = None
) -> list[str]:
    """Run ``haproxy -c`` on the configuration, with placeholders for its sockets, and return HAProxy's warnings.

    ``master`` is the process that would load it; None if this process would. Raises ConfigRefused with HAProxy's
    message, LaunchError if there are too few descriptors.
    """
    make_room(len(config.slots) + len(config.files), f"{len(config.slots)} binds")
    with (
        _inherited(invocation, config, master) as inherited,
        sockets.placeholders(config.slots) as fds,
    ):
        files = config.fill(fds) if invocation.binder else config.plain()
        run = DryRun.of(invocation, environment, master, inherited)
        outcome = run.run(files, list(fds.values()))
    if outcome.code != 0:
        raise ConfigRefused(f"HAProxy refuses the configuration (exit code {outcome.code}):\n{outcome.text}")
    return [*run.warnings, *outcome.warnings, *foretold(config, master)]


def _environments(instance: Instance, master: int) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """Return the environment of ``run``, which templates see, and that of the master, which HAProxy sees at a reload.

    Up to HAProxy 3.0 the latter is what setenv, unsetenv and resetenv of the configuration made of the former. Raises
    NotRunning if neither is known.
    """
    started_with = remembered.read(instance.directory)
    try:
        current = environment_of(master)
    except NotRunning:  # with file capabilities, HAProxy does not show it
        if started_with is None:
            raise
        current = started_with
    return current if started_with is None else started_with, current


@contextlib.contextmanager
def _inherited(invocation: Invocation, config: Config, master: int | None) -> Iterator[Inherited]:
    """Yield the descriptors that HAProxy would inherit from its supervisor (fd@N in the configuration)."""
    if master is None:
        yield inherited_by_this_process()
        return
    arguments = parse(invocation.arguments)
    files = config_files(arguments, working_directory(arguments, invocation.cwd))
    named = named_by(config, [path for path in files if not path.startswith(f"{invocation.directory}/")])
    if named is None:
        yield Inherited()
        return
    with stand_ins(master, invocation.fds.values(), named) as inherited:
        yield inherited


def _check_new_binds(invocation: Invocation, slots: Sequence[Slot], wait_s: float) -> None:
    if not invocation.binder:
        return
    try:
        sockets.check_binds(invocation.binder, slots, invocation.owner, wait_s)
    except BinderAway as error:
        new = ", ".join(slot.key for slot in slots)
        raise BinderAway(f"the new configuration binds {new}, and the binder cannot be asked: {error}") from error
