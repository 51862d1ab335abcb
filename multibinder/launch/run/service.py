"""Tell the service manager of ``run`` how the instance is (sd_notify(3)): ``run`` is the main process of the unit.

Nothing here waits for the service manager. What it does not take now is sent later.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, MutableMapping

from multibinder.kernel.process import printable
from multibinder.launch.run.tasks import Event, sleep

#: What the service manager sets for its service, and what is not for the copies (sd_notify(3), sd_watchdog_enabled(3)).
VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
_RETRY_S = 0.2
#: The most messages that wait for the service manager. The oldest is dropped then.
_WAITING = 16
#: What is added to a time limit of ours, so that the service manager's ends after it.
_MARGIN_S = 5.0


class Service:
    """The service manager's view of ``run``. Without a service manager, the methods do nothing.

    The constructor reads VARIABLES, and removes them from ``environment``. ``watchdog_s`` is the time limit of the
    watchdog, None without one.
    """

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        given = {name: environment.pop(name, "") for name in VARIABLES}
        self._address = _address(given["NOTIFY_SOCKET"])
        self.watchdog_s = _watchdog_s(given["WATCHDOG_USEC"], given["WATCHDOG_PID"]) if self._address else None
        self._waiting: list[bytes] = []
        self._has_waiting = Event()
        self._status = ""
        self._socket: socket.socket | None = None
        if self._address:
            with contextlib.suppress(OSError):
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def ready(self, status: str = "") -> None:
        """Say that the instance serves: after its first start, and at the end of a reload."""
        self._send("READY=1", *self._status_field(status))

    def reloading(self, status: str = "") -> None:
        """Say that a reload begins. ``ready`` ends it."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={now}", *self._status_field(status))

    def stopping(self, status: str = "") -> None:
        """Say that the instance ends."""
        self._send("STOPPING=1", *self._status_field(status))

    def status(self, text: str) -> None:
        """Set the line that ``systemctl status`` shows."""
        if text != self._status:
            self._send(*self._status_field(text))

    def extend(self, seconds: float) -> None:
        """Ask for more time for the start, reload or stop that is under way: a step of it may take ``seconds``."""
        self._send(f"EXTEND_TIMEOUT_USEC={int((seconds + _MARGIN_S) * 1e6)}")

    async def feed(self, may_feed: Callable[[], bool]) -> None:
        """Feed the watchdog for ever, while ``may_feed`` returns True."""
        while self.watchdog_s is not None:
            if may_feed():
                self._send("WATCHDOG=1")
            await sleep(self.watchdog_s / 3)

    async def send_waiting(self) -> None:
        """Send for ever what the service manager did not take at once."""
        while True:
            await self._has_waiting.wait()
            self._flush()
            if self._waiting:
                await sleep(_RETRY_S)

    def close(self) -> None:
        """Try to send what waits, and close the socket."""
        self._flush()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _status_field(self, text: str) -> list[str]:
        if not text:
            return []
        self._status = text
        return [f"STATUS={printable(text)}"]

    def _send(self, *fields: str) -> None:
        if self._socket is None or not fields:
            return
        message = "\n".join(fields).encode(errors="replace")
        if message in self._waiting:
            return
        self._waiting = [*self._waiting[-_WAITING + 1 :], message]
        self._flush()

    def _flush(self) -> None:
        while self._waiting and self._socket is not None:
            try:
                self._socket.sendto(self._waiting[0], self._address)
            except OSError:
                # It does not read now (EAGAIN), or is being started again (ECONNREFUSED, ENOENT).
                self._has_waiting.set()
                return
            del self._waiting[0]
        self._has_waiting.clear()


def _address(text: str) -> str:
    """Return the address for sendto(2); empty if there is none that we know: a path or an abstract name."""
    if text.startswith("@"):
        return f"\0{text[1:]}"
    return text if text.startswith("/") else ""


def _watchdog_s(microseconds: str, pid: str) -> float | None:
    if not (microseconds.isascii() and microseconds.isdigit() and int(microseconds)):
        return None
    return int(microseconds) / 1e6 if pid in ("", str(os.getpid())) else None
