"""Private files of an instance: replaced atomically, and read only if no other user could have made them."""

from __future__ import annotations

import errno
import os
from typing import TypeVar

import msgspec

from multibinder.kernel.files import replace
from multibinder.launch import trust
from multibinder.launch.errors import LaunchError

T = TypeVar("T")

#: For our user alone: configurations hold passwords.
_DIRECTORY_MODE, _FILE_MODE = 0o700, 0o600

_REMEDIES = {
    errno.ENOSPC: "free some space; the running daemon is not touched",
    errno.EDQUOT: "raise the quota; the running daemon is not touched",
    errno.EACCES: "run as the user that owns it, or choose another --runtime-dir",
    errno.EROFS: "choose a --runtime-dir on a writable file system (/run)",
}


def read_record(path: str, kind: type[T]) -> T | None:
    """Read a JSON record; None if it is missing, cut short, or of another version. Raises NotTrusted, OSError."""
    try:
        return msgspec.json.decode(trust.read(path), type=kind)
    except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
        return None


def write_record(path: str, record: msgspec.Struct) -> None:
    """Replace a JSON record atomically. Raises LaunchError."""
    write_file(path, msgspec.json.encode(record))


def write_file(path: str, content: bytes) -> None:
    """Replace a private file atomically; its directory is created if needed. Raises LaunchError."""
    try:
        make_private_directory(os.path.dirname(path))
        replace(path, content, _FILE_MODE)
    except OSError as error:
        raise cannot_write(path, error) from error


def make_private_directory(path: str) -> None:
    """Create a directory for our user alone, if there is none. Raises OSError."""
    os.makedirs(path, mode=_DIRECTORY_MODE, exist_ok=True)


def cannot_write(path: str, error: OSError) -> LaunchError:
    """Return the error that tells the operator why a file could not be written, and what to do."""
    remedy = _REMEDIES.get(error.errno or 0, "choose another --runtime-dir")
    return LaunchError(f"{path}: cannot write: {(error.strerror or str(error)).lower()}; {remedy}")
