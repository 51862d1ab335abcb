"""Descriptors from whoever started us, and to our own next self: LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES.

The protocol is sd_listen_fds(3)'s, for all who give sockets: systemd's socket units and our own re-exec. A name is a
hint and no more: what a descriptor is, the kernel says.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from collections.abc import MutableMapping, Sequence

import msgspec

from multibinder.binder import events, records
from multibinder.binder.records import Header, Records
from multibinder.wire.kinds import address_of

_FIRST = 3
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
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
    for name, descriptor in sorted(numbered(environment), key=_age):
        _sort(came, descriptor, name)
    return came


def _age(pair: tuple[str, int]) -> tuple[int, str]:
    name, _ = pair
    return (len(name), name) if name.startswith(RECORDS) else (0, "")


def numbered(environment: MutableMapping[str, str]) -> list[tuple[str, int]]:
    """Name and number of each descriptor that is there for this process, close-on-exec from now on, and the caller's.
    The variables are gone afterwards."""
    given = {name: environment.pop(name, "") for name in _VARIABLES}
    if given["LISTEN_PID"] != str(os.getpid()) or not given["LISTEN_FDS"].isdigit():
        return []
    names = given["LISTEN_FDNAMES"].split(":")
    found = []
    for index in range(int(given["LISTEN_FDS"])):
        try:
            os.set_inheritable(_FIRST + index, False)
        except OSError as error:
            events.warning("inherited-unknown", descriptor=_FIRST + index, what=error.strerror)
            continue
        found.append((names[index] if index < len(names) else "", _FIRST + index))
    return found


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


def bequeath(descriptors: Sequence[tuple[str, int]], environment: MutableMapping[str, str]) -> None:
    """Put ``descriptors`` (name, number) where ``receive`` looks for them, after exec or without.

    They are moved: afterwards they have the numbers from 3 on, in this order, and are inheritable. Whatever else has
    such a number must be closed before.
    """
    place = {number: index for index, (_, number) in enumerate(descriptors)}
    current = [number for _, number in descriptors]
    above = _FIRST + len(descriptors)
    for index in range(len(current)):
        target = _FIRST + index
        if (displaced := place.get(target)) is not None and displaced > index:
            current[displaced] = fcntl.fcntl(target, fcntl.F_DUPFD_CLOEXEC, above)
            place[current[displaced]] = displaced
        if current[index] == target:
            os.set_inheritable(target, True)
        else:
            os.dup2(current[index], target)
            os.close(current[index])
    environment["LISTEN_PID"] = str(os.getpid())
    environment["LISTEN_FDS"] = str(len(current))
    environment["LISTEN_FDNAMES"] = ":".join(name for name, _ in descriptors)
