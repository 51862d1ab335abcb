"""The check that a connection is accepted."""

from __future__ import annotations

from multibinder.launch.run.readiness.check import ObservedCopy
from multibinder.launch.run.tasks import sleep


class Tcp:
    """The copy accepts a connection."""

    def __init__(self, address: str) -> None:
        self._address = address
        self.last = ""

    def describe(self) -> str:
        return f"{self._address}"

    async def wait(self, copy: ObservedCopy) -> str:
        await sleep(1)
        return "it ran for 1 s"
