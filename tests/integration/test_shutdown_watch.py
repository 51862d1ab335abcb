"""A holder that shuts a listener down closes the port for a moment only."""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from multibinder import Client, ListenerSpec, Options, TcpAddress
from multibinder.binder import shutdown_watch
from multibinder.binder.loop import Loop
from multibinder.binder.owner import Owner
from multibinder.binder.shutdown_watch import ShutdownWatch
from multibinder.kernel.accept_queue import accept_queue
from tests.support import Binder, can_connect, wait_until
from tests.support.stores import NothingWatched, new_store


@pytest.fixture
def binder(run_dir: Path) -> Iterator[Binder]:
    with Binder(run_dir) as binder:
        yield binder.wait_until_ready()


def bound(binder: Binder, *addresses: str, backlog: int = 30) -> list[socket.socket]:
    """Return plain sockets, as a holder has them that knows nothing of multibinder."""
    with Client(binder.socket_path) as client:
        received = client.bind([ListenerSpec(TcpAddress.parse(each), Options(backlog)) for each in addresses])
    return [socket.socket(fileno=each.detach()) for each in received]


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def listens_again(binder: Binder, listener: socket.socket) -> bool:
    return wait_until(lambda: accept_queue(listener).listening, "the socket listens again", log=binder.log, timeout_s=5)


def test_listeners_that_were_shut_down_listen_again_at_once_with_their_backlog(binder: Binder, host: str) -> None:
    listeners = bound(binder, *(f"{host}:{8000 + number}" for number in range(100)))
    for _ in range(3):
        for listener in listeners:
            listener.shutdown(socket.SHUT_RDWR)
        assert all(listens_again(binder, listener) for listener in listeners)
    assert {accept_queue(listener).limit for listener in listeners} == {30}
    assert can_connect((host, 8000))
    for listener in listeners:
        listener.close()


def test_a_holder_that_shuts_down_again_and_again_does_not_keep_the_binder_busy(binder: Binder, host: str) -> None:
    [listener] = bound(binder, f"{host}:8000")
    with listener:
        before, end = cpu_s(binder.pid), time.monotonic() + 1
        while time.monotonic() < end:
            try:
                listener.shutdown(socket.SHUT_RDWR)
            except OSError:
                time.sleep(0.0001)
        assert cpu_s(binder.pid) - before < 0.15
        assert listens_again(binder, listener)


def test_a_release_and_an_upgrade_leave_nothing_watched_that_is_not_held(binder: Binder, host: str) -> None:
    first, second = bound(binder, f"{host}:8000", f"{host}:8001")
    with first, second, Client(binder.socket_path) as client:
        client.release([(host, 8000)])
        client.upgrade()
        wait_until(lambda: client.status().upgrades == 1, "the binder is upgraded", log=binder.log)
        before = cpu_s(binder.pid)
        second.shutdown(socket.SHUT_RDWR)
        assert listens_again(binder, second)
        assert not accept_queue(first).listening
        assert client.list()[0].address == f"{host}:8001"
        assert cpu_s(binder.pid) - before < 0.5


def test_a_listener_that_cannot_be_repaired_is_tried_again_later_and_keeps_nobody_busy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shutdown_watch, "_RETRY_S", 0.1)
    loop, tries = Loop(), list[float]()

    def repair(shut: Collection[int]) -> Collection[int]:
        tries.append(time.monotonic())
        if len(tries) == 4:
            loop.stop()
        return list(shut)

    watch = ShutdownWatch(loop, repair)
    try:
        with socket.socket() as listener:
            listener.listen()
            watch.add(listener)
            listener.shutdown(socket.SHUT_RDWR)
            loop.run(lambda: None)
            watch.remove(listener)
        assert tries[-1] - tries[0] > 0.25
    finally:
        watch.close()
        loop.close()


def test_the_store_watches_what_it_holds_and_nothing_else() -> None:
    watched: list[int] = []

    class Recorder(NothingWatched):
        def add(self, sock: socket.socket) -> None:
            watched.append(sock.fileno())

        def remove(self, sock: socket.socket) -> None:
            watched.remove(sock.fileno())

    store = new_store(watch=lambda repair: Recorder())
    me, spec = Owner("", os.geteuid()), ListenerSpec(TcpAddress.parse("127.0.0.1:0"))
    grants = store.bind([spec] * 3, [me] * 3)
    assert watched == [grant.listener.socket.fileno() for grant in grants]
    store.release(ListenerSpec(grants[0].listener.address), me)
    store.close_orphan(grants[1].listener)
    assert watched == [grants[2].listener.socket.fileno()]
    sock = grants[2].listener.socket.dup()
    store.restore(sock, None)  # a second copy, which is closed
    assert len(watched) == 1
    store.close()


def test_a_listener_is_forgotten_before_it_is_closed() -> None:
    loop, asked = Loop(), list[Collection[int]]()
    watch = ShutdownWatch(loop, lambda shut: asked.append(shut) or [])  # type: ignore[func-returns-value]
    try:
        with socket.socket() as listener, listener.dup() as holder:
            listener.listen()
            watch.add(listener)
            watch.remove(listener)
            listener.close()
            holder.shutdown(socket.SHUT_RDWR)
            loop.call_later(0.05, loop.stop)
            loop.run(lambda: None)
            assert asked == []
            assert select.select([holder], [], [], 0)[0]
    finally:
        watch.close()
        loop.close()
