"""asyncio's own server, on its own loop or on uvloop's."""

import asyncio
import os
import signal
import sys

import multibinder

clients: set[asyncio.Task[None]] = set()


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    await asyncio.sleep(0.01)
    writer.write(b"HTTP/1.0 200 OK\r\n\r\n%d\n" % os.getpid())
    await writer.drain()
    writer.close()


async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    task = asyncio.current_task()
    assert task is not None
    clients.add(task)
    try:
        await answer(reader, writer)
    finally:
        clients.discard(task)


async def main() -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    server = await asyncio.start_server(client, sock=multibinder.bind("127.0.0.1", int(sys.argv[1])))
    print("ready", flush=True)
    await stop.wait()
    server.close()
    await server.wait_closed()
    while clients:
        await asyncio.wait(clients)


if sys.argv[2:] == ["uvloop"]:
    import uvloop

    uvloop.run(main())
else:
    asyncio.run(main())
