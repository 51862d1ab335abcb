"""The rehearsal of the guard's upgrade: run the new code in a child process before it replaces the running code."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Mapping, Sequence

import msgspec

from multibinder.binder.loop import Loop

#: The new code must be ready within this time. It ends itself by SIGALRM.
_REHEARSAL_S = 30
#: The running guard gives up then, whatever the new code does.
_GIVE_UP_S = _REHEARSAL_S + 2
_OUTPUT_BYTES = 65536
#: What the child runs. A guard of an earlier version has no ``rehearse``; its ``main`` only tries the imports if it has
#: a second argument.
_CODE = """
import signal, sys
signal.alarm({seconds})
import {module} as guard
getattr(guard, "rehearse", guard.main)()
sys.stdout.write("\\n{word}\\n" + ("" if hasattr(guard, "rehearse") else "{older}\\n"))
"""


class Upgrade(msgspec.Struct, frozen=True):
    """What an upgrade of the guard, by SIGUSR2, runs on trial and then executes.

    ``rehearsed`` is the command of the guard: python, options, -m, module, settings. ``variables`` are added to the
    environment of the command that is executed, and the new guard removes them when it serves.
    """

    rehearsed: Sequence[str]
    executed: Sequence[str]
    variables: Mapping[str, str] = {}


class GuardRehearsal:
    """A child process that runs the new guard's trial start, and prints a word that no other program knows.

    ``tell`` is called once, from the loop: with None if the new code can start, else with the reason. The guard reaps
    the process. Raises OSError if the process cannot be started.
    """

    def __init__(self, loop: Loop, upgrade: Upgrade, tell: Callable[[str | None], None]) -> None:
        self._loop = loop
        self._tell = tell
        self._output = b""
        self._is_over = False
        #: The new guard is of a version that knows only an abstract socket.
        self.is_older = False
        self._word = f"multibinder-rehearsed {os.urandom(8).hex()}"
        program, *options, _, module, settings = upgrade.rehearsed
        self._older = f"{self._word} older"
        code = _CODE.format(seconds=_REHEARSAL_S, module=module, word=self._word, older=self._older)
        self._pipe, writing = os.pipe2(os.O_CLOEXEC)
        try:
            os.set_blocking(self._pipe, False)
            loop.watch(self._pipe, self._on_output)
            self._pid = _spawn([program, *options, "-c", code, settings, "--rehearse"], writing)
        except OSError:
            loop.unwatch(self._pipe)
            os.close(self._pipe)
            raise
        finally:
            os.close(writing)
        loop.call_later(_GIVE_UP_S, self._give_up)

    def note_end(self, pid: int) -> None:
        """Judge the rehearsal if its process is ``pid``, which has ended. A process that it started may still run."""
        if pid == self._pid and not self._is_over:
            self._pid = 0  # another process may have the number now
            while not self._is_over and self._read():
                pass
            self._finish()

    def stop(self) -> None:
        """End the process. ``tell`` is not called."""
        if not self._is_over:
            self._close()

    def _on_output(self) -> None:
        self._read()

    def _read(self) -> bool:
        """Read what has arrived, and return whether there was anything."""
        try:
            chunk = os.read(self._pipe, _OUTPUT_BYTES)
        except BlockingIOError:
            return False
        self._output = (self._output + chunk)[-_OUTPUT_BYTES:]
        if not chunk:
            self._finish()
        return bool(chunk)

    def _finish(self) -> None:
        if self._is_over:
            return
        self._close()
        lines = [line.strip() for line in self._output.decode(errors="replace").splitlines() if line.strip()]
        if self._word in lines:
            self.is_older = self._older in lines
            self._tell(None)
        else:
            self._tell(lines[-1] if lines else "it ended without saying that it can start")

    def _give_up(self) -> None:
        if not self._is_over:
            self._close()
            self._tell(f"it did not start within {_REHEARSAL_S} s")

    def _close(self) -> None:
        self._is_over = True
        self._loop.unwatch(self._pipe)
        os.close(self._pipe)
        if self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)


def _spawn(command: list[str], output: int) -> int:
    """Start a process with no input, whose output and error messages go to a pipe. Return its PID."""
    return os.posix_spawn(
        command[0],
        command,
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0),
            (os.POSIX_SPAWN_DUP2, output, 1),
            (os.POSIX_SPAWN_DUP2, output, 2),
        ],
        setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],  # Python ignores both
    )
