"""The callers that wait until the keeper has what they gave it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence

import msgspec

from multibinder.binder.loop import Loop

#: Called with the names, of those that were asked for, whose descriptors the keeper certainly has.
OnConfirmed = Callable[[Collection[str]], None]


class Waiter(msgspec.Struct, eq=False):
    """A caller that has not been told yet. It is told at ``due`` (time.monotonic()) at the latest."""

    names: Sequence[str]
    confirmed: OnConfirmed
    due: float


class Waiters:
    """Tell each caller once, after ``longest_s`` seconds at the latest.

    ``kept`` returns those of some names that the keeper has. ``on_overdue`` is called before a caller is told late.
    """

    def __init__(
        self,
        loop: Loop,
        longest_s: float,
        kept: Callable[[Sequence[str]], Collection[str]],
        on_overdue: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._longest_s = longest_s
        self._kept = kept
        self._on_overdue = on_overdue
        # In the order in which they are due.
        self._waiters: dict[Waiter, None] = {}
        self._is_look_due = False

    def add(self, names: Sequence[str], confirmed: OnConfirmed) -> Waiter:
        waiter = Waiter(names, confirmed, time.monotonic() + self._longest_s)
        self._waiters[waiter] = None
        # One timer for all: a timer of each would keep its whole request in memory for that long.
        if not self._is_look_due:
            self._look_in(self._longest_s)
        return waiter

    def tell(self, waiter: Waiter) -> None:
        """Tell a caller what the keeper has. Does nothing if it was told before."""
        if waiter in self._waiters:
            del self._waiters[waiter]
            waiter.confirmed(self._kept(waiter.names))

    def tell_those(self, are_complete: Callable[[Waiter], bool]) -> None:
        for waiter in [waiter for waiter in self._waiters if are_complete(waiter)]:
            self.tell(waiter)

    def tell_all(self) -> None:
        self.tell_those(lambda waiter: True)

    def _look_in(self, seconds: float) -> None:
        self._is_look_due = True
        self._loop.call_later(seconds, self._tell_overdue)

    def _tell_overdue(self) -> None:
        self._is_look_due = False
        now = time.monotonic()
        for waiter in [waiter for waiter in self._waiters if waiter.due <= now]:
            self._on_overdue()
            self.tell(waiter)
        if self._waiters and not self._is_look_due:
            self._look_in(next(iter(self._waiters)).due - now)
