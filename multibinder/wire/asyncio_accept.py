"""Let asyncio's own servers lose no client that they have accepted, and leave listeners that end alone.

What CPython does (Lib/asyncio/selector_events.py and base_events.py, the same in 3.11 to 3.14): when a listener is
readable, the callback ``BaseSelectorEventLoop._accept_connection`` calls ``accept()`` and makes a task of the coroutine
``_accept_connection2`` for each connection. The first step of the task, in the next iteration of the loop, makes the
transport, which attaches the connection to its ``Server``; ``connection_made()`` of the protocol follows in the one
after that. ``Server.close()`` in between drops the connection, because a transport cannot attach to a closed server
(an AssertionError that is shown in debug mode only); and a program that waits for its tasks, or an aiohttp that waits
for its connections, does not know of it yet.

So ``accept()`` of a shared listener, when that callback calls it, sets a task factory for the one task which follows.
The factory makes the task as it would be made anyway, then runs its first step and ``connection_made()`` at once,
out of the queue of the loop. Nothing else is different: the code that runs, its context and its order are asyncio's.
With any other caller, coroutine, loop (uvloop) or structure of the loop, nothing is done, and the loop is as asyncio
made it.

``asyncio`` is not imported here: where nothing has imported it, no loop runs.
"""

from __future__ import annotations

import contextlib
import socket
import sys
from collections import deque
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import TYPE_CHECKING, Any

from multibinder.wire.selecting_callers import is_callback

if TYPE_CHECKING:
    import asyncio
    from asyncio.selector_events import BaseSelectorEventLoop

    _Factory = Callable[..., asyncio.Future[Any]]

#: The number of frames from here to asyncio's callback: our own, and those of subclasses that override accept().
_DEPTH = 10


def attach_at_once(connection: socket.socket) -> None:
    """Make asyncio attach ``connection`` to its server before it goes on, if its callback is what accepts it.

    To be called at the end of ``accept()``.
    """
    loop = _accepting_loop()
    if loop is None:
        return
    previous: Any = loop.get_task_factory()
    if isinstance(previous, _AttachAtOnce):  # not used: an exception came between
        previous = previous.previous
    loop.set_task_factory(_AttachAtOnce(connection, previous))  # type: ignore[arg-type]


def is_accepting() -> bool:
    """Return whether asyncio's callback for a readable listener is what called us."""
    return _accepting_loop() is not None


def stop_watching(listener: socket.socket) -> None:
    """Remove the reader of a listener that accepts no more, if a callback of an event loop is what called us.

    The listener can stay readable, and the loop would call back for ever.
    """
    if is_callback():
        with contextlib.suppress(OSError, ValueError, NotImplementedError, RuntimeError):
            sys.modules["asyncio.events"]._get_running_loop().remove_reader(listener.fileno())


class _AttachAtOnce:
    """A task factory that is used once. It is ``previous`` for everything but asyncio's task for ``connection``."""

    def __init__(self, connection: socket.socket, previous: _Factory | None) -> None:
        self.connection = connection
        self.previous = previous

    def __call__(
        self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **options: Any
    ) -> asyncio.Future[Any]:
        current: Any = loop.get_task_factory()
        if current is self:
            loop.set_task_factory(self.previous)
        queue = getattr(loop, "_ready", None)
        if not isinstance(queue, deque) or not _is_for(coroutine, self.connection):
            queue = deque()
        before = len(queue)
        if self.previous is not None:
            task = self.previous(loop, coroutine, **options)
        else:
            task = sys.modules["asyncio.tasks"].Task(coroutine, loop=loop, **options)
        _run_next(queue, before, lambda call, _: getattr(call, "__self__", None) is task)
        _run_next(queue, before, self._is_connection_made)
        return task

    def _is_connection_made(self, call: Callable[..., Any], arguments: tuple[Any, ...]) -> bool:
        is_named_so = getattr(call, "__name__", "") == "connection_made"
        return is_named_so and bool(arguments) and getattr(arguments[0], "_sock", None) is self.connection


def _accepting_loop() -> BaseSelectorEventLoop | None:
    """Return the loop whose callback for a readable listener has called us; None if another function has."""
    selector_events = sys.modules.get("asyncio.selector_events")
    loop: Any = None if selector_events is None else sys.modules["asyncio.events"]._get_running_loop()
    if selector_events is None or not isinstance(loop, selector_events.BaseSelectorEventLoop):
        return None
    code = getattr(getattr(loop, "_accept_connection", None), "__code__", None)
    frame: FrameType | None = sys._getframe(1)
    for _ in range(_DEPTH):
        if frame is None:
            break
        if frame.f_code is code:
            return loop  # type: ignore[no-any-return]
        frame = frame.f_back
    return None


def _is_for(coroutine: object, connection: socket.socket) -> bool:
    """Return whether this is asyncio's coroutine for a connection. To be called before it runs."""
    frame = getattr(coroutine, "cr_frame", None)
    return (
        frame is not None and frame.f_code.co_name == "_accept_connection2" and frame.f_locals.get("conn") is connection
    )


def _run_next(queue: deque[Any], start: int, is_wanted: Callable[[Callable[..., Any], tuple[Any, ...]], bool]) -> None:
    """Run the first wanted callback of a loop's queue, from ``start`` on, as the loop would, and remove it.

    Other threads can only append to the queue.
    """
    for at in range(start, len(queue)):
        handle = queue[at]
        call, arguments = getattr(handle, "_callback", None), getattr(handle, "_args", None)
        if call is not None and arguments is not None and is_wanted(call, arguments):
            del queue[at]
            handle._run()
            return
