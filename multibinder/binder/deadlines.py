"""Deadlines of peers: for a first request, for the rest of one, and for taking an answer."""

from __future__ import annotations

from collections.abc import Iterator

from multibinder.binder.peer import Peer


class Deadlines:
    """One deadline for each peer that has to do something. All are ``timeout_s`` after they were started.

    Times are those of time.monotonic().
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        # The earliest first, because all peers have the same time.
        self._deadlines: dict[Peer, float] = {}

    @property
    def first(self) -> float | None:
        """The earliest deadline; None if there is none."""
        return next(iter(self._deadlines.values()), None)

    def start(self, peer: Peer, now: float) -> None:
        """Start the time of a peer. A deadline that it has already stays."""
        self._deadlines.setdefault(peer, now + self._timeout_s)

    def clear(self, peer: Peer) -> None:
        """Remove the deadline of a peer. Does nothing if it has none."""
        self._deadlines.pop(peer, None)

    def take_expired(self, now: float, most: int) -> Iterator[Peer]:
        """Take out the peers whose deadline has passed, the earliest first; no more than ``most``."""
        for _ in range(most):
            peer, deadline = next(iter(self._deadlines.items()), (None, now))
            if peer is None or deadline > now:
                return
            del self._deadlines[peer]
            yield peer
