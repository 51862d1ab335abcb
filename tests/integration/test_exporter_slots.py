"""The exporter answers a scrape although another client keeps its connections open."""

from __future__ import annotations

import contextlib
import os
import socket
import threading

from prometheus_client.registry import CollectorRegistry

from multibinder import TcpAddress
from multibinder.cli.exporter_server import MetricsServer
from multibinder.kernel.tcp_peer import uid_of_peer


def scrape(address: tuple[str, int]) -> bytes:
    with socket.create_connection(address, 10) as client:
        client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        return client.recv(100)


def test_a_scrape_is_answered_while_a_client_keeps_connections_open(host: str) -> None:
    with MetricsServer(TcpAddress.of(host, 0), CollectorRegistry(), print) as server, contextlib.ExitStack() as held:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = server.socket.getsockname()
        for number in range(40):
            idle = held.enter_context(socket.create_connection(address, 10))
            if number % 2:
                idle.sendall(b"GET /metr")  # half a request
            assert scrape(address).startswith(b"HTTP/1.0 200")
        server.shutdown()


def test_the_uid_of_a_local_peer_is_found(host: str) -> None:
    with socket.create_server((host, 0)) as server, socket.create_connection(server.getsockname()):
        sock, _ = server.accept()
        with sock:
            assert uid_of_peer(sock) == os.geteuid()
