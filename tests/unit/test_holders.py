from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from multibinder import TcpAddress
from multibinder.kernel.accept_queue import accept_queue
from multibinder.observe.holders import Listening, Process, who_listens_on
from tests.support import require_ipv6

MYSELF = Process(os.getpid(), Path("/proc/self/comm").read_text().strip())


@pytest.fixture(params=["127.0.0.1", "::1", "0.0.0.0", "::"])
def listener(request: pytest.FixtureRequest) -> Iterator[TcpAddress]:
    host: str = request.param
    if ":" in host:
        require_ipv6()
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        sock.bind((host, 0))
        sock.listen()
        yield TcpAddress.of(host, sock.getsockname()[1])


def test_the_process_that_listens_is_named(listener: TcpAddress) -> None:
    listening = who_listens_on(listener)
    assert MYSELF in listening.processes
    assert f"{MYSELF.name} (pid {os.getpid()})" in str(listening)


def test_a_wildcard_collides_with_every_host_of_its_family(listener: TcpAddress) -> None:
    wildcard = "::" if listener.version == 6 else "0.0.0.0"
    assert MYSELF in who_listens_on(TcpAddress.of(wildcard, listener.port)).processes


def test_a_host_collides_with_a_wildcard_listener() -> None:
    with socket.socket() as sock:
        sock.bind(("0.0.0.0", 0))
        sock.listen()
        assert MYSELF in who_listens_on(TcpAddress.of("127.0.0.1", sock.getsockname()[1])).processes


def test_another_host_and_another_port_do_not_collide() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        assert MYSELF not in who_listens_on(TcpAddress.of("127.0.0.2", port)).processes
        assert MYSELF not in who_listens_on(TcpAddress.of("127.0.0.1", port - 1)).processes


def test_a_socket_that_does_not_listen_is_not_named() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        assert who_listens_on(TcpAddress.of(*sock.getsockname())) == Listening((), hidden=False)


def bytes_read() -> int:
    """Return the number of bytes that this process has read so far: proc_pid_io(5)."""
    return int(Path("/proc/self/io").read_text().split()[1])


def test_the_cost_of_asking_does_not_grow_with_connected_clients(host: str) -> None:
    # The kernel lists all listeners, and then all connections of the host. On a busy proxy this takes seconds.
    with socket.socket() as sock:
        sock.bind((host, 0))
        sock.listen()
        for _ in range(1000):  # each client leaves an entry in TIME_WAIT
            with socket.create_connection(sock.getsockname()):
                sock.accept()[0].close()
        before = bytes_read()
        Path("/proc/net/tcp").read_bytes()
        whole = bytes_read() - before
        assert whole > 100_000
        before = bytes_read()
        who_listens_on(TcpAddress.of(host, 1))
        assert bytes_read() - before < whole / 2


@pytest.mark.parametrize(
    ("listening", "words"),
    [
        (Listening((Process(7, "nginx"), Process(8, "nginx")), hidden=False), "nginx (pid 7), nginx (pid 8)"),
        (Listening((Process(7, "nginx"),), hidden=True), "nginx (pid 7)"),
        (Listening((), hidden=True), "a process that this user may not see"),
        (Listening((), hidden=False), ""),
    ],
)
def test_holders_are_described_in_words(listening: Listening, words: str) -> None:
    assert str(listening) == words


def test_the_accept_queue_is_read_from_the_socket_itself() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        assert not accept_queue(sock).listening
        sock.listen(5)
        assert accept_queue(sock) == (True, 0, 5)
        with socket.create_connection(sock.getsockname()):
            assert accept_queue(sock) == (True, 1, 5)
            sock.accept()[0].close()
            assert accept_queue(sock) == (True, 0, 5)
