"""Addresses, which name listeners. Each family has one module; no module here opens a socket."""

from multibinder.wire.addresses.abstract import AbstractAddress
from multibinder.wire.addresses.address import Address
from multibinder.wire.addresses.inet import TcpAddress
from multibinder.wire.addresses.mptcp import MptcpAddress
from multibinder.wire.addresses.udp import QuicAddress, UdpAddress
from multibinder.wire.addresses.unix import UnixAddress
from multibinder.wire.addresses.vsock import VsockAddress

__all__ = [
    "AbstractAddress",
    "Address",
    "MptcpAddress",
    "QuicAddress",
    "TcpAddress",
    "UdpAddress",
    "UnixAddress",
    "VsockAddress",
]
