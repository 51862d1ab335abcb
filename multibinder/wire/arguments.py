"""Check the arguments of the public calls before anything is sent: durations, the control socket, the listeners."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Iterable

import msgspec

from multibinder.wire import kinds
from multibinder.wire.addresses import Address, TcpAddress
from multibinder.wire.errors import ArgumentError, ConfigurationError, LocalProtocolError
from multibinder.wire.excerpt import excerpt, shown
from multibinder.wire.messages import ListenerSpec
from multibinder.wire.shared_listener import SharedListener
from multibinder.wire.spread import Shards, addresses_in, in_shards
from multibinder.wire.status import ListenerHealth, ListenerStatus

#: A listener to ask for: ``(host, port)`` of a TCP listener, an address, or an address with options.
#: A text may name several: ``"0.0.0.0:8000-8009,udp@0.0.0.0:53"``.
BindTarget = ListenerSpec | Address | tuple[str, int] | str
#: A listener to release: also what ``bind``, ``Client.list`` and ``Client.status`` return.
ReleaseTarget = BindTarget | SharedListener | ListenerStatus | ListenerHealth

#: The variable with the path of the control socket, for every client and for ``multibinder serve``.
SOCKET_VARIABLE = "MULTIBINDER_SOCK"
DEFAULT_TIMEOUT_S = 10.0
#: sizeof(sun_path), less the NUL that ends it (unix(7)).
PATH_BYTES = 107
#: Thirty years and more are no limit.
_ENDLESS_S = 1e9


def timeout_s(value: float | None) -> float:
    """Return a timeout in seconds; math.inf for None, which sets no limit. Raises ArgumentError."""
    if value is None:
        return math.inf
    seconds = _seconds("timeout", value)
    if seconds <= 0:
        raise ArgumentError(f"timeout {shown(value)} leaves no time to ask: give seconds above 0, or None for no limit")
    return seconds


def wait_s(value: float) -> float:
    """Return how long to wait for a binder, in seconds; math.inf waits for ever. Raises ArgumentError."""
    return _not_negative("wait", value)


def drain_s(value: float) -> float:
    """Return how long a released listener may drain, in seconds. Raises ArgumentError."""
    seconds = _not_negative("drain", value)
    if math.isinf(seconds):
        raise ArgumentError("drain inf would never close the port: give a number of seconds")
    return seconds


def control_path(path: str | os.PathLike[str] | None) -> str:
    """Return the path of the control socket: ``path``, or else $MULTIBINDER_SOCK. Raises ConfigurationError."""
    try:
        named = os.fsdecode(path or os.environ.get(SOCKET_VARIABLE) or "")
    except TypeError:
        raise ArgumentError(f"socket_path is of type {type(path).__name__}: give the path as a str or a Path") from None
    if not named:
        raise ConfigurationError(
            f"{SOCKET_VARIABLE} is not set: set it to the path of the binder's control socket "
            "(as given to 'multibinder serve --socket'), or pass socket_path="
        )
    if (size := len(os.fsencode(named))) > PATH_BYTES:
        raise ConfigurationError(
            f"the path of the control socket has {size} bytes, that of a Unix socket may have {PATH_BYTES} "
            f"(sun_path, unix(7)): no binder serves {excerpt(named)}; choose a shorter one"
        )
    if "\0" in named:
        raise ConfigurationError(f"the path of the control socket has a NUL in it: {excerpt(repr(named))}")
    return named


def specs_of(
    wanted: Iterable[ReleaseTarget], shards: Shards | None = None, netns: str = "", *, whole: bool = False
) -> list[ListenerSpec]:
    """Return the specifications of the targets. Raises AddressError, LocalProtocolError, and what ``wanted`` raises.

    ``shards``, ``netns`` and ``whole`` are those of ``specs_of_one``.
    """
    match wanted:
        case (
            str() | Address() | ListenerSpec() | ListenerStatus() | ListenerHealth() | socket.socket() | (str(), int())
        ):
            raise LocalProtocolError(f"{shown(wanted)} is one listener, and several are expected: put it into a list")
        case Iterable():
            specs: list[ListenerSpec] = []
            for item in wanted:
                specs += specs_of_one(item, shards, netns, whole=whole)
            return specs
    raise LocalProtocolError(f"{shown(wanted)} is no list of listeners")


def specs_of_one(
    target: ReleaseTarget | socket.socket, shards: Shards | None = None, netns: str = "", *, whole: bool = False
) -> list[ListenerSpec]:
    """Return the specifications that a target means: one, or those of a text that names several, and of ``shards``.

    ``netns`` is for a target that names no namespace itself. With ``whole``, a target that names no shard means all
    of an address. Raises AddressError, LocalProtocolError.
    """
    match target:
        case ListenerSpec():
            given = target if target.netns or not netns else msgspec.structs.replace(target, netns=netns)
            return [given] if given.shard or given.shards is not None else in_shards(given, shards)
        case ListenerStatus() | ListenerHealth():
            return [ListenerSpec(Address.parse(target.address), shard=target.shard, netns=_netns_of(target.netns))]
        case SharedListener():
            # It remembers its address: getsockname(2) says another one after a release.
            return [ListenerSpec(target.address, shard=target.shard, netns=target.netns)]
        case socket.socket():
            return [ListenerSpec(_address_of(target))]
        case str():
            addresses = addresses_in(target)
        case Address():
            addresses = [target]
        case (host, port):
            addresses = [TcpAddress.of(host, port)]
        case _:
            raise LocalProtocolError(f"{shown(target)} is neither an address, a (host, port) tuple nor a ListenerSpec")
    return [
        spec
        for address in addresses
        for spec in in_shards(ListenerSpec(address, netns=netns, shards=1 if whole else None), shards)
    ]


def spec_of(target: ReleaseTarget | socket.socket, netns: str = "", *, whole: bool = False) -> ListenerSpec:
    """Return the specification of a target that is one listener. Raises AddressError, LocalProtocolError."""
    specs = specs_of_one(target, netns=netns, whole=whole)
    if len(specs) != 1:
        raise LocalProtocolError(f"{shown(target)} names {len(specs)} listeners, and one is expected")
    return specs[0]


def _netns_of(cookie: int) -> str:
    return f"cookie:{cookie}" if cookie else ""


def _not_negative(name: str, value: float) -> float:
    seconds = _seconds(name, value)
    if seconds < 0:
        raise ArgumentError(f"{name} {shown(value)} is negative: give a number of seconds from 0")
    return seconds


def _seconds(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ArgumentError(f"{name} {shown(value)} is of type {type(value).__name__}: give a number of seconds")
    if value != value:  # math.isnan() refuses an int of more than 308 digits
        raise ArgumentError(f"{name} is not a number (NaN): give a number of seconds")
    # A number of hundreds of digits is no float.
    return math.inf if value >= _ENDLESS_S else float(max(value, -1))


def _address_of(sock: socket.socket) -> Address:
    try:
        address = kinds.address_of(sock)
    except OSError as error:
        raise LocalProtocolError(
            f"{shown(sock)} has no address any more ({error.strerror}): name it by address"
        ) from error
    if address is None:
        raise LocalProtocolError(f"{shown(sock)} is no socket that a binder can hold")
    return address
