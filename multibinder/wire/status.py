"""The structures of ``list`` and ``status``: listeners, and the binder itself."""

from __future__ import annotations

import msgspec

#: Upper bounds of the buckets of ``Counters.request_buckets``, in seconds.
REQUEST_BOUNDS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1)


class ListenerStatus(msgspec.Struct, frozen=True):
    """One listener as ``list`` shows it.

    ``backlog`` is the effective limit, ``backlog_requested`` what was asked for (None: the kernel's limit);
    ``created`` is in seconds since the epoch; ``cookie`` is the socket's SO_COOKIE, its identity for life.
    """

    address: str
    name: str | None
    owners: list[str]
    backlog: int
    backlog_requested: int | None
    v6only: bool | None
    handoffs: int
    created: float
    cookie: int


class Counters(msgspec.Struct):
    """What happened since this process started to serve.

    ``requests`` by method, those of no known method as ``other``; ``refusals`` by reason: ``policy``, ``owner``,
    ``bind``, ``invalid``, ``internal``, ``timeout``, or the limit that was reached; ``handoffs``: descriptors given;
    ``connections`` accepted; ``evictions``: quiet connections that had to make room. ``request_buckets``: how many
    requests took up to each of REQUEST_BOUNDS_S, and at last how many took longer; ``request_seconds`` all together.
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


class OwnerStatus(msgspec.Struct, frozen=True):
    label: str
    uid: int


class ListenerHealth(msgspec.Struct, frozen=True):
    """One listener as ``status`` shows it. Times are in seconds since the epoch.

    ``state``: ``serving``; ``orphan``: no process but the binder has it; ``stalled``: clients wait and nobody accepts;
    ``repaired``: a holder had shut it down, or changed its backlog, within the last hour. ``queue`` connections wait
    now, ``limit`` may. ``drops``: packets that this very socket has dropped since it was made, each a client that has
    to try again (SO_MEMINFO); ``drops_per_s`` over the last look's interval. ``holders`` beside the binder and whoever
    keeps copies for it, as of its last look; None if some process may not be looked into and none was found.
    ``orphan_ttl_s``: an orphan is closed after so long; None: never. ``kept``: it would survive a crash of the binder.
    """

    address: str
    name: str | None
    owners: list[OwnerStatus]
    state: str
    queue: int
    limit: int
    backlog_requested: int | None
    v6only: bool | None
    drops: int
    drops_per_s: float
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


class BinderStatus(msgspec.Struct, frozen=True):
    """The binder itself, and its listeners. Times are in seconds since the epoch.

    ``started``: this process, or its last upgrade; ``starts`` and ``upgrades`` of this binder since boot; ``policy``:
    the file that decides, None for none; ``descriptors`` open, and how many may be; ``descriptors_in_flight`` were
    sent, and are not known to be received; ``keeper``: who keeps the sockets through a crash (``systemd``, ``guard``,
    None), and how many it has of how many it takes. ``looked_at``: when holders were last looked for. ``version`` of
    this structure: fields may be added, a change of what is here raises it.
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
