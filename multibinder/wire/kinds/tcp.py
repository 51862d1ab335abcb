"""TCP: LISTEN sockets of IPv4 and IPv6."""

from __future__ import annotations

import contextlib
import errno
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import msgspec

from multibinder.kernel.accept_queue import TCP_LISTEN, accept_queue
from multibinder.kernel.new_clients import can_let_remote_clients_in, let_remote_clients_in, turn_remote_clients_away
from multibinder.kernel.parking import is_parked, park
from multibinder.kernel.port_sharing import end_sharing, side_by_side
from multibinder.kernel.socket_options import drops_of
from multibinder.wire.addresses import Address, TcpAddress
from multibinder.wire.errors import AddressError
from multibinder.wire.kinds.kind import Kind, Queue, Repaired
from multibinder.wire.options import Options

_FAMILIES = (socket.AF_INET, socket.AF_INET6)
#: The largest argument of listen(2). The kernel reduces it to net.core.somaxconn.
_LONGEST_BACKLOG = 2**31 - 1
#: The last packet of a handshake arrives within this time, but for clients that are very far away.
_HANDSHAKE_S = 1.0
#: A holder may call listen(2) between shutdown(2) and the end of ``park``, and opens the port again.
_TRIES = 3


class Tcp(Kind):
    """TCP over IPv4 and IPv6. A socket is ready when it is in state LISTEN."""

    name: ClassVar[str] = "tcp"
    fixed_options = frozenset({"v6only"})
    live_options = frozenset({"backlog"})
    can_shard = True

    def recognizes(self, sock: socket.socket) -> bool:
        return sock.type == socket.SOCK_STREAM and sock.family in _FAMILIES

    def address_of(self, sock: socket.socket) -> TcpAddress:
        return TcpAddress.of_name(sock.getsockname())

    def check(self, address: Address, options: Options) -> None:
        super().check(address, options)
        if options.v6only is not None and _tcp(address).version == 4:
            raise AddressError(f"{address}: v6only has a meaning for IPv6 addresses only")

    def effective_addresses(self, address: Address, v6only: bool | None) -> tuple[TcpAddress, ...]:
        """A listener on ``::`` also accepts IPv4 unless it has IPV6_V6ONLY, and ``::ffff:192.0.2.1`` is 192.0.2.1."""
        tcp = _tcp(address).unmapped()
        if tcp.version == 6 and tcp.is_wildcard and not v6only:
            return tcp, TcpAddress("0.0.0.0", tcp.port)
        return (tcp,)

    def can_be_beside(self, address: Address, v6only: bool | None, other: Address, other_v6only: bool | None) -> bool:
        """A specific address is preferred to a wildcard, and for an IPv4 client an IPv4 socket to ``::``
        (inet_lookup_listener() in net/ipv4/inet_hashtables.c). Of two IPv6 sockets that take the same IPv4 address
        neither is preferred, and one of two sockets on equal addresses would get no client."""
        takes, others = self.effective_addresses(address, v6only), self.effective_addresses(other, other_v6only)
        return takes != others and (address.family != other.family or not {*takes} & {*others})

    def open(self, address: Address, options: Options, beside: Sequence[socket.socket] = ()) -> socket.socket:
        """SO_REUSEADDR is always set: connections in TIME_WAIT must not keep a port from us (socket(7)). SO_REUSEPORT
        is not, but for the moments that ``side_by_side`` needs: with it any process of the same uid could bind the
        port too and take a share of the clients."""
        tcp = _tcp(address)
        sock = socket.socket(tcp.family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if options.v6only is not None and tcp.version == 6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, options.v6only)
            _share_if_needed(lambda: sock.bind(tcp.sockaddr), [sock, *beside], tcp.port)
        except OSError:
            sock.close()
            raise
        return sock

    def actual_options(self, sock: socket.socket, options: Options) -> Options:
        if sock.family != socket.AF_INET6:
            return options
        v6only = bool(sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY))
        return msgspec.structs.replace(options, v6only=v6only)

    def make_ready(self, sock: socket.socket, backlog: int | None, beside: Sequence[socket.socket] = ()) -> int:
        """The kernel reduces every backlog to the net.core.somaxconn that the socket's network namespace has at this
        moment (__sys_listen() in net/socket.c)."""
        longest = _LONGEST_BACKLOG if backlog is None else backlog
        _share_if_needed(lambda: sock.listen(longest), [sock, *beside], self.address_of(sock).port if beside else 0)
        return self.queue(sock).limit

    def repair(
        self, sock: socket.socket, address: Address, options: Options, beside: Sequence[socket.socket] = ()
    ) -> Repaired:
        # A port that the kernel chose is given up when the socket stops listening (inet_put_port() without
        # SOCK_BINDPORT_LOCK), although getsockname() still shows it; listen() alone would choose another one.
        tcp = _tcp(address)
        try:
            _share_if_needed(lambda: sock.bind(tcp.sockaddr), [sock, *beside], tcp.port)
        except OSError as error:
            if error.errno != errno.EINVAL:  # EINVAL: the socket still has its port
                raise
        return Repaired(self.make_ready(sock, options.backlog, beside))

    def end_sharing(self, sock: socket.socket) -> None:
        end_sharing(sock)

    def turn_away(self, sock: socket.socket) -> float:
        """Clients of other hosts are refused. One of this host is kept waiting while the queue is not empty, because
        that admits one client more than listen(2) says. So a busy client of this host does not prolong a drain: the
        queue is found empty soon."""
        address = self.address_of(sock)
        # Bound to the loopback interface, a socket on an IPv6 address of another one cannot be parked.
        if not address.is_loopback and (
            address.is_wildcard or address.unmapped().version == 4 or can_let_remote_clients_in(sock.family)
        ):
            turn_remote_clients_away(sock)
        sock.listen(0)
        return 0.0 if address.is_loopback else _HANDSHAKE_S

    def let_in(self, sock: socket.socket) -> None:
        """For clients of other hosts, that needs CAP_NET_RAW."""
        if not self.address_of(sock).is_loopback:
            let_remote_clients_in(sock)

    def retire(self, sock: socket.socket) -> None:
        """Only shutdown(2) ends listening for all holders (inet_shutdown() in net/ipv4/af_inet.c). For example, an old
        HAProxy worker keeps its copy until it has drained. Then the socket is parked, so that no holder spins, where
        that is possible."""
        for _ in range(_TRIES):
            if is_parked(sock):
                return
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError as error:
                if error.errno != errno.ENOTCONN:  # ENOTCONN: it no longer listens
                    raise
            # A shortage, or no permission to undo ``turn_away``: clients are refused all the same.
            with contextlib.suppress(OSError):
                self.let_in(sock)
            with contextlib.suppress(OSError):
                park(sock)
            if not self.is_ready(sock):
                return

    def is_retired(self, sock: socket.socket) -> bool:
        return is_parked(sock)

    def is_ready(self, sock: socket.socket) -> bool:
        return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))

    def queue(self, sock: socket.socket) -> Queue:
        return Queue(*accept_queue(sock))

    def drops(self, sock: socket.socket) -> int:
        """A packet is a SYN, or the ACK that ends a handshake. A client retries, so it may count more than once."""
        return drops_of(sock)

    def largest_queue(self) -> int:
        try:
            with open("/proc/sys/net/core/somaxconn") as setting:
                return int(setting.read())
        except OSError:
            return 0

    def colliding_inodes(self, address: Address) -> frozenset[int]:
        return frozenset(self.colliding_addresses(address))

    def colliding_addresses(self, address: Address) -> dict[int, TcpAddress]:
        tcp = _tcp(address)
        return {
            inode: bound
            for bound, inode in _listeners()
            if bound.port == tcp.port and (bound.host == tcp.host or bound.is_wildcard or tcp.is_wildcard)
        }

    def ready_inodes(self) -> frozenset[int]:
        return frozenset(inode for _, inode in _listeners())

    def explain_refusal(self, address: Address, number: int, holders: str | None) -> str | None:
        if number == errno.EADDRINUSE:
            if holders is None:
                # A connection from this port, or a socket that is bound and does not listen; or another network
                # namespace, which a process of ours has since entered.
                return (
                    ", and no process listens there: a connection or a bound socket has it; find it ('ss -tanp', as "
                    "root) or choose another port"
                )
            by = f", by {holders}; stop it" if holders else "; find who has it ('ss -ltnp', as root)"
            return f"{by} or choose another port"
        if number == errno.EACCES:
            return (
                f": a port below {_first_unprivileged_port()} needs CAP_NET_BIND_SERVICE in the binder "
                "(AmbientCapabilities= in its unit), or a lower net.ipv4.ip_unprivileged_port_start"
            )
        if number == errno.EADDRNOTAVAIL:
            return (
                f": no interface of this host has {_tcp(address).host}; for an address that moves between hosts "
                "set net.ipv4.ip_nonlocal_bind=1"
            )
        return None

    def collision_remedy(self, address: Address, other: Address) -> str:
        six = address if address.family == socket.AF_INET6 else other
        return "give v6only=true to the IPv6 one" if address.family != other.family and six == six.wildcard() else ""

    def ss_command(self, address: Address, show: str) -> str:
        return f"ss -ltn{show} 'sport = :{_tcp(address).port}'"


TCP = Tcp()


def _share_if_needed(action: Callable[[], None], sockets: Sequence[socket.socket], port: int) -> None:
    """Bind or listen; if the kernel refuses that because of the other ``sockets``, do it side by side with them."""
    try:
        action()
    except OSError as error:
        if error.errno != errno.EADDRINUSE or len(sockets) < 2:
            raise
        with side_by_side(sockets, port):
            action()


def _tcp(address: Address) -> TcpAddress:
    if not isinstance(address, TcpAddress):
        raise TypeError(f"{address} is no TCP address")
    return address


def _listeners() -> Iterator[tuple[TcpAddress, int]]:
    """Yield address and inode of each LISTEN socket (proc_net_tcp in the kernel's documentation)."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        # A kernel without IPv6 has no tcp6.
        with contextlib.suppress(FileNotFoundError), open(table) as lines:
            next(lines)
            yield from _listening(lines)


def _listening(lines: Iterator[str]) -> Iterator[tuple[TcpAddress, int]]:
    """Yield address and inode of each LISTEN socket of a table."""
    for line in lines:
        columns = line.split()
        if int(columns[3], 16) != TCP_LISTEN:
            # Listeners come first (tcp_seq_start() in net/ipv4/tcp_ipv4.c), before perhaps 100,000 connections.
            return
        host, _, port = columns[1].partition(":")
        family = socket.AF_INET if len(host) == 8 else socket.AF_INET6
        yield TcpAddress(socket.inet_ntop(family, _network_order(host)), int(port, 16)), int(columns[9])


def _network_order(column: str) -> bytes:
    # The kernel prints an address as native 32-bit integers.
    return b"".join(int(column[i : i + 8], 16).to_bytes(4, sys.byteorder) for i in range(0, len(column), 8))


def _first_unprivileged_port() -> str:
    try:
        with open("/proc/sys/net/ipv4/ip_unprivileged_port_start") as setting:
            return setting.read().strip()
    except OSError:
        return "1024"
