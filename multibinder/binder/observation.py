"""What was last observed of one listener: its holders, its queue and its drops."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec

from multibinder.binder import events
from multibinder.binder.listener import Listener
from multibinder.observe.holders import Holder, Holders, Place

#: The kernel counts drops in 32 bits.
_DROPS_MODULUS = 2**32
#: From one search for the holders of a listener without one to the next. The pause doubles with each search.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 15.0, 240.0


class Observation(msgspec.Struct):
    """The last observations of one listener.

    Names with ``since`` are wall-clock times for display; names with ``at`` are times of time.monotonic() for
    calculation.

    ``drops`` were counted at ``drops_at``; the rate is calculated from them at the next look.
    ``holders`` is None if none was found and some process may not be looked into.
    ``places`` are descriptors of its holders, of which at least one was still there at the last look.
    ``searched_at`` is the start of the last search for its holders; 0 before the first.
    ``search_at`` is when a search is due if no place is left, and ``pause_s`` the pause before it.
    ``unheld_since``, ``unheld_at`` are the times of the first of the searches that have found no holder.
    """

    drops: int
    drops_at: float
    drops_per_s: float = 0.0
    holders: Sequence[Holder] | None = None
    places: tuple[Place, ...] = ()
    searched_at: float = 0.0
    search_at: float = 0.0
    pause_s: float = 0.0
    unheld_since: float | None = None
    unheld_at: float = 0.0
    is_orphan: bool = False
    stalled_since: float | None = None

    def count_drops(self, listener: Listener) -> None:
        """Count the drops of the listener, and calculate their rate."""
        now, drops = time.monotonic(), listener.kind.drops(listener.socket)
        if not self.drops_at or drops < self.drops < _DROPS_MODULUS // 2:
            # Drops from before the first look, perhaps from before an upgrade, say nothing about the rate now. A socket
            # that replaces another one counts from 0.
            self.drops, self.drops_at = drops, now
        elif now - self.drops_at >= 1:
            self.drops_per_s = (drops - self.drops) % _DROPS_MODULUS / (now - self.drops_at)
            self.drops, self.drops_at = drops, now

    def must_be_searched(self, listener: Listener) -> bool:
        """Return whether no known holder is left, and a search for others is due.

        A descriptor that was found is looked for first. Only if it is gone, all processes of the host are read: as
        long as no holder is found, after longer and longer pauses, but always after a handoff.
        """
        if self.places:
            inode = listener.inode
            if any(place.has(inode) for place in self.places):
                return False
            self.pause_s = self.search_at = 0.0
        return listener.last_handoff_at >= self.searched_at or time.monotonic() >= self.search_at

    def candidates(self, listener: Listener) -> set[int]:
        """Return the processes that are most likely to have the listener: its known holders, and who got it last."""
        return {place.pid for place in self.places} | ({listener.received_by} if listener.received_by else set())

    def note_search(
        self, listener: Listener, found: Holders, began_at: float, grace_s: float, ttl_s: float | None
    ) -> None:
        """Note the holders that a search found. It began at ``began_at``.

        A listener without a holder is an orphan when searches have found none for ``grace_s``.
        """
        holders = found.of(listener.inode)
        hidden = found.hidden or listener.held_outside_pid_namespace
        self.searched_at = began_at
        self.places = found.places.get(listener.inode, ())
        self.holders = None if hidden and not holders else holders
        if holders or hidden or listener.last_handoff_at > began_at - grace_s:
            if self.is_orphan:
                why = holders[0] if holders else "some processes cannot be seen" if hidden else "it was asked for"
                events.limited(events.info, "orphan-no-more", listener.log_key, address=listener.address, why=why)
            self.unheld_since, self.is_orphan = None, False
            if not hidden:
                self.pause_s = self.search_at = 0.0
                return
        elif self.unheld_since is None:
            self.unheld_since, self.unheld_at = time.time(), began_at
        if began_at >= self.search_at:
            self.pause_s = min(max(_FIRST_PAUSE_S, 2 * self.pause_s), _LONGEST_PAUSE_S)
            # A second earlier: the look in which it is due comes at a multiple of the interval, more or less.
            self.search_at = began_at + self.pause_s - 1.0
        if self.unheld_since is None:
            return
        grace_ends_at = self.unheld_at + grace_s
        if not self.is_orphan and began_at >= grace_ends_at:
            self.is_orphan = True
            events.limited(
                events.warning,
                "orphan",
                listener.log_key,
                address=listener.address,
                owners=",".join(label or "-" for label in listener.labels),
                waiting=listener.kind.queue(listener.socket).length,
                why="no process has it open: its clients are not accepted",
            )
        for at in (grace_ends_at, None if ttl_s is None else self.unheld_at + ttl_s):
            if at is not None and began_at < at:
                self.search_at = min(self.search_at, at)

    def age_as_orphan_s(self, began_at: float) -> float:
        """Return for how long it had no holder when the search began; 0 if it is no orphan."""
        return began_at - self.unheld_at if self.is_orphan and self.searched_at == began_at else 0.0
