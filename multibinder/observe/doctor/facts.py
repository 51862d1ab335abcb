"""What the checks look at. Everything is read before anything is judged; None is always: not known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from multibinder.observe.doctor.finding import Unchecked
from multibinder.observe.holders import Holders, Process
from multibinder.observe.sock_diag import ListeningSocket, Path


class Namespace(msgspec.Struct, frozen=True):
    """One network namespace. ``pid`` is of a process in it, None for the one that we are in; ``counters`` are TcpExt of
    /proc/net/netstat; ``paths`` some of its established connections."""

    number: int
    pid: int | None
    sysctls: Mapping[str, int]
    counters: Mapping[str, int]
    sockets: tuple[ListeningSocket, ...]
    paths: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        return "this network namespace" if self.pid is None else f"the network namespace of pid {self.pid}"

    def command(self, line: str) -> str:
        """``line``, to be typed where we are."""
        return line if self.pid is None else f"nsenter -t {self.pid} -n {line}"


class Held(msgspec.Struct, frozen=True):
    """A listener as its binder tells it; ``requested`` is the backlog that was asked for, None: any."""

    address: str
    cookie: int
    owners: tuple[str, ...]
    backlog: int
    requested: int | None


class Binder(msgspec.Struct, frozen=True):
    """``pid`` is None where it cannot be told from our side (another PID namespace)."""

    pid: int | None
    version: str
    listeners: tuple[Held, ...]


class Descriptors(msgspec.Struct, frozen=True):
    """What a process has open, at least, and its RLIMIT_NOFILE; ``what`` it is in words."""

    process: Process
    what: str
    opened: int
    limit: int


class Place(msgspec.Struct, frozen=True):
    """A file or directory: permission bits and owner; ``group`` by name."""

    path: str
    mode: int
    user: int
    group: str = ""


class Keeper(msgspec.Struct, frozen=True):
    """Who has copies of the sockets: ``kind`` is ``systemd``, ``guard``, ``none``, or ``unknown``."""

    kind: str
    unit: str = ""
    limit: int | None = None
    stored: int | None = None
    unit_changed: bool = False


class Instance(msgspec.Struct, frozen=True):
    """An HAProxy that runs; ``changed`` are the files on disk that are not as they were loaded."""

    name: str
    changed: tuple[str, ...] | None


class Unit(msgspec.Struct, frozen=True):
    """A unit file of ours: ``absent``, ``unchanged``, ``outdated``, or ``changed`` by somebody."""

    path: str
    state: str


class Facts(msgspec.Struct, frozen=True):
    """``binder`` is None where none answers. ``control`` is the control socket and the directories above it."""

    version: str
    namespaces: tuple[Namespace, ...] = ()
    holders: Holders = Holders({}, hidden=False)
    binder: Binder | None = None
    control: tuple[Place, ...] = ()
    keeper: Keeper | None = None
    descriptors: tuple[Descriptors, ...] = ()
    instances: tuple[Instance, ...] = ()
    units: tuple[Unit, ...] = ()
    prefix: str = "/"
    unchecked: tuple[Unchecked, ...] = ()

    def held_in(self, namespace: Namespace) -> Iterator[tuple[Held, ListeningSocket]]:
        """The binder's listeners whose sockets are there, in the order of their creation."""
        sockets = {sock.cookie: sock for sock in namespace.sockets}
        for held in self.binder.listeners if self.binder else ():
            sock = sockets.get(held.cookie)
            # Before Linux 5.8 a cookie is one network namespace's only.
            if sock is not None and held.address == str(sock.address):
                yield held, sock
