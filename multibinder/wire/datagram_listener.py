"""A bound datagram socket that this process shares with others."""

from __future__ import annotations

import errno
import select
import socket
import time
from collections.abc import Callable
from typing import Any, NoReturn, SupportsIndex, TypeVar

from multibinder.wire import kinds
from multibinder.wire.asyncio_accept import stop_watching
from multibinder.wire.errors import ListenerReleased
from multibinder.wire.shared_listener import SharedListener, check_deadline, deadline_of, has_to_return

#: A release wakes no process that waits for a datagram (``kernel/silence.py``). So it looks for one after this time.
_LOOK_S = 1.0

T = TypeVar("T")


class DatagramListener(SharedListener):
    """A bound datagram socket that other processes hold as well. Each datagram goes to one of those that receive.

    ``recv*()``, ``send*()``, timeouts and blocking mode are those of any socket, and as with ``SharedListener``
    nothing that is done with one object is felt by other holders:

    * ``close()`` closes the descriptor of this process; the binder's stays, and datagrams wait in it, as many as fit
      into its receive buffer (the option ``rcvbuf``).
    * ``shutdown()`` ends the ``recv*()`` of this object only, and ``pause()`` makes it find no datagram.
    * ``connect()`` is refused: it would make the listener deaf to all peers but one, for every holder.
    * O_NONBLOCK, which all holders share, has no effect on it, and is never cleared.

    When the binder releases the listener, ``recv*()`` raises ListenerReleased. It raises it too if another process has
    shut the socket down, which the kernel cannot undo: bind again, for the socket that the binder has put in its place.
    """

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        return self._receive(lambda: super(DatagramListener, self).recv(bufsize, flags | socket.MSG_DONTWAIT))

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        return self._receive(
            lambda: super(DatagramListener, self).recv_into(buffer, nbytes, flags | socket.MSG_DONTWAIT)
        )

    def recvfrom(self, bufsize: int, flags: int = 0, /) -> tuple[bytes, Any]:
        return self._receive(lambda: super(DatagramListener, self).recvfrom(bufsize, flags | socket.MSG_DONTWAIT))

    def recvfrom_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> tuple[int, Any]:
        return self._receive(
            lambda: super(DatagramListener, self).recvfrom_into(buffer, nbytes, flags | socket.MSG_DONTWAIT)
        )

    def recvmsg(self, bufsize: int, ancbufsize: int = 0, flags: int = 0, /) -> Any:
        return self._receive(
            lambda: super(DatagramListener, self).recvmsg(bufsize, ancbufsize, flags | socket.MSG_DONTWAIT)
        )

    def recvmsg_into(self, buffers: Any, ancbufsize: int = 0, flags: int = 0, /) -> Any:
        return self._receive(
            lambda: super(DatagramListener, self).recvmsg_into(buffers, ancbufsize, flags | socket.MSG_DONTWAIT)
        )

    def sendto(self, data: Any, *flags_and_address: Any) -> int:
        flags = flags_and_address[0] if len(flags_and_address) == 2 else 0
        return self._send(
            lambda: super(DatagramListener, self).sendto(data, flags | socket.MSG_DONTWAIT, *flags_and_address[-1:])
        )

    def sendmsg(self, buffers: Any, ancdata: Any = (), flags: int = 0, address: Any = None, /) -> int:
        return self._send(
            lambda: super(DatagramListener, self).sendmsg(buffers, ancdata, flags | socket.MSG_DONTWAIT, address)
        )

    def connect(self, address: Any, /) -> NoReturn:
        """Raise OSError (EOPNOTSUPP): a connected socket gets no datagram of other peers, in any process."""
        raise OSError(
            errno.EOPNOTSUPP,
            f"connect() would make {self._local.name} deaf to all other peers, for every process that holds it: use "
            "sendto(), or connect a socket of your own",
        )

    def connect_ex(self, address: Any, /) -> int:
        """Return EOPNOTSUPP, as ``connect`` raises it."""
        return errno.EOPNOTSUPP

    def accept(self) -> NoReturn:
        """Raise OSError (EOPNOTSUPP): datagrams are received, there is no client to accept."""
        raise OSError(errno.EOPNOTSUPP, f"{self._local.name} receives datagrams: use recvfrom()")

    @property
    def released(self) -> bool:
        """True if no datagram arrives any more: the binder has released the listener, or has another in its place."""
        kind = kinds.of_socket(self)
        return self.fileno() >= 0 and kind is not None and not kind.is_ready(self)

    def shutdown(self, how: SupportsIndex, /) -> None:
        """End the ``recv*()`` of this object, in all threads of this process, with OSError (EINVAL).

        Other copies are not affected. SHUT_WR does nothing.
        """
        super().shutdown(how)

    def _receive(self, call: Callable[[], T]) -> T:
        """Return the result of ``call``, which raises BlockingIOError while there is no datagram."""
        local = self._local
        until = deadline_of(local.timeout)
        while True:
            if local.barred:
                self._refuse_or_wait(local.timeout, until)
                continue
            try:
                return call()
            except BlockingIOError:
                self._check_that_it_is_there()
                if has_to_return(local.timeout):
                    raise
                check_deadline(until)
                soon = time.monotonic() + _LOOK_S
                local.wait(self.fileno(), soon if until is None else min(soon, until), events=select.POLLIN)

    def _send(self, call: Callable[[], T]) -> T:
        """Return the result of ``call``, which raises BlockingIOError while the send buffer is full."""
        local = self._local
        until = deadline_of(local.timeout)
        while True:
            try:
                return call()
            except BlockingIOError:
                if has_to_return(local.timeout):
                    raise
                check_deadline(until)
                local.wait(self.fileno(), until, events=select.POLLOUT)

    def _check_that_it_is_there(self) -> None:
        """Raise ListenerReleased if no datagram will ever arrive: poll(2) would say that one is there, for ever."""
        if not self.released or self._local.barred:
            return
        stop_watching(self)
        self._slow_down()
        raise ListenerReleased(
            errno.EINVAL,
            f"{self._local.name} was released, or another process has shut it down: no datagram arrives here any "
            "more; stop, or bind it again",
        )
