"""A datagram socket that several processes hold: nothing that is done with one object is felt by the others."""

from __future__ import annotations

import asyncio
import errno
import multiprocessing
import os
import select
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from multibinder.wire.datagram_listener import DatagramListener
from tests.support import PATIENCE_S, later


@pytest.fixture
def others() -> Iterator[socket.socket]:
    """The copy of another holder."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock


@pytest.fixture
def ours(others: socket.socket) -> Iterator[DatagramListener]:
    with DatagramListener(fileno=os.dup(others.fileno())) as sock:
        yield sock


@pytest.fixture
def peer(others: socket.socket) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(others.getsockname())
        sock.settimeout(PATIENCE_S)
        yield sock


RECEIVE: list[Callable[[DatagramListener], bytes]] = [
    lambda sock: sock.recv(100),
    lambda sock: sock.recvfrom(100)[0],
    lambda sock: bytes(sock.recvmsg(100)[0]),
    lambda sock: into(sock.recv_into),
    lambda sock: into(lambda room: sock.recvfrom_into(room)[0]),
    lambda sock: into(lambda room: sock.recvmsg_into([room])[0]),
]


def into(receive: Callable[[bytearray], int]) -> bytes:
    room = bytearray(100)
    return bytes(room[: receive(room)])


@pytest.mark.parametrize("receive", RECEIVE)
def test_every_way_to_receive_waits_although_another_holder_is_non_blocking(
    others: socket.socket, ours: DatagramListener, peer: socket.socket, receive: Callable[[DatagramListener], bytes]
) -> None:
    others.setblocking(False)
    with later(0.05, lambda: peer.send(b"hello")):
        assert receive(ours) == b"hello"
    ours.settimeout(0.02)
    with pytest.raises(TimeoutError):
        receive(ours)
    ours.setblocking(False)
    with pytest.raises(BlockingIOError):
        receive(ours)


def test_receiving_never_changes_the_mode_of_other_holders(
    others: socket.socket, ours: DatagramListener, peer: socket.socket
) -> None:
    assert os.get_blocking(others.fileno())
    peer.send(b"hello")
    assert ours.recvfrom(100) == (b"hello", peer.getsockname())
    assert os.get_blocking(others.fileno())


def test_every_way_to_send_reaches_the_peer(ours: DatagramListener, peer: socket.socket) -> None:
    to = peer.getsockname()
    assert [ours.sendto(b"1", to), ours.sendto(b"2", 0, to), ours.sendmsg([b"3"], [], 0, to)] == [1, 1, 1]
    assert [peer.recv(10) for _ in range(3)] == [b"1", b"2", b"3"]


def test_shutdown_and_close_end_the_waiting_of_this_object_alone(
    others: socket.socket, ours: DatagramListener, peer: socket.socket
) -> None:
    another = DatagramListener(fileno=os.dup(ours.fileno()))
    with later(0.05, lambda: another.shutdown(socket.SHUT_RDWR)), pytest.raises(OSError, match="shut down") as raised:
        another.recv(100)
    assert raised.value.errno == errno.EINVAL
    another.close()
    with later(0.05, ours.close), pytest.raises(OSError, match="was closed in this process") as raised:
        ours.recv(100)
    assert raised.value.errno == errno.EBADF
    peer.send(b"for others")
    assert others.recv(100) == b"for others"
    assert not select.select([others], [], [], 0)[0]


def test_connect_is_refused_because_it_would_make_every_holder_deaf(
    others: socket.socket, ours: DatagramListener, peer: socket.socket
) -> None:
    with pytest.raises(OSError, match=r"deaf to all other peers.*use sendto\(\)") as raised:
        ours.connect(("127.0.0.1", 9))
    assert raised.value.errno == errno.EOPNOTSUPP == ours.connect_ex(("127.0.0.1", 9))
    peer.send(b"still heard")
    assert ours.recv(100) == b"still heard"


def test_a_paused_listener_finds_no_datagram_and_leaves_it_to_others(
    others: socket.socket, ours: DatagramListener, peer: socket.socket
) -> None:
    ours.pause()
    peer.send(b"for others")
    ours.settimeout(0.02)
    with pytest.raises(TimeoutError):
        ours.recvfrom(100)
    assert others.recv(100) == b"for others"


def test_accept_says_what_to_call_instead(ours: DatagramListener) -> None:
    with pytest.raises(OSError, match=r"receives datagrams: use recvfrom\(\)"):
        ours.accept()


def test_asyncio_serves_it_and_closes_its_own_copy_only(
    others: socket.socket, ours: DatagramListener, peer: socket.socket
) -> None:
    class Echo(asyncio.DatagramProtocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, addr: Any) -> None:
            self.transport.sendto(data.upper(), addr)

    async def serve() -> bytes:
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Echo, sock=ours)
        peer.send(b"hello")
        answer = await asyncio.to_thread(peer.recv, 100)
        transport.close()
        await asyncio.sleep(0)
        return answer

    assert asyncio.run(serve()) == b"HELLO"
    peer.send(b"for others")
    assert others.recv(100) == b"for others"


def test_a_server_of_socketserver_serves_it(ours: DatagramListener, peer: socket.socket) -> None:
    class Echo(socketserver.DatagramRequestHandler):
        def handle(self) -> None:
            self.wfile.write(self.rfile.read().upper())

    with socketserver.UDPServer(("", 0), Echo, bind_and_activate=False) as server:
        server.socket.close()
        server.socket = ours
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            peer.send(b"hello")
            assert peer.recv(100) == b"HELLO"
        finally:
            server.shutdown()
            thread.join()


def _answer(sock: DatagramListener) -> None:
    data, peer = sock.recvfrom(100)
    sock.sendto(f"{type(sock).__name__} {data.decode()}".encode(), peer)


def test_a_child_of_multiprocessing_gets_it(ours: DatagramListener, peer: socket.socket) -> None:
    child = multiprocessing.get_context("spawn").Process(target=_answer, args=(ours,))
    child.start()
    try:
        peer.send(b"hello")
        assert peer.recv(100) == b"DatagramListener hello"
    finally:
        child.join(PATIENCE_S)
        child.kill()
        child.join()


def test_a_thread_that_waits_uses_no_processor_time(ours: DatagramListener) -> None:
    ours.settimeout(0.3)
    before = time.thread_time()
    with pytest.raises(TimeoutError):
        ours.recv(100)
    assert time.thread_time() - before < 0.1
