"""Ask the kernel who has the other end of a TCP connection on this host (sock_diag(7)). It needs no privilege."""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import NamedTuple

from multibinder.kernel.accept_queue import TCP_LISTEN

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 0x1
_NLMSG_ERROR = 2
_ANY_COOKIE = 0xFFFFFFFF
_TIMEOUT_S = 1.0

#: struct nlmsghdr; struct inet_diag_req_v2; struct inet_diag_msg (linux/inet_diag.h).
_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBBxI4s16s16sIII")
_MESSAGE = struct.Struct("=BBBB4s16s16sIIIIIIII")


class Peer(NamedTuple):
    """The socket at the other end: the uid of its creator, and its inode, which is 0 until a process has accepted it.

    It is 0 for good if the process has closed it.
    """

    uid: int
    inode: int


def peer_of(sock: socket.socket) -> Peer | None:
    """Return the other end of a connection; None if it is not in this network namespace. Takes some 20 microseconds.

    Raises OSError if the connection has ended, or this process may not ask.
    """
    name, peer = sock.getsockname(), sock.getpeername()
    raw_peer, raw_name = (socket.inet_pton(sock.family, each[0].partition("%")[0]) for each in (peer, name))
    request = _REQUEST.pack(
        sock.family,
        socket.IPPROTO_TCP,
        0,
        0xFFFFFFFF,
        peer[1].to_bytes(2, "big") + name[1].to_bytes(2, "big"),
        raw_peer,
        raw_name,
        0,
        _ANY_COOKIE,
        _ANY_COOKIE,
    )
    header = _HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 0, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as netlink:
        netlink.settimeout(_TIMEOUT_S)
        netlink.sendall(header + request)
        answer = netlink.recv(4096)
    _, kind, _, _, _ = _HEADER.unpack_from(answer)
    body = answer[_HEADER.size :]
    if kind == _NLMSG_ERROR:
        number = -struct.unpack_from("=i", body)[0]
        if number == errno.ENOENT:
            return None
        raise OSError(number, f"sock_diag: {os.strerror(number)}")
    fields = _MESSAGE.unpack_from(body)
    state, uid, inode = fields[1], fields[-2], fields[-1]
    # The kernel falls back to the listener while the handshake is not complete there (inet_diag_find_one_icsk()).
    return Peer(uid, 0 if state == TCP_LISTEN else inode)


def uid_of_peer(sock: socket.socket) -> int | None:
    """Return the uid of the process at the other end of a connection on this host; None if it is another host."""
    try:
        peer = peer_of(sock)
    except OSError:
        return None
    return peer.uid if peer is not None else None
