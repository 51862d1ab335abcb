"""The accept queue of one listening socket, as its own TCP_INFO tells it."""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

from multibinder.wire.listener import TCP_LISTEN

#: struct tcp_info (linux/tcp.h): eight bytes, four u32, then tcpi_unacked and tcpi_sacked, which for a listening
#: socket are the length and the limit of its accept queue (tcp_get_info() in net/ipv4/tcp.c).
_TCP_INFO = struct.Struct("=B7x16xII")


class AcceptQueue(NamedTuple):
    """``length`` connections wait now, ``limit`` may; neither means anything unless ``listening``."""

    listening: bool
    length: int
    limit: int


def accept_queue(sock: socket.socket) -> AcceptQueue:
    """One system call. Raises OSError for a socket that is not TCP."""
    state, length, limit = _TCP_INFO.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size))
    return AcceptQueue(state == TCP_LISTEN, length, limit)
