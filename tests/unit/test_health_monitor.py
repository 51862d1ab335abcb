"""A regular look verifies what is known, and searches the host only for listeners that have no known holder left."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Collection, Iterator, Sequence

import pytest

from multibinder import TcpAddress
from multibinder.binder.health_monitor import HealthMonitor
from multibinder.binder.holder_scan import HolderScan
from multibinder.binder.listener import Listener, Receiver
from multibinder.binder.loop import Loop
from multibinder.binder.orphan_ttl import OrphanTtl
from multibinder.binder.owner import Owner
from multibinder.binder.slices import Slices
from multibinder.observe.holders import Holder, Holders, Place
from multibinder.wire.messages import ListenerSpec
from tests.support.loops import run_until
from tests.support.stores import new_store


class Searches(HolderScan):
    """Records searches instead of making them. ``found`` is the result of each."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.asked: list[tuple[list[int], set[int]]] = []
        self.found: Holders | None = Holders({}, hidden=False)

    def start(self, inodes: Sequence[int], first: Collection[int], tell: Callable[[Holders | None], None]) -> None:
        self.asked.append((list(inodes), set(first)))
        self.loop.call_later(0, lambda: tell(self.found))


class Bench:
    """A monitor of two listeners. This process is their holder: it duplicates them, as a client would have them."""

    def __init__(self, *ttls: OrphanTtl, grace_s: float = 0.0) -> None:
        self.loop = Loop()
        self.store = new_store()
        self.searches = Searches(self.loop)
        slices = Slices(self.loop)
        self.monitor = HealthMonitor(self.loop, slices, self.store, self.searches, ttls, grace_s=grace_s)
        self.bind(0)
        self.bind(0)
        self.copies = [listener.socket.dup() for listener in self.listeners]

    @property
    def listeners(self) -> list[Listener]:
        return self.store.listeners()

    def bind(self, port: int, pid: int = 4242) -> None:
        spec = ListenerSpec(TcpAddress.of("127.0.0.1", port))
        self.store.bind([spec], [Owner("", os.geteuid())], receiver=Receiver(pid=pid))

    def hold(self, copies: Sequence[socket.socket]) -> None:
        """Let searches find these copies in this process."""
        inodes = {os.fstat(copy.fileno()).st_ino: copy.fileno() for copy in copies}
        myself = Holder(os.getpid(), "pytest", "accepting")
        self.searches.found = Holders(
            dict.fromkeys(inodes, (myself,)),
            hidden=False,
            places={inode: (Place(os.getpid(), os.getpid(), fd),) for inode, fd in inodes.items()},
        )

    def look(self) -> list[tuple[list[int], set[int]]]:
        """Make a regular look, and return the searches that it needed."""
        before = len(self.searches.asked)
        self.monitor.look_regularly()
        run_until(self.loop, lambda: not self.monitor._is_looking)
        return self.searches.asked[before:]

    def look_at_all(self) -> None:
        told: list[bool] = []
        self.monitor.look(lambda: told.append(True))
        run_until(self.loop, lambda: bool(told))

    def pass_time(self, seconds: float) -> None:
        """Let all that is observed be older by this."""
        for listener in self.listeners:
            listener.last_handoff_at -= seconds
        for observation in self.monitor._observations.values():
            observation.searched_at -= seconds
            observation.search_at -= seconds
            observation.unheld_at -= seconds

    def states(self) -> list[str]:
        return [health.state for health in self.monitor.health(self.listeners)]

    def close(self) -> None:
        for copy in self.copies:
            copy.close()
        self.store.close()
        self.loop.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


def inodes(listeners: Sequence[Listener]) -> list[int]:
    return [listener.inode for listener in listeners]


def test_listeners_with_a_known_holder_are_not_searched_for_again(bench: Bench) -> None:
    bench.hold(bench.copies)
    [(searched, first)] = bench.look()
    assert searched == inodes(bench.listeners)
    assert first == {4242}, "who received them is asked first"
    for _ in range(3):
        bench.pass_time(3600)
        assert bench.look() == []
    assert bench.states() == ["serving", "serving"]


def test_only_a_listener_that_lost_its_known_holder_is_searched_for(bench: Bench) -> None:
    bench.hold(bench.copies)
    bench.look()
    bench.copies[0].close()
    bench.pass_time(15)
    [(searched, first)] = bench.look()
    assert searched == inodes(bench.listeners[:1])
    assert first == {4242, os.getpid()}


def test_a_number_that_has_another_socket_by_now_is_no_holder(bench: Bench) -> None:
    bench.hold(bench.copies)
    bench.look()
    number = bench.copies[0].fileno()
    with socket.socket() as other:
        os.dup2(other.fileno(), number)
    bench.pass_time(15)
    [(searched, _)] = bench.look()
    assert searched == inodes(bench.listeners[:1])


def test_the_searches_for_an_orphan_back_off(bench: Bench) -> None:
    bench.pass_time(60)
    searched_at = []
    for second in range(0, 900, 15):
        if bench.look():
            searched_at.append(second)
        bench.pass_time(15)
    assert bench.states() == ["orphan", "orphan"]
    assert searched_at == [0, 15, 45, 105, 225, 465, 705]


def test_after_a_handoff_an_orphan_is_searched_for_at_the_next_look(bench: Bench) -> None:
    bench.pass_time(60)
    for _ in range(20):
        bench.look()
        bench.pass_time(15)
    assert bench.look() == []
    bench.bind(bench.listeners[1].address.sockaddr[1], pid=4343)
    bench.hold(bench.copies)
    [(searched, first)] = bench.look()
    assert (searched, first) == (inodes(bench.listeners[1:]), {4343})
    assert bench.states() == ["orphan", "serving"]


def test_a_status_searches_for_all_listeners_whatever_is_known(bench: Bench) -> None:
    bench.hold(bench.copies)
    bench.look()
    bench.look_at_all()
    assert bench.searches.asked[-1] == (inodes(bench.listeners), set())
    assert bench.monitor.looked_at is not None


def test_all_who_ask_during_a_look_wait_for_one_more(bench: Bench) -> None:
    told: list[bool] = []
    for _ in range(100):
        bench.monitor.look(lambda: told.append(True))
    run_until(bench.loop, lambda: bool(bench.searches.asked))
    for _ in range(100):
        bench.monitor.look(lambda: told.append(True))
    run_until(bench.loop, lambda: len(told) == 200)
    assert len(bench.searches.asked) == 2


def test_a_search_that_fails_closes_nothing_and_is_repeated() -> None:
    bench = Bench(OrphanTtl("", 1.0))
    bench.pass_time(60)
    bench.look()
    bench.searches.found = None
    bench.pass_time(60)
    assert bench.look()
    assert bench.look()
    assert len(bench.listeners) == 2
    bench.close()


def test_an_orphan_is_closed_only_by_a_search_that_finds_no_holder() -> None:
    bench = Bench(OrphanTtl("", 100.0))
    bench.pass_time(60)
    bench.look()
    assert bench.states() == ["orphan", "orphan"]
    bench.pass_time(99)
    bench.look()
    assert len(bench.listeners) == 2, "their time is not over"
    bench.pass_time(2)
    bench.hold(bench.copies[:1])
    [(searched, _)] = bench.look()
    assert len(searched) == 2, "the end of its time does not wait for the end of a pause"
    assert bench.states() == ["serving"]
    bench.close()


def test_a_look_that_fails_does_not_prevent_the_next(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("of no use")

    with monkeypatch.context() as patch:
        patch.setattr(bench.searches, "start", broken)
        bench.look_at_all()
    began = time.monotonic()
    bench.look_at_all()
    assert bench.searches.asked
    assert time.monotonic() - began < 10
