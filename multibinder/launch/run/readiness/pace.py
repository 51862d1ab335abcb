"""The pauses between the tries of a check: short at first, because most servers are ready soon."""

from __future__ import annotations

from multibinder.launch.run.tasks import sleep

_FIRST_S, _LAST_S = 0.02, 0.5


class Pace:
    """Waits longer each time, up to half a second."""

    def __init__(self) -> None:
        self._pause_s = _FIRST_S

    async def next(self) -> None:
        await sleep(self._pause_s)
        self._pause_s = min(self._pause_s * 1.5, _LAST_S)
