"""Check, create and replace files safely in directories that other users may write to."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator
from typing import Literal, NamedTuple

#: The most symbolic links that the kernel follows (path_resolution(7)).
_LINKS_MAX = 40


class Distrust(NamedTuple):
    """A reason why another user could replace a file that is created in a directory.

    ``path`` is the directory or link that causes it, at any level; ``status`` is its lstat(2).
    ``owner``   another user owns the directory.
    ``link``    another user owns the symbolic link.
    ``others``  every user may write in the directory.
    ``group``   the members of a group may write in the directory.
    """

    path: str
    status: os.stat_result
    reason: Literal["owner", "link", "others", "group"]

    @property
    def mode(self) -> str:
        """The permission bits in octal, as for chmod(1)."""
        return f"{stat.S_IMODE(self.status.st_mode):04o}"

    @property
    def is_sticky(self) -> bool:
        """Return whether it is a directory that is meant for the files of all users, as /tmp (inode(7))."""
        return bool(self.status.st_mode & stat.S_ISVTX)


def reasons_for_distrust(directory: str) -> Iterator[Distrust]:
    """Yield each reason why another user could replace a file in ``directory``, from the root downwards.

    Only root and this process's effective user are trusted; a uid that our user namespace does not map
    (user_namespaces(7)) may stand for any user. Each directory and each link that the kernel passes is checked
    (path_resolution(7)). A sticky directory above the last one is trusted: other users cannot rename our files there
    (inode(7)). A sticky last directory is not: another user could create the file first.

    Raises OSError if the directory does not exist or cannot be reached.
    """
    steps, last = walk(os.path.join(os.getcwd(), directory))
    for path, status in steps:
        is_link = stat.S_ISLNK(status.st_mode)
        if belongs_to_other_user(status):
            yield Distrust(path, status, "link" if is_link else "owner")
        elif not is_link and (path == last or not status.st_mode & stat.S_ISVTX):
            if status.st_mode & stat.S_IWOTH:
                yield Distrust(path, status, "others")
            elif status.st_mode & stat.S_IWGRP:
                yield Distrust(path, status, "group")


def belongs_to_other_user(status: os.stat_result) -> bool:
    """Return whether a file belongs to a user other than root and the effective user of this process."""
    return status.st_uid not in (0, os.geteuid())


def is_trusted_file(descriptor: int) -> bool:
    """Return whether an open file is a regular file that only root or our user can have created and can write."""
    status = os.fstat(descriptor)
    return stat.S_ISREG(status.st_mode) and not belongs_to_other_user(status) and not status.st_mode & 0o022


def create(path: str, mode: int = 0o600) -> int:
    """Create a file, open for reading and writing, close-on-exec. Return its descriptor, which the caller owns.

    A file that exists at ``path`` is removed first, and no link is followed. So another user can control neither the
    content nor the owner. Raises OSError.
    """
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)


def replace(path: str, content: bytes, mode: int = 0o600, *, sync: bool = False) -> None:
    """Replace a file atomically: a reader finds the whole old content or the whole new content (rename(2)).

    The umask does not change ``mode``. With ``sync`` the content is on the disk before the rename, so that a power
    failure leaves the old file or the new one. Raises OSError; then the old file is unchanged.
    """
    os.close(replace_and_keep_open(path, content, mode, sync=sync))


def replace_and_keep_open(path: str, content: bytes, mode: int = 0o600, *, sync: bool = False) -> int:
    """Replace a file as ``replace`` does, and return its open descriptor, which the caller owns."""
    # The name has another suffix: a program that reads all *.cfg files of a directory must not read the draft.
    draft = f"{path}.{os.getpid()}.new"
    descriptor = create(draft)
    try:
        write_all(descriptor, content)
        os.fchmod(descriptor, mode)
        if sync:
            os.fsync(descriptor)
        os.rename(draft, path)
    except BaseException:
        os.close(descriptor)
        with contextlib.suppress(OSError):
            os.unlink(draft)
        raise
    return descriptor


def write_all(descriptor: int, content: bytes) -> None:
    """Write all of ``content``; write(2) may take less at a time. Raises OSError."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def open_log(path: str, flags: int) -> int:
    """Open a file to append to, and create it with mode 0640 if it does not exist. The caller owns the descriptor.

    Links, FIFOs and files of other users are refused, because their owner could choose where root writes. A character
    device is accepted (/dev/null). Raises OSError.
    """
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o640)
    status = os.fstat(descriptor)
    if stat.S_ISCHR(status.st_mode) or (stat.S_ISREG(status.st_mode) and not belongs_to_other_user(status)):
        return descriptor
    os.close(descriptor)
    why = f"it belongs to uid {status.st_uid}" if stat.S_ISREG(status.st_mode) else "it is no regular file"
    raise OSError(errno.EPERM, f"{why}; remove it, or choose another")


def walk(directory: str) -> tuple[list[tuple[str, os.stat_result]], str]:
    """Return each directory and link that the kernel passes (path_resolution(7)), and the path of the last one."""
    path, rest, links = "/", directory.split("/")[::-1], 0
    steps = [(path, os.lstat(path))]
    while rest:
        part = rest.pop()
        if part in ("", "."):
            continue
        if part == "..":
            path = os.path.dirname(path)
            continue
        path = os.path.join(path, part)
        status = os.lstat(path)
        steps.append((path, status))
        if stat.S_ISLNK(status.st_mode):
            links += 1
            if links > _LINKS_MAX:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), directory)
            target = os.readlink(path)
            rest += target.split("/")[::-1]
            path = "/" if target.startswith("/") else os.path.dirname(path)
    return steps, path


def bind_socket(sock: socket.socket, path: str, mode: int) -> None:
    """Bind a Unix socket to a new file with this mode. It has no other mode at any moment. Raises OSError."""
    # bind(2) makes the file with 0777 less the umask.
    before = os.umask(0o777 & ~mode)
    try:
        sock.bind(path)
    finally:
        os.umask(before)
