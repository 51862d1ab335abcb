"""A socket that this process shares with others: one that listens."""

from __future__ import annotations

import _socket
import contextlib
import errno
import socket
import time
from typing import TYPE_CHECKING, SupportsIndex

from multibinder.wire import kinds
from multibinder.wire.addresses import Address
from multibinder.wire.asyncio_accept import attach_at_once, is_accepting, stop_watching
from multibinder.wire.errors import AddressError, ListenerReleased
from multibinder.wire.local_acceptors import LocalAcceptors
from multibinder.wire.pickled_listener import reduce_for_multiprocessing
from multibinder.wire.selecting_callers import has_selected, is_get_request
from multibinder.wire.tls_listener import become_shared, tls_socket_in_the_making

#: The address of a client, as accept() returns it for IPv4 and for IPv6 (host, port, flow information, scope).
PeerAddress = tuple[str, int] | tuple[str, int, int, int]

#: The first and the longest pause between two looks at a listener that another process has shut down.
_PAUSE_S, _LONGEST_PAUSE_S = 0.002, 0.05


if TYPE_CHECKING:
    from typing import Self

    _Socket = socket.socket
else:
    # gevent and eventlet put a class of theirs in the place of socket.socket, which keeps a timeout of its own.
    _Socket = next(each for each in _socket.socket.__subclasses__() if each.__module__ == "socket")


class SharedListener(_Socket):
    """A LISTEN socket that other processes hold as well.

    ``accept()``, timeouts and blocking mode are those of any socket. What differs is that nothing which is done with
    one object is felt by other holders:

    * ``close()`` closes the descriptor of this process; the binder's stays, and the port with it.
    * ``shutdown()`` ends the ``accept()`` of this object only. ``pause()`` makes it find no client.
    * ``listen()`` does nothing: the binder sets the backlog.
    * O_NONBLOCK, which all holders share, is never cleared, and set before each ``accept()``.

    Threads of this process that wait in ``accept()`` end at ``close()`` and ``shutdown()``. When the
    binder releases the listener, ``accept()`` raises ListenerReleased. ``ssl.SSLContext.wrap_socket`` makes a TLS
    listener with the same rules, and multiprocessing can give the listener to a child.

    A subclass is constructed as ``socket.socket`` is: ``(family, type, proto, fileno=…)``.
    """

    _local: LocalAcceptors

    def __init__(self, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None) -> None:  # noqa: A002
        super().__init__(family, type, proto, fileno)
        self._local = LocalAcceptors(_address_if_ready(self))

    @classmethod
    def received(cls, descriptor: int, shard: int, netns: str) -> Self:
        """Return the listener of a descriptor, which belongs to it then. Raises OSError if it is no socket.

        ``shard`` and ``netns`` are those that were asked for: the socket does not know them.
        """
        listener = cls(fileno=descriptor)
        listener._local.place = (shard, netns)
        return listener

    @property
    def address(self) -> Address:
        """The address that the listener has, or had when it was received. Raises OSError or AddressError."""
        known = self._local.address or kinds.address_of(self)
        if known is None:
            raise AddressError(f"a socket of {self.family!r} has no address that multibinder supports")
        return known

    @property
    def shard(self) -> int:
        """The number of the listener among those on its address, from 0. It is 0 if there is one."""
        return self._local.place[0]

    @property
    def netns(self) -> str:
        """The network namespace that was asked for; empty for the binder's own."""
        return self._local.place[1]

    @property
    def paused(self) -> bool:
        """True after ``pause()``."""
        return self._local.paused

    @property
    def released(self) -> bool:
        """True if the binder has released the listener: no client reaches it any more. Makes two system calls.

        In an event loop, the listener becomes writable then, which it never is before.
        """
        kind = kinds.of_socket(self)
        if self.fileno() < 0 or kind is None or kind.is_ready(self):
            return False
        return kind.is_retired(self) or self._local.has_stayed_shut()

    def accept(self) -> tuple[socket.socket, PeerAddress]:
        """Wait for a client, as socket.accept() does. Return its connection and its address.

        Raises ListenerReleased after a release, OSError (EINVAL) after ``shutdown()``, OSError (EBADF) after
        ``close()``, BlockingIOError and TimeoutError according to ``settimeout()``. In blocking mode it also raises
        BlockingIOError when a server that selects first calls it: one of ``socketserver``, or a callback of an event
        loop.
        """
        # Each round sets O_NONBLOCK first, because another process may have cleared it: accept4(2) would then block
        # with a client that another copy was faster to take, and no thread could wake it.
        local = self._local
        timeout = local.timeout
        until = deadline_of(timeout)
        pause_s = _PAUSE_S
        while True:
            if local.barred:
                self._refuse_or_wait(timeout, until)
                continue
            try:
                super().settimeout(0.0)
                accepted = super().accept()
            except BlockingIOError:
                if has_to_return(timeout):
                    raise
                check_deadline(until)
                local.wait(self.fileno(), until)
            except OSError as error:
                if local.barred:
                    continue
                if error.errno != errno.EINVAL or not self._will_be_repaired(error):
                    raise
                if has_to_return(timeout):
                    self._slow_down()
                    raise BlockingIOError(errno.EAGAIN, f"{local.name} was shut down by another process") from None
                check_deadline(until)
                soon = time.monotonic() + pause_s
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                local.wait(None, soon if until is None else min(soon, until))
            else:
                if timeout == 0.0:
                    attach_at_once(accepted[0])
                return accepted

    def pause(self) -> None:
        """Stop accepting for good, without closing: ``accept()`` of this object finds no client from now on.

        In blocking mode it waits until ``close()`` or ``shutdown()``; else it raises BlockingIOError or TimeoutError.
        Clients stay in the queue, for other copies. A server that pauses first can close without losing a client that
        it has accepted. Bind again for a listener that accepts.
        """
        self._local.pause()

    def shutdown(self, how: SupportsIndex, /) -> None:
        """End the ``accept()`` of this object, in all threads of this process, with OSError (EINVAL).

        Other copies and the port are not affected. SHUT_WR has no meaning for a listener, and does nothing.
        """
        if self.fileno() < 0:
            raise OSError(errno.EBADF, "the listener was closed in this process")
        if how not in (socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR):
            raise OSError(errno.EINVAL, f"{how!r} is none of SHUT_RD, SHUT_WR and SHUT_RDWR")
        if how != socket.SHUT_WR:
            self._local.shut_down()

    def close(self) -> None:
        """Close the descriptor of this process. The binder keeps the port open; clients wait, or go to other copies."""
        self._local.close()
        super().close()

    def detach(self) -> int:
        """Return the descriptor, which the caller then owns, and be closed. Threads in ``accept()`` end as at close."""
        wrapping = tls_socket_in_the_making(self)
        descriptor = super().detach()
        if wrapping is not None:
            become_shared(wrapping, SharedListener, self._local.of_another_object())
        self._local.close()
        return descriptor

    def listen(self, backlog: int = 0, /) -> None:
        """Do nothing: the socket already listens, and the binder sets its backlog.

        A server that receives a socket calls this with its own backlog (asyncio with 100), which would then apply to
        every holder.
        """

    def settimeout(self, value: float | None, /) -> None:
        """Set the timeout of ``accept()`` in seconds: None waits for ever, 0 does not wait."""
        if value is not None:
            super().settimeout(value)
            value = super().gettimeout()
            super().settimeout(0.0)
        self._local.timeout = value

    def gettimeout(self) -> float | None:
        """Return what ``settimeout`` was given."""
        return self._local.timeout

    def setblocking(self, flag: bool, /) -> None:
        """Set the timeout to None or to 0."""
        self.settimeout(None if flag else 0.0)

    def getblocking(self) -> bool:
        """Return whether ``accept()`` may wait."""
        return self._local.timeout != 0.0

    @property
    def timeout(self) -> float | None:
        """What ``settimeout`` was given."""
        return self._local.timeout

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[object, ...]:
        return reduce_for_multiprocessing(self) or super().__reduce_ex__(protocol)

    def _refuse_or_wait(self, timeout: float | None, until: float | None) -> None:
        """Raise what ``accept()`` has to raise while ``barred``; wait in blocking mode while paused."""
        local = self._local
        stop_watching(self)
        refusal = local.refusal
        if refusal is not None:
            if local.closed and is_accepting():
                # A callback of asyncio has closed its own server. It accepts until there is no client, and no longer.
                raise BlockingIOError(errno.EAGAIN, refusal.strerror)
            raise refusal
        if has_to_return(timeout):
            self._slow_down()
            raise BlockingIOError(errno.EAGAIN, f"{local.name} is paused in this process")
        check_deadline(until)
        local.wait(None, until, paused=True)

    def _slow_down(self) -> None:
        """Keep servers of ``socketserver`` from using all of a core: to them, the listener stays readable."""
        if is_get_request():
            self._local.wait(None, time.monotonic() + _LONGEST_PAUSE_S, paused=self._local.paused)

    def _will_be_repaired(self, error: OSError) -> bool:
        """Say what EINVAL of accept4(2) means: the socket does not listen.

        Return True if another process shut it down, which the binder repairs, False if this cannot be told. Raises
        ListenerReleased.
        """
        kind = kinds.of_socket(self)
        if kind is None:
            return False
        with contextlib.suppress(OSError):  # closed meanwhile
            if kind.is_ready(self):
                return True
            if not kind.is_retired(self) and not self._local.has_stayed_shut():
                return True
        if self._local.barred:
            return True
        stop_watching(self)
        self._slow_down()
        raise ListenerReleased(
            errno.EINVAL,
            f"{self._local.name} was released: the binder has closed it for all processes; stop, or bind it again",
        ) from error


def has_to_return(timeout: float | None) -> bool:
    """Return whether a call without a result must say so at once. To be called by ``accept()`` and the like."""
    return timeout == 0.0 or (timeout is None and has_selected())


def deadline_of(timeout: float | None) -> float | None:
    """Return the time of time.monotonic() at which a call that begins now has to end; None for never."""
    return None if timeout is None else time.monotonic() + timeout if timeout else 0.0


def check_deadline(until: float | None) -> None:
    """Raise TimeoutError at the deadline and later."""
    if until is not None and time.monotonic() >= until:
        raise TimeoutError("timed out")


def _address_if_ready(sock: socket.socket) -> Address | None:
    """Return the address while the socket surely has it: a release takes a port away that the kernel chose."""
    kind = kinds.of_socket(sock)
    try:
        return kind.address_of(sock) if kind is not None and kind.is_ready(sock) else None
    except (OSError, AddressError):
        return None
