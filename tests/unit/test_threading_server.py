from __future__ import annotations

import contextlib
import errno
import http.client
import http.server
import logging
import os
import resource
import signal
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import multibinder.threading
from tests.support import PATIENCE_S, clean_environment, descriptors_unchanged, later, wait_until
from tests.support.certificate import client_context, server_context
from tests.support.port import Port


@pytest.fixture
def port() -> Iterator[Port]:
    with contextlib.closing(Port()) as port:
        yield port


@pytest.fixture(autouse=True)
def nothing_is_left(caplog: pytest.LogCaptureFixture, port: Port) -> Iterator[None]:
    """Signals, descriptors and threads are as before."""
    caplog.set_level(logging.INFO)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    threads = threading.enumerate()
    with warnings.catch_warnings(), descriptors_unchanged():
        warnings.simplefilter("error")
        yield
    for number, handler in before.items():
        signal.signal(number, handler)
    assert threading.enumerate() == threads


class Answer(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.wfile.write(b"answer to " + self.rfile.readline())


class Waits(socketserver.StreamRequestHandler):
    """Answers when it is allowed to."""

    begun: threading.Event
    may_answer: threading.Event

    def handle(self) -> None:
        self.begun.set()
        self.may_answer.wait(PATIENCE_S)
        self.wfile.write(b"answer to " + self.rfile.readline())


@pytest.fixture
def waits() -> Iterator[type[Waits]]:
    class Own(Waits):
        begun = threading.Event()
        may_answer = threading.Event()

    yield Own
    Own.may_answer.set()


def server_on(*ports: Port, handler: Any = Answer, drain: float = PATIENCE_S) -> multibinder.threading.Server:
    return multibinder.threading.Server([port.listener() for port in ports], handler, drain=drain)


@contextlib.contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[None]:
    """Run ``serve_forever`` in a thread; at the end, stop it. ``server_close`` is not called."""
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def kill_when_handled(number: signal.Signals = signal.SIGTERM) -> None:
    """Send a signal to this process when SIGTERM does not end it any more."""
    wait_until(lambda: signal.getsignal(signal.SIGTERM) != signal.SIG_DFL, "SIGTERM is handled")
    os.kill(os.getpid(), number)


def read(client: socket.socket) -> bytes:
    """Read to the end of the connection, and close it."""
    with client:
        return b"".join(iter(lambda: client.recv(65536), b""))


def test_each_client_has_a_thread(port: Port) -> None:
    with server_on(port) as server, serving(server):
        first, second = port.connect(), port.connect(send=b"2\n")
        assert read(second) == b"answer to 2\n"
        first.sendall(b"1\n")
        assert read(first) == b"answer to 1\n"


def test_two_copies_at_once_serve_each_client_once(port: Port) -> None:
    with server_on(port) as one, server_on(port) as two, serving(one), serving(two):
        for _ in range(100):
            assert read(port.connect(send=b"x\n")) == b"answer to x\n"
    # Neither hangs in accept() because the other one was faster: both have ended.


def test_no_client_of_a_burst_at_the_moment_of_the_signal_is_lost(port: Port) -> None:
    """Each is answered, or waits for the next copy."""
    clients: list[socket.socket] = []

    def burst() -> None:
        clients.extend(port.connect(send=b"%d\n" % number) for number in range(5))
        kill_when_handled()
        clients.extend(port.connect(send=b"%d\n" % number) for number in range(5, 10))

    with server_on(port) as server:
        thread = threading.Thread(target=burst)
        thread.start()
        server.serve_forever()
    thread.join()
    with server_on(port) as server, serving(server):
        assert [read(client) for client in clients] == [b"answer to %d\n" % number for number in range(10)]


def test_the_signal_is_seen_at_once(port: Port) -> None:
    with server_on(port) as server, later(0, kill_when_handled):
        began = time.monotonic()
        server.serve_forever(poll_interval=PATIENCE_S)
        assert time.monotonic() - began < PATIENCE_S / 2
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    late = port.connect(send=b"x\n")
    assert port.waiting() == 1
    late.close()


def test_clients_that_are_served_are_finished_before_server_close_returns(port: Port, waits: type[Waits]) -> None:
    with server_on(port, handler=waits) as server:
        with serving(server):
            client = port.connect(send=b"x\n")
            waits.begun.wait(PATIENCE_S)
        with later(0.05, waits.may_answer.set):
            server.server_close()
        assert read(client) == b"answer to x\n"


def test_clients_are_cut_off_when_the_drain_is_over(port: Port, caplog: pytest.LogCaptureFixture) -> None:
    with server_on(port, drain=0.05) as server:
        with serving(server):
            silent = [port.connect() for _ in range(3)]
            wait_until(lambda: len(server._clients) == 3, "the clients are accepted")
        server.server_close()
        assert [read(client) for client in silent] == [b"answer to "] * 3
    assert "3 client(s) are not finished, and are cut off" in caplog.text


_STUBBORN = """
import multibinder.threading, os, signal, socket, socketserver, threading
class Stubborn(socketserver.BaseRequestHandler):
    def handle(self):
        os.kill(os.getpid(), signal.SIGTERM)
        while True:
            threading.Event().wait(1)
listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
with multibinder.threading.Server(listener, Stubborn, drain=0) as server:
    server.serve_forever()
"""


def test_a_handler_that_never_ends_does_not_keep_the_process_from_ending() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", _STUBBORN],
        env=clean_environment({}),
        capture_output=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0
    assert b"a handler goes on although its client was cut off" in done.stderr


_TWICE = """
import multibinder.threading, os, signal, socket, socketserver, threading
class Stop(socketserver.BaseRequestHandler):
    def handle(self):
        os.kill(os.getpid(), signal.SIGTERM)
        stopped.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait()
stopped = threading.Event()
listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
with multibinder.threading.Server(listener, Stop, drain=1000) as server:
    server.serve_forever()
    stopped.set()
"""


def test_a_second_signal_ends_the_process_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", _TWICE], env=clean_environment({}), check=False, timeout=PATIENCE_S)
    assert done.returncode == -signal.SIGTERM


def test_without_a_signal_the_handlers_are_those_from_before(port: Port) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with server_on(port) as server, later(0.05, server.shutdown):
        server.serve_forever()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_signal_that_the_process_ignores_stays_ignored(port: Port) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with (
        server_on(port) as server,
        later(0, lambda: kill_when_handled(signal.SIGINT)),
        later(0.1, server.shutdown),
    ):
        began = time.monotonic()
        server.serve_forever()
        assert time.monotonic() - began > 0.09


def test_a_released_listener_stops_the_server_with_one_line(
    port: Port, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, run_dir: Path, waits: type[Waits]
) -> None:
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as supervisor:
        supervisor.bind(str(run_dir / "n"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(run_dir / "n"))
        with server_on(port, handler=waits) as server:
            client = port.connect(send=b"x\n")

            def release() -> None:
                waits.begun.wait(PATIENCE_S)
                port.release()

            with later(0, release):
                server.serve_forever()
            waits.may_answer.set()
        assert read(client) == b"answer to x\n"
        assert [supervisor.recv(100), supervisor.recv(100)] == [b"READY=1", b"STOPPING=1"]
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1


def test_a_server_goes_on_with_its_other_listeners(port: Port) -> None:
    with contextlib.closing(Port("127.0.0.2")) as other, server_on(port, other) as server, serving(server):
        assert read(port.connect(send=b"1\n")) == b"answer to 1\n"
        port.release()
        wait_until(lambda: len(server.listeners) == 1, "the released listener is gone")
        assert read(other.connect(send=b"2\n")) == b"answer to 2\n"


def test_a_shortage_of_descriptors_is_waited_for_without_a_busy_loop(
    port: Port, caplog: pytest.LogCaptureFixture
) -> None:
    with server_on(port) as server, serving(server):
        first = port.connect()
        wait_until(lambda: len(server._clients) == 1, "the first client is accepted")
        second = socket.socket()
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
        try:
            second.connect(port.address)
            second.sendall(b"2\n")
            wait_until(lambda: "accept() failed" in caplog.text, "the shortage is reported")
            time.sleep(0.1)
            assert caplog.text.count("accept() failed") == 1
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        assert read(second) == b"answer to 2\n"
        first.close()


def test_an_exception_of_a_handler_is_reported_as_socketserver_does_it(
    port: Port, capsys: pytest.CaptureFixture[str]
) -> None:
    class Fail(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            raise ValueError("on purpose")

    with server_on(port, handler=Fail) as server, serving(server):
        assert read(port.connect()) == b""
    assert "Exception occurred during processing of request" in capsys.readouterr().err


class Hello(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *_: object) -> None:
        pass


class HttpServer(multibinder.threading.Server, http.server.ThreadingHTTPServer):
    """``python -m http.server`` on a listener."""


@pytest.mark.parametrize("kind", [multibinder.threading.Server, HttpServer])
def test_http_server(port: Port, kind: type[multibinder.threading.Server]) -> None:
    with kind(port.listener(), Hello) as server, serving(server):
        assert (server.server_name, server.server_port) == server.server_address == port.address
        connection = http.client.HTTPConnection(*port.address, timeout=PATIENCE_S)
        with contextlib.closing(connection):
            for _ in range(2):
                connection.request("GET", "/")
                assert connection.getresponse().read() == b"hello"


def test_get_request_can_wrap_the_socket(port: Port, run_dir: Path) -> None:
    context = server_context(run_dir)

    class Secure(multibinder.threading.Server):
        def get_request(self) -> tuple[ssl.SSLSocket, Any]:
            sock, address = super().get_request()
            return context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False), address

    with Secure(port.listener(), Answer, drain=0.05) as server:
        with serving(server):
            silent = port.connect()
            with client_context().wrap_socket(port.connect()) as client:
                client.sendall(b"x\n")
                assert client.recv(100) == b"answer to x\n"
            wait_until(lambda: len(server._clients) == 1, "one client is left, in its handshake")
        server.server_close()
        silent.close()


def test_get_request_may_give_a_client_up(port: Port) -> None:
    class Picky(multibinder.threading.Server):
        refused = 0

        def get_request(self) -> tuple[socket.socket, Any]:
            sock, address = super().get_request()
            if not self.refused:
                self.refused += 1
                sock.close()
                raise OSError(errno.EIO, "on purpose")
            return sock, address

    with Picky(port.listener(), Answer) as server, serving(server):
        with contextlib.suppress(ConnectionResetError):
            assert read(port.connect(send=b"1\n")) == b""
        assert read(port.connect(send=b"2\n")) == b"answer to 2\n"


def test_a_client_waits_while_no_thread_can_be_started(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = [2]
    start = threading.Thread.start

    def start_sometimes(thread: threading.Thread) -> None:
        if thread.daemon and failures[0]:
            failures[0] -= 1
            raise RuntimeError("can't start new thread")  # what the interpreter says at the limit of threads
        start(thread)

    with server_on(port) as server, serving(server):
        monkeypatch.setattr(threading.Thread, "start", start_sometimes)
        assert read(port.connect(send=b"x\n")) == b"answer to x\n"
        monkeypatch.undo()
    assert failures == [0]


def test_arguments_that_cannot_be_served_are_refused(port: Port) -> None:
    with pytest.raises(ValueError, match="no listener was given"):
        multibinder.threading.Server([], Answer)
    with port.listener() as listener, pytest.raises(ValueError, match="drain -1"):
        multibinder.threading.Server(listener, Answer, drain=-1)
