"""Which processes hold a listening socket, from /proc."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
from collections.abc import Iterator

import msgspec

from multibinder.wire.address import Address

_TCP_LISTEN = "0A"
_WILDCARDS = ("0.0.0.0", "::")
_SOCKET_LINK = re.compile(r"socket:\[(\d+)\]")


class Process(msgspec.Struct, frozen=True):
    pid: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})"


class Listening(msgspec.Struct, frozen=True):
    """Who listens where a bind was refused. ``hidden``: some process could not be looked into, for want of rights."""

    processes: tuple[Process, ...]
    hidden: bool

    def __str__(self) -> str:
        names = ", ".join(map(str, self.processes))
        if names or not self.hidden:
            return names
        return "a process that this user may not see"


def who_listens_on(address: Address) -> Listening:
    """The processes with a LISTEN socket that collides with ``address``, in this network namespace.

    Reads /proc/net/tcp and tcp6 (proc_net_tcp in the kernel's documentation), then every process's descriptors that
    this user may see: some 10 ms on a host with 300 processes, so ask only after a refusal.
    """
    inodes = set(_colliding_inodes(address))
    if not inodes:
        return Listening((), hidden=False)
    found: list[Process] = []
    hidden = False
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if inodes & set(_socket_inodes(f"/proc/{pid}/fd")):
                with open(f"/proc/{pid}/comm") as name:
                    found.append(Process(int(pid), name.read().strip()))
        except PermissionError:
            hidden = True
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
    return Listening(tuple(sorted(found, key=lambda process: process.pid)), hidden)


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


def _socket_inodes(directory: str) -> Iterator[int]:
    for name in os.listdir(directory):
        try:
            link = _SOCKET_LINK.match(os.readlink(f"{directory}/{name}"))
        except FileNotFoundError:
            continue
        if link:
            yield int(link[1])
