"""An asyncio server on the listener that it inherits (LISTEN_FDS, sd_listen_fds(3))."""

import asyncio
import os
import signal
import socket

clients: set[asyncio.Task[None]] = set()


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.0 200 OK\r\n\r\n%d\n" % os.getpid())
    await writer.drain()
    writer.close()


def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    task = asyncio.ensure_future(answer(reader, writer))
    clients.add(task)
    task.add_done_callback(clients.discard)


async def main() -> None:
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        raise SystemExit("start me with: multibinder exec -b 127.0.0.1:8000 -- python3 server.py")
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    listener = socket.socket(fileno=3)
    # start_server() calls listen() with the backlog, 100 by default, for every process that has the listener.
    server = await asyncio.start_server(connected, sock=listener, backlog=4096)
    print("ready", flush=True)
    await stop.wait()
    # close() drops clients that asyncio has accepted in the same moment. Accept no more, and close a moment later.
    loop.remove_reader(listener)
    await asyncio.sleep(0.1)
    server.close()
    while clients:
        await asyncio.wait(clients)


asyncio.run(main())
