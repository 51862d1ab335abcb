"""Send and receive on a connection of a check, in plain text or by TLS, without blocking the loop."""

from __future__ import annotations

import socket
import time
from typing import Protocol

from multibinder.launch.run.tasks import readable, writable

_SIZE = 4096


class Late(Exception):
    """The peer did not send or take anything in time."""


class Stream(Protocol):
    """A connection until ``deadline``. Its methods raise Late, and OSError if the connection breaks."""

    async def send(self, content: bytes) -> None: ...

    async def receive(self) -> bytes:
        """Return what comes next; empty at the end."""
        ...


class Plain:
    """A connection in plain text. The socket belongs to the caller. ``deadline`` is of time.monotonic()."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._deadline = deadline

    async def send(self, content: bytes) -> None:
        while content:
            if not await writable(self._sock.fileno(), self._left()):
                raise Late
            content = content[self._sock.send(content, socket.MSG_NOSIGNAL) :]

    async def receive(self) -> bytes:
        if not await readable(self._sock.fileno(), self._left()):
            raise Late
        return self._sock.recv(_SIZE)

    def _left(self) -> float:
        return max(0.0, self._deadline - time.monotonic())
