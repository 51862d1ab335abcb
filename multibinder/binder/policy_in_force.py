"""The policy in force, and its decisions about listeners that exist."""

from __future__ import annotations

from collections.abc import Hashable

import msgspec

from multibinder.binder import path_access
from multibinder.binder.caller import Caller
from multibinder.binder.listener import Listener
from multibinder.binder.namespace_names import name_of
from multibinder.binder.owner import is_privileged
from multibinder.binder.policy import AccessRequest, Decision, Policy
from multibinder.wire import kinds, messages
from multibinder.wire.errors import NotAllowed
from multibinder.wire.messages import ListenerSpec
from multibinder.wire.options import COOKIE, Options

_BINDING = ("bind", "check")


class PolicyInForce:
    """Hold the policy in force.

    Without a policy, every client that can connect may ask for everything, but for paths that it could not bind itself,
    and a guest not for an upgrade.
    """

    def __init__(self, policy: Policy | None) -> None:
        self._current = policy

    @property
    def current(self) -> Policy | None:
        return self._current

    def replace(self, policy: Policy | None) -> None:
        """Let ``policy`` decide about every request from now on."""
        self._current = policy

    def require_allowed(self, caller: Caller, method: str) -> None:
        """Raise NotAllowed if the caller may not ask for ``method`` at all."""
        if self._current is not None:
            _require_allowed(self._current.decide(caller, method), caller, method)
        elif caller.is_guest and method == "upgrade":
            raise NotAllowed(
                "Not allowed to upgrade: a client of another PID namespace (a container) may only if a policy says so; "
                "ask from the PID namespace of the binder",
                messages.NOT_ALLOWED,
            )

    def require_allowed_for(self, caller: Caller, method: str, spec: ListenerSpec, listener: Listener | None) -> None:
        """Raise NotAllowed if the caller may not ask ``method`` for ``spec``. ``listener`` is what ``spec`` finds."""
        if self._current is not None:
            _require_allowed(_decide(self._current, caller, method, spec, listener), caller, method, spec)
        if method in _BINDING:
            self._require_place(caller, method, spec, listener)

    def _require_place(self, caller: Caller, method: str, spec: ListenerSpec, listener: Listener | None) -> None:
        """Raise NotAllowed if the path of a socket is in a place in which the caller may not bind."""
        for address in {spec.address} if listener is None else {spec.address, listener.address}:
            if self._current is not None:
                why = path_access.why_not_with_policy(caller, address)
            else:
                is_other = listener is not None and all(owner.uid != caller.uid for owner in listener.claims)
                why = path_access.why_not_without_policy(caller, address, spec.options, exists=is_other)
            if why:
                raise NotAllowed(f"Not allowed to {method} {spec.address}: {why}", messages.NOT_ALLOWED)

    def require_may_name(self, caller: Caller, method: str, netns: str) -> None:
        """Raise NotAllowed if the caller may not name this network namespace at all. Nothing of it is looked at."""
        if self._current is None:
            allowed, why = is_privileged(caller.uid), "without a policy only root and the binder's own user may"
        else:
            allowed = self._current.may_name_netns(caller, "bind" if method == "check" else method, netns)
            why = f"no rule of {self._current.path} has such a netns for this client"
        if not allowed:
            raise NotAllowed(f"Not allowed to {method} in the network namespace {netns}: {why}", messages.NOT_ALLOWED)

    def view_of(self, caller: Caller) -> Hashable:
        """Return a value that is equal for callers for which ``allows`` decides equally about every listener."""
        if self._current is None:
            return None
        rules = self._current.rules
        # Groups and unit cost system calls; most policies name one of them at most.
        gids = caller.gids if any(rule.gids for rule in rules) else None
        return caller.uid, gids, caller.unit if any(rule.units for rule in rules) else None

    def allows(self, caller: Caller, method: str, listener: Listener) -> bool:
        """Return whether the caller may ask ``method`` for a listener that exists."""
        if self._current is None:
            return True
        return _decide(self._current, caller, method, spec_at(listener), listener).allowed

    def may_know(self, caller: Caller, listener: Listener) -> bool:
        """Return whether a refusal may tell the caller of a listener: it has a claim to it, or could see it."""
        if any(owner.uid == caller.uid for owner in listener.claims):
            return True
        return self.allows(caller, "list", listener) or self.allows(caller, "status", listener)


def spec_at(listener: Listener, options: Options = Options()) -> ListenerSpec:  # noqa: B008 (frozen)
    """Return the spec that asks for a listener that exists."""
    return ListenerSpec(
        listener.address, options, listener.shard, f"{COOKIE}{listener.netns}" if listener.netns else ""
    )


def _decide(policy: Policy, caller: Caller, method: str, spec: ListenerSpec, listener: Listener | None) -> Decision:
    """Decide about ``listener`` as it is, or about ``spec`` if there is no listener yet."""
    if listener is None:
        return policy.decide_listener(caller, method, spec)
    decision = _decide_about_existing(policy, caller, method, listener, spec)
    if decision.allowed and not listener.matches(spec):
        # ``spec`` found the listener by its name, and has another address. An earlier element of the same request may
        # release that listener; then ``spec`` binds its own address, so that must be allowed too.
        return policy.decide_listener(caller, method, spec)
    return decision


def _decide_about_existing(
    policy: Policy, caller: Caller, method: str, listener: Listener, asked: ListenerSpec
) -> Decision:
    v6only = listener.options.v6only
    # A request with v6only may find an IPv4 listener by its name. A spec of an IPv4 address cannot have v6only.
    options = asked.options if v6only is not None else msgspec.structs.replace(asked.options, v6only=None)
    existing = spec_at(listener, options)
    decision = policy.decide_listener(caller, method, existing, v6only)
    if decision.allowed or not listener.kernel_chose_port:
        return decision
    if not any(owner.uid == caller.uid for owner in listener.claims):
        return decision
    # A caller that may bind port 0 may use the port that the kernel chose for it, but not what it chose for others.
    any_port = msgspec.structs.replace(existing, address=listener.address.any_port())
    decision_for_any_port = policy.decide_listener(caller, method, any_port, v6only)
    return decision_for_any_port if decision_for_any_port.allowed else decision


def _takes(spec: ListenerSpec, request: AccessRequest) -> bool:
    """Return whether the listener that was asked for takes this address. One that exists may take others, which the
    refusal must not tell."""
    kind = kinds.of_address(spec.address)
    return request.address in kind.effective_addresses(spec.address, spec.options.v6only)


def _require_allowed(decision: Decision, caller: Caller, method: str, spec: ListenerSpec | None = None) -> None:
    if decision.allowed:
        return
    what = method if spec is None else f"{method} {spec.address}"
    if spec is not None and spec.netns:
        what += f" in the network namespace {name_of(int(spec.netns.removeprefix(COOKIE)))}"
    also = ""
    request = decision.request
    if request is not None and request.implied and spec is not None and _takes(spec, request):
        also = f" (which takes {request.address} as well unless v6only is set)"
    who = "a client of another PID namespace" if caller.is_guest else f"uid {caller.uid}"
    who += f", unit {caller.unit}" if caller.unit else ""
    raise NotAllowed(
        f"Not allowed to {what}{also}: {decision.why} ({who}); see 'multibinder policy check'",
        messages.NOT_ALLOWED,
        {"rule": decision.rule.number if decision.rule else None},
    )
