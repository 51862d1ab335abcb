"""The lock beside the control socket's path: one binder for each path."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat

from multibinder.kernel import files
from multibinder.wire.errors import MultibinderError


class ControlSocketError(MultibinderError):
    """The control socket cannot be created or taken over; the message says why and what to do."""


def take_lock(path: str) -> int:
    """Return a descriptor that holds the lock of a control socket's path. The caller owns it.

    Two binders that start together must not both find the path free. Raises ControlSocketError if another process has
    the lock, or another user made its file.
    """
    lock = f"{path}.lock"
    while True:
        try:
            descriptor = _open_or_create(lock)
        except FileNotFoundError as error:
            if os.path.isdir(os.path.dirname(path) or "."):
                continue  # the file was there at the first open(2), and its owner has removed it since
            raise cannot_create(path, error) from error
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise ControlSocketError(f"{lock} is a link; see who made it, and remove it") from error
            raise cannot_create(path, error) from error
        try:
            if not files.is_trusted_file(descriptor):
                status = os.fstat(descriptor)
                raise ControlSocketError(
                    f"{lock} is not ours: uid {status.st_uid} made it, mode {stat.S_IMODE(status.st_mode):04o}; "
                    "remove it, or choose another --socket"
                )
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_at(descriptor, lock):
                note_pid(descriptor)
                return descriptor
        except BlockingIOError:
            pid = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            os.close(descriptor)
            raise already_served(path, pid) from None
        except ControlSocketError:
            os.close(descriptor)
            raise
        except OSError as error:
            os.close(descriptor)
            raise cannot_create(path, error) from error
        os.close(descriptor)  # its last owner has removed the file between our open(2) and our flock(2)


def note_pid(descriptor: int) -> None:
    """Write the PID of this process into the lock, for the message of another binder. Without room, it has none."""
    with contextlib.suppress(OSError):
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)


def release_lock(path: str, descriptor: int) -> None:
    """Remove the lock's file, unless another file has its name by now, and close the descriptor."""
    with contextlib.suppress(OSError):
        if is_at(descriptor, f"{path}.lock"):
            os.unlink(f"{path}.lock")
    os.close(descriptor)


def is_at(descriptor: int, path: str) -> bool:
    """Return whether an open file is the one that has this path now."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def already_served(path: str, pid: str) -> ControlSocketError:
    """Return the error for a path that another process serves; ``pid`` is empty if that is unknown."""
    who = f"process {pid}" if pid else "another process"
    return ControlSocketError(f"{path} is served by {who} already; stop it first, or choose another --socket")


def cannot_create(path: str, error: OSError) -> ControlSocketError:
    """Return the error for a control socket, or its lock, that the kernel refuses to create."""
    directory = os.path.dirname(path) or "."
    reason = {
        errno.ENOENT: f"the directory {directory} does not exist; create it first",
        errno.EACCES: f"no permission to write in {directory}; run as root, or choose another --socket",
        errno.ENOSPC: f"no space left on the file system of {directory}",
        errno.EROFS: f"{directory} is on a read-only file system",
    }.get(error.errno or 0, error.strerror)
    return ControlSocketError(f"{path}: cannot create the control socket: {reason}")


def _open_or_create(lock: str) -> int:
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        return os.open(lock, flags | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        # Without O_CREAT: else the kernel refuses another user's file (protected_regular, proc_sys_fs(5)) before we
        # can say whose it is.
        return os.open(lock, flags)
