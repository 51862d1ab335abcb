"""Handoffs that their clients may never have received: confirm them, or take them back.

A grant is pending if its claim or a changed option rests on it alone. It is confirmed when the client says that it
holds the descriptors, or when the kernel says that a client which promised no such word has read its answer. What is
taken back leaves no claim and no option changed. Pending grants are in the records of their listeners, so that the next
version, or the binder after a crash, settles them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from multibinder.binder import events, live_options
from multibinder.binder.listener import Grant, Listener, Setting
from multibinder.binder.listener_index import ListenerIndex
from multibinder.binder.opening import pending_grants
from multibinder.binder.owner import Owner
from multibinder.binder.records import Record

#: As many are taken back in a millisecond.
_GRANTS_PER_STEP = 32


class Claims(Protocol):
    """The parts of the store that taking a grant back needs."""

    def write_records(self, listeners: Sequence[Listener]) -> None:
        """Write the records of listeners that have changed. An error is logged, not raised."""

    def remove_claim(self, listener: Listener, owner: Owner) -> None:
        """Remove an owner's claim. The listener stays open."""

    def close_orphan(self, listener: Listener) -> None:
        """Close a port that no process accepts on."""


class Handoffs:
    """The pending grants of all clients, by the connection that has to confirm them."""

    def __init__(self, claims: Claims, index: ListenerIndex, open_to_clients: Callable[[Listener], None]) -> None:
        """``open_to_clients`` is called for a shard that waited until a process has it."""
        self._claims = claims
        self._index = index
        self._open_to_clients = open_to_clients
        self._by_connection: dict[int, dict[Grant, None]] = {}

    def __len__(self) -> int:
        """Return the number of connections with pending grants."""
        return len(self._by_connection)

    def of(self, connection: int) -> list[Grant]:
        """Return the pending grants of a connection, in the order in which they were made."""
        return list(self._by_connection.get(connection, ()))

    def of_others(self, connections: Iterable[int]) -> list[Grant]:
        """Return the pending grants of all connections but these."""
        gone = self._by_connection.keys() - set(connections)
        return [grant for connection in gone for grant in self._by_connection[connection]]

    def add(self, grant: Grant) -> None:
        """Note a grant that was just made. It is not pending if nothing rests on it alone."""
        claim = grant.listener.claims[grant.owner]
        if claim.handoffs - claim.unconfirmed == 1 or grant.former or grant.listener.awaits_holder:
            self._add(grant)

    def restore(self, listener: Listener, record: Record) -> None:
        """Note the pending grants of a listener of an earlier binder."""
        for grant in pending_grants(listener, record):
            claim = listener.claims[grant.owner]
            if claim.unconfirmed < claim.handoffs:
                self._add(grant)

    def confirm(self, grants: Iterable[Grant]) -> None:
        """Note that the client holds what was granted."""
        self.write(self.note_confirmed(grants))

    def note_confirmed(self, grants: Iterable[Grant]) -> list[Listener]:
        """Do what ``confirm`` does, but return the listeners whose records have changed instead of writing them."""
        changed: dict[Listener, None] = {}
        for grant in grants:
            if not self._remove(grant):
                continue
            if grant.former:
                # What this grant has set stays, even if an earlier one that is taken back had set the same value.
                for other in grant.listener.pending:
                    if other.handoff < grant.handoff:
                        other.former = {name: was for name, was in other.former.items() if name not in grant.former}
            if grant.listener.awaits_holder and grant.stands:
                self._open_to_clients(grant.listener)
            changed[grant.listener] = None
        return list(changed)

    def take_back(self, grants: Iterable[Grant]) -> None:
        """Undo grants that the client does not hold. A claim with another handoff stays.

        Grants that were confirmed or taken back before are skipped.
        """
        changed: dict[Listener, None] = {}
        for grant in grants:
            if grant.settled:
                continue
            claim, listener = grant.claim, grant.listener
            was_pending = self._remove(grant)
            grant.settled = True
            if listener.socket.fileno() < 0:
                continue  # It was released since.
            changed[listener] = None
            if was_pending:
                self._restore_options(grant)
            if claim is None:
                continue  # Its owner has released it since; another owner has it still.
            claim.handoffs -= 1
            if claim.handoffs:
                continue
            self._claims.remove_claim(listener, grant.owner)
            if not listener.claims:
                why = "its client never received it"
                events.limited(events.info, "withdrawn", grant.owner.uid, address=listener.address, why=why)
                self._claims.close_orphan(listener)
        self.write(changed)

    def take_back_in_steps(self, grants: Sequence[Grant]) -> Iterator[None]:
        """Do what ``take_back`` does, some grants in each step."""
        for first in range(0, len(grants), _GRANTS_PER_STEP):
            if first:
                yield
            self.take_back(grants[first : first + _GRANTS_PER_STEP])

    def settle(self, grants: Iterable[Grant], *, received: bool) -> None:
        """Confirm grants that were received; take others back."""
        if received:
            self.confirm(grants)
        else:
            self.take_back(grants)

    def _add(self, grant: Grant) -> None:
        grant.listener.claims[grant.owner].unconfirmed += 1
        grant.listener.pending[grant] = None
        self._by_connection.setdefault(grant.receiver.connection, {})[grant] = None

    def _remove(self, grant: Grant) -> bool:
        """Remove a pending grant. Return whether it was pending."""
        if not grant.is_pending:
            return False
        grant.settled = True
        del grant.listener.pending[grant]
        grants = self._by_connection[grant.receiver.connection]
        del grants[grant]
        if not grants:
            del self._by_connection[grant.receiver.connection]
        if grant.claim is not None:
            grant.claim.unconfirmed -= 1
        return True

    def _restore_options(self, grant: Grant) -> None:
        """Restore the options that this grant has set. If a later grant has set one too, that one restores it."""
        listener, former = grant.listener, grant.former
        if not former:
            return
        for later in listener.pending:
            if later.handoff > grant.handoff:
                for name in former.keys() & later.former.keys():
                    later.former[name] = former.pop(name)
        if "held_outside_pid_namespace" in former:
            listener.held_outside_pid_namespace = former["held_outside_pid_namespace"]
        if "name" in former:
            name, uid = former["name"]
            is_taken = name is not None and self._index.named(uid, name) not in (None, listener)
            self._index.rename(listener, None if is_taken else name, uid)
        settings = {name: was for name, was in former.items() if isinstance(was, Setting)}
        if settings:
            live_options.restore(listener, settings)

    def write(self, changed: Iterable[Listener]) -> None:
        """Write the records of listeners whose grants have changed."""
        if still_open := [listener for listener in changed if listener.socket.fileno() >= 0]:
            self._claims.write_records(still_open)
