"""Addresses: what names a listener. One module a family; nothing here opens a socket."""

from multibinder.wire.addresses.address import Address
from multibinder.wire.addresses.inet import TcpAddress

__all__ = ["Address", "TcpAddress"]
