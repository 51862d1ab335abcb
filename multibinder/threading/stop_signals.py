"""Stop a server at the first SIGTERM or SIGINT; the second one ends the process at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Collection, Iterator


@contextlib.contextmanager
def at_stop_signal(numbers: Collection[int], action: Callable[[], None]) -> Iterator[None]:
    """Call ``action`` in the signal handler at the first of these signals, while the block runs, in the main thread.

    After the first signal they have their default actions, and keep them when the block ends: the process is about
    to end. Without a signal they get the handlers back that they had before.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived = False
    # A shell without job control lets its background jobs ignore SIGINT, which is meant for the foreground.
    before = {number: handler for number in numbers if (handler := signal.getsignal(number)) is not signal.SIG_IGN}

    def on_signal(_number: int, _frame: object) -> None:
        nonlocal arrived
        arrived = True
        for number in before:
            signal.signal(number, signal.SIG_DFL)
        action()

    for number in before:
        signal.signal(number, on_signal)
    try:
        yield
    finally:
        if not arrived:
            for number, handler in before.items():
                signal.signal(number, handler)
