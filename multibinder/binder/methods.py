"""From a request to its answer."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence

import msgspec

from multibinder.binder import events
from multibinder.binder.store import Grant, ListenerStore
from multibinder.wire import messages
from multibinder.wire.errors import RequestError
from multibinder.wire.messages import BindResult, Handoff, Hello, InvalidParamsError, Request
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


class Methods:
    def __init__(self, store: ListenerStore, version: str) -> None:
        self._store = store
        self._methods: dict[str, Callable[[Request, Caller], Answer]] = {
            "hello": self._hello,
            "bind": self._bind,
            "check": self._check,
            "list": self._list,
            "release": self._release,
        }
        self._version = version

    def answer(self, text: bytes, caller: Caller) -> Answer:
        """The answer to one message. Whatever is wrong with it is an answer too."""
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
            return method(request, caller)
        except InvalidParamsError as error:
            return refuse(request.id, messages.INVALID_PARAMS, f"Invalid params: {error}")
        except RequestError as error:
            events.warning("refused", method=request.method, pid=caller.pid, uid=caller.uid, why=error)
            return refuse(request.id, error.code, str(error), dict(error.data) or None)
        except Exception as error:  # a bug of ours; the other clients and every listener must outlive it
            events.error("internal-error", method=request.method, pid=caller.pid, error=repr(error))
            return refuse(request.id, messages.INTERNAL_ERROR, f"Internal error: {error!r}; please report it")

    def _hello(self, request: Request, caller: Caller) -> Answer:
        hello = Hello("multibinder", self._version, messages.PROTOCOL, os.getpid(), list(self._methods))
        return _reply(request, hello)

    def _bind(self, request: Request, caller: Caller) -> Answer:
        params = messages.decode_listener_params(request.params)
        specs = [messages.check_spec(index, element) for index, element in enumerate(params)]
        grants = self._store.bind(specs, [element.owner for element in params])
        for grant in grants:
            if grant.created or events.logger.isEnabledFor(logging.DEBUG):
                self._log_grant(grant, caller)
        result = BindResult(
            [Handoff(str(grant.listener.address), grant.backlog, grant.created, grant.warning) for grant in grants],
            len(grants),
        )
        descriptors = [grant.listener.socket.fileno() for grant in grants]
        parts = [(messages.encode_result(request.id, result), descriptors[:MAX_DESCRIPTORS])]
        for first in range(MAX_DESCRIPTORS, len(descriptors), MAX_DESCRIPTORS):
            parts.append((messages.encode_continuation(first), descriptors[first : first + MAX_DESCRIPTORS]))
        return Answer(parts, grants)

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

    def _check(self, request: Request, caller: Caller) -> Answer:
        params = messages.decode_listener_params(request.params)
        self._store.check([messages.check_spec(index, element) for index, element in enumerate(params)])
        return _reply(request, True)

    def _list(self, request: Request, caller: Caller) -> Answer:
        return _reply(request, self._store.statuses())

    def _release(self, request: Request, caller: Caller) -> Answer:
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


def refuse(request_id: messages.Id, code: int, message: str, data: dict[str, object] | None = None) -> Answer:
    return Answer([(messages.encode_error(request_id, code, message, data), ())])


def _reply(request: Request, result: object) -> Answer:
    return Answer([(messages.encode_result(request.id, result), ())])
