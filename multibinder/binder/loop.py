"""The event loop: one thread, one selector, alarms."""

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

#: So many can be seen to in one turn, in the order in which they became ready.
_FEW = 16
READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class Loop:
    """Calls whoever waits for a descriptor or a moment. What it calls must not block. It owns nothing it watches."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._stopping = False
        self._turn = 0
        self._alarms: list[tuple[float, int, Callable[[], None]]] = []
        self._alarm_numbers = itertools.count()

    @property
    def turn(self) -> int:
        """The number of this turn: of one look at what is ready, and the calls that follow."""
        return self._turn

    def watch(self, file: Watchable, react: Callable[[], None], mask: int = READ) -> None:
        """Call ``react`` in each turn in which ``file`` is ready."""
        self._selector.register(file, mask, react)

    def watch_for(self, file: Watchable, mask: int) -> None:
        """Watch a file that is watched already for something else."""
        self._selector.modify(file, mask, self._selector.get_key(file).data)

    def unwatch(self, file: Watchable) -> None:
        with contextlib.suppress(KeyError):
            self._selector.unregister(file)

    def call_later(self, seconds: float, react: Callable[[], None]) -> None:
        """Call ``react`` once."""
        heapq.heappush(self._alarms, (time.monotonic() + seconds, next(self._alarm_numbers), react))

    def call_every(self, seconds: float, react: Callable[[], None]) -> None:
        """Call ``react`` again and again, for the first time after ``seconds``."""

        def again() -> None:
            self.call_later(seconds, again)
            react()

        self.call_later(seconds, again)

    def stop(self) -> None:
        """``run`` returns at the end of this turn."""
        self._stopping = True

    def run(self, finish_turn: Callable[[], float | None]) -> None:
        """Until ``stop``. ``finish_turn`` is called at the end of each turn, and tells when the next one must begin at
        the latest: on the clock of time.monotonic(), None for whenever somebody asks."""
        due = finish_turn()
        while not self._stopping:
            ready = self._selector.select(self._time_left(due))
            self._turn += 1
            if len(ready) > _FEW:
                # epoll(7) tells the same ones first each time; where a turn has time for a few, all have their turn.
                first = self._turn % len(ready)
                ready = ready[first:] + ready[:first]
            for key, _ in ready:
                key.data()
            now = time.monotonic()
            while self._alarms and self._alarms[0][0] <= now:
                heapq.heappop(self._alarms)[2]()
            due = finish_turn()

    def close(self) -> None:
        self._selector.close()

    def _time_left(self, due: float | None) -> float | None:
        alarm = self._alarms[0][0] if self._alarms else None
        if alarm is not None and (due is None or alarm < due):
            due = alarm
        return None if due is None else max(0.0, due - time.monotonic())
