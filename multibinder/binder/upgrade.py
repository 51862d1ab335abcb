"""The rehearsal of an upgrade: whether the new code can start, found out before the old code is given up."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Sequence

from multibinder.binder.loop import Loop

#: For the new code to say that it is there. It limits itself: SIGALRM ends it.
REHEARSAL_S = 30


class Rehearsal:
    """The new code in a process of its own: it imports what the binder imports, reads the settings, says its version.

    ``command`` is the binder's own: python, options, -m, module, settings. ``tell`` is called from the loop with the
    new version, or with None and the reason why it cannot be used.
    """

    def __init__(self, loop: Loop, command: Sequence[str], tell: Callable[[str | None, str], None]) -> None:
        self._loop = loop
        self._tell = tell
        self._said = b""
        program, *options, _, module, settings = command
        code = f"import signal; signal.alarm({REHEARSAL_S}); import {module} as binder; binder.rehearse()"
        self._process = subprocess.Popen(  # noqa: S603
            [program, *options, "-c", code, settings],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert self._process.stdout is not None  # noqa: S101
        self._output = self._process.stdout
        loop.watch(self._output, self._read)

    def _read(self) -> None:
        chunk = os.read(self._output.fileno(), 65536)
        self._said = (self._said + chunk)[-65536:]
        if chunk:
            return
        self._loop.unwatch(self._output)
        self._output.close()
        status = self._process.wait()
        lines = self._said.decode(errors="replace").strip().splitlines() or [""]
        if status == 0:
            self._tell(lines[-1], "")
        elif status == -signal.SIGALRM:
            self._tell(None, f"it did not start within {REHEARSAL_S} s")
        else:
            self._tell(None, lines[-1] or f"it exited with {status}")
