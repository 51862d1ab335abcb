"""Watch the processes that hold adopted shards: one that ends must not leave a queue behind on which nobody accepts.

A server whose processes have a socket each (SO_REUSEPORT) may lose one of them and go on. Without the binder, the
kernel would close that socket, and give its share of the clients to the others. With it, the binder does so.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Sequence
from functools import partial

from multibinder.binder import events
from multibinder.binder.abandoned import Looks
from multibinder.binder.listener import Listener
from multibinder.binder.loop import Loop
from multibinder.binder.store import ListenerStore

#: Where processes cannot be looked into: clients that nobody has accepted for so long show that no process does.
_STUCK_S = 1.0
_POLL_S = 0.25


class AdoptedGroups:
    """The adopted shards of ``store``, each with the processes that held it when it was adopted.

    When the last one of a shard has ended, and processes of other shards on its address live, the shard is closed: the
    kernel gives its clients to the others, if the group has the program of ``kernel/bpf.py``. A process that the client
    of the adoption has not named keeps it open, as far as ``looks`` can find one.
    """

    def __init__(self, loop: Loop, looks: Looks, store: ListenerStore) -> None:
        self._loop = loop
        self._looks = looks
        self._store = store
        self._holders: dict[Listener, set[int]] = {}
        self._pidfds: dict[int, int] = {}

    def watch(self, adopted: Sequence[tuple[Listener, Collection[int]]]) -> None:
        """Watch the holders of listeners that share their addresses. Those that have ended already do not count."""
        for listener, pids in adopted:
            for pid in pids:
                if pid not in self._pidfds:
                    with contextlib.suppress(OSError):
                        self._pidfds[pid] = os.pidfd_open(pid)
                        self._loop.watch(self._pidfds[pid], partial(self._note_end, pid))
            if holders := {pid for pid in pids if pid in self._pidfds}:
                self._holders[listener] = holders

    def stop(self) -> None:
        """Close the pidfds."""
        for pidfd in self._pidfds.values():
            os.close(pidfd)
        self._pidfds.clear()
        self._holders.clear()

    def _note_end(self, pid: int) -> None:
        pidfd = self._pidfds.pop(pid)
        self._loop.unwatch(pidfd)
        os.close(pidfd)
        for listener, holders in list(self._holders.items()):
            holders.discard(pid)
            if not holders:
                del self._holders[listener]
                self._looks.look(partial(self._decide, listener, listener.handoffs))

    def _decide(self, listener: Listener, handoffs: int) -> None:
        if not self._is_abandoned(listener, handoffs):
            return
        [health] = self._looks.health([listener])
        if health.holders is None:
            self._wait_until_stuck(listener, handoffs, time.monotonic())
        elif not health.holders:
            self._close(listener)

    def _wait_until_stuck(self, listener: Listener, handoffs: int, empty_at: float) -> None:
        if not self._is_abandoned(listener, handoffs):
            return
        now = time.monotonic()
        if not listener.kind.queue(listener.socket).length:
            empty_at = now
        if now - empty_at >= _STUCK_S:
            self._close(listener)
        else:
            self._loop.call_later(_POLL_S, partial(self._wait_until_stuck, listener, handoffs, empty_at))

    def _is_abandoned(self, listener: Listener, handoffs: int) -> bool:
        """Return whether no process can have got the listener since, while others of its group have processes."""
        if listener.socket.fileno() < 0 or listener.draining or listener.handoffs != handoffs:
            return False
        others = [each for each in self._store.shards_on(listener.key) if each is not listener]
        return any(self._holders.get(each) for each in others)

    def _close(self, listener: Listener) -> None:
        events.limited(
            events.info,
            "shard-abandoned",
            listener.log_key,
            address=listener.address,
            shard=listener.shard,
            why="the processes that had it have ended, and those of other shards go on: these get its clients",
        )
        number, key = listener.shard, listener.key
        self._store.close_orphan(listener)
        last = max(self._store.shards_on(key), key=lambda each: each.shard, default=None)
        if last is not None and last.shard > number:
            self._store.renumber(last, number)
