"""The address of a plain bind line, as HAProxy reads it (str2listener() in cfgparse.c, str2sa_range() in tools.c)."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Sequence

from multibinder import Address, AddressError
from multibinder.wire.excerpt import excerpt
from multibinder.wire.spread import check_number
from multibinder_haproxy.config.config_variables import UNKNOWN

#: The prefixes of inet addresses: the kind in our grammar, and the IP version that each demands.
_INET = {
    "": ("tcp", None),
    "ip": ("tcp", None),
    "ipv4": ("tcp", 4),
    "ipv6": ("tcp", 6),
    "tcp": ("tcp", None),
    "tcp4": ("tcp", 4),
    "tcp6": ("tcp", 6),
    "mptcp": ("mptcp", None),
    "mptcp4": ("mptcp", 4),
    "mptcp6": ("mptcp", 6),
    "udp": ("udp", None),
    "udp4": ("udp", 4),
    "udp6": ("udp", 6),
    "quic4": ("quic", 4),
    "quic6": ("quic", 6),
}
_OF_DATAGRAMS = frozenset(["udp", "uxdg"])
_PATHS = {"unix": "unix", "uxst": "unix", "uxdg": "uxdg"}
_ABSTRACT = frozenset(["abns", "abnsz"])
#: What HAProxy gets from elsewhere, so that there is nothing to hold.
_NOT_BOUND = frozenset(["fd", "sockpair", "rhttp", "rev"])
#: The part before ``+`` gives the type of the socket. It stands before ``fd@``, as a rule (2.8 and later).
_PREFIX = re.compile(r"(?P<type>(?:stream|dgram|quic)\+)?(?P<prefix>[a-z0-9]+)@")
_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
#: A placeholder in a configuration cannot have these in its address, nor can a word of HAProxy's without quotes.
_UNUSABLE = re.compile(r"[\s{}()\"'\\#$,]")


class LeftToHaproxy(ValueError):
    """The binder cannot hold an address, or its meaning is not certain. The text, a part of a sentence, is why."""


class NotBound(LeftToHaproxy):
    """HAProxy does not open this socket itself (``fd@``, ``sockpair@``), so that there is nothing to take over."""


def addresses_of(text: str, *, datagrams: bool = False, path_prefix: str = "") -> Sequence[Address]:
    """Return the addresses of one element of a bind's list, which is several if it has a range of ports.

    ``datagrams`` is True for a ``dgram-bind``. ``path_prefix`` is what ``unix-bind prefix`` puts before a path. Raises
    LeftToHaproxy.
    """
    if UNKNOWN in text:
        raise LeftToHaproxy("a variable in it is known to HAProxy alone")
    if not text:
        raise LeftToHaproxy("the address is empty")
    found = _PREFIX.match(text)
    prefix = found["prefix"] if found else "unix" if text.startswith("/") else ""
    rest = text[found.end() :] if found else text
    if prefix in _NOT_BOUND:
        raise NotBound("HAProxy does not bind it")
    if found and found["type"]:
        raise LeftToHaproxy(f"multibinder does not know the type {found['type']}")
    if datagrams and prefix in ("", "ip", "ipv4", "ipv6"):
        prefix = {"": "udp", "ip": "udp", "ipv4": "udp4", "ipv6": "udp6"}[prefix]
    elif datagrams and prefix == "unix":
        prefix = "uxdg"
    if datagrams != (prefix in _OF_DATAGRAMS or prefix.startswith("udp")):
        raise LeftToHaproxy("HAProxy refuses an address of this sort there")
    try:
        if prefix in _PATHS:
            return [_path(_PATHS[prefix], path_prefix + rest)]
        if prefix in _ABSTRACT:
            return [Address.parse(f"{prefix}@{_usable(rest)}")]
        if prefix in _INET:
            return _inet(*_INET[prefix], rest)
    except AddressError as error:
        raise LeftToHaproxy(str(error)) from error
    raise LeftToHaproxy(f"multibinder does not know the prefix {prefix}@")


def _path(kind: str, path: str) -> Address:
    if not path.startswith("/"):
        raise LeftToHaproxy("the path is relative")
    return Address.parse(f"{kind}@{_usable(path)}")


def _usable(name: str) -> str:
    if found := _UNUSABLE.search(name):
        raise LeftToHaproxy(f"its name has the character {excerpt(repr(found[0]))}")
    return name


def _inet(kind: str, version: int | None, text: str) -> list[Address]:
    # The last colon counts, unless a bracket follows it.
    colon = max(text.rfind(":"), 0)
    if not text or text[colon] != ":" or text.rfind("]") > colon:
        raise LeftToHaproxy("it has no port")
    ports = _PORTS.fullmatch(text[colon + 1 :])
    if ports is None:
        raise LeftToHaproxy("its port is no number")
    first, last = int(ports[1]), int(ports[2] or ports[1])
    if not 1 <= first <= last <= 65535:
        raise LeftToHaproxy("HAProxy refuses the port")
    host = _host(text[:colon], version)
    check_number(last - first + 1, text)
    family = ("6" if ":" in host else "4") if kind == "quic" else ""
    shown = f"[{host}]" if ":" in host else host
    prefix = "" if kind == "tcp" else f"{kind}{family}@"
    return [Address.parse(f"{prefix}{shown}:{port}") for port in range(first, last + 1)]


def _host(text: str, version: int | None) -> str:
    """Return the numeric host that HAProxy reads (str2ip2() in tools.c)."""
    bare = text[1:-1] if len(text) > 3 and text.startswith("[") and text.endswith("]") else text
    if bare in ("", "*"):
        return "::" if version == 6 else "0.0.0.0"
    for number, family in ((6, socket.AF_INET6), (4, socket.AF_INET)):
        if version in (None, number):
            with contextlib.suppress(OSError, ValueError):
                return socket.inet_ntop(family, socket.inet_pton(family, bare))
    raise LeftToHaproxy("the name must be resolved")
