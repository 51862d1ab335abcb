"""The search for holders, done by a forked child so that no request waits for it."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Protocol

import msgspec

from multibinder.binder import events
from multibinder.binder.forked import Forked
from multibinder.binder.loop import Loop
from multibinder.binder.slices import Slices
from multibinder.observe.holders import Holder, Holders, Place

#: The most sockets in one line of the child's answer. The binder reads one line in each step.
_SOCKETS_PER_LINE = 200


class FindHolders(Protocol):
    """Finds the processes that have sockets open, by inode. PIDs in ``except_`` do not count.

    If the processes ``first`` and their children have all of the sockets, no other process is read.
    ``observe.holders.holders_of`` is the real one.
    """

    def __call__(self, inodes: Collection[int], except_: Collection[int], first: Collection[int], /) -> Holders: ...


class _Header(msgspec.Struct, frozen=True, array_like=True):
    """The first line of the child's answer."""

    hidden: bool


class _Group(msgspec.Struct, frozen=True, array_like=True):
    """One line of the child's answer: sockets with the same holders. ``places`` has those of each socket."""

    holders: tuple[Holder, ...]
    inodes: list[int]
    places: list[tuple[Place, ...]]


_header = msgspec.json.Decoder(_Header)
_group = msgspec.json.Decoder(_Group)


class HolderScan:
    """Searches /proc in a child process, one search at a time.

    A search takes some milliseconds, on a large host some hundreds. Processes in ``ignored_pids`` do not count as
    holders; neither do the binder and the child. A child that needs more than ``timeout_s`` is ended.
    """

    def __init__(
        self,
        loop: Loop,
        slices: Slices,
        find_holders: FindHolders,
        ignored_pids: Collection[int] = (),
        timeout_s: float = 15.0,
    ) -> None:
        self._loop = loop
        self._slices = slices
        self._find_holders = find_holders
        self._ignored_pids = frozenset(ignored_pids)
        self._timeout_s = timeout_s
        self._child: Forked | None = None

    def start(self, inodes: Sequence[int], first: Collection[int], tell: Callable[[Holders | None], None]) -> None:
        """Begin to search for the holders of sockets; ``tell`` is called from the loop, with None after a failure.

        ``first`` are processes that are likely to have all of them; the search is short then. The caller makes sure
        that no search is running.
        """
        ignored = {os.getpid(), *self._ignored_pids}

        def search() -> bytes:
            return b"\n".join(_lines(self._find_holders(inodes, {*ignored, os.getpid()}, first)))

        def finish(answer: bytes | None, why: str) -> None:
            if answer is None:
                events.warning("cannot-look", why=why)
                tell(None)
            else:
                self._slices.run(_read(answer, tell))

        self._child = Forked(self._loop, search, finish, timeout_s=self._timeout_s)

    def stop(self) -> None:
        """End a running search. Its caller is not told."""
        if self._child is not None:
            self._child.stop()


def _lines(found: Holders) -> Iterator[bytes]:
    """Yield the lines of the answer. Most listeners have the same holders, so these are written once for many."""
    yield msgspec.json.encode(_Header(found.hidden))
    groups: dict[tuple[Holder, ...], list[int]] = {}
    for inode, holders in found.by_inode.items():
        groups.setdefault(holders, []).append(inode)
    for holders, inodes in groups.items():
        for at in range(0, len(inodes), _SOCKETS_PER_LINE):
            some = inodes[at : at + _SOCKETS_PER_LINE]
            yield msgspec.json.encode(_Group(holders, some, [found.places.get(inode, ()) for inode in some]))


def _read(answer: bytes, tell: Callable[[Holders | None], None]) -> Iterator[None]:
    """Read the child's answer in steps, and tell it."""
    holders: dict[int, tuple[Holder, ...]] = {}
    places: dict[int, tuple[Place, ...]] = {}
    header, *lines = answer.split(b"\n")
    try:
        hidden = _header.decode(header).hidden
        for line in lines:
            yield
            group = _group.decode(line)
            holders.update(dict.fromkeys(group.inodes, group.holders))
            places.update(zip(group.inodes, group.places, strict=True))
    except msgspec.DecodeError as error:
        events.warning("cannot-look", why=f"the answer of the process that searched makes no sense: {error}")
        tell(None)
        return
    tell(Holders(holders, hidden, places=places))
