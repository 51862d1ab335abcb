"""The rehearsal of an upgrade: run the new code in a child process before it replaces the running code.

A running binder of version 0.1.0 imports ``Rehearsal`` only when it is asked to upgrade, and then gets this module, not
its own. So this module may import nothing of ours but ``Loop``, which such a binder has loaded.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence

from multibinder.binder.loop import Loop

#: The new code must be ready within this time. It ends itself by SIGALRM.
REHEARSAL_S = 30


class Rehearsal:
    """A child process with the new code. It imports all modules of the binder, reads the settings, prints its version.

    ``command`` is the binder's own: python, options, -m, module, settings. ``tell`` is called from the loop with the
    version of the new code, or with None and the reason why it cannot be used. Raises OSError if the process cannot be
    started.
    """

    def __init__(self, loop: Loop, command: Sequence[str], tell: Callable[[str | None, str], None]) -> None:
        self._loop = loop
        self._tell = tell
        self._output = b""
        program, *options, _, module, settings = command
        code = f"import signal; signal.alarm({REHEARSAL_S}); import {module} as binder; binder.rehearse()"
        self._pipe, writing = os.pipe2(os.O_CLOEXEC)
        try:
            self._pid = _spawn([program, *options, "-c", code, settings], writing)
        except OSError:
            os.close(self._pipe)
            raise
        finally:
            os.close(writing)
        loop.watch(self._pipe, self._read)

    def _read(self) -> None:
        chunk = os.read(self._pipe, 65536)
        self._output = (self._output + chunk)[-65536:]
        if chunk:
            return
        self._loop.unwatch(self._pipe)
        os.close(self._pipe)
        status = _wait(self._pid)
        lines = self._output.decode(errors="replace").strip().splitlines() or [""]
        if status == 0:
            self._tell(lines[-1], "")
        elif status == -signal.SIGALRM:
            self._tell(None, f"it did not start within {REHEARSAL_S} s")
        else:
            self._tell(None, lines[-1] or f"it exited with {status}")


def _spawn(command: list[str], output: int) -> int:
    """Start a process with no input, whose output and error messages go to a pipe. Return its PID.

    The module ``subprocess`` would be loaded for this alone, and stay in memory for the daemon's life.
    """
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


def _wait(pid: int) -> int:
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except ChildProcessError:
        return 0  # the kernel has reaped it, because the program that started us made us ignore SIGCHLD
