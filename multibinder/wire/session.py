"""The connection of one client: it waits for its binder, and is made again when it was lost and that is safe."""

from __future__ import annotations

import _thread
import contextlib
import errno
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from multibinder.wire.connection import Connection, limit_waits
from multibinder.wire.errors import (
    BinderTimeout,
    BinderUnavailable,
    DescriptorsLost,
    LocalProtocolError,
    RequestError,
)

T = TypeVar("T")

#: The error numbers of a path on which no binder listens: it has not started yet, or it is being restarted.
_ABSENT = (errno.ENOENT, errno.ECONNREFUSED)
#: The pauses between two attempts, in seconds: the first, and the longest.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.01, 0.2


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
        return Connection(_connect(self.path, timeout_s, self._wait_s), self.path, timeout_s)

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


def _connect(path: str, timeout_s: float, wait_s: float = 0.0) -> socket.socket:
    """Return a socket that is connected to a binder, in blocking mode, whose calls wait for ``timeout_s`` seconds.

    A path on which no process listens is tried again for ``wait_s`` seconds. The caller owns the socket. Raises
    BinderUnavailable, and BinderTimeout if the binder's queue stays full.
    """
    until = time.monotonic() + wait_s
    pause_s = _FIRST_PAUSE_S
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # A non-blocking connect() fails at once if the binder's queue is full. A blocking one waits for room until
            # the send timeout (unix_stream_connect() in net/unix/af_unix.c).
            limit_waits(sock, timeout_s)
            sock.connect(path)
        except BlockingIOError as error:
            sock.close()
            raise BinderTimeout(f"the binder at {path} did not accept the connection within {timeout_s:g} s") from error
        except OSError as error:
            sock.close()
            left_s = until - time.monotonic()
            if error.errno not in _ABSENT or left_s <= 0 or not _can_become_a_socket(path):
                raise _unavailable(path, error, wait_s) from error
            time.sleep(min(pause_s, left_s))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        except BaseException:
            sock.close()
            raise
        else:
            return sock


def _unavailable(path: str, error: OSError, waited_s: float) -> BinderUnavailable:
    denied = "permission denied; the binder's --mode and --group say who may connect"
    why = {
        errno.ENOENT: "there is no such socket; is 'multibinder serve' running?",
        errno.ECONNREFUSED: "no process listens there any more; is 'multibinder serve' running?"
        if _can_become_a_socket(path)
        else "it is not a socket",
        errno.EACCES: denied,
        errno.EPERM: denied,
        errno.EPROTOTYPE: "it is a socket of another type, and not the control socket of a binder",
    }.get(error.errno or 0, str(error.strerror or error))
    waited = f" (waited {waited_s:g} s for it)" if waited_s and error.errno in _ABSENT else ""
    return BinderUnavailable(f"cannot reach the binder at {path}: {why}{waited}")


def _can_become_a_socket(path: str) -> bool:
    """Return False if another sort of file is at the path, as far as it can be seen. A binder replaces only sockets."""
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return True
