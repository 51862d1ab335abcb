"""Whose a file is. Nothing is believed, and nothing written, that a stranger could have made or could replace.

A record says which program to execute, and which templates, which are programs as well. Strangers are all users but
ourselves and root.
"""

from __future__ import annotations

import os
import pwd
import stat

import msgspec

from multibinder_haproxy.errors import NotTrusted


class Owner(msgspec.Struct, frozen=True):
    uid: int
    gid: int

    def __str__(self) -> str:
        try:
            return f"{pwd.getpwuid(self.uid).pw_name} (uid {self.uid})"
        except KeyError:
            return f"uid {self.uid}"

    @property
    def groups(self) -> list[int]:
        """The supplementary groups of a login; none for a uid without an account."""
        try:
            return os.getgrouplist(pwd.getpwuid(self.uid).pw_name, self.gid)
        except KeyError:
            return []


def check_directory(path: str) -> None:
    """Raises NotTrusted unless the directory of an instance is ours alone, and so is the way to it.

    The directory and its parent must be real ones; further up, root's and our own symbolic links are followed. Each is
    ours or root's, and nobody else may write to it; above the last one, the sticky bit will do, for it keeps others
    from removing what is ours. Raises FileNotFoundError where there is none.
    """
    _check_way(os.path.dirname(os.path.dirname(path)))
    _check(os.path.dirname(path), may_be_shared=True)
    _check(path, may_be_shared=False)


def check_parent(path: str) -> None:
    """As check_directory() for a directory that is yet to be made: as much of the way to it as there is."""
    parent = os.path.dirname(path)
    try:
        _check_way(os.path.dirname(parent))
        _check(parent, may_be_shared=True)
    except FileNotFoundError:
        pass


def read(path: str) -> bytes:
    """The content of a record. Raises NotTrusted if it is a link, no file, or a stranger's; OSError."""
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
        if _is_strangers(status):
            raise NotTrusted(f"{path} belongs to {_owner(status)}, and not to us: it is not believed; remove it")
        return file.read()


def other_owner(path: str) -> Owner | None:
    """For root: the user whose directory this is, if it is another's. Root must not do what that one's records say."""
    if os.geteuid() != 0:
        return None
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return _owner(status) if stat.S_ISDIR(status.st_mode) and status.st_uid != 0 else None


def _check_way(path: str, depth: int = 0) -> None:
    """Every directory from the root to ``path``, and whatever links there are on the way."""
    if os.path.dirname(path) != path:
        _check_way(os.path.dirname(path), depth)
    status = os.lstat(path)
    if not stat.S_ISLNK(status.st_mode):
        _check(path, may_be_shared=True)
        return
    if _is_strangers(status):
        raise NotTrusted(
            f"{path} is a symbolic link that {_owner(status)} made: it is not followed; remove it, or choose another "
            "--runtime-dir"
        )
    if depth > 40:  # as the kernel (path_resolution(7))
        raise NotTrusted(f"{path}: too many symbolic links")
    _check_way(os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(path))), depth + 1)


def _check(path: str, *, may_be_shared: bool) -> None:
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode):
        kind = "is a symbolic link" if stat.S_ISLNK(status.st_mode) else "is not a directory"
        raise NotTrusted(f"{path} {kind} (of {_owner(status)}); remove it, or choose another --runtime-dir")
    if _is_strangers(status):
        raise NotTrusted(
            f"{path} belongs to {_owner(status)}, who could replace the configuration in it; remove it, run this as "
            "that user, or choose another --runtime-dir"
        )
    if status.st_mode & 0o022 and not (may_be_shared and status.st_mode & stat.S_ISVTX):
        raise NotTrusted(
            f"{path} can be written by others (mode {stat.S_IMODE(status.st_mode):04o}), who could replace the "
            f"configuration in it; 'chmod go-w {path}', or choose another --runtime-dir"
        )


def _is_strangers(status: os.stat_result) -> bool:
    return status.st_uid not in (0, os.geteuid())


def _owner(status: os.stat_result) -> Owner:
    return Owner(status.st_uid, status.st_gid)
