"""Look after each copy from its first moment to its end: its output, what it tells, the watchdog."""

from __future__ import annotations

import signal
from collections.abc import Mapping

from multibinder.launch.run.copy import Copy
from multibinder.launch.run.instance import Instance
from multibinder.launch.run.notices import Notices
from multibinder.launch.run.tasks import Event, Loop, Task

#: A copy that stopped to feed the watchdog gets this time after SIGABRT, in which it may write a core.
_ABORT_S = 10.0


class CopyWatch:
    """Watches the copies of an instance. ``watchdog_s`` is the service manager's time limit; None without one."""

    def __init__(self, loop: Loop, instance: Instance, watchdog_s: float | None) -> None:
        self._loop = loop
        self._instance = instance
        self._watchdog_s = watchdog_s

    def add(self, copy: Copy) -> None:
        """Look after a copy from its first moment to its end."""
        self._instance.copies.append(copy)
        self._loop.start(self._forward(copy), f"the output of {copy.pid}")
        listening = [self._loop.start(self._follow(copy), f"what {copy.pid} tells")]
        if self._watchdog_s is not None:
            listening.append(self._loop.start(self._guard(copy), f"the watchdog of {copy.pid}"))
        self._loop.start(self._until_ended(copy, listening), f"copy {copy.pid}")
        self._instance.changed()

    def may_feed(self) -> bool:
        """Return whether the service manager may know that all is well: no copy has stopped to feed the watchdog.

        One that is told to finish need not feed it.
        """
        return all(copy.is_told or copy.notices.overdue_in(self._watchdog_s) != 0 for copy in self._instance.copies)

    async def _until_ended(self, copy: Copy, listening: list[Task[None]]) -> None:
        await copy.ended.wait()
        for task in listening:
            task.cancel()  # a copy that has ended tells nothing more
        copy.output.read_waiting()
        self._instance.copies.remove(copy)
        self._instance.changed()

    async def _forward(self, copy: Copy) -> None:
        try:
            await copy.output.read()
        finally:
            copy.output.close()

    async def _follow(self, copy: Copy) -> None:
        """Show what a copy tells of itself."""
        said = ""
        while not copy.ended.is_set:
            copy.notices.changed.clear()
            await copy.notices.changed.wait()
            if copy.notices.status != said:
                said = copy.notices.status
                self._instance.service.status(self._instance.line())

    async def _guard(self, copy: Copy) -> None:
        """End a copy that has fed the watchdog, and does so no more. Another one is started then."""
        await copy.notices.until_overdue(self._watchdog_s)
        if copy.ended.is_set or copy.is_told:
            return
        self._instance.say("error", f"copy {copy.pid} has stopped to feed the watchdog: it is killed with SIGABRT")
        copy.send(signal.SIGABRT)
        if not await copy.ended.wait(_ABORT_S):
            copy.kill(signal.SIGKILL)

    def notices(self) -> Mapping[int, Notices]:
        return {copy.pid: copy.notices for copy in self._instance.copies}

    def acknowledgements(self) -> Mapping[int, Event]:
        return {copy.pid: copy.acked for copy in self._instance.copies}
