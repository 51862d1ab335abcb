"""Report accept queues that are shorter than requested."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from multibinder.observe.doctor.facts import BinderListener, Facts
from multibinder.observe.doctor.finding import Finding
from multibinder.wire import kinds

#: net.core.somaxconn of a new network namespace since Linux 5.4 (SOMAXCONN in linux/socket.h).
_DEFAULT = 4096


def somaxconn(facts: Facts) -> Iterator[Finding]:
    """Report each net.core.somaxconn that is less than the listeners of its namespace request, or than the default."""
    for namespace in facts.namespaces:
        limit = namespace.sysctls.get("net.core.somaxconn")
        if limit is None:
            continue
        wanted = {held.address: held.requested or _DEFAULT for held, _ in facts.held_in(namespace)}
        if not wanted and ((facts.binder is not None and facts.binder.listeners) or not namespace.is_ours):
            continue  # no listener of the binder is in it
        short = {address: backlog for address, backlog in wanted.items() if backlog > limit}
        if (wanted and not short) or limit >= max(short.values(), default=_DEFAULT):
            continue
        most = max(short.values(), default=_DEFAULT)
        yield Finding(
            "somaxconn",
            "warning",
            f"net.core.somaxconn is {limit}, and a backlog of {most} is wanted",
            f"{namespace.name}{': ' + listed(list(short)) if short else ''}",
            f"The kernel cuts every accept queue there down to {limit} connections. Each network namespace has its own "
            f"value, which begins at {_DEFAULT}: a container does not get the host's. A listener takes a new one at "
            "its next bind, when its server is restarted",
            namespace.command(f"sysctl -w net.core.somaxconn={most}"),
        )


def shorter_than_requested(facts: Facts) -> Iterator[Finding]:
    """Report each queue that is shorter than requested, unless net.core.somaxconn is the reason."""
    for namespace in facts.namespaces:
        most = namespace.sysctls.get("net.core.somaxconn")
        short: dict[tuple[int, int], list[BinderListener]] = defaultdict(list)
        for held, sock in facts.held_in(namespace):
            wanted = held.requested
            if wanted is None or sock.limit >= wanted or (most is not None and wanted > most):
                continue
            if held.backlog is not None and sock.limit < held.backlog:
                yield Finding(
                    "backlog",
                    "warning",
                    f"the backlog is {sock.limit}, {held.backlog} was set",
                    f"{held.address} ({namespace.name})",
                    "A program that holds the socket has called listen() with another backlog, which then applies to "
                    "every holder. The binder sets it back within 15 s; the program will do it again",
                    kinds.of_address(sock.address).ss_command(sock.address, "p"),
                )
            else:
                short[sock.limit, wanted].append(held)
        for (limit, wanted), listeners in sorted(short.items()):
            yield Finding(
                "backlog",
                "warning",
                f"the backlog is {limit}, {wanted} was asked for",
                f"{listed([held.address for held in listeners])} ({namespace.name})",
                "net.core.somaxconn was lower when it was last bound. It takes the present one at its next bind, when "
                "its server is restarted; clients wait meanwhile, and none is refused",
                restart_command(sorted({owner for held in listeners for owner in held.owners})),
            )


def restart_command(owners: Sequence[str]) -> str:
    """Return the command that makes the servers with these labels bind again."""
    names = [owner.partition("@")[2] for owner in owners if owner.startswith("haproxy@")]
    if names:
        return "systemctl restart " + " ".join(f"multibinder-haproxy@{name}" for name in names)
    return "restart its server"


def listed(names: Sequence[str], most: int = 3) -> str:
    """Return the first ``most`` names as a text, and the number of the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
