"""The socket on which the commands ``reload``, ``stop`` and ``instances`` ask ``run`` (report.py has the messages)."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Awaitable, Callable

import msgspec

from multibinder.launch.run.report import Answer, Progress, Request
from multibinder.launch.run.tasks import Loop, readable, sleep, writable

_CREDENTIALS = struct.Struct("=iII")
_SIZE = 65536
_PATIENCE_S = 10.0
_PAUSE_S = 0.05
_TURN_S = 0.005
_CLIENTS = 64

#: Carries out a command. Sentences about what happens meanwhile go to the function.
Handler = Callable[[Request, Callable[[str], None]], Awaitable[Answer]]


class ControlServer:
    """The socket at ``path``, for root and the user of this process alone. The descriptor belongs to this object.

    A socket that an earlier ``run`` left is replaced.
    """

    def __init__(self, path: str, loop: Loop, handle: Handler) -> None:
        self.path = path
        self._loop = loop
        self._handle = handle
        self._clients = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            umask = os.umask(0o177)
            try:
                self._socket.bind(path)
            finally:
                os.umask(umask)
            self._socket.listen(_CLIENTS)
        except OSError:
            self._socket.close()
            raise

    async def serve(self) -> None:
        """Accept clients for ever."""
        while True:
            await readable(self._socket.fileno())
            if self._clients >= _CLIENTS:
                await sleep(_PAUSE_S)
                continue
            try:
                client, _ = self._socket.accept()
            except OSError:
                await sleep(_PAUSE_S)  # the client has gone, or no descriptor is free
                continue
            self._clients += 1
            self._loop.start(self._answer(client), "a command")

    async def finish(self, limit_s: float) -> None:
        """Wait until the commands that are under way are answered."""
        deadline = time.monotonic() + limit_s
        while self._clients and time.monotonic() < deadline:
            await sleep(_TURN_S)

    def close(self) -> None:
        """Close the socket, and remove its path."""
        self._socket.close()
        with contextlib.suppress(OSError):
            os.unlink(self.path)

    async def _answer(self, client: socket.socket) -> None:
        try:
            with client:
                client.setblocking(False)
                credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
                if _CREDENTIALS.unpack(credentials)[1] not in (0, os.geteuid()):
                    return
                request = await _request(client)
                if request is None:
                    return

                def progress(text: str) -> None:
                    # A client that does not read misses what happens meanwhile, not the end.
                    with contextlib.suppress(OSError):
                        client.send(msgspec.json.encode(Progress(text)) + b"\n")

                if isinstance(request, Answer):
                    answer = request
                else:
                    answer = await self._handle(request, progress)
                await _send(client, msgspec.json.encode(answer) + b"\n")
        except OSError:
            pass  # the client has gone
        finally:
            self._clients -= 1


async def _request(client: socket.socket) -> Request | Answer | None:
    """Return the request; an answer to one that makes no sense; None if the client has gone."""
    text = b""
    while b"\n" not in text:
        if len(text) > _SIZE or not await readable(client.fileno(), _PATIENCE_S):
            return None
        more = client.recv(_SIZE)
        if not more:
            return None
        text += more
    try:
        return msgspec.json.decode(text.partition(b"\n")[0], type=Request)
    except msgspec.DecodeError as error:
        return Answer(error=f"'multibinder run' does not understand the request: {error}; are both of one version?")


async def _send(client: socket.socket, message: bytes) -> None:
    while message:
        if not await writable(client.fileno(), _PATIENCE_S):
            return
        with contextlib.suppress(BlockingIOError):
            message = message[client.send(message) :]
