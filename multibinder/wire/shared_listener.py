"""A LISTEN socket that this process shares with others."""

from __future__ import annotations

import select
import socket

#: The address of a client, as accept() returns it for IPv4 and for IPv6 (host, port, flow information, scope).
PeerAddress = tuple[str, int] | tuple[str, int, int, int]


class SharedListener(socket.socket):
    """A LISTEN socket that other processes hold as well.

    O_NONBLOCK belongs to the open file description (open(2)), which all holders share. HAProxy, nginx and asyncio set
    it and depend on it; a plain Python socket in blocking mode would then raise BlockingIOError from ``accept()``,
    or break the other holders by clearing the flag. Therefore ``settimeout`` and ``setblocking`` only set the flag here
    and never clear it, and a blocking ``accept()`` polls if the flag is set.

    ``close()`` closes this process's descriptor; the binder's stays, and the port with it.
    """

    _waits_forever = True

    def accept(self) -> tuple[socket.socket, PeerAddress]:
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
