"""The rehearsal of an upgrade: the new code shows that it can start before the running code gives up."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Sequence, Sized

from multibinder.binder import events
from multibinder.binder.loop import Loop
from multibinder.binder.methods import OnRehearsed
from multibinder.wire.errors import MultibinderError

#: The new code must be ready within this time. It ends itself by SIGALRM.
REHEARSAL_S = 30


class Upgrader:
    """Rehearses upgrades, one at a time, and begins one whose rehearsal succeeded.

    ``command`` is what an upgrade executes; ``listeners`` are counted for the log. ``check`` raises MultibinderError
    for a fault that the new code cannot notice. ``begin`` is called after the clients that asked have been told.
    """

    def __init__(
        self,
        loop: Loop,
        command: Sequence[str],
        version: str,
        listeners: Sized,
        *,
        check: Callable[[], None],
        begin: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._command = command
        self._version = version
        self._listeners = listeners
        self._check = check
        self._begin = begin
        self._waiting: list[OnRehearsed] = []

    def upgrade(self, on_rehearsed: OnRehearsed = lambda version, why: None) -> None:
        """Rehearse an upgrade, and upgrade if that succeeds. All who ask during one rehearsal are told its result."""
        try:
            self._check()
        except MultibinderError as error:
            self._refuse(str(error))
            on_rehearsed(None, str(error))
            return
        self._waiting.append(on_rehearsed)
        if len(self._waiting) > 1:
            return
        try:
            Rehearsal(self._loop, self._command, self._finish)
        except OSError as error:
            self._finish(None, f"its rehearsal cannot be started: {error.strerror}")

    def _finish(self, version: str | None, why: str) -> None:
        if version is None:
            self._refuse(why)
        else:
            events.info("upgrading", version=self._version, new=version, listeners=len(self._listeners))
        waiting, self._waiting = self._waiting, []
        for on_rehearsed in waiting:
            on_rehearsed(version, why)
        if version is not None:
            self._begin()

    def _refuse(self, why: str) -> None:
        events.error("upgrade-refused", why=why, done=f"version {self._version} goes on")


class Rehearsal:
    """The new code in a process of its own: it imports what the binder imports, reads the settings, says its version.

    ``command`` is the binder's own: python, options, -m, module, settings. ``tell`` is called from the loop.
    """

    def __init__(self, loop: Loop, command: Sequence[str], tell: OnRehearsed) -> None:
        self._loop = loop
        self._tell = tell
        self._output = b""
        program, *options, _, module, settings = command
        code = f"import signal; signal.alarm({REHEARSAL_S}); import {module} as binder; binder.rehearse()"
        self._process = subprocess.Popen(  # noqa: S603
            [program, *options, "-c", code, settings],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert self._process.stdout is not None  # noqa: S101
        self._pipe = self._process.stdout
        loop.watch(self._pipe, self._read)

    def _read(self) -> None:
        chunk = os.read(self._pipe.fileno(), 65536)
        self._output = (self._output + chunk)[-65536:]
        if chunk:
            return
        self._loop.unwatch(self._pipe)
        self._pipe.close()
        status = self._process.wait()
        lines = self._output.decode(errors="replace").strip().splitlines() or [""]
        if status == 0:
            self._tell(lines[-1], "")
        elif status == -signal.SIGALRM:
            self._tell(None, f"it did not start within {REHEARSAL_S} s")
        else:
            self._tell(None, lines[-1] or f"it exited with {status}")
