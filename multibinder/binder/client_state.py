"""The state of connected clients on its way to the next version: one JSON object a line, in a memfd.

A version that does not know a field ignores it. A version that does not know the memfd closes it; it then answers the
rest of a half-sent request with an error.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Sequence

import msgspec

from multibinder.binder import events
from multibinder.kernel import files

#: The name of the memfd among the descriptors that are passed to the next version.
CLIENTS = "clients"
#: The name of a client's connection. It is empty, because all names together must fit into one string of the
#: environment.
CLIENT = ""


class ClientState(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is known of one client beside its socket, whose st_ino is ``inode``.

    ``input`` are the bytes of a request that has not arrived whole, or was not answered yet.
    """

    inode: int
    input: bytes = b""


def detach(clients: Sequence[tuple[socket.socket, ClientState]]) -> list[tuple[str, int]]:
    """Return the descriptors of clients, and of a memfd with what is known of them. The caller owns them.

    Takes the sockets. If the memfd cannot be written, the clients of which something is known are closed.
    """
    known = [(sock, state) for sock, state in clients if state != ClientState(state.inode)]
    memfd = []
    if known:
        try:
            memfd = [(CLIENTS, write(state for _, state in known))]
        except OSError as error:
            events.error("clients-dropped", clients=len(known), why=error.strerror)
            for sock, _ in known:
                sock.close()
    return [*memfd, *((CLIENT, sock.detach()) for sock, _ in clients if sock.fileno() >= 0)]


def write(states: Iterable[ClientState]) -> int:
    """Write states to a memfd and return it; the caller owns it. Raises OSError."""
    memfd = os.memfd_create("multibinder-clients", os.MFD_CLOEXEC)
    try:
        files.write_all(memfd, b"".join(msgspec.json.encode(state) + b"\n" for state in states))
    except OSError:
        os.close(memfd)
        raise
    return memfd


def read(descriptor: int) -> dict[int, ClientState]:
    """Return the states of clients by their inodes. A line that makes no sense is logged and skipped."""
    found: dict[int, ClientState] = {}
    with open(os.dup(descriptor), "rb") as file:
        file.seek(0)
        for line in file:
            try:
                state = msgspec.json.decode(line, type=ClientState)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                events.warning("client-state-unreadable", why=error)
            else:
                found[state.inode] = state
    return found
