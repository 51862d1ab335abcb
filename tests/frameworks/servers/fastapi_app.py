"""The application of the servers for ASGI."""

import asyncio
import os

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse

app = FastAPI()


@app.get("/", response_class=PlainTextResponse)
async def answer() -> str:
    await asyncio.sleep(0.01)
    return f"{os.getpid()}\n"
