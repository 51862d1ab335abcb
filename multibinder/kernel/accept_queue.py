"""Read the accept queue of a listening TCP socket from TCP_INFO (tcp(7))."""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

#: enum in include/net/tcp_states.h.
TCP_ESTABLISHED, TCP_CLOSE, TCP_LISTEN = 1, 7, 10
#: struct tcp_info (linux/tcp.h): eight bytes, four u32, then tcpi_unacked and tcpi_sacked, which for a listening
#: socket are the length and the limit of its accept queue (tcp_get_info() in net/ipv4/tcp.c).
_TCP_INFO = struct.Struct("=B7x16xII")


class AcceptQueue(NamedTuple):
    """An accept queue: ``length`` connections wait now, ``limit`` may wait. Both are meaningless unless ``listening``.

    The kernel admits one more than ``limit`` (sk_acceptq_is_full() in include/net/sock.h).
    """

    listening: bool
    length: int
    limit: int


def state_of(sock: socket.socket) -> int:
    """Return the TCP state of a socket, in one system call. Raises OSError for a socket that is not TCP."""
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


def accept_queue(sock: socket.socket) -> AcceptQueue:
    """Read the queue in one system call. Raises OSError for a socket that is not TCP."""
    state, length, limit = _TCP_INFO.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size))
    return AcceptQueue(state == TCP_LISTEN, length, limit)
