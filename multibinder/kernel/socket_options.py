"""Socket options that Python's socket module has no name for, and what they tell of a socket and its peer.

The numbers are those of asm-generic/socket.h, which every architecture that Linux distributions ship uses, but for
alpha, mips, parisc and sparc.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import struct
import sys
from typing import NamedTuple

SO_MEMINFO = 55
SO_COOKIE = 57
SO_PEERGROUPS = 59
SO_PEERPIDFD = 77
SO_PASSRIGHTS = 83

#: struct ucred (unix(7)).
UCRED = struct.Struct("=iII")
#: SK_MEMINFO_* (linux/sock_diag.h): nine u32, of which the last is SK_MEMINFO_DROPS.
_MEMINFO = struct.Struct("=32xI")
_GID_BYTES = 4
#: NGROUPS_MAX (credentials(7)).
_GROUPS_MAX = 65536

# Loaded with the module: a daemon that needs it for the first time may have no descriptor left to load it with.
_libc = ctypes.CDLL(None, use_errno=True)


class Credentials(NamedTuple):
    """A process as the kernel noted it. ``pid`` is 0 for a process that our PID namespace does not show."""

    pid: int
    uid: int
    gid: int


def peer_credentials(sock: socket.socket) -> Credentials:
    """Return the process that called connect(2), or listen(2) if we did the other (SO_PEERCRED, unix(7))."""
    return Credentials(*UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size)))


def peer_groups(sock: socket.socket) -> frozenset[int]:
    """Return the supplementary groups that the peer had when it connected; none where the kernel does not tell."""
    try:
        packed = sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 1024)
    except OSError as error:
        if error.errno != errno.ERANGE:
            return frozenset()
        packed = _many_groups(sock)
    return frozenset(number for (number,) in struct.iter_unpack("=I", packed))


def _many_groups(sock: socket.socket) -> bytes:
    # Python's getsockopt() has room for 1,024 bytes: 256 groups.
    room = ctypes.create_string_buffer(_GROUPS_MAX * _GID_BYTES)
    size = ctypes.c_uint32(len(room))
    if _libc.getsockopt(sock.fileno(), socket.SOL_SOCKET, SO_PEERGROUPS, room, ctypes.byref(size)):
        return b""
    return room.raw[: size.value]


def peer_pidfd(sock: socket.socket) -> int | None:
    """Return a pidfd of the process that connected, which the caller owns; None before Linux 6.5, which has no such.

    Raises OSError if that process has ended.
    """
    try:
        return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD, 4), sys.byteorder)
    except OSError as error:
        if error.errno == errno.ENOPROTOOPT:
            return None
        raise


def refuse_descriptors(sock: socket.socket) -> None:
    """Have the kernel refuse descriptors that a peer sends, with EPERM; accepted connections inherit that.

    Descriptors that arrive have to be closed, and close(2) of a file whose server is the sender's own (FUSE) takes as
    long as the sender likes. Does nothing before Linux 6.16, which has no such option.
    """
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)


def cookie_of(sock: socket.socket) -> int:
    """Return SO_COOKIE, which identifies a socket for its whole life, whoever holds it."""
    return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), sys.byteorder)


def inode_of(sock: socket.socket) -> int:
    """Return the inode by which /proc/PID/fd names the socket. Unlike a cookie, an inode number is used again."""
    return os.fstat(sock.fileno()).st_ino


def drops_of(sock: socket.socket) -> int:
    """Return how many packets this very socket has dropped since it was made (SK_MEMINFO_DROPS).

    For TCP that is a SYN, or the ACK that ends a handshake. The client tries again, so one client may count more than
    once. The kernel counts in 32 bits and wraps around.
    """
    [count] = _MEMINFO.unpack(sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, _MEMINFO.size))
    return int(count)
