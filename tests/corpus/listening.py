"""What the processes of a HAProxy listen on, as the kernel tells it, and what its clients get."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
from collections.abc import Iterable

import msgspec

from multibinder.kernel.process import with_descendants
from multibinder.observe.adoptable import find
from multibinder.wire import kinds
from multibinder.wire.addresses import Address
from multibinder.wire.kinds.inet_options import read_option
from tests.support.certificate import client_context

_TIMEOUT_S = 2.0
_REQUEST = b"GET / HTTP/1.0\r\n\r\n"
_PROXY = b"PROXY TCP4 127.0.0.9 127.0.0.1 1234 8000\r\n"
#: The options that have to be equal. The backlog and SO_REUSEPORT differ by design.
_OPTIONS = ("interface", "mss", "defer_accept", "fastopen", "transparent")


class Row(msgspec.Struct, frozen=True, order=True):
    """A listener. ``number`` is how many sockets are like this one; ``file`` has mode, uid and gid of its path."""

    address: str
    kind: str
    netns: int
    options: tuple[tuple[str, str], ...] = ()
    file: tuple[int, int, int] = (0, 0, 0)


def listening(pids: Iterable[int], ours: int) -> dict[Row, int]:
    """Return the listeners of these processes and of those below, each with the number of such sockets.

    ``ours`` is the cookie of this network namespace.
    """
    processes = {each for pid in pids for each in with_descendants(pid)}
    found: dict[Row, int] = {}
    listeners = find((), processes, ())
    try:
        for each in listeners.listeners:
            if each.address is None or each.socket is None or "/master.sock" in str(each.address):
                continue
            row = Row(
                # A UDP socket of HAProxy has SO_REUSEADDR, and may be for QUIC.
                re.sub(r"^quic[46]@", "udp@", str(each.address)),
                kinds.of_address(each.address).name,
                0 if each.netns in (0, ours) else 1,
                _options(each.socket),
                _file(each.address),
            )
            found[row] = found.get(row, 0) + 1
    finally:
        listeners.close()
    return found


def _options(sock: socket.socket) -> tuple[tuple[str, str], ...]:
    found = []
    if sock.family == socket.AF_INET6 and sock.getsockname()[0] == "::":  # else it has no meaning (ipv6(7))
        found.append(("v6only", str(sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY))))
    for option in _OPTIONS:
        with contextlib.suppress(OSError, KeyError):
            found.append((option, str(read_option(sock, option))))
    return tuple(found)


def _file(address: Address) -> tuple[int, int, int]:
    if address.path is None:
        return (0, 0, 0)
    try:
        status = os.stat(address.path)
    except FileNotFoundError:
        return (-1, -1, -1)
    return (status.st_mode & 0o777, status.st_uid, status.st_gid)


def connected(address: Address) -> socket.socket:
    """Return a connection to a listener; to loopback, if it listens on all addresses. Raises OSError."""
    client = socket.socket(address.family, socket.SOCK_STREAM)
    client.settimeout(_TIMEOUT_S)
    try:
        endpoint = address.ip_endpoint
        if endpoint is not None and endpoint.number == 0:
            client.connect(("::1" if endpoint.version == 6 else "127.0.0.1", endpoint.port))
        else:
            client.connect(address.sockaddr)
    except BaseException:
        client.close()
        raise
    return client


def answers(text: str) -> list[str]:
    """Return what a listener answers to a request, the same after a PROXY header, and the same over TLS."""
    address = Address.parse(text)
    if not kinds.of_address(address).accepts(address):
        return []
    return [_ask(address, b""), _ask(address, _PROXY), _ask(address, b"", tls=True)]


def _ask(address: Address, before: bytes, *, tls: bool = False) -> str:
    answer = b""
    try:
        with connected(address) as plain:
            client = client_context().wrap_socket(plain) if tls else plain
            client.sendall(before + _REQUEST)
            while part := client.recv(4096):
                answer += part
    except (OSError, ssl.SSLError) as error:
        if not answer:
            return type(error).__name__
    head, _, body = answer.partition(b"\r\n\r\n")
    return f"{head.split(b' ')[1:2]} {body[:60]!r}" if b" " in head else repr(answer[:30])
