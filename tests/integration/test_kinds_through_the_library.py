"""Listeners of every kind, from the real binder to a program with the library, and back."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

import pytest

import multibinder
from multibinder import Client, DatagramListener, SharedListener
from tests.support import PATIENCE_S, Binder


@pytest.fixture(autouse=True)
def socket_of_the_binder(binder: Binder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MULTIBINDER_SOCK", str(binder.socket_path))


def test_datagrams_that_arrive_while_no_program_is_there_are_received_by_the_next(host: str) -> None:
    where = f"udp@{host}:8000"
    multibinder.bind(where, rcvbuf=1 << 20, owner="a").close()
    with socket.socket(type=socket.SOCK_DGRAM) as peer:
        for number in range(200):
            peer.sendto(b"%d" % number, (host, 8000))
        with multibinder.bind(where, owner="a") as listener:
            assert isinstance(listener, DatagramListener)
            listener.settimeout(PATIENCE_S)
            assert [listener.recv(100) for _ in range(200)] == [b"%d" % number for number in range(200)]


def test_a_receiver_ends_with_listener_released_when_the_binder_releases_it(host: str) -> None:
    with multibinder.bind(f"udp@{host}:8000", owner="a") as listener:
        listener.settimeout(PATIENCE_S)
        assert multibinder.release(listener, owner="a").outcome == "closed"
        assert listener.released
        with pytest.raises(multibinder.ListenerReleased, match="no datagram arrives here any more"):
            listener.recv(100)


@pytest.mark.parametrize(("prefix", "kind"), [("unix@", socket.SOCK_STREAM), ("unixseq@", socket.SOCK_SEQPACKET)])
def test_a_unix_listener_accepts_and_has_its_mode(run_dir: Path, prefix: str, kind: int) -> None:
    path = run_dir / "app.sock"
    with multibinder.bind(f"{prefix}{path}", mode=0o600, user="root", owner="a") as listener:
        assert type(listener) is SharedListener
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with socket.socket(socket.AF_UNIX, kind) as client:
            client.connect(str(path))
            with listener.accept()[0] as connection:
                connection.sendall(b"hello")
                assert client.recv(100) == b"hello"
    assert path.exists()
    assert multibinder.release(f"{prefix}{path}", owner="a").outcome == "closed"
    assert not path.exists()


def test_shards_are_all_returned_and_released_by_their_address(host: str) -> None:
    listeners = multibinder.bind(f"{host}:8000", shards=3, owner="a")
    assert [listener.shard for listener in listeners] == [0, 1, 2]
    clients = [socket.create_connection((host, 8000)) for _ in range(30)]
    served = 0
    for listener in listeners:
        listener.setblocking(False)
        while True:
            try:
                listener.accept()[0].close()
            except BlockingIOError:
                break
            served += 1
    assert served == 30
    assert multibinder.release((host, 8000), owner="a").outcome == "closed"
    with Client() as client:
        assert client.list() == []
    assert all(listener.released for listener in listeners)
    for each in (*clients, *listeners):
        each.close()


def test_fewer_shards_than_before_release_the_others(host: str) -> None:
    for number in (3, 1, 2):
        for listener in multibinder.bind(f"{host}:8000", shards=number, owner="a"):
            listener.close()
        with Client() as client:
            assert [each.shard for each in client.list()] == list(range(number))


def test_sync_with_kinds_and_shards_releases_what_is_not_named(host: str, run_dir: Path) -> None:
    path = run_dir / "app.sock"
    first = multibinder.sync("a", [f"{host}:8000", f"udp@{host}:8000"], shards=2)
    second = multibinder.sync("a", [f"{host}:8000", f"unix@{path}"])
    with Client() as client:
        assert sorted((each.address, each.shard) for each in client.list()) == [
            (f"{host}:8000", 0),
            (f"unix@{path}", 0),
        ]
    for each in (*first, *second):
        each.close()
