"""Long work runs in slices: between them the loop serves others, and the time counts in the share of who asked."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from multibinder.binder.loop import Loop
from multibinder.binder.quotas import Limits, Quotas
from multibinder.binder.slices import Slices
from multibinder.binder.turns import USER_TURN_S
from tests.support.loops import run_until


class Bench:
    def __init__(self) -> None:
        self.loop = Loop()
        self.slices = Slices(self.loop)
        self.turns = self.slices.turns
        quotas = Quotas(Limits())
        self.users = [quotas.user(64001), quotas.user(64002)]
        self.done: list[str] = []

    def work(self, name: str, steps: int, step_s: float = 0.0001) -> Iterator[None]:
        for _ in range(steps):
            yield
            end = time.perf_counter() + step_s
            while time.perf_counter() < end:
                pass
        self.done.append(name)

    def run(self, count: int) -> None:
        run_until(self.loop, lambda: len(self.done) >= count)


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.loop.close()


def test_the_loop_turns_between_the_slices_of_long_work(bench: Bench) -> None:
    before = bench.loop.turn
    bench.slices.run(bench.work("long", 200), bench.users[0])
    bench.run(1)
    # 20 ms of work, of which a user gets half a millisecond in a turn.
    assert bench.loop.turn - before >= 0.5 * 0.02 / USER_TURN_S


def test_short_work_of_one_user_does_not_wait_for_the_long_work_of_another(bench: Bench) -> None:
    bench.slices.run(bench.work("long", 2000), bench.users[0])
    bench.slices.run(bench.work("short", 2), bench.users[1])
    bench.run(2)
    assert bench.done == ["short", "long"]


def test_the_work_of_one_user_is_done_in_order(bench: Bench) -> None:
    for name in ("first", "second", "third"):
        bench.slices.run(bench.work(name, 20 if name == "first" else 1), bench.users[0])
    bench.run(3)
    assert bench.done == ["first", "second", "third"]


def test_slices_count_in_the_share_of_the_user_who_asked(bench: Bench) -> None:
    bench.slices.run(bench.work("steps", 20), bench.users[0])
    seen: list[bool] = []

    def finish_turn() -> None:
        seen.append(bench.turns.has_time(bench.users[0]))
        if bench.done:
            bench.loop.stop()

    bench.loop.run(finish_turn)
    assert False in seen, "a request of this user would have waited for the next turn"
    assert bench.turns.has_time(bench.users[1])


def test_work_that_fails_costs_no_other_work(bench: Bench) -> None:
    def fails() -> Iterator[None]:
        yield
        raise ZeroDivisionError("of no use")

    bench.slices.run(fails(), bench.users[0])
    bench.slices.run(bench.work("of the same user", 3), bench.users[0])
    bench.slices.run(bench.work("of the binder", 3))
    bench.run(2)
    assert sorted(bench.done) == ["of the binder", "of the same user"]
