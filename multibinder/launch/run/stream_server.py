"""A socket at a path of the instance on which ``run`` accepts clients, a limited number at a time."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from multibinder.launch.run.tasks import Loop, readable, sleep

_PAUSE_S = 0.05
_CREDENTIALS = struct.Struct("=iII")


class Peer(NamedTuple):
    """The process that connected, and its user (SO_PEERCRED, unix(7))."""

    pid: int
    uid: int


class StreamServer:
    """The socket at ``path``, with this mode. The descriptor belongs to this object.

    A socket that an earlier ``run`` left is replaced. ``serve_client`` gets each client, and its peer; the client is
    closed afterwards. A further client than ``limit`` waits. ``name`` is for the message about a failure.
    """

    def __init__(
        self,
        path: str,
        mode: int,
        limit: int,
        loop: Loop,
        serve_client: Callable[[socket.socket, Peer], Awaitable[None]],
        name: str,
    ) -> None:
        self.path = path
        self._limit = limit
        self._loop = loop
        self._serve_client = serve_client
        self._name = name
        #: The number of clients that are served now.
        self.clients = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            umask = os.umask(0o777 & ~mode)
            try:
                self._socket.bind(path)
            finally:
                os.umask(umask)
            self._socket.listen(limit)
        except OSError:
            self._socket.close()
            raise

    async def serve(self) -> None:
        """Accept clients for ever."""
        while True:
            await readable(self._socket.fileno())
            if self.clients >= self._limit:
                await sleep(_PAUSE_S)
                continue
            try:
                client, _ = self._socket.accept()
            except OSError:
                await sleep(_PAUSE_S)  # the client has gone, or no descriptor is free
                continue
            self.clients += 1
            self._loop.start(self._serve(client), self._name)

    def close(self) -> None:
        """Close the socket, and remove its path."""
        self._socket.close()
        with contextlib.suppress(OSError):
            os.unlink(self.path)

    async def _serve(self, client: socket.socket) -> None:
        try:
            with client:
                client.setblocking(False)
                credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
                pid, uid, _ = _CREDENTIALS.unpack(credentials)
                await self._serve_client(client, Peer(pid, uid))
        except OSError:
            pass  # the client has gone
        finally:
            self.clients -= 1
