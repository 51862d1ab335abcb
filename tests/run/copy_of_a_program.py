"""A real process with listeners, as a check of readiness and the servers of its sockets see a copy."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import pytest

from multibinder.kernel.process import with_descendants
from multibinder.launch.run.notices import Notices
from multibinder.launch.run.output import Output
from multibinder.launch.run.readiness.check import Check
from multibinder.launch.run.tasks import Event, Loop, sleep
from multibinder.launch.styles.passed import Passed
from tests.support.waiting import PATIENCE_S

T = TypeVar("T")


class Copy:
    """A Python program in a session of its own. ``ready`` is the private listener."""

    def __init__(
        self,
        code: str,
        listeners: Sequence[Passed] = (),
        ready: socket.socket | None = None,
        environment: Mapping[str, str] | None = None,
        pattern: str | None = None,
    ) -> None:
        self.listeners = list(listeners)
        self.ready_address: tuple[str, int] | None = ready.getsockname()[:2] if ready is not None else None
        self.notices, self.acked = Notices(), Event()
        passed = [each.source for each in listeners] + ([ready.fileno()] if ready is not None else [])
        reading, writing = os.pipe()
        self.lines: list[bytes] = []
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), *map(str, passed)],
            stdin=subprocess.DEVNULL,
            stdout=writing,
            stderr=writing,
            pass_fds=passed,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
        os.close(writing)
        self.output = Output(reading, f"web[g1 {self.pid}]: ", self.lines.append, pattern)

    @property
    def pid(self) -> int:
        return self.process.pid

    def processes(self) -> set[int]:
        return with_descendants(self.pid)

    def close(self) -> None:
        """End all processes of the session."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, 9)
        self.process.wait()
        self.output.close()


@contextlib.contextmanager
def copies() -> Iterator[Callable[..., Copy]]:
    """Give a function that starts copies. They are ended after the block."""
    with contextlib.ExitStack() as running:

        def start(*given: Any, **options: Any) -> Copy:
            copy = Copy(*given, **options)
            running.callback(copy.close)
            return copy

        yield start


def listener(host: str, name: str = "web", family: int = socket.AF_INET, backlog: int = 128) -> Passed:
    """Return a new listener on a port that the kernel chooses. The caller closes its ``source``."""
    sock = socket.socket(family)
    sock.bind((host, 0))
    sock.listen(backlog)
    bound, port = sock.getsockname()[:2]
    return Passed({"host": bound, "port": port}, name, sock.detach())


def run(
    main: Coroutine[Any, Any, T], *beside: Coroutine[Any, Any, object], loop: Loop | None = None, log: str = ""
) -> T:
    """Run a coroutine beside others, with a deadline. A task that fails, fails the test."""
    failures: list[str] = []
    loop = loop or Loop(lambda name, error: failures.append(f"{name}: {error!r}"))

    async def with_a_deadline() -> T:
        for number, other in enumerate(beside):
            loop.start(other, f"task {number}")
        task = loop.start(main, "main of the test")
        if not await task.wait(PATIENCE_S):
            task.cancel()
            pytest.fail(f"not within {PATIENCE_S} s; {log}")
        return task.result()

    result = loop.run(with_a_deadline())
    assert failures == []
    return result


def see_ready(check: Check, copy: Copy) -> str:
    """Wait until the check sees that the copy is ready."""

    async def main() -> str:
        return await check.wait(copy)

    return run(main(), copy.output.read())


def see_unready(check: Check, copy: Copy, words: str) -> str:
    """Wait until the check has seen ``words``, and return all that it saw. Fail if it says that the copy is ready."""
    failures: list[str] = []
    loop = Loop(lambda name, error: failures.append(f"{name}: {error!r}"))

    async def main() -> str:
        task = loop.start(check.wait(copy), "the check")
        while words not in check.last:
            if task.is_done:
                pytest.fail(f"it says: {task.result()}")
            await sleep(0.01)
        if await task.wait(0.05):
            pytest.fail(f"it says: {task.result()}")
        task.cancel()
        return check.last

    last = run(main(), copy.output.read(), loop=loop)
    assert failures == []
    return last
