"""An asyncio HTTP server that restarts without losing a request. See README.md."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys

import multibinder
import multibinder.asyncio

#: The time that a client has to send its request.
REQUEST_TIMEOUT_S = 10


async def serve(host: str, port: int, text: str, drain: float) -> None:
    """Answer until SIGTERM or SIGINT, then finish the requests that are open."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
        except (OSError, EOFError, asyncio.LimitOverrunError):
            return  # the client went away, or sent no request
        status = "200 OK" if head.startswith(b"GET ") else "405 Method Not Allowed\r\nAllow: GET"
        fields = f"Content-Type: text/plain\r\nContent-Length: {len(text.encode()) + 1}\r\nConnection: close"
        writer.write(f"HTTP/1.1 {status}\r\n{fields}\r\n\r\n{text}\n".encode())

    listener = multibinder.bind(host, port, owner="http")
    server = await multibinder.asyncio.start_server(answer, listener, drain=drain)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--host", default="127.0.0.1", help="numeric (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8080, help="(default: %(default)s)")
    parser.add_argument("--drain", type=float, default=30, help="seconds for clients at a stop (default: %(default)s)")
    parser.add_argument("--version-text", default="1", help="text of the answer, after the PID (default: %(default)s)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    text = f"pid {os.getpid()} version {arguments.version_text}"
    try:
        asyncio.run(serve(arguments.host, arguments.port, text, arguments.drain))
    except multibinder.MultibinderError as error:
        sys.exit(f"http_server: {error}")


if __name__ == "__main__":
    main()
