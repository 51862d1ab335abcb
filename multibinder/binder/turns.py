"""Fairness between users: divide each turn of the loop, and queue the peers that wait for their share."""

from __future__ import annotations

from collections.abc import Iterator

from multibinder.binder.loop import Loop
from multibinder.binder.peer import Peer
from multibinder.binder.quotas import User

#: The share of one user in a turn of the loop, in seconds.
USER_TURN_S = 0.0005


class Turns:
    """Divide the turns of ``loop`` fairly: a user's clients together get ``user_turn_s`` of each.

    A peer waits in the queue if its user has no time left, if other peers of its user wait already, or if its own share
    ended before all of its requests were answered.
    """

    def __init__(self, loop: Loop, user_turn_s: float = USER_TURN_S) -> None:
        self._loop = loop
        self._user_turn_s = user_turn_s
        # The seconds that each user has spent of the turn with this number.
        self._turn = loop.turn
        self._spent_s: dict[User, float] = {}
        # In the order of arrival, each with its mask (see ``enqueue``).
        self._queue: dict[Peer, int] = {}
        self._queued: dict[User, int] = {}

    def __bool__(self) -> bool:
        """Return whether a peer waits for its turn."""
        return bool(self._queue)

    def __contains__(self, peer: Peer) -> bool:
        return peer in self._queue

    def has_time(self, user: User) -> bool:
        """Return whether the user has time left in this turn."""
        return self._loop.turn != self._turn or self._spent_s.get(user, 0.0) <= self._user_turn_s

    def left_s(self, user: User) -> float:
        """Return the seconds that the user has left in this turn; less than zero if it has spent more."""
        spent_s = self._spent_s.get(user, 0.0) if self._loop.turn == self._turn else 0.0
        return self._user_turn_s - spent_s

    def must_wait(self, user: User) -> bool:
        """Return whether a peer of this user that is ready now has to wait."""
        return user in self._queued or not self.has_time(user)

    def charge(self, user: User, seconds: float) -> None:
        """Note that this many seconds of the current turn were spent for the user."""
        if self._loop.turn != self._turn:
            self._turn = self._loop.turn
            self._spent_s.clear()
        self._spent_s[user] = self._spent_s.get(user, 0.0) + seconds

    def enqueue(self, peer: Peer, mask: int) -> None:
        """Put a peer at the end of the queue. It keeps its place if it is there already.

        ``mask`` is READ or WRITE for a peer that is ready; 0 for one whose requests have arrived and are not answered.
        """
        if peer not in self._queue:
            self._queue[peer] = mask
            self._queued[peer.user] = self._queued.get(peer.user, 0) + 1

    def remove(self, peer: Peer) -> None:
        """Take a peer out of the queue. Does nothing if it is not there."""
        if self._queue.pop(peer, None) is None:
            return
        self._queued[peer.user] -= 1
        if not self._queued[peer.user]:
            del self._queued[peer.user]

    def take_due(self) -> Iterator[tuple[Peer, int]]:
        """Take the peers out of the queue whose users have time left, each with its mask.

        The queue may change while the caller serves a peer. A peer that enters it meanwhile waits for the next call.
        """
        for peer, mask in list(self._queue.items()):
            if peer in self._queue and self.has_time(peer.user):
                self.remove(peer)
                yield peer, mask
