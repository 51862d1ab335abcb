"""Plain servers of this project's tests: they bind by themselves, or get their listener from a binder.

As a program: ``python -m tests.support.servers ADDRESS own|binder``. The address is of TCP, UDP or a Unix socket. It
prints a line when it serves. SIGTERM lets it finish what it has begun; what waits in its queue stays there.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping

import multibinder
from multibinder.wire import kinds
from multibinder.wire.addresses import Address
from multibinder.wire.messages import ListenerSpec

_THREADS = 4
_REPLY = b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nok\n"


def _own(address: Address) -> socket.socket:
    kind = socket.SOCK_STREAM if kinds.of_address(address).accepts(address) else socket.SOCK_DGRAM
    sock = socket.socket(address.family, kind)
    # As most servers do, also of UDP; with SO_REUSEPORT, as HAProxy does.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if address.path is None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, "share" in sys.argv)
    sock.bind(address.sockaddr)
    if kind == socket.SOCK_STREAM:
        sock.listen(512)
    return sock


def _from_binder(address: Address) -> socket.socket:
    with multibinder.Client() as binder:
        [sock] = binder.bind([ListenerSpec(address)], owner="web", blocking=False)
    return sock


def _serve(sock: socket.socket, stopping: threading.Event) -> None:
    while not stopping.is_set():
        if not select.select([sock], [], [], 0.02)[0]:
            continue
        with contextlib.suppress(BlockingIOError):
            if sock.type == socket.SOCK_DGRAM:
                datagram, sender = sock.recvfrom(65536, socket.MSG_DONTWAIT)
                sock.sendto(datagram, sender)
                continue
            client, _ = sock.accept()
            with client:
                client.settimeout(5)
                client.recv(4096)
                client.sendall(_REPLY)


def main() -> None:
    address = Address.parse(sys.argv[1])
    sock = _own(address) if sys.argv[2] == "own" else _from_binder(address)
    sock.setblocking(False)
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    threads = [threading.Thread(target=_serve, args=(sock, stopping)) for _ in range(_THREADS)]
    for thread in threads:
        thread.start()
    os.write(sys.stdout.fileno(), b"serving\n")
    for thread in threads:
        thread.join()
    if address.path is not None and "unlink" in sys.argv:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(address.path)  # as nginx, gunicorn and PHP-FPM do


@contextlib.contextmanager
def server(address: str, how: str, *options: str, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the end of the block. It serves when this returns."""
    command = [sys.executable, "-m", "tests.support.servers", address, how, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"serving\n"
            yield process
        finally:
            process.kill()


if __name__ == "__main__":
    main()
