"""Address patterns in the rules of a policy."""

from __future__ import annotations

import os
import re
from typing import Protocol

import msgspec

from multibinder.wire.addresses import Address, TcpAddress
from multibinder.wire.addresses.address import IpEndpoint
from multibinder.wire.addresses.vsock import PORT_ANY
from multibinder.wire.errors import AddressError

#: The IP version (0 for both) and the kind that each prefix demands. Multipath TCP has TCP's ports, QUIC those of UDP.
_PREFIXES = {
    "": (0, ""),
    "ipv4@": (4, ""),
    "ipv6@": (6, ""),
    **{
        f"{protocol}{version or ''}@": (version, kind)
        for protocol, kind in (("tcp", "tcp"), ("mptcp", "tcp"), ("udp", "udp"), ("quic", "udp"))
        for version in (0, 4, 6)
    },
}
_ANY_KIND = "*"
_VSOCK = re.compile(r"vsock@(?P<cid>[0-9]{1,10}|\*):(?P<first>[0-9]{1,10}|\*)(?:-(?P<last>[0-9]{1,10}))?")
_NETWORK = re.compile(
    r"(?P<family>[a-z0-9]+@)?(?P<host>\*|\[[^\]]*\]|[0-9.]+(?:/[0-9]+)?):(?P<first>[0-9]{1,5}|\*)(?:-(?P<last>[0-9]{1,5}))?"
)


class Pattern(Protocol):
    """A set of addresses to which a rule applies."""

    def has(self, address: Address) -> bool:
        """Return whether the address is one of the set."""

    def touches(self, address: Address) -> bool:
        """Return whether a listener on this address takes any address of the set."""

    def touched(self) -> Pattern:
        """Return a pattern of all addresses that this one touches."""

    def covers(self, other: Pattern) -> bool:
        """Return whether this set contains the set ``other``."""

    @property
    def why_nothing(self) -> str:
        """Return why no address is in the set, with a remedy. Empty if some are."""


class Network(msgspec.Struct, frozen=True):
    """An IP network and the ports from ``first`` to ``last``. ``version`` 0 stands for IPv4 and IPv6, of any host.

    ``kind`` is ``tcp`` or ``udp``. Without a kind, a rule that allows is about TCP, and one that denies about both.
    """

    version: int
    number: int
    prefix: int
    first: int
    last: int
    kind: str = ""

    def has(self, address: Address) -> bool:
        endpoint = address.ip_endpoint
        return (
            endpoint is not None
            and address.kind == (self.kind or "tcp")
            and self._has_version_and_port(endpoint)
            and self._has_number(endpoint)
        )

    def touches(self, address: Address) -> bool:
        """Return whether a listener on this address takes any address of the set.

        A listener on a wildcard address, 0.0.0.0 or ::, takes every address of its IP version (ip(7)).
        """
        endpoint = address.ip_endpoint
        # The number of both wildcard addresses is 0.
        return (
            endpoint is not None
            and self.kind in ("", address.kind)
            and self._has_version_and_port(endpoint)
            and (endpoint.number == 0 or self._has_number(endpoint))
        )

    def _has_version_and_port(self, endpoint: IpEndpoint) -> bool:
        return self.first <= endpoint.port <= self.last and self.version in (0, endpoint.version)

    def _has_number(self, endpoint: IpEndpoint) -> bool:
        return not self.prefix or (endpoint.number ^ self.number) >> (self._bits - self.prefix) == 0

    def touched(self) -> Network:
        """Return the same ports of every address: a listener on the wildcard address touches every network."""
        return msgspec.structs.replace(self, number=0, prefix=0, kind=self.kind or _ANY_KIND)

    def covers(self, other: Pattern) -> bool:
        return (
            isinstance(other, Network)
            and (self.kind == other.kind or (not self.kind and other.kind == "tcp"))
            and self.first <= other.first
            and other.last <= self.last
            and self.version in (0, other.version)
            and self.prefix <= other.prefix
            and (not self.prefix or (other.number ^ self.number) >> (self._bits - self.prefix) == 0)
        )

    @property
    def why_nothing(self) -> str:
        return ""

    @property
    def _bits(self) -> int:
        return 128 if self.version == 6 else 32


class VsockPorts(msgspec.Struct, frozen=True):
    """The vsock ports from ``first`` to ``last`` of one CID; None for every CID."""

    cid: int | None
    first: int
    last: int

    def has(self, address: Address) -> bool:
        endpoint = address.vsock_endpoint
        return endpoint is not None and self._has_port(endpoint) and self.cid in (None, endpoint[0])

    def touches(self, address: Address) -> bool:
        endpoint = address.vsock_endpoint
        return (
            endpoint is not None
            and self._has_port(endpoint)
            and (address == address.wildcard() or self.cid in (None, endpoint[0]))
        )

    def touched(self) -> VsockPorts:
        return VsockPorts(None, self.first, self.last)

    def covers(self, other: Pattern) -> bool:
        return (
            isinstance(other, VsockPorts)
            and self.first <= other.first
            and other.last <= self.last
            and self.cid in (None, other.cid)
        )

    def _has_port(self, endpoint: tuple[int, int]) -> bool:
        return self.first <= endpoint[1] <= self.last

    @property
    def why_nothing(self) -> str:
        return ""


class PathPrefix(msgspec.Struct, frozen=True):
    """The Unix sockets of all types below a directory (with a ``/`` at the end), or at this path.

    It is compared with real paths (``Address.resolved``).
    """

    prefix: str

    def has(self, address: Address) -> bool:
        path = address.path
        return path is not None and (path == self.prefix or (self._is_directory and path.startswith(self.prefix)))

    def touches(self, address: Address) -> bool:
        return self.has(address)

    def touched(self) -> PathPrefix:
        return self

    def covers(self, other: Pattern) -> bool:
        below = self._is_directory and isinstance(other, PathPrefix) and other.prefix.startswith(self.prefix)
        return below or self == other

    @property
    def why_nothing(self) -> str:
        """A link that is made later would have this effect too, so that nobody can widen a rule by one."""
        directory, name = os.path.split(self.prefix)
        real = os.path.join(os.path.realpath(directory), name)
        return "" if real == self.prefix else f"a link leads there, and a rule needs the real path: write unix@{real}"

    @property
    def _is_directory(self) -> bool:
        return self.prefix.endswith("/")

    def __str__(self) -> str:
        return f"unix@{self.prefix}"


class AbstractNames(msgspec.Struct, frozen=True):
    """The abstract name ``name``, or all that begin with it."""

    name: str
    is_prefix: bool

    def has(self, address: Address) -> bool:
        name = address.abstract_name
        return name is not None and (name.startswith(self.name) if self.is_prefix else name == self.name)

    def touches(self, address: Address) -> bool:
        return self.has(address)

    def touched(self) -> AbstractNames:
        return self

    def covers(self, other: Pattern) -> bool:
        below = self.is_prefix and isinstance(other, AbstractNames) and other.name.startswith(self.name)
        return below or self == other

    @property
    def why_nothing(self) -> str:
        return ""

    def __str__(self) -> str:
        return f"abns@{self.name}{'*' if self.is_prefix else ''}"


def parse_pattern(text: str) -> Pattern:
    """Read ``192.0.2.0/24:80``, ``[2001:db8::/32]:443``, ``*:1024-65535``, ``ipv4@*:*``, ``unix@/run/web/`` or
    ``abns@web*``. Raises AddressError."""
    if text.startswith("unix@"):
        path = text.removeprefix("unix@")
        if not path.startswith("/") or {"..", "."} & {*path.split("/")} or "//" in path:
            raise AddressError(f"{text!r}: write an absolute path, with / at the end for all that is below it")
        return PathPrefix(path)
    if text.startswith("abns@"):
        name = text.removeprefix("abns@")
        return AbstractNames(name.removesuffix("*"), name.endswith("*"))
    if (vsock := _VSOCK.fullmatch(text)) is not None:
        first, last = _ports(text, vsock["first"], vsock["last"], PORT_ANY - 1)
        return VsockPorts(None if vsock["cid"] == "*" else int(vsock["cid"]), first, last)
    found = _NETWORK.fullmatch(text)
    if found is None or (found["family"] or "") not in _PREFIXES:
        raise AddressError(
            f"{text!r} is no address pattern: write 192.0.2.0/24:80, [2001:db8::/32]:443, *:1024-65535, ipv4@*:*, "
            "udp@*:53, unix@/run/web/, abns@web* or vsock@*:1024"
        )
    first, last = _ports(text, found["first"], found["last"])
    version, kind = _PREFIXES[found["family"] or ""]
    if found["host"] == "*":
        return Network(version, 0, 0, first, last, kind)
    host, slash, length = found["host"].strip("[]").partition("/")
    address = TcpAddress.of(host, 0)
    if address.is_ipv4_mapped:
        raise AddressError(f"{text!r} would match nothing: it is IPv4, so write it as an IPv4 address or network")
    network = address.ip_endpoint
    if version not in (0, network.version):
        raise AddressError(f"{text!r}: {host} is not an IPv{version} address")
    bits = 128 if network.version == 6 else 32
    if slash and not (re.fullmatch("[0-9]{1,3}", length) and int(length) <= bits):
        raise AddressError(f"{text!r}: the prefix length is a number from 0 to {bits}")
    prefix = int(length) if slash else bits
    if network.number & ((1 << (bits - prefix)) - 1):
        raise AddressError(f"{text!r}: {host} has bits beyond /{prefix}: give the network's own address, or one host")
    return Network(network.version, network.number, prefix, first, last, kind)


def _ports(text: str, first: str, last: str | None, most: int = 65535) -> tuple[int, int]:
    if first == "*":
        if last is not None:
            raise AddressError(f"{text!r}: * is every port; write * or a range")
        return 0, most
    low, high = int(first), int(last if last is not None else first)
    if not low <= high <= most:
        raise AddressError(f"{text!r}: a port is a number from 0 to {most}, and a range goes upwards")
    return low, high
