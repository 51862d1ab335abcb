"""Serve metrics by HTTP, with limits on connections, threads and times."""

from __future__ import annotations

import collections
import contextlib
import gzip
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import Any

import sdnotify
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import CollectorRegistry

from multibinder import TcpAddress, __version__
from multibinder.kernel.tcp_peer import uid_of_peer

#: The most requests at the same time; an exporter usually has one or two scrapers.
_MAX_REQUESTS = 16
#: The time for a request, until its answer is read.
_REQUEST_S = 30.0
#: The time for open requests after SIGTERM; systemd waits longer.
_DRAIN_S = 5.0
#: If all places are taken, an answer that takes longer than this may be cut for another connection.
_ANSWER_S = 2.0
_PAGE = b"""<!DOCTYPE html><title>multibinder exporter</title>
<h1>multibinder exporter</h1><p><a href="/metrics">Metrics</a></p>
"""


@dataclass
class _Connection:
    """A connection: its peer's address and, on this host, uid; since when it is open (time.monotonic())."""

    peer: tuple[str, int | None]
    since: float
    answering: bool = False


class MetricsServer(ThreadingMixIn, TCPServer):
    """An HTTP/1.0 server with a thread for each request, a limit on their number, and a deadline for each.

    http.server.HTTPServer is not the base class, because it looks up the host name in the DNS before it serves. The
    constructor listens, and raises OSError if it cannot.
    """

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: TcpAddress, registry: CollectorRegistry, log: Callable[[str], None]) -> None:
        self.address_family = address.family
        self.registry = registry
        self._log = log
        self._open: dict[socket.socket, _Connection] = {}
        self._lock = threading.Condition()
        super().__init__(address.sockaddr, _Handler)

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then answer the open requests."""
        # shutdown() waits for the loop, which runs in this thread, so another thread has to call it.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: threading.Thread(target=self.shutdown, daemon=True).start())
        host, port = self.socket.getsockname()[:2]
        self._log(f"serving http://{TcpAddress.of(host, port)}/metrics")
        notifier = sdnotify.SystemdNotifier()
        notifier.notify("READY=1")
        self.serve_forever()
        notifier.notify("STOPPING=1")
        with self._lock:
            self._lock.wait_for(lambda: not self._open, _DRAIN_S)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            connection = _Connection((client_address[0], uid_of_peer(request)), time.monotonic())
            full = len(self._open) >= _MAX_REQUESTS and not self._make_room(connection)
            if not full:
                self._open[request] = connection
        if full:
            with contextlib.suppress(OSError):
                request.send(b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 15\r\n\r\n", socket.MSG_DONTWAIT)
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
            super().shutdown_request(request)
            self._lock.notify_all()

    def note_answering(self, request: socket.socket) -> None:
        """Note that a request was read whole. It is evicted after those that send nothing."""
        with self._lock:
            if request in self._open:
                self._open[request].answering = True

    def service_actions(self) -> None:
        """Cut requests that are past their deadline. The server's loop calls this twice a second.

        A timeout of the socket is not enough, because each byte that a slow client sends or reads restarts it.
        """
        now = time.monotonic()
        with self._lock:  # requests are closed under the lock, so no descriptor here belongs to a later socket
            for request, connection in self._open.items():
                if now > connection.since + _REQUEST_S:
                    with contextlib.suppress(OSError):
                        request.shutdown(socket.SHUT_RDWR)

    def _make_room(self, new: _Connection) -> bool:
        """Evict a connection of the peer that has most, and return whether there is room for ``new``.

        It is the one that has been silent longest; else the oldest whose answer takes long. The thread of an evicted
        connection ends by itself.
        """
        most = collections.Counter([new.peer, *(connection.peer for connection in self._open.values())])
        (largest, count), *_ = most.most_common()
        peer = new.peer if most[new.peer] == count else largest
        theirs = [(request, each) for request, each in self._open.items() if each.peer == peer]
        silent = [pair for pair in theirs if not pair[1].answering]
        slow = [pair for pair in theirs if pair[1].since < new.since - _ANSWER_S or peer != new.peer]
        for request, _ in silent or slow:  # the oldest is first
            del self._open[request]
            with contextlib.suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)
            return True
        return False

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):  # an OSError is a client that went away
            self._log(f"a request failed: {error!r}; please report it")


class _Handler(BaseHTTPRequestHandler):
    server: MetricsServer
    timeout = 10
    server_version = f"multibinder-exporter/{__version__}"
    sys_version = ""

    def do_GET(self) -> None:
        self.server.note_answering(self.connection)
        path = self.path.partition("?")[0]
        if path == "/":
            self._answer(_PAGE, "text/html; charset=utf-8")
        elif path == "/metrics":
            encode, content_type = choose_encoder(self.headers.get("Accept", ""))
            self._answer(encode(self.server.registry), content_type, compress=self._accepts_gzip())
        else:
            self.send_error(404, "Not Found", "The metrics are at /metrics.")

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """Do not log scrapes."""

    def _accepts_gzip(self) -> bool:
        codings = [each.partition(";") for each in self.headers.get("Accept-Encoding", "").lower().split(",")]
        return any(name.strip() == "gzip" and weight.replace(" ", "") != "q=0" for name, _, weight in codings)

    def _answer(self, body: bytes, content_type: str, compress: bool = False) -> None:
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        if compress:
            # The fastest level. A higher one takes a second for the metrics of 10,000 listeners.
            body = gzip.compress(body, compresslevel=1)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
