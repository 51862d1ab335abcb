"""Accept connections to the control socket."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial

from multibinder.binder import events
from multibinder.binder.loop import Loop
from multibinder.binder.quotas import Quotas

#: Connections that are accepted in one turn of the loop. Only after accept(2) are their users known.
_ACCEPTED_PER_TURN = 16
#: A client needs so many descriptors before its user is known: its connection, a pidfd, and what /proc says of that.
_FOR_A_CLIENT = 3
#: accept(2) fails with these if the client is gone again, and says to treat them like EAGAIN. After another error, as a
#: rule a shortage, the connection is still in the queue.
_CLIENT_GONE = {errno.ECONNABORTED, errno.EPROTO, errno.EPERM}


class Acceptor:
    """Accept connections on ``listening`` and give each socket to ``accepted``, which owns it then.

    It spends about ``turn_s`` of a turn of the loop. It pauses for ``shortage_pause_s`` if accept(2) fails for lack of
    descriptors or memory. ``listening`` stays its caller's.
    """

    def __init__(
        self,
        loop: Loop,
        listening: Sequence[socket.socket],
        accepted: Callable[[socket.socket], None],
        quotas: Quotas,
        *,
        turn_s: float,
        shortage_pause_s: float,
    ) -> None:
        self._loop = loop
        self._listening = list(listening)
        self._accepted = accepted
        self._quotas = quotas
        self._turn_s = turn_s
        self._shortage_pause_s = shortage_pause_s
        self._stopped = False

    def start(self) -> None:
        for sock in self._listening:
            sock.setblocking(False)
            self._loop.watch_always(sock, partial(self._accept_some, sock))

    def stop(self) -> None:
        """Accept no more connections. They wait in the queues of the listening sockets."""
        self._stopped = True
        self._unwatch()

    def listen_on(self, listening: Sequence[socket.socket]) -> None:
        """Accept connections on these sockets from now on. The caller closes a former one only afterwards."""
        self._unwatch()
        self._listening = list(listening)
        if not self._stopped:
            self.start()

    def _unwatch(self) -> None:
        for sock in self._listening:
            if sock.fileno() >= 0:
                self._loop.unwatch(sock)

    def _accept_some(self, listening: socket.socket) -> None:
        end = time.monotonic() + self._turn_s
        for _ in range(_ACCEPTED_PER_TURN):
            if time.monotonic() > end:
                return
            try:
                _require_descriptors(listening)
                sock, _ = listening.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _CLIENT_GONE:
                    continue
                self._pause(error)
                return
            self._accepted(sock)

    def _pause(self, error: OSError) -> None:
        events.error(
            "cannot-accept", error=error.strerror, clients=self._quotas.clients, retry_s=self._shortage_pause_s
        )
        self._unwatch()
        self._loop.call_later(self._shortage_pause_s, self._resume)

    def _resume(self) -> None:
        if not self._stopped:
            self.start()


def _require_descriptors(sock: socket.socket) -> None:
    """Raise OSError if there are too few descriptors for one more client, which waits in the queue then."""
    spare: list[int] = []
    try:
        for _ in range(_FOR_A_CLIENT):
            spare.append(os.dup(sock.fileno()))
    finally:
        for descriptor in spare:
            os.close(descriptor)
