"""Deadlines of peers: for a first request, for the rest of a half-sent one, and for receiving an answer."""

from __future__ import annotations

from collections.abc import Iterator

from multibinder.binder.peer import Peer


class Deadlines:
    """One deadline for each peer that has to do something. Each is ``timeout_s`` after its start.

    Times are those of time.monotonic().
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        # In the order in which they expire, because all peers have the same timeout.
        self._deadlines: dict[Peer, float] = {}

    @property
    def first(self) -> float | None:
        """Return the earliest deadline; None if there is none."""
        return next(iter(self._deadlines.values()), None)

    def start(self, peer: Peer, now: float) -> None:
        """Give a peer a deadline. Does nothing if it has one already."""
        self._deadlines.setdefault(peer, now + self._timeout_s)

    def clear(self, peer: Peer) -> None:
        """Remove the deadline of a peer. Does nothing if it has none."""
        self._deadlines.pop(peer, None)

    def take_expired(self, now: float, at_most: int) -> Iterator[Peer]:
        """Take out at most ``at_most`` peers whose deadline has passed, the earliest first."""
        for _ in range(at_most):
            peer, deadline = next(iter(self._deadlines.items()), (None, now))
            if peer is None or deadline > now:
                return
            del self._deadlines[peer]
            yield peer
