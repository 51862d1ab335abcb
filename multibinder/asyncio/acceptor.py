"""Accept clients on one listener in an event loop, and see when the binder releases it."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable

from multibinder.kernel.accept_errors import AT_ONCE, CLIENT_IS_GONE, LOOK_AGAIN_S, NOT_LISTENING, RETRY_DELAY_S


class Acceptor:
    """Accepts clients on one listener from its construction until ``close``. It owns the listener.

    ``on_client`` takes each client, in non-blocking mode, in the same call in which it was accepted, so that none is
    between the kernel and the server when the server closes. ``on_released`` is called once, with the error, when the
    socket does not listen any more.
    """

    def __init__(
        self,
        listener: socket.socket,
        loop: asyncio.AbstractEventLoop,
        on_client: Callable[[socket.socket], None],
        on_released: Callable[[Acceptor, OSError], None],
    ) -> None:
        self.listener = listener
        self._loop = loop
        self._on_client = on_client
        self._on_released = on_released
        self._again: asyncio.TimerHandle | None = None
        listener.setblocking(False)
        self._descriptor = listener.fileno()
        self._watch()

    def close(self) -> None:
        """Accept no more, from now on, and close the listener. Clients that wait stay in the kernel's queue."""
        self._unwatch()
        self.listener.close()

    def try_again(self) -> None:
        """Accept now, if accepting waits: a descriptor may have become free."""
        if self._again is not None:
            self._unwatch()
            self._watch()

    def _watch(self) -> None:
        self._again = None
        self._loop.add_reader(self._descriptor, self._accept)
        self._loop.add_writer(self._descriptor, self._does_not_listen)

    def _unwatch(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None
        elif self.listener.fileno() >= 0:
            self._loop.remove_reader(self._descriptor)
            self._loop.remove_writer(self._descriptor)

    def _watch_later(self, delay_s: float) -> None:
        # A callback that the loop has called for the same event may come after this one.
        self._unwatch()
        self._again = self._loop.call_later(delay_s, self._watch)

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            if self._again is not None or self.listener.fileno() < 0:
                return
            try:
                client, _peer = self.listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._failed(error)
            else:
                client.setblocking(False)
                self._on_client(client)

    def _failed(self, error: OSError) -> None:
        if error.errno in CLIENT_IS_GONE:
            return
        if error.errno in NOT_LISTENING:
            self._unwatch()
            self._on_released(self, error)
            return
        out_of = error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
        self._loop.call_exception_handler(
            {
                "message": f"socket.accept() {'out of system resource' if out_of else 'failed'}",
                "exception": error,
                "socket": self.listener,
            }
        )
        self._watch_later(RETRY_DELAY_S)

    def _does_not_listen(self) -> None:
        self._accept()
        if self._again is None and self.listener.fileno() >= 0:
            self._watch_later(LOOK_AGAIN_S)
