"""The base of all addresses."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from typing import Any, ClassVar

import msgspec

from multibinder.wire.errors import AddressError
from multibinder.wire.excerpt import excerpt, shown

_PREFIX = re.compile(r"[a-z0-9+]+@")


class IpEndpoint(msgspec.Struct, frozen=True):
    """An IP address as a number, its version (4 or 6) and a port."""

    version: int
    number: int
    port: int


class Address(msgspec.Struct, frozen=True):
    """The name of a listener. ``str()`` prints what ``parse`` reads; equal addresses name the same listener.

    Each family is a subclass in one module. The behaviour of its sockets is in the kind (``kinds.of_address``).
    """

    #: The name of the kind that opens sockets on addresses of this family (wire/kinds/).
    kind: ClassVar[str]
    #: HAProxy's prefixes of this family (configuration.txt, "Address formats"); ``""`` for none.
    prefixes: ClassVar[frozenset[str]]

    @staticmethod
    def parse(text: str) -> Address:
        """Read an address in HAProxy's grammar; its prefix says the family. Raises AddressError."""
        prefix, _ = split_prefix(text)
        for family in Address.families():
            if prefix in family.prefixes:
                return family.parse(text)
        raise unsupported(text, prefix)

    @classmethod
    def families(cls) -> Iterator[type[Address]]:
        """Yield each family: the subclasses that have prefixes."""
        for each in cls.__subclasses__():
            if "prefixes" in vars(each):
                yield each
            yield from each.families()

    def matches(self, bound: Address) -> bool:
        """Return whether a socket that is bound to ``bound`` satisfies a request for this address."""
        return self == bound

    def any_port(self) -> Address:
        """Return the address that lets the kernel choose a port, if the family has ports: port 0 of the same host."""
        return self

    def wildcard(self) -> Address:
        """Return the address that takes this one as well, if the family has such: every host on the same port."""
        return self

    def resolved(self) -> Address:
        """Return the address with the real path of its directory, if the family has paths (realpath(3))."""
        return self

    def wire_fields(self) -> dict[str, Any]:
        """Return the members of the request element that asks for this address: ``endpoint``.

        TCP alone has ``address`` and ``port``, which the Ruby program knows.
        """
        return {"endpoint": str(self)}

    @property
    def is_in_netns(self) -> bool:
        """Whether each network namespace has an address like this of its own."""
        return True

    @property
    def family(self) -> socket.AddressFamily:
        """The address family of its sockets, as ``socket.AF_INET``."""
        raise NotImplementedError

    @property
    def sockaddr(self) -> Any:
        """The argument for ``socket.bind`` and ``socket.connect``; its type depends on the family."""
        raise NotImplementedError

    @property
    def ip_endpoint(self) -> IpEndpoint | None:
        """The IP address and port; None for a family that has none."""
        return None

    @property
    def path(self) -> str | None:
        """The path in the file system; None for a family that has none."""
        return None

    @property
    def vsock_endpoint(self) -> tuple[int, int] | None:
        """The CID and port (vsock(7)); None for a family that has none."""
        return None

    @property
    def abstract_name(self) -> str | None:
        """The abstract name (unix(7)); None for a family that has none."""
        return None


def split_prefix(text: str) -> tuple[str, str]:
    """Split ``tcp@192.0.2.1:80`` into the prefix with its ``@``, which may be empty, and the rest.

    A path alone has the prefix ``/``, and is the rest as well.

    Raises AddressError if ``text`` is no text.
    """
    if not isinstance(text, str):
        raise AddressError(f"{shown(text)} is of type {type(text).__name__}: give a str, as '192.0.2.1:80'")
    if text.startswith("/"):
        return "/", text
    found = _PREFIX.match(text)
    return (found[0], text[found.end() :]) if found else ("", text)


def unsupported(text: str, prefix: str) -> AddressError:
    """Return the error for an address whose prefix no family knows."""
    known = " ".join(sorted(each for family in Address.families() for each in family.prefixes if each))
    return AddressError(f"{excerpt(repr(text))}: {excerpt(prefix)} addresses are not supported, but {known}")
