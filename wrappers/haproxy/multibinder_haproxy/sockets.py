"""The descriptors that HAProxy inherits: those that its master holds, and those that the binder hands over."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import msgspec

from multibinder import Address, BinderUnavailable, Client, ListenerStatus, MultibinderError
from multibinder.launch.direct.slots import distinguished
from multibinder.wire import kinds
from multibinder.wire.status import OwnerStatus
from multibinder_haproxy.config.model import Slot
from multibinder_haproxy.errors import BinderAway, BindRefused

#: systemd or the guard starts a crashed binder again within this time; until then it does not count as away.
RESTART_S = 2.0
_TRY_AGAIN_S = 0.05

T = TypeVar("T")


def release_others(binder: str, slots: Iterable[Slot], owner: str) -> tuple[list[str], list[str]]:
    """Release every listener of ``owner`` that is in none of ``slots``.

    Returns the addresses that were closed, and those that stay open because another owner keeps them. Waits a moment
    for a binder that is being started again. Raises BinderUnavailable, RequestError.
    """
    slots = list(slots)
    wanted = {slot.key for slot in slots if not slot.netns}
    # The binder tells a namespace by its number, the configuration by a name.
    elsewhere = {msgspec.structs.replace(slot, netns="").key for slot in slots if slot.netns}
    surplus: list[ListenerStatus] = []
    for listener in _owned_by(binder, owner):
        known = elsewhere if listener.netns else wanted | elsewhere
        if not _keys_of(listener) & known:
            surplus.append(listener)
    outcomes = ask(binder, lambda it: it.release(surplus, owner=owner), RESTART_S) if surplus else []
    closed = [outcome.address for outcome in outcomes if outcome.outcome != "kept"]
    return closed, [outcome.address for outcome in outcomes if outcome.outcome == "kept"]


def leave_open(binder: str, owner: str) -> list[str]:
    """Let go of all listeners of ``owner`` without closing their ports, and return their addresses.

    Raises MultibinderError. Needs root, or the binder's own user.
    """
    listeners = _owned_by(binder, owner)
    addresses = {listener.address for listener in listeners}
    # An address means all of its shards.
    if listeners:
        ask(binder, lambda it: it.release(listeners, owner=owner, leave_open=True), RESTART_S)
    return sorted(addresses)


def open_listeners(binder: str | None, owner: str) -> list[str]:
    """Return the addresses that the binder holds for ``owner``. The list is empty if the binder does not answer."""
    if not binder:
        return []
    try:
        return [listener.address for listener in _owned_by(binder, owner, wait_s=0)]
    except MultibinderError:
        return []


def _owned_by(binder: str, label: str, wait_s: float = RESTART_S) -> list[ListenerStatus]:
    """Return the listeners to which this user has a claim with that label. Other users have labels of their own."""

    def owned(client: Client) -> list[ListenerStatus]:
        # The binder says who we are: in a user namespace, our uid is another one there.
        uid = client.hello().uid
        if uid is None:  # a binder of 0.1: a label belongs to one uid
            return [listener for listener in client.list() if label in listener.owners]
        return [listener for listener in client.list() if OwnerStatus(label, uid) in listener.claims]

    return ask(binder, owned, wait_s)


def _keys_of(listener: ListenerStatus) -> set[str]:
    """Return the keys of the slots that this listener satisfies, without a namespace."""
    address = distinguished(listener.address, listener.shard, "")
    any_port = distinguished(str(Address.parse(listener.address).any_port()), listener.shard, "")
    return {address, f"{address} ({listener.name})", f"{any_port} ({listener.name})"}


@contextlib.contextmanager
def placeholders(slots: Sequence[Slot]) -> Iterator[dict[str, int]]:
    """Open a socket for each slot: ``haproxy -c`` wants each fd@N to be an open socket of the right family."""
    with contextlib.ExitStack() as stack:
        yield {slot.key: stack.enter_context(_unbound(slot.address)).fileno() for slot in slots}


def _unbound(address: Address) -> socket.socket:
    accepts = kinds.of_address(address).accepts(address)
    return socket.socket(address.family, socket.SOCK_STREAM if accepts else socket.SOCK_DGRAM)


def check_binds(binder: str, slots: Sequence[Slot], owner: str, wait_s: float = RESTART_S) -> None:
    """Ask whether the binder would grant ``slots``; nothing is created. Raises BinderAway, BindRefused.

    Waits ``wait_s`` for a binder that is being started again.
    """
    if not slots:
        return
    specs = [slot.spec for slot in slots]
    try:
        ask(binder, lambda it: it.check(specs, owner=owner), wait_s)
    except BinderUnavailable as error:
        raise BinderAway(str(error)) from error
    except MultibinderError as error:
        raise BindRefused(str(error)) from error


def release_keys(binder: str, keys: Iterable[str], owner: str) -> list[str]:
    """Release the listeners of ``owner`` for these slots, by key. Return the addresses that were closed.

    Raises BinderUnavailable, RequestError.
    """
    wanted = set(keys)
    found = [listener for listener in _owned_by(binder, owner, wait_s=0) if _keys_of(listener) & wanted]
    outcomes = ask(binder, lambda it: it.release(found, owner=owner), RESTART_S) if found else []
    return [outcome.address for outcome in outcomes if outcome.outcome == "closed"]


def ask(binder: str, question: Callable[[Client], T], wait_s: float, timeout_s: float = 10.0) -> T:
    """Ask the binder, and ask again until ``wait_s`` is over if it does not answer.

    A binder that died before it answered may have carried out the request, so each ``question`` must be idempotent.
    """
    deadline = time.monotonic() + wait_s
    while True:
        try:
            with Client(binder, timeout=timeout_s) as client:
                return question(client)
        except BinderUnavailable:
            if time.monotonic() >= deadline:
                raise
            time.sleep(_TRY_AGAIN_S)
