"""The control socket's path: one binder for each, and no file deleted that is not ours."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import os
import socket
import stat
from collections.abc import Iterator

from multibinder.wire.errors import ConfigurationError, MultibinderError

#: sizeof(sun_path), less the NUL that unix(7) asks for.
PATH_BYTES = 107
#: Clients that may wait for their accept().
_BACKLOG = 1024


class ControlSocketError(MultibinderError):
    """The control socket cannot be had; the message says why and what to do."""


@contextlib.contextmanager
def control_socket(path: str, mode: int, group: str | None) -> Iterator[socket.socket]:
    """A socket listening at ``path`` for as long as the block runs; the file is removed at its end.

    ``mode`` and ``group`` say who may connect: nobody else can at any moment. Raises ControlSocketError when another
    binder serves the path, when something else is in the way, or when the directory does not let us.
    """
    if len(os.fsencode(path)) > PATH_BYTES:
        raise ControlSocketError(
            f"{path}: the path has {len(os.fsencode(path))} bytes, a Unix socket's may have {PATH_BYTES} "
            "(sun_path, unix(7)); choose a shorter one"
        )
    group_id = -1 if group is None else _group_id(group)
    with _lock(path):
        _clear_the_way(path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            try:
                _bind(sock, path, mode if group_id < 0 else mode & 0o700)
            except OSError as error:
                raise _explained(path, error) from error
            created = os.lstat(path)
            try:
                if group_id >= 0:
                    _give(path, mode, group_id, group)
                sock.listen(_BACKLOG)
                yield sock
            finally:
                with contextlib.suppress(OSError):  # somebody has cleaned up before us
                    if os.path.samestat(os.lstat(path), created):
                        os.unlink(path)


def _bind(sock: socket.socket, path: str, mode: int) -> None:
    # bind(2) makes the file with 0777 less the umask.
    before = os.umask(0o777 & ~mode)
    try:
        sock.bind(path)
    finally:
        os.umask(before)


def _give(path: str, mode: int, group_id: int, group: str | None) -> None:
    """Until the group is right, its bits stay off."""
    try:
        os.chown(path, -1, group_id)
        os.chmod(path, mode)
    except OSError as error:
        raise ControlSocketError(
            f"{path}: cannot give the control socket to group {group}: {(error.strerror or str(error)).lower()}; "
            "run as root or as a member of it"
        ) from error


@contextlib.contextmanager
def _lock(path: str) -> Iterator[None]:
    """Held for life, so that two binders that start together cannot both find the path free."""
    lock = f"{path}.lock"
    while True:
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise _explained(path, error) from error
        with open(descriptor, "r+b", buffering=0) as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise _already_served(path, held.read(32).decode(errors="replace").strip()) from None
            if not _is_at(held.fileno(), lock):
                continue  # its last owner unlinked it between our open() and our flock()
            try:
                held.truncate()
                held.write(f"{os.getpid()}\n".encode())
            except OSError as error:
                raise _explained(path, error) from error
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    if _is_at(held.fileno(), lock):
                        os.unlink(lock)
            return


def _is_at(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _clear_the_way(path: str) -> None:
    """Remove a socket file that nobody listens on any more; complain about anything else that is there."""
    try:
        kind = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise _explained(path, error) from error
    if not stat.S_ISSOCK(kind):
        raise ControlSocketError(f"{path} exists and is not a socket; it is left alone. Choose another --socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except FileNotFoundError:
            return
        except BlockingIOError:
            raise _already_served(path, "") from None  # its queue is full, so it is alive
        except OSError as error:
            raise _explained(path, error) from error
        pid = int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], "little")
        raise _already_served(path, str(pid))


def _already_served(path: str, pid: str) -> ControlSocketError:
    who = f"process {pid}" if pid else "another process"
    return ControlSocketError(f"{path} is served by {who} already; stop it first, or choose another --socket")


def _group_id(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise ConfigurationError(f"--group {group}: there is no such group (see 'getent group')") from None


def _explained(path: str, error: OSError) -> ControlSocketError:
    directory = os.path.dirname(path) or "."
    reason = {
        errno.ENOENT: f"the directory {directory} does not exist; create it first",
        errno.EACCES: f"no permission to write in {directory}; run as root, or choose another --socket",
        errno.ENOSPC: f"no space left on the file system of {directory}",
        errno.EROFS: f"{directory} is on a read-only file system",
    }.get(error.errno or 0, error.strerror)
    return ControlSocketError(f"{path}: cannot create the control socket: {reason}")
