"""Make listeners: open a new socket, or restore one that an earlier binder opened."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable
from typing import Any

import msgspec

from multibinder.binder.key import netns_of, short_cookie
from multibinder.binder.kind_inside import kind_in
from multibinder.binder.listener import Claim, Grant, Listener, Receiver, Setting
from multibinder.binder.live_options import note_setter
from multibinder.binder.owner import Owner
from multibinder.binder.records import Record
from multibinder.kernel.socket_options import netns_cookie_of
from multibinder.wire import kinds
from multibinder.wire.addresses import Address
from multibinder.wire.errors import AddressError
from multibinder.wire.messages import ListenerSpec
from multibinder.wire.options import Options

#: The owner of a socket that came without a record: a socket unit's, for example.
_INHERITED = Owner("inherited", 0)
_options: dict[Options, Options] = {}
_OPTIONS_MAX = 256


def open_listener(spec: ListenerSpec, uid: int, beside: Iterable[Listener] = ()) -> Listener:
    """Return a new listener that is bound and not ready yet. Its name belongs to ``uid``.

    ``beside`` are the listeners that overlap with it. Raises OSError; no socket is left open then.
    """
    kind = kind_in(kinds.of_address(spec.address), netns_of(spec))
    sock = kind.open(spec.address, spec.options, [other.socket for other in beside])
    address = kind.address_of(sock)
    # The bound address differs from the requested one only if the kernel chose the port.
    options = _shared(kind.actual_options(sock, spec.options))
    return Listener(
        sock,
        address,
        options,
        uid,
        kernel_chose_port=address != spec.address,
        netns=netns_of(spec),
        shard=spec.shard,
    )


def restored_listener(sock: socket.socket, record: Record | None) -> Listener:
    """Return the listener of a socket that an earlier binder opened, or that came without a record.

    Address, fixed options and queue limit are those of the socket; ``record`` has the rest.
    """
    kind = kinds.of_socket(sock)
    assert kind is not None  # noqa: S101 (inherit.py lets nothing else through)
    address = kind.address_of(sock)
    if record is not None and record.address and not kind.is_retired(sock):
        recorded_address = Address.parse(record.address)
        # A program may have renamed the path of a Unix socket that was adopted from it.
        if kind.is_bound_to(sock, recorded_address):
            address = recorded_address
    if record is None:
        record = Record(str(address), 0, created=time.time())
    # A record that was saved from a damaged line knows no owner.
    recorded = record.claims or {str(_INHERITED): 1}
    claims = {Owner.parse(owner): Claim(0, handoffs) for owner, handoffs in recorded.items()}
    asked = record.asked()
    listener = Listener(
        sock,
        address,
        _shared(kind.actual_options(sock, asked)),
        # A record of an older version has no such field. Its names belonged to the client that made the listener.
        record.name_uid if record.name_uid is not None else next((owner.uid for owner in claims), 0),
        queue_limit=kind.queue(sock).limit,
        claims=claims,
        handoffs=record.handoffs,
        created=record.created,
        kernel_chose_port=record.kernel_chose_port,
        held_outside_pid_namespace=record.held_outside_pid_namespace,
        netns=short_cookie(netns_cookie_of(sock)) if address.is_in_netns else 0,
        shard=record.shard if kind.can_shard else 0,
        joined=record.joined,
        adopted_shard=record.adopted_shard,
        has_program=record.has_program,
    )
    if record.setters:
        setters = {name: Owner.parse(owner) for name, owner in record.setters.items()}
        listener.setters = {name: owner for name, owner in setters.items() if owner in claims}
    elif len(claims) == 1:
        note_setter(listener, *claims)
    return listener


def pending_grants(listener: Listener, record: Record) -> list[Grant]:
    """Return the recorded pending grants of a restored listener. Those that make no sense are left out."""
    grants: list[Grant] = []
    for pending in sorted(record.pending, key=lambda pending: pending.number):
        if pending.owner not in record.claims:
            continue
        owner, former = Owner.parse(pending.owner), dict[str, Any]()
        try:
            options = (
                pending.options if pending.backlog is msgspec.UNSET else {**pending.options, "backlog": pending.backlog}
            )
            for name, value in options.items():
                if name in listener.kind.live_options:
                    setter = Owner.parse(pending.setters[name]) if name in pending.setters else None
                    former[name] = Setting(getattr(Options(**{name: value}), name), setter)
            if pending.name is not msgspec.UNSET and 0 <= pending.name[1] < 2**32:
                former["name"] = (Options(name=pending.name[0]).name, pending.name[1])
        except AddressError:
            former.clear()
        if pending.held_outside_pid_namespace is not msgspec.UNSET:
            former["held_outside_pid_namespace"] = pending.held_outside_pid_namespace
        receiver = Receiver(pending.connection, pending.request, pending.acknowledges, pending.pid)
        grants.append(Grant(listener, owner, pending.number, receiver=receiver, former=former))
    return grants


def _shared(options: Options) -> Options:
    """Return an equal structure that other listeners have, too, if they have no name: it takes 200 bytes."""
    if options.name is not None:
        return options
    if len(_options) >= _OPTIONS_MAX:
        _options.clear()
    return _options.setdefault(options, options)
