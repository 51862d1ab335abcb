"""Measure how long a well-behaved client waits for an answer, alone and beside hostile clients.

    python -m benchmarks.hostile

The well-behaved client says hello and binds (a descriptor comes back, and is closed), all on one connection. Beside it
are 1,000 clients that have sent half a request each, and then also one that floods the binder with requests on eight
connections, or with new connections: as another user if this runs as root, and as the well-behaved client's own user.
Then the binder holds 10,000 listeners, and the other user asks for what grows with them: statuses, lists, and requests
about 4,000 addresses.
All limits are the defaults, except the number of clients and the time for half a request, which lasts as long as the
run. The hostile processes have the lowest priority, so that the figures are the wait for the binder and not for a
core.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import select
import signal
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import multibinder
from benchmarks import rig

#: The aims for the 99th percentile of each request, without listeners and with 10,000.
AIM_S, AIM_WITH_LISTENERS_S = 0.005, 0.010
_STALLED = 1_000
_HOST = "127.0.0.1"
_HALF = b'{"jsonrpc":"2.0","method":"bind","id":1,"params":[{"add'
_BINDS = b'{"jsonrpc":"2.0","method":"bind","id":1,"params":[{"address":"127.0.0.1","port":0,"name":"flood"}]}\n'
_HELLO = b'{"jsonrpc":"2.0","method":"hello","id":1}\n'
#: One request about as many listeners as a user may have, one that binds them, and one that releases them.
_ADDRESSES = ",".join(f'{{"address":"127.77.{n >> 8}.{n & 255}","port":7777}}' for n in range(4_000))
_MANY = {
    method: f'{{"jsonrpc":"2.0","method":"{method}","id":1,"params":[{_ADDRESSES}]}}\n'.encode()
    for method in ("check", "bind", "release")
}
_LISTINGS = {method: b'{"jsonrpc":"2.0","method":"%b","id":1}\n' % method.encode() for method in ("status", "list")}
#: The uids of the hostile clients: four for the stalled ones, and one that floods. Systems do not assign them.
_STALLED_UIDS = (64001, 64002, 64003, 64004)
_FLOODING_UID = 64005


class _Latency(NamedTuple):
    """The distribution of a latency, in seconds."""

    p50: float
    p99: float
    longest: float


def main() -> None:
    parser = argparse.ArgumentParser(description=rig.summary_of(__doc__))
    parser.add_argument("--seconds", type=float, default=4, help="the time for each figure (default: %(default)s)")
    parser.add_argument("--flooding", type=int, default=8, help="connections that flood (default: %(default)s)")
    parser.add_argument("--listeners", type=int, default=10_000, help="of the second table (default: %(default)s)")
    arguments = parser.parse_args()
    rig.raise_descriptor_limit()
    _beside_many_clients(arguments)
    if arguments.listeners and os.geteuid() == 0 and rig.affordable([arguments.listeners]):
        _with_many_listeners(arguments)


def _beside_many_clients(arguments: argparse.Namespace) -> None:
    with rig.directory() as directory:
        path = directory / "control.sock"
        options = ("--mode", "0666", "--max-clients", "2048", "--request-timeout", "3600")
        with rig.binder(path, *options, quiet=True), multibinder.Client(path, timeout=60) as client:
            measure = _Measure(client, arguments.seconds)
            measure.row("alone")
            with contextlib.ExitStack() as stalled:
                for stalled_uid in _STALLED_UIDS:
                    stalled.enter_context(_process(stalled_uid, lambda ready: _stall(path, _STALLED // 4, ready)))
                measure.row(f"beside {_STALLED:,} stalled")
                attacks: dict[str, Callable[[Callable[[], None]], None]] = {
                    "requests": lambda ready: _flood_with_requests(path, arguments.flooding, ready),
                    "binds": lambda ready: _flood_with_requests(path, arguments.flooding, ready, _BINDS),
                    "connections": lambda ready: _flood_with_connections(path, ready),
                }
                for uid, whose in ((_FLOODING_UID, "another user's"), (None, "its own user's")):
                    for name, attack in attacks.items():
                        if uid is None or os.geteuid() == 0:
                            with _process(uid, attack):
                                measure.row(f"and a flood of {name}, {whose}")
                measure.row("beside the stalled again")
                if client.status().clients < _STALLED:
                    sys.exit("some stalled clients were closed before the end: these figures are not valid")


def _with_many_listeners(arguments: argparse.Namespace) -> None:
    path_options = ("--mode", "0666", "--max-listeners", str(arguments.listeners + 5_000))
    with rig.directory() as directory:
        path = directory / "control.sock"
        with rig.binder(path, *path_options, quiet=True), multibinder.Client(path, timeout=60) as client:
            for listener in rig.bind(client, arguments.listeners, owner="benchmark"):
                listener.close()
            measure = _Measure(client, arguments.seconds, AIM_WITH_LISTENERS_S)
            measure.row(f"alone, {arguments.listeners:,} listeners")
            floods: dict[str, tuple[bytes, ...]] = {
                **{f"a flood of {method}": (request,) for method, request in _LISTINGS.items()},
                "a flood of check, 4,000 addresses": (_MANY["check"],),
                "a flood of bind and release, 4,000 addresses": (_MANY["bind"], _MANY["release"]),
            }
            for number, (name, requests) in enumerate(floods.items()):
                # Each flood is another user's, who has not used up its rate yet.
                attack = partial(_flood_with_long_requests, path, requests)
                with _process(_FLOODING_UID + number, attack):
                    measure.row(name)


class _Measure:
    """A table with a row for each situation. The others are compared with the first."""

    def __init__(self, client: multibinder.Client, seconds: float, aim_s: float = AIM_S) -> None:
        self._client = client
        self._seconds = seconds
        self._aim_s = aim_s
        self._alone: tuple[_Latency, _Latency] | None = None
        [listener] = client.bind([(_HOST, 0)])
        self._address = (_HOST, listener.getsockname()[1])
        listener.close()
        hello, bind = "hello p50     p99     max", "bind p50     p99     max"
        print(f"{'milliseconds':<46}{hello:>26}{bind:>27}   p99 ratios")

    def _bind(self) -> None:
        self._client.bind([self._address])[0].close()

    def row(self, what: str) -> None:
        hello = _latency(self._client.hello, self._seconds / 2)
        bind = _latency(self._bind, self._seconds / 2)
        self._alone = self._alone or (hello, bind)
        ratios = [now.p99 / alone.p99 for now, alone in zip((hello, bind), self._alone, strict=True)]
        figures = "".join(
            f"{value * 1000:>{width}.2f}" for value, width in zip(hello + bind, (10, 8, 8, 11, 8, 8), strict=True)
        )
        verdict = "" if max(hello.p99, bind.p99) <= self._aim_s else f"  missed the aim of {self._aim_s * 1000:g} ms"
        print(f"{what:<46}{figures}{ratios[0]:>8.1f}{ratios[1]:>8.1f}{verdict}", flush=True)


def _latency(ask: Callable[[], object], seconds: float) -> _Latency:
    """Measure one request after the other, with a pause between them, so that a flood affects each of them."""
    ask()
    taken = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.perf_counter()
        ask()
        taken.append(time.perf_counter() - began)
        time.sleep(0.001)
    taken.sort()
    return _Latency(statistics.median(taken), taken[int(len(taken) * 0.99)], taken[-1])


def _stall(path: Path, count: int, ready: Callable[[], None]) -> None:
    clients = [_connected(path) for _ in range(count)]
    for client in clients:
        client.sendall(_HALF)
    ready()
    signal.pause()


def _flood_with_requests(path: Path, count: int, ready: Callable[[], None], request: bytes = _HELLO) -> None:
    """Send requests as fast as the binder reads them, and read the answers, so that the binder goes on reading."""
    clients = {client.fileno(): client for client in (_connected(path) for _ in range(count))}
    poll = select.poll()
    for client in clients.values():
        client.setblocking(False)
        poll.register(client, select.POLLIN | select.POLLOUT)
    ready()
    unsent = dict.fromkeys(clients, b"")
    while True:
        for number, _ in poll.poll():
            client = clients[number]
            with contextlib.suppress(BlockingIOError):
                unsent[number] = unsent[number] or request * 100
                unsent[number] = unsent[number][client.send(unsent[number]) :]
            with contextlib.suppress(BlockingIOError):
                _, descriptors, _, _ = socket.recv_fds(client, 1 << 20, 253)
                for descriptor in descriptors:
                    os.close(descriptor)


def _flood_with_long_requests(path: Path, requests: Sequence[bytes], ready: Callable[[], None]) -> None:
    """Send long requests on new connections, one on each, and read the answers of all."""
    poll = select.poll()
    clients: dict[int, tuple[socket.socket, bytes]] = {}
    numbers = itertools.count()
    ready()
    while True:
        while len(clients) < 32:
            client = _connected(path)
            client.setblocking(False)
            clients[client.fileno()] = client, requests[next(numbers) % len(requests)]
            poll.register(client, select.POLLIN | select.POLLOUT)
        for number, mask in poll.poll():
            client, unsent = clients[number]
            try:
                if unsent and mask & select.POLLOUT:
                    clients[number] = client, unsent[client.send(unsent) :]
                    if not clients[number][1]:
                        poll.modify(client, select.POLLIN)
                if mask & (select.POLLIN | select.POLLHUP):
                    text, descriptors, _, _ = socket.recv_fds(client, 1 << 20, 253)
                    for descriptor in descriptors:
                        os.close(descriptor)
                    if text and not text.endswith(b"\n"):
                        continue
                    raise ConnectionResetError
            except BlockingIOError:
                pass
            except OSError:
                poll.unregister(client)
                client.close()
                del clients[number]


def _flood_with_connections(path: Path, ready: Callable[[], None]) -> None:
    """Open connections, send requests on each, and close the oldest when there are 400."""
    clients: list[socket.socket] = []
    ready()
    while True:
        with contextlib.suppress(OSError):
            clients.append(_connected(path))
            clients[-1].sendall(_HELLO * 20)
        if len(clients) > 400:
            clients.pop(0).close()


def _connected(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(path))
    return client


@contextlib.contextmanager
def _process(uid: int | None, work: Callable[[Callable[[], None]], None]) -> Iterator[None]:
    """Run ``work`` in a process of that user, if this runs as root, until the end of the block.

    The block begins when ``work`` calls the function that it is given.
    """
    reading, writing = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if not pid:
        try:
            if uid is not None and os.geteuid() == 0:
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
            os.nice(19)
            if os.getppid() == parent:
                work(lambda: os.close(writing))
        except BaseException as error:
            print(f"benchmarks/hostile.py: {error!r}", file=sys.stderr)
        finally:
            os._exit(1)
    os.close(writing)
    try:
        os.read(reading, 1)
        yield
        if os.waitpid(pid, os.WNOHANG) != (0, 0):
            sys.exit("a hostile client ended too early: these figures are not valid")
    finally:
        os.close(reading)
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
