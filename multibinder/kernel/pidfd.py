"""Use processes through pidfds (pidfd_open(2), pidfd_getfd(2)): unlike a PID, a pidfd never names a later process."""

from __future__ import annotations

import ctypes
import os
import select
import socket

#: The number is the same on every architecture (asm-generic/unistd.h); CPython has no name for it.
_PIDFD_GETFD = 438
#: O_EXCL (include/uapi/linux/pidfd.h).
_PIDFD_THREAD = os.O_EXCL

_libc = ctypes.CDLL(None, use_errno=True)


def duplicate_socket(pid: int, descriptor: int, thread: int = 0) -> socket.socket:
    """Return a close-on-exec copy of another process's socket, which the caller owns.

    ``thread`` is the one whose table has the descriptor; 0 means the first one of the process. Any other thread needs
    Linux 6.9 (PIDFD_THREAD).

    Needs PTRACE_MODE_ATTACH_REALCREDS (pidfd_getfd(2)): the same user, or CAP_SYS_PTRACE. Raises PermissionError
    without it, and another OSError if the process or its descriptor is gone, or the descriptor is no socket.
    """
    pidfd = os.pidfd_open(pid) if thread in (0, pid) else os.pidfd_open(thread, _PIDFD_THREAD)
    try:
        number = _libc.syscall(_PIDFD_GETFD, pidfd, descriptor, 0)
        if number < 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))  # PermissionError for EPERM
        return socket.socket(fileno=number)
    finally:
        os.close(pidfd)


def has_ended(pidfd: int) -> bool:
    """Return whether the process of a pidfd has ended: the descriptor is readable then (pidfd_open(2))."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))
