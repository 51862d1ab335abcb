"""Tornado: close_all_connections() closes the connections of requests too, so the requests get time before."""

import asyncio
import os
import signal
import sys

import tornado.httpserver
import tornado.web

import multibinder


class Answer(tornado.web.RequestHandler):
    async def get(self) -> None:
        await asyncio.sleep(0.01)
        self.write(f"{os.getpid()}\n")


async def main() -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    server = tornado.httpserver.HTTPServer(tornado.web.Application([("/", Answer)]))
    server.add_sockets([multibinder.bind("127.0.0.1", int(sys.argv[1]), blocking=False)])
    print("ready", flush=True)
    await stop.wait()
    server.stop()
    if sys.argv[2:] != ["as-it-is"]:
        await asyncio.sleep(0.5)  # longer than any request takes
    await server.close_all_connections()


asyncio.run(main())
