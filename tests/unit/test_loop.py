"""The event loop: a callback that raises costs itself only, and never keeps the processor busy."""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from multibinder.binder.loop import Loop
from tests.support.waiting import PATIENCE_S


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def ready() -> Iterator[socket.socket]:
    """Return a socket that is always ready to be read."""
    near, far = socket.socketpair()
    with near, far:
        far.send(b"x")
        yield near


def run_until(loop: Loop, condition: Callable[[], bool], finish: Callable[[], float | None] = lambda: None) -> None:
    deadline = time.monotonic() + PATIENCE_S

    def check() -> None:
        if condition() or time.monotonic() > deadline:
            loop.stop()

    loop.call_every(0.005, check)
    loop.run(finish)
    assert condition()


def failures(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    return [record.fields for record in caplog.records if record.msg == "callback-failed"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), MemoryError(), KeyError("a bug")])
def test_a_callback_that_raises_costs_itself_only(
    loop: Loop, ready: socket.socket, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    served: list[str] = []

    def fail() -> None:
        raise error

    near, far = socket.socketpair()
    with near, far:
        loop.watch(near, lambda: served.append(near.recv(9).decode()))
        loop.watch(ready, fail)
        loop.call_later(0, fail)
        loop.call_later(0.01, lambda: served.append(str(far.send(b"from another descriptor"[:9]))))
        run_until(loop, lambda: len(served) >= 2)
    assert served == ["9", "from anot"]
    lines = failures(caplog)
    assert type(error).__name__ in str(lines[0]["error"])
    assert "fail" in str(lines[0]["callback"])
    assert str(lines[0]["at"]).startswith("test_loop.py:")


def test_a_callback_that_fails_again_and_again_backs_off(loop: Loop, ready: socket.socket) -> None:
    calls: list[float] = []

    def fail() -> None:
        calls.append(time.monotonic())
        raise OSError

    loop.watch(ready, fail)
    run_until(loop, lambda: len(calls) == 4)
    pauses = [later - earlier for earlier, later in itertools.pairwise(calls)]
    assert [pause >= least for pause, least in zip(pauses, (0.1, 0.2, 0.4), strict=True)] == [True] * 3


def test_a_callback_that_succeeds_again_is_watched_as_before(loop: Loop, ready: socket.socket) -> None:
    calls: list[float] = []

    def fail_once() -> None:
        calls.append(time.monotonic())
        if len(calls) in (1, 3):
            raise OSError

    loop.watch(ready, fail_once)
    run_until(loop, lambda: len(calls) > 3)
    assert calls[2] - calls[1] < 0.1
    assert 0.1 <= calls[3] - calls[2] < 0.2 + 0.1  # the pause is the first one again


def test_a_descriptor_that_is_unwatched_in_its_pause_stays_so(loop: Loop, ready: socket.socket) -> None:
    calls: list[float] = []

    def fail() -> None:
        calls.append(time.monotonic())
        loop.call_later(0.01, lambda: loop.unwatch(ready))
        raise OSError

    loop.watch(ready, fail)
    loop.call_later(0.3, loop.stop)
    loop.run(lambda: None)
    assert len(calls) == 1


def test_a_descriptor_whose_watch_the_kernel_refuses_is_watched_later(
    loop: Loop, ready: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[float] = []
    epoll = loop._epoll
    refused: list[tuple[int, ...]] = []

    class Short:
        """An epoll instance whose watches are used up for the first three calls."""

        def __getattr__(self, name: str) -> object:
            return getattr(epoll, name)

        def register(self, *args: int) -> None:
            if len(refused) < 3:
                refused.append(args)
                raise OSError(28, "No space left on device")
            epoll.register(*args)

    monkeypatch.setattr(loop, "_epoll", Short())
    with pytest.raises(OSError, match="No space"):
        loop.watch(ready, lambda: None)
    loop.watch_always(ready, lambda: calls.append(time.monotonic()))
    run_until(loop, lambda: bool(calls))
    assert len(refused) == 3


def test_a_regular_call_keeps_its_rhythm_although_it_raises(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    calls: list[float] = []

    def fail() -> None:
        calls.append(time.monotonic())
        raise ValueError

    loop.call_every(0.02, fail)
    run_until(loop, lambda: len(calls) > 5)
    assert len(failures(caplog)) >= 5


def test_the_end_of_a_turn_that_fails_is_tried_again(loop: Loop) -> None:
    calls: list[float] = []

    def finish() -> None:
        calls.append(time.monotonic())
        if len(calls) < 4:
            raise OSError

    loop.call_later(5, lambda: None)
    run_until(loop, lambda: len(calls) > 4, finish)


@pytest.mark.parametrize("kind", ["closed", "its number is another file's"])
def test_a_broken_epoll_instance_is_replaced(
    loop: Loop, ready: socket.socket, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[float] = []
    loop.watch(ready, lambda: calls.append(time.monotonic()))
    if kind == "closed":
        os.close(loop._epoll.fileno())
    else:
        os.dup2(ready.fileno(), loop._epoll.fileno())
    run_until(loop, lambda: bool(calls))
    assert len(failures(caplog)) == 1


def test_waits_that_fail_neither_end_the_loop_nor_keep_the_processor_busy(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[float] = []

    class Broken:
        def poll(self, *_: object) -> None:
            raise OSError(12, "Cannot allocate memory")

    with monkeypatch.context() as patched:
        patched.setattr(loop, "_epoll", Broken())
        loop.call_later(0.5, loop.stop)
        loop.run(lambda: turns.append(0))
    assert len(turns) < 10


def test_failures_of_one_callback_are_limited_in_the_log(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    calls: list[int] = []

    def fail() -> None:
        calls.append(0)
        raise OSError

    for _ in range(50):
        loop.call_later(0, fail)
    run_until(loop, lambda: len(calls) == 50)
    assert len(failures(caplog)) == 20
