"""Run a loop of the binder in the test's own thread."""

from __future__ import annotations

import time
from collections.abc import Callable

from multibinder.binder.loop import Loop
from tests.support import PATIENCE_S


def run_until(loop: Loop, is_done: Callable[[], bool]) -> None:
    """Run the loop until the condition holds."""
    deadline = time.monotonic() + PATIENCE_S

    def finish_turn() -> float:
        if is_done() or time.monotonic() > deadline:
            loop.stop()
        return time.monotonic() + 0.01

    loop.run(finish_turn)
    loop._stopping = False  # the loop may be run again
    assert is_done(), "the loop did not come to it in time"
