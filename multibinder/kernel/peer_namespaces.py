"""Tell whether a process is in our PID namespace (pid_namespaces(7)), without any right to look into it."""

from __future__ import annotations

import functools
import os

#: More than a pidfd has, with 32 nested PID namespaces (MAX_PID_NS_LEVEL).
_FDINFO_BYTES = 4096


def is_in_our_pid_namespace(pid: int, pidfd: int) -> bool:
    """Return whether the process is in our PID namespace. ``pid`` is 0 if that does not show it (unix(7)).

    It is in ours or in one below. The kernel lists its PID in each of them (NSpid). False for a process that has ended.
    """
    ours = _own_depth()
    return pid != 0 and (not ours or _depth(pidfd) == ours)


@functools.cache
def _own_depth() -> int:
    """Return the number of PID namespaces that we are in, from that of /proc on; 0 if /proc does not tell."""
    try:
        pidfd = os.pidfd_open(os.getpid())
        try:
            return _depth(pidfd)
        finally:
            os.close(pidfd)
    except OSError:
        return 0


def _depth(pidfd: int) -> int:
    # For each client that connects: a file object would take three times as long.
    try:
        descriptor = os.open(f"/proc/self/fdinfo/{pidfd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            text = os.read(descriptor, _FDINFO_BYTES)
        finally:
            os.close(descriptor)
    except OSError:
        return 0
    _, found, rest = text.partition(b"\nNSpid:")
    pids = rest.partition(b"\n")[0].split() if found else []
    return 0 if pids == [b"-1"] else len(pids)
