"""Checks that no other user could have made or replaced an instance's directory and records.

A record names a program to execute, and templates, which are programs as well. Only root and the user of this process
are trusted.
"""

from __future__ import annotations

import os
import stat

from multibinder.kernel.files import Distrust, belongs_to_other_user, reasons_for_distrust
from multibinder.launch.errors import NotTrusted
from multibinder.launch.owner import Owner


def check_directory(path: str) -> None:
    """Raise NotTrusted if another user could replace what is in an instance's directory.

    The directory and its parent must not be symbolic links; further up, root's and our own ones are followed. Raises
    FileNotFoundError if there is no such directory.
    """
    for directory in (os.path.dirname(path), path):
        _check_is_directory(directory)
    for distrust in reasons_for_distrust(path):
        raise NotTrusted(_sentence(distrust))


def check_parents(path: str) -> None:
    """Raise NotTrusted if another user could replace a directory that does not exist yet.

    Only the existing directories on the way to it are checked. Its parent must not be a symbolic link.
    """
    existing = os.path.dirname(path)
    if os.path.lexists(existing):
        _check_is_directory(existing)  # before anything is created behind a link
    while not os.path.lexists(existing):
        existing = os.path.dirname(existing)
    try:
        for distrust in reasons_for_distrust(existing):
            # Another user could make the next directory before we do; check_directory() would find that afterwards.
            if distrust.reason in ("owner", "link") or not distrust.status.st_mode & stat.S_ISVTX:
                raise NotTrusted(_sentence(distrust))
    except FileNotFoundError:
        # A dangling link: its owner could let it point anywhere before the directories are made.
        status = os.lstat(existing)
        if belongs_to_other_user(status):
            raise NotTrusted(_sentence(Distrust(existing, status, "link"))) from None


def read(path: str) -> bytes:
    """Return the content of a record. Raises NotTrusted if it is a link, no file, or another user's; OSError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        if os.path.islink(path):
            raise NotTrusted(f"{path} is a symbolic link: it is not followed; remove it") from None
        raise
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise NotTrusted(f"{path} is not a file; remove it")
        if belongs_to_other_user(status):
            raise NotTrusted(f"{path} belongs to {Owner.of(status)}, and not to us: it is not believed; remove it")
        return file.read()


def _check_is_directory(path: str) -> None:
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode):
        kind = "is a symbolic link" if stat.S_ISLNK(status.st_mode) else "is not a directory"
        raise NotTrusted(f"{path} {kind} (of {Owner.of(status)}); remove it, or choose another --runtime-dir")


def _sentence(distrust: Distrust) -> str:
    path, owner = distrust.path, Owner.of(distrust.status)
    if distrust.reason == "link":
        return (
            f"{path} is a symbolic link that {owner} made: it is not followed; remove it, or choose another "
            "--runtime-dir"
        )
    if distrust.reason == "owner":
        return (
            f"{path} belongs to {owner}, who could replace the configuration in it; remove it, run this as that user, "
            "or choose another --runtime-dir"
        )
    remedy = "choose" if distrust.is_sticky else f"'chmod go-w {path}', or choose"
    return (
        f"{path} can be written by others (mode {distrust.mode}), who could replace the configuration in it; "
        f"{remedy} another --runtime-dir"
    )
