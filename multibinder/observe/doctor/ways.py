"""Which connections came in through which listener."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from multibinder.observe.sock_diag import ListeningSocket, Path


class Ways:
    """Connections by their local address, so that 10,000 listeners are looked up in 5,000 connections at once."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._by_address: dict[tuple[str, int], list[Path]] = defaultdict(list)
        self._by_port: dict[tuple[int, int], list[Path]] = defaultdict(list)
        for path in paths:
            self._by_address[path.local.host, path.local.port].append(path)
            self._by_port[path.local.version, path.local.port].append(path)

    def of(self, sock: ListeningSocket) -> list[Path]:
        """An IPv4 client of an IPv6 socket has a mapped address, which is an IPv6 one (ipv6(7))."""
        address = sock.address
        if address.host in ("0.0.0.0", "::"):
            return self._by_port.get((address.version, address.port), [])
        return self._by_address.get((address.host, address.port), [])
