"""Wait for a condition with a deadline, and run an action after a delay."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest

T = TypeVar("T")


#: The deadline of every wait, in seconds. It is long enough for a busy machine.
PATIENCE_S = 20.0


def wait_until(
    condition: Callable[[], T | None], promise: str, *, log: Callable[[], str] = str, timeout_s: float = PATIENCE_S
) -> T:
    """Poll ``condition`` until its result is true, and return the result. At the deadline, fail and show ``log()``."""
    deadline = time.monotonic() + timeout_s
    while not (result := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout_s:g} s: {promise}\n{log()}")
        time.sleep(0.01)
    return result


def later(delay_s: float, action: Callable[[], object]) -> contextlib.AbstractContextManager[None]:
    """Run ``action`` in another thread after a delay, while the block runs."""
    return _later(threading.Timer(delay_s, action))


@contextlib.contextmanager
def _later(timer: threading.Timer) -> Iterator[None]:
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join(PATIENCE_S)
