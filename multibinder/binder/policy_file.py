"""Read and check the policy file: TOML, a list of ``[[rule]]``.

::

    [[rule]]
    name = "web"                              # shown in refusals; optional
    unit = "multibinder-haproxy@web.service"  # or uid, gid: the clients; a list matches any of its entries
    allow = ["bind", "release", "list"]       # or deny; of METHODS, or "*"
    address = ["*:80", "[2001:db8::/32]:443"]
    options = ["backlog", "v6only"]           # no other option may be given
    netns = [".", "blue"]                     # network namespaces; left out: in allow the binder's own, in deny all
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import stat
import tomllib  # noqa: F401 (msgspec.toml imports it at its first use, which SIGHUP may be)
from collections.abc import Callable, Iterator, Sequence

import msgspec

from multibinder.binder.address_patterns import parse_pattern
from multibinder.binder.netns_patterns import parse_netns
from multibinder.binder.owner import GUEST_UID
from multibinder.binder.policy import (
    ABOUT_LISTENERS,
    METHODS,
    Policy,
    Rule,
    covers,
)
from multibinder.wire.errors import AddressError, MultibinderError
from multibinder.wire.options import OPTION_NAMES

_MAX_BYTES = 1024 * 1024
#: The user and group of clients of other PID namespaces (``Caller``). No user of a host can have this name.
GUEST = "@guest"


class PolicyError(MultibinderError):
    """A policy file cannot be used; the message says where and why."""


_Texts = str | list[str] | None
_Names = int | str | list[int | str] | None


class _RuleText(msgspec.Struct, forbid_unknown_fields=True):
    name: str = ""
    uid: _Names = None
    gid: _Names = None
    unit: _Texts = None
    allow: _Texts = None
    deny: _Texts = None
    address: _Texts = None
    options: _Texts = None
    netns: _Texts = None


class _FileText(msgspec.Struct, forbid_unknown_fields=True):
    rule: list[_RuleText] = []


class ResolvedFile(msgspec.Struct, frozen=True):
    """A file that was read and checked, with numbers in place of the names of users and groups."""

    path: str
    rules: list[_RuleText]

    def policy(self) -> Policy:
        """Return the policy. No name is looked up."""
        return _policy(self.rules, self.path)


def load(path: str) -> Policy:
    """Read and check a file. Raises PolicyError, also for a file that users other than root and ours may write."""
    return parse(_read(path), path)


def parse(text: bytes, path: str) -> Policy:
    """Return the policy that a text describes; ``path`` is for messages. Raises PolicyError."""
    return _policy(_decode(text, path).rule, path)


def resolved(path: str) -> ResolvedFile:
    """Read and check a file as ``load`` does, and return it in a form that passes from one process to another.

    A name of a user or group may be looked up by a module of nsswitch.conf(5) in the network, which takes long, or does
    not end.
    """
    text = _read(path)
    policy = parse(text, path)
    rules = [
        msgspec.structs.replace(
            written,
            uid=None if written.uid is None else sorted(rule.uids),
            gid=None if written.gid is None else sorted(rule.gids),
        )
        for written, rule in zip(_decode(text, path).rule, policy.rules, strict=True)
    ]
    return ResolvedFile(path, rules)


def lint(policy: Policy) -> Iterator[str]:
    """Yield a sentence about each rule that probably does not do what its author meant."""
    if not policy.rules:
        yield "no rule: only root and the binder's own user may ask for anything"
    names: dict[str, Rule] = {}
    for rule in policy.rules:
        if rule.name and (other := names.setdefault(rule.name, rule)) is not rule:
            yield f"{rule}: {other} has the same name"
        for earlier in policy.rules[: rule.number - 1]:
            if covers(earlier, rule):
                yield f"{rule}: never decides: {earlier} matches all that it would"
                break
        if not rule.allow and rule.options == frozenset():
            yield f"{rule}: never matches: its list of options is empty, so it denies none"
        names_no_client = not (rule.uids or rule.gids or rule.units)
        if rule.allow and names_no_client and rule.methods & {"bind", "release", "upgrade"}:
            yield f"{rule}: allows everybody who can reach the control socket: it has no uid, gid or unit"
        if not rule.allow and rule.units:
            yield (
                f"{rule}: denies by unit: it also denies all whose unit cannot be told (none, or the process has ended)"
            )
        is_for_root = names_no_client or (0 in rule.uids and not rule.gids and not rule.units)
        if (
            not rule.allow
            and rule.methods & {"bind", "list", "upgrade"}
            and is_for_root
            and not _root_came_before(policy, rule)
        ):
            at = " there" if rule.addresses or rule.netns else ""
            yield f"{rule}: denies root too{at}; put a rule that allows uid 0 before it if that is not meant"
        # A rule can deny status as a whole only, not for an address.
        about = set(ABOUT_LISTENERS) if rule.allow else set(ABOUT_LISTENERS) - {"status"}
        if rule.netns and not rule.methods & about:
            yield f"{rule}: never matches: {', '.join(sorted(rule.methods))} is about no network namespace"
        if rule.addresses and not rule.methods & about:
            yield f"{rule}: never matches: {', '.join(sorted(rule.methods))} is about no address"
        for pattern in rule.addresses:
            if pattern.why_nothing:
                yield f"{rule}: {pattern} matches nothing: {pattern.why_nothing}"


def _read(path: str) -> bytes:
    try:
        # O_NONBLOCK: a FIFO must not keep the loop waiting for its writer.
        with open(path, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            text = file.read(_MAX_BYTES + 1) if stat.S_ISREG(status.st_mode) else None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise PolicyError(f"{path}: cannot read the policy: {reason}") from error
    if text is None or len(text) > _MAX_BYTES:
        raise PolicyError(f"{path}: no policy: a regular file of at most 1 MiB is expected")
    if status.st_uid not in (0, os.geteuid()):
        raise PolicyError(f"{path}: belongs to uid {status.st_uid}, who could allow themselves anything; 'chown root'")
    if status.st_mode & 0o022:
        mode = stat.S_IMODE(status.st_mode)
        raise PolicyError(f"{path}: others may write it (mode {mode:04o}), so anything may be in it; 'chmod go-w'")
    return text


def _decode(text: bytes, path: str) -> _FileText:
    try:
        content = msgspec.toml.decode(text, type=_FileText)
    except msgspec.ValidationError as error:
        raise PolicyError(f"{path}: {_located(str(error))}") from None
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        # ValueError: the text is not UTF-8, or a number has 5,000 digits.
        raise PolicyError(f"{path}: not TOML: {error}") from None
    return content


def _policy(rules: Sequence[_RuleText], path: str) -> Policy:
    return Policy(path, tuple(_rule(number, rule, path) for number, rule in enumerate(rules, 1)), os.geteuid())


def _root_came_before(policy: Policy, rule: Rule) -> bool:
    for_root = msgspec.structs.replace(rule, uids=frozenset([0]))
    return any(earlier.allow and covers(earlier, for_root) for earlier in policy.rules[: rule.number - 1])


def _rule(number: int, text: _RuleText, path: str) -> Rule:
    where = f'{path}: rule {number} ("{text.name}")' if text.name else f"{path}: rule {number}"
    if (text.allow is None) == (text.deny is None):
        raise PolicyError(f'{where}: give either allow or deny, a list of {", ".join(METHODS)}, or "*"')
    methods = _list(text.allow if text.allow is not None else text.deny)
    keys = ("uid", "gid", "unit", "address", "netns")
    for name, given in ((key, getattr(text, key)) for key in keys):
        if given is not None and not _list(given):
            raise PolicyError(f"{where}: {name} is an empty list, which no client can match; leave it out for any")
    if "" in _list(text.unit):
        raise PolicyError(f"{where}: unit is an empty string, which is no unit's name; leave it out for any")
    if not methods:
        raise PolicyError(f'{where}: no method; name some of {", ".join(METHODS)}, or "*"')
    if unknown := [method for method in methods if method not in (*METHODS, "*")]:
        raise PolicyError(f'{where}: there is no method {unknown[0]!r}; there are {", ".join(METHODS)}, and "*"')
    options = None if text.options is None else frozenset(_list(text.options))
    if options is not None and (strange := sorted(options - set(OPTION_NAMES))):
        raise PolicyError(f"{where}: there is no option {strange[0]!r}; there are {', '.join(OPTION_NAMES)}")
    try:
        return Rule(
            number,
            text.name,
            allow=text.allow is not None,
            methods=frozenset(METHODS if "*" in methods else methods),
            uids=frozenset(_ids(_list(text.uid), "user", lambda name: pwd.getpwnam(name).pw_uid)),
            gids=frozenset(_ids(_list(text.gid), "group", lambda name: grp.getgrnam(name).gr_gid)),
            units=tuple(_list(text.unit)),
            addresses=tuple(map(parse_pattern, _list(text.address))),
            options=options,
            netns=tuple(map(parse_netns, _list(text.netns))),
        )
    except AddressError as error:
        raise PolicyError(f"{where}: {error}") from error


def _list(given: object) -> list:  # type: ignore[type-arg]
    """Return the list of a value that may be None, one item or a list."""
    return [] if given is None else given if isinstance(given, list) else [given]


def _ids(given: Sequence[int | str], kind: str, look_up: Callable[[str], int]) -> Iterator[int]:
    for each in given:
        if isinstance(each, int):
            if not 0 <= each < 2**32 - 1:
                raise AddressError(f"{each} is no {kind}'s number")
            yield each
            continue
        if each == GUEST:
            yield GUEST_UID
            continue
        try:
            yield look_up(each)
        except (KeyError, ValueError):
            command = "passwd" if kind == "user" else "group"
            raise AddressError(f"there is no {kind} {each!r} on this host (see 'getent {command}')") from None


def _located(complaint: str) -> str:
    """Put the place first in a complaint of msgspec.

    msgspec counts rules from 0 and names the place last: ``Object contains unknown field `adress` - at `$.rule[1]```.
    """
    what, _, where = complaint.rpartition(" - at ")
    found = re.match(r"`\$\.rule\[(\d+)\](?:\.(\w+))?", where)
    what = (what or complaint).replace("Object contains unknown field", "there is no such key:")
    if found is None:
        return f"{what}; write [[rule]]"
    key = f"{found[2]}: " if found[2] else ""
    return f"rule {int(found[1]) + 1}: {key}{what[:1].lower()}{what[1:]}"
