"""Report several sockets on one address (SO_REUSEPORT), intended or not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from multibinder.observe.doctor.facts import Facts, Namespace
from multibinder.observe.doctor.finding import Finding
from multibinder.observe.sock_diag import ListeningSocket
from multibinder.wire import kinds


def shared_addresses(namespace: Namespace) -> Iterator[list[ListeningSocket]]:
    """Yield each group of two or more sockets that listen on the same address and interface."""
    groups: dict[object, list[ListeningSocket]] = defaultdict(list)
    for sock in namespace.sockets:
        groups[sock.address, sock.interface].append(sock)
    return (group for group in groups.values() if len(group) > 1)


def reuseport(facts: Facts) -> Iterator[Finding]:
    """Report addresses with sockets of several programs. One program may have several, one for each thread."""
    for namespace in facts.namespaces:
        ours = {sock.inode for _, sock in facts.held_in(namespace)}
        for group in shared_addresses(namespace):
            strangers = [sock for sock in group if sock.inode not in ours]
            if len(strangers) == len(group):
                pids = [{holder.pid for holder in facts.holders.of(sock.inode)} for sock in group]
                is_of_several = all(pids) and not set.intersection(*pids)
                if not is_of_several and len({sock.user for sock in group}) == 1:
                    continue
            elif not strangers:
                continue  # all of them are the binder's shards
            names = sorted({str(holder) for sock in strangers for holder in facts.holders.of(sock.inode)})
            yield Finding(
                "reuseport",
                "problem" if len(strangers) < len(group) else "warning",
                f"{len(group)} sockets listen on one address; "
                f"{', '.join(names) or 'the holders of the others may not be seen'}",
                f"{group[0].address} ({namespace.name})",
                "The kernel distributes new clients among them by a hash (SO_REUSEPORT). Each has its own queue: the "
                "clients in the queue of a program that ends are reset, however well the other socket is kept",
                namespace.command(kinds.of_address(group[0].address).ss_command(group[0].address, "pe")),
            )
