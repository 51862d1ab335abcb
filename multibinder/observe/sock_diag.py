"""List the TCP sockets of this network namespace by sock_diag(7), as ss(8) does. It needs no privilege.

Unlike /proc/net/tcp, it reports the cookie of each socket, and the number of client packets that it has dropped.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

import msgspec

from multibinder.wire.addresses import TcpAddress

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_ESTABLISHED, _LISTEN = 1, 10
_INFO, _SKMEMINFO = 2, 7

#: struct nlmsghdr; struct inet_diag_req_v2 with an empty inet_diag_sockid; struct inet_diag_msg (linux/inet_diag.h).
_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBBxI48x")
_MESSAGE = struct.Struct("=BBBB4s16s16sIIIIIIII")
_ATTRIBUTE = struct.Struct("=HH")
_COUNT = struct.Struct("=I")
#: struct tcp_info: tcpi_options at 5, tcpi_pmtu at 60, tcpi_rtt (in microseconds) at 68, tcpi_advmss at 84.
_PATH = struct.Struct("=5xB54xI4xI12xI")
#: TCPI_OPT_TIMESTAMPS. On such connections tcpi_advmss is the announced MSS less the size of the option.
_TIMESTAMPS, _TIMESTAMPS_ROOM = 1, 12
_BUFFER = 1 << 18


class ListeningSocket(msgspec.Struct, frozen=True):
    """A LISTEN socket. ``queue`` connections wait, ``limit`` may wait; ``drops`` counts from its creation.

    ``user`` is the uid of its creator, ``interface`` the index of the interface that it is bound to, or 0.
    """

    address: TcpAddress
    inode: int
    cookie: int
    user: int
    interface: int
    queue: int
    limit: int
    drops: int


class Path(msgspec.Struct, frozen=True):
    """The path to the client of one established connection; sizes are in bytes."""

    local: TcpAddress
    mtu: int
    mss_announced: int
    round_trip_us: int


def listening_sockets() -> list[ListeningSocket]:
    """Return every LISTEN socket. Raises OSError if the kernel has no sock_diag."""
    found = []
    for message, address, attributes in _dump(_LISTEN, _SKMEMINFO):
        drops = _COUNT.unpack_from(attributes[_SKMEMINFO], 32)[0] if _SKMEMINFO in attributes else 0
        _, _, _, _, _, _, _, interface, low, high, _, queue, limit, user, inode = message
        found.append(ListeningSocket(address, inode, low | high << 32, user, interface, queue, limit, drops))
    return found


def paths(most: int) -> list[Path]:
    """Return the paths of the first ``most`` established connections. Raises OSError if the kernel has no sock_diag."""
    found: list[Path] = []
    for _, address, attributes in _dump(_ESTABLISHED, _INFO):
        if len(attributes.get(_INFO, b"")) >= _PATH.size:
            options, mtu, round_trip, mss = _PATH.unpack_from(attributes[_INFO])
            mss += _TIMESTAMPS_ROOM if options & _TIMESTAMPS else 0
            found.append(Path(address, mtu, mss, round_trip))
            if len(found) >= most:
                break
    return found


def _dump(state: int, extension: int) -> Iterator[tuple[tuple[int, ...], TcpAddress, dict[int, bytes]]]:
    """Yield fields, local address and attributes of each TCP socket in ``state``."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as netlink:
            request = _REQUEST.pack(family, socket.IPPROTO_TCP, 1 << (extension - 1), 1 << state)
            flags = _NLM_F_REQUEST | _NLM_F_DUMP
            header = _HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, flags, 0, 0)
            netlink.sendall(header + request)
            for body in _messages(netlink):
                fields = _MESSAGE.unpack_from(body)
                attributes = dict(_attributes(body[_MESSAGE.size :]))
                # An IPv4 address is in the first 4 of its 16 bytes.
                raw = fields[5] if fields[0] == socket.AF_INET6 else fields[5][:4]
                port = int.from_bytes(fields[4][:2], "big")
                yield fields, TcpAddress.of(socket.inet_ntop(fields[0], raw), port), attributes


def _messages(netlink: socket.socket) -> Iterator[bytes]:
    """Yield the bodies of the messages of one dump."""
    while True:
        datagram = netlink.recv(_BUFFER)
        offset = 0
        while offset < len(datagram):
            length, kind, _, _, _ = _HEADER.unpack_from(datagram, offset)
            body = datagram[offset + _HEADER.size : offset + length]
            if kind == _NLMSG_DONE:
                return
            if kind == _NLMSG_ERROR:
                number = -struct.unpack_from("=i", body)[0]
                raise OSError(number, f"sock_diag: {os.strerror(number)}")
            yield body
            offset += (length + 3) & ~3


def _attributes(text: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + _ATTRIBUTE.size <= len(text):
        length, kind = _ATTRIBUTE.unpack_from(text, offset)
        yield kind, text[offset + _ATTRIBUTE.size : offset + length]
        offset += max((length + 3) & ~3, _ATTRIBUTE.size)
