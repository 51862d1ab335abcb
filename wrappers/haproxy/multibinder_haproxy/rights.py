"""Plain binds that the binder has no right to open, and HAProxy has: they are left to HAProxy."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

import msgspec

from multibinder import Address, BindError, BinderUnavailable, Client, MultibinderError, NotAllowed
from multibinder_haproxy import sockets
from multibinder_haproxy.config.model import Config, Slot
from multibinder_haproxy.config.taken import Taken
from multibinder_haproxy.invocation import Invocation
from multibinder_haproxy.records import Loaded

#: A policy, a capability that the binder has not (privileged ports, options), and its sandbox (paths, chown).
_OF_RIGHTS = frozenset([errno.EACCES, errno.EPERM, errno.EROFS])
_FIRST_FREE_PORT = "/proc/sys/net/ipv4/ip_unprivileged_port_start"
_CAP_NET_BIND_SERVICE = 10
_HAPROXY_HAS_IT = "the binder refused it before, so HAProxy has it until its next start"


def applied_as_granted(
    taken: Taken, config: Config, invocation: Invocation, loaded: Loaded | None, wait_s: float
) -> Config:
    """Return the configuration with the binds taken over, but for those that the binder has no right to open.

    ``loaded`` is what HAProxy runs with; None at a start. A listener that it runs with is kept, with the settings that
    it has. ``wait_s`` is the time for a binder that does not answer. If it does not, all binds are taken over: what
    follows says that it is away.
    """
    wanted = {slot.key: slot for edit in taken.edits for slot in edit.slots}
    held: Mapping[str, Slot] = {}
    refused: dict[str, str] = {}
    if loaded is not None:
        closed = {bind.key for bind in loaded.unused}  # no worker accepts on them
        held = {slot.key: slot for slot in loaded.config.slots if slot.key not in closed}
        refused = {key: _HAPROXY_HAS_IT for key in loaded.config.refused if key in wanted}
    asked = [slot for key, slot in wanted.items() if key not in refused and held.get(key) != slot]
    said = _refusals(invocation, asked, wait_s)
    refused |= {key: why for key, why in said.items() if key not in held and _haproxy_may(wanted[key].address)}
    kept = {key: held[key] for key in said if key in held}
    granted = taken.without(refused)
    left = wanted.keys() - {slot.key for edit in granted.edits for slot in edit.slots}
    after = granted.applied_to(config)
    warnings = [f"{key}: its listener keeps its settings, because the binder refuses new ones: {said[key]}"
                for key in kept]  # fmt: skip
    after = msgspec.structs.replace(
        after,
        slots=[kept.get(slot.key, slot) for slot in after.slots],
        refused=sorted(left),
        warnings=[*after.warnings, *warnings],
        rendered="",
    )
    return msgspec.structs.replace(after, rendered=after.digest())


def _refusals(invocation: Invocation, slots: list[Slot], wait_s: float) -> dict[str, str]:
    """Return why the binder refuses slots for lack of rights, by key."""
    if not invocation.binder or not slots:
        return {}

    def ask(client: Client) -> dict[str, str]:
        if len(slots) > 1 and _granted(client, slots, invocation.owner):
            return {}
        found = {}
        for slot in slots:
            try:
                client.check([slot.spec], owner=invocation.owner)
            except NotAllowed as error:
                found[slot.key] = str(error)
            except BindError as error:
                if error.errno in _OF_RIGHTS or (error.errno == errno.ENOENT and slot.address.path is not None):
                    found[slot.key] = str(error)
            except BinderUnavailable:
                raise
            except MultibinderError:
                break  # a limit, for example: the bind itself says so
        return found

    try:
        return sockets.ask(invocation.binder, ask, wait_s)
    except BinderUnavailable:
        return {}


def _granted(client: Client, slots: list[Slot], owner: str) -> bool:
    try:
        client.check([slot.spec for slot in slots], owner=owner)
    except BinderUnavailable:
        raise
    except MultibinderError:
        return False
    return True


def _haproxy_may(address: Address) -> bool:
    """Return whether HAProxy, started by this process, may have the right to bind an address."""
    if address.path is not None:
        return os.access(os.path.dirname(address.path), os.W_OK | os.X_OK)
    ip = address.ip_endpoint
    if ip is None:
        return True
    try:
        with open(_FIRST_FREE_PORT) as file:
            if ip.port >= int(file.read()):
                return True
        with open("/proc/self/status") as file:
            effective = next(line for line in file if line.startswith("CapEff:")).split()[1]
    except (OSError, StopIteration, ValueError):
        return True
    return bool(int(effective, 16) >> _CAP_NET_BIND_SERVICE & 1)


def release_refused(invocation: Invocation, config: Config) -> list[str]:
    """Release the listeners of an earlier run that HAProxy is to bind itself now. Return the addresses that closed.

    For a start: no HAProxy of the instance serves on them, and while the binder holds them HAProxy cannot bind.
    """
    if not invocation.binder or not config.refused:
        return []
    try:
        return sockets.release_keys(invocation.binder, config.refused, invocation.owner)
    except MultibinderError:
        return []  # HAProxy then says that the address is in use
