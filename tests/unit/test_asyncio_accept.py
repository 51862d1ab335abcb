"""asyncio's own servers lose no client that they have accepted, and do not spin on a listener that ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import sys
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from types import CoroutineType
from typing import Any

import pytest

from multibinder import ListenerReleased, Options, SharedListener, TcpAddress
from multibinder.wire.kinds.tcp import TCP
from tests.support import PATIENCE_S, descriptors_unchanged

Program = Callable[[], Coroutine[Any, Any, None]]


@pytest.fixture
def binders() -> Iterator[socket.socket]:
    with TCP.open(TcpAddress.of("127.0.0.1", 0), Options()) as sock:
        TCP.make_ready(sock, None)
        sock.setblocking(False)
        yield sock


@pytest.fixture
def ours(binders: socket.socket) -> Iterator[SharedListener]:
    with SharedListener(fileno=os.dup(binders.fileno())) as sock:
        yield sock


@pytest.fixture(params=[False, True], ids=["plain", "debug"])
def debug(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def burst(listener: socket.socket, count: int) -> list[socket.socket]:
    """Return clients that wait, each with a request."""
    clients = []
    for _ in range(count):
        client = socket.create_connection(listener.getsockname(), PATIENCE_S)
        client.sendall(b"x\n")
        clients.append(client)
    return clients


def answers(clients: list[socket.socket]) -> list[bytes]:
    found = []
    for client in clients:
        with client:
            try:
                found.append(client.recv(10) or b"EOF")
            except OSError as error:
                found.append(type(error).__name__.encode())
    return found


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\n")
    writer.write(b"hello")
    await writer.drain()
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


@contextlib.asynccontextmanager
async def complaints() -> AsyncIterator[list[str]]:
    """Collect what the loop has to log."""
    found: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: found.append(f"{context['message']}: {context.get('exception')!r}"))
    yield found
    loop.set_exception_handler(None)


async def close_in_the_turn_that_accepts(server: asyncio.Server, clients: list[socket.socket]) -> None:
    """Return after the turn of the loop that accepts ``clients``, in which the server is closed after that."""
    loop = asyncio.get_running_loop()
    closed = asyncio.Event()

    def close() -> None:
        server.close()
        closed.set()

    # The loop calls back in the order of registration: the listener first, then this one.
    readable, writable = os.pipe()
    loop.add_reader(readable, close)
    os.write(writable, b".")
    await closed.wait()
    loop.remove_reader(readable)
    os.close(readable)
    os.close(writable)


def test_a_server_that_is_closed_in_the_turn_in_which_it_accepts_drops_no_client(
    ours: SharedListener, debug: bool
) -> None:
    async def program() -> list[bytes]:
        async with complaints() as found:
            server = await asyncio.start_server(answer, sock=ours)
            await asyncio.sleep(0)
            clients = burst(ours, 5)
            await close_in_the_turn_that_accepts(server, clients)
            result = await asyncio.to_thread(answers, clients)
            assert found == []
            return result

    assert asyncio.run(program(), debug=debug) == [b"hello"] * 5


def test_a_server_that_ends_its_loop_after_its_tasks_has_served_whom_it_accepted(
    ours: SharedListener, debug: bool
) -> None:
    """The task of each client exists when accept() is through, so that a program can wait for it."""

    async def program() -> list[socket.socket]:
        server = await asyncio.start_server(answer, sock=ours)
        await asyncio.sleep(0)
        clients = burst(ours, 5)
        await close_in_the_turn_that_accepts(server, clients)
        me = asyncio.current_task()
        await asyncio.gather(*(task for task in asyncio.all_tasks() if task is not me))
        return clients

    assert answers(asyncio.run(program(), debug=debug)) == [b"hello"] * 5


def test_the_loop_is_as_before_when_a_client_was_accepted(ours: SharedListener, debug: bool) -> None:
    async def program() -> None:
        loop = asyncio.get_running_loop()
        async with await asyncio.start_server(answer, sock=ours):
            clients = burst(ours, 3)
            assert await asyncio.to_thread(answers, clients) == [b"hello"] * 3
            assert loop.get_task_factory() is None

    asyncio.run(program(), debug=debug)


def test_a_task_factory_of_the_user_makes_every_task(ours: SharedListener, debug: bool) -> None:
    async def program() -> None:
        made: list[str] = []

        def factory(
            loop: asyncio.AbstractEventLoop, coroutine: CoroutineType[Any, Any, Any], **options: Any
        ) -> asyncio.Task[Any]:
            made.append(coroutine.cr_code.co_name)
            return asyncio.Task(coroutine, loop=loop, **options)

        loop = asyncio.get_running_loop()
        loop.set_task_factory(factory)  # type: ignore[arg-type]
        server = await asyncio.start_server(answer, sock=ours)
        await asyncio.sleep(0)
        clients = burst(ours, 3)
        await close_in_the_turn_that_accepts(server, clients)
        assert await asyncio.to_thread(answers, clients) == [b"hello"] * 3
        assert made.count("_accept_connection2") == 3
        assert made.count("answer") == 3
        assert loop.get_task_factory() is factory

    asyncio.run(program(), debug=debug)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
def test_eager_tasks_of_the_user_lose_no_client_either(ours: SharedListener, debug: bool) -> None:
    async def program() -> None:
        loop = asyncio.get_running_loop()
        factory: Any = vars(asyncio)["eager_task_factory"]
        loop.set_task_factory(factory)
        server = await asyncio.start_server(answer, sock=ours)
        await asyncio.sleep(0)
        clients = burst(ours, 5)
        await close_in_the_turn_that_accepts(server, clients)
        assert await asyncio.to_thread(answers, clients) == [b"hello"] * 5
        assert loop.get_task_factory() is factory

    asyncio.run(program(), debug=debug)


def test_the_protocol_sees_the_task_and_the_context_that_it_always_saw(ours: SharedListener) -> None:
    async def program() -> None:
        seen = []

        class Telling(asyncio.Protocol):
            def __init__(self) -> None:
                seen.append(("made", asyncio.current_task()))

            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                seen.append(("connected", asyncio.current_task()))
                transport.close()

        server = await asyncio.get_running_loop().create_server(Telling, sock=ours)
        with socket.create_connection(ours.getsockname(), PATIENCE_S) as client:
            await asyncio.to_thread(client.recv, 1)
        server.close()
        assert [what for what, _ in seen] == ["made", "connected"]
        assert isinstance(seen[0][1], asyncio.Task)
        assert seen[1][1] is None

    asyncio.run(program())


def test_a_server_that_closes_itself_at_its_first_client_serves_it_and_is_quiet(ours: SharedListener) -> None:
    async def program() -> None:
        async with complaints() as found:
            server: asyncio.Server

            class First(asyncio.Protocol):
                def connection_made(self, transport: asyncio.BaseTransport) -> None:
                    server.close()
                    assert isinstance(transport, asyncio.WriteTransport)
                    transport.write(b"hello")
                    transport.close()

            server = await asyncio.get_running_loop().create_server(First, sock=ours.dup())
            await asyncio.sleep(0)
            first, second = burst(ours, 2)
            assert await asyncio.to_thread(answers, [first]) == [b"hello"]
            assert found == []
            ours.setblocking(False)
            ours.accept()[0].close()  # the second one is in the queue
            second.close()

    asyncio.run(program())


def test_a_protocol_that_fails_at_once_is_reported_as_ever(ours: SharedListener) -> None:
    async def program() -> None:
        async with complaints() as found:

            class Failing(asyncio.Protocol):
                def connection_made(self, transport: asyncio.BaseTransport) -> None:
                    raise LookupError("no")

            async with await asyncio.get_running_loop().create_server(Failing, sock=ours):
                [client] = burst(ours, 1)
                while not found:
                    await asyncio.sleep(0)
                client.close()
            assert len(found) == 1
            assert "LookupError" in found[0]

    asyncio.run(program())


def test_an_accept_in_a_callback_of_the_user_is_an_ordinary_one(ours: SharedListener) -> None:
    async def program() -> None:
        loop = asyncio.get_running_loop()
        ours.setblocking(False)
        accepted: list[socket.socket] = []

        def accept() -> None:
            accepted.append(ours.accept()[0])
            assert loop.get_task_factory() is None

        loop.add_reader(ours, accept)
        clients = burst(ours, 1)
        while not accepted:
            await asyncio.sleep(0)
        loop.remove_reader(ours)
        clients += burst(ours, 1)
        accepted.append((await loop.sock_accept(ours))[0])
        assert loop.get_task_factory() is None
        for each in (*accepted, *clients):
            each.close()

    asyncio.run(program())


async def turns_of_the_loop() -> int:
    """Return how often the loop turns in 0.1 s."""
    count = 0
    loop = asyncio.get_running_loop()
    original = loop._selector.select  # type: ignore[attr-defined]

    def select(timeout: float | None) -> object:
        nonlocal count
        count += 1
        return original(timeout)

    loop._selector.select = select  # type: ignore[attr-defined]
    await asyncio.sleep(0.1)
    loop._selector.select = original  # type: ignore[attr-defined]
    return count


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (lambda ours: ours.pause(), 0),
        (lambda ours: ours.shutdown(socket.SHUT_RDWR), 1),
    ],
    ids=["pause", "shutdown"],
)
def test_a_server_whose_listener_ends_is_idle_while_clients_wait(
    ours: SharedListener, end: Callable[[SharedListener], None], said: int
) -> None:
    async def program() -> None:
        async with complaints() as found, await asyncio.start_server(answer, sock=ours):
            end(ours)
            clients = burst(ours, 2)
            await asyncio.sleep(0.01)
            assert await turns_of_the_loop() < 20
            assert len(found) == said
            for client in clients:
                client.close()

    asyncio.run(program())


def test_a_server_whose_listener_is_released_by_an_old_binder_says_so_once_and_is_idle(
    binders: socket.socket, ours: SharedListener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("multibinder.wire.local_acceptors.REPAIR_PATIENCE_S", 0.05)

    async def program() -> None:
        async with complaints() as found, await asyncio.start_server(answer, sock=ours):
            binders.shutdown(socket.SHUT_RDWR)
            while not found:
                await asyncio.sleep(0)
            assert await turns_of_the_loop() < 20
            assert len(found) == 1
            assert ListenerReleased.__name__ in found[0]

    asyncio.run(program())


def test_a_server_whose_listener_is_released_is_idle(binders: socket.socket, ours: SharedListener) -> None:
    async def program() -> None:
        async with complaints() as found, await asyncio.start_server(answer, sock=ours):
            await asyncio.sleep(0)
            TCP.retire(binders)
            await asyncio.sleep(0.01)
            assert await turns_of_the_loop() < 20
            assert len(found) <= 1
            assert ours.released

    asyncio.run(program())


def test_an_event_loop_is_told_of_the_release_by_a_listener_that_becomes_writable(
    binders: socket.socket, ours: SharedListener
) -> None:
    async def program() -> None:
        loop = asyncio.get_running_loop()
        told = asyncio.Event()
        loop.add_writer(ours, told.set)
        clients = burst(ours, 1)
        await asyncio.sleep(0.05)
        assert not told.is_set()
        TCP.retire(binders)
        await asyncio.wait_for(told.wait(), PATIENCE_S)
        loop.remove_writer(ours)
        assert ours.released
        for client in clients:
            client.close()

    asyncio.run(program())


def test_nothing_keeps_a_connection_alive_that_is_over(ours: SharedListener) -> None:
    async def program() -> list[weakref.ref[socket.socket]]:
        accepted: list[weakref.ref[socket.socket]] = []

        class Telling(SharedListener):
            def accept(self) -> Any:
                result = super().accept()
                accepted.append(weakref.ref(result[0]))
                return result

        async with await asyncio.start_server(answer, sock=Telling(fileno=os.dup(ours.fileno()))):
            assert await asyncio.to_thread(answers, burst(ours, 3)) == [b"hello"] * 3
        return accepted

    with descriptors_unchanged():
        accepted = asyncio.run(program())
        gc.collect()
        assert [each() for each in accepted] == [None] * 3
