"""The search for the process that has an address runs in a child, and serves all who wait for it."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence

import pytest

from multibinder import TcpAddress
from multibinder.binder.address_search import AddressSearch
from multibinder.binder.loop import Loop
from multibinder.wire.addresses import Address
from tests.support import PATIENCE_S

ONE, OTHER = TcpAddress.of("127.0.0.1", 1), TcpAddress.of("127.0.0.1", 2)
STRANGER = os.geteuid() + 1


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def named_by_the_child(addresses: Sequence[Address], except_: Collection[int]) -> list[str | None]:
    assert os.getppid() in except_
    return [f"{address} of {len(addresses)} by {os.getpid()}" for address in addresses]


def run_until(loop: Loop, done: Callable[[], bool]) -> None:
    """Run the loop until ``done``."""

    def check() -> None:
        if done():
            loop.stop()

    loop.call_every(0.005, check)
    loop.call_later(PATIENCE_S, loop.stop)
    loop.run(lambda: None)
    assert done()


def test_one_search_serves_all_who_wait_for_it(loop: Loop) -> None:
    search = AddressSearch(loop, named_by_the_child)
    told: list[str | None] = []
    assert search.begin(ONE, 0, told.append)
    for address in (ONE, OTHER, ONE):
        assert search.begin(address, 0, told.append)
    run_until(loop, lambda: len(told) == 4)
    first, *others = map(str, told)
    assert first.startswith(f"{ONE} of 1 by ")
    assert str(os.getpid()) not in first.split()
    assert [text.partition(" by ")[0] for text in others] == [f"{ONE} of 2", f"{ONE} of 2", f"{OTHER} of 2"]
    assert len({text.partition(" by ")[2] for text in others}) == 1


def test_searches_are_throttled_for_each_user_without_privileges(loop: Loop) -> None:
    search = AddressSearch(loop, named_by_the_child)
    told: list[str | None] = []
    assert search.begin(ONE, STRANGER, told.append)
    assert not search.begin(OTHER, STRANGER, told.append)
    assert search.begin(OTHER, STRANGER + 1, told.append), "one user's searches cost another nothing"
    assert search.begin(OTHER, 0, told.append)
    run_until(loop, lambda: len(told) == 3)


def test_a_search_that_fails_names_nobody(loop: Loop) -> None:
    def broken(addresses: Sequence[Address], except_: Collection[int]) -> list[str | None]:
        raise OSError("no /proc")

    told: list[str | None] = []
    assert AddressSearch(loop, broken).begin(ONE, 0, told.append)
    run_until(loop, lambda: bool(told))
    assert told == [""]
