"""What each user takes of the binder, and how much of it there is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from multibinder.binder.owner import is_privileged

if TYPE_CHECKING:
    from multibinder.binder.peer import Peer

#: A bucket holds what its rate gives in this time: a client that was quiet may ask for more at once.
_BURST_S = 2.0
#: Users without a client that are remembered for the requests they have spent.
_REMEMBERED = 1024
#: Unfinished requests of the largest size, in total and for one uid, that may be here; smaller ones are more.
_LARGEST, _LARGEST_PER_UID = 100, 16


class Limits(msgspec.Struct, frozen=True):
    """In total, and for one uid. Those for one uid do not hold for root and the binder's own.

    ``request_bytes`` for one request; ``timeout_s`` for a first request, for the rest of a half-sent one, and for a
    client to take its answer. ``clients`` connected at once; ``rate`` in requests a second, where a request counts
    once more for each 512 bytes of it and each 2 KiB of its answer; ``in_flight`` descriptors sent and not yet
    received; ``listeners`` held, for a uid those that it has a claim to.
    """

    request_bytes: int = 512 * 1024
    timeout_s: float = 10.0
    clients: int = 1024
    clients_per_uid: int = 256
    listeners: int = 16384
    listeners_per_uid: int = 4096
    rate: int = 20000
    rate_per_uid: int = 2000
    in_flight: int = 65536
    in_flight_per_uid: int = 4096

    @property
    def buffered(self) -> int:
        """Bytes of unfinished requests in total."""
        return _LARGEST * self.request_bytes

    @property
    def buffered_per_uid(self) -> int:
        return _LARGEST_PER_UID * self.request_bytes


class Refusal(NamedTuple):
    """Which limit (the name of a flag, more or less), and a sentence with the flag's."""

    limit: str
    sentence: str


class Bucket(msgspec.Struct):
    """A token bucket: ``rate`` a second, and no more than two seconds' worth at once. May be in debt."""

    rate: int
    level: float
    at: float

    @classmethod
    def full(cls, rate: int) -> Bucket:
        return cls(rate, rate * _BURST_S, time.monotonic())

    def has_some(self) -> bool:
        now = time.monotonic()
        self.level = min(self.rate * _BURST_S, self.level + (now - self.at) * self.rate)
        self.at = now
        return self.level > 0

    def is_full(self) -> bool:
        return self.has_some() and self.level >= self.rate * _BURST_S


class User(msgspec.Struct, eq=False, dict=True):
    """One uid. ``spent_s`` of the loop's time in its turn number ``turn``; ``queued`` clients wait for theirs."""

    uid: int
    privileged: bool
    bucket: Bucket
    peers: dict[Peer, None] = msgspec.field(default_factory=dict)
    buffered: int = 0
    in_flight: int = 0
    queued: int = 0
    turn: int = -1
    spent_s: float = 0.0


class Users:
    """Everybody who has a client, or had one lately."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._users: dict[int, User] = {}
        self._bucket = Bucket.full(limits.rate)
        self._in_flight = 0
        self._buffered = 0

    def __iter__(self) -> Iterator[User]:
        return iter(self._users.values())

    @property
    def clients(self) -> int:
        return sum(len(user.peers) for user in self)

    @property
    def in_flight(self) -> int:
        """Descriptors sent and not known to be received."""
        return self._in_flight

    def of(self, uid: int) -> User:
        user = self._users.get(uid)
        if user is None:
            if len(self._users) >= _REMEMBERED:
                self._forget()
            user = self._users[uid] = User(uid, is_privileged(uid), Bucket.full(self.limits.rate_per_uid))
        return user

    def greediest(self, *, privileged: bool) -> User | None:
        """Who has the most clients; among all, or among those that are not privileged."""
        users = [user for user in self if user.peers and (privileged or not user.privileged)]
        return max(users, key=lambda user: (not user.privileged, len(user.peers)), default=None)

    def too_fast(self, user: User) -> Refusal | None:
        """Which limit this user's next request would break."""
        total = self._bucket.has_some()
        if user.privileged:
            return None
        if not user.bucket.has_some():
            sentence = f"uid {user.uid} asks more than {self.limits.rate_per_uid} times a second (--max-rate-per-uid)"
            return Refusal("rate_per_uid", sentence)
        if not total:
            return Refusal("rate", f"this binder is asked more than {self.limits.rate} times a second (--max-rate)")
        return None

    def charge(self, user: User, request: int, answer: int) -> None:
        """For a request and an answer of so many bytes. What was refused for its rate is not charged: it would be the
        others who pay, and a user that does not stop would never be heard again."""
        cost = 1 + request // 512 + answer // 2048
        user.bucket.level -= cost
        self._bucket.level -= cost

    def too_many_in_flight(self, user: User, descriptors: int) -> Refusal | None:
        """Which limit so many more would break. One answer alone breaks none, so that a large batch can be had."""
        limits = self.limits
        if not user.privileged and user.in_flight and user.in_flight + descriptors > limits.in_flight_per_uid:
            self._recount(user)
            if user.in_flight and user.in_flight + descriptors > limits.in_flight_per_uid:
                return Refusal(
                    "in_flight_per_uid",
                    f"{user.in_flight} descriptors are on their way to clients of uid {user.uid} that do not read; "
                    f"{limits.in_flight_per_uid} may be (--max-in-flight-per-uid)",
                )
        if self._in_flight and self._in_flight + descriptors > limits.in_flight:
            for other in self:
                self._recount(other)
            if self._in_flight and self._in_flight + descriptors > limits.in_flight:
                return Refusal(
                    "in_flight",
                    f"{self._in_flight} descriptors are on their way to clients that do not read; "
                    f"{limits.in_flight} may be (--max-in-flight)",
                )
        return None

    def sent(self, user: User, descriptors: int) -> None:
        user.in_flight += descriptors
        self._in_flight += descriptors

    def too_much_buffered(self, peer: Peer) -> tuple[Peer, Refusal] | None:
        """Note how much of an unfinished request of this peer is here; which limit that breaks, and who has to go for
        it. In total that is who has most: a small request is not refused because of others' large ones."""
        user, held, limits = peer.user, peer.decoder.held, self.limits
        more = held - peer.buffered
        if more:
            peer.buffered = held
            user.buffered += more
            self._buffered += more
        if more > 0 and not user.privileged and user.buffered > limits.buffered_per_uid:
            sentence = f"unfinished requests of uid {user.uid} have more than {limits.buffered_per_uid} bytes"
            return peer, Refusal("buffered_per_uid", f"{sentence}, {_LARGEST_PER_UID} of the largest (--max-request)")
        if more > 0 and self._buffered > limits.buffered:
            hoarder = max(
                (user for user in self if user.buffered), key=lambda user: (not user.privileged, user.buffered)
            )
            sentence = f"unfinished requests have more than {limits.buffered} bytes"
            return (
                max(hoarder.peers, key=lambda peer: peer.buffered),
                Refusal("buffered", f"{sentence}, {_LARGEST} of the largest (--max-request)"),
            )
        return None

    def forget_buffered(self, peer: Peer) -> None:
        """What it had sent of a request is gone."""
        peer.user.buffered -= peer.buffered
        self._buffered -= peer.buffered
        peer.buffered = 0

    def enter(self, peer: Peer) -> None:
        peer.user.peers[peer] = None

    def leave(self, peer: Peer) -> None:
        user = peer.user
        user.peers.pop(peer, None)
        self.forget_buffered(peer)
        self.sent(user, -peer.in_flight)
        peer.in_flight = 0

    def _recount(self, user: User) -> None:
        for peer in user.peers:
            if peer.in_flight and peer.has_read_all():
                self.sent(user, -peer.in_flight)
                peer.in_flight = 0

    def _forget(self) -> None:
        for user in [user for user in self if not user.peers and user.bucket.is_full()]:
            del self._users[user.uid]
