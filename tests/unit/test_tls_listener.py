"""A TLS listener that is made of a shared listener keeps the rules of shared listeners."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing.reduction
import os
import pickle
import socket
import ssl
import threading
from collections.abc import Iterator

import pytest

from multibinder import ListenerReleased, Options, SharedListener, TcpAddress
from multibinder.wire.kinds.tcp import TCP
from tests.support import PATIENCE_S, descriptors_unchanged, is_nonblocking, later
from tests.support.certificate import server_context


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    return server_context(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def others() -> Iterator[socket.socket]:
    with TCP.open(TcpAddress.of("127.0.0.1", 0), Options()) as sock:
        TCP.make_ready(sock, None)
        sock.setblocking(False)
        yield sock


@pytest.fixture
def plain(others: socket.socket) -> Iterator[SharedListener]:
    with SharedListener(fileno=os.dup(others.fileno())) as sock:
        yield sock


def say_hello(address: tuple[str, int]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(address, PATIENCE_S) as raw, context.wrap_socket(raw) as client:
        client.sendall(b"hello")
        client.recv(1)


def serve_one(tls: socket.socket) -> bytes:
    connection, _ = tls.accept()
    with connection:
        assert isinstance(connection, ssl.SSLSocket)
        arrived = connection.recv(10)
        connection.sendall(b".")
        return arrived


@pytest.mark.parametrize("timeout", [None, 0.0, 60.0])
def test_wrapping_never_clears_the_flag_that_others_depend_on(
    others: socket.socket, plain: SharedListener, context: ssl.SSLContext, timeout: float | None
) -> None:
    plain.settimeout(timeout)
    with descriptors_unchanged(), context.wrap_socket(plain.dup(), server_side=True) as tls:
        assert is_nonblocking(others)
        assert isinstance(tls, SharedListener)
        assert isinstance(tls, ssl.SSLSocket)
        assert tls.gettimeout() == timeout
        tls.setblocking(True)
        tls.settimeout(None)
        assert is_nonblocking(others)
        assert tls.address == plain.address


def test_a_blocking_tls_accept_waits_and_serves(
    others: socket.socket, plain: SharedListener, context: ssl.SSLContext
) -> None:
    with context.wrap_socket(plain, server_side=True) as tls, later(0.1, lambda: say_hello(others.getsockname())):
        assert serve_one(tls) == b"hello"


def test_a_tls_accept_survives_a_client_that_another_holder_took(
    others: socket.socket, plain: SharedListener, context: ssl.SSLContext
) -> None:
    def take_one_then_say_hello() -> None:
        with socket.create_connection(others.getsockname(), PATIENCE_S), contextlib.suppress(BlockingIOError):
            others.accept()[0].close()
        say_hello(others.getsockname())

    with context.wrap_socket(plain, server_side=True) as tls, later(0.1, take_one_then_say_hello):
        for _ in range(2):  # the first one may have been faster than the thread
            try:
                assert serve_one(tls) == b"hello"
                break
            except OSError:  # it went away without a handshake
                continue


def test_an_error_of_a_handshake_is_not_mistaken_for_one_of_accept(
    others: socket.socket, plain: SharedListener, context: ssl.SSLContext
) -> None:
    with (
        context.wrap_socket(plain, server_side=True) as tls,
        socket.create_connection(others.getsockname(), PATIENCE_S) as client,
    ):
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        with pytest.raises(ssl.SSLError, match="HTTP_REQUEST"):
            tls.accept()


def test_without_a_handshake_at_accept_a_silent_client_holds_up_no_other(
    others: socket.socket, plain: SharedListener, context: ssl.SSLContext
) -> None:
    tls = context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
    with tls, socket.create_connection(others.getsockname(), PATIENCE_S):
        tls.accept()[0].close()


def test_a_tls_listener_is_shut_down_paused_and_released_like_any(
    others: socket.socket, plain: SharedListener, context: ssl.SSLContext
) -> None:
    with context.wrap_socket(plain.dup(), server_side=True) as tls:
        with later(0.1, lambda: tls.shutdown(socket.SHUT_RDWR)), pytest.raises(OSError, match="shut down in this"):
            tls.accept()
        others.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        assert TCP.is_ready(others)
    tls = context.wrap_socket(plain.dup(), server_side=True)
    with later(0.1, tls.close), pytest.raises(OSError, match="was closed in this process"):
        tls.accept()
    paused = plain.dup()
    paused.pause()
    paused.setblocking(False)
    with context.wrap_socket(paused, server_side=True) as tls, socket.create_connection(others.getsockname()):
        assert isinstance(tls, SharedListener)
        assert tls.paused
        with pytest.raises(BlockingIOError):
            tls.accept()
    with context.wrap_socket(plain, server_side=True) as tls:
        TCP.retire(others)
        with pytest.raises(ListenerReleased):
            tls.accept()


def test_threads_that_wait_on_a_listener_end_when_it_is_wrapped(plain: SharedListener, context: ssl.SSLContext) -> None:
    wrapped: list[socket.socket] = []
    with later(0.1, lambda: wrapped.append(context.wrap_socket(plain, server_side=True))):
        with pytest.raises(OSError, match="closed in this process") as raised:
            plain.accept()
        assert raised.value.errno == errno.EBADF
    wrapped[0].close()


def test_classes_of_the_user_are_kept(plain: SharedListener, context: ssl.SSLContext) -> None:
    class OurTls(ssl.SSLSocket):
        def greet(self) -> str:
            return "hello"

    class OurListener(SharedListener):
        def detach(self) -> int:
            return super().detach()

    context.sslsocket_class = OurTls
    try:
        for kind in (SharedListener, OurListener):
            with context.wrap_socket(kind(fileno=os.dup(plain.fileno())), server_side=True) as tls:
                assert isinstance(tls, OurTls)
                assert isinstance(tls, SharedListener)
                assert tls.greet() == "hello"
                assert type(tls).__name__ == "SharedOurTls"
    finally:
        context.sslsocket_class = ssl.SSLSocket


def test_a_class_that_cannot_be_combined_is_what_it_would_be_anyway(
    plain: SharedListener, context: ssl.SSLContext
) -> None:
    class WithSlots(ssl.SSLSocket):
        __slots__ = ("more",)

    context.sslsocket_class = WithSlots
    try:
        with context.wrap_socket(plain, server_side=True) as tls:
            assert isinstance(tls, WithSlots)
    finally:
        context.sslsocket_class = ssl.SSLSocket


def test_detach_by_other_callers_changes_nothing_else(plain: SharedListener) -> None:
    number = plain.fileno()
    assert plain.detach() == number
    assert plain.fileno() == -1
    os.close(number)


def test_a_tls_listener_cannot_be_pickled(plain: SharedListener, context: ssl.SSLContext) -> None:
    with context.wrap_socket(plain, server_side=True) as tls:
        for dumps in (pickle.dumps, multiprocessing.reduction.ForkingPickler.dumps):
            with pytest.raises(TypeError, match="cannot pickle"):
                dumps(tls)


def test_a_connection_of_an_ordinary_socket_is_wrapped_as_ever(context: ssl.SSLContext) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        greeting = threading.Thread(target=say_hello, args=(server.getsockname(),))
        greeting.start()
        connection, _ = server.accept()
        with context.wrap_socket(connection, server_side=True) as tls:
            assert type(tls) is ssl.SSLSocket
            assert tls.recv(10) == b"hello"
            tls.sendall(b".")
        greeting.join(PATIENCE_S)
