"""The settings of a listener in a plain bind line, in its section and in ``unix-bind``, as options of ours."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Any

import msgspec

from multibinder import Address, AddressError
from multibinder.wire import kinds
from multibinder.wire.listener_options import group_id, user_id
from multibinder.wire.options import MOST_SHARDS
from multibinder.wire.spread import Shards, shard_count
from multibinder_haproxy.config.bind_addresses import LeftToHaproxy
from multibinder_haproxy.config.bind_options import BindOption, options_of
from multibinder_haproxy.config.config_variables import UNKNOWN
from multibinder_haproxy.config.lines import Line
from multibinder_haproxy.config.sections import Section

#: The sections whose own ``backlog``, or that of their defaults, counts where a bind has none.
_WITH_BACKLOG = frozenset(["frontend", "listen", "log-forward"])
#: The permissions of a path without ``mode``: those of bind(2) under the usual umask, 022.
_USUAL_MODE = 0o755
_THREADS = re.compile(r"(?:[0-9]+/)?([0-9]{1,4})(?:-([0-9]{1,4}))?")


class UnixDefaults(msgspec.Struct, frozen=True):
    """What ``unix-bind`` of the global section says (configuration.txt, 3.1), for the lines after it."""

    prefix: str = ""
    mode: int | None = None
    user: int | None = None
    group: int | None = None

    def changed_by(self, line: Line) -> UnixDefaults:
        """Return the settings after a ``unix-bind`` line. A word that HAProxy refuses changes nothing."""
        changes: dict[str, Any] = {}
        words = [str(word) for word in line.arguments]
        for name, value in zip(words[::2], words[1::2], strict=False):
            if name == "prefix":
                changes[name] = value
            elif name in ("mode", "user", "uid", "group", "gid"):
                changes |= _permission(name, value)
        return msgspec.structs.replace(self, **changes)


class Settings(msgspec.Struct, frozen=True):
    """The settings of the listeners of one bind line.

    ``shards`` is None for one listener; ``netns`` is a namespace. ``threads`` is the number of threads that accept on
    it; None for one on each CPU. HAProxy makes no more shards than that.
    """

    backlog: int | None = None
    v6only: bool | None = None
    interface: str | None = None
    transparent: bool | None = None
    netns: str = ""
    shards: Shards | None = None
    threads: int | None = None
    permissions: dict[str, int] = {}

    @staticmethod
    def of(section: Section, threads: int | None) -> Settings:
        """Return what a section says of all its binds, in a HAProxy with this number of threads (``threads``)."""
        settings = Settings(threads=threads)
        if section.keyword in _WITH_BACKLOG and (found := section.last("backlog")) and found[1].arguments:
            settings = msgspec.structs.replace(settings, backlog=_number("backlog", str(found[1].arguments[0])))
        for line in section.with_keyword("default-bind"):
            settings = settings.with_options(options_of(line.arguments))
        return settings

    def with_options(self, options: Iterable[BindOption]) -> Settings:
        """Return the settings with those of a line. Raises LeftToHaproxy for a value that is not certain."""
        changes: dict[str, Any] = {}
        permissions = dict(self.permissions)
        asked: Shards | None = None
        for option in options:
            name, value = option.name, option.argument
            if UNKNOWN in name + value:
                raise LeftToHaproxy("a variable in its options is known to HAProxy alone")
            match name:
                case "backlog":
                    changes[name] = _number(name, value)
                case "v6only":
                    changes[name] = True
                case "v4v6":
                    changes.setdefault("v6only", False)  # v6only is the stronger one (sock_inet.c)
                case "interface":
                    changes[name] = value
                case "transparent":
                    changes[name] = True
                case "namespace":
                    changes["netns"] = value
                case "thread":
                    changes["threads"] = _number_of_threads(value, self.threads)
                case "shards":
                    asked = _shards(value)
                case "mode" | "user" | "uid" | "group" | "gid":
                    permissions |= _permission(name, value)
        if asked is not None:
            changes["shards"] = _limited(asked, changes.get("threads", self.threads))
        return msgspec.structs.replace(self, **changes, permissions=permissions)

    def for_address(self, address: Address, unix: UnixDefaults) -> dict[str, Any]:
        """Return the options of ours for a listener of an address; HAProxy ignores those that do not fit it, too."""
        kind = kinds.of_address(address)
        ip = address.ip_endpoint
        known = kind.fixed_options | kind.live_options
        given: dict[str, Any] = {
            "backlog": self.backlog or None,
            "interface": self.interface,
            "transparent": self.transparent,
            # Only the wildcard of IPv6 can take IPv4 clients, too (ipv6(7)).
            "v6only": self.v6only if ip is not None and ip.version == 6 and ip.number == 0 else None,
        }
        if address.path is not None:
            named = {"mode": unix.mode, "user": unix.user, "group": unix.group}
            own = {"mode": _USUAL_MODE, "user": os.geteuid(), "group": os.getegid()}
            given |= own | {name: value for name, value in named.items() if value is not None} | self.permissions
        return {name: value for name, value in given.items() if name in known and value is not None}


def _number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise LeftToHaproxy(f"its {name} is no number")
    return int(text[:20])


def threads_of(number: str) -> int | None:
    """Return the number of HAProxy's threads that ``nbthread`` gives; None for one on each CPU."""
    return int(number) if number.isascii() and number.isdecimal() else None


def _number_of_threads(text: str, all_threads: int | None) -> int | None:
    """Return how many threads a set has: ``2``, ``1-4`` or ``1/1-4``. Any other set counts as all of them."""
    found = _THREADS.fullmatch(text)
    if found is None:
        return all_threads
    first, last = int(found[1]), int(found[2] or found[1])
    return max(1, min(last, all_threads or shard_count("cpus")) - first + 1)


def _shards(text: str) -> Shards:
    # A thread group has up to 64 threads, and one is the default.
    if text == "by-group":
        return 1
    return "cpus" if text == "by-thread" else max(_number("shards", text), 1)


def _limited(asked: Shards, threads: int | None) -> Shards:
    """Return the number of shards that HAProxy makes of what was asked for."""
    if asked == "cpus":
        return asked if threads is None else min(threads, MOST_SHARDS)
    return min(asked, threads or shard_count("cpus"), MOST_SHARDS)


def _permission(name: str, value: str) -> dict[str, int]:
    try:
        match name:
            case "mode":
                return {"mode": int(value, 8)}
            case "user":
                return {"user": user_id(value)}
            case "group":
                return {"group": group_id(value)}
        return {{"uid": "user", "gid": "group"}[name]: _number(name, value)}
    except (ValueError, AddressError) as error:
        raise LeftToHaproxy(f"its {name} {value!r} means nothing here") from error
