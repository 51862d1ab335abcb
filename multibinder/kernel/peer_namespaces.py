"""Tell whether a process is in our PID namespace (pid_namespaces(7)), without any right to look into it."""

from __future__ import annotations

import errno
import functools
import os

#: The errors of a call that would succeed with more descriptors or memory.
SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
#: More than a pidfd has, with 32 nested PID namespaces (MAX_PID_NS_LEVEL).
_FDINFO_BYTES = 4096
#: The numbers of processes that are in our PID namespace. Above this many, all are forgotten.
_MOST_REMEMBERED = 1024
_ours: set[int] = set()


def is_in_our_pid_namespace(pid: int, pidfd: int) -> bool:
    """Return whether the process is in our PID namespace. ``pid`` is 0 if that does not show it (unix(7)).

    It is in ours or in one below. The kernel lists its PID in each of them (NSpid). False for a process that has ended.
    Raises OSError if that cannot be told now, for lack of descriptors or memory.
    """
    if pid == 0:
        return False
    # A process never changes its PID namespace. Most clients connect again and again.
    number = os.fstat(pidfd).st_ino if _numbers_are_unique() else 0
    if number in _ours:
        return True
    is_ours = not (ours := _own_depth()) or _depth(pidfd) == ours
    if is_ours and number:
        if len(_ours) >= _MOST_REMEMBERED:
            _ours.clear()
        _ours.add(number)
    return is_ours


@functools.cache
def _numbers_are_unique() -> bool:
    """Return whether each process has an inode number that no other one ever gets (pidfs, Linux 6.9)."""
    try:
        numbers = []
        for pid in (os.getpid(), 1):  # for PID 1 itself they are the same, and nothing is remembered
            pidfd = os.pidfd_open(pid)
            numbers.append(os.fstat(pidfd).st_ino)
            os.close(pidfd)
    except OSError:
        return False
    return numbers[0] != numbers[1]


@functools.cache  # not of an error
def _own_depth() -> int:
    """Return the number of PID namespaces that we are in, from that of /proc on; 0 if /proc does not tell."""
    pidfd = os.pidfd_open(os.getpid())
    try:
        return _depth(pidfd)
    finally:
        os.close(pidfd)


def _depth(pidfd: int) -> int:
    # For each client that connects: a file object would take three times as long.
    try:
        descriptor = os.open(f"/proc/self/fdinfo/{pidfd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            text = os.read(descriptor, _FDINFO_BYTES)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in SHORTAGES:
            raise
        return 0
    _, found, rest = text.partition(b"\nNSpid:")
    pids = rest.partition(b"\n")[0].split() if found else []
    return 0 if pids == [b"-1"] else len(pids)
