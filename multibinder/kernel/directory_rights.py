"""Tell what other users may do to a directory, and to the directories that lead to it (path_resolution(7))."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection

from multibinder.kernel.files import belongs_to_other_user, walk

_ACL = "system.posix_acl_access"


def redirectable(directory: str) -> str | None:
    """Return a part of the path at which a user other than root and this process's may put another directory or link.

    None if there is no such part: then the path leads to the same directory at every moment. Who may write in the
    directory itself cannot make another one of it. Raises OSError.
    """
    steps, last = walk(directory)
    before: os.stat_result | None = None
    for path, status in steps:
        is_link = stat.S_ISLNK(status.st_mode)
        is_of_other = belongs_to_other_user(status)
        # In a sticky directory, the owner of an entry may rename it (inode(7)).
        if is_of_other and (is_link or path != last or (before is not None and _is_written_by_others(before))):
            return path
        if not is_link and path != last and _is_written_by_others(status) and not status.st_mode & stat.S_ISVTX:
            return path
        if not is_link:
            before = status
    return None


def may_create_in(directory: str, uid: int, gids: Collection[int]) -> bool:
    """Return whether a user may create a file in a directory, by the permission bits. Raises OSError.

    An ACL is not read: the rights of a group do not count for a directory that has one (acl(5)).
    """
    steps, last = walk(directory)
    for path, status in steps:
        if stat.S_ISLNK(status.st_mode):
            continue
        needed = 0o3 if path == last else 0o1
        if _bits_for(path, status, uid, gids) & needed != needed:
            return False
    return True


def may_replace_in(directory: str, uid: int) -> bool:
    """Return whether a user who may create files in a directory may rename those of others there, too (inode(7))."""
    status = os.stat(directory)
    return not status.st_mode & stat.S_ISVTX or status.st_uid == uid


def _is_written_by_others(status: os.stat_result) -> bool:
    return bool(status.st_mode & 0o022)


def _bits_for(path: str, status: os.stat_result, uid: int, gids: Collection[int]) -> int:
    if status.st_uid == uid:
        return status.st_mode >> 6 & 0o7
    if status.st_gid in gids:
        return 0 if _has_acl(path) else status.st_mode >> 3 & 0o7
    return 0 if status.st_mode & 0o007 and _has_acl(path) else status.st_mode & 0o7


def _has_acl(path: str) -> bool:
    try:
        os.getxattr(path, _ACL)
    except OSError:
        return False
    return True
