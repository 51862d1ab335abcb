"""What the kernel shows of an option of a listener, read without the code under test."""

from __future__ import annotations

import socket
from typing import Any

#: A value of each option. The kernel rounds TCP_DEFER_ACCEPT up to the time of a number of retransmissions.
VALUES: dict[str, Any] = {
    "freebind": True,
    "transparent": True,
    "interface": "lo",
    "mark": 7,
    "mss": 1200,
    "defer_accept": 7,
    "fastopen": 5,
    "user_timeout": 5000,
    "keepalive_idle": 50,
    "keepalive_interval": 11,
    "keepalive_count": 4,
    "tos": 16,
    "rcvbuf": 100_000,
    "sndbuf": 120_000,
}
#: Where the options stand in the headers of Linux: level, number, and the number on the socket for a value.
KERNEL = {
    ("freebind", 4): (socket.IPPROTO_IP, 15),
    ("freebind", 6): (socket.IPPROTO_IPV6, 78),
    ("transparent", 4): (socket.IPPROTO_IP, 19),
    ("transparent", 6): (socket.IPPROTO_IPV6, 75),
    ("tos", 4): (socket.IPPROTO_IP, 1),
    ("tos", 6): (socket.IPPROTO_IPV6, 67),
    "mark": (socket.SOL_SOCKET, 36),
    "mss": (socket.IPPROTO_TCP, 2),
    "defer_accept": (socket.IPPROTO_TCP, 9),
    "fastopen": (socket.IPPROTO_TCP, 23),
    "user_timeout": (socket.IPPROTO_TCP, 18),
    "keepalive_idle": (socket.IPPROTO_TCP, 4),
    "keepalive_interval": (socket.IPPROTO_TCP, 5),
    "keepalive_count": (socket.IPPROTO_TCP, 6),
    "rcvbuf": (socket.SOL_SOCKET, 8),
    "sndbuf": (socket.SOL_SOCKET, 7),
}


def shown(sock: socket.socket, option: str) -> object:
    """Return what the kernel shows of an option."""
    if option == "interface":
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16)
    version = 6 if sock.family == socket.AF_INET6 else 4
    level, number = KERNEL.get(option) or KERNEL[option, version]
    return sock.getsockopt(level, number)


def expected(option: str, value: Any = None) -> object:
    """Return what the kernel shows of an option with this value, or with that of ``VALUES``."""
    value = VALUES[option] if value is None else value
    if option == "interface":
        return f"{value}\0".encode()
    return int(value) * (2 if option in ("rcvbuf", "sndbuf") else 1)
