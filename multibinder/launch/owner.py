"""The owner of an instance. Root acts on another user's instance as that user.

The instance's records name a program to execute, and templates, which are programs as well. If root executed them,
their owner would become root.
"""

from __future__ import annotations

import os
import pwd
import stat
import subprocess
from collections.abc import Mapping, Sequence

import msgspec

#: The variables of root's environment that a command keeps when root runs it as another user.
_ENVIRONMENT_KEPT = ("PATH", "LANG", "LC_ALL", "TMPDIR")


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


def run_as(owner: Owner, command: Sequence[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command as another user, and return its output and exit code. Raises OSError if it cannot be executed.

    The session is new, so that the command cannot type into root's terminal. Its environment is ``environment``, and of
    root's only the search path, the locale and TMPDIR.
    """
    kept = {key: os.environ[key] for key in _ENVIRONMENT_KEPT if key in os.environ}
    return subprocess.run(  # noqa: S603
        command,
        user=owner.uid,
        group=owner.gid,
        extra_groups=owner.groups,
        env={**kept, **environment},
        cwd="/",
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
