"""One client of the control socket: what it has sent so far, and what it has not taken yet."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import termios
from collections import deque
from collections.abc import Sequence

from multibinder.binder.answer import Answer
from multibinder.binder.caller import Caller
from multibinder.binder.listener import Grant
from multibinder.binder.loop import READ
from multibinder.binder.quotas import User, Users
from multibinder.wire import transport
from multibinder.wire.decoder import Decoder


class Peer:
    """Never blocks: every call does what the kernel takes or gives now, and returns. Raises OSError for a connection
    that is gone already; the socket is the caller's then."""

    def __init__(self, sock: socket.socket, users: Users) -> None:
        sock.setblocking(False)
        self.socket = sock
        self.caller = Caller(sock)
        self.user: User = users.of(self.caller.uid)
        self._users = users
        self.decoder = Decoder(users.limits.request_bytes)
        self.at_end = False
        self.awaits = False  # an answer that is not there yet
        self.resting = False  # asked too fast
        self.watched: int | None = READ
        self.buffered = 0  # bytes of an unfinished request, as counted
        self.in_flight = 0  # descriptors that it may not have received yet
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
        # No request of the protocol carries descriptors; since Linux 6.16 they do not even arrive (control_socket.py).
        for descriptor in descriptors:
            _let_go(descriptor)
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
            if descriptors:
                self.in_flight += len(descriptors)
                self._users.sent(self.user, len(descriptors))
            if sent < len(rest):
                self._unsent[0] = (rest[sent:], (), grants)
            else:
                self._unsent.popleft()

    def has_read_all(self) -> bool:
        """Whether nothing that we sent is on its way; nobody receives it any more where the other end is closed."""
        # SIOCOUTQ, unix(7): of what it sent, a socket has to pay for what was not received.
        (bytes_,) = struct.unpack("i", fcntl.ioctl(self.socket, termios.TIOCOUTQ, bytes(4)))
        return not bytes_

    def is_quiet(self) -> bool:
        """Whether nothing of it waits to be read."""
        try:
            return not self.socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False

    def forget_unsent(self) -> list[Sequence[Grant]]:
        """Drop what it has not taken; what was granted with it."""
        undelivered = [grants for _, _, grants in self._unsent]
        self._unsent.clear()
        return undelivered


def _let_go(descriptor: int) -> None:
    """Close what may be the last copy of a stranger's socket: it may want close(2) to wait (SO_LINGER, socket(7))."""
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError:  # a file of another kind
        os.close(descriptor)
        return
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
    sock.close()
