"""One listener that a program gets."""

import os
import socket

from multibinder.launch.direct.slots import address_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    Slot = Mapping[str, Any]

#: The first number after the standard descriptors: SD_LISTEN_FDS_START of sd_listen_fds(3).
FIRST_NUMBER = 3


class Passed:
    """A listener: its slot, its name (empty if it has none), and the descriptor ``source`` that this process has of it.

    ``source`` is -1 before it is known. ``fd`` is the number that the program will have. The caller owns ``source``.
    """

    __slots__ = ("fd", "name", "slot", "source")

    def __init__(self, slot: "Slot", name: str, source: int, fd: int = -1) -> None:
        self.slot = slot
        self.name = name
        self.source = source
        self.fd = fd

    @property
    def endpoint(self) -> "tuple[str, int] | str":
        """The host and the port that it is bound to, or the text of an address of another form: ``/path``."""
        text = str(self.slot.get("endpoint") or "")
        _prefix, at, rest = text.partition("@")
        if at and not rest.rpartition(":")[2].isdigit():
            return rest if rest.startswith("/") else text
        host, port = (rest.rpartition(":")[0].strip("[]"), int(rest.rpartition(":")[2])) if at else self._host_and_port
        return host, port or self._bound_port()

    @property
    def host_and_port(self) -> str:
        """The address as most programs write it: ``192.0.2.1:80``, ``[2001:db8::1]:443``, ``/run/app.sock``."""
        endpoint = self.endpoint
        if isinstance(endpoint, str):
            return endpoint
        host, port = endpoint
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def __str__(self) -> str:
        return f"{address_of(self.slot)}{f' ({self.name})' if self.name else ''}"

    @property
    def _host_and_port(self) -> "tuple[str, int]":
        return self.slot["host"], self.slot["port"]

    def _bound_port(self) -> int:
        if self.source < 0:
            return 0  # it is not bound yet: the draft is a trial
        with socket.socket(fileno=os.dup(self.source)) as sock:
            return int(sock.getsockname()[1])


def numbered(sockets: "Iterable[Passed]", first: int = FIRST_NUMBER) -> "list[Passed]":
    """Return the sockets with the numbers that the program will have: ``first`` and those after it, in their order."""
    return [Passed(each.slot, each.name, each.source, first + index) for index, each in enumerate(sockets)]
