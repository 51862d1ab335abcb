"""Kinds of sockets. Each kind has one module; everything that differs between kinds is a method of the kind."""

from __future__ import annotations

import socket

from multibinder.wire.addresses import Address
from multibinder.wire.errors import AddressError
from multibinder.wire.kinds.kind import Kind, OptionError, Queue, Repaired
from multibinder.wire.kinds.mptcp import MPTCP
from multibinder.wire.kinds.tcp import TCP
from multibinder.wire.kinds.udp import UDP
from multibinder.wire.kinds.unix import UNIX
from multibinder.wire.kinds.vsock import VSOCK

__all__ = ["KINDS", "Kind", "OptionError", "Queue", "Repaired", "address_of", "of_address", "of_socket"]

#: The more particular kind first.
KINDS: tuple[Kind, ...] = (MPTCP, TCP, UDP, UNIX, VSOCK)
_BY_NAME = {kind.name: kind for kind in KINDS}


def of_address(address: Address) -> Kind:
    """Return the kind that opens sockets on this address."""
    return _BY_NAME[address.kind]


def of_socket(sock: socket.socket) -> Kind | None:
    """Return the kind of a socket, as the kernel describes it; None if no kind supports it."""
    return next((kind for kind in KINDS if kind.recognizes(sock)), None)


def address_of(sock: socket.socket) -> Address | None:
    """Return the address that a socket is bound to (getsockname(2)); None if no kind supports it."""
    kind = of_socket(sock)
    try:
        return None if kind is None else kind.address_of(sock)
    except AddressError:  # a Unix socket without a name
        return None
