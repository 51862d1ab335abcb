"""The structures of ``list`` and ``status``: listeners, and the binder itself."""

from __future__ import annotations

from typing import Any

import msgspec

#: Upper bounds of the buckets of ``Counters.request_buckets``, in seconds.
REQUEST_BOUNDS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1)


class OwnerStatus(msgspec.Struct, frozen=True):
    """An owner of a listener: its label, which may be empty, and its user id."""

    label: str
    uid: int


def shown_key(address: str, shard: int, netns: int, netns_name: str = "") -> str:
    """Return the key of a listener as people read it. No two listeners of a binder have the same."""
    parts = [f"shard {shard}"] if shard else []
    parts += [f"netns {netns_name or f'cookie:{netns}'}"] if netns else []
    return f"{address} ({', '.join(parts)})" if parts else address


class ListenerStatus(msgspec.Struct, frozen=True):
    """One listener as ``list`` shows it.

    ``backlog`` is the effective limit, ``backlog_requested`` the requested one (None: the kernel's limit);
    ``created`` is in seconds since the epoch; ``cookie`` is SO_COOKIE, which identifies the socket for its whole life.
    ``owners`` has the label of each claim, ``claims`` its label and uid; a binder of 0.1 does not send ``claims``.
    ``draining``: it is released, and closes when its holders have accepted the clients that wait.
    ``kind`` is the kind of socket; ``shard`` and ``netns`` belong to its key (``netns`` is the SO_NETNS_COOKIE of its
    network namespace, 0 for the binder's own). ``netns_name`` is its name in /run/netns, or ``cookie:N``. ``options``
    are those that are in force, by their names.
    ``backlog`` is None if it has none, or the kernel does not tell it.
    """

    address: str
    name: str | None
    owners: list[str]
    backlog: int | None
    backlog_requested: int | None
    v6only: bool | None
    handoffs: int
    created: float
    cookie: int
    claims: list[OwnerStatus] = []
    draining: bool = False
    kind: str = "tcp"
    shard: int = 0
    netns: int = 0
    netns_name: str = ""
    options: dict[str, Any] = {}

    @property
    def key(self) -> str:
        return shown_key(self.address, self.shard, self.netns, self.netns_name)


def has_claim(listener: ListenerStatus, label: str, uid: int) -> bool:
    """Return whether the owner has a claim on a listener. A binder of 0.1 tells the labels alone."""
    if not listener.claims:
        return label in listener.owners
    return any(claim.label == label and claim.uid == uid for claim in listener.claims)


class Counters(msgspec.Struct):
    """The counters of a binder since its process started to serve.

    ``requests`` are counted by method, unknown methods as ``other``; ``refusals`` by reason: ``policy``, ``owner``,
    ``bind``, ``invalid``, ``internal``, ``timeout``, or the limit that was reached. ``handoffs`` are descriptors given
    to clients, ``connections`` those accepted, ``evictions`` idle connections that were closed to make room.
    ``request_buckets`` has the number of requests that took up to each of REQUEST_BOUNDS_S, and last the number of
    those that took longer; ``request_seconds`` is the sum of their times.
    """

    requests: dict[str, int] = {}
    refusals: dict[str, int] = {}
    handoffs: int = 0
    connections: int = 0
    evictions: int = 0
    request_buckets: list[int] = []
    request_seconds: float = 0.0


class HolderStatus(msgspec.Struct, frozen=True):
    """A process that has a listener open. ``role``: ``accepting``, ``draining`` or ``holding``."""

    pid: int
    name: str
    role: str


class ListenerHealth(msgspec.Struct, frozen=True):
    """One listener as ``status`` shows it. Times are in seconds since the epoch.

    ``state`` is ``serving``; ``orphan``: it has no holder; ``stalled``: clients wait and no process accepts them;
    ``repaired``: a holder had shut it down, or changed its backlog, within the last hour; ``draining``: it is released,
    and closes when its holders have accepted the clients that wait. ``queue`` connections wait
    now, ``limit`` may wait. ``drops`` counts the packets that the socket has dropped since it was created, each of a
    client that has to try again (SO_MEMINFO); ``drops_per_s`` is the rate between the last two samples. ``holders`` are
    those of the last search, without the keeper; None if some process could not be read and no holder was found.
    ``orphan_ttl_s`` is the age at which an orphan is closed; None: never. ``kept``: it would survive a crash of the
    binder. ``kind``, ``shard``, ``netns``, ``netns_name`` and ``options`` are those of ``ListenerStatus``. ``accepts``
    is false for a listener that receives datagrams: ``queue`` and ``limit`` are bytes of memory then. ``queue``,
    ``limit``, ``drops`` and ``drops_per_s`` are None if the kernel does not tell them.
    """

    address: str
    name: str | None
    owners: list[OwnerStatus]
    state: str
    queue: int | None
    limit: int | None
    backlog_requested: int | None
    v6only: bool | None
    drops: int | None
    drops_per_s: float | None
    handoffs: int
    created: float
    cookie: int
    inode: int
    holders: list[HolderStatus] | None
    orphan_since: float | None
    orphan_ttl_s: float | None
    stalled_since: float | None
    repairs: int
    repaired_at: float | None
    kept: bool
    kind: str = "tcp"
    shard: int = 0
    netns: int = 0
    netns_name: str = ""
    options: dict[str, Any] = {}
    accepts: bool = True

    @property
    def key(self) -> str:
        return shown_key(self.address, self.shard, self.netns, self.netns_name)


class BinderStatus(msgspec.Struct, frozen=True):
    """The binder and its listeners as ``status`` shows them. Times are in seconds since the epoch.

    ``format`` is the version of this structure: fields may be added, a change of an existing field raises it.
    ``started`` is the start of this process or its last upgrade; ``starts`` and ``upgrades`` count since boot.
    ``policy`` is the policy file, None for none. ``descriptors`` are open, ``descriptors_limit`` may be;
    ``descriptors_in_flight`` were sent to clients that have not confirmed them. ``keeper`` is ``systemd``, ``guard`` or
    None; it has ``kept`` sockets and room for ``kept_limit``. ``looked_at`` is when holders were last looked for.
    """

    format: int
    version: str
    pid: int
    started: float
    starts: int
    upgrades: int
    policy: str | None
    clients: int
    descriptors: int
    descriptors_limit: int
    descriptors_in_flight: int
    listeners_limit: int
    keeper: str | None
    kept: int
    kept_limit: int
    looked_at: float | None
    counters: Counters
    listeners: list[ListenerHealth]
