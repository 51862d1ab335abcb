"""The socket on which a copy says, in einhorn's way, that it is ready: ``{"command":"worker:ack","pid":PID}``.

The Ruby client of einhorn sends the same as YAML in percent-encoding. Nothing is answered.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Mapping

from multibinder.kernel.process import leader_of
from multibinder.launch.run.stream_server import Peer, StreamServer
from multibinder.launch.run.tasks import Event, Loop, readable

#: The most clients at a time, and the most bytes of one. A further client waits.
_CLIENTS = 16
_SIZE = 4096
#: A client that sends nothing for so long is disconnected.
_PATIENCE_S = 10.0
_ESCAPED = re.compile(rb"%([0-9A-Fa-f]{2})")
#: JSON, and YAML of Ruby with keys that are strings or symbols.
_ACK = re.compile(rb"""\bcommand["']?\s*:\s*["']?worker:ack\b""")


class EinhornServer(StreamServer):
    """The socket at ``path``. ``copies`` returns the event of each copy, by the PID of its first process.

    The process that connects must be one of the copy. A socket that an earlier ``run`` left is replaced. The descriptor
    belongs to this object.
    """

    def __init__(self, path: str, loop: Loop, copies: Callable[[], Mapping[int, Event]]) -> None:
        # Everybody may connect: a copy may run as another user.
        super().__init__(path, 0o666, _CLIENTS, loop, self._read, "einhorn's acknowledgement")
        self._copies = copies

    async def _read(self, client: socket.socket, peer: Peer) -> None:
        copies = self._copies()
        leader = leader_of(peer.pid, copies)
        if leader is not None and await _acknowledges(client):
            copies[leader].set()


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
