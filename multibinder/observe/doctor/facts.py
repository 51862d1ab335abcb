"""The facts for the checks. All of them are read before the first check runs. None always means unknown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from multibinder.observe.doctor.finding import Unchecked
from multibinder.observe.holders import Holders, Process
from multibinder.observe.instances import Instance as RunInstance
from multibinder.observe.sock_diag import ListeningSocket, Path


class Namespace(msgspec.Struct, frozen=True):
    """One network namespace.

    ``netns`` is its name in /run/netns, ``pid`` a process in it; our own namespace has neither. ``counters`` are TcpExt
    of /proc/net/netstat, ``paths`` some of the established connections.
    """

    number: int
    pid: int | None
    sysctls: Mapping[str, int]
    counters: Mapping[str, int]
    sockets: tuple[ListeningSocket, ...]
    paths: tuple[Path, ...] = ()
    netns: str = ""

    @property
    def is_ours(self) -> bool:
        return self.pid is None and not self.netns

    @property
    def name(self) -> str:
        return namespace_name(self.pid, self.netns)

    def command(self, line: str) -> str:
        """Return the command that runs ``line`` in this namespace, to be typed in our own one."""
        if self.netns:
            return f"ip netns exec {self.netns} {line}"
        return line if self.pid is None else f"nsenter -t {self.pid} -n {line}"


def namespace_name(pid: int | None, netns: str) -> str:
    """Return what people call a network namespace."""
    if netns:
        return f"the network namespace {netns}"
    return "this network namespace" if pid is None else f"the network namespace of pid {pid}"


class BinderListener(msgspec.Struct, frozen=True):
    """A listener as its binder reports it. ``requested`` is the requested backlog; None means any.
    ``backlog`` is None if the socket has none.

    ``owners`` are labels, each with its uid if the claims are of several users. ``kept``: the keeper has a copy.
    """

    address: str
    cookie: int
    owners: tuple[str, ...]
    backlog: int | None
    requested: int | None
    kept: bool | None = None
    shard: int = 0


class Binder(msgspec.Struct, frozen=True):
    """The binder that answers. ``pid`` is None if it runs in another PID namespace."""

    pid: int | None
    version: str
    listeners: tuple[BinderListener, ...]


class Descriptors(msgspec.Struct, frozen=True):
    """The number of open descriptors of a process, and its RLIMIT_NOFILE. ``what`` describes the process."""

    process: Process
    what: str
    opened: int
    limit: int


class FileMode(msgspec.Struct, frozen=True):
    """Permission bits and owner of a file or directory."""

    path: str
    mode: int
    user: int


class Keeper(msgspec.Struct, frozen=True):
    """The keeper of the binder's sockets. ``kind`` is ``systemd``, ``guard``, ``none``, or ``unknown``."""

    kind: str
    unit: str = ""
    limit: int | None = None
    stored: int | None = None
    unit_changed: bool = False


class Instance(msgspec.Struct, frozen=True):
    """A running HAProxy. ``changed`` has the files on disk that differ from the loaded ones."""

    name: str
    changed: tuple[str, ...] | None


class Unit(msgspec.Struct, frozen=True):
    """A unit file of multibinder. ``state`` is ``absent``, ``unchanged``, ``outdated``, or ``changed`` (by hand)."""

    path: str
    state: str


class Facts(msgspec.Struct, frozen=True):
    """All facts. ``binder`` is None if none answers; ``control`` has the control socket and every directory above.

    ``instances`` are those of HAProxy, ``runs`` those of ``multibinder run``. ``lost_paths`` are addresses of Unix
    listeners whose path does not lead to them.
    """

    version: str
    namespaces: tuple[Namespace, ...] = ()
    holders: Holders = Holders({}, hidden=False)
    binder: Binder | None = None
    control: tuple[FileMode, ...] = ()
    keeper: Keeper | None = None
    descriptors: tuple[Descriptors, ...] = ()
    instances: tuple[Instance, ...] = ()
    runs: tuple[RunInstance, ...] = ()
    units: tuple[Unit, ...] = ()
    prefix: str = "/"
    lost_paths: tuple[str, ...] = ()
    unchecked: tuple[Unchecked, ...] = ()

    def held_in(self, namespace: Namespace) -> Iterator[tuple[BinderListener, ListeningSocket]]:
        """Yield the binder's listeners whose sockets are in this namespace, in the order of their creation."""
        sockets = {sock.cookie: sock for sock in namespace.sockets}
        for held in self.binder.listeners if self.binder else ():
            sock = sockets.get(held.cookie)
            # Before Linux 5.8 a cookie is unique in one network namespace only.
            if sock is not None and held.address == str(sock.address):
                yield held, sock
