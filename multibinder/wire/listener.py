"""LISTEN sockets: made, received and verified, and safe to accept on whatever their other holders do to them."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterable, Sequence

from multibinder.kernel.accept_queue import TCP_LISTEN
from multibinder.wire.address import Address, tcp_address
from multibinder.wire.errors import RemoteProtocolError
from multibinder.wire.messages import ListenerSpec


class SharedListener(socket.socket):
    """A LISTEN socket that other processes hold too.

    O_NONBLOCK belongs to the open file description (open(2)), which all holders share. HAProxy, nginx and asyncio set
    it and depend on it; a plain Python socket in blocking mode would then raise BlockingIOError from ``accept()``,
    and would break the others by clearing it. So here ``settimeout`` and ``setblocking`` may set the flag and never
    clear it, and a blocking ``accept()`` waits by itself when the flag is set.

    ``close()`` closes this process's descriptor; the binder's stays, and the port with it.
    """

    _waits_forever = True

    def accept(self) -> tuple[socket.socket, object]:
        if not self._waits_forever:
            return super().accept()
        while True:
            try:
                return super().accept()
            except (BlockingIOError, TimeoutError):
                readable = select.poll()
                readable.register(self, select.POLLIN)
                readable.poll()

    def listen(self, backlog: int = 0, /) -> None:
        """Nothing: it does listen, and its queue is the binder's. Servers that are given a socket call this with a
        backlog of their own (asyncio with 100), which would be every holder's."""

    def settimeout(self, value: float | None, /) -> None:
        self._waits_forever = value is None
        if value is not None:
            super().settimeout(value)

    def gettimeout(self) -> float | None:
        return None if self._waits_forever else super().gettimeout()

    def setblocking(self, flag: bool, /) -> None:
        self.settimeout(None if flag else 0.0)

    def getblocking(self) -> bool:
        return self.gettimeout() != 0.0

    @property
    def timeout(self) -> float | None:
        return self.gettimeout()


def adopt(descriptor: int, wanted: Address) -> SharedListener:
    """Make a socket of a received descriptor, after the kernel agrees that it is the listener asked for.

    Takes the descriptor: it belongs to the result, or is closed when RemoteProtocolError is raised.
    """
    try:
        sock = SharedListener(wanted.family, socket.SOCK_STREAM, 0, fileno=descriptor)
    except OSError as error:
        os.close(descriptor)
        raise RemoteProtocolError(f"the descriptor for {wanted} is of no use: {error.strerror}") from error
    try:
        # Only a TCP socket answers this; the first byte is its state.
        listening = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == TCP_LISTEN
        bound = tcp_address(sock.getsockname())
    except (OSError, ValueError) as error:
        sock.close()
        raise RemoteProtocolError(f"the descriptor for {wanted} is no TCP socket: {error}") from error
    if not wanted.matches(bound) or not listening:
        sock.close()
        state = "listens on" if listening else "is bound to, without listening,"
        raise RemoteProtocolError(f"asked for {wanted}, but the socket that came {state} {bound}")
    return sock


def adopt_all(descriptors: Sequence[int], wanted: Sequence[Address]) -> list[SharedListener]:
    """``adopt`` for each, all or none: takes all the descriptors, and closes them when it raises."""
    sockets: list[SharedListener] = []
    try:
        for descriptor, address in zip(descriptors, wanted, strict=True):
            sockets.append(adopt(descriptor, address))
    except RemoteProtocolError:
        close_all(sockets)
        for descriptor in descriptors[len(sockets) + 1 :]:
            os.close(descriptor)
        raise
    return sockets


def close_all(sockets: Iterable[socket.socket]) -> None:
    for sock in sockets:
        sock.close()


def open_listener(spec: ListenerSpec) -> socket.socket:
    """A socket bound as ``spec`` says, close-on-exec, not yet listening. Raises OSError; nothing is left open then.

    SO_REUSEADDR always: connections in TIME_WAIT must not keep a port from us (socket(7)). Never SO_REUSEPORT: with
    it any process of the same uid could bind the port as well and take a share of the clients.
    """
    sock = socket.socket(spec.address.family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if spec.options.v6only is not None and spec.address.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, spec.options.v6only)
        sock.bind(spec.address.sockaddr)
    except OSError:
        sock.close()
        raise
    return sock


def listen(sock: socket.socket, backlog: int | None) -> None:
    """listen(2); no backlog means all that the kernel allows: it cuts every number down to the net.core.somaxconn of
    the socket's own network namespace, as that is at this moment (__sys_listen() in net/socket.c)."""
    sock.listen(2**31 - 1 if backlog is None else backlog)
