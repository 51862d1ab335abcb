"""Addresses of Multipath TCP: those of TCP, with a prefix."""

from __future__ import annotations

from typing import ClassVar

from multibinder.wire.addresses.inet import InetAddress, TcpAddress


class MptcpAddress(InetAddress, frozen=True):
    """A numeric endpoint of Multipath TCP: ``mptcp@192.0.2.1:80``, ``mptcp@[2001:db8::1]:443``."""

    kind: ClassVar[str] = "mptcp"
    protocol: ClassVar[str] = "MPTCP"
    versions: ClassVar[dict[str, int | None]] = {"mptcp@": None, "mptcp4@": 4, "mptcp6@": 6}
    prefixes: ClassVar[frozenset[str]] = frozenset(versions)

    @property
    def tcp(self) -> TcpAddress:
        """The same endpoint of TCP."""
        return TcpAddress(self.host, self.port)

    def __str__(self) -> str:
        return f"mptcp@{self.host_and_port}"
