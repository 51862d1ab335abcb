"""Sockets of vsock(7), between a virtual machine and its host."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from typing import ClassVar

from multibinder.wire.addresses import Address, VsockAddress
from multibinder.wire.kinds.kind import Kind, Queue, Repaired
from multibinder.wire.options import Options

#: The largest argument of listen(2).
_LONGEST_BACKLOG = 2**31 - 1


class Vsock(Kind):
    """Stream sockets of AF_VSOCK. The kernel tells neither their queue nor their drops, and has no shutdown(2) for one
    that listens."""

    name: ClassVar[str] = "vsock"
    fixed_options: ClassVar[frozenset[str]] = frozenset()
    live_options: ClassVar[frozenset[str]] = frozenset({"backlog"})
    is_listed: ClassVar[bool] = False
    tells_queue: ClassVar[bool] = False
    tells_drops: ClassVar[bool] = False

    def recognizes(self, sock: socket.socket) -> bool:
        return sock.family == socket.AF_VSOCK and sock.type == socket.SOCK_STREAM

    def address_of(self, sock: socket.socket) -> VsockAddress:
        return VsockAddress.of_name(sock.getsockname())

    def effective_addresses(self, address: Address, v6only: bool | None) -> tuple[Address, ...]:
        return (address,)

    def open(self, address: Address, options: Options, beside: Sequence[socket.socket] = ()) -> socket.socket:
        sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        try:
            sock.bind(address.sockaddr)
        except OSError:
            sock.close()
            raise
        return sock

    def actual_options(self, sock: socket.socket, options: Options) -> Options:
        return options

    def make_ready(self, sock: socket.socket, backlog: int | None, beside: Sequence[socket.socket] = ()) -> int:
        """The kernel does not tell the limit that it has set."""
        longest = self.largest_queue() or _LONGEST_BACKLOG
        limit = longest if backlog is None else min(backlog, longest)
        sock.listen(limit)
        return limit

    def repair(
        self, sock: socket.socket, address: Address, options: Options, beside: Sequence[socket.socket] = ()
    ) -> Repaired:
        return Repaired(self.make_ready(sock, options.backlog))

    def retire(self, sock: socket.socket) -> None:
        """No call ends listening for the other holders. With a queue of the length 0, one client waits in it, and the
        others are refused."""
        sock.listen(0)

    def is_ready(self, sock: socket.socket) -> bool:
        return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))

    def queue(self, sock: socket.socket) -> Queue:
        return Queue(self.is_ready(sock), 0, 0)

    def drops(self, sock: socket.socket) -> int:
        return 0

    def largest_queue(self) -> int:
        try:
            with open("/proc/sys/net/core/somaxconn") as setting:
                return int(setting.read())
        except OSError:
            return 0

    def colliding_inodes(self, address: Address) -> frozenset[int]:
        """There is no list of these sockets in /proc."""
        return frozenset()

    def ready_inodes(self) -> frozenset[int]:
        return frozenset()

    def explain_refusal(self, address: Address, number: int, holders: str | None) -> str | None:
        if number == errno.EAFNOSUPPORT:
            return (
                ": this kernel has no vsock ('modprobe vsock'), or the unit of the binder does not allow AF_VSOCK "
                "(drop-in vsock.conf)"
            )
        if number == errno.EACCES:
            return (
                ": a vsock port below 1024 needs CAP_NET_BIND_SERVICE in the binder (AmbientCapabilities= in its unit)"
            )
        if number == errno.EADDRNOTAVAIL:
            return ": this machine has another CID; write vsock@*:PORT for every one that it has"
        if number == errno.EADDRINUSE:
            return "; find who has it ('ss -lnp --vsock', as root) or choose another port"
        return None

    def ss_command(self, address: Address, show: str) -> str:
        port = address.port if isinstance(address, VsockAddress) else 0
        return f"ss -ln{show} --vsock 'sport = :{port}'"


VSOCK = Vsock()
