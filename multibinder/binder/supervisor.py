"""Notifications from the binder to its supervisor, systemd or the guard (sd_notify(3))."""

from __future__ import annotations

import os

import sdnotify

from multibinder.binder.loop import Loop


class Supervisor:
    """The supervisor that $NOTIFY_SOCKET names; without one, all calls do nothing."""

    def __init__(self) -> None:
        self._notifier = sdnotify.SystemdNotifier()

    def report_ready(self, socket_path: str) -> None:
        self._notifier.notify(f"READY=1\nSTATUS=Serving {socket_path}")
        if self._notifier.socket is not None:
            self._notifier.socket.setblocking(False)  # from now on, a slow supervisor must not make clients wait

    def report_stopping(self, signal_name: str) -> None:
        self._notifier.notify(f"STOPPING=1\nSTATUS=Stopping on {signal_name}")

    def feed_watchdog(self, loop: Loop) -> None:
        """Feed the watchdog from the loop, so that the supervisor finds a loop that is stuck (sd_watchdog_enabled(3)).

        Does nothing if the supervisor has no watchdog for this process.
        """
        interval_us = os.environ.get("WATCHDOG_USEC", "")
        if interval_us.isdigit() and os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid()):
            self._notifier.notify("WATCHDOG=1")
            loop.call_later(int(interval_us) / 1e6 / 2, lambda: self.feed_watchdog(loop))

    def close(self) -> None:
        """Close the socket now. Garbage collection would do it later, when another descriptor may have its number."""
        if self._notifier.socket is not None:
            self._notifier.socket.close()
