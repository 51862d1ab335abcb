"""Upgrades in place: rehearse the new code, and execute it in this process if the rehearsal succeeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from multibinder.binder import events
from multibinder.binder.loop import Loop
from multibinder.binder.methods import OnRehearsed
from multibinder.binder.next_version import require_known
from multibinder.binder.store import ListenerStore
from multibinder.binder.upgrade import Rehearsal
from multibinder.wire.errors import MultibinderError


class Upgrader:
    """Rehearses upgrades, one at a time, and begins one whose rehearsal succeeded.

    ``command`` is what an upgrade executes; ``store`` has the listeners, which the new code must be able to
    hold. ``check`` raises MultibinderError
    for a fault that the new code cannot notice, and returns the variables of the rehearsal's environment.
    ``begin`` is called after the clients that asked have been told.
    """

    def __init__(
        self,
        loop: Loop,
        command: Sequence[str],
        version: str,
        store: ListenerStore,
        *,
        check: Callable[[], Mapping[str, str]],
        begin: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._command = command
        self._version = version
        self._store = store
        self._check = check
        self._begin = begin
        self._waiting: list[OnRehearsed] = []
        self._rehearsal: Rehearsal | None = None

    def upgrade(self, on_rehearsed: OnRehearsed = lambda version, why: None) -> None:
        """Rehearse an upgrade, and upgrade if that succeeds. ``on_rehearsed`` is called from the loop, never at once.

        All callers during one rehearsal get its result.
        """
        self._waiting.append(on_rehearsed)
        if len(self._waiting) > 1:
            return
        try:
            self._rehearsal = Rehearsal(self._loop, self._command, self._finish, self._check())
        except MultibinderError as error:
            self._fail(str(error))
        except OSError as error:
            self._fail(f"its rehearsal cannot be started: {error.strerror}")

    def stop(self) -> None:
        """End a rehearsal that still runs. Who asked for it is not told."""
        if self._rehearsal is not None:
            self._rehearsal.stop()
            self._rehearsal = None

    def _fail(self, why: str) -> None:
        self._loop.call_later(0, lambda: self._finish(None, why))

    def _finish(self, version: str | None, why: str) -> None:
        if version is not None and self._rehearsal is not None:
            try:
                require_known(self._store.listeners(), self._rehearsal.known, version)
            except MultibinderError as error:
                version, why = None, str(error)
        if version is None:
            events.error("upgrade-refused", why=why, done=f"version {self._version} goes on")
        else:
            events.info("upgrading", version=self._version, new=version, listeners=len(self._store))
        self._rehearsal = None
        waiting, self._waiting = self._waiting, []
        for on_rehearsed in waiting:
            on_rehearsed(version, why)
        if version is not None:
            self._begin()
