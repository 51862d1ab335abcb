"""Descriptors from systemd, the guard, or the previous version: LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES.

All of them pass descriptors as sd_listen_fds(3) describes. A name is only a hint; fstat(2) and getsockopt(2) identify
a descriptor. The name ``control`` tells the control socket from other Unix sockets.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Mapping, MutableMapping, Sequence

import msgspec

from multibinder.binder import client_state, events, records
from multibinder.binder.client_state import CLIENTS, ClientState
from multibinder.binder.kept_name import name_of_cookie
from multibinder.binder.lifeboat import LIFEBOAT
from multibinder.binder.records import Header, Record
from multibinder.kernel.listen_fds import take_listen_fds
from multibinder.kernel.socket_options import cookie_of
from multibinder.wire import kinds
from multibinder.wire.errors import AddressError

#: Names of descriptors that are not listeners. A journal's name is RECORDS and a number that grows.
CONTROL, LOCK, RECORDS = "control", "lock", "records"
#: The name of a listener that the keeper does not have, on its way to the next version. It is empty, because all names
#: together must fit into one string of the environment.
NOT_KEPT = ""


class Inheritance(msgspec.Struct, frozen=True):
    """The descriptors that were passed to this process, sorted by type.

    All are close-on-exec, and belong to the object that takes them. ``listeners`` have the names that they came with.
    ``journals`` are the journals by their names, the oldest first; ``header`` and ``records`` are their content.
    ``peers`` are the clients of the version before, and ``client_states`` has what it knew of them, by their inodes.
    ``lifeboat`` is the pipe of the process that takes over if this one ends before it serves.
    """

    control: socket.socket | None
    lock: int | None
    listeners: Sequence[tuple[str, socket.socket]]
    peers: Sequence[socket.socket]
    header: Header | None
    records: Mapping[int, Record]
    journals: Sequence[tuple[str, int]]
    client_states: Mapping[int, ClientState]
    lifeboat: int | None

    @property
    def record_names(self) -> list[str]:
        return [name for name, _ in self.journals]

    @property
    def kept_names(self) -> list[str]:
        """Return the names under which a keeper may have inherited journals and listeners."""
        return [*self.record_names, *(name for name, _ in self.listeners if name)]


def receive(environment: MutableMapping[str, str]) -> Inheritance:
    """Take the descriptors that were passed to this process. Those that cannot be identified are closed."""
    return identify(take_listen_fds(environment, warn_not_open))


def identify(descriptors: Sequence[tuple[str, int]]) -> Inheritance:
    """Take descriptors with their names. Those that cannot be identified are closed."""
    sorter = _Sorter()
    for name, descriptor in sorted(descriptors, key=_age):
        sorter.sort(name, descriptor)
    return sorter.result()


def _age(named: tuple[str, int]) -> tuple[int, str]:
    """Return the key that sorts an older journal before a newer one, whose number is higher. Others keep their order.

    A crash may leave two journals; then records of the newer one replace those of the older one.
    """
    name, _ = named
    return (len(name), name) if name.startswith(RECORDS) else (0, "")


def _needs_repair(named: tuple[str, socket.socket]) -> bool:
    """Return the key that sorts a listener that was shut down after the others. It may overlap with them, and can
    listen again only beside listeners that the store has."""
    kind = kinds.of_socket(named[1])
    return kind is not None and not kind.is_ready(named[1])


def warn_not_open(descriptor: int, error: OSError) -> None:
    """Log that a descriptor that was announced is not open."""
    events.limited(events.warning, "inherited-unknown", None, descriptor=descriptor, what=error.strerror)


class _Sorter:
    """Identifies each descriptor, and collects the parts of an ``Inheritance``."""

    def __init__(self) -> None:
        self._control: socket.socket | None = None
        self._lock: int | None = None
        self._listeners: list[tuple[str, socket.socket]] = []
        self._peers: list[socket.socket] = []
        self._header: Header | None = None
        self._records: dict[int, Record] = {}
        self._journals: list[tuple[str, int]] = []
        self._client_states: dict[int, ClientState] = {}
        self._lifeboat: int | None = None

    def sort(self, name: str, descriptor: int) -> None:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISSOCK(mode):
            self._sort_socket(name, socket.socket(fileno=descriptor))
        elif name == LIFEBOAT and stat.S_ISFIFO(mode) and self._lifeboat is None:
            self._lifeboat = descriptor
        elif not stat.S_ISREG(mode):
            _close(descriptor, name, "no socket")
        elif name == CLIENTS:
            self._client_states |= client_state.read(descriptor)
            os.close(descriptor)
        elif name.startswith(RECORDS):
            self._read_journal(name, descriptor)
        elif name == LOCK and self._lock is None:
            self._lock = descriptor
        else:
            _close(descriptor, name, "a file")

    def result(self) -> Inheritance:
        self._take_control_of_unit()
        return Inheritance(
            self._control,
            self._lock,
            sorted(self._listeners, key=_needs_repair),
            self._peers,
            self._header,
            self._records,
            self._journals,
            self._client_states,
            self._lifeboat,
        )

    def _read_journal(self, name: str, descriptor: int) -> None:
        recorded = records.read(descriptor)
        self._records |= recorded.records
        self._header = recorded.header or self._header
        self._journals.append((name, descriptor))

    def _sort_socket(self, name: str, sock: socket.socket) -> None:
        is_stream = sock.family == socket.AF_UNIX and sock.type == socket.SOCK_STREAM
        if is_stream and not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            self._peers.append(sock)
        elif name == CONTROL and is_stream:
            if self._control is None:
                self._control = sock
            else:
                _close(sock.detach(), name, "a second control socket")
        elif kinds.of_socket(sock) is None:
            _close(sock.detach(), name, f"a socket of a kind that this version does not know ({sock.family!r})")
        elif not _has_address(sock):
            _close(sock.detach(), name, "a socket without an address")
        else:
            self._listeners.append((name, sock))

    def _take_control_of_unit(self) -> None:
        """Without a socket of that name, the control socket is the first Unix listener that no binder has had: that of
        a socket unit."""
        if self._control is not None:
            return
        for named in self._listeners:
            name, sock = named
            is_stream = sock.family == socket.AF_UNIX and sock.type == socket.SOCK_STREAM
            cookie = cookie_of(sock)
            if is_stream and cookie not in self._records and name not in (NOT_KEPT, name_of_cookie(cookie)):
                self._control = sock
                self._listeners.remove(named)
                return


def _has_address(sock: socket.socket) -> bool:
    try:
        return kinds.address_of(sock) is not None
    except (OSError, AddressError):
        return False


def _close(descriptor: int, name: str, what: str) -> None:
    events.limited(
        events.warning,
        "inherited-unknown",
        None,
        descriptor=descriptor,
        called=name[:64] or "-",
        what=what,
        done="closed",
    )
    os.close(descriptor)
