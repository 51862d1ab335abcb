"""Several listeners on one address: they grow and shrink, and survive what other listeners survive."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from multibinder import Address, Client
from multibinder.kernel.accept_queue import accept_queue
from multibinder.kernel.socket_options import is_shared
from multibinder.wire.messages import ListenerSpec
from multibinder.wire.options import Options
from tests.support import Binder, own_port

CLIENTS = 80


def shards(address: str, count: int, **options: object) -> list[ListenerSpec]:
    """Return the elements of a request for so many listeners on an address, and for no more."""
    return [
        ListenerSpec(Address.parse(address), Options(**options), shard=number, shards=count)  # type: ignore[arg-type]
        for number in range(count)
    ]


@pytest.fixture
def binder(tmp_path: Path) -> Iterator[Binder]:
    with Binder(tmp_path) as started:
        started.wait_until_ready()
        yield started


class Holder:
    """A client of the binder that holds the shards of one address, and its clients."""

    def __init__(self, binder: Binder, address: str) -> None:
        self.stack = ExitStack()
        self.client = self.stack.enter_context(Client(binder.socket_path))
        self.address = address
        self.sockets: list[socket.socket] = []

    def bind(self, count: int) -> Sequence[socket.socket]:
        """Ask for so many shards. The sockets of those that go stay open, as those of an old process do."""
        self.sockets = [
            self.stack.enter_context(sock) for sock in self.client.bind(shards(self.address, count), owner="test")
        ]
        return self.sockets

    def connect(self, count: int = CLIENTS) -> None:
        host, _, port = self.address.rpartition(":")
        for _ in range(count):
            self.stack.enter_context(socket.create_connection((host, int(port)), timeout=5))

    def waiting(self) -> list[int]:
        return [accept_queue(sock).length for sock in self.sockets]

    def listed(self) -> list[int]:
        return sorted(each.shard for each in self.client.list())


@pytest.fixture
def holder(binder: Binder) -> Iterator[Holder]:
    made = Holder(binder, f"127.0.0.1:{own_port()}")
    with made.stack:
        yield made


def test_clients_come_to_all_shards_and_all_are_kept_by_the_binder(holder: Holder) -> None:
    holder.bind(4)
    holder.connect()
    assert all(holder.waiting())
    assert holder.listed() == [0, 1, 2, 3]


def test_shards_grow_and_shrink_and_no_client_is_lost(holder: Holder) -> None:
    for count in (1, 4, 2, 4, 1):
        holder.bind(count)
        holder.connect()
        assert holder.listed() == list(range(count))
    assert sum(holder.waiting()) == 5 * CLIENTS
    assert not is_shared(holder.sockets[0])
