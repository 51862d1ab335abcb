"""The check that a copy accepts connections."""

from __future__ import annotations

from multibinder.launch.run.readiness.acceptor import Acceptor
from multibinder.launch.run.readiness.check import ObservedCopy
from multibinder.launch.run.readiness.pace import Pace
from multibinder.launch.run.readiness.target import Target


class Tcp:
    """The copy accepts a connection, which is closed unused."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._acceptor = Acceptor(Target(address))

    @property
    def last(self) -> str:
        return self._acceptor.last

    def describe(self) -> str:
        return f"a connection to {self._address}"

    async def wait(self, copy: ObservedCopy) -> str:
        pace = Pace()
        while (reached := await self._acceptor.connect(copy)) is None:
            await pace.next()
        reached[0].close()
        return f"it accepted a connection to {self._address}"
