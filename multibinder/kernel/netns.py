"""Open a network namespace safely, identify it, and run code inside (network_namespaces(7), setns(2)).

A namespace has two numbers. The cookie is never used again while the host runs; sockets show it (SO_NETNS_COOKIE). The
inode number of its file can be used again when the namespace is gone.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

from multibinder.kernel.socket_options import netns_cookie_of

#: Where ip-netns(8) mounts namespaces.
DIRECTORY = "/run/netns"
_CLONE_NEWNET = 0x40000000
#: linux/nsfs.h and linux/sockios.h.
_NS_GET_NSTYPE, _NS_GET_ID, _SIOCGSKNS = 0xB703, 0x8008B70D, 0x894C
_OURS = "/proc/self/ns/net"

_libc = ctypes.CDLL(None, use_errno=True)
T = TypeVar("T")


class NotANetworkNamespaceError(OSError):
    """A path leads to something else than a network namespace."""

    def __init__(self, path: str) -> None:
        super().__init__(errno.EINVAL, "not a network namespace", path)


class CannotEnterError(OSError):
    """A network namespace cannot be entered."""


def path_of_name(name: str) -> str:
    """Return the file of a namespace that ``ip netns add`` has made."""
    return f"{DIRECTORY}/{name}"


def path_of_process(pid: int) -> str:
    """Return the file of the namespace of a process. To open it needs CAP_SYS_PTRACE for a process of another user."""
    return f"/proc/{pid}/ns/net"


def open_netns(path: str) -> int:
    """Return a descriptor of the network namespace whose file ``path`` is. The caller owns it.

    Nothing is opened before it is known to be a namespace: opening a device has effects, and opening a FIFO waits. The
    last part of the path may be a symbolic link only in /proc. Raises OSError, which is NotANetworkNamespaceError if
    another file is there.
    """
    is_link = os.path.realpath(os.path.dirname(path)).startswith("/proc/")
    flags = os.O_CLOEXEC | (0 if is_link else os.O_NOFOLLOW)
    found = os.open(path, os.O_PATH | flags)
    try:
        # All namespaces are in the one file system nsfs.
        if os.fstat(found).st_dev != os.stat(_OURS).st_dev:
            raise NotANetworkNamespaceError(path)
        descriptor = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(found)
    try:
        if fcntl.ioctl(descriptor, _NS_GET_NSTYPE) != _CLONE_NEWNET:
            raise NotANetworkNamespaceError(path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def netns_of(sock: socket.socket) -> int:
    """Return a descriptor of the network namespace of a socket, which the caller owns.

    Raises OSError: PermissionError without CAP_NET_ADMIN in that namespace.
    """
    return fcntl.ioctl(sock.fileno(), _SIOCGSKNS)


def own_cookie() -> int:
    """Return the cookie of this thread's network namespace; 0 before Linux 5.14."""
    with socket.socket(socket.AF_UNIX) as sock:
        return netns_cookie_of(sock)


def cookie_of_netns(descriptor: int) -> int:
    """Return the cookie of a namespace. Before Linux 6.18 that needs the right to enter it. Raises OSError."""
    try:
        ours = os.open(_OURS, os.O_RDONLY | os.O_CLOEXEC)
        try:
            # The two numbers are the same on the kernels that have the first one, which they do not promise.
            if _id_of(ours) == own_cookie():
                return _id_of(descriptor)
        finally:
            os.close(ours)
    except OSError as error:
        if error.errno not in (errno.ENOTTY, errno.EINVAL):
            raise
    return inside(descriptor, own_cookie)


def inside(descriptor: int, action: Callable[[], T]) -> T:
    """Call ``action`` in a network namespace, and return its result or raise its exception.

    Needs CAP_SYS_ADMIN. Raises CannotEnterError if the namespace cannot be entered. A new thread enters it and ends
    there, so the calling thread keeps its namespace; that takes some 0.3 ms. ``/proc/net`` shows the namespace of the
    main thread, so ``action`` must read ``/proc/thread-self/net``.
    """
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            # os.setns() needs Python 3.12.
            if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
                number = ctypes.get_errno()
                raise CannotEnterError(number, os.strerror(number))
            outcome.append(action())
        except BaseException as error:  # the calling thread raises it again
            failure.append(error)

    thread = threading.Thread(target=run)
    try:
        thread.start()
    except RuntimeError as error:  # "can't start new thread"
        raise CannotEnterError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from error
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def names() -> list[str]:
    """Return the names of namespaces in /run/netns, in the order of the alphabet. None of them is opened."""
    try:
        return sorted(os.listdir(DIRECTORY))
    except OSError:
        return []


def names_changed_at() -> int:
    """Return the time at which a name was added or removed last, in nanoseconds since the epoch; 0 if there is none."""
    try:
        return os.stat(DIRECTORY).st_mtime_ns
    except OSError:
        return 0


def _id_of(descriptor: int) -> int:
    number = bytearray(8)
    fcntl.ioctl(descriptor, _NS_GET_ID, number)
    return int.from_bytes(number, sys.byteorder)
