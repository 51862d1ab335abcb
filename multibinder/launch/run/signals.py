"""The signals of ``run``: a handler only wakes the loop, which reads their numbers."""

from __future__ import annotations

import signal
import socket
from collections.abc import Collection

from multibinder.launch.run.tasks import readable

STOP = {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}
RELOAD = {signal.SIGHUP}
#: These mean something to many servers, and are passed on to each copy.
PASSED_ON = {
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGALRM,
    *(number for number in range(signal.SIGRTMIN, signal.SIGRTMAX + 1)),
}


class Signals:
    """Takes over the handling of these signals from its construction on, and unblocks them."""

    def __init__(self, numbers: Collection[int]) -> None:
        self._reading, self._writing = socket.socketpair()
        self._reading.setblocking(False)
        self._writing.setblocking(False)
        signal.set_wakeup_fd(self._writing.fileno(), warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)

    async def next(self) -> bytes:
        """Wait for signals, and return the number of each as a byte."""
        await readable(self._reading.fileno())
        try:
            return self._reading.recv(256)
        except BlockingIOError:
            return b""
