"""Measure the connections that are accepted per second with 1, 2 and 4 shards, as ratios to one listener.

    python -m benchmarks.shards

The real binder holds the listeners. Four processes accept, wait for the client to close, and close; each waits in epoll
(EPOLLEXCLUSIVE) for one of the shards. Clients on loopback connect and close with a reset as fast as they can, so that
no port rests in TIME_WAIT. The numbers of shards take turns in one run, so that a busy machine slows all of them.
Kernel, clients and servers share the cores: with few of them, shards save in the balance, not in the rate.
"""

from __future__ import annotations

import argparse
import contextlib
import mmap
import multiprocessing
import os
import select
import socket
import statistics
import struct
import time
from collections.abc import Iterator, Sequence

import multibinder
from benchmarks import rig

SHARDS = (1, 2, 4)
_SERVERS = 4
_HOST = "127.0.0.1"
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=rig.summary_of(__doc__))
    parser.add_argument("--rounds", type=int, default=15, help="rounds of each number (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=0.3, help="the length of a round (default: %(default)s)")
    parser.add_argument(
        "--clients", type=int, default=max(2, (os.cpu_count() or 2) // 2), help="processes that connect"
    )
    arguments = parser.parse_args()
    rates: dict[int, list[float]] = {count: [] for count in SHARDS}
    busiest: dict[int, list[float]] = {count: [] for count in SHARDS}
    with contextlib.ExitStack() as running:
        path = running.enter_context(rig.directory()) / "control.sock"
        running.enter_context(rig.binder(path))
        client = running.enter_context(multibinder.Client(str(path)))
        services = {}
        for count in SHARDS:
            port = _free_port()
            listeners = client.bind([f"{_HOST}:{port}"], shards=count, owner="bench")
            services[count] = (port, running.enter_context(_served(listeners)))
        for _ in range(arguments.rounds):
            for count, (port, accepted) in services.items():
                before = list(accepted)
                began = time.monotonic()
                _connect(port, arguments.clients, arguments.seconds)
                took = time.monotonic() - began
                parts = [now - then for now, then in zip(accepted, before, strict=True)]
                rates[count].append(sum(parts) / took)
                busiest[count].append(max(parts) / max(1, sum(parts)))
    base = statistics.median(rates[1])
    print(
        f"{_SERVERS} processes accept, {arguments.clients} connect, {os.cpu_count()} cores; {arguments.rounds} rounds"
    )
    print(f"{'shards':<10}{'accepted/s':>12}{'ratio':>8}{'busiest process':>18}")
    for count in SHARDS:
        rate = statistics.median(rates[count])
        print(f"{count:<10}{rate:>12.0f}{rate / base:>8.2f}{statistics.median(busiest[count]):>17.0%}")


@contextlib.contextmanager
def _served(listeners: Sequence[socket.socket]) -> Iterator[Sequence[int]]:
    """Accept in several processes, each on one listener. Yields what each has accepted so far."""
    accepted = memoryview(mmap.mmap(-1, 8 * _SERVERS)).cast("q")  # shared with the processes
    servers = [
        multiprocessing.Process(target=_accept, args=(listeners[number % len(listeners)], accepted, number))
        for number in range(_SERVERS)
    ]
    for server in servers:
        server.start()
    try:
        yield accepted
    finally:
        for server in servers:
            server.kill()
            server.join()


def _accept(listener: socket.socket, accepted: memoryview[int], number: int) -> None:
    listener.setblocking(False)
    waiting = select.epoll()
    waiting.register(listener, select.EPOLLIN | select.EPOLLEXCLUSIVE)
    while True:
        waiting.poll()
        try:
            client, _ = listener.accept()
        except BlockingIOError:
            continue
        with client:
            client.setblocking(True)
            with contextlib.suppress(OSError):
                client.recv(1)
        accepted[number] += 1


def _connect(port: int, processes: int, seconds: float) -> None:
    clients = [multiprocessing.Process(target=_connect_until, args=(port, seconds)) for _ in range(processes)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()


def _connect_until(port: int, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with socket.create_connection((_HOST, port)) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind((_HOST, 0))
        return int(sock.getsockname()[1])


if __name__ == "__main__":
    main()
