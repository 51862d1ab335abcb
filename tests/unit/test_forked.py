"""Work in a forked child: the loop goes on, one answer comes, and nothing of the child is left."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from multibinder.binder.forked import Forked
from multibinder.binder.loop import Loop
from tests.support.processes import descriptors
from tests.support.waiting import PATIENCE_S


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def sleep() -> bytes:
    time.sleep(600)
    return b"not reached"


def children() -> list[int]:
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return list(map(int, file.read().split()))


def outcome(loop: Loop, work: Callable[[], bytes], timeout_s: float = 30.0) -> tuple[bytes | None, str]:
    """Do the work in a child. Check that it answers once, from the loop, and leaves no process and no descriptor."""
    before, running = descriptors(os.getpid()), children()
    told: list[tuple[bytes | None, str]] = []

    child = Forked(loop, work, lambda answer, why: told.append((answer, why)), timeout_s=timeout_s)
    assert told == []
    assert child.is_running
    run_until(loop, lambda: bool(told) and children() == running)
    assert not child.is_running
    assert descriptors(os.getpid()) == before
    [result] = told
    return result


def run_until(loop: Loop, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S

    def finish_turn() -> float:
        if condition() or time.monotonic() > deadline:
            loop.stop()
        return time.monotonic() + 0.01

    loop.run(finish_turn)
    assert condition()


@pytest.mark.parametrize("answer", [b"x" * 3_000_000, b""], ids=["long", "empty"])
def test_the_answer_of_the_child_arrives_whole(loop: Loop, answer: bytes) -> None:
    assert outcome(loop, lambda: answer) == (answer, "")


def test_the_child_has_no_descriptor_of_the_binder(loop: Loop) -> None:
    answer, _ = outcome(loop, lambda: " ".join(sorted(os.listdir("/proc/self/fd"))).encode())
    assert answer is not None
    assert len(answer.split()) <= 5  # three standard ones, the pipe, and the directory that it reads


def test_an_exception_in_the_child_is_told(loop: Loop) -> None:
    assert outcome(loop, lambda: bytes(1 // 0)) == (None, "ZeroDivisionError: integer division or modulo by zero")


def test_a_child_that_dies_without_a_word_is_told(loop: Loop) -> None:
    def die() -> bytes:
        os._exit(0)

    assert outcome(loop, die) == (None, "its process ended too early, or took too long")


def test_a_child_that_takes_too_long_is_ended_by_its_alarm(loop: Loop) -> None:
    assert outcome(loop, sleep, timeout_s=0.05) == (None, "its process ended too early, or took too long")


def test_a_child_that_is_stopped_is_given_up(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop() -> bytes:
        os.kill(os.getpid(), signal.SIGSTOP)
        return b"not reached"

    monkeypatch.setattr("multibinder.binder.forked._GIVE_UP_S", 0.1)
    assert outcome(loop, stop, timeout_s=0.05) == (None, "it took longer than 0.05 s")


def test_nothing_is_told_after_a_stop(loop: Loop) -> None:
    running = children()
    child = Forked(loop, sleep, lambda answer, why: pytest.fail(why), timeout_s=0.05)
    child.stop()
    child.stop()
    assert children() == running
    loop.call_later(0.1, loop.stop)
    loop.run(lambda: None)


def test_a_signal_for_the_child_is_not_read_by_the_binder(loop: Loop) -> None:
    ours, theirs = os.pipe2(os.O_NONBLOCK)
    before = signal.signal(signal.SIGHUP, lambda *_: None)
    signal.set_wakeup_fd(theirs)
    try:

        def end() -> bytes:
            os.kill(os.getpid(), signal.SIGHUP)
            return b"not reached"

        assert outcome(loop, end)[0] is None
        with pytest.raises(BlockingIOError):
            os.read(ours, 1)
    finally:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGHUP, before)
        os.close(ours)
        os.close(theirs)


def test_no_free_descriptor_is_told_as_a_failure(loop: Loop) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    told: list[tuple[bytes | None, str]] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        Forked(loop, lambda: b"", lambda answer, why: told.append((answer, why)), timeout_s=1)
        run_until(loop, lambda: bool(told))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert told == [(None, "no process can be started for it: Too many open files")]


@pytest.mark.parametrize("step", ["fork", "watch"])
def test_a_shortage_is_told_and_leaves_nothing(loop: Loop, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(*((os, "fork", refuse) if step == "fork" else (loop, "watch", refuse)))
    expected = "no process can be started for it: Resource temporarily unavailable"
    assert outcome(loop, lambda: b"") == (None, expected)
