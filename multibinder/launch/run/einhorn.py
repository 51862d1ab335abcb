"""The socket on which a copy says, in einhorn's way, that it is ready: ``{"command":"worker:ack","pid":PID}``.

The Ruby client of einhorn sends the same as YAML in percent-encoding. Nothing is answered.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
from collections.abc import Callable, Mapping

from multibinder.kernel.process import leader_of
from multibinder.launch.run.tasks import Event, Loop, readable, sleep

#: The most clients at a time, and the most bytes of one. A further client waits.
_CLIENTS = 16
_SIZE = 4096
#: A client that sends nothing for so long is disconnected.
_PATIENCE_S = 10.0
_PAUSE_S = 0.1
_CREDENTIALS = struct.Struct("=iII")
_ESCAPED = re.compile(rb"%([0-9A-Fa-f]{2})")
#: JSON, and YAML of Ruby with keys that are strings or symbols.
_ACK = re.compile(rb"""\bcommand["']?\s*:\s*["']?worker:ack\b""")


class EinhornServer:
    """The socket at ``path``. ``copies`` returns the event of each copy, by the PID of its first process.

    The process that connects must be one of the copy. A socket that an earlier ``run`` left is replaced. The descriptor
    belongs to this object.
    """

    def __init__(self, path: str, loop: Loop, copies: Callable[[], Mapping[int, Event]]) -> None:
        self.path = path
        self._loop = loop
        self._copies = copies
        self._clients = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            self._socket.bind(path)
            os.chmod(path, 0o666)  # noqa: S103 - a copy may run as another user
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
            self._loop.start(self._read(client), "einhorn's acknowledgement")

    def close(self) -> None:
        """Close the socket, and remove its path."""
        self._socket.close()
        with contextlib.suppress(OSError):
            os.unlink(self.path)

    async def _read(self, client: socket.socket) -> None:
        try:
            with client:
                client.setblocking(False)
                credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
                copies = self._copies()
                leader = leader_of(_CREDENTIALS.unpack(credentials)[0], copies)
                if leader is not None and await _acknowledges(client):
                    copies[leader].set()
        except OSError:
            pass  # the client has gone
        finally:
            self._clients -= 1


async def _acknowledges(client: socket.socket) -> bool:
    text = b""
    while len(text) < _SIZE and await readable(client.fileno(), _PATIENCE_S):
        more = client.recv(_SIZE - len(text))
        text += more
        if is_acknowledgement(text):
            return True
        if not more:
            break
    return False


def is_acknowledgement(text: bytes) -> bool:
    """Return whether a whole line of ``text`` is einhorn's ``worker:ack``."""
    lines = text.split(b"\n")[:-1]
    return any(_ACK.search(_ESCAPED.sub(lambda found: bytes([int(found[1], 16)]), line)) for line in lines)
