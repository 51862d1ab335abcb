"""What is done with one copy of a listener ends or pauses the accept() of this copy only."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import pytest

from multibinder import Options, SharedListener, TcpAddress
from multibinder.wire.kinds.tcp import TCP
from multibinder.wire.local_acceptors import LocalAcceptors
from tests.support import PATIENCE_S, can_connect, descriptors_unchanged, later, wait_until
from tests.support.campaign import times


@pytest.fixture
def others() -> Iterator[socket.socket]:
    """A listener on a free port, as the copy of another holder."""
    with TCP.open(TcpAddress.of("127.0.0.1", 0), Options()) as sock:
        TCP.make_ready(sock, None)
        yield sock


@pytest.fixture
def ours(others: socket.socket) -> Iterator[SharedListener]:
    with SharedListener(fileno=os.dup(others.fileno())) as sock:
        yield sock


def connect_to(listener: socket.socket) -> None:
    with socket.create_connection(listener.getsockname(), timeout=PATIENCE_S):
        pass


class Acceptor(threading.Thread):
    """A thread that calls accept() once, and keeps what came of it."""

    def __init__(self, listener: socket.socket) -> None:
        super().__init__(daemon=True)
        self.listener = listener
        self.outcome: Future[socket.socket] = Future()
        self.start()

    def run(self) -> None:
        try:
            self.outcome.set_result(self.listener.accept()[0])
        except BaseException as error:
            self.outcome.set_exception(error)

    @property
    def is_waiting(self) -> bool:
        """True if the thread sleeps in poll(2)."""
        with open(f"/proc/self/task/{self.native_id}/syscall") as call:
            return call.read().split()[0] in ("7", "73", "168")  # poll; ppoll elsewhere


def waiting_acceptors(listener: socket.socket, count: int) -> list[Acceptor]:
    acceptors = [Acceptor(listener) for _ in range(count)]
    wait_until(lambda: all(each.is_waiting for each in acceptors), "each thread waits in accept()")
    return acceptors


ENDS: list[tuple[Callable[[SharedListener], object], int]] = [
    (lambda listener: listener.shutdown(socket.SHUT_RDWR), errno.EINVAL),
    (lambda listener: listener.shutdown(socket.SHUT_RD), errno.EINVAL),
    (lambda listener: listener.close(), errno.EBADF),
    (lambda listener: os.close(listener.detach()), errno.EBADF),
]


@pytest.mark.parametrize(("end", "number"), ENDS)
@pytest.mark.parametrize("timeout", [None, 60.0])
def test_every_thread_in_accept_is_woken_by_an_end_in_another_thread(
    others: socket.socket, ours: SharedListener, end: Callable[[SharedListener], object], number: int, timeout: float
) -> None:
    ours.settimeout(timeout)
    with descriptors_unchanged():
        copy = ours.dup()
        acceptors = waiting_acceptors(copy, 3)
        end(copy)
        for each in acceptors:
            with pytest.raises(OSError, match="in this process") as raised:
                each.outcome.result(PATIENCE_S)
            assert raised.value.errno == number
        with pytest.raises(OSError, match="in this process") as raised:
            copy.accept()
        assert raised.value.errno == number
        copy.close()
    assert can_connect(others.getsockname())


@pytest.mark.parametrize("tell", [LocalAcceptors.pause, LocalAcceptors.shut_down, LocalAcceptors.close])
def test_a_thread_does_not_miss_what_it_was_told_just_before_it_waits(tell: Callable[[LocalAcceptors], None]) -> None:
    """Between the last look of a thread and its poll(2), another one may pause, shut down or close."""
    local = LocalAcceptors(None)
    tell(local)
    began = time.monotonic()
    local.wait(None, began + PATIENCE_S)
    assert time.monotonic() - began < PATIENCE_S / 2


def test_a_paused_thread_does_not_miss_the_end(ours: SharedListener) -> None:
    local = LocalAcceptors(None)
    local.pause()
    local.shut_down()
    began = time.monotonic()
    local.wait(None, began + PATIENCE_S, paused=True)
    assert time.monotonic() - began < PATIENCE_S / 2


def test_threads_that_accept_while_numbers_of_descriptors_are_reused_never_touch_another_socket(
    others: socket.socket,
) -> None:
    """Between two steps of accept(), the listener may be closed, and its number be that of another listener."""
    over = threading.Event()
    stolen: list[str] = []

    def reuse_numbers() -> None:
        while not over.is_set():
            with socket.create_server(("127.0.0.1", 0)) as own:
                own.settimeout(PATIENCE_S)
                connect_to(own)
                try:
                    own.accept()[0].close()
                except OSError as error:
                    stolen.append(repr(error))

    threads = [threading.Thread(target=reuse_numbers) for _ in range(2)]
    for each in threads:
        each.start()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for at in range(times(60, 2000)):
            copy = SharedListener(fileno=os.dup(others.fileno()))
            acceptors = [Acceptor(copy) for _ in range(3)]
            ENDS[at % len(ENDS)][0](copy)
            for each in acceptors:
                assert isinstance(each.outcome.exception(PATIENCE_S), OSError)
            copy.close()
    finally:
        sys.setswitchinterval(interval)
        over.set()
        for thread in threads:
            thread.join(PATIENCE_S)
    assert stolen == []


def test_a_local_shutdown_is_not_felt_by_other_copies(others: socket.socket, ours: SharedListener) -> None:
    with ours.dup() as other_object:
        ours.shutdown(socket.SHUT_RDWR)
        ours.shutdown(socket.SHUT_RDWR)
        connect_to(others)
        other_object.accept()[0].close()
        connect_to(others)
        others.accept()[0].close()


def test_shutdown_for_writing_does_nothing(ours: SharedListener) -> None:
    ours.shutdown(socket.SHUT_WR)
    connect_to(ours)
    ours.accept()[0].close()


def test_shutdown_checks_what_the_kernel_checks(ours: SharedListener) -> None:
    with pytest.raises(OSError, match="none of SHUT_RD") as raised:
        ours.shutdown(7)
    assert raised.value.errno == errno.EINVAL
    ours.close()
    with pytest.raises(OSError, match="closed") as raised:
        ours.shutdown(socket.SHUT_RDWR)
    assert raised.value.errno == errno.EBADF


def test_a_paused_listener_leaves_clients_to_other_copies(others: socket.socket, ours: SharedListener) -> None:
    ours.setblocking(False)
    assert not ours.paused
    connect_to(others)
    ours.pause()
    assert ours.paused
    with pytest.raises(BlockingIOError):
        ours.accept()
    others.accept()[0].close()


def test_a_paused_listener_waits_as_if_no_client_came(others: socket.socket, ours: SharedListener) -> None:
    connect_to(others)
    ours.pause()
    ours.settimeout(0.05)
    with pytest.raises(TimeoutError):
        ours.accept()


def test_pause_stops_threads_that_already_wait_and_shutdown_ends_them(
    others: socket.socket, ours: SharedListener
) -> None:
    acceptors = waiting_acceptors(ours, 2)
    ours.pause()
    connect_to(others)
    others.accept()[0].close()
    assert all(not each.outcome.done() for each in acceptors)
    ours.shutdown(socket.SHUT_RDWR)
    for each in acceptors:
        with pytest.raises(OSError, match="was shut down in this process"):
            each.outcome.result(PATIENCE_S)


def test_threads_that_wait_for_nothing_use_no_cpu(ours: SharedListener) -> None:
    acceptors = waiting_acceptors(ours, 2)
    ours.pause()
    with ours.dup() as other_object:
        acceptors += waiting_acceptors(other_object, 1)
        wait_until(lambda: all(each.is_waiting for each in acceptors), "each thread waits")
        before = resource.getrusage(resource.RUSAGE_SELF)
        threading.Event().wait(0.2)
        after = resource.getrusage(resource.RUSAGE_SELF)
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.1
    ours.close()
    for each in acceptors:
        with pytest.raises(OSError, match="was closed in this process"):
            each.outcome.result(PATIENCE_S)


def test_each_of_several_clients_is_accepted_once_by_several_threads(ours: SharedListener) -> None:
    acceptors = waiting_acceptors(ours, 4)
    clients = [socket.create_connection(ours.getsockname(), timeout=PATIENCE_S) for _ in acceptors]
    connections = [each.outcome.result(PATIENCE_S) for each in acceptors]
    assert {each.getpeername() for each in connections} == {each.getsockname() for each in clients}
    for each in (*connections, *clients):
        each.close()


def test_a_signal_handler_may_shut_down_the_accept_that_it_interrupts(ours: SharedListener) -> None:
    earlier = signal.signal(signal.SIGUSR1, lambda *_: ours.shutdown(socket.SHUT_RDWR))
    try:
        with (
            later(0.1, lambda: os.kill(os.getpid(), signal.SIGUSR1)),
            pytest.raises(OSError, match="was shut down in this process"),
        ):
            ours.accept()
    finally:
        signal.signal(signal.SIGUSR1, earlier)


def test_a_thread_is_woken_although_the_kernel_has_no_eventfd_for_it(
    ours: SharedListener, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))

    monkeypatch.setattr(os, "eventfd", refuse)
    connect_to(ours)
    for _ in range(2):
        with later(0.15, lambda: connect_to(ours)):
            ours.accept()[0].close()
    [acceptor] = waiting_acceptors(ours, 1)
    ours.shutdown(socket.SHUT_RDWR)
    with pytest.raises(OSError, match="was shut down in this process"):
        acceptor.outcome.result(PATIENCE_S)


def test_a_process_at_its_limit_of_open_files_learns_it_as_from_any_socket(
    others: socket.socket, ours: SharedListener
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.create_connection(others.getsockname(), timeout=PATIENCE_S) as client:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            with pytest.raises(OSError, match="Too many open files") as raised:
                ours.accept()
            assert raised.value.errno == errno.EMFILE
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        connection, peer = ours.accept()
        connection.close()
        assert peer == client.getsockname()


def test_waiting_costs_no_descriptor_after_the_listener_is_closed(others: socket.socket) -> None:
    with descriptors_unchanged():
        copy = SharedListener(fileno=os.dup(others.fileno()))
        copy.settimeout(0.001)
        for _ in range(3):
            with contextlib.suppress(TimeoutError):
                copy.accept()
        copy.close()
    with descriptors_unchanged():
        copy = SharedListener(fileno=os.dup(others.fileno()), type=socket.SOCK_STREAM, family=socket.AF_INET)
        acceptors = waiting_acceptors(copy, 2)
        copy.pause()
        wait_until(lambda: all(each.is_waiting for each in acceptors), "each thread waits again")
        copy.close()
        for each in acceptors:
            each.join(PATIENCE_S)


def test_a_listener_knows_its_address(others: socket.socket, ours: SharedListener) -> None:
    bound = TcpAddress.of(*others.getsockname())
    assert ours.address == bound
    ours.close()
    assert ours.address == bound


@pytest.mark.parametrize("default", [0.05, 0.0])
def test_the_default_timeout_of_sockets_does_not_concern_accept(others: socket.socket, default: float) -> None:
    socket.setdefaulttimeout(default)
    try:
        with SharedListener(fileno=os.dup(others.fileno())) as ours, later(0.2, lambda: connect_to(others)):
            assert ours.gettimeout() is None
            ours.accept()[0].close()
            ours.settimeout(60)
            with pytest.raises(TypeError):
                ours.settimeout("5")  # type: ignore[arg-type]
            with pytest.raises(ValueError, match="out of range"):
                ours.settimeout(-1)
            assert ours.gettimeout() == 60.0
    finally:
        socket.setdefaulttimeout(None)
