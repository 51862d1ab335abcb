"""Addresses of Unix sockets that have a path (unix(7)): of streams, of datagrams and of packets in sequence."""

from __future__ import annotations

import os
import re
import socket
from typing import ClassVar

from multibinder.wire.addresses.address import Address, split_prefix, unsupported
from multibinder.wire.errors import AddressError
from multibinder.wire.excerpt import excerpt

#: sizeof(sun_path), less the NUL that ends it (unix(7)).
PATH_BYTES = 107
#: HAProxy's prefixes, and ``unixseq@``, for which HAProxy has none. The first one of each type is printed.
_TYPES = {
    "unix@": socket.SOCK_STREAM,
    "uxst@": socket.SOCK_STREAM,
    "/": socket.SOCK_STREAM,
    "uxdg@": socket.SOCK_DGRAM,
    "unixseq@": socket.SOCK_SEQPACKET,
}
_PRINTED = {socket.SOCK_STREAM: "unix@", socket.SOCK_DGRAM: "uxdg@", socket.SOCK_SEQPACKET: "unixseq@"}
#: Characters that would make two lines of one, in a log or a table.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class UnixAddress(Address, frozen=True):
    """A path in the file system, and the type of the socket there: ``unix@/run/app.sock`` for a stream, ``uxdg@`` for
    datagrams, ``unixseq@`` for packets in sequence.

    Create it with ``of`` or ``parse`` only. The path is absolute, without ``..``, ``.`` and double slashes, so that
    equal addresses compare equal. Links in it are not resolved.
    """

    kind: ClassVar[str] = "unix"
    prefixes: ClassVar[frozenset[str]] = frozenset(_TYPES)

    path: str
    type: int = socket.SOCK_STREAM

    @staticmethod
    def of(path: str, sort: int = socket.SOCK_STREAM) -> UnixAddress:
        """Return the address of a path, for a type of socket (``socket.SOCK_STREAM``). Raises AddressError."""
        shown = excerpt(repr(path))
        if not path.startswith("/"):
            raise AddressError(f"{shown} is no absolute path: the path of a Unix socket begins with /")
        if _CONTROL.search(path) or not _is_utf8(path):
            raise AddressError(f"{shown} has control characters, or is not UTF-8: choose another path")
        if path.endswith("/") or path != "/" + os.path.normpath(path).lstrip("/"):
            raise AddressError(f"{shown} is not normalized: write it without .., . and double slashes, and name a file")
        if (size := len(path.encode())) > PATH_BYTES:
            raise AddressError(
                f"{shown} has {size} bytes, the path of a Unix socket may have {PATH_BYTES} (sun_path, unix(7)): "
                "choose a shorter one"
            )
        return UnixAddress(path, int(sort))

    @staticmethod
    def parse(text: str) -> UnixAddress:
        """Read ``unix@/path`` in HAProxy's grammar; a path alone is a stream. Raises AddressError."""
        prefix, path = split_prefix(text)
        if prefix not in _TYPES:
            raise unsupported(text, prefix)
        return UnixAddress.of(path, _TYPES[prefix])

    @property
    def is_in_netns(self) -> bool:
        return False

    def resolved(self) -> UnixAddress:
        directory, name = os.path.split(self.path)
        return UnixAddress(os.path.join(os.path.realpath(directory), name), self.type)

    @property
    def family(self) -> socket.AddressFamily:
        return socket.AF_UNIX

    @property
    def sockaddr(self) -> str:
        return self.path

    @property
    def is_connected(self) -> bool:
        """True if clients connect and are accepted; else they send datagrams."""
        return self.type != socket.SOCK_DGRAM

    def __str__(self) -> str:
        return f"{_PRINTED[socket.SocketKind(self.type)]}{self.path}"


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # os.fsdecode() makes surrogates of other bytes
        return False
    return True
