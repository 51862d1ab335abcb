"""Files in directories that other users may reach: whose they are, and making and replacing them safely."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import Literal, NamedTuple

#: The kernel follows so many links (path_resolution(7)).
_LINKS_MAX = 40


class Distrust(NamedTuple):
    """A reason why another user could replace what is made in a directory.

    ``path`` is the directory or link, on the way or the last one; ``status`` is its lstat(2).
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
        """The permission bits as chmod(1) takes them."""
        return f"{stat.S_IMODE(self.status.st_mode):04o}"


def distrusts(directory: str) -> Iterator[Distrust]:
    """Yield each reason why another user could replace what is made in ``directory``, from the root downwards.

    Only root and this process's effective user are trusted; a user that our user namespace does not map
    (user_namespaces(7)) could be anybody. Each directory and each link that the kernel goes through is judged
    (path_resolution(7)). The sticky bit excuses a directory on the way, where it keeps others from renaming what is
    ours (inode(7)), and not the last one, where others could make a file before we do.

    Raises OSError if there is no such directory, or it may not be reached.
    """
    steps, last = _walk(os.path.join(os.getcwd(), directory))
    for path, status in steps:
        is_link = stat.S_ISLNK(status.st_mode)
        if is_strangers(status):
            yield Distrust(path, status, "link" if is_link else "owner")
        elif not is_link and (path == last or not status.st_mode & stat.S_ISVTX):
            if status.st_mode & stat.S_IWOTH:
                yield Distrust(path, status, "others")
            elif status.st_mode & stat.S_IWGRP:
                yield Distrust(path, status, "group")


def is_strangers(status: os.stat_result) -> bool:
    """Return whether a file belongs to a user other than root and the effective user of this process."""
    return status.st_uid not in (0, os.geteuid())


def is_ours(descriptor: int) -> bool:
    """Return whether an open file is a regular one that only root or our user can have made, and may write."""
    status = os.fstat(descriptor)
    return stat.S_ISREG(status.st_mode) and not is_strangers(status) and not status.st_mode & 0o022


def create(path: str, mode: int = 0o600) -> int:
    """Create a file for writing, close-on-exec, and return its descriptor, which the caller owns.

    What was at ``path`` is removed first, and no link is followed: neither the content nor the owner can be another
    user's. Raises OSError.
    """
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)


def replace(path: str, content: bytes, mode: int = 0o600, *, sync: bool = False) -> None:
    """Replace a file atomically: a reader finds the old content or the new one, and never a part (rename(2)).

    The file has exactly ``mode``, whatever the umask. With ``sync`` it is on the disk before it takes its name, so that
    a power cut leaves the old one or the new one. Raises OSError; then the old file is as it was.
    """
    os.close(replace_and_keep_open(path, content, mode, sync=sync))


def replace_and_keep_open(path: str, content: bytes, mode: int = 0o600, *, sync: bool = False) -> int:
    """Replace a file as ``replace`` does, and return its descriptor for writing more, which the caller owns."""
    # Without the suffix of what it will be: a program that reads all *.cfg of a directory leaves it out.
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
    """Open a file to append to, and create it with mode 0640 if there is none. The caller owns the descriptor.

    No link is followed, and a FIFO or another user's file is refused: root would write wherever that user let it
    point. A character device is accepted (/dev/null). Raises OSError.
    """
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o640)
    status = os.fstat(descriptor)
    if stat.S_ISCHR(status.st_mode) or (stat.S_ISREG(status.st_mode) and not is_strangers(status)):
        return descriptor
    os.close(descriptor)
    whose = f"it belongs to uid {status.st_uid}" if stat.S_ISREG(status.st_mode) else "it is no regular file"
    raise OSError(errno.EPERM, f"{whose}; remove it, or choose another")


def _walk(directory: str) -> tuple[list[tuple[str, os.stat_result]], str]:
    """Return each directory and link that the kernel goes through (path_resolution(7)), and the path where it ends."""
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
