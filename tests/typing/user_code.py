"""Code as a user writes it. mypy ('make lint') and pyright ('make pyright') check it; no test executes it."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import os
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import assert_type

import multibinder
import multibinder.asyncio
import multibinder.threading
from multibinder import (
    Address,
    BindError,
    BinderStatus,
    Client,
    DatagramListener,
    ListenerHealth,
    ListenerReleased,
    ListenerSpec,
    ListenerStatus,
    LocalProtocolError,
    MultibinderError,
    Options,
    PeerAddress,
    Released,
    SharedListener,
    TcpAddress,
)
from multibinder.pytest_plugin import RunningBinder


def serve() -> None:
    listener = multibinder.bind("127.0.0.1", 8000, owner="web", backlog=1000, wait=30, timeout=None)
    assert_type(listener, SharedListener)
    connection, peer = listener.accept()
    assert_type(connection, socket.socket)
    assert_type(peer, PeerAddress)
    assert_type(peer[0], str)
    host, port = peer[:2]
    assert_type(host, str)
    assert_type(port, int)
    with listener, connection:
        threading.Thread(target=listener.close).start()
    assert_type(listener.gettimeout(), float | None)
    plain: socket.socket = listener  # it is a socket wherever one is expected
    plain.fileno()


def serve_other_kinds() -> None:
    assert_type(multibinder.bind("[::]:443", backlog=1000, owner="web"), SharedListener)
    assert_type(multibinder.bind("unix@/run/app.sock", mode=0o660, user="www-data", group=33), SharedListener)
    assert_type(multibinder.bind(Address.parse("127.0.0.1:80"), netns="blue"), SharedListener)
    assert_type(multibinder.bind("0.0.0.0", 443, shards=4), list[SharedListener])
    assert_type(multibinder.bind("0.0.0.0:443", shards="cpus", fastopen=256), list[SharedListener])
    assert_type(multibinder.bind_many(["127.0.0.1:8000-8009,udp@127.0.0.1:53"], shards=2), list[SharedListener])
    assert_type(multibinder.release("127.0.0.1:80", netns="blue"), Released)
    datagrams = multibinder.bind("udp@127.0.0.1:53", rcvbuf=4 << 20)
    assert isinstance(datagrams, DatagramListener)
    data, peer = datagrams.recvfrom(4096)
    assert_type(data, bytes)
    datagrams.sendto(data, peer)


def serve_several(configured: Sequence[tuple[str, int]]) -> list[SharedListener]:
    listeners = multibinder.bind_many(configured, owner="web", inheritable=True, blocking=False)
    assert_type(listeners, list[SharedListener])
    spec = ListenerSpec(TcpAddress.parse("[::]:443"), Options(v6only=True, name="https"))
    more = multibinder.bind_many([("127.0.0.1", 80), TcpAddress.of("::1", 80), spec], fallback=True)
    assert_type(more, list[SharedListener])
    return [*listeners, *more, *multibinder.bind_many(from_a_generator(), socket_path=Path("/run/mb.sock"))]


def from_a_generator() -> Iterator[multibinder.BindTarget]:
    yield "127.0.0.1", 8001
    yield Address.parse("tcp@127.0.0.1:8002")


def reload(configured: list[tuple[str, int]]) -> None:
    listeners = multibinder.sync("web", configured, drain=5)
    assert_type(listeners, list[SharedListener])
    released = multibinder.release(listeners[0], owner="web", drain=2.5)
    assert_type(released, Released)
    assert_type(released.outcome, str)
    assert_type(released.had_claim, bool)
    assert_type(released.reset, int)
    multibinder.release(("127.0.0.1", 8000))
    multibinder.release(TcpAddress.of("127.0.0.1", 8000))


def look() -> None:
    with Client(timeout=3, wait=1.5) as binder:
        assert_type(binder, Client)
        listeners = binder.list()
        assert_type(listeners, list[ListenerStatus])
        status = binder.status(fresh=False)
        assert_type(status, BinderStatus)
        assert_type(status.listeners, list[ListenerHealth])
        assert_type(binder.bind([("127.0.0.1", 8000)]), list[SharedListener])
        assert_type(binder.sync("web", [("127.0.0.1", 8000)]), list[SharedListener])
        assert_type(binder.release(listeners), list[Released])
        assert_type(binder.release(status.listeners), list[Released])
        assert_type(binder.hello().pid, int)
        assert_type(binder.timeout, float)
        assert_type(listeners[0].owners, list[str])
        assert_type(os.fspath(binder.socket_path), str)


def what_can_fail() -> None:
    try:
        multibinder.bind("127.0.0.1", 8000)
    except BindError as error:
        assert_type(error.errno, int | None)
        assert_type(error.listener, str | None)
        assert_type(error.owners, Sequence[str])
        assert_type(error.v6only, bool | None)
    except (LocalProtocolError, MultibinderError) as error:
        print(error)


def until_it_is_released(listener: SharedListener) -> None:
    with contextlib.suppress(ListenerReleased):
        while True:
            with listener.accept()[0] as connection:
                connection.sendall(b"hello\n")


def with_tls(listener: SharedListener, context: ssl.SSLContext) -> ssl.SSLSocket:
    return context.wrap_socket(listener, server_side=True)


async def with_asyncio(listener: SharedListener) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        writer.close()

    async with await asyncio.start_server(answer, sock=listener) as server:
        await server.serve_forever()


async def with_our_asyncio(listener: SharedListener, context: ssl.SSLContext) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())

    async with await multibinder.asyncio.start_server(answer, [listener], drain=5, ssl=context) as server:
        assert_type(server, multibinder.asyncio.Server)
        server.ready()
        await server.serve_forever()
        assert_type(await server.retire(owner="web"), list[Released])


def with_our_threads(listener: SharedListener) -> None:
    class Hello(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)

    with multibinder.threading.Server(listener, Hello, drain=5) as server:
        assert_type(server, multibinder.threading.Server)
        server.serve_forever()


def test_with_the_fixture(multibinder_binder: RunningBinder) -> None:
    multibinder_binder.kill()
    assert_type(multibinder_binder.pid, int)
    assert_type(multibinder_binder.socket_path, Path)


class Counting(SharedListener):
    """A subclass may override accept()."""

    def accept(self) -> tuple[socket.socket, PeerAddress]:
        accepted = super().accept()
        self.count = getattr(self, "count", 0) + 1
        return accepted
