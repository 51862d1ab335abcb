"""Identify and find network namespaces, and run code in one (setns(2))."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from typing import TypeVar

_CLONE_NEWNET = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)
T = TypeVar("T")


def network_namespace_of(process: int | str = "self") -> int:
    """Return the inode number that identifies the network namespace of a process (a PID, ``self``, ``thread-self``).

    Raises OSError; needs PTRACE_MODE_READ of the process.
    """
    return os.stat(f"/proc/{process}/ns/net").st_ino


def network_namespaces() -> dict[int, int]:
    """Return the PID of one process in each network namespace that this user may see, by the namespace's number."""
    found: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                found.setdefault(network_namespace_of(name), int(name))
            except OSError:
                continue
    return found


def in_network_namespace_of(pid: int, action: Callable[[], T]) -> T:
    """Call ``action`` in the network namespace of a process, and return its result or raise its exception.

    Needs CAP_SYS_ADMIN. A new thread enters the namespace and ends there, so the calling thread keeps its namespace.
    ``/proc/net`` shows the namespace of the main thread, so ``action`` must read ``/proc/thread-self/net``.
    """
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            _enter(pid)
            outcome.append(action())
        except BaseException as error:  # the calling thread raises it again
            failure.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def _enter(pid: int) -> None:
    descriptor = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        # os.setns() needs Python 3.12.
        if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), f"/proc/{pid}/ns/net")
    finally:
        os.close(descriptor)
