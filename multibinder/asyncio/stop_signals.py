"""Close the servers of an event loop at the first SIGTERM or SIGINT; the second one ends the process at once."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Collection, Iterator
from typing import Any


class _StopSignals:
    """The signals that one loop watches, and what they close."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._actions: list[Callable[[], None]] = []
        self._before: dict[int, Any] = {}
        self._arrived = False

    def add(self, numbers: Collection[int], action: Callable[[], None]) -> None:
        self._actions.append(action)
        if self._arrived:
            action()
            return
        for number in numbers:
            before = signal.getsignal(number)
            # A shell without job control lets its background jobs ignore SIGINT, which is meant for the foreground.
            if number not in self._before and before is not signal.SIG_IGN:
                self._loop.add_signal_handler(number, self._on_signal, number)
                self._before[number] = before

    def remove(self, action: Callable[[], None]) -> bool:
        """Return whether it was the last one."""
        self._actions.remove(action)
        if not self._actions:
            self._forget(None)
        return not self._actions

    def _on_signal(self, number: int) -> None:
        if self._arrived:
            # Both signals came before the loop looked at the first one.
            signal.raise_signal(number)
            return
        self._arrived = True
        # The kernel itself ends the process at the second signal, even if the loop is busy.
        self._forget(signal.SIG_DFL)
        for action in [*self._actions]:
            action()

    def _forget(self, handler: signal.Handlers | None) -> None:
        """Set ``handler`` for each signal, or the handler that it had before."""
        for number, before in self._before.items():
            self._loop.remove_signal_handler(number)
            signal.signal(number, before if handler is None else handler)
        self._before.clear()


_of_loop: dict[asyncio.AbstractEventLoop, _StopSignals] = {}


@contextlib.contextmanager
def at_stop_signal(numbers: Collection[int], action: Callable[[], None]) -> Iterator[None]:
    """Call ``action`` in the running loop at the first of these signals, while the block runs.

    All actions of a loop share the signals. After the first signal they have their default actions, and keep them when
    the block ends: the process is about to end. Without a signal they get the handlers back that they had before.
    A signal that this process ignores stays ignored. Outside of the main thread, which alone can have signal handlers,
    this does nothing.
    """
    if not numbers or threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    signals = _of_loop.setdefault(loop, _StopSignals(loop))
    signals.add(numbers, action)
    try:
        yield
    finally:
        if signals.remove(action):
            del _of_loop[loop]
