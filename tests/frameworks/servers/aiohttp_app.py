"""aiohttp: web.run_app() handles SIGTERM, and waits for the requests that it has begun to read."""

import asyncio
import os
import signal
import sys

from aiohttp import web

import multibinder

listener = multibinder.bind("127.0.0.1", int(sys.argv[1]))


async def answer(_: web.Request) -> web.Response:
    await asyncio.sleep(0.01)
    return web.Response(text=f"{os.getpid()}\n")


async def stop_in_two_steps(_: web.Application) -> None:
    """Accept no more clients at SIGTERM, and let those that were accepted send their requests before the rest."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        loop.remove_reader(listener)
        loop.call_later(0.1, signal.raise_signal, signal.SIGINT)

    loop.add_signal_handler(signal.SIGTERM, stop)


app = web.Application()
app.add_routes([web.get("/", answer)])
if sys.argv[2:] != ["as-it-is"]:
    app.on_startup.append(stop_in_two_steps)
web.run_app(app, sock=listener)
