"""The store of all listeners: find, bind, release, restore."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

from multibinder.binder import events, live_options
from multibinder.binder.bind_attempt import BindAttempt
from multibinder.binder.bind_refusal import Asker, not_recorded
from multibinder.binder.claims import Claims
from multibinder.binder.durable_records import DurableRecords
from multibinder.binder.events import CallLater
from multibinder.binder.granting import Granting
from multibinder.binder.handoffs import Handoffs
from multibinder.binder.inherit import NOT_KEPT
from multibinder.binder.key import Key
from multibinder.binder.listener import Grant, Listener, Receiver
from multibinder.binder.listener_index import ListenerIndex
from multibinder.binder.opening import restored_listener
from multibinder.binder.owner import Owner, is_privileged
from multibinder.binder.records import Record
from multibinder.binder.release import Releases
from multibinder.binder.repair import Repairs
from multibinder.binder.replacement import Replacements
from multibinder.binder.room import Room
from multibinder.binder.shards import Shards
from multibinder.binder.shutdown_watch import Repair, WatchShutdowns
from multibinder.wire.errors import BindError
from multibinder.wire.messages import ListenerSpec, Released
from multibinder.wire.status import ListenerStatus


class ListenerStore:
    """Hold one socket for each key. No call waits for a client or the keeper.

    ``watch`` makes what notices that a listener was shut down; the store closes it. ``call_later`` is the
    loop's. ``releases`` releases listeners.

    ``limit`` listeners at most; ``limit_per_uid`` claims for each uid that is not privileged.
    """

    def __init__(
        self,
        durable: DurableRecords,
        watch: Callable[[Repair], WatchShutdowns],
        call_later: CallLater,
        *,
        limit: int,
        limit_per_uid: int,
    ) -> None:
        self._durable = durable
        self._watch = watch(self.repair_shut_down)
        self._limit = limit
        self._limit_per_uid = limit_per_uid
        self._index = ListenerIndex()
        self._claims = Claims(self._index)
        self._shards = Shards(self._index, self._watch, self.write_records)
        self.releases = Releases(self._index, self._shards, self._claims, durable, self._watch, call_later)
        #: The handoffs that were granted and not confirmed yet.
        self.handoffs = Handoffs(self, self._index, self._shards.open_to_clients)
        self._repairs = Repairs(
            self._index, Replacements(self._index, durable, self._watch).replace, self._shards.note_rejoins
        )
        self._granting = Granting(self._index, self._claims, self.handoffs)

    def __len__(self) -> int:
        return len(self._index)

    def listeners(self) -> list[Listener]:
        return list(self._index)

    def records(self) -> list[Record]:
        return [listener.record() for listener in self._index]

    def statuses(self, listeners: Iterable[Listener] | None = None) -> list[ListenerStatus]:
        """Return the statuses of these listeners, or of all, for the method ``list``."""
        return [listener.status() for listener in (self._index if listeners is None else listeners)]

    def find(self, spec: ListenerSpec, uid: int) -> Listener | None:
        """Return the listener with the name of ``spec``, as a name of ``uid``, or with its key, in this order."""
        return self._index.find(spec, uid)

    def owned_by(self, owner: Owner) -> list[Listener]:
        """Return the listeners that this owner has a claim to."""
        return [listener for listener in self._index if owner in listener.claims]

    def bind(
        self,
        specs: Sequence[ListenerSpec],
        owners: Sequence[Owner],
        *,
        asker: Asker | None = None,
        receiver: Receiver = Receiver(),  # noqa: B008 (frozen)
        held_outside_pid_namespace: bool = False,
    ) -> list[Grant]:
        """Grant all listeners of one request. Raises BindError or RequestError, and then nothing has changed.

        Without ``asker``, the first owner asks, and may know all. ``receiver`` has to confirm the grants.
        ``held_outside_pid_namespace`` is true if our PID namespace does not show the client's process.
        """
        known = (self._index.find(spec, owner.uid) for spec, owner in zip(specs, owners, strict=True))
        resumed = self.releases.resume(listener for listener in known if listener is not None)
        attempt = self.attempt(asker or Asker(owners[0].uid))
        try:
            found = attempt.find_or_open(specs, owners)
            attempt.make_ready(found)
            settings = self._granting.apply_options(found, specs, owners)
        except BaseException:
            attempt.close()
            self.releases.drain_again(resumed)
            raise
        grants: list[Grant] = []
        changed: list[Listener] = []
        for (listener, created), spec, owner, was in zip(found, specs, owners, settings, strict=True):
            former: dict[str, Any] = was
            if created:
                self._add(listener)
                if (caution := listener.kind.caution(listener.address)) is not None:
                    events.limited(events.warning, "caution", owner.uid, address=listener.key, why=caution)
                listener.held_outside_pid_namespace = held_outside_pid_namespace
                live_options.note_setter(listener, owner)
            else:
                if listener.draining:
                    self.releases.take_back(listener, owner.uid)
                identity = self._granting.identify(
                    listener, spec.options.name, owner.uid, is_outside=held_outside_pid_namespace
                )
                former = {**was, **identity} if identity else was
                # Even the same backlog: net.core.somaxconn may have changed, or a holder may have called listen(2).
                live_options.set_backlog(listener)
            grant = self._granting.grant(listener, owner, receiver, former, created=created)
            if grant.is_pending:
                changed.append(listener)
            grants.append(grant)
        try:
            if changed:
                self._durable.write([listener.record() for listener in changed])
        except OSError as error:
            # A crash would give a listener without a record back as no client's. So its client must not have it.
            self.handoffs.take_back(grants)
            raise not_recorded(specs[0].address, error) from error
        self.releases.tell_taken_back(resumed)
        return grants

    def check(self, specs: Sequence[ListenerSpec], owners: Sequence[Owner], *, asker: Asker | None = None) -> None:
        """Raise what ``bind`` would raise. The sockets that it opens never listen, and are closed again."""
        attempt = self.attempt(asker or Asker(owners[0].uid))
        try:
            attempt.require_possible(attempt.find_or_open(specs, owners))
        finally:
            attempt.close()

    def release(self, spec: ListenerSpec, owner: Owner, *, of_any_uid: bool = False) -> Released:
        """Drop the owner's claim. After the last claim, close the port for every holder (``Releases.release``)."""
        released = self.releases.release(spec, owner, lambda _: None, of_any_uid=of_any_uid)
        assert released is not None  # noqa: S101 (only a drain ends later)
        return released

    def move(self, owner: Owner, uid: int) -> list[Listener]:
        """Give the claims of ``owner``, and its names, to the same label of ``uid``. Return their listeners."""
        moved = self.owned_by(owner)
        for listener in moved:
            self._claims.move(listener, owner, Owner(owner.label, uid))
        self.write_records(moved)
        return moved

    def close_orphan(self, listener: Listener) -> None:
        """Close a port that no process accepts on.

        Its waiting clients are reset (inet_csk_listen_stop() in net/ipv4/inet_connection_sock.c).
        """
        self.releases.close(listener)

    def write_records(self, listeners: Sequence[Listener]) -> None:
        """Write the records of listeners that have changed. That of one that drains says all that counts already."""
        if changed := [listener.record() for listener in listeners if not listener.draining]:
            self._durable.note(changed)

    def repair(self) -> None:
        """Let every listener listen with its own backlog again if a holder changed that."""
        for _ in self.repair_in_steps():
            pass

    def repair_in_steps(self) -> Iterator[None]:
        """Do what ``repair`` does, with a step for each listener."""
        return self._repairs.all_in_steps(self.listeners())

    def repair_shut_down(self, descriptors: Collection[int]) -> list[int]:
        """Repair the listeners with these descriptors. Return the descriptors of those that cannot be repaired."""
        shut = (listener for listener in self._index if listener.socket.fileno() in descriptors)
        return [listener.socket.fileno() for listener in self._repairs.now(shut)]

    @property
    def room(self) -> int:
        """Return how many more listeners may be held."""
        return self._limit - len(self)

    def shards_on(self, key: Key) -> list[Listener]:
        """Return the listeners that have this key but for the shard."""
        return self._index.shards_on(key)

    def renumber(self, listener: Listener, shard: int) -> None:
        """Give a shard another number, which is free."""
        self._index.remove(listener)
        listener.shard = shard
        self._index.add(listener)
        self.write_records([listener])

    def adopt(self, sockets: Sequence[tuple[socket.socket, Record]]) -> list[Listener]:
        """Hold sockets that another program has opened, with the claims that their records say.

        Takes the sockets, each of which is ready and has a free key. Raises OSError if they cannot be recorded; then
        they are the caller's, and nothing has changed.
        """
        self._durable.write([record for _, record in sockets])
        for sock, record in sockets:
            self.restore(sock, record)
        return [listener for sock, _ in sockets for listener in self._index if listener.socket is sock]

    def restore(self, sock: socket.socket, record: Record | None) -> None:
        """Take over a LISTEN socket of an earlier binder. Its address and options come from the socket, the rest from
        ``record``.

        Takes the socket. A second copy of a listener is closed, and a listener that was released is shut down. Raises
        BindError if the socket does not listen and cannot listen again; the socket belongs to the caller then.
        """
        listener = restored_listener(sock, record)
        if listener.kind.is_retired(sock) or (record is not None and record.released):
            with contextlib.suppress(OSError):
                listener.kind.retire(sock)
            sock.close()
            return
        if not self._index.make_place_for(listener):
            events.warning("inherited-twice", address=listener.address, done="closed one")
            sock.close()
            return
        listener.kind.end_sharing(sock)
        if not listener.kind.is_reachable(sock, listener.address):
            self._repairs.make_ready_again(listener)
        self._add(listener)
        self._claims.restore(listener)
        if record is not None:
            self.handoffs.restore(listener, record)

    def detach_all(self) -> list[tuple[str, int]]:
        """Give all descriptors to the caller, each with the name that it has at the keeper. The store is empty then."""
        self._watch.close()
        self._shards.close()
        descriptors = [
            (listener.kept_name if listener.kept else NOT_KEPT, listener.socket.detach()) for listener in self._index
        ]
        self._index.clear()
        return descriptors

    def close(self) -> None:
        """Close the binder's descriptors. A port stays open as long as another process holds it, unless it drains."""
        self._watch.close()
        self._shards.close()
        for listener in self._index:
            if listener.draining:
                with contextlib.suppress(OSError):
                    listener.kind.retire(listener.socket)
            listener.socket.close()
        self._index.clear()

    def attempt(self, asker: Asker) -> BindAttempt:
        """Return a new attempt to bind listeners, which its caller closes."""
        uid = asker.uid
        claims = sys.maxsize if is_privileged(uid) else self._limit_per_uid - self._claims.of_uid(uid)
        room = Room(uid, self._limit, self._limit_per_uid, self._limit - len(self), claims)
        return BindAttempt(room, self._index, asker, lambda key: self._recover(key, uid), self._repairs, self._shards)

    def _recover(self, key: Key, uid: int) -> Listener | None:
        if (found := self._durable.recover(key, uid)) is None:
            return None
        record, sock = found
        try:
            self.restore(sock, record)
        except BindError:
            sock.close()
            raise
        return self._index.at(key)

    def remove_claim(self, listener: Listener, owner: Owner) -> None:
        """Remove an owner's claim. The listener stays open."""
        self._claims.remove(listener, owner)

    def _add(self, listener: Listener) -> None:
        self._index.add(listener)
        if not listener.awaits_holder:
            self._watch.add(listener.socket)
        if not listener.awaits_holder and not listener.joined:
            self._shards.note_joined(listener)
        elif listener.joined:
            self._shards.settle([listener])
