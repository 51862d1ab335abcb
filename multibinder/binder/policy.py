"""Decide which client may use which method, on which address. policy_file.py reads the rules from a file."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from typing import Protocol

import msgspec

from multibinder.binder import namespace_names, netns_patterns
from multibinder.binder.address_patterns import Pattern
from multibinder.wire import kinds
from multibinder.wire.addresses import Address
from multibinder.wire.messages import ListenerSpec

#: The methods that a rule can name. A client that may ``bind`` may also ``check``, and root ``adopt``; every client may
#: ask ``hello``.
METHODS = ("bind", "release", "list", "status", "upgrade")
#: The methods for which a rule may name addresses.
ABOUT_LISTENERS = ("bind", "release", "list", "status")
_OWN_NETNS = frozenset([namespace_names.OWN])


class Subject(Protocol):
    """The client that sends a request, as the kernel identifies it."""

    @property
    def uid(self) -> int: ...
    @property
    def gids(self) -> frozenset[int]: ...
    @property
    def unit(self) -> str: ...


class Rule(msgspec.Struct, frozen=True):
    """One rule of the file, numbered from 1.

    Empty ``uids``, ``gids``, ``units`` or ``addresses`` match any, and so does None for ``options``. Empty ``netns``
    match the binder's own network namespace in a rule that allows, and every one in a rule that denies.
    """

    number: int
    name: str
    allow: bool
    methods: frozenset[str]
    uids: frozenset[int] = frozenset()
    gids: frozenset[int] = frozenset()
    units: tuple[str, ...] = ()
    addresses: tuple[Pattern, ...] = ()
    options: frozenset[str] | None = None
    netns: tuple[str, ...] = ()

    def mismatch(self, subject: Subject, method: str, request: AccessRequest | None) -> str:
        """Return the name of the first part of the rule that does not match; empty if the whole rule matches."""
        if method not in self.methods:
            return "method"
        if self.uids and subject.uid not in self.uids:
            return "uid"
        if self.gids and not self.gids & subject.gids:
            return "gid"
        if self.units and not self._has_unit(subject.unit):
            return "unit"
        if request is None:
            # A method about all listeners is decided first without an address: a rule that may allow some matches.
            if self.addresses and (method not in ABOUT_LISTENERS or not self.allow):
                return "address"
            if self.netns and (method not in ABOUT_LISTENERS or not self.allow):
                return "netns"
            return "options" if self.options is not None and not self.allow else ""
        if self.addresses and not self._has_address(request.address):
            return "address"
        if self.options is not None and not self._has_options(request.options):
            return "options"
        return "" if self._has_netns(request.netns) else "netns"

    def _has_unit(self, unit: str) -> bool:
        # A unit that cannot be determined matches no rule that allows, and every rule that denies. Otherwise a process
        # could end, and leave its connection to a child that no rule for its unit would match.
        return any(fnmatch.fnmatchcase(unit, each) for each in self.units) if unit else not self.allow

    def _has_address(self, address: Address) -> bool:
        # Every address that the listener takes must be allowed; one forbidden address is enough to deny.
        return any(each.has(address) if self.allow else each.touches(address) for each in self.addresses)

    def _has_netns(self, designations: frozenset[str]) -> bool:
        if self.netns:
            return any(netns_patterns.matches(each, designations, allow=self.allow) for each in self.netns)
        return not self.allow or namespace_names.OWN in designations

    def _has_options(self, given: frozenset[str]) -> bool:
        # Every option must be allowed; one forbidden option is enough to deny.
        return given <= self.options if self.allow else bool(given & self.options)  # type: ignore[operator]

    def __str__(self) -> str:
        return f'rule {self.number} ("{self.name}")' if self.name else f"rule {self.number}"


class AccessRequest(msgspec.Struct, frozen=True):
    """One address that a request is about, and the names of the options that it gives.

    ``implied`` is true for an address that a listener on another address takes as well, unless v6only is set.
    ``netns`` has all by which a rule can name its network namespace (``namespace_names.designations``).
    """

    address: Address
    options: frozenset[str] = frozenset()
    implied: bool = False
    netns: frozenset[str] = _OWN_NETNS


class Decision(msgspec.Struct, frozen=True):
    """The decision about one access request. ``request`` is None for a method that is about no listener.

    ``rule`` is None if none matched; ``why`` is a part of a sentence.
    """

    allowed: bool
    why: str
    rule: Rule | None = None
    request: AccessRequest | None = None


class Policy(msgspec.Struct, frozen=True):
    """The rules of one file. The first rule that matches decides.

    If no rule matches, root and ``own_uid`` are allowed, and all others are denied.
    """

    path: str
    rules: tuple[Rule, ...]
    own_uid: int

    def decide(self, subject: Subject, method: str, request: AccessRequest | None = None) -> Decision:
        method = "bind" if method in ("check", "adopt") else method
        for rule in self.rules:
            if not rule.mismatch(subject, method, request):
                verb = "allowed" if rule.allow else "denied"
                return Decision(rule.allow, f"{verb} by {rule} of {self.path}", rule, request)
        if subject.uid in (0, self.own_uid):
            who = "root" if subject.uid == 0 else "the binder's own user"
            return Decision(True, f"allowed to {who}: no rule of {self.path} says otherwise", None, request)
        return Decision(False, f"no rule of {self.path} allows it", None, request)

    @property
    def netns_paths(self) -> list[str]:
        """The paths of network namespaces in all rules."""
        return [each for rule in self.rules for each in rule.netns if each.startswith("/")]

    def may_name_netns(self, subject: Subject, method: str, text: str) -> bool:
        """Return whether a rule can allow this client something in the network namespace that it names.

        The text is opened after this only. A name or a cookie can be tried by each client that a rule allows some
        namespace, and so can a PID; a path by one that a rule allows this very path.
        """
        if subject.uid in (0, self.own_uid):
            return True
        anywhere = (msgspec.structs.replace(rule, addresses=(), options=None) for rule in self.rules if rule.allow)
        of_client = (rule for rule in anywhere if not rule.mismatch(subject, method, None))
        allowed = [each for rule in of_client for each in rule.netns]
        return text in allowed or netns_patterns.ANY in allowed if text.startswith("/") else bool(allowed)

    def decide_listener(
        self, subject: Subject, method: str, spec: ListenerSpec, v6only: bool | None = None
    ) -> Decision:
        """Decide for every address that the listener takes. Return the first refusal, or the last permission.

        ``v6only`` is what an existing listener has.
        """
        decision = Decision(True, "")
        netns = namespace_names.designations(spec.netns, self.netns_paths) if spec.netns else _OWN_NETNS
        for request in access_requests(spec, v6only, netns):
            decision = self.decide(subject, method, request)
            if not decision.allowed:
                break
        return decision


def access_requests(
    spec: ListenerSpec, v6only: bool | None = None, netns: frozenset[str] = _OWN_NETNS
) -> Iterator[AccessRequest]:
    """Yield one access request for every address that a listener takes; the options are those that ``spec`` gives.

    ``v6only`` is what an existing listener has, None for a new one. ``netns`` designates its network namespace.
    """
    options = frozenset(spec.options.given) | ({"name"} if spec.options.name is not None else set())
    kind = kinds.of_address(spec.address)
    first, *others = kind.effective_addresses(spec.address, spec.options.v6only if v6only is None else v6only)
    yield AccessRequest(first.resolved(), options, netns=netns)
    for address in others:
        yield AccessRequest(address, options - {"v6only"}, implied=True, netns=netns)


def explain(policy: Policy, subject: Subject, method: str, request: AccessRequest | None) -> Iterator[str]:
    """Yield a line for each rule before the deciding one, with the part that did not match; then the decision."""
    for rule in policy.rules:
        mismatch = rule.mismatch(subject, method, request)
        if not mismatch:
            break
        yield f"{rule}: does not match, by its {'methods' if mismatch == 'method' else mismatch}"
    yield policy.decide(subject, method, request).why


def covers(earlier: Rule, later: Rule) -> bool:
    """Return whether ``later`` never decides, because ``earlier`` matches every request that it matches."""
    # A rule that denies matches every address that its patterns touch, a rule that allows only those in its patterns.
    touched = earlier.allow and not later.allow
    decided = [each.touched() if touched else each for each in later.addresses]
    # What a rule without netns denies elsewhere, nobody but root would be allowed.
    own = (namespace_names.OWN,)
    return (
        earlier.methods >= later.methods
        and (not earlier.uids or (bool(later.uids) and earlier.uids >= later.uids))
        and (not earlier.gids or (bool(later.gids) and earlier.gids >= later.gids))
        and (not earlier.units or _all_covered(earlier.units, later.units))
        # A rule that denies a unit also denies a process whose unit is unknown.
        and not (earlier.allow and not later.allow and earlier.units)
        and (
            not earlier.addresses
            or (bool(later.addresses) and all(any(one.covers(other) for one in earlier.addresses) for other in decided))
        )
        and netns_patterns.cover(earlier.netns or (own if earlier.allow else (netns_patterns.ANY,)), later.netns or own)
        and (earlier.options is None or (earlier.allow == later.allow and earlier.options == later.options))
    )


def _all_covered(patterns: Sequence[str], names: Sequence[str]) -> bool:
    def covered(name: str, by: str) -> bool:
        return by in ("*", name) or (not set("*?[") & set(name) and fnmatch.fnmatchcase(name, by))

    return bool(names) and all(any(covered(name, each) for each in patterns) for name in names)
