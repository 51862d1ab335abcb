"""The checks that wait for a message of the copy itself: READY=1, einhorn's acknowledgement, a line, or a time."""

from __future__ import annotations

from multibinder.launch.run.readiness.check import ObservedCopy
from multibinder.launch.run.tasks import sleep


class Notified:
    """The copy sends READY=1 to $NOTIFY_SOCKET."""

    last = ""

    def describe(self) -> str:
        return "READY=1"

    async def wait(self, copy: ObservedCopy) -> str:
        await copy.notices.ready.wait()
        return "it sent READY=1"


class Acknowledged:
    """The copy sends einhorn's acknowledgement to $EINHORN_SOCK_PATH."""

    last = ""

    def describe(self) -> str:
        return "einhorn's acknowledgement"

    async def wait(self, copy: ObservedCopy) -> str:
        await copy.acked.wait()
        return "it acknowledged to einhorn"


class Line:
    """A line of the copy's output has a match of a pattern. The copy's Output searches for it."""

    last = ""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern

    def describe(self) -> str:
        return f"a line of output that matches {self._pattern!r}"

    async def wait(self, copy: ObservedCopy) -> str:
        await copy.output.matched.wait()
        return f"it wrote {copy.output.matched_line!r}"


class After:
    """The copy runs for a time."""

    last = ""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def describe(self) -> str:
        return f"{self._seconds:g} s without an exit"

    async def wait(self, copy: ObservedCopy) -> str:
        await sleep(self._seconds)
        return f"it ran for {self._seconds:g} s"
