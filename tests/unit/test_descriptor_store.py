"""The guard's store: what programs of its own user, of another one, and of an older version send to it."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from multibinder.binder.descriptor_store import DescriptorStore
from multibinder.wire.transport import Datagram

_LINGER_S = 20


@pytest.fixture
def store() -> Iterator[DescriptorStore]:
    store = DescriptorStore({})
    yield store
    for _, descriptor in store.detach_all():
        os.close(descriptor)


def process(store: DescriptorStore, text: str, *descriptors: int, uid: int | None = None, whole: bool = True) -> None:
    datagram = Datagram(text.encode(), list(descriptors), os.geteuid() if uid is None else uid, whole)
    store.process(datagram, lambda *_: None)


def lingering_socket(peers: list[socket.socket]) -> int:
    """Return a connection with unsent data and SO_LINGER (socket(7)): close(2) of it waits for its peer."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        sock = socket.create_connection(listening.getsockname())
        peers.append(listening.accept()[0])
    sock.setblocking(False)
    try:
        while True:
            sock.send(b"x" * 65536)
    except BlockingIOError:
        pass
    # The kernel may find room for more in a moment. O_NONBLOCK would make close(2) return at once.
    sock.setblocking(True)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, _LINGER_S))
    return sock.detach()


@pytest.fixture
def peers() -> Iterator[list[socket.socket]]:
    """Yield the other ends of lingering sockets, which do not read."""
    peers: list[socket.socket] = []
    yield peers
    for peer in peers:
        peer.close()


@pytest.mark.parametrize("text", ["WATCHDOG=1", "FDSTORE=1\nFDNAME=x", "BARRIER=1"])
@pytest.mark.parametrize("whose", ["a stranger's", "our own user's"])
def test_a_descriptor_that_lingers_does_not_make_the_guard_wait(
    store: DescriptorStore, peers: list[socket.socket], whose: str, text: str
) -> None:
    uid = os.geteuid() + (whose == "a stranger's")
    began = time.monotonic()
    process(store, text, lingering_socket(peers), uid=uid)
    process(store, text, lingering_socket(peers), uid=uid)  # replaces the first one, if that was stored
    process(store, "FDSTOREREMOVE=1\nFDNAME=x", lingering_socket(peers))
    assert time.monotonic() - began < _LINGER_S / 2
    assert len(store) == 0


def test_a_removal_leaves_the_options_of_a_listener_as_its_holders_have_set_them(store: DescriptorStore) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # option nolinger of HAProxy
        process(store, "FDSTORE=1\nFDNAME=x", os.dup(listening.fileno()))
        process(store, "FDSTOREREMOVE=1\nFDNAME=x")
        assert listening.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == struct.pack("ii", 1, 0)


def test_an_older_binder_gets_no_barrier_for_what_was_lost(store: DescriptorStore) -> None:
    def barrier() -> int:
        reading, writing = os.pipe2(os.O_NONBLOCK)
        process(store, "BARRIER=1", writing)
        return reading

    def is_closed(reading: int) -> bool:
        try:
            return os.read(reading, 1) == b""
        except BlockingIOError:
            return False

    readings = []
    process(store, "FDSTORE=1\nFDNAME=kept", os.dup(0))
    readings.append(barrier())
    assert is_closed(readings[-1])
    process(store, "FDSTORE=1\nFDNAME=lost", whole=False)  # the kernel dropped the descriptor on its way
    readings.append(barrier())
    assert not is_closed(readings[-1])
    process(store, "FDSTORE=1\nFDNAME=other", os.dup(0))
    readings.append(barrier())
    assert is_closed(readings[-1])
    # What was withheld holds a bounded number of descriptors.
    for _ in range(40):
        process(store, "FDSTORE=1\nFDNAME=lost", whole=False)
        readings.append(barrier())
    assert sum(not is_closed(reading) for reading in readings) == 16
    for reading in readings:
        os.close(reading)
