"""The methods about the listeners that a request names: bind, check and release.

Each is a generator: a request about thousands of listeners is answered in steps, between those of other clients.
"""

from __future__ import annotations

import socket
from collections.abc import Collection, Generator, Sequence
from functools import partial
from typing import Protocol

import msgspec

from multibinder.binder.answer import Answer, Reply, refuse, result
from multibinder.binder.bind_refusal import Asker
from multibinder.binder.caller import Caller
from multibinder.binder.counters import RequestCounters
from multibinder.binder.keeper_link import HasDescriptor
from multibinder.binder.keeper_waiters import OnConfirmed
from multibinder.binder.listener import Grant, Listener, Receiver
from multibinder.binder.namespaces import Resolution
from multibinder.binder.owner import Owner, is_privileged, owner_named
from multibinder.binder.policy_in_force import PolicyInForce
from multibinder.binder.request_log import log_grants, log_releases
from multibinder.binder.store import ListenerStore
from multibinder.wire import messages
from multibinder.wire.errors import NotAllowed
from multibinder.wire.listener_params import ListenerParams, check_spec, decode_listener_params
from multibinder.wire.messages import BindResult, Handoff, ListenerSpec, Released, Request
from multibinder.wire.release_params import decode_release_params
from multibinder.wire.transport import MAX_DESCRIPTORS

#: The work of a request, in steps. It returns the answer, or None if that comes later.
Answering = Generator[None, None, Answer | None]

#: As many are bound in a millisecond. If a later one is refused, they are taken back.
_LISTENERS_PER_STEP = 32
_NOT_KEPT = "this listener would not survive a crash of the binder; its log says why"


class StoreDescriptors(Protocol):
    """Stores descriptors where a crash of the binder does not lose them."""

    def keep(self, descriptors: Sequence[tuple[str, HasDescriptor]], confirmed: OnConfirmed, /) -> None:
        """Store (name, descriptor) each, and call ``confirmed`` from the loop with the names that are stored then.

        The descriptors stay the caller's.
        """


class _Asked(msgspec.Struct, frozen=True):
    """One element of a request that the policy allows.

    ``found`` is the listener that the decision was about. ``of_any_uid`` is true for a label by which a privileged
    client may mean any user's.
    """

    spec: ListenerSpec
    owner: Owner
    found: Listener | None
    of_any_uid: bool


class _Outcomes:
    """The outcomes of one request for releases, in the order in which they come.

    ``are_awaited``: the request is gone through, and its answer waits for the rest.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._noted: dict[int, Released] = {}
        self.are_awaited = False

    @property
    def are_complete(self) -> bool:
        return len(self._noted) == self._count

    def note(self, index: int, outcome: Released) -> None:
        self._noted[index] = outcome

    def in_order(self) -> list[Released]:
        return [self._noted[index] for index in range(self._count)]


class ListenerMethods:
    """Answer requests about listeners.

    ``keeper`` stores new ones before they are handed over; None if there is no keeper.
    """

    def __init__(
        self,
        store: ListenerStore,
        *,
        policy: PolicyInForce,
        counters: RequestCounters,
        keeper: StoreDescriptors | None,
    ) -> None:
        self._store = store
        self._policy = policy
        self._counters = counters
        self._keeper = keeper

    def bind(self, request: Request, caller: Caller, reply: Reply) -> Answering:
        with Resolution(self._socket_in) as namespaces:
            return (yield from self._bind(request, caller, reply, namespaces))

    def _bind(self, request: Request, caller: Caller, reply: Reply, namespaces: Resolution) -> Answering:
        params = decode_listener_params(request.params)
        asked = yield from self._allowed(params, caller, "bind", namespaces)
        grants: list[Grant] = []
        try:
            for first in range(0, len(asked), _LISTENERS_PER_STEP):
                if first:
                    yield
                some = asked[first : first + _LISTENERS_PER_STEP]
                self._require_still_allowed(caller, "bind", some)
                grants += self._grant(request, caller, some)
        except Exception:
            yield from self._store.handoffs.take_back_in_steps(grants)
            raise
        self._counters.count_handoffs(len(grants))
        log_grants(grants, caller)
        wanted = {(each.spec, each.owner) for each in asked if each.spec.shards is not None and not each.spec.shard}
        not_kept = [grant.listener for grant in grants if not grant.listener.kept]
        if not not_kept or self._keeper is None:
            return self._hand_over(request, grants, wanted, "")

        def confirmed(kept: Collection[str]) -> None:
            for listener in not_kept:
                listener.note_kept(kept)
            reply(self._hand_over(request, grants, wanted, _NOT_KEPT))

        # The client gets its answer after the keeper has the listeners: a crash of the binder cannot lose them then.
        self._keeper.keep([listener.for_keeper() for listener in not_kept], confirmed)
        return None

    def check(self, request: Request, caller: Caller, reply: Reply) -> Answering:
        with Resolution(self._socket_in) as namespaces:
            return (yield from self._check(request, caller, reply, namespaces))

    def _check(self, request: Request, caller: Caller, reply: Reply, namespaces: Resolution) -> Answering:
        params = decode_listener_params(request.params)
        asked = yield from self._allowed(params, caller, "bind", namespaces)
        attempt = self._store.attempt(self._asker(caller))
        try:
            for each in asked:
                yield
                attempt.require_possible(attempt.find_or_open([each.spec], [each.owner]))
            yield from attempt.close_in_steps()
        finally:
            attempt.close()
        return result(request.id, True)

    def release(self, request: Request, caller: Caller, reply: Reply) -> Answering:
        params = decode_release_params(request.params)
        if any(element.leave_open for element in params) and not is_privileged(caller.uid):
            raise NotAllowed(
                "Not allowed to leave a listener open: only root and the binder's own user may, because the port stays "
                "open without a claim; release it without leave_open",
                messages.NOT_ALLOWED,
            )
        with Resolution(self._socket_in) as namespaces:
            asked = yield from self._allowed(params, caller, "release", namespaces)
        outcomes = _Outcomes(len(asked))

        def finish() -> Answer:
            log_releases(outcomes.in_order(), [each.owner for each in asked], caller)
            return result(request.id, outcomes.in_order())

        def note(index: int, outcome: Released) -> None:
            outcomes.note(index, outcome)
            if outcomes.are_awaited and outcomes.are_complete:
                reply(finish())

        for index, (each, element) in enumerate(zip(asked, params, strict=True)):
            yield
            if self._store.find(each.spec, each.owner.uid) is not None:  # else there is nothing to release any more
                self._require_still_allowed(caller, "release", [each])
            if element.leave_open:
                left = self._store.releases.leaving_open.leave(each.spec, each.owner, of_any_uid=each.of_any_uid)
                outcomes.note(index, left)
                continue
            if each.spec.shards is not None:
                self._store.releases.release_others(
                    each.spec, each.owner, of_any_uid=each.of_any_uid, drain_s=element.drain
                )
            outcome = self._store.releases.release(
                each.spec, each.owner, partial(note, index), of_any_uid=each.of_any_uid, drain_s=element.drain
            )
            if outcome is not None:
                outcomes.note(index, outcome)
        if outcomes.are_complete:
            return finish()
        outcomes.are_awaited = True
        return None

    def _grant(self, request: Request, caller: Caller, asked: Sequence[_Asked]) -> list[Grant]:
        return self._store.bind(
            [each.spec for each in asked],
            [each.owner for each in asked],
            asker=self._asker(caller),
            receiver=Receiver(caller.connection, request.id, request.acknowledge, caller.pid),
            # SO_PEERCRED shows a process that our PID namespace does not have with the PID 0 (unix(7)).
            held_outside_pid_namespace=not caller.pid,
        )

    def _hand_over(
        self, request: Request, grants: Sequence[Grant], wanted: Collection[tuple[ListenerSpec, Owner]], caution: str
    ) -> Answer:
        """Return the answer that carries the descriptors. ``caution`` is for listeners that the keeper does not have.

        ``wanted`` are elements that say how many shards their owner has: further ones are released.

        If one of them was released meanwhile, the answer is a refusal, and the others are taken back.
        """
        if gone := [str(grant.listener.address) for grant in grants if not grant.stands]:
            self._store.handoffs.take_back(grants)
            sentence = "released by its owner before it could be handed over; ask again"
            return refuse(request.id, messages.COULD_NOT_BIND, f"Could not bind: {', '.join(gone)}: {sentence}")
        for spec, owner in wanted:
            self._store.releases.release_others(spec, owner)
        acknowledge = request.acknowledge and any(grant.is_pending for grant in grants)
        bound = BindResult([_handoff(grant, caution) for grant in grants], len(grants), acknowledge)
        descriptors = [grant.listener.socket.fileno() for grant in grants]
        parts = [(messages.encode_result(request.id, bound), descriptors[:MAX_DESCRIPTORS])]
        for first in range(MAX_DESCRIPTORS, len(descriptors), MAX_DESCRIPTORS):
            parts.append((messages.encode_continuation(first), descriptors[first : first + MAX_DESCRIPTORS]))
        return Answer(parts, grants, request.id, acknowledge)

    def _socket_in(self, netns: int) -> socket.socket | None:
        """Return the socket of a listener in the network namespace with this cookie; None if there is none."""
        return next((listener.socket for listener in self._store.listeners() if listener.netns == netns), None)

    def _asker(self, caller: Caller) -> Asker:
        return Asker(caller.uid, lambda listener: self._policy.may_know(caller, listener))

    def _allowed(
        self, params: Sequence[ListenerParams], caller: Caller, method: str, namespaces: Resolution
    ) -> Generator[None, None, list[_Asked]]:
        """Return the elements of a request, after the policy allowed ``method`` for all of them.

        Raises InvalidParamsError, NotAllowed with the first refusal, and RequestError for an owner of another uid or a
        network namespace that cannot be used.
        """
        specs: list[tuple[ListenerSpec, Owner, bool]] = []
        is_any = is_privileged(caller.uid)
        for index, element in enumerate(params):
            yield
            spec, owner = check_spec(index, element), owner_named(element.owner, caller.uid)
            if spec.netns:
                # What a client may not name is not opened.
                self._policy.require_may_name(caller, method, spec.netns)
                name = namespaces.canonical(spec.netns, is_guest=caller.is_guest, to_open=method == "bind")
                spec = msgspec.structs.replace(spec, netns=name)
            specs.append((spec, owner, is_any and ":" not in element.owner))
        asked: list[_Asked] = []
        for spec, owner, of_any_uid in specs:
            yield
            found = self._store.find(spec, owner.uid)
            self._policy.require_allowed_for(caller, method, spec, found)
            asked.append(_Asked(spec, owner, found, of_any_uid))
        return asked

    def _require_still_allowed(self, caller: Caller, method: str, asked: Sequence[_Asked]) -> None:
        """Raise NotAllowed if a spec finds another listener than the policy has decided about, and may not."""
        for each in asked:
            found = self._store.find(each.spec, each.owner.uid)
            if found is not each.found:
                self._policy.require_allowed_for(caller, method, each.spec, found)


def _handoff(grant: Grant, caution: str) -> Handoff:
    warning = "; ".join(filter(None, [grant.warning, caution if not grant.listener.kept else ""])) or None
    return Handoff(str(grant.listener.address), grant.backlog, grant.created, warning)
