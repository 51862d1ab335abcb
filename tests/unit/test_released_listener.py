"""accept() tells a listener that was released from one that another process has shut down."""

from __future__ import annotations

import errno
import os
import socket
import socketserver
import threading
import time
from collections.abc import Iterator

import pytest

from multibinder import ListenerReleased, Options, SharedListener, TcpAddress
from multibinder.wire import local_acceptors
from multibinder.wire.kinds.tcp import TCP
from tests.support import PATIENCE_S, later, wait_until


@pytest.fixture
def binders() -> Iterator[socket.socket]:
    """A listener on a port that the kernel chose, as the binder has it."""
    with TCP.open(TcpAddress.of("127.0.0.1", 0), Options()) as sock:
        TCP.make_ready(sock, None)
        yield sock


@pytest.fixture
def ours(binders: socket.socket) -> Iterator[SharedListener]:
    with SharedListener(fileno=os.dup(binders.fileno())) as sock:
        yield sock


@pytest.fixture
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_acceptors, "REPAIR_PATIENCE_S", 0.1)


def connect_to(listener: socket.socket) -> None:
    with socket.create_connection(listener.getsockname(), timeout=PATIENCE_S):
        pass


@pytest.mark.parametrize("timeout", [None, 0.0, 60.0])
def test_accept_on_a_released_listener_says_so(
    binders: socket.socket, ours: SharedListener, timeout: float | None
) -> None:
    address = TcpAddress.of(*ours.getsockname())
    ours.settimeout(timeout)
    assert not ours.released
    TCP.retire(binders)
    for _ in range(2):
        with pytest.raises(ListenerReleased, match=f"the listener on {address} was released.*stop, or bind") as raised:
            ours.accept()
        assert raised.value.errno == errno.EINVAL
    assert ours.released
    ours.close()
    assert not ours.released


@pytest.mark.parametrize("timeout", [None, 60.0])
def test_a_release_ends_an_accept_that_waits(binders: socket.socket, ours: SharedListener, timeout: float) -> None:
    ours.settimeout(timeout)
    with later(0.1, lambda: TCP.retire(binders)), pytest.raises(ListenerReleased):
        ours.accept()


def test_accept_waits_for_the_repair_of_a_listener_that_another_holder_shut_down(
    binders: socket.socket, ours: SharedListener
) -> None:
    address = TcpAddress.of(*binders.getsockname())

    def shut_down_and_repair() -> None:
        binders.shutdown(socket.SHUT_RDWR)
        threading.Event().wait(0.05)
        TCP.repair(binders, address, Options())
        connect_to(binders)

    with later(0.1, shut_down_and_repair):
        ours.accept()[0].close()


def test_in_non_blocking_mode_no_client_is_there_until_the_repair(binders: socket.socket, ours: SharedListener) -> None:
    address = TcpAddress.of(*binders.getsockname())
    ours.setblocking(False)
    for _ in range(2):
        binders.shutdown(socket.SHUT_RDWR)
        with pytest.raises(BlockingIOError, match="was shut down by another process"):
            ours.accept()
        assert not ours.released
        TCP.repair(binders, address, Options())
        connect_to(binders)
        ours.accept()[0].close()


def test_a_timeout_ends_also_while_the_repair_is_awaited(binders: socket.socket, ours: SharedListener) -> None:
    ours.settimeout(0.05)
    binders.shutdown(socket.SHUT_RDWR)
    with pytest.raises(TimeoutError):
        ours.accept()


@pytest.mark.usefixtures("short_patience")
@pytest.mark.parametrize("timeout", [None, 0.0, 60.0])
def test_a_listener_that_is_not_repaired_was_released(
    binders: socket.socket, ours: SharedListener, timeout: float | None
) -> None:
    """As by a binder that is older than this library, which only calls shutdown(2)."""
    address = TcpAddress.of(*ours.getsockname())
    ours.settimeout(timeout)
    binders.shutdown(socket.SHUT_RDWR)

    def accept() -> ListenerReleased | None:
        try:
            ours.accept()
        except BlockingIOError:
            pass
        except ListenerReleased as error:
            return error
        return None

    assert str(address) in str(wait_until(accept, "accept() raises ListenerReleased"))
    assert ours.released


@pytest.mark.usefixtures("short_patience")
def test_two_shutdowns_that_are_far_apart_are_not_one_that_lasts(
    binders: socket.socket, ours: SharedListener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing tells a listener without clients that it was repaired in between."""
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    ours.setblocking(False)
    binders.shutdown(socket.SHUT_RDWR)
    for _ in range(3):
        with pytest.raises(BlockingIOError):
            ours.accept()
        now += 60


def test_a_local_shutdown_wins_over_a_release(binders: socket.socket, ours: SharedListener) -> None:
    ours.shutdown(socket.SHUT_RDWR)
    TCP.retire(binders)
    with pytest.raises(OSError, match="was shut down in this process") as raised:
        ours.accept()
    assert not isinstance(raised.value, ListenerReleased)


@pytest.mark.usefixtures("short_patience")
@pytest.mark.parametrize("timeout", [None, 0.0])
def test_a_socketserver_does_not_spin_on_a_listener_that_stays_readable(
    binders: socket.socket, ours: SharedListener, timeout: float | None
) -> None:
    calls = 0

    class Server(socketserver.ThreadingTCPServer):
        def __init__(self) -> None:
            super().__init__(ours.getsockname(), socketserver.BaseRequestHandler, bind_and_activate=False)
            self.socket.close()
            self.socket = ours

        def get_request(self) -> tuple[socket.socket, object]:
            nonlocal calls
            calls += 1
            return super().get_request()

    ours.settimeout(timeout)
    with Server() as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        binders.shutdown(socket.SHUT_RDWR)
        threading.Event().wait(0.3)
        assert calls < 20
        server.shutdown()
        serving.join(PATIENCE_S)
