"""Receive LISTEN sockets as a client: verify them, and make them safe to share with other processes."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterable, Sequence

from multibinder.wire import kinds
from multibinder.wire.addresses import Address
from multibinder.wire.errors import RemoteProtocolError


class SharedListener(socket.socket):
    """A LISTEN socket that other processes hold as well.

    O_NONBLOCK belongs to the open file description (open(2)), which all holders share. HAProxy, nginx and asyncio set
    it and depend on it; a plain Python socket in blocking mode would then raise BlockingIOError from ``accept()``,
    or break the other holders by clearing the flag. Therefore ``settimeout`` and ``setblocking`` only set the flag here
    and never clear it, and a blocking ``accept()`` polls if the flag is set.

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
        """Do nothing: the socket already listens, and the binder sets its backlog.

        A server that receives a socket calls this with its own backlog (asyncio with 100), which would then apply to
        every holder.
        """

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


def verify_received(descriptor: int, wanted: Address) -> SharedListener:
    """Return the socket of a received descriptor, after the kernel confirms that it is the requested listener.

    Takes the descriptor: it belongs to the result, or is closed when RemoteProtocolError is raised.
    """
    try:
        sock = SharedListener(fileno=descriptor)
    except OSError as error:
        os.close(descriptor)
        raise RemoteProtocolError(f"the descriptor for {wanted} is of no use: {error.strerror}") from error
    kind = kinds.of_address(wanted)
    name = kind.name.upper()
    try:
        if not kind.recognizes(sock):
            raise RemoteProtocolError(f"the descriptor for {wanted} is no {name} socket, but {sock.family!r}")
        ready, bound = kind.queue(sock).ready, kind.address_of(sock)
        if not wanted.matches(bound) or not ready:
            state = "listens on" if ready else "is bound to, without listening,"
            raise RemoteProtocolError(f"asked for {wanted}, but the socket that came {state} {bound}")
    except OSError as error:
        sock.close()
        raise RemoteProtocolError(f"the descriptor for {wanted} is no {name} socket: {error}") from error
    except BaseException:
        sock.close()
        raise
    return sock


def verify_all_received(descriptors: Sequence[int], wanted: Sequence[Address]) -> list[SharedListener]:
    """Call ``verify_received`` for each descriptor. Takes all of them, and closes all of them if one is refused."""
    sockets: list[SharedListener] = []
    try:
        for descriptor, address in zip(descriptors, wanted, strict=True):
            sockets.append(verify_received(descriptor, address))
    except BaseException:
        close_all(sockets)
        for descriptor in descriptors[len(sockets) + 1 :]:
            os.close(descriptor)
        raise
    return sockets


def close_all(sockets: Iterable[socket.socket]) -> None:
    for sock in sockets:
        sock.close()
