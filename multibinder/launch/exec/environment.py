"""The environment of the caller of this process."""

import os

#: What Python sets itself for its own sake if the locale is "C" (PEP 538).
_COERCED = "LC_CTYPE"


def callers() -> "dict[str, str]":
    """Return the environment that the caller gave to this process: without what Python has added to it."""
    environment = dict(os.environ)
    if environment.get(_COERCED, "").upper() in ("C.UTF-8", "C.UTF8", "UTF-8") and not _is_given(_COERCED):
        del environment[_COERCED]
    return environment


def _is_given(name: str) -> bool:
    """Return whether the process was executed with this variable (proc(5)); True if that cannot be read."""
    try:
        with open("/proc/self/environ", "rb") as block:
            return any(entry.startswith(name.encode() + b"=") for entry in block.read().split(b"\0"))
    except OSError:
        return True
