"""From a request to its answer."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence

import msgspec

from multibinder.binder import events
from multibinder.binder.caller import Caller
from multibinder.binder.policy import Decision, Policy
from multibinder.binder.store import Grant, Listener, ListenerStore, kept_name
from multibinder.wire import messages
from multibinder.wire.errors import BindError, NotAllowed, RequestError
from multibinder.wire.messages import BindResult, Handoff, Hello, InvalidParamsError, ListenerSpec, Request, Upgrade
from multibinder.wire.status import REQUEST_BOUNDS_S, BinderStatus, Counters
from multibinder.wire.transport import MAX_DESCRIPTORS


class Answer(msgspec.Struct, frozen=True):
    """Messages to send in this order, each with the descriptors it carries (the store's, not to be closed).

    ``grants`` is what to take back if the client is gone before it has all of it; ``id`` is the request's.
    """

    parts: Sequence[tuple[bytes, Sequence[int]]]
    grants: Sequence[Grant] = ()
    id: messages.Id = None


#: Takes an answer that is ready only later.
Later = Callable[[Answer], None]
#: Takes the version of the new code, or None and why it cannot be used.
Outcome = Callable[[str | None, str], None]
#: Looks at the listeners, and then says how to make a status of those that the asker may see.
Look = Callable[[Callable[[Callable[[Sequence[Listener]], BinderStatus]], None]], None]
#: Stores (name, descriptor) each where a crash of ours cannot lose them, and tells whether they are there.
Keep = Callable[[Sequence[tuple[str, int]], Callable[[bool], None]], None]

_NOT_KEPT = "this listener would not survive a crash of the binder; its log says why"


class Methods:
    """``upgrade`` is asked to begin an upgrade, and told whom to tell how its rehearsal went.

    ``keep``, set where there is somebody who keeps sockets for us, is given new ones, and whom to tell that they are
    safe. ``look`` is asked for a status. ``policy`` decides who may ask for what; without one, whoever can connect may
    ask for everything.
    """

    def __init__(self, store: ListenerStore, version: str, upgrade: Callable[[Outcome], None]) -> None:
        self._store = store
        self.policy: Policy | None = None
        self.keep: Keep | None = None
        self.look: Look = lambda tell: None
        self.counters = Counters(request_buckets=[0] * (len(REQUEST_BOUNDS_S) + 1))
        self._upgrade_to = upgrade
        self._methods: dict[str, Callable[[Request, Caller, Later], Answer | None]] = {
            "hello": self._hello,
            "bind": self._bind,
            "check": self._check,
            "list": self._list,
            "release": self._release,
            "status": self._status,
            "upgrade": self._upgrade,
        }
        self._version = version

    def answer(self, text: bytes, caller: Caller, later: Later) -> Answer | None:
        """The answer to one message; None if it is given to ``later``. Whatever is wrong with it is an answer too."""
        try:
            request = messages.decode_request(text)
        except msgspec.ValidationError as error:
            return self._invalid(None, messages.INVALID_REQUEST, f"not a JSON-RPC request: {error}")
        except msgspec.DecodeError as error:
            return self._invalid(None, messages.PARSE_ERROR, f"not JSON: {error}")
        method = self._methods.get(request.method)
        if method is None:
            _increment(self.counters.requests, "other")
            known = ", ".join(self._methods)
            text_ = f"Method not found: {request.method[:64]!r}; this binder knows {known}"
            return self._invalid(request.id, messages.METHOD_NOT_FOUND, text_)
        _increment(self.counters.requests, request.method)
        began = time.perf_counter()
        try:
            return method(request, caller, later)
        except InvalidParamsError as error:
            return self._invalid(request.id, messages.INVALID_PARAMS, f"Invalid params: {error}")
        except RequestError as error:
            self._count(error)
            events.complaint("refused", caller, method=request.method, why=error)
            return refuse(request.id, error.code, str(error), dict(error.data) or None)
        except Exception as error:  # a bug of ours; the other clients and every listener must outlive it
            self.count("internal")
            events.error("internal-error", method=request.method, pid=caller.pid, error=repr(error))
            return refuse(request.id, messages.INTERNAL_ERROR, f"Internal error: {error!r}; please report it")
        finally:
            spent_s = time.perf_counter() - began
            self.counters.request_buckets[bisect_left(REQUEST_BOUNDS_S, spent_s)] += 1
            self.counters.request_seconds += spent_s

    def turn_down(self, text: bytes, reason: str, sentence: str) -> Answer:
        """The answer to a message that is not listened to, because a limit is reached."""
        self.count(reason)
        request_id = None
        with contextlib.suppress(msgspec.DecodeError):
            request_id = messages.decode_request(text).id
        return refuse(request_id, messages.LIMIT_REACHED, f"Not now: {sentence}; try again later", {"limit": reason})

    def count(self, reason: str) -> None:
        """One refusal."""
        _increment(self.counters.refusals, reason)

    def _count(self, error: RequestError) -> None:
        match error.code:
            case messages.NOT_ALLOWED:
                self.count("policy" if isinstance(error, NotAllowed) else "owner")
            case messages.LIMIT_REACHED:
                self.count(str(error.data.get("limit")))
            case _:
                self.count("bind" if isinstance(error, BindError) else "other")

    def _invalid(self, request_id: messages.Id, code: int, sentence: str) -> Answer:
        self.count("invalid")
        return refuse(request_id, code, sentence)

    def _decide(self, policy: Policy, caller: Caller, method: str, spec: ListenerSpec) -> Decision:
        """About the listener that ``spec`` finds, as it is; about what it asks for, where there is none."""
        listener = self._store.find(spec)
        if listener is None:
            return policy.decide_listener(caller, method, spec)
        decision = self._decide_about(policy, caller, method, listener, spec)
        if decision.allowed and not spec.address.matches(listener.address):
            # The name is another's. Once an earlier element of the request has released that one, the address counts.
            return policy.decide_listener(caller, method, spec)
        return decision

    @staticmethod
    def _decide_about(policy: Policy, caller: Caller, method: str, listener: Listener, asked: ListenerSpec) -> Decision:
        v6only = listener.options.v6only
        # One for IPv4 may be found by its name when the request says v6only.
        options = asked.options if v6only is not None else msgspec.structs.replace(asked.options, v6only=None)
        real = ListenerSpec(listener.address, options)
        decision = policy.decide_listener(caller, method, real, v6only)
        if not decision.allowed and listener.chosen and any(owner.uid == caller.uid for owner in listener.claims):
            # Whoever may have port 0 may have the port that the kernel chose for them; not what it chose for others.
            any_port = msgspec.structs.replace(real, address=listener.address.any_port())
            other = policy.decide_listener(caller, method, any_port, v6only)
            return other if other.allowed else decision
        return decision

    def _allow(self, caller: Caller, method: str, specs: Sequence[ListenerSpec] = ()) -> None:
        """Raises NotAllowed with the first refusal."""
        if (policy := self.policy) is None:
            return
        if not specs:
            _must(policy.decide(caller, method), caller, method)
        for spec in specs:
            _must(self._decide(policy, caller, method, spec), caller, method, spec)

    def _hello(self, request: Request, caller: Caller, later: Later) -> Answer:
        hello = Hello("multibinder", self._version, messages.PROTOCOL, os.getpid(), list(self._methods))
        return _reply(request, hello)

    def _upgrade(self, request: Request, caller: Caller, later: Later) -> None:
        self._allow(caller, "upgrade")

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
        self._allow(caller, "bind", specs)
        owners = [self._store.owner(element.owner, caller.uid) for element in params]
        # unix(7) gives a process that our PID namespace does not have the PID 0.
        grants = self._store.bind(specs, owners, foreign=not caller.pid)
        self.counters.handoffs += len(grants)
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
            owner=grant.owner.label or "-",
            backlog=grant.backlog,
            pid=caller.pid,
            uid=caller.uid,
        )
        if grant.warning:
            events.warning("backlog-capped", address=grant.listener.address, why=grant.warning)

    def _check(self, request: Request, caller: Caller, later: Later) -> Answer:
        params = messages.decode_listener_params(request.params)
        specs = [messages.check_spec(index, element) for index, element in enumerate(params)]
        self._allow(caller, "bind", specs)
        self._store.check(specs, [self._store.owner(element.owner, caller.uid) for element in params])
        return _reply(request, True)

    def _list(self, request: Request, caller: Caller, later: Later) -> Answer:
        self._allow(caller, "list")
        return _reply(request, self._store.statuses(self._visible(caller, "list")))

    def _visible(self, caller: Caller, method: str) -> Sequence[Listener]:
        policy, listeners = self.policy, self._store.listeners()
        if policy is None:
            return listeners
        return [
            listener
            for listener in listeners
            if self._decide(policy, caller, method, ListenerSpec(listener.address)).allowed
        ]

    def _status(self, request: Request, caller: Caller, later: Later) -> None:
        self._allow(caller, "status")
        self.look(lambda status: later(_reply(request, status(self._visible(caller, "status")))))

    def _release(self, request: Request, caller: Caller, later: Later) -> Answer:
        params = messages.decode_listener_params(request.params)
        specs = [messages.check_spec(index, element) for index, element in enumerate(params)]
        self._allow(caller, "release", specs)
        owners = [self._store.owner(element.owner, caller.uid) for element in params]
        outcomes = [self._store.release(spec, owner) for spec, owner in zip(specs, owners, strict=True)]
        for outcome, element in zip(outcomes, params, strict=True):
            if outcome.outcome != "absent":
                events.info(
                    "released",
                    address=outcome.address,
                    owner=element.owner or "-",
                    outcome=outcome.outcome,
                    pid=caller.pid,
                    uid=caller.uid,
                )
        if absent := [outcome.address for outcome in outcomes if outcome.outcome == "absent"]:
            events.debug("released-absent", count=len(absent), first=absent[0], pid=caller.pid, uid=caller.uid)
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
    return Answer(parts, grants, request.id)


def _handoff(grant: Grant, caution: str) -> Handoff:
    warning = "; ".join(filter(None, [grant.warning, caution if not grant.listener.safe else ""])) or None
    return Handoff(str(grant.listener.address), grant.backlog, grant.created, warning)


def _must(decision: Decision, caller: Caller, method: str, spec: ListenerSpec | None = None) -> None:
    if decision.allowed:
        return
    what = method if spec is None else f"{method} {spec.address}"
    also = ""
    if decision.request is not None and decision.request.implied:
        also = f" (which takes {decision.request.address} as well unless v6only is set)"
    who = f"uid {caller.uid}" + (f", unit {caller.unit}" if caller.unit else "")
    raise NotAllowed(
        f"Not allowed to {what}{also}: {decision.why} ({who}); see 'multibinder policy check'",
        messages.NOT_ALLOWED,
        {"rule": decision.rule.number if decision.rule else None},
    )


def _increment(counts: dict[str, int], key: str) -> None:
    counts[key] = counts.get(key, 0) + 1


def refuse(request_id: messages.Id, code: int, message: str, data: dict[str, object] | None = None) -> Answer:
    return Answer([(messages.encode_error(request_id, code, message, data), ())])


def _reply(request: Request, result: object) -> Answer:
    return Answer([(messages.encode_result(request.id, result), ())])
