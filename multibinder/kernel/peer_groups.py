"""Read the supplementary groups of the process at the other end of a Unix socket."""

from __future__ import annotations

import ctypes
import errno
import socket
import struct

SO_PEERGROUPS = 59
_GID_BYTES = 4
#: NGROUPS_MAX (credentials(7)).
_GROUPS_MAX = 65536

# Loaded at import, because loading needs a descriptor, and a running daemon may have none left.
_libc = ctypes.CDLL(None, use_errno=True)


def peer_groups(sock: socket.socket) -> frozenset[int]:
    """Return the supplementary groups that the peer had when it connected; empty if the kernel does not report them."""
    try:
        packed = sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 1024)
    except OSError as error:
        if error.errno != errno.ERANGE:
            return frozenset()
        packed = _many_groups(sock)
    return frozenset(number for (number,) in struct.iter_unpack("=I", packed))


def _many_groups(sock: socket.socket) -> bytes:
    # Python's getsockopt() returns at most 1,024 bytes: 256 groups.
    room = ctypes.create_string_buffer(_GROUPS_MAX * _GID_BYTES)
    size = ctypes.c_uint32(len(room))
    if _libc.getsockopt(sock.fileno(), socket.SOL_SOCKET, SO_PEERGROUPS, room, ctypes.byref(size)):
        return b""
    return room.raw[: size.value]
