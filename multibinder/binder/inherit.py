"""Descriptors from whoever started us, and to our own next self: LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES.

The protocol is sd_listen_fds(3)'s, for all who give sockets: systemd's socket units and our own re-exec. A name is a
hint and no more: what a descriptor is, the kernel says.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import MutableMapping

import msgspec

from multibinder.binder import events, records
from multibinder.binder.records import Header, Records
from multibinder.kernel.listen_fds import take_listen_fds
from multibinder.wire.kinds import address_of

CONTROL, LOCK, PEER, RECORDS = "control", "lock", "peer", "records"


class Inheritance(msgspec.Struct):
    """What came, told apart. Every descriptor in it is ours, close-on-exec, and to be closed by whoever takes it."""

    control: socket.socket | None = None
    lock: int | None = None
    listeners: list[tuple[str, socket.socket]] = []
    peers: list[socket.socket] = []
    records: Records = {}
    header: Header | None = None
    record_names: list[str] = []


def receive(environment: MutableMapping[str, str]) -> Inheritance:
    """Take what is there for this process, told apart; what cannot be identified is closed."""
    came = Inheritance()
    # Where a crash left an older and a newer set of records, the newer one has the higher number.
    # All else keeps its order.
    for name, descriptor in sorted(take_listen_fds(environment, _warn_not_open), key=_age):
        _sort(came, descriptor, name)
    return came


def _age(pair: tuple[str, int]) -> tuple[int, str]:
    name, _ = pair
    return (len(name), name) if name.startswith(RECORDS) else (0, "")


def _warn_not_open(descriptor: int, error: OSError) -> None:
    events.warning("inherited-unknown", descriptor=descriptor, what=error.strerror)


def _sort(came: Inheritance, descriptor: int, name: str) -> None:
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        if name.startswith(RECORDS):
            written = records.read(descriptor)
            came.records |= written.records
            came.header = written.header or came.header
            came.record_names.append(name)
            os.close(descriptor)
        elif name == LOCK and came.lock is None:
            came.lock = descriptor
        else:
            _refuse(descriptor, name, "a file")
        return
    if not stat.S_ISSOCK(mode):
        _refuse(descriptor, name, "no socket")
        return
    sock = socket.socket(fileno=descriptor)
    listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if sock.family == socket.AF_UNIX and sock.type == socket.SOCK_STREAM:
        if not listening:
            came.peers.append(sock)
        elif came.control is None:
            came.control = sock
        else:
            _refuse(sock.detach(), name, "a second control socket")
    elif address_of(sock) is not None:
        came.listeners.append((name, sock))
    else:
        _refuse(sock.detach(), name, f"a socket of a kind that this version does not know ({sock.family!r})")


def _refuse(descriptor: int, name: str, what: str) -> None:
    events.warning("inherited-unknown", descriptor=descriptor, called=name or "-", what=what, done="closed")
    os.close(descriptor)
