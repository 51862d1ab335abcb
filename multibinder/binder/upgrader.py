"""Upgrades in place: rehearse the new code, and execute it in this process if the rehearsal succeeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized

from multibinder.binder import events
from multibinder.binder.loop import Loop
from multibinder.binder.methods import OnRehearsed
from multibinder.binder.upgrade import Rehearsal
from multibinder.wire.errors import MultibinderError


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
        """Rehearse an upgrade, and upgrade if that succeeds. All callers during one rehearsal get its result."""
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
