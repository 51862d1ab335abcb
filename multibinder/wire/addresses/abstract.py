"""Abstract names of Unix sockets (unix(7)), which a network namespace has for itself. They listen for streams."""

from __future__ import annotations

import re
import socket
from typing import ClassVar

from multibinder.wire.addresses.address import Address, split_prefix, unsupported
from multibinder.wire.errors import AddressError
from multibinder.wire.excerpt import excerpt

#: sizeof(sun_path), less the NUL that begins it.
NAME_BYTES = 107
#: Whether HAProxy fills the rest of sun_path with NUL (configuration.txt, "Address formats").
_IS_PADDED = {"abns@": True, "abnsz@": False}
#: Characters that would make two words or two lines of one, in a log or a table.
_UNUSABLE = re.compile(r"[\s\x00-\x1f\x7f-\x9f]")


class AbstractAddress(Address, frozen=True):
    """An abstract name: ``abns@name``, which fills sun_path with NUL as HAProxy does, or ``abnsz@name``, which is as
    long as the name, as for every other program.

    Create it with ``of`` or ``parse`` only. Abstract names have no owner and no mode: every user of the network
    namespace can connect, and can bind a name that is free.
    """

    kind: ClassVar[str] = "unix"
    prefixes: ClassVar[frozenset[str]] = frozenset(_IS_PADDED)

    name: str
    is_padded: bool = True
    is_connected: ClassVar[bool] = True
    type: ClassVar[int] = socket.SOCK_STREAM

    @staticmethod
    def of(name: str, *, is_padded: bool = True) -> AbstractAddress:
        """Return the address of an abstract name. Raises AddressError."""
        shown = excerpt(repr(name))
        if not name or _UNUSABLE.search(name):
            raise AddressError(f"{shown} is no usable abstract name: give one without spaces and control characters")
        try:
            size = len(name.encode())
        except UnicodeEncodeError:
            raise AddressError(f"{shown} is no usable abstract name: it is not UTF-8") from None
        if size > NAME_BYTES:
            raise AddressError(f"{shown} has {size} bytes, an abstract name may have {NAME_BYTES} (unix(7))")
        return AbstractAddress(name, is_padded or size == NAME_BYTES)

    @staticmethod
    def parse(text: str) -> AbstractAddress:
        """Read ``abns@name`` or ``abnsz@name`` in HAProxy's grammar. Raises AddressError."""
        prefix, name = split_prefix(text)
        if prefix not in _IS_PADDED:
            raise unsupported(text, prefix)
        return AbstractAddress.of(name, is_padded=_IS_PADDED[prefix])

    @staticmethod
    def of_name(raw: bytes) -> AbstractAddress:
        """Return the address in a result of getsockname(2), which begins with NUL. Raises AddressError."""
        is_padded = len(raw) > NAME_BYTES
        try:
            name = (raw[1:].rstrip(b"\0") if is_padded else raw[1:]).decode()
        except UnicodeDecodeError:
            raise AddressError(f"{excerpt(repr(raw))} is no usable abstract name: it is not UTF-8") from None
        return AbstractAddress.of(name, is_padded=is_padded)

    @property
    def abstract_name(self) -> str:
        return self.name

    @property
    def family(self) -> socket.AddressFamily:
        return socket.AF_UNIX

    @property
    def sockaddr(self) -> bytes:
        raw = b"\0" + self.name.encode()
        return raw.ljust(NAME_BYTES + 1, b"\0") if self.is_padded else raw

    def __str__(self) -> str:
        return f"{'abns@' if self.is_padded else 'abnsz@'}{self.name}"
