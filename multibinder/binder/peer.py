"""One client of the control socket: what it has sent so far, and what it has not taken yet."""

from __future__ import annotations

import selectors
import socket
import struct
from collections import deque
from collections.abc import Sequence

from multibinder.binder.methods import Answer, Caller
from multibinder.binder.store import Grant
from multibinder.wire import transport
from multibinder.wire.decoder import Decoder

_UCRED = struct.Struct("=iII")


class Peer:
    """Never blocks: every call does what the kernel takes or gives now, and returns."""

    def __init__(self, sock: socket.socket, request_limit: int) -> None:
        self.socket = sock
        pid, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        self.caller = Caller(pid, uid)
        self.decoder = Decoder(request_limit)
        self.at_end = False
        self.awaits = False  # an answer that is not there yet
        self.watched = selectors.EVENT_READ
        self._unsent: deque[tuple[memoryview, Sequence[int], Sequence[Grant]]] = deque()

    @property
    def owes_nothing(self) -> bool:
        """Whether it has taken all it was sent, and is not in the middle of a request."""
        return not self._unsent and not self.awaits and not self.decoder.unfinished

    @property
    def backed_up(self) -> bool:
        return bool(self._unsent)

    def receive(self) -> None:
        """Feed the decoder with what is there. Raises OSError, RemoteProtocolError when the peer is of no more use."""
        try:
            arrived, descriptors = transport.receive(self.socket)
        except BlockingIOError:
            return
        # No request of the protocol carries descriptors.
        transport.close_all(descriptors)
        if arrived:
            self.decoder.feed(arrived)
        else:
            self.at_end = True

    def send(self, answer: Answer) -> None:
        """Queue an answer and send what the kernel takes of it now. Raises OSError when the peer is gone."""
        for index, (message, descriptors) in enumerate(answer.parts):
            # Whoever misses the last part misses descriptors of the grants.
            last = index == len(answer.parts) - 1
            self._unsent.append((memoryview(message), descriptors, answer.grants if last else ()))
        self.flush()

    def flush(self) -> None:
        while self._unsent:
            rest, descriptors, grants = self._unsent[0]
            try:
                sent = transport.send(self.socket, rest, descriptors)
            except BlockingIOError:
                return
            if sent < len(rest):
                self._unsent[0] = (rest[sent:], (), grants)
            else:
                self._unsent.popleft()

    def forget_unsent(self) -> list[Sequence[Grant]]:
        """Drop what it has not taken; what was granted with it."""
        undelivered = [grants for _, _, grants in self._unsent]
        self._unsent.clear()
        return undelivered
