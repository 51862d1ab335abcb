"""Release listeners: at once, or after their holders have accepted the clients that wait (a drain).

During a drain the listener keeps its address and its claims, which show who released it. No new client of another host
is let in, and one of this host only while no client waits. Its record says that it is released: a crash ends the drain.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

import msgspec

from multibinder.binder import events
from multibinder.binder.claims import Claims, claims_to_drop
from multibinder.binder.durable_records import DurableRecords
from multibinder.binder.events import CallLater
from multibinder.binder.failures import callback_failed
from multibinder.binder.leaving_open import LeavingOpen
from multibinder.binder.listener import Listener
from multibinder.binder.listener_index import ListenerIndex
from multibinder.binder.owner import Owner
from multibinder.binder.shards import Shards
from multibinder.binder.shutdown_watch import WatchShutdowns
from multibinder.kernel import disconnect as _disconnect  # noqa: F401  # parking must not import it first
from multibinder.wire.messages import ListenerSpec, Released

#: The kernel does not tell when a queue becomes empty. The queues are read again and again, some in each turn, with a
#: pause of a hundredth of the time since the last drain began.
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S, _TURN_S = 0.01, 0.25, 0.001
#: A shard whose clients cannot be moved is drained for this time at most, if its release asks for no drain.
_SHARD_DRAIN_S = 5.0

#: Takes the outcome of a release that ends later. Called from the loop.
TellReleased = Callable[[Released], None]


class _Drain(msgspec.Struct, eq=False):
    """A drain. ``until`` is its end at the latest; until ``settled_at`` handshakes may still end. Times are those of
    time.monotonic(). ``tell`` are those who wait for the end. ``for_shards``: nobody has asked for it; it ends when no
    other shard stays."""

    until: float
    settled_at: float
    for_shards: bool
    tell: list[TellReleased] = []


class Releases:
    """Release and close the listeners of ``index``."""

    def __init__(
        self,
        index: ListenerIndex,
        shards: Shards,
        claims: Claims,
        durable: DurableRecords,
        watch: WatchShutdowns,
        call_later: CallLater,
    ) -> None:
        self._index = index
        self._shards = shards
        self._claims = claims
        self._durable = durable
        self._watch = watch
        self._call_later = call_later
        self.leaving_open = LeavingOpen(index, shards, claims, durable, watch)
        self._drains: dict[Listener, _Drain] = {}
        self._last_began_at = 0.0
        self._is_due = False

    def release(
        self, spec: ListenerSpec, owner: Owner, tell: TellReleased, *, of_any_uid: bool = False, drain_s: float = 0.0
    ) -> Released | None:
        """Drop the owner's claim. After the last claim, close the port for every holder, or begin a drain.

        ``of_any_uid``: if that owner has no claim, drop the claims of all other users that have the same label. Returns
        None if the listener drains, for ``drain_s`` seconds at most: ``tell`` is called with the outcome later. A
        listener that drains already does so until then instead.
        """
        listener = self._index.find(spec, owner.uid)
        if listener is None or not listener.matches(spec):
            return Released(str(spec.address), "absent")
        address = str(listener.address)
        dropped = claims_to_drop(listener, owner, of_any_uid=of_any_uid)
        if len(dropped) < len(listener.claims):
            if dropped and not listener.draining:
                for claimant in dropped:
                    self._claims.remove(listener, claimant)
                self._durable.note([listener.record()])
            status = listener.status()
            return Released(address, "kept", status.owners, status.claims, had_claim=bool(dropped))
        # Also a listener that had no claim at all, of a damaged record.
        if (drain_s <= 0 and not self._shards.has_to_drain(listener)) or self._shards.gives_clients_away(listener):
            return Released(address, "closed", reset=self.close(listener))
        self._drain(listener, owner, drain_s, tell)
        return None

    def release_others(
        self, spec: ListenerSpec, owner: Owner, *, of_any_uid: bool = False, drain_s: float = 0.0
    ) -> None:
        """Release the other listeners on an address whose number is ``spec.shards`` or more, as ``release`` does.

        The clients of one that is closed go to those that stay.
        """
        found = self._index.find(spec, owner.uid)
        for each in reversed(self._shards.others(found)) if found is not None else ():
            if each.shard >= (spec.shards or 0) and not each.draining:
                one = ListenerSpec(each.address, shard=each.shard, netns=spec.netns)
                self.release(one, owner, lambda _: None, of_any_uid=of_any_uid, drain_s=drain_s)

    def close(self, listener: Listener) -> int:
        """Close a port for every holder, and end its drain. Return how many clients were waiting, and are reset.

        The clients of a shard go to another one if the kernel can do that (inet_csk_listen_stop() in
        net/ipv4/inet_connection_sock.c).
        """
        others = self._shards.others(listener)
        are_moved = bool(others) and self._shards.moves_clients(listener)
        if listener.draining:
            # Its record says already that it is released. A client that comes between a look at the queue and the end
            # of the port is reset.
            waiting = _retire(listener)
            self._note_released(listener)
        else:
            # Record it first: after a crash in between, the socket must not be restored if it turns up again.
            self._note_released(listener)
            waiting = _retire(listener)
        if others:
            # A client that receives it only now must not let it listen (``wire/listener.py``).
            listener.kind.end_sharing(listener.socket)
        self._watch.remove(listener.socket)
        listener.socket.close()
        self._index.remove(listener)
        reset = 0 if are_moved else waiting
        self._tell(listener, Released(str(listener.address), "closed", reset=reset))
        self._shards.note_closed(listener, others)
        self._end_shard_drains(others)
        return reset

    def resume(self, listeners: Iterable[Listener]) -> list[Listener]:
        """Let clients in again, of those of these listeners that drain. Return these.

        One for which the kernel refuses that is closed. Call ``take_back`` for each of the others, or ``drain_again``.
        """
        resumed = []
        for listener in dict.fromkeys(listeners):
            if not listener.draining:
                continue
            try:
                listener.kind.let_in(listener.socket)
            except OSError as error:
                reset = self.close(listener)
                why = f"it is bound again, and cannot be let in new clients: {error.strerror}"
                events.warning("drain-ended", address=listener.address, reset=reset, why=why)
            else:
                resumed.append(listener)
        return resumed

    def take_back(self, listener: Listener, uid: int) -> None:
        """End the drain of a listener that was resumed: ``uid`` binds it again. The released claims go."""
        listener.draining = False
        self._shards.steer(listener)
        self._claims.remove_all(listener)
        if listener.options.name and listener.name_uid != uid:
            self._index.rename(listener, None, 0)

    def tell_taken_back(self, listeners: Iterable[Listener]) -> None:
        """Tell those who wait for the end of the drain who has the listener now."""
        for listener in listeners:
            events.limited(events.info, "drain-ended", listener.log_key, address=listener.address, why="bound again")
            self._tell(listener, Released(str(listener.address), "kept", listener.labels, listener.owners))

    def drain_again(self, listeners: Iterable[Listener]) -> None:
        """Go on with the drains of listeners that were resumed."""
        for listener in listeners:
            self._turn_away(listener)

    def end_drains(self) -> None:
        """Close all listeners that drain, at once."""
        for listener in list(self._drains):
            self.close(listener)

    def _drain(self, listener: Listener, owner: Owner, drain_s: float, tell: TellReleased) -> None:
        """Begin a drain, or set the end of one. A drain of 0 s is one that a shard needs, whose clients stay in it."""
        now, for_shards = time.monotonic(), drain_s <= 0
        drain_s = drain_s if drain_s > 0 else _SHARD_DRAIN_S
        drain = self._drains.get(listener)
        if drain is None:
            listener.draining = True
            # The keeper has the socket still: after a crash, the next binder closes the port.
            self._durable.note([listener.record()], forget=False)
            drain = self._drains[listener] = _Drain(0.0, now + self._turn_away(listener), for_shards)
        drain.until = now + drain_s
        self._last_began_at = now
        drain.for_shards &= for_shards
        drain.tell.append(tell)
        events.limited(
            events.info,
            "draining",
            owner.uid,
            address=listener.address,
            owner=owner.label or "-",
            waiting=listener.kind.queue(listener.socket).length,
            drain_s=drain_s,
        )
        self._look_later(0)

    def _note_released(self, listener: Listener) -> None:
        self._claims.remove_all(listener)
        self._durable.note([listener.record(released=True)])

    def _turn_away(self, listener: Listener) -> float:
        others = self._shards.others(listener)
        if others and (steered_s := self._shards.steer(listener)) is not None:
            return steered_s
        settled_s = 0.0
        for each in (listener, *others):
            if each.draining:
                try:
                    settled_s = max(settled_s, each.kind.turn_away(each.socket))
                except OSError as error:
                    why = error.strerror
                    events.limited(events.warning, "cannot-turn-away", None, address=each.address, why=why)
        return settled_s

    def _end_shard_drains(self, others: Sequence[Listener]) -> None:
        """End what only the other shards needed, if none of them stays; the others let nobody in any more."""
        if any(not each.draining for each in others):
            return
        for each in others:
            drain = self._drains.get(each)
            if drain is not None and drain.for_shards:
                self.close(each)
                return  # that has seen to the rest
        if others:
            self._turn_away(others[0])

    def _tell(self, listener: Listener, outcome: Released) -> None:
        drain = self._drains.pop(listener, None)
        for tell in drain.tell if drain is not None else ():
            try:
                tell(outcome)
            except Exception as error:  # the others must not wait for ever
                callback_failed(tell, error)

    def _look_later(self, seconds: float) -> None:
        if self._drains and not self._is_due:
            self._is_due = True
            self._call_later(seconds, self._look)

    def _look(self) -> None:
        """Close listeners whose drain is over, for a millisecond at most."""
        self._is_due = False
        began = now = time.monotonic()
        has_closed = False
        try:
            for _ in range(len(self._drains)):
                listener, drain = next(iter(self._drains.items()))
                # It goes to the end of the order: the next turn begins with the others.
                self._drains[listener] = self._drains.pop(listener)
                if _is_over(listener, drain, now):
                    self.close(listener)
                    has_closed = True
                if (now := time.monotonic()) - began > _TURN_S:
                    break
        finally:
            pause_s = min(max((now - self._last_began_at) / 100, _SHORTEST_PAUSE_S), _LONGEST_PAUSE_S)
            self._look_later(now - began if has_closed else pause_s)


def _retire(listener: Listener) -> int:
    """Let the kernel refuse clients. Return how many were waiting."""
    waiting = 0
    try:
        queue = listener.kind.queue(listener.socket)
        # Datagrams that wait are not reset: the holders can still receive them.
        waiting = queue.length if queue.ready and listener.kind.accepts(listener.address) else 0
        # Holders have copies, so close(2) alone would leave the port open. New clients must be refused at once.
        listener.kind.retire(listener.socket)
    except OSError as error:
        events.limited(events.warning, "shutdown-failed", None, address=listener.address, error=error.strerror)
    return waiting


def _is_over(listener: Listener, drain: _Drain, now: float) -> bool:
    queue = listener.kind.queue(listener.socket)
    # A holder may have shut it down. Those who waited were reset then.
    return now >= drain.until or not queue.ready or (queue.length == 0 and now >= drain.settled_at)
