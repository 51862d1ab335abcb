"""Log exceptions that no one expected: a shortage in an unusual place, or a bug. Others go on."""

from __future__ import annotations

import functools
from collections.abc import Callable

from multibinder.binder import events
from multibinder.kernel.raised import told


def callback_failed(callback: Callable[..., object], error: Exception, done: str = "the others go on") -> None:
    """Log that a callback raised, with what a bug report needs. Never raises.

    The line has no source text: the files on disk may be of another version.
    """
    try:
        name = _name(callback)
        events.limited(events.error, "callback-failed", name, callback=name, **told(error), done=done)
    except Exception:  # noqa: S110 (to log it needs what is short, and would fail likewise)
        pass


def _name(callback: Callable[..., object]) -> str:
    while isinstance(callback, functools.partial):
        callback = callback.func
    return getattr(callback, "__qualname__", type(callback).__name__)
