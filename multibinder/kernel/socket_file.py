"""The file of a Unix socket: create it safely, know it again, put it back, remove it.

No symbolic link at the path is followed, no file of another kind is touched, and no file of a socket that lives in some
process is replaced. A second name of the file, hidden in the same directory, lets a removed path be put back: nothing
else leads back to the file of a socket (linkat(2) refuses a file that has no name any more).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import stat

from multibinder.kernel.files import bind_socket
from multibinder.kernel.unix_diag import FileId, is_file, leads_to, look_at

#: Another program may create a file at the path between our steps.
_TRIES = 3
#: HAProxy binds such a name and renames it to the path (sock_unix.c); getsockname(2) shows it for ever.
_DRAFT_OF_HAPROXY = re.compile(r"(?P<path>/.+)\.[0-9]+\.tmp")


def hidden_name(path: str) -> str:
    """Return the second name of the socket's file."""
    directory, name = os.path.split(path)
    return os.path.join(directory, f".{name}.multibinder")


def bind_file(sock: socket.socket, path: str) -> None:
    """Bind a socket to a new file that nobody may use yet (mode 0), and give the file its hidden name.

    The file of a socket that no process has any more is replaced. Raises OSError: EADDRINUSE if a process has a socket
    there, ENOTSOCK for another file, ELOOP for a symbolic link, also if one appears among the directories meanwhile.
    """
    for _ in range(_TRIES):
        try:
            bind_socket(sock, path, 0)
            break
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            remove_stale(path)
    else:
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), path)
    descriptor = open_file(sock, path)
    try:
        status = os.fstat(descriptor)
        if status.st_mode & 0o777 or status.st_uid != os.geteuid():
            raise _replaced(path)
        _add_hidden_name(descriptor, path)
    finally:
        os.close(descriptor)


def remove_stale(path: str) -> None:
    """Remove the file of a socket that no process has any more. Does nothing if no file exists.

    Raises OSError as ``bind_file`` does.
    """
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if stat.S_ISLNK(status.st_mode):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
    if not stat.S_ISSOCK(status.st_mode):
        raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK), path)
    if is_live(path):
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), path)
    # Another program may have put its own socket here meanwhile. So look at what was taken away, not at the name.
    aside = f"{hidden_name(path)}.{os.getpid()}"
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, aside)
        moved = os.lstat(aside)
        if (moved.st_ino, moved.st_dev) != (status.st_ino, status.st_dev):
            with contextlib.suppress(FileExistsError):
                os.link(aside, path, follow_symlinks=False)
        os.unlink(aside)


def is_live(path: str) -> bool:
    """Return whether a process has a socket at ``path``, in any network namespace. Raises OSError.

    A datagram socket that connects to a stream socket gets EPROTOTYPE, whether or not that listens, and no server sees
    it (unix_find_bsd() in net/unix/af_unix.c).
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        number = _connect(probe, path)
    if number in (errno.ECONNREFUSED, errno.ENOENT):
        return False
    if number in (0, errno.EPROTOTYPE, errno.EPERM):  # EPERM: a datagram socket that is connected to another one
        return True
    raise OSError(number, os.strerror(number), path)


def open_file(sock: socket.socket, path: str) -> int:
    """Return a descriptor (O_PATH) of the socket's file, which the caller owns. Raises OSError if the path has another.

    It is the file itself: what is done with it happens to no other file, even if the path is replaced.
    """
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        file = file_of(sock)
        if not stat.S_ISSOCK(status.st_mode) or (file is not None and not is_file(path, status, file)):
            raise _replaced(path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def file_of(sock: socket.socket) -> FileId | None:
    """Return the identity of the socket's file; None if this process may not ask for it (sock_diag(7))."""
    try:
        return look_at(sock).file
    except OSError:
        return None


def is_at(sock: socket.socket, path: str) -> bool:
    """Return whether ``path`` leads to the socket.

    Where the kernel may not be asked, the hidden name tells.
    """
    file = file_of(sock)
    if file is not None:
        return leads_to(path, file)
    try:
        status, hidden = os.lstat(path), os.lstat(hidden_name(path))
    except OSError:
        return False
    return (status.st_ino, status.st_dev) == (hidden.st_ino, hidden.st_dev) and stat.S_ISSOCK(status.st_mode)


def path_of(sock: socket.socket) -> str | None:
    """Return the path that a socket was bound to, or that HAProxy has renamed it to; None if it has none."""
    name = sock.getsockname()
    if not isinstance(name, str) or not name.startswith("/"):
        return None
    draft = _DRAFT_OF_HAPROXY.fullmatch(name)
    if draft is not None and (file := file_of(sock)) is not None and leads_to(draft["path"], file):
        return draft["path"]
    return name


def put_back(sock: socket.socket, path: str) -> bool:
    """Give the socket its removed path back by its hidden name. Return False if there is no such name.

    Raises OSError: EADDRINUSE if another process has a socket there meanwhile, and as ``bind_file`` does.
    """
    hidden = hidden_name(path)
    file = file_of(sock)
    try:
        descriptor = os.open(hidden, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISSOCK(status.st_mode) or (file is not None and not is_file(hidden, status, file)):
            return False
        for _ in range(_TRIES):
            try:
                _link(descriptor, path)
            except FileExistsError:
                remove_stale(path)
                continue
            except PermissionError:
                # fs.protected_hardlinks: not with the file of another user. A rename needs no right to the file.
                os.rename(hidden, path)
            return is_at(sock, path)
    finally:
        os.close(descriptor)
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), path)


def add_hidden_name(sock: socket.socket, path: str) -> None:
    """Give the file of a socket that another program has made its hidden name, where that is possible."""
    with contextlib.suppress(OSError):
        descriptor = open_file(sock, path)
        try:
            _add_hidden_name(descriptor, path)
        finally:
            os.close(descriptor)


def has_hidden_name(sock: socket.socket, path: str) -> bool:
    """Return whether the socket's file has its hidden name."""
    file = file_of(sock)
    return file is not None and leads_to(hidden_name(path), file)


def remove_file(sock: socket.socket, path: str, *, keep_hidden: bool = False) -> None:
    """Remove the names of the socket's file, but no other file. Raises OSError, but not if they are gone."""
    file = file_of(sock)
    hidden = hidden_name(path)
    if is_at(sock, path):
        os.unlink(path)
    if not keep_hidden and (leads_to(hidden, file) if file is not None else os.path.lexists(hidden)):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(hidden)


def remove_hidden_name(sock: socket.socket) -> None:
    """Remove the hidden name of the socket's file, if it has one. Its path stays. Raises OSError."""
    path, file = path_of(sock), file_of(sock)
    if path is not None and file is not None and leads_to(hidden_name(path), file):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(hidden_name(path))


def set_owner(sock: socket.socket, path: str, user: int | None = None, group: int | None = None) -> None:
    """Change user or group of the socket's file, unless it has them. Raises OSError."""
    descriptor = open_file(sock, path)
    try:
        status = os.fstat(descriptor)
        uid = -1 if user in (None, status.st_uid) else user
        gid = -1 if group in (None, status.st_gid) else group
        if (uid, gid) != (-1, -1):
            os.chown(f"/proc/self/fd/{descriptor}", uid, gid)
    finally:
        os.close(descriptor)


def set_mode(sock: socket.socket, path: str, mode: int) -> None:
    """Change the permission bits of the socket's file. Raises OSError."""
    descriptor = open_file(sock, path)
    try:
        if stat.S_IMODE(os.fstat(descriptor).st_mode) != mode:
            os.chmod(f"/proc/self/fd/{descriptor}", mode)
    finally:
        os.close(descriptor)


def default_group(path: str) -> int:
    """Return the group that a new file in the directory has (inode(7), the set-group-ID bit)."""
    directory = os.stat(os.path.dirname(path))
    return directory.st_gid if directory.st_mode & stat.S_ISGID else os.getegid()


def _add_hidden_name(descriptor: int, path: str) -> None:
    """Without it, a removed path gets a new socket: it is not worth to fail (a file system without links)."""
    hidden = hidden_name(path)
    with contextlib.suppress(OSError):
        # What an earlier socket has left: its file has no other name that anybody knows.
        if stat.S_ISSOCK(os.lstat(hidden).st_mode):
            os.unlink(hidden)
    with contextlib.suppress(OSError):
        _link(descriptor, hidden)


def _link(descriptor: int, path: str) -> None:
    # With src_dir_fd Python calls linkat(2), which follows the link in /proc. Its path is absolute all the same.
    os.link(f"/proc/self/fd/{descriptor}", path, src_dir_fd=descriptor, follow_symlinks=True)


def _connect(sock: socket.socket, path: str) -> int:
    try:
        return sock.connect_ex(path)
    except OSError as error:
        return error.errno or errno.EIO


def _replaced(path: str) -> OSError:
    # A directory on the way is a link now, or another program has put its own file there.
    return OSError(errno.ELOOP, "another program has replaced the path, or a directory on the way", path)
