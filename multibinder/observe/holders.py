"""Find the processes that hold a listener, and their roles, in /proc."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Literal, NamedTuple

import msgspec

from multibinder.kernel.accepting import accepts_on
from multibinder.kernel.descriptors import Scan, has_socket, scan
from multibinder.kernel.process import children_of, name_of, stat_or_none, uid_of
from multibinder.wire import kinds
from multibinder.wire.addresses import Address
from multibinder.wire.instance_summary import RUN_PROCESS

Role = Literal["accepting", "draining", "holding"]

#: The most descriptors of one socket that ``Holders.places`` has.
MAX_PLACES = 3


class Process(msgspec.Struct, frozen=True):
    """A process, with the name of its program (comm)."""

    pid: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})"


class Holder(Process, frozen=True):
    """A process that has a listener open, and its role.

    ``accepting``  It waits for clients: one of its epoll instances watches the socket, or a thread sleeps in accept.
    ``draining``   An HAProxy worker that is older than the accepting one of the same master. It finishes its
                   connections and accepts no more. It is listed even if it has closed the socket already.
    ``holding``    Neither is visible: HAProxy's master; a server that is busy, that waits in a way that /proc does not
                   show (poll, select, io_uring), or whose details this user may not read.
    """

    role: Role


class Place(NamedTuple):
    """A descriptor of a holder: the process, a thread whose table has it, and its number."""

    pid: int
    thread: int
    descriptor: int

    def has(self, inode: int) -> bool:
        """Return whether the socket is still there. It takes some microseconds."""
        return has_socket(self.pid, self.thread, self.descriptor, inode)


class Holders(msgspec.Struct, frozen=True):
    """The result of ``holders_of``.

    ``hidden`` is True if some processes could not be read; each of them may be a holder. They run as ``hidden_users``
    (user ids), which is empty if /proc does not list them. ``places`` has up to MAX_PLACES descriptors of each socket,
    in different processes.
    """

    by_inode: Mapping[int, tuple[Holder, ...]]
    hidden: bool
    hidden_users: tuple[int, ...] = ()
    places: Mapping[int, tuple[Place, ...]] = {}

    def of(self, inode: int) -> tuple[Holder, ...]:
        return self.by_inode.get(inode, ())


class Listening(msgspec.Struct, frozen=True):
    """The processes that have an address. ``hidden`` is True if some process could not be read."""

    processes: tuple[Process, ...]
    hidden: bool

    def __str__(self) -> str:
        names = ", ".join(map(str, self.processes))
        if names or not self.hidden:
            return names
        return "a process that this user may not see"


def holders_of(inodes: Collection[int], except_: Collection[int] = (), first: Collection[int] = ()) -> Holders:
    """Return the processes that have these sockets open, except those in ``except_`` (the binder and its keeper).

    One pass over /proc finds all of them; see ``scan`` for its cost and the rights that it needs. If each of the
    sockets is found in the processes ``first`` and their children, no other process is read. The result is a snapshot:
    a process between two accepts is ``holding``, and a child between fork and exec is listed. ``multibinder run`` is no
    holder: it keeps the listeners of its copies, and accepts nothing. Without a copy, they are orphans.
    """
    if not inodes:
        return Holders({}, hidden=False)
    seen = _scan_first(inodes, except_, first) or scan(inodes, except_)
    found: dict[int, dict[int, Holder]] = {}
    places: dict[int, tuple[Place, ...]] = {}
    haproxies: set[int] = set()
    for process in seen.processes:
        accepting = accepts_on(process)
        name = name_of(process.pid)
        # One object for all listeners of a process: with 10,000 of them this takes a fifth of the time.
        if_accepting, if_holding = Holder(process.pid, name, "accepting"), Holder(process.pid, name, "holding")
        if _is_haproxy(if_accepting):
            haproxies.add(process.pid)
        for inode, descriptor in {inode: descriptor for descriptor, inode in process.sockets}.items():
            # A process may have several tables of descriptors. It accepts if the threads of one of them do.
            if name == RUN_PROCESS and inode not in accepting:
                continue
            holders = found.setdefault(inode, {})
            if len(holders) < MAX_PLACES and process.pid not in holders:
                places[inode] = (*places.get(inode, ()), Place(process.pid, process.threads[0], descriptor))
            if inode in accepting:
                holders[process.pid] = if_accepting
            else:
                holders.setdefault(process.pid, if_holding)
    workers = _workers(haproxies)
    return Holders(
        {inode: _with_draining([*holders.values()], workers) for inode, holders in found.items()},
        hidden=not seen.complete,
        hidden_users=tuple(sorted(_uids_of(seen.unreadable))),
        places=places,
    )


def who_listens_on(address: Address, except_: Collection[int] = ()) -> Listening:
    """Return the processes with a socket that collides with ``address``, in this network namespace.

    It reads the kernel's list of sockets, then the descriptors of every process that this user may read. That takes
    about 10 ms on a host with 300 processes, so call it only after a refusal.
    """
    [inodes] = _colliding_inodes([address])
    return _listening(inodes, scan(inodes, except_)) if inodes else Listening((), hidden=False)


def who_listen_on(addresses: Sequence[Address], except_: Collection[int] = ()) -> list[str | None]:
    """Name the processes that listen on each address, but those in ``except_``, with one pass over /proc.

    A name is empty if they cannot be found, and None if no socket listens there. It tells their address if that is
    another one, which takes this one as well.
    """
    inodes = _colliding_inodes(addresses)
    wanted = frozenset[int]().union(*inodes)
    if not wanted:
        return [None] * len(addresses)
    seen = scan(wanted, except_)
    return [
        _with_address(address, str(_listening(each, seen))) if each else None
        for address, each in zip(addresses, inodes, strict=True)
    ]


def _with_address(address: Address, names: str) -> str:
    kind = kinds.of_address(address)
    bound = set(kind.colliding_addresses(address).values())
    if not names or not bound or address in bound:
        return names
    others = sorted(bound, key=str)
    remedy = kind.collision_remedy(address, others[0])
    return f"{names} on {', '.join(map(str, others))}" + (f" ({remedy} to have both)" if remedy else "")


def _colliding_inodes(addresses: Sequence[Address]) -> list[AbstractSet[int]]:
    return [kinds.of_address(address).colliding_inodes(address) for address in addresses]


def _listening(inodes: AbstractSet[int], seen: Scan) -> Listening:
    pids = [process.pid for process in seen.processes if any(inode in inodes for _, inode in process.sockets)]
    return Listening(tuple(Process(pid, name_of(pid)) for pid in dict.fromkeys(pids)), hidden=not seen.complete)


def _scan_first(inodes: Collection[int], except_: Collection[int], first: Collection[int]) -> Scan | None:
    """Return what is found in the processes ``first`` and their children; None if a socket is in none of them."""
    if not first:
        return None
    pids = {*first, *(child for pid in first for child in children_of(pid))}
    seen = scan(inodes, except_, pids)
    found = {inode for process in seen.processes for _, inode in process.sockets}
    return seen if found >= set(inodes) else None


def _is_haproxy(process: Process) -> bool:
    return process.name.startswith("haproxy")


def _workers(masters: Collection[int]) -> dict[int, list[Process]]:
    """Return the HAProxy children of each of these processes, the oldest first. Processes without any are left out."""
    found = {}
    for master in masters:
        born: list[tuple[int, Process]] = []
        for pid in children_of(master):
            process = Process(pid, name_of(pid))
            if _is_haproxy(process) and (stat := stat_or_none(pid)) is not None:
                born.append((stat.start_ticks, process))
        if born:
            found[master] = [process for _, process in sorted(born, key=lambda child: (child[0], child[1].pid))]
    return found


def _with_draining(holders: list[Holder], workers: Mapping[int, list[Process]]) -> tuple[Holder, ...]:
    masters = [holder.pid for holder in holders if holder.pid in workers]
    if not masters:
        return tuple(holders)
    known = {holder.pid: holder for holder in holders}
    for master in masters:
        children = workers[master]
        accepting = [i for i, child in enumerate(children) if (it := known.get(child.pid)) and it.role == "accepting"]
        for child in children[: max(accepting, default=0)]:
            if child.pid not in known or known[child.pid].role == "holding":
                known[child.pid] = Holder(child.pid, child.name, "draining")
    return tuple(sorted(known.values(), key=lambda holder: holder.pid))


def _uids_of(pids: Collection[int]) -> set[int]:
    return {uid for pid in pids if (uid := uid_of(pid)) is not None}
