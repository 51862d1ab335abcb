"""The processes that this one has started, and those that it has inherited: how each ended."""

from __future__ import annotations

import os

from multibinder.launch.run.tasks import Event, Loop, readable


class Process:
    """A process. ``ended`` is set when it has ended. ``status`` is that of waitpid(2) then, None if nobody told."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.ended = Event()
        self.status: int | None = None

    def end(self, status: int | None) -> None:
        """Note how it ended."""
        if not self.ended.is_set:
            self.status = status
            self.ended.set()


class Children:
    """Waits for children. As PID 1, or a subreaper, this process also gets those of others, and must reap them."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._known: dict[int, Process] = {}

    def started(self, pid: int) -> Process:
        """Return the process of a child that was just started. It has not been reaped before this is called."""
        self._known[pid] = Process(pid)
        return self._known[pid]

    def taken_over(self, pid: int, pidfd: int) -> Process:
        """Return the process of another parent. The descriptor (pidfd_open(2)) belongs to this object."""
        process = Process(pid)
        self._known[pid] = process  # if its parent ends, it may become our child
        self._loop.start(self._watch(process, pidfd), f"the process {pid}")
        return process

    def reap(self) -> None:
        """Take the status of each child that has ended, after SIGCHLD."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            process = self._known.pop(pid, None)
            if process is not None:
                process.end(status)

    async def _watch(self, process: Process, pidfd: int) -> None:
        try:
            # A pidfd is readable when its process has ended.
            await readable(pidfd)
        finally:
            os.close(pidfd)
        self.reap()
        if self._known.get(process.pid) is process:
            del self._known[process.pid]
        process.end(None)
