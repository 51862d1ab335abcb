"""aiohttp on the listener that it inherits (LISTEN_FDS, sd_listen_fds(3))."""

import asyncio
import os
import signal
import socket

from aiohttp import web

if os.environ.get("LISTEN_PID") != str(os.getpid()):
    raise SystemExit("start me with: multibinder exec -b 127.0.0.1:8000 -- python server.py")
listener = socket.socket(fileno=3)


async def answer(_: web.Request) -> web.Response:
    return web.Response(text=f"{os.getpid()}\n")


async def stop_in_two_steps(_: web.Application) -> None:
    """Accept no more clients at SIGTERM, and let those that were accepted send their requests before the rest."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        loop.remove_reader(listener)
        loop.call_later(0.1, signal.raise_signal, signal.SIGINT)  # aiohttp's own stop

    loop.add_signal_handler(signal.SIGTERM, stop)


app = web.Application()
app.add_routes([web.get("/", answer)])
app.on_startup.append(stop_in_two_steps)
# aiohttp calls listen() with the backlog, 128 by default, for every process that has the listener.
web.run_app(app, sock=listener, backlog=4096)
