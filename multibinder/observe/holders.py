"""Which processes hold a listening socket, and what they do with it, from /proc."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Collection, Iterator, Mapping
from typing import Literal

import msgspec

from multibinder.kernel.descriptors import scan
from multibinder.kernel.process import children_of, name_of, stat_or_none, uid_of
from multibinder.observe.accepting import accepts_on
from multibinder.wire.address import Address

_TCP_LISTEN = "0A"
_WILDCARDS = ("0.0.0.0", "::")

Role = Literal["accepting", "draining", "holding"]


class Process(msgspec.Struct, frozen=True):
    pid: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})"


class Holder(Process, frozen=True):
    """A process that has a listener open.

    ``accepting``  it waits for clients there: an epoll instance of it watches the socket, or a thread sleeps in accept.
    ``draining``   an HAProxy worker, older than the one of the same master that accepts: it finishes the clients that
                   it has, and takes none here any more. It is listed also where it has closed the socket already.
    ``holding``    neither is seen: HAProxy's master; a server that is busy, or that waits in a way that cannot be seen
                   (poll, select, io_uring), or whose details may not be read.
    """

    role: Role


class Holders(msgspec.Struct, frozen=True):
    """The answer of ``holders_of``. ``hidden``: there are processes that may not be looked into, and any of them may be
    a holder too; they run as ``hidden_users`` (user ids), which is empty where the host does not even list them."""

    by_inode: Mapping[int, tuple[Holder, ...]]
    hidden: bool
    hidden_users: tuple[int, ...] = ()

    def of(self, inode: int) -> tuple[Holder, ...]:
        return self.by_inode.get(inode, ())


class Listening(msgspec.Struct, frozen=True):
    """Who listens where a bind was refused. ``hidden``: some process could not be looked into, for want of rights."""

    processes: tuple[Process, ...]
    hidden: bool

    def __str__(self) -> str:
        names = ", ".join(map(str, self.processes))
        if names or not self.hidden:
            return names
        return "a process that this user may not see"


def holders_of(inodes: Collection[int], except_: Collection[int] = ()) -> Holders:
    """Who has these sockets open, beside the processes ``except_``: the binder itself, and whoever keeps copies for it.

    One pass over /proc for all of them: see ``scan`` for what it costs and which rights it needs. What is read is a
    moment's: who is between two accepts, or between fork and exec, is shown as that.
    """
    if not inodes:
        return Holders({}, hidden=False)
    seen = scan(inodes, except_)
    found: dict[int, list[Holder]] = {}
    haproxies: list[int] = []
    for process in seen.opened:
        accepting = accepts_on(process)
        name = name_of(process.pid)
        # One object for all its listeners: with 10,000 of them that is a fifth of the time.
        waiting, holding = Holder(process.pid, name, "accepting"), Holder(process.pid, name, "holding")
        if _is_haproxy(waiting):
            haproxies.append(process.pid)
        for inode in {inode for _, inode in process.sockets}:
            found.setdefault(inode, []).append(waiting if inode in accepting else holding)
    workers = _workers(haproxies)
    return Holders(
        {inode: _with_draining(holders, workers) for inode, holders in found.items()},
        hidden=not seen.complete,
        hidden_users=tuple(sorted(_users(seen.unseen))),
    )


def who_listens_on(address: Address) -> Listening:
    """The processes with a LISTEN socket that collides with ``address``, in this network namespace.

    Reads /proc/net/tcp and tcp6 (proc_net_tcp in the kernel's documentation), then every process's descriptors that
    this user may see: some 10 ms on a host with 300 processes, so ask only after a refusal.
    """
    inodes = set(_colliding_inodes(address))
    if not inodes:
        return Listening((), hidden=False)
    seen = scan(inodes)
    processes = tuple(Process(process.pid, name_of(process.pid)) for process in seen.opened)
    return Listening(processes, hidden=not seen.complete)


def _is_haproxy(process: Process) -> bool:
    return process.name.startswith("haproxy")


def _workers(masters: Collection[int]) -> dict[int, list[Process]]:
    """By the PID of each of these that has any: its children that are HAProxy too, the oldest first."""
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


def _users(pids: Collection[int]) -> set[int]:
    return {uid for pid in pids if (uid := uid_of(pid)) is not None}


def _colliding_inodes(address: Address) -> Iterator[int]:
    for table, parse in (("/proc/net/tcp", _ipv4), ("/proc/net/tcp6", _ipv6)):
        # (A kernel without IPv6 has no tcp6.)
        with contextlib.suppress(FileNotFoundError), open(table) as lines:
            next(lines)
            for line in lines:
                columns = line.split()
                if columns[3] != _TCP_LISTEN:
                    # Listeners come first (tcp_seq_start() in net/ipv4/tcp_ipv4.c). A busy host has 100,000 others.
                    break
                host, _, port = columns[1].partition(":")
                if int(port, 16) != address.port:
                    continue
                bound = parse(host)
                if bound == address.host or bound in _WILDCARDS or address.host in _WILDCARDS:
                    yield int(columns[9])


def _ipv4(column: str) -> str:
    return socket.inet_ntop(socket.AF_INET, _network_order(column))


def _ipv6(column: str) -> str:
    return socket.inet_ntop(socket.AF_INET6, _network_order(column))


def _network_order(column: str) -> bytes:
    # The kernel prints an address as native 32-bit integers.
    return b"".join(int(column[i : i + 8], 16).to_bytes(4, sys.byteorder) for i in range(0, len(column), 8))
