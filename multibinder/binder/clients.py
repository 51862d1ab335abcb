"""The registry of connected clients: all of them, those of one user, and those that are idle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from multibinder.binder.peer import Peer
from multibinder.binder.quotas import Quotas, Refusal, User


class Clients:
    """A registry of peers. Each is active, idle or lingering.

    No request of a lingering peer is served. It counts as a client of its user until it has received the descriptors
    that are in flight to it, or has closed its end.
    """

    def __init__(self, quotas: Quotas) -> None:
        self._quotas = quotas
        self._by_user: dict[User, dict[Peer, None]] = {}
        # In the order in which they became idle.
        self._idle: dict[Peer, None] = {}
        self._lingering: dict[Peer, None] = {}

    def __len__(self) -> int:
        return self._quotas.clients

    def __iter__(self) -> Iterator[Peer]:
        for peers in self._by_user.values():
            yield from peers

    def __contains__(self, peer: Peer) -> bool:
        return peer in self._by_user.get(peer.user, ())

    @property
    def idle(self) -> Sequence[Peer]:
        """Return the idle peers, the longest-idle first."""
        return list(self._idle)

    @property
    def to_pass_on(self) -> Sequence[Peer]:
        """Return the peers that the next version takes over.

        A lingering one is among them if the kernel will tell whether it has received its descriptors.
        """
        return [*self.without_answer_in_progress, *(peer for peer in self._lingering if peer.unconfirmed)]

    @property
    def lingering(self) -> Sequence[Peer]:
        return list(self._lingering)

    @property
    def without_answer_in_progress(self) -> Sequence[Peer]:
        """Return the served peers that no answer is queued or awaited for, the longest-idle first."""
        others = (peer for peer in self if peer not in self._idle and peer not in self._lingering)
        return [*self._idle, *(peer for peer in others if not peer.answer_in_progress)]

    @property
    def no_answer_in_progress(self) -> bool:
        """Return whether no answer to a served peer is queued or awaited."""
        return len(self.without_answer_in_progress) + len(self._lingering) == len(self)

    def of(self, user: User) -> Iterable[Peer]:
        """Return the user's peers in the order in which they connected."""
        return self._by_user.get(user, {})

    def is_served(self, peer: Peer) -> bool:
        """Return whether the peer is connected and not lingering."""
        return peer in self and peer not in self._lingering

    def add(self, peer: Peer) -> None:
        self._by_user.setdefault(peer.user, {})[peer] = None
        self._quotas.note_clients(peer.user, 1)

    def note_served(self, peer: Peer, *, answered: bool, idle: bool) -> None:
        """Note that the peer was served. A peer that is still idle because it sent no request keeps its place."""
        if answered or not idle:
            self._idle.pop(peer, None)
        if idle:
            self._idle.setdefault(peer)

    def linger(self, peer: Peer) -> None:
        self._idle.pop(peer, None)
        self._lingering[peer] = None

    def remove(self, peer: Peer) -> None:
        """Remove a peer. Does nothing if it is not here."""
        if peer not in self:
            return
        self._idle.pop(peer, None)
        self._lingering.pop(peer, None)
        peers = self._by_user[peer.user]
        del peers[peer]
        if not peers:
            del self._by_user[peer.user]
        self._quotas.note_clients(peer.user, -1)

    def most_buffered(self) -> Peer:
        """Return the peer with the largest unfinished request of the user that has the most bytes of them."""
        return max(self.of(self._quotas.most_buffered()), key=lambda peer: peer.buffered)

    def in_flight_exceeded(self, user: User, descriptors: int) -> Refusal | None:
        """Return the quota that this many more descriptors in flight to a user would exceed, or None.

        Only if a quota seems to be exceeded, the kernel is asked how much the clients have received meanwhile.
        """
        quotas = self._quotas
        if quotas.in_flight_per_uid_exceeded(user, descriptors):
            _note_received(self.of(user))
            if refusal := quotas.in_flight_per_uid_exceeded(user, descriptors):
                return refusal
        if quotas.in_flight_exceeded(descriptors):
            _note_received(self)
        return quotas.in_flight_exceeded(descriptors)


def _note_received(peers: Iterable[Peer]) -> None:
    for peer in peers:
        peer.note_received()
