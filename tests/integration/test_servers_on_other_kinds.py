"""The servers of multibinder.asyncio and multibinder.threading on Unix sockets and on shards."""

from __future__ import annotations

import asyncio
import socket
import socketserver
import threading
from pathlib import Path

import pytest

import multibinder
import multibinder.asyncio
import multibinder.threading
from multibinder import ArgumentError, Client
from tests.support import PATIENCE_S, Binder


@pytest.fixture(autouse=True)
def socket_of_the_binder(binder: Binder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MULTIBINDER_SOCK", str(binder.socket_path))


def ask(target: str | tuple[str, int]) -> bytes:
    with socket.socket(socket.AF_UNIX if isinstance(target, str) else socket.AF_INET) as client:
        client.settimeout(PATIENCE_S)
        client.connect(target)
        client.sendall(b"hello\n")
        return client.recv(100)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write((await reader.readline()).upper())


class Echo(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.wfile.write(self.rfile.readline().upper())


def test_asyncio_serves_a_unix_socket_and_shards_and_retires_all_of_them(run_dir: Path, host: str) -> None:
    path = str(run_dir / "app.sock")
    listeners = [multibinder.bind(f"unix@{path}", owner="a"), *multibinder.bind(host, 8000, shards=2, owner="a")]

    async def serve() -> list[str]:
        server = await multibinder.asyncio.start_server(echo, listeners, drain=PATIENCE_S)
        targets: list[str | tuple[str, int]] = [path, *[(host, 8000)] * 10]
        for target in targets:
            assert await asyncio.to_thread(ask, target) == b"HELLO\n"
        return [each.outcome for each in await server.retire(owner="a")]

    assert asyncio.run(serve()) == ["closed"] * 3
    with Client() as client:
        assert client.list() == []


def test_threads_serve_a_unix_socket(run_dir: Path) -> None:
    path = str(run_dir / "app.sock")
    with multibinder.threading.Server(multibinder.bind(f"unix@{path}", owner="a"), Echo) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"signals": ()})
        thread.start()
        try:
            assert ask(path) == b"HELLO\n"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("prefix", ["uxdg@", "unixseq@"])
def test_what_has_no_streams_is_refused_with_what_to_use(run_dir: Path, prefix: str) -> None:
    with (
        multibinder.bind(f"{prefix}{run_dir}/app.sock", owner="a") as listener,
        pytest.raises(ArgumentError, match=r"app\.sock has no streams, .*create_datagram_endpoint\(sock=…\)"),
    ):
        multibinder.threading.Server(listener, Echo)
