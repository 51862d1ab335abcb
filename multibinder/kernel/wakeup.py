"""Wake the threads of this process that wait in poll(2) for something else, through an eventfd(2)."""

from __future__ import annotations

import os
import select


class Wakeup:
    """An eventfd that becomes readable at ``set``, and stays readable.

    It is closed with the last reference to it. A thread that polls it has one, so no number that was closed is polled.
    """

    __slots__ = ("_descriptor", "_pid", "_watching")

    def __init__(self) -> None:
        """Raises OSError for a shortage of descriptors or memory."""
        self._descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._pid = os.getpid()
        self._watching: dict[tuple[int, int], int] = {}

    def fileno(self) -> int:
        return self._descriptor

    def set(self) -> None:
        os.eventfd_write(self._descriptor, 1)

    def watching(self, listener: int, events: int) -> int:
        """Return an epoll instance that is readable while ``listener`` has one of ``events``. It belongs to this.

        /proc shows what an epoll instance watches, and not what a thread polls: so this is what tells other processes
        that this one waits for clients. Raises OSError.
        """
        known = self._watching.get((listener, events))
        if known is not None:
            return known
        with select.epoll() as epoll:
            epoll.register(listener, events)
            # An epoll object closes its number in a forked child, too.
            made = os.dup(epoll.fileno())
        # setdefault() is atomic: two threads get the same one.
        kept = self._watching.setdefault((listener, events), made)
        if kept != made:
            os.close(made)
        return kept

    def __del__(self) -> None:
        # In a forked child the numbers may have been closed, as a daemon does at its start, and belong to other files.
        if getattr(self, "_pid", None) == os.getpid():
            for descriptor in (self._descriptor, *self._watching.values()):
                os.close(descriptor)


class Wakeups:
    """What wakes all threads that wait for one object. It has no lock, so a signal handler may call ``wake``.

    A forked child shares an eventfd with its parent. Therefore each process has its own.
    """

    def __init__(self) -> None:
        self._of_process: dict[int, Wakeup] = {}

    def current(self) -> Wakeup:
        """Return what a thread polls until the next ``wake``. It is made at the first call. Raises OSError.

        What has changed before ``wake`` is called must be looked at after this call.
        """
        pid = os.getpid()
        # setdefault() is atomic: two threads get the same one.
        return self._of_process.get(pid) or self._of_process.setdefault(pid, Wakeup())

    def wake(self) -> None:
        """Wake all threads that poll the current one. Later ones poll a new one."""
        waking = self._of_process.pop(os.getpid(), None)
        if waking is not None:
            waking.set()
