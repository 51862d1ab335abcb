"""Notice at once that the path of a listener was removed, renamed or replaced.

The directory of each path is watched (inotify(7)). While a directory does not exist, the nearest one above it is
watched instead. A change that inotify does not show, as a mount, is found by a regular repair.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Set

from multibinder.binder import events
from multibinder.binder.loop import Loop
from multibinder.binder.shutdown_watch import Repair, ShutdownWatch, WatchShutdowns
from multibinder.kernel.inotify import GONE, Inotify
from multibinder.wire import kinds

#: The time until the next turn, as a multiple of that of the last one: a program that removes a path in a tight loop,
#: or makes many files in its directory, takes a twentieth of a core.
_REST = 20


def watch_listeners(loop: Loop, repair: Repair) -> PathWatch:
    """Return what notices all that holders and other programs can do to a listener that ``repair`` repairs."""
    return PathWatch(loop, repair, ShutdownWatch(loop, repair))


class PathWatch:
    """Watch the paths of listeners on ``loop``, and let ``repair`` repair those that do not lead to them any more.

    ``shutdowns`` watches the same listeners for shutdown(2).
    """

    def __init__(self, loop: Loop, repair: Repair, shutdowns: WatchShutdowns) -> None:
        self._loop = loop
        self._repair = repair
        self._shutdowns = shutdowns
        self._inotify: Inotify | None = None
        #: The paths of listeners by their descriptors, and the directories that are watched for them.
        self._paths: dict[int, str] = {}
        self._watches: dict[int, int] = {}
        #: The descriptors for which a directory is watched, and its path, by the number of the watch.
        self._watched: dict[int, set[int]] = {}
        self._directories: dict[int, str] = {}

    def add(self, sock: socket.socket) -> None:
        """Watch a listener, which stays its caller's, until ``remove``. Raises nothing."""
        self._shutdowns.add(sock)
        address = kinds.address_of(sock)
        if address is not None and address.path is not None:
            self._paths[sock.fileno()] = address.path
            self._watch(sock.fileno())

    def remove(self, sock: socket.socket) -> None:
        """Stop watching a listener. Call it before close(2)."""
        self._shutdowns.remove(sock)
        if self._paths.pop(sock.fileno(), None) is not None:
            self._unwatch(sock.fileno())

    def close(self) -> None:
        """Stop watching everything. The listeners stay open."""
        self._shutdowns.close()
        if self._inotify is not None:
            self._loop.unwatch(self._inotify.fileno())
            self._inotify.close()
            self._inotify = None
        for each in (self._paths, self._watches, self._watched, self._directories):
            each.clear()

    def _watch(self, descriptor: int) -> bool:
        """Watch the directory of a path, or the nearest one above that exists. Return whether it is another one now."""
        before = self._directories.get(self._watches.get(descriptor, -1))
        directory = os.path.dirname(self._paths[descriptor])
        try:
            if self._inotify is None:
                self._inotify = Inotify()
                self._loop.watch_always(self._inotify.fileno(), self._look)
            while True:
                try:
                    watch = self._inotify.watch(directory)
                    break
                except (FileNotFoundError, NotADirectoryError):
                    if directory == "/":
                        raise
                    directory = os.path.dirname(directory)
        except OSError as error:  # no watch left (inotify(7)), or no right to read the directory
            events.limited(events.warning, "path-unwatched", None, path=self._paths[descriptor], why=error.strerror)
            return False
        if self._watches.get(descriptor) != watch:
            self._unwatch(descriptor)
            self._watches[descriptor] = watch
            self._watched.setdefault(watch, set()).add(descriptor)
            self._directories[watch] = directory
        return directory != before

    def _unwatch(self, descriptor: int) -> None:
        watch = self._watches.pop(descriptor, None)
        if watch is None:
            return
        self._watched[watch].discard(descriptor)
        if not self._watched[watch]:
            self._forget(watch)
            if self._inotify is not None:
                self._inotify.unwatch(watch)

    def _forget(self, watch: int) -> set[int]:
        self._directories.pop(watch, None)
        return self._watched.pop(watch, set())

    def _look(self) -> None:
        if self._inotify is None:
            return
        began = time.monotonic()
        affected = self._affected()
        self._loop.unwatch(self._inotify.fileno())
        try:
            for descriptor in affected:
                while self._watch(descriptor):
                    pass  # a directory may have got the next one before it was watched
            if affected:
                self._repair(affected)
        finally:
            self._loop.call_later((time.monotonic() - began) * _REST, self._resume)

    def _affected(self) -> set[int]:
        """Return the descriptors of the listeners whose path may lead elsewhere now."""
        affected: set[int] = set()
        assert self._inotify is not None  # noqa: S101 (the caller has looked)
        for event in self._inotify.read():
            if event.watch < 0:  # events were lost
                return set(self._paths)
            if event.bits & GONE:
                for descriptor in self._forget(event.watch):
                    self._watches.pop(descriptor, None)
                    affected.add(descriptor)
            elif event.watch in self._directories:
                changed = os.path.join(self._directories[event.watch], event.name)
                affected |= set(self._on_the_way(self._watched[event.watch], changed))
        return affected

    def _on_the_way(self, descriptors: Set[int], changed: str) -> Iterator[int]:
        """Yield those to whose path the changed file or directory belongs."""
        for descriptor in descriptors:
            path = self._paths[descriptor]
            if path == changed or path.startswith(f"{changed}/"):
                yield descriptor

    def _resume(self) -> None:
        if self._inotify is not None:
            self._loop.watch_always(self._inotify.fileno(), self._look)
