"""Let go of listeners without closing their ports, for the way back to a server that does without a binder."""

from __future__ import annotations

from multibinder.binder import events
from multibinder.binder.claims import Claims, claims_to_drop
from multibinder.binder.durable_records import DurableRecords
from multibinder.binder.listener import Listener
from multibinder.binder.listener_index import ListenerIndex
from multibinder.binder.owner import Owner
from multibinder.binder.shards import Shards
from multibinder.binder.shutdown_watch import WatchShutdowns
from multibinder.wire.messages import ListenerSpec, Released

LEFT_OPEN = "left-open"


class LeavingOpen:
    """Close the binder's and the keeper's copies of listeners; those of other processes serve on.

    The port closes with the last of these copies, as without a binder. Without any, it closes at once, and the clients
    that wait are reset.
    """

    def __init__(
        self,
        index: ListenerIndex,
        shards: Shards,
        claims: Claims,
        durable: DurableRecords,
        watch: WatchShutdowns,
    ) -> None:
        self._index = index
        self._shards = shards
        self._claims = claims
        self._durable = durable
        self._watch = watch

    def leave(self, spec: ListenerSpec, owner: Owner, *, of_any_uid: bool = False) -> Released:
        """Drop the owner's claims on an address, with all of its shards. After the last claim on one, let it go.

        ``of_any_uid`` is as for ``Releases.release``. A listener that drains is left to its drain: clients are turned
        away from it already.
        """
        listener = self._index.find(spec, owner.uid)
        if listener is None or not listener.matches(spec):
            return Released(str(spec.address), "absent")
        outcome = Released(str(listener.address), "absent")
        # With the highest number first, no shard gets another number meanwhile.
        for each in sorted([listener, *self._shards.others(listener)], key=lambda each: each.shard, reverse=True):
            outcome = self._leave_one(each, owner, of_any_uid=of_any_uid)
        return outcome

    def _leave_one(self, listener: Listener, owner: Owner, *, of_any_uid: bool) -> Released:
        dropped = claims_to_drop(listener, owner, of_any_uid=of_any_uid)
        if len(dropped) < len(listener.claims) or listener.draining:
            for claimant in dropped if not listener.draining else ():
                self._claims.remove(listener, claimant)
            self._durable.note([listener.record()], forget=not listener.draining)
            status = listener.status()
            return Released(str(listener.address), "kept", status.owners, status.claims, had_claim=bool(dropped))
        self._claims.remove_all(listener)
        # Record it first: after a crash in between, the socket must not be taken back.
        self._durable.note([listener.record(released=True)])
        self._watch.remove(listener.socket)
        try:
            listener.kind.let_go(listener.socket)
        except OSError as error:
            events.limited(events.warning, "cannot-let-go", None, address=listener.address, why=error.strerror)
        listener.socket.close()
        self._index.remove(listener)
        return Released(str(listener.address), LEFT_OPEN)
