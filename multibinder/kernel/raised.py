"""Tell what an exception is and where it was raised, in one line. This module imports nothing but ``os``."""

from __future__ import annotations

import os

#: At most this many calls are named, the innermost first.
_CALLS = 6
_IMPORT_SYSTEM = "<frozen importlib"


def told(error: Exception) -> dict[str, object]:
    """Return the fields that tell an unexpected exception: what it is, and where it was raised.

    There is no source text in it: the files on disk may be of another version.
    """
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return {"error": text, "at": _where_raised(error)}


def _where_raised(error: Exception) -> str:
    """Return the calls that led to an exception: ``keeper.py:88 in keep < methods.py:131 in _bind``."""
    calls = []
    step = error.__traceback__
    while step is not None:
        code = step.tb_frame.f_code
        if not code.co_filename.startswith(_IMPORT_SYSTEM):
            calls.append(f"{os.path.basename(code.co_filename)}:{step.tb_lineno} in {code.co_name}")
        step = step.tb_next
    return " < ".join(calls[: -_CALLS - 1 : -1])
