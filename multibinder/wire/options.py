"""The options of a listener that a client may ask for."""

from __future__ import annotations

import functools
import re
from typing import Any

import msgspec

from multibinder.wire.errors import AddressError
from multibinder.wire.excerpt import excerpt, shown

#: A label that is safe in a log line, a file name and a metric label.
_LABEL = re.compile(r"[A-Za-z0-9_.@/+-]{1,128}")


#: (uid_t) -1 is no user (setresuid(2)).
LARGEST_UID = 2**32 - 1


#: Options that are numbers: the smallest value, the largest, and the unit.
_NUMBERS = {
    "mark": (0, 2**32 - 1, ""),
    "mss": (88, 65495, " bytes"),
    "defer_accept": (1, 2**31 - 1, " seconds"),
    "fastopen": (1, 65535, " connections"),
    "user_timeout": (1, 2**31 - 1, " milliseconds"),
    "keepalive_idle": (1, 32767, " seconds"),
    "keepalive_interval": (1, 32767, " seconds"),
    "keepalive_count": (1, 127, " probes"),
    "tos": (0, 255, ""),
    "rcvbuf": (1, 2**30 - 1, " bytes"),
    "sndbuf": (1, 2**30 - 1, " bytes"),
    "mode": (0, 0o777, ""),
    "user": (0, LARGEST_UID - 1, ""),
    "group": (0, LARGEST_UID - 1, ""),
}
#: IFNAMSIZ, less the NUL that ends it (net/if.h).
_INTERFACE_BYTES = 15


class Options(msgspec.Struct, frozen=True):
    """Options of one listener. None accepts any value of an existing listener, and means the default for a new one.

    A kind of socket has some of them (``wire/kinds/``). One that can change while the socket exists is in force as
    long as the owner that asked for it last asks for it, or has a claim.

    ``backlog``   length of the accept queue, in connections (listen(2)); default: net.core.somaxconn.
    ``v6only``    whether an IPv6 listener does not accept IPv4 (IPV6_V6ONLY, ipv6(7)); default:
                  net.ipv6.bindv6only. It cannot change while the socket exists.
    ``name``      a name to find the listener by, most useful with port 0.
    ``freebind``  whether the address need not be one of this host (IP_FREEBIND, ip(7)).
    ``transparent``  whether connections to foreign addresses are accepted (IP_TRANSPARENT, ip(7)).
    ``interface`` the only network interface whose packets are accepted (SO_BINDTODEVICE, socket(7)).
    ``mark``      the mark of outgoing packets (SO_MARK, socket(7)).
    ``mss``       the largest segment, in bytes (TCP_MAXSEG, tcp(7)).
    ``defer_accept``  seconds for which a client may stay silent before it is accepted (TCP_DEFER_ACCEPT, tcp(7)).
    ``fastopen``  length of the queue of Fast Open requests without a handshake (TCP_FASTOPEN, RFC 7413).
    ``user_timeout``  milliseconds until unacknowledged data ends a connection (TCP_USER_TIMEOUT, tcp(7)).
    ``keepalive_idle``, ``keepalive_interval``, ``keepalive_count``  seconds until the first keepalive probe, between
                  probes, and the number of probes (TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT); each sets SO_KEEPALIVE.
    ``tos``       the traffic class of outgoing packets (IP_TOS, IPV6_TCLASS).
    ``rcvbuf``, ``sndbuf``  size of the receive and send buffer, in bytes (SO_RCVBUF, SO_SNDBUF, socket(7)). The kernel
                  doubles it, and shows the doubled value.
    ``mode``, ``user``, ``group``  permission bits, uid and gid of the path of a Unix socket (unix(7)).
    """

    backlog: int | None = None
    v6only: bool | None = None
    name: str | None = None
    freebind: bool | None = None
    transparent: bool | None = None
    interface: str | None = None
    mark: int | None = None
    mss: int | None = None
    defer_accept: int | None = None
    fastopen: int | None = None
    user_timeout: int | None = None
    keepalive_idle: int | None = None
    keepalive_interval: int | None = None
    keepalive_count: int | None = None
    tos: int | None = None
    rcvbuf: int | None = None
    sndbuf: int | None = None
    mode: int | None = None
    user: int | None = None
    group: int | None = None

    def __post_init__(self) -> None:
        if self.backlog is not None:
            _check_number("backlog", self.backlog, 1, 2**31 - 1, " connections")
        if self.v6only is not None:
            _check_flag("v6only", self.v6only)
        if self.name is not None:
            check_label("name", self.name)
        # Most listeners have none of the rest, and each request makes such a structure.
        for option, value in list(zip(self.__struct_fields__, msgspec.structs.astuple(self), strict=True))[3:]:
            if value is None:
                continue
            if option in ("freebind", "transparent"):
                _check_flag(option, value)
            elif option == "interface":
                _check_interface(value)
            else:
                _check_number(option, value, *_NUMBERS[option])

    @property
    def given(self) -> dict[str, Any]:
        """The options that are given, but for ``name``, with their values. Not to be changed: others have it, too."""
        return _given(self)


#: The names of the options, as a program that passes them on wants to know them.
OPTION_NAMES: tuple[str, ...] = Options.__struct_fields__


@functools.lru_cache(maxsize=1024)
def _given(options: Options) -> dict[str, Any]:
    values = zip(OPTION_NAMES, msgspec.structs.astuple(options), strict=True)
    return {option: value for option, value in values if value is not None and option != "name"}


#: At most so many shards has an address; their number is below this.
MOST_SHARDS = 256
#: Stands before the SO_NETNS_COOKIE of a network namespace.
COOKIE = "cookie:"
_NETNS = re.compile(r"|[0-9]{1,10}|cookie:[0-9]{1,20}|[^/\s\0:][^/\s\0]{0,254}|/[^\0]{0,4094}")


def check_shard(number: int) -> int:
    """Return the number of a shard. Raises AddressError if it is not usable."""
    _check_number("shard", number, 0, MOST_SHARDS - 1, "")
    return number


def check_shards(number: int) -> int:
    """Return a number of shards. Raises AddressError if there cannot be so many."""
    _check_number("shards", number, 1, MOST_SHARDS, "")
    return number


def check_netns(netns: str) -> str:
    """Return the name of a network namespace, as ``ListenerSpec`` has it. Raises AddressError if it is not usable."""
    if not isinstance(netns, str):
        raise _wrong_type("netns", netns, "a str: a name, a path or a PID")
    if not _NETNS.fullmatch(netns) or netns in (".", ".."):
        raise AddressError(
            f"netns {excerpt(repr(netns))} is not usable: give the name of one ('ip netns'), an absolute path, a PID, "
            "or cookie:NUMBER"
        )
    return netns


def check_label(what: str, label: str) -> str:
    """Return a name or owner label that is safe wherever it appears. Raises AddressError if it is not."""
    if not isinstance(label, str):
        raise _wrong_type(what, label, "a str")
    if not _LABEL.fullmatch(label):
        raise AddressError(f"{what} {excerpt(repr(label))} is not usable: 1 to 128 of A-Z a-z 0-9 _ . @ / + -")
    return label


def check_owner(text: str) -> str:
    """Return the name of an owner: a label, or ``label:uid``, where the label may be empty. Raises AddressError."""
    if not isinstance(text, str):
        raise _wrong_type("owner", text, "a str")
    label, colon, uid = text.rpartition(":")
    if not colon:
        return check_label("owner", text)
    if label:
        check_label("owner", label)
    if not (uid.isascii() and uid.isdecimal() and len(uid) <= len(str(LARGEST_UID)) and int(uid) < LARGEST_UID):
        raise AddressError(f"owner {excerpt(repr(text))} is not usable: after the colon of label:uid is a user id")
    return text


def check_optional_owner(text: str) -> str:
    """Do what ``check_owner`` does; an empty text stands for a client without a label."""
    return text if text == "" else check_owner(text)


def _check_number(option: str, value: object, least: int, most: int, unit: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong_type(option, value, "an int")
    if not least <= value <= most:
        shown_least, shown_most = (f"{least:o}", f"{most:o}") if option == "mode" else (f"{least}", f"{most}")
        raise AddressError(f"{option} {shown(value)} is out of range: {shown_least} to {shown_most}{unit}")


def _check_flag(option: str, value: object) -> None:
    if not isinstance(value, bool):
        raise _wrong_type(option, value, "True or False")


def _check_interface(value: object) -> None:
    if not isinstance(value, str):
        raise _wrong_type("interface", value, "a str")
    if not 0 < len(value.encode()) <= _INTERFACE_BYTES or re.search(r"[/\s\0]", value) or value in (".", ".."):
        raise AddressError(f"interface {excerpt(repr(value))} is no name of a network interface")


def _wrong_type(name: str, value: object, wanted: str) -> AddressError:
    return AddressError(f"{name} {shown(value)} is of type {type(value).__name__}: give {wanted}")
