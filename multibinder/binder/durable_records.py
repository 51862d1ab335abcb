"""What the store of listeners needs of the state that outlives the process (``DurableState``)."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Protocol

from multibinder.binder.key import Key
from multibinder.binder.listener import Listener
from multibinder.binder.records import Record


class DurableRecords(Protocol):
    """Storage for records of listeners that survives a crash of the binder."""

    def write(self, changed: Sequence[Record]) -> None:
        """Append records of listeners that a bind has made or changed. Raises OSError; then nothing is recorded."""

    def note(self, changed: Sequence[Record], *, forget: bool = True) -> None:
        """Append records that say that less is claimed, or that a listener is released. Raises nothing.

        The keeper forgets the released ones, unless they are released only later (``forget`` is false).
        """

    def keep(self, listener: Listener) -> None:
        """Let the keeper store a listener, without waiting. The listener notes when it is kept."""

    def recover(self, key: Key, uid: int) -> tuple[Record, socket.socket] | None:
        """Return a socket with this key that an earlier binder lost and another process still holds.

        ``uid`` is that of the client that asks. The caller owns the socket.
        """
