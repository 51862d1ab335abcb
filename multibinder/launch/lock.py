"""Locks between processes: flock(2), with a deadline."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator

_PAUSE_S = 0.02


def acquire(descriptor: int, timeout_s: float, pause_s: float = _PAUSE_S) -> bool:
    """Take the lock of an open file, and return whether that succeeded in time. Closing the file releases it."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(pause_s)
        else:
            return True


@contextlib.contextmanager
def locked(path: str, timeout_s: float) -> Iterator[int]:
    """Hold the lock file ``path``, made if needed, and yield its descriptor. Raises TimeoutError, OSError."""
    descriptor = _open(path)
    try:
        if not acquire(descriptor, timeout_s):
            raise TimeoutError
        yield descriptor
    finally:
        os.close(descriptor)


def is_locked(path: str) -> bool:
    """Return whether a process holds the lock file at this moment. Raises OSError."""
    descriptor = _open(path)
    try:
        return not acquire(descriptor, timeout_s=-1)
    finally:
        os.close(descriptor)


def _open(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
