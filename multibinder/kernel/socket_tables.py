"""Read the kernel's tables of TCP and UDP sockets (proc_net_tcp in the kernel's documentation)."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator
from typing import NamedTuple

from multibinder.kernel.accept_queue import TCP_LISTEN


class Row(NamedTuple):
    """A socket: its local address and port, its state (include/net/tcp_states.h) and its inode."""

    host: str
    port: int
    state: int
    inode: int


def rows(protocol: str) -> Iterator[Row]:
    """Yield each socket of ``tcp`` or ``udp`` in the network namespace of this thread.

    Raises OSError if the table cannot be read.
    """
    for name in (protocol, f"{protocol}6"):
        # A kernel without IPv6 has no tcp6.
        with contextlib.suppress(FileNotFoundError), open(f"/proc/thread-self/net/{name}") as lines:
            next(lines)
            yield from map(_row, lines)


def listening_rows() -> Iterator[Row]:
    """Yield each TCP socket that listens, in the network namespace of this thread, as ``rows`` does."""
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(FileNotFoundError), open(f"/proc/thread-self/net/{name}") as lines:
            next(lines)
            for row in map(_row, lines):
                if row.state != TCP_LISTEN:
                    # Listeners come first (tcp_seq_start() in net/ipv4/tcp_ipv4.c), before perhaps 100,000 connections.
                    break
                yield row


def _row(line: str) -> Row:
    columns = line.split()
    host, _, port = columns[1].partition(":")
    family = socket.AF_INET if len(host) == 8 else socket.AF_INET6
    return Row(socket.inet_ntop(family, _network_order(host)), int(port, 16), int(columns[3], 16), int(columns[9]))


def _network_order(column: str) -> bytes:
    # The kernel prints an address as native 32-bit integers.
    return b"".join(int(column[i : i + 8], 16).to_bytes(4, sys.byteorder) for i in range(0, len(column), 8))
