"""An asyncio HTTP server that loses no request if its new copy starts before its old one stops. See README.md."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import sys

import multibinder

#: The time that a client has to send its request.
REQUEST_TIMEOUT_S = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--host", default="127.0.0.1", help="numeric (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8080, help="(default: %(default)s)")
    parser.add_argument("--version-text", default="1", help="text of the answer, after the PID (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        listener = multibinder.bind(arguments.host, arguments.port, owner="http")
    except multibinder.MultibinderError as error:
        sys.exit(f"http_server: {error}")
    asyncio.run(serve(listener, f"pid {os.getpid()} version {arguments.version_text}"))


async def serve(listener: socket.socket, text: str) -> None:
    """Answer until SIGTERM or SIGINT, then finish the requests that are open."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    clients: set[asyncio.Task[None]] = set()

    def accept() -> None:
        try:
            client, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # another copy accepted the client, or the client went away
        task = loop.create_task(answer(client, text))
        clients.add(task)
        task.add_done_callback(clients.discard)

    # asyncio.start_server() is no choice: it calls listen(), which changes the queue limit for every holder, and its
    # close() can drop a client that it has just accepted.
    listener.setblocking(False)
    loop.add_reader(listener, accept)
    host, port = listener.getsockname()[:2]
    print(f"ready: {text} on {host}:{port}", flush=True)
    await stop.wait()
    # The binder keeps the port open. New clients go to another copy, or wait for the next one.
    loop.remove_reader(listener)
    listener.close()
    print(f"stopping: {text} has {len(clients)} requests to finish", flush=True)
    await asyncio.gather(*clients)


async def answer(client: socket.socket, text: str) -> None:
    """Read one request, and send one response."""
    reader, writer = await asyncio.open_connection(sock=client)
    try:
        async with asyncio.timeout(REQUEST_TIMEOUT_S):
            head = await reader.readuntil(b"\r\n\r\n")
        status = "200 OK" if head.startswith(b"GET ") else "405 Method Not Allowed\r\nAllow: GET"
        fields = f"Content-Type: text/plain\r\nContent-Length: {len(text.encode()) + 1}\r\nConnection: close"
        writer.write(f"HTTP/1.1 {status}\r\n{fields}\r\n\r\n{text}\n".encode())
        await writer.drain()
    except (ConnectionError, EOFError, TimeoutError, asyncio.LimitOverrunError):
        pass  # the client went away, or sent no request
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


if __name__ == "__main__":
    main()
