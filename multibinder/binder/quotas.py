"""Quotas of the control socket: limits in total and for one uid, and the usage of each uid."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from multibinder.binder.owner import is_privileged
from multibinder.kernel.handover import MAX_STRING_BYTES

#: A listener's name at a keeper (its SO_COOKIE) has at most six characters and a colon until 2**36 sockets were made.
_NAME_BYTES = 7
#: Room for the names of other descriptors that a keeper has.
_OTHER_NAMES_BYTES = 256
#: The most listeners whose names fit into LISTEN_FDNAMES. With more, neither an upgrade nor a keeper could start the
#: next binder.
MAX_LISTENERS = (MAX_STRING_BYTES - _OTHER_NAMES_BYTES) // _NAME_BYTES
#: A full bucket has the tokens of this time, so that a client that was idle may send a burst of requests.
_BURST_S = 2.0
#: Above this many users, those without a client and with a full bucket are forgotten.
_REMEMBERED_USERS = 1024
#: Unfinished requests of the largest size that the binder may buffer, in total and for one uid.
_LARGEST, _LARGEST_PER_UID = 100, 16
#: A request costs one token, and one more for each of these many bytes of the request and of its answer.
_REQUEST_BYTES_PER_TOKEN, _ANSWER_BYTES_PER_TOKEN = 512, 2048


class Limits(msgspec.Struct, frozen=True):
    """Limits in total and for one uid. Those for one uid do not apply to root and the binder's own user.

    ``request_bytes``  size of one request.
    ``timeout_s``      time for a first request, for the rest of a half-sent one, and for a client to take its answer.
    ``clients``        clients that are connected at the same time.
    ``rate``           requests per second. A request counts once more for each 512 bytes of it and each 2 KiB of its
                       answer.
    ``in_flight``      descriptors that were sent and not yet received.
    ``listeners``      listeners that the binder holds; for one uid, those that it has a claim to.
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
        """Return the limit on bytes of unfinished requests, in total."""
        return _LARGEST * self.request_bytes

    @property
    def buffered_per_uid(self) -> int:
        """Return the limit on bytes of unfinished requests, for one uid."""
        return _LARGEST_PER_UID * self.request_bytes


class Refusal(NamedTuple):
    """A limit that is reached.

    ``limit`` is the name of a field of ``Limits``. ``sentence`` names the value and its command-line flag.
    """

    limit: str
    sentence: str


class Bucket(msgspec.Struct):
    """A token bucket: ``rate`` tokens a second, at most two seconds' worth. Its level may be below zero.

    ``level`` is the level at the time ``at`` of time.monotonic().
    """

    rate: int
    level: float
    at: float

    @classmethod
    def full(cls, rate: int) -> Bucket:
        return cls(rate, rate * _BURST_S, time.monotonic())

    def level_at(self, now: float) -> float:
        return min(self.rate * _BURST_S, self.level + (now - self.at) * self.rate)

    def is_empty(self) -> bool:
        return self.level_at(time.monotonic()) <= 0

    def is_full(self) -> bool:
        return self.level_at(time.monotonic()) >= self.rate * _BURST_S

    def take(self, tokens: int, now: float) -> None:
        self.level = self.level_at(now) - tokens
        self.at = now


class User(msgspec.Struct, eq=False):
    """The usage of one uid: connected clients, bytes of unfinished requests, descriptors in flight, tokens."""

    uid: int
    privileged: bool
    bucket: Bucket
    clients: int = 0
    buffered: int = 0
    in_flight: int = 0


class Quotas:
    """The usage of all users, compared with the limits."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._users: dict[int, User] = {}
        self._bucket = Bucket.full(limits.rate)
        self._clients = 0
        self._in_flight = 0
        self._buffered = 0

    def __iter__(self) -> Iterator[User]:
        return iter(self._users.values())

    @property
    def clients(self) -> int:
        """Return the number of connected clients."""
        return self._clients

    @property
    def in_flight(self) -> int:
        """Return the number of descriptors that were sent and are not known to be received."""
        return self._in_flight

    def user(self, uid: int) -> User:
        """Return the user with this uid. A new one has a full bucket."""
        user = self._users.get(uid)
        if user is None:
            if len(self._users) >= _REMEMBERED_USERS:
                self._forget_users()
            user = self._users[uid] = User(uid, is_privileged(uid), Bucket.full(self.limits.rate_per_uid))
        return user

    def note_clients(self, user: User, more: int) -> None:
        """Note that this many more clients of the user are connected; less than zero for fewer."""
        user.clients += more
        self._clients += more

    def note_in_flight(self, user: User, more: int) -> None:
        """Note that this many more descriptors are in flight to clients of the user; less than zero for fewer."""
        user.in_flight += more
        self._in_flight += more

    def note_buffered(self, user: User, more: int) -> None:
        """Note that this many more bytes of the user's unfinished requests are here; less than zero for fewer."""
        user.buffered += more
        self._buffered += more

    def charge(self, user: User, request_bytes: int, answer_bytes: int) -> None:
        """Take the tokens that a request and its answer cost.

        A request that was refused for its rate costs nothing. Otherwise it would use up the tokens of other users, and
        a user that keeps asking would never be served again.
        """
        tokens = 1 + request_bytes // _REQUEST_BYTES_PER_TOKEN + answer_bytes // _ANSWER_BYTES_PER_TOKEN
        now = time.monotonic()
        user.bucket.take(tokens, now)
        self._bucket.take(tokens, now)

    def most_clients(self, *, privileged: bool) -> User | None:
        """Return the user with the most clients. A privileged user comes last, and only if ``privileged``."""
        users = [user for user in self if user.clients and (privileged or not user.privileged)]
        return max(users, key=lambda user: (not user.privileged, user.clients), default=None)

    def most_buffered(self) -> User:
        """Return the user with the most bytes of unfinished requests. Privileged users come last."""
        users = [user for user in self if user.buffered]
        return max(users, key=lambda user: (not user.privileged, user.buffered))

    def rate_exceeded(self, user: User) -> Refusal | None:
        """Return the rate that one more request of this user would exceed, or None."""
        if user.privileged:
            return None
        if user.bucket.is_empty():
            sentence = f"uid {user.uid} asks more than {self.limits.rate_per_uid} times a second (--max-rate-per-uid)"
            return Refusal("rate_per_uid", sentence)
        if self._bucket.is_empty():
            return Refusal("rate", f"this binder is asked more than {self.limits.rate} times a second (--max-rate)")
        return None

    def in_flight_per_uid_exceeded(self, user: User, descriptors: int) -> Refusal | None:
        """Return the user's limit if this many more descriptors would exceed it, or None.

        A single answer is always allowed, so that a large batch is possible.
        """
        most = self.limits.in_flight_per_uid
        if user.privileged or not user.in_flight or user.in_flight + descriptors <= most:
            return None
        return Refusal(
            "in_flight_per_uid",
            f"{user.in_flight} descriptors are in flight to clients of uid {user.uid} that do not read; "
            f"the limit is {most} (--max-in-flight-per-uid)",
        )

    def in_flight_exceeded(self, descriptors: int) -> Refusal | None:
        """Return the limit in total if this many more descriptors would exceed it, or None.

        A single answer is always allowed, so that a large batch is possible.
        """
        most = self.limits.in_flight
        if not self._in_flight or self._in_flight + descriptors <= most:
            return None
        return Refusal(
            "in_flight",
            f"{self._in_flight} descriptors are in flight to clients that do not read; "
            f"the limit is {most} (--max-in-flight)",
        )

    def buffered_per_uid_exceeded(self, user: User) -> Refusal | None:
        """Return the user's limit if its unfinished requests exceed it, or None."""
        most = self.limits.buffered_per_uid
        if user.privileged or user.buffered <= most:
            return None
        return Refusal(
            "buffered_per_uid",
            f"unfinished requests of uid {user.uid} have more than {most} bytes, "
            f"{_LARGEST_PER_UID} of the largest (--max-request)",
        )

    def buffered_exceeded(self) -> Refusal | None:
        """Return the limit in total if all unfinished requests exceed it, or None."""
        most = self.limits.buffered
        if self._buffered <= most:
            return None
        return Refusal(
            "buffered", f"unfinished requests have more than {most} bytes, {_LARGEST} of the largest (--max-request)"
        )

    def _forget_users(self) -> None:
        for user in [user for user in self if not user.clients and user.bucket.is_full()]:
            del self._users[user.uid]
