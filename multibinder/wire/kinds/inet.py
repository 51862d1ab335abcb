"""What TCP, Multipath TCP and UDP have in common: addresses of IPv4 and IPv6, and the options of their sockets."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import msgspec

from multibinder.kernel.port_sharing import side_by_side
from multibinder.wire.addresses import Address
from multibinder.wire.addresses.inet import InetAddress
from multibinder.wire.errors import AddressError
from multibinder.wire.kinds.inet_options import options_set, read_option, set_option
from multibinder.wire.kinds.kind import Kind
from multibinder.wire.options import Options

_FAMILIES = (socket.AF_INET, socket.AF_INET6)


class Inet(Kind):
    """A kind of socket of IPv4 and IPv6."""

    #: The letters with which ss(8) lists its sockets that clients reach.
    ss_options: ClassVar[str]

    def recognizes(self, sock: socket.socket) -> bool:
        return sock.family in _FAMILIES

    def check(self, address: Address, options: Options) -> None:
        super().check(address, options)
        if options.v6only is not None and inet(address).version == 4:
            raise AddressError(f"{address}: v6only has a meaning for IPv6 addresses only")

    def effective_addresses(self, address: Address, v6only: bool | None) -> tuple[InetAddress, ...]:
        """A listener on ``::`` also accepts IPv4 unless it has IPV6_V6ONLY, and ``::ffff:192.0.2.1`` is 192.0.2.1."""
        taken = inet(address).unmapped()
        if taken.version == 6 and taken.is_wildcard and not v6only:
            return taken, type(taken)("0.0.0.0", taken.port)
        return (taken,)

    def can_be_beside(self, address: Address, v6only: bool | None, other: Address, other_v6only: bool | None) -> bool:
        """A specific address is preferred to a wildcard, and for an IPv4 client an IPv4 socket to ``::``
        (inet_lookup_listener() in net/ipv4/inet_hashtables.c, udp4_lib_lookup2() in net/ipv4/udp.c). Of two IPv6
        sockets that take the same IPv4 address neither is preferred, and one of two sockets on equal addresses would
        get no client."""
        takes, others = self.effective_addresses(address, v6only), self.effective_addresses(other, other_v6only)
        return takes != others and (address.family != other.family or not {*takes} & {*others})

    def set_option(self, sock: socket.socket, option: str, value: Any) -> None:
        set_option(sock, option, value)

    def actual_options(self, sock: socket.socket, options: Options) -> Options:
        """The interface is None if the socket is bound to none."""
        fixed = {option: read_option(sock, option) for option in self.fixed_options - {"v6only"}}
        return msgspec.structs.replace(options, **fixed, v6only=_v6only(sock))

    def options_of(self, sock: socket.socket) -> Options:
        found = options_set(sock, self.fixed_options | self.live_options)
        return Options(v6only=_v6only(sock), **found)

    def explain_refusal(self, address: Address, number: int, holders: str | None) -> str | None:
        if number == errno.EADDRINUSE:
            if holders is None:
                # A connection from this port, or a socket that is bound and does not listen; or another network
                # namespace, which a process of ours has since entered.
                return (
                    ", and no process listens there: a connection or a bound socket has it; find it "
                    f"('ss -{self.ss_options.replace('l', '')}anp', as root) or choose another port"
                )
            if holders and " on " not in holders:  # else they have another address, which takes this one as well
                adopt = f"take it over with 'multibinder adopt {address}'"
                return f", by {holders}; {adopt}, stop it, or choose another port"
            by = f", by {holders}; stop it" if holders else f"; find who has it ('ss -{self.ss_options}np', as root)"
            return f"{by} or choose another port"
        if number == errno.EACCES:
            return (
                f": a port below {_first_unprivileged_port()} needs CAP_NET_BIND_SERVICE in the binder "
                "(AmbientCapabilities= in its unit), or a lower net.ipv4.ip_unprivileged_port_start"
            )
        if number == errno.EADDRNOTAVAIL:
            return (
                f": no interface of this host has {inet(address).host}; for an address that moves between hosts "
                "give the option freebind, or set net.ipv4.ip_nonlocal_bind=1"
            )
        return None

    def collision_remedy(self, address: Address, other: Address) -> str:
        six = address if address.family == socket.AF_INET6 else other
        return "give v6only=true to the IPv6 one" if address.family != other.family and six == six.wildcard() else ""

    def ss_command(self, address: Address, show: str) -> str:
        return f"ss -{self.ss_options}n{show} 'sport = :{inet(address).port}'"


def inet(address: Address) -> InetAddress:
    """Return an address of IPv4 or IPv6 as such."""
    if not isinstance(address, InetAddress):
        raise TypeError(f"{address} is no address of IPv4 or IPv6")
    return address


def overlap(address: InetAddress, host: str, port: int) -> bool:
    """Return whether a socket on ``host`` and ``port`` keeps ``address`` from being bound."""
    return port == address.port and (host == address.host or host in ("0.0.0.0", "::") or address.is_wildcard)


def share_if_needed(action: Callable[[], None], sockets: Sequence[socket.socket], port: int) -> None:
    """Bind or listen; if the kernel refuses that because of the other ``sockets``, do it side by side with them."""
    try:
        action()
    except OSError as error:
        if error.errno != errno.EADDRINUSE or len(sockets) < 2:
            raise
        with side_by_side(sockets, port):
            action()


def _v6only(sock: socket.socket) -> bool | None:
    if sock.family != socket.AF_INET6:
        return None
    return bool(sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY))


def _first_unprivileged_port() -> str:
    try:
        with open("/proc/sys/net/ipv4/ip_unprivileged_port_start") as setting:
            return setting.read().strip()
    except OSError:
        return "1024"
