"""Read the facts of a network namespace from inside it."""

from __future__ import annotations

import os

from multibinder.kernel.namespaces import network_namespace_of
from multibinder.kernel.netns import inside, open_netns, path_of_name, path_of_process
from multibinder.observe.doctor.facts import Namespace
from multibinder.observe.sock_diag import listening_sockets, paths

_SYSCTLS = ("net.core.somaxconn", "net.ipv4.tcp_syncookies", "net.ipv4.tcp_max_syn_backlog")
#: The number of connections whose round trips and MTUs are read, at most.
_PATHS = 5000


def read_namespace(pid: int | None = None, netns: str = "") -> Namespace:
    """Read our own network namespace, that of a process, or one with a name in /run/netns.

    Another one needs CAP_SYS_ADMIN. Raises OSError.
    """
    if pid is None and not netns:
        return _read(None, "")
    descriptor = open_netns(path_of_name(netns) if netns or pid is None else path_of_process(pid))
    try:
        if os.fstat(descriptor).st_ino == network_namespace_of():
            return _read(None, "")
        return inside(descriptor, lambda: _read(pid, netns))
    finally:
        os.close(descriptor)


def _read(pid: int | None, netns: str) -> Namespace:
    return Namespace(
        number=network_namespace_of("thread-self"),
        pid=pid,
        netns=netns,
        sysctls=_sysctls(),
        counters=_counters(),
        sockets=tuple(listening_sockets()),
        paths=tuple(paths(_PATHS)),
    )


def _sysctls() -> dict[str, int]:
    # /proc/sys/net shows the network namespace of the thread that opens a file there.
    found = {}
    for name in _SYSCTLS:
        try:
            with open(f"/proc/sys/{name.replace('.', '/')}") as file:
                found[name] = int(file.read())
        except (OSError, ValueError):
            continue
    return found


def _counters() -> dict[str, int]:
    """Return TcpExt of /proc/net/netstat: a line of names, then a line of numbers."""
    # /proc/net shows the main thread's network namespace.
    with open("/proc/thread-self/net/netstat") as file:
        lines = [line.split() for line in file]
    for names, numbers in zip(lines[::2], lines[1::2], strict=False):
        if names[0] == "TcpExt:":
            return dict(zip(names[1:], map(int, numbers[1:]), strict=False))
    return {}
