"""The connection to the keeper: messages without waiting, and one barrier at a time (sd_notify(3))."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from typing import Protocol

from multibinder.binder.loop import WRITE, Loop
from multibinder.wire import transport

#: Errors of a socket whose other end has gone. A new one may have the same address by then.
_GONE = {errno.ECONNREFUSED, errno.ECONNRESET, errno.ENOTCONN, errno.EPIPE}


class HasDescriptor(Protocol):
    """An object with a descriptor, such as a socket. Its ``fileno`` is -1 when it is closed."""

    def fileno(self) -> int: ...


class DescriptorCopy:
    """A duplicate of a descriptor, for one whose owner may close it before it is sent."""

    _descriptor = -1  # if dup(2) fails

    def __init__(self, descriptor: int) -> None:
        self._descriptor = os.dup(descriptor)

    def fileno(self) -> int:
        return self._descriptor

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    __del__ = close


class KeeperLink:
    """A datagram socket that is connected when it is first needed, and again after its other end has gone.

    ``address`` is the value of $NOTIFY_SOCKET. ``on_room`` is called from the loop when the keeper has room again after
    a ``send`` that raised BlockingIOError. ``on_answer`` is called with the answer to the barrier when the keeper has
    closed it. ``close`` it before the loop is closed.
    """

    def __init__(
        self, loop: Loop, address: str, *, on_room: Callable[[], None], on_answer: Callable[[bytes], None]
    ) -> None:
        self._loop = loop
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._on_room = on_room
        self._on_answer = on_answer
        self._socket: socket.socket | None = None
        self._watching = False
        self._barrier: int | None = None
        self._answer = b""

    @property
    def has_barrier(self) -> bool:
        """Return whether a barrier is in flight."""
        return self._barrier is not None

    def send(self, message: str, *descriptors: int) -> None:
        """Send a message. Raises OSError; BlockingIOError if the keeper's queue is full, and then watches for room."""
        try:
            transport.send(self._connected(), message.encode(), descriptors)
        except BlockingIOError:
            self._watch_for_room()
            raise
        except OSError as error:
            if error.errno in _GONE:
                self._disconnect()
            raise

    def send_barrier(self, message: str) -> None:
        """Send a barrier. Raises what ``send`` raises, and the error of a pipe; no barrier is in flight then."""
        reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            self._loop.watch(reading, self._read_answer)
            self.send(message, writing)
        except OSError:
            self._loop.unwatch(reading)
            os.close(reading)
            raise
        finally:
            os.close(writing)
        self._barrier, self._answer = reading, b""

    def close(self) -> None:
        self._disconnect()
        self._close_barrier()

    def stop_watching(self) -> None:
        """Do not call ``on_room``."""
        if self._watching and self._socket is not None:
            self._loop.unwatch(self._socket)
        self._watching = False

    def _connected(self) -> socket.socket:
        if self._socket is None:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            try:
                sock.setblocking(False)
                sock.connect(self._address)
            except OSError:
                sock.close()
                raise
            self._socket = sock
        return self._socket

    def _watch_for_room(self) -> None:
        if not self._watching and self._socket is not None:
            self._loop.watch(self._socket, self._on_room, WRITE)
            self._watching = True

    def _read_answer(self) -> None:
        if self._barrier is None:
            return
        try:
            chunk = os.read(self._barrier, 65536)
        except BlockingIOError:
            return
        self._answer += chunk
        if not chunk:
            self._close_barrier()
            self._on_answer(self._answer)

    def _disconnect(self) -> None:
        self.stop_watching()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _close_barrier(self) -> None:
        if self._barrier is not None:
            self._loop.unwatch(self._barrier)
            os.close(self._barrier)
            self._barrier = None
