"""Several listeners on one address: they grow and shrink, and survive what other listeners survive."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from multibinder import Address, BindError, Client
from multibinder.kernel.accept_queue import accept_queue
from multibinder.kernel.port_sharing import UNUSED_UID
from multibinder.kernel.socket_options import is_shared, set_shared
from multibinder.wire.messages import ListenerSpec
from multibinder.wire.options import Options
from tests.support import Binder, RawClient, identities, own_port, require, serving_pid, wait_until

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
        self.client.hello()  # answered after the binder has read that the sockets have arrived
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


def bind_shard(address: str, number: int) -> bytes:
    """Return a request for one shard, whose client promises to acknowledge it."""
    element = {"endpoint": address, "shard": number, "owner": "test"}
    return json.dumps(
        {"jsonrpc": "2.0", "method": "bind", "id": "1", "params": [element], "acknowledge": True}
    ).encode()


def listens(descriptor: int) -> bool:
    with socket.socket(fileno=os.dup(descriptor)) as sock:
        return accept_queue(sock).listening


def test_a_new_shard_listens_when_its_client_has_it_and_not_before(binder: Binder, holder: Holder) -> None:
    holder.bind(1)
    with RawClient(binder.socket_path) as client:
        assert "error" not in client.ask(bind_shard(holder.address, 1))
        [descriptor] = client.descriptors
        holder.connect()
        assert not listens(descriptor)
        assert holder.waiting() == [CLIENTS]
        client.send(b'{"jsonrpc":"2.0","method":"received","params":{"id":"1"}}\n')
        wait_until(lambda: listens(descriptor), "the new shard listens")
        holder.connect()
        assert CLIENTS < holder.waiting()[0] < 2 * CLIENTS


def test_a_new_shard_that_its_client_never_gets_is_gone_and_was_never_open(binder: Binder, holder: Holder) -> None:
    holder.bind(1)
    with RawClient(binder.socket_path) as client:
        assert "error" not in client.ask(bind_shard(holder.address, 1))
        kept = os.dup(client.descriptors[0])
    try:
        wait_until(lambda: holder.listed() == [0], "the shard is taken back")
        holder.connect()
        assert holder.waiting() == [CLIENTS]
        assert not is_shared(holder.sockets[0])
    finally:
        os.close(kept)


def test_no_other_process_joins_shards(holder: Holder) -> None:
    require("root", os.geteuid() == 0, "giving sockets to another uid needs CAP_CHOWN")
    holder.bind(2)
    assert {os.fstat(sock.fileno()).st_uid for sock in holder.sockets} == {UNUSED_UID}
    for count in (2, 1):
        holder.bind(count)
        with socket.socket() as foreign:
            set_shared(foreign, True)
            with pytest.raises(OSError, match="in use"):
                foreign.bind(holder.sockets[0].getsockname())


def test_a_shard_with_another_value_of_an_option_that_cannot_change_is_refused(binder: Binder) -> None:
    address = f"[::1]:{own_port()}"
    with Client(binder.socket_path) as client:
        for sock in client.bind([ListenerSpec(Address.parse(address), Options(v6only=True))], owner="test"):
            sock.close()
        with pytest.raises(BindError, match="v6only True, and False was asked for; all shards"):
            client.bind([ListenerSpec(Address.parse(address), Options(v6only=False), shard=1)], owner="test")
        for sock in client.bind([ListenerSpec(Address.parse(address), shard=1)], owner="test"):
            sock.close()


def test_a_shard_that_a_holder_shuts_down_joins_again_and_its_clients_have_moved(holder: Holder) -> None:
    holder.bind(4)
    holder.connect()
    socket.socket.shutdown(holder.sockets[1], socket.SHUT_RDWR)
    wait_until(lambda: accept_queue(holder.sockets[1]).listening, "the binder repairs it")
    assert sum(holder.waiting()) == CLIENTS
    holder.connect()
    assert all(holder.waiting())
    holder.bind(1)
    assert holder.waiting() == [2 * CLIENTS]


def test_a_released_address_is_closed_for_all_of_its_shards(holder: Holder) -> None:
    holder.bind(4)
    for number in range(4):
        holder.client.release([ListenerSpec(Address.parse(holder.address), shard=number)], owner="test")
    assert holder.listed() == []
    with pytest.raises(ConnectionRefusedError):
        holder.connect(1)


@pytest.mark.parametrize("event", ["upgrade", "crash with a guard", "crash without a keeper"])
def test_shards_survive_and_shrink_without_a_loss_afterwards(tmp_path: Path, event: str) -> None:
    with ExitStack() as stack:
        options = ["--guard"] if event == "crash with a guard" else []
        first = stack.enter_context(Binder(tmp_path, *options))
        first.wait_until_ready()
        holder = Holder(first, f"127.0.0.1:{own_port()}")
        stack.enter_context(holder.stack)
        holder.bind(4)
        holder.connect()
        before, pid = identities(first.socket_path), serving_pid(first.socket_path)
        os.kill(pid, signal.SIGUSR1 if event == "upgrade" else signal.SIGKILL)
        if event == "crash without a keeper":
            first.wait()
            (tmp_path / "mb.notify").unlink()
            stack.enter_context(Binder(tmp_path)).wait_until_ready()
        elif event == "upgrade":
            wait_until(lambda: first.log_path.read_text().count("event=serving ") == 2, "the next version serves")
        else:
            serving_pid(first.socket_path, not_=pid)
        assert identities(first.socket_path) == before
        holder.connect()
        assert sum(holder.waiting()) == 2 * CLIENTS
        assert all(is_shared(sock) for sock in holder.sockets)
        with Client(first.socket_path) as client:
            [kept] = client.bind(shards(holder.address, 1), owner="test")
        with kept:
            assert accept_queue(kept).length == 2 * CLIENTS


def test_datagrams_that_wait_are_read_before_a_shard_goes(binder: Binder) -> None:
    address, received = ("127.0.0.1", own_port()), 0
    with ExitStack() as stack:
        client = stack.enter_context(Client(binder.socket_path))
        four = [
            stack.enter_context(sock) for sock in client.bind(shards(f"udp@{address[0]}:{address[1]}", 4), owner="test")
        ]
        for _ in range(CLIENTS):
            with socket.socket(type=socket.SOCK_DGRAM) as sender:
                sender.sendto(b"x", address)
        one = [
            stack.enter_context(sock) for sock in client.bind(shards(f"udp@{address[0]}:{address[1]}", 1), owner="test")
        ]
        for _ in range(CLIENTS):
            with socket.socket(type=socket.SOCK_DGRAM) as sender:
                sender.sendto(b"y", address)
        for sock in four:
            sock.settimeout(0)
            while True:
                try:
                    received += len(sock.recv(1))
                except OSError:
                    break
        assert received == 2 * CLIENTS
        wait_until(lambda: len(client.list()) == 1, "the others are closed")
        assert "event=shard-drains" in binder.log()
        assert one
