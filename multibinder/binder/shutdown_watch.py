"""Notice at once that a holder has shut a listener down (shutdown(2)), which ends listening for every holder.

An epoll instance of its own has all listeners, each for EPOLLRDHUP, which UDP reports if only receiving has ended.
EPOLLHUP is reported always. Clients wake nobody. An event is reported once: EPOLLERR may last, because a holder leaves
errors of a UDP socket unread (IP_RECVERR, ip(7)). The loop watches that instance. A listener costs no memory of this
process.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Callable, Collection
from typing import Protocol

from multibinder.binder import events
from multibinder.binder.loop import Loop

#: At most this many listeners are repaired in one turn of the loop.
_AT_ONCE = 32
#: The time until the next turn, as a multiple of that of the last repairs: a holder that calls shutdown(2) in a tight
#: loop takes a twentieth of a core.
_REST = 20
#: A listener that could not be repaired is tried again after this time.
_RETRY_S = 5.0

#: Repairs the listeners with these descriptors. Returns the descriptors of those that cannot be
#: repaired now.
Repair = Callable[[Collection[int]], Collection[int]]


class WatchShutdowns(Protocol):
    """Notices that a listener was shut down."""

    def add(self, sock: socket.socket, /) -> None:
        """Watch a listener, which stays its caller's, until ``remove``. Raises nothing."""

    def remove(self, sock: socket.socket, /) -> None:
        """Stop watching. Call it before close(2): as long as another process has the socket, epoll reports it."""

    def close(self) -> None:
        """Stop watching everything. The listeners stay open."""


class ShutdownWatch:
    """Watch listeners on ``loop``, and let ``repair`` repair those that were shut down.

    Raises OSError if there is no descriptor for it.
    """

    def __init__(self, loop: Loop, repair: Repair) -> None:
        self._loop = loop
        self._repair = repair
        self._epoll = select.epoll()
        #: The descriptors of listeners that could not be repaired.
        self._aside: set[int] = set()
        loop.watch_always(self._epoll.fileno(), self._look)

    def add(self, sock: socket.socket) -> None:
        self._register(sock.fileno())

    def remove(self, sock: socket.socket) -> None:
        self._unregister(sock.fileno())
        self._aside.discard(sock.fileno())

    def close(self) -> None:
        """Stop watching everything. The listeners stay open."""
        self._loop.unwatch(self._epoll.fileno())
        self._epoll.close()

    def _look(self) -> None:
        began = time.monotonic()
        failed = self._repair({descriptor for descriptor, _ in self._epoll.poll(0, _AT_ONCE)})
        for descriptor in failed:
            self._unregister(descriptor)
        if failed and not self._aside:
            self._loop.call_later(_RETRY_S, self._retry)
        self._aside |= set(failed)
        self._loop.unwatch(self._epoll.fileno())
        self._loop.call_later((time.monotonic() - began) * _REST, self._resume)

    def _resume(self) -> None:
        if not self._epoll.closed:
            self._loop.watch_always(self._epoll.fileno(), self._look)

    def _retry(self) -> None:
        aside, self._aside = self._aside, set()
        for descriptor in aside:
            self._register(descriptor)

    def _register(self, descriptor: int) -> None:
        try:
            self._epoll.register(descriptor, select.EPOLLRDHUP | select.EPOLLET)
        except (OSError, ValueError) as error:  # ENOSPC, ENOMEM: epoll_ctl(2). A regular repair finds it.
            events.limited(events.warning, "shutdown-unwatched", None, why=error)

    def _unregister(self, descriptor: int) -> None:
        with contextlib.suppress(OSError, ValueError):  # it was not registered, or this is closed
            self._epoll.unregister(descriptor)
