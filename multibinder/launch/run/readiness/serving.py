"""The check of a copy for which none is chosen: READY=1, or the kernel shows that it waits for clients."""

from __future__ import annotations

import os
import socket
import time

from multibinder.kernel.accepting import accepts_on
from multibinder.kernel.descriptors import scan
from multibinder.kernel.polling import polls_on
from multibinder.launch.run.readiness.check import ObservedCopy
from multibinder.launch.styles.passed import Passed

#: So long must a copy wait for clients: one may open its sockets, and fail in its next step.
STABLE_S = 1.0
#: A server waits with interruptions: it is seen to wait if it was so long ago.
_RECENTLY_S = 0.5
#: After this time, a copy of which nothing is seen counts as ready.
UNKNOWN_S = 3.0
_LOOK_S = 0.05


class Serving:
    """The copy sends READY=1, or waits for clients on each of its stream listeners for a second.

    epoll, accept, poll and select are visible, io_uring is not. A copy that is not seen to wait is taken for ready
    after three seconds, and the result says that it is not known.
    """

    def __init__(self) -> None:
        self.last = ""

    def describe(self) -> str:
        return "READY=1, or that it waits for clients"

    async def wait(self, copy: ObservedCopy) -> str:
        wanted = {os.fstat(listener.source).st_ino: listener for listener in copy.listeners if _is_stream(listener)}
        begun = time.monotonic()
        since: float | None = None
        seen: dict[int, float] = {}
        while True:
            if await copy.notices.ready.wait(_LOOK_S):
                return "it sent READY=1"
            now = time.monotonic()
            seen.update(dict.fromkeys(_waits_on(copy, set(wanted)), now))
            missing = [inode for inode in wanted if now - seen.get(inode, -_RECENTLY_S) > _RECENTLY_S]
            if wanted and not missing:
                since = since if since is not None else now
                if now - since >= STABLE_S:
                    return "it waits for clients"
            else:
                since = None
                names = ", ".join(str(wanted[inode]) for inode in missing)
                self.last = f"it is not seen to wait for clients on {names}" if names else ""
                if now - begun >= UNKNOWN_S:
                    return f"it runs for {UNKNOWN_S:g} s; whether it is ready is not known: name a check"


def _waits_on(copy: ObservedCopy, inodes: set[int]) -> set[int]:
    found: set[int] = set()
    if inodes:
        for process in scan(inodes, pids=copy.processes()).processes:
            found |= accepts_on(process) | polls_on(process)
    return found


def _is_stream(listener: Passed) -> bool:
    sock = socket.socket(fileno=listener.source)
    try:
        return sock.type == socket.SOCK_STREAM
    finally:
        sock.detach()
