"""Accept connections to the control socket."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable

from multibinder.binder import events
from multibinder.binder.loop import Loop
from multibinder.binder.quotas import Quotas

#: Connections that are accepted in one turn of the loop. Only after accept(2) are their users known.
_ACCEPTED_PER_TURN = 16
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
        listening: socket.socket,
        accepted: Callable[[socket.socket], None],
        quotas: Quotas,
        *,
        turn_s: float,
        shortage_pause_s: float,
    ) -> None:
        self._loop = loop
        self._listening = listening
        self._accepted = accepted
        self._quotas = quotas
        self._turn_s = turn_s
        self._shortage_pause_s = shortage_pause_s
        self._stopped = False

    def start(self) -> None:
        self._listening.setblocking(False)
        self._loop.watch_always(self._listening, self._accept_some)

    def stop(self) -> None:
        """Accept no more connections. They wait in the queue of the listening socket."""
        self._stopped = True
        self._loop.unwatch(self._listening)

    def _accept_some(self) -> None:
        end = time.monotonic() + self._turn_s
        for _ in range(_ACCEPTED_PER_TURN):
            if time.monotonic() > end:
                return
            try:
                sock, _ = self._listening.accept()
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
        self._loop.unwatch(self._listening)
        self._loop.call_later(self._shortage_pause_s, self._resume)

    def _resume(self) -> None:
        if not self._stopped:
            self._loop.watch_always(self._listening, self._accept_some)
