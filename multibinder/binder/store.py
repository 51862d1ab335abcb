"""The store of all listeners: find, bind, release, restore."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Protocol

import msgspec

from multibinder.binder import events, repair
from multibinder.binder.bind_attempt import BindAttempt, Room
from multibinder.binder.bind_refusal import BindRefusals
from multibinder.binder.inherit import NOT_KEPT
from multibinder.binder.listener import Claim, Grant, Listener, restored_listener
from multibinder.binder.owner import ClaimCounts, Owner, is_privileged
from multibinder.binder.records import Record
from multibinder.wire.addresses import Address
from multibinder.wire.errors import BindError, RequestError
from multibinder.wire.messages import ListenerSpec, Released
from multibinder.wire.options import Options
from multibinder.wire.status import ListenerStatus


class DurableRecords(Protocol):
    """Storage for records of listeners that survives a crash of the binder."""

    def write(self, changed: Sequence[Record]) -> None:
        """Append records that have changed, or that are released."""

    def recover(self, address: Address) -> tuple[Record, socket.socket] | None:
        """Return a socket on ``address`` that an earlier binder lost and another process still holds.

        The caller owns the socket.
        """


class ListenerStore:
    """Hold one socket for each key: equal addresses get the same socket. No call waits for a client or the keeper.

    ``limit`` listeners at most; ``limit_per_uid`` claims for each uid that is not privileged.
    """

    def __init__(self, refusals: BindRefusals, durable: DurableRecords, *, limit: int, limit_per_uid: int) -> None:
        self._refusals = refusals
        self._durable = durable
        self._limit = limit
        self._limit_per_uid = limit_per_uid
        self._claims = ClaimCounts()
        self._by_address: dict[Address, Listener] = {}
        self._by_name: dict[str, Listener] = {}

    def __len__(self) -> int:
        return len(self._by_address)

    def listeners(self) -> list[Listener]:
        return list(self._by_address.values())

    def records(self) -> list[Record]:
        return [listener.record() for listener in self._by_address.values()]

    def statuses(self, listeners: Iterable[Listener] | None = None) -> list[ListenerStatus]:
        """Return the statuses of these listeners, or of all, for the method ``list``."""
        return [listener.status() for listener in (self._by_address.values() if listeners is None else listeners)]

    def owner(self, label: str, uid: int) -> Owner:
        """Return the owner that a client of ``uid`` is when it gives ``label``.

        Raises RequestError if the label belongs to another uid.
        """
        return self._claims.resolve(label, uid)

    def find(self, spec: ListenerSpec) -> Listener | None:
        """Return the listener that has the name or the address of ``spec``, or None. The name goes first."""
        if spec.options.name and (named := self._by_name.get(spec.options.name)):
            return named
        return self._by_address.get(spec.address)

    def bind(
        self, specs: Sequence[ListenerSpec], owners: Sequence[Owner], *, held_outside_pid_namespace: bool = False
    ) -> list[Grant]:
        """Grant all listeners of one request. Raises BindError or RequestError, and then nothing has changed.

        ``held_outside_pid_namespace`` is true if our PID namespace does not show the client's process.
        """
        attempt = self._attempt(owners[0].uid)
        try:
            found = attempt.find_or_open(specs, owners)
            attempt.make_ready(found)
        except RequestError:
            attempt.close()
            raise
        grants: list[Grant] = []
        changed: list[Listener] = []
        for (listener, created), spec, owner in zip(found, specs, owners, strict=True):
            options = listener.options
            if created:
                self._add(listener)
            else:
                self._apply_options(listener, spec.options)
            hides_a_holder = held_outside_pid_namespace and not listener.held_outside_pid_namespace
            if created or owner not in listener.claims or listener.options is not options or hides_a_holder:
                changed.append(listener)
            listener.held_outside_pid_namespace |= held_outside_pid_namespace
            grants.append(self._grant(listener, created, owner))
        if changed:
            self._durable.write([listener.record() for listener in changed])
        return grants

    def check(self, specs: Sequence[ListenerSpec], owners: Sequence[Owner]) -> None:
        """Raise what ``bind`` would raise. The sockets that it opens never listen, and are closed again."""
        attempt = self._attempt(owners[0].uid)
        try:
            attempt.find_or_open(specs, owners)
        finally:
            attempt.close()

    def take_back(self, grants: Sequence[Grant]) -> None:
        """Undo the grants of an answer that the client never received. A claim with another handoff stays."""
        for grant in grants:
            listener = grant.listener
            claim = listener.claims.get(grant.owner)
            if claim is None or claim.since > grant.handoff:
                continue  # The owner has released the listener since.
            claim.handoffs -= 1
            if claim.handoffs:
                continue
            self._remove_claim(listener, grant.owner)
            if listener.claims:
                self._durable.write([listener.record()])
            else:
                events.limited(
                    events.info,
                    "withdrawn",
                    grant.owner.uid,
                    address=listener.address,
                    why="the client went away before its answer",
                )
                self._close(listener)

    def release(self, spec: ListenerSpec, owner: Owner) -> Released:
        """Drop the owner's claim. After the last claim, close the port for every holder.

        Root and the binder's own user drop the claims of all owners without a label when they give none themselves.
        """
        listener = self.find(spec)
        if listener is None or not spec.address.matches(listener.address):
            return Released(str(spec.address), "absent")
        address = str(listener.address)
        every_unlabelled = not owner.label and is_privileged(owner.uid)
        for claimant in list(listener.claims):
            if claimant == owner or (every_unlabelled and not claimant.label):
                self._remove_claim(listener, claimant)
        if listener.claims:
            self._durable.write([listener.record()])
            return Released(address, "kept", listener.labels)
        self._close(listener)
        return Released(address, "closed")

    def close_orphan(self, listener: Listener) -> None:
        """Close a port that no process accepts on.

        Its waiting clients are reset (inet_csk_listen_stop() in net/ipv4/inet_connection_sock.c).
        """
        self._close(listener)

    def repair(self) -> None:
        """Let every listener listen with its own backlog again if a holder changed that."""
        repair.repair_all(self._by_address.values(), self._refusals)

    def restore(self, sock: socket.socket, record: Record | None) -> None:
        """Take over a LISTEN socket of an earlier binder. Its address and options come from the socket, the rest from
        ``record``.

        Takes the socket. A second copy of a listener is closed, and a listener that was released is shut down. Raises
        BindError if the socket does not listen and cannot listen again; the socket belongs to the caller then.
        """
        listener = restored_listener(sock, record)
        if record is not None and record.released:
            with contextlib.suppress(OSError):
                listener.kind.retire(sock)
            sock.close()
            return
        if listener.address in self._by_address:
            events.warning("inherited-twice", address=listener.address, done="closed one")
            sock.close()
            return
        if not listener.kind.is_ready(sock):
            repair.make_ready_again(listener, self._refusals, os.geteuid())
        self._add(listener)
        for owner in listener.claims:
            self._claims.add(owner)

    def detach_all(self) -> list[tuple[str, int]]:
        """Give all descriptors to the caller, each with the name that it has at the keeper. The store is empty then."""
        descriptors = [
            (listener.kept_name if listener.kept else NOT_KEPT, listener.socket.detach())
            for listener in self._by_address.values()
        ]
        self._by_address.clear()
        self._by_name.clear()
        return descriptors

    def close(self) -> None:
        """Close the binder's descriptors. A port stays open as long as another process holds it."""
        for listener in self._by_address.values():
            listener.socket.close()
        self._by_address.clear()
        self._by_name.clear()

    def _attempt(self, uid: int) -> BindAttempt:
        claims = sys.maxsize if is_privileged(uid) else self._limit_per_uid - self._claims.of_uid(uid)
        room = Room(uid, self._limit, self._limit_per_uid, self._limit - len(self), claims)
        return BindAttempt(room, self._refusals, self.find, self._recover)

    def _recover(self, address: Address) -> Listener | None:
        if (found := self._durable.recover(address)) is None:
            return None
        record, sock = found
        try:
            self.restore(sock, record)
        except BindError:
            sock.close()
            raise
        return self._by_address.get(address)

    def _apply_options(self, listener: Listener, options: Options) -> None:
        """Apply what can change to the live socket. A backlog that a holder changed is set again too."""
        backlog = options.backlog if options.backlog is not None else listener.options.backlog
        if options.name or backlog != listener.options.backlog:
            name = listener.options.name or options.name
            listener.options = msgspec.structs.replace(listener.options, backlog=backlog, name=name)
            self._add(listener)
        # Even if the backlog is the same: net.core.somaxconn may have changed, or a holder may have called listen(2).
        repair.set_backlog(listener)

    def _add(self, listener: Listener) -> None:
        self._by_address[listener.address] = listener
        if listener.options.name:
            self._by_name[listener.options.name] = listener

    def _grant(self, listener: Listener, created: bool, owner: Owner) -> Grant:
        listener.handoffs += 1
        listener.last_handoff_at = time.monotonic()
        claim = listener.claims.get(owner)
        if claim is None:
            claim = listener.claims[owner] = Claim(listener.handoffs)
            self._claims.add(owner)
        claim.handoffs += 1
        return Grant(listener, owner, listener.handoffs, created, listener.backlog_warning())

    def _remove_claim(self, listener: Listener, owner: Owner) -> None:
        del listener.claims[owner]
        self._claims.remove(owner)

    def _close(self, listener: Listener) -> None:
        for owner in list(listener.claims):
            self._remove_claim(listener, owner)
        # Record the release first: after a crash in between, the socket must not be restored if it turns up again.
        self._durable.write([listener.record(released=True)])
        try:
            # Holders have copies, so close(2) alone would leave the port open. New clients must be refused at once.
            listener.kind.retire(listener.socket)
        except OSError as error:
            events.limited(events.warning, "shutdown-failed", None, address=listener.address, error=error.strerror)
        listener.socket.close()
        self._by_address.pop(listener.address, None)
        if listener.options.name:
            self._by_name.pop(listener.options.name, None)
