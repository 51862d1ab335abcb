"""Disconnect a socket, which Python has no name for: connect(2) with AF_UNSPEC.

Of the library, only what a binder does needs it, so ``kernel/parking.py`` imports it where it is called: ctypes would
add some milliseconds to ``import multibinder``. A binder imports it at its start (``binder/release.py``).
"""

from __future__ import annotations

import ctypes
import socket
import struct

#: struct sockaddr with AF_UNSPEC.
_NO_ADDRESS = struct.pack("=H14x", socket.AF_UNSPEC)

# Loaded at import, because loading needs a descriptor, and a running daemon may have none left.
_libc = ctypes.CDLL(None, use_errno=True)


def disconnect(sock: socket.socket) -> None:
    """End the association of a socket with its peer, and forget a shutdown(2). An error is ignored."""
    _libc.connect(sock.fileno(), _NO_ADDRESS, len(_NO_ADDRESS))
