"""Listeners are found by address, network namespace and shard together."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from multibinder import ListenerSpec, TcpAddress
from multibinder.binder.key import Key
from multibinder.binder.listener import Listener
from multibinder.binder.listener_index import ListenerIndex
from multibinder.binder.records import Record
from multibinder.binder.store import ListenerStore
from multibinder.kernel.socket_options import cookie_of
from multibinder.wire.options import Options
from tests.support import own_port
from tests.support.stores import new_store

HOST = TcpAddress.parse("127.0.0.1:80")


@pytest.fixture
def store() -> Iterator[ListenerStore]:
    store = new_store()
    yield store
    store.close()


def listener(address: TcpAddress, netns: int = 0, shard: int = 0) -> Listener:
    return Listener(socket.socket(), address, Options(), netns=netns, shard=shard)


def test_each_shard_and_namespace_has_a_listener_of_its_own() -> None:
    index = ListenerIndex()
    listeners = [listener(HOST, netns, shard) for netns in (0, 7) for shard in (1, 0)]
    for each in listeners:
        index.add(each)
    for each in listeners:
        netns = f"cookie:{each.netns}" if each.netns else ""
        assert index.at(each.key) is each
        assert index.find(ListenerSpec(HOST, shard=each.shard, netns=netns), 0) is each
        assert [other.key for other in index.shards(each)] == [Key(HOST, each.netns, shard) for shard in (0, 1)]
    index.remove(listeners[1])
    assert (index.at(Key(HOST)), index.at(Key(HOST, 0, 1)), len(index)) == (None, listeners[0], 3)
    for each in listeners:
        each.socket.close()


def test_only_listeners_of_one_namespace_overlap_and_shards_do_not() -> None:
    index = ListenerIndex()
    here, shard, there = listener(HOST), listener(HOST, 0, 1), listener(HOST, 7)
    for each in (here, shard, there):
        index.add(each)
    every = TcpAddress.parse("0.0.0.0:80")
    assert index.overlapping(Key(every), None) == [here, shard]
    assert index.overlapping(Key(every, 7), None) == [there]
    assert index.overlapping(Key(HOST, 0, 2), None) == []
    for each in (here, shard, there):
        each.socket.close()


def test_a_key_is_printed_as_its_address_unless_it_is_a_shard_or_elsewhere() -> None:
    assert str(Key(HOST)) == "127.0.0.1:80"
    assert str(Key(HOST, 7, 2)) == "127.0.0.1:80 (shard 2, netns cookie:7)"


def test_restored_shards_keep_their_numbers_and_one_without_a_record_gets_a_free_one(store: ListenerStore) -> None:
    port = own_port()
    for recorded in (2, 0, None):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("127.0.0.1", port))
        sock.listen()
        record = None
        if recorded is not None:
            record = Record(f"127.0.0.1:{port}", cookie_of(sock), shard=recorded)
        store.restore(sock, record)
    assert [each.shard for each in store.listeners()] == [2, 0, 1]
    copy = store.listeners()[0].socket.dup()
    store.restore(copy, None)
    assert (len(store), copy.fileno()) == (3, -1)
