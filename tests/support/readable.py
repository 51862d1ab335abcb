"""Wait until a socket has something to read, without reading it."""

from __future__ import annotations

import select
import socket

from tests.support.waiting import PATIENCE_S


def wait_until_readable(sock: socket.socket) -> None:
    """Wait until bytes, or the end, have arrived."""
    ready, _, _ = select.select([sock], [], [], PATIENCE_S)
    assert ready, "nothing has arrived"
