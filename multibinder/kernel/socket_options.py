"""Use socket options that Python's socket module does not define, and read facts of a socket and its peer from them.

The numbers are those of asm-generic/socket.h. Every architecture uses them except alpha, mips, parisc and sparc.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import sys
from typing import NamedTuple

SO_MEMINFO = 55
SO_COOKIE = 57
SO_NETNS_COOKIE = 71
SO_PEERPIDFD = 77
SO_PASSRIGHTS = 83

#: struct ucred (unix(7)).
UCRED = struct.Struct("=iII")
#: SK_MEMINFO_* (linux/sock_diag.h): nine u32, of which the first, the second and the last are used.
_MEMINFO = struct.Struct("=II24xI")


class Credentials(NamedTuple):
    """The identity of a process as the kernel recorded it. ``pid`` is 0 for a process outside our PID namespace."""

    pid: int
    uid: int
    gid: int


class Memory(NamedTuple):
    """The receive queue of a socket: bytes of memory that it takes and may take, and the packets that it dropped."""

    waiting: int
    limit: int
    drops: int


def peer_credentials(sock: socket.socket) -> Credentials:
    """Return the identity of the process that called connect(2) or listen(2) at the other end (unix(7))."""
    return Credentials(*UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size)))


def peer_pidfd(sock: socket.socket) -> int | None:
    """Return a pidfd of the process that connected, which the caller owns; None before Linux 6.5.

    Raises OSError if that process has ended.
    """
    try:
        return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD, 4), sys.byteorder)
    except OSError as error:
        if error.errno == errno.ENOPROTOOPT:
            return None
        raise


def refuse_descriptors(sock: socket.socket) -> None:
    """Make the kernel refuse descriptors that a peer sends, with EPERM. Accepted connections inherit the option.

    A descriptor that arrives has to be closed, and close(2) of a file on the sender's own FUSE file system can block
    for as long as the sender wants. Does nothing before Linux 6.16, which does not have the option.
    """
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)


def accept_descriptors(sock: socket.socket) -> None:
    """Let a peer send descriptors again, until ``refuse_descriptors``. Does nothing before Linux 6.16."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 1)


def close_without_lingering(descriptor: int) -> None:
    """Close a descriptor that another process sent, without waiting.

    With SO_LINGER (socket(7)), close(2) of the last copy could block. A socket that listens never does; its option
    stays, because its other holders share it and accepted connections inherit it.
    """
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError:  # a file of another kind
        os.close(descriptor)
        return
    with contextlib.suppress(OSError):
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
    sock.close()


def cookie_of(sock: socket.socket) -> int:
    """Return SO_COOKIE, which identifies a socket for its whole life."""
    return _number_of_64_bits(sock, SO_COOKIE)


def netns_cookie_of(sock: socket.socket) -> int:
    """Return SO_NETNS_COOKIE, which identifies the network namespace of a socket; 0 before Linux 5.14."""
    try:
        return _number_of_64_bits(sock, SO_NETNS_COOKIE)
    except OSError as error:
        if error.errno == errno.ENOPROTOOPT:
            return 0
        raise


def is_connected(sock: socket.socket) -> bool:
    """Return whether the socket has a peer (getpeername(2))."""
    try:
        sock.getpeername()
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            return False
        raise
    return True


def is_shared(sock: socket.socket) -> bool:
    """Return whether a socket has SO_REUSEPORT: others of its user can join its group."""
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT))


def set_shared(sock: socket.socket, shared: bool) -> None:
    """Set SO_REUSEPORT, or take it away. A member of a group stays a member.

    Without it on the member that the kernel finds first, this one gets all connections.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)


def inode_of(sock: socket.socket) -> int:
    """Return the inode that /proc/PID/fd shows for the socket. Unlike a cookie, an inode number can be reused."""
    return os.fstat(sock.fileno()).st_ino


def drops_of(sock: socket.socket) -> int:
    """Return the number of packets that the socket has dropped since it was created (SK_MEMINFO_DROPS).

    For TCP these are SYNs and the last ACKs of handshakes. A client retries, so it may count more than once.
    The kernel's counter has 32 bits and wraps around.
    """
    return memory_of(sock).drops


def memory_of(sock: socket.socket) -> Memory:
    """Return what waits in a socket, and what it has dropped (sk_get_meminfo() in net/core/sock.c)."""
    return Memory(*_MEMINFO.unpack(sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, _MEMINFO.size)))


def _number_of_64_bits(sock: socket.socket, option: int) -> int:
    if sock.family == socket.AF_VSOCK:
        # Python reads 64 bits of every option of these, and refuses to read bytes.
        return sock.getsockopt(socket.SOL_SOCKET, option)
    return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, option, 8), sys.byteorder)
