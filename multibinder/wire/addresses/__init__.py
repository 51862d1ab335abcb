"""Addresses, which name listeners. Each family has one module; no module here opens a socket."""

from multibinder.wire.addresses.address import Address
from multibinder.wire.addresses.inet import TcpAddress

__all__ = ["Address", "TcpAddress"]
