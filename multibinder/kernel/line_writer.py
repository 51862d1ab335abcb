"""Write lines to a descriptor that others may read slowly, or not at all, without waiting for them."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import stat
import time
from collections import deque

#: A write of at most this size to a pipe that poll(2) reports as writable does not block (pipe(7): one free slot).
_PIPE_BUF = select.PIPE_BUF
#: A terminal that poll(2) reports as writable takes at least this much (n_tty_poll() in the kernel's n_tty.c).
_TERMINAL_ROOM = 256
#: Lines of this size in total wait for a reader that is slow for a moment.
_WAITING_BYTES = 64 * 1024


class LineWriter:
    """Writes whole lines to what a descriptor refers to. No write blocks, and none raises OSError.

    O_NONBLOCK belongs to the open file description, which other processes share: a shell, say. So a pipe or a terminal
    is opened again. The new descriptor belongs to this object, and is closed on exec. The given descriptor belongs to
    the caller, who may replace it by another file.
    """

    def __init__(self, descriptor: int) -> None:
        self._given = descriptor
        self._identity: tuple[int, int] | None = None
        self._mode = 0
        self._own: int | None = None
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._is_begun = False
        #: The number of lines that could not be written, and when the first was lost (time.time()).
        self.lost = 0
        self.lost_since = 0.0

    @property
    def is_waiting(self) -> bool:
        """Return whether lines wait for the reader."""
        return bool(self._waiting)

    def write(self, line: bytes) -> None:
        """Write a line, or let it wait. If there is no room for it, or no reader, it is lost and counted."""
        self.flush()
        if self._waiting and self._waiting_bytes + len(line) > _WAITING_BYTES:
            self._lose(1)
            return
        self._waiting.append(line)
        self._waiting_bytes += len(line)
        self.flush()

    def flush(self) -> None:
        """Write what is waiting, as far as possible now. What fails is lost and counted."""
        try:
            self._follow()
            while self._waiting:
                line = self._waiting[0]
                written = self._write_some(line)
                self._waiting_bytes -= written
                if written < len(line):
                    self._waiting[0] = line[written:]
                    self._is_begun = True
                else:
                    self._waiting.popleft()
                    self._is_begun = False
        except BlockingIOError:
            pass
        except OSError as error:
            # A full disk: a later line must not continue a begun one. Another reader must not get half a line.
            rest = self._waiting[0] if self._waiting and self._is_begun and error.errno == errno.ENOSPC else None
            self._lose(len(self._waiting) - (rest is not None))
            self._waiting = deque([] if rest is None else [rest])
            self._is_begun = rest is not None
            self._waiting_bytes = len(rest or b"")

    def close(self) -> None:
        """Close the descriptor that was opened here."""
        if self._own is not None and self._is_own_intact():
            os.close(self._own)
        self._own = None

    def _lose(self, count: int) -> None:
        if not self.lost:
            self.lost_since = time.time()
        self.lost += count

    def _follow(self) -> None:
        """Open the file behind the given descriptor again if it is another one now."""
        status = os.fstat(self._given)
        identity = (status.st_dev, status.st_ino)
        if identity != self._identity:
            self.close()
            if self._is_begun:
                # The rest of a line is of no use to another reader.
                self._waiting_bytes -= len(self._waiting.popleft())
                self._is_begun = False
                self._lose(1)
            self._identity, self._mode = identity, status.st_mode
        elif self._own is not None and not self._is_own_intact():
            self._own = None  # A failed execve(2) of an upgrade may have put another file in its place.
        if self._own is None and self._needs_own():
            with contextlib.suppress(OSError):
                # Fails for a pipe or a terminal of another user (EACCES), and for a FIFO without a reader (ENXIO).
                flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
                self._own = os.open(f"/proc/self/fd/{self._given}", flags)

    def _needs_own(self) -> bool:
        return stat.S_ISFIFO(self._mode) or (stat.S_ISCHR(self._mode) and os.isatty(self._given))

    def _is_own_intact(self) -> bool:
        try:
            status = os.fstat(self._own or 0)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._identity

    def _write_some(self, data: bytes) -> int:
        """Write a part of ``data``, and return its size. Raises BlockingIOError, and OSError without a reader."""
        if self._own is not None:
            return os.write(self._own, data)
        if stat.S_ISSOCK(self._mode):
            return _send(self._given, data)
        if not self._needs_own():
            return os.write(self._given, data)
        poll = select.poll()
        poll.register(self._given, select.POLLOUT)
        if not any(events & (select.POLLOUT | select.POLLERR) for _, events in poll.poll(0)):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return os.write(self._given, data[: _PIPE_BUF if stat.S_ISFIFO(self._mode) else _TERMINAL_ROOM])


def write_now(descriptor: int, data: bytes) -> None:
    """Write what can be written without waiting. The rest is lost. Never raises OSError."""
    writer = LineWriter(descriptor)
    writer.write(data)
    writer.close()


def _send(descriptor: int, data: bytes) -> int:
    sock = socket.socket(fileno=descriptor)
    try:
        return sock.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    finally:
        sock.detach()
