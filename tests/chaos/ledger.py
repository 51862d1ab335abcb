"""Remember what was acknowledged about each address, and compare it with the kernel's list of listeners."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

#: An address is ``open`` or ``gone`` once that was acknowledged, and ``unknown`` while a request is under way.
OPEN, GONE, UNKNOWN = "open", "gone", "unknown"


def listening_ports(host: str) -> set[int]:
    """Return the listening ports from the kernel's list (proc(5), /proc/net/tcp), where state 0A is LISTEN."""
    address = f"{int.from_bytes(socket.inet_aton(host), sys.byteorder):08X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {int(row[1][9:], 16) for row in rows if row[3] == "0A" and row[1].startswith(f"{address}:")}


class Ledger:
    """The acknowledged state of each port. Any thread may use it.

    ``others`` returns the violations of what no request changes.
    """

    def __init__(self, host: str, others: Callable[[], list[str]] = list) -> None:
        self._host = host
        self._others = others
        self._lock = threading.Lock()
        self._entries: dict[int, tuple[str, int]] = {}
        self.acknowledged = 0

    def put(self, port: int, state: str) -> None:
        with self._lock:
            self._entries[port] = (state, self._entries.get(port, ("", 0))[1] + 1)
            self.acknowledged += state != UNKNOWN

    def ports(self, state: str) -> set[int]:
        with self._lock:
            return {port for port, (each, _) in self._entries.items() if each == state}

    def violations(self) -> list[str]:
        """Return a sentence for each port that is not what was acknowledged, before and after the look alike."""
        with self._lock:
            before = dict(self._entries)
        listening = listening_ports(self._host)
        with self._lock:
            settled = {port: state for port, (state, n) in before.items() if self._entries[port] == (state, n)}
        missing = sorted(port for port, state in settled.items() if state == OPEN and port not in listening)
        back = sorted(port for port, state in settled.items() if state == GONE and port in listening)
        return (
            [f"acknowledged, but not listening: {self._host}:{port}" for port in missing]
            + [f"released, but listening: {self._host}:{port}" for port in back]
            + self._others()
        )
