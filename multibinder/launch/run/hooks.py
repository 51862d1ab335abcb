"""Run the shell commands around the life of a copy, each with a time limit."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

from multibinder.launch.errors import LaunchError
from multibinder.launch.run.output import Output
from multibinder.launch.run.tasks import Event, Loop

Kind = Literal["pre-start", "post-ready", "pre-stop"]
#: A hook that SIGTERM does not end within this time gets SIGKILL.
_GRACE_S = 2.0


class HookFailed(LaunchError):
    """A hook cannot be started, ended with a failure, or did not end. ``output`` has its last lines."""

    def __init__(self, message: str, output: list[str]) -> None:
        super().__init__(message)
        self.output = output


class Child(Protocol):
    """A process that was started. ``ended`` is set when it has ended, and ``status`` is that of waitpid(2) then."""

    @property
    def pid(self) -> int: ...

    @property
    def ended(self) -> Event: ...

    @property
    def status(self) -> int: ...


class Hook(NamedTuple):
    """A shell command of the settings, and its time limit."""

    kind: Kind
    command: str
    timeout_s: float


#: Starts a command in a session of its own, with the descriptor as stdout and stderr, and stdin /dev/null. The
#: descriptor stays the caller's. Raises OSError.
Start = Callable[[list[str], int], Child]


async def run_hook(hook: Hook, loop: Loop, start: Start, name: str, write: Callable[[bytes], None]) -> None:
    """Run a hook to its end. Its output goes to ``write``, each line with the name of the instance and of the hook.

    Raises HookFailed. Processes that the hook leaves behind are ended only if it had to be ended itself.
    """
    reading, writing = os.pipe()
    output = Output(reading, f"{name}[{hook.kind}]: ", write)
    try:
        try:
            child = start(["/bin/sh", "-c", hook.command], writing)
        except OSError as error:
            raise HookFailed(f"the {hook.kind} hook cannot be started: {error.strerror}", []) from error
        finally:
            os.close(writing)
        reader = loop.start(output.read(), f"the output of the {hook.kind} hook")
        try:
            is_late = not await child.ended.wait(hook.timeout_s)
            if is_late:
                await _end(child)
        except BaseException:
            _kill(child, signal.SIGKILL)
            raise
        finally:
            reader.cancel()
        output.read_waiting()
    finally:
        output.close()
    if is_late:
        raise HookFailed(f"the {hook.kind} hook did not end within {hook.timeout_s:g} s, and was killed", output.last)
    if child.status != 0:
        raise HookFailed(f"the {hook.kind} hook failed: it {how_it_ended(child.status)}", output.last)


async def _end(child: Child) -> None:
    _kill(child, signal.SIGTERM)
    if not await child.ended.wait(_GRACE_S):
        _kill(child, signal.SIGKILL)
        await child.ended.wait(_GRACE_S)


def _kill(child: Child, number: int) -> None:
    """Signal all processes of the hook's group. Its PID is not used again before ``ended`` is set."""
    if not child.ended.is_set:
        with contextlib.suppress(OSError):
            os.killpg(child.pid, number)


def how_it_ended(status: int) -> str:
    """Return the end of a process as the rest of a sentence: ``exited with code 3``, ``was killed by SIGSEGV``."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            return f"was killed by {signal.Signals(number).name}"
        except ValueError:
            return f"was killed by signal {number}"
    return f"exited with code {os.WEXITSTATUS(status)}"
