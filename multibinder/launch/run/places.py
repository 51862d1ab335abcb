"""The places of an instance: in each one copy serves, and is started again when it ends."""

from __future__ import annotations

import time

from multibinder.launch.run.copy import Copy
from multibinder.launch.run.settings import ServiceSettings
from multibinder.launch.run.tasks import Event, Task

#: The pause before a start after a failure: none, then this, doubled each time up to the longest.
_FIRST_S, _LONGEST_S = 0.1, 30.0
#: A copy that was ready for so long has not failed at its start.
_GOOD_AFTER_S = 10.0


class Backoff:
    """The pause before the next start. ``failing_since`` is the time (time.monotonic()) since which none is ready."""

    def __init__(self) -> None:
        self._failures = 0
        self.failing_since: float | None = None

    def failed(self) -> float:
        """Note a failure, and return the seconds before the next start."""
        self._failures += 1
        if self.failing_since is None:
            self.failing_since = time.monotonic()
        if self._failures == 1:
            return 0.0
        return min(_LONGEST_S, _FIRST_S * 2.0 ** min(self._failures - 2, 20))

    def ended(self, copy: Copy) -> float:
        """Note the end of a copy that was ready, and return the seconds before the next start."""
        if time.monotonic() - copy.ready_at >= _GOOD_AFTER_S:
            self._failures = 0
        self.failing_since = None
        return self.failed()

    def succeeded(self) -> None:
        """Note a copy that is ready. A crash soon after it still counts as one more failure."""
        self.failing_since = None

    def forget(self) -> None:
        """Begin anew: the settings are others."""
        self._failures, self.failing_since = 0, None


class Place:
    """One of the places. ``serving`` is its copy, ready or not; None between an end and the next start.

    ``starting`` is the start that is under way, to restore it after a crash. While ``is_held``, a reload has stopped
    the copy to start another, and nobody else starts one. ``woken`` ends a pause. ``settings`` and ``generation`` are
    those of the copy that last served here, None and 0 before the first.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self.serving: Copy | None = None
        self.starting: Task[Copy] | None = None
        self.keeper: Task[None] | None = None
        self.backoff = Backoff()
        self.is_held = False
        self.woken = Event()
        self.settings: ServiceSettings | None = None
        self.generation = 0

    @property
    def is_ready(self) -> bool:
        return self.serving is not None and self.serving.state == "ready" and not self.serving.ended.is_set

    def put(self, copy: Copy) -> None:
        """Let a copy that is ready serve here."""
        self.serving = copy
        self.settings, self.generation = copy.settings, copy.generation
        self.is_held = False
        self.backoff.forget()
        self.woken.set()
