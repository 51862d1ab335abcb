"""UDP over IPv4 and IPv6, also for servers of QUIC."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator, Sequence
from typing import ClassVar

from multibinder.kernel.accept_queue import TCP_ESTABLISHED
from multibinder.kernel.port_sharing import end_sharing
from multibinder.kernel.silence import is_shut_down, is_silenced, peer_of, receive_from_all, silence
from multibinder.kernel.socket_options import drops_of, inode_of, memory_of
from multibinder.kernel.socket_tables import Row, rows
from multibinder.wire.addresses import Address, QuicAddress, UdpAddress
from multibinder.wire.addresses.inet import InetAddress
from multibinder.wire.kinds.inet import Inet, inet, overlap, share_if_needed
from multibinder.wire.kinds.inet_options import set_all
from multibinder.wire.kinds.kind import Queue, Repaired
from multibinder.wire.options import Options


class Udp(Inet):
    """UDP. A socket is ready when every sender reaches it: a holder has not connected it, or shut it down.

    It receives from bind(2) on. Its queue counts bytes of memory: a datagram takes more of it than it has bytes.
    """

    name: ClassVar[str] = "udp"
    fixed_options = frozenset({"v6only", "interface"})
    live_options = frozenset({"freebind", "transparent", "mark", "tos", "rcvbuf", "sndbuf"})
    can_shard = True
    queue_unit = "bytes"
    ss_options = "lu"

    #: The protocols of its sockets, and the file that lists them.
    protocols: ClassVar[tuple[int, ...]] = (0, socket.IPPROTO_UDP)
    table: ClassVar[str] = "udp"

    def recognizes(self, sock: socket.socket) -> bool:
        return sock.type == socket.SOCK_DGRAM and sock.proto in self.protocols and super().recognizes(sock)

    def address_of(self, sock: socket.socket) -> InetAddress:
        """Only a listener for QUIC has SO_REUSEADDR."""
        is_shared = sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
        return (QuicAddress if is_shared else UdpAddress).of_name(sock.getsockname())

    def is_bound_to(self, sock: socket.socket, address: Address) -> bool:
        """A socket with SO_REUSEADDR may be that of a plain server, too, which has no use for it."""
        bound = sock.getsockname()
        return address in (UdpAddress.of_name(bound), self.address_of(sock))

    def take_alone(self, sock: socket.socket, address: Address) -> None:
        for option in (socket.SO_REUSEPORT, socket.SO_REUSEADDR):
            if option != socket.SO_REUSEADDR or address == UdpAddress.of_name(sock.getsockname()):
                sock.setsockopt(socket.SOL_SOCKET, option, 0)

    def accepts(self, address: Address) -> bool:
        return False

    def effective_addresses(self, address: Address, v6only: bool | None) -> tuple[InetAddress, ...]:
        return super().effective_addresses(_udp(address), v6only)

    def open(self, address: Address, options: Options, beside: Sequence[socket.socket] = ()) -> socket.socket:
        """SO_REUSEADDR would let every user bind the port too, and get all datagrams. QUIC needs it, because its
        servers have a socket on the same port for each connection; it is set after bind(2), so that an address that
        another process has is refused."""
        sock = socket.socket(address.family, socket.SOCK_DGRAM, self.protocols[0])
        try:
            if options.v6only is not None:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, options.v6only)
            set_all(sock, options)
            self._bind(sock, inet(address), beside)
            if isinstance(address, QuicAddress):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        except OSError:
            sock.close()
            raise
        return sock

    def make_ready(self, sock: socket.socket, backlog: int | None, beside: Sequence[socket.socket] = ()) -> int:
        """A socket is ready when it is bound."""
        return memory_of(sock).limit

    def repair(
        self, sock: socket.socket, address: Address, options: Options, beside: Sequence[socket.socket] = ()
    ) -> Repaired:
        """connect(2) is undone over IPv4. The kernel cannot undo shutdown(2), and connect(2) over IPv6: then another
        socket gets the datagrams. What waits stays in the old one, for the processes that hold it."""
        if is_shut_down(sock) or sock.family == socket.AF_INET6:
            replacement = self._replacement(sock, inet(address), options)
            return Repaired(memory_of(replacement).limit, replacement)
        receive_from_all(sock, inet(address).port)
        return Repaired(memory_of(sock).limit)

    def require_repairable(
        self, sock: socket.socket, address: Address, options: Options, beside: Sequence[socket.socket] = ()
    ) -> None:
        """A socket keeps its port also after shutdown(2), so that no other socket can be in the way."""

    def caution(self, address: Address) -> str | None:
        if not isinstance(address, QuicAddress):
            return None
        return (
            f"every user of this host can bind {address.udp} too, with SO_REUSEADDR, and gets its datagrams then: QUIC "
            "needs that option"
        )

    def end_sharing(self, sock: socket.socket) -> None:
        end_sharing(sock)

    def turn_away(self, sock: socket.socket) -> float:
        """Holders still receive what waits, and can answer it."""
        silence(sock)
        return 0.0

    def let_in(self, sock: socket.socket) -> None:
        """Over IPv6 that is an error: the listener is opened again, and its holders receive what waits."""
        if is_silenced(sock):
            receive_from_all(sock, sock.getsockname()[1])

    def retire(self, sock: socket.socket) -> None:
        """A holder keeps the port until it closes the socket. So others may bind it beside: with SO_REUSEADDR, or
        SO_REUSEPORT as the same user, or ``open``."""
        silence(sock)
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            sock.setsockopt(socket.SOL_SOCKET, option, 1)

    def is_retired(self, sock: socket.socket) -> bool:
        return is_silenced(sock)

    def is_ready(self, sock: socket.socket) -> bool:
        """A socket loses a port that the kernel has chosen when a holder undoes connect(2)."""
        return peer_of(sock) is None and not is_shut_down(sock) and sock.getsockname()[1] != 0

    def queue(self, sock: socket.socket) -> Queue:
        """The holders of a socket that lets nobody in any more still receive what waits."""
        memory = memory_of(sock)
        return Queue(self.is_ready(sock) or is_silenced(sock), memory.waiting, memory.limit)

    def drops(self, sock: socket.socket) -> int:
        """A datagram is dropped when it finds no room in the queue. Most senders do not send it again."""
        return drops_of(sock)

    def largest_queue(self) -> int:
        """The size of the queue is the option ``rcvbuf``; a longer one is never set without it."""
        return 0

    def colliding_inodes(self, address: Address) -> frozenset[int]:
        return frozenset(self.colliding_addresses(address))

    def colliding_addresses(self, address: Address) -> dict[int, UdpAddress]:
        return {row.inode: UdpAddress(row.host, row.port) for row in self._in_the_way(inet(address))}

    def ready_inodes(self) -> frozenset[int]:
        return frozenset(row.inode for row in rows(self.table) if row.state != TCP_ESTABLISHED)

    def _bind(self, sock: socket.socket, address: InetAddress, beside: Sequence[socket.socket]) -> None:
        """Bind beside ``beside``, and beside sockets that are connected, as retired ones are: each of them gets
        datagrams of its peer only."""
        sockets = [sock, *beside]
        try:
            share_if_needed(lambda: sock.bind(address.sockaddr), sockets, address.port)
        except OSError as error:
            ours = {inode_of(each) for each in beside}
            others = [row for row in self._in_the_way(address) if row.inode not in ours]
            if error.errno != errno.EADDRINUSE or any(row.state != TCP_ESTABLISHED for row in others):
                raise
            with _shared([sock]):
                share_if_needed(lambda: sock.bind(address.sockaddr), sockets, address.port)

    def _in_the_way(self, address: InetAddress) -> Iterator[Row]:
        """Yield the sockets that keep ``address`` from being bound."""
        return (row for row in rows(self.table) if overlap(address, row.host, row.port))

    def _replacement(self, sock: socket.socket, address: InetAddress, options: Options) -> socket.socket:
        """Return another socket that is bound to the address of ``sock``, and silence ``sock``."""
        new = socket.socket(sock.family, socket.SOCK_DGRAM, self.protocols[0])
        try:
            if sock.family == socket.AF_INET6:
                v6only = sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
                new.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
            set_all(new, options)
            # A shard may have the user of no process (``share`` in kernel/port_sharing.py).
            with contextlib.suppress(OSError):
                os.fchown(new.fileno(), os.fstat(sock.fileno()).st_uid, -1)
            with _shared([sock, new]):
                new.bind(address.sockaddr)
                silence(sock)
        except OSError:
            new.close()
            raise
        for option in _SHARING:
            new.setsockopt(socket.SOL_SOCKET, option, sock.getsockopt(socket.SOL_SOCKET, option))
        return new


UDP = Udp()

_SHARING = (socket.SO_REUSEADDR, socket.SO_REUSEPORT)


@contextlib.contextmanager
def _shared(sockets: Sequence[socket.socket]) -> Iterator[None]:
    """Let each of the sockets bind beside the others, and beside others that allow it, for the time of this block."""
    before = [(sock, option, sock.getsockopt(socket.SOL_SOCKET, option)) for sock in sockets for option in _SHARING]
    try:
        for sock, option, _ in before:
            sock.setsockopt(socket.SOL_SOCKET, option, 1)
        yield
    finally:
        for sock, option, value in before:
            sock.setsockopt(socket.SOL_SOCKET, option, value)


def _udp(address: Address) -> InetAddress:
    return address.udp if isinstance(address, QuicAddress) else inet(address)
