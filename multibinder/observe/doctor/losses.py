"""Report packets of clients that the kernel dropped, and the listeners that dropped them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from statistics import median

from multibinder.observe.doctor.backlog import listed
from multibinder.observe.doctor.facts import BinderListener, Facts, Namespace
from multibinder.observe.doctor.finding import Finding, Level
from multibinder.observe.doctor.path_index import PathIndex
from multibinder.observe.sock_diag import ListeningSocket, Path
from multibinder.wire import kinds

#: A smaller backlog gets a note.
_SMALL_BACKLOG = 1024


def overflow(facts: Facts) -> Iterator[Finding]:
    """Report sockets that have dropped clients or have a full queue, and the drops of sockets that are closed now."""
    for namespace in facts.namespaces:
        held = {sock.inode: listener for listener, sock in facts.held_in(namespace)}
        paths = PathIndex(namespace.paths)
        for sock in namespace.sockets:
            if sock.drops or is_full(sock):
                yield _overflow(facts, namespace, paths, sock, held.get(sock.inode))
        others = namespace.counters.get("ListenDrops", 0) - sum(sock.drops for sock in namespace.sockets)
        if others > 0 and (facts.binder is None or held):
            yield Finding(
                "overflow",
                "note",
                f"{others} more were dropped by sockets that are closed now",
                namespace.name,
                f"TcpExt counts {namespace.counters['ListenDrops']} ListenDrops there since its start, of which "
                f"{namespace.counters.get('ListenOverflows', 0)} ListenOverflows; the sockets that exist now "
                "have the rest",
                namespace.command("nstat -az TcpExtListenDrops TcpExtListenOverflows"),
            )


def is_full(sock: ListeningSocket) -> bool:
    """Return whether the accept queue is full.

    It has room for one more than the limit (sk_acceptq_is_full() in include/net/sock.h).
    """
    return sock.queue > sock.limit


def _overflow(
    facts: Facts, namespace: Namespace, paths: PathIndex, sock: ListeningSocket, held: BinderListener | None
) -> Finding:
    holders = facts.holders.of(sock.inode)
    accepting = any(holder.role == "accepting" for holder in holders)
    level: Level = "warning"
    if held is None and facts.binder is not None:
        level = "note"  # a socket of another program, whose importance is unknown
    elif is_full(sock):
        level = "problem"
    dropped = f"dropped {sock.drops} packets of clients since it was opened" if sock.drops else ""
    full = f"its accept queue is full ({sock.queue} of {sock.limit})" if is_full(sock) else ""
    if holders:
        who = "Held by " + ", ".join(f"{holder} ({holder.role})" for holder in holders[:4]) + ". "
    elif facts.holders.hidden:
        who = "This user may not see the processes that hold it. "
    else:
        who = "No process except the binder has it open. " if held is not None else ""
    why = (
        f"{who}A client whose SYN or last ACK is dropped is not refused: it hangs, and tries again after 1, 3, 7 s. "
        f"{burst_sentence(sock.limit, paths.of(sock))}"
    )
    if not holders and held is not None and not facts.holders.hidden:
        release = "multibinder release --all-owners"
        remedy = f"start its server; or close the port: {release} '{sock.address}'"
    elif is_full(sock) and not accepting:
        pids = ",".join(str(holder.pid) for holder in holders)
        remedy = f"see why its server does not accept: ps -o pid,stat,wchan:30,args -p {pids}" if pids else _watch(sock)
    else:
        remedy = (
            f"give it a longer queue: bind it with backlog={max(4096, sock.limit * 4)}"
            if sock.limit < 4096
            else _watch(sock)
        )
    return Finding("overflow", level, "; ".join(filter(None, (full, dropped))), _where(namespace, sock), why, remedy)


def _where(namespace: Namespace, sock: ListeningSocket) -> str:
    return f"{sock.address} ({namespace.name})"


def _watch(sock: ListeningSocket) -> str:
    return f"watch {kinds.of_address(sock.address).ss_command(sock.address, 'mp')}"


def syn(facts: Facts) -> Iterator[Finding]:
    """Report handshakes that met a full SYN queue."""
    for namespace in facts.namespaces:
        if facts.binder is not None and not any(facts.held_in(namespace)):
            continue
        cookies = namespace.counters.get("TCPReqQFullDoCookies", 0)
        dropped = namespace.counters.get("TCPReqQFullDrop", 0)
        if cookies:
            yield Finding(
                "syn-cookies",
                "warning",
                f"{cookies} handshakes were answered with SYN cookies",
                namespace.name,
                "A listener had more half-open connections than its backlog: a flood, or a burst. Connections made "
                "with a cookie may lack window scaling and SACK, and are slower. The kernel's log names the port "
                "('Possible SYN flooding'). Since Linux 4.10 the listener's backlog alone is the limit",
                "dmesg | grep -i 'syn flooding'",
            )
        if dropped:
            most = namespace.sysctls.get("net.ipv4.tcp_max_syn_backlog", 0)
            yield Finding(
                "syn-drops",
                "warning",
                f"{dropped} SYNs were dropped because a SYN queue was full",
                namespace.name,
                f"Without SYN cookies a client waits a second and tries again. tcp_max_syn_backlog is {most}, and "
                "counts only while tcp_syncookies is 0",
                namespace.command("sysctl -w net.ipv4.tcp_syncookies=1"),
            )
        if namespace.sysctls.get("net.ipv4.tcp_syncookies") == 0 and not dropped:
            yield Finding(
                "syn-cookies-off",
                "warning",
                "net.ipv4.tcp_syncookies is 0",
                namespace.name,
                "A flood of SYNs fills the queue of half-open connections, and then no real client comes in. With 1, "
                "the kernel answers with cookies when, and only when, that queue is full",
                namespace.command("sysctl -w net.ipv4.tcp_syncookies=1"),
            )


def burst(facts: Facts) -> Iterator[Finding]:
    """Report each small backlog, and the rate of connections that it can take with the round trips of its clients."""
    for namespace in facts.namespaces:
        paths = PathIndex(namespace.paths)
        small: dict[int, list[tuple[str, list[Path]]]] = defaultdict(list)
        for held, sock in facts.held_in(namespace):
            if sock.limit < _SMALL_BACKLOG and not sock.drops and not is_full(sock):
                small[sock.limit].append((held.address, paths.of(sock)))
        for limit, listeners in sorted(small.items()):
            yield Finding(
                "burst",
                "note",
                f"the backlog is {limit}",
                f"{listed([address for address, _ in listeners])} ({namespace.name})",
                burst_sentence(limit, [path for _, theirs in listeners for path in theirs]),
                f"bind with backlog={_SMALL_BACKLOG * 4}, or without one: then it is net.core.somaxconn",
            )


def burst_sentence(limit: int, paths: Sequence[Path]) -> str:
    """Return the sentence on the rate that a limit allows.

    A connection is in the queue for one round trip (half open), and then until the server accepts it.
    """
    trips = [path.round_trip_us for path in paths if path.round_trip_us]
    rule = "A queue has to hold the connections of one round trip, or of the server's longest pause, not of a second"
    if trips:
        typical = median(trips) / 1e6
        return (
            f"{rule}: at the {typical * 1000:.3g} ms of its clients (the median of {len(trips)}), {limit} "
            f"places are full at {limit / typical:,.0f} new connections a second, or at {limit:,} while its server "
            "pauses for 1 s"
        )
    return (
        f"{rule}: {limit} places are enough for {limit * 20:,} new connections a second at 50 ms, or for "
        f"{limit:,} while its server pauses for 1 s (its clients' round trip is not known: none is connected)"
    )
