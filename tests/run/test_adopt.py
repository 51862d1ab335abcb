"""``run --adopt``: from a server that serves to copies on the binder's sockets, without losing a client."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from multibinder import Client
from multibinder.kernel.process import is_alive
from tests.run.conftest import Serve
from tests.support import PATIENCE_S, Binder, can_connect, require, wait_until
from tests.support.load import Load

#: A server that has never heard of a binder, and finishes its connections at SIGTERM.
_SERVER = """
import select, signal, socket, sys
stopping = []
signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))
sock = socket.create_server((sys.argv[1], 8000))
sock.setblocking(False)
while not stopping:
    if select.select([sock], [], [], 0.02)[0]:
        try:
            client, _ = sock.accept()
        except OSError:
            continue
        with client:
            client.settimeout(5)
            try:
                client.recv(4096)
                client.sendall(b"HTTP/1.0 200 OK\\r\\nContent-Length: 3\\r\\n\\r\\nok\\n")
            except OSError:
                pass
"""


@pytest.fixture(autouse=True)
def root() -> None:
    require("root", os.geteuid() == 0, "copying another process's sockets needs root")


@contextlib.contextmanager
def serving(host: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", _SERVER, host]) as former:
        try:
            wait_until(lambda: can_connect((host, 8000)), "the former server serves")
            yield former
        finally:
            former.kill()


def addresses(binder: Binder) -> list[str]:
    with Client(binder.socket_path) as client:
        return [each.address for each in client.list()]


def test_a_server_is_replaced_under_load_without_losing_a_client(make_service: Serve, binder: Binder) -> None:
    service = make_service()
    with serving(service.host) as former, Load([(service.host, 8000)], rate=200, timeout_s=PATIENCE_S) as load:
        service.start("--adopt")
        service.until_serving()
        former.wait(PATIENCE_S)
        service.reload()
        result = load.stop()
    assert result.total.failed == 0, result.table() + service.log()
    assert addresses(binder) == [f"{service.host}:8000"]
    service.wait_for_log("which served before, was told to finish")


def test_a_command_that_does_not_start_leaves_the_server_serving(make_service: Serve, binder: Binder) -> None:
    service = make_service()
    with serving(service.host) as former, Load([(service.host, 8000)], rate=100, timeout_s=PATIENCE_S) as load:
        service.behave("exits")
        service.start("--adopt")
        service.wait_for_log("it is tried again")
        service.stop()
        wait_until(lambda: addresses(binder) == [], "the binder has let go", log=service.log)
        result = load.stop()
        assert is_alive(former.pid)
    assert result.total.failed == 0, result.table() + service.log()


def test_after_sigkill_of_run_the_server_serves_on(make_service: Serve, binder: Binder) -> None:
    service = make_service()
    with serving(service.host) as former:
        service.behave("hangs")
        service.start("--adopt")
        wait_until(lambda: addresses(binder) != [], "it has adopted", log=service.log)
        service.process.send_signal(signal.SIGKILL)
        wait_until(lambda: addresses(binder) == [], "the binder has let go", log=service.log)
        with socket.create_connection((service.host, 8000), PATIENCE_S) as client:
            client.sendall(b"GET")
            assert client.recv(100)
        assert is_alive(former.pid)
