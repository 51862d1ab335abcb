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
from multibinder.kernel.netns import inside, open_netns
from multibinder.wire.addresses import Address

#: Searches for one user who is not privileged are at least this far apart.
_SEARCH_EVERY_S = 10.0
#: A search takes some milliseconds, on a host with 100,000 descriptors half a second.
_TIMEOUT_S = 2.0
#: Uids whose last search is remembered. Above this, all are forgotten.
_REMEMBERED_UIDS = 1024

#: Gets the names of the processes that have an address: empty if they are unknown, None if no socket listens there.
TellHolders = Callable[[str | None], None]


#: The path of a network namespace, empty for our own; and an address there.
_Place = tuple[str, Address]


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
        self._waiting: dict[_Place, list[TellHolders]] = {}
        self._searched: dict[_Place, list[TellHolders]] = {}
        self._child: Forked | None = None
        self._next_at: dict[int, float] = {}

    def begin(self, address: Address, uid: int, tell: TellHolders, netns_path: str = "") -> bool:
        """Search on behalf of ``uid``, and ``tell`` the result from the loop.

        ``netns_path`` leads to the network namespace of the address; empty for our own.

        Returns False, and never tells, if this user's last search was a short time ago.
        """
        place = (netns_path, address)
        if place not in self._waiting and not self._may_search(uid):
            return False
        self._waiting.setdefault(place, []).append(tell)
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
        places = list(self._searched)
        ignored = {os.getpid(), *self._ignored_pids}

        def search() -> bytes:
            found: dict[_Place, str | None] = {}
            for path in {path for path, _ in places}:
                some = [place for place in places if place[0] == path]
                addresses = [address for _, address in some]
                find = functools.partial(self._who_listens, addresses, ignored)
                found |= zip(some, _inside(path, find) if path else find(), strict=True)
            return msgspec.json.encode([found[place] for place in places])

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


def _inside(path: str, action: Callable[[], Sequence[str | None]]) -> Sequence[str | None]:
    descriptor = open_netns(path)
    try:
        return inside(descriptor, action)
    finally:
        os.close(descriptor)
