"""The socket on which the commands ``reload``, ``stop`` and ``instances`` ask ``run`` (report.py has the messages)."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Awaitable, Callable

import msgspec

from multibinder.launch.run.report import Answer, Progress, Request
from multibinder.launch.run.stream_server import Peer, StreamServer
from multibinder.launch.run.tasks import Loop, readable, sleep, writable

_SIZE = 65536
_PATIENCE_S = 10.0
_TURN_S = 0.005
_CLIENTS = 64

#: Carries out a command. Sentences about what happens meanwhile go to the function.
Handler = Callable[[Request, Callable[[str], None]], Awaitable[Answer]]


class ControlServer(StreamServer):
    """The socket at ``path``, for root and the user of this process alone. The descriptor belongs to this object.

    A socket that an earlier ``run`` left is replaced.
    """

    def __init__(self, path: str, loop: Loop, handle: Handler) -> None:
        super().__init__(path, 0o600, _CLIENTS, loop, self._answer, "a command")
        self._handle = handle

    async def finish(self, limit_s: float) -> None:
        """Wait until the commands that are under way are answered."""
        deadline = time.monotonic() + limit_s
        while self.clients and time.monotonic() < deadline:
            await sleep(_TURN_S)

    async def _answer(self, client: socket.socket, peer: Peer) -> None:
        if peer.uid not in (0, os.geteuid()):
            return
        request = await _request(client)
        if request is None:
            return

        def progress(text: str) -> None:
            # A client that does not read misses what happens meanwhile, not the end.
            with contextlib.suppress(OSError):
                client.send(msgspec.json.encode(Progress(text)) + b"\n")

        answer = request if isinstance(request, Answer) else await self._handle(request, progress)
        await _send(client, msgspec.json.encode(answer) + b"\n")


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
