"""Group the threads of a process by the table of descriptors that they use.

Threads usually share one table. A thread that called unshare(CLONE_FILES) has a table of its own, and a first thread
that has ended while others run has none: /proc/PID/fd is empty then, although the process has descriptors.
"""

from __future__ import annotations

import ctypes
import errno
import os

#: The number of kcmp(2) by machine (asm/unistd.h).
_KCMP = {
    "x86_64": 312,
    "aarch64": 272,
    "riscv64": 272,
    "loongarch64": 272,
    "ppc64le": 354,
    "s390x": 343,
}.get(os.uname().machine)
_KCMP_FILES = 2
#: The links of a directory without subdirectories (proc_task_getattr() in fs/proc/base.c adds one for each thread).
_OWN_LINKS = 2

_libc = ctypes.CDLL(None, use_errno=True)


def tables_of(pid: int) -> list[tuple[int, ...]]:
    """Return the threads that share each table of descriptors. The table of the first thread comes first.

    A process with one thread costs one stat(2), another one kcmp(2) for each thread. Where the kernel does not compare
    tables (no CONFIG_KCMP, or a seccomp filter), each thread counts as one with a table of its own. Raises OSError if
    the process has ended.
    """
    if os.stat(f"/proc/{pid}/task").st_nlink <= _OWN_LINKS + 1:
        return [(pid,)]
    tables = {pid: [pid]}
    for name in os.listdir(f"/proc/{pid}/task"):
        thread = int(name)
        if thread != pid:
            same = next((first for first in tables if _share_a_table(first, thread)), thread)
            tables.setdefault(same, []).append(thread)
    return [tuple(threads) for threads in tables.values()]


def _share_a_table(thread: int, other: int) -> bool:
    """Return whether two threads certainly use the same table of descriptors."""
    if _KCMP is None:
        return False
    order: int = _libc.syscall(_KCMP, thread, other, _KCMP_FILES, 0, 0)
    # A thread that ended meanwhile needs no table. Any other error leaves the answer open.
    return order == 0 or (order < 0 and ctypes.get_errno() == errno.ESRCH)
