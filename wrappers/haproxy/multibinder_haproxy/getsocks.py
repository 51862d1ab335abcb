"""Answer HAProxy's ``-x``: give a starting HAProxy the listeners that it would otherwise bind.

``-x SOCKET`` (management guide) connects and sends ``_getsocks``. The answer is the number of descriptors, and then
messages with some of them each, which the other end acknowledges (_getsocks() in cli.c, sock_get_old_sockets() in
sock.c). With each descriptor come the names of its network namespace and interface, which getsockname(2) does not tell.
HAProxy uses a socket for a bind only if they are equal, and closes those that it has no bind for.
"""

from __future__ import annotations

import array
import socket
import struct
from collections.abc import Sequence

import msgspec

#: MAX_SEND_FD in HAProxy; SCM_MAX_FD in the kernel is one more.
_PER_MESSAGE = 252
_REQUEST = b"_getsocks\n"
_COUNT = struct.Struct("=i")
#: HAProxy waits for a second for each message.
_TIMEOUT_S = 5.0


class Given(msgspec.Struct, frozen=True):
    """A listener for HAProxy. ``descriptor`` stays its caller's; the names are as a bind line has them."""

    descriptor: int
    namespace: str = ""
    interface: str = ""

    def described(self) -> bytes:
        """Return what is sent beside the descriptor: both names, each after its length, and four bytes of zeroes."""
        names = [name.encode() for name in (self.namespace, self.interface)]
        return b"".join(bytes([len(name)]) + name for name in names) + bytes(4)


def answer(connection: socket.socket, listeners: Sequence[Given]) -> None:
    """Answer the one question of a connection. Raises OSError; TimeoutError if the other end does not read."""
    connection.settimeout(_TIMEOUT_S)
    asked = b""
    while not asked.endswith(b"\n") and len(asked) < len(_REQUEST):
        part = connection.recv(len(_REQUEST) - len(asked))
        if not part:
            raise ConnectionAbortedError("the connection was closed before the question")
        asked += part
    if asked != _REQUEST:
        raise ConnectionAbortedError(f"the question is {asked!r}")
    connection.sendall(_COUNT.pack(len(listeners)))
    for first in range(0, len(listeners), _PER_MESSAGE):
        some = listeners[first : first + _PER_MESSAGE]
        rights = array.array("i", [each.descriptor for each in some])
        content = b"".join(each.described() for each in some)
        # The descriptors go with the first byte. HAProxy reads a message with one recvmsg(2).
        sent = connection.sendmsg([content], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        connection.sendall(content[sent:])
        connection.recv(_COUNT.size)
