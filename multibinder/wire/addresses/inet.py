"""Addresses of IPv4 and IPv6. A host is numeric; a host name is an error."""

from __future__ import annotations

import contextlib
import functools
import re
import socket
from typing import Any, ClassVar, Self

from multibinder.wire.addresses.address import Address, IpEndpoint, split_prefix
from multibinder.wire.errors import AddressError
from multibinder.wire.excerpt import excerpt, shown

#: RFC 4291, section 2.5.5.2: an IPv4 address as an IPv6 socket shows it.
_MAPPED = "::ffff:"


class InetAddress(Address, frozen=True):
    """A numeric host and a port of IPv4 or IPv6. Each protocol on it is a subclass.

    Create one with ``of`` or ``parse`` only: ``host`` is the text that inet_ntop(3) prints, so that equal addresses
    compare equal. Port 0 asks the kernel for a free port (ip(7), ip_local_port_range).
    """

    #: The name of the protocol in messages.
    protocol: ClassVar[str]
    #: The IP version that each prefix demands; None for both.
    versions: ClassVar[dict[str, int | None]]

    host: str
    port: int

    @classmethod
    def of(cls, host: str, port: int) -> Self:
        """Return the address of a numeric host and a port from 0 to 65535. Raises AddressError."""
        if type(port) is not int:
            port = _number(port)
        if not isinstance(host, str):
            raise AddressError(f"host {shown(host)} is of type {type(host).__name__}: give a str, as '127.0.0.1'")
        if not 0 <= port <= 65535:
            raise AddressError(f"port {shown(port)} is out of range: a {cls.protocol} port is a number from 0 to 65535")
        return cls(_numeric_host(host), port)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``host:port`` in HAProxy's grammar. Raises AddressError."""
        prefix, rest = split_prefix(text)
        if prefix not in cls.versions:
            raise AddressError(f"{excerpt(repr(text))}: {excerpt(prefix)} is no prefix of a {cls.protocol} address")
        version = cls.versions[prefix]
        host, colon, port = rest.rpartition(":")
        if not colon or not re.fullmatch("[0-9]{1,9}", port):
            raise AddressError(
                f"{excerpt(repr(text))} has no port: write host:port, as in 192.0.2.1:80 or [2001:db8::1]:443"
            )
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        address = cls.of(host, int(port))
        if version is not None and address.version != version:
            raise AddressError(f"{text!r}: {host} is not an IPv{version} address")
        return address

    @classmethod
    def of_name(cls, name: tuple[str, int] | tuple[str, int, int, int]) -> Self:
        """Return the address in a result of getsockname(2) or getpeername(2)."""
        return cls.of(name[0].partition("%")[0], name[1])

    @property
    def family(self) -> socket.AddressFamily:
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET

    @property
    def version(self) -> int:
        """The IP version of the host: 4 or 6."""
        return 6 if ":" in self.host else 4

    @property
    def sockaddr(self) -> tuple[str, int]:
        return (self.host, self.port)

    @property
    def ip_endpoint(self) -> IpEndpoint:
        return _ip_endpoint(self.host, self.port)

    @property
    def is_wildcard(self) -> bool:
        """True if the host stands for every address of its IP version."""
        return self.host in ("0.0.0.0", "::")

    @property
    def is_loopback(self) -> bool:
        """True if only clients of this host reach the host."""
        return self.host == "::1" or self.unmapped().host.startswith("127.")

    @property
    def is_ipv4_mapped(self) -> bool:
        """True if the host is an IPv4 address in IPv6 notation: ``::ffff:192.0.2.1`` (ipv6(7))."""
        return self.host.startswith(_MAPPED) and "." in self.host

    @property
    def host_and_port(self) -> str:
        """The text without a prefix: ``192.0.2.1:80``, ``[2001:db8::1]:443``."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def with_port(self, port: int) -> Self:
        return type(self)(self.host, port)

    def any_port(self) -> Self:
        return self.with_port(0)

    def wildcard(self) -> Self:
        """Return the wildcard address of the same IP version and port."""
        return type(self)("::" if ":" in self.host else "0.0.0.0", self.port)

    def unmapped(self) -> Self:
        """Return the IPv4 address of an IPv4-mapped one; every other address is returned as it is."""
        return type(self)(self.host.removeprefix(_MAPPED), self.port) if self.is_ipv4_mapped else self

    def matches(self, bound: Address) -> bool:
        """Return whether a socket that is bound to ``bound`` satisfies a request for this address: port 0 accepts
        any port."""
        return type(bound) is type(self) and self.host == bound.host and self.port in (0, bound.port)


class TcpAddress(InetAddress, frozen=True):
    """A numeric TCP endpoint. ``str()`` prints what ``parse`` reads: ``192.0.2.1:80``, ``[2001:db8::1]:443``."""

    kind: ClassVar[str] = "tcp"
    protocol: ClassVar[str] = "TCP"
    versions: ClassVar[dict[str, int | None]] = {"": None, "tcp@": None, "ipv4@": 4, "tcp4@": 4, "ipv6@": 6, "tcp6@": 6}
    prefixes: ClassVar[frozenset[str]] = frozenset(versions)

    @property
    def header_bytes(self) -> int:
        """The length of the IP and TCP headers without options (RFC 6691) of packets to and from this address."""
        return 40 if self.unmapped().version == 4 else 60

    def wire_fields(self) -> dict[str, Any]:
        return {"address": self.host, "port": self.port}

    def __str__(self) -> str:
        return self.host_and_port


def _number(port: object) -> int:
    """Return the port of an enumeration of numbers. Raises AddressError."""
    if isinstance(port, int) and not isinstance(port, bool):
        return int(port)
    remedy = f"write int({shown(port)})" if isinstance(port, str) else "give an int from 0 to 65535"
    raise AddressError(f"port {shown(port)} is of type {type(port).__name__}: {remedy}")


# Cached because a policy compares one address with each of its patterns.
@functools.lru_cache(maxsize=1024)
def _ip_endpoint(host: str, port: int) -> IpEndpoint:
    version, family = (6, socket.AF_INET6) if ":" in host else (4, socket.AF_INET)
    return IpEndpoint(version, int.from_bytes(socket.inet_pton(family, host)), port)


@functools.lru_cache(maxsize=1024)
def _numeric_host(host: str) -> str:
    if host in ("", "*"):
        raise AddressError(f"host {host!r} is ambiguous: write 0.0.0.0 for every IPv4 address, :: for IPv6")
    quoted = excerpt(repr(host))
    if "%" in host:
        raise AddressError(
            f"host {quoted} has an IPv6 scope, which is not supported: "
            "bind the address without it, or :: and filter by interface"
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.suppress(OSError, ValueError):  # ValueError: a NUL, or not ASCII
        return socket.inet_ntop(family, socket.inet_pton(family, host))
    if re.fullmatch(r"[0-9.]+", host) or ":" in host:
        raise AddressError(f"host {quoted} is not a valid IP address")
    raise AddressError(
        f"host {quoted} is a name: give a numeric address. A name can mean several addresses, and another one "
        "after the next DNS answer; a listener must not depend on that"
    )
