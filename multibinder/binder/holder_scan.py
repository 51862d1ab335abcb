"""The search for holders, done by a forked child so that no request waits for it."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import msgspec

from multibinder.binder import events
from multibinder.binder.forked import Forked
from multibinder.binder.loop import Loop
from multibinder.observe.holders import Holders


class FindHolders(Protocol):
    """Finds the processes that have sockets open, by inode. PIDs in ``except_`` do not count.

    ``observe.holders.holders_of`` is the real one.
    """

    def __call__(self, inodes: Collection[int], except_: Collection[int], /) -> Holders: ...


class HolderScan:
    """Searches /proc in a child process, one search at a time.

    A search takes some milliseconds, on a large host some hundreds. Processes in ``ignored_pids`` do not count as
    holders; neither do the binder and the child. A child that needs more than ``timeout_s`` is ended.
    """

    def __init__(
        self, loop: Loop, find_holders: FindHolders, ignored_pids: Collection[int] = (), timeout_s: float = 15.0
    ) -> None:
        self._loop = loop
        self._find_holders = find_holders
        self._ignored_pids = frozenset(ignored_pids)
        self._timeout_s = timeout_s
        self._child: Forked | None = None

    @property
    def is_running(self) -> bool:
        """Return whether a child process is searching now."""
        return self._child is not None and self._child.is_running

    def start(self, inodes: Sequence[int], tell: Callable[[Holders | None], None]) -> None:
        """Begin to search for the holders of sockets; ``tell`` is called from the loop, with None after a failure.

        The caller makes sure that no search is running.
        """
        ignored = {os.getpid(), *self._ignored_pids}

        def search() -> bytes:
            return msgspec.json.encode(self._find_holders(inodes, {*ignored, os.getpid()}))

        def finish(answer: bytes | None, why: str) -> None:
            if answer is None:
                events.warning("cannot-look", why=why)
            tell(None if answer is None else msgspec.json.decode(answer, type=Holders))

        self._child = Forked(self._loop, search, finish, timeout_s=self._timeout_s)

    def stop(self) -> None:
        """End a running search. Its caller is not told."""
        if self._child is not None:
            self._child.stop()
