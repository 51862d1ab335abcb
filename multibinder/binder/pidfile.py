"""The pid file of a classic daemon."""

from __future__ import annotations

import contextlib
import errno
import os

from multibinder.binder import events
from multibinder.kernel import files
from multibinder.wire.errors import MultibinderError


class PidFileError(MultibinderError):
    """The pid file cannot be written."""


def write_pidfile(path: str, *, required: bool = True) -> None:
    """Write our PID to a file, atomically. Raises PidFileError; logs it if the file is not ``required``.

    The caller has the control socket, so a PID that an older file names is not that of a binder of this path, even if
    a process has it.
    """
    try:
        files.replace(path, f"{os.getpid()}\n".encode(), 0o644)
    except OSError as error:
        failure = PidFileError(f"--pidfile {path}: cannot write it: {(error.strerror or str(error)).lower()}")
        if required:
            raise failure from error
        events.error("no-pidfile", why=failure)


def try_to_write_pidfile(path: str) -> None:
    """Raise PidFileError if ``write_pidfile`` would raise it now. The pid file itself stays as it is."""
    draft = f"{path}.{os.getpid()}.new"
    try:
        if os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        descriptor = files.create(draft)
        try:
            files.write_all(descriptor, f"{os.getpid()}\n".encode())
        finally:
            os.close(descriptor)
            os.unlink(draft)
    except OSError as error:
        raise PidFileError(f"--pidfile {path}: cannot write it: {(error.strerror or str(error)).lower()}") from error


def remove_pidfile(path: str) -> None:
    """Remove the pid file if it names this process."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, encoding="utf-8", errors="replace") as file:
            if file.read(32).strip() != str(os.getpid()):
                return
        os.unlink(path)
