"""TCP: LISTEN sockets of IPv4 and IPv6."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Sequence
from typing import ClassVar

from multibinder.kernel.accept_queue import accept_queue
from multibinder.kernel.new_clients import can_let_remote_clients_in, let_remote_clients_in, turn_remote_clients_away
from multibinder.kernel.parking import is_parked, park
from multibinder.kernel.port_sharing import end_sharing, stop_sharing
from multibinder.kernel.socket_options import drops_of
from multibinder.kernel.socket_tables import listening_rows
from multibinder.wire.addresses import Address, TcpAddress
from multibinder.wire.addresses.inet import InetAddress
from multibinder.wire.errors import AddressError
from multibinder.wire.kinds.inet import Inet, inet, overlap, share_if_needed
from multibinder.wire.kinds.inet_options import set_all, set_option
from multibinder.wire.kinds.kind import Queue, Repaired
from multibinder.wire.options import Options

#: The largest argument of listen(2). The kernel reduces it to net.core.somaxconn.
_LONGEST_BACKLOG = 2**31 - 1
#: The last packet of a handshake arrives within this time, but for clients that are very far away.
_HANDSHAKE_S = 1.0
#: A holder may call listen(2) between shutdown(2) and the end of ``park``, and opens the port again.
_TRIES = 3
#: The bits of the traffic class that are no part of the DSCP (RFC 3168).
_ECN = 3


class Tcp(Inet):
    """TCP over IPv4 and IPv6. A socket is ready when it is in state LISTEN."""

    name: ClassVar[str] = "tcp"
    fixed_options = frozenset({"v6only", "interface"})
    live_options = frozenset(
        {
            "backlog",
            "freebind",
            "transparent",
            "mark",
            "mss",
            "defer_accept",
            "fastopen",
            "user_timeout",
            "keepalive_idle",
            "keepalive_interval",
            "keepalive_count",
            "tos",
            "rcvbuf",
            "sndbuf",
        }
    )
    can_shard = True
    moves_clients = True
    ss_options = "lt"

    #: The protocol of its sockets, and the family of their addresses.
    protocol: ClassVar[int] = 0
    address_type: ClassVar[type[InetAddress]] = TcpAddress

    def recognizes(self, sock: socket.socket) -> bool:
        return sock.type == socket.SOCK_STREAM and super().recognizes(sock)

    def address_of(self, sock: socket.socket) -> InetAddress:
        return self.address_type.of_name(sock.getsockname())

    def check(self, address: Address, options: Options) -> None:
        super().check(address, options)
        if options.tos is not None and options.tos & _ECN:
            raise AddressError(
                f"{address}: tos {options.tos} has bits of ECN, which belong to the kernel: give a multiple of 4"
            )

    def open(self, address: Address, options: Options, beside: Sequence[socket.socket] = ()) -> socket.socket:
        """SO_REUSEADDR is always set: connections in TIME_WAIT must not keep a port from us (socket(7)). SO_REUSEPORT
        is not, but for the moments that ``side_by_side`` needs: with it any process of the same uid could bind the
        port too and take a share of the clients."""
        sock = socket.socket(address.family, socket.SOCK_STREAM, self.protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if options.v6only is not None:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, options.v6only)
            set_all(sock, options)
            share_if_needed(lambda: sock.bind(address.sockaddr), [sock, *beside], inet(address).port)
        except OSError:
            sock.close()
            raise
        return sock

    def make_ready(self, sock: socket.socket, backlog: int | None, beside: Sequence[socket.socket] = ()) -> int:
        """The kernel reduces every backlog to the net.core.somaxconn that the socket's network namespace has at this
        moment (__sys_listen() in net/socket.c)."""
        longest = _LONGEST_BACKLOG if backlog is None else backlog
        share_if_needed(lambda: sock.listen(longest), [sock, *beside], self.address_of(sock).port if beside else 0)
        return self.queue(sock).limit

    def repair(
        self, sock: socket.socket, address: Address, options: Options, beside: Sequence[socket.socket] = ()
    ) -> Repaired:
        # A port that the kernel chose is given up when the socket stops listening (inet_put_port() without
        # SOCK_BINDPORT_LOCK), although getsockname() still shows it; listen() alone would choose another one.
        try:
            share_if_needed(lambda: sock.bind(address.sockaddr), [sock, *beside], inet(address).port)
        except OSError as error:
            if error.errno != errno.EINVAL:  # EINVAL: the socket still has its port
                raise
        if options.mss is not None:
            set_option(sock, "mss", options.mss)  # shutdown(2) took it away (tcp_disconnect() in net/ipv4/tcp.c)
        return Repaired(self.make_ready(sock, options.backlog, beside))

    def end_sharing(self, sock: socket.socket) -> None:
        end_sharing(sock)

    def take_alone(self, sock: socket.socket, address: Address) -> None:
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT):
            stop_sharing(sock, inet(address).port)

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
        return {
            row.inode: TcpAddress(row.host, row.port)
            for row in listening_rows()
            if overlap(inet(address), row.host, row.port)
        }

    def ready_inodes(self) -> frozenset[int]:
        return frozenset(row.inode for row in listening_rows())


TCP = Tcp()
