"""Ways to clients that are narrower than the segments we invite them to send."""

from __future__ import annotations

from collections.abc import Iterator

from multibinder.observe.doctor.facts import Facts
from multibinder.observe.doctor.finding import Finding
from multibinder.observe.doctor.ways import Ways
from multibinder.observe.sock_diag import Path


def _headers(path: Path) -> int:
    """The bytes of the IP and TCP headers without options (RFC 6691). An IPv4 client of an IPv6 socket is mapped."""
    return 40 if path.local.version == 4 or path.local.host.startswith("::ffff:") else 60


def mss(facts: Facts) -> Iterator[Finding]:
    """By the connections that are there. They know what a route has learnt; a way that nobody uses is not seen."""
    for namespace in facts.namespaces:
        ways = Ways(namespace.paths)
        for held, sock in facts.held_in(namespace):
            paths = ways.of(sock)
            narrow = [path for path in paths if path.mss_announced + _headers(path) > path.mtu > 0]
            if not narrow:
                continue
            least = min(narrow, key=lambda path: path.mtu)
            fits = least.mtu - _headers(least)
            yield Finding(
                "mss",
                "warning",
                f"{len(narrow)} of {len(paths)} clients were told to send segments that their route does not carry",
                f"{held.address} ({namespace.name})",
                f"They were told an MSS of {least.mss_announced}, and the route's MTU is {least.mtu}: full "
                "segments are lost "
                "until an ICMP message has come through, and where those are filtered, uploads hang",
                f"set mss {fits} on the bind line, or: ip route change ROUTE advmss {fits}",
            )
