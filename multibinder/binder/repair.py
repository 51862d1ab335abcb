"""Keep listeners ready with their own backlog, and undo changes that their holders make.

A holder may shut a shared socket down, call listen(2) with another backlog, or remove the path of a Unix socket. Each
takes effect for every holder.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator, Sequence

from multibinder.binder import events
from multibinder.binder.bind_refusal import refused_by_kernel
from multibinder.binder.listener import Listener
from multibinder.binder.listener_index import ListenerIndex
from multibinder.wire.errors import BindError

#: Puts a new socket in the place of a listener's, which it closes.
Replace = Callable[[Listener, socket.socket], None]


def set_backlog(listener: Listener, beside: Sequence[socket.socket] = ()) -> None:
    """Give the socket the listener's backlog, and note the queue limit that the kernel sets. Raises OSError."""
    listener.queue_limit = listener.kind.make_ready(listener.socket, listener.options.backlog, beside)


def make_ready(listener: Listener, beside: Sequence[socket.socket]) -> None:
    """Let clients reach a new listener. ``beside`` are those that overlap with it. Raises BindError."""
    try:
        set_backlog(listener, beside)
    except OSError as error:
        raise refused_by_kernel(listener.address, error, listener.netns) from error


class Repairs:
    """Repairs listeners of ``index``. ``replace`` gives a listener another socket if its own cannot be repaired.

    ``note_rejoins`` is called after each repair: a shard has left its group, and joined it again.
    """

    def __init__(self, index: ListenerIndex, replace: Replace, note_rejoins: Callable[[Listener], None]) -> None:
        self._index = index
        self._replace = replace
        self._note_rejoins = note_rejoins

    def make_ready_again(self, listener: Listener, beside: Sequence[socket.socket] | None = None) -> None:
        """Let clients reach a listener again that a holder has shut down. Raises BindError.

        ``beside`` are the sockets that overlap with it, if others than those of the index do.
        """
        if beside is None:
            beside = self._index.beside(listener)
        why = "a holder had shut the socket down"
        if listener.kind.is_ready(listener.socket):
            why = "its path did not lead to the socket any more"
        try:
            repaired = listener.kind.repair(listener.socket, listener.address, listener.options, beside)
        except OSError as error:
            raise refused_by_kernel(listener.address, error, listener.netns) from error
        listener.queue_limit = repaired.limit
        if repaired.replacement is not None:
            self._replace(listener, repaired.replacement)
            why += ": it has a new socket, which holders get when they bind again"
        self._note_rejoins(listener)
        listener.note_repair()
        events.limited(events.warning, "repaired", listener.log_key, address=listener.key, why=why)

    def all_in_steps(self, listeners: Iterable[Listener]) -> Iterator[None]:
        """Repair each listener, with a step for each. A check takes some microseconds.

        A listener that cannot be repaired is logged. One that was closed since the first step is left alone.
        """
        largest_by_kind: dict[tuple[str, int], int] = {}
        for listener in listeners:
            yield
            if listener.socket.fileno() < 0:
                continue
            place = (listener.kind.name, listener.netns)
            if place not in largest_by_kind:
                largest_by_kind[place] = listener.kind.largest_queue()
            self._repair_or_complain(listener, largest_by_kind[place])

    def now(self, listeners: Iterable[Listener]) -> list[Listener]:
        """Repair each of these listeners, which were shut down. Return those that cannot be repaired; they are
        logged."""
        return [each for each in listeners if not self._repair_or_complain(each, each.kind.largest_queue())]

    def _repair_or_complain(self, listener: Listener, largest: int) -> bool:
        """Repair one listener. Return False if that fails, after logging why."""
        try:
            self._repair(listener, largest)
        except (OSError, BindError) as error:
            events.limited(events.error, "cannot-repair", listener.log_key, address=listener.key, why=error)
            return False
        return True

    def _repair(self, listener: Listener, largest: int) -> None:
        """Repair one listener. ``largest`` is the longest queue that the kernel allows now.

        If the administrator has raised that, a listener that was limited by it gets a longer queue.
        """
        if listener.draining or listener.awaits_holder:
            return  # it lets nobody in, and ends if a holder shuts it down
        queue = listener.kind.queue(listener.socket)
        if not queue.ready or not listener.kind.is_reachable(listener.socket, listener.address):
            self.make_ready_again(listener)
        elif not listener.kind.accepts(listener.address) or not listener.kind.tells_queue:
            return  # A server may set the buffer of its datagrams by itself.
        elif queue.limit == listener.queue_limit < min(listener.options.backlog or largest, largest):
            set_backlog(listener)
            events.limited(
                events.info,
                "backlog-raised",
                listener.log_key,
                address=listener.key,
                was=queue.limit,
                now=listener.queue_limit,
            )
        elif queue.limit != listener.queue_limit:
            set_backlog(listener)
            listener.note_repair()
            events.limited(
                events.warning,
                "backlog-restored",
                listener.log_key,
                address=listener.key,
                was=queue.limit,
                now=listener.queue_limit,
            )
