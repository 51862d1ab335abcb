"""Report listeners that no process holds, so no process accepts on them."""

from __future__ import annotations

from collections.abc import Iterator

from multibinder.observe.doctor.facts import Facts
from multibinder.observe.doctor.finding import Finding


def orphans(facts: Facts) -> Iterator[Finding]:
    """Report each listener without a holder, unless holders may be hidden from us."""
    if facts.holders.hidden:
        return
    for namespace in facts.namespaces:
        for held, sock in facts.held_in(namespace):
            if facts.holders.of(sock.inode):
                continue
            owners = ", ".join(owner or "-" for owner in held.owners)
            waiting = f"{sock.queue} clients wait" if sock.queue else "no client waits yet"
            yield Finding(
                "orphan",
                "problem" if sock.queue else "warning",
                f"no process but the binder has it open; {waiting}",
                f"{held.address} ({namespace.name}), owners: {owners}",
                "The port is open, so a client is not refused: it connects, and hangs. That is right while a server "
                "restarts, and at no other time",
                f"start its server; or close the port: multibinder release --all-owners '{held.address}'",
            )
