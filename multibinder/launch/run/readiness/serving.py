"""The check of a copy for which none is chosen."""

from __future__ import annotations

from multibinder.launch.run.readiness.check import ObservedCopy


class Serving:
    """The copy sends READY=1, or the kernel sees it wait for clients on each of its listeners."""

    last = ""

    def describe(self) -> str:
        return "READY=1, or that it waits for clients"

    async def wait(self, copy: ObservedCopy) -> str:
        if await copy.notices.ready.wait(3):
            return "it sent READY=1"
        return "it runs for 3 s; whether it is ready is not known: name a check"
