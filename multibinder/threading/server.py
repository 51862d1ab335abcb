"""The server of ``multibinder.threading``: its clients, and how it ends."""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any, Self

from multibinder.kernel.accept_errors import AT_ONCE, CLIENT_IS_GONE, LOOK_AGAIN_S, NOT_LISTENING, RETRY_DELAY_S
from multibinder.kernel.service_manager import notify_ready, notify_stopping
from multibinder.threading.stop_signals import at_stop_signal
from multibinder.wire.arguments import drain_s
from multibinder.wire.messages import Released
from multibinder.wire.served_listeners import listeners_of, names_of, retire, specs_of_served

#: A handler whose client was cut off has so long to clean up, in seconds.
_CLEAN_UP_S = 1.0

_EVENTS = selectors.EVENT_READ | selectors.EVENT_WRITE

_log = logging.getLogger("multibinder.threading")


class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """A ``socketserver.ThreadingTCPServer`` on one listener, or several, with a thread for each client.

    It takes the handlers of ``http.server`` too. To extend another server, name this class first:
    ``class MyServer(multibinder.threading.Server, http.server.ThreadingHTTPServer)``. Two copies may serve the same
    listener at once.

    The server takes the listeners: it sets them non-blocking, and ``server_close`` closes them. They stay open in the
    binder. If the binder releases a listener, the server logs it and leaves it; without a listener, it stops.
    ``drain`` is how many seconds the clients that were accepted have to finish once the server stops.
    """

    def __init__(
        self,
        listeners: socket.socket | Iterable[socket.socket],
        RequestHandlerClass: Callable[[Any, Any, Self], socketserver.BaseRequestHandler],  # noqa: N803 (socketserver's)
        *,
        drain: float = 30.0,
    ) -> None:
        self._drain = drain_s(drain)
        self.listeners = listeners_of(listeners)
        for listener in self.listeners:
            listener.setblocking(False)
        # The socket of which socketserver's methods speak: the one that is accepted on.
        self.socket = self.listeners[0]
        self.address_family = self.socket.family
        address = self.socket.getsockname()
        # Not TCPServer's constructor, which makes a socket.
        socketserver.BaseServer.__init__(self, address, RequestHandlerClass)
        self.server_name, self.server_port = address[:2]  # for the handlers of http.server
        self._wake_up = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stopping = False
        self._stopped = threading.Event()
        self._stopped.set()
        self._is_ready = False
        self._is_retiring = False
        self._failure: OSError | None = None
        self._lock = threading.Lock()
        self._clients: dict[threading.Thread, socket.socket] = {}

    def ready(self, *, is_main: bool | None = None) -> None:
        """Tell the service manager that this process serves: READY=1 (sd_notify(3)). ``serve_forever`` does it too.

        A process that replaces the main process of its unit adds MAINPID=. ``is_main`` says whether it does; by
        default, that is what was started by ``ExecReload=``. Such a unit needs ``NotifyAccess=all``.
        """
        self._is_ready = True
        _log.info("ready: pid %d accepts on %s", os.getpid(), names_of(self.listeners))
        notify_ready(is_main=is_main)

    def serve_forever(
        self, poll_interval: float = 0.5, *, signals: Collection[int] = (signal.SIGTERM, signal.SIGINT)
    ) -> None:
        """Serve until the first of ``signals``, or ``shutdown``. Then ``server_close`` waits for the clients.

        The end of a ``with`` block calls ``server_close``. The second signal ends the process at once. Signals come
        only to the main thread; with ``signals=()`` the caller handles them. A signal that the process ignores stays
        ignored. Every ``poll_interval`` seconds ``service_actions`` is called.
        """
        self._stopped.clear()
        try:
            with at_stop_signal(signals, self._stop):
                if not self._is_ready:
                    self.ready()
                self._serve(poll_interval)
        finally:
            self._stopped.set()
        with self._lock:
            _log.info("stopping: %d client(s) to finish, in %g s at most", len(self._clients), self._drain)

    def shutdown(self) -> None:
        """Stop accepting, and wait until ``serve_forever``, which another thread runs, has done so."""
        self._stop()
        self._stopped.wait()

    def retire(self, *, owner: str = "", socket_path: str | os.PathLike[str] | None = None) -> list[Released]:
        """Stop for good: release the listeners at the binder, and serve the clients that wait. Then stop accepting.

        Call it from another thread than ``serve_forever``. ``owner`` is the label that ``bind`` was given. No new
        client is let in; those that wait have ``drain`` seconds to be accepted. Other copies stop by themselves.

        If the binder cannot be asked, or ``owner`` has no claim, this raises what ``Client.release`` raises, and the
        server goes on: a port that nobody serves must not stay open.
        """
        self._is_retiring = True
        try:
            released = retire(specs_of_served(self.listeners), owner, self._drain, socket_path)
        finally:
            self._is_retiring = False
        if self.listeners:
            notify_stopping()
        self.shutdown()
        return released

    def server_close(self) -> None:
        """Close the listeners, and wait for the clients. Cut off those that are not finished after ``drain`` seconds.

        Clients that were not accepted yet stay in the kernel's queue, for another copy or the next one. A thread that
        goes on even then does not keep the process from ending.
        """
        self._stop()
        for listener in self.listeners:
            listener.close()
        self.listeners.clear()
        left = self._join(self._drain)
        if left:
            _log.warning("%d client(s) are not finished, and are cut off", len(left))
        # A handler that reads sees the end of the input, and can still answer. Then one that writes gets EPIPE.
        for how in (socket.SHUT_RD, socket.SHUT_RDWR) if left else ():
            with self._lock:
                requests = list(self._clients.values())
            for request in requests:
                with contextlib.suppress(OSError):  # it has just ended
                    # Not the method of an SSLSocket, whose state belongs to the thread that uses it.
                    socket.socket.shutdown(request, how)
            left = self._join(_CLEAN_UP_S / 2)
        for thread in left:
            _log.error("a handler goes on although its client was cut off: %r", thread)
        if self._wake_up >= 0:
            os.close(self._wake_up)
            self._wake_up = -1

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a client. An override may call it, and wrap the socket."""
        try:
            return self.socket.accept()
        except OSError as error:
            self._failure = error
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start the thread of a client. While no thread can be started, wait until another one ends."""
        deadline = time.monotonic() + self._drain
        while True:
            thread = threading.Thread(target=self._serve_client, args=(request, client_address), daemon=True)
            with self._lock:
                self._clients[thread] = request
            try:
                thread.start()
            except RuntimeError:
                self._forget(thread)
                if time.monotonic() > deadline:
                    raise
                time.sleep(LOOK_AGAIN_S)
            else:
                return

    def _serve_client(self, request: Any, client_address: Any) -> None:
        try:
            self.process_request_thread(request, client_address)
        finally:
            self._forget(threading.current_thread())

    def _forget(self, thread: threading.Thread) -> None:
        with self._lock:
            self._clients.pop(thread, None)

    def _join(self, timeout_s: float) -> list[threading.Thread]:
        """Wait for the threads of all clients, and return those that go on."""
        deadline = time.monotonic() + timeout_s
        with self._lock:
            threads = list(self._clients)
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return [thread for thread in threads if thread.is_alive()]

    def _stop(self) -> None:
        # A handler of signals calls this. It takes no lock.
        self._stopping = True
        if self._wake_up >= 0:
            os.eventfd_write(self._wake_up, 1)

    def _serve(self, poll_interval: float) -> None:
        later: dict[socket.socket, float] = {}
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_up, selectors.EVENT_READ)
            for listener in self.listeners:
                selector.register(listener, _EVENTS)
            while self.listeners and not self._stopping:
                wait_s = min([poll_interval, *(at - time.monotonic() for at in later.values())])
                for key, events in selector.select(max(0.0, wait_s)):
                    if key.fileobj in self.listeners:
                        delay_s = self._accept(key.fileobj)
                        if delay_s is None and events & selectors.EVENT_WRITE:
                            delay_s = LOOK_AGAIN_S
                        if key.fileobj not in self.listeners:
                            selector.unregister(key.fileobj)
                            key.fileobj.close()
                        elif delay_s is not None:
                            selector.unregister(key.fileobj)
                            later[key.fileobj] = time.monotonic() + delay_s
                for listener in [each for each, at in later.items() if at <= time.monotonic()]:
                    del later[listener]
                    selector.register(listener, _EVENTS)
                self.service_actions()

    def _accept(self, listener: socket.socket) -> float | None:
        """Accept the clients that wait. Return after how many seconds to try again, or None: when it is readable."""
        self.socket = listener
        for _ in range(AT_ONCE):
            if self._stopping:
                break
            self._failure = None
            try:
                request, client_address = self.get_request()
            except OSError as error:
                if error is not self._failure or error.errno in CLIENT_IS_GONE:
                    continue  # an override of get_request() gave the client up, or the kernel did
                if isinstance(error, BlockingIOError):
                    break
                if error.errno in NOT_LISTENING:
                    self._released(listener, error)
                    break
                _log.error("accept() failed, and is tried again in %g s: %s", RETRY_DELAY_S, error)
                return RETRY_DELAY_S
            self._take(request, client_address)
        return None

    def _take(self, request: Any, client_address: Any) -> None:
        """Do for an accepted client what BaseServer does."""
        try:
            if self.verify_request(request, client_address):
                self.process_request(request, client_address)
                return
        except Exception:
            self.handle_error(request, client_address)
        self.shutdown_request(request)

    def _released(self, listener: socket.socket, error: OSError) -> None:
        self.listeners.remove(listener)
        if not self._is_retiring:
            _log.warning("this server leaves a listener: %s", error)
        if not self.listeners:
            notify_stopping()
