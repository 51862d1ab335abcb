"""Hypercorn with an end that loses no client: its command closes clients whose request it has not read yet."""

import asyncio
import signal
import sys

from app import app
from hypercorn.asyncio import serve
from hypercorn.config import Config

listener = int(sys.argv[1])
config = Config()
config.bind = [f"fd://{listener}"]
config.backlog = 4096  # Hypercorn calls listen(), with 100, for every process that has the listener


async def main() -> None:
    loop = asyncio.get_running_loop()
    sigterm = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, sigterm.set)

    async def stop() -> None:
        await sigterm.wait()
        loop.remove_reader(listener)  # accept no more clients
        await asyncio.sleep(0.1)  # those that were accepted send their requests

    await serve(app, config, shutdown_trigger=stop)


asyncio.run(main())
