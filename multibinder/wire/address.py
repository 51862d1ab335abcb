"""Addresses: what names a listener. No I/O: a host is numeric here, and a name is an error."""

from __future__ import annotations

import contextlib
import functools
import re
import socket
from typing import Any

import msgspec

from multibinder.wire.errors import AddressError
from multibinder.wire.excerpt import excerpt

#: HAProxy's own address prefixes (configuration.txt, "Address formats") that say no more than the family.
_FAMILY_PREFIXES = {"ipv4@": 4, "tcp4@": 4, "ipv6@": 6, "tcp6@": 6, "tcp@": None}
_PREFIX = re.compile(r"[a-z0-9+]+@")


class TcpAddress(msgspec.Struct, frozen=True):
    """A numeric TCP endpoint. ``str()`` prints what ``parse`` reads: ``192.0.2.1:80``, ``[2001:db8::1]:443``.

    Made by ``of`` and ``parse`` only: ``host`` is the text that inet_ntop(3) has for it, so equal addresses are equal.
    Port 0 asks the kernel for a free port (ip(7), ip_local_port_range).
    """

    host: str
    port: int

    @staticmethod
    def of(host: str, port: int) -> TcpAddress:
        """The address of a numeric host and a port from 0 to 65535; AddressError says what is wrong."""
        if not 0 <= port <= 65535:
            raise AddressError(f"port {excerpt(str(port))} is out of range: a TCP port is a number from 0 to 65535")
        return TcpAddress(_numeric_host(host), port)

    @staticmethod
    def parse(text: str) -> TcpAddress:
        """Read ``host:port`` in HAProxy's grammar; AddressError says what is wrong."""
        version = None
        rest = text
        if prefix := _PREFIX.match(text):
            if prefix[0] not in _FAMILY_PREFIXES:
                raise AddressError(
                    f"{excerpt(repr(text))}: {excerpt(prefix[0])} addresses are not supported yet, "
                    "only TCP (192.0.2.1:80, [::]:443)"
                )
            version = _FAMILY_PREFIXES[prefix[0]]
            rest = text[prefix.end() :]
        host, colon, port = rest.rpartition(":")
        if not colon or not re.fullmatch("[0-9]{1,9}", port):
            raise AddressError(
                f"{excerpt(repr(text))} has no port: write host:port, as in 192.0.2.1:80 or [2001:db8::1]:443"
            )
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        address = TcpAddress.of(host, int(port))
        if version is not None and address.version != version:
            raise AddressError(f"{text!r}: {host} is not an IPv{version} address")
        return address

    @property
    def family(self) -> socket.AddressFamily:
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET

    @property
    def version(self) -> int:
        return 6 if ":" in self.host else 4

    @property
    def sockaddr(self) -> tuple[str, int]:
        """What ``socket.bind`` takes."""
        return (self.host, self.port)

    def with_port(self, port: int) -> TcpAddress:
        return TcpAddress(self.host, port)

    def matches(self, bound: TcpAddress) -> bool:
        """Whether a socket bound to ``bound`` is what was asked for: port 0 stands for any port."""
        return self.host == bound.host and self.port in (0, bound.port)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


#: Every kind of address there is. TCP is the only one yet; the code that cares asks with isinstance().
Address = TcpAddress


def address_of(sock: socket.socket) -> Address | None:
    """What the kernel says that a socket is bound to (getsockname(2)); None for a kind that is no Address."""
    if sock.type != socket.SOCK_STREAM or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    return tcp_address(sock.getsockname())


def tcp_address(name: Any) -> TcpAddress:
    """The address in what ``getsockname`` of a TCP socket returned."""
    return TcpAddress.of(name[0].partition("%")[0], name[1])


@functools.lru_cache(maxsize=1024)
def _numeric_host(host: str) -> str:
    if host in ("", "*"):
        raise AddressError(f"host {host!r} is ambiguous: write 0.0.0.0 for every IPv4 address, :: for IPv6")
    shown = excerpt(repr(host))
    if "%" in host:
        raise AddressError(
            f"host {shown} has an IPv6 scope, which is not supported: "
            "bind the address without it, or :: and filter by interface"
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.suppress(OSError, ValueError):  # ValueError: a NUL, or not ASCII
        return socket.inet_ntop(family, socket.inet_pton(family, host))
    if re.fullmatch(r"[0-9.]+", host) or ":" in host:
        raise AddressError(f"host {shown} is not a valid IP address")
    raise AddressError(
        f"host {shown} is a name: give a numeric address. A name can mean several addresses, and another one "
        "after the next DNS answer; a listener must not depend on that"
    )
