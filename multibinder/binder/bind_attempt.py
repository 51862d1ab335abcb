"""The attempt to bind the listeners of one request: all of them or none."""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from multibinder.binder import repair
from multibinder.binder.bind_refusal import (
    Asker,
    collides_in_request,
    exists_with,
    held_by_binder,
    refused_by_kernel,
    require_same,
)
from multibinder.binder.key import Key, netns_of
from multibinder.binder.kind_inside import kind_in
from multibinder.binder.listener import Listener
from multibinder.binder.listener_index import ListenerIndex, TakenAddresses
from multibinder.binder.opening import open_listener
from multibinder.binder.owner import Owner, is_privileged
from multibinder.binder.repair import Repairs
from multibinder.binder.room import Room
from multibinder.binder.shards import Shards
from multibinder.kernel import port_sharing
from multibinder.wire import kinds
from multibinder.wire.addresses import Address
from multibinder.wire.messages import ListenerSpec


class Found(NamedTuple):
    """The listener for one element of a request. ``created`` is true if this request opened it."""

    listener: Listener
    created: bool


class BindAttempt:
    """Find or open the listeners of one request. The store does not have the new ones before all have succeeded.

    ``recover`` brings back a lost listener whose address is in use. The new sockets belong to the attempt until
    the store adds them; ``close`` closes them.
    """

    def __init__(
        self,
        room: Room,
        index: ListenerIndex,
        asker: Asker,
        recover: Callable[[Key], Listener | None],
        repairs: Repairs,
        shards: Shards,
    ) -> None:
        self._room = room
        self._index = index
        self._asker = asker
        self._recover = recover
        self._repairs = repairs
        self._shards = shards
        self._opened: dict[Key, Listener] = {}
        #: Listeners of the index that have got more shards.
        self._joined: list[Listener] = []
        self._taken = TakenAddresses()
        #: A new listener overlaps with another one.
        self._overlaps = False
        # The claims and names that the elements so far will add.
        self._claims: dict[Listener, set[Owner]] = {}
        self._names: dict[Listener, tuple[int, str]] = {}
        self._named: dict[tuple[int, str], Listener] = {}

    def find_or_open(self, specs: Sequence[ListenerSpec], owners: Sequence[Owner]) -> list[Found]:
        """Return the listener for each spec. New ones are bound and not ready yet. Raises RequestError."""
        return [self._find_or_open(spec, owner) for spec, owner in zip(specs, owners, strict=True)]

    def make_ready(self, found: Sequence[Found]) -> None:
        """Let clients reach each of these listeners. Raises BindError.

        One that takes more addresses goes first: ``side_by_side`` protects the port best if ``::`` is not the last.
        """
        for listener, created in sorted(found, key=_narrowness) if self._overlaps else found:
            if listener.awaits_holder:
                continue
            if created and self._has_to_wait(listener):
                listener.awaits_holder = True
                listener.queue_limit = min(listener.kind.largest_queue(), listener.options.backlog or sys.maxsize)
            elif created:
                repair.make_ready(listener, self._beside(listener) if self._overlaps else ())
            elif not listener.kind.is_reachable(listener.socket, listener.address):
                self._repairs.make_ready_again(listener, self._beside(listener))

    def require_possible(self, found: Sequence[Found]) -> None:
        """Raise BindError if ``make_ready`` would, and let no client in.

        A new listener was bound and collides with none, so that it can listen. Whether one that a holder has shut down
        can listen again, its kind finds out.
        """
        for listener, created in found:
            if not created and not listener.awaits_holder and not listener.kind.is_ready(listener.socket):
                try:
                    listener.kind.require_repairable(
                        listener.socket, listener.address, listener.options, self._beside(listener)
                    )
                except OSError as error:
                    raise refused_by_kernel(listener.address, error, listener.netns) from error

    def close_in_steps(self) -> Iterator[None]:
        """Do what ``close`` does, with a step for each socket."""
        for listener in self._opened.values():
            yield
            _discard(listener)
        self._shards.settle(self._joined)

    def close(self) -> None:
        for listener in self._opened.values():
            _discard(listener)
        self._shards.settle(self._joined)

    def _find_or_open(self, spec: ListenerSpec, owner: Owner) -> Found:
        name = spec.options.name
        listener = self._named.get((owner.uid, name)) if name else None
        listener = listener or self._index.find(spec, owner.uid) or self._opened.get(Key.of(spec))
        created = False
        if listener is None or owner not in self._owners_of(listener):
            self._room.take_claim(spec)
        if listener is None:
            self._room.take_listener(spec)
            listener, created = self._open_or_recover(spec, owner)
        if not created:
            require_same(listener, spec, self._asker)
        if name:
            self._plan_name(listener, name, owner, spec, created)
        self._claims.setdefault(listener, set()).add(owner)
        return Found(listener, created)

    def _has_to_wait(self, listener: Listener) -> bool:
        """Return whether a new listener listens only when a client has it: other shards take its clients until then."""
        if listener.kind.is_ready(listener.socket):
            return False
        others = [each for each in self._shards_of(listener.key) if each is not listener]
        return any(other.kind.is_ready(other.socket) for other in others)

    def _shards_of(self, key: Key) -> list[Listener]:
        """Return the listeners on this address, of the index and of this attempt."""
        opened = [each for each in self._opened.values() if (each.address, each.netns) == (key.address, key.netns)]
        return self._index.shards_on(key) + opened

    def _owners_of(self, listener: Listener) -> set[Owner]:
        return listener.claims.keys() | self._claims.get(listener, set())

    def _plan_name(self, listener: Listener, name: str, owner: Owner, spec: ListenerSpec, created: bool) -> None:
        """Note that the listener gets this name. Raises BindError if it has another one that has to stay."""
        planned = self._names.get(listener)
        known = (listener.name_uid, listener.options.name) if listener.options.name and not created else None
        has, wants = planned or known, (owner.uid, name)
        if has is not None and has != wants:
            if planned is not None:
                raise exists_with("name", has[1], name, spec, "one request gives it one name")
            if self._owners_of(listener) - {owner}:
                old = has[1] if self._asker.may_know(listener) else "of another owner"
                raise exists_with("name", old, name, spec, "only its only owner can rename it, and it has another")
        self._names[listener] = wants
        self._named[wants] = listener

    def _open_or_recover(self, spec: ListenerSpec, owner: Owner) -> Found:
        shards = self._shards_of(Key.of(spec))
        if shards:
            spec = self._join(spec, owner, shards)
        try:
            listener = open_listener(spec, owner.uid, shards)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise refused_by_kernel(spec.address, error, netns_of(spec)) from error
            if (recovered := self._recover(Key.of(spec))) is not None:
                return Found(recovered, created=False)
            listener = self._open_beside(spec, owner, shards, error)
        if shards:
            port_sharing.share(listener.socket)
        self._opened[listener.key] = listener
        self._require_no_collision(listener, spec, owner)
        self._taken.add(listener)
        return Found(listener, created=True)

    def _join(self, spec: ListenerSpec, owner: Owner, shards: Sequence[Listener]) -> ListenerSpec:
        """Let ``shards`` share their port with a new one, and return its spec with their fixed options.

        Raises BindError if they may not, or if it asks for another value.
        """
        first = shards[0]
        if not first.kind.can_shard or not all(self._may_take_from(owner, each) for each in shards):
            raise held_by_binder(spec, first, self._asker)
        same = {option: getattr(first.options, option) for option in first.kind.fixed_options}
        for option, value in same.items():
            wanted = getattr(spec.options, option)
            if wanted is not None and value is not None and wanted != value:
                raise exists_with(option, value, wanted, spec, "all shards of an address have the same")
        self._joined.append(first)
        for each in shards:
            port_sharing.share(each.socket)
        return msgspec.structs.replace(spec, options=msgspec.structs.replace(spec.options, **same))

    def _open_beside(self, spec: ListenerSpec, owner: Owner, shards: Sequence[Listener], in_use: OSError) -> Listener:
        """Open a listener on an address that is in use, beside the listeners of the binder that overlap with it, and
        beside its other ``shards``.

        Raises BindError if they may not be beside each other, or if another process has the address.
        """
        address, v6only = spec.address, spec.options.v6only
        overlapping = self._index.overlapping(Key.of(spec), v6only)
        if not overlapping and not shards:
            raise refused_by_kernel(address, in_use, netns_of(spec)) from in_use
        for other in overlapping:
            if not self._may_be_beside(address, v6only, owner, other):
                raise held_by_binder(spec, other, self._asker) from in_use
        try:
            return open_listener(spec, owner.uid, [*shards, *overlapping])
        except OSError as error:
            if error.errno == errno.EADDRINUSE and _are_alone([*shards, *overlapping], address):
                # They were opened by another user: systemd, for a socket unit, or a binder that ran as root.
                raise held_by_binder(spec, [*shards, *overlapping][0], self._asker) from error
            raise refused_by_kernel(address, error, netns_of(spec)) from error

    def _require_no_collision(self, listener: Listener, spec: ListenerSpec, owner: Owner) -> None:
        """Raise BindError if the listener could not listen, although it could be bound.

        With SO_REUSEADDR, two sockets can be bound to one address while neither listens; listen(2) refuses the second.
        """
        address, v6only = listener.address, listener.options.v6only
        of_request = self._taken.overlapping(listener.key, v6only)
        of_binder = self._index.overlapping(listener.key, v6only)
        self._overlaps |= bool(of_request or of_binder)
        for other in of_request:
            if not self._may_be_beside(address, v6only, owner, other):
                raise collides_in_request(spec.address, other.address)
        for other in of_binder:
            # One that listens is in another network namespace, if it may not be beside: here, bind(2) would have been
            # refused.
            if not self._may_be_beside(address, v6only, owner, other) and not other.kind.is_ready(other.socket):
                raise held_by_binder(spec, other, self._asker)

    def _may_be_beside(self, address: Address, v6only: bool | None, owner: Owner, other: Listener) -> bool:
        """Return whether a listener of ``owner`` on this address may take clients that ``other`` would have got.

        Only a listener of the same user may: the clients of a wildcard address go to the specific one.
        """
        return self._may_take_from(owner, other) and other.kind.can_be_beside(
            address, v6only, other.address, other.options.v6only
        )

    def _may_take_from(self, owner: Owner, other: Listener) -> bool:
        return is_privileged(owner.uid) or all(claim.uid == owner.uid for claim in self._owners_of(other))

    def _beside(self, listener: Listener) -> list[socket.socket]:
        """Return the sockets of the other listeners, of this attempt too, that overlap with this one."""
        taken = self._taken.overlapping(listener.key, listener.options.v6only)
        return [other.socket for other in taken] + self._index.beside(listener)


def _discard(listener: Listener) -> None:
    if listener.socket.fileno() >= 0:
        listener.kind.discard(listener.socket, listener.address)


def _are_alone(listeners: Sequence[Listener], address: Address) -> bool:
    """Return whether no socket but those of ``listeners`` keeps ``address`` from being bound."""
    try:
        kind = kind_in(kinds.of_address(address), listeners[0].netns)
        return kind.colliding_inodes(address) <= {listener.inode for listener in listeners}
    except OSError:
        return False


def _narrowness(found: Found) -> int:
    listener = found.listener
    return -len(listener.kind.effective_addresses(listener.address, listener.options.v6only))
