"""Report shards that do not share the work: uneven, abandoned, or open to other programs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from multibinder.observe.doctor.facts import BinderListener, Facts, Namespace
from multibinder.observe.doctor.finding import Finding
from multibinder.observe.doctor.losses import is_full
from multibinder.observe.sock_diag import ListeningSocket
from multibinder.wire import kinds

_Shard = tuple[BinderListener, ListeningSocket]
_ROOT = 0


def uneven_shards(facts: Facts) -> Iterator[Finding]:
    """Report addresses of which one shard is missing, has another backlog, or is full while another one is empty."""
    for namespace, group in _groups(facts):
        numbers = {held.shard for held, _ in group}
        what = ""
        if missing := sorted(set(range(max(numbers) + 1)) - numbers):
            what = (
                f"of the shards 0 to {max(numbers)}, {_listed(missing)} {'is' if len(missing) == 1 else 'are'} missing"
            )
        elif full := [held.shard for held, sock in group if is_full(sock)]:
            if any(sock.queue == 0 for _, sock in group):
                what = f"the queue of shard {_listed(full)} is full, while another one is empty"
        elif len(limits := {sock.limit for _, sock in group}) > 1:
            what = f"the shards have different backlogs: {_listed(sorted(limits))}"
        if what:
            yield _finding(
                "uneven-shards",
                namespace,
                group,
                what,
                "The kernel distributes new clients evenly among the shards, whatever their processes do: a slow or "
                "short one loses its part",
            )


def abandoned_shards(facts: Facts) -> Iterator[Finding]:
    """Report shards that the processes with all other shards do not have: an old process of the server, at most."""
    if facts.holders.hidden:
        return
    for namespace, group in _groups(facts):
        holders = {held.shard: {holder.pid for holder in facts.holders.of(sock.inode)} for held, sock in group}
        for number, pids in holders.items():
            others = [theirs for shard, theirs in holders.items() if shard != number]
            serving = set.intersection(*others)
            if pids and serving and not pids & serving:
                yield _finding(
                    "abandoned-shard",
                    namespace,
                    group,
                    f"shard {number} is held by pid {_listed(sorted(pids))} alone, and the others by "
                    f"pid {_listed(sorted(serving))}",
                    "When that process ends, this shard's part of the new clients connects, and hangs",
                )


def open_shards(facts: Facts) -> Iterator[Finding]:
    """Report shards that other programs of root could join."""
    for namespace, group in _groups(facts):
        if any(sock.user == _ROOT for _, sock in group):
            yield _finding(
                "open-shards",
                namespace,
                group,
                "the shards belong to root",
                "Another program of root that sets SO_REUSEPORT, such as a plain HAProxy, can bind the address, and "
                "gets a part of the clients. A binder with CAP_CHOWN gives the sockets to an unused user",
            )


def _groups(facts: Facts) -> Iterator[tuple[Namespace, Sequence[_Shard]]]:
    """Yield the binder's listeners of each address that has several."""
    for namespace in facts.namespaces:
        groups: dict[str, list[_Shard]] = defaultdict(list)
        for held, sock in facts.held_in(namespace):
            groups[held.address].append((held, sock))
        for group in groups.values():
            if len(group) > 1:
                yield namespace, group


def _finding(check: str, namespace: Namespace, group: Sequence[_Shard], what: str, why: str) -> Finding:
    address = group[0][1].address
    show = namespace.command(kinds.of_address(address).ss_command(address, "pe"))
    return Finding(check, "warning", what, f"{address} ({namespace.name})", why, show)


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
