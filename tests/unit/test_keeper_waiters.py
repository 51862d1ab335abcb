"""Each caller that waits for the keeper is told once, in time, and is forgotten then."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Collection

from multibinder.binder.keeper_waiters import Waiters
from multibinder.binder.loop import Loop


class Caller:
    """A caller with the names that it was told, and when."""

    def __init__(self) -> None:
        self.told: list[Collection[str]] = []
        self.at = 0.0

    def confirmed(self, kept: Collection[str]) -> None:
        self.told.append(kept)
        self.at = time.monotonic()


def test_a_caller_that_was_told_is_not_kept_in_memory() -> None:
    loop = Loop()
    waiters = Waiters(loop, 3600, set, lambda: None)
    caller = Caller()
    waiters.add(["a"], caller.confirmed)
    waiters.tell_all()
    assert caller.told == [{"a"}]
    reference = weakref.ref(caller)
    del caller
    gc.collect()
    assert reference() is None
    loop.close()


def test_a_caller_is_told_what_is_kept_when_its_time_has_passed_and_each_has_its_own_time() -> None:
    loop, callers = Loop(), [Caller(), Caller()]
    late: list[float] = []
    waiters = Waiters(loop, 0.1, lambda names: {"b"} & set(names), lambda: late.append(time.monotonic()))
    began = time.monotonic()
    waiters.add(["a", "b"], callers[0].confirmed)

    def add_second() -> None:
        waiters.add(["a"], callers[1].confirmed)

    loop.call_later(0.05, add_second)
    loop.call_later(0.5, loop.stop)
    loop.run(lambda: None)
    assert [caller.told for caller in callers] == [[{"b"}], [set()]]
    assert callers[0].at >= began + 0.1
    assert callers[1].at >= began + 0.15
    assert len(late) == 2
    loop.close()


def test_a_caller_is_told_once() -> None:
    loop, caller = Loop(), Caller()
    waiters = Waiters(loop, 0.05, set, lambda: None)
    waiter = waiters.add(["a"], caller.confirmed)
    waiters.tell_those(lambda waiter: False)
    assert caller.told == []
    waiters.tell(waiter)
    waiters.tell(waiter)
    loop.call_later(0.2, loop.stop)
    loop.run(lambda: None)
    assert caller.told == [{"a"}]
    loop.close()
