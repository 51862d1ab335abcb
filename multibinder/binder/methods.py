"""The methods of the control socket: from a request to its answer."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import msgspec

from multibinder.binder import events
from multibinder.binder.address_search import TellHolders
from multibinder.binder.adopt import Adoption
from multibinder.binder.answer import Answer, Pieces, Reply, listing, refuse, result
from multibinder.binder.bind_refusal import AddressInUse
from multibinder.binder.caller import Caller
from multibinder.binder.counters import RequestCounters
from multibinder.binder.listener import Listener
from multibinder.binder.listener_methods import Answering, ListenerMethods, StoreDescriptors
from multibinder.binder.listings import DescribeListeners, StatusSource
from multibinder.binder.move import move
from multibinder.binder.policy_in_force import PolicyInForce
from multibinder.binder.store import ListenerStore
from multibinder.kernel.raised import told
from multibinder.wire import messages
from multibinder.wire.addresses import Address
from multibinder.wire.adopt_params import ADOPT
from multibinder.wire.errors import RequestError
from multibinder.wire.listener_params import decode_listener_params
from multibinder.wire.messages import (
    Hello,
    InvalidParamsError,
    Request,
    Upgrade,
)
from multibinder.wire.release_params import DRAIN, LEAVE_OPEN
from multibinder.wire.status_params import decode_status_params

#: Called with the version of the new code after its rehearsal; or with None and the reason why it cannot be used.
OnRehearsed = Callable[[str | None, str], None]

#: A request with longer params is answered in slices: a few dozen listeners take the loop for a millisecond.
_LONG_BYTES = 2048


class RunInSlices(Protocol):
    """Runs work on behalf of a user between that of others."""

    def __call__(self, steps: Iterator[None], uid: int, /) -> None: ...


class SearchHolders(Protocol):
    """Searches for the processes that have an address."""

    def begin(self, address: Address, uid: int, tell: TellHolders, netns_path: str, /) -> bool:
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
        run: RunInSlices,
        adoption: Adoption,
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
        self._run = run
        self._upgrade_failure = upgrade_failure
        about_listeners = ListenerMethods(store, policy=policy, counters=counters, keeper=keeper)
        self._methods: dict[str, Callable[[Request, Caller, Reply], Answer | Answering | None]] = {
            "hello": self._hello,
            "bind": about_listeners.bind,
            "check": about_listeners.check,
            "list": self._list,
            "release": about_listeners.release,
            "status": self._status,
            "upgrade": self._upgrade,
            "move": self._move,
            ADOPT: adoption.adopt,
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
        answering = self._answering(method, request, caller, reply)
        if len(request.params) > _LONG_BYTES:
            self._run(self._answer_in_slices(answering, caller, reply), caller.uid)
            return None
        began = time.perf_counter()
        try:
            while True:
                next(answering)
        except StopIteration as end:
            answer: Answer | None = end.value
            return answer
        finally:
            self._counters.observe_request(time.perf_counter() - began)

    def _answer_in_slices(self, answering: Answering, caller: Caller, reply: Reply) -> Iterator[None]:
        """Do the work of a long request, and send its answer. Other clients are served between two steps."""
        if caller.has_gone():  # while earlier requests of its user were answered
            reply(refuse(None, messages.INVALID_REQUEST, "the client has gone"))
            return
        spent_s = 0.0
        while True:
            began = time.perf_counter()
            try:
                next(answering)
            except StopIteration as end:
                self._counters.observe_request(spent_s + time.perf_counter() - began)
                if end.value is not None:
                    reply(end.value)
                return
            spent_s += time.perf_counter() - began
            yield

    def _answering(
        self,
        method: Callable[[Request, Caller, Reply], Answer | Answering | None],
        request: Request,
        caller: Caller,
        reply: Reply,
    ) -> Answering:
        """Do what ``method`` does. An error is an answer too."""
        try:
            work = method(request, caller, reply)
            return work if work is None or isinstance(work, Answer) else (yield from work)
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

    def _refuse(self, request: Request, caller: Caller, error: RequestError) -> Answer:
        self._counters.count_error(error)
        events.complaint("refused", caller, method=request.method, why=error)
        return refuse(request.id, error.code, str(error), dict(error.data) or None)

    def _refuse_in_use(self, request: Request, caller: Caller, reply: Reply, error: AddressInUse) -> Answer | None:
        """Refuse when it is known which process has the address; at once if nothing is searched for now."""

        label = next((each.owner for each in decode_listener_params(request.params) if each.owner), "")
        owner = f"{label}:{caller.uid}" if label and caller.uid and ":" not in label else label

        def tell(holders: str | None) -> None:
            reply(self._refuse(request, caller, AddressInUse(error.bound, holders, owner=owner)))

        if error.netns_path is not None and self._search.begin(error.bound, caller.uid, tell, error.netns_path):
            return None
        return self._refuse(request, caller, error)

    def _refuse_invalid(self, request_id: messages.Id, code: int, sentence: str) -> Answer:
        self._counters.count_refusal("invalid")
        return refuse(request_id, code, sentence)

    def _hello(self, request: Request, caller: Caller, reply: Reply) -> Answer:
        hello = Hello(
            "multibinder",
            self._version,
            messages.PROTOCOL,
            os.getpid(),
            [*self._methods, DRAIN, LEAVE_OPEN],
            uid=caller.uid,
            upgrade_failure=self._upgrade_failure,
        )
        return result(request.id, hello)

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
