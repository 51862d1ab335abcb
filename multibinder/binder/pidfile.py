"""The pid file of a classic daemon."""

from __future__ import annotations

import contextlib
import os

from multibinder.kernel import files
from multibinder.wire.errors import MultibinderError


class PidFileError(MultibinderError):
    """The pid file cannot be written."""


def write_pidfile(path: str) -> None:
    """Atomically: whoever reads it finds a whole number. Call it when the control socket is ours: what an older file
    says then is outdated, also if that number is alive, because it belongs to a stranger by now."""
    try:
        files.replace(path, f"{os.getpid()}\n".encode(), 0o644)
    except OSError as error:
        raise PidFileError(f"--pidfile {path}: cannot write it: {(error.strerror or str(error)).lower()}") from error


def remove_pidfile(path: str) -> None:
    """At the end, if it is still ours."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, encoding="ascii", errors="replace") as file:
            if file.read(32).strip() != str(os.getpid()):
                return
        os.unlink(path)
