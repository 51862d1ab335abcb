"""From a request to its answer."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence

import msgspec

from multibinder.binder import events
from multibinder.binder.store import Grant, ListenerStore, kept_name
from multibinder.wire import messages
from multibinder.wire.errors import RequestError
from multibinder.wire.messages import BindResult, Handoff, Hello, InvalidParamsError, Request, Upgrade
from multibinder.wire.transport import MAX_DESCRIPTORS


class Caller(msgspec.Struct, frozen=True):
    """Who asks, from the kernel (SO_PEERCRED, unix(7)): as of its connect()."""

    pid: int
    uid: int


class Answer(msgspec.Struct, frozen=True):
    """Messages to send in this order, each with the descriptors it carries (the store's, not to be closed).

    ``grants`` is what to take back if the client is gone before it has all of it.
    """

    parts: Sequence[tuple[bytes, Sequence[int]]]
    grants: Sequence[Grant] = ()


#: Takes an answer that is ready only later.
Later = Callable[[Answer], None]
#: Takes the version of the new code, or None and why it cannot be used.
Outcome = Callable[[str | None, str], None]
#: Stores (name, descriptor) each where a crash of ours cannot lose them, and tells whether they are there.
Keep = Callable[[Sequence[tuple[str, int]], Callable[[bool], None]], None]

_NOT_KEPT = "this listener would not survive a crash of the binder; its log says why"


class Methods:
    """``upgrade`` is asked to begin an upgrade, and told whom to tell how its rehearsal went.

    ``keep``, set where there is somebody who keeps sockets for us, is given new ones, and whom to tell that they are
    safe.
    """

    def __init__(self, store: ListenerStore, version: str, upgrade: Callable[[Outcome], None]) -> None:
        self._store = store
        self.keep: Keep | None = None
        self._upgrade_to = upgrade
        self._methods: dict[str, Callable[[Request, Caller, Later], Answer | None]] = {
            "hello": self._hello,
            "bind": self._bind,
            "check": self._check,
            "list": self._list,
            "release": self._release,
            "upgrade": self._upgrade,
        }
        self._version = version

    def answer(self, text: bytes, caller: Caller, later: Later) -> Answer | None:
        """The answer to one message; None if it is given to ``later``. Whatever is wrong with it is an answer too."""
        try:
            request = messages.decode_request(text)
        except msgspec.ValidationError as error:
            return refuse(None, messages.INVALID_REQUEST, f"not a JSON-RPC request: {error}")
        except msgspec.DecodeError as error:
            return refuse(None, messages.PARSE_ERROR, f"not JSON: {error}")
        method = self._methods.get(request.method)
        if method is None:
            known = ", ".join(self._methods)
            text_ = f"Method not found: {request.method[:64]!r}; this binder knows {known}"
            return refuse(request.id, messages.METHOD_NOT_FOUND, text_)
        try:
            return method(request, caller, later)
        except InvalidParamsError as error:
            return refuse(request.id, messages.INVALID_PARAMS, f"Invalid params: {error}")
        except RequestError as error:
            events.warning("refused", method=request.method, pid=caller.pid, uid=caller.uid, why=error)
            return refuse(request.id, error.code, str(error), dict(error.data) or None)
        except Exception as error:  # a bug of ours; the other clients and every listener must outlive it
            events.error("internal-error", method=request.method, pid=caller.pid, error=repr(error))
            return refuse(request.id, messages.INTERNAL_ERROR, f"Internal error: {error!r}; please report it")

    def _hello(self, request: Request, caller: Caller, later: Later) -> Answer:
        hello = Hello("multibinder", self._version, messages.PROTOCOL, os.getpid(), list(self._methods))
        return _reply(request, hello)

    def _upgrade(self, request: Request, caller: Caller, later: Later) -> None:
        def tell(version: str | None, why: str) -> None:
            if version is None:
                later(
                    refuse(request.id, messages.CANNOT_UPGRADE, f"Could not upgrade: {why}; the running binder goes on")
                )
            else:
                later(_reply(request, Upgrade(self._version, version)))

        self._upgrade_to(tell)

    def _bind(self, request: Request, caller: Caller, later: Later) -> Answer | None:
        params = messages.decode_listener_params(request.params)
        specs = [messages.check_spec(index, element) for index, element in enumerate(params)]
        grants = self._store.bind(specs, [element.owner for element in params])
        for grant in grants:
            if grant.created or events.logger.isEnabledFor(logging.DEBUG):
                self._log_grant(grant, caller)
        unsafe = [grant.listener for grant in grants if not grant.listener.safe]
        if not unsafe or self.keep is None:
            return _handoffs(request, grants, "")

        def kept(safe: bool) -> None:
            for listener in unsafe:
                listener.safe = safe
            later(_handoffs(request, grants, "" if safe else _NOT_KEPT))

        # By the time the client has its answer, a crash of ours cannot lose what it got.
        self.keep([kept_name(listener) for listener in unsafe], kept)
        return None

    def _log_grant(self, grant: Grant, caller: Caller) -> None:
        (events.info if grant.created else events.debug)(
            "bound" if grant.created else "handed-over",
            address=grant.listener.address,
            owner=grant.owner or "-",
            backlog=grant.backlog,
            pid=caller.pid,
            uid=caller.uid,
        )
        if grant.warning:
            events.warning("backlog-capped", address=grant.listener.address, why=grant.warning)

    def _check(self, request: Request, caller: Caller, later: Later) -> Answer:
        params = messages.decode_listener_params(request.params)
        self._store.check([messages.check_spec(index, element) for index, element in enumerate(params)])
        return _reply(request, True)

    def _list(self, request: Request, caller: Caller, later: Later) -> Answer:
        return _reply(request, self._store.statuses())

    def _release(self, request: Request, caller: Caller, later: Later) -> Answer:
        params = messages.decode_listener_params(request.params)
        specs = [messages.check_spec(index, element) for index, element in enumerate(params)]
        outcomes = [self._store.release(spec, element.owner) for spec, element in zip(specs, params, strict=True)]
        for outcome, element in zip(outcomes, params, strict=True):
            events.info(
                "released",
                address=outcome.address,
                owner=element.owner or "-",
                outcome=outcome.outcome,
                pid=caller.pid,
                uid=caller.uid,
            )
        return _reply(request, outcomes)


def _handoffs(request: Request, grants: Sequence[Grant], caution: str) -> Answer:
    if gone := [str(grant.listener.address) for grant in grants if grant.listener.socket.fileno() < 0]:
        text = f"Could not bind: {', '.join(gone)}: released by its owner before it could be handed over; ask again"
        return refuse(request.id, messages.COULD_NOT_BIND, text)
    result = BindResult([_handoff(grant, caution) for grant in grants], len(grants))
    descriptors = [grant.listener.socket.fileno() for grant in grants]
    parts = [(messages.encode_result(request.id, result), descriptors[:MAX_DESCRIPTORS])]
    for first in range(MAX_DESCRIPTORS, len(descriptors), MAX_DESCRIPTORS):
        parts.append((messages.encode_continuation(first), descriptors[first : first + MAX_DESCRIPTORS]))
    return Answer(parts, grants)


def _handoff(grant: Grant, caution: str) -> Handoff:
    warning = "; ".join(filter(None, [grant.warning, caution if not grant.listener.safe else ""])) or None
    return Handoff(str(grant.listener.address), grant.backlog, grant.created, warning)


def refuse(request_id: messages.Id, code: int, message: str, data: dict[str, object] | None = None) -> Answer:
    return Answer([(messages.encode_error(request_id, code, message, data), ())])


def _reply(request: Request, result: object) -> Answer:
    return Answer([(messages.encode_result(request.id, result), ())])
