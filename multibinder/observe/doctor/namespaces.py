"""Read the facts of a network namespace from inside it."""

from __future__ import annotations

from multibinder.kernel.namespaces import in_network_namespace_of, network_namespace_of
from multibinder.observe.doctor.facts import Namespace
from multibinder.observe.sock_diag import listening_sockets, paths

_SYSCTLS = ("net.core.somaxconn", "net.ipv4.tcp_syncookies", "net.ipv4.tcp_max_syn_backlog")
#: The number of connections whose round trips and MTUs are read, at most.
_PATHS = 5000


def read_namespace(pid: int | None = None) -> Namespace:
    """Read our own network namespace, or that of a process, which needs CAP_SYS_ADMIN. Raises OSError."""
    if pid is None or network_namespace_of(pid) == network_namespace_of():
        return _read(None)
    return in_network_namespace_of(pid, lambda: _read(pid))


def _read(pid: int | None) -> Namespace:
    return Namespace(
        number=network_namespace_of("thread-self"),
        pid=pid,
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
