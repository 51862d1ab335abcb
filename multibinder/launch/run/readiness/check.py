"""What a check of readiness is, and what it sees of a copy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from multibinder.launch.run.notices import Notices
from multibinder.launch.run.output import Output
from multibinder.launch.run.tasks import Event
from multibinder.launch.styles.passed import Passed


class ObservedCopy(Protocol):
    """A copy as a check sees it.

    ``listeners`` are those that other copies have too. ``ready_address`` is host and port of the private listener
    ``{ready}``, None if nothing names it. ``acked`` is set by einhorn's acknowledgement.
    """

    @property
    def pid(self) -> int: ...

    @property
    def notices(self) -> Notices: ...

    @property
    def output(self) -> Output: ...

    @property
    def listeners(self) -> Sequence[Passed]: ...

    @property
    def ready_address(self) -> tuple[str, int] | None: ...

    @property
    def acked(self) -> Event: ...

    def processes(self) -> set[int]:
        """Return the PIDs of the copy: its first process, and all below it or in its session."""
        ...


class Check(Protocol):
    """One way to see that a copy is ready.

    ``last`` is what was seen last, for the message at the time limit: ``it answered 500``. It may be empty.
    """

    @property
    def last(self) -> str: ...

    def describe(self) -> str:
        """Return what is waited for: ``GET http://127.0.0.1:8000/health``."""
        ...

    async def wait(self, copy: ObservedCopy) -> str:
        """Wait until the copy is ready, and return how that was seen: ``it sent READY=1``.

        It waits for ever otherwise: the caller cancels it at the time limit, or if the copy ends.
        """
        ...
