"""Files that nobody else can put in our way, swap or have written elsewhere."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator

from multibinder.wire.errors import MultibinderError


class UnsafePathError(MultibinderError):
    """Somebody else could replace what we make there; the message says who, and what to do."""


def check_directory(directory: str) -> list[str]:
    """Whether only root and we can replace what is in it: neither it nor one above it belongs to anybody else, or may
    be written by all without being sticky. Raises UnsafePathError; returns doubts (a group that may write)."""
    doubts = []
    for path, status in _from_the_root(os.path.realpath(directory)):
        if status.st_uid not in (0, os.geteuid()) and not _is_nobody_here(status.st_uid):
            raise UnsafePathError(
                f"{path} belongs to uid {status.st_uid}, who could replace the files that we make in {directory}; "
                "choose a directory of root or of this user, as /run/multibinder"
            )
        if status.st_mode & stat.S_ISVTX:
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


def is_ours(descriptor: int) -> bool:
    """Whether an open file is a regular one that only root or we can have made and may write."""
    status = os.fstat(descriptor)
    return (
        stat.S_ISREG(status.st_mode)
        and (status.st_uid in (0, os.geteuid()) or _is_nobody_here(status.st_uid))
        and not status.st_mode & 0o022
    )


def _from_the_root(directory: str) -> Iterator[tuple[str, os.stat_result]]:
    path = "/"
    yield path, os.lstat(path)
    for part in directory.split("/"):
        if part:
            path = os.path.join(path, part)
            yield path, os.lstat(path)


def _is_nobody_here(uid: int) -> bool:
    """Whether this is how a user namespace shows users that it does not have (user_namespaces(7)): root's, mostly."""
    try:
        with open("/proc/sys/kernel/overflowuid") as overflow, open("/proc/self/uid_map") as users:
            return uid == int(overflow.read()) and users.read().split() != ["0", "0", "4294967295"]
    except OSError:
        return False
