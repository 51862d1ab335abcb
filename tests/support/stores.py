"""A listener store for tests that ask it directly."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Sequence

from multibinder.binder.durable_records import DurableRecords
from multibinder.binder.events import CallLater
from multibinder.binder.key import Key
from multibinder.binder.listener import Listener
from multibinder.binder.records import Record
from multibinder.binder.shutdown_watch import Repair, WatchShutdowns
from multibinder.binder.store import ListenerStore


class NothingDurable:
    """Records that are kept nowhere: nothing is written, and nothing is recovered."""

    def write(self, changed: Sequence[Record]) -> None:
        pass

    def note(self, changed: Sequence[Record], *, forget: bool = True) -> None:
        pass

    def keep(self, listener: Listener) -> None:
        pass

    def recover(self, key: Key, uid: int) -> tuple[Record, socket.socket] | None:
        return None


class NothingWatched:
    """A watch that notices nothing: the tests repair by hand."""

    def add(self, sock: socket.socket) -> None:
        pass

    def remove(self, sock: socket.socket) -> None:
        pass

    def close(self) -> None:
        pass


def new_store(
    limit: int = 100,
    *,
    durable: DurableRecords | None = None,
    limit_per_uid: int = sys.maxsize,
    call_later: CallLater = lambda seconds, callback: None,
    watch: Callable[[Repair], WatchShutdowns] = lambda repair: NothingWatched(),
) -> ListenerStore:
    """Return a store. Without ``call_later``, no drain ends by itself."""
    return ListenerStore(durable or NothingDurable(), watch, call_later, limit=limit, limit_per_uid=limit_per_uid)
