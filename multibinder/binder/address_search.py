"""The search for the processes that have an address, done by a forked child so that no request waits for it."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import msgspec

from multibinder.binder.forked import Forked
from multibinder.binder.loop import Loop
from multibinder.binder.owner import is_privileged
from multibinder.wire.addresses import Address

#: Searches for one user who is not privileged are at least this far apart.
_SEARCH_EVERY_S = 10.0
#: A search takes some milliseconds, on a host with 100,000 descriptors half a second.
_TIMEOUT_S = 2.0
#: Uids whose last search is remembered. Above this, all are forgotten.
_REMEMBERED_UIDS = 1024

#: Gets the names of the processes that have an address: empty if they are unknown, None if no socket listens there.
TellHolders = Callable[[str | None], None]


class WhoListens(Protocol):
    """Names the processes that listen on each of these addresses, but those in ``except_``.

    ``observe.holders.who_listen_on`` is the real one.
    """

    def __call__(self, addresses: Sequence[Address], except_: Collection[int], /) -> Sequence[str | None]: ...


class AddressSearch:
    """Searches /proc in a child process, one at a time. One search serves all who wait when it begins.

    Processes in ``ignored_pids`` are not named, and neither is the binder.
    """

    def __init__(self, loop: Loop, who_listens: WhoListens, ignored_pids: Collection[int] = ()) -> None:
        self._loop = loop
        self._who_listens = who_listens
        self._ignored_pids = frozenset(ignored_pids)
        self._waiting: dict[Address, list[TellHolders]] = {}
        self._searched: dict[Address, list[TellHolders]] = {}
        self._child: Forked | None = None
        self._next_at: dict[int, float] = {}

    def begin(self, address: Address, uid: int, tell: TellHolders) -> bool:
        """Search on behalf of ``uid``, and ``tell`` the result from the loop.

        Returns False, and never tells, if this user's last search was a short time ago.
        """
        if address not in self._waiting and not self._may_search(uid):
            return False
        self._waiting.setdefault(address, []).append(tell)
        if not self._searched:
            self._search()
        return True

    def stop(self) -> None:
        """End a running search. Nobody is told."""
        self._waiting.clear()
        self._searched.clear()
        if self._child is not None:
            self._child.stop()

    def _search(self) -> None:
        self._searched, self._waiting = self._waiting, {}
        addresses = list(self._searched)
        ignored = {os.getpid(), *self._ignored_pids}

        def search() -> bytes:
            return msgspec.json.encode(list(self._who_listens(addresses, ignored)))

        self._child = Forked(self._loop, search, self._finish, timeout_s=_TIMEOUT_S)

    def _finish(self, answer: bytes | None, why: str) -> None:
        # Without an answer the refusal is the same, but names nobody.
        found: list[str | None] = (
            [""] * len(self._searched) if answer is None else msgspec.json.decode(answer, type=list[str | None])
        )
        searched, self._searched = self._searched, {}
        if self._waiting:
            self._search()
        for waiting, holders in zip(searched.values(), found, strict=True):
            for tell in waiting:
                self._loop.call_later(0, functools.partial(tell, holders))

    def _may_search(self, uid: int) -> bool:
        now = time.monotonic()
        if is_privileged(uid):
            return True
        if now < self._next_at.get(uid, 0.0):
            return False
        if len(self._next_at) >= _REMEMBERED_UIDS:
            self._next_at.clear()
        self._next_at[uid] = now + _SEARCH_EVERY_S
        return True
