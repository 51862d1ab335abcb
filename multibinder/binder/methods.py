"""The methods of the control socket: from a request to its answer."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import msgspec

from multibinder.binder import events
from multibinder.binder.address_search import TellHolders
from multibinder.binder.answer import Answer, Pieces, Reply, listing, refuse, result
from multibinder.binder.bind_refusal import AddressInUse, Asker
from multibinder.binder.caller import Caller
from multibinder.binder.counters import RequestCounters
from multibinder.binder.failures import told
from multibinder.binder.keeper import OnConfirmed
from multibinder.binder.keeper_link import HasDescriptor
from multibinder.binder.listener import Grant, Listener, Receiver
from multibinder.binder.listings import DescribeListeners, StatusSource
from multibinder.binder.move import move
from multibinder.binder.owner import Owner, is_privileged, owner_named
from multibinder.binder.policy_in_force import PolicyInForce
from multibinder.binder.request_log import log_grants, log_releases
from multibinder.binder.store import ListenerStore
from multibinder.wire import messages
from multibinder.wire.addresses import Address
from multibinder.wire.errors import RequestError
from multibinder.wire.messages import (
    BindResult,
    Handoff,
    Hello,
    InvalidParamsError,
    ListenerSpec,
    Request,
    Upgrade,
)
from multibinder.wire.status_params import decode_status_params
from multibinder.wire.transport import MAX_DESCRIPTORS

#: Called with the version of the new code after its rehearsal; or with None and the reason why it cannot be used.
OnRehearsed = Callable[[str | None, str], None]

_NOT_KEPT = "this listener would not survive a crash of the binder; its log says why"


class StoreDescriptors(Protocol):
    """Stores descriptors where a crash of the binder does not lose them."""

    def keep(self, descriptors: Sequence[tuple[str, HasDescriptor]], confirmed: OnConfirmed, /) -> None:
        """Store (name, descriptor) each, and call ``confirmed`` from the loop with the names that are stored then.

        The descriptors stay the caller's.
        """


class SearchHolders(Protocol):
    """Searches for the processes that have an address."""

    def begin(self, address: Address, uid: int, tell: TellHolders, /) -> bool:
        """Search on behalf of ``uid``, and ``tell`` the names later. Returns False if there is no search now."""


class Upgrader(Protocol):
    """Replaces the running code by the installed one."""

    def upgrade(self, on_rehearsed: OnRehearsed, /) -> None:
        """Rehearse the new code, tell ``on_rehearsed`` the outcome, and upgrade if the rehearsal succeeded."""


class Methods:
    """Answer requests.

    ``keeper`` stores the descriptors of new listeners before they are handed over; None if there is no keeper.
    ``upgrade_failure`` tells why the last upgrade failed, if it began and this version goes on.
    """

    def __init__(
        self,
        store: ListenerStore,
        version: str,
        *,
        policy: PolicyInForce,
        counters: RequestCounters,
        status_source: StatusSource,
        listings: DescribeListeners,
        search: SearchHolders,
        upgrader: Upgrader,
        keeper: StoreDescriptors | None,
        upgrade_failure: str | None = None,
    ) -> None:
        self._store = store
        self._version = version
        self._policy = policy
        self._counters = counters
        self._status_source = status_source
        self._listings = listings
        self._search = search
        self._upgrader = upgrader
        self._keeper = keeper
        self._upgrade_failure = upgrade_failure
        self._methods: dict[str, Callable[[Request, Caller, Reply], Answer | None]] = {
            "hello": self._hello,
            "bind": self._bind,
            "check": self._check,
            "list": self._list,
            "release": self._release,
            "status": self._status,
            "upgrade": self._upgrade,
            "move": self._move,
        }

    def answer(self, text: bytes, caller: Caller, reply: Reply) -> Answer | None:
        """Return the answer to one message, or None if ``reply`` gets it later. An error is an answer too."""
        try:
            request = messages.decode_request(text)
        except msgspec.ValidationError as error:
            return self._refuse_invalid(None, messages.INVALID_REQUEST, f"not a JSON-RPC request: {error}")
        except msgspec.DecodeError as error:
            return self._refuse_invalid(None, messages.PARSE_ERROR, f"not JSON: {error}")
        method = self._methods.get(request.method)
        if method is None:
            self._counters.count_request("other")
            known = ", ".join(self._methods)
            sentence = f"Method not found: {request.method[:64]!r}; this binder knows {known}"
            return self._refuse_invalid(request.id, messages.METHOD_NOT_FOUND, sentence)
        self._counters.count_request(request.method)
        began = time.perf_counter()
        try:
            return method(request, caller, reply)
        except InvalidParamsError as error:
            return self._refuse_invalid(request.id, messages.INVALID_PARAMS, f"Invalid params: {error}")
        except AddressInUse as error:
            return self._refuse_in_use(request, caller, reply, error)
        except RequestError as error:
            return self._refuse(request, caller, error)
        except Exception as error:  # A bug of the binder. The other clients and all listeners must outlive it.
            self._counters.count_refusal("internal")
            events.limited(
                events.error, "internal-error", caller.uid, method=request.method, pid=caller.pid, **told(error)
            )
            return refuse(request.id, messages.INTERNAL_ERROR, f"Internal error: {error!r}; please report it")
        finally:
            self._counters.observe_request(time.perf_counter() - began)

    def _refuse(self, request: Request, caller: Caller, error: RequestError) -> Answer:
        self._counters.count_error(error)
        events.complaint("refused", caller, method=request.method, why=error)
        return refuse(request.id, error.code, str(error), dict(error.data) or None)

    def _refuse_in_use(self, request: Request, caller: Caller, reply: Reply, error: AddressInUse) -> Answer | None:
        """Refuse when it is known which process has the address; at once if nothing is searched for now."""

        def tell(holders: str | None) -> None:
            reply(self._refuse(request, caller, AddressInUse(error.bound, holders)))

        return None if self._search.begin(error.bound, caller.uid, tell) else self._refuse(request, caller, error)

    def _refuse_invalid(self, request_id: messages.Id, code: int, sentence: str) -> Answer:
        self._counters.count_refusal("invalid")
        return refuse(request_id, code, sentence)

    def _hello(self, request: Request, caller: Caller, reply: Reply) -> Answer:
        hello = Hello(
            "multibinder",
            self._version,
            messages.PROTOCOL,
            os.getpid(),
            list(self._methods),
            uid=caller.uid,
            upgrade_failure=self._upgrade_failure,
        )
        return result(request.id, hello)

    def _bind(self, request: Request, caller: Caller, reply: Reply) -> Answer | None:
        specs, owners, _ = self._allowed_params(request, caller, "bind")
        # SO_PEERCRED shows a process that our PID namespace does not have with the PID 0 (unix(7)).
        outside = not caller.pid
        grants = self._store.bind(
            specs,
            owners,
            asker=self._asker(caller),
            receiver=Receiver(caller.connection, request.id, request.acknowledge, caller.pid),
            held_outside_pid_namespace=outside,
        )
        self._counters.count_handoffs(len(grants))
        log_grants(grants, caller)
        not_kept = [grant.listener for grant in grants if not grant.listener.kept]
        if not not_kept or self._keeper is None:
            return self._hand_over(request, grants, "")

        def confirmed(kept: Collection[str]) -> None:
            for listener in not_kept:
                listener.note_kept(kept)
            reply(self._hand_over(request, grants, _NOT_KEPT))

        # The client gets its answer after the keeper has the listeners: a crash of the binder cannot lose them then.
        self._keeper.keep([listener.for_keeper() for listener in not_kept], confirmed)
        return None

    def _hand_over(self, request: Request, grants: Sequence[Grant], caution: str) -> Answer:
        """Return the answer that carries the descriptors. ``caution`` is for listeners that the keeper does not have.

        If one of them was released meanwhile, the answer is a refusal, and the others are taken back.
        """
        if gone := [str(grant.listener.address) for grant in grants if not grant.stands]:
            self._store.handoffs.take_back(grants)
            sentence = "released by its owner before it could be handed over; ask again"
            return refuse(request.id, messages.COULD_NOT_BIND, f"Could not bind: {', '.join(gone)}: {sentence}")
        acknowledge = request.acknowledge and any(grant.is_pending for grant in grants)
        bound = BindResult([_handoff(grant, caution) for grant in grants], len(grants), acknowledge)
        descriptors = [grant.listener.socket.fileno() for grant in grants]
        parts = [(messages.encode_result(request.id, bound), descriptors[:MAX_DESCRIPTORS])]
        for first in range(MAX_DESCRIPTORS, len(descriptors), MAX_DESCRIPTORS):
            parts.append((messages.encode_continuation(first), descriptors[first : first + MAX_DESCRIPTORS]))
        return Answer(parts, grants, request.id, acknowledge)

    def _check(self, request: Request, caller: Caller, reply: Reply) -> Answer:
        specs, owners, _ = self._allowed_params(request, caller, "bind")
        self._store.check(specs, owners, asker=self._asker(caller))
        return result(request.id, True)

    def _release(self, request: Request, caller: Caller, reply: Reply) -> Answer:
        specs, owners, are_of_any_uid = self._allowed_params(request, caller, "release")
        outcomes = [
            self._store.release(spec, owner, of_any_uid=of_any_uid)
            for spec, owner, of_any_uid in zip(specs, owners, are_of_any_uid, strict=True)
        ]
        log_releases(outcomes, owners, caller)
        return result(request.id, outcomes)

    def _move(self, request: Request, caller: Caller, reply: Reply) -> Answer:
        return result(request.id, move(self._store, self._policy, request, caller))

    def _list(self, request: Request, caller: Caller, reply: Reply) -> None:
        self._policy.require_allowed(caller, "list")

        def tell(text: bytes | None) -> None:
            reply(self._listing(request, None if text is None else (b"", text, b"")))

        self._listings.ask("list", caller, Listener.status, tell)

    def _status(self, request: Request, caller: Caller, reply: Reply) -> None:
        self._policy.require_allowed(caller, "status")
        params = decode_status_params(request.params)
        self._status_source.status(caller, lambda status: reply(self._listing(request, status)), fresh=params.fresh)

    def _listing(self, request: Request, pieces: Pieces | None) -> Answer:
        if pieces is not None:
            return listing(request.id, pieces)
        self._counters.count_refusal("internal")
        return refuse(request.id, messages.INTERNAL_ERROR, f"Internal error: no {request.method}; see the binder's log")

    def _upgrade(self, request: Request, caller: Caller, reply: Reply) -> None:
        self._policy.require_allowed(caller, "upgrade")

        def on_rehearsed(version: str | None, why: str) -> None:
            if version is None:
                sentence = f"Could not upgrade: {why}; the running binder goes on"
                reply(refuse(request.id, messages.CANNOT_UPGRADE, sentence))
            else:
                reply(result(request.id, Upgrade(self._version, version)))

        self._upgrader.upgrade(on_rehearsed)

    def _asker(self, caller: Caller) -> Asker:
        return Asker(caller.uid, lambda listener: self._policy.may_know(caller, listener))

    def _allowed_params(
        self, request: Request, caller: Caller, method: str
    ) -> tuple[Sequence[ListenerSpec], Sequence[Owner], Sequence[bool]]:
        """Return spec and owner of each element, after the policy allowed ``method`` for all of them.

        The third value is true for a label by which a privileged client may mean any user's. Raises
        InvalidParamsError, NotAllowed with the first refusal, and RequestError for an owner of another uid.
        """
        params = messages.decode_listener_params(request.params)
        specs = [messages.check_spec(index, element) for index, element in enumerate(params)]
        owners = [owner_named(element.owner, caller.uid) for element in params]
        for spec, owner in zip(specs, owners, strict=True):
            self._policy.require_allowed_for(caller, method, spec, self._store.find(spec, owner.uid))
        is_any = is_privileged(caller.uid)
        return specs, owners, [is_any and ":" not in element.owner for element in params]


def _handoff(grant: Grant, caution: str) -> Handoff:
    warning = "; ".join(filter(None, [grant.warning, caution if not grant.listener.kept else ""])) or None
    return Handoff(str(grant.listener.address), grant.backlog, grant.created, warning)
