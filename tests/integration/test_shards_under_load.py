"""Shards grow and shrink under load: 4, 2, 4, 1, 4. Nobody is lost where the kernel can move connections."""

from __future__ import annotations

import contextlib
import select
import shutil
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from multibinder import Client
from multibinder.kernel import reuseport
from tests.support import Binder, own_port, require, wait_until
from tests.support.campaign import times
from tests.support.load import Load, Result
from tests.support.namespaces import in_new_namespaces

ANSWER = b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n"
RATE = times(600, 2000)
ROUNDS = times(1, 5)
#: Each number of shards stays for this time; so long where a drain has to end.
STEP_S, DRAIN_STEP_S = times(1, 4) * 0.4, times(1, 2) * 1.3
#: The server accepts nobody for this time before each change, so that all queues have clients.
PAUSE_S = 0.1
WITHOUT_BPF = ("setpriv", "--bounding-set=-bpf,-sys_admin", "--inh-caps=-bpf,-sys_admin")


class Server:
    """A server that accepts on the shards of each generation, and on those of earlier ones as long as they listen."""

    def __init__(self) -> None:
        self.accepted: dict[int, int] = {}
        self.first: tuple[int, ...] = ()
        self._poll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self._stopped = False
        self._may_accept = threading.Event()
        self._may_accept.set()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def serve(self, listeners: Sequence[socket.socket]) -> None:
        for sock in listeners:
            sock.setblocking(False)
            self._sockets[sock.fileno()] = sock
            self._poll.register(sock, select.EPOLLIN)
        self.first = self.first or tuple(sock.fileno() for sock in listeners)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Accept nobody in this block."""
        self._may_accept.clear()
        try:
            threading.Event().wait(PAUSE_S)
            yield
        finally:
            self._may_accept.set()

    def stop(self) -> None:
        self._stopped = True
        self._thread.join()
        for sock in self._sockets.values():
            sock.close()
        self._poll.close()

    def _serve(self) -> None:
        clients: dict[int, socket.socket] = {}
        while not self._stopped:
            self._may_accept.wait()
            for descriptor, _ in self._poll.poll(0.05):
                if (client := clients.pop(descriptor, None)) is not None:
                    with contextlib.suppress(OSError), client:
                        client.recv(4096)
                        client.sendall(ANSWER)
                    continue
                try:
                    client, _address = socket.socket.accept(self._sockets[descriptor])
                except BlockingIOError:
                    continue
                except OSError:  # it does not listen any more
                    self._poll.unregister(descriptor)
                    continue
                self.accepted[descriptor] = self.accepted.get(descriptor, 0) + 1
                clients[client.fileno()] = client
                self._poll.register(client, select.EPOLLIN)
        for client in clients.values():
            client.close()


def resize_under_load(binder: Binder, step_s: float) -> tuple[Result, Server]:
    """Return the outcome of all connections, while the number of shards changes."""
    port, server = own_port(), Server()
    try:
        with Client(binder.socket_path) as client:
            server.serve(client.bind([f"127.0.0.1:{port}"], shards=4, owner="test"))
            with Load([("127.0.0.1", port)], rate=RATE) as load:
                for _ in range(ROUNDS):
                    for count in (2, 4, 1, 4):
                        threading.Event().wait(step_s)
                        with server.pause():
                            server.serve(client.bind([f"127.0.0.1:{port}"], shards=count, owner="test"))
                threading.Event().wait(step_s)
                result = load.stop()
            assert wait_until(lambda: len([each for each in client.list() if not each.draining]) == 4, "four shards")
    finally:
        server.stop()
    return result, server


def test_with_the_program_no_client_is_lost_and_all_shards_get_some(tmp_path: Path) -> None:
    with Binder(tmp_path) as binder:
        binder.wait_until_ready()
        result, server = resize_under_load(binder, STEP_S)
        if "shard-drains" in binder.log():
            require("root", False, "the binder may not load a BPF program")
    assert result.total.failed == 0, result.table()
    assert all(server.accepted.get(descriptor) for descriptor in server.first), "each of the first four got clients"


@in_new_namespaces
def test_with_the_setting_no_client_is_lost_without_the_right_to_load_a_program(tmp_path: Path) -> None:
    require("setpriv", shutil.which("setpriv"), "taking a capability away needs setpriv")
    Path("/proc/sys/net/ipv4/tcp_migrate_req").write_text("1")
    with Binder(tmp_path, prefix=WITHOUT_BPF) as binder:
        binder.wait_until_ready()
        result, _ = resize_under_load(binder, STEP_S)
        assert "shard-drains" not in binder.log()
    assert result.total.failed == 0, result.table()


def test_with_neither_clients_are_steered_away_and_the_queue_is_drained_and_the_log_says_so(tmp_path: Path) -> None:
    require("setpriv", shutil.which("setpriv"), "taking a capability away needs setpriv")
    with socket.socket() as ours:
        if reuseport.migrates_by_setting(ours):
            pytest.skip("net.ipv4.tcp_migrate_req is 1 here")
    with Binder(tmp_path, prefix=WITHOUT_BPF) as binder:
        binder.wait_until_ready()
        result, _ = resize_under_load(binder, DRAIN_STEP_S)
        assert "shard-drains" in binder.log()
    assert result.total.failed <= result.total.tried / 100, result.table()
