"""Make the TLS listener that ``ssl.SSLContext.wrap_socket`` makes of a shared listener a shared one too.

``SSLSocket._create`` (Lib/ssl.py of CPython 3.11 to 3.14) makes a socket on the same descriptor, calls ``detach()`` of
the original, and then ``setblocking()`` and ``settimeout()`` of the new one, which clear O_NONBLOCK for every holder of
the listener. So at ``detach()`` the new socket gets a class that has the methods of the shared listener. Its
``accept()`` is that of SSLSocket, which calls that of the shared listener.

The ssl module is not imported here: where nothing has imported it, nothing wraps a socket.
"""

from __future__ import annotations

import contextlib
import functools
import socket
import sys
from typing import Any


def tls_socket_in_the_making(listener: socket.socket) -> socket.socket | None:
    """Return the SSLSocket that calls ``detach()`` of ``listener`` to take over its descriptor; None if there is none.

    To be called from ``detach()``.
    """
    ssl = sys.modules.get("ssl")
    frame = sys._getframe(1)
    for _ in range(4):  # detach() of subclasses may be between
        if ssl is None or frame.f_back is None:
            return None
        frame = frame.f_back
        if frame.f_code.co_name == "_create":
            made: socket.socket | None = frame.f_locals.get("self")
            if isinstance(made, ssl.SSLSocket) and made is not listener and made.fileno() == listener.fileno():
                return made  # type: ignore[no-any-return]
    return None


def become_shared(made: socket.socket, shared: Any, local: object) -> None:
    """Give an SSLSocket the methods of ``shared``, and what it needs to know of its local acceptors.

    A class of the user's (``SSLContext.sslsocket_class``) that cannot be combined with ``shared`` stays as it is: then
    the socket is what it would be without this module.
    """
    tls: Any = type(made)
    with contextlib.suppress(TypeError):
        made.__class__ = _combined(tls, shared)
        vars(made)["_local"] = local


@functools.cache
def _combined(tls: Any, shared: Any) -> Any:
    return type(f"Shared{tls.__name__}", (tls, shared), {"__module__": shared.__module__, "__reduce_ex__": _refuse})


def _refuse(self: socket.socket, _: object) -> str:
    raise TypeError(f"cannot pickle {type(self).__name__!r} object: pickle the listener, and wrap it in the child")
