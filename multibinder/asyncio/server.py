"""The server of ``multibinder.asyncio``: its connections, and how it ends."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Collection, Iterable
from types import TracebackType
from typing import Any

from multibinder.asyncio.acceptor import Acceptor
from multibinder.asyncio.stop_signals import at_stop_signal
from multibinder.kernel.service_manager import notify_ready, notify_stopping
from multibinder.wire.messages import Released
from multibinder.wire.served_listeners import names_of, retire, specs_of_served

#: What is called for each client. A coroutine function, as a rule.
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None]

#: A handler that was cancelled has so long to clean up, in seconds.
_CLEAN_UP_S = 1.0

_log = logging.getLogger("multibinder.asyncio")


class Server:
    """Serves the clients of one or several listeners. ``start_server`` makes it.

    It is a context manager, which closes it and waits for its clients.
    """

    def __init__(
        self,
        handler: Handler,
        listeners: Iterable[socket.socket],
        *,
        drain: float,
        limit: int,
        tls_options: dict[str, Any],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._handler = handler
        self._drain = drain
        self._limit = limit
        self._tls_options = tls_options
        self._clients: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self._closed = asyncio.Event()
        self._deadline: asyncio.TimerHandle | None = None
        self._is_ready = False
        self._is_retiring = False
        self._acceptors = [Acceptor(listener, self._loop, self._start_client, self._released) for listener in listeners]

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """The listeners on which this server accepts. It owns them."""
        return tuple(acceptor.listener for acceptor in self._acceptors)

    @property
    def stopping(self) -> asyncio.Event:
        """An event that is set when the server stops accepting. A handler that may go on for long can wait for it."""
        return self._stopping

    def is_serving(self) -> bool:
        """Return whether the server accepts clients."""
        return not self._stopping.is_set()

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def ready(self, *, is_main: bool | None = None) -> None:
        """Tell the service manager that this process serves: READY=1 (sd_notify(3)). ``serve_forever`` does it too.

        A process that replaces the main process of its unit adds MAINPID=. ``is_main`` says whether it does; by
        default, that is what was started by ``ExecReload=``. Such a unit needs ``NotifyAccess=all``.
        """
        self._is_ready = True
        _log.info("ready: pid %d accepts on %s", os.getpid(), names_of(self.sockets))
        notify_ready(is_main=is_main)

    async def serve_forever(self, *, signals: Collection[int] = (signal.SIGTERM, signal.SIGINT)) -> None:
        """Serve until the first of ``signals``, or ``close``, then return when the clients are done.

        The first signal closes the server: see ``close``. The second one ends the process at once. Several servers of
        one loop share the signals. With ``signals=()`` the caller handles them. A signal that the process ignores stays
        ignored. A cancellation closes the server too, waits for its clients, and is raised then; a second one
        cancels the clients.
        """
        with at_stop_signal(signals, self.close):
            if not self._is_ready and self.is_serving():
                self.ready()
            try:
                await self.wait_closed()
            except asyncio.CancelledError:
                self.close()
                try:
                    await self.wait_closed()
                except asyncio.CancelledError:
                    self._cancel_clients()
                raise

    def close(self) -> None:
        """Stop accepting at once, and close the listeners. The clients of this server have ``drain`` seconds.

        Clients that were not accepted yet stay in the kernel's queue, for another copy or the next one. When
        ``drain`` is over, the handlers that still run are cancelled.
        """
        if self._stopping.is_set():
            return
        self._stopping.set()
        for acceptor in self._acceptors:
            acceptor.close()
        self._acceptors.clear()
        if self._clients:
            _log.info("stopping: %d client(s) to finish, in %g s at most", len(self._clients), self._drain)
        else:
            _log.info("stopping: no client to finish")
        self._deadline = self._loop.call_later(self._drain, self._cancel_clients)
        self._close_if_done()

    async def wait_closed(self) -> None:
        """Wait until the server is closed, and each client that it accepted has been served, or cancelled."""
        await self._closed.wait()

    async def retire(self, *, owner: str = "", socket_path: str | os.PathLike[str] | None = None) -> list[Released]:
        """Stop for good: release the listeners at the binder, serve the clients that wait, and close the server.

        ``owner`` is the label that ``bind`` was given. No new client is let in; those that wait have ``drain`` seconds
        to be accepted, and those that were accepted have as long after that. Other copies stop by themselves.

        If the binder cannot be asked, or ``owner`` has no claim, this raises what ``Client.release`` raises, and the
        server goes on: a port that nobody serves must not stay open.
        """
        self._is_retiring = True
        try:
            specs = specs_of_served(self.sockets)
            released = await asyncio.to_thread(retire, specs, owner, self._drain, socket_path)
        finally:
            self._is_retiring = False
        self._leave()
        await self.wait_closed()
        return released

    async def __aenter__(self) -> Server:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        await self.wait_closed()

    def _start_client(self, client: socket.socket) -> None:
        serving = _Client(client)
        task = self._loop.create_task(self._serve(serving))
        self._clients.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            serving.close_unless_connected()
            if not task.cancelled():
                task.exception()  # that of SystemExit or KeyboardInterrupt, which have ended the loop
            self._clients.discard(task)
            for acceptor in self._acceptors:
                acceptor.try_again()  # its descriptor is free now
            self._close_if_done()

        task.add_done_callback(ended)

    async def _serve(self, client: _Client) -> None:
        """Serve one client, until the last byte has left."""
        reader = asyncio.StreamReader(self._limit, self._loop)
        protocol = _Protocol(reader, self._loop)
        try:
            transport = await client.connect(self._loop, protocol, self._tls_options)
        except OSError as error:
            _log.debug("a client was lost before its connection was made: %s", error)
            return
        writer = asyncio.StreamWriter(transport, protocol, reader, self._loop)
        try:
            try:
                answer = self._handler(reader, writer)
                await (protocol.lost.wait() if answer is None else answer)
            except Exception as error:
                self._loop.call_exception_handler(
                    {
                        "message": "Unhandled exception in client_connected_cb",
                        "exception": error,
                        "transport": transport,
                    }
                )
            writer.close()
            await protocol.lost.wait()
        except asyncio.CancelledError:
            # What the handler wrote at its end is sent, if the client reads it.
            writer.close()
            try:
                async with asyncio.timeout(_CLEAN_UP_S / 2):
                    await protocol.lost.wait()
            except (TimeoutError, asyncio.CancelledError):
                transport.abort()
                await protocol.lost.wait()
            raise

    def _released(self, acceptor: Acceptor, error: OSError) -> None:
        self._acceptors.remove(acceptor)
        acceptor.close()
        if not self._is_retiring:
            _log.warning("this server leaves a listener: %s", error)
        if not self._acceptors:
            self._leave()

    def _leave(self) -> None:
        """Close the server, and tell the service manager that this is the service's own decision."""
        if not self._stopping.is_set():
            notify_stopping()
            self.close()

    def _cancel_clients(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        if self._clients:
            _log.warning("%d client(s) are not finished, and are cancelled", len(self._clients))
            for task in self._clients:
                task.cancel()
            self._deadline = self._loop.call_later(_CLEAN_UP_S, self._abandon_clients)

    def _abandon_clients(self) -> None:
        for task in self._clients:
            _log.error(
                "%r goes on in spite of its cancellation, and keeps the process from ending: %r", self._handler, task
            )
        self._closed.set()

    def _close_if_done(self) -> None:
        if self._stopping.is_set() and not self._clients:
            if self._deadline is not None:
                self._deadline.cancel()
            self._closed.set()


class _Client:
    """An accepted socket, which belongs to this object until ``connect`` gives it to a transport."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._belongs_here = True

    async def connect(
        self, loop: asyncio.AbstractEventLoop, protocol: asyncio.BaseProtocol, tls_options: dict[str, Any]
    ) -> asyncio.Transport:
        """Make the transport. Raises OSError if the client left, or the TLS handshake failed."""
        self._belongs_here = False
        transport, _ = await loop.connect_accepted_socket(lambda: protocol, self._sock, **tls_options)
        return transport

    def close_unless_connected(self) -> None:
        """Close the socket if ``connect`` never ran: a task that is cancelled before its first step does not run."""
        if self._belongs_here:
            self._sock.close()


class _Protocol(asyncio.StreamReaderProtocol):
    """A protocol that tells when its connection is over: the last byte has left, or it was lost."""

    def __init__(self, reader: asyncio.StreamReader, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(reader, loop=loop)
        self.lost = asyncio.Event()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.lost.set()
