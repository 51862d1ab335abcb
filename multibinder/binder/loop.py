"""The event loop of the binder: one thread, one epoll instance, timers.

A callback that raises costs itself only: the loop logs it, and goes on with the others.
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import itertools
import select
import socket
import time
from collections.abc import Callable
from typing import IO

from multibinder.binder.failures import callback_failed

Watchable = socket.socket | IO[bytes] | int

#: Above this many ready descriptors, rotate them for fairness.
_ROTATE_ABOVE = 16
#: The pause of a callback that raised. It doubles while it raises again.
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.1, 5.0
#: epoll_wait(2) takes milliseconds in an int.
_LONGEST_WAIT_S = 3600.0
READ, WRITE = select.EPOLLIN, select.EPOLLOUT


def _pause_s(failures: int) -> float:
    """Return the pause after this many failures in succession."""
    return min(_FIRST_PAUSE_S * float(2 ** min(failures - 1, 16)), _LAST_PAUSE_S)


class _Watched:
    """One watched descriptor: ``failures`` of its callback in succession, and whether it is in the pause after one."""

    __slots__ = ("callback", "failures", "fd", "is_paused", "mask")

    def __init__(self, fd: int, callback: Callable[[], None], mask: int) -> None:
        self.fd = fd
        self.callback = callback
        self.mask = mask
        self.failures = 0
        self.is_paused = False


class Loop:
    """Call back when a descriptor is ready or a timer expires. A callback must not block.

    The loop does not own the descriptors that it watches, and never closes one.

    A callback that raises is logged (``callback-failed``). Its descriptor is not watched for a moment then, because it
    may be ready all the time; the pause grows while the callback fails again and again. A timer that raises is over,
    unless it is one of ``call_every``.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, _Watched] = {}
        self._stopping = False
        self._turn = 0
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer_numbers = itertools.count()
        # The failures of epoll_wait(2) and of ``finish_turn`` in succession.
        self._wait_failures = 0
        self._finish_failures = 0

    @property
    def turn(self) -> int:
        """Return the number of the current turn. One turn is one epoll_wait(2) and the callbacks that follow it."""
        return self._turn

    def watch(self, file: Watchable, callback: Callable[[], None], mask: int = READ) -> None:
        """Call ``callback`` in each turn in which ``file`` is ready.

        Raises OSError if the kernel refuses (ENOSPC, ENOMEM: epoll_ctl(2)). The file is not watched then.
        """
        fd = _number(file)
        self._epoll.register(fd, mask)
        self._watched[fd] = _Watched(fd, callback, mask)

    def watch_always(self, file: Watchable, callback: Callable[[], None]) -> None:
        """Call ``callback`` in each turn in which ``file`` can be read. If the kernel refuses, try again later."""
        watched = _Watched(_number(file), callback, READ)
        self._watched[watched.fd] = watched
        self._watch_again(watched)

    def watch_for(self, file: Watchable, mask: int) -> None:
        """Change the events for which a file is watched. Its callback stays. Raises OSError; nothing has changed then.

        Raises KeyError if the file is not watched.
        """
        watched = self._watched[_number(file)]
        if not watched.is_paused:
            self._epoll.modify(watched.fd, mask)
        watched.mask = mask

    def unwatch(self, file: Watchable) -> None:
        """Stop watching a file. Does nothing if the file is not watched."""
        fd = _number(file)
        if self._watched.pop(fd, None) is not None:
            with contextlib.suppress(OSError):  # it is not registered during a pause
                self._epoll.unregister(fd)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call ``callback`` once, after this many seconds."""
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._timer_numbers), callback))

    def call_every(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call ``callback`` every ``seconds``, for the first time after ``seconds``, also if it raises."""

        def again() -> None:
            self.call_later(seconds, again)
            self._call(callback)

        self.call_later(seconds, again)

    def stop(self) -> None:
        """Make ``run`` return at the end of this turn."""
        self._stopping = True

    def run(self, finish_turn: Callable[[], float | None]) -> None:
        """Run until ``stop`` is called.

        ``finish_turn`` is called at the end of each turn. It returns the time of time.monotonic() at which the next one
        must begin at the latest, or None if there is no such time.
        """
        due = self._finish(finish_turn)
        while not self._stopping:
            ready = self._wait(self._time_left(due))
            self._turn += 1
            if len(ready) > _ROTATE_ABOVE:
                # epoll(7) returns the same descriptors first each time. If a turn has time for some of them only, the
                # others must be first in another turn.
                first = self._turn % len(ready)
                ready = ready[first:] + ready[:first]
            for watched in ready:
                # A callback before this one may have ended the watch, and another file may have the number by now.
                if self._watched.get(watched.fd) is watched:
                    self._call_watched(watched)
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                self._call(heapq.heappop(self._timers)[2])
            due = self._finish(finish_turn)

    def close(self) -> None:
        """Stop watching everything. The owners of the files close them afterwards, and may call ``unwatch``."""
        self._watched.clear()
        self._epoll.close()

    def _time_left(self, due: float | None) -> float:
        timer = self._timers[0][0] if self._timers else None
        if timer is not None and (due is None or timer < due):
            due = timer
        return _LONGEST_WAIT_S if due is None else min(max(0.0, due - time.monotonic()), _LONGEST_WAIT_S)

    def _wait(self, wait_s: float) -> list[_Watched]:
        """Wait until a descriptor is ready, for ``wait_s`` at most, and return those that are."""
        try:
            ready = self._epoll.poll(wait_s, max(len(self._watched), 1))
            found = []
            for fd, _ in ready:
                if (watched := self._watched.get(fd)) is not None:
                    found.append(watched)
                else:
                    # The kernel refused to end this watch. It would report the descriptor in each turn.
                    self._epoll.unregister(fd)
        except Exception as error:
            self._wait_failures += 1
            callback_failed(self._wait, error)
            # The timers go on. Without a pause, a failure that lasts would keep the processor busy.
            time.sleep(min(wait_s, _pause_s(self._wait_failures)))
            # A closed instance raises ValueError.
            if isinstance(error, ValueError) or getattr(error, "errno", 0) in (errno.EBADF, errno.EINVAL):
                self._renew_epoll()
            return []
        self._wait_failures = 0
        return found

    def _renew_epoll(self) -> None:
        """Watch all files with a new epoll instance, because the old one is broken."""
        try:
            self._epoll.close()
            self._epoll = select.epoll()
        except OSError:
            return  # the next wait fails too, and comes here again
        for watched in list(self._watched.values()):
            if not watched.is_paused:
                self._watch_again(watched)

    def _call_watched(self, watched: _Watched) -> None:
        if self._call(watched.callback):
            watched.failures = 0
        elif self._watched.get(watched.fd) is watched:
            self._pause(watched)

    def _pause(self, watched: _Watched) -> None:
        """Do not watch a descriptor for a moment: it may be ready, and its callback fail, in each turn."""
        watched.failures += 1

        def end_pause() -> None:
            if self._watched.get(watched.fd) is watched:
                self._watch_again(watched)

        try:
            self.call_later(_pause_s(watched.failures), end_pause)
        except MemoryError:
            return
        watched.is_paused = True
        with contextlib.suppress(OSError):
            self._epoll.unregister(watched.fd)

    def _watch_again(self, watched: _Watched) -> None:
        try:
            self._epoll.register(watched.fd, watched.mask)
        except FileExistsError:
            watched.is_paused = False
        except OSError as error:  # the kernel is short of memory, or max_user_watches is reached
            if error.errno == errno.EBADF:  # its owner has closed it without a word
                del self._watched[watched.fd]
                return
            callback_failed(self._watch_again, error)
            self._pause(watched)
        else:
            watched.is_paused = False

    def _call(self, callback: Callable[[], None]) -> bool:
        """Call back, and return False if the callback raised."""
        try:
            callback()
        except Exception as error:  # a shortage that its author did not think of, or a bug
            callback_failed(callback, error)
            return False
        return True

    def _finish(self, finish_turn: Callable[[], float | None]) -> float | None:
        try:
            due = finish_turn()
        except Exception as error:
            self._finish_failures += 1
            callback_failed(finish_turn, error)
            return time.monotonic() + _pause_s(self._finish_failures)
        self._finish_failures = 0
        return due


def _number(file: Watchable) -> int:
    return file if isinstance(file, int) else file.fileno()
