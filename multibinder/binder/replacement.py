"""Give a listener another socket, where the kernel cannot undo what a holder has done to its own."""

from __future__ import annotations

import socket

from multibinder.binder import events
from multibinder.binder.durable_records import DurableRecords
from multibinder.binder.listener import Listener
from multibinder.binder.listener_index import ListenerIndex
from multibinder.binder.shutdown_watch import WatchShutdowns


class Replacements:
    """Replaces sockets of listeners. Those of ``index`` are watched."""

    def __init__(self, index: ListenerIndex, durable: DurableRecords, watch: WatchShutdowns) -> None:
        self._index = index
        self._durable = durable
        self._watch = watch

    def replace(self, listener: Listener, sock: socket.socket) -> None:
        """Take a socket as the listener's, and close the one before. Its holders keep that until they ask again.

        The new one is recorded before the record of the old one says that it is released: after a crash in between,
        the next binder finds both, and keeps the one that clients reach.
        """
        was, released = listener.socket, listener.record(released=True)
        is_watched = self._index.at(listener.key) is listener
        if is_watched:
            self._watch.remove(was)
        listener.socket, listener.kept = sock, False
        if is_watched:
            self._watch.add(sock)
        self._durable.note([listener.record()])
        self._durable.keep(listener)
        self._durable.note([released])
        was.close()
        events.limited(
            events.info, "replaced", listener.log_key, address=listener.key, cookie=listener.cookie, was=released.cookie
        )
