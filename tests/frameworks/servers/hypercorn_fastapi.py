"""Hypercorn with FastAPI."""

import asyncio
import signal
import sys

from fastapi_app import app
from hypercorn.asyncio import serve
from hypercorn.config import Config

import multibinder

listener = multibinder.bind("127.0.0.1", int(sys.argv[1])).detach()
config = Config()
config.bind = [f"fd://{listener}"]


async def main() -> None:
    loop = asyncio.get_running_loop()
    sigterm = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, sigterm.set)

    async def stop() -> None:
        await sigterm.wait()
        loop.remove_reader(listener)
        await asyncio.sleep(0.1)

    await serve(app, config, shutdown_trigger=stop)


if sys.argv[2:] == ["as-it-is"]:
    asyncio.run(serve(app, config))
else:
    config.backlog = 4096  # Hypercorn calls listen(), which sets the length of the queue for every holder
    asyncio.run(main())
