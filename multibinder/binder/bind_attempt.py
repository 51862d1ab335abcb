"""The attempt to bind the listeners of one request: all of them or none."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from multibinder.binder import repair
from multibinder.binder.bind_refusal import BindRefusals, require_same
from multibinder.binder.listener import Listener, open_listener
from multibinder.binder.owner import Owner
from multibinder.wire.addresses import Address
from multibinder.wire.errors import RequestError
from multibinder.wire.messages import LIMIT_REACHED, ListenerSpec


class Found(NamedTuple):
    """The listener for one element of a request. ``created`` is true if this request opened it."""

    listener: Listener
    created: bool


class Room(msgspec.Struct):
    """Count down how many listeners and claims a request of ``uid`` may still add.

    ``limit`` and ``limit_per_uid`` are the limits that a refusal names.
    """

    uid: int
    limit: int
    limit_per_uid: int
    listeners: int
    claims: int

    def take_claim(self, spec: ListenerSpec) -> None:
        """Count one more claim of this uid. Raises RequestError if there is no room for it."""
        if self.claims <= 0:
            raise RequestError(
                f"Could not bind: {spec.address}: uid {self.uid} has its limit of {self.limit_per_uid} listeners "
                "(multibinder serve --max-listeners-per-uid)",
                LIMIT_REACHED,
                {"limit": "listeners_per_uid"},
            )
        self.claims -= 1

    def take_listener(self, spec: ListenerSpec) -> None:
        """Count one more listener. Raises RequestError if there is no room for it."""
        if self.listeners <= 0:
            raise RequestError(
                f"Could not bind: {spec.address}: this binder holds its limit of {self.limit} listeners "
                "(multibinder serve --max-listeners)",
                LIMIT_REACHED,
                {"limit": "listeners"},
            )
        self.listeners -= 1


class BindAttempt:
    """Find or open the listeners of one request. The store does not have the new ones before all have succeeded.

    ``find`` returns the listener that exists for a spec. ``recover`` brings back a lost listener on an address that is
    in use. The new sockets belong to the attempt until the store adds them; ``close`` closes them.
    """

    def __init__(
        self,
        room: Room,
        refusals: BindRefusals,
        find: Callable[[ListenerSpec], Listener | None],
        recover: Callable[[Address], Listener | None],
    ) -> None:
        self._room = room
        self._refusals = refusals
        self._find_existing = find
        self._recover = recover
        self._opened: list[Listener] = []
        self._bound: dict[Address, Listener] = {}
        self._named: dict[str, Listener] = {}

    def find_or_open(self, specs: Sequence[ListenerSpec], owners: Sequence[Owner]) -> list[Found]:
        """Return the listener for each spec. New ones are bound and not ready yet. Raises RequestError."""
        return [self._find_or_open(spec, owner) for spec, owner in zip(specs, owners, strict=True)]

    def make_ready(self, found: Sequence[Found]) -> None:
        """Let clients reach each of these listeners. Raises BindError."""
        for listener, created in found:
            if created:
                repair.make_ready(listener, self._refusals, self._room.uid)
            elif not listener.kind.is_ready(listener.socket):
                repair.make_ready_again(listener, self._refusals, self._room.uid)

    def close(self) -> None:
        for listener in self._opened:
            listener.socket.close()

    def _find_or_open(self, spec: ListenerSpec, owner: Owner) -> Found:
        name = spec.options.name or ""
        listener = self._named.get(name) or self._find_existing(spec) or self._bound.get(spec.address)
        created = False
        if listener is None or owner not in listener.claims:
            self._room.take_claim(spec)
        if listener is None:
            self._room.take_listener(spec)
            listener, created = self._open_or_recover(spec)
        if not created:
            require_same(listener, spec)
        if name:
            self._named[name] = listener
        return Found(listener, created)

    def _open_or_recover(self, spec: ListenerSpec) -> Found:
        try:
            listener = open_listener(spec)
        except OSError as error:
            if error.errno == errno.EADDRINUSE and (recovered := self._recover(spec.address)) is not None:
                return Found(recovered, created=False)
            raise self._refusals.of(spec.address, error, self._room.uid) from error
        self._opened.append(listener)
        self._bound[listener.address] = listener
        return Found(listener, created=True)
