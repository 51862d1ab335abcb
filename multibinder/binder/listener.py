"""Listeners that the binder holds, the claims to them, and what a handoff of one grants."""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec

from multibinder.binder.keeper_link import HasDescriptor
from multibinder.binder.kept_name import name_of_cookie
from multibinder.binder.key import Key, netns_of
from multibinder.binder.kind_inside import kind_in
from multibinder.binder.namespace_names import name_of
from multibinder.binder.owner import Owner
from multibinder.binder.records import PendingHandoff, Record
from multibinder.kernel.socket_options import cookie_of, inode_of
from multibinder.wire import kinds
from multibinder.wire.addresses import Address
from multibinder.wire.kinds import Kind
from multibinder.wire.messages import Id, ListenerSpec
from multibinder.wire.options import Options
from multibinder.wire.status import ListenerStatus, OwnerStatus

#: At most this many pending handoffs of a listener are recorded. After a crash, the others count as confirmed.
_RECORDED_PENDING = 16
_NO_SETTERS: Mapping[str, Owner] = MappingProxyType({})


class Claim(msgspec.Struct):
    """One owner's claim to a listener.

    ``since`` is the number of the handoff that made the claim. ``handoffs`` counts its handoffs that were not
    taken back; ``unconfirmed`` of them are pending (``handoffs.py``).
    """

    since: int
    handoffs: int = 0
    unconfirmed: int = 0


class Listener(msgspec.Struct, eq=False):
    """A socket that the binder holds, and facts that the kernel does not keep with it. Only the store closes it.

    ``name_uid``                    the uid that its name belongs to; meaningless without a name.
    ``queue_limit``                 the limit that the kernel last gave the queue at our request; 0 before the first.
    ``kept``                        the keeper has confirmed that it has a copy of the socket.
    ``kernel_chose_port``           the first request was for port 0.
    ``held_outside_pid_namespace``  a process that our PID namespace does not show has received it.
    ``handoffs``                    the number of handoffs so far, which is also the number of the last one.
    ``pending``                     the grants that are not confirmed, in the order in which they were made.
    ``last_handoff_at``             in seconds of time.monotonic().
    ``received_by``                 the PID of the client of the last handoff; 0 if that is unknown.
    ``repaired_at``                 in seconds since the epoch; 0 if the listener was never repaired.
    ``created``                     in seconds since the epoch.
    ``draining``                    it is released, and its holders accept the clients that wait (``release.py``).
    ``netns``, ``shard``            as in ``Key``.
    ``adopted_shard``               it was adopted with its group, so the order in which that was joined is unknown.
    ``has_program``                 its group was adopted with the program that moves clients (``kernel/bpf.py``).
    ``joined``                      when it joined its group of shards, in seconds since the epoch (``shards.py``).
    ``awaits_holder``               it is bound, and listens when a client has confirmed that it has it.
    ``is_steered``                  new clients of its group come to some of the shards only.
    ``setters``                     the owner that has set each live option (``live_options.py``). It is replaced, never
                                    changed, because most listeners share the empty one.
    """

    socket: socket.socket
    address: Address
    options: Options
    name_uid: int = 0
    queue_limit: int = 0
    claims: dict[Owner, Claim] = msgspec.field(default_factory=dict)
    kept: bool = False
    kernel_chose_port: bool = False
    held_outside_pid_namespace: bool = False
    handoffs: int = 0
    pending: dict[Grant, None] = msgspec.field(default_factory=dict)
    last_handoff_at: float = msgspec.field(default_factory=time.monotonic)
    received_by: int = 0
    repairs: int = 0
    repaired_at: float = 0.0
    created: float = msgspec.field(default_factory=time.time)
    draining: bool = False
    netns: int = 0
    shard: int = 0
    joined: float = 0.0
    adopted_shard: bool = False
    has_program: bool = False
    awaits_holder: bool = False
    is_steered: bool = False
    setters: Mapping[str, Owner] = _NO_SETTERS

    @property
    def key(self) -> Key:
        return Key(self.address, self.netns, self.shard)

    def matches(self, spec: ListenerSpec) -> bool:
        """Return whether this listener is what ``spec`` asks for, but for options. Port 0 matches any port."""
        return spec.address.matches(self.address) and (netns_of(spec), spec.shard) == (self.netns, self.shard)

    @property
    def kind(self) -> Kind:
        return kind_in(kinds.of_address(self.address), self.netns)

    @property
    def cookie(self) -> int:
        return cookie_of(self.socket)

    @property
    def inode(self) -> int:
        """Return the number by which /proc shows the socket. /proc shows no cookies."""
        return inode_of(self.socket)

    @property
    def log_key(self) -> int | None:
        """Return the uid whose limit of log lines applies to this listener: its first owner's."""
        return next((owner.uid for owner in self.claims), None)

    @property
    def labels(self) -> list[str]:
        """Return the label of each claim. Two users may have the same one."""
        return [owner.label for owner in self.claims]

    @property
    def owners(self) -> list[OwnerStatus]:
        """Return label and uid of each claim."""
        return [OwnerStatus(owner.label, owner.uid) for owner in self.claims]

    @property
    def kept_name(self) -> str:
        """Return the name for the keeper. No other socket ever has the same."""
        return name_of_cookie(self.cookie)

    def for_keeper(self) -> tuple[str, HasDescriptor]:
        """Return ``kept_name`` and the socket, which stays the listener's."""
        return self.kept_name, self.socket

    def note_kept(self, kept_names: Collection[str]) -> None:
        """Note whether the keeper has the socket. ``kept_names`` are what it certainly has."""
        if self.socket.fileno() >= 0:
            self.kept = self.kept_name in kept_names

    def note_repair(self) -> None:
        self.repairs += 1
        self.repaired_at = time.time()

    def record(self, *, released: bool = False) -> Record:
        return Record(
            address=str(self.address),
            cookie=self.cookie,
            inode=self.inode,
            claims={str(owner): claim.handoffs for owner, claim in self.claims.items()},
            name=self.options.name,
            name_uid=self.name_uid if self.options.name else None,
            backlog=self.options.backlog,
            handoffs=self.handoffs,
            created=self.created,
            kernel_chose_port=self.kernel_chose_port,
            held_outside_pid_namespace=self.held_outside_pid_namespace,
            released=released or self.draining,
            netns=self.netns,
            shard=self.shard,
            joined=self.joined,
            adopted_shard=self.adopted_shard,
            has_program=self.has_program,
            options=self._recorded_options(),
            setters=self._recorded_setters(),
            pending=[grant.record() for grant in itertools.islice(self.pending, _RECORDED_PENDING)],
        )

    def _recorded_options(self) -> dict[str, Any]:
        """Return the options that the socket alone does not tell, but for ``backlog`` and ``name``."""
        live = self.kind.live_options
        return {name: value for name, value in self.options.given.items() if name in live and name != "backlog"}

    def _recorded_setters(self) -> dict[str, str]:
        """Return the owner of each option, unless all have the only one."""
        if len(self.claims) == 1 and self.setters.keys() >= self.options.given.keys() & self.kind.live_options:
            return {}
        return {name: str(owner) for name, owner in self.setters.items()}

    def backlog_warning(self) -> str | None:
        """Return the sentence about a backlog that the kernel reduced, or None."""
        backlog = self.options.backlog
        if backlog is None or backlog <= self.queue_limit:
            return None
        return (
            f"a backlog of {backlog} was asked for, but the kernel allows {self.queue_limit}; "
            f"raise it with 'sysctl -w net.core.somaxconn={backlog}' and ask again"
        )

    def status(self) -> ListenerStatus:
        tells_backlog = self.kind.tells_queue and self.kind.accepts(self.address)
        return ListenerStatus(
            address=str(self.address),
            name=self.options.name,
            owners=[] if self.draining else self.labels,
            backlog=self.kind.queue(self.socket).limit if tells_backlog else None,
            backlog_requested=self.options.backlog,
            v6only=self.options.v6only,
            handoffs=self.handoffs,
            created=self.created,
            cookie=self.cookie,
            claims=[] if self.draining else self.owners,
            draining=self.draining,
            kind=self.kind.name,
            shard=self.shard,
            netns=self.netns,
            netns_name=name_of(self.netns),
            options=self.options.given,
        )


class Setting(NamedTuple):
    """The value of an option, None if it has the default, and the owner that has set it; None if that is unknown."""

    value: Any
    setter: Owner | None = None


class Receiver(msgspec.Struct, frozen=True):
    """Who confirms the handoffs of one answer.

    ``connection`` is the SO_COOKIE of the client's connection, ``request`` the id of its request. ``acknowledges``: the
    client has promised to say that it holds the descriptors. ``pid`` is the client's, 0 if it is not known.
    """

    connection: int = 0
    request: Id = None
    acknowledges: bool = False
    pid: int = 0


class Grant(msgspec.Struct, eq=False):
    """One handoff that an answer promises, with what is needed to take it back.

    ``handoff`` is its number among the listener's handoffs; ``created`` tells whether this request made the listener.
    ``warning`` is the sentence about a backlog that the kernel reduced, or None. It is about this request, even if
    another one changes the backlog before the answer is sent. ``former`` has what this grant has changed,
    as it was before: a ``Setting`` for each option, ``name`` with its uid, ``held_outside_pid_namespace``. ``settled``:
    it was confirmed or taken back.
    """

    listener: Listener
    owner: Owner
    handoff: int
    created: bool = False
    warning: str | None = None
    receiver: Receiver = Receiver()
    former: dict[str, Any] = {}
    settled: bool = False

    @property
    def is_pending(self) -> bool:
        """Return whether the client has to confirm this grant."""
        return self in self.listener.pending

    @property
    def stands(self) -> bool:
        """Return whether the owner has not released the listener since."""
        return self.claim is not None

    @property
    def claim(self) -> Claim | None:
        """Return the claim that this grant made or added to; None if its owner has released it since."""
        claim = self.listener.claims.get(self.owner)
        return None if claim is None or claim.since > self.handoff else claim

    def record(self) -> PendingHandoff:
        to = self.receiver
        return PendingHandoff(
            str(self.owner), self.handoff, to.connection, to.request, to.acknowledges, to.pid, **self._recorded_former()
        )

    def _recorded_former(self) -> dict[str, Any]:
        """Return the members of the record that say what this grant has changed."""
        members: dict[str, Any] = {}
        options: dict[str, Any] = {}
        setters: dict[str, str] = {}
        for name, was in self.former.items():
            if not isinstance(was, Setting):
                members[name] = was
                continue
            if name == "backlog":  # as 0.1 records it
                members[name] = was.value
            else:
                options[name] = was.value
            if was.setter is not None:
                setters[name] = str(was.setter)
        return {**members, "options": options, "setters": setters}

    @property
    def backlog(self) -> int:
        """Return the effective limit of the accept queue, in connections."""
        return self.listener.queue_limit
