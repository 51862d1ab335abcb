"""The event loop of the binder: one thread, one selector, timers."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import selectors
import socket
import time
from collections.abc import Callable
from typing import IO

Watchable = socket.socket | IO[bytes] | int

#: Above this many ready descriptors, rotate them for fairness.
_ROTATE_ABOVE = 16
READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class Loop:
    """Call back when a descriptor is ready or a timer expires. A callback must not block.

    The loop does not own the descriptors that it watches, and never closes one.
    """

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._stopping = False
        self._turn = 0
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer_numbers = itertools.count()

    @property
    def turn(self) -> int:
        """Return the number of the current turn. One turn is one select and the callbacks that follow it."""
        return self._turn

    def watch(self, file: Watchable, callback: Callable[[], None], mask: int = READ) -> None:
        """Call ``callback`` in each turn in which ``file`` is ready."""
        self._selector.register(file, mask, callback)

    def watch_for(self, file: Watchable, mask: int) -> None:
        """Change the events for which a file is watched. Its callback stays."""
        self._selector.modify(file, mask, self._selector.get_key(file).data)

    def unwatch(self, file: Watchable) -> None:
        """Stop watching a file. Does nothing if the file is not watched."""
        with contextlib.suppress(KeyError):
            self._selector.unregister(file)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call ``callback`` once, after this many seconds."""
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._timer_numbers), callback))

    def call_every(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call ``callback`` every ``seconds``, for the first time after ``seconds``."""

        def again() -> None:
            self.call_later(seconds, again)
            callback()

        self.call_later(seconds, again)

    def stop(self) -> None:
        """Make ``run`` return at the end of this turn."""
        self._stopping = True

    def run(self, finish_turn: Callable[[], float | None]) -> None:
        """Run until ``stop`` is called.

        ``finish_turn`` is called at the end of each turn. It returns the time of time.monotonic() at which the next one
        must begin at the latest, or None if there is no such time.
        """
        due = finish_turn()
        while not self._stopping:
            ready = self._selector.select(self._time_left(due))
            self._turn += 1
            if len(ready) > _ROTATE_ABOVE:
                # epoll(7) returns the same descriptors first each time. If a turn has time for some of them only, the
                # others must be first in another turn.
                first = self._turn % len(ready)
                ready = ready[first:] + ready[:first]
            for key, _ in ready:
                key.data()
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                heapq.heappop(self._timers)[2]()
            due = finish_turn()

    def close(self) -> None:
        self._selector.close()

    def _time_left(self, due: float | None) -> float | None:
        timer = self._timers[0][0] if self._timers else None
        if timer is not None and (due is None or timer < due):
            due = timer
        return None if due is None else max(0.0, due - time.monotonic())
