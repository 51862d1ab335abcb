"""Serve asyncio streams on listeners of the binder, and stop without losing a client.

    import asyncio, multibinder.asyncio

    async def answer(reader, writer):
        await reader.readuntil(b"\\r\\n\\r\\n")
        writer.write(b"HTTP/1.0 200 OK\\r\\n\\r\\nhello\\n")

    async def main():
        listener = multibinder.bind("127.0.0.1", 8000, owner="hello")
        server = await multibinder.asyncio.start_server(answer, listener, drain=30)
        await server.serve_forever()

    asyncio.run(main())

At SIGTERM the server accepts no more, finishes the clients that it has, and returns. Clients that wait are left to
another copy, or to the next one. It works on asyncio's event loops and on uvloop's.
"""

from __future__ import annotations

import ssl as tls
from collections.abc import Iterable
from socket import socket

from multibinder.asyncio.server import Handler, Server
from multibinder.wire.arguments import drain_s
from multibinder.wire.errors import ArgumentError
from multibinder.wire.served_listeners import listeners_of

__all__ = ["Handler", "Server", "start_server"]


async def start_server(
    client_connected_cb: Handler,
    listeners: socket | Iterable[socket],
    *,
    drain: float = 30.0,
    limit: int = 2**16,
    ssl: tls.SSLContext | None = None,
    ssl_handshake_timeout: float | None = None,
    ssl_shutdown_timeout: float | None = None,
) -> Server:
    """Start a server on one listener, or on several, and return it; it accepts from now on.

    ``client_connected_cb(reader, writer)`` is called for each client, as in ``asyncio.start_server``. If it is a
    coroutine function, the connection is closed when it returns; what was written is sent first. An exception is
    reported as asyncio does it. ``drain`` is how many seconds the clients that were accepted have to finish once the
    server stops; ``limit`` is the limit of each reader's buffer, in bytes. ``ssl`` and its two timeouts, in seconds,
    are those of ``asyncio.start_server``.

    The server takes the listeners: it sets them non-blocking, and closes them when it stops. They stay open in the
    binder. If the binder releases a listener, the server logs it and leaves it; without a listener, it stops.

    Raises ArgumentError; the listeners are the caller's then.
    """
    drain_seconds = drain_s(drain)
    if ssl is None and (ssl_handshake_timeout is not None or ssl_shutdown_timeout is not None):
        raise ArgumentError("ssl_handshake_timeout and ssl_shutdown_timeout have a meaning only with ssl")
    options = {"ssl": ssl, "ssl_handshake_timeout": ssl_handshake_timeout, "ssl_shutdown_timeout": ssl_shutdown_timeout}
    return Server(
        client_connected_cb,
        listeners_of(listeners),
        drain=drain_seconds,
        limit=limit,
        tls_options={} if ssl is None else options,
    )
