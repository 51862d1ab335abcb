"""A server of multibinder.asyncio or multibinder.threading that goes for good takes its port with it."""

from __future__ import annotations

import asyncio
import contextlib
import socketserver
import threading
from collections.abc import Iterator

import pytest

import multibinder.asyncio
import multibinder.threading
from tests.support import PATIENCE_S, Binder, can_connect

Address = tuple[str, int]


@pytest.fixture
def address(host: str) -> Address:
    return host, 8000


@pytest.fixture(autouse=True)
def asks_this_binder(binder: Binder, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MULTIBINDER_SOCK", str(binder.socket_path))
    yield
    assert "Traceback" not in binder.log()


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"answer to " + await reader.readline())


async def ask(address: Address) -> bytes:
    reader, writer = await asyncio.open_connection(*address)
    writer.write(b"x\n")
    with contextlib.closing(writer):
        return await reader.read()


async def start(address: Address, owner: str = "hello") -> multibinder.asyncio.Server:
    listener = await asyncio.to_thread(multibinder.bind, address[0], address[1], owner=owner)
    return await multibinder.asyncio.start_server(answer, listener, drain=PATIENCE_S)


def test_retire_serves_the_clients_that_wait_and_closes_the_port(
    address: Address, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        one, two = await start(address), await start(address)
        clients = [asyncio.create_task(ask(address)) for _ in range(20)]
        await asyncio.wait(clients, return_when=asyncio.FIRST_COMPLETED)
        [released] = await one.retire(owner="hello")
        assert (released.outcome, released.reset) == ("closed", 0)
        assert not can_connect(address)
        # The other copy stops by itself.
        await asyncio.wait_for(two.wait_closed(), PATIENCE_S)
        assert await asyncio.gather(*clients) == [b"answer to x\n"] * 20

    asyncio.run(main())
    assert [line for line in caplog.messages if "released" in line] == [caplog.messages[-1]]


def test_a_server_whose_owner_label_is_wrong_goes_on(address: Address) -> None:
    async def main() -> None:
        async with await start(address) as server:
            with pytest.raises(ValueError, match="owner 'helo' has no claim, but hello has"):
                await server.retire(owner="helo")
            assert server.is_serving()
            assert await ask(address) == b"answer to x\n"

    asyncio.run(main())


def test_a_server_that_cannot_ask_the_binder_goes_on(address: Address, binder: Binder) -> None:
    async def main() -> None:
        async with await start(address) as server:
            assert binder.stop() == 0
            with pytest.raises(multibinder.BinderUnavailable):
                await server.retire(owner="hello")
            assert await ask(address) == b"answer to x\n"

    asyncio.run(main())


def test_a_server_without_a_binder_only_closes(address: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.delenv("MULTIBINDER_SOCK")
        with pytest.warns(RuntimeWarning, match="is not set"):
            listener = multibinder.bind(*address, fallback=True)
        server = await multibinder.asyncio.start_server(answer, listener)
        assert await ask(address) == b"answer to x\n"
        assert await server.retire(owner="hello") == []
        assert not can_connect(address)

    asyncio.run(main())


class Answer(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.wfile.write(b"answer to " + self.rfile.readline())


def test_a_server_with_threads_retires_too(address: Address, caplog: pytest.LogCaptureFixture) -> None:
    with multibinder.threading.Server(multibinder.bind(*address, owner="hello"), Answer) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        assert asyncio.run(ask(address)) == b"answer to x\n"
        with pytest.raises(ValueError, match="owner 'helo' has no claim"):
            server.retire(owner="helo")
        assert asyncio.run(ask(address)) == b"answer to x\n"
        [released] = server.retire(owner="hello")
        serving.join(PATIENCE_S)
    assert released.outcome == "closed"
    assert not can_connect(address)
    assert [line for line in caplog.messages if "released" in line] == []
