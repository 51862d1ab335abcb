"""What one copy has told about itself by sd_notify(3). MAINPID= and descriptors are not for it to say, and ignored."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from multibinder.kernel.process import printable
from multibinder.launch.run.tasks import Event

#: The most characters of STATUS= that are kept.
_STATUS_LENGTH = 200


class Notices:
    """The state of a copy as it tells it. ``changed`` is set at each message; who waits for it clears it.

    ``ready`` is set by READY=1, ``stopping`` by STOPPING=1. ``fed_at`` is the time of the last WATCHDOG=1, None before
    the first; ``watchdog_s`` is the time limit that the copy chose (WATCHDOG_USEC=). ``extended_until`` is the time
    that it asked for (EXTEND_TIMEOUT_USEC=). Times are in seconds of time.monotonic().
    """

    def __init__(self) -> None:
        self.ready = Event()
        self.stopping = Event()
        self.changed = Event()
        self.status = ""
        self.is_reloading = False
        self.fed_at: float | None = None
        self.watchdog_s: float | None = None
        self.extended_until = 0.0
        self._has_given_up = False

    def take(self, message: bytes) -> None:
        """Note a message: lines of NAME=VALUE. What is unknown or makes no sense is ignored."""
        for name, value in _fields(message):
            self._take(name, value)
        self.changed.set()

    def _take(self, name: str, value: str) -> None:
        if name == "READY" and value == "1":
            self.is_reloading = False
            self.ready.set()
        elif name == "RELOADING" and value == "1":
            self.is_reloading = True
        elif name == "STOPPING" and value == "1":
            self.stopping.set()
        elif name == "STATUS":
            self.status = printable(value[:_STATUS_LENGTH])
        elif name == "WATCHDOG" and value == "1":
            self.fed_at, self._has_given_up = time.monotonic(), False
        elif name == "WATCHDOG" and value == "trigger":
            self._has_given_up = True
        elif name == "WATCHDOG_USEC" and (limit_s := _seconds(value)):
            self.watchdog_s = limit_s
        elif name == "EXTEND_TIMEOUT_USEC" and (more_s := _seconds(value)):
            self.extended_until = max(self.extended_until, time.monotonic() + more_s)

    def overdue_in(self, limit_s: float | None) -> float | None:
        """Return the seconds until the copy is overdue to feed the watchdog: 0 if it is; None if it never fed it.

        ``limit_s`` is the time limit of the service, None if it has none. That of the copy counts instead.
        """
        if self._has_given_up:
            return 0.0
        limit_s = self.watchdog_s or limit_s
        if limit_s is None or self.fed_at is None:
            return None
        return max(0.0, self.fed_at + limit_s - time.monotonic())

    async def until_overdue(self, limit_s: float | None) -> None:
        """Wait until the copy, which fed the watchdog once, has not done so for its time limit."""
        while (left_s := self.overdue_in(limit_s)) != 0:
            self.changed.clear()
            await self.changed.wait(left_s)


def _fields(message: bytes) -> Iterator[tuple[str, str]]:
    for line in message.decode(errors="replace").split("\n"):
        name, found, value = line.partition("=")
        if found:
            yield name, value


def _seconds(microseconds: str) -> float | None:
    """Return a time in seconds; None if it is no number, or not above 0."""
    with contextlib.suppress(ValueError):
        if microseconds.isascii() and microseconds.isdigit() and int(microseconds[:18]):
            return int(microseconds[:18]) / 1e6
    return None
