"""Signals as bytes that an event loop reads: no work is done in a handler."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Collection


class SignalQueue:
    """Takes over the handling of some signals, from its construction until ``close``.

    A signal that arrives makes ``fileno()`` readable, and ``read`` returns its number. The signals are unblocked: the
    predecessor in this process (an upgrade) blocked them, so that none was lost.
    """

    def __init__(self, numbers: Collection[signal.Signals]) -> None:
        self._numbers = numbers
        self._reading, self._writing = socket.socketpair()
        self._reading.setblocking(False)
        self._writing.setblocking(False)
        signal.set_wakeup_fd(self._writing.fileno(), warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)

    def fileno(self) -> int:
        return self._reading.fileno()

    def read(self) -> bytes:
        """Return the numbers of the signals that arrived since the last call, one byte each."""
        try:
            return self._reading.recv(64)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        """Block the signals, and send those again that arrived and were not read. They stay pending.

        The next program in this process installs its handlers, unblocks the signals, and receives them.
        """
        with contextlib.suppress(OSError):
            signal.pthread_sigmask(signal.SIG_BLOCK, self._numbers)
        signal.set_wakeup_fd(-1)
        # What fails here must not keep an upgrade or a stop from its end.
        with contextlib.suppress(OSError):
            for number in self.read():
                os.kill(os.getpid(), number)
        self._reading.close()
        self._writing.close()
