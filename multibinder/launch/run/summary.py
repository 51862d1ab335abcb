"""The writer of ``summary.json`` of an instance of ``run`` (docs/instance-summary.md).

``run`` is one process, which calls ``update`` after each change. A summary that cannot be written is said once, and
costs nothing else.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

from msgspec.structs import replace

from multibinder.kernel.process import TICKS_PER_S, start_ticks_of
from multibinder.launch.log import InstanceLog
from multibinder.launch.run.files import PROGRAM, RunInstance
from multibinder.launch.run.report import RunStatus
from multibinder.launch.summary import SummaryWriter
from multibinder.wire.instance_summary import CopyProcess, InstanceSummary, MasterProcess, SourceFile

#: The states of monitoring by the states of ``run``. All others are ``running``.
_STATES = {"reloading": "reloading", "stopping": "stopping"}


class RunSummary(SummaryWriter):
    """Writes the summary of one instance of ``run``. No method raises for a summary that cannot be written."""

    def __init__(self, instance: RunInstance) -> None:
        super().__init__(instance.directory, instance.name, InstanceLog(PROGRAM, instance.name), lambda: None)
        earlier = self.read_or_new()
        self._earlier_reloads, self._earlier_restarts = earlier.reloads_total, earlier.restarts_total

    def began(self, generation: int) -> None:
        """Note that this process is the ``run`` of the instance. The copies of an earlier one may live."""
        now = time.time()
        pid = os.getpid()
        ticks = start_ticks_of(pid)
        self._change(
            lambda before: replace(
                before,
                driver="run",
                state="running",
                activity="starting",
                master=MasterProcess(pid, ticks),
                generation=generation,
                started=now - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / TICKS_PER_S),
                starts_total=before.starts_total + 1,
                gave_up=False,
            )
        )

    def files_read(self, paths: Iterable[str]) -> None:
        """Note the files that the settings came from, just before they are read: ``--config`` and ``--env-file``."""
        sources = [_source(path) for path in paths]
        self._change(lambda before: replace(before, sources=sources))

    def update(self, status: RunStatus) -> None:
        """Note the present state."""
        copies = [_copy(each.pid, each.generation, each.index, each.state) for each in status.copies]

        def change(before: InstanceSummary) -> InstanceSummary:
            return replace(
                before,
                driver="run",
                state=_STATES.get(status.state, "running"),
                activity="gave-up" if status.gave_up else status.state,
                generation=status.generation,
                last_load=time.time() if status.generation != before.generation else before.last_load,
                copies=copies,
                workers=[each.pid for each in copies if each.state == "ready"],
                old_workers=[each.pid for each in copies if each.state == "stopping"],
                binds=status.binds,
                wanted=status.wanted,
                gave_up=status.gave_up,
                reloads_total=self._earlier_reloads + status.reloads_total,
                restarts_total=self._earlier_restarts + status.restarts_total,
            )

        self._change(change)

    def succeeded(self, *, fallback: bool = False) -> None:
        """Note that a start or a reload ended well. ``fallback``: with the last good settings, not with the file's."""
        self._change(
            lambda before: replace(
                before, fallback=fallback, last_success=before.last_success if fallback else time.time()
            )
        )

    def failed(self, phase: str) -> None:
        """Note that a start or a reload failed in a phase: ``start``, or ``load`` for what comes before and after."""
        self._change(
            lambda before: replace(
                before, last_failure=time.time(), last_failure_phase=phase, failures_total=before.failures_total + 1
            )
        )

    def stopped(self) -> None:
        """Note that ``run`` ends, and that no copy is left."""
        self._change(
            lambda before: replace(
                before,
                state="stopped",
                activity="",
                master=None,
                copies=[],
                workers=[],
                old_workers=[],
                fallback=False,
                gave_up=False,
            )
        )


def _copy(pid: int, generation: int, index: int, state: str) -> CopyProcess:
    try:
        return CopyProcess(pid, start_ticks_of(pid), generation, index, state)
    except OSError:
        return CopyProcess(pid, 0, generation, index, state)  # it has ended


def _source(path: str) -> SourceFile:
    try:
        status = os.stat(path)
    except OSError:
        return SourceFile(path, None, 0, 0)
    return SourceFile(path, status.st_mtime_ns, status.st_size, status.st_ino)
