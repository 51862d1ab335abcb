"""Coroutines in one thread that wait for descriptors, events and times. asyncio would take 9 MB, this takes none.

    async def answer(client: socket.socket) -> None:
        if await readable(client.fileno(), timeout_s=5):
            ...

    Loop(on_failure).run(main())

A coroutine runs until it waits, so what it does between two waits is never interrupted.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import select
import time
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")

#: What poll(2) reports beside what was asked for: the end of a pipe, an error, a closed descriptor.
_ENDS = select.POLLHUP | select.POLLERR | select.POLLNVAL


class Cancelled(BaseException):  # like asyncio.CancelledError: 'except Exception' must not catch it
    """The task was cancelled. It may clean up, and must not wait for long."""


class Loop:
    """Runs tasks. A task that fails does not end the loop: ``on_failure`` gets its name and the exception."""

    def __init__(self, on_failure: Callable[[str, BaseException], None]) -> None:
        self._on_failure = on_failure
        self._ready: dict[Task[Any], object] = {}  # what each is resumed with, in their order
        self._timers: list[tuple[float, int, Task[Any], _Wait]] = []
        self._numbers = itertools.count()
        self._poll = select.poll()
        self._waiting: dict[int, dict[Task[Any], int]] = {}  # the events that tasks wait for, by descriptor
        self._tasks: set[Task[Any]] = set()

    def start(self, coroutine: Coroutine[Any, Any, T], name: str) -> Task[T]:
        """Run a coroutine beside the others. ``name`` is for the message about its failure."""
        task = Task(self, coroutine, name)
        self._tasks.add(task)
        self._ready[task] = True
        return task

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Run ``main`` to its end, and return its result or raise its exception.

        Other tasks are cancelled then, and waited for.
        """
        task = self.start(main, "main")
        task.has_reader = True
        while not task.is_done:
            self._turn()
        for other in list(self._tasks):
            other.cancel()
        while self._tasks:
            self._turn()
        return task.result()

    def _turn(self) -> None:
        self._wait()
        for _ in range(len(self._ready)):
            if self._ready:  # else one of them has cancelled the others
                task = next(iter(self._ready))
                self._step(task, self._ready.pop(task))

    def _wait(self) -> None:
        """Wait for what tasks wait for, and make those ready for which it has come."""
        while self._timers and self._timers[0][2].wait_for is not self._timers[0][3]:
            heapq.heappop(self._timers)
        timeout_ms: float | None = None
        if self._ready:
            timeout_ms = 0
        elif self._timers:
            timeout_ms = max(0.0, self._timers[0][0] - time.monotonic()) * 1000 + 0.5
        for fd, events in self._poll.poll(timeout_ms):
            for task, wanted in list(self._waiting.get(fd, {}).items()):
                if events & (wanted | _ENDS):
                    self.wake(task, True)
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            _, _, task, wait = heapq.heappop(self._timers)
            if task.wait_for is wait:
                self.wake(task, False)

    def wake(self, task: Task[Any], value: object) -> None:
        """Let a task that waits go on with ``value``, or with an exception."""
        wait = task.wait_for
        if wait is None:
            if isinstance(value, Cancelled) and task in self._ready:
                self._ready[task] = value
            return
        task.wait_for = None
        if wait.fd >= 0:
            del self._waiting[wait.fd][task]
            self._register(wait.fd)
        if wait.event is not None:
            wait.event.waiting.discard(task)
        self._ready[task] = value

    def forget(self, task: Task[Any]) -> None:
        """End a task that has not begun."""
        self._ready.pop(task, None)
        self._end(task, None, Cancelled())

    def _register(self, fd: int) -> None:
        events = 0
        for each in self._waiting.get(fd, {}).values():
            events |= each
        if events:
            self._poll.register(fd, events)
        else:
            self._waiting.pop(fd, None)
            with contextlib.suppress(KeyError):
                self._poll.unregister(fd)

    def _step(self, task: Task[Any], value: object) -> None:
        """Run a task to its next wait, or to its end."""
        try:
            if isinstance(value, BaseException):
                wait = task.coroutine.throw(value)
            else:
                wait = task.coroutine.send(value if task.has_begun else None)
            task.has_begun = True
        except StopIteration as end:
            self._end(task, end.value, None)
            return
        except Cancelled:
            self._end(task, None, Cancelled())
            return
        except BaseException as error:
            self._end(task, None, error)
            return
        if wait.event is not None and wait.event.is_set:
            self._ready[task] = True
            return
        task.wait_for = wait
        if wait.fd >= 0:
            self._waiting.setdefault(wait.fd, {})[task] = wait.events
            self._register(wait.fd)
        if wait.event is not None:
            wait.event.waiting.add(task)
        if wait.deadline is not None:
            heapq.heappush(self._timers, (wait.deadline, next(self._numbers), task, wait))

    def _end(self, task: Task[Any], result: object, error: BaseException | None) -> None:
        self._tasks.discard(task)
        task.end(result, error)
        if error is not None and not task.has_reader and not isinstance(error, Cancelled):
            self._on_failure(task.name, error)


class Event:
    """Something that happens once, until ``clear``. Tasks wait for it."""

    def __init__(self) -> None:
        self.is_set = False
        self.waiting: set[Task[Any]] = set()

    def set(self) -> None:
        self.is_set = True
        for task in list(self.waiting):
            task.loop.wake(task, True)

    def clear(self) -> None:
        self.is_set = False

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until it happens, and return True; False after ``timeout_s``."""
        return await _Wait(event=self, timeout_s=timeout_s)


class Task(Generic[T]):
    """A coroutine that runs in a loop."""

    def __init__(self, loop: Loop, coroutine: Coroutine[Any, Any, T], name: str) -> None:
        self.loop = loop
        self.coroutine = coroutine
        self.name = name
        self.has_begun = False
        #: Set by who will ask for the result: a failure is then that one's to report.
        self.has_reader = False
        self.wait_for: _Wait | None = None
        self._done = Event()
        self._result: T | None = None
        self._error: BaseException | None = None

    @property
    def is_done(self) -> bool:
        return self._done.is_set

    @property
    def succeeded(self) -> bool:
        """Return whether the task is done, and has a result."""
        return self.is_done and self._error is None

    @property
    def was_cancelled(self) -> bool:
        """Return whether the task was cancelled, and is done."""
        return isinstance(self._error, Cancelled)

    def result(self) -> T:
        """Return the result of a task that is done, or raise its exception: Cancelled if it was cancelled."""
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the task is done; False after ``timeout_s``. The caller will ask for the result."""
        self.has_reader = True
        return await self._done.wait(timeout_s)

    def cancel(self) -> None:
        """Raise Cancelled in the task where it waits. Does nothing to one that is done."""
        if not self.has_begun and not self.is_done:
            self.has_begun = True  # it has nothing to clean up
            self.coroutine.close()
            self.loop.forget(self)
        elif not self.is_done:
            self.loop.wake(self, Cancelled())

    def end(self, result: Any, error: BaseException | None) -> None:
        """Note how it ended. The loop calls this."""
        self._result, self._error = result, error
        self._done.set()


class _Wait:
    """What a task waits for: a descriptor or an event, or neither, until a deadline."""

    def __init__(
        self, fd: int = -1, events: int = 0, event: Event | None = None, timeout_s: float | None = None
    ) -> None:
        self.fd = fd
        self.events = events
        self.event = event
        self.deadline = None if timeout_s is None else time.monotonic() + timeout_s

    def __await__(self) -> Generator[_Wait, bool, bool]:
        """Return True if it came, False at the deadline."""
        return (yield self)


async def sleep(seconds: float) -> None:
    """Wait for a time."""
    await _Wait(timeout_s=seconds)


async def readable(fd: int, timeout_s: float | None = None) -> bool:
    """Wait until a descriptor can be read, or has an error or an end; False after ``timeout_s``."""
    return await _Wait(fd, select.POLLIN, timeout_s=timeout_s)


async def writable(fd: int, timeout_s: float | None = None) -> bool:
    """Wait until a descriptor can be written, or has an error; False after ``timeout_s``."""
    return await _Wait(fd, select.POLLOUT, timeout_s=timeout_s)
