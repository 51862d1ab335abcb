"""Indexes of listeners: by key, by name, and by the addresses that each takes."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator

import msgspec

from multibinder.binder import events
from multibinder.binder.key import Key
from multibinder.binder.listener import Listener
from multibinder.wire import kinds
from multibinder.wire.addresses import Address
from multibinder.wire.messages import ListenerSpec

#: An address in a network namespace; in the binder's own, the address alone.
_Place = Address | tuple[int, Address]


class TakenAddresses:
    """The addresses that listeners take, with the listeners of each: ``[::]:443`` takes ``0.0.0.0:443`` as well."""

    def __init__(self) -> None:
        # Nearly all have one listener, for which a tuple is the smallest.
        self._taken: dict[_Place, tuple[Listener, ...]] = {}
        #: The listeners that a wildcard address overlaps with.
        self._below: dict[_Place, list[Listener]] = {}

    def add(self, listener: Listener) -> None:
        for address in _effective(listener):
            place = _place(listener.netns, address)
            self._taken[place] = (*self._taken.get(place, ()), listener)
            self._below.setdefault(_place(listener.netns, address.wildcard()), []).append(listener)

    def remove(self, listener: Listener) -> None:
        for address in _effective(listener):
            place, wildcard = _place(listener.netns, address), _place(listener.netns, address.wildcard())
            if others := tuple(other for other in self._taken.get(place, ()) if other is not listener):
                self._taken[place] = others
            else:
                self._taken.pop(place, None)
            below = self._below.get(wildcard, [])
            if listener in below:
                below.remove(listener)
            if not below:
                self._below.pop(wildcard, None)

    def clear(self) -> None:
        self._taken.clear()
        self._below.clear()

    def overlapping(self, key: Key, v6only: bool | None) -> list[Listener]:
        """Return the listeners on other addresses with which a socket with this key competes for clients.

        Two sockets overlap if they are on one port, and one has the address of the other or a wildcard address that
        includes it (inet_rcv_saddr_equal() in net/ipv4/inet_connection_sock.c). Then the kernel lets both listen only
        if they share the port (kernel/port_sharing.py).
        """
        found: list[Listener] = []
        for taken in kinds.of_address(key.address).effective_addresses(key.address, v6only):
            wildcard = _place(key.netns, taken.wildcard())
            place = _place(key.netns, taken)
            if place != wildcard:
                found += self._taken.get(place, ())
                found += self._taken.get(wildcard, ())
            else:
                found += self._below.get(wildcard, ())
        # Shards share their address.
        return [each for each in dict.fromkeys(found) if each.address != key.address] if found else found

    def shards(self, key: Key, v6only: bool | None) -> list[Listener]:
        """Return the listeners on exactly this address, in no order: the shard ``key`` too."""
        first, *_ = kinds.of_address(key.address).effective_addresses(key.address, v6only)
        return [each for each in self._taken.get(_place(key.netns, first), ()) if each.address == key.address]


class ListenerIndex:
    """The listeners of the store. A name belongs to the uid that gave it: each uid finds only its own names."""

    def __init__(self) -> None:
        self._by_key: dict[Address | Key, Listener] = {}
        self._by_name: dict[tuple[int, str], Listener] = {}
        self._taken = TakenAddresses()

    def __len__(self) -> int:
        return len(self._by_key)

    def __iter__(self) -> Iterator[Listener]:
        return iter(self._by_key.values())

    def at(self, key: Key) -> Listener | None:
        """Return the listener with this key, or None."""
        return self._by_key.get(_short(key))

    def named(self, uid: int, name: str) -> Listener | None:
        """Return the listener that has this name of this uid, or None."""
        return self._by_name.get((uid, name))

    def find(self, spec: ListenerSpec, uid: int) -> Listener | None:
        """Return the listener that has the name of ``spec``, as a name of ``uid``, or its key. The name goes first."""
        if spec.options.name and (named := self._by_name.get((uid, spec.options.name))):
            return named
        if not spec.netns and not spec.shard:
            return self._by_key.get(spec.address)
        return self._by_key.get(_short(Key.of(spec)))

    def overlapping(self, key: Key, v6only: bool | None) -> list[Listener]:
        """Return the listeners with which a socket with this key competes for clients (``TakenAddresses``)."""
        return self._taken.overlapping(key, v6only)

    def shards(self, listener: Listener) -> list[Listener]:
        """Return the listeners that share the address of this one, itself too, by their numbers."""
        return sorted(self._taken.shards(listener.key, listener.options.v6only), key=lambda each: each.shard)

    def shards_on(self, key: Key) -> list[Listener]:
        """Return the listeners that have this key but for the shard."""
        return self._taken.shards(key, None)

    def beside(self, listener: Listener) -> list[socket.socket]:
        """Return the sockets of the other listeners that overlap with this one."""
        return [other.socket for other in self.overlapping(listener.key, listener.options.v6only)]

    def add(self, listener: Listener) -> None:
        """Add a listener. A name that another one has already is taken from the new one, and that is logged."""
        name = listener.options.name
        if name and self._by_name.get((listener.name_uid, name)) not in (None, listener):
            events.warning("name-taken", address=listener.address, called=name, uid=listener.name_uid)
            listener.options = msgspec.structs.replace(listener.options, name=None)
        self._by_key[_short(listener.key)] = listener
        self._taken.add(listener)
        if listener.options.name:
            self._by_name[listener.name_uid, listener.options.name] = listener

    def remove(self, listener: Listener) -> None:
        self._by_key.pop(_short(listener.key), None)
        self._taken.remove(listener)
        self._forget_name(listener)

    def make_place_for(self, listener: Listener) -> bool:
        """Return whether there is no other copy of this socket, and no other with its key.

        Another one that listens on the same address is a shard that lost its record: it gets the first free number.
        """
        if self.at(listener.key) is None:
            return True
        shards = self.shards(listener)
        if any(each.cookie == listener.cookie for each in shards):
            return False
        if not listener.kind.can_shard or not listener.kind.is_ready(listener.socket):
            return False
        numbers = {each.shard for each in shards}
        listener.shard = next(number for number in itertools.count() if number not in numbers)
        return True

    def rename(self, listener: Listener, name: str | None, uid: int) -> None:
        """Give a listener another name, which belongs to ``uid``; None takes its name away."""
        self._forget_name(listener)
        listener.options = msgspec.structs.replace(listener.options, name=name)
        listener.name_uid = uid
        if name:
            self._by_name[uid, name] = listener

    def clear(self) -> None:
        self._by_key.clear()
        self._by_name.clear()
        self._taken.clear()

    def _forget_name(self, listener: Listener) -> None:
        key = (listener.name_uid, listener.options.name or "")
        if self._by_name.get(key) is listener:
            del self._by_name[key]


def _effective(listener: Listener) -> tuple[Address, ...]:
    return listener.kind.effective_addresses(listener.address, listener.options.v6only)


def _place(netns: int, address: Address) -> _Place:
    return (netns, address) if netns else address


def _short(key: Key) -> Address | Key:
    """Return the key as the index has it. Nearly all listeners have no other part than the address, and a structure for
    each would be 5 % of the memory of a listener."""
    return key if key.netns or key.shard else key.address
