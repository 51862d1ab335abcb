"""Who may ask for what: rules, and the decision. Where they are read from is policy_file.py's business."""

from __future__ import annotations

import fnmatch
import socket
from collections.abc import Iterator, Sequence
from typing import Protocol

import msgspec

from multibinder.wire.address import Address
from multibinder.wire.messages import ListenerSpec
from multibinder.wire.options import OPTION_NAMES

#: What rules are about. Whoever may ``bind`` may also ``check``; ``hello`` is everybody's.
METHODS = ("bind", "release", "list", "status", "upgrade")
#: Those that are about listeners.
ABOUT_LISTENERS = ("bind", "release", "list", "status")
_WILDCARDS = ("0.0.0.0", "::")


class Subject(Protocol):
    """Who asks, from the kernel."""

    @property
    def uid(self) -> int: ...
    @property
    def gids(self) -> frozenset[int]: ...
    @property
    def unit(self) -> str: ...


class Network(msgspec.Struct, frozen=True):
    """Addresses of one family, or with ``version`` 0 of both, and ports from ``first`` to ``last``."""

    version: int
    number: int
    prefix: int
    first: int
    last: int

    def has(self, address: Address) -> bool:
        return (
            self.first <= address.port <= self.last
            and self.version in (0, address.version)
            and (not self.prefix or (_number(address) ^ self.number) >> (self._bits - self.prefix) == 0)
        )

    def touches(self, address: Address) -> bool:
        """Whether it has any of what a listener there takes: one on 0.0.0.0 or :: takes every address (ip(7))."""
        if address.host not in _WILDCARDS:
            return self.has(address)
        return self.first <= address.port <= self.last and self.version in (0, address.version)

    def covers(self, other: Pattern) -> bool:
        """Whether it has all that ``other`` has."""
        return (
            isinstance(other, Network)
            and self.first <= other.first
            and other.last <= self.last
            and self.version in (0, other.version)
            and self.prefix <= other.prefix
            and (not self.prefix or (other.number ^ self.number) >> (self._bits - self.prefix) == 0)
        )

    @property
    def _bits(self) -> int:
        return 128 if self.version == 6 else 32


class PathPrefix(msgspec.Struct, frozen=True):
    """Unix sockets below a directory (with a ``/`` at the end), or the one at this path."""

    path: str

    def has(self, address: Address) -> bool:
        return False  # no address of this version has a path

    def touches(self, address: Address) -> bool:
        return False

    def covers(self, other: Pattern) -> bool:
        below = self.path.endswith("/") and isinstance(other, PathPrefix) and other.path.startswith(self.path)
        return below or self == other


Pattern = Network | PathPrefix


class Rule(msgspec.Struct, frozen=True):
    """One rule, numbered from 1. An empty tuple of subjects, addresses or None for options means: any."""

    number: int
    name: str
    allow: bool
    methods: frozenset[str]
    uids: frozenset[int] = frozenset()
    gids: frozenset[int] = frozenset()
    units: tuple[str, ...] = ()
    addresses: tuple[Pattern, ...] = ()
    options: frozenset[str] | None = None

    def misses(self, subject: Subject, method: str, wanted: Wanted | None) -> str:
        """What it is about that does not match; empty if the rule decides."""
        if method not in self.methods:
            return "method"
        if self.uids and subject.uid not in self.uids:
            return "uid"
        if self.gids and not self.gids & subject.gids:
            return "gid"
        if self.units and not self._has_unit(subject.unit):
            return "unit"
        if wanted is None:
            # Of a method about all listeners it is asked first whether there may be any that this rule shows.
            if self.addresses and (method not in ABOUT_LISTENERS or not self.allow):
                return "address"
            return "options" if self.options is not None and not self.allow else ""
        if self.addresses and not self._has_address(wanted.address):
            return "address"
        if self.options is not None and not self._has_options(wanted.options):
            return "options"
        return ""

    def _has_unit(self, unit: str) -> bool:
        # One that cannot be told is not one that is allowed anything, and may be the one that is denied it: a process
        # that has ended has none, and its child has its connection.
        return any(fnmatch.fnmatchcase(unit, each) for each in self.units) if unit else not self.allow

    def _has_address(self, address: Address) -> bool:
        # All that it takes must be allowed; a part that is forbidden suffices.
        return any(each.has(address) if self.allow else each.touches(address) for each in self.addresses)

    def _has_options(self, given: frozenset[str]) -> bool:
        # All of them must be allowed; one that is forbidden suffices.
        return given <= self.options if self.allow else bool(given & self.options)  # type: ignore[operator]

    def __str__(self) -> str:
        return f'rule {self.number} ("{self.name}")' if self.name else f"rule {self.number}"


class Wanted(msgspec.Struct, frozen=True):
    """One listener that a request is about: its address, and which options are asked for."""

    address: Address
    options: frozenset[str] = frozenset()


class Decision(msgspec.Struct, frozen=True):
    """``rule`` is None where none matched; ``why`` is a part of a sentence."""

    allowed: bool
    why: str
    rule: Rule | None = None
    wanted: Wanted | None = None


class Policy(msgspec.Struct, frozen=True):
    """The rules of one file. The first that matches decides; else root and ``own_uid`` are allowed, others not."""

    path: str
    rules: tuple[Rule, ...]
    own_uid: int

    def decide(self, subject: Subject, method: str, wanted: Wanted | None = None) -> Decision:
        method = "bind" if method == "check" else method
        for rule in self.rules:
            if not rule.misses(subject, method, wanted):
                verb = "allowed" if rule.allow else "denied"
                return Decision(rule.allow, f"{verb} by {rule} of {self.path}", rule, wanted)
        if subject.uid in (0, self.own_uid):
            who = "root" if subject.uid == 0 else "the binder's own user"
            return Decision(True, f"allowed to {who}: no rule of {self.path} says otherwise", None, wanted)
        return Decision(False, f"no rule of {self.path} allows it", None, wanted)

    def decide_listener(
        self, subject: Subject, method: str, spec: ListenerSpec, v6only: bool | None = None
    ) -> Decision:
        """For every address that a listener has in fact: the first refusal, or the last permission. ``v6only`` is what
        one that exists has."""
        decision = Decision(True, "")
        for wanted in taken(spec, v6only):
            decision = self.decide(subject, method, wanted)
            if not decision.allowed:
                break
        return decision


def taken(spec: ListenerSpec, v6only: bool | None = None) -> Iterator[Wanted]:
    """The addresses that a listener takes: ipv6(7). One on ``::`` has IPv4 as well unless it says v6only, or has it
    already; and ``::ffff:192.0.2.1`` is 192.0.2.1. The options are those that the request gives."""
    options = frozenset(name for name in OPTION_NAMES if getattr(spec.options, name) is not None)
    address = spec.address
    if address.host.startswith("::ffff:") and "." in address.host:
        yield Wanted(Address(address.host.removeprefix("::ffff:"), address.port), options)
        return
    yield Wanted(address, options)
    if address.host == "::" and not (spec.options.v6only if v6only is None else v6only):
        yield Wanted(Address("0.0.0.0", address.port), options - {"v6only"})


def explain(policy: Policy, subject: Subject, method: str, wanted: Wanted | None) -> Iterator[str]:
    """Each rule that was looked at, and why it did not decide; the last line is the decision."""
    for rule in policy.rules:
        missed = rule.misses(subject, method, wanted)
        if not missed:
            break
        yield f"{rule}: does not match, by its {'methods' if missed == 'method' else missed}"
    yield policy.decide(subject, method, wanted).why


def number_of(host: str, version: int) -> int:
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    return int.from_bytes(socket.inet_pton(family, host))


def _number(address: Address) -> int:
    return number_of(address.host, address.version)


def covers(earlier: Rule, later: Rule) -> bool:
    """Whether nothing is left for ``later``, because ``earlier`` decides all that it would."""
    return (
        earlier.methods >= later.methods
        and (not earlier.uids or (bool(later.uids) and earlier.uids >= later.uids))
        and (not earlier.gids or (bool(later.gids) and earlier.gids >= later.gids))
        and (not earlier.units or _all_covered(earlier.units, later.units))
        # A denial by unit is also for those whose unit cannot be told.
        and not (earlier.allow and not later.allow and earlier.units)
        and (
            not earlier.addresses
            or (
                bool(later.addresses)
                and all(any(one.covers(other) for one in earlier.addresses) for other in _all_of(later, earlier))
            )
        )
        and (earlier.options is None or (earlier.allow == later.allow and earlier.options == later.options))
    )


def _all_of(rule: Rule, earlier: Rule) -> Iterator[Pattern]:
    """Its addresses; of a rule that denies after one that allows, as if they were all that they touch."""
    for each in rule.addresses:
        if rule.allow or not earlier.allow or isinstance(each, PathPrefix):
            yield each
        else:
            yield msgspec.structs.replace(each, number=0, prefix=0)


def _all_covered(patterns: Sequence[str], names: Sequence[str]) -> bool:
    def covered(name: str, by: str) -> bool:
        return by in ("*", name) or (not set("*?[") & set(name) and fnmatch.fnmatchcase(name, by))

    return bool(names) and all(any(covered(name, each) for each in patterns) for name in names)
