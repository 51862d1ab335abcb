"""Events of the daemon: each is one log line with a name and fields. cli/ formats the line."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable
from typing import Protocol

logger = logging.getLogger("multibinder")

Emit = Callable[..., None]
#: Calls a function once, after this many seconds.
CallLater = Callable[[float, Callable[[], None]], None]

#: Log lines that were left out or could not be written are made up for this often, while there are any.
_CATCH_UP_EVERY_S = 1.0
#: Pairs of event name and key that are counted at the same time. Above this, the pairs of a name share one count.
_COUNTED_PAIRS = 1024

#: The key of a name's common count, when too many pairs are counted.
_MANY = "many"
#: The fields of a left-out line that its summary has, too.
_WHOM = ("uid", "command", "method")


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


class _Count:
    """The lines of one name and key in one period."""

    def __init__(self, since: float, emit: Emit) -> None:
        self.since = since
        self.emit = emit
        self.lines = 0
        self.left_out = 0
        self.whom: dict[str, object] = {}


class Limit:
    """Log events, at most ``lines`` in ``per_s`` seconds for each event name and key.

    Some events can be caused at will, or repeat with each turn of the loop. Without a limit, their lines could fill the
    disk.
    """

    def __init__(self, lines: int = 20, per_s: float = 10.0) -> None:
        self._lines = lines
        self._per_s = per_s
        self._counts: dict[tuple[str, Hashable], _Count] = {}

    def log(self, emit: Emit, name: str, key: Hashable, **fields: object) -> None:
        """Log an event with ``emit`` (``warning``, say), or leave it out if there were too many.

        The first line of the next period has the number of lines that were left out.
        """
        now = time.monotonic()
        count = self._count(name, key, now, emit)
        told: dict[str, object] = {}
        if now - count.since > self._per_s:
            if count.left_out:
                told = {"left_out": count.left_out}
            count.since, count.lines, count.left_out = now, 0, 0
        count.lines += 1
        if count.lines <= self._lines:
            emit(name, **fields, **told)
        else:
            count.left_out += 1
            count.emit = emit
            count.whom = {field: fields[field] for field in _WHOM if field in fields}
            _catching_up.note()

    @property
    def is_behind(self) -> bool:
        """Return whether lines were left out and their number was not logged yet."""
        return any(count.left_out for count in self._counts.values())

    def tell(self) -> None:
        """Log how many lines were left out in each period that is over. Forget counts that are not needed any more."""
        now = time.monotonic()
        for (name, key), count in list(self._counts.items()):
            if now - count.since > self._per_s:
                del self._counts[name, key]
                if count.left_out:
                    count.emit(name, **count.whom, left_out=count.left_out)

    def _count(self, name: str, key: Hashable, now: float, emit: Emit) -> _Count:
        if (name, key) not in self._counts and len(self._counts) >= _COUNTED_PAIRS:
            self.tell()
            if len(self._counts) >= _COUNTED_PAIRS:
                key = _MANY  # Clearing the counts would let a client escape its limit.
        return self._counts.setdefault((name, key), _Count(now, emit))


_limit = Limit()
#: Log an event that a client or a holder can cause at will: ``limited(info, "bound", uid, …)``. At most 20 lines in
#: 10 seconds are written for each event name and key.
limited = _limit.log


class _CatchingUp:
    """Makes up for lines that were left out or could not be written. While there are none, it wakes nobody."""

    def __init__(self) -> None:
        self._call_later: CallLater | None = None
        self._is_due = False

    def begin(self, call_later: CallLater) -> None:
        self._call_later, self._is_due = call_later, False
        self.note()

    def note(self) -> None:
        """Catch up soon if something is left out or not written."""
        if self._call_later is not None and not self._is_due and _is_behind():
            self._is_due = True
            self._call_later(_CATCH_UP_EVERY_S, self._again)

    def _again(self) -> None:
        self._is_due = False
        try:
            catch_up()
        finally:
            self.note()


_catching_up = _CatchingUp()
#: Let ``Loop.call_later`` call back while there is something to catch up with. A later loop replaces an earlier one.
catch_up_by = _catching_up.begin


def catch_up() -> None:
    """Log what ``limited`` left out, and write what could not be written before."""
    _limit.tell()
    for handler in logger.handlers:
        handler.flush()


def _is_behind() -> bool:
    return _limit.is_behind or any(getattr(handler, "is_behind", False) for handler in logger.handlers)


def complaint(name: str, client: Client, **fields: object) -> None:
    """Log a warning about a client, limited for each event name and uid."""
    if logger.isEnabledFor(logging.WARNING):
        limited(warning, name, client.uid, **fields, pid=client.pid, uid=client.uid, command=client.command)


def _emit(level: int, name: str, fields: dict[str, object]) -> None:
    if logger.isEnabledFor(level):
        logger.log(level, name, extra={"fields": fields})
        _catching_up.note()
