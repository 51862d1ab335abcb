"""Indexes of listeners: by address, by name, and by the addresses that each takes."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import msgspec

from multibinder.binder import events
from multibinder.binder.listener import Listener
from multibinder.wire import kinds
from multibinder.wire.addresses import Address
from multibinder.wire.messages import ListenerSpec


class TakenAddresses:
    """The addresses that listeners take, with the listeners of each: ``[::]:443`` takes ``0.0.0.0:443`` as well."""

    def __init__(self) -> None:
        # Nearly all have one listener, for which a tuple is the smallest.
        self._taken: dict[Address, tuple[Listener, ...]] = {}
        #: The listeners that a wildcard address overlaps with.
        self._below: dict[Address, list[Listener]] = {}

    def add(self, listener: Listener) -> None:
        for address in _effective(listener):
            self._taken[address] = (*self._taken.get(address, ()), listener)
            self._below.setdefault(address.wildcard(), []).append(listener)

    def remove(self, listener: Listener) -> None:
        for address in _effective(listener):
            if others := tuple(other for other in self._taken.get(address, ()) if other is not listener):
                self._taken[address] = others
            else:
                self._taken.pop(address, None)
            below = self._below.get(address.wildcard(), [])
            if listener in below:
                below.remove(listener)
            if not below:
                self._below.pop(address.wildcard(), None)

    def clear(self) -> None:
        self._taken.clear()
        self._below.clear()

    def overlapping(self, address: Address, v6only: bool | None) -> list[Listener]:
        """Return the listeners with which a socket on ``address`` competes for clients.

        Two sockets overlap if they are on one port, and one has the address of the other or a wildcard address that
        includes it (inet_rcv_saddr_equal() in net/ipv4/inet_connection_sock.c). Then the kernel lets both listen only
        if they share the port (kernel/port_sharing.py).
        """
        found: list[Listener] = []
        for taken in kinds.of_address(address).effective_addresses(address, v6only):
            wildcard = taken.wildcard()
            if taken != wildcard:
                found += self._taken.get(taken, ())
                found += self._taken.get(wildcard, ())
            else:
                found += self._below.get(wildcard, ())
        return list(dict.fromkeys(found)) if found else found


class ListenerIndex:
    """The listeners of the store. A name belongs to the uid that gave it: each uid finds only its own names."""

    def __init__(self) -> None:
        self._by_address: dict[Address, Listener] = {}
        self._by_name: dict[tuple[int, str], Listener] = {}
        self._taken = TakenAddresses()

    def __len__(self) -> int:
        return len(self._by_address)

    def __iter__(self) -> Iterator[Listener]:
        return iter(self._by_address.values())

    def at(self, address: Address) -> Listener | None:
        """Return the listener on this address, or None."""
        return self._by_address.get(address)

    def named(self, uid: int, name: str) -> Listener | None:
        """Return the listener that has this name of this uid, or None."""
        return self._by_name.get((uid, name))

    def find(self, spec: ListenerSpec, uid: int) -> Listener | None:
        """Return the listener that has the name of ``spec``, as a name of ``uid``, or its address. The name goes
        first."""
        if spec.options.name and (named := self._by_name.get((uid, spec.options.name))):
            return named
        return self._by_address.get(spec.address)

    def overlapping(self, address: Address, v6only: bool | None) -> list[Listener]:
        """Return the listeners with which a socket on ``address`` competes for clients (``TakenAddresses``)."""
        return self._taken.overlapping(address, v6only)

    def beside(self, listener: Listener) -> list[socket.socket]:
        """Return the sockets of the other listeners that overlap with this one."""
        overlapping = self.overlapping(listener.address, listener.options.v6only)
        return [other.socket for other in overlapping if other is not listener]

    def add(self, listener: Listener) -> None:
        """Add a listener. A name that another one has already is taken from the new one, and that is logged."""
        name = listener.options.name
        if name and self._by_name.get((listener.name_uid, name)) not in (None, listener):
            events.warning("name-taken", address=listener.address, called=name, uid=listener.name_uid)
            listener.options = msgspec.structs.replace(listener.options, name=None)
        self._by_address[listener.address] = listener
        self._taken.add(listener)
        if listener.options.name:
            self._by_name[listener.name_uid, listener.options.name] = listener

    def remove(self, listener: Listener) -> None:
        self._by_address.pop(listener.address, None)
        self._taken.remove(listener)
        self._forget_name(listener)

    def rename(self, listener: Listener, name: str | None, uid: int) -> None:
        """Give a listener another name, which belongs to ``uid``; None takes its name away."""
        self._forget_name(listener)
        listener.options = msgspec.structs.replace(listener.options, name=name)
        listener.name_uid = uid
        if name:
            self._by_name[uid, name] = listener

    def clear(self) -> None:
        self._by_address.clear()
        self._by_name.clear()
        self._taken.clear()

    def _forget_name(self, listener: Listener) -> None:
        key = (listener.name_uid, listener.options.name or "")
        if self._by_name.get(key) is listener:
            del self._by_name[key]


def _effective(listener: Listener) -> tuple[Address, ...]:
    return listener.kind.effective_addresses(listener.address, listener.options.v6only)
