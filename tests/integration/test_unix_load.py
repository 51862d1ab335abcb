"""Servers on Unix sockets that are killed and restarted under load: no client is refused, and no datagram is lost."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from multibinder import Address
from tests.support import PATIENCE_S, Binder, clean_environment, wait_until
from tests.support.campaign import times

#: Answers each client with its words. It reports a datagram before it takes it from the queue: after a kill in between,
#: it is reported twice, and not lost.
_SERVER = """
import os, socket, sys
from multibinder import Address, Client, ListenerSpec
with Client() as client:
    [listener] = client.bind([ListenerSpec(Address.parse(sys.argv[1]))])
listener = socket.socket(fileno=listener.detach())
os.write(1, b"ready\\n")
while listener.type == socket.SOCK_DGRAM:
    os.write(1, listener.recv(100, socket.MSG_PEEK) + b"\\n")
    listener.recv(100)
while True:
    connection, _ = listener.accept()
    if words := connection.recv(100):
        connection.send(words)
    connection.close()
"""
#: What a daemon does at its end to a socket that it has inherited.
_ENDS = {
    "unlinks": "os.unlink(path)",
    "renames": "os.rename(path, path + '.old')",
    "replaces": "s = socket.socket(socket.AF_UNIX); s.bind(path + '.tmp'); s.close(); os.rename(path + '.tmp', path)",
}


@pytest.fixture(scope="module")
def binder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Binder]:
    with Binder(tmp_path_factory.mktemp("b")) as binder:
        yield binder.wait_until_ready()


class Server:
    """The program above, and the lines that all its processes have printed."""

    def __init__(self, binder: Binder, address: Address) -> None:
        self._command = [sys.executable, "-c", _SERVER, str(address)]
        self._environment = clean_environment({"MULTIBINDER_SOCK": str(binder.socket_path)})
        self.lines: list[bytes] = []
        self._readers: list[threading.Thread] = []
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, env=self._environment, stdout=subprocess.PIPE)
        self._readers.append(threading.Thread(target=self._read, args=[self._process]))
        self._readers[-1].start()
        count = len(self._readers)
        wait_until(lambda: self.lines.count(b"ready\n") >= count, "the server is ready")

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(PATIENCE_S)

    def close(self) -> None:
        self.kill()
        for reader in self._readers:
            reader.join(PATIENCE_S)

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout:
            self.lines += process.stdout


class Load:
    """Clients, one after the other in each of some threads. ``refused`` could not connect, ``cut`` got no answer."""

    def __init__(self, address: Address, threads: int = 4) -> None:
        self._address = address
        self._ends = threading.Event()
        self.sent: list[int] = []
        self.answered, self.cut = 0, 0
        self.refused: list[str] = []
        send = self._send if getattr(address, "type") == socket.SOCK_DGRAM else self._connect  # noqa: B009
        self._threads = [threading.Thread(target=send, args=[number]) for number in range(threads)]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)

    def _connect(self, _: int) -> None:
        while not self._ends.is_set():
            with socket.socket(socket.AF_UNIX, getattr(self._address, "type")) as client:  # noqa: B009
                client.settimeout(PATIENCE_S)
                try:
                    client.connect(self._address.path or "")
                except OSError as error:
                    self.refused.append(str(error))
                    continue
                try:
                    client.send(b"hello")
                    is_answered = client.recv(100) == b"hello"
                except OSError:
                    is_answered = False
                self.answered += is_answered
                self.cut += not is_answered

    def _send(self, first: int) -> None:
        number = first
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.settimeout(PATIENCE_S)  # a sender waits while the queue is full
            while not self._ends.is_set():
                try:
                    client.sendto(str(number).encode(), self._address.path or "")
                except OSError as error:
                    self.refused.append(str(error))
                    continue
                self.sent.append(number)
                number += len(self._threads)
                time.sleep(0.0005)


@contextlib.contextmanager
def under_load(binder: Binder, address: Address) -> Iterator[tuple[Server, Load]]:
    server = Server(binder, address)
    try:
        load = Load(address)
        try:
            yield server, load
        finally:
            load.end()
    finally:
        if getattr(address, "type") == socket.SOCK_DGRAM:  # noqa: B009
            last = {b"%d\n" % number for number in load.sent[-20:]}
            wait_until(lambda: last <= {*server.lines[-200:]}, "the last datagrams arrive")
        server.close()


@pytest.mark.parametrize("prefix", ["unix@", "unixseq@", "uxdg@"])
def test_a_server_that_is_killed_and_restarted_under_load_refuses_and_loses_nobody(
    binder: Binder, tmp_path: Path, prefix: str
) -> None:
    address = Address.parse(f"{prefix}{tmp_path}/app.sock")
    rounds = times(2, 20)
    with under_load(binder, address) as (server, load):
        for _ in range(rounds):
            time.sleep(0.1)
            server.kill()
            time.sleep(0.1)
            server.start()
    assert load.refused == []
    if prefix == "uxdg@":
        assert len(load.sent) > 100
        assert {int(line) for line in server.lines if line != b"ready\n"} >= set(load.sent)
    else:
        # A client that a process had accepted ends with that process.
        assert load.cut <= rounds
        assert load.answered > 100


@pytest.mark.parametrize("end", _ENDS)
def test_a_server_that_takes_the_path_with_it_refuses_clients_for_milliseconds_and_loses_none_that_wait(
    binder: Binder, tmp_path: Path, end: str
) -> None:
    address = Address.parse(f"unix@{tmp_path}/app.sock")
    path = address.path or ""
    server = Server(binder, address)
    server.kill()
    try:
        with contextlib.ExitStack() as stack:
            waiting = []
            for _ in range(50):
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.settimeout(PATIENCE_S)
                client.connect(path)
                client.send(b"hello")
                waiting.append(client)
            subprocess.run([sys.executable, "-c", f"import os, socket, sys; path = sys.argv[1]; {_ENDS[end]}", path],
                           check=True)  # fmt: skip
            wait_until(lambda: _can_connect(path), "the path is back", log=binder.log, timeout_s=2)
            server.start()
            assert [client.recv(100) for client in waiting] == [b"hello"] * 50
    finally:
        server.close()


def _can_connect(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(path) == 0


def test_an_inode_that_is_used_again_is_not_taken_for_the_sockets(binder: Binder, tmp_path: Path) -> None:
    """Inodes of dead sockets are used again; that of one that is held is not."""
    address = Address.parse(f"unix@{tmp_path}/app.sock")
    server = Server(binder, address)
    try:
        held = os.stat(address.path or "").st_ino
        for number in range(50):
            with socket.socket(socket.AF_UNIX) as other:
                other.bind(f"{tmp_path}/{number}")
                assert os.stat(f"{tmp_path}/{number}").st_ino != held
            os.unlink(f"{tmp_path}/{number}")
    finally:
        server.close()
