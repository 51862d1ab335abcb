"""The health of listeners: their holders, whether a process accepts from them, and what they dropped."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec

from multibinder.binder import events
from multibinder.binder.holder_scan import HolderScan
from multibinder.binder.listener import Listener
from multibinder.binder.loop import Loop
from multibinder.binder.orphan_ttl import OrphanTtl, orphan_ttl_of
from multibinder.binder.store import ListenerStore
from multibinder.observe.holders import Holder, Holders
from multibinder.wire.status import HolderStatus, ListenerHealth, OwnerStatus

#: A listener is shown as repaired for this long after a repair.
_REPAIRED_S = 3600.0
#: The kernel counts drops in 32 bits.
_DROPS_MODULUS = 2**32


class _Observation(msgspec.Struct):
    """The last observations of one listener.

    Names with ``since`` are wall-clock times for display; names with ``at`` are times of time.monotonic() for
    calculation.

    ``drops`` were counted at ``drops_at``; the rate is calculated from them at the next look.
    ``holders`` is None if none was found and some process may not be looked into.
    ``unheld_since``, ``unheld_at`` are the times of the first of the looks that have found no holder.
    """

    drops: int
    drops_at: float
    drops_per_s: float = 0.0
    holders: Sequence[Holder] | None = None
    unheld_since: float | None = None
    unheld_at: float = 0.0
    is_orphan: bool = False
    stalled_since: float | None = None


class HealthMonitor:
    """Looks at all listeners when ``look`` is called, and closes orphans whose time to live is over.

    ``grace_s`` is explained at ``settings.Timings``. A queue that is not empty is sampled every ``sample_every_s``;
    its listener is stalled if the queue has not become shorter in any of ``samples`` samples.
    """

    def __init__(
        self,
        loop: Loop,
        store: ListenerStore,
        scan: HolderScan,
        orphan_ttls: Sequence[OrphanTtl] = (),
        *,
        grace_s: float = 10.0,
        sample_every_s: float = 0.05,
        samples: int = 20,
    ) -> None:
        self._loop = loop
        self._store = store
        self._scan = scan
        self._orphan_ttls = orphan_ttls
        self._grace_s = grace_s
        self._sample_every_s = sample_every_s
        self._samples = samples
        self._observations: dict[Listener, _Observation] = {}
        self._on_looked: list[Callable[[], None]] = []
        self._look_began_at = 0.0
        self._extra_look_is_due = False
        self._looked_at: float | None = None

    @property
    def looked_at(self) -> float | None:
        """Return the time of the last look that was complete, in seconds since the epoch; None before the first."""
        return self._looked_at

    def look(self, on_looked: Callable[[], None] = lambda: None) -> None:
        """Look at all listeners now. ``on_looked`` is called from the loop when that is done, also after a failure.

        During a look, further callers wait for the end of the same one.
        """
        if not len(self._store):
            self._observations.clear()
            self._loop.call_later(0, on_looked)
            return
        self._on_looked.append(on_looked)
        if not self._scan.is_running:
            self._look_began_at = time.monotonic()
            self._scan.start([listener.inode for listener in self._store.listeners()], self._finish_look)

    def stop(self) -> None:
        """End a look that is under way. Its callers are not told."""
        self._scan.stop()

    def health(self, listeners: Sequence[Listener]) -> list[ListenerHealth]:
        """Return the health of listeners: holders as of the last look, queues and drops as of now."""
        now = time.time()
        unknown = _Observation(0, 0.0)
        return [self._health(listener, self._observations.get(listener, unknown), now) for listener in listeners]

    def _finish_look(self, found: Holders | None) -> None:
        if found is not None:
            self._looked_at = time.time()
        listeners = self._store.listeners()
        for gone in self._observations.keys() - set(listeners):
            del self._observations[gone]
        waiting: list[tuple[Listener, int]] = []
        for listener in listeners:
            observation = self._count_drops(listener)
            if found is not None:
                self._note_holders(listener, observation, found)
            length = listener.kind.queue(listener.socket).length
            if length:
                waiting.append((listener, length))
            else:
                observation.stalled_since = None
        if waiting:
            self._loop.call_later(self._sample_every_s, lambda: self._sample_queues(waiting, self._samples))
        if found is not None:
            # Only after a complete look, which has just confirmed that no process has them open.
            for listener in listeners:
                self._close_if_orphan_expired(listener)
        callbacks, self._on_looked = self._on_looked, []
        for on_looked in callbacks:
            self._loop.call_later(0, on_looked)  # so that one that fails costs no other

    def _count_drops(self, listener: Listener) -> _Observation:
        now, drops = time.monotonic(), listener.kind.drops(listener.socket)
        observation = self._observations.get(listener)
        if observation is None:
            # Drops from before the first look, perhaps from before an upgrade, say nothing about the rate now.
            observation = self._observations[listener] = _Observation(drops, now)
        elif now - observation.drops_at >= 1:
            new_drops = (drops - observation.drops) % _DROPS_MODULUS
            observation.drops_per_s = new_drops / (now - observation.drops_at)
            observation.drops, observation.drops_at = drops, now
        return observation

    def _note_holders(self, listener: Listener, observation: _Observation, found: Holders) -> None:
        holders = found.of(listener.inode)
        hidden = found.hidden or listener.held_outside_pid_namespace
        observation.holders = None if hidden and not holders else holders
        if holders or hidden or listener.last_handoff_at > self._look_began_at - self._grace_s:
            if observation.is_orphan:
                why = holders[0] if holders else "some processes cannot be seen" if hidden else "it was asked for"
                events.limited(events.info, "orphan-no-more", listener.log_key, address=listener.address, why=why)
            observation.unheld_since, observation.is_orphan = None, False
            return
        if observation.unheld_since is None:
            observation.unheld_since, observation.unheld_at = time.time(), self._look_began_at
        if observation.is_orphan:
            return
        grace_ends_at = observation.unheld_at + self._grace_s
        if self._look_began_at < grace_ends_at:
            self._look_again(grace_ends_at)
            return
        observation.is_orphan = True
        events.limited(
            events.warning,
            "orphan",
            listener.log_key,
            address=listener.address,
            owners=",".join(label or "-" for label in listener.labels),
            waiting=listener.kind.queue(listener.socket).length,
            why="no process has it open: its clients are not accepted",
        )

    def _look_again(self, at: float) -> None:
        """Look again when the grace of a listener without a holder ends, rather than at the next regular look."""
        if self._extra_look_is_due:
            return

        def look() -> None:
            self._extra_look_is_due = False
            self.look()

        self._extra_look_is_due = True
        self._loop.call_later(max(0.0, at - time.monotonic()), look)

    def _sample_queues(self, waiting: Sequence[tuple[Listener, int]], samples_left: int) -> None:
        """Find stalled listeners among those with the queue lengths of the last sample.

        A queue from which a process accepts becomes shorter now and then, however many clients connect.
        """
        unmoved = []
        for listener, longest in waiting:
            observation = self._observations.get(listener)
            if observation is None or listener.socket.fileno() < 0:
                continue
            length = listener.kind.queue(listener.socket).length
            if length < longest:
                observation.stalled_since = None
            else:
                unmoved.append((listener, length))
        if samples_left and unmoved:
            self._loop.call_later(self._sample_every_s, lambda: self._sample_queues(unmoved, samples_left - 1))
            return
        now = time.time()
        for listener, length in unmoved:
            observation = self._observations[listener]
            if observation.stalled_since is None and not observation.is_orphan:
                observation.stalled_since = now - self._sample_every_s * self._samples
                events.limited(
                    events.warning,
                    "stalled",
                    listener.log_key,
                    address=listener.address,
                    waiting=length,
                    why="no process accepts from its queue",
                )

    def _close_if_orphan_expired(self, listener: Listener) -> None:
        observation, ttl_s = self._observations[listener], self._orphan_ttl_s(listener)
        unheld_s = self._look_began_at - observation.unheld_at
        if not observation.is_orphan or ttl_s is None or unheld_s < ttl_s:
            return
        waiting = listener.kind.queue(listener.socket).length
        del self._observations[listener]
        self._store.close_orphan(listener)
        events.limited(
            events.warning, "orphan-closed", None, address=listener.address, after_s=int(unheld_s), reset=waiting
        )

    def _orphan_ttl_s(self, listener: Listener) -> float | None:
        return orphan_ttl_of(self._orphan_ttls, str(listener.address), listener.labels)

    def _health(self, listener: Listener, observation: _Observation, now: float) -> ListenerHealth:
        queue = listener.kind.queue(listener.socket)
        holders = observation.holders
        if observation.is_orphan:
            state = "orphan"
        elif observation.stalled_since is not None and queue.length:
            state = "stalled"
        elif listener.repaired_at and now - listener.repaired_at < _REPAIRED_S:
            state = "repaired"
        else:
            state = "serving"
        return ListenerHealth(
            address=str(listener.address),
            name=listener.options.name,
            owners=[OwnerStatus(owner.label, owner.uid) for owner in listener.claims],
            state=state,
            queue=queue.length,
            limit=queue.limit,
            backlog_requested=listener.options.backlog,
            v6only=listener.options.v6only,
            drops=listener.kind.drops(listener.socket),
            drops_per_s=observation.drops_per_s,
            handoffs=listener.handoffs,
            created=listener.created,
            cookie=listener.cookie,
            inode=listener.inode,
            holders=None if holders is None else [HolderStatus(each.pid, each.name, each.role) for each in holders],
            orphan_since=observation.unheld_since if observation.is_orphan else None,
            orphan_ttl_s=self._orphan_ttl_s(listener),
            stalled_since=observation.stalled_since,
            repairs=listener.repairs,
            repaired_at=listener.repaired_at or None,
            kept=listener.kept,
        )
