"""Use processes through pidfds (pidfd_open(2), pidfd_getfd(2)): unlike a PID, a pidfd never names a later process."""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import socket
import struct

#: The number is the same on every architecture (asm-generic/unistd.h); CPython has no name for it.
_PIDFD_GETFD = 438
#: O_EXCL (include/uapi/linux/pidfd.h).
_PIDFD_THREAD = os.O_EXCL
#: ioctl(2) of a pidfd with a struct pidfd_info of 64 bytes: the mask comes first, the exit status last (pidfd.h).
_PIDFD_GET_INFO = 0xC040FF0B
_PIDFD_INFO_EXIT = 1 << 3

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


def wait_status_of(pidfd: int) -> int | None:
    """Return how a process ended, as wait(2) reports it; None if it has not ended, or that is not known.

    The kernel keeps it for those who had a pidfd when the parent took the status: PIDFD_INFO_EXIT, Linux 6.15. Until
    then, the status of the zombie can be read if ptrace(2) would be allowed.
    """
    request = struct.pack("<Q56x", _PIDFD_INFO_EXIT)
    try:
        mask, status = struct.unpack("<Q52xi", fcntl.ioctl(pidfd, _PIDFD_GET_INFO, request))
        if mask & _PIDFD_INFO_EXIT:
            return int(status)
    except OSError:
        pass  # an earlier Linux, or the process is gone
    return _status_of_zombie(pidfd)


def _status_of_zombie(pidfd: int) -> int | None:
    try:
        with open(f"/proc/self/fdinfo/{pidfd}", encoding="utf-8") as file:
            pid = next(int(line.split()[1]) for line in file if line.startswith("Pid:"))
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            # The second field, the name in parentheses, may contain anything (proc_pid_stat(5)).
            fields = file.read().rpartition(")")[2].split()
    except (OSError, StopIteration, ValueError):
        return None
    # Without the permission, the last field is 0.
    return int(fields[-1]) if fields and fields[0] == "Z" and fields[-1] != "0" else None
