"""What differs between sorts of programs when their unit is taken over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from multibinder.launch.units.unit import Unit


class Live(msgspec.Struct, frozen=True):
    """How a second server is started beside the one that serves, in the context of the unit.

    ``command`` is a text for ``ExecReload=``, which becomes the new server. ``ready`` is how the starter knows that it
    serves (``starter._check``).
    """

    command: str
    ready: str


class Way(Protocol):
    """One sort of program. ``commands`` is the directory of our own commands."""

    @property
    def program(self) -> str:
        """Return the name for messages, as ``HAProxy``."""

    def serves(self, unit: Unit) -> bool:
        """Return whether the unit's program is of this sort."""

    def obstacles(self, unit: Unit) -> Iterator[str]:
        """Yield the reasons against a takeover that this sort of program has, each with a remedy."""

    def notes(self, unit: Unit) -> Iterator[str]:
        """Yield what the drop-in changes and an operator may not expect."""

    def owner(self, unit: Unit) -> str:
        """Return the label with which the server binds when it is taken over."""

    def drop_in(self, unit: Unit, commands: Path) -> str:
        """Return the text of the drop-in, without the seal."""

    def holder_elsewhere(self, unit: Unit) -> int:
        """Return the PID of a process outside of the unit whose claims have the same owner; 0 if there is none."""

    def is_ours(self, unit: Unit) -> bool:
        """Return whether the main process serves on sockets of the binder already."""

    def to_adopt(self, unit: Unit, addresses: Sequence[str]) -> list[str]:
        """Return those of the addresses of the unit's listeners that the new server will ask for."""

    def takes(self, unit: Unit, commands: Path) -> Live | None:
        """Return how the new server is started on our sockets; None if the running one may go on until its next start.

        With None, to adopt and to write the drop-in is all, and so is to let go for the way back.
        """

    def gives_back(self, unit: Unit, commands: Path) -> Live | None:
        """Return how a server without us is started on the sockets of the one that serves; None as for ``takes``."""
