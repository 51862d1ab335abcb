"""Wake the threads of this process that wait in poll(2) for something else, through an eventfd(2)."""

from __future__ import annotations

import os


class Wakeup:
    """An eventfd that becomes readable at ``set``, and stays readable.

    It is closed with the last reference to it. A thread that polls it has one, so no number that was closed is polled.
    """

    __slots__ = ("_descriptor", "_pid")

    def __init__(self) -> None:
        """Raises OSError for a shortage of descriptors or memory."""
        self._descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._pid = os.getpid()

    def fileno(self) -> int:
        return self._descriptor

    def set(self) -> None:
        os.eventfd_write(self._descriptor, 1)

    def __del__(self) -> None:
        # In a forked child the number may have been closed, as a daemon does at its start, and belong to another file.
        if getattr(self, "_pid", None) == os.getpid():
            os.close(self._descriptor)


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
