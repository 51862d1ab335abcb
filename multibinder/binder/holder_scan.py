"""The search for holders, done by a forked child so that no request waits for it."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import msgspec

from multibinder.binder import events
from multibinder.binder.loop import Loop
from multibinder.observe.holders import Holders

#: The most bytes of the child's answer that are read in one turn of the loop.
_CHUNK_BYTES = 1 << 20


class FindHolders(Protocol):
    """Finds the processes that have sockets open, by inode. PIDs in ``except_`` do not count.

    ``observe.holders.holders_of`` is the real one.
    """

    def __call__(self, inodes: Collection[int], except_: Collection[int], /) -> Holders: ...


class HolderScan:
    """Searches /proc in a child process, one search at a time.

    A search takes some milliseconds, on a large host some hundreds. Processes in ``ignored_pids`` do not count as
    holders; neither do the binder and the child. A child that needs more than ``timeout_s`` is ended by SIGALRM.
    """

    def __init__(
        self, loop: Loop, find_holders: FindHolders, ignored_pids: Collection[int] = (), timeout_s: float = 15.0
    ) -> None:
        self._loop = loop
        self._find_holders = find_holders
        self._ignored_pids = frozenset(ignored_pids)
        self._timeout_s = timeout_s
        self._child_pid = 0
        self._pipe = -1
        self._output = b""

    @property
    def is_running(self) -> bool:
        """Return whether a child process is searching now."""
        return self._child_pid != 0

    def start(self, inodes: Sequence[int], tell: Callable[[Holders | None], None]) -> None:
        """Begin to search for the holders of sockets; ``tell`` is called from the loop, with None after a failure.

        The caller makes sure that no search is running.
        """
        ignored = {os.getpid(), *self._ignored_pids}
        pipe: tuple[int, ...] = ()
        try:
            reading, writing = pipe = os.pipe2(os.O_CLOEXEC)
            self._child_pid = os.fork()
        except OSError as error:
            for descriptor in pipe:
                os.close(descriptor)
            events.warning("cannot-look", why=error.strerror)
            self._loop.call_later(0, lambda: tell(None))
            return
        if not self._child_pid:
            self._search_and_exit(inodes, ignored, writing)
        os.close(writing)
        self._pipe = reading
        self._output = b""
        self._loop.watch(reading, lambda: self._read(tell))

    def stop(self) -> None:
        """End a running search. Its caller is not told."""
        if self._child_pid:
            os.kill(self._child_pid, signal.SIGKILL)
            self._reap()

    def _read(self, tell: Callable[[Holders | None], None]) -> None:
        chunk = os.read(self._pipe, _CHUNK_BYTES)
        self._output += chunk
        if chunk:
            return
        self._loop.unwatch(self._pipe)
        self._reap()
        found = None
        try:
            found = msgspec.json.decode(self._output, type=Holders)
        except msgspec.DecodeError:
            events.warning("cannot-look", why="the process that searched /proc ended too early, or took too long")
        self._output = b""
        tell(found)

    def _reap(self) -> None:
        os.close(self._pipe)
        # If the program that started us made us ignore SIGCHLD, the kernel has reaped the child.
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._child_pid, 0)
        self._child_pid = 0

    def _search_and_exit(self, inodes: Sequence[int], ignored: Collection[int], writing: int) -> None:
        """Search in the child, write the answer to the pipe, and exit."""
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
                signal.signal(number, signal.SIG_DFL)
            # If the binder is killed now, copies in this child must not keep its ports open, nor its lock.
            os.closerange(3, writing)
            os.closerange(max(3, writing + 1), 1 + max(map(int, os.listdir("/proc/self/fd"))))
            signal.setitimer(signal.ITIMER_REAL, self._timeout_s)
            found = self._find_holders(inodes, {*ignored, os.getpid()})
            text = memoryview(msgspec.json.encode(found))
            while text:
                text = text[os.write(writing, text) :]
        finally:
            os._exit(0)
