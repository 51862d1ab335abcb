"""Find the network namespaces of processes."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

from multibinder.kernel.netns import inside, open_netns, path_of_process

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
    """Call ``action`` in the network namespace of a process (``netns.inside``)."""
    descriptor = open_netns(path_of_process(pid))
    try:
        return inside(descriptor, action)
    finally:
        os.close(descriptor)
