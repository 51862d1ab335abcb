"""Addresses of UDP, and of QUIC, which is a protocol on UDP."""

from __future__ import annotations

from typing import ClassVar

from multibinder.wire.addresses.inet import InetAddress


class UdpAddress(InetAddress, frozen=True):
    """A numeric UDP endpoint: ``udp@192.0.2.1:53``, ``udp@[2001:db8::1]:53``."""

    kind: ClassVar[str] = "udp"
    protocol: ClassVar[str] = "UDP"
    versions: ClassVar[dict[str, int | None]] = {"udp@": None, "udp4@": 4, "udp6@": 6}
    prefixes: ClassVar[frozenset[str]] = frozenset(versions)

    def __str__(self) -> str:
        return f"udp@{self.host_and_port}"


class QuicAddress(InetAddress, frozen=True):
    """A numeric UDP endpoint for QUIC: ``quic4@192.0.2.1:443``, ``quic6@[2001:db8::1]:443``.

    A server of QUIC opens one more socket on the same port for each connection. So the listener has SO_REUSEADDR, which
    lets every user of the host do the same (socket(7)).
    """

    kind: ClassVar[str] = "udp"
    protocol: ClassVar[str] = "UDP"
    versions: ClassVar[dict[str, int | None]] = {"quic@": None, "quic4@": 4, "quic6@": 6}
    prefixes: ClassVar[frozenset[str]] = frozenset(versions)

    @property
    def udp(self) -> UdpAddress:
        """The same endpoint of UDP."""
        return UdpAddress(self.host, self.port)

    def __str__(self) -> str:
        return f"quic{self.version}@{self.host_and_port}"
