"""Shards: several listeners on one address (SO_REUSEPORT), each with a queue of its own.

The first listener on an address shares its port when a second one comes, and ends that when it is alone again.

Growing: a new shard is bound, and listens only when a client has it, so that no connection waits where nobody accepts
(``Listener.awaits_holder``). Shrinking: the kernel gives the clients in the queue of a shard that stops to another one,
if net.ipv4.tcp_migrate_req is 1 or the group has a program that we may load (``kernel/bpf.py``). Else new clients are
steered to the shards that stay, and the queue is drained. That needs the order in which the shards have joined their
group (``Listener.joined``), by which the kernel numbers them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterable, Sequence

from multibinder.binder import events, repair
from multibinder.binder.listener import Listener
from multibinder.binder.listener_index import ListenerIndex
from multibinder.binder.shutdown_watch import WatchShutdowns
from multibinder.kernel import bpf, port_sharing, reuseport
from multibinder.kernel.socket_options import is_shared

#: A handshake that has begun at a shard ends there. Its last packet arrives within this time, but for clients that are
#: very far away.
_HANDSHAKE_S = 1.0
_WHY_LOST = (
    "net.ipv4.tcp_migrate_req is 0, and the binder may not load a BPF program (CAP_BPF; the drop-in shards.conf): new "
    "clients are steered to the other shards, and the queue is drained; clients that are in the middle of a handshake "
    "then, or silent with defer_accept, can be reset"
)
_WHY_DATAGRAMS_LOST = "the kernel does not move datagrams: those that still wait in its queue at the end are lost"


class Shards:
    """The shards among the listeners of ``index``, which ``watch`` watches when they listen.

    ``write_records`` writes those of listeners that have changed.
    """

    def __init__(
        self, index: ListenerIndex, watch: WatchShutdowns, write_records: Callable[[Sequence[Listener]], None]
    ) -> None:
        self._index = index
        self._watch = watch
        self._write_records = write_records
        #: The program's descriptor, which the kernel's groups do not need; None if it was never loaded.
        self._program: int | None = None

    def close(self) -> None:
        """Close the program's descriptor. Groups that have the program keep it."""
        if self._program is not None:
            os.close(self._program)
            self._program = None

    def others(self, listener: Listener) -> list[Listener]:
        """Return the other listeners that share the address of this one, by their numbers."""
        return [each for each in self._index.shards(listener) if each is not listener]

    def settle(self, listeners: Iterable[Listener]) -> None:
        """Let each of these listeners share its port if others have the same address, and end that if none has."""
        for listener in listeners:
            group = self._index.shards(listener)
            if len(group) > 1:
                for each in group:
                    port_sharing.share(each.socket)
            elif group and group[0].kind.can_shard and is_shared(group[0].socket):
                [alone] = group
                with contextlib.suppress(OSError):  # a shortage of descriptors
                    alone.kind.take_alone(alone.socket, alone.address)
                alone.kind.end_sharing(alone.socket)

    def open_to_clients(self, listener: Listener) -> None:
        """Let clients reach a shard that waited until a process has it. An error is logged, and repaired later."""
        listener.awaits_holder = False
        try:
            repair.set_backlog(listener, self._index.beside(listener))
        except OSError as error:
            events.error("cannot-repair", address=listener.key, why=error)
        self._watch.add(listener.socket)
        self.note_joined(listener)

    def note_joined(self, listener: Listener) -> None:
        """Note that the listener is the last of its group from now on, and protect the clients of the group."""
        if others := self.others(listener):
            listener.joined = max(time.time(), max(other.joined for other in others) + 1e-6)
            self.settle([listener])
            self._may_move_clients(listener)
            self.steer(listener)

    def note_rejoins(self, listener: Listener) -> None:
        """Note that a listener that a holder has shut down joins its group again."""
        if others := self.others(listener):
            self._note_left(listener, others)
            self.note_joined(listener)
            self._write_records([listener])

    def moves_clients(self, listener: Listener) -> bool:
        """Return whether the clients in the queue of this listener go to other shards when it stops."""
        return bool(self._staying(listener)) and self._may_move_clients(listener)

    def can_be_steered(self, listener: Listener) -> bool:
        """Return whether the numbers that the kernel has given to the members of this group are known."""
        return not any(each.adopted_shard for each in self._index.shards(listener))

    def gives_clients_away(self, listener: Listener) -> bool:
        """Return whether a drain has no use: other shards get the clients of an adopted one, which is not steered."""
        return not self.can_be_steered(listener) and self.moves_clients(listener)

    def has_to_drain(self, listener: Listener) -> bool:
        """Return whether the clients in the queue of this listener would be lost, although other shards stay."""
        if not self._staying(listener) or not listener.kind.is_ready(listener.socket):
            return False
        if self._may_move_clients(listener) or not self.can_be_steered(listener):
            return False
        why = _WHY_LOST if listener.kind.moves_clients else _WHY_DATAGRAMS_LOST
        events.limited(events.warning, "shard-drains", listener.log_key, address=listener.key, why=why)
        return True

    def steer(self, listener: Listener) -> float | None:
        """Let new clients of a group come to those shards only that do not drain.

        Returns for how many seconds clients may still come into the queue of the others; None if they are not steered,
        or all drain. ``listener`` is one of the group.
        """
        group = self._in_order(listener)
        if not self.can_be_steered(listener):
            return None
        staying = [number for number, each in enumerate(group) if not each.draining]
        member = _member(group)
        if not staying or member is None:
            return None
        try:
            if len(staying) < len(group):
                reuseport.steer(member.socket, staying)
                group[0].is_steered = True
            elif any(each.is_steered for each in group):
                reuseport.remove_program(member.socket)
                for each in group:
                    each.is_steered = False
                self._may_move_clients(listener)
        except OSError as error:
            events.limited(events.warning, "cannot-steer", listener.log_key, address=listener.address, why=error)
            return None
        return _HANDSHAKE_S if listener.kind.moves_clients else 0.0

    def note_closed(self, listener: Listener, others: Sequence[Listener]) -> None:
        """Note that the listener has left its group, which are ``others`` now."""
        if others:
            self._note_left(listener, others)
            self.steer(others[0])
            self.settle(others[:1])

    def _staying(self, listener: Listener) -> list[Listener]:
        return [each for each in self.others(listener) if not each.draining and each.kind.is_ready(each.socket)]

    def _in_order(self, listener: Listener) -> list[Listener]:
        """Return the shards that are in the kernel's group, in its order."""
        group = self._index.shards(listener)
        return sorted((each for each in group if not each.awaits_holder), key=lambda each: each.joined)

    def _note_left(self, listener: Listener, others: Sequence[Listener]) -> None:
        """The last of a group takes the number of one that leaves."""
        last = max(others, key=lambda each: each.joined)
        if last.joined > listener.joined and not last.awaits_holder:
            last.joined = listener.joined
            self._write_records([last])

    def _may_move_clients(self, listener: Listener) -> bool:
        """Return whether the kernel moves the clients of this group, after attaching the program if that is needed."""
        if not listener.kind.moves_clients:
            return False
        if any(each.has_program for each in self._index.shards(listener)):
            return True
        if reuseport.migrates_by_setting(listener.socket):
            return True
        if (member := _member(self._index.shards(listener))) is None:
            return False
        try:
            if self._program is None:
                self._program = bpf.load_migrating_program()
            reuseport.attach_migration(member.socket, self._program)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EINVAL, errno.ENOSYS):
                events.limited(events.warning, "cannot-move-clients", None, address=listener.address, why=error)
            return False
        return True


def _member(group: Iterable[Listener]) -> Listener | None:
    """Return a listener that is in the kernel's group, if one is.

    To attach a program to a socket that a holder has shut down makes another group, with this socket alone, and then it
    cannot listen beside the others any more (reuseport_attach_prog() in net/core/sock_reuseport.c).
    """
    return next((each for each in group if not each.awaits_holder and each.kind.is_ready(each.socket)), None)
