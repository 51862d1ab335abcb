"""Events of the daemon: each is one log line with a name and fields. cli/ formats the line."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol

logger = logging.getLogger("multibinder")

#: (Event name, key) pairs that are counted at the same time; above this, counting starts again.
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


class Limit:
    """Log events, at most ``lines`` in ``per_s`` seconds for each event name and key.

    Some events can be caused at will, or repeat with each turn of the loop. Without a limit, their lines could fill the
    disk.
    """

    def __init__(self, lines: int = 20, per_s: float = 10.0) -> None:
        self._lines = lines
        self._per_s = per_s
        self._counts: dict[tuple[str, object], tuple[float, int]] = {}

    def log(self, emit: Callable[..., None], name: str, key: object, **fields: object) -> None:
        """Log an event with ``emit`` (``warning``, say), or leave it out if there were too many.

        The first line of the next period has the number of lines that were left out.
        """
        now = time.monotonic()
        since, count = self._counts.get((name, key), (now, 0))
        left_out: dict[str, object] = {}
        if now - since > self._per_s:
            if count > self._lines:
                left_out = {"left_out": count - self._lines}
            since, count = now, 0
        if len(self._counts) > _COUNTED_PAIRS:
            self._counts.clear()
        self._counts[name, key] = (since, count + 1)
        if count < self._lines:
            emit(name, **fields, **left_out)


#: Log an event; rate-limited for each event name and key.
limited = Limit().log


def complaint(name: str, client: Client, **fields: object) -> None:
    """Log a warning about a client; rate-limited for each event name and uid."""
    if logger.isEnabledFor(logging.WARNING):
        limited(warning, name, client.uid, **fields, pid=client.pid, uid=client.uid, command=client.command)


def _emit(level: int, name: str, fields: dict[str, object]) -> None:
    if logger.isEnabledFor(level):
        logger.log(level, name, extra={"fields": fields})
