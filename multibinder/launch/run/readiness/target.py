"""Where a check connects: a numeric address, a path, or ``{NAME}`` for a listener of the copy."""

from __future__ import annotations

import re
import socket
from typing import NamedTuple

from multibinder.launch.errors import UsageError
from multibinder.launch.run.readiness.check import ObservedCopy

_BRACES = re.compile(r"\{([^{}]*)\}")
_HOST_AND_PORT = re.compile(r"(?:\[([0-9A-Fa-f:.%a-z]+)\]|([^:/@\[\]{}]+))(?::([0-9]{1,5}))?")
_SUN_PATH = 108  # bytes (linux/un.h)
#: A client of a wildcard address connects to this host.
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class Place(NamedTuple):
    """What connect(2) needs, and the address as HTTP's Host has it."""

    family: int
    address: tuple[str, int] | str
    host: str


class Target:
    """An address to connect to. ``text`` is as the operator wrote it: ``{ready}``, ``[::1]:80``, ``unix@/run/a.sock``.

    A name is not looked up, because that could take long. The constructor raises UsageError for one.
    """

    def __init__(self, text: str, default_port: int | None = None) -> None:
        self._text = text
        self._name = found[1] if (found := _BRACES.fullmatch(text)) else None
        self._place = None if self._name is not None else _place(text, default_port)

    def __str__(self) -> str:
        return self._text

    @property
    def is_private(self) -> bool:
        """Return whether only this copy has the listener."""
        return self._name == "ready"

    def place(self, copy: ObservedCopy) -> Place | None:
        """Return the address for a copy; None if the copy has no listener of this name."""
        if self._place is not None:
            return self._place
        if self.is_private:
            return _of_host_and_port(*copy.ready_address) if copy.ready_address is not None else None
        for listener in copy.listeners:
            if listener.name == self._name:
                endpoint = listener.endpoint
                return _place(endpoint, None) if isinstance(endpoint, str) else _of_host_and_port(*endpoint)
        return None


def _place(text: str, default_port: int | None) -> Place:
    prefix, found, rest = text.partition("@")
    if not found and text.startswith("/"):
        prefix, rest = "unix", text
    if prefix == "unix" and rest.startswith("/"):
        return Place(socket.AF_UNIX, rest, "localhost")
    if prefix in ("abns", "abnsz") and found and rest:
        name = f"\0{rest}"
        # HAProxy's abns@ fills sun_path with NUL; abnsz@ is as long as the name.
        return Place(socket.AF_UNIX, name.ljust(_SUN_PATH, "\0") if prefix == "abns" else name, "localhost")
    parts = _HOST_AND_PORT.fullmatch(text)
    port = int(parts[3] or default_port or 0) if parts else 0
    if not parts or not 0 < port < 65536:
        raise UsageError(f"{text!r} is no address to connect to: write HOST:PORT, unix@/PATH or {{NAME}} of a bind")
    host = parts[1] or parts[2]
    if host == "localhost":
        return Place(socket.AF_INET, ("127.0.0.1", port), _host("localhost", port, default_port))
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host.partition("%")[0])
        except OSError:
            continue
        return Place(family, (_WILDCARDS.get(host, host), port), _host(host, port, default_port))
    raise UsageError(f"{host!r} is a name: give the address itself, or 'localhost', so that no check waits for DNS")


def _of_host_and_port(host: str, port: int) -> Place:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return Place(family, (_WILDCARDS.get(host, host), port), _host(host, port, None))


def _host(host: str, port: int, default_port: int | None) -> str:
    host = f"[{host}]" if ":" in host else host
    return host if port == default_port else f"{host}:{port}"
