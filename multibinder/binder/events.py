"""Events of the daemon: each is one log line with a name and fields. cli/ formats the line."""

from __future__ import annotations

import logging
import time
from typing import Protocol

logger = logging.getLogger("multibinder")

#: (Event name, uid) pairs that are counted at the same time; above this, counting starts again.
_COUNTED_PAIRS = 1024


def debug(name: str, **fields: object) -> None:
    _emit(logging.DEBUG, name, fields)


def info(name: str, **fields: object) -> None:
    _emit(logging.INFO, name, fields)


def warning(name: str, **fields: object) -> None:
    _emit(logging.WARNING, name, fields)


def error(name: str, **fields: object) -> None:
    _emit(logging.ERROR, name, fields)


class Client(Protocol):
    """The client that a complaint is about."""

    @property
    def pid(self) -> int: ...
    @property
    def uid(self) -> int: ...
    @property
    def command(self) -> str: ...


class Complaints:
    """Log warnings about clients, at most ``lines`` in ``per_s`` seconds for each event name and uid.

    A client can cause these events at will. Without a limit, it could fill the disk with log lines.
    """

    def __init__(self, lines: int = 20, per_s: float = 10.0) -> None:
        self._lines = lines
        self._per_s = per_s
        self._counts: dict[tuple[str, int], tuple[float, int]] = {}

    def log(self, name: str, client: Client, **fields: object) -> None:
        """Log a warning about a client, or leave it out if there were too many.

        The first line of the next period has the number of lines that were left out.
        """
        if not logger.isEnabledFor(logging.WARNING):
            return
        now = time.monotonic()
        since, count = self._counts.get((name, client.uid), (now, 0))
        left_out: dict[str, object] = {}
        if now - since > self._per_s:
            if count > self._lines:
                left_out = {"left_out": count - self._lines}
            since, count = now, 0
        if len(self._counts) > _COUNTED_PAIRS:
            self._counts.clear()
        self._counts[name, client.uid] = (since, count + 1)
        if count < self._lines:
            warning(name, **fields, pid=client.pid, uid=client.uid, command=client.command, **left_out)


#: Log a warning about a client; rate-limited for each event name and uid.
complaint = Complaints().log


def _emit(level: int, name: str, fields: dict[str, object]) -> None:
    if logger.isEnabledFor(level):
        logger.log(level, name, extra={"fields": fields})
