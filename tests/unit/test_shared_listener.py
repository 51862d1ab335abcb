"""Sockets that several processes hold are received and verified, and accept despite what other holders do."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import socketserver
from collections.abc import Iterator
from pathlib import Path

import pytest

from multibinder import ListenerSpec, Options, RemoteProtocolError, SharedListener, TcpAddress
from multibinder.wire.kinds.tcp import TCP
from multibinder.wire.listener import verify_received
from tests.support import PATIENCE_S, can_connect, descriptors_unchanged, is_nonblocking, later


@pytest.fixture
def others() -> Iterator[socket.socket]:
    """A listener on a free port, as the copy of another holder."""
    with TCP.open(TcpAddress.of("127.0.0.1", 0), Options()) as sock:
        TCP.make_ready(sock, None)
        yield sock


@pytest.fixture
def ours(others: socket.socket) -> Iterator[SharedListener]:
    with verify_received(os.dup(others.fileno()), ListenerSpec(TcpAddress.of(*others.getsockname()))) as sock:
        yield sock


def connect_to(listener: socket.socket) -> None:
    with socket.create_connection(listener.getsockname(), timeout=PATIENCE_S):
        pass


def test_a_blocking_accept_waits_although_another_holder_set_o_nonblock(
    others: socket.socket, ours: SharedListener
) -> None:
    others.setblocking(False)
    assert is_nonblocking(ours)
    with later(0.1, lambda: connect_to(others)):
        connection, _ = ours.accept()
    with connection:
        assert not is_nonblocking(connection)


def test_o_nonblock_that_is_set_while_accept_waits_does_not_break_the_next_accept(
    others: socket.socket, ours: SharedListener
) -> None:
    def set_the_flag_and_connect() -> None:
        others.setblocking(False)
        connect_to(others)
        connect_to(others)

    with later(0.1, set_the_flag_and_connect):
        for _ in range(2):
            ours.accept()[0].close()


def test_a_blocking_accept_survives_a_client_that_another_holder_took(
    others: socket.socket, ours: SharedListener
) -> None:
    others.setblocking(False)

    def connect_and_take_then_connect() -> None:
        connect_to(others)
        with contextlib.suppress(BlockingIOError):
            others.accept()[0].close()
        connect_to(others)
        connect_to(others)

    with later(0.1, connect_and_take_then_connect):
        ours.accept()[0].close()


def test_making_our_copy_blocking_never_clears_the_flag_that_others_depend_on(
    others: socket.socket, ours: SharedListener
) -> None:
    others.setblocking(False)
    for timeout in (None, 5.0, None):
        ours.setblocking(True)
        ours.settimeout(timeout)
        assert is_nonblocking(others)
        with pytest.raises(BlockingIOError):
            others.accept()


def test_a_new_copy_is_in_blocking_mode_and_leaves_the_flag_alone(others: socket.socket, ours: SharedListener) -> None:
    assert ours.getblocking()
    assert ours.gettimeout() is None
    assert not is_nonblocking(others)


@pytest.mark.parametrize("timeout", [None, 0.0, 0.05, 5.0])
def test_a_timeout_reads_back_as_it_was_set(ours: SharedListener, timeout: float | None) -> None:
    ours.settimeout(timeout)
    assert ours.gettimeout() == timeout
    assert ours.timeout == timeout
    assert ours.getblocking() == (timeout != 0.0)


def test_setblocking_reads_back_as_it_was_set(ours: SharedListener) -> None:
    ours.setblocking(False)
    assert (ours.getblocking(), ours.gettimeout()) == (False, 0.0)
    ours.setblocking(True)
    assert (ours.getblocking(), ours.gettimeout()) == (True, None)


def test_accept_with_a_timeout_gives_up(ours: SharedListener) -> None:
    ours.settimeout(0.05)
    with pytest.raises(TimeoutError):
        ours.accept()


def test_a_nonblocking_accept_without_a_client_raises(ours: SharedListener) -> None:
    ours.setblocking(False)
    with pytest.raises(BlockingIOError):
        ours.accept()


@pytest.mark.parametrize(("timeout", "expected"), [(0.0, BlockingIOError), (0.05, TimeoutError)])
def test_accept_does_not_hang_in_the_kernel_after_another_holder_cleared_o_nonblock(
    others: socket.socket, ours: SharedListener, timeout: float, expected: type[Exception]
) -> None:
    ours.settimeout(timeout)
    others.setblocking(True)
    assert not is_nonblocking(ours)
    with later(1, lambda: connect_to(others)), pytest.raises(expected):
        ours.accept()


@pytest.mark.parametrize("earlier", [0.0, 0.05])
def test_back_in_blocking_mode_accept_waits_again(ours: SharedListener, earlier: float) -> None:
    ours.settimeout(earlier)
    ours.settimeout(None)
    with later(0.2, lambda: connect_to(ours)):
        ours.accept()[0].close()


def test_a_copy_of_a_copy_behaves_the_same(others: socket.socket, ours: SharedListener) -> None:
    others.setblocking(False)
    with ours.dup() as copy:
        assert isinstance(copy, SharedListener)
        with later(0.1, lambda: connect_to(others)):
            copy.accept()[0].close()
    assert is_nonblocking(others)


def test_closing_our_copy_leaves_the_port_open(others: socket.socket, ours: SharedListener) -> None:
    ours.close()
    assert can_connect(others.getsockname())


def test_asyncio_serves_on_it(ours: SharedListener) -> None:
    async def serve_one() -> bytes:
        async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write((await reader.readline()).upper())
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(shout, sock=ours)
        async with server:
            reader, writer = await asyncio.open_connection(*ours.getsockname()[:2])
            writer.write(b"hello\n")
            answer = await asyncio.wait_for(reader.readline(), PATIENCE_S)
            writer.close()
            await writer.wait_closed()
        return answer

    assert asyncio.run(serve_one()) == b"HELLO\n"


def test_accepted_connections_are_ordinary_sockets(ours: SharedListener) -> None:
    with socket.create_connection(ours.getsockname(), timeout=PATIENCE_S) as client:
        connection, peer = ours.accept()
        with connection:
            assert type(connection) is socket.socket
            assert connection.gettimeout() is None
            assert peer == client.getsockname()


def test_a_listener_of_the_address_that_was_asked_for_is_adopted(others: socket.socket) -> None:
    bound = TcpAddress.of(*others.getsockname())
    for wanted in (bound, bound.with_port(0)):
        with verify_received(os.dup(others.fileno()), ListenerSpec(wanted)) as sock:
            assert sock.getsockname() == others.getsockname()


@pytest.mark.parametrize(
    ("wanted", "complaint"),
    [
        ("127.0.0.1:1", "asked for 127.0.0.1:1, but the socket that came listens on 127.0.0.1:"),
        ("127.0.0.2:0", "asked for 127.0.0.2:0, but the socket that came listens on 127.0.0.1:"),
        ("[::]:0", r"asked for \[::\]:0, but the socket that came listens on"),
    ],
)
def test_a_listener_of_another_address_is_refused_and_closed(
    others: socket.socket, wanted: str, complaint: str
) -> None:
    with descriptors_unchanged(), pytest.raises(RemoteProtocolError, match=complaint):
        verify_received(os.dup(others.fileno()), ListenerSpec(TcpAddress.parse(wanted)))


def test_a_socket_that_does_not_listen_is_refused_and_closed() -> None:
    with (
        TCP.open(TcpAddress.of("127.0.0.1", 0), Options()) as bound,
        descriptors_unchanged(),
        pytest.raises(RemoteProtocolError, match=r"is bound to, without listening, 127\.0\.0\.1:"),
    ):
        verify_received(os.dup(bound.fileno()), ListenerSpec(TcpAddress.of("127.0.0.1", 0)))


def test_a_datagram_socket_is_refused_and_closed() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram, descriptors_unchanged():
        datagram.bind(("127.0.0.1", 0))
        with pytest.raises(RemoteProtocolError):
            verify_received(os.dup(datagram.fileno()), ListenerSpec(TcpAddress.of("127.0.0.1", 0)))


@pytest.mark.parametrize("name", ["path", "abstract", "unnamed"])
def test_a_unix_listener_is_refused_and_closed(run_dir: Path, name: str) -> None:
    with socket.socket(socket.AF_UNIX) as unix, descriptors_unchanged():
        if name != "unnamed":
            unix.bind(str(run_dir / "s") if name == "path" else f"\0{run_dir}")
            unix.listen()
        with pytest.raises(RemoteProtocolError, match="is no TCP socket"):
            verify_received(os.dup(unix.fileno()), ListenerSpec(TcpAddress.of("127.0.0.1", 0)))


def test_a_descriptor_that_is_no_socket_is_refused_and_closed() -> None:
    with (
        descriptors_unchanged(),
        pytest.raises(RemoteProtocolError, match=r"the descriptor for 127\.0\.0\.1:80 is of no use"),
    ):
        verify_received(os.open("/dev/null", os.O_RDONLY), ListenerSpec(TcpAddress.of("127.0.0.1", 80)))


def test_an_opened_listener_is_close_on_exec_and_does_not_share_its_port() -> None:
    with TCP.open(TcpAddress.of("127.0.0.1", 0), Options()) as sock:
        assert not sock.get_inheritable()
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 1
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 0


def test_a_listener_that_cannot_be_opened_leaves_nothing_open(others: socket.socket) -> None:
    with descriptors_unchanged(), pytest.raises(OSError, match="Address already in use"):
        TCP.open(TcpAddress.of(*others.getsockname()), Options())


def test_a_blocking_accept_does_not_hold_up_a_socketserver_whose_client_another_copy_took(
    others: socket.socket, ours: SharedListener
) -> None:
    """A request is handled after selecting. With no client, accept() in blocking mode must not wait for one."""

    class Server(socketserver.ThreadingTCPServer):
        def __init__(self) -> None:
            super().__init__(ours.getsockname(), socketserver.BaseRequestHandler, bind_and_activate=False)
            self.socket.close()
            self.socket = ours

    with Server() as server:
        server._handle_request_noblock()  # type: ignore[attr-defined]
        connect_to(others)
        server.handle_request()
        assert ours.getblocking()


def test_a_blocking_accept_does_not_hold_up_an_event_loop_whose_client_another_copy_took(
    others: socket.socket, ours: SharedListener
) -> None:
    async def program() -> None:
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[str] = loop.create_future()

        def accept() -> None:
            try:
                ours.accept()[0].close()
            except BlockingIOError as error:
                outcome.set_result(type(error).__name__)

        loop.call_soon(accept)
        assert await outcome == "BlockingIOError"

        with later(0.1, lambda: connect_to(others)):
            ours.accept()[0].close()  # a task may wait; it asked for it

    asyncio.run(program())


def test_a_handler_of_a_socketserver_may_wait_for_a_client_of_another_listener(
    others: socket.socket, ours: SharedListener
) -> None:
    accepted: list[socket.socket] = []

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            accepted.append(ours.accept()[0])

    with (
        socketserver.TCPServer(("127.0.0.1", 0), Handler) as server,
        socket.create_connection(server.server_address, timeout=PATIENCE_S),  # type: ignore[arg-type]
        later(0.1, lambda: connect_to(others)),
    ):
        server.handle_request()
        accepted[0].close()
