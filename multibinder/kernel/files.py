"""Files that nobody else can put in our way, swap or have written elsewhere."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

#: What the kernel follows, path_resolution(7).
_LINKS = 40


class UnsafePathError(Exception):
    """Somebody else could replace what we make there; the message says who, and what to do."""


def check_directory(directory: str) -> list[str]:
    """Whether only root and we can replace what is in it: neither it nor one above it, nor a link on the way, belongs
    to anybody else, or may be written by all without being sticky. Raises UnsafePathError, and OSError where there is
    no such directory; returns doubts (a group that may write)."""
    doubts = []
    for path, status in _from_the_root(os.path.join(os.getcwd(), directory)):
        if not _is_trusted(status.st_uid):
            raise UnsafePathError(
                f"{path} belongs to uid {status.st_uid}, who could replace the files that we make in {directory}; "
                "choose a directory of root or of this user, as /run/multibinder"
            )
        if stat.S_ISLNK(status.st_mode) or status.st_mode & stat.S_ISVTX:
            continue  # what is in it belongs to who made it (inode(7))
        if status.st_mode & stat.S_IWOTH:
            raise UnsafePathError(
                f"everybody may write in {path} (mode {stat.S_IMODE(status.st_mode):04o}), and so replace the files "
                f"that we make in {directory}; 'chmod o-w {path}', or choose another directory"
            )
        if status.st_mode & stat.S_IWGRP and status.st_gid != 0:
            doubts.append(f"group {status.st_gid} may write in {path}, and so replace the files that we make")
    return doubts


def create(path: str, mode: int = 0o600) -> int:
    """A new file for writing, close-on-exec; the caller owns the descriptor. What was at ``path`` is removed, and no
    link is followed: neither its content nor its owner can be somebody else's. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)


def open_log(path: str, flags: int) -> int:
    """A file to append to, made with mode 0640 if it is not there. No link is followed, and nothing is written to a
    FIFO or to a file that somebody else owns: as root, we would write wherever they let it point. Raises OSError."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o640)
    status = os.fstat(descriptor)
    if stat.S_ISCHR(status.st_mode):
        return descriptor
    if stat.S_ISREG(status.st_mode) and _is_trusted(status.st_uid):
        return descriptor
    os.close(descriptor)
    whose = f"it belongs to uid {status.st_uid}" if stat.S_ISREG(status.st_mode) else "it is no regular file"
    raise OSError(errno.EPERM, f"{whose}; remove it, or choose another")


def is_ours(descriptor: int) -> bool:
    """Whether an open file is a regular one that only root or we can have made and may write."""
    status = os.fstat(descriptor)
    return stat.S_ISREG(status.st_mode) and _is_trusted(status.st_uid) and not status.st_mode & 0o022


def _from_the_root(directory: str) -> Iterator[tuple[str, os.stat_result]]:
    """Each directory and each link that the kernel goes through, path_resolution(7)."""
    path, rest, links = "/", directory.split("/")[::-1], 0
    yield path, os.lstat(path)
    while rest:
        part = rest.pop()
        if part in ("", "."):
            continue
        if part == "..":
            path = os.path.dirname(path)
            continue
        path = os.path.join(path, part)
        status = os.lstat(path)
        yield path, status
        if stat.S_ISLNK(status.st_mode):
            links += 1
            if links > _LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), directory)
            target = os.readlink(path)
            rest += target.split("/")[::-1]
            path = "/" if target.startswith("/") else os.path.dirname(path)


def _is_trusted(uid: int) -> bool:
    return uid in (0, os.geteuid()) or _is_nobody_here(uid)


def _is_nobody_here(uid: int) -> bool:
    """Whether this is how a user namespace shows users that it does not have (user_namespaces(7)): root's, mostly."""
    try:
        with open("/proc/sys/kernel/overflowuid") as overflow, open("/proc/self/uid_map") as users:
            return uid == int(overflow.read()) and users.read().split() != ["0", "0", "4294967295"]
    except OSError:
        return False
