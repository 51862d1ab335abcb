"""TLS for a check. The certificate is not verified: the copy is known by its processes, and it may be for any name."""

from __future__ import annotations

import contextlib
import ssl

from multibinder.launch.run.readiness.stream import Plain

_SIZE = 4096


class Tls:
    """A TLS connection over another one. ``hello`` is what the client sends first."""

    def __init__(self, server_name: str | None) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_name)
        self._below: Plain | None = None
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.do_handshake()
        self.hello = self._outgoing.read()

    async def begin(self, below: Plain, sent: int) -> None:
        """Do the handshake over ``below``, to which the first ``sent`` bytes of ``hello`` were sent before."""
        self._below = below
        await below.send(self.hello[sent:])
        while True:
            try:
                self._tls.do_handshake()
                await self._flush()
                return
            except ssl.SSLWantReadError:
                await self._flush()
                await self._read_below()

    async def send(self, content: bytes) -> None:
        self._tls.write(content)
        await self._flush()

    async def receive(self) -> bytes:
        while True:
            try:
                return self._tls.read(_SIZE)
            except ssl.SSLWantReadError:
                await self._flush()
                await self._read_below()
            except ssl.SSLZeroReturnError:
                return b""

    async def _flush(self) -> None:
        if self._below is not None and (content := self._outgoing.read()):
            await self._below.send(content)

    async def _read_below(self) -> None:
        content = await self._below.receive() if self._below is not None else b""
        if not content:
            raise ConnectionResetError("the connection ended")
        self._incoming.write(content)
