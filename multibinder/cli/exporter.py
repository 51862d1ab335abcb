"""``multibinder exporter``: Prometheus metrics, by HTTP or into a file."""

from __future__ import annotations

import contextlib
import gzip
import signal
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import Any

import click
import sdnotify
from prometheus_client.exposition import choose_encoder, generate_latest
from prometheus_client.registry import CollectorRegistry

from multibinder import SOCKET_VARIABLE, AddressError, MultibinderError, TcpAddress, __version__
from multibinder.kernel import files
from multibinder.observe.metrics.scrape import Scrape

#: Below Prometheus's own default for a scrape (scrape_timeout: 10s), so that 'multibinder_up 0' still gets through.
_TIMEOUT_S = 8.0
#: Requests at once. A scraper or two is what is expected.
_MAX_REQUESTS = 16
#: For a request and for reading its answer, all together.
_REQUEST_S = 30.0
#: After SIGTERM; systemd and Ctrl-C are patient for longer.
_LAST_REQUESTS_S = 5.0
_PAGE = b"""<!DOCTYPE html><title>multibinder exporter</title>
<h1>multibinder exporter</h1><p><a href="/metrics">Metrics</a></p>
"""


class ExporterError(MultibinderError):
    """The exporter cannot serve; the message says why, and what to do."""


class _Listen(click.ParamType):  # type: ignore[type-arg, unused-ignore]  # generic since click 8.4
    name = "address"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> TcpAddress:
        try:
            return TcpAddress.parse(str(value))
        except AddressError as error:
            self.fail(str(error), param, ctx)


@click.command("exporter")
@click.option("--listen", type=_Listen(), default="127.0.0.1:9847", show_default=True, metavar="HOST:PORT",
              help="Where to serve /metrics.")  # fmt: skip
@click.option("--socket", "socket_path", envvar=SOCKET_VARIABLE, required=True, metavar="PATH", show_envvar=True,
              help="The control socket.")  # fmt: skip
@click.option("--runtime-dir", default="/run/multibinder-haproxy", show_default=True, metavar="DIR",
              help="Where the HAProxy instances are.")  # fmt: skip
@click.option(
    "--textfile",
    metavar="FILE",
    help="Write the metrics there once, and exit: a timer does it for node_exporter's textfile collector.",
)
@click.option("--timeout", type=click.FloatRange(0.1, 600), default=_TIMEOUT_S, show_default=True, metavar="SECONDS",
              help="How long the binder may take to answer; less than Prometheus's scrape_timeout.")  # fmt: skip
@click.pass_context
def exporter_command(
    ctx: click.Context, listen: TcpAddress, socket_path: str, runtime_dir: str, textfile: str | None, timeout: float
) -> None:
    """Serve Prometheus metrics of the binder, its listeners, and the HAProxy instances of this host.

    Needs no privilege, but must reach the control socket: through its group (multibinder). Without a policy whoever
    reaches it may bind and release anything; with one, a rule narrows the exporter to what it needs:

    \b
      [[rule]]
      unit = "multibinder-exporter.service"
      allow = ["status"]

    If the binder cannot be asked, 'multibinder_up 0' says so, and the instances' metrics are served all the same. What
    each metric means is in docs/metrics.md.

    \b
    Example:
      multibinder exporter --listen '[::1]:9847'
      multibinder exporter --textfile /var/lib/prometheus/node-exporter/multibinder.prom
    """
    scrape = Scrape(socket_path, runtime_dir, __version__, timeout, _say)
    if textfile is None:
        _serve(listen, scrape.registry())
        return
    if ctx.get_parameter_source("listen") is not click.core.ParameterSource.DEFAULT:
        raise click.UsageError("give either --listen or --textfile")
    if not textfile.endswith(".prom"):
        raise click.BadParameter(f"{textfile!r}: node_exporter reads files named *.prom only", param_hint="--textfile")
    _write(textfile, generate_latest(scrape.registry()))


def _say(source: str, sentence: str) -> None:
    """On stderr: systemd and cron keep it."""
    _log(sentence or f"{'the binder answers' if source == 'binder' else 'all instances can be read'} again")


def _log(sentence: str) -> None:
    with contextlib.suppress(OSError):
        click.echo(f"multibinder exporter: {sentence}", err=True)


def _write(path: str, text: bytes) -> None:
    """The new metrics or the old ones, never half of them. Others may read it: node_exporter is another user."""
    try:
        files.replace(path, text, 0o644)
    except OSError as error:
        raise ExporterError(f"{path}: cannot write: {(error.strerror or str(error)).lower()}") from error


def _serve(address: TcpAddress, registry: CollectorRegistry) -> None:
    """Until SIGTERM or SIGINT."""
    try:
        server = _Server(address, registry)
    except OSError as error:
        raise ExporterError(f"cannot listen on {address}: {(error.strerror or str(error)).lower()}") from error
    with server:
        # shutdown() waits for the loop, which runs in this very thread: another one must call it.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: threading.Thread(target=server.shutdown, daemon=True).start())
        host, port = server.socket.getsockname()[:2]
        _log(f"serving http://{TcpAddress.of(host, port)}/metrics")
        notifier = sdnotify.SystemdNotifier()
        notifier.notify("READY=1")
        server.serve_forever()
        notifier.notify("STOPPING=1")
        server.finish_requests()


class _Server(ThreadingMixIn, TCPServer):
    """HTTP/1.0, one request for each connection, each in a thread; no more than so many, and none for long.

    Not http.server's own: that looks up the host's name in the DNS before it serves.
    """

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: TcpAddress, registry: CollectorRegistry) -> None:
        self.address_family = address.family
        self.registry = registry
        self._deadlines: dict[socket.socket, float] = {}
        self._lock = threading.Condition()
        super().__init__(address.sockaddr, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            full = len(self._deadlines) >= _MAX_REQUESTS
            if not full:
                self._deadlines[request] = time.monotonic() + _REQUEST_S
        if full:
            with contextlib.suppress(OSError):
                request.send(b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 15\r\n\r\n", socket.MSG_DONTWAIT)
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._deadlines.pop(request, None)
            super().shutdown_request(request)
            self._lock.notify_all()

    def service_actions(self) -> None:
        """Twice a second. A client that sends or reads byte by byte never lets a timeout of one call pass."""
        now = time.monotonic()
        with self._lock:  # so that what is shut down here is not closed, and its number another's
            for request, deadline in self._deadlines.items():
                if now > deadline:
                    with contextlib.suppress(OSError):
                        request.shutdown(socket.SHUT_RDWR)

    def finish_requests(self) -> None:
        """Wait for the answers under way, but not for long."""
        with self._lock:
            self._lock.wait_for(lambda: not self._deadlines, _LAST_REQUESTS_S)

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):  # a client that went away is no news
            _log(f"a request failed: {error!r}; please report it")


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 10
    server_version = f"multibinder-exporter/{__version__}"
    sys_version = ""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/":
            self._answer(_PAGE, "text/html; charset=utf-8")
        elif path == "/metrics":
            encode, content_type = choose_encoder(self.headers.get("Accept", ""))
            self._answer(encode(self.server.registry), content_type, compress=self._takes_gzip())
        else:
            self.send_error(404, "Not Found", "The metrics are at /metrics.")

    def do_HEAD(self) -> None:
        self.do_GET()

    def _takes_gzip(self) -> bool:
        codings = [each.partition(";") for each in self.headers.get("Accept-Encoding", "").lower().split(",")]
        return any(name.strip() == "gzip" and weight.replace(" ", "") != "q=0" for name, _, weight in codings)

    def _answer(self, body: bytes, content_type: str, compress: bool = False) -> None:
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        if compress:
            # The fastest level: the metrics of 10,000 listeners are worth it, and a second of our time is not.
            body = gzip.compress(body, compresslevel=1)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Who scrapes is no news either."""
