"""Find the connections that were made to a listener."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from multibinder.observe.sock_diag import ListeningSocket, Path
from multibinder.wire.addresses import Address


class PathIndex:
    """Connections by their local address, so that each of 10,000 listeners needs one look-up."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._by_address: dict[Address, list[Path]] = defaultdict(list)
        for path in paths:
            self._by_address[path.local].append(path)
            self._by_address[path.local.wildcard()].append(path)

    def of(self, sock: ListeningSocket) -> list[Path]:
        """Return the connections of a listener.

        An IPv4 client of an IPv6 listener has a mapped address, which is an IPv6 address (ipv6(7)).
        """
        return self._by_address.get(sock.address, [])
