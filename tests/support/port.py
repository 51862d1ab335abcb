"""A port that this process keeps open, as the binder does it, without a binder."""

from __future__ import annotations

import socket

from multibinder import SharedListener
from multibinder.kernel.accept_queue import accept_queue
from multibinder.wire.kinds.tcp import TCP
from tests.support.waiting import PATIENCE_S


class Port:
    """A port that stays open until ``close``, and the listeners that servers get."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._kept = socket.create_server((host, 0))
        self.address: tuple[str, int] = self._kept.getsockname()

    def listener(self) -> SharedListener:
        return SharedListener(fileno=self._kept.dup().detach())

    def waiting(self) -> int:
        return accept_queue(self._kept).length

    def connect(self, *, send: bytes = b"") -> socket.socket:
        client = socket.create_connection(self.address, PATIENCE_S)
        client.sendall(send)
        return client

    def release(self) -> None:
        """Do to the socket what the binder does when the last owner releases it."""
        TCP.retire(self._kept)

    def close(self) -> None:
        self._kept.close()
