"""The pid file of a classic daemon."""

from __future__ import annotations

import contextlib
import os

from multibinder.kernel import files
from multibinder.wire.errors import MultibinderError


class PidFileError(MultibinderError):
    """The pid file cannot be written."""


def write_pidfile(path: str) -> None:
    """Write our PID to a file, atomically. Raises PidFileError.

    The caller has the control socket, so a PID that an older file names is not that of a binder of this path, even if
    a process has it.
    """
    try:
        files.replace(path, f"{os.getpid()}\n".encode(), 0o644)
    except OSError as error:
        raise PidFileError(f"--pidfile {path}: cannot write it: {(error.strerror or str(error)).lower()}") from error


def remove_pidfile(path: str) -> None:
    """Remove the pid file if it names this process."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, encoding="ascii", errors="replace") as file:
            if file.read(32).strip() != str(os.getpid()):
                return
        os.unlink(path)
