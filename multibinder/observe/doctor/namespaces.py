"""The facts of network namespaces, read from inside each: a thread of ours goes there (setns(2)) and ends there."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from typing import TypeVar

from multibinder.observe.doctor.facts import Namespace
from multibinder.observe.sock_diag import listening_sockets, paths

_CLONE_NEWNET = 0x40000000
_SYSCTLS = ("net.core.somaxconn", "net.ipv4.tcp_syncookies", "net.ipv4.tcp_max_syn_backlog")
#: Of so many connections the round trips and MTUs are looked at.
_PATHS = 5000

T = TypeVar("T")


def namespace_number(pid: int | str = "self") -> int:
    """What tells one network namespace from another. Raises OSError; needs PTRACE_MODE_READ of the process."""
    return os.stat(f"/proc/{pid}/ns/net").st_ino


def namespaces() -> dict[int, int]:
    """A PID in each network namespace whose processes may be looked into; by the namespace's number."""
    found: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                found.setdefault(namespace_number(name), int(name))
            except OSError:
                continue
    return found


def read_namespace(pid: int | None = None) -> Namespace:
    """The one that we are in, or that of a process: that needs CAP_SYS_ADMIN. Raises OSError."""
    if pid is None or namespace_number(pid) == namespace_number():
        return _read(None)
    return in_namespace_of(pid, lambda: _read(pid))


def in_namespace_of(pid: int, action: Callable[[], T]) -> T:
    """What ``action`` returns or raises, in the network namespace of that process."""
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            _enter(pid)
            outcome.append(action())
        except BaseException as error:  # whatever it is, it is the caller's
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
        # os.setns came with Python 3.12.
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(descriptor, _CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), f"/proc/{pid}/ns/net")
    finally:
        os.close(descriptor)


def _read(pid: int | None) -> Namespace:
    return Namespace(
        number=os.stat("/proc/thread-self/ns/net").st_ino,
        pid=pid,
        sysctls=_sysctls(),
        counters=_counters(),
        sockets=tuple(listening_sockets()),
        paths=tuple(paths(_PATHS)),
    )


def _sysctls() -> dict[str, int]:
    # /proc/sys/net is the network namespace's of whoever opens it.
    found = {}
    for name in _SYSCTLS:
        try:
            with open(f"/proc/sys/{name.replace('.', '/')}") as file:
                found[name] = int(file.read())
        except (OSError, ValueError):
            continue
    return found


def _counters() -> dict[str, int]:
    """TcpExt of /proc/net/netstat: a line of names, then a line of numbers."""
    # /proc/net is the main thread's.
    with open("/proc/thread-self/net/netstat") as file:
        lines = [line.split() for line in file]
    for names, numbers in zip(lines[::2], lines[1::2], strict=False):
        if names[0] == "TcpExt:":
            return dict(zip(names[1:], map(int, numbers[1:]), strict=False))
    return {}
