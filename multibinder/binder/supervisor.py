"""Notifications from the binder to its supervisor, systemd or the guard (sd_notify(3))."""

from __future__ import annotations

import errno
import os

import sdnotify

from multibinder.binder.loop import Loop

#: READY=1 is sent again after this time while the supervisor's queue is full (unix(7), max_dgram_qlen).
_READY_AGAIN_S = 0.1


class Supervisor:
    """The supervisor that $NOTIFY_SOCKET names; without one, all calls do nothing. No call waits for it."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._socket = sdnotify.SystemdNotifier().socket
        if self._socket is not None:
            self._socket.setblocking(False)

    def report_ready(self, socket_path: str) -> None:
        """Send READY=1, and again if the supervisor cannot take it yet: it is the one message that must not be lost."""
        if not self._send(f"READY=1\nSTATUS=Serving {socket_path}"):
            self._loop.call_later(_READY_AGAIN_S, lambda: self.report_ready(socket_path))

    def report_stopping(self, signal_name: str) -> None:
        self._send(f"STOPPING=1\nSTATUS=Stopping on {signal_name}")

    def feed_watchdog(self) -> None:
        """Feed the watchdog from the loop, so that the supervisor finds a loop that is stuck (sd_watchdog_enabled(3)).

        Does nothing if the supervisor has no watchdog for this process.
        """
        interval_us = os.environ.get("WATCHDOG_USEC", "")
        if interval_us.isdigit() and os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid()):
            self._loop.call_later(int(interval_us) / 1e6 / 2, self.feed_watchdog)
            self._send("WATCHDOG=1")

    def close(self) -> None:
        """Close the socket now. Garbage collection would do it later, when another descriptor may have its number."""
        if self._socket is not None:
            self._socket.close()

    def _send(self, message: str) -> bool:
        """Return False if the supervisor's queue is full, or the kernel short of memory.

        A supervisor that is gone is no reason to send again.
        """
        if self._socket is None:
            return True
        try:
            self._socket.send(message.encode())
        except OSError as error:
            return error.errno not in (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM)
        return True
