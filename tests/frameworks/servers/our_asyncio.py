"""multibinder.asyncio, on asyncio's loop or on uvloop's."""

import asyncio
import os
import sys

import multibinder.asyncio


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    await asyncio.sleep(0.01)
    writer.write(b"HTTP/1.0 200 OK\r\n\r\n%d\n" % os.getpid())


async def main() -> None:
    server = await multibinder.asyncio.start_server(answer, multibinder.bind("127.0.0.1", int(sys.argv[1])))
    print("ready", flush=True)
    await server.serve_forever()


if sys.argv[2:] == ["uvloop"]:
    import uvloop

    uvloop.run(main())
else:
    asyncio.run(main())
