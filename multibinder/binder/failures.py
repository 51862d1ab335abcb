"""Log exceptions that no one expected: a shortage in an unusual place, or a bug. Others go on."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable

from multibinder.binder import events

#: At most this many calls are named in the log, the innermost first.
_CALLS = 6


def callback_failed(callback: Callable[..., object], error: Exception, done: str = "the others go on") -> None:
    """Log that a callback raised, with what a bug report needs. Never raises.

    The line has no source text: the files on disk may be of another version.
    """
    try:
        name = _name(callback)
        events.limited(events.error, "callback-failed", name, callback=name, **told(error), done=done)
    except Exception:  # noqa: S110 (to log it needs what is short, and would fail likewise)
        pass


def told(error: Exception) -> dict[str, object]:
    """Return the fields that tell an unexpected exception: what it is, and where it was raised."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return {"error": text, "at": _where_raised(error)}


def _name(callback: Callable[..., object]) -> str:
    while isinstance(callback, functools.partial):
        callback = callback.func
    return getattr(callback, "__qualname__", type(callback).__name__)


def _where_raised(error: Exception) -> str:
    """Return the calls that led to an exception: ``keeper.py:88 in keep < methods.py:131 in _bind``."""
    calls = []
    step = error.__traceback__
    while step is not None:
        code = step.tb_frame.f_code
        calls.append(f"{os.path.basename(code.co_filename)}:{step.tb_lineno} in {code.co_name}")
        step = step.tb_next
    return " < ".join(calls[: -_CALLS - 1 : -1])
