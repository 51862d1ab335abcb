"""Addresses of vsock(7), between a virtual machine and its host."""

from __future__ import annotations

import re
import socket
from typing import ClassVar

from multibinder.wire.addresses.address import Address, split_prefix
from multibinder.wire.errors import AddressError
from multibinder.wire.excerpt import excerpt, shown

#: VMADDR_CID_ANY and VMADDR_PORT_ANY (linux/vm_sockets.h).
CID_ANY = PORT_ANY = 2**32 - 1


class VsockAddress(Address, frozen=True):
    """A context identifier (CID) and a port of 32 bits: ``vsock@3:1024``, ``vsock@*:1024`` for every CID.

    Create it with ``of`` or ``parse`` only. Port 0 asks the kernel for a free port.
    """

    kind: ClassVar[str] = "vsock"
    prefixes: ClassVar[frozenset[str]] = frozenset({"vsock@"})

    cid: int
    port: int

    @staticmethod
    def of(cid: int, port: int) -> VsockAddress:
        """Return the address of a CID and a port. Raises AddressError."""
        for what, number, most in (("CID", cid, CID_ANY), ("port", port, PORT_ANY - 1)):
            if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= most:
                raise AddressError(
                    f"{what} {shown(number)} is out of range: a vsock {what} is a number from 0 to {most}"
                )
        return VsockAddress(cid, port)

    @staticmethod
    def parse(text: str) -> VsockAddress:
        """Read ``vsock@CID:PORT``. Raises AddressError."""
        prefix, rest = split_prefix(text)
        if prefix not in VsockAddress.prefixes:
            raise AddressError(f"{excerpt(repr(text))}: {excerpt(prefix)} is no prefix of a vsock address")
        found = re.fullmatch(r"([0-9]{1,10}|\*):([0-9]{1,10})", rest)
        if found is None:
            raise AddressError(
                f"{excerpt(repr(text))} is no vsock address: write vsock@CID:PORT, as in vsock@3:1024, or vsock@*:1024 "
                "for every CID"
            )
        return VsockAddress.of(CID_ANY if found[1] == "*" else int(found[1]), int(found[2]))

    @staticmethod
    def of_name(name: tuple[int, int]) -> VsockAddress:
        """Return the address in a result of getsockname(2)."""
        return VsockAddress(*name)

    @property
    def family(self) -> socket.AddressFamily:
        return socket.AF_VSOCK

    @property
    def sockaddr(self) -> tuple[int, int]:
        return self.cid, self.port or PORT_ANY

    @property
    def vsock_endpoint(self) -> tuple[int, int]:
        return self.cid, self.port

    @property
    def is_wildcard(self) -> bool:
        """True if the CID stands for every CID of this machine."""
        return self.cid == CID_ANY

    def any_port(self) -> VsockAddress:
        return VsockAddress(self.cid, 0)

    def wildcard(self) -> VsockAddress:
        return VsockAddress(CID_ANY, self.port)

    def matches(self, bound: Address) -> bool:
        """Return whether a socket that is bound to ``bound`` satisfies a request for this address: port 0 accepts
        any port."""
        return type(bound) is type(self) and self.cid == bound.cid and self.port in (0, bound.port)

    def __str__(self) -> str:
        return f"vsock@{'*' if self.is_wildcard else self.cid}:{self.port}"
