"""The connection of one client, which is made again when it was lost and asking again is safe."""

from __future__ import annotations

import _thread
import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from multibinder.wire.connecting import connect
from multibinder.wire.connection import Connection
from multibinder.wire.errors import (
    BinderTimeout,
    BinderUnavailable,
    DescriptorsLost,
    LocalProtocolError,
    RequestError,
)

T = TypeVar("T")


class Session:
    """The connection of a ``Client``. The constructor connects. Raises BinderUnavailable, BinderTimeout.

    A connection on which an answer may still be under way is never used again: it is closed, and the next call makes
    another one. ``wait_s`` is how long each of them waits for a binder that is not there.

    One call at a time, from one thread, in the process that made the session; LocalProtocolError says so otherwise.
    """

    def __init__(self, path: str, timeout_s: float, wait_s: float) -> None:
        self.path = path
        self._wait_s = wait_s
        self._pid = os.getpid()
        # threading.Lock is the same lock, but the module takes a millisecond to import.
        self._in_use = _thread.allocate_lock()
        self._is_closed = False
        self._connection: Connection | None = self._connect(timeout_s)

    def close(self) -> None:
        """Close the connection. A later call raises LocalProtocolError; one that runs in another thread ends first."""
        self._is_closed = True
        if self._pid != os.getpid():
            self._drop()  # this process's copy alone
        elif self._in_use.acquire(blocking=False):
            try:
                self._drop()
            finally:
                self._in_use.release()

    def call(self, exchange: Callable[[Connection, float], T], timeout_s: float, *, can_repeat: bool) -> T:
        """Return what ``exchange`` returns, which gets a connection and a deadline in seconds of time.monotonic().

        If the binder ends the connection, the exchange is repeated once on another one: if ``can_repeat``, or if
        nothing was sent. Raises what ``exchange`` raises.
        """
        with self._alone():
            deadline = time.monotonic() + timeout_s
            if (present := self._connection) is not None:
                try:
                    return self._try(present, exchange, deadline)
                except BinderTimeout:
                    raise
                except BinderUnavailable:
                    if not (can_repeat or present.nothing_sent):
                        raise
            before = time.monotonic()
            self._connection = self._connect(max(deadline - before, 0.001))
            # The time that a binder was away is ``wait_s``, and does not count.
            return self._try(self._connection, exchange, deadline + (time.monotonic() - before))

    def _try(self, connection: Connection, exchange: Callable[[Connection, float], T], deadline: float) -> T:
        try:
            return exchange(connection, deadline)
        except (RequestError, DescriptorsLost):
            raise  # the answer was read to its end
        except BaseException:
            self._drop()
            raise

    def _connect(self, timeout_s: float) -> Connection:
        return Connection(connect(self.path, timeout_s, self._wait_s), self.path, timeout_s)

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        if self._pid != os.getpid():
            raise LocalProtocolError(
                f"this Client was made by process {self._pid}, of which process {os.getpid()} is a fork: the two would "
                "read each other's answers; make a Client after the fork"
            )
        if not self._in_use.acquire(blocking=False):
            raise LocalProtocolError(
                "this Client is in use: another thread, or the code that a signal interrupted, waits for an answer; "
                "make one Client for each thread"
            )
        try:
            if self._is_closed:
                raise LocalProtocolError("this Client is closed; make another one")
            yield
        finally:
            if self._is_closed:
                self._drop()
            self._in_use.release()
