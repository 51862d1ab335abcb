"""Take the capabilities of a thread away for a while (capset(2))."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterator

#: _LINUX_CAPABILITY_VERSION_3 (linux/capability.h), and this thread.
_HEADER = struct.pack("=Ii", 0x20080522, 0)
#: Effective, permitted and inheritable, each in two parts.
_SETS = struct.Struct("=6I")
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def without_capabilities() -> Iterator[None]:
    """Let this thread have no capability in effect in this block."""
    before = ctypes.create_string_buffer(_SETS.size)
    _call(_libc.capget, before)
    low, permitted, inheritable, high, high_permitted, high_inheritable = _SETS.unpack(before.raw)
    del low, high
    _call(_libc.capset, _SETS.pack(0, permitted, inheritable, 0, high_permitted, high_inheritable))
    try:
        yield
    finally:
        _call(_libc.capset, before)


def _call(function: ctypes._NamedFuncPointer, sets: object) -> None:
    if function(_HEADER, sets) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
