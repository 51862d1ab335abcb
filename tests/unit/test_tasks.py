"""Coroutines that wait for descriptors, events and times in one thread."""

from __future__ import annotations

import os
import time

import pytest

from multibinder.launch.run.tasks import Cancelled, Event, Loop, Task, readable, sleep, writable


@pytest.fixture
def failures() -> list[tuple[str, BaseException]]:
    return []


@pytest.fixture
def loop(failures: list[tuple[str, BaseException]]) -> Loop:
    return Loop(lambda name, error: failures.append((name, error)))


def test_tasks_run_beside_one_another_and_main_ends_the_loop(loop: Loop) -> None:
    order: list[str] = []

    async def other() -> None:
        try:
            for number in range(100):
                order.append(f"other {number}")
                await sleep(0.01)
        finally:
            order.append("cleaned up")

    async def main() -> str:
        loop.start(other(), "other")
        await sleep(0.025)
        return "done"

    assert loop.run(main()) == "done"
    assert order[:2] == ["other 0", "other 1"]
    assert order[-1] == "cleaned up"
    assert len(order) < 10


def test_a_descriptor_wakes_each_task_that_waits_for_it(loop: Loop) -> None:
    read, write = os.pipe()

    async def main() -> list[bool]:
        first, second = (loop.start(readable(read, 5), name) for name in ("first", "second"))
        assert await writable(write, 0)
        assert not await readable(read, 0.01)
        os.write(write, b"x")
        assert await first.wait(1)
        assert await second.wait(1)
        return [first.result(), second.result()]

    assert loop.run(main()) == [True, True]
    os.close(read)
    os.close(write)


def test_the_end_of_a_pipe_counts_as_readable(loop: Loop) -> None:
    read, write = os.pipe()
    os.close(write)
    assert loop.run(readable(read, 1))
    os.close(read)


def test_an_event_wakes_those_that_wait_and_those_that_come_later(loop: Loop) -> None:
    event = Event()

    async def main() -> tuple[bool, bool, bool]:
        early = await event.wait(0.01)
        waiting = loop.start(event.wait(1), "waiting")
        await sleep(0)
        event.set()
        await waiting.wait()
        return early, waiting.result(), await event.wait(0)

    assert loop.run(main()) == (False, True, True)


def test_a_task_that_fails_is_reported_unless_another_asks_for_its_result(
    loop: Loop, failures: list[tuple[str, BaseException]]
) -> None:
    async def fail() -> None:
        raise ValueError("no")

    async def main() -> None:
        loop.start(fail(), "alone")
        asked = loop.start(fail(), "asked")
        await asked.wait()
        with pytest.raises(ValueError, match="no"):
            asked.result()

    loop.run(main())
    assert [(name, str(error)) for name, error in failures] == [("alone", "no")]


def test_a_cancelled_task_cleans_up_and_says_so(loop: Loop, failures: list[tuple[str, BaseException]]) -> None:
    cleaned: list[str] = []

    async def wait_long() -> None:
        try:
            await sleep(60)
        finally:
            await sleep(0.01)
            cleaned.append("yes")

    async def main() -> None:
        task: Task[None] = loop.start(wait_long(), "long")
        not_begun = loop.start(wait_long(), "not begun")
        not_begun.cancel()
        await sleep(0)
        task.cancel()
        assert await task.wait(1)
        assert not_begun.is_done
        with pytest.raises(Cancelled):
            task.result()

    loop.run(main())
    assert cleaned == ["yes"]
    assert failures == []


def test_an_idle_loop_takes_no_processor_time(loop: Loop) -> None:
    began = time.process_time()
    loop.run(sleep(0.3))
    assert time.process_time() - began < 0.1


def test_a_task_that_is_about_to_go_on_can_be_cancelled(loop: Loop) -> None:
    event = Event()

    async def main() -> bool:
        task = loop.start(event.wait(), "waiting")
        await sleep(0)
        event.set()
        task.cancel()
        await task.wait(1)
        with pytest.raises(Cancelled):
            task.result()
        return True

    assert loop.run(main())
