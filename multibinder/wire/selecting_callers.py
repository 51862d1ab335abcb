"""Recognize callers of ``accept()`` that have selected first, and rely on it that ``accept()`` does not wait then.

If no other process has the listener, it does not. If another copy has taken the client in between, ``accept()`` in
blocking mode would wait for the next client, and the server meanwhile serves nobody and does not stop. Such callers
treat an error as "no client":

* ``get_request()`` of a server of ``socketserver`` (so also of http.server, wsgiref and xmlrpc.server). It is called by
  ``BaseServer._handle_request_noblock``, whose docstring says so, and which returns at each OSError;
* a callback of an event loop in asyncio's sense, such as Tornado's. A task may wait: it has asked for it.
"""

from __future__ import annotations

import sys
from types import FrameType

#: The number of frames from here to the caller: our own, and those of subclasses that override accept().
_DEPTH = 10


def has_selected() -> bool:
    """Return whether one of the callers of accept(), which calls this function, has selected first."""
    return is_callback() or is_get_request()


def is_callback() -> bool:
    """Return whether an event loop runs in this thread, and no task of it: then a callback of the loop runs."""
    events, tasks = sys.modules.get("asyncio.events"), sys.modules.get("asyncio.tasks")
    loop = None if events is None else events._get_running_loop()
    return loop is not None and tasks is not None and tasks.current_task(loop) is None


def is_get_request() -> bool:
    """Return whether a server of ``socketserver`` calls accept(), which calls this function."""
    server = getattr(sys.modules.get("socketserver"), "BaseServer", None)
    code = getattr(getattr(server, "_handle_request_noblock", None), "__code__", None)
    frame: FrameType | None = sys._getframe(1)
    for _ in range(_DEPTH):
        if frame is None or frame.f_back is None or code is None:
            break
        if frame.f_back.f_code is code:
            # A handler of a server without threads is called by it, too, and may accept on another listener.
            return frame.f_code.co_name == "get_request"
        frame = frame.f_back
    return False
