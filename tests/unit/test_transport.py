from __future__ import annotations

import array
import os
import resource
import socket
from collections.abc import Iterator

import pytest

from multibinder import RemoteProtocolError
from multibinder.wire import transport
from tests.support import descriptors, descriptors_unchanged


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    with left, right:
        yield left, right


@pytest.fixture
def pipe() -> Iterator[int]:
    """Return a descriptor to send."""
    reading, writing = os.pipe()
    yield reading
    os.close(reading)
    os.close(writing)


def test_252_descriptors_travel_in_one_message(pair: tuple[socket.socket, socket.socket], pipe: int) -> None:
    with descriptors_unchanged():
        assert transport.send(pair[0], b"take these", [pipe] * 252) == 10
        arrived, received = transport.receive(pair[1])
        assert arrived == b"take these"
        assert len(set(received)) == 252
        assert all(os.path.sameopenfile(descriptor, pipe) for descriptor in received)
        transport.close_all(received)


def test_received_descriptors_are_close_on_exec(pair: tuple[socket.socket, socket.socket], pipe: int) -> None:
    os.set_inheritable(pipe, True)
    transport.send(pair[0], b"x", [pipe, pipe])
    _, received = transport.receive(pair[1])
    assert [os.get_inheritable(descriptor) for descriptor in received] == [False, False]
    transport.close_all(received)


def test_the_sender_keeps_its_own_descriptors(pair: tuple[socket.socket, socket.socket], pipe: int) -> None:
    with descriptors_unchanged():
        transport.send(pair[0], b"x", [pipe])
        transport.close_all(transport.receive(pair[1])[1])


def test_plain_bytes_come_without_descriptors(pair: tuple[socket.socket, socket.socket]) -> None:
    assert transport.send(pair[0], b"hello") == 5
    assert transport.receive(pair[1]) == (b"hello", [])


def test_the_end_of_the_stream_is_empty_bytes(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[0].close()
    assert transport.receive(pair[1]) == (b"", [])


def test_one_receive_never_mixes_the_descriptors_of_two_messages(
    pair: tuple[socket.socket, socket.socket], pipe: int
) -> None:
    transport.send(pair[0], b"first", [pipe])
    transport.send(pair[0], b"second", [pipe, pipe])
    for message, count in ((b"first", 1), (b"second", 2)):
        arrived, received = transport.receive(pair[1])
        assert (arrived, len(received)) == (message, count)
        transport.close_all(received)


def test_descriptors_that_the_kernel_drops_are_an_error_and_none_is_left_open(
    pair: tuple[socket.socket, socket.socket], pipe: int
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    transport.send(pair[0], b"take these", [pipe] * 10)
    with descriptors_unchanged():
        highest = max(descriptors())
        taken = [os.dup(pipe) for _ in range(highest + 1 - len(descriptors()))]  # no gaps below the limit
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(descriptors()) + 5, limits[1]))
            with pytest.raises(RemoteProtocolError, match=r"RLIMIT_NOFILE; see 'ulimit -n', or LimitNOFILE="):
                transport.receive(pair[1])
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            transport.close_all(taken)


def test_descriptors_that_do_not_fit_at_all_are_an_error_too(
    pair: tuple[socket.socket, socket.socket], pipe: int
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    transport.send(pair[0], b"take this", [pipe])
    with descriptors_unchanged():
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (1, limits[1]))
            with pytest.raises(RemoteProtocolError, match="the kernel dropped descriptors"):
                transport.receive(pair[1])
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_more_descriptors_than_the_kernel_takes_are_refused_and_nothing_is_sent(
    pair: tuple[socket.socket, socket.socket], pipe: int
) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        transport.send(pair[0], b"too many", [pipe] * 254)
    pair[1].setblocking(False)
    with pytest.raises(BlockingIOError):
        transport.receive(pair[1])


def test_253_descriptors_of_another_sender_are_all_received(
    pair: tuple[socket.socket, socket.socket], pipe: int
) -> None:
    rights = array.array("i", [pipe] * 253)
    pair[0].sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    _, received = transport.receive(pair[1])
    transport.close_all(received)
    assert len(received) == 253
