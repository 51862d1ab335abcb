"""Read the accept queue and the drop counter of a TCP socket from the socket itself."""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

#: enum in include/net/tcp_states.h.
TCP_LISTEN = 10
#: struct tcp_info (linux/tcp.h): eight bytes, four u32, then tcpi_unacked and tcpi_sacked, which for a listening
#: socket are the length and the limit of its accept queue (tcp_get_info() in net/ipv4/tcp.c).
_TCP_INFO = struct.Struct("=B7x16xII")
#: asm-generic/socket.h; Python's socket module has no name for it.
_SO_MEMINFO = 55
#: SK_MEMINFO_* (linux/sock_diag.h): nine u32, of which the last is SK_MEMINFO_DROPS.
_MEMINFO = struct.Struct("=32xI")


class AcceptQueue(NamedTuple):
    """``length`` connections wait now, ``limit`` may wait; neither has a meaning unless ``listening``.

    The kernel accepts one more than ``limit`` (sk_acceptq_is_full() in include/net/sock.h).
    """

    listening: bool
    length: int
    limit: int


def accept_queue(sock: socket.socket) -> AcceptQueue:
    """Read the accept queue with one system call. Raises OSError for a socket that is not TCP."""
    state, length, limit = _TCP_INFO.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size))
    return AcceptQueue(state == TCP_LISTEN, length, limit)


def drops(sock: socket.socket) -> int:
    """Return how many packets (a SYN, or the ACK that ends a handshake) this socket has dropped since it was created.

    A client retries, so one client may count more than once. The kernel's counter has 32 bits and wraps around. One
    system call.
    """
    [count] = _MEMINFO.unpack(sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size))
    return int(count)
