"""One line of log for each event: a name and fields. How a line looks is the command line's business."""

from __future__ import annotations

import logging
import time
from typing import Protocol

logger = logging.getLogger("multibinder")


def debug(name: str, **fields: object) -> None:
    _emit(logging.DEBUG, name, fields)


def info(name: str, **fields: object) -> None:
    _emit(logging.INFO, name, fields)


def warning(name: str, **fields: object) -> None:
    _emit(logging.WARNING, name, fields)


def error(name: str, **fields: object) -> None:
    _emit(logging.ERROR, name, fields)


class Client(Protocol):
    """Whom a complaint is about."""

    @property
    def pid(self) -> int: ...
    @property
    def uid(self) -> int: ...
    @property
    def command(self) -> str: ...


#: Lines about one uid and one kind of event in so many seconds: what a client can cause at will must not fill a disk.
_COMPLAINTS, _PER_S = 20, 10.0
_complaints: dict[tuple[str, int], tuple[float, int]] = {}


def complaint(name: str, client: Client, **fields: object) -> None:
    """A warning about a client. Of too many of one kind about one uid some are left out, and the next says how many."""
    if not logger.isEnabledFor(logging.WARNING):
        return
    now = time.monotonic()
    since, count = _complaints.get((name, client.uid), (now, 0))
    left_out: dict[str, object] = {}
    if now - since > _PER_S:
        if count > _COMPLAINTS:
            left_out = {"left_out": count - _COMPLAINTS}
        since, count = now, 0
    if len(_complaints) > 1024:
        _complaints.clear()
    _complaints[name, client.uid] = (since, count + 1)
    if count < _COMPLAINTS:
        warning(name, **fields, pid=client.pid, uid=client.uid, command=client.command, **left_out)


def _emit(level: int, name: str, fields: dict[str, object]) -> None:
    if logger.isEnabledFor(level):
        logger.log(level, name, extra={"fields": fields})
