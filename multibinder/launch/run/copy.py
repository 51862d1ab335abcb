"""One copy of the command: its first process, with all processes that this one has started."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Collection, Sequence

from multibinder.kernel.process import leader_of, stat_or_none
from multibinder.launch.run.children import Process
from multibinder.launch.run.notices import Notices
from multibinder.launch.run.output import Output
from multibinder.launch.run.settings import ServiceSettings
from multibinder.launch.run.tasks import Event, sleep
from multibinder.launch.styles.passed import Passed

#: How often the processes are looked for that a first process has left behind.
_LOOK_S = 0.1


class Copy:
    """A copy. ``state`` is starting, ready or stopping. The checks of readiness see it as ``ObservedCopy``."""

    def __init__(
        self,
        process: Process,
        generation: int,
        index: int,
        settings: ServiceSettings,
        output: Output,
        listeners: Sequence[Passed] = (),
        ready_address: tuple[str, int] | None = None,
    ) -> None:
        self.process = process
        self.generation = generation
        self.index = index
        self.settings = settings
        self.output = output
        self.listeners = listeners
        self.ready_address = ready_address
        self.notices = Notices()
        self.acked = Event()
        self.state = "starting"
        self.since = time.time()
        self.ready_by = ""
        self.ready_at = 0.0
        stat = stat_or_none(process.pid)
        self.start_ticks = stat.start_ticks if stat is not None else 0
        #: Set if it is ended by us: its end is no crash.
        self.is_told = False

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def ended(self) -> Event:
        return self.process.ended

    def processes(self) -> set[int]:
        """Return the PIDs of the copy: its first process, and all below it or in its session."""
        found = processes_of([self.pid])
        return found[self.pid]

    def send(self, number: int) -> None:
        """Send a signal to the first process."""
        if not self.ended.is_set:
            with contextlib.suppress(OSError):
                os.kill(self.pid, number)

    def kill(self, number: int) -> None:
        """Send a signal to every process of the copy."""
        for pid in self.processes():
            if pid != self.pid or not self.ended.is_set:
                with contextlib.suppress(OSError):
                    os.kill(pid, number)

    async def end(self, timeout_s: float) -> bool:
        """Send the stop signal, and wait for all of its processes. Return False if some had to be killed.

        A copy that was told before is not told again: many servers drop their clients at a second signal.
        """
        if not self.is_told:
            self.state, self.is_told = "stopping", True
            self.send(self.settings.stop_signal)
            self.send(signal.SIGCONT)  # a process that was stopped handles no signal
        return await self.wait_or_kill(timeout_s)

    async def wait_or_kill(self, timeout_s: float) -> bool:
        """Wait until its processes have ended. Return False if some had to be killed after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        await self.ended.wait(timeout_s)
        while self._is_alive():
            if time.monotonic() >= deadline:
                self.kill(signal.SIGKILL)
                await self.ended.wait()
                return False
            await sleep(_LOOK_S)
        return True

    def _is_alive(self) -> bool:
        return not self.ended.is_set or bool(self.processes() - {self.pid})


def processes_of(leaders: Collection[int]) -> dict[int, set[int]]:
    """Return the processes of the copies with these first processes."""
    found: dict[int, set[int]] = {leader: set() for leader in leaders}
    try:
        names = os.listdir("/proc")
    except OSError:  # no descriptor is free
        return {leader: {leader} for leader in leaders}
    for name in names:
        if name.isdigit():
            leader = leader_of(int(name), leaders)
            if leader is not None and (stat := stat_or_none(int(name))) is not None and not stat.has_ended:
                found[leader].add(int(name))
    return found
