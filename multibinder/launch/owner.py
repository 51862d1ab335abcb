"""The owner of an instance: the user whose directory it is."""

from __future__ import annotations

import os
import pwd
import stat

import msgspec


class Owner(msgspec.Struct, frozen=True):
    """The user and group of a file. ``str()`` gives the name for a message."""

    uid: int
    gid: int

    @classmethod
    def of(cls, status: os.stat_result) -> Owner:
        return cls(status.st_uid, status.st_gid)

    def __str__(self) -> str:
        try:
            return f"{pwd.getpwuid(self.uid).pw_name} (uid {self.uid})"
        except KeyError:
            return f"uid {self.uid}"

    @property
    def groups(self) -> list[int]:
        """Return the supplementary groups of a login; none for a uid without an account."""
        try:
            return os.getgrouplist(pwd.getpwuid(self.uid).pw_name, self.gid)
        except KeyError:
            return []


def other_owner(directory: str) -> Owner | None:
    """Return the owner of an instance's directory if we are root and it is another user's; else None."""
    if os.geteuid() != 0:
        return None
    try:
        status = os.lstat(directory)
    except OSError:
        return None
    return Owner.of(status) if stat.S_ISDIR(status.st_mode) and status.st_uid != 0 else None
