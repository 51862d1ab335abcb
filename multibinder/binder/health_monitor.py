"""The health of listeners: their holders, whether a process accepts from them, and what they dropped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from multibinder.binder import events
from multibinder.binder.holder_scan import HolderScan
from multibinder.binder.listener import Listener
from multibinder.binder.loop import Loop
from multibinder.binder.namespace_names import name_of
from multibinder.binder.observation import Observation
from multibinder.binder.orphan_ttl import OrphanTtl, orphan_ttl_of
from multibinder.binder.queue_samples import QueueSamples
from multibinder.binder.slices import Slices
from multibinder.binder.store import ListenerStore
from multibinder.observe.holders import Holders
from multibinder.wire.status import HolderStatus, ListenerHealth

#: A listener is shown as repaired for this long after a repair.
_REPAIRED_S = 3600.0
#: After a full look, the next one begins when its duration has passed again, but after a second at most. However many
#: clients ask, looks leave the host half of a core.
_LONGEST_REST_S = 1.0

OnLooked = Callable[[], None]


class HealthMonitor:
    """Looks at all listeners, and closes orphans whose time to live is over.

    A regular look costs what there are listeners: it verifies one known holder of each, and searches the processes of
    the host only for listeners that have none left. A full look searches for all holders of all listeners.

    ``grace_s`` is explained at ``settings.Timings``. A queue that is not empty is sampled every ``sample_every_s``;
    its listener is stalled if the queue has not become shorter in any of ``samples`` samples.
    """

    def __init__(
        self,
        loop: Loop,
        slices: Slices,
        store: ListenerStore,
        scan: HolderScan,
        orphan_ttls: Sequence[OrphanTtl] = (),
        *,
        grace_s: float = 10.0,
        sample_every_s: float = 0.05,
        samples: int = 20,
    ) -> None:
        self._loop = loop
        self._slices = slices
        self._store = store
        self._scan = scan
        self._orphan_ttls = orphan_ttls
        self._grace_s = grace_s
        self._observations: dict[Listener, Observation] = {}
        self._samples = QueueSamples(loop, slices, self._observations, sample_every_s, samples)
        self._is_looking = False
        # Those who wait for the next full look, and for the end of the one that is under way.
        self._asked: list[OnLooked] = []
        self._waiting: list[OnLooked] = []
        self._rests_until = 0.0
        self._extra_look_is_due = False
        self._looked_at: float | None = None

    @property
    def looked_at(self) -> float | None:
        """Return the time of the last full look that was complete, in seconds since the epoch; None before the first.

        A regular look in which every listener was searched for is a full one.
        """
        return self._looked_at

    def look_regularly(self) -> None:
        """Begin a regular look, unless a look is under way."""
        if not self._is_looking:
            self._begin(full=False)

    def look(self, on_looked: OnLooked = lambda: None) -> None:
        """Begin a full look now or soon. ``on_looked`` is called from the loop when it is over, also after a failure.

        All who ask before it begins wait for the same one.
        """
        if not len(self._store):
            self._observations.clear()
            self._loop.call_later(0, on_looked)
            return
        self._asked.append(on_looked)
        if len(self._asked) == 1:
            self._begin_full_look()

    def repair(self) -> None:
        """Let every listener listen with its own backlog again if a holder changed that."""
        self._slices.run(self._store.repair_in_steps())

    def stop(self) -> None:
        """End a look that is under way. Its callers are not told."""
        self._scan.stop()

    def health(self, listeners: Sequence[Listener]) -> list[ListenerHealth]:
        """Return the health of listeners, as ``health_of`` does."""
        return [self.health_of(listener) for listener in listeners]

    def health_of(self, listener: Listener) -> ListenerHealth:
        """Return the health of a listener: holders as of the last look, queue and drops as of now."""
        observation = self._observations.get(listener) or Observation(0, 0.0)
        return self._health(listener, observation, time.time())

    def _begin_full_look(self) -> None:
        rest_s = self._rests_until - time.monotonic()
        if not self._is_looking and self._asked and rest_s <= 0:
            self._begin(full=True)
        elif not self._is_looking and self._asked:
            self._loop.call_later(rest_s, self._begin_full_look)

    def _begin(self, *, full: bool) -> None:
        self._is_looking = True
        if full:
            self._waiting, self._asked = self._asked, []
        self._run(self._look(full), full)

    def _run(self, steps: Iterator[None], full: bool) -> None:
        def to_the_end() -> Iterator[None]:
            try:
                yield from steps
            except Exception:  # A bug. The loop logs it; later looks must not wait for this one.
                self._end(time.monotonic(), full)
                raise

        self._slices.run(to_the_end())

    def _look(self, full: bool) -> Iterator[None]:
        """Count drops, verify known holders, and choose the listeners whose holders must be searched for."""
        began_at = time.monotonic()
        listeners = self._store.listeners()
        for gone in self._observations.keys() - set(listeners):
            del self._observations[gone]
        waiting: list[tuple[Listener, int]] = []
        wanted: list[Listener] = []
        inodes: list[int] = []
        candidates: set[int] = set()
        for listener in listeners:
            yield
            if listener.socket.fileno() < 0:
                continue  # released since the look began
            observation = self._observations.get(listener)
            if observation is None:
                observation = self._observations[listener] = Observation(0, 0.0)
            observation.count_drops(listener)
            if length := listener.kind.queue(listener.socket).length:
                waiting.append((listener, length))
            else:
                observation.stalled_since = None
            if observation.must_be_searched(listener) or full:
                wanted.append(listener)
                inodes.append(listener.inode)
                candidates |= observation.candidates(listener)
        self._samples.start(waiting)
        if not wanted:
            self._end(began_at, full)
            return
        searched_at = time.monotonic()

        def note(found: Holders | None) -> None:
            if found is None:
                self._end(began_at, full)
            else:
                if len(wanted) == len(listeners):
                    self._looked_at = time.time()
                self._run(self._note(wanted, found, searched_at, began_at, full), full)

        self._scan.start(inodes, () if full else candidates, note)

    def _note(
        self, searched: Sequence[Listener], found: Holders, searched_at: float, began_at: float, full: bool
    ) -> Iterator[None]:
        """Note the holders of the listeners that were searched for, and close orphans that have lived long enough."""
        for listener in searched:
            yield
            observation = self._observations.get(listener)
            if observation is None or listener.socket.fileno() < 0:
                continue
            ttl_s = self._orphan_ttl_s(listener)
            observation.note_search(listener, found, searched_at, self._grace_s, ttl_s)
            if observation.unheld_since is not None and not observation.is_orphan:
                self._look_again(observation.unheld_at + self._grace_s)
            # Only after a search which has just confirmed that no process has it open, and no handoff since.
            unheld_s = observation.age_as_orphan_s(searched_at)
            if ttl_s is not None and 0 < unheld_s >= ttl_s and listener.last_handoff_at < searched_at:
                self._close_orphan(listener, unheld_s)
        self._end(began_at, full)

    def _end(self, began_at: float, full: bool) -> None:
        self._is_looking = False
        if full:
            now = time.monotonic()
            self._rests_until = now + min(_LONGEST_REST_S, now - began_at)
        waiting, self._waiting = self._waiting, []
        for on_looked in waiting:
            self._loop.call_later(0, on_looked)  # so that one that fails costs no other
        self._begin_full_look()

    def _look_again(self, at: float) -> None:
        """Look again when the grace of a listener without a holder ends, rather than at the next regular look."""
        if self._extra_look_is_due:
            return

        def look() -> None:
            self._extra_look_is_due = False
            self.look_regularly()

        self._extra_look_is_due = True
        self._loop.call_later(max(0.0, at - time.monotonic()), look)

    def _close_orphan(self, listener: Listener, unheld_s: float) -> None:
        waiting = listener.kind.queue(listener.socket).length
        del self._observations[listener]
        self._store.close_orphan(listener)
        events.limited(
            events.warning, "orphan-closed", None, address=listener.address, after_s=int(unheld_s), reset=waiting
        )

    def _orphan_ttl_s(self, listener: Listener) -> float | None:
        return orphan_ttl_of(self._orphan_ttls, str(listener.address), listener.labels) if self._orphan_ttls else None

    def _health(self, listener: Listener, observation: Observation, now: float) -> ListenerHealth:
        kind = listener.kind
        queue = kind.queue(listener.socket)
        holders = observation.holders
        if listener.draining:
            state = "draining"
        elif observation.is_orphan:
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
            owners=[] if listener.draining else listener.owners,
            state=state,
            queue=queue.length if kind.tells_queue_at(listener.address) else None,
            limit=queue.limit if kind.tells_queue_at(listener.address) else None,
            backlog_requested=listener.options.backlog,
            v6only=listener.options.v6only,
            drops=kind.drops(listener.socket) if kind.tells_drops else None,
            drops_per_s=observation.drops_per_s if kind.tells_drops else None,
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
            kind=kind.name,
            shard=listener.shard,
            netns=listener.netns,
            netns_name=name_of(listener.netns),
            options=listener.options.given,
            accepts=kind.accepts(listener.address),
        )
