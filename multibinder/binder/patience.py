"""Patience of a process that must not end, because it keeps the only copies of sockets."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import TypeVar

from multibinder.binder import events

_T = TypeVar("_T")

#: From one attempt to the next.
_AGAIN_S = 0.2
_ENDS = {signal.SIGTERM, signal.SIGINT}


def patiently(make: Callable[[], _T], keeps: bool) -> _T:
    """Return what ``make`` returns. While it fails with OSError, wait and try again.

    If this process does not keep anything (``keeps``), or a signal to stop is pending, the error is raised instead.
    """
    while True:
        try:
            return make()
        except OSError as error:
            if not keeps or signal.sigpending() & _ENDS:
                raise
            events.limited(events.error, "guard-waits", "", why=error.strerror, done="it is tried again")
            time.sleep(_AGAIN_S)
