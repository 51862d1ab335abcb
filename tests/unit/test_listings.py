"""Lists of all listeners are made once for all who wait for the same one."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator

import pytest

from multibinder import TcpAddress
from multibinder.binder.caller import Caller
from multibinder.binder.listener import Listener
from multibinder.binder.listings import Listings
from multibinder.binder.loop import Loop
from multibinder.binder.owner import Owner
from multibinder.binder.policy import Policy
from multibinder.binder.policy_in_force import PolicyInForce
from multibinder.binder.quotas import Limits, Quotas
from multibinder.binder.slices import Slices
from multibinder.wire.messages import ListenerSpec
from tests.support.loops import run_until
from tests.support.stores import new_store


class Bench:
    def __init__(self, sock: socket.socket) -> None:
        self.loop = Loop()
        self.store = new_store()
        self.policy = PolicyInForce(None)
        self.listings = Listings(Slices(self.loop), Quotas(Limits()), self.store, self.policy)
        self.sock = sock
        self.described: list[Listener] = []
        self.told: list[bytes | None] = []
        self.bind(3)

    def bind(self, count: int) -> None:
        specs = [ListenerSpec(TcpAddress.of("127.0.0.1", 0)) for _ in range(count)]
        self.store.bind(specs, [Owner("", os.geteuid())] * count)

    def describe(self, listener: Listener) -> str:
        self.described.append(listener)
        return str(listener.address)

    def ask(self, uid: int | None = None) -> None:
        caller = Caller(self.sock)
        caller.uid = caller.uid if uid is None else uid
        self.listings.ask("list", caller, self.describe, self.told.append)

    def answers(self, count: int) -> list[list[str] | None]:
        run_until(self.loop, lambda: len(self.told) == count)
        return [None if text is None else json.loads(text) for text in self.told]


@pytest.fixture
def bench() -> Iterator[Bench]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        bench = Bench(ours)
        yield bench
        bench.store.close()
        bench.loop.close()


def test_one_text_serves_all_who_wait_for_it(bench: Bench) -> None:
    for _ in range(200):
        bench.ask()
    answers = bench.answers(200)
    assert answers[0] == [str(listener.address) for listener in bench.store.listeners()]
    assert all(text is bench.told[0] for text in bench.told), "it is held once"
    assert len(bench.described) == 3


def test_a_list_that_is_asked_for_later_has_what_was_bound_before_it(bench: Bench) -> None:
    bench.ask()
    run_until(bench.loop, lambda: len(bench.described) >= 1)
    bench.bind(1)
    bench.ask()
    assert [len(answer or ()) for answer in bench.answers(2)] == [3, 4]


def test_callers_who_may_see_different_listeners_get_different_lists(bench: Bench) -> None:
    bench.policy.replace(Policy("/etc/policy.toml", (), os.geteuid()))
    bench.ask()
    bench.ask(os.geteuid() + 4242)
    assert sorted(len(answer or ()) for answer in bench.answers(2)) == [0, 3]


def test_who_waits_for_a_list_that_cannot_be_made_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(listener: Listener) -> str:
        raise ZeroDivisionError("of no use")

    monkeypatch.setattr(bench, "describe", broken)
    bench.ask()
    bench.ask()
    assert bench.answers(2) == [None, None]


def test_a_client_whose_answer_fails_costs_the_others_nothing(bench: Bench) -> None:
    def broken(text: bytes | None) -> None:
        raise ZeroDivisionError("its connection is of no use")

    for tell in (broken, bench.told.append, broken, bench.told.append):
        bench.listings.ask("list", Caller(bench.sock), bench.describe, tell)
    assert [len(answer or ()) for answer in bench.answers(2)] == [3, 3]


def test_a_listener_that_is_released_meanwhile_is_left_out(bench: Bench) -> None:
    bench.ask()
    run_until(bench.loop, lambda: len(bench.described) >= 1)
    bench.store.close_orphan(bench.store.listeners()[-1])
    answers = bench.answers(1)
    assert answers[0] is not None
    assert len(answers[0]) <= 3
