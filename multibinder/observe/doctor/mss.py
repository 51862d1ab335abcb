"""Report routes that cannot carry the segments that clients are told to send."""

from __future__ import annotations

from collections.abc import Iterator

from multibinder.observe.doctor.facts import Facts
from multibinder.observe.doctor.finding import Finding
from multibinder.observe.doctor.path_index import PathIndex


def mss(facts: Facts) -> Iterator[Finding]:
    """Compare each connection's MSS with its route's MTU. A route without a connection is not visible."""
    for namespace in facts.namespaces:
        index = PathIndex(namespace.paths)
        for held, sock in facts.held_in(namespace):
            paths = index.of(sock)
            narrow = [path for path in paths if path.mss_announced + path.local.header_bytes > path.mtu > 0]
            if not narrow:
                continue
            least = min(narrow, key=lambda path: path.mtu)
            fits = least.mtu - least.local.header_bytes
            yield Finding(
                "mss",
                "warning",
                f"{len(narrow)} of {len(paths)} clients were told to send segments that their route does not carry",
                f"{held.address} ({namespace.name})",
                f"They were told an MSS of {least.mss_announced}, and the route's MTU is {least.mtu}: full segments "
                "are lost until an ICMP message has come through, and where those are filtered, uploads hang",
                f"set mss {fits} on the bind line, or: ip route change ROUTE advmss {fits}",
            )
