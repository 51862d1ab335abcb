"""The private files of an instance: read only if no other user could have made them, and replaced atomically."""

import contextlib
import json
import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def read_record(path: str) -> "dict[str, Any] | None":
    """Read a JSON record; None if it is missing, damaged, or another user's.

    A record names programs to execute: another user's is not believed, as in launch/trust.py.
    """
    try:
        descriptor = os.open(path, _READ)
    except OSError:
        return None
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid not in (0, os.geteuid()):
            return None
        try:
            record = json.loads(file.read())
        except (OSError, ValueError):
            return None
    return record if isinstance(record, dict) else None


def write_record(path: str, record: object) -> None:
    """Replace a JSON record. Raises OSError."""
    replace(path, json.dumps(record, separators=(",", ":")).encode())


def replace(path: str, content: bytes) -> None:
    """Replace a private file atomically (rename(2)). Raises OSError."""
    directory, name = os.path.split(path)
    draft = os.path.join(directory, f".{name}.{os.getpid()}.new")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(draft)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
        os.rename(draft, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(draft)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, path) from None  # write(2) names no file
        raise


def is_private(directory: str) -> bool:
    """Return whether only root and this user can replace what is in a directory, seen from its path alone.

    A link on the way counts as False: launch/trust.py looks closer, and has the messages.
    """
    user = os.geteuid()
    path = directory
    while True:
        status = os.lstat(path)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid not in (0, user):
            return False
        if status.st_mode & 0o022 and (path == directory or not status.st_mode & stat.S_ISVTX):
            return False
        if path == "/":
            return True
        path = os.path.dirname(path)


def write_configuration(directory: str, texts: "Mapping[str, bytes]", rendered: "Sequence[str]") -> None:
    """Write the files that HAProxy reads, and remove all others from the ``rendered`` directories. Raises OSError."""
    for name in rendered:
        os.makedirs(os.path.join(directory, name), mode=0o700, exist_ok=True)
    for target, content in texts.items():
        replace(os.path.join(directory, target), content)
    for name in rendered:
        for other in os.listdir(os.path.join(directory, name)):
            if os.path.join(name, other) not in texts:
                os.unlink(os.path.join(directory, name, other))
